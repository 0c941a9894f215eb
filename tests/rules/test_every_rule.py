"""Every shipped rule, found by enumeration: it fires, keeps the dtype, and both sides are equal in the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from eqsat.egraph import EGraph
from eqsat.gate.equation import Equation, equations
from eqsat.gate.instance import load_text, program, situation
from eqsat.oracle import evaluate
from eqsat.rulefile import Rule, builtin_rules
from eqsat.signature import declarations

RULES = builtin_rules(unstable=True)
CLAIMS = [(r, e) for r in RULES for e in equations(r)]
by_name = pytest.mark.parametrize(("rule", "equation"), CLAIMS, ids=[e.name for _, e in CLAIMS])


def drawn_inputs(made, rng):
    out = {}
    for i in made.inputs:
        reals = rng.integers(0, 2, i.shape) if i.dtype.value == "bool" else rng.integers(1, 5, i.shape)
        out[i.name] = reals.astype(i.dtype.numpy)
    return out


@by_name
def test_both_sides_are_equal_in_the_oracle(rule: Rule, equation: Equation):
    draw = situation(equation)
    left, right = (program(equation, side, draw) for side in (equation.left, equation.right))
    assert left.outputs[0].expr.type == right.outputs[0].expr.type or equation.tensors == ()
    inputs = drawn_inputs(left, np.random.default_rng(0))
    np.testing.assert_allclose(evaluate(left, inputs)[0], evaluate(right, inputs)[0], rtol=1e-9, atol=1e-9)


@by_name
def test_it_fires_on_its_own_left_side(rule: Rule, equation: Equation):
    graph = EGraph()
    graph.run(declarations())
    graph.run("\n".join(map(str, RULES.declarations)))
    graph.run("\n".join(r.egglog("rs-analysis") for r in RULES.phase("analysis")))
    others = [e.left for e in equations(rule) if rule.kind == "rule"]
    graph.run(f"(ruleset rs-rule)\n{rule.egglog('rs-rule')}\n{load_text(equation, situation(equation), *others)}")
    graph.step(graph.parse("(run-schedule (saturate (run rs-analysis)))"))
    assert graph.step(graph.parse("(run-schedule (run rs-rule))"))[1] > 0


def test_every_rule_that_changes_values_states_its_law():
    assert [r.name for r in RULES if not r.law] == []
