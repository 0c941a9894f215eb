"""What the search needs of a device: compile, verify, time. Implemented for the CPU, for CUDA, and by a fake in the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from eqsat.codegen.kernel import KernelBinary, KernelSource, Rates
from eqsat.codegen.plan import Executable
from eqsat.errors import CompileError
from eqsat.ir import Program


@dataclass(frozen=True, slots=True)
class Check:
    """One test of a kernel: `worst` is the largest |error| / bound over all elements (0 for an exact test that passed)."""

    name: str
    passed: bool
    worst: float
    seed: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of one kernel; `power` counts seeded wrong outputs: (rejected, tried)."""

    checks: tuple[Check, ...]
    power: tuple[int, int] = (0, 0)

    @property
    def ok(self) -> bool:
        """Whether every check passed, at least one ran, and every seeded wrong output was rejected."""
        return bool(self.checks) and all(c.passed for c in self.checks) and self.power[0] == self.power[1]

    @property
    def reason(self) -> str:
        """The first failed check in words, or ""."""
        failed = next((c for c in self.checks if not c.passed), None)
        if failed:
            return f"{failed.name} (seed {failed.seed}): {failed.note or f'error is {failed.worst:.3g} times its bound'}"
        if not self.checks:
            return "nothing could be compared: the error bounds are infinite"
        return "" if self.ok else f"the checker missed {self.power[1] - self.power[0]} of {self.power[1]} seeded faults"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Times in ns: the median, a 95 % interval of the median (bootstrap), and every sample kept.

    `rejected` counts samples thrown away (a context switch, a throttled clock).
    """

    median_ns: float
    low_ns: float
    high_ns: float
    samples_ns: tuple[float, ...]
    rejected: int = 0
    clock_mhz: float = 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one binary: timed ("ok"), or why not.

    `partial`: it passed the checks it got, but was given up as too slow before it got them all. Its time serves this search as
    a cost; the store does not remember it, so that nothing half checked is taken for checked later.
    """

    status: Literal["ok", "wrong", "fault", "timeout"]
    verdict: Verdict | None = None
    measurement: Measurement | None = None
    note: str = ""
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Beside:
    """A plan and a caller's function, timed on the same arrays.

    `difference` says where the function computed something else, beyond the rounding that the program allows; "" if nowhere.
    """

    plan: Measurement
    baseline: Measurement
    difference: str = ""


class Device(Protocol):
    """A place where kernels are compiled for, checked and timed. A context manager: leaving it frees workers and memory."""

    name: str
    target: str

    @property
    def fingerprint(self) -> str:
        """Device, driver and compiler in one line: part of every store key."""
        ...

    def rates(self) -> Rates:
        """Return the measured ceilings (measured once, then remembered)."""
        ...

    def compile(self, sources: Sequence[KernelSource]) -> Iterator[tuple[int, KernelBinary | CompileError]]:
        """Compile in parallel; yield (index, binary or error) as they finish."""
        ...

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
        """Verify, then time, each binary of one kernel program; None for what the deadline (time.monotonic) cut off.

        Each is verified before it is timed. One whose first samples are all above `stop_above_ns` gets no more samples.
        The fastest few are timed again, interleaved. `apart_bytes` is what the program that the kernel is part of touches
        between two runs of it: caches are as cold as that leaves them.
        """
        ...

    def time_plans(self, plans: Sequence[Executable], *, rounds: int = 30) -> list[Measurement]:
        """Time whole plans, interleaved, caches cold."""
        ...

    def verify_plan(self, plan: Executable) -> Verdict:
        """Check a whole plan against the oracle of its program."""
        ...

    def time_beside(self, plan: Executable, baseline: Callable[..., object], *, rounds: int = 30) -> Beside:
        """Time a plan and a caller's function on the same arrays, both called from Python, interleaved; compare their results."""
        ...

    def close(self) -> None:
        """Free workers and memory."""
        ...
