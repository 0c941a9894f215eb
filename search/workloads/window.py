"""Rows over windows and prefixes: convolutions, pooling, scans."""

from __future__ import annotations

from eqsat import numpy_like as np
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
                 lambda x, w: np.depthwise_conv(x, w, padding=1),
                 lambda t, x, w: t.nn.functional.conv2d(x, w[:, None], padding=1, groups=256), goal=2.94),
        Workload("maxpool_relu_n64c128_112_f32", specs("f32", x=(64, 128, 112, 112)),
                 lambda x: np.relu(np.max_pool(x, 2)),
                 lambda t, x: t.relu(t.nn.functional.max_pool2d(x, 2)), goal=1.0),
        Workload("convT3d_f32", specs("f32", x=(16, 32, 32, 32, 32), w=(32, 64, 3, 3, 3)),
                 lambda x, w: np.conv_transpose(x, w),
                 lambda t, x, w: t.nn.functional.conv_transpose3d(x, w), bound="arithmetic", goal=3.44),
        Workload("cumsum_4096x16384_f32", specs("f32", x=(4096, 16384)), lambda x: np.cumsum(x, 1), lambda t, x: x.cumsum(1), goal=1.11),
    ]  # fmt: skip
