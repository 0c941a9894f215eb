"""Rows that memory limits: norms, softmax, losses, pointwise operations, sums and layout changes."""

from __future__ import annotations

from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.search.workloads.workload import Workload, rms, rms_torch, specs


def workloads() -> list[Workload]:
    """Return the rows."""
    b, f = "bf16", "f32"
    return [
        Workload("softmax_8192x8192_bf16", specs(b, x=(8192, 8192)), np.softmax, lambda t, x: t.softmax(x, -1), goal=2.13),
        Workload("rmsnorm_16384x4096_bf16", specs(b, x=(16384, 4096), g=(4096,)), lambda x, g: rms(x) * g,
                 lambda t, x, g: rms_torch(t, x) * g, goal=1.04),
        Workload("layernorm_gelu_res_16384x4096_bf16", specs(b, x=(16384, 4096), g=(4096,), c=(4096,), r=(16384, 4096)),
                 lambda x, g, c, r: np.gelu(np.layer_norm(x, g, c)) + r,
                 lambda t, x, g, c, r: t.nn.functional.gelu(t.nn.functional.layer_norm(x, (4096,), g, c, 1e-5)) + r, goal=1.57),
        Workload("swiglu_act_16384x11008_bf16", specs(b, x=(16384, 11008), y=(16384, 11008)), lambda x, y: np.silu(x) * y,
                 lambda t, x, y: t.nn.functional.silu(x) * y, goal=1.0),
        Workload("colsum_16384x8192_f32", specs(f, x=(16384, 8192)), lambda x: x.sum(0), lambda t, x: x.sum(0), goal=1.08),
        Workload("transpose_16384x8192_f32", specs(f, x=(16384, 8192)), lambda x: x.mT, lambda t, x: x.mT.contiguous(), goal=1.0),
        Workload("crossentropy_8192x32000_bf16", (("x", (8192, 32000), b), ("y", (8192,), "i64")), _cross_entropy,
                 lambda t, x, y: t.nn.functional.cross_entropy(x, y), goal=2.78, below={"y": 32000}),
        Workload("groupnorm_silu_32x320x64x64_bf16", specs(b, x=(32, 320, 64, 64), g=(320,), c=(320,)), _group_norm_silu,
                 lambda t, x, g, c: t.nn.functional.silu(t.nn.functional.group_norm(x, 32, g, c, 1e-5)), goal=1.96),
        Workload("copy_1GiB", specs(f, x=(16384, 16384)), lambda x: x * 1.0, lambda t, x: x.clone(), goal=1.01),
        Workload("kb_l1_23_softmax_4096x393216_f32", specs(f, x=(4096, 393216)), np.softmax, lambda t, x: t.softmax(x, -1), goal=1.48),
        Workload("kb_l1_36_rmsnorm_112x64x512x512_f32", specs(f, x=(112, 64, 512, 512)),
                 lambda x: x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-5),
                 lambda t, x: x / t.sqrt(t.mean(x**2, dim=1, keepdim=True) + 1e-5), goal=1.02),
        Workload("kb_l1_40_layernorm_16x64x256x256_f32", specs(f, x=(16, 64, 256, 256), g=(64, 256, 256), c=(64, 256, 256)),
                 lambda x, g, c: _normalized(x, (1, 2, 3), 1e-5) * g + c,
                 lambda t, x, g, c: t.nn.functional.layer_norm(x, (64, 256, 256), g, c, 1e-5), goal=2.09),
    ]  # fmt: skip


def _cross_entropy(x: Array, y: Array) -> Array:
    """Return the mean of lse(x_i) − x_i[y_i]; the label's logit is the one term of a sum that a mask leaves."""
    x = x.astype("f32")
    rows, classes = x.shape
    own = np.where(np.iota(classes).reshape(1, classes) == y.reshape(rows, 1), x, 0.0).sum(-1)
    return (np.logsumexp(x, axis=-1) - own).mean().astype("bf16")


def _normalized(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    centred = x - np.mean(x, axis=axes, keepdims=True)
    return centred * np.rsqrt(np.var(x, axis=axes, keepdims=True) + eps)


def _group_norm_silu(x: Array, g: Array, c: Array) -> Array:
    batch, channels, height, width = x.shape
    groups = 32
    y = _normalized(x.astype("f32").reshape(batch, groups, channels // groups, height, width), (2, 3, 4), 1e-5)
    y = y.reshape(batch, channels, height, width) * g.reshape(channels, 1, 1) + c.reshape(channels, 1, 1)
    return np.silu(y).astype("bf16")


def unit(x: Array) -> Array:
    """Return x over its length along the last axis."""
    return x * np.rsqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def unit_torch(torch: Any, x: Any) -> Any:
    """Return `unit` in PyTorch."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
