"""Check C kernels against the references of a program: poisoned outputs, guard bands, inputs left alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from eqsat.errorbound import Rounding
from eqsat.ir import Program
from eqsat.ops import Array
from eqsat.search.cpu_steps import Clock
from eqsat.search.device import Check, Verdict
from eqsat.search.faults import power
from eqsat.search.guarded import GuardedBuffer
from eqsat.search.verify import Prepared, check_outputs, prepare

# Above this many operations, or elements of an output or input, the suites "wide" and "special" are left out: a float64
# product of 2048³ takes a third of a second, and a suite several of them.
_QUICK_FLOPS = 2e9
_QUICK_ELEMENTS = 1 << 21
_REPEATS = 2  # runs of the last suite: a kernel that keeps state, or a race, shows up
_RUNS_TO_GIVE_UP = 2  # a single run may have met a context switch

Run = Callable[[Mapping[str, int]], None]


class Verifier:
    """Inputs, references and guarded buffers of one program, and the power of the check, found once."""

    def __init__(self, program: Program, seed: int, rounding: Rounding) -> None:
        self.program = program
        elements = max([i.elements for i in program.inputs] + [o.expr.type.elements for o in program.outputs])
        quick = program.flops > _QUICK_FLOPS or elements > _QUICK_ELEMENTS
        self.prepared = prepare(program, seed, rounding=rounding, quick=quick)
        self.power = power(program, self.prepared)
        self._inputs = {i.name: GuardedBuffer(i.shape, i.dtype, is_input=True) for i in program.inputs}
        self._outputs = {o.name: GuardedBuffer(o.shape, o.dtype) for o in program.outputs}

    @property
    def ordinary(self) -> Prepared | None:
        """The suite whose inputs are used for timing: normally distributed, as real data are."""
        return next((p for p in self.prepared if p.suite.name == "normal"), self.prepared[0] if self.prepared else None)

    def check(self, run: Run, enough_ns: float = math.inf, clock: Clock = time.perf_counter_ns) -> tuple[Verdict, float]:
        """Run every suite and compare; `run` gets the addresses of inputs and outputs by name.

        Returns the verdict and the time of the fastest run. A kernel whose runs take more than `enough_ns` is given up after
        two of them: its verdict has fewer checks.
        """
        checks: list[Check] = []
        fastest, runs = math.inf, 0
        for i, p in enumerate(self.prepared):
            for _ in range(_REPEATS if i == len(self.prepared) - 1 else 1):
                check, passed_ns = self._one(p, run, clock)
                fastest, runs = min(fastest, passed_ns), runs + 1
                if not check.passed:
                    return Verdict((*checks, check), self.power), fastest
            checks.append(check)
            if fastest > enough_ns and runs >= _RUNS_TO_GIVE_UP:
                break
        return Verdict(tuple(checks), self.power), fastest

    def _one(self, p: Prepared, run: Run, clock: Clock) -> tuple[Check, float]:
        for name, buffer in self._inputs.items():
            buffer.fill(p.inputs[name])
        for buffer in self._outputs.values():
            buffer.poison()
        pointers = {name: int(b.array.ctypes.data) for name, b in {**self._inputs, **self._outputs}.items()}
        start = clock()
        run(pointers)
        passed_ns = float(clock() - start)
        if damage := self._damage(p):
            self._inputs = {i.name: GuardedBuffer(i.shape, i.dtype, is_input=True) for i in self.program.inputs}
            self._outputs = {o.name: GuardedBuffer(o.shape, o.dtype) for o in self.program.outputs}
            return Check(p.suite.name, passed=False, worst=math.inf, seed=p.suite.seed, note=damage), passed_ns
        return check_outputs([self._outputs[o.name].array for o in self.program.outputs], p.expected, p.suite), passed_ns

    def _damage(self, p: Prepared) -> str | None:
        for name, buffer in {**self._inputs, **self._outputs}.items():
            if not buffer.intact:
                return f"it wrote outside the buffer {name!r}"
        return next((f"it changed its input {n!r}" for n, b in self._inputs.items() if not b.equals(p.inputs[n])), None)

    def recheck(self, outputs: Mapping[str, Array]) -> Check:
        """Compare outputs that a timed run left, its inputs being those of `ordinary`."""
        p = self.ordinary
        assert p is not None, "nothing is timed before it was checked"
        check = check_outputs([np.asarray(outputs[o.name]) for o in self.program.outputs], p.expected, p.suite)
        return Check("timed run", check.passed, check.worst, check.seed, check.note)
