"""Random programs through all shipped rules: whatever is taken from the e-graph means what the program means."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
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


def values(program: Program, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return [np.asarray(v, np.float64) for v in evaluate(program, arrays)]


def moved(arrays: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Return the inputs moved by a hair, so that a quotient by 0 or a cancellation to the last bit shows."""
    rng = np.random.default_rng(seed)
    return {n: x + 1e-9 * rng.normal(size=x.shape) if x.dtype == np.float64 else x for n, x in arrays.items()}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(programs(depth=4, dtypes=(DType.F64,), without=JUMPS), st.integers(0, 2**16))
def test_any_extraction_agrees_with_the_oracle(session, program, seed):
    # The sign of a zero is no value of a program: rules may change it, and 1/−0 shows it.
    assume(not any(e.op == "const" and e.attrs[0] == 0 for o in program.outputs for e in o.expr.walk()))
    _, frozen = session.saturate(program, builtin_rules().rules, limits=Limits(nodes=3000))
    arrays, rng = example_inputs(program, seed), random.Random(seed)
    wanted, beside = values(program, arrays), values(program, moved(arrays, seed))
    for _ in range(4):
        choice = random_choice(frozen, rng)
        terms = [frozen.term_from_choice(c, choice) for c in frozen.roots]
        exprs = [from_term(t, program, dtype=o.expr.dtype) for t, o in zip(terms, program.outputs, strict=True)]
        outputs = tuple(Output(o.name, e, o.axes, o.dtype) for e, o in zip(exprs, program.outputs, strict=True))
        found = values(Program(program.inputs, outputs), arrays)
        for term, a, near, b in zip(terms, wanted, beside, found, strict=True):
            with np.errstate(invalid="ignore"):
                scale = np.max(abs(a[np.isfinite(a)]), initial=1.0)
                smooth = np.isfinite(a) & (abs(a - near) <= 1e-4 * scale)
                wrong = smooth & ~(abs(a - b) <= 1e-6 * scale)
            assert not wrong.any(), f"{term}\n{a}\n{b}"
