"""Measured extraction: choose, measure the dearest unmeasured kernels of the choice, repeat until no plan can be better.

The objective is the sum of kernel times taken with cold caches, plus a launch for each; what depends on constants alone is
prepared once and hardly counts. Lower bounds stand in for kernels
that have not been measured; when the best measured plan is within ε of the cheapest conceivable one, the search is closed.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from eqsat.planchoice import Action, Chooser
from eqsat.search.candidates import Candidate, Sweep

_SAME = 1e-4  # plans whose bounds differ by less are alike
_EXPOSED = 0.02  # of the traffic of a kernel that arithmetic bounds
_ROUNDING = 1e-6  # the solver's absolute tolerance, on an objective whose dearest kernel costs 1


@dataclass(frozen=True, slots=True)
class Certificate:
    """How much of the space the search has settled.

    `verdict` is "closed" (no unmeasured plan can beat the best), "closed within ε", or "open"; `gap` = 1 − bound/best;
    `empirical` names what was measured, not proved, behind it: the "rates" of the bounds, the "family floors" that raise them,
    the "ranks of schedules" by which some were left out.
    """

    verdict: str
    gap: float
    epsilon: float
    bound_ns: float
    best_ns: float
    empirical: str
    space: str
    measured: int
    rounds: int

    def __str__(self) -> str:
        kind = f" under measured {self.empirical}" if self.empirical else ""
        extra = f", {100 * self.gap:.1f} %" if self.verdict == "open" else ""
        return f"{self.verdict}{extra}{kind} ({self.measured} kernels measured in {self.rounds} rounds; {self.space})"


@dataclass(slots=True)
class Floors:
    """How far above its bound the best kernel of a family has been, at the least: an empirical correction of the bounds.

    A kernel that beats its bound shows that the rates were measured too low, and lowers all bounds by as much. A family's floor is taken after `enough` kernels, lowered by `margin`; a certificate that rests on floors says so. In
    simulation floors of this kind exceeded the truth for 0–1.3 % of kernels and cut the kernels measured by half.
    """

    ratios: dict[str, list[float]] = field(default_factory=dict)
    enough: int = 3
    margin: float = 0.9

    def of(self, family: str) -> float:
        """Return the factor for a family's bounds: at least 1, unless some kernel beat its bound."""
        seen = self.ratios.get(family, [])
        least = min((r for known in self.ratios.values() for r in known), default=1.0)
        return max(min(1.0, least), self.margin * min(seen) if len(seen) >= self.enough else 0.0)

    def learn(self, family: str, ratio: float) -> None:
        """Remember measured time / bound of a kernel whose schedules were all tried."""
        self.ratios.setdefault(family, []).append(ratio)

    @property
    def used(self) -> bool:
        """Whether any bound is raised."""
        return any(self.of(f) > 1 for f in self.ratios)


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
    rush : callable, optional
        Finds one right schedule of a candidate, whatever the deadline: `rush(candidate) -> Sweep`. Used when the time ends
        before there is any plan.
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
    rush: Callable[[Candidate], Sweep] | None = None
    floors: Floors = field(default_factory=lambda: Floors())
    swept: dict[str, Sweep] = field(default_factory=dict)
    plans: dict[tuple[int, ...], float] = field(default_factory=dict)
    bound_ns: float = 0.0
    rounds: int = 0
    _chooser: Chooser = field(init=False)

    def __post_init__(self) -> None:
        actions = [Action(frozenset(c.node.writes), c.node.needs) for c in self.candidates]
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
        elif self.gap <= _ROUNDING:
            verdict = "closed"
        else:
            verdict = f"closed within {100 * self.epsilon:g} %" if self.gap <= self.epsilon else "open"
        if any(not s.complete for s in self.swept.values()) and verdict.startswith("closed"):
            verdict = "open"  # a schedule space was cut by the budget: its best is not known to be the best
        measured = len(self.swept)
        pruned = any(s.counts.get("pruned") for s in self.swept.values())
        used = {"rates": self.empirical, "family floors": self.floors.used, "ranks of schedules": pruned}
        empirical = " and ".join(name for name, does in used.items() if does)
        return Certificate(
            verdict, self.gap, self.epsilon, self.bound_ns, self.best_ns, empirical, self.space, measured, self.rounds
        )

    def costs(self) -> list[float]:
        """Measured time where there is one, else the lower bound (ns), raised to the empirical floor of its family.

        Of what is prepared once only its small share counts.
        """
        floors = {family: self.floors.of(family) for family in {c.node.family for c in self.candidates}}
        return [
            c.share * (self.swept[c.key].cost_ns if c.key in self.swept else c.low_ns * floors[c.node.family])
            for c in self.candidates
        ]

    def run(self) -> None:
        """Search until closed within ε or out of time; there is a plan at the end if any kernel of one is right."""
        self._measure_greedily()
        self._improve()
        if not self.plans and self.rush is not None:
            self._rush(self.rush)

    def _improve(self) -> None:
        while time.monotonic() < self.deadline_s:
            self.rounds += 1
            low = self.costs()
            self._chooser.prune(low, self.best_ns * (1 + _ROUNDING))
            left = max(0.5, min(20.0, self.deadline_s - time.monotonic()))
            choice = self._chooser.exact(low, limit_s=left, gap=min(1e-4, self.epsilon / 4))
            # every plan was pruned: nothing can be cheaper than the best that was measured
            self.bound_ns = self.best_ns if not choice.plan and math.isinf(choice.bound) else choice.bound
            if self._settled():
                return
            plan = choice.plan or self._chooser.greedy(low)[1]
            if not plan:
                return
            fresh = self._unmeasured(plan)
            if not fresh and self._note(plan):
                continue
            # A measured plan again: the solver's time ran out below its bound, and any measurement may raise that.
            fresh = fresh or self._unmeasured(self._chooser.live())
            if not fresh:
                return
            dearest = max(fresh, key=lambda i: low[i])
            # Every plan costs `bound_ns` or more: one with this kernel can win only if the kernel takes less than this.
            self._measure(dearest, low[dearest] + self.best_ns - self.bound_ns)
            self._best_measured()

    def _settled(self) -> bool:
        return math.isfinite(self.best_ns) and self.gap <= max(self.epsilon, _ROUNDING)

    def _unmeasured(self, plan: Iterable[int]) -> list[int]:
        return [i for i in plan if self.candidates[i].key not in self.swept]

    def _measure_greedily(self) -> None:
        """Measure the greedy plan, again whenever one of its kernels turns out to have no verified schedule."""
        while time.monotonic() < self.deadline_s:
            cost, plan = self._chooser.greedy(self.costs())
            if not math.isfinite(cost):
                return
            for i in plan:
                known = self.swept.get(self.candidates[i].key)
                if math.isinf(known.cost_ns if known else self._measure(i)):
                    break
            else:
                self._note(plan)
                return

    def _rush(self, rush: Callable[[Candidate], Sweep]) -> None:
        """Complete the plan of least bounds with the first right schedule of each kernel that the deadline left without one."""
        while True:
            cut = {k for k, s in self.swept.items() if s.best is None and not s.complete}
            costs = [c.share * c.low_ns if c.key in cut else cost for c, cost in zip(self.candidates, self.costs(), strict=True)]
            cost, plan = self._chooser.greedy(costs)
            if not plan or not math.isfinite(cost):
                return
            for i in plan:
                c = self.candidates[i]
                if c.key in cut or c.key not in self.swept:
                    self.swept[c.key] = rush(c)
                if math.isinf(self.swept[c.key].cost_ns):
                    break
            else:
                self._note(plan)
                return

    def _measure(self, i: int, stop_above_ns: float = math.inf) -> float:
        c = self.candidates[i]
        if c.prepared and self.rush is not None:  # any right kernel serves: its time hardly counts
            found = self.swept[c.key] = dataclasses.replace(self.rush(c), complete=True)
            return c.share * found.cost_ns
        found = self.swept[c.key] = self.sweep(c, min(stop_above_ns, self.best_ns) / c.share)
        if found.complete and not found.counts.get("pruned") and math.isfinite(found.cost_ns):
            self.floors.learn(c.node.family, found.cost_ns / c.low_ns)
        return c.share * found.cost_ns

    def _best_measured(self) -> None:
        known = {i for i, c in enumerate(self.candidates) if c.key in self.swept}
        cost, plan = self._chooser.greedy(self.costs(), lambda i: i in known)
        if plan and math.isfinite(cost):
            self._note(plan)

    def _note(self, plan: tuple[int, ...]) -> bool:
        """Remember a measured plan; return whether it is a new one."""
        cost = sum(self.candidates[i].share * self.swept[self.candidates[i].key].cost_ns for i in plan)
        fresh = plan not in self.plans and math.isfinite(cost)
        if fresh:
            self.plans[plan] = cost
        return fresh

    def forbid(self, plan: tuple[int, ...]) -> None:
        """Take a plan out for good: it was wrong as a whole, though each kernel is right."""
        self.plans = {p: cost for p, cost in self.plans.items() if not set(plan) <= set(p)}
        self._chooser.forbid(plan)

    def finalists(self, count: int = 4, within: float = 0.10) -> list[tuple[int, ...]]:
        """Return the best measured plans, those within a share of the best alone: whole-plan timing decides among them."""
        ranked = sorted(self.plans, key=self.plans.__getitem__)
        return [p for p in ranked[:count] if self.plans[p] <= self.best_ns * (1 + within)]


def unmeasured_choice(
    candidates: list[Candidate], goals: frozenset[int], refused: Iterable[tuple[int, ...]] = ()
) -> tuple[int, ...]:
    """Return the plan of least bound: the choice by model, for targets that are not at hand.

    A bound is the greatest of what arithmetic and traffic take, as if they overlapped wholly; a small share of the lesser
    one decides between plans that differ in it alone. Plans that hold one of those `refused` do not count.
    """
    chooser = Chooser([Action(frozenset(c.node.writes), c.node.needs) for c in candidates], goals)
    for plan in refused:
        chooser.forbid(plan)
    low = [c.share * (c.low_ns + _EXPOSED * c.moved_ns) for c in candidates]
    cost, plan = chooser.greedy(low)
    if math.isfinite(cost):
        chooser.prune(low, cost * (1 - _SAME))  # what cannot beat the greedy plan by more than the solver's own gap
    found = chooser.exact(low).plan
    return found if found and sum(low[i] for i in found) < cost else plan
