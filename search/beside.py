"""Compare a plan with a caller's function as Python calls both: the same arrays, interleaved, by the host's clock."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eqsat.ir import Program
from eqsat.ops import Array
from eqsat.search.device import Measurement
from eqsat.search.guarded import held_dtype
from eqsat.search.statistics import interleaved, summarize
from eqsat.search.verify import PLAN, Suite, check_outputs, references
from eqsat.types import DType

# A BLAS told to act as an older CPU is half as fast (measured: 125 against 240 GFLOP/s); comparisons with it mean nothing.
MISLEADING = ("OPENBLAS_CORETYPE", "MKL_DEBUG_CPU_TYPE", "MKL_CBWR", "ATEN_CPU_CAPABILITY")
_ATTEMPTS = 8  # at one undisturbed sample; on a busy machine a long call is never undisturbed


def misled() -> list[str]:
    """Return the variables of this environment that pin a library to slower code than the machine can run."""
    return [name for name in MISLEADING if name in os.environ]


def difference(program: Program, inputs: Mapping[str, Array], found: object, xp: Any = np) -> str:
    """Return how the result of a caller's function differs from what the program computes, or "".

    Parameters
    ----------
    program : Program
    inputs : mapping of str to array
        What the function was called with.
    found : array or sequence of arrays
        What it returned: NumPy, CuPy or PyTorch.
    xp : module
        Where the comparison runs.
    """
    arrays = list(found) if isinstance(found, tuple | list) else [found]
    shapes = [tuple(getattr(a, "shape", ())) for a in arrays]
    expected = [o.shape for o in program.outputs]
    if shapes != expected:
        return f"it returns shapes {shapes}, the program {expected}"
    held = [_held(xp, a, o.dtype) for a, o in zip(arrays, program.outputs, strict=True)]
    check = check_outputs(held, references(program, inputs, xp, rounding=PLAN), Suite("normal", 0, program), xp)
    return check.note


def _held(xp: Any, array: Any, dtype: DType) -> Array:
    """Return an array of the caller's as `xp` holds its type; bfloat16 travels as bits."""
    torch = sys.modules.get("torch")  # optional dependency: there, if the array is its tensor
    if torch is not None and isinstance(array, torch.Tensor):
        array = array.detach().to(getattr(torch, dtype.numpy.name)).contiguous()
        array = array.view(torch.int16) if dtype is DType.BF16 else array
        array = np.asarray(array) if xp is np else xp.from_dlpack(array)
        return array.view(held_dtype(xp, dtype)) if dtype is DType.BF16 else array
    return xp.asarray(array)


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
