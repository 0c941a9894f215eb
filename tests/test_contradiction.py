"""A contradiction between rules names the rules that met and the values that they made equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqsat import numpy_like as fn
from eqsat import tensor
from eqsat.errors import ContradictionError
from eqsat.ir import Program
from eqsat.rulefile import load_rules
from eqsat.saturation import RuleText
from eqsat.session import Session
from eqsat.trace import to_program

KEYS = ':phase algebra :numerics exact :law "none"'


@pytest.fixture(scope="module")
def session():
    with Session() as open_session:
        yield open_session


def exponential() -> Program:
    return to_program(fn.exp(tensor("y", (8, 8), "bf16")))


def contradiction(session: Session, folder: Path, *rules: str) -> ContradictionError:
    file = folder / "bad.egg"
    file.write_text("\n".join(rules))
    with pytest.raises(ContradictionError) as caught:
        session.saturate(exponential(), load_rules([file]).rules)
    return caught.value


def test_two_rules_that_meet_are_both_named_with_the_values_between_them(session, tmp_path) -> None:
    error = contradiction(
        session, tmp_path,
        f'(rewrite (Exp a) (Mul a a) :name "exp-mul" {KEYS})',
        f'(rewrite (Mul a b) (Cast (Mul a b) "f32") :name "mul-f32" {KEYS})',
    )  # fmt: skip
    assert error.rules == ("bad/mul-f32", "bad/exp-mul")
    assert str(error).startswith("rules bad/mul-f32 and bad/exp-mul contradict each other: ")
    assert '(Mul (Read "y" "i j") (Read "y" "i j")), which rule bad/exp-mul made of (Exp (Read "y" "i j")), (bf16)' in str(error)
    assert "(f32)" in str(error)
    assert "--without RULE" in str(error)


def test_a_general_rule_is_named_too(session, tmp_path) -> None:
    error = contradiction(
        session, tmp_path,
        f'(rewrite (Exp a) (Neg (Neg (Exp a))) :name "exp-neg" {KEYS})',
        f'(rule ((= e (Neg a)) (= x (axes a))) ((union e (Lt a a))) :name "neg-lt" {KEYS})',
    )  # fmt: skip
    assert error.rules == ("bad/neg-lt", "bad/exp-neg")


def test_a_rule_that_contradicts_the_program_alone_is_named_alone(session, tmp_path) -> None:
    error = contradiction(session, tmp_path, f'(rewrite (Exp a) (Lt a a) :name "exp-lt" {KEYS})')
    assert error.rules == ("bad/exp-lt",)
    assert "rule bad/exp-lt contradicts the program" in str(error)


def test_a_rule_known_as_text_alone_is_named_by_its_step(session) -> None:
    text = '(rewrite (Exp a) (Cast (Exp a) "f64") :ruleset {ruleset})'
    with pytest.raises(ContradictionError, match="differ in dtype, in a step of rule wrong") as caught:
        session.saturate(exponential(), [RuleText("wrong", "algebra", text)])
    assert caught.value.rules == ("wrong",)


def test_the_session_goes_on_after_a_contradiction(session, tmp_path) -> None:
    contradiction(session, tmp_path, f'(rewrite (Exp a) (Lt a a) :name "exp-lt" {KEYS})')
    assert session.saturate(exponential(), [])[0].stop == "saturated"
