"""The CUDA device of the search: kernels compiled here, checked and timed in a worker process that owns the GPU's context."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from eqsat.codegen.cuda import driver, nvrtc
from eqsat.codegen.kernel import KernelBinary, KernelSource, Rates
from eqsat.codegen.plan import Executable
from eqsat.codegen.targets import TARGETS, Target
from eqsat.errors import CompileError, EnvironmentMissingError, KernelFaultError, UsageError
from eqsat.ir import Program
from eqsat.search.arrays import require_cupy
from eqsat.search.beside import difference, time_calls
from eqsat.search.device import Beside, Check, Measurement, Trial, Verdict
from eqsat.search.runner import CudaRunner
from eqsat.search.verify import Suite
from eqsat.search.watched import WatchedWorker, fault_note
from eqsat.types import DType

if TYPE_CHECKING:
    from eqsat.search.store import Store

BACKEND = "eqsat.search.cuda_worker:CudaBackend"
# What one plan may take to be checked: references of large programs in float64 are most of it.
PLAN_LIMIT_S = 300.0


class CudaDevice:
    """One GPU: compiles for its architecture, verifies and times through a watched worker process.

    Parameters
    ----------
    index : int
        Which GPU this process sees.
    rates : Rates, optional
        Ceilings measured before (remembered by the store); measured here at the first `rates()` otherwise.
    limit_s : float
        The longest that one kernel may take to be verified before it counts as hung.
    seed : int
    threads : int
        Compiler workers; by default one for each core.

    Examples
    --------
    with CudaDevice() as device:
        for i, binary in device.compile(sources): ...
        trials = device.sweep(program, binaries)
    """

    def __init__(
        self, index: int = 0, *, rates: Rates | None = None, limit_s: float = 30.0, seed: int = 0, threads: int = 0
    ) -> None:
        self._info, self._index = driver.device_info(index), index
        require_cupy("to verify kernels on the GPU")
        self.name = self._info.name
        self._target = target_of(self._info)
        self.target = self._target.name
        self._rates, self._threads = rates, threads
        self._worker = WatchedWorker(BACKEND, (index, seed), limit_s=limit_s, seed=seed)

    def __enter__(self) -> CudaDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """GPU, driver and compiler: what a measurement depends on besides the kernel."""
        return fingerprint_of(self._info)

    @property
    def workers_replaced(self) -> int:
        """How many workers were lost to faults and hangs so far."""
        return self._worker.replaced

    def rates(self) -> Rates:
        """Return the measured ceilings; measured once (about 3 s), then remembered."""
        if self._rates is None:
            self._rates = self._worker.call("rates")
        return self._rates

    def compile(self, sources: Sequence[KernelSource]) -> Iterator[tuple[int, KernelBinary | CompileError]]:
        """Compile in parallel; yield (index, binary or error) as they finish. Equal sources are compiled once."""
        groups: dict[str, list[int]] = {}
        for i, source in enumerate(sources):
            groups.setdefault(source.digest, []).append(i)
        firsts = [members[0] for members in groups.values()]
        for at, result in nvrtc.compile_many([sources[i] for i in firsts], self._target, self._threads):
            for i in groups[sources[firsts[at]].digest]:
                yield i, result

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

        A binary that occurs twice runs once. One that faults or hangs takes its worker with it, and nothing else: it is
        quarantined for the life of this device. All caches are cold, whatever `apart_bytes` says.
        """
        return self._worker.sweep(program, binaries, deadline_s=deadline_s, stop_above_ns=stop_above_ns, progress=progress)

    def time_plans(self, plans: Sequence[Executable], *, rounds: int = 30) -> list[Measurement]:
        """Time whole plans, each as one CUDA graph, interleaved, their inputs and outputs cold.

        Raises
        ------
        KernelFaultError
            A plan faulted or hung; the message names it.
        """
        if not plans:
            return []
        found: list[Measurement] = self._worker.call("time_plans", tuple(plans), rounds)
        return found

    def verify_plan(self, plan: Executable) -> Verdict:
        """Check a whole plan against the oracle of its program; a plan that faults or hangs fails the check "launch"."""
        try:
            found: Verdict = self._worker.call("verify_plan", plan, limit_s=PLAN_LIMIT_S)
        except KernelFaultError as fault:
            return Verdict((Check("launch", passed=False, worst=math.inf, seed=0, note=fault_note(fault)),))
        return found

    def time_beside(self, plan: Executable, baseline: Callable[..., object], *, rounds: int = 30) -> Beside:
        """Time a plan and a caller's function on the same arrays, both called from Python in this process, interleaved.

        The arrays are PyTorch's if the caller has imported it, else CuPy's. A sample is one call and the wait for its end.
        """
        cupy = require_cupy("to time a baseline on the GPU")
        with cupy.cuda.Device(self._index):
            program = plan.plan.program
            drawn = Suite("normal", 0, program).inputs(cupy)
            arrays = _baseline_arrays(cupy, program, drawn)
            run = CudaRunner(plan, self._index)
            found = baseline(*arrays)
            cupy.cuda.runtime.deviceSynchronize()
            differs = difference(program, drawn, found, cupy)
            calls = [lambda: run(*arrays), lambda: baseline(*arrays)]
            own, other = time_calls(calls, rounds=rounds, wait=cupy.cuda.runtime.deviceSynchronize)
        return Beside(own, other, differs)

    def close(self) -> None:
        """End the worker; its memory goes with it."""
        self._worker.close()


def _baseline_arrays(cupy: Any, program: Program, drawn: Mapping[str, Any]) -> list[Any]:
    torch = sys.modules.get("torch")
    if torch is not None:
        tensors = {name: torch.from_dlpack(a.view(cupy.int16) if a.dtype == cupy.uint16 else a) for name, a in drawn.items()}
        return [tensors[i.name].view(torch.bfloat16) if i.dtype is DType.BF16 else tensors[i.name] for i in program.inputs]
    if any(i.dtype is DType.BF16 for i in program.inputs):
        raise UsageError(
            "expected PyTorch to be imported for a baseline on bf16 arrays: CuPy has no such type. Import torch first."
        )
    return list(drawn.values())


def target_of(info: driver.DeviceInfo) -> Target:
    """Return the target whose cubins run on a GPU: its own, or the nearest older one of the same major architecture."""
    major, minor = info.capability
    fitting = [t for t in TARGETS.values() if t.kind == "cuda" and t.capability // 10 == major and t.capability % 10 <= minor]
    if not fitting:
        known = ", ".join(t.name for t in TARGETS.values() if t.kind == "cuda")
        raise EnvironmentMissingError(
            f"expected a GPU that one of the targets {known} runs on; found {info.name} ({info.target}). Use target='cpu'."
        )
    return max(fitting, key=lambda t: t.capability)


def fingerprint_of(info: driver.DeviceInfo) -> str:
    """Return device, driver and compiler in one line."""
    return f"{info.name}; {info.target}; driver {info.driver}; {nvrtc.version()}"


def fingerprint(index: int = 0) -> str:
    """Return the fingerprint of GPU `index` without making a context on it."""
    return fingerprint_of(driver.device_info(index))


def open_device(_store: Store | None = None) -> CudaDevice:
    """Open GPU 0. The store is not asked: whoever calls remembers the rates there."""
    return CudaDevice()
