"""The reference: what a program means, evaluated in float64 (integers in int64) over NumPy or CuPy arrays.

The walk over a program (`interpret`) knows nothing of numbers: it takes an `Algebra`, one method for each kind of node.
`evaluate` runs the plain one; `eqsat.errorbound` runs one that carries an error bound beside each value. Values are
arrays whose dimensions are the node's axes in sorted order, so that joins never transpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from eqsat.access import AccessMap, Index
from eqsat.errors import DTypeError, ShapeError, UsageError
from eqsat.ir import Expr, Input, Program, apply, const
from eqsat.ops import Array, Kind, Result
from eqsat.slicing import evaluate_in_slices
from eqsat.types import DType, promote

V = TypeVar("V")
_NESTED = ("sum", "prod", "max", "min", "any", "all")


class Algebra(Protocol[V]):
    """One number system: how to evaluate each kind of node."""

    def leaf(self, e: Expr) -> V:
        """Return the value of a read, a constant or an iota."""
        ...

    def pointwise(self, e: Expr, args: Sequence[V]) -> V:
        """Return a pointwise op of values over the axes of `e.args`."""
        ...

    def reduce(self, e: Expr, body: Expr, axes: tuple[str, ...], arg: V) -> V:
        """Return the reduction of `body`'s value over `axes` (a whole nest of reductions of one op)."""
        ...

    def contract(self, e: Expr, factors: Sequence[Expr], axes: tuple[str, ...], args: Sequence[V]) -> V:
        """Return the sum over `axes` of the product of the factors, without their join in memory."""
        ...

    def access(self, e: Expr, arg: V) -> V:
        """Return a value read through an access map."""
        ...

    def keeps_nest(self, e: Expr) -> bool:
        """Whether nested sums are added up as one; otherwise each sum of a nest is a value of its own."""
        ...

    def factors(self, body: Expr, axes: frozenset[str]) -> tuple[Expr, ...]:
        """Return the factors in which to evaluate a sum of `body` over `axes`; (body,) to add up its values."""
        ...


@dataclass(frozen=True, slots=True)
class _Step:
    """One evaluation: a node and the nodes whose values it takes."""

    node: Expr
    operands: tuple[Expr, ...]
    axes: tuple[str, ...] = ()
    contraction: bool = False


def interpret(roots: Sequence[Expr], algebra: Algebra[V]) -> list[V]:
    """Evaluate `roots`; each distinct node once, its value dropped after the last use."""
    steps = list(_steps(roots, algebra))
    last: dict[str, int] = {x.digest: i for i, s in enumerate(steps) for x in s.operands}
    last.update((r.digest, len(steps)) for r in roots)
    values: dict[str, V] = {}
    for i, s in enumerate(steps):
        values[s.node.digest] = _evaluate_step(s, [values[x.digest] for x in s.operands], algebra)
        for x in s.operands:
            if last[x.digest] == i:
                values.pop(x.digest, None)
    return [values[r.digest] for r in roots]


def _evaluate_step(s: _Step, args: list[V], algebra: Algebra[V]) -> V:
    kind = s.node.row.kind
    if kind is Kind.LEAF:
        return algebra.leaf(s.node)
    if kind is Kind.POINTWISE:
        return algebra.pointwise(s.node, args)
    if kind is Kind.ACCESS:
        return algebra.access(s.node, args[0])
    if s.contraction:
        return algebra.contract(s.node, s.operands, s.axes, args)
    return algebra.reduce(s.node, s.operands[0], s.axes, args[0])


def _steps(roots: Sequence[Expr], algebra: Algebra[V]) -> Iterator[_Step]:
    """Yield each needed node after its operands (no recursion: programs may be deep)."""
    done: set[str] = set()
    stack: list[_Step] = [_step(r, algebra) for r in reversed(roots)]
    while stack:
        s = stack[-1]
        waiting = [x for x in s.operands if x.digest not in done]
        if waiting:
            stack.extend(_step(x, algebra) for x in reversed(waiting))
            continue
        stack.pop()
        if s.node.digest not in done:
            done.add(s.node.digest)
            yield s


def _step(e: Expr, algebra: Algebra[V]) -> _Step:
    if e.row.kind is not Kind.REDUCE:
        return _Step(e, e.args)
    axes, body = [e.attrs[0]], e.args[0]
    while e.op in _NESTED and body.op == e.op and algebra.keeps_nest(e):
        axes.append(body.attrs[0])
        body = body.args[0]
    factors = algebra.factors(body, frozenset(axes)) if e.op == "sum" else (body,)
    return _Step(e, factors, tuple(axes), len(factors) > 1)


def product_factors(e: Expr) -> tuple[Expr, ...]:
    """Return the factors of a product whose join is larger than each of them; (e,) if it may as well be a value.

    A product no larger than its largest factor (x·x, or x·g with a row g) stays whole: storing it is harmless, and its own
    rounding is then seen. Negation, division and widening casts over an expanding product count as factors of it.
    """
    parts = _flat(e)
    if len(parts) < 2 or e.type.elements <= max(p.type.elements for p in parts):
        return (e,)
    match e.op:
        case "mul":
            return product_factors(e.args[0]) + product_factors(e.args[1])
        case "neg":
            return (*product_factors(e.args[0]), const(-1, e.dtype))
        case "div":
            return (*product_factors(e.args[0]), apply("recip", e.args[1]))
        case _:
            return product_factors(e.args[0])


def _flat(e: Expr) -> tuple[Expr, ...]:
    stack, out = [e], []
    while stack:
        x = stack.pop()
        if x.op in ("mul", "div"):
            stack.extend(reversed(x.args))
        elif x.op == "neg" or (x.op == "cast" and widens(x) and x.args[0].op in ("mul", "div", "neg", "cast")):
            stack.append(x.args[0])
        else:
            out.append(x)
    return tuple(out)


def pull_invariant(e: Expr, axes: frozenset[str]) -> tuple[Expr, ...]:
    """Split a product into (what varies over `axes`, then each factor that does not); (e,) if there is no such factor."""
    leaves = _flat(e)
    if len(leaves) < 2 or all(x.axes & axes for x in leaves) or not any(x.axes & axes for x in leaves):
        return (e,)
    varying: list[Expr] = []
    fixed: list[Expr] = []
    stack = [(e, False)]
    while stack:
        x, below = stack.pop()
        if not x.axes & axes:
            fixed.append(apply("recip", x) if below else x)
        elif x.op in ("mul", "div"):
            stack += [(x.args[1], below != (x.op == "div")), (x.args[0], below)]
        elif x.op == "neg" or (x.op == "cast" and len(_flat(x)) > 1):
            stack.append((x.args[0], below))
            fixed += [const(-1, x.dtype)] if x.op == "neg" else []
        else:
            varying.append(apply("recip", x) if below else x)
    product = varying[0]
    for x in varying[1:]:
        product = apply("mul", product, x)
    return (product, *fixed)


def widens(cast: Expr) -> bool:
    """Whether a cast between float types loses nothing."""
    source = cast.args[0].dtype
    return source.is_float and cast.dtype.is_float and promote(source, cast.dtype) is cast.dtype


def evaluate(program: Program, inputs: Mapping[str, Array], xp: Any = np) -> list[Array]:
    """Evaluate a program in float64 (integers in int64, truth values in bool).

    Parameters
    ----------
    program : Program
    inputs : mapping of str to array
        By name, in the shape of the program's input; bfloat16 as `ml_dtypes.bfloat16` or as its bits in uint16 (CuPy).
    xp : module
        numpy or cupy.

    Returns
    -------
    list of array
        One for each output, in its layout, *not* rounded to its dtype. A cast between float types is the identity here:
        its rounding belongs to the error bound.

    Examples
    --------
    >>> from eqsat.ir import Input, Output, read, reduce
    >>> x = read("x", ("i", "k"), (2, 3), DType.F32)
    >>> p = Program((Input("x", (2, 3), DType.F32),), (Output("y", reduce("sum", "k", x), ("i",), DType.F32),))
    >>> evaluate(p, {"x": np.arange(6.0, dtype=np.float32).reshape(2, 3)})[0].tolist()
    [3.0, 12.0]
    """
    check_inputs(program, inputs)

    def whole(p: Program, arrays: Mapping[str, Array]) -> list[tuple[Array]]:
        with np.errstate(all="ignore"):
            values = interpret([o.expr for o in p.outputs], Float64(check_inputs(p, arrays), xp))
        return [(to_layout(v, o.expr, o.axes),) for v, o in zip(values, p.outputs, strict=True)]

    sliced = evaluate_in_slices(program, inputs, whole) if xp is np else None
    return [v for (v,) in (sliced or whole(program, inputs))]


def check_inputs(program: Program, inputs: Mapping[str, Array]) -> dict[str, tuple[Input, Array]]:
    """Return (declaration, array) by name; raise ShapeError where an array is missing or of another shape."""
    out = {}
    for i in program.inputs:
        if i.name not in inputs:
            raise UsageError(f"expected an array for input {i.name!r}; got arrays for {sorted(inputs)}. Pass one for each input.")
        if tuple(inputs[i.name].shape) != i.shape:
            raise ShapeError(f"input {i.name!r} has shape {i.shape}; the array has shape {tuple(inputs[i.name].shape)}.")
        out[i.name] = (i, inputs[i.name])
    return out


def to_layout(value: Array, e: Expr, axes: Sequence[str]) -> Array:
    """Return a value (dimensions = sorted axes) in the order `axes`; "" is a dimension of extent 1."""
    names = [a for a, _ in e.type.axes]
    named = [a for a in axes if a]
    ext = e.type.extents
    return value.transpose([names.index(a) for a in named]).reshape([ext[a] if a else 1 for a in axes])


class Float64:
    """Plain evaluation: reals as float64, integers as int64, truth values as bool."""

    def __init__(self, inputs: Mapping[str, tuple[Input, Array]], xp: Any) -> None:
        self._inputs, self._xp = inputs, xp

    def keeps_nest(self, e: Expr) -> bool:
        """Nests are added up as one."""
        return True

    def factors(self, body: Expr, axes: frozenset[str]) -> tuple[Expr, ...]:
        """Return the factors of an expanding product."""
        return product_factors(body)

    def leaf(self, e: Expr) -> Array:
        """Return a read, a constant or an iota."""
        xp = self._xp
        if e.op == "const":
            return xp.asarray(e.attrs[0], dtype=_wide(e.dtype))
        if e.op == "iota":
            return xp.arange(e.type.axes[0][1], dtype=_wide(e.dtype))
        name, axes = e.attrs
        declared, array = self._inputs[name]
        named = [a for a in axes if a]
        flat = to_float64(xp, array, declared.dtype).reshape([n for a, n in zip(axes, array.shape, strict=True) if a])
        return flat.transpose([named.index(a) for a in sorted(named)])

    def pointwise(self, e: Expr, args: Sequence[Array]) -> Array:
        """Return a pointwise op of joined operands."""
        return apply_pointwise(self._xp, e, [align(x, a, e) for x, a in zip(args, e.args, strict=True)])

    def reduce(self, e: Expr, body: Expr, axes: tuple[str, ...], arg: Array) -> Array:
        """Return a reduction over one or several axes."""
        return apply_reduction(self._xp, e, body, axes, arg)

    def contract(self, e: Expr, factors: Sequence[Expr], axes: tuple[str, ...], args: Sequence[Array]) -> Array:
        """Return a sum of products by matrix products."""
        return contract_arrays(self._xp, [(v, f) for v, f in zip(args, factors, strict=True)], e)

    def access(self, e: Expr, arg: Array) -> Array:
        """Return a gather, zero outside the operand."""
        return gather(self._xp, e, arg)


def _wide(dtype: DType) -> Any:
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
        operands = [x.astype(_wide(common), copy=False) for x in operands]
    elif e.op == "where":
        operands = [operands[0].astype(np.bool_, copy=False), *(x.astype(_wide(e.dtype), copy=False) for x in operands[1:])]
    else:
        operands = [x.astype(_wide(e.dtype), copy=False) for x in operands]
    shape = tuple(n for _, n in e.type.axes)
    return xp.broadcast_to(xp.asarray(e.row.evaluate(xp, *operands)), shape)


def _cast(xp: Any, e: Expr, x: Array) -> Array:
    if e.dtype is DType.BOOL:
        return x != 0
    if e.dtype.is_float or not e.args[0].dtype.is_float:
        return x.astype(_wide(e.dtype), copy=False)
    return xp.where(xp.isfinite(x), xp.trunc(x), 0).astype(np.int64)


def apply_reduction(xp: Any, e: Expr, body: Expr, axes: tuple[str, ...], value: Array) -> Array:
    """Reduce a value over `axes`; an empty range gives the neutral element."""
    names = [a for a, _ in body.type.axes]
    where = tuple(names.index(a) for a in axes)
    value = value.astype(_wide(e.dtype), copy=False) if e.op in ("sum", "prod", "max", "min") else value
    if not e.type.elements or math.prod(value.shape[i] for i in where):
        return xp.asarray(e.row.evaluate(xp, value, where[0] if len(where) == 1 else where))
    if e.row.identity is None:
        raise ShapeError(f"{e.op} over axis {axes[0]!r} has no value: its extent is 0. Guard the reduction or drop it.")
    identity = e.row.identity
    if not e.dtype.is_float and math.isinf(identity):
        identity = np.iinfo(np.int64).min if identity < 0 else np.iinfo(np.int64).max
    return xp.full(tuple(n for _, n in e.type.axes), identity, dtype=_wide(e.dtype))


def contract_arrays(xp: Any, factors: Sequence[tuple[Array, Expr]], e: Expr) -> Array:
    """Sum a product of factors down to the axes of `e`, two factors at a time, cheapest result first."""
    items = [(v.astype(_wide(e.dtype), copy=False), tuple(a for a, _ in f.type.axes)) for v, f in factors]
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
        p = _positions(xp, entries.get(a, Index.axis(a)), at, len(shape))
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


def _positions(xp: Any, index: Index, at: Mapping[str, Array], rank: int) -> Array:
    match index.op:
        case "axis":
            return at[index.name]
        case "const":
            return xp.full((1,) * rank, index.value, dtype=np.int64)
        case "add":
            return _positions(xp, index.args[0], at, rank) + _positions(xp, index.args[1], at, rank)
        case "mul":
            return _positions(xp, index.args[0], at, rank) * index.value
        case "div":
            return _positions(xp, index.args[0], at, rank) // index.value
        case _:
            return _positions(xp, index.args[0], at, rank) % index.value


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
    return array.astype(_wide(dtype), copy=False)


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
