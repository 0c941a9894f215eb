"""The proof that a plan is its program: what is accepted, by which means, and that wrong plans are refused."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqsat import numpy_like as en
from eqsat import tensor
from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, access, apply, const, iota, read, reduce
from eqsat.proof.agreement import agree, nameless
from eqsat.proof.constants import Constants, simplest_between
from eqsat.proof.residues import CHAINS
from eqsat.trace import to_program
from eqsat.types import DType
from tests.strategies import programs

F32 = DType.F32
SLACK = Fraction(1, 1 << 20)


def c(value: float) -> Expr:
    return const(value, F32)


def mul(*xs: Expr) -> Expr:
    out = xs[0]
    for x in xs[1:]:
        out = apply("mul", out, x)
    return out


def add(a: Expr, b: Expr) -> Expr:
    return apply("add", a, b)


def exp(a: Expr) -> Expr:
    return apply("exp", a)


A = read("a", ("i", "k"), (512, 4096), F32)
B = read("b", ("k", "j"), (4096, 1024), F32)
V = read("v", ("j",), (1024,), F32)
S = read("s", ("i", "k"), (512, 4096), F32)
TOP = reduce("max", "k", S)


def softmax_sum(pivot: Expr) -> Expr:
    weights = exp(apply("sub", S, pivot))
    return apply("div", reduce("sum", "k", mul(weights, A)), reduce("sum", "k", weights))


EQUAL = {
    "chain": (
        reduce("sum", "j", mul(reduce("sum", "k", mul(A, B)), V)),
        reduce("sum", "k", mul(A, reduce("sum", "j", mul(B, V)))),
    ),
    "mean": (
        apply("div", reduce("sum", "k", A), c(4096.0)),
        reduce("sum", "k", mul(A, c(1 / 4096))),
    ),
    "a third": (apply("div", reduce("sum", "k", A), c(3.0)), mul(reduce("sum", "k", A), c(1 / 3))),
    "counted": (reduce("sum", "k", add(A, c(2.0))), add(reduce("sum", "k", A), c(8192.0))),
    "folded constants": (mul(mul(A, c(0.7978845608028654)), c(0.044715)), mul(A, c(0.7978845608028654 * 0.044715))),
    "sigmoid": (apply("recip", add(c(1.0), exp(apply("neg", A)))), apply("sigmoid", A)),
    "tanh": (add(c(1.0), apply("tanh", A)), mul(c(2.0), apply("sigmoid", mul(c(2.0), A)))),
    "maximum of maxima": (
        apply("maximum", apply("maximum", A, S), A),
        apply("maximum", S, A),
    ),
    "maximum of an axis and of its parts": (
        reduce("max", "k", apply("maximum", A, S)),
        apply("maximum", TOP, reduce("max", "k", A)),
    ),
    "minimum": (apply("minimum", A, S), apply("neg", apply("maximum", apply("neg", A), apply("neg", S)))),
}
UNDER_LAWS = {
    "pivot": (softmax_sum(TOP), softmax_sum(c(0.0))),
    "square root": (apply("sqrt", mul(A, A)), apply("abs", A)),
    "exponentials": (mul(exp(A), exp(S)), exp(add(A, S))),
    "choice through a function": (
        exp(apply("where", apply("lt", A, S), A, S)),
        apply("where", apply("lt", A, S), exp(A), exp(S)),
    ),
    "order": (apply("maximum", A, S), apply("where", apply("lt", A, S), S, A)),
}  # fmt: skip
WRONG = {
    "an axis too many": (reduce("sum", "k", add(A, c(2.0))), add(reduce("sum", "k", A), c(2.0))),
    "transposed use": (mul(A, S), mul(A, A)),
    "wrong extent": (apply("div", reduce("sum", "k", A), c(4096.0)), mul(reduce("sum", "k", A), c(1 / 1024))),
    "exponential of a scaled argument": (exp(A), exp(mul(c(2.0), A))),
    "a dropped constant": (add(reduce("sum", "k", mul(A, A)), c(1e-6)), reduce("sum", "k", mul(A, A))),
    "maximum for minimum": (reduce("max", "k", A), reduce("min", "k", A)),
    "square root of a square": (apply("sqrt", mul(A, A)), A),
    "sum of a product": (reduce("sum", "k", mul(A, S)), mul(reduce("sum", "k", A), reduce("sum", "k", S))),
    "less for less or equal": (
        reduce("sum", "k", apply("where", apply("lt", iota("k", 4096), iota("i", 512)), A, c(0.0))),
        reduce("sum", "k", apply("where", apply("le", iota("k", 4096), iota("i", 512)), A, c(0.0))),
    ),
    "axes": (reduce("sum", "k", A), A),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_programs_agree_in_prime_fields_with_a_bound_that_says_something(name: str) -> None:
    found = agree([EQUAL[name][0]], [EQUAL[name][1]])
    assert found.method in ("field", "normal form"), str(found)
    if found.method == "field":
        assert found.log2_bound is not None
        assert found.log2_bound <= -40


@pytest.mark.parametrize("name", UNDER_LAWS)
def test_laws_of_functions_are_tested_in_models_of_them_without_a_bound(name: str) -> None:
    found = agree([UNDER_LAWS[name][0]], [UNDER_LAWS[name][1]])
    assert found.method in ("laws", "normal form"), str(found)
    assert found.log2_bound is None


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs_are_refuted(name: str) -> None:
    found = agree([WRONG[name][0]], [WRONG[name][1]])
    assert found.method == "refuted"
    assert not found.holds
    assert str(found).startswith("not equal: ")


def test_a_mask_of_minus_infinity_weighs_nothing() -> None:
    inside = apply("lt", iota("k", 4096), const(10, DType.I64))
    masked = apply("where", inside, S, c(-math.inf))
    weights = exp(apply("sub", masked, reduce("max", "k", masked)))
    short = {"k": 10}
    part = access(S, AccessMap((("k", Index.axis("o")),), (("o", short["k"]),)))
    top = reduce("max", "o", part)
    assert agree([reduce("sum", "k", weights)], [reduce("sum", "o", exp(apply("sub", part, top)))]).method == "field"
    off_by_one = access(S, AccessMap((("k", Index.axis("o")),), (("o", 11),)))
    wrong = reduce("sum", "o", exp(apply("sub", off_by_one, reduce("max", "o", off_by_one))))
    assert not agree([reduce("sum", "k", weights)], [wrong]).holds


def test_attention_with_a_causal_mask_is_tested_at_its_own_size() -> None:
    q, k, v = (tensor(n, (8, 2048, 64), "bf16") for n in "qkv")
    scores = (q @ k.mT) * 0.125
    (out,) = to_program(en.softmax(scores, axis=-1) @ v).outputs
    other = en.exp(scores - en.max(scores, axis=-1, keepdims=True))
    (late,) = to_program((other @ v) / en.sum(other, axis=-1, keepdims=True)).outputs
    assert agree([out.expr], [late.expr]).holds


@settings(max_examples=40, deadline=None)
@given(programs(depth=3, outputs=1), st.integers(0, 10**6))
def test_a_program_agrees_with_itself_under_other_names_of_bound_axes(program, seed) -> None:
    expr = program.outputs[0].expr
    twice = apply("add", expr, expr) if expr.dtype is not DType.BOOL else apply("and", expr, expr)
    again = apply("mul", expr, const(2, expr.dtype)) if expr.dtype is not DType.BOOL else expr
    assert agree([twice], [again], seed=seed).holds


def test_values_too_large_to_test_are_said_to_be_untested() -> None:
    big = read("x", ("i", "j", "k"), (3000, 3000, 3000), F32)
    sums = apply("mul", big, apply("cast", add_positions(), dtype=F32))
    left = reduce("sum", "i", reduce("sum", "j", reduce("sum", "k", sums)))
    found = agree([left], [mul(left, c(2.0))])
    assert found.method == "untested"
    assert "too many elements" in str(found)


def add_positions() -> Expr:
    return apply("add", apply("add", iota("i", 3000), iota("j", 3000)), iota("k", 3000))


@pytest.mark.parametrize("chain", CHAINS)
def test_each_prime_of_a_chain_is_prime_and_more_than_twice_the_next(chain) -> None:
    assert all(a == 2 * b + 1 for a, b in itertools.pairwise(chain))
    for p in chain:
        assert all(p % d for d in range(2, math.isqrt(p) + 1))


@pytest.mark.parametrize(
    ("number", "fraction"), [(1 / 3, (1, 3)), (1e-6, (1, 10**6)), (0.1, (1, 10)), (-2.5, (-5, 2)), (1 / 5120, (1, 5120))]
)
def test_a_rounded_fraction_stands_for_the_fraction(number, fraction) -> None:
    found = Constants().of(const(number, DType.F64))
    assert (found.numerator, found.denominator) == fraction


def test_constants_that_were_multiplied_keep_their_relation() -> None:
    known = Constants()
    root = math.sqrt(2 / math.pi)
    base = known.of(const(root, DType.F64))
    assert known.of(const(root * 0.044715, DType.F64)) == base * known.of(const(0.044715, DType.F64))
    assert known.of(const(math.e, DType.F64)) != base


@given(st.fractions(min_value=Fraction(1, 1000), max_value=1000, max_denominator=1000))
def test_the_simplest_fraction_lies_in_its_interval_and_is_no_longer_than_a_known_one(q) -> None:
    low, high = q * (1 - SLACK), q * (1 + SLACK)
    found = simplest_between(low, high)
    assert low <= found <= high
    assert found.denominator <= q.denominator


def test_programs_that_differ_in_names_of_bound_axes_alone_are_the_same() -> None:
    other = read("a", ("i", "m"), (512, 4096), F32)
    assert nameless(reduce("sum", "k", mul(A, A))) == nameless(reduce("sum", "m", mul(other, other)))
    moved = access(reduce("sum", "k", A), AccessMap((("i", Index.axis("o")),), (("o", 512),)))
    own = reduce("sum", "i", read("a", ("o", "i"), (512, 4096), F32))
    assert agree([moved], [own]).method == "identical"
    square, crossed = (apply("mul", reduce("sum", x, A), reduce("sum", "k", S)) for x in ("k", "i"))
    assert nameless(square) != nameless(crossed)


def test_bound_axes_inside_each_other_are_told_apart() -> None:
    x = read("x", ("p", "q"), (8, 8), F32)
    y = read("x", ("q", "p"), (8, 8), F32)
    inner = reduce("sum", "p", reduce("sum", "q", mul(x, x)))
    assert nameless(inner) == nameless(reduce("sum", "q", reduce("sum", "p", mul(y, y))))
    assert nameless(reduce("sum", "p", reduce("max", "q", x))) != nameless(reduce("sum", "q", reduce("max", "p", x)))
    assert nameless(access(x, AccessMap((("q", Index.axis("p")),), (("p", 8),)))) != nameless(x)


def test_infinities_that_come_from_zeros_of_unlike_sign_are_no_difference() -> None:
    left, right = (apply("add", apply("rsqrt", c(zero)), A) for zero in (-0.0, 0.0))
    assert agree([left], [right]).holds
    left, right = (apply("minimum", apply("recip", c(zero)), A) for zero in (-0.0, 0.0))
    assert agree([left], [right]).holds


def test_a_division_by_zero_everywhere_is_undefined_wherever_it_is_read() -> None:
    x = read("x", ("k", "l"), (4, 6), F32)
    outside = access(apply("div", x, c(0.0)), AccessMap((("k", Index.const(-1)), ("l", Index.axis("j") * 2)), (("j", 3),)))
    assert agree([outside], [apply("neg", apply("neg", outside))]).holds


def test_casts_that_lose_something_are_told_from_each_other() -> None:
    whole, narrow = (apply("cast", apply("cast", A, dtype=d), dtype=F32) for d in (DType.I64, DType.I32))
    wider = apply("cast", apply("cast", apply("cast", A, dtype=DType.I32), dtype=DType.I64), dtype=F32)
    assert agree([narrow], [wider]).method in ("field", "normal form")
    assert agree([whole], [A]).method == "refuted"
    assert agree([add(narrow, c(1.0))], [add(c(1.0), narrow)]).method in ("field", "normal form")
