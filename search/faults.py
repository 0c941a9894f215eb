"""The power of a check: outputs that are wrong on purpose, which it has to reject."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from eqsat.evaluation import from_float64, to_float64
from eqsat.ir import Expr, Output, Program, apply, const, iota, rebuild, substitute
from eqsat.ir import reduce as reduce_expr
from eqsat.ops import Array, Kind
from eqsat.oracle import evaluate
from eqsat.prefix import prefix
from eqsat.search.verify import Prepared, Reference, check_outputs
from eqsat.types import DType

Fault = tuple[str, int, Callable[[], Array]]  # its kind, which output is wrong, how to make it


def power(program: Program, prepared: Sequence[Prepared], xp: Any = np) -> tuple[int, int]:
    """Feed wrong outputs to `check_outputs`; return (how many kinds were rejected, how many there were).

    A kind of fault counts where it changes an output, beyond four units of its dtype, in some suite; it is rejected if
    some suite rejects it.
    """
    tried: set[str] = set()
    rejected: set[str] = set()
    with np.errstate(all="ignore"):
        for p in prepared:
            _try_faults(program, p, xp, tried, rejected)
    return len(rejected), len(tried)


def _try_faults(program: Program, p: Prepared, xp: Any, tried: set[str], rejected: set[str]) -> None:
    right = [from_float64(xp, r.value, r.dtype) for r in p.expected]
    for name, at, make in _faults(program, p, right, xp):
        if name in rejected:
            continue
        wrong = make()
        if _differs(xp, p.expected[at], right[at], wrong):
            tried.add(name)
            outputs = [wrong if i == at else x for i, x in enumerate(right)]
            if not check_outputs(outputs, p.expected, p.suite, xp).passed:
                rejected.add(name)


def _differs(xp: Any, ref: Reference, right: Array, wrong: Array) -> bool:
    with np.errstate(all="ignore"):
        a, b = (to_float64(xp, x, ref.dtype).astype(np.float64) for x in (right, wrong))
        far = ~(xp.abs(a - b) <= 4 * ref.dtype.roundoff * xp.abs(a)) & ~((a != a) & (b != b)) & ~(a == b)
        return bool((far if ref.bound is None else far & (ref.bound < math.inf)).any())


def _faults(program: Program, p: Prepared, right: Sequence[Array], xp: Any) -> Iterator[Fault]:
    for at, (out, value) in enumerate(zip(program.outputs, right, strict=True)):
        if not value.size:
            continue
        yield f"{out.name}: zeros", at, partial(xp.zeros_like, value)
        for i in program.inputs:
            if i.shape == out.shape:
                yield f"{out.name}: a copy of {i.name}", at, partial(_converted, xp, p.inputs[i.name], i.dtype, out.dtype)
        yield f"{out.name}: last tile not written", at, partial(_unwritten, value)
        long = next((d for d, n in enumerate(value.shape) if n > 1), None)
        if long is not None:
            yield f"{out.name}: off by one row", at, partial(xp.roll, value, 1, axis=long)
        yield f"{out.name}: last element changed", at, partial(_changed, xp, p.expected[at])
        yield from _precision_fault(xp, out, at, p.expected[at])
        if p.suite.name in ("exact", "normal", "edges"):
            yield from _dropped_tiles(program, at, p, xp)


def _converted(xp: Any, array: Array, dtype: DType, to: DType) -> Array:
    return from_float64(xp, to_float64(xp, array, dtype), to)


def _unwritten(value: Array) -> Array:
    wrong = value.copy()
    if wrong.ndim:
        wrong[..., -min(16, wrong.shape[-1]) :] = 0
    return wrong


def _changed(xp: Any, ref: Reference) -> Array:
    """Return the right output with its last element moved by half of itself or a quarter of the typical size."""
    flat = ref.value.reshape(-1).copy()
    if ref.dtype is DType.BOOL:
        flat[-1] = ~flat[-1]
    elif not ref.dtype.is_float:
        flat[-1] += 1
    else:
        finite = xp.where(xp.isfinite(flat), flat, 0.0)
        size = xp.abs(finite[-1])
        flat[-1] = finite[-1] + xp.maximum(0.5 * size, 0.25 * xp.sqrt((finite * finite).mean()))
    return from_float64(xp, flat.reshape(ref.value.shape), ref.dtype)


def _precision_fault(xp: Any, out: Output, at: int, ref: Reference) -> Iterator[Fault]:
    """Yield a downcast output, where the program is well enough conditioned to tell (typical bound under half of it)."""
    shorter = {DType.F32: DType.BF16, DType.F64: DType.F32}.get(out.dtype)
    if shorter is None or ref.bound is None:
        return
    step = max(1, ref.value.size // 65536)
    value, bound = ref.value.reshape(-1)[::step], ref.bound.reshape(-1)[::step]
    ratio = xp.where(xp.isfinite(value) & (value != 0), bound / xp.where(value == 0, 1.0, xp.abs(value)), math.inf)
    if float(xp.median(ratio)) > shorter.roundoff / 4:
        return

    def narrow() -> Array:
        return _converted(xp, from_float64(xp, ref.value, shorter), shorter, out.dtype)

    yield f"{out.name}: computed in {shorter}", at, narrow


def _dropped_tiles(program: Program, at: int, p: Prepared, xp: Any) -> Iterator[Fault]:
    """Yield the output of the program whose outermost reduction leaves out its last positions."""
    out = program.outputs[at]
    node = next((e for e in reversed(list(out.expr.walk())) if e.row.kind is Kind.REDUCE and e.row.identity is not None), None)
    if node is None or (extent := node.args[0].type.extents[node.attrs[0]]) < 2:
        return
    # A tile of a long reduction has 64 positions at the least; fewer of many would hide in what the result is rounded to.
    dropped = max(1, min(16, extent // 2), extent // 64)

    def cut() -> Array:
        wrong = substitute(out.expr, {node: _without_last(node, extent - dropped)})
        short = Program(program.inputs, (Output(out.name, wrong, out.axes, out.dtype, out.joined),))
        return from_float64(xp, evaluate(short, p.inputs, xp)[0], out.dtype)

    yield f"{out.name}: {dropped} of {extent} dropped", at, cut


def _without_last(node: Expr, stop: int) -> Expr:
    axis, body = node.attrs[0], node.args[0]
    found = prefix(node)
    if found is not None:  # the cut is in what is scanned, so that it is still a scan
        short = apply("where", _below(axis, body, stop), found.operand, const(found.neutral, found.operand.dtype))
        return rebuild(node, (substitute(body, {found.operand: short}),))
    inside = _below(axis, body, stop)
    if node.op == "sum" and body.dtype is not DType.BOOL:
        return reduce_expr("sum", axis, apply("mul", body, apply("cast", inside, dtype=body.dtype)))
    identity = node.row.identity or 0.0
    if not body.dtype.is_float and math.isinf(identity):
        identity = math.copysign(2**31 - 1, identity)
    return reduce_expr(node.op, axis, apply("where", inside, body, const(identity, body.dtype)))


def _below(axis: str, body: Expr, stop: int) -> Expr:
    return apply("lt", iota(axis, body.type.extents[axis]), const(stop, DType.I64))
