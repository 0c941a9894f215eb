"""Workloads by name: the board, the sweeps, and programs of a user's own, each with PyTorch code for its baseline.

Shapes and meanings follow the public benchmarks the names come from. A row is compared with its own baseline in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eqsat.errors import UsageError
from eqsat.ir import Program
from eqsat.programfile import baseline_in, program_in
from eqsat.search.workloads import attention, contract, cpu, mirage, rows, sweeps, window
from eqsat.search.workloads.workload import Workload
from eqsat.trace import to_program

__all__ = ["SWEEPS", "Workload", "board", "workloads_of"]

SWEEPS: dict[str, Callable[[], list[Workload]]] = {
    "gemm": sweeps.gemm_shapes,
    "attention": sweeps.attention_shapes,
    "memory": sweeps.memory_kernels,
    "window": window.window_shapes,
}


def board(device: str) -> tuple[Workload, ...]:
    """Return the rows for "cuda" or "cpu"."""
    found = [w for room in (rows, contract, attention, window, mirage, cpu) for w in room.workloads()]
    return tuple(w for w in found if w.device == device)


def workloads_of(source: str, device: str) -> tuple[Workload, ...]:
    """Return the workloads that a bench run takes its rows from.

    Parameters
    ----------
    source : str
        "board"; "sweep-" and the name of a sweep; or FILE[:NAME], a program of the user's own.
    device : {"cuda", "cpu"}
    """
    if source == "board":
        return board(device)
    if source.startswith("sweep-"):
        name = source.removeprefix("sweep-")
        if name not in SWEEPS:
            raise UsageError(f"expected a sweep out of {', '.join(SWEEPS)}; got {name!r}")
        return tuple(w for w in SWEEPS[name]() if w.device == device)
    return (_own(source, device),)


def _own(what: str, device: str) -> Workload:
    """Return the workload of a file: its program, and its `baseline(torch, *inputs)` if it has one."""
    found = program_in(what)
    program = found if isinstance(found, Program) else to_program(found)
    inputs = tuple((i.name, i.shape, i.dtype.value) for i in program.inputs)
    stem = Path(what.rpartition(":")[0] if ":" in what else what).stem
    return Workload(stem, inputs, None, baseline_in(what), device=device, built=program)
