"""Rows over windows and prefixes: convolutions, pooling, scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.search.workloads.workload import Workload, specs


def workloads() -> list[Workload]:
    """Return the rows."""
    image = (64, 128, 56, 56)
    return [
        Workload("conv3x3_n64c128_56_bf16_relu", specs("bf16", x=image, w=(128, 128, 3, 3)),
                 lambda x, w: np.relu(np.conv(x, w, padding=1)),
                 lambda t, x, w: t.relu(t.nn.functional.conv2d(x, w, padding=1)), bound="arithmetic", goal=1.40),
        Workload("conv3x3_n64c128_56_f32_relu", specs("f32", x=image, w=(128, 128, 3, 3)),
                 lambda x, w: np.relu(np.conv(x, w, padding=1)),
                 lambda t, x, w: t.relu(t.nn.functional.conv2d(x, w, padding=1)), bound="arithmetic", goal=1.89),
        Workload("dwconv3x3_n64c256_112_f32", specs("f32", x=(64, 256, 112, 112), w=(256, 3, 3)),
                 lambda x, w: np.depthwise_conv(x, w, padding=1), _depthwise(padding=1), goal=2.94),
        Workload("maxpool_relu_n64c128_112_f32", specs("f32", x=(64, 128, 112, 112)), lambda x: np.relu(np.max_pool(x, 2)),
                 lambda t, x: t.relu(t.nn.functional.max_pool2d(x, 2)), goal=1.0),
        Workload("convT3d_f32", specs("f32", x=(16, 32, 32, 32, 32), w=(32, 64, 3, 3, 3)), np.conv_transpose,
                 lambda t, x, w: t.nn.functional.conv_transpose3d(x, w), bound="arithmetic", goal=3.44),
        Workload("cumsum_4096x16384_f32", specs("f32", x=(4096, 16384)), lambda x: np.cumsum(x, 1), lambda t, x: x.cumsum(1), goal=1.11),
    ]  # fmt: skip


def _depthwise(**options: Any) -> Callable[..., Any]:
    """Return a convolution of each channel alone in PyTorch, in as many dimensions as the kernel has."""
    return lambda t, x, w: getattr(t.nn.functional, f"conv{w.ndim - 1}d")(x, w[:, None], groups=w.shape[0], **options)


def _causal_torch(t: Any, x: Any, w: Any) -> Any:
    return t.nn.functional.silu(_depthwise()(t, t.nn.functional.pad(x, (3, 0)), w))


def window_shapes() -> list[Workload]:
    """Return pooling, depthwise convolutions, and cumulative sums, products and maxima."""
    return [*_windows(), *_scans()]


def _windows() -> list[Workload]:
    """Return windows in one to three dimensions, with strides, paddings, dilations, of f32 and bf16."""
    found = []
    for dtype in ("f32", "bf16"):
        image, deep = (64, 128, 56, 56), (32, 192, 56, 56)
        found += [
            _pool("maxpool2", dtype, image, lambda x: np.max_pool(x, 2), "max_pool2d", kernel_size=2),
            _pool("maxpool3s2p1", dtype, (64, 64, 112, 112), lambda x: np.max_pool(x, 3, 2, 1), "max_pool2d", kernel_size=3, stride=2, padding=1),
            _pool("maxpool1d5", dtype, (64, 512, 4096), lambda x: np.max_pool(x, 5, 1, 2), "max_pool1d", kernel_size=5, stride=1, padding=2),
            _pool("avgpool3s1p1", dtype, image, lambda x: np.avg_pool(x, 3, 1, 1), "avg_pool2d", kernel_size=3, stride=1, padding=1),
            _pool("avgpool2_3d", dtype, (16, 64, 32, 64, 64), lambda x: np.avg_pool(x, 2), "avg_pool3d", kernel_size=2),
            _pool("avgpool7_odd", dtype, (64, 256, 55, 55), lambda x: np.avg_pool(x, 7, 1), "avg_pool2d", kernel_size=7, stride=1),
            _window("dw3x3", dtype, image, (128, 3, 3), lambda x, w: np.depthwise_conv(x, w, padding=1), padding=1),
            _window("dw5x5s2", dtype, (64, 128, 112, 112), (128, 5, 5), lambda x, w: np.depthwise_conv(x, w, 2, 2), stride=2, padding=2),
            _window("dw3x3d2", dtype, (64, 128, 64, 64), (128, 3, 3), lambda x, w: np.depthwise_conv(x, w, 1, 2, 2), padding=2, dilation=2),
            _window("dw7x7", dtype, deep, (192, 7, 7), lambda x, w: np.depthwise_conv(x, w, padding=3), padding=3),
            _window("dw3x3_odd", dtype, (64, 128, 55, 55), (128, 3, 3), lambda x, w: np.depthwise_conv(x, w, padding=1), padding=1),
            Workload(f"causal1d4_silu_{dtype}", specs(dtype, x=(8, 4096, 4096), w=(4096, 4)),
                     lambda x, w: np.silu(np.depthwise_conv(x, w, padding=((3, 0),))), _causal_torch),
        ]  # fmt: skip
    return found


def _pool(name: str, dtype: str, shape: tuple[int, ...], ours: Callable[..., Array], theirs: str, **options: Any) -> Workload:
    return Workload(f"{name}_{dtype}", specs(dtype, x=shape), ours, lambda t, x: getattr(t.nn.functional, theirs)(x, **options))


def _window(
    name: str, dtype: str, shape: tuple[int, ...], kernel: tuple[int, ...], ours: Callable[..., Array], **options: Any
) -> Workload:
    return Workload(f"{name}_{dtype}", specs(dtype, x=shape, w=kernel), ours, _depthwise(**options))


def _scans() -> list[Workload]:
    """Return scans of rows and columns, short and long, odd, from the end, masked."""
    f, b = "f32", "bf16"
    return [
        Workload("cumsum_rows_f32", specs(f, x=(8192, 8192)), lambda x: np.cumsum(x, 1), lambda t, x: x.cumsum(1)),
        Workload("cumsum_rows_bf16", specs(b, x=(8192, 16384)), lambda x: np.cumsum(x, 1), lambda t, x: x.cumsum(1)),
        Workload("cumsum_short_f32", specs(f, x=(262144, 256)), lambda x: np.cumsum(x, 1), lambda t, x: x.cumsum(1)),
        Workload("cumsum_long_f32", specs(f, x=(16, 4194304)), lambda x: np.cumsum(x, 1), lambda t, x: x.cumsum(1)),
        Workload("cumsum_odd_f32", specs(f, x=(4099, 16381)), lambda x: np.cumsum(x, 1), lambda t, x: x.cumsum(1)),
        Workload("cumsum_columns_f32", specs(f, x=(8192, 8192)), lambda x: np.cumsum(x, 0), lambda t, x: x.cumsum(0)),
        Workload("cumsum_between_f32", specs(f, x=(64, 1024, 1024)), lambda x: np.cumsum(x, 1), lambda t, x: x.cumsum(1)),
        Workload("cumsum_reverse_f32", specs(f, x=(4096, 16384)), lambda x: np.cumsum(x, 1, reverse=True),
                 lambda t, x: x.flip(1).cumsum(1).flip(1)),
        Workload("cumsum_masked_f32", specs(f, x=(4096, 16384), y=(4096, 16384)), lambda x, y: np.cumsum(np.where(y > 0, x, 0.0), 1),
                 lambda t, x, y: t.where(y > 0, x, 0.0).cumsum(1)),
        Workload("cumprod_rows_f32", specs(f, x=(8192, 8192)), lambda x: np.cumprod(x * 0.01 + 1, 1), lambda t, x: (x * 0.01 + 1).cumprod(1)),
        Workload("cummax_rows_f32", specs(f, x=(4096, 16384)), lambda x: np.cummax(x, 1), lambda t, x: x.cummax(1).values),
    ]  # fmt: skip
