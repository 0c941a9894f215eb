"""Kernels as the search sees them: problem, store key, legal schedules, lower bound, and what measuring has shown so far."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from eqsat.canonical import canonical_key
from eqsat.codegen import fitted
from eqsat.codegen.fitted import Correction
from eqsat.codegen.kernel import Family, KernelBinary, Rates, Schedule
from eqsat.codegen.plan import Kernel
from eqsat.codegen.problem import Problem, contract_problem
from eqsat.codegen.targets import Target
from eqsat.errors import UsageError
from eqsat.ir import Program
from eqsat.kernelgraph import KernelGraph, KernelNode
from eqsat.search.bundle import find_problem
from eqsat.search.device import Measurement, Verdict
from eqsat.search.schedules import Space, families, space_of
from eqsat.text import show

PREPARED = "prepared"  # begins the key of a kernel that runs once, whose trials are fewer than those of its like
# A millionth: of two plans equally fast in each call, the one that is prepared sooner is taken.
_PREPARED_SHARE = 1e-6
_PREPARED_FACTOR, _PREPARED_BYTES = 4, 1 << 24  # what is prepared may take so many times the inputs' bytes, and 16 MiB
_WIDE = 4  # rows and columns of a matrix product, at least, that only the family "contract" is tried for


@dataclass(frozen=True, slots=True)
class Timed:
    """The fastest verified schedule of a kernel: its time, verdict, and (unless it came from the store) its binary."""

    schedule: Schedule
    median_ns: float
    verdict: Verdict | None
    measurement: Measurement | None
    binary: KernelBinary | None
    remembered: bool


@dataclass(slots=True)
class Candidate:
    """A kernel of the graph. Candidates with one key are one kernel up to names and share what is known of it.

    `find_legal` returns the schedules that can serve it out of the `offered` ones, likeliest first; trying them all is slow,
    so it is asked only where a kernel is measured or chosen. One that is `prepared` depends on constants alone: it runs once for
    the arrays that a caller gives, not in each call, and only `share` of its time counts.
    """

    node: KernelNode
    problem: Problem
    key: str
    space: Space
    find_legal: Callable[[], tuple[Schedule, ...]] = tuple
    offered: int = 0
    low_ns: float = math.inf
    moved_ns: float = 0.0
    prepared: bool = False

    @property
    def share(self) -> float:
        """What part of its time counts in a plan."""
        return _PREPARED_SHARE if self.prepared else 1.0

    def __str__(self) -> str:
        needs = f" needs {sorted(self.node.needs)}" if self.node.needs else ""
        what = "; ".join(show(o.expr) for o in self.node.program.outputs)
        once = " once" if self.prepared else ""
        low = f"≥ {self.low_ns / 1e3:.2f} µs{once}"
        return f"{self.node.family:<9} {self.node.name}{needs}: {what}; {low}, {self.offered} schedules offered"

    @property
    def legal(self) -> tuple[Schedule, ...]:
        """The schedules that can serve it, likeliest first."""
        return self.find_legal()

    @property
    def illegal(self) -> int:
        """Number of schedules offered that cannot serve it."""
        return self.offered - len(self.legal)

    @property
    def kernel(self) -> Kernel:
        """Its kernel for a plan."""
        return Kernel(self.problem)


@dataclass(slots=True)
class Sweep:
    """The outcome of measuring one key: the best, and counts by status.

    A status is "ok", "wrong", "fault", "timeout", "refused", "cut" (by the deadline), or "pruned" (slow for kernels like it).
    `complete` says whether every legal schedule was tried or pruned; `serial` is the best that uses one thread, which is the
    `best` itself wherever schedules do not say how many they use.
    """

    best: Timed | None
    counts: dict[str, int] = field(default_factory=dict)
    complete: bool = True
    trials: list[dict[str, object]] = field(default_factory=list)
    serial: Timed | None = None

    @property
    def cost_ns(self) -> float:
        """The measured time, infinite if no schedule gave a verified kernel."""
        return self.best.median_ns if self.best else math.inf


def candidates_of(nodes: Iterable[KernelNode]) -> tuple[list[Candidate], int]:
    """Return the kernels that a family can serve, and the number of those that none can."""
    out: dict[tuple[object, ...], Candidate] = {}
    refused = 0
    for node in nodes:
        try:
            problem = find_problem(node.program, node.family)
        except UsageError:
            refused += 1
            continue
        key = f"{node.family} {canonical_key(node.program)}"
        # Spellings of one kernel (a·b and b·a) have one key: the plan needs one of them.
        out.setdefault((node.writes, node.needs, key), Candidate(node, problem, key, space_of(problem)))
    return list(out.values()), refused


def mark_prepared(found: list[Candidate], graph: KernelGraph) -> list[Candidate]:
    """Mark the kernels that run once because they depend on constants alone; return all but those that compute the same in each call.

    A result far larger than the program's inputs is not worth its memory: its kernel counts in full, and so is chosen only where
    the value would be stored in any case.
    """
    constant = graph.frozen.constant - graph.goals
    fixed = {i.name for i in graph.program.inputs if i.constant}
    own = {graph.buffer(c).name for c in constant if graph.frozen.axes.get(c) is not None}
    most = _PREPARED_FACTOR * sum(i.bytes for i in graph.program.inputs) + _PREPARED_BYTES
    once, rest = [], []
    for c in found:
        size = sum(o.bytes for o in c.node.program.outputs)
        if size <= most and set(c.node.writes) <= constant and {i.name for i in c.node.program.inputs} <= fixed | own:
            once.append(dataclasses.replace(c, key=f"{PREPARED} {c.key}", prepared=True))
        else:
            rest.append(c)
    made = {b for c in once for b in c.node.writes}
    return [*once, *(c for c in rest if not made & set(c.node.writes))]


def bound_candidates(found: list[Candidate], spaces: Mapping[Space, tuple[Schedule, ...]], target: Target, rates: Rates) -> None:
    """Fill in what is offered for each candidate and the least bound of the families that have a legal schedule for it."""
    memo: dict[str, tuple[Callable[[], tuple[Schedule, ...]], int, float]] = {}
    served = tuple(f for f in families(target.kind) if f.serves(target))
    fits = fitted.corrections(target.name)
    for c in found:
        if c.key not in memo:
            memo[c.key] = _bounded(c.problem, spaces.get(c.space, ()), served, rates, fits)
        c.find_legal, c.offered, c.low_ns = memo[c.key]
        c.moved_ns = c.node.program.bytes / rates.copy
    products = {(c.node.writes, c.node.needs) for c in found if c.node.family == "contract" and c.low_ns < math.inf}
    for c in found:
        if c.node.family == "reduce" and (c.node.writes, c.node.needs) in products and is_wide_product(c.node.program):
            c.find_legal, c.low_ns = tuple, math.inf


def is_wide_product(program: Program) -> bool:
    """Whether a kernel is a matrix product whose every operand is used many times.

    Only "contract" keeps tiles of both operands at hand; "reduce", which serves it too, reads them again for every row and
    column: seconds where the other takes milliseconds. The space of the search leaves such kernels out.
    """
    problem = contract_problem(program)
    return not isinstance(problem, str) and min(problem.shape[1:3]) >= _WIDE


def _bounded(
    problem: Problem, schedules: tuple[Schedule, ...], served: tuple[Family, ...], rates: Rates, fits: Mapping[str, Correction]
) -> tuple[Callable[[], tuple[Schedule, ...]], int, float]:
    offered = [(family, tuple(s for s in schedules if type(s) in family.schedules)) for family in served]
    able = [(family, mine) for family, mine in offered if any(family.legal(problem, s) is None for s in mine)]

    @functools.cache
    def legal() -> tuple[Schedule, ...]:
        pairs = [
            (fitted.predicted_ns(f, problem, s, rates, fits), s) for f, mine in able for s in mine if f.legal(problem, s) is None
        ]
        return tuple(s for _, s in sorted(pairs, key=lambda pair: pair[0]))

    return legal, len(schedules), min((family.bound_ns(problem, rates) for family, _ in able), default=math.inf)
