"""Programs that one pass along an axis computes: what the tests of every target run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eqsat import numpy_like as fn
from eqsat.ir import Program
from eqsat.trace import trace


def array(*shape: int, dtype: str = "f32") -> tuple[tuple[int, ...], str]:
    """Return the shape and dtype of an input."""
    return shape, dtype


PROGRAMS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "rows": (lambda x: fn.cumsum(x, 1), [array(5, 272)]),
    "rows of bf16, scaled and shifted": (
        lambda x, g, r: fn.relu(fn.cumsum(x * g.reshape(-1, 1), 1)) + r,
        [array(7, 128, dtype="bf16"), array(7), array(7, 128, dtype="bf16")],
    ),
    "rows from the end, without the own element": (lambda x: fn.cumsum(x, 1, reverse=True, exclusive=True), [array(3, 160)]),
    "rows from the end": (lambda x: fn.cummax(x, -1, reverse=True), [array(2, 3, 88)]),
    "odd rows": (lambda x: fn.cumsum(x, 1), [array(6, 101)]),
    "odd rows from the end": (lambda x: fn.cummin(x, 1, reverse=True, exclusive=True), [array(6, 75)]),
    "one long row": (lambda x: fn.cumsum(x) * 0.5, [array(2600)]),
    "products": (lambda x: fn.cumprod(1 + x * 0.01, 1), [array(4, 96)]),
    "whole numbers": (lambda x: fn.cummax(x, 1), [array(4, 96, dtype="i32")]),
    "double precision": (lambda x: fn.cumsum(x, 1, exclusive=True), [array(3, 64, dtype="f64")]),
    "masked": (lambda x, y: fn.cumsum(fn.where(y > 0, x, 0.0), 1), [array(4, 96), array(4, 96)]),
    "its own share": (lambda x: x / (1 + fn.cumsum(fn.abs(x), 1)), [array(4, 96)]),
    "a sum beside a maximum": (lambda x: fn.cumsum(x, 1) - fn.cummax(x, 1), [array(4, 96)]),
    "positions": (lambda x: fn.cumsum(x, 1) / (fn.iota(96).astype("f32") + 1), [array(4, 96)]),
    "columns": (lambda x: fn.cumsum(x, 0), [array(37, 64)]),
    "columns from the end": (lambda x: fn.cumsum(x, 0, reverse=True), [array(37, 40)]),
    "odd columns": (lambda x: fn.cummax(x, 0, exclusive=True), [array(23, 13)]),
    "columns between": (lambda x, r: fn.cumsum(x, 1) + r, [array(3, 21, 24, dtype="bf16"), array(3, 21, 24, dtype="bf16")]),
    "turned": (lambda x: fn.cumsum(x, 0).mT, [array(40, 12)]),
}  # fmt: skip


def program(name: str) -> Program:
    """Return a program by name."""
    function, specs = PROGRAMS[name]
    return trace(function, *specs)
