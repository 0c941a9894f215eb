"""NumPy's own functions on traced arrays: `np.exp(x - np.max(x, axis=-1, keepdims=True))` builds a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eqsat import numpy_like as fn
from eqsat.array import Array, as_array, broadcast_to, expand_dims, floor_divide, matmul, pointwise, power
from eqsat.contraction import einsum
from eqsat.errors import TraceError
from eqsat.types import DType


def _truth(x: Any) -> Array:
    x = as_array(x)
    return x if x.dtype is DType.BOOL else ~pointwise("eq", x, 0)


UFUNCS: Mapping[str, Callable[..., Array]] = {
    "add": lambda a, b: pointwise("add", a, b),
    "subtract": lambda a, b: pointwise("sub", a, b),
    "multiply": lambda a, b: pointwise("mul", a, b),
    "divide": lambda a, b: pointwise("div", a, b),
    "floor_divide": floor_divide,
    "remainder": lambda a, b: pointwise("sub", a, pointwise("mul", floor_divide(a, b), b)),
    "power": power,
    "float_power": power,
    "matmul": matmul,
    "maximum": fn.maximum,
    "minimum": fn.minimum,
    "less": lambda a, b: pointwise("lt", a, b),
    "less_equal": lambda a, b: pointwise("le", a, b),
    "greater": lambda a, b: pointwise("lt", b, a),
    "greater_equal": lambda a, b: pointwise("le", b, a),
    "equal": lambda a, b: pointwise("eq", a, b),
    "not_equal": lambda a, b: pointwise("not", pointwise("eq", a, b)),
    "logical_and": lambda a, b: _truth(a) & _truth(b),
    "logical_or": lambda a, b: _truth(a) | _truth(b),
    "logical_not": lambda a: ~_truth(a),
    "bitwise_and": lambda a, b: pointwise("and", a, b),
    "bitwise_or": lambda a, b: pointwise("or", a, b),
    "invert": lambda a: pointwise("not", a),
    "negative": lambda a: pointwise("neg", a),
    "positive": as_array,
    "absolute": fn.abs,
    "fabs": fn.abs,
    "reciprocal": fn.reciprocal,
    "square": fn.square,
    "sqrt": fn.sqrt,
    "exp": fn.exp,
    "exp2": fn.exp2,
    "log": fn.log,
    "log2": fn.log2,
    "log10": fn.log10,
    "tanh": fn.tanh,
    "sin": fn.sin,
    "cos": fn.cos,
    "tan": fn.tan,
    "floor": fn.floor,
    "ceil": fn.ceil,
    "isnan": fn.isnan,
    "erf": fn.erf,  # scipy.special's
    "expit": fn.sigmoid,
}
_REDUCTIONS = {
    "add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min", "logical_and": "all", "logical_or": "any",
}  # fmt: skip
_SCANS = {"add": fn.cumsum, "multiply": fn.cumprod, "maximum": fn.cummax, "minimum": fn.cummin}


def _var(x: Array, axis: Any = None, ddof: float = 0, keepdims: bool = False, correction: float | None = None) -> Array:
    return fn.var(x, axis, keepdims, ddof if correction is None else correction)


def _std(x: Array, axis: Any = None, ddof: float = 0, keepdims: bool = False, correction: float | None = None) -> Array:
    return fn.std(x, axis, keepdims, ddof if correction is None else correction)


def _pad(x: Array, pad_width: Any, mode: str = "constant", constant_values: float = 0) -> Array:
    if mode != "constant":
        raise TraceError(f"np.pad is traced in mode 'constant' only; got {mode!r}")
    return fn.pad(x, pad_width, constant_values)


def _einsum(*operands: Any, optimize: object = False) -> Array:
    return einsum(*operands)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sum": fn.sum,
    "prod": fn.prod,
    "max": fn.max,
    "amax": fn.max,
    "min": fn.min,
    "amin": fn.min,
    "any": fn.any,
    "all": fn.all,
    "mean": fn.mean,
    "var": _var,
    "std": _std,
    "argmax": fn.argmax,
    "argmin": fn.argmin,
    "where": fn.where,
    "clip": fn.clip,
    "einsum": _einsum,
    "dot": lambda a, b: matmul(a, b) if np.ndim(a) and np.ndim(b) < 3 else _unsupported("dot of these ranks"),
    "outer": lambda a, b: as_array(a).reshape(-1, 1) * as_array(b).reshape(1, -1),
    "transpose": lambda a, axes=None: a.T if axes is None else a.permute(axes),
    "permute_dims": lambda a, axes=None: a.T if axes is None else a.permute(axes),
    "matrix_transpose": lambda x: x.mT,
    "swapaxes": lambda a, axis1, axis2: a.swapaxes(axis1, axis2),
    "reshape": lambda a, shape: a.reshape(shape),
    "ravel": lambda a: a.reshape(-1),
    "squeeze": lambda a, axis=None: a.squeeze(axis),
    "expand_dims": expand_dims,
    "broadcast_to": broadcast_to,
    "concatenate": fn.concatenate,
    "cumsum": fn.cumsum,
    "cumprod": fn.cumprod,
    "sliding_window_view": fn.sliding_window_view,
    "stack": fn.stack,
    "split": fn.split,
    "flip": fn.flip,
    "pad": _pad,
    "tril": lambda m, k=0: fn.tril(m, k),
    "triu": lambda m, k=0: fn.triu(m, k),
    "zeros_like": lambda a: fn.full(a.shape, 0, a.dtype),
    "ones_like": lambda a: fn.full(a.shape, 1, a.dtype),
    "full_like": lambda a, fill_value: fn.full(a.shape, fill_value, a.dtype),
    "ndim": lambda a: a.ndim,
    "shape": lambda a: a.shape,
    "size": lambda a: a.size,
    "astype": lambda x, dtype: x.astype(dtype),
}


def _unsupported(what: str) -> Array:
    raise TraceError(
        f"{what} is not part of the language; write it with the operations of eqsat (einsum, where, reductions, slices)."
    )


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Trace a call of a NumPy ufunc, or of its `reduce` or `accumulate` method."""
    if method == "accumulate" and ufunc.__name__ in _SCANS:
        return _call(_SCANS[ufunc.__name__], f"np.{ufunc.__name__}.accumulate", inputs, {"axis": 0, **options})
    if method == "reduce" and ufunc.__name__ in _REDUCTIONS:
        return _call(getattr(fn, _REDUCTIONS[ufunc.__name__]), f"np.{ufunc.__name__}.reduce", inputs, {"axis": 0, **options})
    if method != "__call__" or ufunc.__name__ not in UFUNCS:
        _unsupported(f"np.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}"))
    return _call(UFUNCS[ufunc.__name__], f"np.{ufunc.__name__}", inputs, options)


def call_function(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Trace a call of a NumPy function."""
    name = getattr(function, "__name__", str(function))
    if name not in FUNCTIONS:
        _unsupported(f"np.{name}")
    return _call(FUNCTIONS[name], f"np.{name}", args, options)


def _call(function: Callable[..., Any], name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Call with `dtype=` turned into a cast of the first operand, and options at NumPy's defaults left out."""
    options = {k: v for k, v in options.items() if not (v is None and k in ("out", "dtype")) and not (k == "where" and v is True)}
    if "dtype" in options and name != "np.astype":
        args = (as_array(args[0]).astype(options.pop("dtype")), *args[1:])
    try:
        return function(*args, **options)
    except TypeError as error:
        given = ", ".join(sorted(options)) or "no options"
        raise TraceError(f"{name} is traced without some of the arguments given ({given}): {error}") from error
