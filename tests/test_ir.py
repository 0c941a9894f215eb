"""Expressions and programs: types when built, renaming, substitution, counts, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqsat import ir
from eqsat.access import AccessMap, Index
from eqsat.errors import DTypeError, ShapeError, UsageError
from eqsat.ir import Expr, Input, Output, Program
from eqsat.oracle import evaluate
from eqsat.types import DType
from tests.strategies import example_inputs, programs

F32 = DType.F32
X = ir.read("x", ("i", "k"), (4, 3), F32)
W = ir.read("w", ("k", "j"), (3, 5), F32)
INPUTS = (Input("x", (4, 3), F32), Input("w", (3, 5), F32))
MATMUL = ir.reduce("sum", "k", ir.apply("mul", X, W))


def test_pointwise_ops_join_axes() -> None:
    assert str(ir.apply("mul", X, W).type) == "f32[i=4 j=5 k=3]"


def test_a_reduction_removes_its_axis() -> None:
    assert MATMUL.axes == {"i", "j"}


def test_an_access_replaces_axes() -> None:
    split = AccessMap((("i", Index.axis("a") * 2 + Index.axis("b")),), (("a", 2), ("b", 2)))
    assert str(ir.access(X, split).type) == "f32[a=2 b=2 k=3]"


def test_expressions_built_apart_are_equal_and_have_one_digest() -> None:
    again = ir.reduce("sum", "k", ir.apply("mul", ir.read("x", ("i", "k"), (4, 3), F32), ir.read("w", ("k", "j"), (3, 5), F32)))
    assert again == MATMUL
    assert len({again, MATMUL}) == 1
    assert again.digest != ir.reduce("max", "k", ir.apply("mul", X, W)).digest


def test_walk_yields_each_node_once_operands_first() -> None:
    e = ir.apply("add", ir.apply("exp", X), ir.apply("exp", X))
    assert [n.op for n in e.walk()] == ["read", "exp", "add"]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: ir.apply("add", X), UsageError, "2 operands"),
        (lambda: ir.apply("sum", X), UsageError, "pointwise"),
        (lambda: ir.apply("nope", X), UsageError, "'nope'"),
        (lambda: ir.apply("cast", X), DTypeError, "dtype"),
        (lambda: ir.apply("add", X, ir.read("y", ("i",), (5,), F32)), ShapeError, "extent 4"),
        (lambda: ir.reduce("sum", "z", X), ShapeError, "'z'"),
        (lambda: ir.reduce("exp", "k", X), UsageError, "reduction"),
        (lambda: ir.read("x", ("i",), (4, 3), F32), ShapeError, "2 dimensions"),
        (lambda: ir.read("x", ("i", "i"), (4, 4), F32), ShapeError, "diagonal"),
        (lambda: ir.access(X, AccessMap((("z", Index.const(0)),), ())), ShapeError, "z"),
        (lambda: ir.access(X, AccessMap((("k", Index.axis("i")),), (("i", 9),))), ShapeError, "other extents"),
        (lambda: ir.access(X, AccessMap((("k", Index.axis("m")),), ())), ShapeError, "does not give"),
        (lambda: ir.rename(X, {"i": "k"}), ShapeError, "merge"),
        (lambda: Input("x", (-1,), F32), ShapeError, "≥ 0"),
        (lambda: Output("y", X, ("i",), F32), ShapeError, "dimensions name"),
        (lambda: Program(INPUTS, ()), UsageError, "at least one output"),
        (lambda: Program((INPUTS[0], INPUTS[0]), (Output("y", X, ("i", "k"), F32),)), UsageError, "distinctly"),
        (lambda: Program((), (Output("y", X, ("i", "k"), F32),)), UsageError, "not among its inputs"),
        (
            lambda: Program((Input("x", (4, 3), DType.F64),), (Output("y", X, ("i", "k"), F32),)),
            ShapeError,
            r"'x' is f64\[4, 3\]",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_when_built(build: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_a_program_counts_its_bytes_and_operations() -> None:
    program = Program((*INPUTS, Input("unused", (100,), F32)), (Output("y", MATMUL, ("i", "j"), F32),))
    assert program.bytes == 4 * (4 * 3 + 3 * 5 + 4 * 5)
    assert program.flops == 2 * 4 * 3 * 5
    assert program.extents == {"i": 4, "j": 5, "k": 3}


def test_one_axis_with_two_extents_in_a_program_is_refused() -> None:
    short = ir.reduce("sum", "k", ir.read("s", ("k",), (2,), F32))
    program = Program((*INPUTS, Input("s", (2,), F32)), (Output("y", ir.apply("add", MATMUL, short), ("i", "j"), F32),))
    with pytest.raises(ShapeError, match="'k' has extents"):
        _ = program.extents


def test_an_output_shape_follows_its_axes() -> None:
    assert Output("y", MATMUL, ("j", "", "i"), F32).shape == (5, 1, 4)


def test_substitution_replaces_whole_subexpressions() -> None:
    product = ir.apply("mul", X, W)
    assert ir.substitute(MATMUL, {product: W}) == ir.reduce("sum", "k", W)
    assert ir.substitute(MATMUL, {}) is MATMUL


def test_renaming_a_free_axis_leaves_a_bound_one_of_that_name_alone() -> None:
    renamed = ir.rename(MATMUL, {"i": "k"})
    assert renamed.axes == {"k", "j"}
    (bound,) = renamed.attrs
    assert bound not in ("k", "j")


def test_renaming_deep_expressions_does_not_recurse() -> None:
    e = X
    for _ in range(3000):
        e = ir.apply("neg", e)
    assert ir.rename(e, {"i": "z"}).axes == {"z", "k"}


def _renamings(expr: Expr) -> st.SearchStrategy[dict[str, str]]:
    free = sorted(expr.axes)
    names = [*"ijkl", "i_0", "k_0", "z"]
    return st.permutations(names).map(lambda chosen: dict(zip(free, chosen, strict=False)))


@given(st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_renaming_keeps_the_meaning(data: st.DataObject) -> None:
    program = data.draw(programs(depth=5, outputs=1, dtypes=(DType.F64, DType.I64)))
    (out,) = program.outputs
    names = data.draw(_renamings(out.expr))
    renamed = ir.rename(out.expr, names)
    assert renamed.axes == {names[a] for a in out.expr.axes}
    again = Program(program.inputs, (Output(out.name, renamed, tuple(names.get(a, "") for a in out.axes), out.dtype),))
    inputs = example_inputs(program)
    np.testing.assert_array_equal(evaluate(program, inputs)[0], evaluate(again, inputs)[0])


@given(programs(depth=4, outputs=1, accesses=False))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_rebuilding_from_the_same_operands_gives_the_same_node(program: Program) -> None:
    for e in program.outputs[0].expr.walk():
        assert ir.rebuild(e, tuple(copy.copy(a) for a in e.args)) == e
