"""Rows held in the registers of teams of blocks that take row after row, the next one on its way while one is worked on.

A team is one block, or a cluster of blocks that read each other's shared memory, or, for rows that no cluster holds, any number
of blocks that meet at a counter. For the last, all blocks of the launch are resident at once (a cooperative launch, which the
driver refuses where they are not), so a block may wait for its team. Every block combines partial results in the same order.
"""

from __future__ import annotations

from eqsat.codegen.cuda.emit import assemble, parameters, register_type
from eqsat.codegen.cuda.loads import Load, index_type, load_offset, split_index
from eqsat.codegen.cuda.reduce_print import declare, indent
from eqsat.codegen.cuda.reduce_rows import PARTS, RowPrinter
from eqsat.codegen.cuda.reduce_schedule import HeldGridTile
from eqsat.codegen.cuda.reduce_shape import ReduceShape, Reduction
from eqsat.codegen.kernel import KernelSource

CHUNK = 16  # bytes of one copy to shared memory
LARGEST_CLUSTER = 16
SHARED_BYTES = 220 * 1024  # of a multiprocessor, for all its blocks


def vectors_each(shape: ReduceShape, s: HeldGridTile) -> int:
    """Return how many vectors of a row a thread holds."""
    lanes = shape.lanes(s.width, shape.reduced[-1])
    segment = -(-shape.problem.length // (lanes * s.split))
    return max(-(-segment // s.threads), 1)


def staged_loads(shape: ReduceShape, width: int) -> list[Load]:
    """Return the held loads that are whole aligned chunks, so that they can be copied to shared memory."""
    inner = shape.reduced[-1]
    lanes = shape.lanes(width, inner)
    held = [x for x in shape.loads if shape.is_held(x)]
    wide = [x for x in held if shape.mode(x, inner, lanes) == "vector" and lanes * x.dtype.bytes % CHUNK == 0]
    return [x for x in wide if not x.guard_axes]


def staged_bytes(shape: ReduceShape, s: HeldGridTile) -> int:
    """Return the shared memory of a block for the row that is on its way."""
    lanes = shape.lanes(s.width, shape.reduced[-1])
    each = sum(lanes * x.dtype.bytes for x in staged_loads(shape, s.width))
    return s.ahead * each * vectors_each(shape, s) * s.threads


class HeldGridPrinter(RowPrinter):
    """Prints the passes of a row of which this block holds the vectors `begin` … `end`."""

    def __init__(self, shape: ReduceShape, s: HeldGridTile) -> None:
        lanes = shape.lanes(s.width, shape.reduced[-1])
        vectors = shape.problem.length // lanes
        whole = vectors % (s.split * s.threads) == 0
        super().__init__(shape, s.width, s.hint, s.threads, vectors_each(shape, s), resident=True, whole=whole)
        self.threads = s.threads
        self.staged = staged_loads(shape, s.width) if s.ahead else []

    def _slot(self, load: Load, chunk: str) -> str:
        """Print the address of a chunk in shared memory; the chunks of neighbouring threads lie side by side."""
        before = 0
        for x in self.staged:
            if x is load:
                break
            before += self.lanes * x.dtype.bytes // CHUNK * self.vectors
        chunks = self.lanes * load.dtype.bytes // CHUNK
        return f"staged + ({before} + i * {chunks} + {chunk}) * {self.threads} + thread"

    def request(self) -> list[str]:
        """Print the copies to shared memory of the row at the row loops' position."""
        lines = self.position()
        for load in self.staged:
            at = f"(const u8*)({load.parameter} + {load_offset(load, self.elements.loops, self.names)})"
            chunks = self.lanes * load.dtype.bytes // CHUNK
            copy = "copy_ahead_first" if self.elements.hint == "EVICT_FIRST" else "copy_ahead"
            lines.append(f"UNROLL for (int c = 0; c < {chunks}; ++c) {copy}({self._slot(load, 'c')}, {at} + {CHUNK} * c);")
        return self._each_vector(lines)

    def prologue(self) -> list[str]:
        """Print how the row comes into registers: from shared memory what was copied ahead, else from memory."""
        if not self.staged:
            return super().prologue()
        staged = {x.expr.digest for x in self.staged}
        direct = [(n, x) for n, x in self.held if x.expr.digest not in staged]
        lines = [*self.position(), *self.elements.fetch(direct, "f[i].", hinted=True)] if direct else []
        for n, load in self.held:
            if load.expr.digest in staged:
                chunks = self.lanes * load.dtype.bytes // CHUNK
                lines.append(
                    f"UNROLL for (int c = 0; c < {chunks}; ++c) take_chunk(f[i].x{n}.w + 4 * c, {self._slot(load, 'c')});"
                )
        return [
            f"struct Held {{ {self.elements.members(self.held)} }};",
            f"Held f[{self.vectors}];",
            "copies_done();",
            *self._each_vector(lines),
        ]

    def partial(self, number: int, reductions: tuple[Reduction, ...]) -> list[str]:
        """Print pass `number` up to the accumulators of each thread."""
        slot = f"(i * {self.lanes} + j) % {self.count}" if self.count > 1 else "0"
        return [*declare(reductions, self.count), *self._pass(number, [r.body for r in reductions], reductions, slot)]


def emit_held_rows(shape: ReduceShape, s: HeldGridTile) -> KernelSource:
    """Print the kernel whose teams of blocks hold a row each."""
    problem = shape.problem
    p = HeldGridPrinter(shape, s)
    rows, vectors = problem.row_count, problem.length // p.lanes
    segment = -(-vectors // s.split)
    kind = index_type(rows + s.teams)
    names = split_index("row", shape.rows, rows)
    after = split_index("next", shape.rows, rows)
    body = [*names, *p.prologue()]
    far = s.split > LARGEST_CLUSTER
    offset = (4 * s.teams + 15) // 16 * 16
    for number, group in enumerate(shape.passes):
        body += p.partial(number, group)
        if number == 0 and p.staged:
            copies = [f"const {kind} next = row + {s.teams};", f"if (next < {rows}) {{", *indent([*after, *p.request()]), "}"]
            body += ["{", *indent(copies), "}"]
        gather: list[str] = []
        for r in group:
            p.row.statistics[r.node.digest] = f"s{r.number}"
            lanes = f"combine_lanes<{r.operator}, {p.count}>(a{r.number})"
            if not far:
                total = f"combine_team<{r.operator}, {r.number}, {s.threads // 32}, {s.split}>({lanes}, turn)"
                body.append(f"const {register_type(r.node.dtype)} s{r.number} = {r.operator}::value({total});")
                continue
            parts = f"(({r.operator}::type*)(workspace + {offset}) + (turn * {s.teams} + team) * {s.split})"
            block = f"combine_row<{r.operator}, {r.number}, {s.threads // 32}, 1, 1>({lanes}, 0)"
            body += [
                f"{r.operator}::type* const parts{r.number} = {parts};",
                f"const {r.operator}::type sum{r.number} = {block};",
                f"if (thread == 0) parts{r.number}[part] = sum{r.number};",
            ]
            total = f"combine_parts<{r.operator}>(parts{r.number}, {s.split})"
            gather.append(f"const {register_type(r.node.dtype)} s{r.number} = {r.operator}::value({total});")
            offset += 2 * r.partial_bytes * s.split * s.teams
        body += [f"meet((u32*)workspace + team, {s.split}, part == 0);", *gather] if far else []
    body += [line.replace("thread == 0", "thread == 0 && part == 0") for line in p.store_row()]
    body += p.output(len(shape.passes)) if problem.keeps else []
    lines = [
        "const int thread = threadIdx.x;",
        f"const int team = blockIdx.x / {s.split}, part = {f'blockIdx.x % {s.split}' if far or s.split == 1 else '(int)cluster_rank()'};",
        f"const {p.index} begin = ({p.index})part * {segment};",
        f"const {p.index} end = begin + {segment} < {vectors} ? begin + {segment} : {vectors};",
    ]
    if p.staged:
        first = [f"const {kind} next = team;", *after, *p.request()]
        lines += ["extern __shared__ Chunk staged[];", f"if (team < {rows}) {{", *indent(first), "}"]
    lines += [
        "int turn = 0;  // partial results of one row are read while those of the next are written",
        f"for ({kind} row = team; row < {rows}; row += {s.teams}, turn ^= 1) {{",
        *indent(body),
        "}",
        *(["cluster_sync();  // no block leaves while another reads its shared memory"] if s.split > 1 and not far else []),
    ]
    dims = f"__cluster_dims__({s.split}, 1, 1) " if s.split > 1 and not far else ""
    bounds = f"{dims}__launch_bounds__({s.threads})"
    text = [
        f'extern "C" __global__ void {bounds} eqsat_kernel({parameters(problem.program, "u8" if far else "")}) {{',
        *indent(lines),
        "}",
    ]
    return assemble(
        problem.program,
        s,
        "reduce",
        "\n".join(text) + "\n",
        parts=PARTS,
        grid=(s.teams * s.split, 1, 1),
        block=s.threads,
        shared_bytes=staged_bytes(shape, s),
        cluster=1 if far else s.split,
        workspace_bytes=offset if far else 0,
        requires="sm_90" if dims else "sm_80" if p.staged else "",
        cooperative=far,
    )
