"""Contractions of few rows with big matrices: what the families that stream the matrices ask of a problem, and how they make x."""

from __future__ import annotations

from collections.abc import Mapping

from eqsat.codegen.cuda.operand import Operand, accumulates_in_f32, axis_names, operand, plain_read, vector_code
from eqsat.codegen.problem import Contract, ContractProblem, nest
from eqsat.ir import Expr
from eqsat.types import DType

MAX_ROWS = 64


def big_matrices(problem: ContractProblem) -> tuple[Operand, ...] | str:
    """Return the right operand of each contraction, or why one of them is not a strided matrix."""
    found: list[Operand] = []
    for c in problem.contractions:
        b = operand(problem, c.b, problem.n)
        if isinstance(b, str):
            return b
        found.append(b)
    return tuple(found)


def few_rows_refusal(problem: Contract) -> str | None:
    """Refuse what no schedule of few rows can serve."""
    firsts: list[Operand] = []
    for p in problem.parts:
        first = _first_matrix(p)
        if isinstance(first, str):
            return first
        firsts.append(first)
    if len({(o.dtype, o.k_major) for o in firsts}) > 1 or len({len(p.contractions) for p in problem.parts}) > 1:
        return "its outputs take big matrices of different dtypes or orders, or different numbers of them"
    a = problem.parts[0].contractions[0].a
    if (plain_read(a) or a).dtype is not firsts[0].dtype:
        return f"its operands are {a.dtype} and {firsts[0].dtype}"
    if any(s.dtype.accumulator is not DType.F32 for s in problem.statistics):
        return "a row statistic is not computed in f32"
    return None


def _first_matrix(problem: ContractProblem) -> Operand | str:
    """Return the first big matrix of a part, or why no schedule can serve the part."""
    batch, m, n, k = problem.shape
    if not 1 <= m <= MAX_ROWS or min(n, k, batch) < 1 or batch > 65535:
        return f"it serves 1 to {MAX_ROWS} rows (and up to 65535 batches); got {m}"
    if refusal := accumulates_in_f32(problem):
        return refusal
    found = big_matrices(problem)
    if isinstance(found, str):
        return found
    first = found[0]
    if any((b.dtype, b.k_major, b.k_stride, b.row_stride, b.batch_stride) != (
        first.dtype, first.k_major, first.k_stride, first.row_stride, first.batch_stride) for b in found):  # fmt: skip
        return "its big matrices differ in dtype or layout"
    if not first.aligned(8) or (k if first.k_major else n) % 8:
        return "the big matrix is loaded 16 bytes at a time, so its rows must be multiples of 8 elements"
    return first


def combine(problem: ContractProblem, index: int) -> str:
    """Return the C++ name of what combines the parts of a row statistic."""
    return problem.statistics[index].op.capitalize()


def stage_left(problem: ContractProblem, width: int, at_hand: Mapping[Expr, str] | None = None) -> list[str]:
    """Print how elements `k` … `k + width - 1` of row `m` of the left operand are made, and what the statistics take of them.

    `at_hand` are C expressions (of the neighbour `e`) of loads that are already in registers.
    """
    groups = {"batch": problem.batch, "m": problem.m}
    extents = problem.program.extents
    names = axis_names({**groups, "k": problem.k}, extents)
    moved = axis_names({**groups, "(k + e)": problem.k}, extents)
    results = [("value[e] = {};", problem.contractions[0].a)]
    results += [(f"part{j} = {combine(problem, j)}::of(part{j}, {{}});", nest(e)[1]) for j, e in enumerate(problem.statistics)]
    return vector_code(problem.program, results, at_hand or {}, names, moved, problem.k, width)
