"""What each op means as a normal form, and where its value is defined.

A side of a law is defined where no denominator is 0, no even root or logarithm sees a wrong sign. Each such premise is kept
as a *violation*: a form that is 1 where the premise fails (under a choice, only where that branch is taken) and 0 where it
holds. Two values are proved equal only if their forms are equal and their violations too: so x/x is not 1, nor √x·√x x.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Literal

from eqsat.proof.functions import (
    any_power,
    equals_zero,
    exponential,
    floor,
    function,
    greater,
    is_nonnegative,
    is_positive,
    logarithm,
    raised,
    truncated,
)
from eqsat.proof.normalform import UNIT, Atom, Poly, UndecidedError, bind, number, single
from eqsat.proof.reductions import all_over, maximum, position_of_maximum, product_over, rename, repeated, sum_over

Values = Literal["real", "whole", "truth"]
"""What a dtype holds: floats of any width, integers, truth values."""

_HALF = Fraction(1, 2)


class Meaning:
    """Gives ops their meaning and collects where they are undefined.

    Parameters
    ----------
    nonzero : sequence of Atom
        Unknown numbers that are known not to be 0.
    poles : bool
        Whether 1/(1/0) counts as 0, as it does in floats. Only for terms that are read once wherever they stand.
    """

    def __init__(self, nonzero: Sequence[Atom] = (), *, poles: bool = False) -> None:
        self.nonzero = frozenset(nonzero)
        self.violations: dict[str, Poly] = {}
        self._times: Counter[str] = Counter()
        self._poles: dict[str, list[str]] | None = {} if poles else None
        self.bound: dict[str, Atom] = {}
        self.branch = UNIT

    def constant(self, value: float | Fraction) -> Poly:
        """Return the form of a number; an infinity is an unknown number of its sign."""
        if isinstance(value, float) and not math.isfinite(value):
            if math.isnan(value):
                raise UndecidedError("not a number")
            return single(Atom("infinity", (), positive=True)) * (1 if value > 0 else -1)
        return number(Fraction(value))

    def pointwise(self, op: str, args: Sequence[Poly], kinds: Sequence[Values], to: Values = "real") -> Poly:
        """Return the form of a pointwise op; `kinds` are those of the operands, `to` is that of a cast's result."""
        if op == "cast":
            return _cast(args[0], kinds[0], to)
        if op in _LOGIC:
            return _LOGIC[op](*(a if k == "truth" else _truth(a) for a, k in zip(args, kinds, strict=True)))
        if op in _ARITHMETIC:
            return _ARITHMETIC[op](*args)
        if op in _PARTIAL:
            return _PARTIAL[op](self, *args)
        raise UndecidedError(f"{op} has no meaning as a form")

    def reduction(self, op: str, form: Poly, variable: Atom, kind: Values) -> Poly:
        """Return the form of a reduction over an index variable."""
        if op in ("any", "all"):
            form = form if kind == "truth" else _truth(form)
            return all_over(form, variable) if op == "all" else UNIT - all_over(UNIT - form, variable)
        return _REDUCTIONS[op](form, variable)

    def require(self, broken: Poly) -> list[str]:
        """Note where a premise fails: `broken` is a bracket. Return what was noted."""
        violation = self.branch * broken
        if not violation.terms:
            return []
        inner = [self.bound[v] for v in sorted(violation.free) if v in self.bound]
        violation = bind(inner, violation, rename)[1] if inner else violation
        self.violations[violation.key] = violation
        self._times[violation.key] += 1
        return [violation.key]

    def _withdraw(self, noted: list[str]) -> None:
        for key in noted:
            self._times[key] -= 1
            if not self._times[key]:
                del self.violations[key]

    def require_nonzero(self, form: Poly) -> list[str]:
        """Note that a form is a denominator. Return what was noted."""
        if is_positive(form) or is_positive(-form):
            return []
        if len(form.terms) != 1:
            return self.require(equals_zero(form))
        noted = []
        for a, p in form.terms[0][0].factors:
            if p > 0 and not a.positive and a not in self.nonzero:
                noted += self.require_nonzero(a.args[0]) if a.kind == "base" else self.require(equals_zero(single(a)))
        return noted

    def require_nonnegative(self, form: Poly) -> None:
        """Note that a form stands under an even root."""
        if not is_nonnegative(form):
            self.require(greater(-form))

    def power(self, base: Poly, exponent: Poly) -> Poly:
        """Return base^exponent."""
        e = exponent.constant
        if e is None and exponent.integer and is_positive(exponent):
            return repeated(base, exponent)
        if e is None:
            out = any_power(base, exponent)
            if not is_positive(base):
                self.require(single(Atom("undefined", (out,), idempotent=True)))
            return out
        noted: list[str] = []
        if e < 0:
            if self._poles is not None:
                self._withdraw(self._poles.pop(f"{base.key} {self.branch.key}", []))
            noted = self.require_nonzero(base)
        if e.denominator != 1:
            self.require_nonnegative(base)
        out = raised(base, e)
        if self._poles is not None and e < 0:
            self._poles[f"{out.key} {self.branch.key}"] = noted
        return out

    def logarithm(self, form: Poly) -> Poly:
        """Return log form."""
        self.require_nonzero(form)
        self.require_nonnegative(form)
        return logarithm(form)


def _cast(form: Poly, kind: Values, to: Values) -> Poly:
    if to == "truth":
        return form if kind == "truth" else _truth(form)
    return truncated(form) if to == "whole" and kind == "real" else form


def _truth(form: Poly) -> Poly:
    return UNIT - equals_zero(form)


def _either(a: Poly, b: Poly) -> Poly:
    return a + b - a * b


_LOGIC: Mapping[str, Callable[..., Poly]] = {"and": lambda a, b: a * b, "or": _either, "not": lambda a: UNIT - a}


def _sigmoid(a: Poly) -> Poly:
    return raised(UNIT + exponential(-a), -1)


_ARITHMETIC: Mapping[str, Callable[..., Poly]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
    "abs": lambda a: raised(a * a, _HALF),
    "maximum": lambda a, b: maximum([((), a), ((), b)]),
    "minimum": lambda a, b: -maximum([((), -a), ((), -b)]),
    "exp": exponential,
    "sigmoid": _sigmoid,
    "tanh": lambda a: _sigmoid(a * 2) * 2 - UNIT,
    "erf": lambda a: function("erf", a),
    "sin": lambda a: function("sin", a),
    "cos": lambda a: function("cos", a),
    "floor": floor,
    "lt": lambda a, b: greater(b - a),
    "le": lambda a, b: UNIT - greater(a - b),
    "eq": lambda a, b: equals_zero(a - b),
}

_PARTIAL: Mapping[str, Callable[..., Poly]] = {
    "recip": lambda m, a: m.power(a, -UNIT),
    "div": lambda m, a, b: a * m.power(b, -UNIT),
    "sqrt": lambda m, a: m.power(a, number(_HALF)),
    "rsqrt": lambda m, a: m.power(a, number(-_HALF)),
    "pow": lambda m, a, b: m.power(a, b),
    "log": lambda m, a: m.logarithm(a),
}


def _maximum_over(form: Poly, variable: Atom) -> Poly:
    return maximum([([variable], form)])


_REDUCTIONS: Mapping[str, Callable[[Poly, Atom], Poly]] = {
    "sum": sum_over,
    "prod": product_over,
    "max": _maximum_over,
    "min": lambda form, v: -_maximum_over(-form, v),
    "argmax": position_of_maximum,
    "argmin": lambda form, v: position_of_maximum(-form, v),
}


def choice(condition: Poly, chosen: Poly, other: Poly) -> Poly:
    """Return `chosen` where the condition holds, else `other`."""
    return condition * (chosen - other) + other


def within(place: Poly, extent: Poly) -> Poly:
    """Return the bracket [0 ≤ place < extent]."""
    return greater(place + UNIT) * greater(extent - place)


def as_truth(form: Poly, kind: Values) -> Poly:
    """Return a truth value of a number."""
    return form if kind == "truth" else _truth(form)
