"""Measured extraction: choose, measure the dearest unmeasured kernels of the choice, repeat until no plan can be better.

The objective is the sum of kernel times taken with cold caches, plus a launch for each. Lower bounds stand in for kernels
that have not been measured; when the best measured plan is within ε of the cheapest conceivable one, the search is closed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from eqsat.planchoice import Action, Chooser
from eqsat.search.candidates import Candidate, Sweep


@dataclass(frozen=True, slots=True)
class Certificate:
    """How much of the space the search has settled.

    `verdict` is "closed" (no unmeasured plan can beat the best), "closed within ε", or "open"; `gap` = 1 − bound/best;
    `empirical` says whether a measured rate stands behind the bounds.
    """

    verdict: str
    gap: float
    epsilon: float
    bound_ns: float
    best_ns: float
    empirical: bool
    space: str
    measured: int
    rounds: int

    def __str__(self) -> str:
        kind = " under measured rates" if self.empirical else ""
        extra = f", {100 * self.gap:.1f} %" if self.verdict == "open" else ""
        return f"{self.verdict}{extra}{kind} ({self.measured} kernels measured in {self.rounds} rounds; {self.space})"


@dataclass(slots=True)
class Extraction:
    """The loop's state, which is also what an interrupt keeps.

    Parameters
    ----------
    candidates : list of Candidate
        Every kernel; those without a legal schedule cost infinitely much.
    goals : set of int
        Classes that a plan must write.
    sweep : callable
        Measures one candidate: `sweep(candidate, stop_above_ns) -> Sweep`.
    deadline_s : float
        On the monotonic clock.
    """

    candidates: list[Candidate]
    goals: frozenset[int]
    sweep: Callable[[Candidate, float], Sweep]
    deadline_s: float
    epsilon: float = 0.02
    space: str = ""
    empirical: bool = False
    swept: dict[str, Sweep] = field(default_factory=dict)
    plans: dict[tuple[int, ...], float] = field(default_factory=dict)
    bound_ns: float = 0.0
    rounds: int = 0
    _chooser: Chooser = field(init=False)

    def __post_init__(self) -> None:
        actions = [Action(c.node.writes, c.node.needs) for c in self.candidates]
        self._chooser = Chooser(actions, self.goals)

    @property
    def best_ns(self) -> float:
        """Sum of kernel times of the best measured plan; infinite before there is one."""
        return min(self.plans.values(), default=math.inf)

    @property
    def gap(self) -> float:
        """Share by which an unmeasured plan could still be faster."""
        return 1.0 if not math.isfinite(self.best_ns) else max(0.0, 1 - min(self.bound_ns, self.best_ns) / self.best_ns)

    def certificate(self) -> Certificate:
        """Return what is settled so far."""
        if not math.isfinite(self.best_ns):
            verdict = "open"
        elif self.gap <= 1e-9:
            verdict = "closed"
        else:
            verdict = f"closed within {100 * self.epsilon:g} %" if self.gap <= self.epsilon else "open"
        if any(not s.complete for s in self.swept.values()) and verdict.startswith("closed"):
            verdict = "open"  # a schedule space was cut by the budget: its best is not known to be the best
        measured = len(self.swept)
        return Certificate(
            verdict, self.gap, self.epsilon, self.bound_ns, self.best_ns, self.empirical, self.space, measured, self.rounds
        )

    def costs(self) -> list[float]:
        """Measured time where there is one, else the lower bound (ns)."""
        return [self.swept[c.key].cost_ns if c.key in self.swept else c.low_ns for c in self.candidates]

    def run(self) -> None:
        """Search until closed within ε or out of time."""
        self._measure_greedily()
        while time.monotonic() < self.deadline_s:
            self.rounds += 1
            low = self.costs()
            self._chooser.prune(low, self.best_ns * (1 + 1e-9) if math.isfinite(self.best_ns) else math.inf)
            left = max(0.5, min(20.0, self.deadline_s - time.monotonic()))
            choice = self._chooser.exact(low, limit_s=left)
            # every plan was pruned: nothing can be cheaper than the best that was measured
            self.bound_ns = self.best_ns if not choice.plan and math.isinf(choice.bound) else choice.bound
            if self.gap <= self.epsilon and math.isfinite(self.best_ns):
                return
            plan = choice.plan or self._chooser.greedy(low)[1]
            fresh = [i for i in plan if self.candidates[i].key not in self.swept]
            if not fresh:
                self._note(plan)
                if self.gap <= self.epsilon or not choice.plan:
                    return
                continue
            self._measure(max(fresh, key=lambda i: low[i]))
            self._best_measured()

    def _measure_greedily(self) -> None:
        """Measure the greedy plan, again whenever one of its kernels turns out to have no verified schedule."""
        while time.monotonic() < self.deadline_s:
            cost, plan = self._chooser.greedy(self.costs())
            if not math.isfinite(cost):
                return
            fresh = [i for i in plan if self.candidates[i].key not in self.swept]
            if not fresh:
                self._note(plan)
                return
            for i in fresh:
                if self.candidates[i].key not in self.swept and not math.isinf(self._measure(i)):
                    continue
                if math.isinf(self.swept[self.candidates[i].key].cost_ns):
                    break

    def _measure(self, i: int) -> float:
        c = self.candidates[i]
        self.swept[c.key] = self.sweep(c, self.best_ns)
        return self.swept[c.key].cost_ns

    def _best_measured(self) -> None:
        known = {i for i, c in enumerate(self.candidates) if c.key in self.swept}
        cost, plan = self._chooser.greedy(self.costs(), lambda i: i in known)
        if math.isfinite(cost):
            self._note(plan)

    def _note(self, plan: tuple[int, ...]) -> None:
        cost = sum(self.swept[self.candidates[i].key].cost_ns for i in plan)
        if math.isfinite(cost):
            self.plans[plan] = cost

    def finalists(self, count: int = 4, within: float = 0.10) -> list[tuple[int, ...]]:
        """Return the best measured plans, those within a share of the best alone: whole-plan timing decides among them."""
        ranked = sorted(self.plans, key=self.plans.__getitem__)
        return [p for p in ranked[:count] if self.plans[p] <= self.best_ns * (1 + within)]


def unmeasured_choice(candidates: list[Candidate], goals: frozenset[int]) -> tuple[int, ...]:
    """Return the plan of least bound: the choice by model, for targets that are not at hand."""
    chooser = Chooser([Action(c.node.writes, c.node.needs) for c in candidates], goals)
    low = [c.low_ns for c in candidates]
    return chooser.exact(low).plan or chooser.greedy(low)[1]
