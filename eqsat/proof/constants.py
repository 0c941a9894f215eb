"""What float constants stand for, as fractions: 0.3333333333333333 is a third, whichever way a rule arrived at it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from eqsat.ir import Expr, Input, Output, Program
from eqsat.oracle import evaluate

_ROUNDED = Fraction(1, 1 << 49)  # relative: two roundings of a float64, and one of a quotient of two
_SIMPLE = 40  # bits of numerator and denominator together; a float64 taken at random needs about 50


class Constants:
    """Fractions for the constants of programs that are compared.

    A constant that is no simple fraction (√(2/π)) stands for itself; others that are simple multiples of it, of its square or
    of its inverse (a rule multiplied two constants) keep that relation exactly.
    """

    def __init__(self) -> None:
        self._known: dict[str, Fraction | float] = {}
        self._bases: list[tuple[float, Fraction]] = []

    def of(self, e: Expr) -> Fraction | float:
        """Return the value of an expression that depends on constants alone; what is not finite as a float."""
        if e.digest not in self._known:
            self._known[e.digest] = self._value(e)
        return self._known[e.digest]

    def _value(self, e: Expr) -> Fraction | float:
        if e.op == "const":
            number = e.attrs[0]
        else:
            no_inputs: tuple[Input, ...] = ()
            with np.errstate(all="ignore"):
                number = evaluate(Program(no_inputs, (Output("value", e, (), e.dtype),)), {})[0].item()
        if not isinstance(number, float):
            return Fraction(int(number))
        return self._fraction(number) if math.isfinite(number) else number

    def _fraction(self, x: float) -> Fraction:
        found = _simple(x)
        if found is not None:
            return found
        for base, exact in self._bases:
            for factor, by in ((base, exact), (1 / base, 1 / exact), (base * base, exact * exact)):
                ratio = x / factor
                found = _simple(ratio) if math.isfinite(ratio) else None
                if found is not None:
                    return found * by
        self._bases.append((x, Fraction(x)))
        return Fraction(x)


def _simple(x: float) -> Fraction | None:
    """Return the simplest fraction that rounds to about `x`, if it is simple enough to be no accident."""
    exact = Fraction(x)
    if x == 0:
        return exact
    slack = abs(exact) * _ROUNDED
    found = simplest_between(abs(exact) - slack, abs(exact) + slack)
    if found.numerator.bit_length() + found.denominator.bit_length() > _SIMPLE and exact.denominator != 1:
        return None
    return found if x > 0 else -found


def simplest_between(low: Fraction, high: Fraction) -> Fraction:
    """Return the fraction of least denominator in an interval of positive numbers (a walk down the Stern–Brocot tree)."""
    whole: list[int] = []
    while True:
        floor = math.floor(low)
        if floor == low or floor + 1 <= high:
            whole.append(floor if floor == low else floor + 1)
            break
        whole.append(floor)
        low, high = 1 / (high - floor), 1 / (low - floor)
    out = Fraction(whole.pop())
    while whole:
        out = whole.pop() + 1 / out
    return out
