"""Choose the cheapest set of kernels that makes the wanted buffers: exact by MILP, greedy for incumbents, pruning by the best.

Buffers are facts, kernels are actions that need some buffers and add others; plan choice is delete-free planning (h⁺). The
model is a flow MILP with lazily added landmark cuts against cycles (research: 1–2 s for programs of some 400 kernels).
"""

from __future__ import annotations

import heapq
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing

from eqsat.errors import ExtractionError


@dataclass(frozen=True, slots=True)
class Action:
    """A kernel as the chooser sees it: the buffers it writes and the intermediate buffers it needs."""

    writes: frozenset[int]
    needs: frozenset[int]


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan (indices of actions, producers before users) and a valid lower bound on the cost of every plan."""

    plan: tuple[int, ...]
    bound: float


@dataclass(slots=True)
class Chooser:
    """Plan choice over fixed actions with changing costs.

    Parameters
    ----------
    actions : sequence of Action
    goals : set of int
        Buffers that a plan must write.

    Notes
    -----
    `alive` only shrinks: `prune` drops an action for good when no plan that contains it can be cheaper than the incumbent.
    That stays valid as long as costs only rise above the lower bounds it was called with.
    """

    actions: Sequence[Action]
    goals: frozenset[int]
    alive: np.typing.NDArray[np.bool_] = field(init=False)
    _landmarks: list[frozenset[int]] = field(init=False, default_factory=list)
    _forbidden: list[frozenset[int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.alive = np.ones(len(self.actions), bool)

    def live(self) -> list[int]:
        """Return the actions that may still be in a better plan."""
        return [int(i) for i in np.flatnonzero(self.alive)]

    def forbid(self, plan: Iterable[int]) -> None:
        """Never choose a plan that contains all of these actions again (it failed its check as a whole)."""
        self._forbidden.append(frozenset(plan))
        self.alive[:] = True  # what was dropped for the sake of an incumbent may be needed now that it is gone

    def _is_forbidden(self, plan: Iterable[int]) -> bool:
        chosen = set(plan)
        return any(f <= chosen for f in self._forbidden)

    def greedy(self, cost: Sequence[float], allowed: Callable[[int], bool] = lambda _: True) -> tuple[float, tuple[int, ...]]:
        """Return (cost, plan) by cheapest supporters (h_add), the plan then costed as a DAG; infinite if none exists."""
        _, support = self._relax(cost, lambda x, y: x + y, allowed)
        if any(g not in support for g in self.goals):
            return math.inf, ()
        plan = self._order(self._reachable(support))
        if self._is_forbidden(plan):
            others = (self.greedy(cost, lambda j, i=i: j != i and allowed(j)) for i in plan)  # type: ignore[misc]
            return min(others, key=lambda found: found[0])
        return sum(cost[i] for i in plan), plan

    def _relax(
        self, cost: Sequence[float], join: Callable[[float, float], float], allowed: Callable[[int], bool]
    ) -> tuple[dict[int, float], dict[int, int]]:
        """Cheapest value and supporter of every buffer, with `join` over an action's needs (sum: h_add; max: h_max)."""
        value: dict[int, float] = {}
        support: dict[int, int] = {}
        waiting: dict[int, list[int]] = defaultdict(list)
        left: dict[int, int] = {}
        total: dict[int, float] = {}
        heap: list[tuple[float, int]] = []
        for i, a in enumerate(self.actions):
            if not self.alive[i] or not allowed(i) or not math.isfinite(cost[i]):
                continue
            left[i], total[i] = len(a.needs), 0.0
            for b in a.needs:
                waiting[b].append(i)
            if not a.needs:
                heapq.heappush(heap, (cost[i], i))
        while heap:
            v, i = heapq.heappop(heap)
            for b in sorted(self.actions[i].writes - value.keys()):
                value[b], support[b] = v, i
                for j in waiting[b]:
                    left[j] -= 1
                    total[j] = join(total[j], v)
                    if left[j] == 0:
                        heapq.heappush(heap, (cost[j] + total[j], j))
        return value, support

    def _reachable(self, support: dict[int, int]) -> set[int]:
        chosen: set[int] = set()
        stack = list(self.goals)
        seen = set(stack)
        while stack:
            i = support[stack.pop()]
            chosen.add(i)
            for b in self.actions[i].needs - seen:
                seen.add(b)
                stack.append(b)
        return chosen

    def _order(self, chosen: Iterable[int]) -> tuple[int, ...]:
        """Order actions so that each buffer is written before it is needed; leave out what no goal needs."""
        done: list[int] = []
        have: set[int] = set()
        waiting = sorted(chosen)
        while ready := [i for i in waiting if self.actions[i].needs <= have]:
            waiting = [i for i in waiting if not self.actions[i].needs <= have]
            for i in ready:
                if not self.actions[i].writes <= have:
                    done.append(i)
                    have |= self.actions[i].writes
        if missing := self.goals - have:
            raise ExtractionError(
                f"the chosen kernels do not reach the buffers {sorted(missing)}; this is a defect, please report it"
            )
        wanted = set(self.goals)
        kept: list[int] = []
        for i in reversed(done):
            if self.actions[i].writes & wanted:
                kept.append(i)
                wanted = (wanted - self.actions[i].writes) | self.actions[i].needs
        return tuple(reversed(kept))

    def prune(self, low: Sequence[float], best: float) -> int:
        """Drop every action that no plan cheaper than `best` can contain; return how many are left.

        A plan with action i costs at least low[i], plus the greater of h_max of its needs and the sum over their fact
        landmarks (buffers that every way of making them writes), plus the cheapest path from what i writes to a goal.
        """
        hmax, _ = self._relax(low, max, lambda _: True)
        landmarks = self._fact_landmarks()
        least: dict[int, float] = {}
        for i in self.live():
            share = low[i] / len(self.actions[i].writes)  # an action that writes several landmarks is paid for once
            for b in self.actions[i].writes:
                least[b] = min(least.get(b, math.inf), share)
        path = self._paths_to_goal(low)
        for i in self.live():
            a = self.actions[i]
            if any(b not in hmax for b in a.needs):
                self.alive[i] = False
                continue
            marks = frozenset().union(*(landmarks[b] for b in a.needs)) if a.needs else frozenset()
            before = max(sum(least[b] for b in marks), max((hmax[b] for b in a.needs), default=0.0))
            if low[i] + before + min(path.get(b, math.inf) for b in a.writes) >= best:
                self.alive[i] = False
        return int(self.alive.sum())

    def _fact_landmarks(self) -> dict[int, frozenset[int]]:
        marks: dict[int, frozenset[int]] = {}
        changed = True
        while changed:
            changed = False
            for i in self.live():
                a = self.actions[i]
                if any(b not in marks for b in a.needs):
                    continue
                new = a.writes.union(*(marks[b] for b in a.needs))
                for b in a.writes:
                    old = marks.get(b)
                    met = new if old is None else new & old
                    if met != old:
                        marks[b] = met
                        changed = True
        return marks

    def _paths_to_goal(self, low: Sequence[float]) -> dict[int, float]:
        """Least cost of the actions on a path from each buffer to a goal, the goal's own producer included."""
        users: dict[int, list[int]] = defaultdict(list)
        for i in self.live():
            for b in self.actions[i].writes:
                users[b].append(i)
        path = dict.fromkeys(self.goals, 0.0)
        heap = [(0.0, g) for g in self.goals]
        while heap:
            v, b = heapq.heappop(heap)
            if v > path[b]:
                continue
            for i in users[b]:
                for need in self.actions[i].needs:
                    if v + low[i] < path.get(need, math.inf):
                        path[need] = v + low[i]
                        heapq.heappush(heap, (path[need], need))
        return path

    def exact(self, cost: Sequence[float], *, limit_s: float = 10.0, gap: float = 1e-4) -> Choice:
        """Return the cheapest plan and a valid lower bound; the plan is empty if none was found in the time limit."""
        shown, needed = self._reduced(cost)
        if any(not any(g in self.actions[i].writes for i in shown) for g in self.goals):
            return Choice((), math.inf)
        deadline = time.monotonic() + limit_s
        bound = 0.0
        while True:
            left = max(0.1, deadline - time.monotonic())
            chosen, dual = self._solve(cost, shown, needed, left, gap)
            bound = max(bound, dual)
            if chosen is None:
                return Choice((), bound)
            reached = self._closure(frozenset(), chosen)
            if self.goals <= reached:
                return Choice(self._order(self._trim(chosen, cost)), bound)
            self._landmarks.append(self._outside_goal(reached, chosen, needed))
            if time.monotonic() > deadline:
                return Choice((), bound)

    def _reduced(self, cost: Sequence[float]) -> tuple[list[int], set[int]]:
        """Per buffer the Pareto front of (needs, writes, cost), then only what the goals can need."""
        by_buffer: dict[int, list[int]] = defaultdict(list)
        for i in self.live():
            if math.isfinite(cost[i]):
                for b in self.actions[i].writes:
                    by_buffer[b].append(i)
        fronts: dict[int, list[int]] = {}
        for b, indices in by_buffer.items():
            front: list[int] = []
            for i in sorted(indices, key=lambda i: (cost[i], len(self.actions[i].needs), -len(self.actions[i].writes))):
                a = self.actions[i]
                if not any(self.actions[j].needs <= a.needs and a.writes <= self.actions[j].writes for j in front):
                    front.append(i)
            fronts[b] = front
        needed = set(self.goals)
        stack = list(self.goals)
        while stack:
            for i in fronts.get(stack.pop(), ()):
                for b in self.actions[i].needs - needed:
                    needed.add(b)
                    stack.append(b)
        return list(dict.fromkeys(i for b in sorted(needed) for i in fronts.get(b, ()))), needed

    def _solve(
        self, cost: Sequence[float], shown: list[int], needed: set[int], limit_s: float, gap: float
    ) -> tuple[list[int] | None, float]:
        from scipy.optimize import Bounds, LinearConstraint, milp  # slow import (0.5 s), needed here alone
        from scipy.sparse import coo_matrix

        column = {i: n for n, i in enumerate(shown)}
        buffer = {b: len(shown) + n for n, b in enumerate(sorted(needed))}
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        low: list[float] = []
        high: list[float] = []

        def constrain(terms: list[tuple[int, float]], at_least: float, at_most: float) -> None:
            for c, v in terms:
                rows.append(len(low))
                columns.append(c)
                values.append(v)
            low.append(at_least)
            high.append(at_most)

        makers: dict[int, list[int]] = defaultdict(list)
        for i in shown:
            for b in self.actions[i].writes & needed:
                makers[b].append(i)
        for g in self.goals:
            constrain([(buffer[g], 1.0)], 1, 1)
        for b in sorted(needed):
            constrain([(column[i], 1.0) for i in makers[b]] + [(buffer[b], -1.0)], 0, math.inf)
            uses: dict[int, list[int]] = defaultdict(list)
            for i in makers[b]:
                if len(self.actions[i].writes) == 1:  # at most one of these makes b
                    for need in self.actions[i].needs:
                        uses[need].append(i)
            for need, users in uses.items():
                constrain([(column[i], 1.0) for i in users] + [(buffer[need], -1.0)], -math.inf, 0)
        for i in shown:
            if len(self.actions[i].writes) > 1:
                for need in sorted(self.actions[i].needs):
                    constrain([(column[i], 1.0), (buffer[need], -1.0)], -math.inf, 0)
        for inside in self._landmarks:
            crossing = [i for i in shown if self.actions[i].needs <= inside and not self.actions[i].writes <= inside]
            constrain([(column[i], 1.0) for i in crossing], 1, math.inf)
        for plan in self._forbidden:
            if all(i in column for i in plan):
                constrain([(column[i], 1.0) for i in plan], -math.inf, len(plan) - 1)
        size = len(shown) + len(needed)
        scale = max((cost[i] for i in shown), default=1.0) or 1.0
        objective = np.concatenate([[cost[i] / scale for i in shown], np.zeros(len(needed))])
        matrix = coo_matrix((values, (rows, columns)), shape=(len(low), size)).tocsr()
        kind = np.concatenate([np.ones(len(shown)), np.zeros(len(needed))])
        options = {"time_limit": limit_s, "mip_rel_gap": gap}
        found = milp(
            objective, constraints=LinearConstraint(matrix, low, high), integrality=kind, bounds=Bounds(0, 1), options=options
        )
        dual = getattr(found, "mip_dual_bound", None)
        if found.x is None:
            return None, math.inf if found.status == 2 else (dual or 0.0) * scale
        return [i for i in shown if found.x[column[i]] > 0.5], (dual if dual is not None else found.fun) * scale

    def _closure(self, have: frozenset[int], chosen: Iterable[int]) -> set[int]:
        reached = set(have)
        chosen = list(chosen)
        grew = True
        while grew:
            grew = False
            for i in chosen:
                a = self.actions[i]
                if not a.writes <= reached and a.needs <= reached:
                    reached |= a.writes
                    grew = True
        return reached

    def _outside_goal(self, reached: set[int], chosen: list[int], needed: set[int]) -> frozenset[int]:
        """Grow the reached set as far as the goals stay out of reach: a smaller, stronger landmark cut."""
        inside = frozenset(reached)
        for b in sorted(needed - reached):
            trial = self._closure(inside | {b}, chosen)
            if not self.goals <= trial and b not in self.goals:
                inside = frozenset(trial - self.goals) if trial & self.goals else frozenset(trial)
        return inside

    def _trim(self, chosen: list[int], cost: Sequence[float]) -> set[int]:
        support: dict[int, int] = {}
        grew = True
        while grew:
            grew = False
            for i in sorted(chosen, key=lambda i: cost[i]):
                a = self.actions[i]
                if all(b in support for b in a.needs):
                    for b in a.writes - support.keys():
                        support[b] = i
                        grew = True
        return self._reachable(support)
