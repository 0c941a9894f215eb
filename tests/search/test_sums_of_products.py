"""Sums of matrix products with different operands: found from the rules and the regions alone, and one kernel where it pays."""

from __future__ import annotations

import eqsat
from eqsat.array import Array
from eqsat.codegen.problem import SummedContractProblem
from eqsat.ir import Program
from eqsat.trace import tensor, to_program


def _program(make: object, *inputs: Array) -> Program:
    return to_program(make(*inputs), inputs=list(inputs))  # type: ignore[operator]


def _kernels(program: Program) -> list[object]:
    found = eqsat.optimize(program, target="sm_90", measure=False, store=":memory:", progress=False)
    return [s.kernel.problem for s in found.executable.steps]


def test_products_over_axes_of_different_lengths_add_to_one_accumulator() -> None:
    x, w = tensor("x", (2048, 2048), "bf16"), tensor("w", (2048, 2048), "bf16")
    t, b = tensor("t", (2048, 16), "bf16"), tensor("b", (16, 2048), "bf16")
    (only,) = _kernels(_program(lambda x, w, t, b: x @ w + t @ b, x, w, t, b))
    assert isinstance(only, SummedContractProblem)
    assert [term.shape[3] for term in only.terms] == [2048, 16]


def test_products_of_different_left_operands_are_added_in_one_kernel() -> None:
    x, w = tensor("x", (1024, 1024), "bf16"), tensor("w", (1024, 1024), "bf16")
    h, u = tensor("h", (1024, 1024), "bf16"), tensor("u", (1024, 1024), "bf16")
    (only,) = _kernels(_program(lambda x, w, h, u: x @ w + h @ u, x, w, h, u))
    assert isinstance(only, SummedContractProblem)
    assert only.flops == 2 * 2 * 1024**3
