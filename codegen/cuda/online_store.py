"""What leaves a dependent fold on the matrix units: outputs over rows alone, and over rows and values by TMA or from registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eqsat.codegen.cuda.emit import register_type, stored_type
from eqsat.codegen.cuda.online_layout import Layout, Shared, output_sheets, pivot_matters
from eqsat.codegen.cuda.online_operand import Sheet
from eqsat.codegen.cuda.online_print import Code, offset, outputs_over, places, row_values
from eqsat.codegen.cuda.operand import MATRIX_DTYPES
from eqsat.codegen.online import OnlineProblem
from eqsat.codegen.printer import strides
from eqsat.ir import Expr, Output, apply, rebuild
from eqsat.ops import Kind
from eqsat.types import DType


def row_parts(score: Expr, over: frozenset[str], dot: Expr) -> list[Expr]:
    """Return the largest parts of a score that load or compute something and do not vary along the keys."""
    out: dict[Expr, None] = {}
    stack, seen = [score], set()
    while stack:
        e = stack.pop()
        if e in seen or e == dot or e.op in ("const", "iota"):
            continue
        seen.add(e)
        if e.axes & over:
            stack.extend(e.args if e.op not in ("read", "access") else ())
        else:
            out[e] = None
    return list(out)


def _at_row(problem: OnlineProblem) -> dict[Expr, str]:
    total = "(total + nothing)" if pivot_matters(problem) else "total"
    return row_values(problem, "most", {a.node: total for a in problem.accumulators if not a.axes})


def store_rows(problem: OnlineProblem) -> list[str]:
    """Print the outputs over the rows alone: one lane of four stores them."""
    alone = outputs_over(problem, ())
    if not alone:
        return []
    names = places(problem, row=problem.m)
    lines, values = Code(problem, names, _at_row(problem), "t", "at").lines([o.expr for o, _ in alone])
    stores = [f"store_one({name} + {offset(o, names)}, {v});" for (o, name), v in zip(alone, values, strict=True)]
    return ["if (inside && lane % 4 == 0) {", *(f"  {line}" for line in (*lines, *stores)), "}"]


def store_values(problem: OnlineProblem, layout: Layout, shared: Shared) -> dict[str, list[str]]:
    """Print the outputs over rows and values: what varies with the row alone, then each output by TMA or in pairs of neighbours."""
    axes = frozenset(layout.wide.axes)
    over = [(o, name, _by_reciprocals(o, axes)) for o, name in outputs_over(problem, layout.wide.axes)]
    parts = list(dict.fromkeys(p for _, _, e in over for p in row_parts(e, axes, layout.wide.node)))
    lines, values = Code(problem, places(problem, row=problem.m), _at_row(problem), "u", "at").lines(parts)
    at_hand = {e: f"part{n}[half]" for n, e in enumerate(parts)} | {layout.wide.node: "o[i + e]"}
    printer = _OutputPrinter(problem, layout, at_hand)
    sheets = stored_sheets(problem, layout, shared)
    direct = [x for x in over if x[1] not in sheets]
    return {
        "PARTS": [f"{register_type(e.dtype)} part{n}[2];" for n, e in enumerate(parts)],
        "PART_VALUES": [*lines, *(f"part{n}[half] = {v};" for n, v in enumerate(values))],
        "STORE_VALUES": [
            *(line for o, name, e in over if name in sheets for line in printer.staged(o, name, e, sheets[name])),
            *(printer.direct(direct) if direct else []),
        ],
    }


def _by_reciprocals(o: Output, axes: frozenset[str]) -> Expr:
    """Return an output's value with products by reciprocals of row values for divisions, where it is stored in 16 bits."""
    if o.dtype not in MATRIX_DTYPES:
        return o.expr
    memo: dict[Expr, Expr] = {}
    for e in o.expr.walk():
        if e.row.kind is Kind.REDUCE:
            memo[e] = e
            continue
        args = tuple(memo[a] for a in e.args)
        made = rebuild(e, args) if args else e
        if e.op == "div" and e.args[1].op != "const" and not e.args[1].axes & axes and all(a.dtype.is_float for a in args):
            product = apply("mul", args[0], apply("recip", args[1]))
            made = product if product.dtype is e.dtype else made
        memo[e] = made
    return memo[o.expr]


@dataclass(frozen=True, slots=True)
class _OutputPrinter:
    """Prints outputs over rows and values; `at_hand`: the C of the accumulator and of row values, of element i + e of half a tile."""

    problem: OnlineProblem
    layout: Layout
    at_hand: Mapping[Expr, str]

    def _pair(self, wanted: Sequence[tuple[str, Expr]]) -> list[str]:
        """Print the loop that makes two neighbours of each output in an array."""
        n = self.layout.values.inner
        names = places(self.problem, row=self.problem.m, col=self.layout.wide.axes)
        lines, values = Code(self.problem, names, self.at_hand, "t", "at").lines([e for _, e in wanted])
        return [
            "UNROLL for (int e = 0; e < 2; ++e) {",
            f"  const int col = {'column + e' if n % 8 == 0 else f'min(column + e, {n - 1})'};",
            *(f"  {line}" for line in lines),
            *(f"  {name}[e] = (float)({v});" for (name, _), v in zip(wanted, values, strict=True)),
            "}",
        ]

    def staged(self, o: Output, name: str, wanted: Expr, to: Sheet) -> list[str]:
        """Print an output that leaves through shared memory and TMA; rows beyond the last are computed, and not stored."""
        where = f"&map_{name}, staging, pass, first_row + wg * 64, 0, {to.number}"
        return [
            f"if (first_row + wg * 64 >= 0) store_tile<{stored_type(o.dtype)}, NV, BUFFERS, 0>({where}, [&](int i, int half, int column, float (&y)[2]) {{",
            "  const int row = min(row0 + 8 * half, M - 1);",
            *(f"  {line}" for line in self._pair([("y", wanted)])),
            "});",
        ]

    def direct(self, over: Sequence[tuple[Output, str, Expr]]) -> list[str]:
        """Print outputs that are stored from registers: two neighbours of a row at once where they are one aligned piece."""
        problem, axes, n = self.problem, self.layout.wide.axes, self.layout.values.inner
        inside = self._pair([(f"y{i}", e) for i, (_, _, e) in enumerate(over)])
        for i, (o, name, _) in enumerate(over):
            first, second = (
                offset(o, {**places(problem, row=problem.m, col=axes), **_moved(problem, axes, x)})
                for x in ("column", "(column + 1)")
            )
            if _pairs(problem, o, axes):
                both_of = f"Pack<{stored_type(o.dtype)}>::from<2>(y{i})"
                inside.append(f"if (column < {n}) store_raw<{2 * o.dtype.bytes}, PLAIN>({name} + {first}, {both_of});")
            else:
                inside += [
                    f"if (column < {n}) store_one({name} + {first}, y{i}[0]);",
                    f"if (column + 1 < {n}) store_one({name} + {second}, y{i}[1]);",
                ]
        return [
            "UNROLL for (int half = 0; half < 2; ++half) {",
            "  const int row = row0 + 8 * half;",
            "  if (row >= 0 && row < M)",
            "    UNROLL for (int j = 0; j < NV / 8; ++j) {",
            "      const int i = 4 * j + 2 * half, column = 8 * j + 2 * (lane % 4);",
            *(f"      float y{k}[2];" for k in range(len(over))),
            *(f"      {line}" for line in inside),
            "    }",
            "}",
        ]


def stored_sheets(problem: OnlineProblem, layout: Layout, shared: Shared) -> dict[str, Sheet]:
    """Return, by C parameter, the outputs that leave by TMA: those that it can store, where there is room to stage them."""
    return output_sheets(problem, layout) if shared.staging else {}


def _moved(problem: OnlineProblem, axes: tuple[str, ...], column: str) -> Mapping[str, str]:
    found = places(problem, **{column: axes})
    return {a: found[a] for a in axes}


def _pairs(problem: OnlineProblem, o: Output, axes: tuple[str, ...]) -> bool:
    """Whether two neighbouring values, the first at an even place, are one aligned piece of the output."""
    ext = problem.program.extents
    steps = {a: n for a, n in zip(o.axes, strides(o.shape), strict=True) if a and ext[a] > 1}
    real = [a for a in axes if ext[a] > 1]
    if not real or ext[real[-1]] % 2 or steps[real[-1]] != 1 or o.dtype not in (DType.F32, DType.BF16, DType.F16):
        return False
    return all(n % 2 == 0 for a, n in steps.items() if a != real[-1])
