"""The running error: a tolerance for every element of a program's outputs, computed from the program itself.

Beside each value the interpreter carries how far a correct kernel may be from it. Errors come in parts, by two properties:
*independent along* a set of axes (the rounding of h[m,k] differs for every k; the error of a row's mean is the same for
all k) and *hard* (a bound that holds) or *soft* (the scale of a sum of many independent roundings, of which `confidence`
times the scale is allowed). A sum over n elements adds dependent parts up, and independent parts as a root of squares.

Where the reference is not finite the error is 0 if its operands were exact (the kernel must then give the same class: NaN,
+inf or -inf) and infinite otherwise; an infinite error means that the element is not compared. It is also infinite where a
value may leave the range of the type that holds it, and where a maximum has to choose between a number and a NaN.
Casts between float types are the identity in the reference; their rounding is in the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eqsat.cumulative import apply_prefix, prefix_errors
from eqsat.evaluation import align, apply_pointwise, apply_reduction, contract_arrays, gather
from eqsat.ir import Expr, Input, Output, Program
from eqsat.ops import Array, Kind
from eqsat.oracle import Float64, check_inputs, interpret, product_factors, pull_invariant, to_layout, widens
from eqsat.prefix import Prefix
from eqsat.slicing import evaluate_in_slices
from eqsat.types import DType

Key = tuple[frozenset[str], bool]  # (axes along which the part is independent, whether it is soft)
Errors = dict[Key, Array]


@dataclass(frozen=True, slots=True)
class Rounding:
    """What rounding a kernel or a plan may do beyond its arithmetic type.

    Parameters
    ----------
    stored : bool
        Every value of a 16-bit dtype may be rounded to it, because some plan stores it; and every 16-bit factor of a
        contraction once more, because some plan stores it joined with another (a·b + a·c = a·(b + c)). False for a single
        kernel: there only its output, explicit casts and computed factors of a contraction (they pass through the matrix
        unit) are, and a constant is a number of its arithmetic type.
    confidence : float
        How many times the scale of a soft part is allowed (6: less than one element in 1e8).
    multiplicand : float
        Extra unit round-off of the f32 factors of a contraction: 0 for strict, 2^-11 where TF32 is asked for.
    """

    stored: bool = True
    confidence: float = 6.0
    multiplicand: float = 0.0


@dataclass(frozen=True, slots=True)
class Bounded:
    """A value and the parts of its error; no parts means that the value is exact."""

    value: Array
    errors: Errors = field(default_factory=dict)


# Rounding of one op in units of the arithmetic type; 1 where not listed. They cover the fast paths that a kernel may take:
# CUDA's approximate reciprocal, square root and exponential (CUDA C++ Programming Guide, mathematical functions), and
# polynomials of the same quality.
_UNITS = {"div": 4, "recip": 2, "rsqrt": 4, "exp": 4, "log": 4, "tanh": 8, "sigmoid": 6, "erf": 8, "sin": 8, "cos": 8, "pow": 16}
# The argument is scaled by log2(e) before the exponential: an error of |x| units in the result.
_SCALED = ("exp", "sigmoid")
# Absolute rather than relative near 0: log near 1, and what is built from exponentials or reduced arguments.
_ABSOLUTE = ("log", "tanh", "erf", "sin", "cos")
_CHOOSE = ("maximum", "minimum", "neg", "abs", "where", "max", "min")
_SMALLEST = {DType.F64: 2.0**-1022, DType.F32: 2.0**-126, DType.BF16: 2.0**-126, DType.F16: 2.0**-25}
_LARGEST = {DType.F64: math.inf, DType.F32: 3.4028234e38, DType.BF16: 3.3895313e38, DType.F16: 65504.0}


def evaluate_with_bound(
    program: Program, inputs: Mapping[str, Array], xp: Any = np, rounding: Rounding | None = None
) -> list[tuple[Array, Array]]:
    """Evaluate a program in float64 and bound the error of a correct kernel for each element.

    Parameters
    ----------
    program, inputs, xp
        As for `eqsat.oracle.evaluate`.
    rounding : Rounding, optional
        Which values may be rounded besides each operation's own result; by default, those of a plan.

    Returns
    -------
    list of (value, bound)
        Both float64 (values: int64, bool for such outputs) in the output's layout; the rounding to the output's dtype is
        part of the bound. A bound of inf: not to be compared.

    Notes
    -----
    Higham and Mary, "A new approach to probabilistic rounding error analysis" (2019), for the factor sqrt(n) of a sum.
    Up to n = confidence², and always for the truncation inside a tensor core, the deterministic bound is used.
    """
    rounding = rounding or Rounding()
    check_inputs(program, inputs)

    def whole(p: Program, arrays: Mapping[str, Array]) -> list[tuple[Array, Array]]:
        roots = [o.expr for o in p.outputs]
        summed = frozenset(e.attrs[0] for r in roots for e in r.walk() if e.row.kind is Kind.REDUCE)
        bounds = _RunningError(check_inputs(p, arrays), xp, rounding, summed)
        with np.errstate(all="ignore"):
            found = interpret(roots, bounds)
            return [bounds.store(v, o) for v, o in zip(found, p.outputs, strict=True)]

    sliced = evaluate_in_slices(program, inputs, whole, xp)
    found = sliced or whole(program, inputs)
    return [(v.reshape(o.shape), b.reshape(o.shape)) for (v, b), o in zip(found, program.outputs, strict=True)]


class _RunningError:
    """The algebra of values with errors."""

    def __init__(self, inputs: Mapping[str, tuple[Input, Array]], xp: Any, rounding: Rounding, summed: frozenset[str]) -> None:
        self._plain, self._xp, self._rounding, self._summed = Float64(inputs, xp), xp, rounding, summed

    # -- what the interpreter calls --------------------------------------------------------------------------------

    def keeps_nest(self, e: Expr) -> bool:
        """Keep a nest, but not where a plan may store the inner sum in 16 bits."""
        return not (self._rounding.stored and _short(e.dtype) and e.op == "sum")

    def factors(self, body: Expr, axes: frozenset[str]) -> tuple[Expr, ...]:
        """Return the factors of an expanding product, with what is the same along the sum apart.

        The error of a row's scale multiplies the finished sum: seen apart, it grows with |sum| and not with sum of |…|.
        """
        found = product_factors(body)
        return found if len(found) < 2 else tuple(p for f in found for p in pull_invariant(f, axes))

    def leaf(self, e: Expr) -> Bounded:
        """Return an exact read or position, or a constant that may be rounded.

        A kernel prints it as a number of its arithmetic type (no constant is an operand of a matrix unit by itself); only a
        plan may have stored it in its own dtype. It matters: the error of a constant is one for all positions, so that it
        does not average out. A softmax scale of 1/sqrt(d) rounded to bf16 moves every score by up to 2^-9 of itself, which
        was nine tenths of what averages over 8192 keys leave of their values.
        """
        value = self._plain.leaf(e)
        if e.op != "const" or not e.dtype.is_float:
            return Bounded(value)
        held = e.dtype if self._rounding.stored else e.dtype.accumulator
        exact = float(np.asarray(e.attrs[0], dtype=held.numpy).astype(np.float64)) == float(e.attrs[0])
        if exact or not math.isfinite(e.attrs[0]):
            return Bounded(value)
        return Bounded(value, {_HARD: held.roundoff * self._xp.abs(value) + _SMALLEST[held]})

    def pointwise(self, e: Expr, args: Sequence[Bounded]) -> Bounded:
        """Propagate operand errors by the slopes of the op table and add the op's own rounding."""
        xp = self._xp
        operands = [align(b.value, a, e) for b, a in zip(args, e.args, strict=True)]
        parts = [{k: align(p, a, e) for k, p in b.errors.items()} for b, a in zip(args, e.args, strict=True)]
        value = apply_pointwise(xp, e, operands)
        if e.dtype is DType.BOOL:
            return self._flipping(e, value, operands, parts)
        if e.op == "where":
            errors = self._where(operands, parts)
        elif e.op == "floor" or (e.op == "cast" and not e.dtype.is_float):
            errors = self._steps(e, operands[0], parts[0], value)
        elif e.op in ("maximum", "minimum"):
            errors = self._choice(e, operands, parts)
        else:
            errors = self._smooth(e, value, operands, parts)
        if e.op == "cast":
            errors = self._cast_rounding(e, value, errors)
        elif e.op not in _CHOOSE and e.op != "floor":
            errors = self._own_rounding(e, value, operands, errors)
        return self._settle(e, value, errors, lambda: self._doubt(e, operands, parts))

    def reduce(self, e: Expr, body: Expr, axes: tuple[str, ...], arg: Bounded) -> Bounded:
        """Propagate through a reduction over `axes`."""
        xp = self._xp
        value = apply_reduction(xp, e, body, axes, arg.value)
        where = tuple([a for a, _ in body.type.axes].index(a) for a in axes)
        if e.op == "sum":
            return self._sum(e, body, axes, where, arg, value)
        total = self._total(arg.errors)
        if e.op in ("argmax", "argmin"):
            errors = self._rivals(e, arg.value, total, where[0], value)
        elif e.op in ("any", "all"):
            errors = {} if total is None else {_HARD: (total > 0).any(where).astype(np.float64)}
        elif e.op == "prod":
            errors = self._product(e, body, axes, arg.value, total, where)
        else:
            errors = {}
            for k, p in self._contenders(e, arg, total, where).items():
                errors = _add(errors, {_less(k, axes): self._most(p, where)})
        return self._settle(e, value, errors, lambda: self._row_doubt(e, arg, total, where))

    def prefix(self, e: Expr, found: Prefix, arg: Bounded) -> Bounded:
        """Propagate through a reduction of every prefix."""
        value, total = apply_prefix(self._xp, e, found, arg.value), self._total(arg.errors)
        confidence, unit = self._rounding.confidence, _unit(e.dtype)
        errors, doubt = prefix_errors(self._xp, e, found, arg.value, arg.errors, total, confidence, unit)
        return self._settle(e, value, self._storage(e, value, errors), lambda: doubt)

    def contract(self, e: Expr, factors: Sequence[Expr], axes: tuple[str, ...], args: Sequence[Bounded]) -> Bounded:
        """Propagate through a sum of products by further matrix products."""
        xp = self._xp
        summed = frozenset(axes)
        scaled = [0] * len(factors)  # how many scales were taken out of each: each product may have been a rounded value
        for scale in (f for f in factors if not f.axes & summed and f.op != "const"):
            scaled[next((i for i, f in enumerate(factors) if f.axes & summed and scale.axes <= f.axes), 0)] += 1
        args = [self._as_factor(f, b, times) for f, b, times in zip(factors, args, scaled, strict=True)]
        value = contract_arrays(xp, [(b.value, f) for b, f in zip(args, factors, strict=True)], e)
        if not e.dtype.is_float and not any(b.errors for b in args):
            return Bounded(value)
        sizes = [xp.abs(b.value) for b in args]
        totals = [self._total(b.errors) for b in args]
        reached = [s if t is None else s + t for s, t in zip(sizes, totals, strict=True)]
        absolute = contract_arrays(xp, list(zip(reached, factors, strict=True)), e)
        n = math.prod(_extents(factors)[a] for a in axes)
        short = all(_short(f.dtype) for f in factors)
        errors = self._accumulated(e, n, absolute, extra=n / 8 if short else len(factors) - 1.0)
        for i, b in enumerate(args):
            apart = not factors[i].axes & summed  # it multiplies the finished sum, whose signs are known
            others = [(args[j].value if apart else reached[j], f) for j, f in enumerate(factors) if j != i]
            for key, part in b.errors.items():
                errors = _add(errors, self._carried(e, key, part, factors[i], others, axes, n))
        inexact = any(b.errors for b in args)
        return self._settle(e, value, self._storage(e, value, errors), lambda: xp.full(value.shape, inexact))

    def access(self, e: Expr, arg: Bounded) -> Bounded:
        """Gather value and errors alike."""
        xp = self._xp
        value = gather(xp, e, arg.value)
        if not arg.errors:
            return Bounded(value)
        replaced = {a for a, _ in e.attrs[0].entries}
        new = e.axes - (e.args[0].axes - replaced)
        injective = self._injective(e, replaced)
        errors: Errors = {}
        for (independent, soft), part in arg.errors.items():
            kept = independent - replaced
            if injective and replaced <= independent | (e.args[0].axes - self._summed):
                kept |= new & self._summed
            errors = _add(errors, {(kept, soft): gather(xp, e, part)})
        return Bounded(value, errors)

    def store(self, b: Bounded, out: Output) -> tuple[Array, Array]:
        """Return (value, bound) in the layout of the output, its rounding included."""
        e, errors = out.expr, b.errors
        if out.dtype.is_float:
            narrower = out.dtype.roundoff > e.dtype.roundoff
            in_registers = _short(out.dtype) and errors and not self._rounding.stored
            if narrower or in_registers:
                errors = self._round_to(out.dtype, b.value, errors, frozenset())
            errors = self._range(out.dtype, b.value, errors)
        total = self._total(errors)
        bound = self._xp.zeros(b.value.shape) if total is None else self._xp.where(self._xp.isnan(total), math.inf, total)
        bound = self._xp.broadcast_to(bound, b.value.shape)
        return to_layout(b.value, e, out.axes), to_layout(bound, e, out.axes)

    # -- sums ------------------------------------------------------------------------------------------------------

    def _sum(self, e: Expr, body: Expr, axes: tuple[str, ...], where: tuple[int, ...], arg: Bounded, value: Array) -> Bounded:
        if not e.dtype.is_float and not arg.errors:
            return Bounded(value)
        xp = self._xp
        n = math.prod(body.type.extents[a] for a in axes)
        total = self._total(arg.errors)
        reached = xp.abs(arg.value) if total is None else xp.abs(arg.value) + total
        errors = self._accumulated(e, n, reached.sum(where))
        parts = arg.errors
        if body.op == "mul" and _short(body.dtype) and any(_computed(a) for a in body.args):
            parts = self._round_to(body.dtype, arg.value, parts, self._free(body)) if not self._rounding.stored else parts
        for (independent, soft), part in parts.items():
            if set(axes) <= independent and (soft or n > self._rounding.confidence**2):
                new = {(independent - set(axes), True): xp.sqrt((part * part).sum(where))}
            else:
                new = {(independent - set(axes), soft): part.sum(where)}
            errors = _add(errors, new)
        return self._settle(e, value, self._storage(e, value, errors), lambda: self._row_doubt(e, arg, total, where))

    def _accumulated(self, e: Expr, n: int, absolute: Array, extra: float = 0.0) -> Errors:
        """Return the error of adding n terms: n·u hard while n is small, else sqrt(n)·u soft; `extra` units more, hard."""
        u = _unit(e.dtype)
        if n <= 1 and not extra:
            return {}
        if n <= self._rounding.confidence**2:
            return {(self._free(e), False): (n + extra) * u * absolute}
        errors: Errors = {(self._free(e), True): math.sqrt(n) * u * absolute}
        return _add(errors, {(frozenset(), False): extra * u * absolute}) if extra else errors

    def _carried(
        self, e: Expr, key: Key, part: Array, factor: Expr, others: list[tuple[Array, Expr]], axes: tuple[str, ...], n: int
    ) -> Errors:
        """Return what a factor's error becomes in a contraction."""
        xp = self._xp
        independent, soft = key
        if set(axes) <= independent and (soft or n > self._rounding.confidence**2):
            squares = contract_arrays(xp, [(part * part, factor), *((v * v, f) for v, f in others)], e)
            return {(independent - set(axes), True): xp.sqrt(squares)}
        return {(independent - set(axes), soft): xp.abs(contract_arrays(xp, [(part, factor), *others], e))}

    def _as_factor(self, factor: Expr, b: Bounded, scaled: int) -> Bounded:
        """Add the rounding of a factor on its way into a matrix unit, or as a value before `scaled` scales were taken out."""
        if _short(factor.dtype):
            times = scaled + 1 if self._rounding.stored else int(scaled > 0 or _computed(factor))
            errors = b.errors
            for _ in range(times):
                errors = self._round_to(factor.dtype, b.value, errors, self._free(factor))
            return Bounded(b.value, errors)
        if factor.dtype is DType.F32 and self._rounding.multiplicand:
            own = {(self._free(factor), False): self._rounding.multiplicand * self._xp.abs(b.value)}
            return Bounded(b.value, _add(b.errors, own))
        return b

    # -- other reductions --------------------------------------------------------------------------------------------

    def _contenders(self, e: Expr, arg: Bounded, total: Array | None, where: tuple[int, ...]) -> Errors:
        """Return the errors of what may be the extremum; those of elements that are out of its reach do not count."""
        if total is None or not arg.value.size:
            return arg.errors
        xp, sign = self._xp, 1.0 if e.op == "max" else -1.0
        value = sign * arg.value
        may = value + total >= (value - total).max(where, keepdims=True)
        return arg.errors if may.all() else {k: xp.where(may, p, 0.0) for k, p in arg.errors.items()}

    def _most(self, part: Array, where: tuple[int, ...]) -> Array:
        return part.max(where) if all(part.shape[i] for i in where) else self._xp.zeros(part.sum(where).shape)

    def _rivals(self, e: Expr, value: Array, total: Array | None, axis: int, found: Array) -> Errors:
        """Not compared where more than one position may hold the extremum."""
        xp = self._xp
        if total is None or not found.size:
            return {}
        sign = 1.0 if e.op == "argmax" else -1.0
        low, high = sign * value - total, sign * value + total
        rivals = (high >= low.max(axis, keepdims=True)).sum(axis)
        return {_HARD: xp.where(rivals > 1, math.inf, 0.0)}

    def _product(
        self, e: Expr, body: Expr, axes: tuple[str, ...], value: Array, total: Array | None, where: tuple[int, ...]
    ) -> Errors:
        if not e.dtype.is_float:
            return {}
        xp = self._xp
        n = math.prod(body.type.extents[a] for a in axes)
        size = xp.abs(value)
        plain = size.prod(where)
        reached = plain if total is None else (size + total).prod(where)
        return self._storage(e, plain, {(self._free(e), False): reached - plain + n * _unit(e.dtype) * reached})

    # -- pointwise ---------------------------------------------------------------------------------------------------

    def _smooth(self, e: Expr, value: Array, operands: list[Array], parts: list[Errors]) -> Errors:
        """Scale each operand's error by the largest slope within the operands' errors (mean value theorem)."""
        if not any(parts) or e.row.slopes is None:
            return {}
        slopes = self._slopes(e, value, operands, [self._total(p) for p in parts])
        errors: Errors = {}
        for slope, part in zip(slopes, parts, strict=True):
            errors = _add(errors, {k: self._xp.abs(slope) * p for k, p in part.items()})
        return errors

    def _slopes(self, e: Expr, value: Array, operands: list[Array], totals: list[Array | None]) -> tuple[Array, ...]:
        xp, table = self._xp, e.row.slopes
        assert table is not None
        if e.op in _SLOPE_ONE:
            return tuple(xp.ones((1,) * value.ndim) for _ in operands)
        reach = [xp.zeros((1,) * value.ndim) if t is None else t for t in totals]
        if e.op in _WORST:  # the operands at which the slopes are largest are known
            worst = _WORST[e.op](xp, operands, reach)
            return table(xp, apply_pointwise(xp, e, worst), *worst)
        if e.op in ("sin", "cos"):
            return (xp.minimum(1.0, xp.abs(table(xp, value, *operands)[0]) + reach[0]),)
        return self._corner_slopes(e, value, operands, reach)

    def _corner_slopes(self, e: Expr, value: Array, operands: list[Array], reach: list[Array]) -> tuple[Array, ...]:
        """Return the largest slope at the operands and at both ends of their errors, secants to the ends included.

        A secant bounds a monotone function where its steepest point lies between (tanh around 0).
        """
        xp, table = self._xp, e.row.slopes
        assert table is not None
        width = sum(reach[1:], start=reach[0])
        largest = tuple(xp.zeros((1,) * value.ndim) for _ in operands)
        for sign in (0.0, 1.0, -1.0):
            corner = [x + sign * r for x, r in zip(operands, reach, strict=True)]
            y = apply_pointwise(xp, e, corner)
            outside = xp.isnan(y) & ~xp.isnan(value)  # the errors reach out of the op's domain
            secant = xp.where(width > 0, xp.abs(y - value) / width, 0.0)
            slopes = [xp.maximum(xp.abs(s), secant) for s in table(xp, y, *corner)]
            largest = tuple(xp.where(outside, math.inf, xp.maximum(m, s)) for m, s in zip(largest, slopes, strict=True))
        return largest

    def _flipping(self, e: Expr, value: Array, operands: list[Array], parts: list[Errors]) -> Bounded:
        """Mark truth values that errors may flip with 1."""
        xp = self._xp
        totals = [t for p in parts if (t := self._total(p)) is not None]
        if not totals:
            return Bounded(value)
        reach = sum(totals[1:], start=totals[0])
        if e.op in ("lt", "le", "eq"):
            a, b = (x.astype(np.float64) for x in operands)
            flips = xp.where(a == b, reach > 0, ~(xp.abs(a - b) > reach))
        elif e.op == "cast":
            flips = (xp.abs(operands[0]) <= reach) & (reach > 0)
        else:
            flips = reach > 0
        return Bounded(value, {_HARD: xp.broadcast_to(flips.astype(np.float64), value.shape)})

    def _where(self, operands: list[Array], parts: list[Errors]) -> Errors:
        """Take the chosen branch's error; where the condition may flip, also the distance of the branches."""
        xp = self._xp
        chosen, a, b = operands
        chosen = chosen.astype(np.bool_)
        errors: Errors = {k: xp.where(chosen, p, 0.0) for k, p in parts[1].items()}
        errors = _add(errors, {k: xp.where(chosen, 0.0, p) for k, p in parts[2].items()})
        doubt = self._total(parts[0])
        if doubt is None:
            return errors
        apart = xp.where(a == b, 0.0, xp.abs(a.astype(np.float64) - b))
        for t in (self._total(parts[1]), self._total(parts[2])):
            apart = apart if t is None else apart + t
        return _add(errors, {_HARD: xp.where(doubt > 0, apart, 0.0)})

    def _steps(self, e: Expr, operand: Array, part: Errors, value: Array) -> Errors:
        """Bound floor and the cast to integers by their values at both ends."""
        total = self._total(part)
        if total is None:
            return {}
        up, down = (apply_pointwise(self._xp, e, [operand + s * total]) for s in (1.0, -1.0))
        return {_HARD: self._xp.maximum(abs(up - value), abs(down - value)).astype(np.float64)}

    def _choice(self, e: Expr, operands: list[Array], parts: list[Errors]) -> Errors:
        """Take the error of the operand that is chosen for certain, and the larger of both where errors may decide."""
        xp = self._xp
        if not any(parts):
            return {}
        a, b = (x.astype(np.float64) for x in operands)
        ahead = a - b if e.op == "maximum" else b - a
        totals = [t for p in parts if (t := self._total(p)) is not None]
        reach = sum(totals[1:], start=totals[0])
        errors: Errors = {}
        for k in {k for p in parts for k in p}:
            ps = [p[k] for p in parts if k in p]
            errors[k] = ps[0] if len(ps) == 1 else xp.maximum(ps[0], ps[1])
        for chosen, p in ((ahead > reach, parts[0]), (-ahead > reach, parts[1])):
            errors = {k: xp.where(chosen, p.get(k, 0.0), x) for k, x in errors.items()}
        return errors

    # -- rounding ----------------------------------------------------------------------------------------------------

    def _own_rounding(self, e: Expr, value: Array, operands: list[Array], errors: Errors) -> Errors:
        xp = self._xp
        if not e.dtype.is_float:
            return errors
        size = xp.abs(value)
        units: Any = float(_UNITS.get(e.op, 1))
        if e.op in _SCALED:
            units = units + xp.where(xp.isfinite(operands[0]), xp.abs(operands[0]), 0.0)  # e^-inf is 0 exactly
        elif e.op == "pow":
            units = units + 2.0 * xp.abs(xp.log(xp.where(size > 0, size, 1.0)))
        scale = xp.maximum(size, 1.0) if e.op in _ABSOLUTE else size
        own = units * _unit(e.dtype) * scale + xp.where(value != 0, _SMALLEST[e.dtype.accumulator], 0.0)
        errors = _add(errors, {(self._free(e), False): own})
        return self._storage(e, value, errors)

    def _cast_rounding(self, e: Expr, value: Array, errors: Errors) -> Errors:
        source = e.args[0].dtype
        if not e.dtype.is_float or source is DType.BOOL or widens(e):
            return errors
        return self._round_to(e.dtype, value, errors, self._free(e))

    def _storage(self, e: Expr, value: Array, errors: Errors) -> Errors:
        if self._rounding.stored and _short(e.dtype):
            return self._round_to(e.dtype, value, errors, self._free(e))
        return errors

    def _round_to(self, dtype: DType, value: Array, errors: Errors, independent: frozenset[str]) -> Errors:
        xp = self._xp
        total = self._total(errors)
        reached = xp.abs(value) if total is None else xp.abs(value) + total
        own = dtype.roundoff * reached + xp.where(value != 0, _SMALLEST[dtype], 0.0)
        return _add(errors, {(independent, False): own})

    def _settle(self, e: Expr, value: Array, errors: Errors, doubt: Callable[[], Array]) -> Bounded:
        """Make errors numbers: 0 or inf where the value is not finite, inf where it may not fit its type."""
        xp = self._xp
        if value.dtype == np.float64:
            bad = ~xp.isfinite(value)
            any_bad = bool(bad.any())
            if any_bad or any(p.size and bool(xp.isnan(p.max())) for p in errors.values()):
                errors = {k: xp.where(bad, 0.0, xp.where(xp.isnan(p), math.inf, p)) for k, p in errors.items()}
            if any_bad:
                errors = _add(errors, {_HARD: xp.where(bad & doubt(), math.inf, 0.0)})
            errors = self._range(e.dtype if self._rounding.stored else e.dtype.accumulator, value, errors)
        return Bounded(value, {k: xp.broadcast_to(p, value.shape) for k, p in errors.items()})

    def _doubt(self, e: Expr, operands: list[Array], parts: list[Errors]) -> Array:
        """Where an operand is inexact, or is NaN in a choice (maximum(x, NaN) differs between machines).

        Beside an infinity or NaN that is exact, a finite error changes no sum, and none of a factor that stays off 0 a product.
        """
        xp = self._xp
        if e.op == "where":  # the branch that is not taken says nothing
            flips, yes, no = (0.0 if (t := self._total(p)) is None else t for p in parts)
            return xp.asarray((flips != 0) | (xp.where(operands[0].astype(np.bool_), yes, no) != 0))
        doubt = xp.zeros((1,) * len(e.type.axes), dtype=np.bool_)
        lasting = xp.zeros_like(doubt)  # inexact even beside an exact infinity
        for x, p in zip(operands, parts, strict=True):
            total = self._total(p)
            if total is not None:
                doubt = doubt | (total != 0)
                lasting = lasting | ((total != 0) & (xp.isinf(total) | ((e.op == "mul") & (total >= xp.abs(x)))))
        if e.op in ("add", "sub", "mul"):
            special = ~xp.isfinite(operands[0]) | ~xp.isfinite(operands[1])
            return xp.where(special, lasting, doubt)
        if e.op in ("maximum", "minimum"):
            doubt = doubt | (self._xp.isnan(operands[0]) != self._xp.isnan(operands[1]))
        return doubt

    def _row_doubt(self, e: Expr, arg: Bounded, total: Array | None, where: tuple[int, ...]) -> Array:
        """Return the same for the rows of a reduction."""
        xp = self._xp
        doubt = xp.zeros(arg.value.any(where).shape, dtype=np.bool_) if total is None else (total != 0).any(where)
        if e.op in ("max", "min"):
            lost = xp.isnan(arg.value)
            doubt = doubt | (lost.any(where) & ~lost.all(where))
        return doubt

    def _range(self, dtype: DType, value: Array, errors: Errors) -> Errors:
        largest = _LARGEST.get(dtype, math.inf)
        if not math.isfinite(largest) or value.dtype != np.float64:
            return errors
        xp = self._xp
        total = self._total(errors)
        if (
            value.size
            and max(float(value.max()), -float(value.min())) + (0.0 if total is None else float(total.max())) <= largest
        ):
            return errors  # nearly always, and the cheapest way to see it
        size = xp.abs(value)
        over = xp.isfinite(value) & ((size if total is None else size + total) > largest)
        return _add(errors, {_HARD: xp.where(over, math.inf, 0.0)}) if over.any() else errors

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _free(self, e: Expr) -> frozenset[str]:
        """Axes along which a fresh rounding of node `e` is independent, as far as anything sums over them."""
        return e.axes & self._summed

    def _total(self, errors: Errors) -> Array | None:
        if not errors:
            return None
        parts = [self._rounding.confidence * p if soft else p for (_, soft), p in errors.items()]
        return sum(parts[1:], start=parts[0])

    def _injective(self, e: Expr, replaced: set[str]) -> bool:
        """Whether no element is read twice through the access (decided by listing positions, if they are few)."""
        xp = self._xp
        axes = [(a, n) for a, n in e.args[0].type.axes]
        count = math.prod(n for _, n in axes)
        if max(count, e.type.elements) > 1 << 22:
            return False
        numbers = xp.arange(1, count + 1).reshape([n for _, n in axes])
        read = gather(xp, e, numbers)
        seen = read[read > 0]
        return bool(xp.unique(seen).size == seen.size)


_HARD: Key = (frozenset(), False)
_SLOPE_ONE = ("add", "sub", "neg", "abs", "cast")
_WORST: dict[str, Callable[[Any, list[Array], list[Array]], list[Array]]] = {
    "mul": lambda xp, x, r: [xp.abs(x[0]) + r[0], xp.abs(x[1]) + r[1]],
    "div": lambda xp, x, r: [xp.abs(x[0]) + r[0], xp.maximum(xp.abs(x[1]) - r[1], 0.0)],
    "recip": lambda xp, x, r: [xp.maximum(xp.abs(x[0]) - r[0], 0.0)],
}


def _add(a: Errors, b: Errors) -> Errors:
    out = dict(a)
    for k, p in b.items():
        out[k] = out[k] + p if k in out else p
    return out


def _less(key: Key, axes: Sequence[str]) -> Key:
    return key[0] - set(axes), key[1]


def _short(dtype: DType) -> bool:
    return dtype in (DType.F16, DType.BF16)


def _unit(dtype: DType) -> float:
    """Return the round-off of arithmetic on a dtype; twice it for f64, whose reference rounds as well."""
    u = dtype.accumulator.roundoff
    return 2 * u if dtype is DType.F64 else u


def _computed(e: Expr) -> bool:
    """Whether a value is the result of arithmetic, not as it was loaded."""
    while e.op in ("access", "neg") or (e.op == "cast" and widens(e)):
        e = e.args[0]
    return e.row.kind is not Kind.LEAF


def _extents(factors: Sequence[Expr]) -> dict[str, int]:
    return {a: n for f in factors for a, n in f.type.axes}
