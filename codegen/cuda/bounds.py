"""Lower bounds and models shared by the CUDA families: what moving the bytes and loading the registers takes."""

from __future__ import annotations

import math

from eqsat.codegen.kernel import Rates
from eqsat.codegen.printer import is_load
from eqsat.ir import Program


def traffic_ns(program: Program, rates: Rates) -> float:
    """Return the time to move each input that is read, and each output, once between memory and chip.

    Notes
    -----
    Memory turns around between reading and writing, so the reachable rate falls from `read` to `copy` as the share of writes
    grows to one half. Measured on an H200: 4437 GB/s reading, 4324 with a third of writes, 4152 with half. The cubic passes
    above all three, so the bound stays admissible between the two rates that are measured.
    """
    out = sum(o.bytes for o in program.outputs)
    moved = program.bytes
    if moved == 0:
        return rates.launch_ns
    share = min(2 * out / moved, 1.0)
    rate = rates.read - (rates.read - min(rates.copy, rates.read)) * share**3
    return max(moved / rate, rates.launch_ns)


def issue_ns(program: Program, rates: Rates) -> float:
    """Return the time for every load to reach registers from the nearest cache, once for each point of its own axes."""
    loaded = sum(e.type.elements * e.dtype.bytes for e in program.walk() if is_load(e) and e.op == "read")
    return loaded / rates.issue


def arithmetic_ns(program: Program, rates: Rates) -> float:
    """Return the time of the program's operations outside the tensor cores."""
    double = any(e.dtype.value == "f64" for e in program.walk())
    return program.arithmetic / rates.rate("f64" if double else "f32")


# Models: they order the schedules before any is measured, and choose where none can be. Each constant is a slope seen on an
# H200 (softmax, RMSNorm, copies, column sums); the exact values matter little, since what is measured overrides them.
ISSUE_BYTES_PER_PROCESSOR = 243.0  # per ns: 128 bytes a clock at 1.9 GHz, as in the rates of every target
L2_BYTES_PER_PROCESSOR = 128.0  # per ns, at the most: 64 bytes a clock at 2 GHz
IN_FLIGHT_BYTES = 32768.0  # for each multiprocessor: latency times bandwidth of HBM3e


def processors(rates: Rates) -> float:
    """Return the number of multiprocessors that the issue rate stands for."""
    return max(rates.issue / ISSUE_BYTES_PER_PROCESSOR, 1.0)


def latency_factor(rates: Rates, threads: float, bytes_each: float) -> float:
    """Return by how much a grid of `threads`, each with `bytes_each` in flight, falls short of filling memory's latency."""
    resident = min(threads / processors(rates), 2048.0)
    return max(1.0, IN_FLIGHT_BYTES / max(resident * bytes_each, 1.0))


def wave_factor(rates: Rates, blocks: float, per_processor: float) -> float:
    """Return the cost of a last, partly filled wave of blocks."""
    waves = blocks / (processors(rates) * per_processor)
    return math.ceil(waves) / waves if waves > 0 else 1.0
