"""Evaluate single nodes over NumPy or CuPy arrays in float64 (integers in int64): joins, reductions, contractions, gathers.

A value's dimensions are its node's axes in sorted order. No function here knows of programs or of error bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eqsat.access import AccessMap, Index
from eqsat.errors import DTypeError, ShapeError
from eqsat.ir import Expr
from eqsat.ops import Array, Result
from eqsat.types import DType, promote


def wide_dtype(dtype: DType) -> Any:
    """Return the NumPy type in which values of a dtype are evaluated."""
    return np.float64 if dtype.is_float else np.bool_ if dtype is DType.BOOL else np.int64


def align(array: Array, of: Expr, to: Expr) -> Array:
    """Return a view of a value over `of`'s axes with a dimension (of extent 1 where it lacks the axis) for each of `to`'s."""
    have = of.axes
    return array[tuple(slice(None) if a in have else None for a, _ in to.type.axes)]


def apply_pointwise(xp: Any, e: Expr, operands: Sequence[Array]) -> Array:
    """Apply the pointwise op of node `e` to aligned operands."""
    if e.op == "cast":
        return _cast(xp, e, operands[0])
    if e.op in ("and", "or", "not"):
        operands = [x.astype(np.bool_) for x in operands]
    elif e.row.result is Result.BOOL:
        common = promote(e.args[0].dtype, e.args[1].dtype)
        operands = [x.astype(wide_dtype(common), copy=False) for x in operands]
    elif e.op == "where":
        operands = [operands[0].astype(np.bool_, copy=False), *(x.astype(wide_dtype(e.dtype), copy=False) for x in operands[1:])]
    else:
        operands = [x.astype(wide_dtype(e.dtype), copy=False) for x in operands]
    shape = tuple(n for _, n in e.type.axes)
    return xp.broadcast_to(xp.asarray(e.row.evaluate(xp, *operands)), shape)


def _cast(xp: Any, e: Expr, x: Array) -> Array:
    if e.dtype is DType.BOOL:
        return x != 0
    if e.dtype.is_float or not e.args[0].dtype.is_float:
        return x.astype(wide_dtype(e.dtype), copy=False)
    return xp.where(xp.isfinite(x), xp.trunc(x), 0).astype(np.int64)


def apply_reduction(xp: Any, e: Expr, body: Expr, axes: tuple[str, ...], value: Array) -> Array:
    """Reduce a value over `axes`; an empty range gives the neutral element."""
    names = [a for a, _ in body.type.axes]
    where = tuple(names.index(a) for a in axes)
    value = value.astype(wide_dtype(e.dtype), copy=False) if e.op in ("sum", "prod", "max", "min") else value
    if not e.type.elements or math.prod(value.shape[i] for i in where):
        return xp.asarray(e.row.evaluate(xp, value, where[0] if len(where) == 1 else where))
    if e.row.identity is None:
        raise ShapeError(f"{e.op} over axis {axes[0]!r} has no value: its extent is 0. Guard the reduction or drop it.")
    identity = e.row.identity
    if not e.dtype.is_float and math.isinf(identity):
        identity = np.iinfo(np.int64).min if identity < 0 else np.iinfo(np.int64).max
    return xp.full(tuple(n for _, n in e.type.axes), identity, dtype=wide_dtype(e.dtype))


def contract_arrays(xp: Any, factors: Sequence[tuple[Array, Expr]], e: Expr) -> Array:
    """Sum a product of factors down to the axes of `e`, two factors at a time, cheapest result first."""
    items = [(v.astype(wide_dtype(e.dtype), copy=False), tuple(a for a, _ in f.type.axes)) for v, f in factors]
    wanted = e.axes
    while len(items) > 1:
        i, j = _cheapest_pair(items, wanted)
        rest = [x for at, x in enumerate(items) if at not in (i, j)]
        keep = wanted.union(*(axes for _, axes in rest))
        items = [*rest, _contract_pair(xp, items[i], items[j], keep)]
    value, axes = _sum_away(items[0], wanted)
    missing = [a for a, _ in e.type.axes if a not in axes]
    assert not missing, f"factors do not vary over {missing}"
    return value


def _cheapest_pair(items: Sequence[tuple[Array, tuple[str, ...]]], wanted: frozenset[str]) -> tuple[int, int]:
    """Choose the pair whose result is smallest beside its operands (the greedy order of opt_einsum)."""
    ext = {a: n for v, axes in items for a, n in zip(axes, v.shape, strict=True)}

    def cost(i: int, j: int) -> float:
        others = wanted.union(*(axes for at, (_, axes) in enumerate(items) if at not in (i, j)))
        kept = (set(items[i][1]) | set(items[j][1])) & others
        return float(math.prod(ext[a] for a in kept) - items[i][0].size - items[j][0].size)

    pairs = [(i, j) for j in range(len(items)) for i in range(j)]
    return min(pairs, key=lambda p: cost(*p))


def _sum_away(item: tuple[Array, tuple[str, ...]], keep: Iterable[str]) -> tuple[Array, tuple[str, ...]]:
    value, axes = item
    kept = set(keep)
    gone = tuple(i for i, a in enumerate(axes) if a not in kept)
    return (value.sum(gone) if gone else value), tuple(a for a in axes if a in kept)


def _contract_pair(
    xp: Any, left: tuple[Array, tuple[str, ...]], right: tuple[Array, tuple[str, ...]], keep: frozenset[str]
) -> tuple[Array, tuple[str, ...]]:
    a, a_axes = _sum_away(left, keep | set(right[1]))
    b, b_axes = _sum_away(right, keep | set(left[1]))
    ext = {**dict(zip(a_axes, a.shape, strict=True)), **dict(zip(b_axes, b.shape, strict=True))}
    shared = [x for x in a_axes if x in b_axes]
    batch, summed = [x for x in shared if x in keep], [x for x in shared if x not in keep]
    rows, columns = [x for x in a_axes if x not in b_axes], [x for x in b_axes if x not in a_axes]
    if not summed or not rows or not columns:  # the join is no larger than an operand: multiply and add up
        axes = tuple(sorted(ext))
        spread = [v[tuple(slice(None) if x in own else None for x in axes)] for v, own in ((a, a_axes), (b, b_axes))]
        return _sum_away((spread[0] * spread[1], axes), keep)
    groups = (batch, rows, summed, columns)
    g, m, k, n = (math.prod(ext[x] for x in group) for group in groups)
    a2 = a.transpose([a_axes.index(x) for x in batch + rows + summed]).reshape(g, m, k)
    b2 = b.transpose([b_axes.index(x) for x in batch + summed + columns]).reshape(g, k, n)
    order = batch + rows + columns
    out = xp.matmul(a2, b2).reshape([ext[x] for x in order])
    axes = tuple(sorted(order))
    return out.transpose([order.index(x) for x in axes]), axes


def gather(xp: Any, e: Expr, value: Array) -> Array:
    """Read `value` through the access map of node `e`; positions outside its axes' ranges give 0."""
    mapping: AccessMap = e.attrs[0]
    entries = dict(mapping.entries)
    out_axes = [a for a, _ in e.type.axes]
    shape = tuple(n for _, n in e.type.axes)
    if not math.prod(shape) or not value.size:
        return xp.zeros(shape, dtype=value.dtype)
    names = [a for a, _ in e.args[0].type.axes]
    lines = [_line(entries.get(a, Index.axis(a))) for a in names]
    if all(lines) and len({line[0] for line in lines if line}) == len(lines):
        return _slice(xp, value, [line for line in lines if line], e)
    at = {a: xp.arange(n).reshape([-1 if a == b else 1 for b in out_axes]) for a, n in e.type.axes}
    inside: Array = xp.ones((1,) * len(shape), dtype=np.bool_)
    positions = []
    for a, n in zip(names, value.shape, strict=True):
        p = entries.get(a, Index.axis(a)).at(at, lambda n: xp.full((1,) * len(shape), n, dtype=np.int64))
        inside = inside & (p >= 0) & (p < n)
        positions.append(xp.clip(p, 0, n - 1))
    found = value[tuple(positions)]
    return xp.broadcast_to(xp.where(inside, found, xp.zeros((), dtype=value.dtype)), shape)


def _line(index: Index) -> tuple[str, int, int] | None:
    """Return (axis, step, offset) if the index is step·axis + offset with a positive step."""
    match index.op:
        case "axis":
            return index.name, 1, 0
        case "mul" if index.value > 0:
            inner = _line(index.args[0])
            return inner and (inner[0], inner[1] * index.value, inner[2] * index.value)
        case "add" if index.args[0].op == "const" or index.args[1].op == "const":
            number, other = sorted(index.args, key=lambda x: x.op != "const")
            inner = _line(other)
            return inner and (inner[0], inner[1], inner[2] + number.value)
        case _:
            return None


def _slice(xp: Any, value: Array, lines: Sequence[tuple[str, int, int]], e: Expr) -> Array:
    """Gather along straight lines: a strided slice, with zeros where it leaves the operand."""
    ext = e.type.extents
    sources, targets = [], []
    for (axis, step, offset), n in zip(lines, value.shape, strict=True):
        first = max(0, -(offset // step))  # the least position p with step·p + offset >= 0
        stop = min(ext[axis], (n - 1 - offset) // step + 1)
        stop = max(first, stop)
        sources.append(
            slice(first * step + offset, max(0, (stop - 1) * step + offset + 1), step) if stop > first else slice(0, 0)
        )
        targets.append(slice(first, stop))
    order = [axis for axis, _, _ in lines]
    moved = [order.index(a) for a, _ in e.type.axes]
    if all(t == slice(0, ext[axis]) for t, axis in zip(targets, order, strict=True)):
        return value[tuple(sources)].transpose(moved)
    out = xp.zeros([ext[axis] for axis in order], dtype=value.dtype)
    out[tuple(targets)] = value[tuple(sources)]
    return out.transpose(moved)


def to_float64(xp: Any, array: Array, dtype: DType) -> Array:
    """Widen an array of `dtype` to float64 (int64, bool); bfloat16 may come as its bits in uint16, as CuPy holds it."""
    if dtype is DType.BF16 and array.dtype == np.uint16:
        bits = array.astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).astype(np.float64)
    if xp is not np and dtype is DType.BF16:
        raise DTypeError(
            f"expected bfloat16 as bits in uint16 on a CUDA device; got an array of {array.dtype}. View it as uint16."
        )
    if array.dtype == np.uint8 and dtype is DType.BOOL:
        return array != 0
    return array.astype(wide_dtype(dtype), copy=False)


def from_float64(xp: Any, array: Array, dtype: DType) -> Array:
    """Round a float64 (int64, bool) array to `dtype`, to nearest even; bfloat16 on CuPy comes as its bits in uint16."""
    with np.errstate(all="ignore"):
        if xp is np or dtype is not DType.BF16:
            if dtype in (
                DType.BF16,
                DType.F16,
            ):  # by way of float32 rounded to odd: two roundings to nearest would differ from one
                array = _to_odd_float32(xp, array)
            return array.astype(dtype.numpy)
        bits = _to_odd_float32(xp, array).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return xp.where(xp.isnan(array), np.uint16(0x7FC0), rounded.astype(np.uint16)).astype(np.uint16)


def _to_odd_float32(xp: Any, array: Array) -> Array:
    """Convert float64 to float32, rounding to odd, so that a second rounding to a shorter type is exact."""
    wide = xp.ascontiguousarray(array, dtype=np.float64)
    near = xp.ascontiguousarray(wide.astype(np.float32))
    back = near.astype(np.float64)
    bits = near.view(np.uint32).copy()
    inexact = xp.isfinite(wide) & (back != wide)
    too_far = xp.abs(back) > xp.abs(wide)
    bits = xp.where(inexact & too_far, bits - np.uint32(1), bits)  # toward zero …
    bits = xp.where(inexact, bits | np.uint32(1), bits)  # … and the last bit set
    return bits.astype(np.uint32).view(np.float32).reshape(array.shape)
