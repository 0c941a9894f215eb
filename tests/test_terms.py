"""Expressions written as terms and read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from eqsat.access import AccessMap, Index
from eqsat.errors import DTypeError, TextError
from eqsat.ir import Input, Output, Program, access, apply, const, iota, read, reduce
from eqsat.oracle import evaluate
from eqsat.terms import from_term, to_term
from eqsat.types import DType
from tests.strategies import example_inputs, programs

BF16, F32, I32, BOOL = DType.BF16, DType.F32, DType.I32, DType.BOOL
X = read("x", ("i", "k"), (3, 4), BF16)
W = read("w", ("k", "n"), (4, 5), BF16)
M = read("m", ("i", "k"), (3, 4), BOOL)
INPUTS = (Input("x", (3, 4), BF16), Input("w", (4, 5), BF16), Input("m", (3, 4), BOOL))
SOME = Program(INPUTS, (Output("y", reduce("sum", "k", apply("mul", X, W)), ("i", "n"), BF16),))


def test_a_matrix_product_reads_as_one_sum_of_products():
    assert to_term(SOME.outputs[0].expr) == '(Sum "k" (Mul (Read "x" "i k") (Read "w" "k n")))'


def test_a_dimension_of_extent_one_is_a_dot():
    column = read("c", ("i", ""), (3, 1), F32)
    program = Program((Input("c", (3, 1), F32),), (Output("y", column, ("i",), F32),))
    assert to_term(column) == '(Read "c" "i .")'
    assert from_term('(Read "c" "i .")', program) == column


@settings(max_examples=60, deadline=None)
@given(programs())
def test_a_program_survives_the_way_through_text(program):
    arrays = example_inputs(program)
    backs = [from_term(to_term(o.expr), program, dtype=o.expr.dtype) for o in program.outputs]
    assert [b.type for b in backs] == [o.expr.type for o in program.outputs]
    outputs = tuple(Output(o.name, b, o.axes, o.dtype) for o, b in zip(program.outputs, backs, strict=True))
    with np.errstate(all="ignore"):
        before, after = evaluate(program, arrays), evaluate(Program(program.inputs, outputs), arrays)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12)


@pytest.mark.parametrize(
    "expr",
    [
        apply("where", apply("lt", X, const(1, BF16)), X, const(0, BF16)),
        apply("exp", apply("sub", X, reduce("max", "k", X))),
        apply("cast", reduce("argmax", "k", X), dtype=I32),
        apply("add", apply("cast", iota("k", 4), dtype=BF16), X),
        access(X, AccessMap((("k", Index.axis("j") * 2 + Index.const(1)),), (("j", 2),))),
        apply("and", M, apply("not", M)),
    ],
    ids=lambda e: e.op,
)
def test_what_is_read_back_is_the_same_expression(expr):
    program = Program(INPUTS, (Output("y", expr, tuple(sorted(expr.axes)), expr.dtype),))
    assert from_term(to_term(expr), program) == expr


def test_a_constant_takes_the_dtype_of_what_it_meets():
    found = from_term('(Mul (Const 0.5) (Add (Read "x" "i k") (Const 1.0)))', SOME)
    assert {e.dtype for e in found.walk()} == {BF16}


def test_a_constant_of_a_wider_type_keeps_the_result_wide():
    half = apply("mul", X, const(0.5, F32))
    assert to_term(half) == '(Mul (Cast (Read "x" "i k") "f32") (Const 0.5))'
    assert from_term(to_term(half), SOME).dtype is F32


def test_truth_values_are_cast_before_arithmetic():
    assert to_term(apply("mul", M, X)) == '(Mul (Cast (Read "m" "i k") "bf16") (Read "x" "i k"))'
    assert to_term(reduce("sum", "k", M)) == '(Sum "k" (Cast (Read "m" "i k") "i64"))'


def test_casting_truth_values_keeps_the_value():
    masked = reduce("sum", "k", apply("mul", M, X))
    arrays = {"x": np.arange(12).reshape(3, 4).astype(BF16.numpy), "m": np.arange(12).reshape(3, 4) % 3 == 0}
    before = Program((INPUTS[0], INPUTS[2]), (Output("y", masked, ("i",), BF16),))
    after = Program(before.inputs, (Output("y", from_term(to_term(masked), before), ("i",), BF16),))
    np.testing.assert_array_equal(evaluate(before, arrays)[0], evaluate(after, arrays)[0])


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ('(Sum "k" (Const 2.0))', 8.0),
        ('(Max "k" (Const 2.0))', 2.0),
        ('(Prod "k" (Const 2.0))', 16.0),
        ('(ArgMin "k" (Const 2.0))', 0.0),
    ],
)
def test_a_reduction_over_an_axis_that_the_operand_lacks_counts_its_extent(term, value):
    expr = from_term(term, SOME)
    assert evaluate(Program(INPUTS, (Output("y", expr, (), expr.dtype),)), _zeros())[0] == value


def _zeros():
    return {i.name: np.zeros(i.shape, i.dtype.numpy) for i in INPUTS}


def test_a_term_nested_ten_thousand_deep_is_read():
    deep = '(Read "x" "i k")'
    for _ in range(10_000):
        deep = f"(Neg {deep})"
    assert sum(1 for _ in from_term(deep, SOME).walk()) == 10_001


def test_an_access_map_survives_the_way_through_text():
    index = (Index.axis("a") * 3 + Index.axis("b")) // 2 + Index.const(1)
    mapped = access(X, AccessMap((("k", index % 4), ("i", Index.axis("b"))), (("a", 4), ("b", 3))))
    program = Program(INPUTS, (Output("y", mapped, ("a", "b"), BF16),))
    assert from_term(to_term(mapped), program) == mapped


@pytest.mark.parametrize(
    ("term", "says"),
    [
        ('(Sum "k" (Mull (Read "x" "i k") (Const 1.0)))', "Mull"),
        ('(Mul (Read "x" "i k"))', "takes 2 arguments; got 1"),
        ('(Read "z" "i k")', "the inputs are ['m', 'w', 'x']"),
        ('(Iota "q")', "extent of axis 'q' is unknown"),
        ('(Access "k" (Axis "q") (Read "x" "i k"))', "extent of axis 'q' is unknown"),
        ('(Access k (Axis "k") (Read "x" "i k"))', "expected a string"),
        ('(Add (Read "x" "i k") (Const one))', "expected a number; got one"),
        ('(Exp (Read "x" "i k")) (Exp 1)', "expected one term; got 2"),
        ("(Exp (Const 1.0)", "never closed"),
    ],
)
def test_a_malformed_term_is_refused_with_its_place(term, says):
    with pytest.raises(TextError, match="<term>:1:") as caught:
        from_term(term, SOME)
    assert says in str(caught.value)


def test_a_fraction_among_integers_is_refused():
    whole = Program((Input("n", (3,), I32),), (Output("y", read("n", ("i",), (3,), I32), ("i",), I32),))
    with pytest.raises(DTypeError, match=r"0\.5 meets i32"):
        from_term('(Mul (Const 0.5) (Read "n" "i"))', whole)


@pytest.mark.parametrize(("value", "to"), [(-2.5, I32), (float("inf"), I32), (2.5, DType.BOOL), (3.0, I32)])
def test_a_constant_under_a_cast_need_not_fit_the_type_it_is_cast_to(value, to):
    expr = apply("cast", const(value, DType.F32), dtype=to)
    program = Program((), (Output("y", expr, (), to),))
    back = Program((), (Output("y", from_term(to_term(expr), program), (), to),))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(evaluate(back, {})[0], evaluate(program, {})[0])
