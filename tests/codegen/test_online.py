"""The dependent fold is found in a program, and what is none says why."""

from __future__ import annotations

import math

import pytest

from eqsat.access import AccessMap, Index
from eqsat.codegen.online import OnlineProblem, online_problem
from eqsat.ir import Program, access, apply, reduce
from tests.codegen.online_problems import BF16, F32, FOLDS, I64, attend, attention, fold, scores, several
from tests.codegen.problems import array, softmax


def problem(program: Program) -> OnlineProblem:
    found = online_problem(program)
    assert isinstance(found, OnlineProblem), found
    return found


@pytest.mark.parametrize("name", FOLDS)
def test_every_program_of_the_catalogue_is_a_fold(name: str) -> None:
    found = problem(FOLDS[name])
    assert set(found.rows) == found.score.axes - set(found.over)


def test_heads_are_batch_and_queries_are_rows_that_share_their_keys() -> None:
    found = problem(attention(BF16, 7, 11, 4, 6, h=2))
    assert (found.batch, found.m, found.over, found.d) == (("h",), ("m",), ("k",), ("d",))
    assert found.shape == (2, 7, 11, 4, 6)
    assert found.flops == 2 * 2 * 7 * 11 * 10


def test_heads_that_read_shared_keys_through_an_access_are_batch() -> None:
    assert problem(FOLDS["grouped"]).batch == ("h",)


def test_each_accumulator_knows_its_own_value_axes() -> None:
    found = problem(FOLDS["two-values"])
    assert sorted(a.axes for a in found.accumulators) == [(), (), ("n",), ("p",)]
    assert len(found.wide) == 2


def test_a_floor_under_the_maximum_is_found() -> None:
    assert problem(FOLDS["parts"]).floor == -3e38
    assert problem(FOLDS["plain"]).floor == -math.inf


def test_programs_that_are_none_say_why() -> None:
    x, y = array("x", F32, m=4, k=8), array("y", F32, m=4, k=8)
    v = array("v", F32, k=8, n=3)
    top = reduce("max", "k", x)
    weight = apply("exp", apply("sub", x, top))
    inner = reduce("sum", "d", array("t", F32, k=8, d=2))
    shifted = access(apply("neg", x), AccessMap((("m", Index.axis("p")),), (("p", 4),)))
    cases = {
        "it sums no exponentials": several(o=(top, "m", None)),
        "without the exponential": several(o=(reduce("sum", "k", apply("mul", x, v)), "mn", None)),
        "sum of powers": several(o=(reduce("sum", "k", apply("mul", weight, weight)), "m", None)),
        "do not share": several(o=(apply("add", fold(x, v), fold(y, v)), "mn", None)),
        "a maximum is not that of the score": several(o=(apply("add", fold(x, v), reduce("max", "k", y)), "mn", None)),
        "access of a computed value": several(o=(fold(shifted, v), "pn", None)),
        "varies over": several(o=(softmax(x, "k"), "mk", None)),
        "is itself reduced": several(o=(fold(x, inner), "m", None)),
        "'min' is neither": several(o=(apply("add", fold(x, None), reduce("min", "k", x)), "m", None)),
        "more than one reduction": several(o=(fold(apply("add", scores(array("q", F32, m=4, d=2), array("K", F32, k=8, d=2)), inner), None), "m", None)),
        "not a product of one operand": several(o=(fold(apply("mul", inner, array("r", F32, m=4)), None), "m", None)),
        "joins accumulators": several(o=(apply("add", fold(x, v), fold(x, array("w", F32, k=8, p=2))), "mnp", None)),
        "uses no accumulator": several(o=(fold(x, v), "mn", None), p=(apply("neg", array("z", F32, m=4)), "m", None)),
    }  # fmt: skip
    for words, program in cases.items():
        found = online_problem(program)
        assert isinstance(found, str), words
        assert words in found


def test_a_normalised_weight_inside_the_sum_is_not_one_pass() -> None:
    x, v = array("x", F32, m=4, k=8), array("v", F32, k=8, n=3)
    found = online_problem(several(o=(reduce("sum", "k", apply("mul", softmax(x, "k"), v)), "mn", None)))
    assert isinstance(found, str)


def test_a_sum_of_absolute_distances_is_no_contraction() -> None:
    q, k = array("q", F32, m=4, d=3), array("K", F32, k=8, d=3)
    s = reduce("sum", "d", apply("abs", apply("sub", q, k)))
    found = online_problem(several(o=(attend(s, array("v", F32, k=8, n=2)), "mn", None)))
    assert isinstance(found, str)
    assert "one operand for the rows" in found


def test_whole_numbers_are_no_scores() -> None:
    s = array("s", I64, m=4, k=8)
    found = online_problem(several(o=(fold(s, None), "m", None)))
    assert isinstance(found, str)
    assert "not a float" in found
