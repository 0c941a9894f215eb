"""Cumulative sums, products and extrema: each a reduction of every prefix of an axis, spelled as a mask."""

from __future__ import annotations

import math
from collections.abc import Callable

from eqsat import views
from eqsat.array import Array, Operand, as_array, cast, constant, pointwise, reduce, view
from eqsat.errors import DTypeError
from eqsat.types import DType

__all__ = ["cummax", "cummin", "cumprod", "cumsum"]


def cumsum(x: Operand, axis: int | None = None, *, reverse: bool = False, exclusive: bool = False) -> Array:
    """Return the sums of all elements up to each along `axis` (of the flattened array, if None).

    Parameters
    ----------
    x : Array
    axis : int, optional
    reverse : bool
        Sum from each element to the end instead.
    exclusive : bool
        Leave the element itself out; the first sum is then 0.

    Examples
    --------
    >>> from eqsat.trace import tensor
    >>> cumsum(tensor("x", (4, 8)), axis=1).shape
    (4, 8)
    """
    return _scan("sum", x, axis, reverse, exclusive, lambda d: 0)


def cumprod(x: Operand, axis: int | None = None, *, reverse: bool = False, exclusive: bool = False) -> Array:
    """Return the products of all elements up to each along `axis`; the parameters are those of `cumsum`."""
    return _scan("prod", x, axis, reverse, exclusive, lambda d: 1)


def cummax(x: Operand, axis: int | None = None, *, reverse: bool = False, exclusive: bool = False) -> Array:
    """Return the greatest of all elements up to each along `axis`; the parameters are those of `cumsum`."""
    return _scan("max", x, axis, reverse, exclusive, lambda d: _end(d, -1))


def cummin(x: Operand, axis: int | None = None, *, reverse: bool = False, exclusive: bool = False) -> Array:
    """Return the least of all elements up to each along `axis`; the parameters are those of `cumsum`."""
    return _scan("min", x, axis, reverse, exclusive, lambda d: _end(d, 1))


def _end(dtype: DType, sign: int) -> float:
    """Return the end of a type's range that no extremum sees."""
    if dtype.is_float:
        return sign * math.inf
    if dtype is not DType.I32:
        raise DTypeError(f"cumulative extrema are defined for floats and i32; got {dtype}. Cast the operand.")
    return -(2**31) if sign < 0 else 2**31 - 1


def _scan(op: str, x: Operand, axis: int | None, reverse: bool, exclusive: bool, neutral: Callable[[DType], float]) -> Array:
    """Reduce every prefix: Σ_k (k ≤ j ? x_k : neutral)."""
    x = as_array(x)
    if x.dtype is DType.BOOL:
        x = cast(x, DType.I64)
    if axis is None:
        x, axis = x.reshape(-1), 0
    (d,) = views.axis_numbers(axis, x.ndim)
    extent = x.shape[d]
    shape = (*(1 if e == d else n for e, n in enumerate(x.shape)), extent)
    read = view(x, tuple(views.dim(x.ndim if e == d else e) for e in range(x.ndim)), shape)
    taken = _line(extent, x.ndim, x.ndim + 1)
    result = _line(extent, d, x.ndim + 1)
    first, second = (result, taken) if reverse else (taken, result)
    inside = pointwise("lt" if exclusive else "le", first, second)
    return reduce(op, pointwise("where", inside, read, constant(neutral(x.dtype), x.dtype)), x.ndim)


def _line(extent: int, d: int, rank: int) -> Array:
    """Return the position along dimension `d` of `rank`."""
    return Array("iota", (), (), (extent,), DType.I64).reshape([extent if e == d else 1 for e in range(rank)])
