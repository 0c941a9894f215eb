"""Functions over traced arrays, named as in NumPy, the array API and PyTorch: the vocabulary in which programs are written."""
# ruff: noqa: A001 - sum, max, abs, … are the names of the functions

from __future__ import annotations

import builtins
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from eqsat import views
from eqsat.access import Index
from eqsat.array import (
    Array,
    Axis,
    Operand,
    as_array,
    broadcast_to,
    cast,
    constant,
    expand_dims,
    matmul,
    parse_dtype,
    pointwise,
    power,
    reduce,
    view,
)
from eqsat.contraction import einsum
from eqsat.errors import ShapeError, UsageError
from eqsat.scans import cummax, cummin, cumprod, cumsum
from eqsat.types import DType, promote
from eqsat.windows import avg_pool, conv, conv_transpose, depthwise_conv, max_pool, windows

__all__ = [
    "abs",
    "all",
    "any",
    "arange",
    "argmax",
    "argmin",
    "avg_pool",
    "broadcast_to",
    "cast",
    "ceil",
    "clip",
    "concatenate",
    "const",
    "conv",
    "conv_transpose",
    "cos",
    "cummax",
    "cummin",
    "cumprod",
    "cumsum",
    "depthwise_conv",
    "einsum",
    "erf",
    "exp",
    "exp2",
    "expand_dims",
    "flip",
    "floor",
    "full",
    "gelu",
    "iota",
    "isnan",
    "layer_norm",
    "log",
    "log2",
    "log10",
    "log_softmax",
    "logsumexp",
    "matmul",
    "max",
    "max_pool",
    "maximum",
    "mean",
    "min",
    "minimum",
    "ones",
    "pad",
    "power",
    "prod",
    "reciprocal",
    "relu",
    "rms_norm",
    "rsqrt",
    "sigmoid",
    "silu",
    "sin",
    "sliding_window_view",
    "softmax",
    "split",
    "sqrt",
    "square",
    "stack",
    "std",
    "sum",
    "tan",
    "tanh",
    "tril",
    "triu",
    "var",
    "where",
    "windows",
    "zeros",
]


# Elementwise


def exp(x: Operand) -> Array:
    """Return e**x."""
    return pointwise("exp", x)


def exp2(x: Operand) -> Array:
    """Return 2**x."""
    return exp(as_array(x) * math.log(2))


def log(x: Operand) -> Array:
    """Return the natural logarithm."""
    return pointwise("log", x)


def log2(x: Operand) -> Array:
    """Return the logarithm to base 2."""
    return log(x) * (1 / math.log(2))


def log10(x: Operand) -> Array:
    """Return the logarithm to base 10."""
    return log(x) * (1 / math.log(10))


def sqrt(x: Operand) -> Array:
    """Return the square root."""
    return pointwise("sqrt", x)


def rsqrt(x: Operand) -> Array:
    """Return 1/√x."""
    return pointwise("rsqrt", x)


def reciprocal(x: Operand) -> Array:
    """Return 1/x."""
    return pointwise("recip", x)


def square(x: Operand) -> Array:
    """Return x·x."""
    x = as_array(x)
    return x * x


def tanh(x: Operand) -> Array:
    """Return the hyperbolic tangent."""
    return pointwise("tanh", x)


def erf(x: Operand) -> Array:
    """Return the error function 2/√π ∫₀ˣ exp(−t²) dt."""
    return pointwise("erf", x)


def sigmoid(x: Operand) -> Array:
    """Return 1/(1 + e**−x)."""
    return pointwise("sigmoid", x)


def sin(x: Operand) -> Array:
    """Return the sine."""
    return pointwise("sin", x)


def cos(x: Operand) -> Array:
    """Return the cosine."""
    return pointwise("cos", x)


def tan(x: Operand) -> Array:
    """Return the tangent."""
    return sin(x) / cos(x)


def abs(x: Operand) -> Array:
    """Return the absolute value."""
    return pointwise("abs", x)


def floor(x: Operand) -> Array:
    """Return the greatest whole number that is not above x."""
    return pointwise("floor", x)


def ceil(x: Operand) -> Array:
    """Return the least whole number that is not below x."""
    return -pointwise("floor", -as_array(x))


def maximum(x: Operand, y: Operand) -> Array:
    """Return the greater of two values, elementwise."""
    return pointwise("maximum", x, y)


def minimum(x: Operand, y: Operand) -> Array:
    """Return the lesser of two values, elementwise."""
    return pointwise("minimum", x, y)


def clip(x: Operand, low: Operand | None = None, high: Operand | None = None) -> Array:
    """Return x held between `low` and `high`."""
    out = as_array(x) if low is None else maximum(x, low)
    return out if high is None else minimum(out, high)


def isnan(x: Operand) -> Array:
    """Return whether a value is not a number."""
    x = as_array(x)
    return x != x  # true of NaN alone


def where(condition: Operand, x: Operand, y: Operand) -> Array:
    """Return x where the condition holds and y elsewhere."""
    return pointwise("where", condition, x, y)


def relu(x: Operand) -> Array:
    """Return max(x, 0)."""
    return maximum(x, 0)


def silu(x: Operand) -> Array:
    """Return x·sigmoid(x)."""
    x = as_array(x)
    return x * sigmoid(x)


def gelu(x: Operand, approximate: Literal["none", "tanh"] = "none") -> Array:
    """Return x·Φ(x), with Φ the normal distribution function or (`"tanh"`) its usual approximation."""
    x = as_array(x)
    if approximate == "none":
        return x * 0.5 * (erf(x * math.sqrt(0.5)) + 1)
    if approximate == "tanh":
        return x * 0.5 * (tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1)
    raise UsageError(f"expected approximate='none' or 'tanh'; got {approximate!r}")


# Reductions


def sum(x: Operand, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return sums along `axis`."""
    return reduce("sum", x, axis, keepdims)


def prod(x: Operand, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return products along `axis`."""
    return reduce("prod", x, axis, keepdims)


def max(x: Operand, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return maxima along `axis`."""
    return reduce("max", x, axis, keepdims)


def min(x: Operand, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return minima along `axis`."""
    return reduce("min", x, axis, keepdims)


def any(x: Operand, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return whether any value along `axis` is not 0."""
    return reduce("any", x, axis, keepdims)


def all(x: Operand, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return whether no value along `axis` is 0."""
    return reduce("all", x, axis, keepdims)


def argmax(x: Operand, axis: int | None = None, keepdims: bool = False) -> Array:
    """Return the first position of the maximum along `axis` (of all elements, if None)."""
    return reduce("argmax", x, axis, keepdims)


def argmin(x: Operand, axis: int | None = None, keepdims: bool = False) -> Array:
    """Return the first position of the minimum along `axis` (of all elements, if None)."""
    return reduce("argmin", x, axis, keepdims)


def mean(x: Operand, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return means along `axis`."""
    return as_array(x).mean(axis, keepdims)


def var(x: Operand, axis: Axis = None, keepdims: bool = False, correction: float = 0) -> Array:
    """Return variances along `axis`: Σ(x − mean)² / (count − correction)."""
    return as_array(x).var(axis, keepdims, correction)


def std(x: Operand, axis: Axis = None, keepdims: bool = False, correction: float = 0) -> Array:
    """Return standard deviations along `axis`."""
    return as_array(x).std(axis, keepdims, correction)


# Normalisations


def softmax(x: Operand, axis: Axis = -1) -> Array:
    """Return exp(x − max)/Σ exp(x − max) along `axis`; the shift by the maximum keeps exp from overflowing."""
    x = as_array(x)
    e = exp(x - max(x, axis, keepdims=True))
    return e / sum(e, axis, keepdims=True)


def log_softmax(x: Operand, axis: Axis = -1) -> Array:
    """Return log(softmax(x)), computed as x − max − log Σ exp(x − max)."""
    x = as_array(x)
    shifted = x - max(x, axis, keepdims=True)
    return shifted - log(sum(exp(shifted), axis, keepdims=True))


def logsumexp(x: Operand, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return log Σ exp(x) along `axis`, computed as max + log Σ exp(x − max). Rows of nothing but −∞ give NaN."""
    x = as_array(x)
    top = max(x, axis, keepdims=True)
    rest = log(sum(exp(x - top), axis, keepdims))
    return rest + top.reshape(rest.shape)


def rms_norm(x: Operand, weight: Operand | None = None, eps: float = 1e-6, axis: Axis = -1) -> Array:
    """Return x·rsqrt(mean(x²) + eps), times `weight` if given."""
    x = as_array(x)
    out = x * rsqrt(mean(x * x, axis, keepdims=True) + eps)
    return out if weight is None else out * weight


def layer_norm(
    x: Operand, weight: Operand | None = None, bias: Operand | None = None, eps: float = 1e-5, axis: Axis = -1
) -> Array:
    """Return (x − mean)·rsqrt(var + eps), times `weight` and plus `bias` if given."""
    x = as_array(x)
    centred = x - mean(x, axis, keepdims=True)
    out = centred * rsqrt(mean(centred * centred, axis, keepdims=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


# Making arrays


def const(value: float, dtype: object = None) -> Array:
    """Return a constant; its dtype is f32 for a float, i64 for an int, bool for a bool, unless given."""
    return as_array(value) if dtype is None else constant(value, parse_dtype(dtype))


def full(shape: int | Sequence[int], value: float, dtype: object = None) -> Array:
    """Return an array of one value."""
    return broadcast_to(const(value, dtype), (shape,) if isinstance(shape, int) else shape)


def zeros(shape: int | Sequence[int], dtype: object = "f32") -> Array:
    """Return an array of zeros."""
    return full(shape, 0, dtype)


def ones(shape: int | Sequence[int], dtype: object = "f32") -> Array:
    """Return an array of ones."""
    return full(shape, 1, dtype)


def iota(extent: int, dtype: object = "i64") -> Array:
    """Return 0, 1, …, extent − 1."""
    return cast(Array("iota", (), (), (extent,), DType.I64), dtype)


def arange(start: int, stop: int | None = None, step: int = 1, dtype: object = "i64") -> Array:
    """Return the whole numbers of range(start, stop, step)."""
    numbers = range(start) if stop is None else range(start, stop, step)
    if not len(numbers):
        raise ShapeError(f"expected a range with at least one number; got {numbers}")
    out = Array("iota", (), (), (len(numbers),), DType.I64)
    out = out if numbers.step == 1 else out * numbers.step
    return cast(out if numbers.start == 0 else out + numbers.start, dtype)


def tril(x: Operand, k: int = 0) -> Array:
    """Return `x` with the elements above diagonal `k` of the last two dimensions replaced by 0."""
    x = as_array(x)
    rows, columns = _row_and_column(x)
    return where(columns <= rows + k if k else columns <= rows, x, 0)


def triu(x: Operand, k: int = 0) -> Array:
    """Return `x` with the elements below diagonal `k` of the last two dimensions replaced by 0."""
    x = as_array(x)
    rows, columns = _row_and_column(x)
    return where(rows + k <= columns if k else rows <= columns, x, 0)


def _row_and_column(x: Array) -> tuple[Array, Array]:
    if x.ndim < 2:
        raise ShapeError(f"expected at least two dimensions; got the shape {list(x.shape)}")
    return iota(x.shape[-2]).reshape(-1, 1), iota(x.shape[-1]).reshape(1, -1)


# Re-arranging


def flip(x: Operand, axis: Axis = None) -> Array:
    """Return `x` with the order of the elements along `axis` reversed."""
    x = as_array(x)
    over = views.axis_numbers(axis, x.ndim)
    return x[tuple(slice(None, None, -1) if d in over else slice(None) for d in range(x.ndim))]


def sliding_window_view(x: Operand, window_shape: int | Sequence[int], axis: Axis = None) -> Array:
    """Return every window of `x`: its dimensions, cut short by each window's extent − 1, then those of the windows.

    `window_shape` has one extent for each dimension of `axis` (for every dimension, if None), as in NumPy.
    """
    x = as_array(x)
    widths = (window_shape,) if isinstance(window_shape, int) else tuple(window_shape)
    over = tuple(range(x.ndim)) if axis is None else views.axis_numbers(axis, x.ndim)
    if len(widths) != len(over):
        raise ShapeError(f"expected a window extent for each of the {len(over)} dimensions; got {list(widths)}")
    shape, entries = list(x.shape), [views.dim(d) for d in range(x.ndim)]
    for n, (d, width) in enumerate(zip(over, widths, strict=True)):
        if not 1 <= width <= shape[d]:
            raise ShapeError(f"a window of {width} does not fit into dimension {d} of {list(x.shape)}")
        shape[d] -= width - 1
        entries[d] += views.dim(x.ndim + n)
    return view(x, tuple(entries), (*shape, *widths))


def split(x: Operand, sections: int | Sequence[int], axis: int = 0) -> tuple[Array, ...]:
    """Return `x` cut along `axis` into equal sections, or at the given positions."""
    x = as_array(x)
    (d,) = views.axis_numbers(axis, x.ndim)
    extent = x.shape[d]
    if isinstance(sections, int):
        if sections < 1 or extent % sections:
            raise ShapeError(f"an extent of {extent} does not divide into {sections} equal sections")
        cuts = list(range(0, extent + 1, extent // sections))
    else:
        cuts = [0, *sections, extent]
    lead = (slice(None),) * d
    return tuple(x[(*lead, slice(low, high))] for low, high in itertools.pairwise(cuts))


def pad(x: Operand, widths: int | Sequence[int] | Sequence[Sequence[int]], value: float = 0) -> Array:
    """Return `x` with `value` before and after it; `widths` is NumPy's: one number, one pair, or one pair for each dimension."""
    x = as_array(x)
    pairs = _pad_pairs(widths, x.ndim)
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, pairs, strict=True))
    entries = tuple(views.dim(d) + Index.const(-before) for d, (before, _) in enumerate(pairs))
    if value == 0:
        return view(x, entries, shape)
    mask: Array | None = None
    for d, (before, after) in enumerate(pairs):
        if before or after:
            position = iota(shape[d]).reshape([-1 if e == d else 1 for e in range(x.ndim)])
            for bound in ([position >= before] if before else []) + ([position < before + x.shape[d]] if after else []):
                mask = bound if mask is None else mask & bound
    return x if mask is None else where(mask, view(x, entries, shape, "any"), value)


def _pad_pairs(widths: int | Sequence[int] | Sequence[Sequence[int]], rank: int) -> list[tuple[int, int]]:
    rows: list[tuple[int, int]] = []
    if isinstance(widths, int):
        rows = [(widths, widths)] * rank
    else:
        items: list[int | Sequence[int]] = list(widths)
        if len(items) == 2 and isinstance(items[0], int) and isinstance(items[1], int):
            rows = [(items[0], items[1])] * rank
        else:
            for item in items:
                low, high = (item, item) if isinstance(item, int) else (item[0], item[-1])
                rows.append((low, high))
            rows = rows * rank if len(rows) == 1 else rows
    if len(rows) != rank or not rows or builtins.min(n for row in rows for n in row) < 0:
        raise ShapeError(f"expected pad widths ≥ 0, one pair for each of {rank} dimensions; got {widths}")
    return rows


def concatenate(arrays: Sequence[Operand], axis: int = 0) -> Array:
    """Return `arrays` one after another along `axis`."""
    parts = [as_array(a) for a in arrays]
    if not parts:
        raise ShapeError("concatenate takes at least one array")
    (d,) = views.axis_numbers(axis, parts[0].ndim)
    for part in parts[1:]:
        if part.ndim != parts[0].ndim or part.shape[:d] + part.shape[d + 1 :] != parts[0].shape[:d] + parts[0].shape[d + 1 :]:
            raise ShapeError(
                f"concatenate: the shapes {list(parts[0].shape)} and {list(part.shape)} differ in another dimension than {d}."
            )
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = promote(dtype, part.dtype)
    extent = builtins.sum(p.shape[d] for p in parts)
    shape = (*parts[0].shape[:d], extent, *parts[0].shape[d + 1 :])
    position = iota(extent).reshape([-1 if e == d else 1 for e in range(len(shape))])
    start = extent - parts[-1].shape[d]
    out = _placed(cast(parts[-1], dtype), d, start, shape)
    for part in parts[-2::-1]:
        end, start = start, start - part.shape[d]
        out = where(position < end, _placed(cast(part, dtype), d, start, shape), out)
    return out


def _placed(x: Array, d: int, start: int, shape: tuple[int, ...]) -> Array:
    """Return `x` within `shape`, shifted by `start` along dimension `d`; what lies beside it is never looked at."""
    return view(x, tuple(views.dim(e) + Index.const(-start if e == d else 0) for e in range(x.ndim)), shape, "any")


def stack(arrays: Sequence[Operand], axis: int = 0) -> Array:
    """Return `arrays` side by side along a new dimension."""
    parts = [as_array(a) for a in arrays]
    if not parts or len({p.shape for p in parts}) > 1:
        raise ShapeError(f"stack takes arrays of one shape; got {[list(p.shape) for p in parts]}")
    return concatenate([expand_dims(p, axis) for p in parts], axis)
