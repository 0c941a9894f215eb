"""Check a plan kernel by kernel on the data that the plan itself makes: for programs so deep that a bound on the whole says nothing.

Error bounds grow with each value that is stored and used again; after some layers they are infinite, and nothing could be
compared. One kernel's bound never grows: its inputs are taken as they lie in memory. That the kernels together are the program
is what the derivation and the comparison of the composed plan say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eqsat.codegen.kernel import KernelBinary
from eqsat.codegen.plan import Executable, Step
from eqsat.search.device import Check, Verdict
from eqsat.search.guarded import GuardedBuffer
from eqsat.search.verify import KERNEL, Suite, SuiteName, check_outputs, comparable, references

Launch = Callable[[Mapping[str, int]], None]  # takes the addresses of buffers by name, and waits for the end
SUITES: tuple[SuiteName, ...] = ("normal", "uniform")


def undecided(plan: Executable, verdict: Verdict) -> bool:
    """Whether all checks of a whole plan that could be made passed, but do not tell right from wrong; kernel by kernel they may."""
    return len(plan.steps) > 1 and all(c.passed for c in verdict.checks) and not verdict.ok


def check_steps(
    plan: Executable,
    verdict: Verdict,
    seed: int,
    load: Callable[[KernelBinary], Launch],
    address: Callable[[GuardedBuffer], int],
    xp: Any = np,
) -> Verdict:
    """Run a plan step by step and compare what each kernel wrote with its reference on what it read.

    Parameters
    ----------
    plan : Executable
    verdict : Verdict
        Of the checks of the whole, which passed.
    seed : int
        Of the inputs.
    load : callable
        Returns what launches a kernel.
    address : callable
        Of a buffer's first element.
    xp : module
        NumPy, or CuPy for a GPU.

    Returns
    -------
    Verdict
        With one more check for each suite, `worst` over all kernels. The power of these was tested when each kernel was measured.
    """
    launches = [load(s.binary) for s in plan.steps]
    checks: list[Check] = []
    for name in SUITES:
        suite = Suite(name, seed, plan.plan.program)
        found = list(_compared(plan, suite, launches, address, xp))
        failed = next((c for c in found if not c.passed), None)
        if failed is not None:
            return Verdict((*verdict.checks, failed))
        if found:
            checks.append(Check(f"{name}, kernel by kernel", True, max(c.worst for c in found), seed))
    return Verdict((*verdict.checks, *checks)) if checks else verdict


def _compared(
    plan: Executable, suite: Suite, launches: Sequence[Launch], address: Callable[[GuardedBuffer], int], xp: Any
) -> Iterator[Check]:
    """Yield the check of each kernel that can be compared; ends with the first that failed."""
    program = plan.plan.program
    drawn = suite.inputs(xp)
    buffers = {i.name: GuardedBuffer(i.shape, i.dtype, xp, is_input=xp is np) for i in program.inputs}
    for name, array in drawn.items():
        buffers[name].fill(array)
    last = {name: n for n, s in enumerate(plan.steps) for name in (*s.kernel.reads, *s.kernel.writes)}
    for n, (step, launch) in enumerate(zip(plan.steps, launches, strict=True)):
        kernel = step.kernel
        before = {name: buffers[name].array.copy() for name in kernel.reads}
        buffers |= {o.name: GuardedBuffer(o.shape, o.dtype, xp) for o in kernel.program.outputs}
        touched = {name: buffers[name] for name in (*kernel.reads, *kernel.writes)}
        launch({name: address(buffer) for name, buffer in touched.items()})
        for name in touched:
            if last[name] == n:
                del buffers[name]  # no later kernel needs its memory
        if damage := _damage(step, touched, before):
            yield Check(f"{suite.name}, kernel {kernel.name}", False, math.inf, suite.seed, damage)
            return
        expected = references(kernel.program, before, xp, rounding=KERNEL)
        if not comparable(expected):
            continue
        check = check_outputs([touched[name].array for name in kernel.writes], expected, suite, xp)
        yield Check(f"{suite.name}, kernel {kernel.name}", check.passed, check.worst, check.seed, check.note)
        if not check.passed:
            return


def _damage(step: Step, buffers: Mapping[str, GuardedBuffer], before: Mapping[str, Any]) -> str | None:
    for name, buffer in buffers.items():
        if not buffer.intact:
            return f"kernel {step.kernel.name!r} wrote outside the buffer {name!r}"
    return next(
        (f"kernel {step.kernel.name!r} changed {n!r}, which it reads" for n, a in before.items() if not buffers[n].equals(a)),
        None,
    )
