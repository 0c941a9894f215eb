"""Facts about ranges: what the analysis finds, what false facts the gate refuses, and folds of masked parts."""

from __future__ import annotations

import pytest

from eqsat.errors import FalseRuleError, RuleError
from eqsat.rulecheck import check_rule
from eqsat.rulefile import Rule, load_rules

FACT = ':name "x" :phase analysis :numerics reassociates'
LAW = ':name "x" :phase algebra :numerics reassociates'
FOLD = ':name "x" :phase fold :numerics reassociates'


@pytest.fixture
def load(tmp_path):
    def from_text(text: str) -> Rule:
        path = tmp_path / "mine.egg"
        path.write_text(text, encoding="utf-8")
        (rule,) = load_rules([path]).rules
        return rule

    return from_text


FALSE = {
    "a product": f"(rule ((= e (Mul a b))) ((at-least-zero e)) {FACT})",
    "a product of which one factor is known": f"(rule ((= e (Mul a b)) (at-least-zero a)) ((at-least-zero e)) {FACT})",
    "a difference": f"(rule ((= e (Sub a b)) (at-least-zero a) (at-least-zero b)) ((at-least-zero e)) {FACT})",
    "an exponential of what is at least zero": f"(rule ((= e (Exp a)) (at-least-zero a)) ((at-most-one e)) {FACT})",
    "a sum of what is at most one": f"(rule ((= e (Sum k a)) (at-most-one a)) ((at-most-one e)) {FACT})",
    "a product of what is at most one": f"(rule ((= e (Mul a b)) (at-most-one a) (at-most-one b)) ((at-most-one e)) {FACT})",
    "a logarithm": f"(rule ((= e (Log a))) ((at-least-zero e)) {FACT})",
    "a hyperbolic tangent": f"(rule ((= e (Tanh a))) ((at-least-zero e)) {FACT})",
    "a difference from the maximum of another": f"(rule ((= e (Sub a (Max k b)))) ((at-most-zero e)) {FACT})",
    "a maximum of which one is known": f"(rule ((= e (Maximum a b)) (at-most-zero a)) ((at-most-zero e)) {FACT})",
    "the sign turned round": f"(rule ((= e (Neg a)) (at-least-zero a)) ((at-least-zero e)) {FACT})",
    "the premise of the other factor": f"(rewrite (Max k (Mul a b)) (Mul a (Max k b)) :when ((free-of k a) (at-least-zero b)) {LAW})",
    "the other sign": f"(rewrite (Abs a) a :when ((at-most-zero a)) {LAW})",
    "a root of a square": f"(rewrite (Sqrt (Mul a a)) a :when ((float a) (at-most-one a)) {LAW})",
}


@pytest.mark.parametrize("case", FALSE)
def test_a_false_fact_or_a_wrong_premise_is_refused_with_a_counterexample(load, case):
    with pytest.raises(FalseRuleError, match=r"is false[\s\S]*with  "):
        check_rule(load(FALSE[case]))


TRUE = {
    "a square": f"(rule ((= e (Mul (Mul a b) (Mul a b)))) ((at-least-zero e)) {FACT})",
    "a softmax weight": f"(rule ((= e (Exp (Sub s (Max k s))))) ((at-least-zero e) (at-most-one e)) {FACT})",
    "a sum with a premise": f"(rule ((= e (Sum k a)) (at-most-zero a)) ((at-most-zero e)) {FACT})",
    "a factor that is at least zero": f"(rewrite (Min k (Mul a b)) (Mul a (Min k b)) :when ((free-of k a) (at-least-zero a)) {LAW})",
    "both signs": f"(rewrite (Mul a b) (Mul (Const 0.0) (Mul a b)) :when ((at-least-zero a) (at-most-zero a) (typed a)) {LAW})",
}


@pytest.mark.parametrize("case", TRUE)
def test_a_true_fact_or_a_law_that_needs_one_is_admitted(load, case):
    assert check_rule(load(TRUE[case])).compared >= 24


def test_a_counterexample_keeps_to_the_ranges_that_the_guards_state(load):
    with pytest.raises(FalseRuleError) as caught:
        check_rule(load(f"(rule ((= e (Sub a b)) (at-least-zero a) (at-least-zero b)) ((at-least-zero e)) {FACT})"))
    assert "with     a[] = 0, b[] = 1" in str(caught.value)


def test_a_fact_of_a_term_in_a_guard_is_refused_with_the_reason(load):
    with pytest.raises(RuleError, match="speaks of a term; state it of its variables"):
        check_rule(load(f"(rewrite (Abs (Sub a b)) (Sub a b) :when ((at-least-zero (Sub a b))) {LAW})"))


def test_facts_come_from_rules_not_from_files(tmp_path):
    path = tmp_path / "mine.egg"
    path.write_text('(at-least-zero (Read "x" "i"))', encoding="utf-8")
    with pytest.raises(RuleError, match="at-least-zero is not allowed in a rule file"):
        load_rules([path])


def test_a_fold_that_gives_nan_for_a_masked_part_is_refused(load):
    part = "(Max i s)"
    text = f"(rewrite (Sum i (Exp (Sub s (Max o {part})))) (Mul (Exp (Sub {part} (Max o {part}))) (Sum i (Exp (Sub s {part})))) {FOLD})"
    with pytest.raises(FalseRuleError, match="does not bear masked scores") as caught:
        check_rule(load(text))
    assert "-inf" in str(caught.value)
