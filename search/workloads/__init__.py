"""The board: workloads by name, each as an expression for eqsat and as PyTorch code for its baseline.

Shapes and meanings follow the public benchmarks the names come from. A row is compared with its own baseline in the same run.
"""

from __future__ import annotations

from eqsat.search.workloads import attention, contract, cpu, mirage, rows, window
from eqsat.search.workloads.workload import Workload

__all__ = ["Workload", "board"]


def board(device: str) -> tuple[Workload, ...]:
    """Return the rows for "cuda" or "cpu"."""
    found = [w for room in (rows, contract, attention, window, mirage, cpu) for w in room.workloads()]
    return tuple(w for w in found if w.device == device)
