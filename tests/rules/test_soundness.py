"""Random programs through all shipped rules: whatever is taken from the e-graph means what the program means."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eqsat.frozen import Frozen, Node
from eqsat.ir import Output, Program
from eqsat.oracle import evaluate
from eqsat.rulefile import builtin_rules
from eqsat.saturation import Limits
from eqsat.session import Session
from eqsat.terms import from_term
from eqsat.types import DType
from tests.strategies import example_inputs, programs

JUMPS = ("floor", "lt", "le", "eq", "argmax", "argmin")  # a rounding may carry a value over a jump


@pytest.fixture(scope="module")
def session():
    with Session() as open_session:
        yield open_session


def random_choice(frozen: Frozen, rng: random.Random) -> dict[int, Node]:
    """Return one node for each value class, chosen by random weights, without circles."""
    users: dict[int, list[tuple[int, Node, float]]] = defaultdict(list)
    waiting: dict[tuple[int, Node], int] = {}
    ready: list[tuple[float, int, int, Node]] = []
    reached: dict[int, float] = {}
    choice: dict[int, Node] = {}
    order = iter(range(10**9))
    for c in frozen.axes:
        for node in frozen.nodes[c]:
            weight, operands = rng.expovariate(1.0), set(node.children)
            waiting[c, node] = len(operands)
            for x in operands:
                users[x].append((c, node, weight))
            if not operands:
                heapq.heappush(ready, (weight, next(order), c, node))
    while ready:
        cost, _, c, node = heapq.heappop(ready)
        if c in reached:
            continue
        reached[c], choice[c] = cost, node
        for user, n, weight in users[c]:
            waiting[user, n] -= 1
            if waiting[user, n] == 0:
                total = weight + max(reached[x] for x in n.children)
                heapq.heappush(ready, (total, next(order), user, n))
    return choice


def values(program: Program, arrays) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return [np.asarray(v, np.float64) for v in evaluate(program, arrays)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(programs(depth=4, dtypes=(DType.F64, DType.F32, DType.BF16), without=JUMPS), st.integers(0, 2**16))
def test_any_extraction_agrees_with_the_oracle(session, program, seed):
    _, frozen = session.saturate(program, builtin_rules().rules, limits=Limits(nodes=3000))
    arrays, rng = example_inputs(program, seed), random.Random(seed)
    wanted = values(program, arrays)
    for _ in range(4):
        choice = random_choice(frozen, rng)
        terms = [frozen.term_from_choice(c, choice) for c in frozen.roots]
        exprs = [from_term(t, program, dtype=o.expr.dtype) for t, o in zip(terms, program.outputs, strict=True)]
        found = Program(
            program.inputs, tuple(Output(o.name, e, o.axes, o.dtype) for e, o in zip(exprs, program.outputs, strict=True))
        )
        for term, a, b in zip(terms, wanted, values(found, arrays), strict=True):
            scale = np.max(abs(a[np.isfinite(a)]), initial=1.0)
            with np.errstate(invalid="ignore"):
                near = (abs(a - b) <= 1e-6 * scale) | (a == b) | (np.isnan(a) & np.isnan(b))
            assert near.all(), f"{term}\n{a}\n{b}"
