"""Values with the parts of their error, and what rounding adds to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eqsat.ir import Expr, Input
from eqsat.ops import Array, Kind
from eqsat.oracle import Float64, widens
from eqsat.types import DType

Key = tuple[frozenset[str], bool]  # (axes along which the part is independent, whether it is soft)
Errors = dict[Key, Array]
HARD: Key = (frozenset(), False)


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


SMALLEST = {DType.F64: 2.0**-1022, DType.F32: 2.0**-126, DType.BF16: 2.0**-126, DType.F16: 2.0**-25}
_LARGEST = {DType.F64: math.inf, DType.F32: 3.4028234e38, DType.BF16: 3.3895313e38, DType.F16: 65504.0}


class Roundings:
    """What every kind of node shares: roundings to a type, totals, and what becomes of values that are not finite.

    Parameters
    ----------
    inputs : mapping
        Declaration and array by name.
    xp : module
        NumPy or CuPy.
    rounding : Rounding
    summed : frozenset of str
        The axes over which anything sums: errors are independent along these or not at all.
    """

    def __init__(self, inputs: Mapping[str, tuple[Input, Array]], xp: Any, rounding: Rounding, summed: frozenset[str]) -> None:
        self._plain, self._xp, self._rounding, self._summed = Float64(inputs, xp), xp, rounding, summed

    def _storage(self, e: Expr, value: Array, errors: Errors) -> Errors:
        if self._rounding.stored and short(e.dtype):
            return self._round_to(e.dtype, value, errors, self._free(e))
        return errors

    def _round_to(self, dtype: DType, value: Array, errors: Errors, independent: frozenset[str]) -> Errors:
        xp = self._xp
        total = self._total(errors)
        reached = xp.abs(value) if total is None else xp.abs(value) + total
        own = dtype.roundoff * reached + xp.where(value != 0, SMALLEST[dtype], 0.0)
        return add(errors, {(independent, False): own})

    def _settle(self, e: Expr, value: Array, errors: Errors, doubt: Callable[[], Array]) -> Bounded:
        """Make errors numbers: 0 or inf where the value is not finite, inf where it may not fit its type."""
        xp = self._xp
        if value.dtype == np.float64:
            bad = ~xp.isfinite(value)
            any_bad = bool(bad.any())
            if any_bad or any(p.size and bool(xp.isnan(p.max())) for p in errors.values()):
                errors = {k: xp.where(bad, 0.0, xp.where(xp.isnan(p), math.inf, p)) for k, p in errors.items()}
            if any_bad:
                errors = add(errors, {HARD: xp.where(bad & doubt(), math.inf, 0.0)})
            errors = self._range(e.dtype if self._rounding.stored else e.dtype.accumulator, value, errors)
        return Bounded(value, {k: xp.broadcast_to(p, value.shape) for k, p in errors.items()})

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
        return add(errors, {HARD: xp.where(over, math.inf, 0.0)}) if over.any() else errors

    def _free(self, e: Expr) -> frozenset[str]:
        """Axes along which a fresh rounding of node `e` is independent, as far as anything sums over them."""
        return e.axes & self._summed

    def _total(self, errors: Errors) -> Array | None:
        if not errors:
            return None
        parts = [self._rounding.confidence * p if soft else p for (_, soft), p in errors.items()]
        return sum(parts[1:], start=parts[0])


def add(a: Errors, b: Errors) -> Errors:
    """Add errors part by part."""
    out = dict(a)
    for k, p in b.items():
        out[k] = out[k] + p if k in out else p
    return out


def less(key: Key, axes: Sequence[str]) -> Key:
    """Return the key of a part once `axes` are gone."""
    return key[0] - set(axes), key[1]


def short(dtype: DType) -> bool:
    """Whether it is a 16-bit float."""
    return dtype in (DType.F16, DType.BF16)


def unit(dtype: DType) -> float:
    """Return the round-off of arithmetic on a dtype; twice it for f64, whose reference rounds as well."""
    u = dtype.accumulator.roundoff
    return 2 * u if dtype is DType.F64 else u


def computed(e: Expr) -> bool:
    """Whether a value is the result of arithmetic, not as it was loaded."""
    while e.op in ("access", "neg") or (e.op == "cast" and widens(e)):
        e = e.args[0]
    return e.row.kind is not Kind.LEAF


def extents_of(factors: Sequence[Expr]) -> dict[str, int]:
    """Return the extent of each axis of some factors."""
    return {a: n for f in factors for a, n in f.type.axes}
