"""Windows and scans from an expression to a kernel that runs on this CPU, compared with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from eqsat import numpy_like as fn
from eqsat import optimize, tensor

Shapes = list[tuple[int, ...]]


def windows(x: Any, kernel: tuple[int, ...], pad: int = 0, value: float = 0.0) -> Any:
    """Return all windows over the last dimensions."""
    widths = [(0, 0)] * (x.ndim - len(kernel)) + [(pad, pad)] * len(kernel)
    axes = tuple(range(x.ndim - len(kernel), x.ndim))
    return np.lib.stride_tricks.sliding_window_view(np.pad(x, widths, constant_values=value), kernel, axes)


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Shapes]] = {
    "convolution": (
        lambda x, w: fn.relu(fn.conv(x, w, padding=1)),
        lambda x, w: np.maximum(np.einsum("nchwrs,ocrs->nohw", windows(x, (3, 3), 1), w), 0),
        [(2, 3, 6, 7), (4, 3, 3, 3)],
    ),
    "transposed convolution of stride two": (
        lambda x, w: fn.conv_transpose(x, w, stride=2),
        lambda x, w: sum(
            np.pad(np.einsum("nci,co->noi", x, w[:, :, r]).repeat(2, -1) * (np.arange(10) % 2 == 0), [(0, 0), (0, 0), (r, 2 - r)])[..., :11]
            for r in range(3)
        ),
        [(2, 3, 5), (3, 4, 3)],
    ),
    "depthwise convolution": (
        lambda x, w: fn.depthwise_conv(x, w, padding=1) * 0.5,
        lambda x, w: np.einsum("nchwrs,crs->nchw", windows(x, (3, 3), 1), w) * 0.5,
        [(2, 5, 9, 33), (5, 3, 3)],
    ),
    "maximum of padded windows": (
        lambda x: fn.max_pool(x, 3, 2, 1),
        lambda x: windows(x, (3, 3), 1, -np.inf)[:, :, ::2, ::2].max((-1, -2)),
        [(2, 3, 11, 20)],
    ),
    "mean of windows": (lambda x: fn.avg_pool(x, 2), lambda x: windows(x, (2, 2))[:, :, ::2, ::2].mean((-1, -2)), [(2, 3, 8, 34)]),
    "cumulative sum": (lambda x: fn.cumsum(x, 1), lambda x: np.cumsum(x, 1), [(5, 301)]),
    "cumulative maximum down columns, from the end": (
        lambda x: fn.cummax(x, 0, reverse=True),
        lambda x: np.maximum.accumulate(x[::-1], 0)[::-1],
        [(40, 33)],
    ),
    "a sum from the end, as two flips": (
        lambda x: fn.flip(fn.cumsum(fn.flip(x, 1), 1), 1),
        lambda x: np.cumsum(x[:, ::-1], 1)[:, ::-1],
        [(300, 301)],
    ),
    "the sum so far, as a share": (
        lambda x: fn.cumsum(fn.exp(x), 1) / fn.exp(x).sum(1, keepdims=True),
        lambda x: np.cumsum(np.exp(x), 1) / np.exp(x).sum(1, keepdims=True),
        [(6, 64)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_computes_what_numpy_computes(name: str) -> None:
    ours, theirs, shapes = CASES[name]
    inputs = [tensor("xw"[n], shape) for n, shape in enumerate(shapes)]
    best = optimize(ours(*inputs), target="cpu", budget="1s", store=":memory:")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    expected = theirs(*(a.astype(np.float64) for a in arrays))
    np.testing.assert_allclose(best(*arrays), expected, rtol=2e-5, atol=1e-4)
