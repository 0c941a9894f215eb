"""Degrees of the rational functions that an evaluation over random residues computes: what the chance of a miss rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Degree:
    """Degree of an array's elements as rational functions of what was drawn, at most.

    All elements share a denominator: for each reciprocal that went into them, the product of all elements of its operand
    (of degree `weight`), to some power. So sums, however long, do not raise the degree.

    Parameters
    ----------
    top : int
        Of the numerators.
    bottom : tuple of (int, int, int)
        Number, weight and power of each such product, in order of number.
    """

    top: int = 0
    bottom: tuple[tuple[int, int, int], ...] = ()

    @property
    def below(self) -> int:
        """Degree of the denominator."""
        return sum(weight * power for _, weight, power in self.bottom)

    def plus(self, other: Degree) -> Degree:
        """Return that of a sum."""
        bottom = self._joined(other, max)
        rest = Degree(0, bottom).below
        return Degree(max(self.top + rest - self.below, other.top + rest - other.below), bottom)

    def times(self, other: Degree) -> Degree:
        """Return that of a product."""
        return Degree(self.top + other.top, self._joined(other, int.__add__))

    def inverted(self, number: int, elements: int) -> Degree:
        """Return that of the reciprocal of an array of so many elements, of which it is the one with this number."""
        weight = elements * self.top
        return Degree(self.below + max(0, weight - self.top), ((number, weight, 1),))

    def _joined(self, other: Degree, join: Callable[[int, int], int]) -> tuple[tuple[int, int, int], ...]:
        powers: dict[tuple[int, int], int] = {(n, w): p for n, w, p in self.bottom}
        for n, w, p in other.bottom:
            powers[n, w] = join(powers.get((n, w), 0), p)
        return tuple(sorted((n, w, p) for (n, w), p in powers.items()))

    @property
    def total(self) -> int:
        """Degree of the numerator and the denominator together."""
        return self.top + self.below
