"""What is read off a plan, and plans written as one expression again."""

from __future__ import annotations

from eqsat.codegen.plan import Kernel, Plan
from eqsat.codegen.problem import PointProblem
from eqsat.ir import Expr, Input, Output, Program, apply, const, read, reduce
from eqsat.search.compose import compose
from eqsat.search.discovery_plan import Picture, description, products_of
from eqsat.terms import to_term
from eqsat.types import DType

X = Input("x", (4, 8), DType.BF16)
W = Input("w", (8, 5), DType.BF16, constant=True)
G = Input("g", (8,), DType.BF16, constant=True)


def x() -> Expr:
    return read("x", ("i", "k"), X.shape, X.dtype)


def kernel(out: str, expr: Expr, axes: tuple[str, ...], dtype: DType, *inputs: Input) -> Kernel:
    return Kernel(PointProblem(Program(inputs, (Output(out, expr, axes, dtype),)), axes))


def test_constants_beside_an_intermediate_that_is_stored_wider_take_the_type_of_what_it_holds() -> None:
    total = reduce("sum", "k", x())
    program = Program((X,), (Output("y", apply("mul", total, const(0.5, DType.BF16)), ("i",), DType.BF16),))
    stored = read("t", ("i",), (4,), DType.F32)
    plan = Plan(
        program,
        (
            kernel("t", total, ("i",), DType.F32, X),
            kernel("y", apply("mul", stored, const(0.5, DType.F32)), ("i",), DType.BF16, Input("t", (4,), DType.F32)),
        ),
    )
    assert to_term(compose(plan)[0]) == to_term(program.outputs[0].expr)


def linear() -> Plan:
    """Return x @ (g·w), with g·w in a kernel of its own."""
    gain, weight = read("g", ("k",), G.shape, G.dtype), read("w", ("k", "j"), W.shape, W.dtype)
    scaled = read("t", ("k", "j"), W.shape, W.dtype)
    once = kernel("t", apply("mul", gain, weight), ("k", "j"), DType.BF16, G, W)
    call = kernel("y", reduce("sum", "k", apply("mul", x(), scaled)), ("i", "j"), DType.BF16, X, Input("t", W.shape, W.dtype))
    whole = reduce("sum", "k", apply("mul", x(), apply("mul", gain, weight)))
    return Plan(Program((X, G, W), (Output("y", whole, ("i", "j"), DType.BF16),)), (once, call))


def test_kernels_of_constants_alone_are_no_part_of_a_call() -> None:
    picture = Picture(linear())
    assert [p.writes for p in picture.prepared] == [{"t"}]
    assert [p.writes for p in picture.passes] == [{"y"}]
    assert picture.intermediates == {}
    assert description(picture).startswith("1 kernel; y = ")
    assert "prepared once: t = " in description(picture)


def test_a_contraction_has_factors_with_axes_that_each_lacks() -> None:
    plan = linear()
    (found,) = products_of(plan.kernels[1].program)
    assert (found.over, found.axes, found.elements, found.volume, found.reads) == ({"k"}, {"i", "j"}, 20, 160, {"x", "t"})
    assert found.of_reads
    (written,) = products_of(plan.program)
    assert len(written.factors) == 3
    squares = Program((X,), (Output("y", reduce("sum", "k", apply("mul", x(), x())), ("i",), DType.BF16),))
    assert products_of(squares) == ()


def test_a_sum_that_needs_another_one_is_a_second_pass() -> None:
    centred = apply("sub", x(), reduce("sum", "k", x()))
    spread = reduce("sum", "k", apply("mul", centred, centred))
    plan = Plan(Program((X,), (Output("y", spread, ("i",), DType.BF16),)), (kernel("y", spread, ("i",), DType.BF16, X),))
    (only,) = Picture(plan).passes
    assert only.depth == 2
    assert len(only.reductions) == 2
