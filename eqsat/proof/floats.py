"""float64 with a running error over the compressed inputs: what is compared where residues say nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eqsat.gate.value import Float64
from eqsat.ir import Expr, Output, Program
from eqsat.oracle import evaluate
from eqsat.proof.compressed import Array

Value = tuple[Array, Array]


class Floats:
    """The algebra of float64 numbers, each with a bound of its rounding error.

    Parameters
    ----------
    positive : bool
        Draw inputs from (0.25, 1.75), so that logarithms and roots are defined; else from (−1, 1), smaller for long axes.
    relative : float
        Further relative error allowed: the bound of a rule that approximates.
    """

    def __init__(self, *, positive: bool, relative: float = 0.0) -> None:
        self._domain, self._relative = Float64(), relative
        self._positive = positive

    def leaf(self, e: Expr, codes: Array) -> Value:
        """Return random numbers that the input's type holds."""
        share = (codes >> np.uint64(11)).astype(np.float64) * 2.0**-53
        if e.dtype.value == "bool":
            return share < 0.5, np.zeros(codes.shape)
        if not e.dtype.is_float:
            return np.floor(share * 9) - (0 if self._positive else 4), np.zeros(codes.shape)
        longest = max((n for _, n in e.type.axes), default=1)
        drawn = 0.25 + 1.5 * share if self._positive else (2 * share - 1) * 2 / np.sqrt(longest)
        return drawn, np.zeros(codes.shape)

    def constant(self, e: Expr) -> Value:
        """Return a constant's value."""
        with np.errstate(all="ignore"):
            value = np.asarray(evaluate(Program((), (Output("value", e, (), e.dtype),)), {})[0])
        return value if value.dtype == bool else value.astype(np.float64), np.zeros(())

    def positions(self, numbers: Array) -> Value:
        """Return whole numbers."""
        return numbers.astype(np.float64), np.zeros(numbers.shape)

    def apply(self, e: Expr, args: Sequence[Value]) -> Value:
        """Return a pointwise op and its error."""
        with np.errstate(all="ignore"):
            value, error = self._domain.apply(e.row, args, e.dtype.value)
        shape = np.broadcast_shapes(*(v.shape for v, _ in args))
        value, error = np.broadcast_to(value, shape), np.broadcast_to(error, shape)
        # An infinity that a program writes (a mask) is exact, and stays so; one that comes of an overflow is not.
        given = [np.isinf(v) & (x == 0) for v, x in args if v.dtype != bool]
        if any(g.any() for g in given):
            error = np.where(np.isinf(value) & np.logical_or.reduce([np.broadcast_to(g, shape) for g in given]), 0.0, error)
        return value, error

    def reduce(self, e: Expr, arg: Value, dimension: int, counts: Array | None) -> Value:
        """Return a reduction and its error; elements count as often as they stand for."""
        value, error = arg
        if counts is not None and e.op in ("sum", "prod"):
            times = counts.reshape((-1,) + (1,) * (value.ndim - dimension - 1))
            with np.errstate(all="ignore"):
                if e.op == "sum":
                    value, error = value * times, error * times
                else:
                    value, error = value.astype(np.float64) ** times, error * times * abs(value) ** (times - 1)
        with np.errstate(all="ignore"):
            out, moved = self._domain.reduce(e.row, (value, error), dimension)
        return np.squeeze(out, dimension), np.squeeze(moved, dimension)

    def reshape(self, value: Value, change: Callable[[Array], Array]) -> Value:
        """Return the value with its arrays' shapes changed."""
        return change(value[0]), change(value[1])

    def only(self, value: Value, inside: Array) -> Value:
        """Return the value with 0 where `inside` is false."""
        return np.where(inside, value[0], np.zeros((), value[0].dtype)), np.where(inside, value[1], 0.0)

    def compare(self, a: Value, b: Value, relative: float = 0.0) -> tuple[int, int, float]:
        """Return how many elements differ by more than rounding and `relative` explain, how many were compared, by how much."""
        with np.errstate(all="ignore"):
            found = Float64(self._relative + relative).compare(a, b)
            both = np.isinf(a[0]) & np.isinf(b[0])  # of unlike sign: from zeros of unlike sign, which rules do not tell apart
            apart = abs(a[0].astype(np.float64) - b[0].astype(np.float64))
        return int((found.wrong & ~both).sum()), found.compared, float(np.max(apart[np.isfinite(apart)], initial=0.0))
