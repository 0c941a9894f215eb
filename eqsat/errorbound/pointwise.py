"""How pointwise operations hand on the errors of their operands, and what they round themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eqsat.errorbound.parts import HARD, SMALLEST, Bounded, Errors, Roundings, add, unit
from eqsat.evaluation import align, apply_pointwise
from eqsat.ir import Expr
from eqsat.ops import Array
from eqsat.oracle import widens
from eqsat.types import DType

# Rounding of one op in units of the arithmetic type; 1 where not listed. They cover the fast paths that a kernel may take:
# CUDA's approximate reciprocal, square root and exponential (CUDA C++ Programming Guide, mathematical functions), and
# polynomials of the same quality.
_UNITS = {"div": 4, "recip": 2, "rsqrt": 4, "exp": 4, "log": 4, "tanh": 8, "sigmoid": 6, "erf": 8, "sin": 8, "cos": 8, "pow": 16}
# The argument is scaled by log2(e) before the exponential: an error of |x| units in the result.
_SCALED = ("exp", "sigmoid")
# Absolute rather than relative near 0: log near 1, and what is built from exponentials or reduced arguments.
_ABSOLUTE = ("log", "tanh", "erf", "sin", "cos")
_CHOOSE = ("maximum", "minimum", "neg", "abs", "where", "max", "min")
_SLOPE_ONE = ("add", "sub", "neg", "abs", "cast")
_WORST: dict[str, Callable[[Any, list[Array], list[Array]], list[Array]]] = {
    "mul": lambda xp, x, r: [xp.abs(x[0]) + r[0], xp.abs(x[1]) + r[1]],
    "div": lambda xp, x, r: [xp.abs(x[0]) + r[0], xp.maximum(xp.abs(x[1]) - r[1], 0.0)],
    "recip": lambda xp, x, r: [xp.maximum(xp.abs(x[0]) - r[0], 0.0)],
}


class PointwiseErrors(Roundings):
    """The running error of pointwise operations."""

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

    def _smooth(self, e: Expr, value: Array, operands: list[Array], parts: list[Errors]) -> Errors:
        """Scale each operand's error by the largest slope within the operands' errors (mean value theorem)."""
        if not any(parts) or e.row.slopes is None:
            return {}
        slopes = self._slopes(e, value, operands, [self._total(p) for p in parts])
        errors: Errors = {}
        for slope, part in zip(slopes, parts, strict=True):
            errors = add(errors, {k: self._xp.abs(slope) * p for k, p in part.items()})
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
        return Bounded(value, {HARD: xp.broadcast_to(flips.astype(np.float64), value.shape)})

    def _where(self, operands: list[Array], parts: list[Errors]) -> Errors:
        """Take the chosen branch's error; where the condition may flip, also the distance of the branches."""
        xp = self._xp
        chosen, a, b = operands
        chosen = chosen.astype(np.bool_)
        errors: Errors = {k: xp.where(chosen, p, 0.0) for k, p in parts[1].items()}
        errors = add(errors, {k: xp.where(chosen, 0.0, p) for k, p in parts[2].items()})
        doubt = self._total(parts[0])
        if doubt is None:
            return errors
        apart = xp.where(a == b, 0.0, xp.abs(a.astype(np.float64) - b))
        for t in (self._total(parts[1]), self._total(parts[2])):
            apart = apart if t is None else apart + t
        return add(errors, {HARD: xp.where(doubt > 0, apart, 0.0)})

    def _steps(self, e: Expr, operand: Array, part: Errors, value: Array) -> Errors:
        """Bound floor and the cast to integers by their values at both ends."""
        total = self._total(part)
        if total is None:
            return {}
        up, down = (apply_pointwise(self._xp, e, [operand + s * total]) for s in (1.0, -1.0))
        return {HARD: self._xp.maximum(abs(up - value), abs(down - value)).astype(np.float64)}

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
        own = units * unit(e.dtype) * scale + xp.where(value != 0, SMALLEST[e.dtype.accumulator], 0.0)
        errors = add(errors, {(self._free(e), False): own})
        return self._storage(e, value, errors)

    def _cast_rounding(self, e: Expr, value: Array, errors: Errors) -> Errors:
        source = e.args[0].dtype
        if not e.dtype.is_float or source is DType.BOOL or widens(e):
            return errors
        return self._round_to(e.dtype, value, errors, self._free(e))

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
