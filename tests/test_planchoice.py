"""Plan choice against brute force on random kernel graphs."""

import itertools
import math

import numpy as np
import pytest

from eqsat.planchoice import Action, Chooser


def random_actions(rng: np.random.Generator, buffers: int, count: int) -> list[Action]:
    out = [
        Action(frozenset([b]), frozenset() if b < 2 else frozenset(rng.choice(b, size=min(b, 2), replace=False).tolist()))
        for b in range(buffers)
    ]
    for _ in range(count - buffers):
        writes = frozenset(rng.choice(buffers, size=int(rng.integers(1, 3)), replace=False).tolist())
        needs = frozenset(rng.choice(buffers, size=int(rng.integers(0, 3)), replace=False).tolist())
        out.append(Action(writes, needs - writes))
    return out


def cheapest(actions: list[Action], goal: int, cost: list[float]) -> float:
    best = math.inf
    for mask in itertools.product((False, True), repeat=len(actions)):
        chosen = [i for i, used in enumerate(mask) if used]
        total = sum(cost[i] for i in chosen)
        if total >= best:
            continue
        reached: set[int] = set()
        while new := [i for i in chosen if not actions[i].writes <= reached and actions[i].needs <= reached]:
            reached |= actions[new[0]].writes
        if goal in reached:
            best = total
    return best


@pytest.mark.parametrize("seed", range(12))
def test_exact_choice_is_the_cheapest_of_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    actions = random_actions(rng, 5, 11)
    cost = rng.uniform(1, 10, len(actions)).tolist()
    chooser = Chooser(actions, frozenset([4]))
    choice = chooser.exact(cost)
    expected = cheapest(actions, 4, cost)
    assert sum(cost[i] for i in choice.plan) == pytest.approx(expected)
    assert choice.bound <= expected * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_pruning_never_loses_a_plan_cheaper_than_the_incumbent(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    actions = random_actions(rng, 5, 11)
    cost = rng.uniform(1, 10, len(actions)).tolist()
    expected = cheapest(actions, 4, cost)
    chooser = Chooser(actions, frozenset([4]))
    before = chooser.greedy(cost)[0]
    chooser.prune(cost, before * (1 + 1e-9))
    choice = chooser.exact(cost)
    assert sum(cost[i] for i in choice.plan) == pytest.approx(expected)


def test_kernels_that_need_each_other_are_not_a_plan() -> None:
    actions = [
        Action(frozenset([0]), frozenset([1])),
        Action(frozenset([1]), frozenset([0])),
        Action(frozenset([1]), frozenset()),
    ]
    choice = Chooser(actions, frozenset([0])).exact([1.0, 1.0, 50.0])
    assert choice.plan == (2, 0)


def test_a_goal_that_nothing_writes_gives_an_empty_plan_and_an_infinite_bound() -> None:
    choice = Chooser([Action(frozenset([0]), frozenset())], frozenset([7])).exact([1.0])
    assert choice.plan == ()
    assert math.isinf(choice.bound)


def test_kernels_of_infinite_cost_are_never_chosen() -> None:
    actions = [Action(frozenset([0]), frozenset()), Action(frozenset([0]), frozenset())]
    assert Chooser(actions, frozenset([0])).exact([math.inf, 3.0]).plan == (1,)


def test_a_forbidden_plan_is_not_chosen_again_by_either_chooser() -> None:
    actions = [Action(frozenset([0]), frozenset()), Action(frozenset([1]), frozenset([0])), Action(frozenset([1]), frozenset())]
    chooser = Chooser(actions, frozenset([1]))
    cost = [1.0, 1.0, 5.0]
    assert chooser.exact(cost).plan == (0, 1)
    chooser.prune(cost, 2.0 * (1 + 1e-9))
    chooser.forbid((0, 1))
    assert chooser.exact(cost).plan == (2,)
    assert chooser.greedy(cost) == (5.0, (2,))
