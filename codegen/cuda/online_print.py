"""What the kernels of dependent folds print alike: positions of axes, code at one position, masks of a tile, the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eqsat.codegen.cuda.emit import literal, output_names, parameter_names, register_type
from eqsat.codegen.cuda.operand import axis_names, buffers, loads_of, scalar_load
from eqsat.codegen.masks import Box, spans
from eqsat.codegen.online import Accumulated, OnlineProblem, outer_reductions
from eqsat.codegen.printer import print_statements, strides
from eqsat.ir import Expr, Output
from eqsat.types import DType

LOWEST = {DType.F32: "-3e38f", DType.F64: "-1.7e308"}  # shifts start here, so that no difference of two of them is NaN


@dataclass(frozen=True, slots=True)
class Code:
    """Prints expressions of one problem at a position: flat C variables for each group of axes are given by name.

    `load` is the function that loads one element: `load_one` stays where it is printed, `at` may be moved.
    """

    problem: OnlineProblem
    places: Mapping[str, str]
    at_hand: Mapping[Expr, str]
    prefix: str = "t"
    load: str = "load_one"

    def lines(self, roots: Sequence[Expr]) -> tuple[list[str], list[str]]:
        """Return the statements that compute `roots`, and the C expression of each."""
        known, pointers = buffers(self.problem.program), parameter_names(self.problem.program)
        leaves: dict[Expr, str] = dict(self.at_hand)
        lines: list[str] = []
        for i, e in enumerate(loads_of(roots, self.at_hand)):
            name = (e.args[0] if e.op == "access" else e).attrs[0]
            leaves[e] = f"{self.prefix}x{i}"
            load = scalar_load(e, known[name], self.load, pointers[name], self.places)
            lines.append(f"const {register_type(e.dtype)} {leaves[e]} = {load};")

        def leaf(e: Expr) -> str | None:
            if e in leaves:
                return leaves[e]
            if e.op == "const":
                return literal(e)
            return f"(({register_type(e.dtype)})({self.places[e.attrs[0]]}))" if e.op == "iota" else None

        statements, values = print_statements(roots, leaf, register_type, self.prefix)
        return [*lines, *statements], values


def places(problem: OnlineProblem, **groups: Sequence[str]) -> dict[str, str]:
    """Return the C expression of each axis: `batch` and the flat variables given, such as row=problem.m."""
    return axis_names({"batch": problem.batch, **groups}, problem.program.extents)


def box(problem: OnlineProblem, rows: tuple[str, str], keys: tuple[str, str]) -> tuple[Box, list[str], list[str]]:
    """Return the box of a tile; the lines that name its ends of rows and uniform values; those that name its ends of keys."""
    ext = problem.program.extents
    names = places(problem)
    span = {a: (names[a], names[a]) for a in problem.batch}
    row_spans, row_lines = spans([(a, ext[a]) for a in problem.m], *rows, "row_span", "int")
    key_spans, key_lines = spans([(a, ext[a]) for a in problem.over], *keys, "key_span", "int")
    used = {e.attrs[0] for e in problem.score.walk() if e.op == "iota"}
    before = row_lines if used & set(problem.m) else []  # grows as masks ask for uniform values
    fixed = frozenset(problem.batch)
    known: dict[str, str] = {}

    def uniform(e: Expr) -> str | None:
        if not e.axes <= fixed or any(x.op == "iota" for x in e.walk()) or outer_reductions([e]):
            return None
        if e.digest not in known:
            lines, (value,) = Code(problem, names, {}, f"uniform{len(known)}_").lines([e])
            known[e.digest] = f"uniform{len(known)}"
            before.extend([*lines, f"const i64 {known[e.digest]} = {value};"])
        return known[e.digest]

    return Box(span | row_spans | key_spans, ext, uniform), before, key_lines if used & set(problem.over) else []


def groups(problem: OnlineProblem) -> list[tuple[tuple[str, ...], list[Accumulated]]]:
    """Return the accumulators with value axes, those over the same axes together."""
    out: dict[tuple[str, ...], list[Accumulated]] = {}
    for a in problem.wide:
        out.setdefault(a.axes, []).append(a)
    return list(out.items())


def outputs_over(problem: OnlineProblem, axes: tuple[str, ...]) -> list[tuple[Output, str]]:
    """Return the outputs over the rows and these value axes (none: the rows alone), each with its C parameter."""
    values = {a for v in problem.wide for a in v.axes}
    pairs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    return [(o, name) for o, name in pairs if o.expr.axes & values == set(axes)]


def offset(output: Output, names: Mapping[str, str]) -> str:
    """Print the element offset of an output at a position."""
    terms = [f"(i64){names[a]} * {s}" for a, s in zip(output.axes, strides(output.shape), strict=True) if a and s]
    return " + ".join(terms) or "0"


def row_values(problem: OnlineProblem, top: str, sums: Mapping[Expr, str]) -> dict[Expr, str]:
    """Return what an epilogue has at hand for a row: the maximum, and the accumulators that are one number."""
    found: dict[Expr, str] = dict(sums)
    for e in outer_reductions(o.expr for o in problem.program.outputs):
        if e.op == "max":
            found[e] = top
    return found


def shifted(problem: OnlineProblem, top: str, *, exact: bool = False) -> str:
    """Print what exponents subtract, given a maximum; `exact`: as the program says, −inf included."""
    if exact:
        return top if problem.floor == -math.inf else f"eq_maximum({top}, {number(problem.floor, problem.dtype)})"
    lowest = float(LOWEST[problem.dtype].removesuffix("f"))
    return f"eq_maximum({top}, {number(max(lowest, problem.floor), problem.dtype)})"


def number(value: float, dtype: DType) -> str:
    """Print a finite number of a type."""
    return f"{float(value)!r}{'f' if dtype is DType.F32 else ''}"


def fold_instructions(kind: str, keys: int, columns: int, *, across: bool = False) -> str:
    """Print the two wgmma instructions of a fold: scores with both operands in shared memory, values with the weights in registers.

    Parameters
    ----------
    kind : str
        Type of the operands, as PTX names it.
    keys, columns : int
        Columns of the scores, and of the values.
    across : bool
        Whether keys lie side by side in memory, instead of one behind the other.
    """

    def text(name: str, n: int, a: str, inputs: str, first: int, tail: str) -> str:
        r = n // 2
        regs = ", ".join(f"%{i}" for i in range(r))
        outs = ", ".join(f'"+f"(d[{i}])' for i in range(r))
        count = r + first
        operand = "{" + ", ".join(f"%{r + i}" for i in range(4)) + "}" if first == 5 else f"%{r}"
        return (
            f"DEV void {name}(float (&d)[{r}], {a}) {{\n"
            f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{count}, 0; wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} "\n'
            f'    "{{{regs}}}, {operand}, %{count - 1}, p, 1, 1, {tail}; }}"\n    : {outs}\n    : {inputs});\n}}\n'
        )

    scores = text("wgmma_scores", keys, "u64 a, u64 b, int accumulate", '"l"(a), "l"(b), "r"(accumulate)', 2, f"0, {int(across)}")
    weights = '"r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(1)'
    return scores + text("wgmma_values", columns, "u32 a0, u32 a1, u32 a2, u32 a3, u64 b", weights, 5, "1")
