"""Index expressions: values, bounds, simplification and composition."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqsat.access import AccessMap, Index
from eqsat.indexterms import index_term, read_index
from tests.strategies import EXTENTS, indices


def value(index: Index, at: Mapping[str, int]) -> int:
    """Evaluate an index by its definition."""
    parts = [value(a, at) for a in index.args]
    match index.op:
        case "axis":
            return at[index.name]
        case "const":
            return index.value
        case "add":
            return parts[0] + parts[1]
        case "mul":
            return parts[0] * index.value
        case "div":
            return parts[0] // index.value
        case _:
            return parts[0] % index.value


def positions(extents: Mapping[str, int] = EXTENTS) -> list[dict[str, int]]:
    return [dict(zip(extents, p, strict=True)) for p in itertools.product(*(range(n) for n in extents.values()))]


def same_values(a: Index, b: Index) -> bool:
    return all(value(a, p) == value(b, p) for p in positions())


nested = st.recursive(
    indices(),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: Index("add", args=t)),
        st.tuples(inner, st.integers(-3, 3)).map(lambda t: Index("mul", value=t[1], args=(t[0],))),
        st.tuples(inner, st.integers(1, 5)).map(lambda t: Index("div", value=t[1], args=(t[0],))),
        st.tuples(inner, st.integers(1, 5)).map(lambda t: Index("mod", value=t[1], args=(t[0],))),
    ),
    max_leaves=4,
)


@given(nested)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_simplifying_keeps_the_value_at_every_position(index: Index) -> None:
    assert same_values(index.simplify(EXTENTS), index)


@given(nested)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_bounds_hold_at_every_position(index: Index) -> None:
    low, high = index.bounds(EXTENTS)
    assert all(low <= value(index, p) <= high for p in positions())


@given(nested, nested, st.integers(-3, 3), st.integers(1, 5))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_operators_compute_what_they_say(a: Index, b: Index, factor: int, divisor: int) -> None:
    for p in positions():
        x, y = value(a, p), value(b, p)
        assert value(a + b, p) == x + y
        assert value(a * factor, p) == x * factor
        assert value(a // divisor, p) == x // divisor
        assert value(a % divisor, p) == x % divisor


@given(nested, nested)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_substitution_is_composition(outer: Index, inner: Index) -> None:
    composed = outer.substitute({"i": inner})
    assert all(value(composed, p) == value(outer, {**p, "i": value(inner, p)}) for p in positions())


@given(nested)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_term_of_an_index_reads_back(index: Index) -> None:
    assert read_index(index_term(index)) == index


P, Q = Index.axis("i"), Index.axis("j")


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (P + Q, "(+ i j)"),
        (P + Index.const(2) + Index.const(-2), "i"),
        (P * 2 + P, "(* i 3)"),
        (P + P * -1, "0"),
        ((P + Index.const(1)) * 3, "(+ (* i 3) 3)"),
        (P * 2 * 3, "(* i 6)"),
        (P // 2 // 3, "(// i 6)"),
        (P % 6 % 3, "(% i 3)"),
        (P // 1 + P % 1, "i"),
        (P // 4 * 4 + P % 4, "i"),
        (P // 12 * 12 + P // 4 % 3 * 4 + P % 4, "i"),
        (Index.const(-7) // 2, "-4"),
        (Index.const(-7) % 2, "1"),
    ],
)
def test_equal_sums_are_written_alike(index: Index, text: str) -> None:
    assert str(index) == text


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ((P * 4 + Q) // 4, "i"),
        ((P * 4 + Q) % 4, "j"),
        ((P * 8 + Q) // 4, "(* i 2)"),
        ((P * 6 + Q) // 4, "(// (+ (* i 6) j) 4)"),
        (Q // 4, "0"),
        (Q % 4, "j"),
        (Q // 2, "(// j 2)"),
    ],
)
def test_a_join_undoes_a_split_where_the_extents_allow(index: Index, text: str) -> None:
    assert str(index.simplify({"i": 5, "j": 4})) == text


def test_a_map_lists_its_axes_in_order_whatever_the_order_given() -> None:
    a = AccessMap((("j", P), ("i", Q)), (("j", 3), ("i", 2)))
    assert a == AccessMap((("i", Q), ("j", P)), (("i", 2), ("j", 3)))
    assert str(a) == "((i j) (j i)) ((i 2) (j 3))"


@pytest.mark.parametrize(("shift", "total"), [(0, True), (1, True), (2, False), (-1, False)])
def test_a_map_is_total_if_no_read_leaves_the_range(shift: int, total: bool) -> None:
    mapping = AccessMap((("k", P + Index.const(shift)),), (("i", 3),))
    assert mapping.is_total({"k": 4}) is total
