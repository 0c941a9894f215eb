"""What masks say of tiles: conditions evaluated over boxes against every position of them, and the share that is kept."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from eqsat.codegen.masks import ALWAYS, NEVER, Box, kept_share, spans, surely, unmasked, vanishes
from eqsat.ir import Expr, Output, Program, apply, const, iota
from eqsat.oracle import evaluate
from eqsat.types import DType
from tests.codegen.problems import array, real

I64, F32 = DType.I64, DType.F32
M, K = 23, 31


def whole(value: int) -> Expr:
    return const(value, I64)


def conditions() -> dict[str, Expr]:
    m, k = iota("m", M), iota("k", K)
    gap = apply("sub", m, k)
    return {
        "le": apply("le", k, m),
        "lt": apply("lt", k, apply("add", m, whole(4))),
        "eq": apply("eq", k, m),
        "not": apply("not", apply("le", k, m)),
        "band": apply("and", apply("le", k, m), apply("lt", gap, whole(7))),
        "outside": apply("or", apply("lt", m, k), apply("le", whole(9), gap)),
        "scaled": apply("le", apply("mul", k, whole(2)), apply("mul", whole(3), m)),
        "negated": apply("lt", apply("neg", k), apply("sub", whole(-5), m)),
        "float": apply("lt", apply("cast", k, dtype=F32), real(11.0)),
        "keys": apply("lt", k, whole(12)),
    }


def boxes() -> list[tuple[int, int, int, int]]:
    ends = [(a, min(a + n, size) - 1) for size, step in ((M, 5), (K, 7)) for n in (step,) for a in range(0, size, step)]
    rows = ends[: -(-M // 5)]
    keys = ends[-(-M // 5) :]
    return [(*r, *k) for r, k in itertools.product(rows, keys)]


def holds(condition: str, box: tuple[int, int, int, int]) -> bool:
    """Evaluate a condition in C as Python: the operators that occur mean the same."""
    names = dict(zip(("m0", "m1", "k0", "k1"), box, strict=True))
    return bool(eval(condition.replace("&&", "and").replace("||", "or") or "0", {}, names))


BOX = Box({"m": ("m0", "m1"), "k": ("k0", "k1")}, {"m": M, "k": K})


@pytest.mark.parametrize("name", conditions())
def test_a_condition_that_holds_for_a_tile_holds_for_every_position_of_it(name: str) -> None:
    e = conditions()[name]
    full = tuple(sorted(e.axes))
    (value,) = evaluate(Program((), (Output("o", e, full, DType.BOOL),)), {})
    value = np.broadcast_to(value if "m" in e.axes else value[..., None], (K, M))
    decided = 0
    for m0, m1, k0, k1 in boxes():
        tile = value[k0 : k1 + 1, m0 : m1 + 1]
        for want in (True, False):
            if holds(surely(e, want, BOX), (m0, m1, k0, k1)):
                decided += 1
                assert (tile == want).all()
            elif name in ("le", "lt", "keys", "float", "scaled"):  # one affine comparison is decided exactly
                assert not (tile == want).all()
    assert decided


def score(name: str = "le") -> Expr:
    return apply("where", conditions()[name], array("s", F32, m=M, k=K), real(-math.inf))


def test_a_masked_score_vanishes_where_its_condition_fails() -> None:
    masked = score()
    assert vanishes(masked, BOX) == surely(conditions()["le"], False, BOX)
    for same in (
        apply("mul", masked, real(2.0)),
        apply("add", array("b", F32, m=M), masked),
        apply("cast", masked, dtype=DType.BF16),
    ):
        assert vanishes(same, BOX) == vanishes(masked, BOX)
    assert vanishes(apply("neg", masked), BOX) == NEVER
    assert vanishes(apply("mul", masked, real(-2.0)), BOX) == NEVER


def test_a_mask_that_always_holds_needs_no_test() -> None:
    e = apply("where", apply("lt", iota("k", K), whole(K)), array("s", F32, k=K), real(-math.inf))
    condition, plain = unmasked(e, BOX)
    assert condition == ALWAYS
    assert plain.op == "read"


def test_the_score_of_an_unmasked_tile_is_without_its_mask() -> None:
    condition, plain = unmasked(score("band"), BOX)
    assert plain.op == "read"
    assert holds(condition, (20, 22, 16, 17))
    assert not holds(condition, (20, 22, 16, 21))


def test_an_added_mask_goes_as_a_chosen_one_does() -> None:
    mask = apply("where", conditions()["le"], real(0.0), real(-math.inf))
    e = apply("add", array("s", F32, m=M, k=K), mask)
    assert vanishes(e, BOX) == surely(conditions()["le"], False, BOX)
    condition, plain = unmasked(e, BOX)
    assert condition == surely(conditions()["le"], True, BOX)
    assert not any(x.op == "where" for x in plain.walk())


def test_a_condition_on_loaded_values_is_not_decided_unless_they_are_uniform() -> None:
    length = array("n", I64, b=3)
    e = apply("lt", iota("k", K), length)
    assert surely(e, True, BOX) == surely(e, False, BOX) == NEVER
    uniform = Box(BOX.span, BOX.extents, lambda x: "n" if x == length else None)
    assert surely(e, True, uniform) == "-1 * k1 + n > 0"
    assert kept_share(apply("where", e, array("s", F32, k=K), real(-math.inf))) is None


def test_positions_that_run_over_an_inner_axis_span_all_of_it() -> None:
    found, lines = spans([("a", 3), ("b", 5)], "f", "l", "s", "int")
    assert found == {"a": ("s0_first", "s0_last"), "b": ("s1_first", "s1_last")}
    assert lines[0] == "const int s0_first = (f) / 5, s0_last = (l) / 5;"
    assert "? (f) % 5 : 0" in lines[1]
    assert "? (l) % 5 : 4" in lines[1]


def test_the_share_that_a_mask_keeps_is_counted() -> None:
    m, k = iota("m", 4000), iota("k", 4000)
    s = array("s", F32, m=4000, k=4000)
    assert kept_share(s) == 1.0
    assert kept_share(apply("where", apply("le", k, m), s, real(-math.inf))) == pytest.approx(0.5, abs=0.01)
    near = apply("lt", apply("sub", m, k), whole(400))
    assert kept_share(apply("where", apply("and", apply("le", k, m), near), s, real(-math.inf))) == pytest.approx(0.095, abs=0.01)
    assert kept_share(apply("where", apply("le", k, m), s, real(-1e9))) == 1.0
