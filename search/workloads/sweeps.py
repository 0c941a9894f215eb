"""Sweeps: one kind of kernel over many shapes, to see where a family is behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.search.workloads.attention import attention, causal, fused, grouped, sdpa, weigh
from eqsat.search.workloads.contract import gemm
from eqsat.search.workloads.workload import Workload, rms, rms_torch, specs

# (columns, depth) of weights in open models: attention, projections and feed-forward layers of 7B to 70B parameters
_LAYERS = ((6144, 4096), (4096, 4096), (14336, 4096), (4096, 14336), (10240, 8192), (8192, 28672))
_TOKENS = (1, 16, 64, 256, 2048)
_SQUARES = (256, 512, 1024, 2048, 4096, 8192)
_RECTANGLES = (
    (1024, 4096, 1024), (4096, 1024, 4096), (2048, 8192, 2048), (8192, 2048, 1024), (512, 8192, 4096), (16384, 1024, 1024),
    (1024, 16384, 2048), (3072, 3072, 3072), (5120, 5120, 5120), (6144, 2048, 4096),
)  # fmt: skip
_ODD = ((1000, 1000, 1000), (1000, 3000, 2000), (200, 5000, 1000), (3000, 1504, 776), (1504, 6000, 4000), (1001, 1003, 1005))
_DEEP = ((128, 128, 65536), (256, 256, 65536), (512, 512, 32768), (64, 1024, 65536), (1024, 1024, 16384), (128, 4096, 16384))
_THIN = ((8192, 128, 8192), (8192, 64, 4096))


def gemm_shapes() -> list[Workload]:
    """Return bf16 products: powers of two, layers of language models, odd sizes, few rows, deep sums."""
    layers = [(t, n, k) for (n, k), t in itertools.product(_LAYERS, _TOKENS)]
    shapes = [*((n, n, n) for n in _SQUARES), *_RECTANGLES, *layers, *_ODD, *_DEEP, *_THIN]
    return [gemm(*shape) for shape in dict.fromkeys(shapes)]


def attention_shapes() -> list[Workload]:
    """Return attention over 16,384 positions in all, 2048 wide: heads of 64 to 256, causal or not; grouped decoding."""
    found = []
    for d, n, seen in itertools.product((64, 128, 256), (512, 1024, 2048, 4096, 8192, 16384), (False, True)):
        shape = (16384 // n, 2048 // d, n, d)
        ours: Callable[..., Array] = causal if seen else lambda q, k, v: weigh(q @ k.mT, v)
        options = {"is_causal": True} if seen else {}
        name = f"attn_b{shape[0]}h{shape[1]}s{n}d{d}{'_causal' if seen else ''}"
        found.append(attention(name, [shape] * 3, ours, sdpa(**options), others=fused(**options)))
    for batch, n in ((1, 8192), (8, 8192), (32, 4096)):
        cached = (batch, 8, n, 128)
        name = f"decode_b{batch}h64of8s{n}d128"
        found.append(
            attention(
                name,
                [(batch, 64, 1, 128), cached, cached],
                grouped,
                sdpa(enable_gqa=True),
                bound="memory",
                others=fused(enable_gqa=True),
            )
        )
    return found


Kernel = tuple[str, str, Callable[[int], dict[str, tuple[int, ...]]], Callable[..., Array], Callable[..., Any]]


def memory_kernels() -> list[Workload]:
    """Return twenty kernels that memory limits at 64 MB, 256 MB and 1 GiB of input."""
    found = []
    for (name, dtype, shapes, ours, theirs), megabytes in itertools.product(_kernels(), (64, 256, 1024)):
        elements = (megabytes << 20) // (2 if dtype == "bf16" else 4)
        found.append(Workload(f"{name}_{megabytes}M_{dtype}", specs(dtype, **shapes(elements)), ours, theirs))
    return found


def _kernels() -> list[Kernel]:
    def rows(columns: int, *names: str, count: int = 1) -> Callable[[int], dict[str, tuple[int, ...]]]:
        return lambda e: dict.fromkeys(names, (e // count // columns, columns))

    def with_vectors(columns: int) -> Callable[[int], dict[str, tuple[int, ...]]]:
        return lambda e: {"x": (e // columns, columns), "g": (columns,), "c": (columns,)}

    def channels(e: int) -> dict[str, tuple[int, ...]]:
        return {"x": (max(e // (256 * 4096), 1), 256, 64, 64)}

    b, f, x = "bf16", "f32", "x"
    return [
        ("copy", f, rows(4096, x), lambda x: x * 1.0, lambda t, x: x.clone()),
        ("add", b, rows(4096, x, "y", count=2), lambda x, y: x + y, lambda t, x, y: x + y),
        ("gelu", b, rows(4096, x), np.gelu, lambda t, x: t.nn.functional.gelu(x)),
        ("swiglu", b, rows(4096, x, "y", count=2), lambda x, y: np.silu(x) * y, lambda t, x, y: t.nn.functional.silu(x) * y),
        ("bias_relu", b, with_vectors(4096), lambda x, g, c: np.relu(x * g + c), lambda t, x, g, c: t.relu(x * g + c)),
        ("cast", f, rows(4096, x), lambda x: x.astype("bf16"), lambda t, x: x.to(t.bfloat16)),
        ("rmsnorm", b, rows(4096, x), rms, rms_torch),
        ("layernorm", b, with_vectors(2048), np.layer_norm, lambda t, x, g, c: t.nn.functional.layer_norm(x, x.shape[-1:], g, c, 1e-5)),
        ("softmax_short", b, rows(512, x), np.softmax, lambda t, x: t.softmax(x, -1)),
        ("softmax", b, rows(8192, x), np.softmax, lambda t, x: t.softmax(x, -1)),
        ("softmax_long", b, rows(131072, x), np.softmax, lambda t, x: t.softmax(x, -1)),
        ("logsumexp", b, rows(32768, x), lambda x: np.logsumexp(x, axis=-1), lambda t, x: x.logsumexp(-1)),
        ("rowsum", f, rows(4096, x), lambda x: x.sum(-1), lambda t, x: x.sum(-1)),
        ("colsum", f, rows(4096, x), lambda x: x.sum(0), lambda t, x: x.sum(0)),
        ("rowmax", f, rows(1024, x), lambda x: x.max(-1), lambda t, x: x.amax(-1)),
        ("argmax", f, rows(8192, x), lambda x: np.argmax(x, axis=-1), lambda t, x: x.argmax(-1)),
        ("sum", f, rows(4096, x), lambda x: x.sum(), lambda t, x: x.sum()),
        ("mse", f, rows(4096, x, "y", count=2), lambda x, y: ((x - y) * (x - y)).mean(), lambda t, x, y: t.nn.functional.mse_loss(x, y)),
        ("channel_norm", f, channels, _channel_norm, _channel_norm_torch),
        ("transpose", f, rows(4096, x), lambda x: x.mT, lambda t, x: x.mT.contiguous()),
    ]  # fmt: skip


def _channel_norm(x: Array) -> Array:
    return x * np.rsqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-5)


def _channel_norm_torch(torch: Any, x: Any) -> Any:
    return x * torch.rsqrt(torch.mean(x * x, 1, keepdim=True) + 1e-5)
