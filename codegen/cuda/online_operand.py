"""How the matrix units see the operands of a dependent fold: as tensor maps over (inner, rows, everything of the batch)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from eqsat.access import Index
from eqsat.codegen.cuda.operand import MATRIX_DTYPES, buffers, joined_stride
from eqsat.codegen.kernel import TensorMapArg
from eqsat.codegen.online import OnlineProblem, bare
from eqsat.codegen.printer import is_load, print_index, read_indices, strides
from eqsat.ir import Expr, Output
from eqsat.types import DType


@dataclass(frozen=True, slots=True)
class Sheet:
    """A buffer read as matrices: `inner` contiguous elements, `rows` of them `row_stride` apart, `sheets` of these.

    The sheets lie `step` elements apart and may overlap; `number` is the C expression of the sheet of the current batch, which
    holds any index arithmetic on the batch axes (heads that share their keys read sheet h // group).
    """

    name: str
    dtype: DType
    inner: int
    rows: int
    row_stride: int
    sheets: int
    step: int
    number: str

    def map(self, box_rows: int, panel: int = 64) -> TensorMapArg:
        """Return the tensor map whose boxes are panels of 64 (or 32, 16) elements by `box_rows` rows."""
        row, step = (2 * n if n else -(-2 * self.inner // 16) * 16 for n in (self.row_stride, self.step))
        return TensorMapArg(
            self.name, self.dtype, (self.inner, self.rows, self.sheets), (row, step), (panel, box_rows, 1), 2 * panel
        )


def sheet(
    problem: OnlineProblem, e: Expr, inner: tuple[str, ...], rows: tuple[str, ...], names: Mapping[str, str]
) -> Sheet | str:
    """Return operand `e` as matrices of `rows` by `inner`, or why it is none; `names` prints the batch axes."""
    load = bare(e)
    if not is_load(load):
        return "an operand is computed, not a plain read"
    if load.dtype not in MATRIX_DTYPES:
        return f"an operand is {load.dtype}; the matrix units take bf16 and f16"
    name, indices = read_indices(load)
    buffer, ext = buffers(problem.program)[name], problem.program.extents
    known = ext | dict(load.type.extents)
    batch = frozenset(problem.batch)
    steps: dict[str, int] = {}
    others: list[tuple[Index, int, int]] = []
    for index, extent, stride in zip(indices, buffer.shape, strides(buffer.shape), strict=True):
        i = index.simplify(known)
        low, high = i.bounds(known)
        if low < 0 or high >= extent:
            return f"{name!r} is read beyond its edges"
        if i.op == "axis" and i.name in (*inner, *rows):
            steps[i.name] = stride
        elif i.axes <= batch:
            others += [(i, extent, stride)] if extent > 1 else []
        else:
            return f"{name!r} is read with {i} along a matrix"
    if missing := {a for a in (*inner, *rows) if ext[a] > 1} - steps.keys():
        return f"{name!r} does not vary along {sorted(missing)}"
    steps |= {a: 0 for a in (*inner, *rows) if a not in steps}
    along, down = joined_stride(inner, steps, ext), joined_stride(rows, steps, ext)
    if along not in (0, 1) or down is None:
        return f"{name!r} is not contiguous along {inner}, or the axes {rows} do not join into rows"
    step = math.gcd(*(stride for _, _, stride in others)) if others else 0
    if down % 8 or step % 8:
        return f"TMA needs the strides of {name!r} to be multiples of 16 bytes"
    terms = [f"{print_index(i, names)} * {stride // step}" for i, _, stride in others]
    sheets = 1 + sum((extent - 1) * (stride // step) for _, extent, stride in others)
    size = math.prod(ext[a] for a in inner), math.prod(ext[a] for a in rows)
    return Sheet(name, load.dtype, *size, down, sheets, step, " + ".join(terms) or "0")


def output_sheet(problem: OnlineProblem, o: Output, inner: tuple[str, ...], names: Mapping[str, str]) -> Sheet | None:
    """Return an output over rows and values as matrices of the rows by `inner`; None if TMA cannot store it so."""
    ext = problem.program.extents
    steps = dict.fromkeys((*inner, *problem.m), 0) | {a: n for a, n in zip(o.axes, strides(o.shape), strict=True) if a}
    along, down = joined_stride(inner, steps, ext), joined_stride(problem.m, steps, ext)
    batch = [a for a in problem.batch if ext[a] > 1]
    step = math.gcd(*(steps[a] for a in batch)) if batch else 0
    if o.dtype not in MATRIX_DTYPES or along not in (0, 1) or down is None or down % 8 or step % 8:
        return None
    number = " + ".join(f"{names[a]} * {steps[a] // step}" for a in batch) or "0"
    sheets = 1 + sum((ext[a] - 1) * (steps[a] // step) for a in batch)
    return Sheet(o.name, o.dtype, problem.extent(inner), problem.extent(problem.m), down, sheets, step, number)
