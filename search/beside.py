"""Time functions beside each other as Python calls them: on the same arrays, interleaved in random order, by the host's clock."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

from eqsat.search.device import Measurement
from eqsat.search.statistics import interleaved, summarize

# A BLAS told to act as an older CPU is half as fast (measured: 125 against 240 GFLOP/s); comparisons with it mean nothing.
MISLEADING = ("OPENBLAS_CORETYPE", "MKL_DEBUG_CPU_TYPE", "MKL_CBWR", "ATEN_CPU_CAPABILITY")
_ATTEMPTS = 8  # at one undisturbed sample; on a busy machine a long call is never undisturbed


def misled() -> list[str]:
    """Return the variables of this environment that pin a library to slower code than the machine can run."""
    return [name for name in MISLEADING if name in os.environ]


def time_calls(
    functions: Sequence[Callable[[], Any]],
    *,
    rounds: int = 30,
    limit_s: float = 20.0,
    wait: Callable[[], object] = lambda: None,
) -> list[Measurement]:
    """Time each function round-robin in random order.

    Parameters
    ----------
    functions : sequence of callable
    rounds : int
        Samples of each, unless `limit_s` ends first (after at least five).
    limit_s : float
    wait : callable
        Called after each function, inside the timed stretch: waits until a device is done.

    Notes
    -----
    A sample in which the system took the CPU away is thrown away, and counted in `rejected`, if one of eight calls in a row
    can do without.
    """
    for f in functions:
        for _ in range(3):
            f()
            wait()
    samples: list[list[float]] = [[] for _ in functions]
    rejected = [0] * len(functions)
    deadline_s = time.monotonic() + limit_s
    for n, index in enumerate(interleaved(len(functions), rounds)):
        if n % len(functions) == 0 and n >= 5 * len(functions) and time.monotonic() > deadline_s:
            break
        for attempt in range(_ATTEMPTS):
            passed_ns, disturbed = _sample(functions[index], wait)
            if not disturbed or attempt == _ATTEMPTS - 1:
                samples[index].append(passed_ns)
                break
            rejected[index] += 1
    return [summarize(s, rejected=r) for s, r in zip(samples, rejected, strict=True)]


def _sample(f: Callable[[], Any], wait: Callable[[], object]) -> tuple[float, bool]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    start = time.perf_counter_ns()
    f()
    wait()
    passed_ns = time.perf_counter_ns() - start
    return float(passed_ns), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw != before
