"""What the worker process does: saturate, list the points of schedule spaces; one request after another.

The parent watches: it hears of every step, and kills the process when a step takes too long.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from eqsat.egraph import EGraph, Table
from eqsat.errors import ContradictionError, EqsatError, SaturationError
from eqsat.frozen import Frozen, Row, build
from eqsat.indexterms import index_texts
from eqsat.saturation import LIMITS, Limits, Phase, PhaseReport, RuleCount, SaturationReport, Stop

_PLAIN_SORTS = ("i64", "f64", "String", "bool")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MIRROR = "Mirror"
PROBED = "probed-rule"
OUT_OF_MEMORY = 3
ANALYSIS = "(run-schedule (saturate (run rs-analysis)))"


def serve(requests: int, answers: int) -> None:
    """Answer requests until the parent closes the pipe.

    Parameters
    ----------
    requests, answers : int
        File descriptors. A request is (name of a function below, its task); an answer is ("step", count), ("done", value)
        or ("error", exception).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear; it then closes or kills this process
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    inbox, outbox = Connection(requests, writable=False), Connection(answers, readable=False)
    EGraph()  # load the engine while the parent is busy
    while True:
        try:
            task = inbox.recv()
        except EOFError:
            return
        try:
            cap_memory(2 * task.limits.memory_bytes)
            outbox.send(("done", _TASKS[type(task)](task, lambda steps: outbox.send(("step", steps)))))
        except EqsatError as error:
            outbox.send(("error", (type(error), str(error), vars(error))))
        except MemoryError:  # Python met the cap before the engine did; the engine would have aborted
            os._exit(OUT_OF_MEMORY)


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone, even in the middle of a step."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@dataclass(frozen=True, slots=True)
class SaturateTask:
    """What a worker needs for a saturation.

    Parameters
    ----------
    texts : tuple of (str, str)
        (file name, commands) to load in order: declarations, rulesets and rules, facts and terms of the program.
    roots : tuple of str
        Globals bound to the outputs.
    rules : tuple of (str, str, str)
        (name, phase, ruleset) of every rule, in the order of a round.
    constructors : tuple of str
        Tables whose rows count as e-nodes.
    phases : tuple of Phase
    limits : Limits
    cut : (int, Stop) or None
        In a replay: growth ends after this many steps, for this reason; the other limits are off.
    """

    texts: tuple[tuple[str, str], ...]
    roots: tuple[str, ...]
    rules: tuple[tuple[str, str, str], ...]
    constructors: tuple[str, ...]
    phases: tuple[Phase, ...]
    limits: Limits
    cut: tuple[int, Stop] | None = None


@dataclass(frozen=True, slots=True)
class LogTask:
    """What a worker needs to record how a goal is reached: a saturation whose rules log their uses, and the goal.

    The rules put each use into the relation `used-rule` (name, left and right side as mirror terms). Mirror terms are
    built by constructors named `Mirror…` of a sort that is never unioned, so that the engine never rewrites them.
    """

    saturation: SaturateTask
    goal: str

    @property
    def limits(self) -> Limits:
        """Limits of the saturation."""
        return self.saturation.limits


@dataclass(frozen=True, slots=True)
class UseLog:
    """Uses of rules: whether the goal was reached and why growth stopped; mirror terms by number; (rule, left, right)."""

    reached: bool
    stop: Stop
    terms: dict[int, tuple[str, tuple[Any, ...]]]
    uses: list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class ContradictionTask:
    """What a worker needs to look into a contradiction.

    Parameters
    ----------
    saturation : SaturateTask
        Its rules log their uses.
    probes : mapping of str to str
        For each rule, text that only logs what the rule would equate; `{ruleset}` stands for its ruleset.
    """

    saturation: SaturateTask
    probes: Mapping[str, str]

    @property
    def limits(self) -> Limits:
        """Limits of the saturation."""
        return self.saturation.limits


@dataclass(frozen=True, slots=True)
class Clash:
    """The rule that contradicts, what it would equate, and the uses of rules before it: all as in `UseLog`."""

    rule: str
    terms: dict[int, tuple[str, tuple[Any, ...]]]
    uses: list[tuple[str, int, int]]
    probed: list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class PointsTask:
    """What a worker needs to list the points of schedule spaces: texts as above, rulesets to saturate, space terms."""

    texts: tuple[tuple[str, str], ...]
    rulesets: tuple[str, ...]
    spaces: tuple[str, ...]
    limits: Limits


Tell = Callable[[int], None]


def saturate(task: SaturateTask, tell: Tell) -> tuple[SaturationReport, Frozen]:
    """Load, run all phases and freeze; `tell` hears the number of steps done after each."""
    return Course(task, tell).run()


def log(task: LogTask, tell: Tell) -> UseLog:
    """Saturate until the goal holds, and return what the rules logged."""
    return Course(task.saturation, tell, task.goal).run_to_goal()


def clash(task: ContradictionTask, tell: Tell) -> Clash | None:
    """Find the step that contradicts, stop before it, and see what its rule would equate; None if there is none."""
    first = Course(task.saturation, tell)
    try:
        first.run_phases()
    except ContradictionError as error:
        if not error.rules:
            raise  # the program's own facts contradict
        (rule,) = error.rules
    else:
        return None
    return Course(task.saturation, tell, halt=first.steps).run_to_clash(rule, task.probes.get(rule, ""))


class _HaltedError(Exception):
    """The step at which a course was to halt has come."""


class Course:
    """One saturation under way; it stops growing when the fact `goal` holds."""

    def __init__(self, task: SaturateTask, tell: Tell, goal: str = "", halt: int | None = None) -> None:
        self._task, self._tell, self._goal, self._halt = task, tell, goal, halt
        self._start_s = time.perf_counter()
        self._start_cpu_s = time.process_time()
        self._graph = EGraph()
        for file, text in task.texts:
            self._graph.run(text, file)
        self._analysis = self._graph.parse(ANALYSIS)
        self._commands = {name: self._graph.parse(f"(run-schedule (run {ruleset}))") for name, _, ruleset in task.rules}
        self._matches = dict.fromkeys(["analysis", *self._commands], 0)
        self._time_s = dict.fromkeys(self._matches, 0.0)
        self.steps = 0
        self._version = 0  # counts changes of the e-graph
        self._seen: dict[str, int] = {}  # rule -> version at which it last had nothing to add
        self._goal_seen = -1  # version at which the goal was last looked for
        self._nodes = 0
        self._grown = ""  # the rule that changed the e-graph last
        self._stopped: Stop | None = None
        self._worker_bytes = resident_bytes()

    def run(self) -> tuple[SaturationReport, Frozen]:
        """Run the phases, then freeze."""
        phases = self.run_phases()
        frozen = self._freeze()
        rules = tuple(RuleCount(n, self._matches[n], self._time_s[n] * 1e3) for n in sorted(self._matches))
        passed_ms = (time.perf_counter() - self._start_s) * 1e3
        return SaturationReport(phases, rules, frozen.node_count, frozen.class_count, self.steps, passed_ms), frozen

    def run_to_goal(self) -> UseLog:
        """Run the phases until the goal holds, then read the log; a mirror's name is its constructor's without the prefix."""
        self.run_phases()
        tables = self._graph.tables()
        stop = self._stopped or "saturated"
        uses = [args for args, _ in tables["used-rule"].rows]
        return UseLog(self._graph.holds(self._goal), stop, mirror_terms(tables), uses)

    def run_to_clash(self, rule: str, probe: str) -> Clash:
        """Run until the course halts, then look at what the rule would equate."""
        with contextlib.suppress(_HaltedError):
            self.run_phases()
        if probe:
            self._graph.run("(ruleset rs-probe)\n" + probe.replace("{ruleset}", "rs-probe"), "<probe>")
            self._graph.run("(run-schedule (run rs-probe))", "<probe>")
        tables = self._graph.tables()
        used, probed = ([args for args, _ in tables[name].rows] for name in ("used-rule", PROBED))
        return Clash(rule, mirror_terms(tables), used, probed)

    def run_phases(self) -> tuple[PhaseReport, ...]:
        """Run all phases; ContradictionError names the rule whose step contradicts, none where it is the program itself."""
        self._analyse()
        self._nodes = self._count()
        return tuple(self._phase(p) for p in self._task.phases)

    def _phase(self, phase: Phase) -> PhaseReport:
        start_s, first = time.perf_counter(), self.steps
        rules = [name for name, of, _ in self._task.rules if of in phase.rules]
        rounds, at_fault = 0, ""
        stop: Stop | None = "skipped" if phase.grows and self._stopped else None
        if "analysis" in phase.rules:
            self._analyse()
        while stop is None:
            rounds += 1
            before = self._version
            for name in rules:
                if self._seen.get(name) == self._version:
                    continue
                stop = self._limit(phase)
                if stop is not None:
                    # In a replay the step that failed is the one that is not taken; else it is the last that changed anything.
                    at_fault = name if self._task.cut is not None else self._grown
                    break
                self._step(name)
            else:
                if self._version == before:
                    stop = "saturated"
                elif rounds == phase.rounds:
                    stop = "rounds"
        if phase.grows and stop in (*LIMITS, "goal"):
            self._stopped = stop
        passed_ms = (time.perf_counter() - start_s) * 1e3
        return PhaseReport(
            phase.name, stop, rounds, self.steps - first, self._nodes, passed_ms, at_fault if stop != "goal" else ""
        )

    def _step(self, name: str) -> None:
        """Run one rule once over everything that is new to it, then bring the analysis up to date."""
        if self.steps == self._halt:
            raise _HaltedError
        try:
            self._step_once(name)
        except ContradictionError as error:
            raise ContradictionError(str(error), (name,)) from None
        self.steps += 1
        self._tell(self.steps)

    def _step_once(self, name: str) -> None:
        start_s = time.perf_counter()
        updated, matches = self._graph.step(self._commands[name])
        self._time_s[name] += time.perf_counter() - start_s
        self._matches[name] += matches
        if updated:
            self._version += 1
            self._grown = name
            self._analyse()
            self._nodes = self._count()
        else:
            self._seen[name] = self._version

    def _analyse(self) -> None:
        start_s = time.perf_counter()
        _, matches = self._graph.step(self._analysis)
        self._time_s["analysis"] += time.perf_counter() - start_s
        self._matches["analysis"] += matches

    def _limit(self, phase: Phase) -> Stop | None:
        if not phase.grows:
            return None
        if self._goal and self._goal_seen != self._version:
            self._goal_seen = self._version
            if self._graph.holds(self._goal):
                return "goal"
        if self._task.cut is not None:
            return self._task.cut[1] if self.steps >= self._task.cut[0] else None
        limits = self._task.limits
        if self._nodes >= limits.nodes:
            return "nodes"
        if sum(self._matches.values()) >= limits.matches:
            return "matches"
        if time.process_time() - self._start_cpu_s >= limits.soft_s:
            return "time"
        return "memory" if resident_bytes() - self._worker_bytes >= limits.memory_bytes else None

    def _count(self) -> int:
        sizes = self._graph.sizes()
        return sum(sizes[name] for name in self._task.constructors)

    def _freeze(self) -> Frozen:
        tables = self._graph.tables()
        indices = index_texts(tables)
        arguments: dict[str, tuple[str, ...]] = {}
        rows: list[Row] = []
        for op in self._task.constructors:
            table = tables[op]
            arguments[op] = table.arguments
            operand = [s in ("T", "Region") for s in table.arguments]
            at_index = [i for i, s in enumerate(table.arguments) if s == "Index"]
            for args, result in table.rows:
                for i in at_index:
                    args = (*args[:i], indices[args[i]], *args[i + 1 :])
                children = tuple(a for a, is_class in zip(args, operand, strict=True) if is_class)
                literals = tuple(a for a, is_class in zip(args, operand, strict=True) if not is_class)
                rows.append(Row(op, table.result, result, children, literals))
        return build(
            rows,
            {args[0]: value for args, value in tables["axes"].rows},
            {args[0]: value for args, value in tables["dtype"].rows},
            [args[0] for args, _ in tables["constant"].rows],
            [tables[root].rows[0][1] for root in self._task.roots],
            arguments,
            {args[0]: value for args, value in tables["extent"].rows},
        )


def mirror_terms(tables: Mapping[str, Table]) -> dict[int, tuple[str, tuple[Any, ...]]]:
    """Return mirror terms by number; a mirror's name is its constructor's without the prefix."""
    indices = index_texts(tables)
    return {
        result: (
            name.removeprefix(MIRROR),
            tuple(indices[a] if s == "Index" else a for a, s in zip(args, table.arguments, strict=True)),
        )
        for name, table in tables.items()
        if name.startswith(MIRROR)
        for args, result in table.rows
    }


def points(task: PointsTask, tell: Tell) -> list[list[tuple[str, tuple[Any, ...]]]]:
    """Return the points that the rules unite with each space: (constructor, arguments), sorted."""
    graph = EGraph()
    for file, text in task.texts:
        graph.run(text, file)
    for i, space in enumerate(task.spaces):
        graph.run(f"(let $space{i} {space})")
    every = " ".join(f"(saturate (run {r}))" for r in task.rulesets)
    graph.step(graph.parse(f"(run-schedule (saturate (seq {every})))"))
    tell(1)
    tables = graph.tables()
    classes = [tables[f"$space{i}"].rows[0][1] for i in range(len(task.spaces))]
    first: dict[int, str] = {}
    for space, c in zip(task.spaces, classes, strict=True):
        if first.setdefault(c, space) != space:
            raise SaturationError(
                f"expected the spaces {first[c]} and {space} to stay apart; a schedule rule merges them. "
                "Let the first arguments of every point repeat its space's."
            )
    found: dict[int, list[tuple[str, tuple[Any, ...]]]] = {c: [] for c in classes}
    for op, table in tables.items():
        if table.is_global or op.endswith("Space"):
            continue
        here = [(args, result) for args, result in table.rows if result in found]
        if here and any(sort not in _PLAIN_SORTS for sort in table.arguments):
            raise SaturationError(f"expected points of numbers and strings only; {op} takes {', '.join(table.arguments)}")
        for args, result in here:
            found[result].append((op, args))
    return [sorted(found[c]) for c in classes]


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not tell."""
    file = _memory_file()
    if file is None:
        return 0
    return int(os.pread(file, 128, 0).split()[1]) * _PAGE_BYTES


@cache
def _memory_file() -> int | None:
    """Open what the system says of this process's memory, once: it is read after every step."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def cap_memory(grow_bytes: int) -> None:
    """Let the address space of this process grow by `grow_bytes` at most; beyond that the engine aborts."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return  # no figure to add to: the limit between steps still holds
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * os.sysconf("SC_PAGE_SIZE") + grow_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


_TASKS: dict[type, Callable[[Any, Tell], Any]] = {
    SaturateTask: saturate, LogTask: log, ContradictionTask: clash, PointsTask: points,
}  # fmt: skip
