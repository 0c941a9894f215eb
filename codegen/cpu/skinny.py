"""Contractions with few rows: the left operand is evaluated once, the right one streams through without packing."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cpu.bounds import contract_bound_ns, memory_bound_ns
from eqsat.codegen.cpu.contraction import ContractNest, side_by_side, sum_dtype
from eqsat.codegen.cpu.loops import loop, parallel, vector_loop
from eqsat.codegen.cpu.model import shared
from eqsat.codegen.cpu.point import common_refusal
from eqsat.codegen.cpu.source import assemble
from eqsat.codegen.cpu.vector import Lanes, Scope, converted, widest
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Contract, Problem
from eqsat.codegen.targets import Target
from eqsat.errors import IllegalScheduleError

MOST_ROWS = 16
_STACK_BYTES = 1 << 19  # the most that the sums of one block of columns take of a thread's stack
_SUMS = {16: 28, 32: 12, 64: 28}  # vector registers that sums may take, by bytes of a vector; b and a number take the others


@dataclass(frozen=True, slots=True)
class CpuSkinnyTile(Schedule):
    """A contraction of at most 16 rows, bound by the bytes of its right operand.

    Parameters
    ----------
    vector_bytes : int
        Bytes of a vector of sums: 16, 32 or 64.
    depth : int
        Positions of k that one visit to a tile of sums takes in: so many rows of the right operand stream side by side.
    vectors : int
        Vectors of columns in a tile of sums; single columns where the right operand is contiguous along k.
    columns : int
        Columns of a block, whose sums stay in a near cache.
    threads : int
        1, or 0 for all cores.
    compiler : int
        0 any, 1 the system's, 2 zig.
    """

    vector_bytes: int
    depth: int
    vectors: int
    columns: int
    threads: int
    compiler: int


class SkinnyFamily:
    """Contractions with at most 16 rows."""

    name = "cpu-skinny"
    schedules: tuple[type[Schedule], ...] = (CpuSkinnyTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, Contract) or not isinstance(schedule, CpuSkinnyTile):
            return f"expected a contract problem and a CpuSkinnyTile; got {problem.family} and {type(schedule).__name__}"
        if refusal := common_refusal(schedule.vector_bytes, schedule.vectors, schedule.threads, schedule.compiler):
            return refusal
        _, m, n, k = problem.shape
        if m > MOST_ROWS:
            return f"{m} rows are more than {MOST_ROWS}"
        size = sum_dtype(problem).bytes
        if schedule.columns < 1 or schedule.columns % (schedule.vector_bytes // size):
            return f"blocks of {schedule.columns} columns are not a whole number of vectors"
        count = max(len(p.contractions) for p in problem.parts)
        if m * schedule.columns * size * count > _STACK_BYTES:
            return f"the sums of {m} x {schedule.columns} columns are more than {_STACK_BYTES} bytes"
        if schedule.columns >= 2 * max(n, 64):
            return f"blocks of {schedule.columns} columns for {n}"
        if schedule.vectors > _SUMS[schedule.vector_bytes]:
            return f"{schedule.vectors} sums are more than {_SUMS[schedule.vector_bytes]} registers"
        if schedule.vectors > 1 and schedule.vectors > n:
            return f"there are not {schedule.vectors} columns"
        if schedule.depth < 1 or schedule.depth > max(8, 2 * k):
            return f"k has {k} positions; one visit takes in {schedule.depth}"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        if refusal := self.legal(problem, schedule):
            raise IllegalScheduleError(f"{schedule}: {refusal}")
        assert isinstance(problem, Contract)
        assert isinstance(schedule, CpuSkinnyTile)
        nest = ContractNest(problem, schedule.vector_bytes // sum_dtype(problem).bytes)
        body = nest.wrapped(_Skinny(nest, schedule).lines())
        return assemble(
            nest.printer,
            schedule,
            body,
            mask_bits=8 * widest([o.expr for o in problem.program.outputs]),
            threads=schedule.threads,
            compiler=schedule.compiler,
            workspace_bytes=nest.workspace_bytes,
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time of the multiply-adds or of the bytes, whichever is longer, over the launch floor."""
        return contract_bound_ns(problem, rates)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return the time that a model expects."""
        assert isinstance(problem, Contract)
        assert isinstance(schedule, CpuSkinnyTile)
        m, k = max(problem.shape[1], 1), problem.shape[3]
        arithmetic = problem.flops / rates.rate("f32") * {16: 4.0, 32: 2.0, 64: 1.0}[schedule.vector_bytes]
        rows = -(-m // -(-m * schedule.vectors // _SUMS[schedule.vector_bytes]))
        sums = rows * schedule.vectors
        # a step loads the vectors of b and a number for each row; fewer sums than 8 wait for one another
        step = max(1.0, 8.0 / sums) * (1.0 + (rows + schedule.vectors) / (2.0 * sums))
        visits = 2.0 / min(schedule.depth, max(k, 1))
        memory = memory_bound_ns(problem.program, rates) * (1.0 + 32.0 / schedule.columns + 0.02 * schedule.depth)
        return shared(max(arithmetic * (step + visits), memory), schedule.threads, rates) + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether the target is a CPU."""
        return target.kind == "cpu"


def _groups(m: int, vectors: int, registers: int) -> list[range]:
    """Split m rows evenly into groups whose sums fit the registers."""
    count = -(-m // max(1, registers // vectors))
    return [range(m * g // count, m * (g + 1) // count) for g in range(count)]


class _Skinny:
    """The kernel while it is being printed."""

    def __init__(self, nest: ContractNest, schedule: CpuSkinnyTile) -> None:
        self.nest, self.schedule = nest, schedule
        _, self.m, self.n, self.k = nest.problem.shape
        self.width = nest.printer.width
        self.groups = _groups(self.m, schedule.vectors, _SUMS[schedule.vector_bytes])
        self.stride = -(-self.k // self.width) * self.width  # rows of the evaluated left operand, whole vectors

    def lines(self) -> list[str]:
        """Return what happens for one batch: the left operand once, then the columns of each part."""
        nest = self.nest
        parts = [_Skinny(part, self.schedule) for part in nest.parts]
        statistics = nest.statistics(1)
        names = self._left_names([dots for part in parts for dots in part.ways()])
        for name in names:
            nest.scratch(name, self.m * self.stride, nest.element, nest.bytes)
        return [*statistics, *self._left(names), *side_by_side([part.blocks() for part in parts])]

    def ways(self) -> list[bool]:
        """Return for each contraction whether it takes inner products along k, rather than tiles of columns."""
        nest = self.nest
        return [not nest.along(x.b, nest.n) and nest.along(x.b, nest.k) for x in nest.problem.contractions]

    def blocks(self) -> list[str]:
        """Return the loop over the columns of a part."""
        nest, step = self.nest, self.schedule.columns
        body = [f"const pos last = first + {step} < {self.n} ? first + {step} : {self.n};"]
        sums = range(len(nest.problem.contractions))
        body += [f"{nest.element} sums{c}[{self.m * step}] __attribute__((aligned(64)));" for c in sums]
        for c, dots in enumerate(self.ways()):
            body += self._dots(c) if dots else self._tiles(c)

        def address(c: int, position: str) -> str:
            return f"sums{c} + row * {step} + ({position} - first)"

        epilogue = nest.epilogue(address, "first", "last", "row")
        body += loop(f"for (pos row = 0; row < {self.m}; row++)", epilogue)
        blocks = loop(f"for (pos first = 0; first < {self.n}; first += {step})", body)
        return [*parallel(self.schedule.threads), *blocks]

    @staticmethod
    def _left_names(ways: list[bool]) -> list[str]:
        """Return the forms of the left operand that are needed: `rows` for inner products, `across` for tiles."""
        return [name for name, needed in (("rows", any(ways)), ("across", not all(ways))) if needed]

    def _left(self, names: list[str]) -> list[str]:
        """Evaluate the left operand once, 0 beyond k: row by row, and with the numbers of one k side by side."""
        nest = self.nest
        nest.place(nest.m, "row")
        row = Scope(frozenset().union(*(x.covers for x in nest.m)))
        a = nest.problem.contractions[0].a

        def body(position: str, part: str | None, _: int) -> list[str]:
            last, lanes = Scope(frozenset().union(*(x.covers for x in nest.k))), Lanes(nest.k, position, part)
            value = converted(nest.printer.value(a, [*nest.outer, row, last], lanes), a.dtype, nest.dtype)
            if part is not None:
                value = f"eq_where_{nest.register}(eq_first({part}), {value}, (v{nest.register}){{0}})"
            last.lines.append(f"const v{nest.register} x = {value};")
            if "rows" in names:
                last.lines.append(f"eq_store_{nest.register}(rows + row * {self.stride} + {position}, x);")
            if "across" in names:
                last.lines.append(f"for (int l = 0; l < {self.width}; l++) across[({position} + l) * {self.m} + row] = x[l];")
            return loop("", last.lines)

        lines = list(vector_loop("k", "0", self.k, self.width, 1, body))
        return loop(f"for (pos row = 0; row < {self.m}; row++)", [*row.lines, *lines])

    def _value(self, c: int, scope: Scope, last: Scope, lanes: Lanes) -> str:
        """Print the right operand at one place, in the type of the sums."""
        b = self.nest.problem.contractions[c].b
        value = converted(self.nest.printer.value(b, [*self.nest.outer, scope, last], lanes), b.dtype, self.nest.dtype)
        return f"({self.nest.vector})({value})" if self.nest.register[0] == "i" else value

    def _tiles(self, c: int) -> list[str]:
        """Vectors along the columns: a tile of sums in registers takes in `depth` rows of b, then the next tile does."""
        nest, depth = self.nest, self.schedule.depth
        nest.place(nest.k, "k")
        step = self.width * self.schedule.vectors
        lines = [f"const pos k_last = k_first + {depth} < {self.k} ? k_first + {depth} : {self.k};", "pos column = first;"]
        lines += loop(f"for (; column + {step} <= last; column += {step})", self._tile(c, self.schedule.vectors, None))
        if self.schedule.vectors > 1:
            lines += loop(f"for (; column + {self.width} <= last; column += {self.width})", self._tile(c, 1, None))
        lines += loop("if (column < last)", self._tile(c, 1, "(int)(last - column)"))
        clear = f"memset(sums{c}, 0, sizeof sums{c});"
        return [clear, *loop(f"for (pos k_first = 0; k_first < {self.k}; k_first += {depth})", lines)]

    def _tile(self, c: int, vectors: int, part: str | None) -> list[str]:
        """One tile after another for groups of rows: the piece of b that they share stays in the nearest cache."""
        nest, v = self.nest, self.nest.vector
        before: list[str] = []
        each: list[str] = []
        k_covers, n_covers = (frozenset().union(*(x.covers for x in group)) for group in (nest.k, nest.n))
        for j in range(vectors):
            position = f"(column + {j * self.width})" if j else "column"
            # what varies along the columns alone is at hand before the loop over k
            value = self._value(c, Scope(n_covers, before), Scope(k_covers, each), Lanes(nest.n, position, part))
            each.append(f"const {v} b{j} = {value};")
        out: list[str] = []
        for rows in self.groups:
            grid = [(i, j) for i in rows for j in range(vectors)]
            at = {(i, j): f"sums{c} + {i * self.schedule.columns + j * self.width} + (column - first)" for i, j in grid}
            step = list(each)
            for i in rows:
                sums = " ".join(f"c{i}_{j} += x * b{j};" for j in range(vectors))
                step.append(f"{{ const {nest.scalar} x = ({nest.scalar})across[k * {self.m} + {i}]; {sums} }}")
            load = [f"{v} c{i}_{j} = ({v})eq_load_{nest.register}({at[i, j]});" for i, j in grid]
            store = [f"eq_store_{nest.register}({at[i, j]}, (v{nest.register})c{i}_{j});" for i, j in grid]
            out += loop("", [*load, *loop("for (pos k = k_first; k < k_last; k++)", step), *store])
        return [*before, *out]

    def _dots(self, c: int) -> list[str]:
        """Vectors along k: inner products of the rows of a with a few columns of b at a time."""
        unroll = self.schedule.vectors
        lines = loop(f"for (; column + {unroll} <= last; column += {unroll})", self._products(c, unroll))
        if unroll > 1:
            lines += loop("for (; column < last; column++)", self._products(c, 1))
        return loop("", ["pos column = first;", *lines])

    def _products(self, c: int, count: int) -> list[str]:
        nest, v = self.nest, self.nest.vector
        covers = frozenset().union(*(x.covers for x in nest.n))
        shared: list[str] = []
        scopes = [Scope(covers, shared) for _ in range(count)]
        out: list[str] = []
        for rows in self.groups:

            def body(position: str, part: str | None, _: int, rows: range = rows) -> list[str]:
                last = Scope(frozenset().union(*(x.covers for x in nest.k)))
                lanes = Lanes(nest.k, position, part)
                for u in range(count):
                    nest.place(nest.n, f"(column + {u})" if u else "column")
                    value = self._value(c, scopes[u], Scope(last.covers, last.lines), lanes)
                    if part is not None:  # 0 times an infinity that an expression makes of nothing would be NaN
                        value = (
                            f"({v})eq_where_{nest.register}(eq_first({part}), (v{nest.register}){value}, (v{nest.register}){{0}})"
                        )
                    last.lines.append(f"const {v} b{u} = {value};")
                for i in rows:
                    sums = " ".join(f"d{i}_{u} += x * b{u};" for u in range(count))
                    load = f"({v})eq_load_{nest.register}(rows + {i * self.stride} + {position})"
                    last.lines.append(f"{{ const {v} x = {load}; {sums} }}")
                return loop("", last.lines)

            pairs = [(i, u) for i in rows for u in range(count)]
            inner = list(vector_loop("k", "0", self.k, self.width, 1, body))
            fold = [
                f"sums{c}[{i * self.schedule.columns} + column + {u} - first] = "
                f"eq_fold_add_{nest.register}((v{nest.register})d{i}_{u})[0];"
                for i, u in pairs
            ]
            out += loop("", [*(f"{v} d{i}_{u} = {{0}};" for i, u in pairs), *inner, *fold])
        return [*shared, *out]
