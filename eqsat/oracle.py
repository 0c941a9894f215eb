"""The reference: what a program means, evaluated in float64 (integers in int64) over NumPy or CuPy arrays.

The walk over a program (`interpret`) knows nothing of numbers: it takes an `Algebra`, one method for each kind of node.
`evaluate` runs the plain one; `eqsat.errorbound` runs one that carries an error bound beside each value. Values are
arrays whose dimensions are the node's axes in sorted order, so that joins never transpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from eqsat.cumulative import apply_prefix
from eqsat.errors import ShapeError, UsageError
from eqsat.evaluation import (
    align,
    apply_pointwise,
    apply_reduction,
    contract_arrays,
    from_float64,
    gather,
    to_float64,
    wide_dtype,
)
from eqsat.ir import Expr, Input, Program, apply, const
from eqsat.ops import Array, Kind
from eqsat.prefix import Prefix, prefix
from eqsat.slicing import evaluate_in_slices
from eqsat.types import promote

__all__ = [
    "Algebra",
    "Float64",
    "check_inputs",
    "evaluate",
    "from_float64",
    "interpret",
    "product_factors",
    "pull_invariant",
    "to_float64",
    "to_layout",
    "widens",
]

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

    def prefix(self, e: Expr, found: Prefix, arg: V) -> V:
        """Return the reduction of every prefix of the value of `found.operand`, without the masked values in memory."""
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
    prefix: Prefix | None = None


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
    if s.prefix is not None:
        return algebra.prefix(s.node, s.prefix, args[0])
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
    if found := prefix(e):
        return _Step(e, (found.operand,), (found.axis,), prefix=found)
    axes, body = [e.attrs[0]], e.args[0]
    while e.op in _NESTED and body.op == e.op and algebra.keeps_nest(e) and prefix(body) is None:
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
    >>> from eqsat.types import DType
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

    sliced = evaluate_in_slices(program, inputs, whole, xp)
    values = [v for (v,) in (sliced or whole(program, inputs))]
    return [v.reshape(o.shape) for v, o in zip(values, program.outputs, strict=True)]


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
            return xp.asarray(e.attrs[0], dtype=wide_dtype(e.dtype))
        if e.op == "iota":
            return xp.arange(e.type.axes[0][1], dtype=wide_dtype(e.dtype))
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

    def prefix(self, e: Expr, found: Prefix, arg: Array) -> Array:
        """Return cumulative sums, products or extrema."""
        return apply_prefix(self._xp, e, found, arg)

    def access(self, e: Expr, arg: Array) -> Array:
        """Return a gather, zero outside the operand."""
        return gather(self._xp, e, arg)
