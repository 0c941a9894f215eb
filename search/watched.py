"""Sweeps through a worker that may be lost: the offender is quarantined, the worker replaced, the rest goes on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eqsat.codegen.kernel import KernelBinary
from eqsat.errors import KernelFaultError
from eqsat.ir import Program
from eqsat.search.device import Trial, Verdict
from eqsat.search.supervised import WorkerLostError, WorkerProcess

# A loss that no single kernel can be blamed for is answered by trying again, one kernel at a time; this often at most.
_BLAMELESS_LOSSES = 3

Progress = Callable[[int, Trial], None]


@dataclass(frozen=True, slots=True)
class SweepJob:
    """What a worker needs to verify and time kernels of one program.

    `verdicts` are those that an earlier worker reached before it was lost. `budget_s` is the time left. With `isolate` only one
    kernel is in flight at a time. `limit_s` is the longest that a single kernel may take to be verified. `apart_bytes`: see `Device.sweep`.
    """

    program: Program
    binaries: tuple[tuple[int, KernelBinary], ...]
    verdicts: dict[int, Verdict]
    stop_above_ns: float
    budget_s: float
    limit_s: float
    isolate: bool
    seed: int
    apart_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """Message: kernel `index` was checked."""

    index: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Finished:
    """Message: kernel `index` is done with."""

    index: int
    trial: Trial


def launch_key(binary: KernelBinary) -> str:
    """Return the identity of what runs: the image and how it is launched. Sources that compile to the same are one."""
    s = binary.source
    launch = (s.entry, s.args, s.grid, s.block, s.cluster, s.shared_bytes, s.workspace_bytes)
    return hashlib.sha256(f"{binary.digest}\n{launch}".encode()).hexdigest()


@dataclass(slots=True)
class _Sweep:
    """The state of one sweep in the parent."""

    keys: list[str]
    trials: list[Trial | None]
    pending: dict[int, KernelBinary]
    progress: Progress | None
    verdicts: dict[int, Verdict] = field(default_factory=dict)

    def receive(self, message: Any) -> None:
        match message:
            case Verified():
                self.verdicts[message.index] = message.verdict
            case Finished():
                self.finish(message.index, message.trial)

    def finish(self, index: int, trial: Trial) -> None:
        """Record the trial for the kernel and for all that are the same binary."""
        self.pending.pop(index, None)
        for i, key in enumerate(self.keys):
            if key == self.keys[index] and self.trials[i] is None:
                self.trials[i] = trial
                if self.progress is not None:
                    self.progress(i, trial)


class WatchedWorker:
    """A worker process that is started when first needed and replaced when lost.

    Parameters
    ----------
    backend : str
        "module:class" for `WorkerProcess`.
    options : tuple
    limit_s : float
        The longest that one kernel may take to be verified.
    seed : int
        Of the test data and of the order in which kernels are timed.
    """

    def __init__(self, backend: str, options: tuple[Any, ...] = (), *, limit_s: float = 30.0, seed: int = 0) -> None:
        self._backend, self._options = backend, options
        self._limit_s, self._seed = limit_s, seed
        self._process: WorkerProcess | None = None
        self._quarantine: dict[str, Trial] = {}
        self.replaced = 0

    @property
    def process(self) -> WorkerProcess:
        """The worker, started if there is none."""
        if self._process is None or not self._process.alive:
            self.replaced += self._process is not None
            self._process = WorkerProcess(self._backend, self._options)
        return self._process

    @property
    def quarantined(self) -> tuple[str, ...]:
        """Launch keys of kernels that lost a worker and will not run again."""
        return tuple(self._quarantine)

    def sweep(
        self,
        program: Program,
        binaries: Sequence[KernelBinary],
        *,
        deadline_s: float = float("inf"),
        stop_above_ns: float = float("inf"),
        progress: Progress | None = None,
        apart_bytes: int = 0,
    ) -> list[Trial | None]:
        """Verify and time; see `Device.sweep`."""
        keys = [launch_key(b) for b in binaries]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        state = _Sweep(keys, [None] * len(keys), {i: binaries[i] for i in sorted(first.values())}, progress)
        for i in list(state.pending):
            if keys[i] in self._quarantine:
                state.finish(i, self._quarantine[keys[i]])
        isolate, blameless = False, 0
        while state.pending and time.monotonic() < deadline_s:
            job = SweepJob(
                program, tuple(state.pending.items()), {i: state.verdicts[i] for i in state.pending if i in state.verdicts},
                stop_above_ns, deadline_s - time.monotonic(), self._limit_s, isolate, self._seed,
                apart_bytes,
            )  # fmt: skip
            try:
                self.process.call("sweep", job, on_event=state.receive)
                break
            except WorkerLostError as lost:
                if lost.begun.index is not None:
                    self._condemn(state, lost.begun.index, lost.status, lost.note)
                    continue
                isolate, blameless = True, blameless + 1
                if blameless > _BLAMELESS_LOSSES:
                    raise
        return state.trials

    def _condemn(self, state: _Sweep, index: int, status: Literal["fault", "timeout"], note: str) -> None:
        trial = Trial(status, state.verdicts.get(index), note=note)
        self._quarantine[state.keys[index]] = trial
        state.finish(index, trial)

    def call(self, method: str, *args: Any, limit_s: float = 300.0) -> Any:
        """Run another method of the backend; a lost worker is replaced at the next call.

        Raises
        ------
        KernelFaultError
            The worker was lost; says what it was doing.
        """
        return self.process.call(method, *args, limit_s=limit_s)

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.kill()
            self._process = None


def fault_note(error: KernelFaultError) -> str:
    """Return what a lost worker or a failed launch says, in one line."""
    return " ".join(str(error).split())
