"""A worker process that may crash, hang or lose its GPU without taking the search with it.

The parent starts `main` below in a fresh interpreter and talks to it through a pipe. It is not a
`multiprocessing` child: that one would run the user's script again, whose top level called us.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal

from eqsat import errors
from eqsat.errors import EqsatError, KernelFaultError
from eqsat.search.beside import MISLEADING  # a slower BLAS would make references slower, too

_LOST_CONTEXT_EXIT = 3
# not `-m`: there the messages would be classes of `__main__`, which the parent cannot load
_START = "from eqsat.search.supervised import main; main()"


@dataclass(frozen=True, slots=True)
class Begin:
    """The worker is about to do something that may fault or hang, for item `index` (None: for no single item)."""

    index: int | None
    limit_s: float
    doing: str


@dataclass(frozen=True, slots=True)
class Done:
    """The job's result."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The job raised an error of eqsat; `lost` means that the worker cannot go on."""

    error: str
    message: str
    lost: bool


class WorkerLostError(KernelFaultError):
    """The worker died or was killed; `begun` says what it was doing."""

    def __init__(self, status: Literal["fault", "timeout"], note: str, begun: Begin) -> None:
        self.status, self.note, self.begun = status, note, begun
        super().__init__(f"{begun.doing}: {note}")


class WorkerProcess:
    """The parent's end: start, call, watch, kill.

    Parameters
    ----------
    backend : str
        "module:class" of the object that does the work; its methods are generators of messages.
    options : tuple
        Arguments of its constructor.
    start_limit_s : float
        Time to start in: it imports its libraries and opens its device.
    """

    def __init__(self, backend: str, options: tuple[Any, ...] = (), *, start_limit_s: float = 180.0) -> None:
        ours, theirs = Pipe(duplex=True)
        self._log = Path(tempfile.mkstemp(prefix="eqsat-worker-", suffix=".log")[1])
        path = os.pathsep.join(p or str(Path.cwd()) for p in sys.path)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), backend],
                pass_fds=[theirs.fileno()],
                env={k: v for k, v in os.environ.items() if k not in MISLEADING} | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C is for the parent alone
            )
        theirs.close()
        self._pipe: Connection[Any, Any] = ours
        self._begun = Begin(None, start_limit_s, "starting the worker")
        with contextlib.ExitStack() as unless_it_starts:
            unless_it_starts.callback(self.kill)
            self._pipe.send(options)
            self.description: Any = self._wait(None)
            unless_it_starts.pop_all()

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return self._process.poll() is None and not self._pipe.closed

    def call(self, method: str, *args: Any, on_event: Callable[[Any], None] | None = None, limit_s: float = 120.0) -> Any:
        """Run a method of the backend and return its result.

        Messages that are neither Begin nor Done go to `on_event`. `limit_s` holds until the first Begin.

        Raises
        ------
        WorkerLostError
            It faulted, hung or crashed; it is gone, and a new WorkerProcess must be made.
        EqsatError
            What the method raised; the worker lives.
        """
        self._begun = Begin(None, limit_s, method)
        try:
            self._pipe.send((method, args))
            return self._wait(on_event)
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost("fault", self._last_words()) from None
        finally:
            # an interrupt, or an error in on_event: the worker is in the middle of the job and its messages would confuse the next
            if not self._idle:
                self.kill()

    def _wait(self, on_event: Callable[[Any], None] | None) -> Any:
        self._idle = False
        deadline = time.monotonic() + self._begun.limit_s
        while True:
            remaining = max(0.0, min(deadline - time.monotonic(), 3600.0))
            if not self._pipe.poll(remaining):
                if time.monotonic() < deadline:
                    continue
                raise self._lost("timeout", f"it did not end within {self._begun.limit_s:g} s; the worker was replaced")
            try:
                message = self._pipe.recv()
            except (EOFError, OSError, pickle.UnpicklingError):
                raise self._lost("fault", self._last_words()) from None
            match message:
                case Begin():
                    self._begun, deadline = message, time.monotonic() + message.limit_s
                case Done():
                    self._idle = True
                    return message.value
                case Failed(lost=True):
                    raise self._lost("fault", message.message)
                case Failed():
                    self._idle = True
                    raise _error(message)
                case _:
                    if on_event is not None:
                        on_event(message)

    def _lost(self, status: Literal["fault", "timeout"], note: str) -> WorkerLostError:
        self.kill()
        return WorkerLostError(status, note, self._begun)

    def _last_words(self) -> str:
        """How the process ended and what it wrote last."""
        try:
            code: int | None = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        text = self._log.read_text(errors="replace").strip() if self._log.exists() else ""
        return f"the worker ended with exit code {code}" + (f": {text[-2000:]}" if text else "")

    def kill(self) -> None:
        """End the process at once and free what it held."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._pipe.close()
        self._log.unlink(missing_ok=True)


def _error(failed: Failed) -> EqsatError:
    """Make the error that the worker raised; kinds with a constructor of their own come as their base."""
    kind = getattr(errors, failed.error, KernelFaultError)
    if not issubclass(kind, EqsatError) or issubclass(kind, errors.TextError):
        kind = EqsatError
    made: EqsatError = kind(failed.message)
    return made


def serve(pipe: Connection[Any, Any], backend: str) -> int:
    """Run jobs until the parent closes the pipe; return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    options = pipe.recv()
    module, _, name = backend.partition(":")
    try:
        worker = getattr(importlib.import_module(module), name)(*options)
    except EqsatError as reason:
        pipe.send(Failed(type(reason).__name__, str(reason), lost=False))
        return 1
    pipe.send(Done(worker.describe()))
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            return 0
        if not _run(pipe, getattr(worker, method)(*args)):
            return _LOST_CONTEXT_EXIT


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone, also while a kernel hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run(pipe: Connection[Any, Any], job: Generator[Any, None, Any]) -> bool:
    """Send a job's messages and its result; return whether the worker can go on."""
    try:
        value = _drain(pipe, job)
    except EqsatError as reason:
        lost = bool(getattr(reason, "sticky", False))
        known = next(c.__name__ for c in type(reason).__mro__ if hasattr(errors, c.__name__))
        pipe.send(Failed(known, str(reason), lost))
        return not lost
    pipe.send(Done(value))
    return True


def _drain(pipe: Connection[Any, Any], job: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            message = next(job)
        except StopIteration as end:
            return end.value
        pipe.send(message)


def main() -> None:
    """Entry point of the worker process; ends it without running destructors, which would block on a lost context."""
    descriptor, backend = sys.argv[1:]
    code = serve(Connection(int(descriptor)), backend)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
