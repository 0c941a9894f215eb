"""Shipped laws made wrong in small ways: whatever the prover still proves, evaluation does not refute."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import pytest

from eqsat.errors import FalseRuleError, RuleError
from eqsat.gate.equation import equations, typings
from eqsat.ops import BY_CONSTRUCTOR, Kind
from eqsat.proof.prover import prove
from eqsat.rulecheck import check_rule
from eqsat.rulefile import Rule, builtin_rules
from eqsat.sexpr import Node

POINTWISE = {
    n: [o.constructor for o in BY_CONSTRUCTOR.values() if o.kind is Kind.POINTWISE and o.arity == n and o.name != "cast"]
    for n in (1, 2, 3)
}
REDUCTIONS = [o.constructor for o in BY_CONSTRUCTOR.values() if o.kind is Kind.REDUCE]
SEEDS = range(8)
EACH = 25


def places(node: Node, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Node]]:
    yield path, node
    for i, item in enumerate(node.items):
        yield from places(item, (*path, i))


def put(node: Node, path: tuple[int, ...], new: Node) -> Node:
    if not path:
        return new
    items = list(node.items)
    items[path[0]] = put(items[path[0]], path[1:], new)
    return Node("list", "", tuple(items))


def mutant(rule: Rule, rng: random.Random) -> Rule | None:
    """Drop a guard, exchange two operands, or write another op: on one side of a rewrite."""
    if rule.lhs is None or rule.rhs is None:
        return None
    kind = rng.randrange(3)
    if kind == 0 and rule.guards:
        gone = rng.randrange(len(rule.guards))
        return dataclasses.replace(rule, guards=rule.guards[:gone] + rule.guards[gone + 1 :])
    side = rng.choice(("lhs", "rhs"))
    term = rule.lhs if side == "lhs" else rule.rhs
    calls = [
        (p, n)
        for p, n in places(term)
        if n.head in BY_CONSTRUCTOR and BY_CONSTRUCTOR[n.head].kind in (Kind.POINTWISE, Kind.REDUCE)
    ]
    if not calls:
        return None
    path, call = rng.choice(calls)
    row = BY_CONSTRUCTOR[call.head]
    if kind == 1 and row.kind is Kind.POINTWISE and row.arity > 1:
        head, a, b, *rest = call.items
        changed = Node("list", "", (head, b, a, *rest))
    elif row.name == "cast":
        return None
    else:
        names = REDUCTIONS if row.kind is Kind.REDUCE else POINTWISE[row.arity]
        changed = Node("list", "", (Node("symbol", rng.choice(names)), *call.items[1:]))
    return dataclasses.replace(rule, **{side: put(term, path, changed)})


@pytest.mark.parametrize("seed", SEEDS)
def test_no_mutant_is_proved_and_refuted(seed):
    rng = random.Random(seed)
    rules = [r for r in builtin_rules(unstable=True) if equations(r)]
    proved = 0
    for _ in range(EACH):
        changed = mutant(rng.choice(rules), rng)
        if changed is None:
            continue
        (claim, *_) = equations(changed)
        if not prove(claim, typings(claim)).found:
            continue
        proved += 1
        try:
            check_rule(dataclasses.replace(changed, numerics="unstable", bound=0.0))
        except (FalseRuleError, RuleError) as e:
            # A law of reals may still fail where dtypes or both sides' infinities differ; its values must not.
            said = str(e)
            assert any(s in said for s in ("changes the dtype", "fraction meet", "= inf", "= nan", "cannot be tested")), said
    assert proved
