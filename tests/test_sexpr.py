"""S-expressions: what is read, where it stands, and that text comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eqsat.sexpr import Node, listed, read_forms

ATOMS = st.one_of(
    st.builds(Node, st.just("symbol"), st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True).filter(lambda t: t not in ("inf", "nan"))),
    st.builds(Node, st.just("string"), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=8)),
    st.builds(Node, st.just("int"), st.integers(-99, 99).map(str)),
    st.builds(Node, st.just("float"), st.floats(allow_nan=False, allow_infinity=False).map(repr)),
)  # fmt: skip
NODES = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=4).map(lambda items: listed(*items)), max_leaves=12)


@given(st.lists(NODES, max_size=3))
def test_what_is_written_is_read_back(nodes):
    assert list(read_forms(" ".join(map(str, nodes)))) == nodes


def test_every_node_knows_its_line_and_column():
    (form,) = read_forms('; first\n(union a\n  (Mul "k" 1.5))')
    assert [(str(n), n.line, n.column) for n in form.walk()][1:] == [
        ("union", 2, 2), ("a", 2, 8), ('(Mul "k" 1.5)', 3, 3), ("Mul", 3, 4), ('"k"', 3, 8), ("1.5", 3, 12),
    ]  # fmt: skip


def test_numbers_are_told_from_symbols():
    assert [n.kind for n in read_forms("1 -2 1.5 1e-05 -0.0 inf -inf NaN one 1x -")] == [
        "int", "int", "float", "float", "float", "float", "float", "float", "symbol", "symbol", "symbol",
    ]  # fmt: skip


def test_nodes_that_read_the_same_are_equal_wherever_they_stand():
    first, second = read_forms("(Mul a b)\n   (Mul  a b)")
    assert first == second
    assert hash(first) == hash(second)
