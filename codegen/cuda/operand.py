"""How the contract templates see memory: matrix operands as strided buffers, and pointwise code over neighbouring elements."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eqsat.codegen.cuda.emit import literal, output_names, parameter_names, register_type, stored_type
from eqsat.codegen.printer import is_load, print_guard, print_offset, print_statements, strides
from eqsat.codegen.problem import ContractProblem
from eqsat.ir import Expr, Input, Program
from eqsat.types import DType

MATRIX_DTYPES = (DType.BF16, DType.F16)


@dataclass(frozen=True, slots=True)
class Operand:
    """A matrix operand read as it lies in its buffer: strides in elements of its rows (m or n), of k, and of the batch.

    A stride is 0 where the extent is 1. One with no name lies in the kernel's workspace, from the byte `offset` on.
    """

    name: str
    dtype: DType
    row_stride: int
    k_stride: int
    batch_stride: int
    offset: int = 0

    @property
    def k_major(self) -> bool:
        """Whether k is contiguous (else the rows are)."""
        return self.k_stride == 1 or self.row_stride != 1

    def aligned(self, elements: int) -> bool:
        """Whether every step but the contiguous one is a multiple of `elements`."""
        steps = (self.row_stride, self.batch_stride) if self.k_major else (self.k_stride, self.batch_stride)
        return all(s % elements == 0 for s in steps)


def plain_read(e: Expr) -> Expr | None:
    """Return the read under casts that keep every value, or None: bf16 and f16 widened to f32 are still plain."""
    while e.op == "cast" and e.args[0].dtype in MATRIX_DTYPES and e.dtype is DType.F32:
        e = e.args[0]
    return e if e.op == "read" else None


def axis_strides(e: Expr, buffer: Input) -> dict[str, int]:
    """Return the stride in elements of each axis of a plain read."""
    return {a: s for a, s in zip(e.attrs[1], strides(buffer.shape), strict=True) if a}


def joined_stride(axes: Sequence[str], steps: Mapping[str, int], extents: Mapping[str, int]) -> int | None:
    """Return the stride of `axes` (outer to inner) counted as one; None if they do not lie one inside the other."""
    real = [a for a in axes if extents[a] > 1]
    if any(steps[a] != steps[b] * extents[b] for a, b in itertools.pairwise(real)):
        return None
    return steps[real[-1]] if real else 0


def operand(problem: ContractProblem, e: Expr, rows: tuple[str, ...]) -> Operand | str:
    """Return the operand `e` with the row axes `rows`, or why it is not a strided matrix."""
    found = plain_read(e)
    return "an operand is computed, not a plain read" if found is None else matrix(problem, found, rows)


def matrix(problem: ContractProblem, found: Expr, rows: tuple[str, ...]) -> Operand | str:
    """Return the read `found` as a matrix with the row axes `rows`, or why it is none."""
    if found.dtype not in MATRIX_DTYPES:
        return f"an operand is {found.dtype}; the matrix units take bf16 and f16"
    buffer = buffers(problem.program)[found.attrs[0]]
    extents, steps = problem.program.extents, axis_strides(found, buffer)
    if missing := {a for a in (*rows, *problem.k, *problem.batch) if extents[a] > 1} - steps.keys():
        return f"{buffer.name!r} does not vary along {sorted(missing)}"
    groups = [joined_stride(g, steps, extents) for g in (rows, problem.k, problem.batch)]
    if any(s is None for s in groups):
        return f"the axes of {buffer.name!r} do not join into rows, columns and batch"
    row, k, batch = (s or 0 for s in groups)
    if 1 not in (row, k):
        return f"{buffer.name!r} is contiguous neither along its rows nor along the summed axis"
    return Operand(buffer.name, found.dtype, row, k, batch)


def operands(problem: ContractProblem) -> tuple[Operand, tuple[Operand, ...]] | str:
    """Return the shared left operand and the right ones, or why one of them is not a strided matrix."""
    a = operand(problem, problem.contractions[0].a, problem.m)
    if isinstance(a, str):
        return a
    bs: list[Operand] = []
    for c in problem.contractions:
        b = operand(problem, c.b, problem.n)
        if isinstance(b, str):
            return b
        if b.dtype is not a.dtype:
            return f"its operands are {a.dtype} and {b.dtype}"
        bs.append(b)
    return a, tuple(bs)


def accumulates_in_f32(problem: ContractProblem) -> str | None:
    """Refuse contractions that ask for more than f32 accumulation, or for another kind of output than 16- or 32-bit floats."""
    for c in problem.contractions:
        if c.node.dtype.accumulator is not DType.F32:
            return f"its sum is {c.node.dtype}; the matrix units accumulate in f32"
    if problem.output.dtype not in (*MATRIX_DTYPES, DType.F32):
        return f"its output is {problem.output.dtype}; the template stores bf16, f16 and f32"
    return None


def buffers(program: Program) -> dict[str, Input]:
    """Return the inputs by name."""
    return {i.name: i for i in program.inputs}


def axis_names(groups: Mapping[str, Sequence[str]], extents: Mapping[str, int]) -> dict[str, str]:
    """Return the C expression of each axis, given flat position variables: `{"row": ("h", "i")}` makes `row / 64` and `row % 64`."""
    out: dict[str, str] = {}
    for flat, axes in groups.items():
        inner = 1
        for a in reversed(axes):
            outermost = a == axes[0]
            shifted = flat if inner == 1 else f"({flat} / {inner})"
            out[a] = shifted if outermost else f"({shifted} % {extents[a]})"
            inner *= extents[a]
    return out


def loads_of(roots: Sequence[Expr], at_hand: Mapping[Expr, str]) -> list[Expr]:
    """Return the distinct loads under `roots` that lie outside the values already at hand, operands first."""
    out: dict[Expr, None] = {}
    seen: set[Expr] = set()

    def visit(e: Expr) -> None:
        if e in seen or e in at_hand:
            return
        seen.add(e)
        if is_load(e):
            out[e] = None
            return
        for a in e.args:
            visit(a)

    for r in roots:
        visit(r)
    return list(out)


def contiguous(e: Expr, buffer: Input, axis: str, width: int) -> bool:
    """Whether `width` neighbours along `axis`, from an aligned position on, are one aligned vector of the buffer."""
    if e.op != "read" or width == 1:
        return False
    steps, extents = axis_strides(e, buffer), e.type.extents
    return extents[axis] % width == 0 and steps[axis] == 1 and all(s % width == 0 for a, s in steps.items() if a != axis)


def scalar_load(e: Expr, buffer: Input, load: str, pointer: str, names: Mapping[str, str]) -> str:
    """Print the load of one element as a value; where an access leaves its buffer the value is 0."""
    value = f"{load}({pointer} + {print_offset(e, buffer, names)})"
    guard = print_guard(e, buffer, names)
    return f"{guard} ? {value} : ({register_type(e.dtype)})0" if guard else value


def vector_code(
    program: Program,
    results: Sequence[tuple[str, Expr]],
    at_hand: Mapping[Expr, str],
    names: Mapping[str, str],
    moved: Mapping[str, str],
    along: Sequence[str],
    width: int,
    *,
    ordered: bool = False,
) -> list[str]:
    """Print the computation of some expressions at `width` neighbours along a group of axes.

    Parameters
    ----------
    program : Program
        Gives the buffers that are loaded.
    results : sequence of (str, Expr)
        A statement with `{}` for the value, to be run at each neighbour `e`, and the expression.
    at_hand : mapping
        C expressions (of `e`) of nodes that are already computed.
    names, moved : mapping
        C expression of each axis at the first neighbour and at neighbour `e`; the first is at a multiple of `width`.
    along : sequence of str
        The axes that change with `e`, outer to inner.
    width : int
    ordered : bool
        Whether loads that change with `e` are to stay where they are printed (in the order of barriers).

    Returns
    -------
    list of str
        Loads that do not change with `e`, vector loads where the neighbours are contiguous and aligned, then the loop.
    """
    before: list[str] = []
    inside: list[str] = []
    leaves: dict[Expr, str] = dict(at_hand)
    known, pointers = buffers(program), parameter_names(program)
    for i, e in enumerate(loads_of([r for _, r in results], at_hand)):
        name = (e.args[0] if e.op == "access" else e).attrs[0]
        buffer, pointer = known[name], pointers[name]
        leaves[e] = f"x{i}"
        if not set(along) & e.axes:
            before.append(f"const {register_type(e.dtype)} x{i} = {scalar_load(e, buffer, 'at', pointer, names)};")
        elif contiguous(e, buffer, along[-1], width):
            before.append(
                f"const auto x{i} = {'ordered' if ordered else 'free_load'}<{width}>({pointer} + {print_offset(e, buffer, names)});"
            )
            leaves[e] = f"Element<{stored_type(e.dtype)}>::get(x{i}, e)"
        else:
            inside.append(
                f"const {register_type(e.dtype)} x{i} = {scalar_load(e, buffer, 'ordered_one' if ordered else 'at', pointer, moved)};"
            )

    def leaf(e: Expr) -> str | None:
        if e in leaves:
            return leaves[e]
        if e.op == "const":
            return literal(e)
        return f"(({register_type(e.dtype)})({moved[e.attrs[0]]}))" if e.op == "iota" else None

    statements, values = print_statements([r for _, r in results], leaf, register_type)
    ends = [text.format(v) for (text, _), v in zip(results, values, strict=True)]
    return [*before, f"UNROLL for (int e = 0; e < {width}; ++e) {{", *(f"  {s}" for s in [*inside, *statements, *ends]), "}"]


def output_joins(problem: ContractProblem) -> tuple[int, int, int] | None:
    """Return the strides in elements (batch, m, n) of the output if each group of axes joins into one, else None."""
    out, extents = problem.output, problem.program.extents
    steps = {a: s for a, s in zip(out.axes, strides(out.shape), strict=True) if a}
    groups = [joined_stride(g, steps, extents) for g in (problem.batch, problem.m, problem.n)]
    return None if None in groups else (groups[0] or 0, groups[1] or 0, groups[2] or 0)


def output_vector(problem: ContractProblem) -> int:
    """Return how many neighbours along the columns, from a multiple of it on, are one aligned piece of the output: 8, 4, 2, 1 or 0."""
    out, extents = problem.output, problem.program.extents
    steps = {a: s for a, s in zip(out.axes, strides(out.shape), strict=True) if a and extents[a] > 1}
    inner = next((a for a in reversed(problem.n) if a in steps), None)
    if inner is None or steps[inner] != 1:
        return 0
    others = [s for a, s in steps.items() if a != inner]
    return next(v for v in (8, 4, 2, 1) if extents[inner] % v == 0 and all(s % v == 0 for s in others))


def output_offset(problem: ContractProblem, names: Mapping[str, str]) -> str:
    """Print the element offset of an output position."""
    out = problem.output
    terms = [f"(i64){names[a]} * {s}" for a, s in zip(out.axes, strides(out.shape), strict=True) if a]
    return " + ".join(terms) or "0"


def epilogue(problem: ContractProblem, accumulators: Sequence[str], statistics: Sequence[str]) -> list[str]:
    """Print the epilogue: `y[0]`, `y[1]` from the columns `y_col` (even), `y_col + 1` of row `y_row` of batch `batch`.

    Loads are clamped to the edge of the output.

    Parameters
    ----------
    accumulators, statistics : sequence of str
        C expressions of the contractions (at neighbour `e`) and of the row statistics.
    """
    _, m, n, _ = problem.shape
    names = _position(problem, "row", "col")
    moved = _position(problem, "row", "(col + e)" if n % 2 == 0 else f"min(col + e, {n - 1})")
    at_hand = {c.node: a for c, a in zip(problem.contractions, accumulators, strict=True)}
    at_hand |= dict(zip(problem.statistics, statistics, strict=True))
    results = [("y[e] = {};", problem.output.expr)]
    body = vector_code(problem.program, results, at_hand, names, moved, problem.n, 2, ordered=True)
    if not _mentions(body, ("row", "col")):
        return body
    return [f"const int row = min(y_row, {m - 1}), col = min(y_col, {n - 2 if n % 2 == 0 else n - 1});", *body]


def _mentions(lines: Sequence[str], names: Sequence[str]) -> bool:
    return any(re.search(rf"\b{name}\b", line) for line in lines for name in names)


def _position(problem: ContractProblem, row: str, col: str) -> dict[str, str]:
    return axis_names({"batch": problem.batch, row: problem.m, col: problem.n}, problem.program.extents)


def output_position(problem: ContractProblem) -> dict[str, str]:
    """Return the C expression of each axis at row `y_row`, column `y_col` of batch `batch`."""
    return _position(problem, "y_row", "y_col")


def direct_store(problem: ContractProblem) -> list[str]:
    """Print the store of `y` at row `y_row`, columns `y_col` and `y_col + 1`, guarded at the edges of the output."""
    out, (_, m, n, _) = problem.output, problem.shape
    t, to = stored_type(out.dtype), output_names(problem.program)[problem.output_index]
    joins = output_joins(problem)
    at = output_offset(problem, _position(problem, "y_row", "y_col"))
    if joins is not None and n % 2 == 0 and joins[2] == 1 and joins[0] % 2 == 0 and joins[1] % 2 == 0:
        return [f"if (y_row < {m} && y_col < {n}) store_raw<{2 * out.dtype.bytes}, PLAIN>({to} + {at}, Pack<{t}>::from<2>(y));"]
    second = output_offset(problem, _position(problem, "y_row", "(y_col + 1)"))
    return [
        f"if (y_row < {m} && y_col < {n}) store_one({to} + {at}, y[0]);",
        f"if (y_row < {m} && y_col + 1 < {n}) store_one({to} + {second}, y[1]);",
    ]


def epilogue_reads(problem: ContractProblem) -> frozenset[str]:
    """Return the names of the buffers that the epilogue itself reads."""
    at_hand = {c.node: "" for c in problem.contractions} | dict.fromkeys(problem.statistics, "")
    found = loads_of([problem.output.expr], at_hand)
    return frozenset((e.args[0] if e.op == "access" else e).attrs[0] for e in found)
