"""The discovery suite: for each program, the plan that is chosen by cost is the one an expert writes, and it is right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eqsat.codegen.plan import Kernel, Plan
from eqsat.codegen.problem import PointProblem
from eqsat.ir import Expr, Input, Output, Program, read, substitute
from eqsat.ops import Kind
from eqsat.search.discovery import TOLERANCE, Choosers, Outcome, discover
from eqsat.search.discovery_numbers import departure
from eqsat.search.discovery_plan import Picture
from eqsat.search.discovery_rows import ROWS, Row

NOT_YET: dict[str, str] = {
    "lora_fused": "no kernel adds up two contractions over different axes",
}
"""Rows that are not found, and what is missing for each."""
AS_WRITTEN = {"convolution", "convolution_1x1", "trace_of_product"}  # programs whose tracing already gives the expert's form


@pytest.fixture(scope="module")
def choosers(own_cache: object) -> Iterator[Choosers]:
    with Choosers() as open_choosers:
        yield open_choosers


def _rows() -> list[object]:
    return [
        pytest.param(r, id=r.name, marks=[pytest.mark.xfail(reason=NOT_YET[r.name], strict=True)] if r.name in NOT_YET else [])
        for r in ROWS
    ]


@pytest.mark.parametrize("row", _rows())
def test_the_chosen_plan_is_the_experts_and_computes_the_program(row: Row, choosers: Choosers) -> None:
    outcome: Outcome = discover(row, choosers.of(row))
    assert not outcome.missing, outcome.found
    assert outcome.error <= TOLERANCE
    assert outcome.derivation == "derived"
    assert outcome.stop == "saturated"


def test_rows_that_are_not_found_are_rows() -> None:
    assert NOT_YET.keys() <= {r.name for r in ROWS}


def as_written(program: Program) -> Plan:
    """Return the program with every reduction, and every value that one reduces, in a buffer of its own."""
    kernels: list[Kernel] = []
    made: dict[Expr, Expr] = {}
    inputs = {i.name: i for i in program.inputs}

    def kernel(out: Output) -> None:
        expr = out.expr if out.expr not in made or out.expr.op == "read" else made[out.expr]
        names = dict.fromkeys(str(e.attrs[0]) for e in expr.walk() if e.op == "read")
        part = Program(tuple(inputs[n] for n in names), (Output(out.name, expr, out.axes, out.dtype),))
        kernels.append(Kernel(PointProblem(part, out.axes)))
        inputs[out.name] = Input(out.name, out.shape, out.dtype)

    order = {e.digest: e for o in program.outputs for e in o.expr.walk()}
    inner = {e.args[0].digest for e in order.values() if e.row.kind is Kind.REDUCE and e.args[0].op == e.op}
    roots = {o.expr.digest for o in program.outputs}
    for e in order.values():
        if e.row.kind is Kind.REDUCE and e.digest not in inner and e.digest not in roots:
            axes = tuple(a for a, _ in e.type.axes)
            kernel(Output(f"t{len(kernels)}", substitute(e, made), axes, e.dtype))
            made[e] = read(inputs[f"t{len(kernels) - 1}"].name, axes, tuple(n for _, n in e.type.axes), e.dtype)
    for o in program.outputs:
        kernel(Output(o.name, substitute(o.expr, made), o.axes, o.dtype))
    return Plan(program, tuple(kernels))


@pytest.mark.parametrize("row", [r for r in ROWS if r.name not in AS_WRITTEN], ids=lambda r: r.name)
def test_a_check_refuses_the_program_as_it_is_written(row: Row) -> None:
    assert row.check(Picture(as_written(row.program())))


@pytest.mark.parametrize("name", ["chain_3", "rmsnorm_linear", "attention_causal"])
def test_a_plan_that_does_what_is_written_does_not_depart_from_it(name: str) -> None:
    row = next(r for r in ROWS if r.name == name)
    assert departure(as_written(row.program())) <= TOLERANCE


def test_a_plan_that_computes_something_else_departs() -> None:
    (row,) = (r for r in ROWS if r.name == "chain_3")
    plan = as_written(row.program())
    last = plan.kernels[-1].program
    (out,) = last.outputs
    scaled = Program(last.inputs, (Output(out.name, _twice(out.expr), out.axes, out.dtype),))
    wrong = Plan(plan.program, (*plan.kernels[:-1], Kernel(PointProblem(scaled, out.axes))))
    assert departure(wrong) > 0.1


def _twice(e: Expr) -> Expr:
    from eqsat.ir import apply

    return apply("add", e, e)
