"""The column template: rows lie side by side in memory, so neighbouring threads take neighbouring rows and step along the reduced axes."""

from __future__ import annotations

from collections.abc import Sequence

from eqsat.codegen.cuda.emit import assemble, parameters, register_type, stored_type
from eqsat.codegen.cuda.loads import AxisNames, Load, axis_names, index_type, load_offset, split_index
from eqsat.codegen.cuda.reduce_print import ElementPrinter, accumulate, choose, compute, declare, indent, made
from eqsat.codegen.cuda.reduce_rows import PARTS
from eqsat.codegen.cuda.reduce_schedule import ColumnTile
from eqsat.codegen.cuda.reduce_shape import ReduceShape, Reduction, walk_elements
from eqsat.codegen.kernel import KernelSource
from eqsat.ir import Expr


class ColumnPrinter:
    """Prints the passes of `lanes` neighbouring rows; lane `j` is one row, statistics are arrays over the lanes.

    A thread has `count` elements along the reduced axes in flight, one of every `groups`.
    """

    def __init__(self, shape: ReduceShape, width: int, columns: int, groups: int, count: int, hint: str = "PLAIN") -> None:
        self.shape, self.columns, self.groups, self.count = shape, columns, groups, count
        self.inner = shape.rows[-1]
        self.lanes = shape.lanes(width, self.inner)
        self.loops = (*shape.rows, *shape.reduced)
        self.elements = ElementPrinter(shape, self.inner, self.lanes, self.loops, hint)
        self.names = AxisNames(axis_names(self.loops))
        self.length = shape.problem.length
        self.index = index_type(self.length + groups * count)
        self.row_loads = choose(shape.loads, lambda x: not shape.varies(x.expr))
        self.statistics: dict[str, str] = {}

    def prologue(self) -> list[str]:
        """Print the loads that do not vary along the reduced axes: once for each thread."""
        if not self.row_loads:
            return []
        load = [*self.row_position(), *self.elements.fetch(self.row_loads, "rows.", hinted=False)]
        return [f"struct Rows {{ {self.elements.members(self.row_loads)} }} rows;", "if (inside) {", *indent(load), "}"]

    def row_position(self) -> list[str]:
        """Print the loop variables of the thread's first row."""
        return split_index("row", self.shape.rows, self.shape.problem.row_count)

    def _position(self) -> list[str]:
        return [*self.row_position(), *split_index("k", self.shape.reduced, self.length)]

    def accumulate(self, number: int, reductions: tuple[Reduction, ...]) -> list[str]:
        """Print pass `number` up to the partial results `a<number>[lane]` of each thread group."""
        return [*declare(reductions, self.lanes), *self._pass(number, [r.body for r in reductions], reductions)]

    def combine(self, r: Reduction) -> str:
        """Print how the thread groups of a block combine."""
        return f"combine_groups<{r.operator}, {self.columns}, {self.groups}, {self.lanes}>(a{r.number}, across, group);"

    def value(self, r: Reduction) -> list[str]:
        """Print the values of a reduction, one for each lane."""
        ctype = register_type(r.node.dtype)
        self.statistics[r.node.digest] = f"s{r.number}[j]"
        return [
            f"{ctype} s{r.number}[{self.lanes}];",
            f"UNROLL for (int j = 0; j < {self.lanes}; ++j) s{r.number}[j] = {r.operator}::value(a{r.number}[j]);",
        ]

    def output_elements(self, number: int) -> list[str]:
        """Print the pass that writes every element of the outputs that keep the reduced axes."""
        return self._pass(number, [x.expr for x in self.shape.element_stores], ())

    def output_rows(self) -> list[str]:
        """Print the stores of outputs that have rows only, by the first thread group."""
        if not self.shape.row_stores:
            return []
        scope = self.elements.scope(9, self.elements.fields(self.row_loads, "rows."), None, self.statistics)
        vectors = self.vectors(self.shape.row_stores, compute(self.shape.row_stores, scope))
        return ["if (inside && group == 0) {", *indent([*self.row_position(), *vectors]), "}"]

    def vectors(self, stores: Sequence[Load], lane: list[str]) -> list[str]:
        """Print the lanes of a vector of each output, and its store."""
        lines = [f"{register_type(x.dtype)} {name}[{self.lanes}];" for name, x in made(stores)]
        lines += [f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{", *indent(lane), "}"]
        return lines + [line for name, x in made(stores) for line in self._store(name, x)]

    def _store(self, name: str, out: Load) -> list[str]:
        at = load_offset(out, self.loops, self.names)
        if self.shape.mode(out, self.inner, self.lanes) == "vector":
            pack = f"Pack<{stored_type(out.dtype)}>::template from<{self.lanes}>({name})"
            hint = self.elements.hint if self.lanes * out.dtype.bytes >= 16 else "PLAIN"
            return [f"store_raw<{self.lanes * out.dtype.bytes}, {hint}>({out.parameter} + {at}, {pack});"]
        kind = index_type(self.inner.extent)
        return [
            f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{",
            f"  const {kind} first_r = {self.inner.var};",
            f"  {{ const {kind} {self.inner.var} = first_r + j; store_one({out.parameter} + {at}, {name}[j]); }}",
            "}",
        ]

    def _pass(self, number: int, roots: list[Expr], reductions: tuple[Reduction, ...]) -> list[str]:
        """Print one pass along the reduced axes, `count` elements of each thread at a time."""
        groups, count = self.groups, self.count
        wanted = {e.digest for e in walk_elements(roots, (), self.shape)}
        loads: list[tuple[int, Load]] = choose(self.shape.loads, lambda x: x.expr.digest in wanted)
        at_hand = self.elements.fields(loads, "g[i].") | self.elements.fields(self.row_loads, "rows.")
        scope = self.elements.scope(number, at_hand, None, self.statistics)
        if reductions:
            lane = accumulate(reductions, scope, self.elements.position(), "j")
            work = [f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{", *indent(lane), "}"]
        else:
            work = self.vectors(self.shape.element_stores, compute(self.shape.element_stores, scope))
        step = [f"const {self.index} k = first + i * {groups};", "if (k >= end) continue;", *self._position()]
        return [
            "if (inside) {",
            f"  struct Fetched {{ {self.elements.members(loads)} }};",
            f"  for ({self.index} first = begin + group; first < end; first += {groups * count}) {{",
            f"    Fetched g[{count}];",
            f"    UNROLL for (int i = 0; i < {count}; ++i) {{",
            *indent([*step, *self.elements.fetch(loads, "g[i].", hinted=False)], 6),
            "    }",
            f"    UNROLL for (int i = 0; i < {count}; ++i) {{",
            *indent([*step, *work], 6),
            "    }",
            "  }",
            "}",
        ]


def emit_columns(shape: ReduceShape, s: ColumnTile) -> KernelSource:
    """Print the column kernel."""
    problem = shape.problem
    p = ColumnPrinter(shape, s.width, s.columns, s.groups, s.count)
    vectors = problem.row_count // p.lanes
    blocks = max(-(-vectors // s.columns), 1)
    segment = -(-problem.length // s.split)
    kind = index_type(problem.row_count + s.columns * p.lanes)
    lines = [
        f"const int across = threadIdx.x % {s.columns}, group = threadIdx.x / {s.columns};",
        f"const {kind} block = blockIdx.x / {s.split};",
        f"const {kind} row = (block * {s.columns} + across) * {p.lanes};",
        f"const bool inside = row < {problem.row_count};",
        f"const {p.index} begin = ({p.index})(blockIdx.x % {s.split}) * {segment};"
        if s.split > 1
        else f"const {p.index} begin = 0;",
        f"const {p.index} end = begin + {segment} < {problem.length} ? begin + {segment} : {problem.length};",
        *p.prologue(),
    ]
    workspace = 0
    if s.split == 1:
        for number, group in enumerate(shape.passes):
            lines += p.accumulate(number, group)
            for r in group:
                lines += [p.combine(r), *p.value(r)]
    else:
        workspace = (4 * blocks + 15) // 16 * 16
        lines += p.accumulate(0, shape.passes[0])
        finish: list[str] = []
        for r in shape.passes[0]:
            partial, workspace = _partial(p, s.split, r, workspace)
            lines += [p.combine(r), *partial[0]]
            finish += [*partial[1], p.combine(r), *p.value(r)]
        lines += [f"if (!last_block((u32*)workspace + block, {s.split})) return;", *finish]
    lines += p.output_rows()
    lines += p.output_elements(len(shape.passes)) if problem.keeps else []
    text = [
        f'extern "C" __global__ void __launch_bounds__({s.columns * s.groups}) '
        f"eqsat_kernel({parameters(problem.program, 'u8' if workspace else '')}) {{",
        *indent(lines),
        "}",
    ]
    return assemble(
        problem.program,
        s,
        "reduce",
        "\n".join(text) + "\n",
        parts=PARTS,
        grid=(blocks * s.split, 1, 1),
        block=s.columns * s.groups,
        workspace_bytes=workspace,
    )


def _partial(p: ColumnPrinter, split: int, r: Reduction, offset: int) -> tuple[tuple[list[str], list[str]], int]:
    """Print how a block leaves its partial results in the workspace, and how the last block gathers them; the next offset."""
    rows, a = p.shape.problem.row_count, f"a{r.number}"
    leave = [
        f"{r.operator}::type* const parts{r.number} = ({r.operator}::type*)(workspace + {offset});",
        f"if (inside && group == 0) UNROLL for (int j = 0; j < {p.lanes}; ++j) parts{r.number}[(i64)(blockIdx.x % {split}) * {rows} + row + j] = {a}[j];",
    ]
    gather = [
        f"UNROLL for (int j = 0; j < {p.lanes}; ++j) {a}[j] = {r.operator}::identity();",
        f"if (inside) for (int i = group; i < {split}; i += {p.groups})",
        f"  UNROLL for (int j = 0; j < {p.lanes}; ++j) "
        f"{a}[j] = {r.operator}::combine({a}[j], load_fresh(parts{r.number} + (i64)i * {rows} + row + j));",
    ]
    return (leave, gather), offset + r.partial_bytes * rows * split
