"""The CPU device of the search: kernels compiled here in parallel, checked and timed in a worker process that may be lost.

The objective: the time of one run with the private caches cold and the last-level cache warm where the program fits it
(see `eqsat.search.cpu_timing`). One thread, unless a kernel's source asks for OpenMP.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from eqsat.codegen.cpu.compiler import compile_many, compilers, default_compiler, usable_threads
from eqsat.codegen.kernel import KernelBinary, KernelSource, Rates
from eqsat.codegen.plan import Executable
from eqsat.errors import CompileError, KernelFaultError
from eqsat.ir import Program
from eqsat.search.beside import difference, time_calls
from eqsat.search.cpu_runner import CpuRunner
from eqsat.search.device import Beside, Check, Measurement, Trial, Verdict
from eqsat.search.verify import Suite
from eqsat.search.watched import WatchedWorker, fault_note

if TYPE_CHECKING:
    from eqsat.search.store import Store

__all__ = ["CpuDevice", "CpuRunner", "cpu_name", "fingerprint", "open_device"]

BACKEND = "eqsat.search.cpu_worker:CpuBackend"
PLAN_LIMIT_S = 300.0


class CpuDevice:
    """The CPU of this machine: compiles, verifies and times through a watched worker process.

    Parameters
    ----------
    rates : Rates, optional
        Ceilings measured before (remembered by the store); measured here at the first `rates()` otherwise.
    limit_s : float
        The longest that one kernel may take to be verified before it counts as hung.
    seed : int
    threads : int
        Compilers at work at once; by default one for each core.

    Raises
    ------
    EnvironmentMissingError
        If there is no C compiler.
    """

    target = "cpu"

    def __init__(self, *, rates: Rates | None = None, limit_s: float = 30.0, seed: int = 0, threads: int = 0) -> None:
        default_compiler()
        self.name = cpu_name()
        self._rates, self._threads = rates, threads
        self._worker = WatchedWorker(BACKEND, (seed,), limit_s=limit_s, seed=seed)

    def __enter__(self) -> CpuDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """CPU, threads and compilers: what a measurement depends on besides the kernel."""
        return fingerprint()

    @property
    def workers_replaced(self) -> int:
        """How many workers were lost to faults and hangs so far."""
        return self._worker.replaced

    def rates(self) -> Rates:
        """Return the measured ceilings of one core; measured once (about 1 s), then remembered."""
        if self._rates is None:
            self._rates = self._worker.call("rates")
        return self._rates

    def compile(self, sources: Sequence[KernelSource]) -> Iterator[tuple[int, KernelBinary | CompileError]]:
        """Compile in parallel; yield (index, binary or error) as they finish. Equal sources are compiled once."""
        return compile_many(sources, self._threads)

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
        """Verify, then time, each binary of one kernel program; None for what the deadline cut off.

        A binary that occurs twice runs once. One that crashes or hangs takes its worker with it, and nothing else: it is
        quarantined for the life of this device.
        """
        return self._worker.sweep(
            program, binaries, deadline_s=deadline_s, stop_above_ns=stop_above_ns, progress=progress, apart_bytes=apart_bytes
        )

    def time_plans(self, plans: Sequence[Executable], *, rounds: int = 30) -> list[Measurement]:
        """Time whole plans, interleaved.

        Raises
        ------
        KernelFaultError
            A plan crashed or hung; the message names it.
        """
        if not plans:
            return []
        found: list[Measurement] = self._worker.call("time_plans", tuple(plans), rounds)
        return found

    def verify_plan(self, plan: Executable) -> Verdict:
        """Check a whole plan against the oracle of its program; a plan that crashes or hangs fails the check "launch"."""
        try:
            found: Verdict = self._worker.call("verify_plan", plan, limit_s=PLAN_LIMIT_S)
        except KernelFaultError as fault:
            return Verdict((Check("launch", passed=False, worst=math.inf, seed=0, note=fault_note(fault)),))
        return found

    def time_beside(self, plan: Executable, baseline: Callable[..., object], *, rounds: int = 30) -> Beside:
        """Time a plan and a caller's function on the same NumPy arrays, both called from Python in this process, interleaved."""
        program = plan.plan.program
        inputs = Suite("normal", 0, program).inputs()
        arrays = list(inputs.values())
        run = CpuRunner(plan)
        differs = difference(program, inputs, baseline(*arrays))
        own, other = time_calls([lambda: run(*arrays), lambda: baseline(*arrays)], rounds=rounds)
        return Beside(own, other, differs)

    def close(self) -> None:
        """End the worker; its memory goes with it."""
        self._worker.close()


def cpu_name() -> str:
    """Return the CPU's model name, with family and model where the system tells them (several share one name)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    rows = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in rows.items()}
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def fingerprint() -> str:
    """Return CPU, threads that OpenMP may use and compilers in one line, without starting a worker."""
    return f"{cpu_name()}; {usable_threads()} threads; {', '.join(str(c) for c in compilers()) or 'no C compiler'}"


def open_device(_store: Store | None = None) -> CpuDevice:
    """Open the CPU. The store is not asked: whoever calls remembers the rates there."""
    return CpuDevice()
