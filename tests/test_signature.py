"""The generated signature agrees with the op table and with the types of expressions."""

from __future__ import annotations

import itertools

import pytest

from eqsat.access import AccessMap, Index
from eqsat.egraph import EGraph
from eqsat.errors import DTypeError, SaturationError, UsageError
from eqsat.ir import Expr, Input, Output, Program, access, apply, const, iota, read, reduce
from eqsat.ops import TABLE, Kind, Result, result_dtype
from eqsat.signature import declarations, load_text, quoted, weak_dtype
from eqsat.types import DType


def program_of(expr: Expr, *inputs: Input) -> Program:
    return Program(inputs, (Output("y", expr, tuple(sorted(expr.axes)), expr.dtype),))


def analysed(program: Program) -> tuple[tuple[str, ...], str, bool]:
    """Axes, dtype and constness that the e-graph finds for the program's first output."""
    g = EGraph()
    g.run(declarations())
    g.run(load_text(program, ["$root"]))
    g.step(g.parse("(run-schedule (saturate (run rs-analysis)))"))
    tables = g.tables()
    root = tables["$root"].rows[0][1]
    axes = {k[0]: v for k, v in tables["axes"].rows}
    dtype = {k[0]: v for k, v in tables["dtype"].rows}
    return axes[root], dtype[root], root in {k[0] for k, _ in tables["constant"].rows}


@pytest.mark.parametrize("op", [op for op in TABLE if op.kind in (Kind.POINTWISE, Kind.REDUCE)], ids=lambda op: op.name)
def test_the_analysis_gives_each_op_the_axes_and_dtype_of_its_expression(op):
    for dtypes in itertools.product((DType.BF16, DType.F32, DType.I32, DType.BOOL), repeat=min(op.arity, 2)):
        dtypes = (*dtypes, dtypes[-1])[: op.arity]
        names = "abc"[: op.arity]
        args = [read(n, ("i", f"j{n}"), (4, 3), d) for n, d in zip(names, dtypes, strict=True)]
        inputs = [Input(n, (4, 3), d) for n, d in zip(names, dtypes, strict=True)]
        if op.kind is Kind.REDUCE:
            expr = reduce(op.name, "i", args[0])
        else:
            expr = apply(op.name, *args, dtype=DType.F16 if op.name == "cast" else None)
        assert analysed(program_of(expr, *inputs)) == (tuple(sorted(expr.axes)), expr.dtype.value, False)


def test_weak_dtypes_follow_the_table_where_nothing_is_weak():
    for op in TABLE:
        if op.result is Result.GIVEN or op.kind is Kind.ACCESS:
            continue
        for dtypes in itertools.product(DType, repeat=min(op.arity, 2)):
            full = (*dtypes, dtypes[-1])[: op.arity]
            assert weak_dtype(op, [d.value for d in full]) == result_dtype(op, full).value


def test_a_constant_takes_the_type_it_meets():
    x = read("x", ("i",), (4,), DType.BF16)
    expr = apply("mul", x, const(0.5, DType.BF16))
    assert analysed(program_of(expr, Input("x", (4,), DType.BF16)))[1] == "bf16"


def test_a_constant_of_a_wider_type_widens_the_result():
    x = read("x", ("i",), (4,), DType.BF16)
    for expr in (
        apply("mul", x, const(0.5, DType.F32)),
        apply("add", apply("where", apply("lt", x, x), const(1.0, DType.F32), const(0.0, DType.F32)), x),
        apply("div", apply("cast", x, dtype=DType.I32), const(2.0, DType.F64)),
        apply("where", apply("lt", x, const(0.3, DType.F64)), x, const(2.0, DType.F32)),
    ):
        assert analysed(program_of(expr, Input("x", (4,), DType.BF16)))[1] == expr.dtype.value


def test_an_output_that_is_a_constant_has_its_own_dtype():
    expr = apply("add", const(1.0, DType.F64), const(2.0, DType.F64))
    assert analysed(program_of(expr)) == ((), "f64", True)


def test_what_depends_on_constant_inputs_alone_is_constant():
    w, x = (read(n, ("i",), (4,), DType.F32) for n in "wx")
    weight, other = Input("w", (4,), DType.F32, constant=True), Input("x", (4,), DType.F32)
    scaled = apply("mul", apply("exp", w), iota("i", 4, DType.F32))
    assert analysed(program_of(scaled, weight))[2]
    assert not analysed(program_of(apply("mul", scaled, x), weight, other))[2]


def test_an_access_has_the_axes_of_its_expression():
    x = read("x", ("i", "j"), (4, 6), DType.F32)
    moved = access(x, AccessMap((("j", Index.axis("p") * 2 + Index.axis("q")),), (("p", 3), ("q", 2))))
    assert analysed(program_of(apply("exp", moved), Input("x", (4, 6), DType.F32)))[0] == ("i", "p", "q")


def test_two_dtypes_in_one_class_are_an_error():
    x = read("x", ("i",), (4,), DType.BF16)
    g = EGraph()
    g.run(declarations())
    g.run(load_text(program_of(x, Input("x", (4,), DType.BF16)), ["$root"]))
    g.run('(union $root (Cast $root "f32"))')
    with pytest.raises(SaturationError, match="dtype"):
        g.step(g.parse("(run-schedule (saturate (run rs-analysis)))"))


def test_shared_nodes_are_bound_once_so_that_the_text_stays_small():
    x = read("x", ("i",), (4,), DType.F32)
    expr = x
    for _ in range(200):
        expr = apply("add", expr, expr)
    text = load_text(program_of(expr, Input("x", (4,), DType.F32)), ["$root"])
    assert len(text) < 10_000
    assert analysed(program_of(expr, Input("x", (4,), DType.F32)))[0] == ("i",)


def test_deep_terms_are_cut_into_bindings():
    expr = read("x", ("i",), (4,), DType.F32)
    for _ in range(5000):
        expr = apply("exp", expr)
    text = load_text(program_of(expr, Input("x", (4,), DType.F32)), ["$root"])
    deepest = max(line.count("(") for line in text.splitlines())
    assert deepest < 1000


def test_special_numbers_survive_loading():
    for value in (float("inf"), float("-inf"), 1e-30, 1e300, -2.5):
        g = EGraph()
        g.run(declarations())
        g.run(load_text(program_of(const(value, DType.F64)), ["$root"]))
        assert (value,) in [args for args, _ in g.tables()["Const"].rows]


def test_an_integer_constant_past_the_float64_grid_is_refused():
    with pytest.raises(DTypeError, match="float64 exactly"):
        load_text(program_of(const(2**53 + 1, DType.I64)), ["$root"])


def test_names_that_would_break_the_text_are_refused():
    with pytest.raises(UsageError, match="Rename"):
        quoted('a"b')


def test_roots_are_one_global_for_each_output():
    with pytest.raises(UsageError, match="one global name"):
        load_text(program_of(const(1.0, DType.F32)), ["root"])
