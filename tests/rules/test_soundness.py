"""Random programs through all shipped rules: whatever is taken from the e-graph means what the program means."""

from __future__ import annotations

import heapq
import os
import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eqsat.cuts import CutLimits
from eqsat.frozen import Frozen, Node
from eqsat.ir import Output, Program
from eqsat.kernelgraph import KernelGraph
from eqsat.oracle import evaluate
from eqsat.planchoice import Action, Chooser
from eqsat.rulefile import builtin_rules
from eqsat.saturation import Limits
from eqsat.search.rulebase import declarations
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


EXAMPLES = int(os.environ.get("EQSAT_FUZZ_EXAMPLES", "150"))
"""Programs tried; `make fuzz` sets 10,000."""


def rebuilt(frozen: Frozen, program: Program, rng: random.Random) -> Program:
    """Return the program of a random term of the e-graph."""
    choice = random_choice(frozen, rng)
    terms = [frozen.term_from_choice(c, choice) for c in frozen.roots]
    exprs = [from_term(t, program, dtype=o.expr.dtype) for t, o in zip(terms, program.outputs, strict=True)]
    outputs = tuple(Output(o.name, e, o.axes, o.dtype) for e, o in zip(exprs, program.outputs, strict=True))
    return Program(program.inputs, outputs)


def run_plan(frozen: Frozen, program: Program, arrays: dict[str, np.ndarray], rng: random.Random) -> list[np.ndarray]:
    """Run a plan chosen by random costs, kernel by kernel."""
    graph = KernelGraph(program, frozen, CutLimits(per_class=24))
    chooser = Chooser([Action(frozenset(k.writes), k.needs) for k in graph.kernels], graph.goals)
    _, plan = chooser.greedy([rng.expovariate(1.0) for _ in graph.kernels])
    known = dict(arrays)
    for i in plan:
        kernel = graph.kernels[i].program
        outputs = tuple(replace(o, dtype=DType.F64 if o.dtype.is_float else o.dtype) for o in kernel.outputs)
        wide = {n: x for n, x in known.items() if n in {i.name for i in kernel.inputs}}
        known |= zip((o.name for o in outputs), evaluate(Program(kernel.inputs, outputs), wide), strict=True)
    return [np.asarray(known[o.name], np.float64) for o in program.outputs]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(depth=4, dtypes=(DType.F64,), without=JUMPS, masks=True), st.sampled_from([0.5, 0.9, 1.0]), st.integers(0, 2**16))
def test_any_term_and_any_plan_under_any_rules_agrees_with_the_oracle(session, program, share, seed):
    # The sign of a zero is no value of a program: rules may change it, and 1/−0 shows it.
    assume(not any(e.op == "const" and e.attrs[0] == 0 for o in program.outputs for e in o.expr.walk()))
    rng = random.Random(seed)
    ruleset = builtin_rules()
    rules = [r for r in ruleset.rules if r.phase == "lowering" or rng.random() < share]
    _, frozen = session.saturate(program, rules, declarations=declarations(ruleset), limits=Limits(nodes=3000))
    arrays = example_inputs(program, seed)
    wanted, beside = values(program, arrays), values(program, moved(arrays, seed))
    found = {f"term {n}": values(rebuilt(frozen, program, rng), arrays) for n in range(3)}
    if len(set(frozen.roots)) == len(frozen.roots):
        with np.errstate(all="ignore"):
            found["plan"] = run_plan(frozen, program, arrays, rng)
    for what, results in found.items():
        for a, near, b in zip(wanted, beside, results, strict=True):
            with np.errstate(invalid="ignore"):
                scale = np.max(abs(a[np.isfinite(a)]), initial=1.0)
                smooth = np.isfinite(a) & (abs(a - near) <= 1e-4 * scale)
                wrong = smooth & ~(abs(a - b) <= 1e-6 * scale)
            assert not wrong.any(), f"{what}\n{program}\n{a}\n{b}"
