"""Programs of windows: what the tests of every target run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eqsat import numpy_like as fn
from eqsat.ir import Program
from eqsat.trace import trace


def image(*shape: int, dtype: str = "f32") -> tuple[tuple[int, ...], str]:
    """Return the shape and dtype of an input."""
    return shape, dtype


PROGRAMS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "depthwise": (lambda x, w: fn.depthwise_conv(x, w, padding=1), [image(2, 3, 7, 8), image(3, 3, 3)]),
    "depthwise, stride and dilation": (lambda x, w: fn.depthwise_conv(x, w, 2, 2, 2), [image(1, 2, 11, 15), image(2, 3, 3)]),
    "depthwise, bf16, bias and residual": (
        lambda x, w, b, r: fn.silu(fn.depthwise_conv(x, w, padding=1) + b.reshape(-1, 1, 1)) + r,
        [image(1, 2, 5, 16, dtype="bf16"), image(2, 3, 3, dtype="bf16"), image(2, dtype="bf16"), image(1, 2, 5, 16, dtype="bf16")],
    ),
    "depthwise, a line": (lambda x, w: fn.depthwise_conv(x, w, padding=2), [image(2, 3, 16), image(3, 5)]),
    "depthwise, one side padded": (lambda x, w: fn.depthwise_conv(x, w, padding=((3, 0),)), [image(2, 3, 12), image(3, 4)]),
    "channels last": (
        lambda x, w: (fn.windows(x, (3, 1), padding=((1, 1), (0, 0)))[..., 0] * w.T).sum(-1),
        [image(2, 9, 8), image(3, 8)],
    ),
    "max pool": (lambda x: fn.relu(fn.max_pool(x, 2)), [image(2, 3, 6, 8)]),
    "max pool, padded": (lambda x: fn.max_pool(x, 3, 2, 1), [image(1, 2, 9, 7)]),
    "max pool, one row of outputs": (lambda x: fn.max_pool(x, 2), [image(1, 3, 2, 8)]),
    "mean pool, what is there": (lambda x: fn.avg_pool(x, 3, 2, 1, count_include_pad=False), [image(1, 2, 8, 8)]),
    "mean pool of volumes": (lambda x: fn.avg_pool(x, (2, 3, 2), (1, 2, 2)), [image(1, 2, 3, 7, 8)]),
    "least and mean at once": (
        lambda x: fn.min(fn.windows(x, (3,)), -1) - fn.mean(fn.windows(x, (3,)), -1),
        [image(3, 4, 10)],
    ),
    "a blur in double precision": (lambda x: fn.avg_pool(x, 3, 1, 1), [image(1, 2, 5, 6, dtype="f64")]),
    "rows that no tile divides": (lambda x, w: fn.depthwise_conv(x, w), [image(1, 2, 9, 6), image(2, 3, 3)]),
}  # fmt: skip


def program(name: str) -> Program:
    """Return a program by name."""
    function, specs = PROGRAMS[name]
    return trace(function, *specs)
