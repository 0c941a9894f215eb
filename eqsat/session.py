"""The e-graph session: bounded saturation in a worker process that can be killed and replayed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import IO, Any, Self

from eqsat import signature
from eqsat.egraph import check_syntax
from eqsat.errors import ContradictionError, EnvironmentMissingError, EqsatError, SaturationError
from eqsat.frozen import Frozen
from eqsat.ir import Program
from eqsat.relevance import needed_text, relevant
from eqsat.saturation import PHASES, EgglogRule, Limits, Phase, RuleCount, SaturationReport, Stop
from eqsat.worker import Clash, ContradictionTask, LogTask, PointsTask, SaturateTask, UseLog

__all__ = ["Session", "check_syntax"]

_REPLAYS = 4
_POLL_S = 3600.0  # the system call takes no arbitrarily long wait
Point = tuple[str, tuple[int | str, ...]]


class _WorkerLostError(Exception):
    """The worker died or was killed; `steps` were done before."""

    def __init__(self, stop: Stop, why: str, steps: int) -> None:
        super().__init__(why)
        self.stop, self.why, self.steps = stop, why, steps


class Session:
    """A worker process with the e-graph engine loaded; a context manager.

    The process starts when the session is made and loads the engine while the caller goes on; each call below runs in a
    fresh e-graph. Ctrl-C while waiting ends the worker at once.

    Examples
    --------
    >>> from eqsat.ir import Input, Output, Program, read, reduce
    >>> from eqsat.types import DType
    >>> x = read("x", ("i",), (8,), DType.F32)
    >>> program = Program((Input("x", (8,), DType.F32),), (Output("y", reduce("sum", "i", x), (), DType.F32),))
    >>> with Session() as session:
    ...     report, frozen = session.saturate(program, [])
    >>> report.stop, frozen.node_count
    ('saturated', 2)
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def worker(self) -> int | None:
        """Process id of the worker, for whoever measures it; None while there is none."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the worker; a later call starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        self._requests.close()
        self._answers.close()
        self._log.close()

    def saturate(
        self,
        program: Program,
        rules: Sequence[EgglogRule],
        *,
        declarations: str = "",
        limits: Limits | None = None,
        phases: Sequence[Phase] = PHASES,
    ) -> tuple[SaturationReport, Frozen]:
        """Saturate `program` under `rules` and freeze the e-graph.

        Parameters
        ----------
        program : Program
        rules : sequence of EgglogRule
            In the order in which a round runs them; rules of phases that do not occur in `phases` are left out.
        declarations : str
            egglog text that the rules rest on: relations and facts.
        limits : Limits, optional
        phases : sequence of Phase, optional

        Returns
        -------
        report : SaturationReport
        frozen : Frozen

        Raises
        ------
        TextError
            If a rule's text is malformed or uses a name that is not declared.
        ContradictionError
            If rules make two values equal that differ in dtype; it names the rules that met.
        SaturationError
            If the worker fails even with no growth at all.
        """
        start_s = time.perf_counter()
        roots = tuple(f"$root{i}" for i in range(len(program.outputs)))
        load_text = signature.load_text(program, roots)
        task = _saturation(load_text, roots, rules, declarations, limits or Limits(), phases)
        ran = {phase for p in phases for phase in p.rules}
        replays: list[str] = []
        while True:
            try:
                report, frozen = self._ask(task, task.limits.hard_s * (2 if replays else 1))
            except _WorkerLostError as lost:
                replays.append(lost.why)
                if len(replays) > _REPLAYS:
                    raise SaturationError(
                        f"the e-graph worker failed {len(replays)} times, at last with no growth at all: {'; '.join(replays)}. "
                        "Raise the limits, or take out the lowering or analysis rule that does not end."
                    ) from None
                task = replace(task, cut=_earlier(task.cut, lost, last=len(replays) == _REPLAYS))
                continue
            except ContradictionError as error:
                from eqsat.contradiction import explained  # it needs rules as this module does not

                raise explained(self, error, program, rules, declarations, task.limits, phases) from None
            passed_ms = (time.perf_counter() - start_s) * 1e3
            counts = {r.name: RuleCount(r.name, 0, 0.0) for r in rules if r.phase != "analysis" and r.phase in ran}
            counts |= {c.name: c for c in report.rules}
            ordered = tuple(counts[name] for name in sorted(counts))
            return replace(report, rules=ordered, replays=tuple(replays), time_ms=passed_ms), frozen

    def log_uses(
        self,
        load_text: str,
        rules: Sequence[EgglogRule],
        goal: str,
        *,
        declarations: str = "",
        limits: Limits | None = None,
        phases: Sequence[Phase] = PHASES,
    ) -> UseLog:
        """Saturate until the fact `goal` holds under rules that log their uses, and return the log.

        Parameters
        ----------
        load_text : str
            Facts and terms.
        rules : sequence of EgglogRule
            They put their uses into `used-rule`; see `LogTask`.
        goal : str
        declarations : str
        limits : Limits, optional
        phases : sequence of Phase, optional

        Raises
        ------
        SaturationError
            If a hard limit was hit: part of a log proves nothing, so nothing is repeated.
        """
        task = LogTask(_saturation(load_text, (), rules, declarations, limits or Limits(), phases), goal)
        try:
            found: UseLog = self._ask(task, task.limits.hard_s)
        except _WorkerLostError as lost:
            raise SaturationError(f"the replay with logged rules failed: {lost.why}") from None
        return found

    def look_into(
        self,
        load_text: str,
        rules: Sequence[EgglogRule],
        probes: Mapping[str, str],
        *,
        declarations: str,
        limits: Limits,
        phases: Sequence[Phase],
    ) -> Clash | None:
        """Saturate until a step contradicts, under rules that log their uses; return what its rule would equate.

        `probes` has, for each rule, text that only logs that. None if nothing contradicts within the limits.
        """
        task = ContradictionTask(_saturation(load_text, (), rules, declarations, limits, phases), probes)
        try:
            found: Clash | None = self._ask(task, 3 * limits.hard_s)
        except _WorkerLostError:
            return None
        return found

    def schedule_points(
        self, spaces: Sequence[str], rules: Sequence[EgglogRule], *, declarations: str = "", limits: Limits | None = None
    ) -> list[list[Point]]:
        """Return the points of schedule spaces: what the rules of phase `schedule` unite with each space's term.

        Parameters
        ----------
        spaces : sequence of str
            Terms of space constructors (names end in `Space`), such as `(ContractSpace "cuda" 1 4096 4096 4096)`.
        rules : sequence of EgglogRule
        declarations : str
            Sorts, constructors, relations and facts of the schedule rules.
        limits : Limits, optional

        Returns
        -------
        list of list of (str, tuple)
            For each space its points in sorted order: constructor name and all arguments, the space's key included.
        """
        limits = limits or Limits()
        if not spaces:
            return []
        used = [r for r in rules if r.phase == "schedule"]
        rulesets, rule_texts = _in_rulesets(used)
        texts = (("<signature>", signature.declarations()), ("<declarations>", declarations), *rule_texts)
        try:
            found: list[list[Point]] = self._ask(PointsTask(texts, rulesets, tuple(spaces), limits), limits.hard_s)
        except _WorkerLostError as lost:
            raise SaturationError(
                f"listing the points of {len(spaces)} schedule spaces failed: {lost.why}. A schedule rule does not end, or "
                "its menu is too large for the limits."
            ) from None
        return found

    def _start(self) -> None:
        request_end, requests = os.pipe()
        answers, answer_end = os.pipe()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        code = f"import sys; sys.path[:] = {sys.path!r}; from eqsat.worker import serve; serve({request_end}, {answer_end})"
        # One thread keeps the engine deterministic across processes, which replay rests on.
        env = os.environ | {"RUST_BACKTRACE": "0", "RAYON_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=env,
                pass_fds=(request_end, answer_end), process_group=0,
            )  # fmt: skip
        except OSError as error:
            raise EnvironmentMissingError(f"the e-graph worker could not be started with {sys.executable!r}: {error}") from error
        finally:
            os.close(request_end)
            os.close(answer_end)
        self._requests, self._answers = Connection(requests, readable=False), Connection(answers, writable=False)

    def _ask(self, task: object, limit_s: float) -> Any:
        """Send a task and wait for its answer; the worker is ended if it takes longer than `limit_s`, or on Ctrl-C."""
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it died while idle
        if self._process is None:
            self._start()
        deadline_s = time.monotonic() + limit_s
        steps = 0
        answered = False
        try:
            self._requests.send(task)
            while (left_s := deadline_s - time.monotonic()) > 0:
                if not self._answers.poll(min(left_s, _POLL_S)):
                    continue
                kind, value = self._answers.recv()
                answered = kind != "step"
                if kind == "done":
                    return value
                if kind == "error":
                    raise _as_raised(*value)
                steps = value
            raise _WorkerLostError("time", f"step {steps + 1} passed the hard limit of {limit_s:g} s", steps)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise self._lost(steps) from None
        finally:
            if not answered:  # killed in a step, or Ctrl-C here: an answer that comes later must meet no later question
                self.close()

    def _lost(self, steps: int) -> _WorkerLostError | EnvironmentMissingError:
        """Say why the worker died."""
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        code = process.returncode
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        detail = f" ({said[-1]})" if said else ""
        if code == 1:
            return EnvironmentMissingError(f"the e-graph worker could not run{detail}; is egglog installed?")
        return _WorkerLostError("memory", f"the worker ended with status {code} in step {steps + 1}{detail}", steps)


def _saturation(
    load_text: str,
    roots: tuple[str, ...],
    rules: Sequence[EgglogRule],
    declarations: str,
    limits: Limits,
    phases: Sequence[Phase],
) -> SaturateTask:
    """Lay out what the worker loads; rules of phases that do not run (analyses always do) and that cannot fire are left out."""
    running = [r for r in rules if r.phase == "analysis" or any(r.phase in p.rules for p in phases)]
    used, held = relevant(running, declarations, load_text, phases=phases)
    rulesets, rule_texts = _in_rulesets(used)
    own = signature.declarations(accesses="Access" in held)
    needed = needed_text(declarations, used)
    texts = (("<signature>", own), ("<declarations>", needed), *rule_texts, ("<program>", load_text))
    steps = tuple((r.name, r.phase, s) for r, s in zip(used, rulesets, strict=True) if r.phase != "analysis")
    return SaturateTask(texts, roots, steps, tuple(signature.constructors()), tuple(phases), limits)


def _in_rulesets(rules: Sequence[EgglogRule]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Give each rule a ruleset of its own (analysis rules share one); return their names, and the texts by rule."""
    names = tuple("rs-analysis" if r.phase == "analysis" else f"rs-{r.phase}--{i}" for i, r in enumerate(rules))
    own = "\n".join(f"(ruleset {n})" for n in names if n != "rs-analysis")
    return names, (("<rulesets>", own), *((r.name, r.egglog(n)) for r, n in zip(rules, names, strict=True)))


def _as_raised(kind: type[EqsatError], message: str, attributes: dict[str, object]) -> EqsatError:
    """Return the worker's error as it was raised there: errors whose constructor composes the message do not pickle."""
    error = kind.__new__(kind)
    error.args = (message,)
    vars(error).update(attributes)
    return error


def _earlier(cut: tuple[int, Stop] | None, lost: _WorkerLostError, *, last: bool) -> tuple[int, Stop]:
    """Return where growth must end so that the failure does not recur."""
    if cut is None:
        return lost.steps, lost.stop
    # The phases after growth failed, or memory was short already: leave them less to do.
    return (0 if last else min(cut[0], lost.steps) // 2), cut[1]
