"""Contractions without tensor cores: every dtype, shape, layout, prologue, epilogue, several contractions and statistics."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from eqsat.codegen.cuda.bounds import traffic_ns, wave_factor
from eqsat.codegen.cuda.emit import Scope, assemble, output_names, parameters, refuse_illegal, register_type, stored_type
from eqsat.codegen.cuda.loads import (
    AxisNames,
    Load,
    LoopAxis,
    access_mode,
    axis_names,
    field_type,
    field_value,
    find_loads,
    index_type,
    iota_text,
    join_axes,
    lanes_of,
    load_guard,
    load_offset,
    print_fetch,
    row_major,
    split_index,
)
from eqsat.codegen.cuda.reduce_print import indent
from eqsat.codegen.cuda.reduce_shape import OPERATORS
from eqsat.codegen.cuda.shorten import call_short, short_functions
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Contract, ContractProblem, Problem, nest
from eqsat.codegen.targets import Target
from eqsat.ir import Expr, Input

PAD = 4  # elements behind each row of a tile: fewer bank conflicts, and 16-byte rows stay aligned
STATIC_SHARED_BYTES = 48 * 1024
PARTS = ("prelude.cuh", "math.cuh", "reduce.cuh", "simt.cu")


@dataclass(frozen=True, slots=True)
class SimtTile(Schedule):
    """A block makes `bm` x `bn` outputs, `bk` of the summed axes at a time; a thread makes `tm` x `tn` of them."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.bm // self.tm * (self.bn // self.tn)


@dataclass(frozen=True, slots=True)
class ContractShape:
    """A contract problem as loops (b… m… n… k…), loads and the output's place."""

    problem: ContractProblem
    loads: tuple[Load, ...]
    batch: tuple[LoopAxis, ...]
    m: tuple[LoopAxis, ...]
    n: tuple[LoopAxis, ...]
    k: tuple[LoopAxis, ...]
    store: Load

    @property
    def loops(self) -> tuple[LoopAxis, ...]:
        """All loops."""
        return (*self.batch, *self.m, *self.n, *self.k)

    @property
    def names(self) -> AxisNames:
        """C variables of the axes that are loops of their own."""
        return AxisNames(axis_names(self.loops))

    def loads_of(self, roots: Sequence[Expr]) -> list[tuple[int, Load]]:
        """Return the numbered loads inside `roots`."""
        inside = {e.digest for r in roots for e in r.walk()}
        return [(n, x) for n, x in enumerate(self.loads) if x.expr.digest in inside]


@functools.lru_cache(maxsize=256)  # asked once for each schedule of a space
def contract_shape(problem: ContractProblem) -> ContractShape:
    """Return loops and loads of a contract problem."""
    program, out = problem.program, problem.output
    extents = program.extents
    loads = tuple(find_loads(program).values())
    pinned = frozenset(e.attrs[0] for e in out.expr.walk() if e.op == "iota").union(*(x.pinned for x in loads))
    steps = {a: s for a, s in row_major(out.axes, extents).items() if extents[a] > 1}
    store = Load(out.expr, Input("out", out.shape, out.dtype), "out", tuple(sorted(steps.items())), 0, frozenset())
    accesses = [dict(x.steps) for x in (*loads, store) if x.steps is not None]
    parts = [
        join_axes(axes, extents, accesses, pinned, prefix)
        for axes, prefix in ((problem.batch, "b"), (problem.m, "m"), (problem.n, "n"), (problem.k, "k"))
    ]
    return ContractShape(problem, loads, parts[0], parts[1], parts[2], parts[3], store)


class SimtFamily:
    """The contract kernel that serves every problem on every architecture."""

    name = "simt"
    schedules: tuple[type[Schedule], ...] = (SimtTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, Contract):
            return f"a contract kernel cannot serve a {problem.family} problem"
        if not isinstance(schedule, SimtTile):
            return f"a plain contract kernel has no schedule {type(schedule).__name__}"
        s = schedule
        if min(s.bm, s.bn, s.bk, s.tm, s.tn) < 1 or s.bm % s.tm or s.bn % s.tn or s.tn not in (1, 2, 4, 8, 16):
            return "the thread tile divides the block tile, and tn is a power of two up to 16"
        if s.threads % 32 or not 32 <= s.threads <= 1024 or s.bm % 8 or s.bn % 8 or s.bk % 4:
            return f"{s.threads} threads: expected a multiple of 32 up to 1024, bm and bn multiples of 8, bk of 4"
        if len({_tile_types(p) for p in problem.parts}) > 1:
            return "its outputs take different numbers or types of right operands"
        lead = problem.parts[0]
        shared = _shared_bytes(lead, s)
        if shared > STATIC_SHARED_BYTES:
            return f"{shared} bytes of tiles in shared memory; {STATIC_SHARED_BYTES} are there without asking for more"
        words = s.tm * s.tn * sum(max(c.node.dtype.accumulator.bytes, 4) // 4 for c in lead.contractions)
        moved = sum(t * s.bk // s.threads for t in (s.bm, *(s.bn for _ in lead.contractions)))
        if min(255, 65536 // s.threads) < words + moved + s.tm + s.tn + 24:
            return f"{words} accumulator and {moved} operand registers for each of {s.threads} threads"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, Contract)
        assert isinstance(schedule, SimtTile)
        return _emit(problem, schedule)

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the larger of the time to move each byte once and the time of the arithmetic at the dtype's own rate."""
        assert isinstance(problem, Contract)
        path = problem.parts[0].contractions[0].node.dtype.accumulator.value
        return max(traffic_ns(problem.program, rates), problem.flops / rates.rate(path))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: the arithmetic by how well a thread tile reuses what it reads, in whole waves of blocks."""
        assert isinstance(problem, Contract)
        assert isinstance(schedule, SimtTile)
        s = schedule
        batch, m, n, _ = problem.shape
        blocks = sum(_blocks(p, s) for p in problem.parts)
        path = problem.parts[0].contractions[0].node.dtype.accumulator.value
        # Each step reads tm + tn values from shared memory for tm·tn multiply-adds: 8 by 8 reaches some 80 % of the peak.
        reuse = s.tm * s.tn / (s.tm + s.tn)
        padded = blocks * s.bm * s.bn / max(batch * m * n, 1)
        arithmetic = (
            problem.flops
            / rates.rate(path)
            * padded
            * (1 + 1 / reuse)
            * wave_factor(rates, blocks, max(2048 // s.threads // 4, 1))
        )
        return max(arithmetic, traffic_ns(problem.program, rates)) + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: every CUDA device."""
        return target.kind == "cuda"


def _shared_bytes(problem: ContractProblem, s: SimtTile) -> int:
    lead = problem.contractions[0]
    tiles = s.bk * (s.bm + PAD) * max(lead.a.dtype.accumulator.bytes, 1)
    tiles += sum(s.bk * (s.bn + PAD) * c.b.dtype.accumulator.bytes for c in problem.contractions)
    return tiles + sum(s.bm * s.bk * x.dtype.accumulator.bytes for x in problem.statistics)


@dataclass(frozen=True)
class Side:
    """How one operand comes into shared memory: vectors of `lanes` along `inner`, the fast axis of its buffer.

    `along_k` says whether that is a summed axis; a vector then lies along k, else along the rows.
    """

    shape: ContractShape
    letter: str
    values: tuple[Expr, ...]
    size: int
    schedule: SimtTile
    statistics: tuple[Expr, ...] = ()

    @property
    def rows(self) -> tuple[LoopAxis, ...]:
        """The loops over its rows: m for the left operand, n for the right."""
        return self.shape.m if self.letter == "m" else self.shape.n

    @property
    def loads(self) -> list[tuple[int, Load]]:
        """The loads that its values and statistics need."""
        return self.shape.loads_of((*self.values, *(nest(s)[1] for s in self.statistics)))

    @property
    def along_k(self) -> bool:
        """Whether most of what it loads is contiguous along the last summed axis."""
        k, r = self.shape.k[-1], self.rows[-1]
        score = 0
        for _, x in self.loads:
            score += (k.axes != () and x.step(k.axes[-1]) == 1) * x.buffer.elements
            score -= (r.axes != () and x.step(r.axes[-1]) == 1) * x.buffer.elements
        return score > 0

    @property
    def inner(self) -> LoopAxis:
        """The loop along which its vectors lie."""
        return self.shape.k[-1] if self.along_k else self.rows[-1]

    @property
    def lanes(self) -> int:
        """Elements of a vector: 16 bytes of the widest load, fewer where extents or the tile do not divide."""
        inner = self.inner
        wide = [x.dtype for _, x in self.loads if inner.axes and x.step(inner.axes[-1]) == 1]
        lanes = lanes_of(16, wide) if wide else 1
        tile = self.schedule.bk if self.along_k else self.size
        while lanes > 1 and (inner.extent % lanes or tile % lanes or tile * self._other // lanes < self.schedule.threads):
            lanes //= 2
        return lanes

    @property
    def _other(self) -> int:
        return self.size if self.along_k else self.schedule.bk

    @property
    def turns(self) -> int:
        """Vectors that each thread brings."""
        return -(-self.size * self.schedule.bk // (self.lanes * self.schedule.threads))

    def mode(self, load: Load) -> str:
        """Return how a load is read."""
        return access_mode(load, self.inner, self.lanes)

    def struct(self) -> str:
        """Print the struct of one fetched vector."""
        parts = []
        for n, load in self.loads:
            ctype, suffix = field_type(load, self.mode(load), self.lanes)
            parts.append(f"{ctype} x{n}{suffix};")
        return f"struct Fetched_{self.letter} {{ {' '.join(parts)} }} f{self.letter}[{self.turns}];"

    def place(self) -> list[str]:
        """Print where vector `i` of this thread lies in the tile (`row`, `depth`) and in the problem; leaves if outside."""
        letter, s = self.letter, self.schedule
        across = (s.bk if self.along_k else self.size) // self.lanes
        fast, slow = ("depth", "row") if self.along_k else ("row", "depth")
        total_row, total_k = (
            self.shape.problem.extent(getattr(self.shape.problem, letter)),
            self.shape.problem.extent(self.shape.problem.k),
        )
        full = self.size * s.bk == self.turns * self.lanes * s.threads
        return [
            f"const int place = threadIdx.x + i * {s.threads};",
            *([] if full else [f"if (place >= {self.size * s.bk // self.lanes}) continue;"]),
            f"const int {fast} = place % {across} * {self.lanes}, {slow} = place / {across};",
            f"const {index_type(total_row + self.size)} {letter} = first_{letter} + row;",
            f"const {index_type(total_k + s.bk)} k = from + depth;",
            f"const bool inside = {letter} < {total_row} && k < {total_k};",
            *split_index(letter, self.rows, total_row),
            *split_index("k", self.shape.k, total_k),
        ]

    def fetch(self) -> list[str]:
        """Print the loads of the tile that starts at k = `from`."""
        lines: list[str] = []
        for n, load in self.loads:
            offset, guard = load_offset(load, self.shape.loops, self.shape.names), load_guard(load, self.shape.names)
            lines += print_fetch(load, self.mode(load), f"f{self.letter}[i].x{n}", self.inner, self.lanes, "PLAIN", offset, guard)
        return [
            f"UNROLL for (int i = 0; i < {self.turns}; ++i) {{",
            *indent([*self.place(), "if (!inside) continue;", *lines]),
            "}",
        ]

    def put(self, names: Sequence[str]) -> list[str]:
        """Print how the fetched tile goes to shared memory, and into the statistics that ride on it."""
        fields = {x.expr.digest: field_value(x, self.mode(x), f"f{self.letter}[i].x{n}") for n, x in self.loads}
        scope = Scope(_leaf(fields, {}, self.shape.names, self.inner), "t")
        at = "[depth + j][row]" if self.along_k else "[depth][row + j]"
        values = [scope.value(v) for v in self.values]
        lines = scope.take()
        puts = []
        for name, v, value in zip(names, self.values, values, strict=True):
            ctype = register_type(v.dtype)
            puts.append(f"{name}{at} = inside ? ({ctype})({value}) : ({ctype})0;")
        riding: list[str] = []
        for number, node in enumerate(self.statistics):
            value = scope.value(nest(node)[1])
            operator = statistic_operator(node)
            slot = f"z{number}[i][{'0' if self.along_k else 'j'}]"
            riding += [*scope.take(), f"if (inside) {slot} = {operator}::combine({slot}, {operator}::lift({value}, 0));"]
        work = [f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{", *indent([*lines, *puts, *riding]), "}"]
        return [f"UNROLL for (int i = 0; i < {self.turns}; ++i) {{", *indent([*self.place(), *work]), "}"]

    def declare_statistics(self) -> list[str]:
        """Print the partial statistics of this thread: one for each vector, or for each row of a vector."""
        lines = []
        per = 1 if self.along_k else self.lanes
        for number, node in enumerate(self.statistics):
            operator = statistic_operator(node)
            lines += [
                f"{operator}::type z{number}[{self.turns}][{per}];",
                f"UNROLL for (int i = 0; i < {self.turns}; ++i) UNROLL for (int j = 0; j < {per}; ++j) z{number}[i][j] = {operator}::identity();",
            ]
        return lines

    def shared_statistics(self) -> list[str]:
        """Print the arrays in shared memory in which the partial statistics meet."""
        across = self.schedule.bk // self.lanes if self.along_k else self.schedule.bk
        return [
            f"__shared__ {statistic_operator(node)}::type parts{number}[{across}][{self.size}];"
            for number, node in enumerate(self.statistics)
        ]

    def combine_statistics(self) -> list[str]:
        """Print how the partial statistics meet in shared memory and reach the rows of each thread's register tile."""
        s = self.schedule
        across = s.bk // self.lanes if self.along_k else s.bk
        lines: list[str] = []
        for number, node in enumerate(self.statistics):
            operator = statistic_operator(node)
            ctype = register_type(node.dtype)
            if self.along_k:
                puts = [f"parts{number}[depth / {self.lanes}][row] = z{number}[i][0];"]
            else:
                puts = [f"UNROLL for (int j = 0; j < {self.lanes}; ++j) parts{number}[depth][row + j] = z{number}[i][j];"]
            place = self.place()[: 3 if any("continue" in line for line in self.place()[:2]) else 2]
            lines += [
                f"UNROLL for (int i = 0; i < {self.turns}; ++i) {{",
                *indent([*place, *puts]),
                "}",
                "__syncthreads();",
                f"{ctype} s{number}[{s.tm}];",
                f"UNROLL for (int i = 0; i < {s.tm}; ++i) {{",
                f"  {operator}::type all = parts{number}[0][down * {s.tm} + i];",
                f"  for (int d = 1; d < {across}; ++d) all = {operator}::combine(all, parts{number}[d][down * {s.tm} + i]);",
                f"  s{number}[i] = {operator}::value(all);",
                "}",
            ]
        return lines


def statistic_operator(node: Expr) -> str:
    """Return the C++ operator of a row statistic."""
    return f"{OPERATORS[node.op]}<{register_type(node.dtype)}>"


class _leaf:  # noqa: N801  a function with bound arguments
    """Returns the C of a load, an accumulator or a position, for lane `j` along `inner`."""

    def __init__(
        self, fields: Mapping[str, str], accumulators: Mapping[str, str], names: Mapping[str, str], inner: LoopAxis
    ) -> None:
        self.known, self.names, self.inner = {**fields, **accumulators}, names, inner

    def __call__(self, e: Expr) -> str | None:
        if e.digest in self.known:
            return self.known[e.digest]
        if e.op != "iota":
            return None
        position = self.names[e.attrs[0]]
        return iota_text(e, f"{position} + j" if position == self.inner.var else position)


def _tile_types(problem: ContractProblem) -> tuple[str, ...]:
    """Return the C types of the tiles of a part's right operands."""
    return tuple(register_type(c.b.dtype) for c in problem.contractions)


def _blocks(problem: ContractProblem, s: SimtTile) -> int:
    batch, m, n, _ = problem.shape
    return batch * -(-m // s.bm) * -(-n // s.bn)


def _emit(problem: Contract, s: SimtTile) -> KernelSource:
    """Return the source: tiles in shared memory, then what the blocks of each part do with them."""
    program, lead = problem.program, problem.parts[0]
    ends = list(itertools.accumulate(_blocks(p, s) for p in problem.parts))
    lines = [
        f"alignas(16) __shared__ {register_type(lead.contractions[0].a.dtype)} tile_a[{s.bk}][{s.bm + PAD}];",
        *(f"alignas(16) __shared__ {t} tile_b{i}[{s.bk}][{s.bn + PAD}];" for i, t in enumerate(_tile_types(lead))),
        *_shared_statistics(contract_shape(lead), s),
    ]
    if len(problem.parts) == 1:
        lines += _part(lead, s, "blockIdx.x")
    else:
        for i, (p, begin) in enumerate(zip(problem.parts, [0, *ends], strict=False)):
            head = f"if (blockIdx.x < {ends[i]}) {{" if i + 1 < len(ends) else "{"
            lines += [f"{'else ' if i else ''}{head}", *indent(_part(p, s, f"blockIdx.x - {begin}")), "}"]
    text = [
        f'extern "C" __global__ void __launch_bounds__({s.threads}) eqsat_kernel({parameters(program)}) {{',
        *indent(lines),
        "}",
    ]
    return assemble(program, s, "simt", "\n".join(text) + "\n", parts=PARTS, grid=(max(ends[-1], 1), 1, 1), block=s.threads)


def _sides(shape: ContractShape, s: SimtTile) -> tuple[Side, Side]:
    """Return how the left and the right operands come into shared memory."""
    problem = shape.problem
    left = Side(shape, "m", (problem.contractions[0].a,), s.bm, s, problem.statistics)
    return left, Side(shape, "n", tuple(c.b for c in problem.contractions), s.bn, s)


def _shared_statistics(shape: ContractShape, s: SimtTile) -> list[str]:
    """Print the arrays in which the partial statistics meet."""
    return _sides(shape, s)[0].shared_statistics()


def _part(problem: ContractProblem, s: SimtTile, block: str) -> list[str]:
    """Print what one block of a part does: its tile of the output, `block` counted from the part's first."""
    shape = contract_shape(problem)
    batches, rows, columns, depth = problem.shape
    tiles = (-(-rows // s.bm), -(-columns // s.bn))
    left, right = _sides(shape, s)
    tile_names = [f"tile_b{i}" for i in range(len(problem.contractions))]
    index = index_type(max(tiles[0] * tiles[1] * batches, 1))
    accumulators = [register_type(c.node.dtype) for c in problem.contractions]
    return [
        f"const {index} block = {block};",
        f"const {index} batch = block / {max(tiles[0] * tiles[1], 1)};",
        "int tile_row, tile_column;",
        f"tile_of<8>((int)(block % {max(tiles[0] * tiles[1], 1)}), {tiles[0]}, {max(tiles[1], 1)}, tile_row, tile_column);",
        f"const {index_type(rows + s.bm)} first_m = ({index_type(rows + s.bm)})tile_row * {s.bm};",
        f"const {index_type(columns + s.bn)} first_n = ({index_type(columns + s.bn)})tile_column * {s.bn};",
        *split_index("batch", shape.batch, batches),
        f"const int side = threadIdx.x % {s.bn // s.tn}, down = threadIdx.x / {s.bn // s.tn};",
        *(f"{t} acc{i}[{s.tm}][{s.tn}];" for i, t in enumerate(accumulators)),
        f"UNROLL for (int i = 0; i < {s.tm}; ++i)",
        f"  UNROLL for (int j = 0; j < {s.tn}; ++j) {{ {' '.join(f'acc{i}[i][j] = 0;' for i in range(len(accumulators)))} }}",
        *left.declare_statistics(),
        left.struct(),
        right.struct(),
        f"{index_type(depth + s.bk)} from = 0;",
        *left.fetch(),
        *right.fetch(),
        f"while (from < {depth}) {{",
        *indent([*left.put(["tile_a"]), *right.put(tile_names)]),
        "  __syncthreads();",
        f"  from += {s.bk};",
        f"  if (from < {depth}) {{  // the next tile flies while this one is multiplied",
        *indent([*left.fetch(), *right.fetch()], 4),
        "  }",
        *(
            f"  multiply<{s.tm}, {s.tn}, {s.bn}>(acc{i}, tile_a, {name}, down * {s.tm}, side);"
            for i, name in enumerate(tile_names)
        ),
        "  __syncthreads();",
        "}",
        *left.combine_statistics(),
        *_epilogue(shape, s, rows, columns),
    ]


def _epilogue(shape: ContractShape, s: SimtTile, rows: int, columns: int) -> list[str]:
    """Print what happens to the accumulators: the output expression over vectors of neighbouring columns, and the store."""
    problem, out = shape.problem, shape.problem.output
    to = output_names(problem.program)[problem.output_index]
    inner = shape.n[-1]
    width = min(s.tn, 4)
    lanes = width if inner.extent % width == 0 else 1
    outside = _outside_loads(shape)
    fields = {x.expr.digest: field_value(x, access_mode(x, inner, lanes), f"x{n}") for n, x in outside}
    made = {c.node.digest: f"acc{i}[i][g + j]" for i, c in enumerate(problem.contractions)}
    made |= {e.digest: f"s{i}[i]" for i, e in enumerate(problem.statistics)}
    short = partial(call_short, short_functions(out.expr, out.dtype))
    scope = Scope(_leaf(fields, made, shape.names, inner), "e", call=short)
    value = scope.value(out.expr)
    declared, fetch = [], []
    for n, load in outside:
        mode = access_mode(load, inner, lanes)
        ctype, suffix = field_type(load, mode, lanes)
        declared.append(f"{ctype} x{n}{suffix};")
        offset, guard = load_offset(load, shape.loops, shape.names), load_guard(load, shape.names)
        fetch += print_fetch(load, mode, f"x{n}", inner, lanes, "CACHED", offset, guard)
    at = load_offset(shape.store, shape.loops, shape.names)
    if access_mode(shape.store, inner, lanes) == "vector":
        pack = f"Pack<{stored_type(out.dtype)}>::template from<{lanes}>(o)"
        store = [f"store_raw<{lanes * out.dtype.bytes}, PLAIN>({to} + {at}, {pack});"]
    else:
        kind = index_type(inner.extent)
        store = [
            f"UNROLL for (int j = 0; j < {lanes}; ++j) {{",
            f"  const {kind} first_column = {inner.var};",
            f"  {{ const {kind} {inner.var} = first_column + j; store_one({to} + {at}, o[j]); }}",
            "}",
        ]
    return [
        f"UNROLL for (int i = 0; i < {s.tm}; ++i) {{",
        f"  const {index_type(rows + s.bm)} m = first_m + down * {s.tm} + i;",
        f"  if (m >= {rows}) continue;",
        *indent(split_index("m", shape.m, rows)),
        f"  UNROLL for (int g = 0; g < {s.tn}; g += {lanes}) {{",
        f"    const {index_type(columns + s.bn)} n = first_n + Columns<{s.bn}, {s.tn}>::at(side, g);",
        f"    if (n >= {columns}) continue;",
        *indent(split_index("n", shape.n, columns), 4),
        *indent([*declared, *fetch], 4),
        f"    {register_type(out.dtype)} o[{lanes}];",
        f"    UNROLL for (int j = 0; j < {lanes}; ++j) {{",
        *indent([*scope.take(), f"o[j] = {value};"], 6),
        "    }",
        *indent(store, 4),
        "  }",
        "}",
    ]


def _outside_loads(shape: ContractShape) -> list[tuple[int, Load]]:
    """Return the loads that the epilogue itself reads: those reached without passing an accumulator."""
    problem = shape.problem
    accumulators = {c.node.digest for c in problem.contractions} | {e.digest for e in problem.statistics}
    numbers = {x.expr.digest: n for n, x in enumerate(shape.loads)}
    found: set[int] = set()
    stack, seen = [problem.output.expr], set[str]()
    while stack:
        e = stack.pop()
        if e.digest in seen or e.digest in accumulators:
            continue
        seen.add(e.digest)
        if e.digest in numbers:
            found.add(numbers[e.digest])
        else:
            stack.extend(e.args)
    return [(n, shape.loads[n]) for n in sorted(found)]
