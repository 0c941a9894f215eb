"""Rows for one thread of a CPU."""

from __future__ import annotations

from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.search.workloads.contract import gemm
from eqsat.search.workloads.workload import Workload, rms, rms_torch, specs


def workloads() -> list[Workload]:
    """Return the rows."""
    f = "f32"
    square = (512, 512)
    return [
        *(gemm(n, n, n, f, device="cpu") for n in (512, 1024, 2048)),
        Workload("gelu_fused_512x512_f32", specs(f, x=square, y=square, r=square), _gelu_fused, _gelu_fused_torch, device="cpu"),
        Workload("softmax_1024x1024_f32", specs(f, x=(1024, 1024)), np.softmax, lambda t, x: t.softmax(x, -1), device="cpu"),
        Workload("rmsnorm_matmul_64x512x1024_f32", specs(f, x=(64, 512), g=(512,), w=(512, 1024)),
                 lambda x, g, w: (rms(x) * g) @ w, lambda t, x, g, w: (rms_torch(t, x) * g) @ w, device="cpu"),
        Workload("matmul_chain_vec_1024_f32", specs(f, a=(1024, 1024), b=(1024, 1024), v=(1024,)),
                 lambda a, b, v: (a @ b) @ v, lambda t, a, b, v: (a @ b) @ v, device="cpu", bound="algebra"),
    ]  # fmt: skip


def _gelu_fused(x: Array, y: Array, r: Array) -> Array:
    return np.gelu(x * 1.7 + 0.3, approximate="tanh") * y + r


def _gelu_fused_torch(torch: Any, x: Any, y: Any, r: Any) -> Any:
    return torch.nn.functional.gelu(x * 1.7 + 0.3, approximate="tanh") * y + r
