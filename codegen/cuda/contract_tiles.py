"""Contractions through tiles in shared memory: loops and loads, how operands are staged, statistics, epilogue and store.

What the plain kernels (`simt`) and those of the matrix units that stage every element themselves (`mma`) have in common.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from eqsat.codegen.cuda.emit import Scope, output_names, register_type, stored_type
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
from eqsat.codegen.problem import ContractProblem, nest
from eqsat.ir import Expr, Input

STATIC_SHARED_BYTES = 48 * 1024


class BlockTile(Protocol):
    """What staging asks of a schedule: `bm` × `bn` outputs of a block, `bk` of the summed axes at a time."""

    @property
    def bm(self) -> int:
        """Rows of a block."""

    @property
    def bn(self) -> int:
        """Columns of a block."""

    @property
    def bk(self) -> int:
        """Summed positions at a time."""

    @property
    def threads(self) -> int:
        """Threads of a block."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """The outputs that a thread holds: `rows` of them, each of `columns`, as C in `i` (row) and `g` (first of some columns).

    `width` neighbouring columns at most lie side by side; `accumulator` has a place for the contraction's number.
    """

    rows: int
    row: str
    columns: int
    width: int
    column: str
    accumulator: str


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


@dataclass(frozen=True)
class Side:
    """How one operand comes into shared memory: vectors of `lanes` along `inner`, the fast axis of its buffer.

    `along_k` says whether that is a summed axis; a vector then lies along k, else along the rows.
    """

    shape: ContractShape
    letter: str
    values: tuple[Expr, ...]
    size: int
    schedule: BlockTile
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

    def put(self, names: Sequence[str], packed: str = "") -> list[str]:
        """Print how the fetched tile goes to shared memory, and into the statistics that ride on it.

        Rows of the tile lie along the block's rows; `packed`, as 16-bit elements of that type, as the vectors that were fetched.
        """
        fields = {x.expr.digest: field_value(x, self.mode(x), f"f{self.letter}[i].x{n}") for n, x in self.loads}
        scope = Scope(_leaf(fields, {}, self.shape.names, self.inner), "t")
        at = "[depth + j][row]" if self.along_k else "[depth][row + j]"
        values = [scope.value(v) for v in self.values]
        lines = scope.take()
        puts, before, after = [], [], []
        for n, (name, v, value) in enumerate(zip(names, self.values, values, strict=True)):
            ctype = register_type(v.dtype)
            if packed:
                before.append(f"float o{n}[{self.lanes}];")
                puts.append(f"o{n}[j] = inside ? (float)({value}) : 0.f;")
                where = "[row][depth]" if self.along_k else "[depth][row]"
                after.append(f"put_packed(&{name}{where}, Pack<{packed}>::template from<{self.lanes}>(o{n}));")
            else:
                puts.append(f"{name}{at} = inside ? ({ctype})({value}) : ({ctype})0;")
        riding: list[str] = []
        for number, node in enumerate(self.statistics):
            value = scope.value(nest(node)[1])
            operator = statistic_operator(node)
            slot = f"z{number}[i][{'0' if self.along_k else 'j'}]"
            riding += [*scope.take(), f"if (inside) {slot} = {operator}::combine({slot}, {operator}::lift({value}, 0));"]
        work = [*before, f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{", *indent([*lines, *puts, *riding]), "}", *after]
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

    def combine_statistics(self, fragment: Fragment) -> list[str]:
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
                f"{ctype} s{number}[{fragment.rows}];",
                f"UNROLL for (int i = 0; i < {fragment.rows}; ++i) {{",
                f"  {operator}::type all = parts{number}[0][{fragment.row}];",
                f"  for (int d = 1; d < {across}; ++d) all = {operator}::combine(all, parts{number}[d][{fragment.row}]);",
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


def sides(shape: ContractShape, s: BlockTile) -> tuple[Side, Side]:
    """Return how the left and the right operands come into shared memory."""
    problem = shape.problem
    left = Side(shape, "m", (problem.contractions[0].a,), s.bm, s, problem.statistics)
    return left, Side(shape, "n", tuple(c.b for c in problem.contractions), s.bn, s)


def tile_place(problem: ContractProblem, s: BlockTile, block: str) -> list[str]:
    """Print which tile of the output a block makes: `first_m`, `first_n` and the batch's position."""
    batches, rows, columns, _ = problem.shape
    tiles = (-(-rows // s.bm), -(-columns // s.bn))
    index = index_type(max(tiles[0] * tiles[1] * batches, 1))
    return [
        f"const {index} block = {block};",
        f"const {index} batch = block / {max(tiles[0] * tiles[1], 1)};",
        "int tile_row, tile_column;",
        f"tile_of<8>((int)(block % {max(tiles[0] * tiles[1], 1)}), {tiles[0]}, {max(tiles[1], 1)}, tile_row, tile_column);",
        f"const {index_type(rows + s.bm)} first_m = ({index_type(rows + s.bm)})tile_row * {s.bm};",
        f"const {index_type(columns + s.bn)} first_n = ({index_type(columns + s.bn)})tile_column * {s.bn};",
        *split_index("batch", contract_shape(problem).batch, batches),
    ]


def blocks_of(problem: ContractProblem, s: BlockTile) -> int:
    """Return the number of a part's tiles."""
    batch, m, n, _ = problem.shape
    return batch * -(-m // s.bm) * -(-n // s.bn)


def epilogue(shape: ContractShape, s: BlockTile, fragment: Fragment) -> list[str]:
    """Print what happens to the accumulators: the output expression over vectors of neighbouring columns, and the store."""
    problem, out = shape.problem, shape.problem.output
    _, rows, columns, _ = problem.shape
    to = output_names(problem.program)[problem.output_index]
    inner = shape.n[-1]
    lanes = fragment.width if inner.extent % fragment.width == 0 else 1
    outside = _outside_loads(shape)
    fields = {x.expr.digest: field_value(x, access_mode(x, inner, lanes), f"x{n}") for n, x in outside}
    made = {c.node.digest: fragment.accumulator.format(i) for i, c in enumerate(problem.contractions)}
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
        f"UNROLL for (int i = 0; i < {fragment.rows}; ++i) {{",
        f"  const {index_type(rows + s.bm)} m = first_m + {fragment.row};",
        f"  if (m >= {rows}) continue;",
        *indent(split_index("m", shape.m, rows)),
        f"  UNROLL for (int g = 0; g < {fragment.columns}; g += {lanes}) {{",
        f"    const {index_type(columns + s.bn)} n = first_n + {fragment.column};",
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
