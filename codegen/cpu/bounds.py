"""Times that no kernel can beat on a CPU: from bytes, arithmetic, and a launch.

A schedule may share the work among all cores, so every time but the launch's is divided by their number.
"""

from __future__ import annotations

from eqsat.codegen.kernel import Rates
from eqsat.codegen.problem import Contract, Problem
from eqsat.ir import Program
from eqsat.ops import Kind

# Multiplications and fused multiply-adds that `prelude.h` spends on one value, counted in its text: additions, comparisons
# and logic are left out, because some cores run them beside.
_PRODUCTS = {"exp": 9, "sigmoid": 9, "tanh": 9, "log": 12, "erf": 22, "sin": 24, "cos": 24, "pow": 50}


def memory_bound_ns(program: Program, rates: Rates) -> float:
    """Return the least time for one core to move the program's bytes.

    What the last-level cache may hold from the call before is charged at the rate of that cache, as the nearer ones are cold
    when a kernel is timed; only bytes beyond it are charged to memory, at the better of its two rates.
    """
    cached = min(program.bytes, rates.cache_bytes) if rates.cache_bytes else program.bytes
    return cached / (rates.cached or rates.issue) + (program.bytes - cached) / max(rates.read, rates.copy)


def products(program: Program) -> int:
    """Return the multiply-adds of the dear functions, each evaluated once for each element of its own axes."""
    nodes = (e for e in program.walk() if e.row.kind is Kind.POINTWISE)
    return sum(e.type.elements * _PRODUCTS.get(e.op, 0) for e in nodes)


def streaming_bound_ns(program: Program, rates: Rates) -> float:
    """Return the longest of the times of memory, of all arithmetic, of the dear functions' products, and of a launch."""
    rate = max(rate for _, rate in rates.flops)  # the least of the types that occur would not do: functions mix them
    arithmetic = max(program.flops, 2 * products(program)) / rate
    return max(memory_bound_ns(program, rates) / rates.cores, arithmetic / rates.cores, rates.launch_ns)


def contract_bound_ns(problem: Problem, rates: Rates) -> float:
    """Return the longest of the times of the multiply-adds, of the bytes, and of a launch."""
    assert isinstance(problem, Contract)
    wide = all(c.node.dtype.bytes == 8 for p in problem.parts for c in p.contractions)
    arithmetic = problem.flops / (rates.rate("f64") if wide else max(rate for _, rate in rates.flops))
    return max(arithmetic / rates.cores, memory_bound_ns(problem.program, rates) / rates.cores, rates.launch_ns)
