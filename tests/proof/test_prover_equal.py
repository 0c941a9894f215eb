"""`equal`: concrete expressions proved equal by their normal forms, and never when they differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, Output, Program, access, apply, const, iota, read, reduce, rename, substitute
from eqsat.oracle import evaluate
from eqsat.proof.programs import equal
from eqsat.types import DType
from tests.strategies import example_inputs, programs

EXTENTS = {"i": 4, "j": 6, "k": 8, "m": 3, "d": 3, "o": 2, "t": 4}


def leaf(name: str, axes: str, dtype: DType = DType.F32) -> Expr:
    return read(name, tuple(axes), tuple(EXTENTS[a] for a in axes), dtype)


def total(axis: str, *factors: Expr) -> Expr:
    out = factors[0]
    for f in factors[1:]:
        out = apply("mul", out, f)
    return reduce("sum", axis, out)


def number(value: float) -> Expr:
    return const(value, DType.F32)


A, B, C = leaf("A", "ik"), leaf("B", "kj"), leaf("C", "jm")
Q, K, V = leaf("Q", "id"), leaf("K", "jd"), leaf("V", "jm")
SCORES = total("d", Q, K)
X = leaf("X", "ik")


def softmax(s: Expr, shift: bool = True) -> Expr:
    e = apply("exp", apply("sub", s, reduce("max", "j", s)) if shift else s)
    return apply("div", e, reduce("sum", "j", e))


def normalised_after(s: Expr, shift: bool = True) -> Expr:
    e = apply("exp", apply("sub", s, reduce("max", "j", s)) if shift else s)
    return apply("div", total("j", e, V), reduce("sum", "j", e))


def masked(s: Expr) -> Expr:
    return apply("where", apply("le", iota("j", 6), iota("i", 4)), s, number(float("-inf")))


def deviations() -> Expr:
    return apply("sub", X, apply("div", total("k", X), number(8)))


def mean_square(x: Expr) -> Expr:
    return apply("div", total("k", x, x), number(8))


def split(x: Expr, axis: str, parts: str, inner: str) -> Expr:
    """Read `axis` as parts of the inner axis' extent."""
    place = Index.axis(parts) * EXTENTS[inner] + Index.axis(inner)
    return access(x, AccessMap(((axis, place),), ((parts, EXTENTS[parts]), (inner, EXTENTS[inner]))))


def layer(mixed: Expr, scale_first: bool) -> Expr:
    """Return a contraction of the RMS-normalised sum of `mixed` and a residual, and the sum again."""
    y = apply("add", leaf("R", "im"), mixed)
    scale = apply("rsqrt", apply("add", apply("div", total("m", y, y), number(3)), number(1e-5)))
    weights = leaf("W", "mt")
    out = total("m", apply("mul", y, scale), weights) if scale_first else apply("mul", total("m", y, weights), scale)
    return apply("add", reduce("max", "t", out), reduce("sum", "m", y))


MEAN = apply("div", total("k", X), number(8))
EQUAL = {
    "a chain of contractions": (total("j", total("k", A, B), C), total("k", A, total("j", B, C))),
    "attention normalised after the values": (total("j", softmax(SCORES), V), normalised_after(SCORES)),
    "attention without its maximum": (total("j", softmax(SCORES), V), normalised_after(SCORES, shift=False)),
    "masked attention": (total("j", softmax(masked(SCORES)), V), normalised_after(masked(SCORES))),
    "variance in one pass": (mean_square(deviations()), apply("sub", mean_square(X), apply("mul", MEAN, MEAN))),
    "a norm's scale after a contraction": (
        total("k", apply("mul", X, apply("rsqrt", apply("add", mean_square(X), number(1e-5)))), B),
        apply("mul", apply("recip", apply("sqrt", apply("add", number(1e-5), mean_square(X)))), total("k", B, X)),
    ),
    "a sum in two stages": (total("k", A), reduce("sum", "o", reduce("sum", "t", split(A, "k", "o", "t")))),
    "a maximum in two stages": (reduce("max", "k", A), reduce("max", "o", reduce("max", "t", split(A, "k", "o", "t")))),
    "a contraction in two stages": (total("k", A, B), reduce("sum", "o", total("t", split(A, "k", "o", "t"), split(B, "k", "o", "t")))),
    "a layer whose first half is another expression": (
        layer(total("j", softmax(SCORES), V), scale_first=True),
        layer(normalised_after(SCORES), scale_first=False),
    ),
    "gates": (
        apply("mul", leaf("g", "i"), apply("sigmoid", leaf("g", "i"))),
        apply("div", leaf("g", "i"), apply("add", number(1.0), apply("exp", apply("neg", leaf("g", "i"))))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EQUAL)
def test_equal_programs_are_proved(case):
    assert equal(*EQUAL[case]) is True


DIFFERENT = {
    "another operand": (total("k", A, B), total("k", A, apply("mul", B, B))),
    "the wrong maximum": (
        total("j", softmax(SCORES), V),
        apply("div", total("j", apply("exp", apply("sub", SCORES, reduce("max", "j", SCORES))), V), reduce("sum", "j", apply("exp", SCORES))),
    ),
    "the mean forgotten": (mean_square(deviations()), mean_square(X)),
    "a quotient that is not always one": (apply("div", leaf("g", "i"), leaf("g", "i")), apply("add", number(1.0), apply("sub", leaf("g", "i"), leaf("g", "i")))),
    "a root that loses a sign": (apply("sqrt", apply("mul", leaf("g", "i"), leaf("g", "i"))), leaf("g", "i")),
    "one part too few": (total("k", A), reduce("sum", "t", access(A, AccessMap((("k", Index.axis("t")),), (("t", 4),))))),
    "another mask": (total("j", softmax(masked(SCORES)), V), total("j", softmax(SCORES), V)),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_different_programs_are_not_proved(case):
    assert equal(*DIFFERENT[case]) is None


def test_another_type_is_another_value():
    assert equal(leaf("g", "i"), leaf("g", "i", DType.F16)) is False
    assert equal(leaf("g", "i"), leaf("g", "k")) is False


def test_what_is_too_large_is_left_open():
    wide = leaf("g", "i")
    for n in range(14):
        wide = apply("mul", wide, apply("add", leaf(f"a{n}", "i"), leaf(f"b{n}", "i")))
    assert equal(wide, apply("mul", number(1.0), apply("add", wide, wide))) is None


def test_values_that_meet_are_proved_once_and_stay_closed():
    """Four layers in a row, each rewritten: opened all at once, the last one would have far too many terms."""

    def stack(scale_first: bool) -> Expr:
        x = leaf("R", "im")
        for n in range(4):
            scale = apply("rsqrt", apply("add", total("m", x, x), number(1e-5)))
            up = read(f"U{n}", ("m", "t"), (3, 4), DType.F32)
            down = read(f"D{n}", ("t", "d"), (4, 3), DType.F32)
            mixed = total("m", apply("mul", x, scale), up) if scale_first else apply("mul", total("m", up, x), scale)
            inner = apply("mul", mixed, apply("sigmoid", mixed))
            x = apply("add", x, rename(total("t", inner, down), {"d": "m"}))
        return x

    assert equal(stack(True), stack(False)) is True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(programs(depth=3, dtypes=(DType.F64,)), st.randoms(use_true_random=False), st.integers(0, 2**16))
def test_what_is_said_to_be_equal_is_so_in_the_oracle(program, random, seed):
    """Swap one subexpression for another of its type: where `equal` still says yes, the values agree."""
    (out, *_) = program.outputs
    nodes = list(out.expr.walk())
    target = random.choice(nodes)
    others = [n for n in nodes if n.type == target.type and n != target and target not in n.walk()]
    changed = substitute(out.expr, {target: random.choice(others)}) if others else out.expr
    if changed.type != out.expr.type or equal(out.expr, changed) is not True:
        return
    both = [Program(program.inputs, (Output("o", e, out.axes, out.dtype),)) for e in (out.expr, changed)]
    with np.errstate(all="ignore"):
        first, second = (np.asarray(evaluate(p, example_inputs(program, seed))[0], np.float64) for p in both)
    fine = np.isfinite(first) & np.isfinite(second)
    np.testing.assert_allclose(first[fine], second[fine], rtol=1e-6, atol=1e-6)
