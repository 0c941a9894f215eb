"""Times that no kernel can beat on a CPU: from bytes, arithmetic, and a launch."""

from __future__ import annotations

from eqsat.codegen.kernel import Rates
from eqsat.codegen.problem import ContractProblem, Problem
from eqsat.ir import Program


def memory_bound_ns(program: Program, rates: Rates) -> float:
    """Return the least time to move the program's bytes.

    What a cache may hold from the call before is charged at `rates.issue`, the rate of loads from the nearest cache; only
    bytes beyond it are charged to memory, at the better of its two rates.
    """
    cached = min(program.bytes, rates.cache_bytes) if rates.cache_bytes else program.bytes
    return cached / rates.issue + (program.bytes - cached) / max(rates.read, rates.copy)


def streaming_bound_ns(program: Program, rates: Rates) -> float:
    """Return the longer of the times of memory and arithmetic, and at least the launch."""
    path = "f64" if any(e.dtype.value == "f64" for e in program.outputs[0].expr.walk()) else "f32"
    return max(memory_bound_ns(program, rates), program.flops / max(rates.rate(path), rates.rate("f32")), rates.launch_ns)


def contract_bound_ns(problem: Problem, rates: Rates) -> float:
    """Return the longest of the times of the multiply-adds, of the bytes, and of a launch."""
    assert isinstance(problem, ContractProblem)
    wide = any(c.node.dtype.bytes == 8 for c in problem.contractions)
    path = "f64" if wide else "f32"
    arithmetic = problem.flops / max(rates.rate(path), rates.rate("f32") if not wide else 0.0)
    return max(arithmetic, memory_bound_ns(problem.program, rates), rates.launch_ns)
