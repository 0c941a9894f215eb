"""Rows around matrix products: plain, batched, with prologues and epilogues, few rows and many."""

from __future__ import annotations

from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.search.workloads.workload import Workload, rms, rms_torch, specs

_FEW = 64  # rows up to which a product is limited by reading the weights


def gemm(
    m: int, n: int, k: int, dtype: str = "bf16", device: str = "cuda", goal: float | None = None, name: str | None = None
) -> Workload:
    """Return x[m, k] @ w[k, n]."""
    return Workload(
        name or f"gemm_{m}x{n}x{k}_{dtype}", specs(dtype, x=(m, k), w=(k, n)),
        lambda x, w: x @ w, lambda t, x, w: x @ w, device=device, bound="arithmetic", goal=goal,
    )  # fmt: skip


def rmsnorm_matmul(
    m: int, k: int = 4096, n: int = 4096, dtype: str = "bf16", prefix: str = "rmsnorm_matmul", goal: float | None = None
) -> Workload:
    """Return (rms(x)·g) @ w."""
    return Workload(
        f"{prefix}_{m}x{k}x{n}_{dtype}", specs(dtype, x=(m, k), g=(k,), w=(k, n)),
        lambda x, g, w: (rms(x) * g) @ w, lambda t, x, g, w: (rms_torch(t, x) * g) @ w, bound=_bound(m), goal=goal,
    )  # fmt: skip


def gated_mlp(
    m: int, k: int = 4096, n: int = 11008, dtype: str = "bf16", prefix: str = "gated_mlp", goal: float | None = None
) -> Workload:
    """Return silu(x @ a)·(x @ b)."""
    return Workload(
        f"{prefix}_{m}x{k}x{n}_{dtype}", specs(dtype, x=(m, k), a=(k, n), b=(k, n)),
        lambda x, a, b: np.silu(x @ a) * (x @ b), lambda t, x, a, b: t.nn.functional.silu(x @ a) * (x @ b),
        bound=_bound(m), goal=goal,
    )  # fmt: skip


def lora(
    m: int, k: int = 4096, n: int = 4096, rank: int = 16, dtype: str = "bf16", prefix: str = "lora", goal: float | None = None
) -> Workload:
    """Return x @ w + (x @ a) @ b."""
    return Workload(
        f"{prefix}_{m}x{k}x{n}_r{rank}_{dtype}", specs(dtype, x=(m, k), w=(k, n), a=(k, rank), b=(rank, n)),
        lambda x, w, a, b: x @ w + (x @ a) @ b, lambda t, x, w, a, b: x @ w + (x @ a) @ b, bound=_bound(m), goal=goal,
    )  # fmt: skip


def workloads() -> list[Workload]:
    """Return the rows."""
    b, f = "bf16", "f32"
    return [
        gemm(2048, 2048, 2048, goal=1.03), gemm(4096, 4096, 4096, goal=1.01), gemm(8192, 8192, 8192, goal=1.03),
        gemm(16, 14336, 4096, goal=1.34, name="gemm_16x4096x14336_bf16"), gemm(1024, 11008, 4096, goal=1.04),
        gemm(4096, 4096, 4096, f, goal=2.15, name="gemm_4096x4096x4096_fp32"),
        gemm(8192, 8192, 128, goal=1.2, name="gemm_8192x128x8192_bf16"), gemm(256, 256, 524288, goal=1.11),
        Workload("gemm_bias_gelu_4096x16384x4096_bf16", specs(b, x=(4096, 4096), w=(4096, 16384), c=(16384,)),
                 lambda x, w, c: np.gelu(x @ w + c, approximate="tanh"),
                 lambda t, x, w, c: t.nn.functional.gelu(x @ w + c, approximate="tanh"), bound="arithmetic", goal=1.15),
        Workload("bmm_64x1024x1024x1024_bf16", specs(b, x=(64, 1024, 1024), w=(64, 1024, 1024)),
                 lambda x, w: x @ w, lambda t, x, w: x @ w, bound="arithmetic", goal=1.03),
        rmsnorm_matmul(1, goal=1.64), rmsnorm_matmul(16, goal=1.74), rmsnorm_matmul(4096, goal=1.07),
        Workload("rmsnorm_matmul_silu_4096x4096x8192_bf16", specs(b, x=(4096, 4096), g=(4096,), w=(4096, 8192)),
                 lambda x, g, w: np.silu((rms(x) * g) @ w),
                 lambda t, x, g, w: t.nn.functional.silu((rms_torch(t, x) * g) @ w), bound="arithmetic"),
        gated_mlp(8, goal=1.28), gated_mlp(16, goal=1.26), gated_mlp(4096, goal=1.11), lora(16, goal=2.13), lora(4096, goal=1.16),
        Workload("ab_plus_ac_4096_bf16", specs(b, a=(4096, 4096), b=(4096, 4096), c=(4096, 4096)),
                 lambda a, b, c: a @ b + a @ c, lambda t, a, b, c: a @ b + a @ c, bound="arithmetic", goal=1.92),
        Workload("llama_layer_decode_b8_qkv_4096x6144_bf16", specs(b, x=(8, 4096), g=(4096,), w=(4096, 6144)),
                 lambda x, g, w: (rms(x) * g) @ w, lambda t, x, g, w: (rms_torch(t, x) * g) @ w, goal=1.66),
        Workload("kb_l2_99_matmul_gelu_softmax_f32", specs(f, x=(1024, 8192), w=(8192, 8192), c=(8192,)), _linear_gelu_softmax,
                 _linear_gelu_softmax_torch, bound="arithmetic", goal=1.95),
        Workload("kb_l1_6_gemm_256x256x524288_f32", specs(f, x=(256, 524288), w=(524288, 256)), lambda x, w: x @ w,
                 lambda t, x, w: x @ w, bound="arithmetic", goal=1.86),
        Workload("matmul_chain_vec_4096_bf16", specs(b, a=(4096, 4096), b=(4096, 4096), v=(4096,)),
                 lambda a, b, v: (a @ b) @ v, lambda t, a, b, v: (a @ b) @ v, bound="algebra", goal=9.71),
        Workload("linear_sum_1024x8192x8192_f32", specs(f, x=(1024, 8192), w=(8192, 8192), c=(8192,)),
                 lambda x, w, c: (x @ w + c).sum(-1), lambda t, x, w, c: (x @ w + c).sum(-1), bound="algebra", goal=34.01),
        Workload("chain_4096x64x4096x4096_f16", specs("f16", a=(4096, 64), b=(64, 4096), c=(4096, 4096)),
                 lambda a, b, c: (a @ b) @ c, lambda t, a, b, c: (a @ b) @ c, bound="algebra", goal=9.31),
        Workload("kb_l2_14_gemm_divide_sum_scale_f32", specs(f, x=(1024, 8192), w=(8192, 8192)),
                 lambda x, w: ((x @ w.mT) / 2.0).sum(1, keepdims=True) * 1.5,
                 lambda t, x, w: t.sum((x @ w.T) / 2, dim=1, keepdim=True) * 1.5, bound="algebra", goal=34.57),
    ]  # fmt: skip


def _bound(rows: int) -> str:
    return "arithmetic" if rows > _FEW else "memory"


def _linear_gelu_softmax(x: Array, w: Array, c: Array) -> Array:
    return np.softmax(np.gelu(x @ w.mT + c))


def _linear_gelu_softmax_torch(torch: Any, x: Any, w: Any, c: Any) -> Any:
    return torch.softmax(torch.nn.functional.gelu(torch.nn.functional.linear(x, w, c)), 1)
