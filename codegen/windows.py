"""Windows: an operand whose every buffer dimension steps with one free axis, one summed axis, or both (a convolution's input).

The facts come from index terms alone. Where a dimension's index is position·stride + tap·dilation + offset, the same memory
serves many taps, and a kernel can bring it to the chip once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from eqsat.access import Index
from eqsat.codegen.printer import is_load, read_indices, strides
from eqsat.ir import Expr, Input
from eqsat.ops import Kind
from eqsat.types import DType


@dataclass(frozen=True, slots=True)
class WindowDim:
    """One dimension of a buffer: its index is position·stride + tap·dilation + offset.

    Parameters
    ----------
    extent : int
        Of the buffer; outside it the operand is 0.
    step : int
        Elements between neighbours in the buffer.
    position, tap : str
        The free axis and the summed axis it moves with; "" for none.
    positions, taps : int
        Their extents, 1 for none.
    stride : int
        At least 1.
    dilation : int
        Below 0 where the taps run backwards.
    offset : int
    """

    extent: int
    step: int
    position: str
    positions: int
    stride: int
    tap: str
    taps: int
    dilation: int
    offset: int

    @property
    def first(self) -> int:
        """The least index of all taps at position 0."""
        return self.offset + min(0, (self.taps - 1) * self.dilation)

    def shift(self, tap: int) -> int:
        """Return how far behind `first` a tap reads at position 0."""
        return tap * self.dilation - min(0, (self.taps - 1) * self.dilation)

    @property
    def span(self) -> int:
        """How far behind `first` the last tap reads at position 0."""
        return (self.taps - 1) * abs(self.dilation)

    @property
    def leaves(self) -> bool:
        """Whether some index lies outside the buffer."""
        return self.first < 0 or self.first + (self.positions - 1) * self.stride + self.span >= self.extent


@dataclass(frozen=True, slots=True)
class WindowOperand:
    """An operand of a contraction as windows of a buffer, a fact for each dimension, outermost first."""

    name: str
    dtype: DType
    dims: tuple[WindowDim, ...]


def factor(e: Expr) -> Expr:
    """Return what matrix units multiply: the expression without casts that keep every value (bf16 and f16 to f32)."""
    while e.op == "cast" and e.args[0].dtype in (DType.BF16, DType.F16) and e.dtype is DType.F32:
        e = e.args[0]
    return e


def only_load(e: Expr) -> Expr | None:
    """Return the load of which an expression is a function, with constants alone beside it, or None."""
    if is_load(e):
        return e
    if e.row.kind is not Kind.POINTWISE:
        return None
    found = [only_load(a) for a in e.args if a.op != "const"]
    return found[0] if found and all(x is not None and x == found[0] for x in found) else None


def keeps_zero(e: Expr) -> bool:
    """Whether a function of one load makes 0 of 0, as outside a buffer."""
    if is_load(e) or e.op == "const":
        return is_load(e) or e.attrs[0] == 0
    return bool(_at_zero(e) == 0)


def _at_zero(e: Expr) -> np.float64:
    if is_load(e):
        return np.float64(0)
    if e.op == "const":
        return np.float64(e.attrs[0])
    values = [_at_zero(a) for a in e.args]
    with np.errstate(all="ignore"):
        return np.float64(values[0] if e.op == "cast" else e.row.evaluate(np, *values))


def widened_load(e: Expr) -> Expr | None:
    """Return the load under casts that keep every value, or None."""
    found = factor(e)
    return found if is_load(found) else None


def window_operand(e: Expr, buffer: Input, free: Collection[str], summed: Collection[str]) -> WindowOperand | str:
    """Return how a load steps through its buffer, or why it is no window.

    Parameters
    ----------
    e : Expr
        A load: a read, or an access of one.
    buffer : Input
    free, summed : collection of str
        The axes that stay, and those that the contraction sums over.
    """
    _, indices = read_indices(e)
    extents = dict(e.type.axes) | (dict(e.attrs[0].extents) if e.op == "access" else {})
    dims, seen = [], set[str]()
    for index, extent, step in zip(indices, buffer.shape, strides(buffer.shape), strict=True):
        found = _dim(index.simplify(extents), extent, step, extents, free, summed)
        if isinstance(found, str):
            return found
        axes = {a for a in (found.position, found.tap) if a}
        if axes & seen:
            return f"axis {min(axes & seen)!r} moves two dimensions of {buffer.name!r}"
        seen |= axes
        dims.append(found)
    if missing := {a for a in e.axes if extents[a] > 1} - seen:
        return f"axis {min(missing)!r} moves no dimension of {buffer.name!r}"
    return WindowOperand(buffer.name, buffer.dtype, tuple(dims))


def _dim(
    index: Index, extent: int, step: int, extents: Mapping[str, int], free: Collection[str], summed: Collection[str]
) -> WindowDim | str:
    terms = affine_terms(index)
    if terms is None:
        return f"the index {index} divides"
    factors, offset = terms
    factors = {a: f for a, f in factors.items() if extents[a] > 1}
    positions, taps = [a for a in factors if a in free], [a for a in factors if a in summed]
    if len(positions) > 1 or len(taps) > 1 or len(positions) + len(taps) < len(factors):
        return f"the index {index} moves with more than one free and one summed axis"
    position, tap = (positions or [""])[0], (taps or [""])[0]
    if position and factors[position] < 1:
        return f"the index {index} runs backwards along {position!r}"
    return WindowDim(
        extent, step, position, extents.get(position, 1), factors.get(position, 1),
        tap, extents.get(tap, 1), factors.get(tap, 1), offset,
    )  # fmt: skip


def affine_terms(index: Index) -> tuple[dict[str, int], int] | None:
    """Return (factor of each axis, constant) of an index, or None if it divides."""
    match index.op:
        case "axis":
            return {index.name: 1}, 0
        case "const":
            return {}, index.value
        case "add" | "mul":
            total: dict[str, int] = {}
            constant = 0
            times = index.value if index.op == "mul" else 1
            for part in index.args:
                found = affine_terms(part)
                if found is None:
                    return None
                constant += found[1] * times
                for a, f in found[0].items():
                    total[a] = total.get(a, 0) + f * times
            return {a: f for a, f in total.items() if f}, constant
        case _:
            return None
