"""Attention rows: whole, causal, naive, with normed queries and keys, grouped decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.search.workloads.workload import Workload, rms, rms_torch


def weigh(scores: Array, v: Array) -> Array:
    """Return softmax(scores / √d) @ v."""
    return np.softmax(scores * (1 / math.sqrt(v.shape[-1]))) @ v


def causal(q: Array, k: Array, v: Array) -> Array:
    """Return attention in which position i sees keys up to i."""
    n = q.shape[-2]
    seen = np.iota(n).reshape(1, n) <= np.iota(n).reshape(n, 1)
    return weigh(np.where(seen, q @ k.mT, float("-inf")), v)


def grouped(q: Array, k: Array, v: Array) -> Array:
    """Return attention of one position in which each of k's and v's heads serves several of q's."""
    batch, heads, _, width = q.shape
    mine = q.reshape(batch, k.shape[1], heads // k.shape[1], width)
    return weigh(mine @ k.mT, v).reshape(q.shape)


def attention(
    name: str,
    shapes: Sequence[tuple[int, ...]],
    ours: Callable[..., Array],
    theirs: Callable[..., Any],
    *,
    bound: str = "arithmetic",
    goal: float | None = None,
    others: Mapping[str, Callable[..., Any]] | None = None,
) -> Workload:
    """Return a row over q, k, v in bf16."""
    inputs = tuple((n, tuple(s), "bf16") for n, s in zip("qkv", shapes, strict=True))
    return Workload(name, inputs, ours, theirs, bound=bound, goal=goal, others=others or {})


def fused(**options: Any) -> dict[str, Callable[..., Any]]:
    """Return PyTorch's fused attention kernels, each alone, as further baselines."""

    def only(backend: str) -> Callable[..., Any]:
        def call(t: Any, q: Any, k: Any, v: Any) -> Any:
            with t.nn.attention.sdpa_kernel([getattr(t.nn.attention.SDPBackend, backend)]):
                return t.nn.functional.scaled_dot_product_attention(q, k, v, **options)

        return call

    return {"cuDNN": only("CUDNN_ATTENTION"), "flash": only("FLASH_ATTENTION")}


def sdpa(**options: Any) -> Callable[..., Any]:
    """Return PyTorch's attention, its own choice of kernel."""
    return lambda t, q, k, v: t.nn.functional.scaled_dot_product_attention(q, k, v, **options)


def _unit_heads(x: Array) -> Array:
    return rms(x).astype("bf16")


def workloads() -> list[Workload]:
    """Return the rows."""
    long, wide, short = (4, 32, 4096, 128), (2, 16, 8192, 64), (4, 32, 2048, 128)
    cached = (8, 8, 8192, 128)
    return [
        attention("attn_b4h32s4096d128", [long] * 3, lambda q, k, v: weigh(q @ k.mT, v), sdpa(), goal=1.05, others=fused()),
        attention("attn_b4h32s4096d128_causal", [long] * 3, causal, sdpa(is_causal=True), goal=1.15, others=fused(is_causal=True)),
        attention("attn_b2h16s8192d64", [wide] * 3, lambda q, k, v: weigh(q @ k.mT, v), sdpa(), goal=1.05, others=fused()),
        attention("attn_naive_b4h32s2048d128", [short] * 3, lambda q, k, v: weigh(q @ k.mT, v),
                  lambda t, q, k, v: t.softmax(q @ k.mT * (1 / math.sqrt(128)), -1) @ v, goal=1.95),
        attention("qknorm_attn_b2h32s2048d128", [(2, 32, 2048, 128)] * 3,
                  lambda q, k, v: weigh(_unit_heads(q) @ _unit_heads(k).mT, v),
                  lambda t, q, k, v: sdpa()(t, rms_torch(t, q), rms_torch(t, k), v), goal=1.17),
        attention("gqa_decode_b8_h64_kv8_s8192_d128", [(8, 64, 1, 128), cached, cached], grouped, sdpa(enable_gqa=True),
                  bound="memory", goal=1.19),
    ]  # fmt: skip
