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
from collections.abc import Mapping
from typing import Any

import numpy as np

from eqsat.errorbound.parts import HARD, SMALLEST, Bounded, Errors, Rounding, add, short
from eqsat.errorbound.pointwise import PointwiseErrors
from eqsat.errorbound.reductions import ReductionErrors
from eqsat.evaluation import gather
from eqsat.ir import Expr, Output, Program
from eqsat.ops import Array, Kind
from eqsat.oracle import check_inputs, interpret, product_factors, pull_invariant, to_layout
from eqsat.slicing import evaluate_in_slices

__all__ = ["Rounding", "evaluate_with_bound"]


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


class _RunningError(PointwiseErrors, ReductionErrors):
    """The algebra of values with errors."""

    def keeps_nest(self, e: Expr) -> bool:
        """Keep a nest, but not where a plan may store the inner sum in 16 bits."""
        return not (self._rounding.stored and short(e.dtype) and e.op == "sum")

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
        return Bounded(value, {HARD: held.roundoff * self._xp.abs(value) + SMALLEST[held]})

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
            errors = add(errors, {(kept, soft): gather(xp, e, part)})
        return Bounded(value, errors)

    def store(self, b: Bounded, out: Output) -> tuple[Array, Array]:
        """Return (value, bound) in the layout of the output, its rounding included."""
        e, errors = out.expr, b.errors
        if out.dtype.is_float:
            narrower = out.dtype.roundoff > e.dtype.roundoff
            in_registers = short(out.dtype) and errors and not self._rounding.stored
            if narrower or in_registers:
                errors = self._round_to(out.dtype, b.value, errors, frozenset())
            errors = self._range(out.dtype, b.value, errors)
        total = self._total(errors)
        bound = self._xp.zeros(b.value.shape) if total is None else self._xp.where(self._xp.isnan(total), math.inf, total)
        bound = self._xp.broadcast_to(bound, b.value.shape)
        return to_layout(b.value, e, out.axes), to_layout(bound, e, out.axes)

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
