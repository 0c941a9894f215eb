"""Number systems in which the two sides of a rule are compared: a prime field, integers, and floats with error bounds.

Arrays have one dimension for each axis of the draw, of extent 1 where the value does not vary, so that a join of axes is
NumPy's broadcasting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from eqsat.ops import Op, Result
from eqsat.types import DType

Value = Any  # what a domain computes with: an array, or arrays side by side
Take = Callable[[Any, float], Any]
"""Takes elements of an array, and the number given where there is none."""

RING_OPS = frozenset({"const", "access", "add", "sub", "mul", "neg", "div", "recip", "sum", "prod"})
"""Ops with an exact meaning in a prime field."""

INTEGER_OPS = frozenset(
    [
        "const",
        "cast",
        "iota",
        "access",
        "add",
        "sub",
        "mul",
        "neg",
        "abs",
        "maximum",
        "minimum",
        "lt",
        "le",
        "eq",
        "and",
        "or",
        "not",
        "where",
        "floor",
        "sum",
        "prod",
        "max",
        "min",
        "any",
        "all",
        "argmax",
        "argmin",
    ]
)
"""Ops with an exact meaning over the integers."""

EXTREMA = frozenset({"max", "min", "maximum", "minimum"})
"""Ops for which IEEE leaves the sign of a zero result open."""

_U = 2.0**-53
_LIBRARY = 4.0  # roundings allowed to one call of NumPy's exp, tanh, …
_FIRM = 1e-4
_UNDERFLOW = 1e-290  # far above the subnormal numbers, whose relative roundings are large


@dataclass(frozen=True, slots=True)
class Comparison:
    """Outcome of comparing two values element by element.

    Attributes
    ----------
    wrong : array of bool
        Elements that differ by more than rounding explains.
    compared, skipped : int
        Elements with a tolerance that says something; undefined or untold ones.
    """

    wrong: np.ndarray[Any, Any]
    compared: int
    skipped: int


class Domain(Protocol):
    """One number system."""

    name: str

    def tensor(self, reals: np.ndarray[Any, Any], kind: str) -> Value:
        """Take drawn numbers in; `kind` is the dtype of the variable."""
        ...

    def constant(self, number: Fraction | float, rank: int) -> Value:
        """Return a constant."""
        ...

    def apply(self, row: Op, args: Sequence[Value], to: str) -> Value:
        """Return a pointwise op; `to` is the target dtype of a cast."""
        ...

    def reduce(self, row: Op, arg: Value, dimension: int) -> Value:
        """Return the reduction along one dimension, which stays with extent 1."""
        ...

    def gather(self, arg: Value, take: Take) -> Value:
        """Return an access: elements taken from elsewhere, zero outside."""
        ...

    def compare(self, left: Value, right: Value) -> Comparison:
        """Compare two values."""
        ...

    def shown(self, value: Value) -> np.ndarray[Any, Any]:
        """Return the numbers to print."""
        ...


class UntestableError(Exception):
    """A value has no meaning in this number system (one half, over the integers)."""


class PrimeField:
    """Integers modulo a prime, with the places where a division by zero happened."""

    name = "field"

    def __init__(self, prime: int) -> None:
        self.prime = prime

    def tensor(self, reals: np.ndarray[Any, Any], kind: str) -> Value:
        """Take drawn whole numbers in."""
        return reals.astype(np.int64) % self.prime, np.ones(reals.shape, bool)

    def constant(self, number: Fraction | float, rank: int) -> Value:
        """Return a rational constant's residue."""
        q = Fraction(number)
        residue = q.numerator * pow(q.denominator, -1, self.prime) % self.prime
        return np.full((1,) * rank, residue, np.int64), np.ones((1,) * rank, bool)

    def apply(self, row: Op, args: Sequence[Value], to: str) -> Value:
        """Return a ring operation or a quotient."""
        p = self.prime
        values, fine = [v for v, _ in args], args[0][1]
        for _, ok in args[1:]:
            fine = fine & ok
        match row.name:
            case "add":
                out = (values[0] + values[1]) % p
            case "sub":
                out = (values[0] - values[1]) % p
            case "mul":
                out = values[0] * values[1] % p
            case "neg":
                out = -values[0] % p
            case _:
                divisor = values[-1]
                fine = fine & (divisor != 0)
                inverse = self._power(divisor, p - 2)
                out = values[0] * inverse % p if row.name == "div" else inverse
        return out, np.broadcast_to(fine, out.shape)

    def _power(self, base: np.ndarray[Any, Any], exponent: int) -> np.ndarray[Any, Any]:
        out = np.ones_like(base)
        while exponent:
            if exponent & 1:
                out = out * base % self.prime
            base, exponent = base * base % self.prime, exponent >> 1
        return out

    def reduce(self, row: Op, arg: Value, dimension: int) -> Value:
        """Return a sum or a product."""
        value, ok = arg
        fine = ok.all(axis=dimension, keepdims=True)
        if row.name == "sum":
            return value.sum(axis=dimension, keepdims=True) % self.prime, fine
        out = np.ones_like(fine, np.int64)
        for part in np.split(value, value.shape[dimension], dimension):
            out = out * part % self.prime
        return out, fine

    def gather(self, arg: Value, take: Take) -> Value:
        """Return an access; zeros are defined."""
        return take(arg[0], 0), take(arg[1], 1)

    def compare(self, left: Value, right: Value) -> Comparison:
        """Compare where neither side divided by zero."""
        (a, fine_a), (b, fine_b) = left, right
        fine = fine_a & fine_b
        return Comparison((a != b) & fine, int(fine.sum()), int((~fine).sum()))

    def shown(self, value: Value) -> np.ndarray[Any, Any]:
        """Return the residues."""
        return np.asarray(value[0])


class Integers:
    """Small integers in int64 and truth values: exact for order, choice and arithmetic without division."""

    name = "integers"

    def tensor(self, reals: np.ndarray[Any, Any], kind: str) -> Value:
        """Take drawn whole numbers in."""
        return reals.astype(bool if kind == "bool" else np.int64)

    def constant(self, number: Fraction | float, rank: int) -> Value:
        """Return a whole constant."""
        if not math.isfinite(number) or number != int(number):
            raise UntestableError
        return np.full((1,) * rank, int(number), np.int64)

    def apply(self, row: Op, args: Sequence[Value], to: str) -> Value:
        """Return the op table's meaning."""
        if row.name == "cast":
            return args[0].astype(bool if to == "bool" else np.int64)
        return row.evaluate(np, *_truths(row, args))

    def reduce(self, row: Op, arg: Value, dimension: int) -> Value:
        """Return the op table's meaning."""
        return np.expand_dims(row.evaluate(np, arg, dimension), dimension)

    def gather(self, arg: Value, take: Take) -> Value:
        """Return an access; zeros are exact."""
        return take(arg, 0)

    def compare(self, left: Value, right: Value) -> Comparison:
        """Compare every element."""
        wrong = np.asarray(left != right)
        return Comparison(wrong, wrong.size, 0)

    def shown(self, value: Value) -> np.ndarray[Any, Any]:
        """Return the numbers."""
        return np.asarray(value)


class Float64:
    """float64 with a running error: how far rounding may have moved each element.

    Parameters
    ----------
    relative : float
        Further relative error allowed (the bound of a rule that approximates).
    where_finite : bool
        Whether to compare only where the left value is finite: with −∞ among the operands the rest promises nothing.
    """

    name = "float64"

    def __init__(self, relative: float = 0.0, *, where_finite: bool = False) -> None:
        self.relative, self.where_finite = relative, where_finite

    def tensor(self, reals: np.ndarray[Any, Any], kind: str) -> Value:
        """Take drawn numbers in; they are exact."""
        value = reals.astype(bool) if kind == "bool" else reals.astype(np.float64)
        return value, np.zeros(reals.shape)

    def constant(self, number: Fraction | float, rank: int) -> Value:
        """Return the nearest float."""
        value = np.full((1,) * rank, float(number))
        exact = not math.isfinite(number) or Fraction(float(number)) == number
        return value, np.zeros((1,) * rank) if exact else abs(value) * _U

    def apply(self, row: Op, args: Sequence[Value], to: str) -> Value:
        """Return the op table's meaning, and its slopes times the operands' errors."""
        if row.name == "cast":
            return self._cast(args[0], to)
        values, errors = _truths(row, [v for v, _ in args]), [e for _, e in args]
        out = row.evaluate(np, *values)
        if row.result is Result.BOOL or row.name == "floor":
            return out, np.broadcast_to(self._doubt(row, values, errors), out.shape)
        if row.name == "where":
            chosen = np.where(values[0], errors[1], errors[2])
            return out, np.where(np.broadcast_to(errors[0] > 0, out.shape), np.inf, chosen)
        slopes = row.slopes(np, out, *values) if row.slopes else ()
        error = sum((np.where(e == 0, 0.0, abs(s) * e) for s, e in zip(slopes, errors, strict=True)), np.zeros(out.shape))
        exact = row.name in ("neg", "abs", "maximum", "minimum")
        error = error + (0 if exact else _LIBRARY * _U * abs(out))
        return out, np.where(np.isnan(error), np.inf, error)

    @staticmethod
    def _doubt(row: Op, values: Sequence[Any], errors: Sequence[Any]) -> Any:
        """Infinite where rounding may flip a comparison or a floor, else 0."""
        total = sum(errors, np.zeros(()))
        if row.name in ("lt", "le", "eq"):
            apart = abs(np.subtract(values[0], values[1], dtype=np.float64))
            return np.where((total > 0) & (apart <= total), np.inf, 0.0)
        if row.name == "floor":
            return np.where((total > 0) & (abs(values[0] - np.round(values[0])) <= total), np.inf, 0.0)
        return np.where(total > 0, np.inf, 0.0)

    @staticmethod
    def _cast(arg: Value, to: str) -> Value:
        value, error = arg
        if to == "bool":
            return value != 0, np.where(error > 0, np.inf, 0.0)
        if DType(to).is_float or value.dtype == bool:
            return value.astype(np.float64), error
        return np.trunc(value), np.where(error > 0, np.inf, 0.0)

    def reduce(self, row: Op, arg: Value, dimension: int) -> Value:
        """Return the op table's meaning; errors of a sum add up."""
        value, error = arg
        out = np.expand_dims(row.evaluate(np, value, dimension), dimension)
        match row.name:
            case "sum":
                moved = error.sum(axis=dimension, keepdims=True)
                moved = moved + value.shape[dimension] * _U * abs(value).sum(axis=dimension, keepdims=True)
            case "prod":
                others = [np.delete(value, i, dimension) for i in range(value.shape[dimension])]
                rests = np.concatenate([abs(o).prod(axis=dimension, keepdims=True) for o in others], axis=dimension)
                moved = (np.where(error == 0, 0.0, rests * error)).sum(axis=dimension, keepdims=True)
                moved = moved + value.shape[dimension] * _U * abs(out)
            case "max" | "min":
                moved = error.max(axis=dimension, keepdims=True)
            case "argmax" | "argmin":
                numbers = value.astype(np.float64)
                ordered = np.sort(numbers if row.name == "argmin" else -numbers, axis=dimension)
                ahead = np.diff(np.take(ordered, range(min(2, value.shape[dimension])), dimension), axis=dimension)
                lead = ahead.min(axis=dimension, keepdims=True, initial=np.inf)
                worst = error.max(axis=dimension, keepdims=True)
                moved = np.where((worst > 0) & (lead <= 2 * worst), np.inf, 0.0)
            case _:
                moved = np.where(error.max(axis=dimension, keepdims=True) > 0, np.inf, 0.0)
        return out, np.where(np.isnan(moved), np.inf, moved)

    def gather(self, arg: Value, take: Take) -> Value:
        """Return an access; zeros are exact."""
        return take(arg[0], 0), take(arg[1], 0)

    def compare(self, left: Value, right: Value) -> Comparison:
        """Compare where both are finite; where only one is, they differ."""
        (a, ea), (b, eb) = left, right
        a, b = a.astype(np.float64), b.astype(np.float64)
        tolerance = 2 * (ea + eb) + self.relative * np.maximum(abs(a), abs(b)) + _UNDERFLOW
        finite = np.isfinite(a) & np.isfinite(b)
        alike = (np.isnan(a) & np.isnan(b)) | (a == b)
        told = np.isfinite(tolerance)
        if self.where_finite:
            alike = alike | ~np.isfinite(a)
        apart = np.where(finite, abs(np.where(finite, a, 0) - np.where(finite, b, 0)) > tolerance, ~alike)
        scale = np.maximum(abs(a), abs(b))
        firm = finite & told & (tolerance <= np.maximum(_FIRM, self.relative) * np.maximum(scale, 1.0))
        return Comparison(apart & (told | ~finite), int(firm.sum()), int((~firm).sum()))

    def shown(self, value: Value) -> np.ndarray[Any, Any]:
        """Return the numbers."""
        return np.asarray(value[0])


class Float32:
    """float32 throughout, compared bit by bit: what the class `exact` promises.

    Parameters
    ----------
    open_zero : bool
        Whether +0 and −0 count as equal (maxima and minima).
    """

    name = "float32"

    def __init__(self, *, open_zero: bool) -> None:
        self.open_zero = open_zero

    def tensor(self, reals: np.ndarray[Any, Any], kind: str) -> Value:
        """Round drawn numbers to the variable's type, and hold them in float32."""
        return reals.astype(DType.F32.numpy if kind == "weak" else DType(kind).numpy).astype(
            bool if kind == "bool" else np.float32
        )

    def constant(self, number: Fraction | float, rank: int) -> Value:
        """Round a constant to float32."""
        return np.full((1,) * rank, float(number), np.float32)

    def apply(self, row: Op, args: Sequence[Value], to: str) -> Value:
        """Return the op table's meaning, rounded to float32 once."""
        if row.name == "cast":
            return _cast32(args[0], to)
        out = np.asarray(row.evaluate(np, *_truths(row, args)))
        return out if out.dtype == bool else out.astype(np.float32)

    def reduce(self, row: Op, arg: Value, dimension: int) -> Value:
        """Return the op table's meaning."""
        out = np.expand_dims(row.evaluate(np, arg, dimension), dimension)
        return out if out.dtype == bool else out.astype(np.float32)

    def gather(self, arg: Value, take: Take) -> Value:
        """Return an access; zeros are exact."""
        return take(arg, 0)

    def compare(self, left: Value, right: Value) -> Comparison:
        """Compare bits; any NaN equals any other."""
        a, b = (np.asarray(v, np.float32) for v in (left, right))
        same = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
        if self.open_zero:
            same |= a == b
        return Comparison(~same, same.size, 0)

    def shown(self, value: Value) -> np.ndarray[Any, Any]:
        """Return the numbers."""
        return np.asarray(value)


def _cast32(value: Any, to: str) -> Any:
    if to == "bool":
        return value != 0
    rounded = value.astype(DType(to).numpy)
    return rounded.astype(np.float32)


def _truths(row: Op, args: Sequence[Any]) -> list[Any]:
    """Turn constants into truth values where the op is logic: a constant carries no dtype."""
    if row.name in ("and", "or", "not", "any", "all"):
        return [np.asarray(a, bool) for a in args]
    return [np.asarray(args[0], bool), *args[1:]] if row.result is Result.BRANCHES else list(args)
