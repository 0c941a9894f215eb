"""The text form: exact round trips, errors with their place, formulas for people."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from eqsat import ir, text
from eqsat import numpy_like as fn
from eqsat.errors import TextError
from eqsat.ir import Output, Program
from eqsat.ops import TABLE, Kind
from eqsat.trace import tensor, to_program
from eqsat.types import DType
from tests.strategies import programs

MATMUL = """(program
  (input x bf16 (16 64))
  (input w bf16 (64 32) constant)
  (output y bf16 (i n) (sum k (mul (read x i k) (read w k n)))))
"""


@given(programs())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_program_reads_back_equal(program: Program) -> None:
    again = text.loads(text.dumps(program))
    assert again == program
    assert again.digest == program.digest


@given(programs())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_expression_has_a_formula_of_one_line(program: Program) -> None:
    for out in program.outputs:
        line = text.show(out.expr)
        assert len(line.splitlines()) == 1


def test_a_program_is_written_as_a_person_would_write_it() -> None:
    assert text.dumps(text.loads(MATMUL)) == MATMUL


def test_a_subexpression_used_twice_is_written_once() -> None:
    x = tensor("x", (4, 8))
    written = text.dumps(to_program(fn.softmax(x)))
    assert written.count("exp") == 1
    assert "(let t0 (exp " in written
    assert "(div t0 (sum j t0))" in written


def test_a_constant_that_takes_its_neighbours_type_is_a_bare_number() -> None:
    x = tensor("x", (4,), "bf16")
    assert "(mul (read x i) 0.5)" in text.dumps(to_program(x * 0.5))


def test_a_constant_of_another_type_says_its_own() -> None:
    x = ir.read("x", ("i",), (4,), DType.BF16)
    program = Program(
        (ir.Input("x", (4,), DType.BF16),), (Output("y", ir.apply("mul", x, ir.const(0.5, DType.F32)), ("i",), DType.F32),)
    )
    assert "(const 0.5 f32)" in text.dumps(program)
    assert text.loads(text.dumps(program)) == program


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -0.0, 1e-300, 0.1])
def test_special_constants_survive(value: float) -> None:
    x = tensor("x", (4,))
    program = to_program(fn.maximum(x, value))
    assert text.loads(text.dumps(program)).digest == program.digest


def test_a_very_deep_expression_survives() -> None:
    x = tensor("x", (4,))
    total = x
    for i in range(3000):
        total = total * 0.5 + float(i)
    program = to_program(total)
    assert text.loads(text.dumps(program)).digest == program.digest


@pytest.mark.parametrize(
    ("source", "place", "message"),
    [
        ("", "<text>:1:1", "expected one form"),
        ("(program", "<text>:1:1", "never closed"),
        ("(program (inputt x f32 (4)))", "<text>:1:10", r"expected \(input"),
        ("(program (input x f33 (4)))", "<text>:1:19", "expected a dtype"),
        ("(program (input x f32 (4 -1)))", "<text>:1:26", "at least 0"),
        ("(program (input x f32 (4))\n (input x f32 (4)))", "<text>:2:2", "second input"),
        ("(program (input x f32 (4))\n (output y f32 (i) (red x i)))", "<text>:2:20", "expected an operation"),
        ("(program (input x f32 (4))\n (output y f32 (i) (read z i)))", "<text>:2:26", "not an input"),
        ("(program (input x f32 (4))\n (output y f32 (i) (read x i j)))", "<text>:2:20", "1 dimensions"),
        ("(program (input x f32 (4))\n (output y f32 (i) (read x .)))", "<text>:2:20", "extent 1"),
        ("(program (input x f32 (4))\n (output y f32 (j) (read x i)))", "<text>:2:2", "the expression has"),
        ("(program (input x f32 (4))\n (output y f32 () (sum k (read x i))))", "<text>:2:19", "axis 'k'"),
        ("(program (input x f32 (4))\n (output y f32 (i) (add (read x i))))", "<text>:2:20", r"expected \(add value value\)"),
        ("(program (input x f32 (4))\n (output y f32 (i) (mul (read x i) t)))", "<text>:2:36", "not bound"),
        ("(program (output y f32 () (exp 1.0)))", "<text>:1:32", "write \\(const 1.0 f32\\)"),
        (
            "(program (input x f32 (4)) (input z f32 (5))\n (output y f32 (i) (add (read x i) (read z i))))",
            "<text>:2:20",
            "extent 4",
        ),
        ("(program (input x f32 (4)) (let t (read x i)) (let t (read x i)))", "<text>:1:52", "bound twice"),
        ("(program (input x f32 (4)))", "<text>:1:1", "at least one output"),
        (
            "(program (input x f32 (4))\n (output y f32 (j) (access ((i (+ j m))) ((j 4)) (read x i))))",
            "<text>:2:32",
            "extent of axis 'm'",
        ),
        ("(program (output y bool () (const 1 bool)))", "<text>:1:35", "true or false"),
        ("(program (output y i32 () (const 1.5 i32)))", "<text>:1:34", "whole number"),
    ],
)
def test_an_error_names_its_place_and_what_was_expected(source: str, place: str, message: str) -> None:
    with pytest.raises(TextError, match=message) as caught:
        text.loads(source)
    assert str(caught.value).startswith(place)


def test_an_error_shows_the_line_with_a_caret() -> None:
    with pytest.raises(TextError) as caught:
        text.loads("(program\n  (input x f33 (4)))", file="a.eqsat")
    assert str(caught.value).splitlines()[0].startswith("a.eqsat:2:12: ")
    assert str(caught.value).splitlines()[1:] == ["    (input x f33 (4)))", "             ^"]


def test_nesting_beyond_reason_is_refused_with_advice() -> None:
    deep = "(neg " * 500 + "(read x i)" + ")" * 500
    with pytest.raises(TextError, match="let name value"):
        text.loads(f"(program (input x f32 (4)) (output y f32 (i) {deep}))")


@pytest.mark.parametrize(
    ("build", "formula"),
    [
        (lambda x, w, b: x @ w, "Σ_k x[i,k]·w[k,j]"),
        (lambda x, w, b: (x + 1) * 2 - (x - (x - 3)), "(x[i,j] + 1)·2 − (x[i,j] − (x[i,j] − 3))"),
        (lambda x, w, b: x / (x * x), "x[i,j]/(x[i,j]·x[i,j])"),
        (lambda x, w, b: fn.silu(x), "x[i,j]·σ(x[i,j])"),
        (lambda x, w, b: fn.where(x < 0, -x, abs(x)), "where(x[i,j] < 0, −x[i,j], |x[i,j]|)"),
        (lambda x, w, b: x[::-1, 2::3], "x[-i+3,3j+2]"),
        (lambda x, w, b: x - x.max(1, keepdims=True), "x[i,j] − max_j x[i,j]"),
        (lambda x, w, b: fn.softmax(x), "a/(Σ_j a) where a = exp(x[i,j] − max_j x[i,j])"),
    ],
)
def test_formulas_read_like_mathematics(build: object, formula: str) -> None:
    x, w, b = tensor("x", (4, 8)), tensor("w", (8, 5)), tensor("b", (8,))
    assert callable(build)
    assert text.show(to_program(build(x, w, b)).outputs[0].expr) == formula


def test_the_strategies_draw_every_row_of_the_op_table() -> None:
    seen: set[str] = set()

    @given(programs(depth=4))
    @settings(max_examples=500, deadline=None, derandomize=True, database=None)
    def collect(program: Program) -> None:
        seen.update(e.op for out in program.outputs for e in out.expr.walk())

    collect()
    assert {row.name for row in TABLE} - seen == set()
    assert Kind.ACCESS in {row.kind for row in TABLE if row.name in seen}
