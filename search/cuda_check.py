"""Check launches on the GPU against the references of a program: poisoned outputs, guard bands, inputs left alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eqsat.codegen.cuda import driver
from eqsat.errorbound import Rounding
from eqsat.ir import Program
from eqsat.search.arrays import cupy_dtype
from eqsat.search.cuda_steps import Scratch
from eqsat.search.device import Check, Verdict
from eqsat.search.faults import power
from eqsat.search.guarded import GuardedBuffer
from eqsat.search.verify import Prepared, check_outputs, comparable, references, suites

# Above this many operations or elements of the program the suites "wide" and "special" are left out.
_QUICK_FLOPS = 4e12
_QUICK_ELEMENTS = 1 << 27
# Inputs and references of all suites together may take this share of the GPU's memory; at least two suites are kept.
_MEMORY_SHARE = 0.25
_LEAST_SUITES = 2
# Runs of the last suite: a race shows up sooner or later.
_REPEATS = 3
_RUNS_TO_GIVE_UP = 2  # a single run may have met another's work


class Verifier:
    """Inputs, references and guarded buffers of one program on the GPU, and the power of the check, found once.

    Parameters
    ----------
    program : Program
    seed : int
    rounding : Rounding
        What a correct kernel (or plan) may round.
    xp : module
        cupy.
    memory_bytes : int
        Of the GPU.
    """

    def __init__(self, program: Program, seed: int, rounding: Rounding, xp: Any, memory_bytes: int) -> None:
        self.program, self._xp = program, xp
        self.prepared = _prepare(program, seed, rounding, xp, memory_bytes)
        self.power = power(program, self.prepared, xp)
        self._inputs = {i.name: GuardedBuffer(i.shape, i.dtype, xp) for i in program.inputs}
        self._outputs = {o.name: GuardedBuffer(o.shape, o.dtype, xp) for o in program.outputs}

    @property
    def pointers(self) -> dict[str, int]:
        """Address of the guarded buffer of each input and output."""
        return {name: int(b.array.data.ptr) for name, b in {**self._inputs, **self._outputs}.items()}

    @property
    def timing_inputs(self) -> dict[str, tuple[int, int]]:
        """Address and bytes of ordinary inputs by name: normally distributed, as real data are."""
        return {name: (int(a.data.ptr), int(a.nbytes)) for name, a in self._ordinary.inputs.items()}

    @property
    def _ordinary(self) -> Prepared:
        return next((p for p in self.prepared if p.suite.name == "normal"), self.prepared[0])

    def check(
        self, run: Callable[[], float], scratch: Scratch, stream: int, enough_ns: float = math.inf
    ) -> tuple[Verdict, float]:
        """Run every suite and compare. `run` launches with `pointers`, waits, and returns its time; its faults pass through.

        Returns the verdict and the time of the fastest run. A kernel whose runs take more than `enough_ns` is given up after
        two of them: its verdict has fewer checks.
        """
        checks: list[Check] = []
        fastest, runs = math.inf, 0
        for i, p in enumerate(self.prepared):
            repeats = _REPEATS if i == len(self.prepared) - 1 else 1
            for _ in range(repeats):
                check, passed_ns = self._one(p, run, scratch, stream)
                fastest, runs = min(fastest, passed_ns), runs + 1
                if not check.passed:
                    return Verdict((*checks, check), self.power), fastest
            checks.append(check)
            if fastest > enough_ns and runs >= _RUNS_TO_GIVE_UP:
                break
        return Verdict(tuple(checks), self.power), fastest

    def _one(self, p: Prepared, run: Callable[[], float], scratch: Scratch, stream: int) -> tuple[Check, float]:
        for name, buffer in self._inputs.items():
            buffer.fill(p.inputs[name])
        for buffer in self._outputs.values():
            buffer.poison()
        scratch.poison(stream)
        # CuPy's current stream need not be the kernel's, and that one waits for no other: a fill that is still under way
        # would overwrite results (seen on an H200 as "not written").
        driver.synchronize()
        passed_ns = run()
        if damage := self._damage(p, scratch):
            self._renew()
            return Check(p.suite.name, False, math.inf, p.suite.seed, damage), passed_ns
        found = [self._outputs[o.name].array for o in self.program.outputs]
        return check_outputs(found, p.expected, p.suite, self._xp), passed_ns

    def _damage(self, p: Prepared, scratch: Scratch) -> str | None:
        for name, buffer in {**self._inputs, **self._outputs}.items():
            if not buffer.intact:
                return f"it wrote outside the buffer {name!r}"
        if beyond := scratch.damaged():
            return f"it wrote beyond the end of {beyond}"
        return next((f"it changed its input {n!r}" for n, b in self._inputs.items() if not b.equals(p.inputs[n])), None)

    def _renew(self) -> None:
        """Make new buffers: the guard bands of the old ones are gone."""
        self._inputs = {i.name: GuardedBuffer(i.shape, i.dtype, self._xp) for i in self.program.inputs}
        self._outputs = {o.name: GuardedBuffer(o.shape, o.dtype, self._xp) for o in self.program.outputs}

    def recheck(self, pointers: Mapping[str, int]) -> Check:
        """Compare outputs that a timed run left at `pointers`, its inputs being `timing_inputs`."""
        p = self._ordinary
        found = [self._view(pointers[o.name], o.shape, cupy_dtype(o.dtype)) for o in self.program.outputs]
        check = check_outputs(found, p.expected, p.suite, self._xp)
        return Check("timed run", check.passed, check.worst, check.seed, check.note)

    def _view(self, pointer: int, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an array over memory that the caller keeps alive."""
        memory = self._xp.cuda.UnownedMemory(pointer, max(1, math.prod(shape) * dtype.itemsize), None)
        return self._xp.ndarray(shape, dtype, self._xp.cuda.MemoryPointer(memory, 0))


def _prepare(program: Program, seed: int, rounding: Rounding, xp: Any, memory_bytes: int) -> Sequence[Prepared]:
    """Draw inputs and evaluate references, suite by suite, while they fit."""
    elements = max([i.elements for i in program.inputs] + [o.expr.type.elements for o in program.outputs])
    quick = program.flops > _QUICK_FLOPS or elements > _QUICK_ELEMENTS
    per_suite = sum(i.bytes for i in program.inputs) + sum(16 * o.expr.type.elements for o in program.outputs)
    found: list[Prepared] = []
    for suite in suites(program, seed, rounding, quick=quick):
        if len(found) >= _LEAST_SUITES and (len(found) + 1) * per_suite > _MEMORY_SHARE * memory_bytes:
            break
        inputs = suite.inputs(xp)
        expected = references(program, inputs, xp, exact=suite.exact, rounding=rounding)
        if comparable(expected):
            found.append(Prepared(suite, inputs, expected))
        xp.get_default_memory_pool().free_all_blocks()
    return found
