"""Rules about accesses: false ones are refused, true ones lead where they should."""

from __future__ import annotations

import pytest

from eqsat.errors import FalseRuleError, RuleError
from eqsat.rulecheck import check_rule
from eqsat.rulefile import Rule, load_rules

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
