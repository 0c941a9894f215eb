"""Measured extraction: the certificate is true of the whole space, whatever the kernels turn out to cost."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from time import monotonic
from types import SimpleNamespace

import numpy as np
import pytest

from eqsat.codegen.cpu.point import CpuPointTile
from eqsat.codegen.problem import point_problem
from eqsat.ir import Program
from eqsat.kernelgraph import KernelNode
from eqsat.search import extraction
from eqsat.search.candidates import Candidate, Sweep, Timed
from eqsat.search.extraction import Extraction, Floors, unmeasured_choice
from eqsat.trace import tensor, to_program

GOAL = 5
SCHEDULE = CpuPointTile(16, 1, 0, 1, 0)


def _program() -> Program:
    return to_program(tensor("x", (8,), "f32") + 1)


PROGRAM = _program()


def candidate(writes: int, needs: set[int], low_ns: float, key: str) -> Candidate:
    problem = point_problem(PROGRAM)
    assert not isinstance(problem, str)
    node = KernelNode((writes,), frozenset(needs), "point", PROGRAM)
    return Candidate(node, problem, key, ("PointSpace", (8,)), lambda: (SCHEDULE,), 1, low_ns)


def random_graph(seed: int) -> tuple[list[Candidate], dict[str, float]]:
    """Return candidates over buffers 0…GOAL and the time that each turns out to take; some never give a right kernel."""
    rng = np.random.default_rng(seed)
    found, times = [], {}
    for n in range(12):
        writes = n if n <= GOAL else int(rng.integers(GOAL + 1))
        needs = set(rng.choice(GOAL + 1, size=int(rng.integers(0, 3)), replace=False).tolist()) - {writes} if n >= 2 else set()
        low = float(rng.uniform(1, 10))
        key = f"k{n}"
        found.append(candidate(writes, needs, low, key))
        times[key] = math.inf if n > GOAL and rng.random() < 0.2 else low * float(rng.uniform(1, 3))
    return found, times


def cheapest(candidates: list[Candidate], times: dict[str, float]) -> float:
    """Return the least time of any set of kernels that makes the goal, by trying all sets."""
    best = math.inf
    for used in itertools.product((False, True), repeat=len(candidates)):
        chosen = [c for c, u in zip(candidates, used, strict=True) if u]
        total = sum(times[c.key] for c in chosen)
        if total >= best:
            continue
        made: set[int] = set()
        while fresh := [c for c in chosen if not made.issuperset(c.node.writes) and c.node.needs <= made]:
            made.update(fresh[0].node.writes)
        if GOAL in made:
            best = total
    return best


def measured(times: dict[str, float], log: list[str]) -> Callable[[Candidate, float], Sweep]:
    def sweep(c: Candidate, stop_above_ns: float) -> Sweep:
        assert c.key not in log, "a kernel is measured once"
        log.append(c.key)
        if math.isinf(times[c.key]):
            return Sweep(None, {"wrong": 1})
        return Sweep(Timed(SCHEDULE, times[c.key], None, None, None, remembered=False), {"ok": 1})

    return sweep


@pytest.mark.parametrize("seed", range(12))
def test_a_closed_search_has_the_best_plan_of_all_and_need_not_measure_every_kernel(seed: int) -> None:
    candidates, times = random_graph(seed)
    best = cheapest(candidates, times)
    log: list[str] = []
    search = Extraction(
        candidates, frozenset([GOAL]), measured(times, log), monotonic() + 20, epsilon=0.0, floors=Floors(enough=10**9)
    )
    search.run()
    if math.isinf(best):
        assert not search.plans
        return
    assert search.certificate().verdict == "closed"
    assert search.best_ns == pytest.approx(best)
    assert search.certificate().measured == len(log) <= len(candidates)


def test_bounds_spare_kernels_that_cannot_be_in_a_better_plan() -> None:
    candidates = [candidate(GOAL, set(), 10.0, "good"), candidate(GOAL, set(), 50.0, "hopeless")]
    log: list[str] = []
    search = Extraction(
        candidates, frozenset([GOAL]), measured({"good": 11.0, "hopeless": 60.0}, log), monotonic() + 20, epsilon=0.0
    )
    search.run()
    assert log == ["good"]
    assert search.certificate().verdict == "closed"


@pytest.mark.parametrize("seed", range(6))
def test_closed_within_epsilon_keeps_its_word(seed: int) -> None:
    candidates, times = random_graph(seed)
    best = cheapest(candidates, times)
    search = Extraction(candidates, frozenset([GOAL]), measured(times, []), monotonic() + 20, epsilon=0.3)
    search.run()
    if math.isfinite(best):
        assert search.certificate().verdict in ("closed", "closed within 30 %")
        assert best >= search.best_ns * (1 - 0.3) * (1 - 1e-9)


def test_a_kernel_without_a_right_schedule_is_in_no_plan() -> None:
    candidates = [candidate(GOAL, set(), 1.0, "wrong"), candidate(0, set(), 1.0, "a"), candidate(GOAL, {0}, 1.0, "b")]
    times = {"wrong": math.inf, "a": 20.0, "b": 30.0}
    search = Extraction(candidates, frozenset([GOAL]), measured(times, []), monotonic() + 20, epsilon=0.0)
    search.run()
    assert list(search.plans) == [(1, 2)]
    assert search.best_ns == 50.0


def test_no_plan_at_all_is_open_and_has_no_finalists() -> None:
    search = Extraction(
        [candidate(GOAL, set(), 1.0, "wrong")], frozenset([GOAL]), measured({"wrong": math.inf}, []), monotonic() + 20
    )
    search.run()
    assert search.certificate().verdict == "open"
    assert search.finalists() == []


def test_a_budget_that_ends_leaves_the_search_open_with_its_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(extraction, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    candidates = [candidate(GOAL, set(), 10.0, "seen"), candidate(GOAL, set(), 10.1, "unseen")]
    search = Extraction(candidates, frozenset([GOAL]), measured({"seen": 20.0, "unseen": 15.0}, []), deadline_s=1.0)
    search.run()
    found = search.certificate()
    assert found.verdict == "open"
    assert found.measured == 1
    assert found.gap > 0.02
    assert "open" in str(found)


def test_a_schedule_space_that_was_cut_is_never_called_closed() -> None:
    def cut(c: Candidate, stop_above_ns: float) -> Sweep:
        return Sweep(Timed(SCHEDULE, c.low_ns, None, None, None, remembered=False), {"ok": 1, "cut": 3}, complete=False)

    search = Extraction([candidate(GOAL, set(), 10.0, "k")], frozenset([GOAL]), cut, monotonic() + 20)
    search.run()
    assert search.gap == 0
    assert search.certificate().verdict == "open"


def test_kernels_equal_up_to_names_are_measured_once() -> None:
    candidates = [candidate(0, set(), 5.0, "same"), candidate(1, set(), 5.0, "same"), candidate(GOAL, {0, 1}, 5.0, "last")]
    log: list[str] = []
    search = Extraction(candidates, frozenset([GOAL]), measured({"same": 6.0, "last": 7.0}, log), monotonic() + 20, epsilon=0.0)
    search.run()
    assert sorted(log) == ["last", "same"]
    assert search.best_ns == 19.0


def test_finalists_are_the_plans_near_the_best() -> None:
    candidates = [candidate(GOAL, set(), 1.0, k) for k in ("a", "b", "c")]
    search = Extraction(candidates, frozenset([GOAL]), measured({}, []), math.inf)
    search.plans = {(0,): 10.0, (1,): 10.5, (2,): 20.0}
    assert search.finalists() == [(0,), (1,)]


def test_without_measuring_the_plan_of_least_bound_is_taken() -> None:
    candidates = [candidate(GOAL, set(), 9.0, "a"), candidate(GOAL, set(), 4.0, "b"), candidate(GOAL, set(), math.inf, "none")]
    assert unmeasured_choice(candidates, frozenset([GOAL])) == (1,)
    assert unmeasured_choice([dataclasses.replace(candidates[2])], frozenset([GOAL])) == ()


def test_a_kernel_that_beats_its_bound_lowers_all_bounds_by_as_much() -> None:
    floors = Floors()
    floors.learn("point", 1.3)
    assert floors.of("reduce") == 1.0
    floors.learn("contract", 0.8)
    assert floors.of("reduce") == 0.8
    assert floors.of("point") == 0.8


def test_a_kernel_is_told_the_time_beyond_which_no_plan_with_it_can_win() -> None:
    told: dict[str, float] = {}
    times = {"first": 10.0, "whole": 30.0, "rest": 15.0}

    def sweep(c: Candidate, stop_above_ns: float) -> Sweep:
        told[c.key] = stop_above_ns
        return Sweep(Timed(SCHEDULE, times[c.key], None, None, None, remembered=False), {"ok": 1})

    found = [candidate(GOAL, set(), 9.0, "whole"), candidate(1, set(), 6.0, "first"), candidate(GOAL, {1}, 8.0, "rest")]
    e = Extraction(found, frozenset({GOAL}), sweep, monotonic() + 10)
    e.run()
    assert e.best_ns == 25.0
    assert told["whole"] == math.inf  # nothing is known before the first plan
    assert told["rest"] == 8.0 + 30.0 - 14.0  # the best plan so far, without the least that its kernels cost
    assert told["first"] == 30.0 - 15.0


def test_a_certificate_says_that_schedules_were_left_out_by_rank() -> None:
    found = candidate(GOAL, set(), 1.0, "k")
    best = Timed(SCHEDULE, 2.0, None, None, None, remembered=False)
    e = Extraction(
        [found], frozenset({GOAL}), lambda c, stop: Sweep(best, {"ok": 1, "pruned": 3}), monotonic() + 10, empirical=True
    )
    e.run()
    assert e.certificate().verdict == "closed"
    assert e.certificate().empirical == "rates and ranks of schedules"


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_by_model_is_the_best_of_all_plans(seed: int) -> None:
    candidates, _ = random_graph(seed)
    low = {c.key: c.low_ns for c in candidates}
    found = unmeasured_choice(candidates, frozenset([GOAL]))
    total = sum(candidates[i].low_ns for i in found) if found else math.inf
    assert total == pytest.approx(cheapest(candidates, low), rel=2e-4)
