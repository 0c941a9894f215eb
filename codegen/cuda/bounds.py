"""Lower bounds shared by the CUDA families: what moving the bytes and loading the registers must take."""

from __future__ import annotations

from eqsat.codegen.kernel import Rates
from eqsat.codegen.printer import is_load
from eqsat.ir import Program


def traffic_ns(program: Program, rates: Rates) -> float:
    """Return the time to move each input that is read, and the output, once between memory and chip.

    Notes
    -----
    Memory turns around between reading and writing, so the reachable rate falls from `read` to `copy` as the share of writes
    grows to one half. Measured on an H200: 4437 GB/s reading, 4324 with a third of writes, 4152 with half. The cubic passes
    above all three, so the bound stays admissible between the two rates that are measured.
    """
    out = program.outputs[0].bytes
    moved = program.bytes
    if moved == 0:
        return rates.launch_ns
    share = min(2 * out / moved, 1.0)
    rate = rates.read - (rates.read - min(rates.copy, rates.read)) * share**3
    return max(moved / rate, rates.launch_ns)


def issue_ns(program: Program, rates: Rates) -> float:
    """Return the time for every load to reach registers from the nearest cache, once for each point of its own axes."""
    loaded = sum(e.type.elements * e.dtype.bytes for e in program.outputs[0].expr.walk() if is_load(e) and e.op == "read")
    return loaded / rates.issue
