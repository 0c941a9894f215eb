"""Rules about accesses: false ones are refused, true ones lead where they should."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eqsat.access import Index
from eqsat.congruence import Terms
from eqsat.derivation import derive
from eqsat.errors import FalseRuleError, RuleError
from eqsat.indexterms import made_axis
from eqsat.ir import Expr, Input, Output, Program, apply, const, iota, read, reduce
from eqsat.mirror import equations_of
from eqsat.rulecheck import check_rule
from eqsat.rulefile import Rule, builtin_rules, load_rules
from eqsat.session import Session
from eqsat.sexpr import read_forms
from eqsat.stepcheck import StepChecker
from eqsat.terms import accessed
from eqsat.types import DType

META = ':name "x" :phase algebra :numerics reassociates'


@pytest.fixture
def load(tmp_path):
    def from_text(text: str) -> Rule:
        path = tmp_path / "mine.egg"
        path.write_text(text.replace("META", META), encoding="utf-8")
        (rule,) = load_rules([path]).rules
        return rule

    return from_text


FALSE = {
    "e^0 is not 0": "(rewrite (Access k x (Exp a)) (Exp (Access k x a)) META)",
    "zeros are lost": (
        "(rewrite (Access j y (Access k x a)) (Access k (Substitute x j y) a) :when ((free-of j a) (has k a)) META)"
    ),
    "a summed axis is captured": "(rewrite (Access k x (Sum j a)) (Sum j (Access k x a)) :when ((has k a)) META)",
    "a part is lost": (
        "(rewrite (Sum k a) (Sum o (Sum i (Access k (Plus (Times (Axis o) 2) (Axis i)) a)))"
        " :when ((has k a) (= n (extent k)) (> n 1)) :axes ((o k (/ n 2)) (i k 2)) META)"
    ),
    "a part is counted twice": (
        "(rewrite (Sum k a) (Sum o (Access k (Axis o) a)) :when ((has k a) (= n (extent k))) :axes ((o k (* n 2))) META)".replace(
            "(Axis o)", "(Quotient (Axis o) 2)"
        )
    ),
    "the operand does not vary": "(rewrite (Access k x (Add a b)) (Add (Access k x a) b) :when ((has k a) (free-of k b)) META)",
    "another place": "(rewrite (Access k (Axis j) (Iota k)) (Add (Iota j) (Const 1.0)) :when ((inside (Axis j) k)) META)",
}


@pytest.mark.parametrize("case", FALSE)
def test_a_false_rule_about_accesses_is_refused(load, case):
    with pytest.raises(FalseRuleError) as caught:
        check_rule(load(FALSE[case]))
    assert "left" in str(caught.value)


def test_the_counterexample_names_the_index(load):
    with pytest.raises(FalseRuleError, match="x is "):
        check_rule(load(FALSE["e^0 is not 0"]))


def test_a_rule_that_splits_an_axis_evenly_is_true(load):
    split = (
        "(rewrite (Sum k a) (Sum o (Sum i (Access k (Plus (Times (Axis o) 2) (Axis i)) a)))"
        " :when ((has k a) (= n (extent k)) (= 0 (% n 2))) :axes ((o k (/ n 2)) (i k 2)) META)"
    )
    assert check_rule(load(split)).compared >= 24


MALFORMED = {
    "(rewrite (Sum k a) (Sum o a) :axes ((o k)) META)": "NAME AXIS… EXTENT",
    "(rewrite (Sum k a) (Sum k a) :axes ((k k 2)) META)": "stands for something already",
    "(birewrite (Sum k a) (Sum o a) :axes ((o k 2)) META)": "a birewrite brings in no axes",
    "(rewrite (Sum k a) (Sum o a) :axes ((o z 2)) META)": "the variable z is bound nowhere",
    "(rewrite (Access k a a) a META)": "used as Index and as T",
    "(rewrite (Neg a) (Access k (Whole 0) a) META)": "the variable k is bound nowhere",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_rule_about_accesses_is_refused(load, text):
    with pytest.raises(RuleError) as caught:
        load(text)
    assert MALFORMED[text] in str(caught.value)


F32 = DType.F32


def input_of(name: str, **extents: int) -> tuple[Expr, Input]:
    return read(name, tuple(extents), tuple(extents.values()), F32), Input(name, tuple(extents.values()), F32)


def derived(source: Expr, target: Expr, *inputs: Input, facts: str = "") -> str:
    program = Program(inputs, (Output("o", source, tuple(sorted(source.axes)), F32),))
    facts = f"{declarations()}\n{facts}"
    return derive(program, source, target, list(builtin_rules()), declarations=facts).status


def add(a: Expr, b: Expr) -> Expr:
    return apply("add", a, b)


def mul(a: Expr, b: Expr) -> Expr:
    return apply("mul", a, b)


SPLIT = "(few-rows 2)\n(split-length 4)\n(split-from 8)"


def split_index(extent: int, length: int) -> tuple[str, str, Index, dict[str, int]]:
    outer, inner = made_axis("k", "b", extent // length), made_axis("k", "i", length)
    return outer, inner, Index.axis(outer) * length + Index.axis(inner), {outer: extent // length, inner: length}


def test_a_sum_of_few_elements_is_split_into_two_stages_where_a_target_asks_for_it():
    a, given = input_of("a", k=16, h=2)
    outer, inner, index, extents = split_index(16, 4)
    target = reduce("sum", outer, reduce("sum", inner, mul(accessed(a, "k", index, extents), accessed(a, "k", index, extents))))
    source = reduce("sum", "k", mul(a, a))
    assert derived(source, target, given, facts=SPLIT) == "derived"
    assert derived(source, target, given) != "derived"


def test_a_sum_of_many_elements_stays_whole():
    a, given = input_of("a", k=16, h=7)
    outer, inner, index, extents = split_index(16, 4)
    target = reduce("sum", outer, reduce("sum", inner, accessed(a, "k", index, extents)))
    assert derived(reduce("sum", "k", a), target, given, facts=SPLIT) != "derived"


def test_a_softmax_weighted_sum_over_a_long_axis_becomes_parts_and_their_combination():
    (q, given_q), (k, given_k), (v, given_v) = (
        input_of("q", h=2, d=3),
        input_of("k", k=16, h=2, d=3),
        input_of("v", k=16, h=2, e=3),
    )

    def scores(keys: Expr) -> Expr:
        return mul(reduce("sum", "d", mul(q, keys)), const(0.5, F32))

    s = scores(k)
    e = apply("exp", apply("sub", s, reduce("max", "k", s)))
    source = reduce("sum", "k", mul(apply("div", e, reduce("sum", "k", e)), v))
    outer, inner, index, extents = split_index(16, 4)
    s = scores(accessed(k, "k", index, extents))
    high = reduce("max", inner, s)
    pivot = apply("maximum", high, const(-3e38, F32))
    part = apply("exp", apply("sub", s, pivot))
    scale = apply("exp", apply("sub", pivot, reduce("max", outer, high)))
    total = reduce("sum", outer, mul(scale, reduce("sum", inner, part)))
    weighted = reduce("sum", outer, mul(scale, reduce("sum", inner, mul(part, accessed(v, "k", index, extents)))))
    assert derived(source, apply("div", weighted, total), given_q, given_k, given_v, facts=SPLIT) == "derived"


def test_an_access_moves_to_the_reads_and_joins_the_ones_there():
    a, given = input_of("a", i=4, k=8)
    shifted = accessed(a, "k", Index.axis("k") + Index.const(-1), {"k": 8})
    source = accessed(reduce("sum", "i", apply("exp", shifted)), "k", Index.axis("p") * 2, {"p": 4})
    inner = Index.axis("p") * 2 + Index.const(-1)
    target = reduce("sum", "i", apply("exp", accessed(a, "k", inner, {"p": 4})))
    assert derived(source, target, given) == "derived"


def packed(x: Expr, v: Expr, w: Expr) -> tuple[Expr, str, dict[str, int]]:
    """Σ_k x·(v ‖ w), the axis along which they lie side by side, and its extent."""
    n, m = v.type.extents["n"], w.type.extents["m"]
    both = made_axis("n+m", "o", n + m)
    index, extents = Index.axis(both), {both: n + m}
    joined = add(accessed(v, "n", index, extents), accessed(w, "m", index + Index.const(-n), extents))
    return reduce("sum", "k", mul(x, joined)), both, extents


@pytest.mark.parametrize("constant", [True, False])
def test_products_with_neighbouring_constants_are_stretches_of_one(constant):
    (x, given_x), (v, given_v), (w, given_w) = input_of("x", i=5, k=6), input_of("v", k=6, n=3), input_of("w", k=6, m=4)
    given_v, given_w = replace(given_v, constant=constant), replace(given_w, constant=constant)
    source = apply("tanh", mul(reduce("sum", "k", mul(x, v)), reduce("sum", "k", mul(x, w))))
    product, both, _ = packed(x, v, w)
    left = accessed(product, both, Index.axis("n"), {"n": 3})
    right = accessed(product, both, Index.axis("m") + Index.const(3), {"m": 4})
    status = derived(source, apply("tanh", mul(left, right)), given_x, given_v, given_w)
    assert (status == "derived") == constant


def masked(op: str, bound: float, a: Expr) -> Expr:
    where = {"below": ("lt", 0), "from": ("le", 1)}[op]
    sides = [iota("k", 6), const(bound, DType.I64)]
    return apply("where", apply(where[0], *(sides[::-1] if where[1] else sides)), a, const(0, F32))


@pytest.mark.parametrize(("op", "length", "shift"), [("below", 4, 0), ("from", 2, 4)])
def test_a_masked_sum_is_a_sum_over_a_shorter_axis(op, length, shift):
    a, given = input_of("a", i=2, k=6)
    shorter = made_axis("k", "m", length)
    target = reduce("sum", shorter, accessed(a, "k", Index.axis(shorter) + Index.const(shift), {shorter: length}))
    assert derived(reduce("sum", "k", masked(op, 4, a)), target, given) == "derived"


@pytest.mark.parametrize(("op", "bound", "stays"), [("below", 6, True), ("below", 5, False), ("from", 0, True)])
def test_a_mask_that_holds_all_along_the_axis_vanishes(op, bound, stays):
    a, given = input_of("a", i=2, k=6)
    assert (derived(masked(op, bound, a), a, given) == "derived") == stays


def test_another_name_for_an_axis_stays_where_it_is():
    a, given = input_of("a", i=4, k=8)
    renamed = accessed(apply("exp", a), "i", Index.axis("j"), {"j": 4})
    source = reduce("sum", "k", mul(apply("exp", a), renamed))
    program = Program((given,), (Output("o", source, ("i", "j"), F32),))
    with Session() as session:
        report, _ = session.saturate(program, builtin_rules().rules, declarations=declarations())
    assert {c.name for c in report.rules if c.name.startswith("access-") and c.matches} == set()


def declarations() -> str:
    rules = builtin_rules()
    return "\n".join(map(str, (*rules.declarations, *rules.facts)))


def test_products_with_stretches_of_one_constant_are_stretches_of_the_product_with_all():
    (x, given_x), (w, given_w) = input_of("x", i=5, k=6), input_of("w", k=6, n=7)
    given_w = replace(given_w, constant=True)
    first, rest = Index.axis("p"), Index.axis("q") + Index.const(3)
    extents = {"p": 3, "q": 4}

    def both(left: Expr, right: Expr) -> Expr:
        return apply("tanh", mul(left, right))

    source = both(*(reduce("sum", "k", mul(x, accessed(w, "n", index, extents))) for index in (first, rest)))
    whole = reduce("sum", "k", mul(x, w))
    target = both(*(accessed(whole, "n", index, extents) for index in (first, rest)))
    assert derived(source, target, given_x, given_w) == "derived"


def test_the_parts_of_an_axis_keep_their_order():
    a, given = input_of("a", k=16, h=2)
    program = Program((given,), (Output("o", reduce("sum", "k", mul(a, a)), ("h",), F32),))
    with Session() as session:
        report, _ = session.saturate(program, builtin_rules().rules, declarations=f"{declarations()}\n{SPLIT}")
    matches = {c.name: c.matches for c in report.rules}
    assert matches["split-sum"] > 0
    assert matches["sum-swap"] == 0


@pytest.mark.parametrize(
    ("outer", "index", "holds"),
    [
        ("k~b4", '(Plus (Times (Axis "k~b4") 4) (Axis "k~i4"))', True),
        ("k~b4", '(Plus (Times (Axis "k~b4") 2) (Axis "k~i4"))', False),
        ("k~b4", '(Plus (Times (Axis "k~i4") 4) (Axis "k~b4"))', False),
        ("k~b8", '(Plus (Times (Axis "k~b8") 4) (Axis "k~i4"))', False),
        ("h", '(Plus (Times (Axis "h") 4) (Axis "k~i4"))', False),
    ],
)
def test_a_step_that_splits_an_axis_is_checked_outside_the_e_graph(outer, index, holds):
    a, given = input_of("a", k=16, h=2)
    program = Program((given,), (Output("o", reduce("sum", "k", a), ("h",), F32),))
    terms = Terms()
    before, after = (
        terms.read(read_forms(text)[0], {})
        for text in (
            '(Sum "k" (Read "a" "k h"))',
            f'(Sum "{outer}" (Sum "k~i4" (Access "k" {index} (Read "a" "k h"))))',
        )
    )
    (equation,) = equations_of(next(r for r in builtin_rules() if r.name == "split-sum"))
    assert StepChecker(terms, program, program.extents).holds(equation, before, after) == holds
