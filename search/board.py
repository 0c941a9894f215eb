"""The board: workloads by name, each as an expression for eqsat and as PyTorch code for its baseline.

Shapes and meanings follow the public benchmarks the names come from; `rms(x)` is x·rsqrt(mean(x²)+1e-6). Larger is not
better: a row is compared with its own baseline in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.ir import Program
from eqsat.trace import tensor, to_program

Spec = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the board.

    Parameters
    ----------
    name : str
    inputs : tuple of (name, shape, dtype)
    expression : callable
        Takes traced arrays.
    baseline : callable
        Takes the torch module and torch tensors.
    device : {"cuda", "cpu"}
        Where the row belongs by its size.
    bound : {"memory", "arithmetic", "algebra"}
        What limits it; "algebra" rows are won by rewriting and are left out of means.
    """

    name: str
    inputs: tuple[Spec, ...]
    expression: Callable[..., Array]
    baseline: Callable[..., Any]
    device: str = "cuda"
    bound: str = "memory"

    def program(self) -> Program:
        """Return the program, its inputs in the row's order."""
        inputs = [tensor(n, shape, dtype) for n, shape, dtype in self.inputs]
        return to_program(self.expression(*inputs), inputs=inputs)


def _rms(x: Array) -> Array:
    return x * np.rsqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def _rms_torch(torch: Any, x: Any) -> Any:
    return x * torch.rsqrt(torch.mean(x * x, -1, keepdim=True) + 1e-6)


def _gelu_fused(x: Array, y: Array, r: Array) -> Array:
    return np.gelu(x * 1.7 + 0.3, approximate="tanh") * y + r


def _gelu_fused_torch(torch: Any, x: Any, y: Any, r: Any) -> Any:
    return torch.nn.functional.gelu(x * 1.7 + 0.3, approximate="tanh") * y + r


def _memory_rows() -> list[Workload]:
    b = "bf16"
    return [
        Workload("softmax_8192x8192_bf16", (("x", (8192, 8192), b),), np.softmax, lambda t, x: t.softmax(x, -1)),
        Workload("rmsnorm_16384x4096_bf16", (("x", (16384, 4096), b), ("g", (4096,), b)), lambda x, g: _rms(x) * g,
                 lambda t, x, g: _rms_torch(t, x) * g),
        Workload("layernorm_gelu_res_16384x4096_bf16",
                 (("x", (16384, 4096), b), ("g", (4096,), b), ("c", (4096,), b), ("r", (16384, 4096), b)),
                 lambda x, g, c, r: np.gelu(np.layer_norm(x, g, c)) + r,
                 lambda t, x, g, c, r: t.nn.functional.gelu(t.nn.functional.layer_norm(x, (4096,), g, c, 1e-5)) + r),
        Workload("swiglu_act_16384x11008_bf16", (("x", (16384, 11008), b), ("y", (16384, 11008), b)),
                 lambda x, y: np.silu(x) * y, lambda t, x, y: t.nn.functional.silu(x) * y),
        Workload("colsum_16384x8192_f32", (("x", (16384, 8192), "f32"),), lambda x: x.sum(0), lambda t, x: x.sum(0)),
        Workload("transpose_16384x8192_f32", (("x", (16384, 8192), "f32"),), lambda x: x.mT,
                 lambda t, x: x.mT.contiguous()),
        Workload("copy_1GiB", (("x", (16384, 16384), "f32"),), lambda x: x * 1.0, lambda t, x: x.clone()),
        Workload("mirage_ntrans_64x4096_f16", (("h", (64, 4096), "f16"), ("x", (64, 4096), "f16"), ("a", (64, 4096), "f16")),
                 lambda h, x, a: _ntrans(h, x, a), lambda t, h, x, a: _ntrans_torch(t, h, x, a)),
    ]  # fmt: skip


def _unit(x: Array) -> Array:
    return x * np.rsqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _ntrans(h: Array, x: Array, a: Array) -> Array:
    u = _unit(h)
    return _unit(u + a * (_unit(x) - u))


def _ntrans_torch(torch: Any, h: Any, x: Any, a: Any) -> Any:
    def unit(v: Any) -> Any:
        return v * torch.rsqrt((v * v).sum(-1, keepdim=True) + 1e-6)

    u = unit(h)
    return unit(u + a * (unit(x) - u))


def _gemm(m: int, n: int, k: int, dtype: str = "bf16", device: str = "cuda") -> Workload:
    return Workload(
        f"gemm_{m}x{n}x{k}_{dtype}", (("x", (m, k), dtype), ("w", (k, n), dtype)),
        lambda x, w: x @ w, lambda t, x, w: x @ w, device=device, bound="arithmetic",
    )  # fmt: skip


def _rmsnorm_matmul(m: int, n: int = 4096, k: int = 4096, dtype: str = "bf16", prefix: str = "rmsnorm_matmul") -> Workload:
    return Workload(
        f"{prefix}_{m}x{k}x{n}_{dtype}", (("x", (m, k), dtype), ("g", (k,), dtype), ("w", (k, n), dtype)),
        lambda x, g, w: (_rms(x) * g) @ w, lambda t, x, g, w: (_rms_torch(t, x) * g) @ w,
        bound="arithmetic" if m > 64 else "memory",
    )  # fmt: skip


def _gated_mlp(m: int, k: int = 4096, n: int = 11008) -> Workload:
    return Workload(
        f"gated_mlp_{m}x{k}x{n}", (("x", (m, k), "bf16"), ("a", (k, n), "bf16"), ("b", (k, n), "bf16")),
        lambda x, a, b: np.silu(x @ a) * (x @ b), lambda t, x, a, b: t.nn.functional.silu(x @ a) * (x @ b),
        bound="arithmetic" if m > 64 else "memory",
    )  # fmt: skip


def _lora(m: int, k: int = 4096, n: int = 4096, rank: int = 16) -> Workload:
    return Workload(
        f"lora_{m}x{k}x{n}_r{rank}_bf16",
        (("x", (m, k), "bf16"), ("w", (k, n), "bf16"), ("a", (k, rank), "bf16"), ("b", (rank, n), "bf16")),
        lambda x, w, a, b: x @ w + (x @ a) @ b, lambda t, x, w, a, b: x @ w + (x @ a) @ b,
        bound="arithmetic" if m > 64 else "memory",
    )  # fmt: skip


def _contraction_rows() -> list[Workload]:
    b = "bf16"
    return [
        _gemm(2048, 2048, 2048), _gemm(4096, 4096, 4096), _gemm(8192, 8192, 8192), _gemm(16, 14336, 4096), _gemm(1024, 11008, 4096),
        Workload("gemm_bias_gelu_4096x16384x4096_bf16", (("x", (4096, 4096), b), ("w", (4096, 16384), b), ("c", (16384,), b)),
                 lambda x, w, c: np.gelu(x @ w + c, approximate="tanh"),
                 lambda t, x, w, c: t.nn.functional.gelu(x @ w + c, approximate="tanh"), bound="arithmetic"),
        Workload("bmm_64x1024x1024x1024_bf16", (("x", (64, 1024, 1024), b), ("w", (64, 1024, 1024), b)),
                 lambda x, w: x @ w, lambda t, x, w: x @ w, bound="arithmetic"),
        _rmsnorm_matmul(1), _rmsnorm_matmul(16), _rmsnorm_matmul(4096),
        Workload("rmsnorm_matmul_silu_4096x4096x8192_bf16", (("x", (4096, 4096), b), ("g", (4096,), b), ("w", (4096, 8192), b)),
                 lambda x, g, w: np.silu((_rms(x) * g) @ w),
                 lambda t, x, g, w: t.nn.functional.silu((_rms_torch(t, x) * g) @ w), bound="arithmetic"),
        _gated_mlp(8), _gated_mlp(16), _gated_mlp(4096), _lora(16), _lora(4096),
        Workload("ab_plus_ac_4096_bf16", (("a", (4096, 4096), b), ("b", (4096, 4096), b), ("c", (4096, 4096), b)),
                 lambda a, b, c: a @ b + a @ c, lambda t, a, b, c: a @ b + a @ c, bound="arithmetic"),
        Workload("matmul_chain_vec_4096_bf16", (("a", (4096, 4096), b), ("b", (4096, 4096), b), ("v", (4096,), b)),
                 lambda a, b, v: (a @ b) @ v, lambda t, a, b, v: (a @ b) @ v, bound="algebra"),
        Workload("linear_sum_1024x8192x8192_f32", (("x", (1024, 8192), "f32"), ("w", (8192, 8192), "f32"), ("c", (8192,), "f32")),
                 lambda x, w, c: (x @ w + c).sum(-1), lambda t, x, w, c: (x @ w + c).sum(-1), bound="algebra"),
        Workload("chain_4096x64x4096x4096_f16", (("a", (4096, 64), "f16"), ("b", (64, 4096), "f16"), ("c", (4096, 4096), "f16")),
                 lambda a, b, c: (a @ b) @ c, lambda t, a, b, c: (a @ b) @ c, bound="algebra"),
    ]  # fmt: skip


def _weigh(scores: Array, v: Array) -> Array:
    return np.softmax(scores * (1 / math.sqrt(v.shape[-1]))) @ v


def _causal(q: Array, k: Array, v: Array) -> Array:
    n = q.shape[-2]
    seen = np.iota(n).reshape(1, n) <= np.iota(n).reshape(n, 1)
    return _weigh(np.where(seen, q @ k.mT, float("-inf")), v)


def _grouped(q: Array, k: Array, v: Array) -> Array:
    """Each of k's and v's heads serves several of q's, one position at a time."""
    batch, heads, _, width = q.shape
    mine = q.reshape(batch, k.shape[1], heads // k.shape[1], width)
    return _weigh(mine @ k.mT, v).reshape(q.shape)


def _unit_heads(x: Array) -> Array:
    return (x * np.rsqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)).astype("bf16")


def _unit_heads_torch(torch: Any, x: Any) -> Any:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def _attention_rows() -> list[Workload]:
    def row(name: str, shapes: Sequence[tuple[int, ...]], ours: Any, theirs: Any, bound: str = "arithmetic") -> Workload:
        return Workload(name, tuple((n, s, "bf16") for n, s in zip("qkv", shapes, strict=True)), ours, theirs, bound=bound)

    def attend(t: Any) -> Any:
        return t.nn.functional.scaled_dot_product_attention

    short, long = (4, 32, 2048, 128), (4, 32, 4096, 128)
    cached = (8, 8, 8192, 128)
    return [
        row("attention_4x32x2048x128_bf16", [short] * 3, lambda q, k, v: _weigh(q @ k.mT, v), lambda t, q, k, v: attend(t)(q, k, v)),
        row("attention_causal_4x32x4096x128_bf16", [long] * 3, _causal, lambda t, q, k, v: attend(t)(q, k, v, is_causal=True)),
        row("attention_qk_norm_2x32x2048x128_bf16", [(2, 32, 2048, 128)] * 3,
            lambda q, k, v: _weigh(_unit_heads(q) @ _unit_heads(k).mT, v),
            lambda t, q, k, v: attend(t)(_unit_heads_torch(t, q), _unit_heads_torch(t, k), v)),
        row("attention_decode_8x64of8x8192x128_bf16", [(8, 64, 1, 128), cached, cached], _grouped,
            lambda t, q, k, v: attend(t)(q, k, v, enable_gqa=True), bound="memory"),
    ]  # fmt: skip


def _cpu_rows() -> list[Workload]:
    f = "f32"
    shape = (512, 512)
    return [
        *(_gemm(n, n, n, f, device="cpu") for n in (512, 1024, 2048)),
        Workload("gelu_fused_512x512_f32", (("x", shape, f), ("y", shape, f), ("r", shape, f)), _gelu_fused, _gelu_fused_torch,
                 device="cpu"),
        Workload("softmax_1024x1024_f32", (("x", (1024, 1024), f),), np.softmax, lambda t, x: t.softmax(x, -1), device="cpu"),
        Workload("rmsnorm_matmul_64x512x1024_f32", (("x", (64, 512), f), ("g", (512,), f), ("w", (512, 1024), f)),
                 lambda x, g, w: (_rms(x) * g) @ w, lambda t, x, g, w: (_rms_torch(t, x) * g) @ w, device="cpu"),
        Workload("matmul_chain_vec_1024_f32", (("a", (1024, 1024), f), ("b", (1024, 1024), f), ("v", (1024,), f)),
                 lambda a, b, v: (a @ b) @ v, lambda t, a, b, v: (a @ b) @ v, device="cpu", bound="algebra"),
    ]  # fmt: skip


def board(device: str) -> tuple[Workload, ...]:
    """Return the rows for "cuda" or "cpu"."""
    return tuple(w for w in (*_memory_rows(), *_contraction_rows(), *_attention_rows(), *_cpu_rows()) if w.device == device)
