"""How the kernel of a split fold sees its operands: keys and values as matrices, and which batches are rows that share keys."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.access import Index
from eqsat.codegen.cuda.online_operand import Sheet, sheet
from eqsat.codegen.cuda.operand import axis_names, loads_of
from eqsat.codegen.online import Accumulated, OnlineProblem
from eqsat.codegen.printer import read_indices
from eqsat.codegen.problem import Contraction
from eqsat.ir import Expr
from eqsat.types import DType


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of neighbouring batches that read the same keys and values: `size` positions of batch axis `axis` ("": none)."""

    axis: str = ""
    size: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Keys and values as matrices, what the rows are contracted with, the accumulator with values, the rows that share keys.

    `across`: the keys lie side by side in memory, for each position that is contracted.
    """

    rows: Contraction
    across: bool
    keys: Sheet
    values: Sheet
    wide: Accumulated
    packed: Packed


def layout_of(problem: OnlineProblem) -> Layout | str:
    """Return the operands as the kernel sees them, or why it cannot take them."""
    c = problem.contraction
    if c is None or len(problem.wide) != 1:
        return "it serves scores that are contracted and one accumulator with value axes"
    wide = problem.wide[0]
    if any(a.value.op != "const" or a.value.attrs[0] != 1 for a in problem.accumulators if not a.axes):
        return "beside it, it sums the weights alone"
    if problem.dtype is not DType.F32 or c.node.dtype.accumulator is not DType.F32:
        return "the matrix units accumulate in f32"
    if problem.floor > -1e30:
        return f"a maximum of at least {problem.floor} is not carried"
    packed = _packing(problem, [c.b, wide.value])
    names = packed_places(problem, packed)
    along, across = (sheet(problem, c.b, *axes, names) for axes in ((problem.d, problem.over), (problem.over, problem.d)))
    keys = across if isinstance(along, str) else along
    values = sheet(problem, wide.value, wide.axes, problem.over, names)
    if isinstance(keys, str) or isinstance(values, str):
        return str(along if isinstance(keys, str) else values)
    if not keys.dtype is values.dtype is wide.weight.dtype is c.a.dtype:
        return f"rows, keys, weights and values are {c.a.dtype}, {keys.dtype}, {wide.weight.dtype} and {values.dtype}"
    d = problem.shape[3]
    if keys.inner % 8 or values.inner % 8 or max(d, values.inner) > 256:
        return f"{d} contracted and {values.inner} value positions; it takes up to 256, and 8 neighbours at a time"
    return Layout(c, keys is across, keys, values, wide, packed)


def _packing(problem: OnlineProblem, operands: list[Expr]) -> Packed:
    """Return the batch axis on which keys and values depend only through its quotient by the same number (grouped heads)."""
    ext = problem.program.extents
    seen: dict[str, set[int]] = {}
    for e in loads_of(operands, {}):
        for index in read_indices(e)[1]:
            for axis, divisor in _divisors(index.simplify(ext)):
                seen.setdefault(axis, set()).add(divisor)
    shared = [
        Packed(a, min(found)) for a, found in seen.items() if a in problem.batch and len(found) == 1 and ext[a] % min(found) == 0
    ]
    return max(shared, key=lambda p: p.size, default=Packed())


def _divisors(index: Index) -> list[tuple[str, int]]:
    """Return each axis in an index expression with the number by which it is divided first of all (1: it is not)."""
    if index.op == "axis":
        return [(index.name, 1)]
    if index.op == "div" and index.args[0].op == "axis":
        return [(index.args[0].name, index.value)]
    return [found for a in index.args for found in _divisors(a)]


def packed_places(problem: OnlineProblem, packed: Packed, row: str = "0", **groups: tuple[str, ...]) -> dict[str, str]:
    """Return the C expression of each axis at flat `row` of flat `batch`; rows of one position of m lie side by side."""
    ext = dict(problem.program.extents)
    if packed.axis:
        ext[packed.axis] //= packed.size
    at = f"({row} / {packed.size})" if packed.size > 1 else row
    names = axis_names({"batch": problem.batch, at: problem.m, **groups}, ext)
    if packed.axis:
        names[packed.axis] = f"({names[packed.axis]} * {packed.size} + {row} % {packed.size})"
    return names


def rows_of(problem: OnlineProblem, packed: Packed) -> tuple[int, int]:
    """Return the batches, and the rows of each, once neighbouring batches that share their keys are rows."""
    batch, m, *_ = problem.shape
    return batch // packed.size, m * packed.size


def steps_of(layout: Layout) -> int:
    """Return the products of 16 contracted positions that a score takes."""
    return -(-layout.keys.rows // 16) if layout.across else -(-layout.keys.inner // 32) * 2
