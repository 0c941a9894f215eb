"""From a program to its fastest verified plan: the pipeline, one function a stage."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eqsat.canonical import shared
from eqsat.codegen.kernel import KernelBinary, KernelSource, Rates, Schedule
from eqsat.codegen.plan import Executable, Plan, Step
from eqsat.debug import CANDIDATES, COMPILER, RULES, SOURCES, SUMMARY, inspector
from eqsat.errors import CompileError, NoKernelError, WrongResultError
from eqsat.frozen import Frozen
from eqsat.gate.evidence import Evidence
from eqsat.ir import Program
from eqsat.kernelgraph import KernelGraph
from eqsat.refinement import refined
from eqsat.region_borders import Order
from eqsat.regions import REGION_OPERATIONS, STRETCH_OPERATIONS, Partition, split
from eqsat.rulefile import RuleSet
from eqsat.saturation import SaturationReport
from eqsat.search import bundle, finish, machine, regional
from eqsat.search.candidates import Candidate, Sweep, Timed, bound_candidates, candidates_of, mark_prepared
from eqsat.search.device import Device
from eqsat.search.extraction import Certificate, Extraction, Floors, unmeasured_choice
from eqsat.search.machine import Place
from eqsat.search.options import Options, parse_budget
from eqsat.search.progress import Progress, progress_for
from eqsat.search.proofs import Proofs, RuleAtFaultError
from eqsat.search.result import Optimized, from_bundle
from eqsat.search.rulebase import admitted_rules, code_digest, declarations, for_target, package_rules
from eqsat.search.schedules import family_of, points, space_term
from eqsat.search.store import Store, default_path
from eqsat.search.sweep import Sweeper
from eqsat.session import Session
from eqsat.trace import as_program, with_constants

_REMEMBERED_RATIOS = 16  # of a family: the least ones, which are the ones that count
_SHARE = 0.85  # of the budget for kernels; the rest is for timing whole plans


def optimize(
    expr: Any,
    *specs: Any,
    target: str = "native",
    budget: str | float = "60s",
    rules: Sequence[str | Path] = (),
    precision: str = "strict",
    numerics: Sequence[str] = ("exact", "reassociates"),
    measure: bool = True,
    baseline: Callable[..., Any] | None = None,
    store: str | Path | Store | None = None,
    progress: bool | Progress | None = None,
    epsilon: float = 0.02,
    constants: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Optimized:
    """Search for the fastest verified kernels that compute `expr`.

    Parameters
    ----------
    expr : Array, sequence of Array, Program, or callable
        An expression built from `tensor(…)`, or a Python function of arrays; then `specs` describe its arguments.
    *specs : Array, (shape, dtype), or array
        One for each parameter of the function.
    target : str
        "native" (the GPU if there is one, else the CPU), "cpu", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120".
    budget : str or float
        Time for the search: "60s", "5min", or seconds. When it ends the best so far is returned. Checking rules that were
        never checked before comes on top (seconds, once).
    rules : sequence of path
        Rule files added to the built-in ones and to those of installed packages (entry point `eqsat.rules`: a package's
        folder of .egg files); each law is checked before it is used.
    precision : {"strict", "tf32", "fast"}
        "strict": errors no worse than IEEE arithmetic in the accumulator type.
    numerics : sequence of str
        Classes of rewrite rules admitted.
    measure : bool
        False chooses by model and measures nothing.
    baseline : callable, optional
        Called with the same arrays; timed beside the result. If it computes the same and nothing beats it, calling the
        result calls it; the receipt says who won.
    store : path, Store or None
        Where measurements are remembered; None is the user's cache folder, ":memory:" keeps nothing.
    progress : bool, Progress or None
        None: a live line on a terminal, nothing elsewhere.
    epsilon : float
        The search is closed when no plan of the stated space can be faster by more than this share.
    constants : sequence of str
        Names of inputs whose contents do not change from call to call (weights), besides those declared by `tensor`. What depends
        on them alone is computed at the first call with the same arrays, and kept; the search counts it as nearly nothing.
    without : sequence of str
        Names of rules left out, built-in ones included.

    Returns
    -------
    Optimized

    Raises
    ------
    UsageError
        An option, target or program is not of the form expected.
    FalseRuleError
        A rule of the caller's is refuted; the message has the counterexample.
    EnvironmentMissingError
        This machine lacks a compiler for the target.
    NoKernelError
        No schedule of any plan gave a verified kernel in the budget.

    Notes
    -----
    Ctrl-C ends the search at any stage after the first plan is measured and returns the best so far, marked in the receipt.
    """
    began = time.monotonic()
    files = (*package_rules(), *(Path(r) for r in rules))
    options = Options(target, parse_budget(budget), files, precision, tuple(numerics), measure, epsilon, tuple(without))
    program = with_constants(as_program(expr, *specs), (constants,) if isinstance(constants, str) else constants)
    program = refined(program)
    if Order.of(program).size <= STRETCH_OPERATIONS:  # a larger one is named anew region by region
        program = shared(program)
    place = machine.resolve(options.target)
    with contextlib.ExitStack() as stack:
        kept = store if isinstance(store, Store) else Store(store if store is not None else default_path())
        if kept is not store:
            stack.callback(kept.close)
        if baseline is None and (known := _known(program, options, place, kept)):
            return known
        tell = stack.enter_context(progress_for(progress))
        search = Search(program, options, place, kept, tell, began + options.budget_s)
        return stack.enter_context(contextlib.closing(search)).run(baseline)


def _known(program: Program, options: Options, place: Place, store: Store) -> Optimized | None:
    """Return the result that the store has, if the search for it was closed."""
    kept = store.result(_result_key(program, options, place))
    return from_bundle(bundle.unpack(kept[1])) if kept else None


def apart_bytes(program: Program, rates: Rates) -> int:
    """Return what a program touches between two runs of one of its kernels, if that is too much for a cache: else 0.

    Rounded to few sizes, so that programs share measurements; four times the cache is as good as more.
    """
    if not 0 < rates.cache_bytes < 2 * program.bytes:
        return 0
    return min(1 << (program.bytes.bit_length() - 1), 4 * rates.cache_bytes)


def _result_key(program: Program, options: Options, place: Place) -> str:
    parts = (program.digest, options.digest, place.fingerprint, code_digest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Search:
    """One search: its stages in order, and what an interrupt keeps.

    A large program is searched region by region, each by a search of its own that works with the `host`'s session and device.
    """

    def __init__(
        self,
        program: Program,
        options: Options,
        place: Place,
        store: Store,
        progress: Progress,
        deadline_s: float,
        host: Search | None = None,
    ) -> None:
        self.program, self.options, self.place, self.store = program, options, place, store
        self.progress, self.deadline_s, self.host = progress, deadline_s, host
        self.session: Session = host.session if host else Session()
        self.device: Device | None = host.device if host else None
        self.interrupted = False
        self.apart_bytes = 0
        self.look = inspector()
        self.notes: list[str] = [place.note] if place.note else []

    def close(self) -> None:
        """End the worker processes."""
        if self.host is not None:
            return  # they are the host's
        self.session.close()
        if self.device is not None:
            self.device.close()

    def run(self, baseline: Callable[..., Any] | None) -> Optimized:
        """Search, and keep the result if nothing is left open."""
        partition = split(self.program, REGION_OPERATIONS, STRETCH_OPERATIONS)
        found = self.run_regions(partition, baseline) if len(partition.regions) > 1 else self.run_whole(baseline)
        if not found.receipt.interrupted and found.receipt.closed:
            key = _result_key(self.program, self.options, self.place)
            self.store.put_result(key, {"median_ns": found.receipt.median_ns}, bundle.pack(found.files()))
        return found

    def run_whole(self, baseline: Callable[..., Any] | None) -> Optimized:
        """Run the stages on the program as one region; it is split if it outgrows the limits of saturation."""
        began = time.monotonic()
        admitted, evidence = admitted_rules(self.options)
        ruleset = for_target(admitted, self.place.target)
        self.deadline_s += time.monotonic() - began  # a law is checked once and then remembered: no part of the budget
        self.open_device()
        while True:
            self.proofs = Proofs(self.program, ruleset, self.session)
            try:
                return self.run_under(ruleset, evidence, baseline)
            except RuleAtFaultError as wrong:
                self.notes.append(str(wrong))
                ruleset = ruleset.admit(self.options.numerics, [wrong.rule])

    def run_under(self, ruleset: RuleSet, evidence: Mapping[str, Evidence], baseline: Callable[..., Any] | None) -> Optimized:
        """Run the stages under these rules; RuleAtFaultError if one of them makes a plan wrong."""
        report, frozen = self.saturate(ruleset)
        if report.stop != "saturated":
            finer = split(self.program, Order.of(self.program).size // 2)
            if len(finer.regions) > 1:
                self.notes.append(f"split into {len(finer.regions)} regions, as one outgrew a limit of saturation: {report.why}")
                return self.run_regions(finer, baseline)
        graph = KernelGraph(self.program, frozen)
        candidates, rates = self.lower(graph, ruleset)
        if self.device is None:
            executable, certificate, sweeps, counts = self.choose_by_model(candidates, graph)
            decided = finish.Decision(executable)
        else:
            sweeper = Sweeper(self.device, self.store, self._context(), self._kernel_deadline(), self.progress, self.apart_bytes)
            extraction = self.extract(candidates, graph, rates, sweeper)
            decided = self.select(extraction, baseline)
            certificate, sweeps, counts = extraction.certificate(), extraction.swept, dict(sweeper.counts)
        counts |= {"kernels": len(candidates), "cuts_truncated": graph.cuts.truncated}
        self.notes += self.store.notes
        self.progress.stage("derive")
        record = finish.record(
            self.program, self.options, self.place, decided, certificate, sweeps, counts, report, ruleset, evidence,
            self.proofs,
            interrupted=self.interrupted, notes=self.notes,
        )  # fmt: skip
        return self.shown(finish.result(decided, record))

    def run_regions(self, partition: Partition, baseline: Callable[..., Any] | None) -> Optimized:
        """Search each different region, and put the plans together."""
        self.open_device()
        self.progress.note(str(partition).splitlines()[0])
        made: dict[str, Optimized] = {}
        for n, program in enumerate(partition.distinct):
            now = time.monotonic()
            deadline_s = now + (self.deadline_s - now) * _SHARE / (len(partition.distinct) - n)
            known = _known(program, self.options, self.place, self.store)
            search = Search(program, self.options, self.place, self.store, self.progress, deadline_s, host=self)
            made[program.digest] = known or search.run(None)
            self.interrupted |= search.interrupted
            self.notes += [note for note in search.notes if note not in self.notes]
        executables = {digest: found.executable for digest, found in made.items()}
        whole = regional.assemble(partition, executables, self.compiled)
        self.progress.stage("select")
        try:
            decided = finish.Decision(whole) if self.device is None else finish.select(self.device, [whole], baseline)
        except WrongResultError as e:
            raise NoKernelError(
                f"expected the plans of {len(partition.regions)} regions, each right by itself, to be right together; they round "
                f"more than the program allows: {e}. Widen the types between its layers, or optimize the layers one by one."
            ) from e
        rates = machine.rates_of(self.place, self.device, self.store)
        record = finish.record_regions(
            partition, made, self.options, self.place, decided, rates, interrupted=self.interrupted, notes=self.notes
        )
        return self.shown(finish.result(decided, record))

    def open_device(self) -> None:
        """Open the device, if kernels are to be measured on one."""
        if self.device is None and self.options.measure and self.place.open_device is not None:
            self.device = self.place.open_device(self.store)

    def compiled(self, source: KernelSource) -> KernelBinary:
        """Compile a kernel; CompileError if it does not."""
        compile_sources = functools.partial(machine.compile_for, self.place) if self.device is None else self.device.compile
        ((_, binary),) = compile_sources([source])
        if isinstance(binary, CompileError):
            raise binary
        return binary

    def shown(self, found: Optimized) -> Optimized:
        """Show a result at the stages that the debug dial opens."""
        self.look.show(SUMMARY, "result", lambda: str(found))
        self.look.show(CANDIDATES, "leaderboard", lambda: str(found.leaderboard))
        self.look.show(SOURCES, "sources", lambda: found.source, suffix="c" if self.place.target.kind == "cpu" else "cu")
        self.look.show(COMPILER, "compiler", lambda: "\n".join(str(s.binary.resources) for s in found.executable.steps))
        return found

    def saturate(self, ruleset: RuleSet) -> tuple[SaturationReport, Frozen]:
        """Saturate the program under the rules."""
        self.progress.stage("saturate")
        report, frozen = self.session.saturate(self.program, ruleset.rules, declarations=declarations(ruleset))
        self.progress.note(f"{report.nodes} nodes, {report.stop}")
        self.look.show(RULES, "saturation", lambda: str(report))
        return report, frozen

    def lower(self, graph: KernelGraph, ruleset: RuleSet) -> tuple[list[Candidate], Rates]:
        """Find each kernel's problem, its legal schedules and its lower bound."""
        self.progress.stage("lower")
        candidates, refused = candidates_of(graph.kernels)
        candidates = mark_prepared(candidates, graph)
        kind = self.place.target.kind
        spaces = list(dict.fromkeys(c.space for c in candidates))
        found = self.session.schedule_points(
            [space_term(kind, s) for s in spaces], ruleset.rules, declarations=declarations(ruleset)
        )
        offered: dict[Any, tuple[Schedule, ...]] = {s: points(p) for s, p in zip(spaces, found, strict=True)}
        rates = machine.rates_of(self.place, self.device, self.store)
        self.apart_bytes = apart_bytes(self.host.program if self.host else self.program, rates)
        bound_candidates(candidates, offered, self.place.target, rates)
        self.progress.note(f"{len(candidates)} kernels, {refused} served by no family")
        self.look.show(CANDIDATES, "kernels", lambda: "\n".join(map(str, candidates)))
        return candidates, rates

    def extract(self, candidates: list[Candidate], graph: KernelGraph, rates: Rates, sweeper: Sweeper) -> Extraction:
        """Measure kernels until no unmeasured plan can be better, or the budget ends."""
        limits = graph.limits
        space = (
            f"{len(candidates)} kernels of ≤ {limits.loads} loads and ≤ {graph.cuts.per_class} regions a class, "
            f"{graph.cuts.truncated} regions dropped"
        )
        known = self.store.fact(self._floors_key())
        floors = Floors({k: list(v) for k, v in known.items()}) if isinstance(known, dict) else Floors()
        extraction = Extraction(
            candidates,
            graph.goals,
            sweeper,
            self._kernel_deadline(),
            self.options.epsilon,
            space,
            rates.empirical,
            sweeper.rush,
            floors,
        )
        try:
            extraction.run()
        except KeyboardInterrupt:
            self.interrupted = True
            if not extraction.plans:
                raise
        self.store.put_fact(self._floors_key(), {k: sorted(v)[:_REMEMBERED_RATIOS] for k, v in floors.ratios.items()})
        if not extraction.plans:
            raise NoKernelError(
                f"no plan could be verified: {dict(sweeper.counts)}. "
                "Every schedule of some kernel was refused or wrong; EQSAT_DEBUG=3 shows which, and wrong ones are defects."
            )
        return extraction

    def select(self, extraction: Extraction, baseline: Callable[..., Any] | None) -> finish.Decision:
        """Compile the best plans whole, verify and time them, and keep the fastest."""
        self.progress.stage("select")
        assert self.device is not None
        while plans := extraction.finalists():
            made: list[Executable] = []
            right = [p for p in plans if self._is_the_program([extraction.candidates[i] for i in p])]
            for plan in right:
                chosen = [extraction.candidates[i] for i in plan]
                bests = [extraction.swept[c.key].best for c in chosen]
                # Threads are fast only while the cores are free: the same plan with one thread is timed beside.
                serial = [extraction.swept[c.key].serial or b for c, b in zip(chosen, bests, strict=True)]
                for timed in [bests] if serial == bests else [bests, serial]:
                    with contextlib.suppress(CompileError):
                        made.append(self.executable(chosen, timed))
            if not right:
                self._search_without(extraction, plans)
                continue
            try:
                return finish.select(self.device, made, baseline)
            except KeyboardInterrupt:
                self.interrupted = True
                self.notes.append("interrupted before the plan was checked and timed as a whole; each of its kernels was")
                return finish.Decision(made[0])
            except WrongResultError as e:
                # Each kernel is right, but together they round more than the program allows: go on without these plans.
                self.notes.append(str(e))
                self._search_without(extraction, plans)
        raise NoKernelError(f"every plan that was measured failed its check as a whole: {'; '.join(self.notes)}")

    def _search_without(self, extraction: Extraction, plans: Sequence[tuple[int, ...]]) -> None:
        """Go on with the search without these plans."""
        for plan in plans:
            extraction.forbid(plan)
        extraction.deadline_s = self.deadline_s
        extraction.run()

    def _is_the_program(self, chosen: Sequence[Candidate]) -> bool:
        """Whether nothing speaks against a plan's being the program; asked before the plan is compiled as a whole."""
        plan = Plan(self.program, tuple(c.kernel for c in chosen))
        if self.proofs.of(plan).holds:
            return True
        self.notes.append(self.proofs.refuse(plan))
        return False

    def executable(self, chosen: list[Candidate], timed: Sequence[Timed | None]) -> Executable:
        """Return a plan with the given schedule of each kernel compiled."""
        steps: list[Step] = []
        assert self.device is not None
        for c, best in zip(chosen, timed, strict=True):
            assert best is not None, "a finalist's kernels are all measured"
            source = family_of(best.schedule).emit(c.problem, best.schedule)
            binary = best.binary if best.binary is not None and best.binary.source == source else None
            steps.append(Step(c.kernel, best.schedule, self.compiled(source) if binary is None else binary))
        return Executable(Plan(self.program, tuple(s.kernel for s in steps)), tuple(steps))

    def choose_by_model(
        self, candidates: list[Candidate], graph: KernelGraph
    ) -> tuple[Executable, Certificate, dict[str, Sweep], dict[str, int]]:
        """Choose plan and schedules by their bounds and models, and compile them; nothing is measured."""
        self.progress.stage("choose by model")
        refused: list[tuple[int, ...]] = []
        while plan := unmeasured_choice(candidates, graph.goals, refused):
            if self._is_the_program([candidates[i] for i in plan]):
                break
            refused.append(plan)
        else:
            raise NoKernelError("; ".join(["no plan has a legal schedule for every kernel on this target", *self.notes]))
        counts = {"enumerated": 0, "refused": 0}
        steps = [finish.compile_by_model(self.place, candidates[i], counts) for i in plan]
        executable = Executable(Plan(self.program, tuple(s.kernel for s in steps)), tuple(steps))
        total = sum(candidates[i].share * candidates[i].low_ns for i in plan)
        certificate = Certificate("unmeasured", 1.0, self.options.epsilon, total, float("inf"), "", "by model", 0, 0)
        return executable, dataclasses.replace(certificate, best_ns=total), {}, counts

    def _context(self) -> str:
        return hashlib.sha256(f"{self.place.fingerprint}\n{code_digest()}\n{self.apart_bytes}".encode()).hexdigest()

    def _floors_key(self) -> str:
        return f"floors {self._context()}"

    def _kernel_deadline(self) -> float:
        now = time.monotonic()
        return now + (self.deadline_s - now) * _SHARE
