"""Rows with the programs and shapes of Mirage's evaluation (Wu et al., OSDI 2025), in f16."""

from __future__ import annotations

from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.search.workloads.contract import gated_mlp, lora, rmsnorm_matmul
from eqsat.search.workloads.rows import unit, unit_torch
from eqsat.search.workloads.workload import Workload, specs

_H = "f16"


def workloads() -> list[Workload]:
    """Return the rows."""
    return [
        *(rmsnorm_matmul(m, 4096, 6144, _H, "mirage_rmsnorm_linear", goal) for m, goal in ((2, 1.64), (16, 1.69), (32, 1.62))),
        gated_mlp(8, 4096, 4096, _H, "mirage_gated_mlp", 1.96),
        lora(8, 4096, 14336, 16, _H, "mirage_lora", 1.58),
        _attention(2, 2.57, "memory"), _attention(32, 4.34, "arithmetic"),
        Workload("mirage_ntrans_64x4096_f16", specs(_H, h=(64, 4096), x=(64, 4096), a=(64, 4096)), _ntrans, _ntrans_torch, goal=1.41),
    ]  # fmt: skip


def _attention(batch: int, goal: float, bound: str) -> Workload:
    return Workload(
        f"mirage_gqa_{batch}x256x64_kv4096_f16", specs(_H, q=(batch, 256, 64), k=(batch, 64, 4096), v=(batch, 4096, 64)),
        lambda q, k, v: np.softmax(q @ k) @ v, lambda t, q, k, v: t.softmax(q @ k, -1) @ v, bound=bound, goal=goal,
    )  # fmt: skip


def _ntrans(h: Array, x: Array, a: Array) -> Array:
    u = unit(h)
    return unit(u + a * (unit(x) - u))


def _ntrans_torch(torch: Any, h: Any, x: Any, a: Any) -> Any:
    u = unit_torch(torch, h)
    return unit_torch(torch, u + a * (unit_torch(torch, x) - u))
