"""Chains of matrices: the cheapest plan by multiplications is the one of dynamic programming, for random chains.

`EQSAT_CHAINS=1000` looks at a thousand; without it, at fifty.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from eqsat.kernelgraph import KernelGraph
from eqsat.planchoice import Action, Chooser
from eqsat.rulefile import RuleSet, builtin_rules
from eqsat.search.discovery_checks import fewest_multiplications
from eqsat.search.discovery_rows import chain_row
from eqsat.search.rulebase import declarations
from eqsat.session import Session

CHAINS = int(os.environ.get("EQSAT_CHAINS", "50"))
BATCH = 10  # chains a test


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session() as open_session:
        yield open_session


@pytest.fixture(scope="module")
def ruleset() -> RuleSet:
    return builtin_rules().admit(("exact", "reassociates"))


def random_dims(seed: int) -> tuple[int, ...]:
    """Return distinct extents for a chain of 3 to 10 matrices."""
    rng = np.random.default_rng(seed)
    count = 3 + seed % 8
    return tuple(int(n) for n in rng.choice(np.arange(2, 400), size=count + 1, replace=False))


def least_multiplications(dims: tuple[int, ...], session: Session, ruleset: RuleSet) -> int:
    """Return the multiplications of the plan that takes fewest: a kernel costs its arithmetic."""
    program = chain_row(dims).program()
    report, frozen = session.saturate(program, ruleset.rules, declarations=declarations(ruleset))
    assert report.stop == "saturated"
    graph = KernelGraph(program, frozen)
    cost = [k.program.flops / 2 for k in graph.kernels]  # a multiplication and an addition each
    chooser = Chooser([Action(frozenset(k.writes), k.needs) for k in graph.kernels], graph.goals)
    greedy, _ = chooser.greedy(cost)
    chooser.prune(cost, greedy)  # a plan that is cheaper than the greedy one, if there is any
    found = chooser.exact(cost).plan
    return int(min([greedy, *([sum(cost[i] for i in found)] if found else [])]))


@pytest.mark.parametrize("first", range(0, CHAINS, BATCH))
def test_the_best_order_of_a_chain_is_found(first: int, session: Session, ruleset: RuleSet) -> None:
    for seed in range(first, min(first + BATCH, CHAINS)):
        dims = random_dims(seed)
        assert least_multiplications(dims, session, ruleset) == fewest_multiplications(dims), dims


def test_the_best_order_by_hand() -> None:
    assert fewest_multiplications((10, 100, 5, 50)) == 10 * 100 * 5 + 10 * 5 * 50
    assert fewest_multiplications((2, 3)) == 0
