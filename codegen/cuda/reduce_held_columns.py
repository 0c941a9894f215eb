"""Columns held in registers: one read for any number of passes, over the threads of a block or of a cluster of blocks."""

from __future__ import annotations

from eqsat.codegen.cuda.emit import assemble, parameters, register_type
from eqsat.codegen.cuda.loads import index_type, split_index
from eqsat.codegen.cuda.reduce_columns import ColumnPrinter
from eqsat.codegen.cuda.reduce_print import accumulate, choose, compute, declare, indent
from eqsat.codegen.cuda.reduce_rows import PARTS
from eqsat.codegen.cuda.reduce_schedule import HINTS, HeldColumnTile
from eqsat.codegen.cuda.reduce_shape import ReduceShape, Reduction, kept_values, walk_elements
from eqsat.codegen.kernel import KernelSource
from eqsat.ir import Expr


def elements_each(shape: ReduceShape, s: HeldColumnTile) -> int:
    """Return how many elements along the reduced axes a thread holds of each of its rows."""
    return max(-(-shape.problem.length // (s.groups * s.cluster)), 1)


class HeldColumnPrinter(ColumnPrinter):
    """Prints the passes over elements that are in registers: `f[i]`, one of every `groups` from `begin` on."""

    def __init__(self, shape: ReduceShape, s: HeldColumnTile) -> None:
        each = elements_each(shape, s)
        super().__init__(shape, s.width, s.columns, s.groups, each, HINTS[s.hint])
        self.cluster = s.cluster
        self.held = choose(shape.loads, shape.is_held)
        self.kept = kept_values(shape, each * self.lanes)
        self.at_hand = self.elements.fields(self.held, "f[i].") | self.elements.fields(self.row_loads, "rows.")

    def prologue(self) -> list[str]:
        """Print all loads that are held, and those that do not vary along the reduced axes."""
        lines = super().prologue()
        if not self.held:
            return lines
        fetch = self._each_element(self.elements.fetch(self.held, "f[i].", hinted=True))
        return [
            *lines,
            f"struct Held {{ {self.elements.members(self.held)} }};",
            f"Held f[{self.count}];",
            *fetch,
            "__syncwarp();  // no load is moved behind this point, to its first use",
        ]

    def _each_element(self, lines: list[str]) -> list[str]:
        """Wrap statements for the element `k` of the thread in the loop over those that it holds."""
        ragged = self.length != self.count * self.groups * self.cluster
        step = [f"const {self.index} k = begin + group + i * {self.groups};", *(["if (k >= end) continue;"] if ragged else [])]
        return [
            "if (inside) {",
            f"  UNROLL for (int i = 0; i < {self.count}; ++i) {{",
            *indent([*step, *split_index("k", self.shape.reduced, self.length), *lines], 4),
            "  }",
            "}",
        ]

    def combine(self, r: Reduction) -> str:
        """Print how the thread groups of the block, and the blocks of the cluster, combine."""
        sizes = f"{self.columns}, {self.groups}, {self.lanes}, {self.cluster}"
        return f"combine_columns<{r.operator}, {r.number}, {sizes}>(a{r.number});"

    def accumulate(self, number: int, reductions: tuple[Reduction, ...]) -> list[str]:
        """Print pass `number` up to the partial results `a<number>[lane]` of each thread."""
        return [*declare(reductions, self.lanes), *self._held_pass(number, [r.body for r in reductions], reductions)]

    def output_elements(self, number: int) -> list[str]:
        """Print the pass that writes every element of the outputs that keep the reduced axes."""
        return self._held_pass(number, [x.expr for x in self.shape.element_stores], ())

    def _held_pass(self, number: int, roots: list[Expr], reductions: tuple[Reduction, ...]) -> list[str]:
        shape = self.shape
        wanted = {e.digest for e in walk_elements(roots, self.at_hand, shape)} - set(self.at_hand)
        side = choose(shape.loads, lambda x: x.expr.digest in wanted)
        scope = self.elements.scope(number, self.at_hand | self.elements.fields(side, ""), None, self.statistics)
        lane = (
            accumulate(reductions, scope, self.elements.position(), "j") if reductions else compute(shape.element_stores, scope)
        )
        declared: list[str] = []
        for n, e in enumerate(self.kept[number] if number < len(self.kept) else []):
            name = f"kept{number}_{n}"
            declared.append(f"{register_type(e.dtype)} {name}[{self.count}][{self.lanes}];")
            lane.append(f"{name}[i][j] = {scope.value(e)};")
            self.at_hand[e.digest] = f"{name}[i][j]"
        if reductions:
            work = [f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{", *indent(lane), "}"]
        else:
            work = self.vectors(shape.element_stores, lane)
        local = [self.elements.members(side), *self.elements.fetch(side, "", hinted=False)] if side else []
        return [*declared, *self._each_element([*local, *work])]


def emit_held_columns(shape: ReduceShape, s: HeldColumnTile) -> KernelSource:
    """Print the kernel that holds its columns."""
    problem = shape.problem
    p = HeldColumnPrinter(shape, s)
    blocks = max(-(-problem.row_count // (p.lanes * s.columns)), 1)
    segment = p.count * s.groups
    kind = index_type(problem.row_count + s.columns * p.lanes)
    lines = [
        f"const int across = threadIdx.x % {s.columns}, group = threadIdx.x / {s.columns};",
        f"const {kind} block = blockIdx.x / {s.cluster};",
        f"const {kind} row = (block * {s.columns} + across) * {p.lanes};",
        f"const bool inside = row < {problem.row_count};",
        *p.row_position(),
        f"const {p.index} begin = {f'({p.index})cluster_rank() * {segment}' if s.cluster > 1 else '0'};",
        f"const {p.index} end = begin + {segment} < {problem.length} ? begin + {segment} : {problem.length};",
        *p.prologue(),
    ]
    for number, group in enumerate(shape.passes):
        lines += p.accumulate(number, group)
        for r in group:
            lines += [p.combine(r), *p.value(r)]
    lines += ["cluster_done();"] if s.cluster > 1 else []
    write = p.output_rows()
    lines += [line.replace("group == 0)", "group == 0 && cluster_rank() == 0)") for line in write] if s.cluster > 1 else write
    lines += p.output_elements(len(shape.passes)) if problem.keeps else []
    if s.cluster > 1:
        lines.append("cluster_leave();  // no block leaves while another reads its shared memory")
    bounds = f"__cluster_dims__({s.cluster}, 1, 1) " if s.cluster > 1 else ""
    threads = s.columns * s.groups
    text = [
        f'extern "C" __global__ void {bounds}__launch_bounds__({threads}) eqsat_kernel({parameters(problem.program)}) {{',
        *indent(lines),
        "}",
    ]
    return assemble(
        problem.program,
        s,
        "reduce",
        "\n".join(text) + "\n",
        parts=PARTS,
        grid=(blocks * s.cluster, 1, 1),
        block=threads,
        cluster=s.cluster,
        requires="sm_90" if s.cluster > 1 else "",
    )
