"""Index expressions as terms: canonical spelling, the e-graph's analyses, nests of accesses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqsat.access import AccessMap, Index
from eqsat.egraph import EGraph
from eqsat.errors import TextError
from eqsat.indexterms import canonical, index_term, index_texts, made_axis, made_extent, read_index
from eqsat.ir import Input, Output, Program, access, read
from eqsat.oracle import evaluate
from eqsat.session import Session
from eqsat.signature import declarations, extent_facts
from eqsat.terms import accessed, from_term, to_term
from eqsat.types import DType

EXTENTS = {"p": 3, "q": 4, "r": 1}
LEAVES = st.sampled_from([Index.axis("p"), Index.axis("q"), Index.axis("r"), Index.const(-2), Index.const(0), Index.const(5)])
INDICES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda ab: Index("add", args=ab)),
        st.tuples(inner, st.sampled_from(["mul", "div", "mod"]), st.integers(1, 4)).map(
            lambda t: Index(t[1], value=t[2], args=(t[0],))
        ),
        inner.map(lambda a: Index("mul", value=-1, args=(a,))),
    ),
    max_leaves=5,
)


def value(index: Index, at: dict[str, int]) -> int:
    match index.op:
        case "axis":
            return at[index.name]
        case "const":
            return index.value
        case "add":
            return value(index.args[0], at) + value(index.args[1], at)
        case "mul":
            return value(index.args[0], at) * index.value
        case "div":
            return value(index.args[0], at) // index.value
        case _:
            return value(index.args[0], at) % index.value


def points() -> list[dict[str, int]]:
    return [dict(zip(EXTENTS, p, strict=True)) for p in itertools.product(*map(range, EXTENTS.values()))]


def analysed(*terms: str) -> list[tuple[str, tuple[str, ...], int, int]]:
    g = EGraph()
    g.run(declarations())
    g.run("\n".join(extent_facts(EXTENTS)))
    for i, t in enumerate(terms):
        g.run(f"(let $i{i} {t})")
    g.step(g.parse("(run-schedule (saturate (run rs-analysis)))"))
    tables = g.tables()
    texts = index_texts(tables)
    facts = [{a[0]: v for a, v in tables[f"index-{name}"].rows} for name in ("axes", "low", "high")]
    classes = [tables[f"$i{i}"].rows[0][1] for i in range(len(terms))]
    return [(texts[c], *(f[c] for f in facts)) for c in classes]


@settings(max_examples=60, deadline=None)
@given(INDICES)
def test_the_canonical_spelling_has_the_same_values_and_axes(index):
    plain = canonical(index, EXTENTS)
    assert plain.axes == index.axes
    assert [value(plain, at) for at in points()] == [value(index, at) for at in points()]


@settings(max_examples=60, deadline=None)
@given(INDICES)
def test_an_index_survives_the_way_through_text(index):
    assert read_index(index_term(index)) == index


@settings(max_examples=25, deadline=None)
@given(INDICES, st.sampled_from("pq"), INDICES)
def test_the_e_graph_substitutes_and_bounds_as_the_values_do(index, axis, by):
    ((text, axes, low, high),) = analysed(f'(Substitute {index_term(index)} "{axis}" {index_term(by)})')
    found = read_index(text)
    for at in points():
        put = at | {axis: value(by, at)}
        assert value(found, at) == value(index, put)
        assert low <= value(found, at) <= high
    assert set(axes) == found.axes


def test_sums_of_one_value_are_one_class():
    one, other = analysed('(Plus (Plus (Axis "p") (Whole 3)) (Whole -3))', '(Times (Plus (Axis "p") (Whole 0)) 1)')
    assert one == other == ('(Axis "p")', ("p",), 0, 2)


def test_a_made_axis_tells_its_extent():
    name = made_axis("k", "ko", 16)
    assert made_extent(name) == 16
    assert made_extent("k16") is None


@pytest.mark.parametrize("text", ["(Axis k)", "(Plus (Whole 1))", "(Minus (Whole 1) 2)", "(Times 2 (Whole 1))"])
def test_a_malformed_index_is_refused(text):
    with pytest.raises(TextError, match="expected an index"):
        read_index(text)


X = read("x", ("i", "j"), (3, 3), DType.F32)
SOME = Program((Input("x", (3, 3), DType.F32),), (Output("y", X, ("i", "j"), DType.F32),))


def test_axes_that_change_places_go_through_a_made_one():
    turned = access(X, AccessMap((("i", Index.axis("j")), ("j", Index.axis("i"))), (("i", 3), ("j", 3))))
    assert made_axis("i", "", 3) in to_term(turned)
    assert from_term(to_term(turned), SOME) == turned


def test_an_access_of_an_access_is_one_access_where_zeros_stay_zeros():
    shifted = accessed(X, "j", Index.axis("j") + Index.const(1), {"j": 3})
    within = accessed(shifted, "j", Index.axis("p"), {"p": 2})
    assert within == access(X, AccessMap((("j", Index.axis("p") + Index.const(1)),), (("p", 2),)))
    back = accessed(shifted, "j", Index.axis("j") + Index.const(-1), {"j": 3})
    assert back.args == (shifted,)


def test_a_frozen_access_holds_its_axis_and_its_index_as_text():
    shifted = accessed(X, "j", Index.axis("p") + Index.const(-1), {"p": 5})
    program = Program(SOME.inputs, (Output("y", shifted, ("i", "p"), DType.F32),))
    with Session() as session:
        _, frozen = session.saturate(program, [])
    (root,) = frozen.roots
    (node,) = frozen.nodes[root]
    assert (node.op, node.literals) == ("Access", ("j", '(Plus (Axis "p") (Whole -1))'))
    assert frozen.extents == {"i": 3, "j": 3, "p": 5}
    assert from_term(frozen.smallest_term(root), program) == shifted


def test_where_the_operand_does_not_vary_an_access_is_a_mask():
    column = read("c", ("i",), (3,), DType.F32)
    program = Program((Input("c", (3,), DType.F32),), (Output("y", column, ("i",), DType.F32),))
    masked = from_term('(Access "j" (Plus (Axis "p") (Whole -1)) (Read "c" "i"))', program, extents={"j": 3, "p": 5})
    inputs = {"c": np.array([1, 2, 3], np.float32)}
    found = evaluate(Program(program.inputs, (Output("y", masked, ("i", "p"), DType.F32),)), inputs)[0]
    assert found.tolist() == [[0, c, c, c, 0] for c in (1, 2, 3)]
