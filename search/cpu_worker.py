"""What the worker process of the CPU device does: verify kernels and plans, time them, measure the ceilings.

A kernel is native code: it may write anywhere, crash or never end. So it runs here, in a process that may be lost; each
kernel is announced before it runs, and verified before it is timed.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from eqsat.codegen.cpu.compiler import usable_threads
from eqsat.codegen.kernel import KernelBinary
from eqsat.codegen.plan import Executable
from eqsat.errorbound import Rounding
from eqsat.errors import EqsatError
from eqsat.ir import Program
from eqsat.search.cpu_check import Verifier
from eqsat.search.cpu_probe import measure_rates
from eqsat.search.cpu_steps import LoadedSteps, Preparation, bytes_of
from eqsat.search.cpu_timing import (
    LEAST_ROUNDS,
    MOST_RACE_NS,
    UNDISTURBED_NS,
    BufferSets,
    Contestant,
    Harness,
    buffers_of,
    cache_bytes,
    race,
)
from eqsat.search.device import Trial, Verdict
from eqsat.search.statistics import summarize
from eqsat.search.step_check import Launch, check_steps, undecided
from eqsat.search.supervised import Begin
from eqsat.search.verify import KERNEL, PLAN, suites
from eqsat.search.watched import Finished, SweepJob, Verified
from eqsat.types import DType

Messages = Generator[Any, None, Any]

REFERENCE_LIMIT_S = 240.0  # float64 products of large programs
RATES_LIMIT_S = 60.0
PLAN_LIMIT_S = 240.0
KEPT_VERIFIERS = 2

FIRST_SAMPLES = 3
FINAL_ROUNDS = 25
FINALISTS = 5
FINALIST_SHARE = 1.10
HOPELESS = 1.5  # times the best so far: a kernel that takes longer is given up …
LEAST_HOPELESS_NS = 10e6  # … unless it is short: its checks cost little, and a cold start may explain the time


class CpuBackend:
    """Runs kernels in this process; every method is a generator of messages whose return value is the job's result."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._harness = Harness()
        private, last = cache_bytes()
        self._caches = private * usable_threads(), last  # a kernel with threads keeps its data in all private caches
        self._verifiers: OrderedDict[tuple[str, Rounding], Verifier] = OrderedDict()

    def describe(self) -> str:
        """Return what the parent may show."""
        return f"private caches {self._caches[0]} bytes, last-level cache {self._caches[1]} bytes"

    def rates(self) -> Messages:
        """Measure the ceilings."""
        yield Begin(None, RATES_LIMIT_S, "measuring the machine's ceilings")
        return measure_rates(self._harness)

    def sweep(self, job: SweepJob) -> Messages:
        """Verify, then time, the kernels of one program."""
        until = time.monotonic() + job.budget_s
        yield Begin(None, REFERENCE_LIMIT_S, "computing the references of the program")
        verifier = self._verifier(job.program, KERNEL)
        ordinary = verifier.ordinary
        sets = BufferSets(buffers_of(job.program), ordinary.inputs if ordinary else {}, *self._caches, job.apart_bytes)
        running: list[Contestant] = []
        for index, binary in job.binaries:
            if time.monotonic() > until:
                break
            yield Begin(index, job.limit_s, f"kernel {binary.source.entry!r} number {index}")
            best = min((c.fastest_ns for c in running), default=math.inf)
            contestant = yield from self._admit(job, index, binary, verifier, sets, min(job.stop_above_ns, best))
            if contestant is None:
                continue
            if contestant.fastest_ns > min(job.stop_above_ns, FINALIST_SHARE * best):
                yield Finished(index, _timed(contestant, job.verdicts[index]))
                contestant.steps.close()
            else:
                running.append(contestant)
        yield from self._contest(job, running, verifier, sets, until)
        return None

    def time_plans(self, plans: Sequence[Executable], rounds: int) -> Messages:
        """Time whole plans interleaved."""
        contestants = []
        sets: dict[str, BufferSets] = {}
        for i, plan in enumerate(plans):
            yield Begin(i, PLAN_LIMIT_S, f"timing plan {i} of {len(plans)}")
            key = plan.plan.digest if plan.plan.prepared else plan.plan.program.digest
            if key not in sets:
                sets[key] = self._timing_sets(plan)
            call = plan.call
            steps = LoadedSteps([s.binary for s in call.steps], bytes_of(call.intermediates))
            contestants.append(Contestant(i, steps, sets[key], self._harness))
        yield Begin(None, PLAN_LIMIT_S + _race_limit_s(contestants), "timing the plans interleaved")
        race(contestants, rounds, self._seed)
        for c in contestants:
            c.steps.close()
        return [summarize(c.samples, rejected=c.rejected) for c in contestants]

    def _timing_sets(self, plan: Executable) -> BufferSets:
        """Return copies of what a call reads and writes: ordinary inputs, and what is prepared from the constants among them."""
        program = plan.plan.program
        found = suites(program, self._seed)
        contents = next((s for s in found if s.name == "normal"), found[0]).inputs()
        if not plan.plan.prepared:
            return BufferSets(buffers_of(program), contents, *self._caches)
        prepare = Preparation(plan)
        made = prepare({name: int(contents[name].ctypes.data) for name in prepare.reads})
        contents |= {name: memory.array for name, memory in made.items()}
        kept = {name: (shape, DType(dtype)) for name, (shape, dtype) in plan.preparation.writes.items()}
        shapes = {**buffers_of(program), **kept}
        names = [*plan.call.reads, *(o.name for o in program.outputs)]
        return BufferSets({name: shapes[name] for name in names}, contents, *self._caches)

    def verify_plan(self, plan: Executable) -> Messages:
        """Check a whole plan."""
        yield Begin(None, REFERENCE_LIMIT_S, "computing the references of the program")
        verifier = self._verifier(plan.plan.program, PLAN if len(plan.steps) > 1 else KERNEL)
        yield Begin(0, PLAN_LIMIT_S, "running the plan")
        steps = _load(plan)
        verdict, _ = _check(verifier, steps)
        steps.close()
        if undecided(plan, verdict):
            yield Begin(0, PLAN_LIMIT_S, "running the plan kernel by kernel")
            verdict = check_steps(plan, verdict, self._seed, _launch, lambda buffer: int(buffer.array.ctypes.data))
        return verdict

    # -- stages of a sweep -------------------------------------------------------------------------------------------

    def _admit(
        self, job: SweepJob, index: int, binary: KernelBinary, verifier: Verifier, sets: BufferSets, best_ns: float
    ) -> Generator[Any, None, Contestant | None]:
        """Verify a kernel and take its first samples; None if it is out, which has then been said.

        One that takes several times `best_ns` is given up as soon as that is seen, with fewer checks and no more samples.
        """
        try:
            steps = LoadedSteps([binary])
        except EqsatError as reason:
            yield Finished(index, Trial("fault", None, note=str(reason)))
            return None
        enough_ns = max(HOPELESS * best_ns, LEAST_HOPELESS_NS)
        verdict, fastest_ns = job.verdicts.get(index), 0.0
        if verdict is None:
            verdict, fastest_ns = _check(verifier, steps, enough_ns)
        job.verdicts[index] = verdict
        yield Verified(index, verdict)
        if not verdict.ok:
            yield Finished(index, Trial("wrong", verdict, note=verdict.reason or "no check could be made"))
            steps.close()
            return None
        if fastest_ns > enough_ns:
            note = "too slow to be checked and timed at length"
            yield Finished(index, Trial("ok", verdict, summarize([fastest_ns]), note=note, partial=True))
            steps.close()
            return None
        contestant = Contestant(index, steps, sets, self._harness, fastest_ns)
        if contestant.estimate_ns > 2 * job.stop_above_ns or contestant.sample_ns > UNDISTURBED_NS:
            contestant.samples.append(contestant.estimate_ns)
        else:
            for _ in range(FIRST_SAMPLES):
                contestant.sample()
        return contestant

    def _contest(self, job: SweepJob, running: list[Contestant], verifier: Verifier, sets: BufferSets, until: float) -> Messages:
        """Time the fastest few again, interleaved, and look at what their timed runs computed."""
        best = min((c.fastest_ns for c in running), default=math.inf)
        order = sorted(running, key=lambda c: c.fastest_ns)
        finalists = [c for c in order[:FINALISTS] if c.fastest_ns <= FINALIST_SHARE * best]
        for c in running:
            if c not in finalists:
                yield Finished(c.index, _timed(c, job.verdicts[c.index]))
        if finalists and time.monotonic() < until:
            for c in finalists:
                yield Begin(c.index if job.isolate else None, job.limit_s + _race_limit_s(finalists), "timing the finalists")
            race(finalists, FINAL_ROUNDS, job.seed)
        for c in finalists:
            yield Finished(c.index, self._rechecked(job, c, verifier, sets))
        for c in running:
            c.steps.close()

    def _rechecked(self, job: SweepJob, c: Contestant, verifier: Verifier, sets: BufferSets) -> Trial:
        """Run once more as timed, on the buffers that were timed, and compare."""
        for o in job.program.outputs:
            sets.poison(0, o.name)
        c.steps.run(sets.pointers(0))
        check = verifier.recheck({o.name: sets.array(0, o.name) for o in job.program.outputs})
        verdict = job.verdicts[c.index]
        if check.passed:
            return _timed(c, verdict)
        verdict = Verdict((*verdict.checks, check), verdict.power)
        return Trial("wrong", verdict, note=verdict.reason)

    def _verifier(self, program: Program, rounding: Rounding) -> Verifier:
        key = (program.digest, rounding)
        if key not in self._verifiers:
            while len(self._verifiers) >= KEPT_VERIFIERS:
                self._verifiers.popitem(last=False)
            self._verifiers[key] = Verifier(program, self._seed, rounding)
        self._verifiers.move_to_end(key)
        return self._verifiers[key]


def _load(plan: Executable) -> LoadedSteps:
    return LoadedSteps([s.binary for s in plan.steps], bytes_of(plan.intermediates))


def _launch(binary: KernelBinary) -> Launch:
    steps = LoadedSteps([binary])

    def run(pointers: Mapping[str, int]) -> None:
        steps.poison()
        steps.run(pointers)

    return run


def _check(verifier: Verifier, steps: LoadedSteps, enough_ns: float = math.inf) -> tuple[Verdict, float]:
    def run(pointers: Any) -> None:
        steps.poison()
        steps.run(pointers)

    return verifier.check(run, enough_ns, steps.clock)


def _race_limit_s(contestants: Sequence[Contestant]) -> float:
    """Return how long a race may take: several times what it should."""
    return 10e-9 * (MOST_RACE_NS + LEAST_ROUNDS * sum(c.sample_ns for c in contestants))


def _timed(c: Contestant, verdict: Verdict) -> Trial:
    return Trial("ok", verdict, summarize(c.samples or [c.estimate_ns], rejected=c.rejected))
