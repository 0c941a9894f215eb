"""What the worker process does with its GPU: verify kernels and plans, time them, measure the ceilings."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from eqsat.codegen.cuda import driver
from eqsat.codegen.cuda.driver import Stream
from eqsat.codegen.kernel import KernelBinary, Rates
from eqsat.codegen.plan import Executable
from eqsat.errorbound import Rounding
from eqsat.errors import EnvironmentMissingError, IllegalScheduleError, KernelFaultError, UsageError
from eqsat.ir import Program
from eqsat.search.arrays import cupy_stream, require_cupy
from eqsat.search.cuda_check import Verifier
from eqsat.search.cuda_device import target_of
from eqsat.search.cuda_probe import Probe
from eqsat.search.cuda_steps import LoadedSteps, Preparation, bytes_of
from eqsat.search.cuda_timing import BufferSets, Contestant, Race
from eqsat.search.device import Trial, Verdict
from eqsat.search.statistics import summarize
from eqsat.search.step_check import Launch, check_steps, undecided
from eqsat.search.supervised import Begin
from eqsat.search.verify import KERNEL, PLAN, suites
from eqsat.search.watched import Finished, SweepJob, Verified

Messages = Generator[Any, None, Any]

REFERENCE_LIMIT_S = 240.0  # float64 on the device; the first time CuPy compiles its own kernels too
RATES_LIMIT_S = 120.0
PLAN_TIMING_LIMIT_S = 120.0
KEPT_VERIFIERS = 2

FIRST_SAMPLES = 2
ROUNDS = 5
FINAL_ROUNDS = 25
FINALISTS = 5
FINALIST_SHARE = 1.05
LAUNCH_BOUND_NS = 100_000.0  # an estimate below it may be the host's launch rate instead of the kernel's time
HOPELESS = 3.0  # times the best so far: no more samples
DOOMED = 10  # kernels of one program, all wrong: the program itself is
LEAST_HOPELESS_NS = 2e6  # a cold run that takes less costs nothing to check


class CudaBackend:
    """Owns the context of one GPU; every method is a generator of messages whose return value is the job's result."""

    def __init__(self, index: int, seed: int) -> None:
        self._info = driver.device_info(index)
        context = driver.open_device(index)
        self._xp = require_cupy("to verify kernels on the GPU")
        self._xp.cuda.Device(index).use()
        self._current = driver.current_context(context)
        self._current.__enter__()  # for the life of the process
        self._stream = Stream()
        self._cupy_stream = cupy_stream(self._xp, self._stream.handle)  # CuPy keeps no reference of its own
        self._cupy_stream.use()
        self._seed = seed
        self._probe: Probe | None = None
        self._verifiers: OrderedDict[tuple[str, Rounding], Verifier] = OrderedDict()

    def describe(self) -> str:
        """Return the GPU's name."""
        return self._info.name

    @property
    def probe(self) -> Probe:
        """The probe kernels, compiled when first needed."""
        if self._probe is None:
            self._probe = Probe(target_of(self._info), self._info, self._stream)
        return self._probe

    def rates(self) -> Messages:
        """Measure the ceilings."""
        yield Begin(None, RATES_LIMIT_S, "measuring the device's ceilings")
        self._make_room()
        found: Rates = self.probe.rates()
        return found

    def sweep(self, job: SweepJob) -> Messages:
        """Verify, then time, the kernels of one program."""
        until = time.monotonic() + job.budget_s
        yield Begin(None, REFERENCE_LIMIT_S, "computing the references of the program")
        verifier = self._verifier(job.program, KERNEL)
        sets = self._sets(job.program, verifier.timing_inputs if verifier.prepared else {})
        race = Race(self.probe, self._stream, job.seed)
        running: list[Contestant] = []
        for index, binary in job.binaries:
            if time.monotonic() > until:
                break
            if note := _doomed(job, verifier.power):
                yield Finished(index, Trial("wrong", None, note=note))
                continue
            yield Begin(index, job.limit_s, f"kernel {binary.source.entry!r} number {index}")
            best = min((c.median_ns for c in running), default=math.inf)
            enough = min(HOPELESS * best, job.stop_above_ns)
            contestant = yield from self._admit(job, index, binary, verifier, sets, race, enough)
            if contestant is None:
                continue
            if min(contestant.samples) > enough:
                yield Finished(index, _timed(contestant, job.verdicts.get(index), race))
            else:
                running.append(contestant)
        yield from self._contest(job, running, race, until)
        return None

    def time_plans(self, plans: Sequence[Executable], rounds: int) -> Messages:
        """Time whole plans interleaved."""
        self._make_room()
        race = Race(self.probe, self._stream, self._seed)
        sets: dict[str, BufferSets] = {}
        contestants: list[Contestant] = []
        for i, plan in enumerate(plans):
            yield Begin(i, PLAN_TIMING_LIMIT_S, f"timing plan {i} of {len(plans)}")
            key = _timing_key(plan)
            if key not in sets:
                sets[key] = self._drawn_sets(plan, len({_timing_key(p) for p in plans}))
            steps = LoadedSteps([s.binary for s in plan.call.steps], overlapped=plan.overlapped)
            contestants.append(Contestant(i, steps, bytes_of(plan.call.intermediates), sets[key], self._stream))
            race.first_samples(contestants[-1], 1)
            contestants[-1].samples.clear()
        yield from race.rounds(contestants, rounds)
        return [summarize(c.samples, clock_mhz=race.clock_mhz) for c in contestants]

    def verify_plan(self, plan: Executable) -> Messages:
        """Check a whole plan."""
        yield Begin(None, REFERENCE_LIMIT_S, "computing the references of the program")
        verifier = self._verifier(plan.plan.program, PLAN if len(plan.steps) > 1 else KERNEL)
        yield Begin(0, REFERENCE_LIMIT_S, "running the plan")
        verdict, _ = self._check(
            verifier, LoadedSteps([s.binary for s in plan.steps], overlapped=plan.overlapped), bytes_of(plan.intermediates)
        )
        if undecided(plan, verdict):
            yield Begin(0, REFERENCE_LIMIT_S, "running the plan kernel by kernel")
            verdict = check_steps(plan, verdict, self._seed, self._launch, lambda buffer: int(buffer.array.data.ptr), self._xp)
        return verdict

    def _launch(self, binary: KernelBinary) -> Launch:
        """Return what launches a kernel on the worker's stream and waits for it."""
        steps = LoadedSteps([binary])
        handle = self._stream.handle
        scratch = steps.scratch({}, handle)

        def run(pointers: Mapping[str, int]) -> None:
            scratch.poison(handle)
            driver.synchronize()
            for launch in steps.bind(pointers, scratch):
                launch(handle)
            self._stream.synchronize()

        return run

    def _admit(
        self, job: SweepJob, index: int, binary: KernelBinary, verifier: Verifier, sets: BufferSets, race: Race, enough_ns: float
    ) -> Generator[Any, None, Contestant | None]:
        """Verify a kernel and take its first samples; None if it is out, which has then been said."""
        try:
            steps = LoadedSteps([binary])
            verdict, fastest_ns = job.verdicts.get(index), 0.0
            hopeless_ns = max(enough_ns, LEAST_HOPELESS_NS)
            if verdict is None:
                verdict, fastest_ns = self._check(verifier, steps, {}, hopeless_ns)
            job.verdicts[index] = verdict
            yield Verified(index, verdict)
            if not verdict.ok:
                yield Finished(index, Trial("wrong", verdict, note=verdict.reason or "no check could be made"))
                return None
            if fastest_ns > hopeless_ns:
                note = "too slow to be checked and timed at length"
                yield Finished(index, Trial("ok", verdict, summarize([fastest_ns]), note=note, partial=True))
                return None
            contestant = Contestant(index, steps, {}, sets, self._stream)
            if contestant.estimate_ns > max(enough_ns, LAUNCH_BOUND_NS):
                contestant.samples.append(contestant.estimate_ns)
            else:
                race.first_samples(contestant, FIRST_SAMPLES)
            again = verifier.recheck(sets.pointers(race.draw(sets.count)))
        except (KernelFaultError, UsageError, IllegalScheduleError, EnvironmentMissingError) as reason:
            if getattr(reason, "sticky", False):
                raise
            yield Finished(index, Trial("fault", job.verdicts.get(index), note=str(reason)))
            return None
        if not again.passed:
            verdict = Verdict((*verdict.checks, again), verdict.power)
            yield Finished(index, Trial("wrong", verdict, note=verdict.reason))
            return None
        return contestant

    def _contest(self, job: SweepJob, running: list[Contestant], race: Race, until: float) -> Messages:
        """Time those that are left together, then the fastest few again."""
        best = min((c.median_ns for c in running), default=math.inf)
        close = [c for c in running if c.median_ns <= HOPELESS * best]
        for contestants, rounds in ((close, ROUNDS), (None, FINAL_ROUNDS)):
            if contestants is None:
                fastest = sorted(close, key=lambda c: c.median_ns)[:FINALISTS]
                contestants = [c for c in fastest if c.median_ns <= FINALIST_SHARE * fastest[0].median_ns]
            if contestants and time.monotonic() < until:
                for c in contestants:
                    c.samples.clear()  # samples taken alone, or in another field, are not comparable
                yield from race.rounds(contestants, rounds, isolate=job.isolate)
        for c in running:
            yield Finished(c.index, _timed(c, job.verdicts.get(c.index), race))

    def _check(
        self, verifier: Verifier, steps: LoadedSteps, intermediates: dict[str, int], enough_ns: float = math.inf
    ) -> tuple[Verdict, float]:
        handle = self._stream.handle
        scratch = steps.scratch(intermediates, handle)
        start, end = driver.Event(), driver.Event()

        def run() -> float:
            launches = steps.bind(verifier.pointers, scratch)
            start.record(handle)
            for launch in launches:
                launch(handle)
            end.record(handle)
            self._stream.synchronize()
            return start.elapsed_ns(end)

        return verifier.check(run, scratch, handle, enough_ns)

    def _verifier(self, program: Program, rounding: Rounding) -> Verifier:
        """Return the program's verifier, made anew or kept from an earlier job."""
        key = (program.digest, rounding)
        if key not in self._verifiers:
            while len(self._verifiers) >= KEPT_VERIFIERS:
                self._verifiers.popitem(last=False)
            self._make_room()
            try:
                made = Verifier(program, self._seed, rounding, self._xp, self._info.memory_bytes)
            except MemoryError:  # CuPy's: what is kept of other programs may be the reason
                self._verifiers.clear()
                self._make_room()
                made = self._verifier_or_refusal(program, rounding)
            self._verifiers[key] = made
            self._make_room()
        self._verifiers.move_to_end(key)
        return self._verifiers[key]

    def _verifier_or_refusal(self, program: Program, rounding: Rounding) -> Verifier:
        try:
            return Verifier(program, self._seed, rounding, self._xp, self._info.memory_bytes)
        except MemoryError as reason:
            free, total = driver.memory_info()
            raise EnvironmentMissingError(
                f"expected room on the GPU for the float64 reference of a program of {program.bytes:,} bytes; {free:,} of {total:,} bytes "
                "are free. Free device memory, or optimize a smaller problem."
            ) from reason

    def _make_room(self) -> None:
        """Give CuPy's cached blocks back, so that plain allocations find them."""
        self._stream.synchronize()
        self._xp.get_default_memory_pool().free_all_blocks()

    def _sets(self, program: Program, contents: dict[str, tuple[int, int]], share: int = 1) -> BufferSets:
        self._make_room()
        outputs = {o.name: o.bytes for o in program.outputs}
        return BufferSets(contents, outputs, self._info.l2_bytes, self._stream.handle, share)

    def _drawn_sets(self, plan: Executable, share: int) -> BufferSets:
        """Return copies of what a call reads and writes: ordinary inputs, and what is prepared from the constants among them."""
        program = plan.plan.program
        suite = next((s for s in suites(program, self._seed) if s.name == "normal"), suites(program, self._seed)[0])
        inputs = suite.inputs(self._xp)
        contents = {name: (int(a.data.ptr), int(a.nbytes)) for name, a in inputs.items()}
        made: dict[str, driver.Memory] = {}
        if plan.plan.prepared:
            driver.synchronize()  # CuPy drew on a stream of its own
            made = Preparation(plan)({name: pointer for name, (pointer, _) in contents.items()}, self._stream.handle)
            contents |= {name: (m.pointer, m.nbytes) for name, m in made.items()}
            contents = {name: contents[name] for name in plan.call.reads}
        sets = self._sets(program, contents, share)
        self._stream.synchronize()  # the copies read `inputs` and `made`, which end here
        return sets


def _doomed(job: SweepJob, power: tuple[int, int]) -> str:
    """Return why no further kernel of a program need be tried, or "": the check cannot judge it, or it is wrong whoever computes it.

    A program that rounds or overflows where the original does not is wrong in every kernel; several of two families at least say so.
    """
    if power[0] < power[1]:
        return f"the checker missed {power[1] - power[0]} of {power[1]} seeded faults" if job.verdicts else ""
    kinds = {binary.source.text.partition(",")[0] for index, binary in job.binaries if index in job.verdicts}
    tried = list(job.verdicts.values())
    if len(tried) < DOOMED or len(kinds) < 2 or any(v.ok for v in tried):
        return ""
    return f"not tried: {len(tried)} kernels of {len(kinds)} families were wrong and none right; the last: {tried[-1].reason}"


def _timing_key(plan: Executable) -> str:
    """Plans with one key are timed on the same memory: plans of one program, unless they prepare something from constants."""
    return plan.plan.digest if plan.plan.prepared else plan.plan.program.digest


def _timed(contestant: Contestant, verdict: Verdict | None, race: Race) -> Trial:
    return Trial("ok", verdict, summarize(contestant.samples, clock_mhz=race.clock_mhz))
