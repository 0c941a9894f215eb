"""Rows of which a part lies in shared memory, so that several blocks with long rows fit a multiprocessor at once."""

from __future__ import annotations

from eqsat.codegen.cuda.emit import assemble, parameters, register_type
from eqsat.codegen.cuda.loads import index_type, load_offset, split_index
from eqsat.codegen.cuda.reduce_held_rows import CHUNK, staged_loads
from eqsat.codegen.cuda.reduce_print import declare, indent
from eqsat.codegen.cuda.reduce_rows import PARTS, RowPrinter
from eqsat.codegen.cuda.reduce_schedule import ParkedRowTile
from eqsat.codegen.cuda.reduce_shape import ReduceShape, Reduction, row_registers
from eqsat.codegen.kernel import KernelSource
from eqsat.ir import Expr


def vectors_of(shape: ReduceShape, s: ParkedRowTile) -> int:
    """Return how many vectors of a row a thread holds, in registers and parked."""
    lanes = shape.lanes(s.width, shape.reduced[-1])
    segment = -(-shape.problem.length // (lanes * s.cluster))
    return max(-(-segment // (32 * s.warps)), 1)


def parked_bytes(shape: ReduceShape, s: ParkedRowTile) -> int:
    """Return the shared memory of a block for what is parked."""
    lanes = shape.lanes(s.width, shape.reduced[-1])
    return s.parked * 32 * s.warps * sum(lanes * x.dtype.bytes for x in staged_loads(shape, s.width))


def held_registers(shape: ReduceShape, s: ParkedRowTile, parked: int) -> int:
    """Return the registers of a thread for the vectors that are not parked."""
    inner = shape.reduced[-1]
    lanes = shape.lanes(s.width, inner)
    return row_registers(shape, max(vectors_of(shape, s) - parked, 0) * lanes, inner, lanes)


class _Parked(RowPrinter):
    """Prints passes over the parked vectors, which come from shared memory in each; nothing else is kept of them."""

    def __init__(self, beside: RowPrinter, shape: ReduceShape, s: ParkedRowTile, whole: bool) -> None:
        super().__init__(shape, s.width, s.hint, 32 * s.warps, s.parked, resident=True, whole=whole)
        self.row, self.count = beside.row, beside.count
        self.first = vectors_of(shape, s) - s.parked
        self.kept = [[] for _ in self.kept]
        self.at_hand = self.elements.fields(self.held, "f.")

    def _slot(self, n: int, chunk: str) -> str:
        """Print the address of a chunk of held load `n`; the chunks of neighbouring threads lie side by side."""
        chunks = [self.lanes * x.dtype.bytes // CHUNK for _, x in self.held]
        at = [m for m, _ in self.held].index(n)
        return f"staged + ({self.vectors * sum(chunks[:at])} + i * {chunks[at]} + {chunk}) * {self.stride} + thread"

    def _vectors(self, lines: list[str]) -> list[str]:
        guard = [] if self.whole else ["if (v >= end) continue;"]
        at = [f"const {self.index} v = begin + thread + ({self.first} + i) * {self.stride};", *guard]
        return [f"UNROLL for (int i = 0; i < {self.vectors}; ++i) {{", *indent([*at, *lines]), "}"]

    def _each_vector(self, lines: list[str]) -> list[str]:
        take = ["Held f;"]
        for n, x in self.held:
            chunks = self.lanes * x.dtype.bytes // CHUNK
            take.append(f"UNROLL for (int c = 0; c < {chunks}; ++c) take_chunk(f.x{n}.w + 4 * c, {self._slot(n, 'c')});")
        return self._vectors([*take, *lines])

    def request(self) -> list[str]:
        """Print the copies to shared memory."""
        lines = self.position()
        for n, x in self.held:
            at = f"(const u8*)({x.parameter} + {load_offset(x, self.elements.loops, self.names)})"
            chunks = self.lanes * x.dtype.bytes // CHUNK
            lines.append(f"UNROLL for (int c = 0; c < {chunks}; ++c) copy_ahead({self._slot(n, 'c')}, {at} + {CHUNK} * c);")
        return self._vectors(lines)

    def visit(self, number: int, roots: list[Expr], reductions: tuple[Reduction, ...], slot: str) -> list[str]:
        """Print pass `number` over the parked vectors."""
        return self._pass(number, roots, reductions, slot)


class _Split:
    """Prints passes over all vectors of a thread: those in registers, then the parked ones."""

    def __init__(self, shape: ReduceShape, s: ParkedRowTile, whole: bool) -> None:
        self.shape = shape
        kept = vectors_of(shape, s) - s.parked
        self.near = RowPrinter(shape, s.width, s.hint, 32 * s.warps, max(kept, 1), resident=True, whole=whole)
        self.parked = _Parked(self.near, shape, s, whole)
        self.empty = kept == 0

    def prologue(self) -> list[str]:
        """Print all loads: those of the parked vectors are on their way while the others come."""
        near = self.near.prologue()
        if self.empty:
            near = [f"struct Held {{ {self.near.elements.members(self.near.held)} }};", *self.near.row.scope.take()]
        return [*self.parked.request(), *near]

    def _visit(self, number: int, roots: list[Expr], reductions: tuple[Reduction, ...]) -> list[str]:
        p = self.near
        slot = f"(i * {p.lanes} + j) % {p.count}" if p.count > 1 else "0"
        near = [] if self.empty else p._pass(number, roots, reductions, slot)
        arrived = ["copies_done();"] if number == 0 else []
        return [*near, *arrived, *self.parked.visit(number, roots, reductions, slot)]

    def statistics(self, number: int, reductions: tuple[Reduction, ...], s: ParkedRowTile) -> list[str]:
        """Print pass `number` and the values that it makes of the row."""
        p = self.near
        lines = [*declare(reductions, p.count), *self._visit(number, [r.body for r in reductions], reductions)]
        for r in reductions:
            sizes = f"{r.operator}, {r.number}, {s.warps}, 1, {s.cluster}"
            total = f"combine_row<{sizes}>(combine_lanes<{r.operator}, {p.count}>(a{r.number}), 0)"
            lines.append(f"const {register_type(r.node.dtype)} s{r.number} = {r.operator}::value({total});")
            p.row.statistics[r.node.digest] = f"s{r.number}"
        return lines

    def output(self, number: int) -> list[str]:
        """Print the pass that writes every element."""
        return self._visit(number, [x.expr for x in self.shape.element_stores], ())


def emit_parked_rows(shape: ReduceShape, s: ParkedRowTile) -> KernelSource:
    """Print the kernel that parks a part of each row."""
    problem = shape.problem
    threads = 32 * s.warps
    lanes = shape.lanes(s.width, shape.reduced[-1])
    vectors = problem.length // lanes
    segment = -(-vectors // s.cluster)
    whole = segment % threads == 0 and vectors % s.cluster == 0
    p = _Split(shape, s, whole)
    row = index_type(problem.row_count)
    lines = [
        "extern __shared__ Chunk staged[];",
        "const int thread = threadIdx.x;",
        f"const {row} row = ({row})blockIdx.x / {s.cluster};",
        *split_index("row", shape.rows, problem.row_count),
        f"const {p.near.index} begin = {f'(int)cluster_rank() * {segment}' if s.cluster > 1 else '0'};",
        f"const {p.near.index} end = begin + {segment} < {vectors} ? begin + {segment} : {vectors};",
        *p.prologue(),
    ]
    for number, group in enumerate(shape.passes):
        lines += p.statistics(number, group, s)
    lines += ["cluster_done();"] if s.cluster > 1 else []
    write = p.near.store_row()
    lines += [line.replace("thread == 0", "thread == 0 && cluster_rank() == 0") for line in write] if s.cluster > 1 else write
    lines += p.output(len(shape.passes)) if problem.keeps else []
    if s.cluster > 1:
        lines.append("cluster_leave();  // no block leaves while another reads its shared memory")
    bounds = f"__cluster_dims__({s.cluster}, 1, 1) " if s.cluster > 1 else ""
    text = [
        f'extern "C" __global__ void {bounds}__launch_bounds__({threads}, {s.resident}) eqsat_kernel({parameters(problem.program)}) {{',
        *indent(lines),
        "}",
    ]
    return assemble(
        problem.program,
        s,
        "reduce",
        "\n".join(text) + "\n",
        parts=PARTS,
        grid=(max(problem.row_count, 1) * s.cluster, 1, 1),
        block=threads,
        cluster=s.cluster,
        shared_bytes=parked_bytes(shape, s),
        requires="sm_90" if s.cluster > 1 else "sm_80",
    )
