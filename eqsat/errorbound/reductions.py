"""How sums, products, extrema and contractions hand on errors, and what adding up rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eqsat.cumulative import apply_prefix, prefix_errors
from eqsat.errorbound.parts import HARD, Bounded, Errors, Key, Roundings, add, computed, extents_of, less, short, unit
from eqsat.evaluation import apply_reduction, contract_arrays
from eqsat.ir import Expr
from eqsat.ops import Array
from eqsat.prefix import Prefix
from eqsat.types import DType


class ReductionErrors(Roundings):
    """The running error of reductions."""

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
            errors = {} if total is None else {HARD: (total > 0).any(where).astype(np.float64)}
        elif e.op == "prod":
            errors = self._product(e, body, axes, arg.value, total, where)
        else:
            errors = {}
            for k, p in self._contenders(e, arg, total, where).items():
                errors = add(errors, {less(k, axes): self._most(p, where)})
        return self._settle(e, value, errors, lambda: self._row_doubt(e, arg, total, where))

    def prefix(self, e: Expr, found: Prefix, arg: Bounded) -> Bounded:
        """Propagate through a reduction of every prefix."""
        value, total = apply_prefix(self._xp, e, found, arg.value), self._total(arg.errors)
        confidence, u = self._rounding.confidence, unit(e.dtype)
        errors, doubt = prefix_errors(self._xp, e, found, arg.value, arg.errors, total, confidence, u)
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
        n = math.prod(extents_of(factors)[a] for a in axes)
        exact = all(short(f.dtype) for f in factors)  # their products are, in the accumulator
        errors = self._accumulated(e, n, absolute, extra=n / 8 if exact else len(factors) - 1.0)
        for i, b in enumerate(args):
            apart = not factors[i].axes & summed  # it multiplies the finished sum, whose signs are known
            others = [(args[j].value if apart else reached[j], f) for j, f in enumerate(factors) if j != i]
            for key, part in b.errors.items():
                errors = add(errors, self._carried(e, key, part, factors[i], others, axes, n))
        inexact = any(b.errors for b in args)
        return self._settle(e, value, self._storage(e, value, errors), lambda: xp.full(value.shape, inexact))

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
        if body.op == "mul" and short(body.dtype) and any(computed(a) for a in body.args):
            parts = self._round_to(body.dtype, arg.value, parts, self._free(body)) if not self._rounding.stored else parts
        for (independent, soft), part in parts.items():
            if set(axes) <= independent and (soft or n > self._rounding.confidence**2):
                new = {(independent - set(axes), True): xp.sqrt((part * part).sum(where))}
            else:
                new = {(independent - set(axes), soft): part.sum(where)}
            errors = add(errors, new)
        return self._settle(e, value, self._storage(e, value, errors), lambda: self._row_doubt(e, arg, total, where))

    def _accumulated(self, e: Expr, n: int, absolute: Array, extra: float = 0.0) -> Errors:
        """Return the error of adding n terms: n·u hard while n is small, else sqrt(n)·u soft; `extra` units more, hard."""
        u = unit(e.dtype)
        if n <= 1 and not extra:
            return {}
        if n <= self._rounding.confidence**2:
            return {(self._free(e), False): (n + extra) * u * absolute}
        errors: Errors = {(self._free(e), True): math.sqrt(n) * u * absolute}
        return add(errors, {(frozenset(), False): extra * u * absolute}) if extra else errors

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
        if short(factor.dtype):
            times = scaled + 1 if self._rounding.stored else int(scaled > 0 or computed(factor))
            errors = b.errors
            for _ in range(times):
                errors = self._round_to(factor.dtype, b.value, errors, self._free(factor))
            return Bounded(b.value, errors)
        if factor.dtype is DType.F32 and self._rounding.multiplicand:
            own = {(self._free(factor), False): self._rounding.multiplicand * self._xp.abs(b.value)}
            return Bounded(b.value, add(b.errors, own))
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
        return {HARD: xp.where(rivals > 1, math.inf, 0.0)}

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
        return self._storage(e, plain, {(self._free(e), False): reached - plain + n * unit(e.dtype) * reached})

    def _row_doubt(self, e: Expr, arg: Bounded, total: Array | None, where: tuple[int, ...]) -> Array:
        """Return the same for the rows of a reduction."""
        xp = self._xp
        doubt = xp.zeros(arg.value.any(where).shape, dtype=np.bool_) if total is None else (total != 0).any(where)
        if e.op in ("max", "min"):
            lost = xp.isnan(arg.value)
            doubt = doubt | (lost.any(where) & ~lost.all(where))
        return doubt
