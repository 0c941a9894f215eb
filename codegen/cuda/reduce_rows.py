"""Row templates: each row belongs to some warps of one block, to a cluster of blocks, or to several blocks of a grid."""

from __future__ import annotations

from eqsat.codegen.cuda.emit import assemble, parameters, register_type, stored_type
from eqsat.codegen.cuda.loads import AxisNames, Load, axis_names, index_type, load_offset, split_index
from eqsat.codegen.cuda.reduce_print import ElementPrinter, RowScope, accumulate, choose, compute, declare, indent, made
from eqsat.codegen.cuda.reduce_schedule import HINTS, GridReduceTile, RowTile
from eqsat.codegen.cuda.reduce_shape import ReduceShape, Reduction, kept_values, pass_roots, walk_elements
from eqsat.codegen.kernel import KernelSource
from eqsat.ir import Expr

PARTS = ("prelude.cuh", "math.cuh", "reduce.cuh")
REGISTERS = 65536  # of a multiprocessor
BATCH_REGISTERS = 32  # of loads that are not held, in flight at once
FAR_BYTES = 1 << 20  # a buffer so long does not stay in the nearest caches
ACCUMULATORS = 4  # independent chains for each thread: hides the latency of an add


class RowPrinter:
    """Prints the passes of one row over the vectors `begin + thread` … `end`, `stride` apart.

    Resident: `vectors` of them for each thread are loaded once and held. Else each pass loads `vectors` at a time again.
    """

    def __init__(self, shape: ReduceShape, width: int, hint: int, stride: int, vectors: int, resident: bool, whole: bool) -> None:
        self.shape, self.stride, self.vectors, self.resident, self.whole = shape, stride, vectors, resident, whole
        inner = shape.reduced[-1]
        self.lanes = shape.lanes(width, inner)
        self.elements = ElementPrinter(shape, inner, self.lanes, (*shape.rows, *shape.reduced), HINTS[hint])
        self.names = AxisNames(axis_names((*shape.rows, *shape.reduced)))
        self.row = RowScope(shape, self.names)
        self.length = shape.problem.length
        self.index = index_type(self.length + stride * vectors * self.lanes)
        self.held = choose(shape.loads, shape.is_held) if resident else []
        self.kept = kept_values(shape, vectors * self.lanes) if resident else [[] for _ in pass_roots(shape)]
        self.at_hand: dict[str, str] = self.elements.fields(self.held, "f[i].")
        self.count = min(ACCUMULATORS, self.lanes * vectors)

    def position(self) -> list[str]:
        """Print the loop variables of the vector `v`."""
        start = f"v * {self.lanes}" if self.lanes > 1 else "v"
        return [f"const {self.index} k = {start};", *split_index("k", self.shape.reduced, self.length)]

    def prologue(self) -> list[str]:
        """Print the loads of a resident row, and the terms that sums pick."""
        for p in self.shape.picked:
            self.row.scope.value(p.node)
        if not self.held:
            return self.row.scope.take()
        return [
            f"struct Held {{ {self.elements.members(self.held)} }};",
            f"Held f[{self.vectors}];",
            *self._each_vector([*self.position(), *self.elements.fetch(self.held, "f[i].", hinted=True)]),
            *self.row.scope.take(),
            "__syncwarp();  // no load is moved behind this point, to its first use",
        ]

    def _each_vector(self, lines: list[str]) -> list[str]:
        """Wrap statements for vector `v` in the loop over the vectors of a resident row."""
        guard = [] if self.whole else ["if (v >= end) continue;"]
        head = f"UNROLL for (int i = 0; i < {self.vectors}; ++i) {{"
        return [head, *indent([f"const {self.index} v = begin + thread + i * {self.stride};", *guard, *lines]), "}"]

    def statistics(self, number: int, reductions: tuple[Reduction, ...], combined: list[str]) -> list[str]:
        """Print pass `number`: accumulate over the elements, then `combined` (one C expression for each reduction)."""
        lines = declare(reductions, self.count)
        slot = f"(i * {self.lanes} + j) % {self.count}" if self.count > 1 else "0"
        lines += self._pass(number, [r.body for r in reductions], reductions, slot)
        for r, text in zip(reductions, combined, strict=True):
            ctype = register_type(r.node.dtype)
            lines.append(f"const {ctype} s{r.number} = {r.operator}::value({text});")
            self.row.statistics[r.node.digest] = f"s{r.number}"
        return lines

    def output(self, number: int) -> list[str]:
        """Print the pass that writes every element of the outputs that keep the reduced axes."""
        return self._pass(number, [x.expr for x in self.shape.element_stores], (), "")

    def _pass(self, number: int, roots: list[Expr], reductions: tuple[Reduction, ...], slot: str) -> list[str]:
        """Print one pass over the elements, preceded by the row values that it needs."""
        shape = self.shape
        wanted = {e.digest for e in walk_elements(roots, self.at_hand, shape)} - set(self.at_hand)
        side = choose(shape.loads, lambda x: x.expr.digest in wanted)
        far = any(x.buffer.bytes > FAR_BYTES for _, x in side)
        prefix = "g[i]." if not self.resident else "q[h]." if far else ""
        scope = self.elements.scope(number, self.at_hand | self.elements.fields(side, prefix), self.row)
        if reductions:
            lane = accumulate(reductions, scope, self.elements.position(), slot)
        else:
            lane = compute(shape.element_stores, scope)
        declared: list[str] = []
        for n, e in enumerate(self.kept[number] if number < len(self.kept) else []):
            name = f"kept{number}_{n}"
            declared.append(f"{register_type(e.dtype)} {name}[{self.vectors}][{self.lanes}];")
            lane.append(f"{name}[i][j] = {scope.value(e)};")
            self.at_hand[e.digest] = f"{name}[i][j]"
        work = [f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{", *indent(lane), "}"]
        if not reductions:
            declare_made = [f"{register_type(x.dtype)} {name}[{self.lanes}];" for name, x in made(shape.element_stores)]
            stores = [line for name, x in made(shape.element_stores) for line in self._store(name, x)]
            work = [*declare_made, *work, *stores]
        before = [*self.row.scope.take(), *declared]
        if self.resident and far:
            return [*before, *self._in_batches(side, work)]
        if self.resident:
            local = [self.elements.members(side), *self.elements.fetch(side, "", hinted=False)] if side else []
            return [*before, *self._each_vector([*self.position(), *local, *work])]
        return [*before, "{", *indent(self._stream(side, work)), "}"]

    def _in_batches(self, side: list[tuple[int, Load]], work: list[str]) -> list[str]:
        """Print a pass with loads that are not held and come from far: those of a few vectors at once, before the first is used."""
        inner, lanes = self.elements.inner, self.lanes
        each = sum(
            {"vector": lanes * x.dtype.bytes // 4, "uniform": 1}.get(self.shape.mode(x, inner, lanes), lanes) for _, x in side
        )
        batch = min(max(BATCH_REGISTERS // max(each, 1), 1), self.vectors)
        vector = [
            f"const {self.index} v = begin + thread + i * {self.stride};",
            *([] if self.whole else ["if (v >= end) continue;"]),
        ]
        ragged = [f"if (i >= {self.vectors}) continue;"] if self.vectors % batch else []
        head = [
            f"UNROLL for (int h = 0; h < {batch}; ++h) {{",
            *indent(["const int i = b + h;", *ragged, *vector, *self.position()]),
        ]
        return [
            f"UNROLL for (int b = 0; b < {self.vectors}; b += {batch}) {{",
            *indent([f"struct Side {{ {self.elements.members(side)} }} q[{batch}];", *head]),
            *indent(self.elements.fetch(side, "q[h].", hinted=False, other="PLAIN"), 4),
            *indent(["}", "__syncwarp();  // no load is moved behind this point, to its first use", *head]),
            *indent(work, 4),
            *indent(["}"]),
            "}",
        ]

    def _stream(self, side: list[tuple[int, Load]], work: list[str]) -> list[str]:
        """Print a pass that loads `vectors` at a time: all loads of a step before the first use."""
        rows = [(n, x) for n, x in side if x.axes - self.shape.over]
        shared = [(n, x) for n, x in side if not x.axes - self.shape.over]
        fetch = [
            *self.position(),
            *self.elements.fetch(rows, "g[i].", hinted=True),
            *self.elements.fetch(shared, "g[i].", hinted=False),
        ]
        vector = [f"const {self.index} v = first + i * {self.stride};", "if (v >= end) continue;"]
        return [
            f"struct Fetched {{ {self.elements.members(side)} }};",
            f"for ({self.index} first = begin + thread; first < end; first += {self.stride * self.vectors}) {{",
            f"  Fetched g[{self.vectors}];",
            f"  UNROLL for (int i = 0; i < {self.vectors}; ++i) {{",
            *indent([*vector, *fetch], 4),
            "  }",
            f"  UNROLL for (int i = 0; i < {self.vectors}; ++i) {{",
            *indent([*vector, *self.position(), *work], 4),
            "  }",
            "}",
        ]

    def _store(self, name: str, out: Load) -> list[str]:
        """Print the store of the vector `name`."""
        shape, inner = self.shape, self.elements.inner
        at = load_offset(out, (*shape.rows, *shape.reduced), self.names)
        if shape.mode(out, inner, self.lanes) == "vector":
            hint = self.elements.hint if self.lanes * out.dtype.bytes >= 16 else "PLAIN"
            pack = f"Pack<{stored_type(out.dtype)}>::template from<{self.lanes}>({name})"
            return [f"store_raw<{self.lanes * out.dtype.bytes}, {hint}>({out.parameter} + {at}, {pack});"]
        kind = index_type(inner.extent)
        return [
            f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{",
            f"  const {kind} first_k = {inner.var};",
            f"  {{ const {kind} {inner.var} = first_k + j; store_one({out.parameter} + {at}, {name}[j]); }}",
            "}",
        ]

    def store_row(self) -> list[str]:
        """Print the stores of outputs that have rows only, by one thread."""
        lines: list[str] = []
        for out in self.shape.row_stores:
            value = self.row.scope.value(out.expr)
            at = load_offset(out, self.shape.rows, self.names)
            lines += [*self.row.scope.take(), f"if (thread == 0) store_one({out.parameter} + {at}, {value});"]
        return lines


def emit_rows(shape: ReduceShape, s: RowTile) -> KernelSource:
    """Print the row kernel: `rows` rows to a block, or one row to a cluster of blocks."""
    problem = shape.problem
    threads = s.warps * 32
    lanes = shape.lanes(s.width, shape.reduced[-1])
    vectors = problem.length // lanes
    segment = -(-vectors // s.cluster)
    resident = s.stream == 0
    each = -(-segment // threads) if resident else s.stream
    whole = segment > 0 and segment % threads == 0 and vectors % s.cluster == 0
    p = RowPrinter(shape, s.width, s.hint, threads, max(each, 1), resident, whole)
    row = index_type(problem.row_count + s.rows)
    blocks = max(-(-problem.row_count // s.rows), 1)
    lines = [
        f"const int thread = threadIdx.x % {threads}, slot = threadIdx.x / {threads};",
        f"const {row} row = ({row})blockIdx.x / {s.cluster} * {s.rows} + slot;",
        *([f"if (row >= {problem.row_count}) return;"] if blocks * s.rows != problem.row_count else []),
        *split_index("row", shape.rows, problem.row_count),
        f"const {p.index} begin = {f'(int)cluster_rank() * {segment}' if s.cluster > 1 else '0'};",
        f"const {p.index} end = {f'begin + {segment} < {vectors} ? begin + {segment} : {vectors}' if s.cluster > 1 else vectors};",
        *p.prologue(),
    ]
    for number, group in enumerate(shape.passes):
        combined = [
            f"combine_row<{r.operator}, {r.number}, {s.warps}, {s.rows}, {s.cluster}>"
            f"(combine_lanes<{r.operator}, {p.count}>(a{r.number}), slot)"
            for r in group
        ]
        lines += p.statistics(number, group, combined)
    lines += ["cluster_done();"] if s.cluster > 1 else []
    write = p.store_row()
    lines += [line.replace("thread == 0", "thread == 0 && cluster_rank() == 0") for line in write] if s.cluster > 1 else write
    if problem.keeps:
        lines += p.output(len(shape.passes))
    if s.cluster > 1:
        lines.append("cluster_leave();  // no block leaves while another reads its shared memory")
    bounds = f"__cluster_dims__({s.cluster}, 1, 1) " if s.cluster > 1 else ""
    text = [
        f'extern "C" __global__ void {bounds}__launch_bounds__({threads * s.rows}) eqsat_kernel({parameters(problem.program)}) {{',
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
        block=threads * s.rows,
        cluster=s.cluster,
        requires="sm_90" if s.cluster > 1 else "",
    )


def emit_grid(shape: ReduceShape, s: GridReduceTile) -> KernelSource:
    """Print the grid kernel: `split` blocks share a row; the last to finish combines their partial results in order."""
    problem = shape.problem
    lanes = shape.lanes(s.width, shape.reduced[-1])
    vectors = problem.length // lanes
    segment = -(-vectors // s.split)
    rows = problem.row_count
    p = RowPrinter(shape, s.width, s.hint, s.threads, s.count, False, False)
    group = shape.passes[0]
    warps = s.threads // 32
    counters = (4 * rows + 15) // 16 * 16
    kind = index_type(rows * s.split)
    lines = [
        "const int thread = threadIdx.x;",
        f"const {kind} row = ({kind})blockIdx.x / {s.split};",
        f"const int part = blockIdx.x % {s.split};",
        *split_index("row", shape.rows, rows),
        f"const {p.index} begin = ({p.index})part * {segment};",
        f"const {p.index} end = begin + {segment} < {vectors} ? begin + {segment} : {vectors};",
    ]
    offset = counters
    totals: list[str] = []
    partial = [
        f"combine_row<{r.operator}, {r.number}, {warps}, 1, 1>(combine_lanes<{r.operator}, {p.count}>(a{r.number}), 0)"
        for r in group
    ]
    body = declare(group, p.count)
    slot = f"(i * {p.lanes} + j) % {p.count}" if p.count > 1 else "0"
    body += p._pass(0, [r.body for r in group], group, slot)
    for r, text in zip(group, partial, strict=True):
        body.append(f"{r.operator}::type* const parts{r.number} = ({r.operator}::type*)(workspace + {offset}) + row * {s.split};")
        body.append(f"const {r.operator}::type sum{r.number} = {text};")
        body.append(f"if (thread == 0) parts{r.number}[part] = sum{r.number};")
        totals += [
            f"{r.operator}::type all{r.number} = {r.operator}::identity();",
            f"for (int i = thread; i < {s.split}; i += 32) all{r.number} = {r.operator}::combine(all{r.number}, load_fresh(parts{r.number} + i));",
            f"const {register_type(r.node.dtype)} s{r.number} = {r.operator}::value(combine_warp<{r.operator}>(all{r.number}));",
        ]
        offset += r.partial_bytes * rows * s.split
        p.row.statistics[r.node.digest] = f"s{r.number}"
    finish = [f"if (!last_block((u32*)workspace + row, {s.split}) || thread >= 32) return;", *totals, *p.store_row()]
    text_lines = [
        f'extern "C" __global__ void __launch_bounds__({s.threads}) eqsat_kernel({parameters(problem.program, "u8")}) {{',
        *indent([*lines, *body, *finish]),
        "}",
    ]
    return assemble(
        problem.program,
        s,
        "reduce",
        "\n".join(text_lines) + "\n",
        parts=PARTS,
        grid=(max(rows, 1) * s.split, 1, 1),
        block=s.threads,
        workspace_bytes=max(offset, 16),
    )
