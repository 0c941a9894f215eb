"""The prover: laws proved for all extents, laws that it must leave open, and the gate's answer to subtly false ones."""

from __future__ import annotations

import pytest

from eqsat.errors import FalseRuleError, RuleError
from eqsat.gate.equation import equations, typings
from eqsat.proof.prover import Proof, prove
from eqsat.rulecheck import check_rule
from eqsat.rulefile import Rule, builtin_rules, load_rules


@pytest.fixture
def load(tmp_path):
    def from_text(text: str, numerics: str = "reassociates") -> Rule:
        path = tmp_path / "mine.egg"
        path.write_text(f'{text[:-1]} :name "x" :phase algebra :numerics {numerics})', encoding="utf-8")
        (rule,) = load_rules([path]).rules
        return rule

    return from_text


def proof(rule: Rule) -> Proof:
    (claim, *_) = equations(rule)
    return prove(claim, typings(claim))


TRUE = {
    "square of a sum": "(rewrite (Mul (Add a b) (Add a b)) (Add (Mul a a) (Add (Mul (Const 2.0) (Mul a b)) (Mul b b))))",
    "difference of squares": "(rewrite (Mul (Add a b) (Sub a b)) (Sub (Mul a a) (Mul b b)))",
    "product of sums": "(rewrite (Mul (Sum j a) (Sum k b)) (Sum j (Sum k (Mul a b))) :when ((!= j k) (free-of k a) (free-of j b)))",
    "trace of a product": "(rewrite (Sum i (Sum k (Mul a b))) (Sum k (Sum i (Mul b a))))",
    "matrix chain": "(rewrite (Sum k (Mul (Sum j (Mul a b)) c)) (Sum j (Mul a (Sum k (Mul b c)))) :when ((free-of k a) (free-of j c) (has j b) (has k b) (has k c) (!= j k)))",
    "column scale leaves a contraction": "(rewrite (Sum k (Mul (Div a x) b)) (Div (Sum k (Mul a b)) x) :when ((free-of k x) (float a) (float b) (float x)))",
    "softmax before or after the values": "(rewrite (Sum k (Mul (Div (Exp a) (Sum k (Exp a))) v)) (Div (Sum k (Mul (Exp a) v)) (Sum k (Exp a))) :when ((has k a) (float a) (float v)))",
    "softmax is shift invariant": "(rewrite (Div (Exp (Sub a m)) (Sum k (Exp (Sub a m)))) (Div (Exp a) (Sum k (Exp a))) :when ((has k a) (free-of k m) (within m a) (float a) (float m)))",
    "log of a sum of exponentials": "(rewrite (Add m (Log (Sum k (Exp (Sub a m))))) (Log (Sum k (Exp a))) :when ((has k a) (free-of k m) (within m a) (float a) (float m)))",
    "variance": "(rewrite (Sum k (Mul (Sub a (Mul (Const (/ 1.0 (to-f64 n))) (Sum k a))) (Sub a (Mul (Const (/ 1.0 (to-f64 n))) (Sum k a)))))"
                " (Sub (Sum k (Mul a a)) (Mul (Const (/ 1.0 (to-f64 n))) (Mul (Sum k a) (Sum k a)))) :when ((= n (extent k)) (float a)))",
    "sum of a constant": "(rewrite (Sum k (Mul (Sub a a) b)) (Mul (Const 0.0) (Sum k (Mul a b))) :when ((has k b)))",
    "exponent of a sum over an axis": "(rewrite (Prod k (Exp a)) (Exp (Sum k a)) :when ((float a)))",
    "product of a constant factor": "(rewrite (Prod k (Mul (Const 2.0) a)) (Mul (Const (^ 2.0 (to-f64 n))) (Prod k a)) :when ((= n (extent k)) (float a)))",
    "logistic complement": "(rewrite (Sub (Const 1.0) (Sigmoid a)) (Sigmoid (Neg a)) :when ((float a)))",
    "tanh from sigmoid": "(rewrite (Tanh a) (Sub (Mul (Const 2.0) (Sigmoid (Mul (Const 2.0) a))) (Const 1.0)) :when ((float a)))",
    "tanh is odd": "(rewrite (Tanh (Neg a)) (Neg (Tanh a)) :when ((float a)))",
    "logistic of a difference": "(rewrite (Sigmoid (Sub a b)) (Div (Exp a) (Add (Exp a) (Exp b))) :when ((float a) (float b)))",
    "partial fractions": "(rewrite (Sub (Sigmoid a) (Sigmoid b)) (Mul (Sub (Exp a) (Exp b)) (Mul (Sigmoid (Neg a)) (Sigmoid (Neg b)))) :when ((float a) (float b)))",
    "root of a product of squares": "(rewrite (Sqrt (Mul (Mul a a) (Mul b b))) (Abs (Mul a b)) :when ((float a) (float b)))",
    "square of a magnitude": "(rewrite (Mul (Abs a) (Abs a)) (Mul a a))",
    "reciprocal root": "(rewrite (Mul (Rsqrt a) (Rsqrt a)) (Recip a) :when ((float a) (at-least-zero a)))",
    "powers add": "(rewrite (Mul (Pow a (Const 2.0)) (Pow a (Const 3.0))) (Pow a (Const 5.0)) :when ((float a)))",
    "log of a product of exponentials": "(rewrite (Log (Mul (Exp a) (Exp b))) (Add a b) :when ((float a) (float b)))",
    "sine is odd": "(rewrite (Sin (Sub a b)) (Neg (Sin (Sub b a))) :when ((float a) (float b)))",
    "maximum of shifted": "(rewrite (Maximum (Add a c) (Add b c)) (Add (Maximum a b) c) :when ((within c a) (same-axes a b) (same-dtype a b) (same-dtype a c)))",
    "maximum of maxima": "(rewrite (Max j (Max k (Add a b))) (Max k (Max j (Add b a))))",
    "minimum is a negated maximum": "(rewrite (Minimum a b) (Neg (Maximum (Neg a) (Neg b))))",
    "maximum and minimum": "(rewrite (Add (Maximum a b) (Minimum a b)) (Add a b))",
    "absorption": "(rewrite (Maximum a (Minimum a b)) a :when ((within b a) (same-dtype a b)))",
    "distribution of extrema": "(rewrite (Maximum a (Minimum b c)) (Minimum (Maximum a b) (Maximum a c)))",
    "relu of a scaled value": "(rewrite (Maximum (Mul (Const c) a) (Const 0.0)) (Mul (Const c) (Maximum a (Const 0.0))) :when ((> c 0.0)))",
    "two halves of a value": "(rewrite (Sub (Maximum a (Const 0.0)) (Maximum (Neg a) (Const 0.0))) a :when ((typed a)))",
    "magnitude by choice": "(rewrite (Where (Lt a (Const 0.0)) (Neg a) a) (Abs a) :when ((typed a)))",
    "clamp in either order": "(rewrite (Minimum (Maximum a (Const x)) (Const y)) (Maximum (Minimum a (Const y)) (Const x)) :when ((<= x y) (typed a)))",
    "not less": "(rewrite (Not (Lt a b)) (Le b a))",
    "less or equal": "(rewrite (Or (Lt a b) (Eq a b)) (Le a b))",
    "de Morgan over an axis": "(rewrite (Not (Any k a)) (All k (Not a)) :when ((= d (dtype a)) (= d \"bool\")))",
    "choice under a function": "(rewrite (Exp (Where c a b)) (Where c (Exp a) (Exp b)) :when ((float a) (float b)))",
    "nested choices": "(rewrite (Where c (Where c a b) d) (Where c a d) :when ((within b a) (same-dtype a b)))",
    "sum of a choice": "(rewrite (Add (Where c a b) (Where c b a)) (Add a b) :when ((within c a)))",
    "floor of a shift": "(rewrite (Floor (Add a (Const 3.0))) (Add (Floor a) (Const 3.0)) :when ((typed a)))",
    "position of a scaled maximum": "(rewrite (ArgMax k (Mul (Const c) a)) (ArgMax k a) :when ((> c 0.0) (typed a)))",
    "largest exponential": "(rewrite (Max k (Exp a)) (Exp (Max k a)) :when ((float a)))",
    "an access of an access": "(rewrite (Access k (Plus (Axis k) (Whole 1)) (Access k (Plus (Axis k) (Whole 2)) a)) (Access k (Plus (Axis k) (Whole 3)) a))",
    "a sum turned round": "(rewrite (Mul (Sum k a) (Sum k (Access k (Axis k) b))) (Mul (Sum k b) (Sum k a)))",
    "a positive part under a sum": "(rewrite (Sum k (Mul (Maximum (Const 0.0) c) a)) (Mul (Maximum c (Const 0.0)) (Sum k a)) :when ((free-of k c) (has k a)))",
}  # fmt: skip


@pytest.mark.parametrize("case", TRUE)
def test_a_true_law_is_proved(load, case):
    found = proof(load(TRUE[case]))
    assert found.found, found.why


FALSE = {
    "sum of squares": "(rewrite (Mul (Add a b) (Add a b)) (Add (Mul a a) (Mul b b)))",
    "sums of one axis multiply": "(rewrite (Mul (Sum k a) (Sum k b)) (Sum k (Mul a b)))",
    "a chain that meets an axis twice": "(rewrite (Sum k (Mul (Sum j (Mul a b)) c)) (Sum j (Mul a (Sum k (Mul b c)))) :when ((free-of k a) (has j b) (has k b) (has k c)))",
    "scale inside the sum": "(rewrite (Sum k (Mul (Div a x) b)) (Div (Sum k (Mul a b)) x) :when ((float a) (float b) (float x)))",
    "softmax with one sum too few": "(rewrite (Sum k (Mul (Div (Exp a) (Sum k (Exp a))) v)) (Div (Sum k (Mul (Exp a) v)) (Exp (Sum k a))) :when ((has k a) (float a) (float v)))",
    "shift by what varies": "(rewrite (Div (Exp (Sub a m)) (Sum k (Exp (Sub a m)))) (Div (Exp a) (Sum k (Exp a))) :when ((has k a) (has k m) (float a) (float m)))",
    "variance with n − 1": "(rewrite (Sum k (Mul (Sub a (Mul (Const (/ 1.0 (to-f64 n))) (Sum k a))) a)) (Sub (Sum k (Mul a a)) (Mul (Const (/ 1.0 (to-f64 (+ n 1)))) (Mul (Sum k a) (Sum k a)))) :when ((= n (extent k)) (float a)))",
    "a coincidence at extent two": "(rewrite (Sum k (Add a (Mul (Const 1.0) b))) (Add (Sum k a) (Mul (Const 2.0) b)) :when ((free-of k b)))",
    "extent of another axis": "(rewrite (Sum k (Add a b)) (Add (Sum k a) (Mul (Const (to-f64 n)) b)) :when ((free-of k b) (= n (extent j)) (has j a)))",
    "a product counts like a sum": "(rewrite (Prod k (Mul a b)) (Mul (Mul (Const (to-f64 n)) a) (Prod k b)) :when ((free-of k a) (has k b) (= n (extent k))))",
    "sum of exponentials": "(rewrite (Sum k (Exp a)) (Exp (Sum k a)) :when ((float a)))",
    "log of a sum": "(rewrite (Log (Add (Exp a) (Exp b))) (Add a b) :when ((float a) (float b)))",
    "cancelled quotient": "(rewrite (Div (Mul a b) b) a :when ((float a) (float b) (within b a) (same-dtype a b)))",
    "square of a root": "(rewrite (Mul (Sqrt a) (Sqrt a)) a :when ((float a)))",
    "root of a square": "(rewrite (Sqrt (Mul a a)) a :when ((float a)))",
    "roots of a product": "(rewrite (Sqrt (Mul a b)) (Mul (Sqrt a) (Sqrt b)) :when ((float a) (float b)))",
    "log of a product": "(rewrite (Log (Mul a b)) (Add (Log a) (Log b)) :when ((float a) (float b)))",
    "log of a square": "(rewrite (Log (Mul a a)) (Mul (Const 2.0) (Log a)) :when ((float a)))",
    "logistic of a sum": "(rewrite (Sigmoid (Add a b)) (Mul (Sigmoid a) (Sigmoid b)) :when ((float a) (float b)))",
    "tanh without the two": "(rewrite (Tanh a) (Sub (Mul (Const 2.0) (Sigmoid a)) (Const 1.0)) :when ((float a)))",
    "cosine is odd": "(rewrite (Cos (Neg a)) (Neg (Cos a)) :when ((float a)))",
    "magnitude of a sum": "(rewrite (Abs (Add a b)) (Add (Abs a) (Abs b)))",
    "a threshold far away": "(rewrite (Minimum a (Const 1000000.0)) a :when ((typed a)))",
    "a threshold below": "(rewrite (Maximum a (Const -100000.0)) a :when ((typed a)))",
    "clamp with crossed limits": "(rewrite (Minimum (Maximum a (Const x)) (Const y)) (Maximum (Minimum a (Const y)) (Const x)) :when ((typed a)))",
    "relu of any scale": "(rewrite (Maximum (Mul (Const c) a) (Const 0.0)) (Mul (Const c) (Maximum a (Const 0.0))))",
    "relu of a scale that may be negative": "(rewrite (Maximum (Mul (Const c) a) (Const 0.0)) (Mul (Const c) (Maximum a (Const 0.0))) :when ((> c -0.125)))",
    "maximum of a product": "(rewrite (Max k (Mul a b)) (Mul a (Max k b)) :when ((free-of k a)))",
    "maximum of a sum": "(rewrite (Max k (Add a b)) (Add (Max k a) (Max k b)) :when ((has k a) (has k b)))",
    "minimum for maximum": "(rewrite (Max k (Sub a b)) (Sub a (Max k b)) :when ((free-of k a)))",
    "order of extrema": "(rewrite (Max j (Min k a)) (Min k (Max j a)))",
    "strict for weak": "(rewrite (Not (Lt a b)) (Lt b a))",
    "equality as order": "(rewrite (And (Le a b) (Le a b)) (Eq a b))",
    "any of a conjunction": "(rewrite (Any k (And a b)) (And (Any k a) (Any k b)) :when ((has k a) (has k b) (= d (dtype a)) (= d \"bool\") (= e (dtype b)) (= e \"bool\")))",
    "choices of other conditions": "(rewrite (Where c (Where d a b) b) (Where c a b) :when ((within d c)))",
    "floor of half a shift": "(rewrite (Floor (Add a (Const 0.5))) (Add (Floor a) (Const 0.5)) :when ((float a)))",
    "floor of a negation": "(rewrite (Floor (Neg a)) (Neg (Floor a)))",
    "position under a negative scale": "(rewrite (ArgMax k (Mul (Const c) a)) (ArgMax k a) :when ((< c 0.0) (typed a)))",
    "a cast that truncates": "(rewrite (Cast (Cast a \"i32\") d) a :when ((= d (dtype a)) (float a)))",
    "an access that leaves": "(rewrite (Access k x (Exp a)) (Exp (Access k x a)))",
    "a shift beyond the end": "(rewrite (Access k (Plus (Axis k) (Whole -1)) (Access k (Plus (Axis k) (Whole 1)) a)) a)",
    "a maximum with zeros outside": "(rewrite (Max j (Access k (Plus (Axis j) (Whole 1)) a)) (Max k a) :when ((has k a) (!= j k) (free-of j a)))",
    "an access out of a sum it varies with": "(rewrite (Access k x (Sum j a)) (Sum j (Access k x a)) :when ((has k a)))",
}  # fmt: skip


FALSE_FOR_WHOLE_NUMBERS = {
    "halves of whole numbers": "(rewrite (Add a a) (Mul (Const 4.0) (Mul (Const 0.5) a)))",
    "a quotient of whole numbers": "(rewrite (Div (Mul (Const 2.0) a) (Const 2.0)) a)",
    "thirds of whole numbers": "(rewrite (Mul (Const x) a) (Mul (Const 3.0) (Mul (Const (/ x 3.0)) a)))",
}  # fmt: skip


@pytest.mark.parametrize("case", FALSE_FOR_WHOLE_NUMBERS)
def test_a_law_of_reals_that_fails_for_whole_numbers_is_refused(load, case):
    rule = load(FALSE_FOR_WHOLE_NUMBERS[case])
    assert proof(rule).found
    with pytest.raises(FalseRuleError, match=r"fraction meet|changes the dtype"):
        check_rule(rule)


@pytest.mark.parametrize("case", FALSE)
def test_a_false_law_is_not_proved_and_refused_by_the_gate(load, case):
    rule = load(FALSE[case])
    assert not proof(rule).found
    with pytest.raises((FalseRuleError, RuleError), match=r"is false|changes the|fraction meet|loses range"):
        check_rule(rule)


def test_suites_of_true_and_false_laws_are_as_large_as_promised():
    assert len(TRUE) >= 40
    assert len(FALSE) >= 40


def test_a_law_without_its_guard_about_axes_is_not_proved():
    law = next(r for r in builtin_rules() if r.name == "sum-factor")
    (claim,) = equations(law)
    assert prove(claim, typings(claim)).found
    bare = type(claim)(claim.name, claim.left, claim.right, (), claim.tensors, claim.axes, claim.numbers, claim.types)
    assert prove(bare, typings(bare)).why == "the axes of the sides differ in a case"


def test_both_cases_of_an_open_axis_are_proved(load):
    assert proof(
        load("(rewrite (Sum k (Mul a (Sum j b))) (Sum j (Sum k (Mul a b))) :when ((free-of j a) (has k a) (!= j k)))")
    ).found
    assert not proof(load("(rewrite (Sum k (Mul a (Sum j b))) (Sum j (Sum k (Mul a b))) :when ((has k a) (!= j k)))")).found


def test_two_axis_variables_may_stand_for_one_axis(load):
    law = "(rewrite (Sum j (Mul a (Sum k b))) (Sum k (Sum j (Mul a b))) :when ((has j a) (has k a) (free-of j b)%s))"
    assert not proof(load(law % "")).found
    distinct = "(rewrite (Mul (Sum j a) (Sum k b)) (Sum j (Mul a (Sum k b))) :when ((has k b)%s))"
    assert proof(load(distinct % " (free-of j b)")).found
    assert not proof(load(distinct % "")).found


def test_a_proof_says_how(load):
    assert proof(load("(rewrite (Mul a b) (Mul b a))")).how == ("normal form",)
    assert proof(load("(rewrite (Maximum a (Minimum b c)) (Minimum (Maximum a b) (Maximum a c)))")).how == ("z3",)


def test_without_z3_what_needs_it_is_left_open_with_what_to_install(load, monkeypatch):
    monkeypatch.setattr("eqsat.proof.solver.available", lambda: False)
    found = proof(load("(rewrite (Maximum a (Minimum b c)) (Minimum (Maximum a b) (Maximum a c)))"))
    assert not found.found
    assert "eqsat[prove]" in found.why
    assert proof(load("(rewrite (Mul a b) (Mul b a))")).found


def test_without_z3_numbers_near_those_of_the_rule_are_tried(load, monkeypatch):
    monkeypatch.setattr("eqsat.proof.solver.available", lambda: False)
    with pytest.raises(FalseRuleError, match="is false"):
        check_rule(load("(rewrite (Minimum a (Const 1000000.0)) a :when ((typed a)))"))


def test_a_counterexample_of_z3_is_shown_after_the_oracle_has_confirmed_it(load):
    with pytest.raises(FalseRuleError, match=r"\(Minimum a \(Const 1000000.0\)\) = 1000000"):
        check_rule(load("(rewrite (Minimum a (Const 1000000.0)) a :when ((typed a)))"))


def test_what_is_defined_in_fewer_places_is_not_equal(load):
    found = proof(load("(rewrite (Div (Mul a b) b) a :when ((float a) (float b) (within b a) (same-dtype a b)))"))
    assert not found.found
    assert "undefined" in found.why


def test_a_rule_proved_over_the_reals_is_still_tested_for_its_numeric_class(load):
    regrouped = "(rewrite (Add a (Add b c)) (Add (Add a b) c) :when ((groups a b)))"
    assert check_rule(load(regrouped)).method == "proved"
    with pytest.raises(FalseRuleError, match="claims to be exact"):
        check_rule(load(regrouped, "exact"))
    with pytest.raises(FalseRuleError, match="loses range"):
        check_rule(load("(rewrite (Exp (Add a b)) (Mul (Exp a) (Exp b)) :when ((float a) (float b)))"))


APPROXIMATIONS = {
    "a quadratic near one": ("(Exp (Mul (Const 0.0001) (Tanh a)))", "(Add (Const 1.0) (Mul (Const 0.0001) (Tanh a)))", "1e-8", "1e-10"),
    "a bound that fails at one place": ("(Sub a (Mul (Const 1e-4) (Tanh a)))", "a", "2e-4", "5e-5"),
}  # fmt: skip


@pytest.mark.parametrize("case", APPROXIMATIONS)
def test_a_stated_bound_is_held_or_refused(load, case):
    left, right, enough, small = APPROXIMATIONS[case]
    text = f"(rewrite {left} {right} :when ((float a)) :bound %s)"
    assert check_rule(load(text % f'"{enough}"', "approximates")).method == "fuzz"
    with pytest.raises(FalseRuleError, match=r"is false|does not hold the bound"):
        check_rule(load(text % f'"{small}"', "approximates"))
