"""The frozen table: numbering, pruning, smallest terms."""

from __future__ import annotations

import pickle

import pytest

from eqsat.errors import ExtractionError, SaturationError
from eqsat.frozen import Node, Row, build, groundable

ARGUMENTS = {
    "Read": ("String", "String"), "Exp": ("T",), "Mul": ("T", "T"), "Sum": ("String", "T"), "Cast": ("T", "String"),
    "Anchor": ("T",), "ReduceAnchor": ("String", "Axes", "T"),
}  # fmt: skip
X = Row("Read", "T", 10, (), ("x", "i"))


def frozen(rows, roots=(10,), axes=None):
    known = {r.result for r in rows if r.sort == "T"}
    return build(
        rows, axes if axes is not None else dict.fromkeys(known, ("i",)), dict.fromkeys(known, "f32"), [], roots, ARGUMENTS
    )


def test_only_what_the_roots_reach_is_kept():
    table = frozen([X, Row("Exp", "T", 11, (10,), ()), Row("Read", "T", 12, (), ("z", "i"))], roots=(11,))
    assert table.nodes == {0: [Node("Exp", (1,), ())], 1: [Node("Read", (), ("x", "i"))]}
    assert table.roots == (0,)


def test_numbering_does_not_depend_on_the_order_of_rows():
    rows = [X, Row("Exp", "T", 11, (10,), ()), Row("Mul", "T", 11, (10, 10), ()), Row("Mul", "T", 12, (10, 11), ())]
    assert frozen(rows, roots=(12,)) == frozen(rows[::-1], roots=(12,))


def test_rows_that_no_finite_term_uses_are_dropped():
    circle = [Row("Exp", "T", 20, (21,), ()), Row("Exp", "T", 21, (20,), ())]
    assert groundable([X, *circle]) == [X]
    assert frozen([X, Row("Mul", "T", 10, (10, 20), ()), *circle]).node_count == 1


def test_anchors_lead_from_values_to_regions():
    rows = [X, Row("Anchor", "Region", 30, (10,), ()), Row("ReduceAnchor", "Region", 30, (10,), ("sum", ("k",)))]
    table = frozen(rows)
    assert table.anchor_of == {0: 1}
    assert table.nodes[1] == [Node("ReduceAnchor", (0,), ("sum", ("k",)))]
    assert set(table.axes) == {0}


def test_a_value_without_axes_is_an_error_that_names_the_node():
    with pytest.raises(SaturationError, match="Read x i has none"):
        frozen([X], axes={})


def test_the_smallest_term_counts_every_use_of_a_shared_operand():
    rows = [
        X, Row("Exp", "T", 11, (10,), ()), Row("Exp", "T", 12, (11,), ()), Row("Mul", "T", 13, (11, 11), ()),
        Row("Sum", "T", 13, (12,), ("k",)), Row("Exp", "T", 13, (13,), ()),
    ]  # fmt: skip
    table = frozen(rows, roots=(13,))
    assert table.smallest_term(table.roots[0]) == '(Sum "k" (Exp (Exp (Read "x" "i"))))'


def test_a_term_keeps_the_order_of_operands_and_literals():
    table = frozen([X, Row("Cast", "T", 11, (10,), ("bf16",))], roots=(11,))
    assert table.smallest_term(0) == '(Cast (Read "x" "i") "bf16")'


def test_choices_that_run_in_a_circle_are_refused():
    table = frozen([X, Row("Exp", "T", 10, (10,), ())])
    with pytest.raises(ExtractionError, match="circle"):
        table.term_from_choice(0, {0: Node("Exp", (0,), ())})
    with pytest.raises(ExtractionError, match="none"):
        table.term_from_choice(0, {})


def test_the_table_pickles():
    table = frozen([X, Row("Exp", "T", 11, (10,), ())], roots=(11,))
    assert pickle.loads(pickle.dumps(table)) == table


def test_the_picture_has_a_vertex_for_each_class_and_node():
    table = frozen([X, Row("Exp", "T", 11, (10,), ())], roots=(11,))
    assert table.to_networkx().number_of_nodes() == table.class_count + table.node_count
