"""Contractions with few rows: the left operand is evaluated once, the right one streams through without packing."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cpu.bounds import contract_bound_ns, memory_bound_ns
from eqsat.codegen.cpu.contraction import ContractNest, sum_dtype
from eqsat.codegen.cpu.loops import loop, parallel, vector_loop
from eqsat.codegen.cpu.model import shared
from eqsat.codegen.cpu.point import common_refusal
from eqsat.codegen.cpu.source import assemble
from eqsat.codegen.cpu.vector import Lanes, Scope, converted, widest
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import ContractProblem, Problem
from eqsat.codegen.targets import Target
from eqsat.errors import IllegalScheduleError

MOST_ROWS = 16
_STACK_BYTES = 1 << 19  # the most that the sums of one block of columns take of a thread's stack
_SUMS = 64  # accumulators beyond this spill in every iteration


@dataclass(frozen=True, slots=True)
class CpuSkinnyTile(Schedule):
    """A contraction of at most 16 rows, bound by the bytes of its right operand.

    Parameters
    ----------
    vector_bytes : int
        Bytes of a vector of sums: 16, 32 or 64.
    unroll : int
        Positions of k (columns, where the right operand is contiguous along k) taken in by one iteration.
    columns : int
        Columns of a block, whose sums stay in a near cache.
    threads : int
        1, or 0 for all cores.
    compiler : int
        0 any, 1 the system's, 2 zig.
    """

    vector_bytes: int
    unroll: int
    columns: int
    threads: int
    compiler: int


class SkinnyFamily:
    """Contractions with at most 16 rows."""

    name = "cpu-skinny"
    schedules: tuple[type[Schedule], ...] = (CpuSkinnyTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ContractProblem) or not isinstance(schedule, CpuSkinnyTile):
            return f"expected a contract problem and a CpuSkinnyTile; got {problem.family} and {type(schedule).__name__}"
        if refusal := common_refusal(schedule.vector_bytes, schedule.unroll, schedule.threads, schedule.compiler):
            return refusal
        _, m, n, k = problem.shape
        if m > MOST_ROWS:
            return f"{m} rows are more than {MOST_ROWS}"
        size = sum_dtype(problem).bytes
        if schedule.columns < 1 or schedule.columns % (schedule.vector_bytes // size):
            return f"blocks of {schedule.columns} columns are not a whole number of vectors"
        count = len(problem.contractions)
        if m * schedule.columns * size * count > _STACK_BYTES:
            return f"the sums of {m} x {schedule.columns} columns are more than {_STACK_BYTES} bytes"
        if schedule.columns >= 2 * max(n, 64):
            return f"blocks of {schedule.columns} columns for {n}"
        if schedule.unroll > 1 and m * schedule.unroll > _SUMS:
            return f"{m} rows times {schedule.unroll} unrolled are more than {_SUMS} values in registers"
        if schedule.unroll > max(1, k, n):
            return f"nothing is {schedule.unroll} long"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        if refusal := self.legal(problem, schedule):
            raise IllegalScheduleError(f"{schedule}: {refusal}")
        assert isinstance(problem, ContractProblem)
        assert isinstance(schedule, CpuSkinnyTile)
        nest = ContractNest(problem, schedule.vector_bytes // sum_dtype(problem).bytes)
        body = nest.wrapped(_Skinny(nest, schedule).lines())
        return assemble(
            nest.printer,
            schedule,
            body,
            mask_bits=8 * widest([problem.output.expr]),
            threads=schedule.threads,
            compiler=schedule.compiler,
            workspace_bytes=nest.workspace_bytes,
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time of the multiply-adds or of the bytes, whichever is longer, over the launch floor."""
        return contract_bound_ns(problem, rates)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return the time that a model expects."""
        assert isinstance(problem, ContractProblem)
        assert isinstance(schedule, CpuSkinnyTile)
        arithmetic = problem.flops / rates.rate("f32") * {16: 4.0, 32: 2.0, 64: 1.0}[schedule.vector_bytes]
        memory = memory_bound_ns(problem.program, rates)
        visits = 1.0 + 1.0 / schedule.unroll + 64.0 / schedule.columns
        return shared(max(arithmetic, memory) * visits, schedule.threads) + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether the target is a CPU."""
        return target.kind == "cpu"


class _Skinny:
    """The kernel while it is being printed."""

    def __init__(self, nest: ContractNest, schedule: CpuSkinnyTile) -> None:
        self.nest, self.schedule = nest, schedule
        _, self.m, self.n, self.k = nest.problem.shape
        self.width = nest.printer.width
        self.stride = -(-self.k // self.width) * self.width  # rows of the evaluated left operand, whole vectors

    def lines(self) -> list[str]:
        """Return what happens for one batch."""
        nest, step = self.nest, self.schedule.columns
        statistics = nest.statistics(1)
        nest.scratch("left", self.m * self.stride, nest.element, nest.bytes)
        body = [f"const pos last = first + {step} < {self.n} ? first + {step} : {self.n};"]
        sums = range(len(nest.problem.contractions))
        body += [f"{nest.element} sums{c}[{self.m * step}] __attribute__((aligned(64)));" for c in sums]
        for c, x in enumerate(nest.problem.contractions):
            dots = not nest.along(x.b, nest.n) and nest.along(x.b, nest.k)
            body += self._dots(c) if dots else self._axpys(c)

        def address(c: int, position: str) -> str:
            return f"sums{c} + row * {step} + ({position} - first)"

        epilogue = nest.epilogue(address, "first", "last", "row")
        body += loop(f"for (pos row = 0; row < {self.m}; row++)", epilogue)
        blocks = loop(f"for (pos first = 0; first < {self.n}; first += {step})", body)
        return [*statistics, *self._left(), *parallel(self.schedule.threads), *blocks]

    def _left(self) -> list[str]:
        """Evaluate the left operand into rows of scratch memory, 0 beyond k."""
        nest = self.nest
        nest.place(nest.m, "row")
        row = Scope(frozenset().union(*(x.covers for x in nest.m)))
        a = nest.problem.contractions[0].a

        def body(position: str, part: str | None, _: int) -> list[str]:
            last, lanes = Scope(frozenset().union(*(x.covers for x in nest.k))), Lanes(nest.k, position, part)
            value = converted(nest.printer.value(a, [*nest.outer, row, last], lanes), a.dtype, nest.dtype)
            if part is not None:
                value = f"eq_where_{nest.register}(eq_first({part}), {value}, (v{nest.register}){{0}})"
            last.lines.append(f"eq_store_{nest.register}(left + row * {self.stride} + {position}, {value});")
            return last.lines

        lines = list(vector_loop("k", "0", self.k, self.width, 1, body))
        return loop(f"for (pos row = 0; row < {self.m}; row++)", [*row.lines, *lines])

    def _value(self, c: int, scope: Scope, last: Scope, lanes: Lanes) -> str:
        b = self.nest.problem.contractions[c].b
        value = converted(self.nest.printer.value(b, [*self.nest.outer, scope, last], lanes), b.dtype, self.nest.dtype)
        return f"({self.nest.vector}){value}" if self.nest.register[0] == "i" else value

    def _axpys(self, c: int) -> list[str]:
        """Vectors along the columns: every row of b that is read is added, times a number, to the sums of each row of a."""
        nest, v = self.nest, self.nest.vector
        covers = frozenset().union(*(x.covers for x in nest.k))

        def iteration(count: int) -> list[str]:
            shared: list[str] = []
            scopes = [Scope(covers, shared) for _ in range(count)]
            numbers = [
                f"const {nest.scalar} a{i}_{u} = ({nest.scalar})left[{i * self.stride} + k + {u}];"
                for i in range(self.m)
                for u in range(count)
            ]

            def body(position: str, part: str | None, _: int) -> list[str]:
                last = Scope(frozenset().union(*(x.covers for x in nest.n)))
                lanes = Lanes(nest.n, position, part)
                names = []
                for u in range(count):
                    nest.place(nest.k, f"(k + {u})" if u else "k")
                    mine = Scope(last.covers, last.lines)
                    names.append(self._value(c, scopes[u], mine, lanes))
                for i in range(self.m):
                    at = f"(sums{c} + {i * self.schedule.columns} + ({position} - first))"
                    total = " + ".join(f"a{i}_{u} * {b}" for u, b in enumerate(names))
                    last.lines.append(f"*({v} *){at} += {total};")
                return last.lines

            columns = list(vector_loop("column", "first", "last", self.width, 1, body))
            return [*numbers, *shared, *columns]

        unroll = min(self.schedule.unroll, max(self.k, 1))
        clear = f"memset(sums{c}, 0, sizeof sums{c});"
        lines = loop(f"for (; k + {unroll} <= {self.k}; k += {unroll})", iteration(unroll))
        if unroll > 1 and self.k % unroll:
            lines += loop(f"for (; k < {self.k}; k++)", iteration(1))
        return [clear, *loop("", ["pos k = 0;", *lines])]

    def _dots(self, c: int) -> list[str]:
        """Vectors along k: inner products of the rows of a with a few columns of b at a time."""
        nest, v = self.nest, self.nest.vector
        covers = frozenset().union(*(x.covers for x in nest.n))

        def iteration(count: int) -> list[str]:
            shared: list[str] = []
            scopes = [Scope(covers, shared) for _ in range(count)]
            pairs = [(i, u) for i in range(self.m) for u in range(count)]

            def body(position: str, part: str | None, _: int) -> list[str]:
                last = Scope(frozenset().union(*(x.covers for x in nest.k)))
                lanes = Lanes(nest.k, position, part)
                names = []
                for u in range(count):
                    nest.place(nest.n, f"(column + {u})" if u else "column")
                    mine = Scope(last.covers, last.lines)
                    value = self._value(c, scopes[u], mine, lanes)
                    if part is not None:  # 0 times an infinity that an expression makes of nothing would be NaN
                        value = (
                            f"({v})eq_where_{nest.register}(eq_first({part}), (v{nest.register}){value}, (v{nest.register}){{0}})"
                        )
                    names.append(value)
                for i in range(self.m):
                    last.lines.append(f"const {v} a{i} = ({v})eq_load_{nest.register}(left + {i * self.stride} + {position});")
                    last.lines += [f"d{i}_{u} += a{i} * {b};" for u, b in enumerate(names)]
                return [*loop("", last.lines)]

            inner = list(vector_loop("k", "0", self.k, self.width, 1, body))
            fold = [
                f"sums{c}[{i * self.schedule.columns} + column + {u} - first] = "
                f"eq_fold_add_{nest.register}((v{nest.register})d{i}_{u})[0];"
                for i, u in pairs
            ]
            return [*(f"{v} d{i}_{u} = {{0}};" for i, u in pairs), *shared, *inner, *fold]

        unroll = self.schedule.unroll
        lines = loop(f"for (; column + {unroll} <= last; column += {unroll})", iteration(unroll))
        if unroll > 1:
            lines += loop("for (; column < last; column++)", iteration(1))
        return loop("", ["pos column = first;", *lines])
