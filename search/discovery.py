"""The discovery suite: programs written naively, and whether the plan that the search chooses is the one an expert writes.

A row is chosen by cost for a target by its model, so that no device is needed: saturate, enumerate kernels, bound them,
choose exactly. The plan is then held against the row's check, evaluated kernel after kernel against the program, and derived.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqsat.codegen.plan import Plan
from eqsat.codegen.targets import parse_target
from eqsat.derivation import derive
from eqsat.errors import EqsatError, NoKernelError, UsageError
from eqsat.ir import Program
from eqsat.kernelgraph import KernelGraph
from eqsat.rulefile import RuleSet
from eqsat.saturation import Limits, SaturationReport
from eqsat.search.compose import compose
from eqsat.search.discovery_numbers import departure
from eqsat.search.discovery_plan import Picture, description
from eqsat.search.discovery_rows import ROWS, Row
from eqsat.search.extraction import unmeasured_choice
from eqsat.search.machine import Place
from eqsat.search.optimize import Search
from eqsat.search.options import Options
from eqsat.search.progress import progress_for
from eqsat.search.rulebase import admitted_rules, declarations, for_target
from eqsat.search.store import Store
from eqsat.session import Session

PATIENT = Limits(soft_s=30.0, hard_s=60.0)  # what is found is not to depend on how busy the machine is
TOLERANCE = 1e-7  # relative to the largest element: float64 against float64, constants rounded to float32 aside


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plan chosen by model, and what choosing took. `bound_ns` is the sum of its kernels' lower bounds."""

    plan: Plan
    bound_ns: float
    report: SaturationReport
    kernels: int
    truncated: int
    seconds: float


class Chooser:
    """Chooses plans by model for one target, the rules admitted once; a context manager that ends its worker.

    Parameters
    ----------
    target : str
        An architecture or "cpu"; nothing of it needs to be at hand.
    rules : sequence of path
        Rule files beside the built-in ones.
    numerics : sequence of str
    """

    def __init__(
        self, target: str = "sm_90", rules: Sequence[Path] = (), numerics: Sequence[str] = ("exact", "reassociates")
    ) -> None:
        self.options = Options(target, 60.0, tuple(rules), "strict", tuple(numerics), False)
        wanted = parse_target(target)
        self.place = Place(wanted, wanted.model, "by model", None)
        self.ruleset: RuleSet = for_target(admitted_rules(self.options)[0], wanted)
        self.session = Session()
        self._store = Store(":memory:")

    def __enter__(self) -> Chooser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        self.session.close()
        self._store.close()

    def choose(self, program: Program) -> Chosen:
        """Return the plan of least bound.

        Raises
        ------
        NoKernelError
            If some value has no kernel that a family serves on the target.
        """
        with progress_for(False) as quiet:
            search = Search(program, self.options, self.place, self._store, quiet, time.monotonic() + self.options.budget_s)
            search.session.close()
            search.session = self.session  # one worker for all rows
            began = time.monotonic()
            facts = declarations(self.ruleset)
            report, frozen = self.session.saturate(program, self.ruleset.rules, declarations=facts, limits=PATIENT)
            graph = KernelGraph(program, frozen)
            candidates, _ = search.lower(graph, self.ruleset)
        picked = unmeasured_choice(candidates, graph.goals)
        if not picked:
            raise NoKernelError(f"no plan has a legal schedule for every kernel on {self.place.target.name}")
        plan = Plan(program, tuple(candidates[i].kernel for i in picked))
        bound = sum(candidates[i].low_ns for i in picked)
        return Chosen(plan, bound, report, len(candidates), graph.cuts.truncated, time.monotonic() - began)

    def steps(self, plan: Plan) -> tuple[int | None, int | None, str]:
        """Return (rewrites, those that are not mere rearrangements, status) of the derivation from program to plan."""
        every = telling = 0
        for output, target in zip(plan.program.outputs, compose(plan, called=True), strict=True):
            found = derive(
                plan.program,
                output.expr,
                target,
                self.ruleset.rules,
                declarations=declarations(self.ruleset),
                session=self.session,
            )
            if found.status != "derived":
                return None, None, found.status
            every += len(found.steps)
            telling += sum(not s.rearranges for s in found.steps)
        return every, telling, "derived"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one row: `missing` says what the plan lacks; nothing if it is the expert's.

    `admitted` are the classes of rules beyond those that every search admits, and the rule files beside the built-in ones.
    """

    row: str
    program: str
    expert: str
    target: str
    admitted: tuple[str, ...]
    found: str
    missing: tuple[str, ...]
    error: float
    steps: int | None
    telling: int | None
    derivation: str
    nodes: int
    classes: int
    kernels: int
    stop: str
    seconds: float
    derive_seconds: float

    @property
    def ok(self) -> bool:
        """Whether the chosen plan passes the row's check, computes the program, and is derived from it."""
        return not self.missing and self.error <= TOLERANCE and self.derivation == "derived"


def rows_named(names: Sequence[str]) -> tuple[Row, ...]:
    """Return the rows whose name contains one of `names`; all if there are none.

    Raises
    ------
    UsageError
        If nothing matches.
    """
    found = tuple(r for r in ROWS if not names or any(n in r.name for n in names))
    if not found:
        raise UsageError(f"no row of the discovery suite matches {list(names)}; rows: {[r.name for r in ROWS]}")
    return found


def discover(row: Row, chooser: Chooser, *, derived: bool = True) -> Outcome:
    """Choose a plan for a row's program, check it, evaluate it, and derive it (unless `derived` is False)."""
    program = row.program()
    target = chooser.place.target.name
    admitted = (*(n for n in row.numerics if n not in Options().numerics), *(path.name for path in row.rules))
    blank = Outcome(
        row.name, row.text, row.expert, target, admitted, "", (), math.inf, None, None, "not asked for", 0, 0, 0, "", 0.0, 0.0
    )
    try:
        chosen = chooser.choose(program)
    except EqsatError as e:
        return dataclasses.replace(blank, missing=(f"no plan: {type(e).__name__}: {str(e)[:300]}",))
    picture = Picture(chosen.plan)
    missing = tuple(row.check(picture))
    error = departure(chosen.plan)
    every, telling, status, began = None, None, "not asked for", time.monotonic()
    if derived:
        try:
            every, telling, status = chooser.steps(chosen.plan)
        except EqsatError as e:
            status = f"not found: {type(e).__name__}: {str(e)[:200]}"
    return Outcome(
        row.name, row.text, row.expert, target, admitted, description(picture), missing, error, every, telling, status,
        chosen.report.nodes, chosen.report.classes, chosen.kernels, chosen.report.stop, chosen.seconds, time.monotonic() - began,
    )  # fmt: skip


def run_suite(
    names: Sequence[str] = (), *, target: str | None = None, tell: Callable[[Outcome], None] = lambda _: None
) -> dict[str, Any]:
    """Run rows of the suite and return the record that `bench discovery` writes.

    Parameters
    ----------
    names : sequence of str
        Rows by name or part of a name; all if empty.
    target : str, optional
        The target whose model chooses; each row's own if None.
    tell : callable
        Called with each outcome as it is known.

    Notes
    -----
    Ctrl-C ends the run; the record has the rows that were done.
    """
    chosen = rows_named(names)
    found: dict[str, Any] = {}
    with Choosers() as choosers, contextlib.suppress(KeyboardInterrupt):
        for row in chosen:
            outcome = discover(row, choosers.of(row, target))
            tell(outcome)
            found[row.name] = dataclasses.asdict(outcome) | {"ok": outcome.ok}
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"suite": "discovery", "created": created, "rows": found}


class Choosers:
    """A chooser for each combination of target, rule files and numeric classes that rows ask for, made when it is needed."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, tuple[Path, ...], tuple[str, ...]], Chooser] = {}

    def __enter__(self) -> Choosers:
        return self

    def __exit__(self, *_: object) -> None:
        for chooser in self._made.values():
            chooser.close()

    def of(self, row: Row, target: str | None = None) -> Chooser:
        """Return the chooser for a row."""
        key = target or row.target, row.rules, row.numerics
        if key not in self._made:
            self._made[key] = Chooser(*key)
        return self._made[key]


def line(outcome: Outcome) -> str:
    """Return an outcome as text for a terminal."""
    steps = "–" if outcome.steps is None else f"{outcome.telling} of {outcome.steps}"
    head = f"{'ok     ' if outcome.ok else 'MISSING'} {outcome.row:<26}{outcome.target:<6}{steps:>12} steps {outcome.nodes:>7} e-nodes {outcome.seconds:>7.2f} s"
    lines = [head, f"        {outcome.found}"]
    lines += [f"        lacks: {m}" for m in outcome.missing]
    if outcome.derivation not in ("derived", "not asked for"):
        lines.append(f"        derivation: {outcome.derivation[:160]}")
    if not outcome.error <= TOLERANCE and outcome.found:
        lines.append(f"        the plan departs from the program by {outcome.error:.2g}")
    return "\n".join(lines)
