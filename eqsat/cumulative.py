"""Evaluate reductions of prefixes in one pass along the axis, and bound the error of a kernel that does so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eqsat.evaluation import wide_dtype
from eqsat.ir import Expr
from eqsat.ops import Array
from eqsat.prefix import Prefix

Key = tuple[frozenset[str], bool]  # (axes along which an error is independent, whether it is soft), as in errorbound


def apply_prefix(xp: Any, e: Expr, found: Prefix, value: Array) -> Array:
    """Reduce every prefix (or suffix) of a value of `found.operand`; the result has the axes of `e`, sorted."""
    return _laid_out(xp, e, found, value.astype(wide_dtype(e.dtype), copy=False), e.op, found.neutral)


def prefix_errors(
    xp: Any,
    e: Expr,
    found: Prefix,
    value: Array,
    errors: Mapping[Key, Array],
    total: Array | None,
    confidence: float,
    unit: float,
) -> tuple[dict[Key, Array], Array]:
    """Bound the error of a kernel that reduces prefixes.

    Parameters
    ----------
    xp : module
    e : Expr
        The reduction.
    found : Prefix
    value : array
        Of the operand.
    errors : mapping
        The parts of its error; `total` is their sum.
    confidence, unit : float
        As in `eqsat.errorbound`.

    Returns
    -------
    errors : mapping
        Those of the result. None is independent along the axis of the result: neighbours share what they add.
    doubt : array of bool
        Where an operand is inexact, or a NaN meets a number in an extremum.
    """

    def reduced(array: Array, op: str, neutral: float = 0.0) -> Array:
        return _laid_out(xp, e, found, array.astype(np.float64), op, neutral)

    n = e.args[0].type.extents[found.axis]
    inexact = xp.zeros(value.shape) if total is None else total
    size = xp.abs(value)
    out: dict[Key, Array] = {}
    if e.op == "sum":
        sqrt = n > confidence**2
        if e.dtype.is_float and n > 1:
            out[frozenset(), sqrt] = (math.sqrt(n) if sqrt else n) * unit * reduced(size + inexact, "sum")
        for (independent, soft), part in errors.items():
            root = found.axis in independent and (soft or sqrt)
            key = (independent - {found.axis}, soft or root)
            more = xp.sqrt(reduced(part * part, "sum")) if root else reduced(part, "sum")
            out[key] = out[key] + more if key in out else more
    elif e.op == "prod" and e.dtype.is_float:
        reached = reduced(size + inexact, "prod", 1.0)
        out[frozenset(), False] = reached - reduced(size, "prod", 1.0) + n * unit * reached
    elif e.op in ("max", "min") and total is not None:
        least, most = (reduced(value + s * total, e.op, found.neutral) for s in (-1.0, 1.0))
        middle = reduced(value, e.op, found.neutral)
        out[frozenset(), False] = xp.maximum(most - middle, middle - least)
    doubt = xp.zeros(reduced(size, "sum").shape, dtype=np.bool_) if total is None else reduced(inexact != 0, "max") != 0
    if e.op in ("max", "min") and e.dtype.is_float:
        lost = xp.isnan(value)
        doubt = doubt | ((reduced(lost, "max") != 0) & (reduced(~lost, "max") != 0))
    return out, doubt


def _laid_out(xp: Any, e: Expr, found: Prefix, value: Array, op: str, neutral: float) -> Array:
    """Accumulate along the reduced axis, which becomes the axis of the result that bounds it."""
    names = [a for a, _ in found.operand.type.axes]
    dimension = names.index(found.axis)
    out = _accumulated(xp, op, xp.moveaxis(value, dimension, -1), found, neutral)
    names = [*(a for a in names if a != found.axis), found.along]
    return out.transpose([names.index(a) for a, _ in e.type.axes])


def _accumulated(xp: Any, op: str, value: Array, found: Prefix, neutral: float) -> Array:
    """Accumulate along the last dimension."""
    if found.suffix:
        value = value[..., ::-1]
    plain = {"sum": xp.cumsum, "prod": xp.cumprod} if xp is np else {}  # CuPy's own take seconds along rows
    out = plain[op](value, axis=-1) if op in plain else _doubled(_PAIRS[op](xp), value)
    if found.strict and out.shape[-1]:
        first = xp.full((*out.shape[:-1], 1), neutral, dtype=out.dtype)
        out = xp.concatenate([first, out[..., :-1]], axis=-1)
    return out[..., ::-1] if found.suffix else out


_PAIRS: dict[str, Callable[[Any], Callable[[Array, Array], Array]]] = {
    "sum": lambda xp: xp.add,
    "prod": lambda xp: xp.multiply,
    "max": lambda xp: xp.maximum,
    "min": lambda xp: xp.minimum,
}


def _doubled(pair: Callable[[Array, Array], Array], value: Array) -> Array:
    """Accumulate along the last dimension by stretches of 1, 2, 4, … elements."""
    out, step = value.copy(), 1
    while step < value.shape[-1]:
        out[..., step:] = pair(out[..., step:], out[..., :-step])
        step *= 2
    return out
