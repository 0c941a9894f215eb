"""What a schedule is expected to take: the order in which schedules are tried, and the choice when nothing is measured.

Not a bound: weights and factors were set by hand from measurements on one AVX-512 core, and only their order matters.
"""

from __future__ import annotations

from collections.abc import Iterable

from eqsat.codegen.cpu.bounds import memory_bound_ns
from eqsat.codegen.kernel import Rates
from eqsat.ir import Program
from eqsat.ops import Kind

_WEIGHTS = {
    "div": 6, "recip": 6, "sqrt": 8, "rsqrt": 12, "exp": 18, "log": 22, "tanh": 28, "erf": 45, "sigmoid": 26,
    "sin": 120, "cos": 120, "pow": 250, "where": 2, "maximum": 3, "minimum": 3, "max": 3, "min": 3, "argmax": 8, "argmin": 8,
}  # fmt: skip
_WIDTH = {16: 2.0, 32: 1.2, 64: 1.0}  # by bytes of a vector
_GATHER_NS = 0.6  # for one element that is not read as part of a vector
_FORK_NS = 3000.0  # to start and join the threads


def work(program: Program) -> float:
    """Return the arithmetic of a program in multiply-adds: dear functions weigh what their polynomials cost."""
    total = 0.0
    for e in program.walk():
        if e.row.kind is Kind.POINTWISE:
            total += e.type.elements * _WEIGHTS.get(e.op, 1)
        elif e.row.kind is Kind.REDUCE:
            total += e.args[0].type.elements * _WEIGHTS.get(e.op, 1)
    return total


def streaming_ns(
    program: Program, rates: Rates, *, vector_bytes: int, unroll: int, threads: int, passes: float = 1.0, gathered: int = 0
) -> float:
    """Return the expected time of a kernel that streams: memory for each pass, arithmetic, and what is read in pieces."""
    arithmetic = 2 * work(program) / rates.rate("f32") * _WIDTH[vector_bytes] * (1.0 + 0.1 / unroll)
    memory = memory_bound_ns(program, rates) * passes * (1.0 + 0.1 * (_WIDTH[vector_bytes] - 1.0) + 0.05 / unroll)
    return (
        shared(max(arithmetic, memory) + 0.2 * min(arithmetic, memory) + gathered * _GATHER_NS, threads, rates) + rates.launch_ns
    )


def shared(time_ns: float, threads: int, rates: Rates) -> float:
    """Return the time when the work is shared among threads, if the schedule asks for that."""
    return time_ns if threads == 1 else time_ns / rates.cores + _FORK_NS


def up(count: int, steps: Iterable[int]) -> float:
    """Return by how much padding to whole blocks of each size in turn inflates `count`."""
    out = float(count)
    for step in steps:
        out = -(-out // step) * step
    return out / max(count, 1)
