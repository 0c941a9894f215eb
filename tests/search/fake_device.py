"""A device without hardware: compiles at once, and tells times that follow from a hash and the size of the problem.

Its clock is its own: `clock_s` moves when something is compiled, verified or timed, and nothing waits. Faults are injected by
predicates on the source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from eqsat.codegen.kernel import KernelBinary, KernelSource, Rates
from eqsat.codegen.plan import Executable
from eqsat.errors import CompileError
from eqsat.ir import Program
from eqsat.search.device import Beside, Check, Measurement, Trial, Verdict

Predicate = Callable[[KernelSource], bool]

RATES = Rates(read=100.0, copy=100.0, flops=(("f32", 1000.0), ("f64", 500.0), ("bf16", 1000.0)), issue=400.0, launch_ns=10.0)
OK = Verdict((Check("exact", True, 0.0, 0), Check("normal", True, 0.5, 0)), (4, 4))
WRONG = Verdict((Check("exact", False, 2.0, 0, "injected"),), (4, 4))


def _never(_: KernelSource) -> bool:
    return False


@dataclass(slots=True)
class FakeDevice:
    """Implements `eqsat.search.device.Device`.

    A kernel's time is the least that `rates` allow for its program, times a factor in [1, 1 + spread) drawn from its digest:
    the same kernel takes the same time always, and bounds made from the same rates hold.

    Parameters
    ----------
    rates_table : Rates
    spread : float
    refused, wrong, faulty, hanging : callable
        Which sources do not compile, compute the wrong thing, crash, or never end.
    times_ns : callable, optional
        Overrides the time of a kernel: `times_ns(program, source)`.
    baseline_ns, baseline_differs : float, str
        The time of a caller's function, and what it computes otherwise.
    compile_s, trial_s : float
        What the fake clock is charged.
    """

    name: str = "fake device"
    target: str = "cpu"
    rates_table: Rates = RATES
    spread: float = 1.0
    refused: Predicate = _never
    wrong: Predicate = _never
    faulty: Predicate = _never
    hanging: Predicate = _never
    times_ns: Callable[[Program, KernelSource], float] | None = None
    baseline_ns: float = 1.0
    baseline_differs: str = ""
    compile_s: float = 0.01
    trial_s: float = 0.01
    clock_s: float = 0.0
    compiled: list[KernelSource] = field(default_factory=list)
    swept: list[tuple[Program, int]] = field(default_factory=list)
    closed: bool = False

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        return f"{self.name}; no driver; fake compiler 1"

    def rates(self) -> Rates:
        return self.rates_table

    def compile(self, sources: Sequence[KernelSource]) -> Iterator[tuple[int, KernelBinary | CompileError]]:
        for i, source in enumerate(sources):
            self.clock_s += self.compile_s
            self.compiled.append(source)
            if self.refused(source):
                yield i, CompileError("injected refusal")
            else:
                yield i, KernelBinary(source, f"image of {source.digest}".encode(), "fake compiler 1")

    def sweep(
        self,
        program: Program,
        binaries: Sequence[KernelBinary],
        *,
        deadline_s: float = float("inf"),
        stop_above_ns: float = float("inf"),
        progress: Callable[[int, Trial], None] | None = None,
        apart_bytes: int = 0,
    ) -> list[Trial | None]:
        """Sweep at once; `deadline_s` is a time of the fake clock here."""
        self.swept.append((program, len(binaries)))
        trials: list[Trial | None] = []
        for i, binary in enumerate(binaries):
            if self.clock_s >= deadline_s:
                trials.append(None)
                continue
            self.clock_s += self.trial_s
            trial = self._trial(program, binary.source, stop_above_ns)
            trials.append(trial)
            if progress is not None:
                progress(i, trial)
        return trials

    def _trial(self, program: Program, source: KernelSource, stop_above_ns: float) -> Trial:
        broken: list[tuple[Predicate, Literal["fault", "timeout"]]] = [(self.faulty, "fault"), (self.hanging, "timeout")]
        for predicate, status in broken:
            if predicate(source):
                return Trial(status, note=f"injected {status}")
        if self.wrong(source):
            return Trial("wrong", WRONG, note=WRONG.reason)
        time_ns = self.kernel_ns(program, source)
        return Trial("ok", OK, _measured(time_ns, 2 if time_ns > stop_above_ns else 10))

    def kernel_ns(self, program: Program, source: KernelSource) -> float:
        """Return the time of a kernel, ns."""
        if self.times_ns is not None:
            return self.times_ns(program, source)
        least = max(
            program.bytes / self.rates_table.read, program.flops / self.rates_table.rate("f32"), self.rates_table.launch_ns
        )
        draw = int.from_bytes(hashlib.sha256(f"{program.digest}{source.digest}".encode()).digest()[:8], "little") / 2**64
        return least * (1.0 + self.spread * draw)

    def time_plans(self, plans: Sequence[Executable], *, rounds: int = 30) -> list[Measurement]:
        self.clock_s += self.trial_s * len(plans)
        return [_measured(sum(self.kernel_ns(s.kernel.program, s.binary.source) for s in p.call.steps), rounds) for p in plans]

    def verify_plan(self, plan: Executable) -> Verdict:
        self.clock_s += self.trial_s
        return WRONG if any(self.wrong(s.binary.source) for s in plan.steps) else OK

    def time_beside(self, plan: Executable, baseline: Callable[..., object], *, rounds: int = 30) -> Beside:
        """Time a plan beside a function that takes `baseline_ns` and differs as `baseline_differs` says."""
        (own,) = self.time_plans([plan], rounds=rounds)
        return Beside(own, _measured(self.baseline_ns, rounds), self.baseline_differs)

    def close(self) -> None:
        self.closed = True


def _measured(time_ns: float, count: int) -> Measurement:
    samples = tuple(time_ns * (1 + 0.001 * (i - (count - 1) / 2) / count) for i in range(count))
    return Measurement(time_ns, min(samples), max(samples), samples, clock_mhz=1000.0)
