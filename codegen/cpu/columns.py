"""Reductions down columns: vectors along the innermost row axis, one accumulator for each column in an array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eqsat.codegen.cpu.accumulate import Accumulator, stages
from eqsat.codegen.cpu.bounds import streaming_bound_ns
from eqsat.codegen.cpu.contraction import spill, spilled, unspill
from eqsat.codegen.cpu.loads import elements
from eqsat.codegen.cpu.loops import loop, parallel, vector_loop
from eqsat.codegen.cpu.model import streaming_ns
from eqsat.codegen.cpu.point import common_refusal, lanes_of
from eqsat.codegen.cpu.reduce import contiguous, reduced_loops, row_loops
from eqsat.codegen.cpu.source import assemble
from eqsat.codegen.cpu.vector import ELEMENT, REGISTER, Lanes, Printer, Scope, widest
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.printer import is_load
from eqsat.codegen.problem import Problem, ReduceProblem
from eqsat.codegen.targets import Target
from eqsat.errors import IllegalScheduleError
from eqsat.ir import Expr
from eqsat.ops import Kind
from eqsat.types import DType

_BLOCK_ROWS = 256  # sums of floats over more reduced positions than this are added up in blocks
_STACK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class CpuColumnTile(Schedule):
    """Columns in blocks, vectors along them, the reduced axes outside.

    Parameters
    ----------
    vector_bytes : int
        Bytes of a vector of the widest type that occurs: 16, 32 or 64.
    unroll : int
        Reduced positions taken in by one visit to an accumulator.
    columns : int
        Columns of a block: their accumulators stay in the nearest cache.
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


class ColumnFamily:
    """Reductions with vectors along the innermost row axis: best where a read is contiguous along that."""

    name = "cpu-columns"
    schedules: tuple[type[Schedule], ...] = (CpuColumnTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ReduceProblem) or not isinstance(schedule, CpuColumnTile):
            return f"expected a reduce problem and a CpuColumnTile; got {problem.family} and {type(schedule).__name__}"
        if refusal := common_refusal(schedule.vector_bytes, schedule.unroll, schedule.threads, schedule.compiler):
            return refusal
        rows = row_loops(problem)
        if not rows:
            return "a whole reduction has no columns"
        if not contiguous(problem, rows[-1]):
            return "no read is contiguous along the innermost row axis"
        if schedule.columns < 1 or schedule.columns % lanes_of(problem, schedule.vector_bytes):
            return f"{schedule.columns} columns are not a whole number of vectors"
        if schedule.columns >= 2 * max(rows[-1].extent, 16):
            return f"blocks of {schedule.columns} columns for {rows[-1].extent}"
        if schedule.unroll > max(1, reduced_loops(problem)[-1].extent):
            return f"the innermost reduced loop has only {reduced_loops(problem)[-1].extent} positions to unroll"
        arrays = 2 * len(problem.reductions) + len(_row_values(problem))
        if arrays * schedule.columns * 8 > _STACK_BYTES:
            return f"{arrays} arrays of {schedule.columns} columns are more than {_STACK_BYTES} bytes"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        if refusal := self.legal(problem, schedule):
            raise IllegalScheduleError(f"{schedule}: {refusal}")
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, CpuColumnTile)
        nest = _ColumnNest(problem, schedule)
        return assemble(
            nest.printer,
            schedule,
            nest.lines(),
            mask_bits=8 * widest([o.expr for o in problem.program.outputs]),
            threads=schedule.threads,
            compiler=schedule.compiler,
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time of the bytes or of the arithmetic, whichever is longer, over the launch floor."""
        return streaming_bound_ns(problem.program, rates)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return the time that a model expects."""
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, CpuColumnTile)
        again = len(stages(problem.reductions)) - 1 + problem.keeps
        return streaming_ns(
            problem.program,
            rates,
            vector_bytes=schedule.vector_bytes,
            unroll=schedule.unroll,
            threads=schedule.threads,
            passes=1.0 + again + 0.2 / schedule.unroll + 16.0 / schedule.columns,
        )

    def serves(self, target: Target) -> bool:
        """Return whether the target is a CPU."""
        return target.kind == "cpu"


def _row_values(problem: ReduceProblem) -> list[Expr]:
    """Return what the passes compute of results of reductions alone: worth an array rather than one evaluation an element."""
    reduced = frozenset(problem.reduced)
    roots = [a.body for group in stages(problem.reductions) for a in group]
    roots += [o.expr for o in problem.program.outputs]
    out: dict[str, Expr] = {}
    seen: set[str] = set()
    stack = roots
    while stack:
        e = stack.pop()
        if e.digest in seen or e.row.kind is Kind.REDUCE or is_load(e) or not e.args:
            continue
        seen.add(e.digest)
        if e.axes & reduced or not _reduces(e):
            stack.extend(e.args)
        elif e.dtype is not DType.BOOL:
            out[e.digest] = e
    return list(out.values()) if problem.keeps or len(stages(problem.reductions)) > 1 else []


def _reduces(e: Expr) -> bool:
    return any(x.row.kind is Kind.REDUCE for x in e.walk())


class _ColumnNest:
    """The loop nest of one kernel while it is being printed."""

    def __init__(self, problem: ReduceProblem, schedule: CpuColumnTile) -> None:
        self.problem, self.schedule = problem, schedule
        self.printer = Printer(problem.program, lanes_of(problem, schedule.vector_bytes))
        *self.rows, self.columns = row_loops(problem)
        self.reduced = reduced_loops(problem)
        for i, x in enumerate(self.rows):
            self.printer.names[x.axis] = f"i{i}"
        self.scopes = [Scope()] + [Scope(x.covers) for x in self.rows]
        self.block = Scope()
        self._left = {e.digest: e for e in _row_values(problem)}

    def lines(self) -> list[str]:
        """Return the body of the kernel."""
        extent, step = self.columns.extent, self.schedule.columns
        self.block.lines.append(f"const pos last = first + {step} < {extent} ? first + {step} : {extent};")
        for group in stages(self.problem.reductions):
            self._pass(group)
        self._output()
        lines = loop(f"for (pos first = 0; first < {extent}; first += {step})", self.block.lines)
        lines = [*([] if self.rows else parallel(self.schedule.threads)), *lines]
        for i, x in reversed(list(enumerate(self.rows))):
            pragma = parallel(self.schedule.threads) if i == 0 else []
            lines = [*pragma, *loop(f"for (pos i{i} = 0; i{i} < {x.extent}; i{i}++)", [*self.scopes[i + 1].lines, *lines])]
        return [*self.scopes[0].lines, *lines]

    def _array(self, name: str, register: str) -> str:
        size = self.schedule.columns + self.printer.width
        return f"{ELEMENT[spilled(register)]} {name}[{size}] __attribute__((aligned(64)));"

    def _fill(self, a: Accumulator, stem: str) -> list[str]:
        """Start the accumulators of a block."""
        lines = [f"v{t} {name}_0 = {a.start if name == stem else '{0}'};" for t, name in a.names(stem)]
        stores = [f"eq_store_{spilled(t)}({name} + j, {spill(t, f'{name}_0')});" for t, name in a.names(stem)]
        return loop("", [*lines, *loop(f"for (pos j = 0; j < last - first; j += {self.printer.width})", stores)])

    def _loaded(self, a: Accumulator, stem: str, position: str, suffix: str = "_v") -> list[str]:
        return [
            f"v{t} {name}{suffix} = {unspill(t, f'eq_load_{spilled(t)}({name} + ({position} - first))')};"
            for t, name in a.names(stem)
        ]

    def _stored(self, a: Accumulator, stem: str, position: str, suffix: str = "_v") -> list[str]:
        return [
            f"eq_store_{spilled(t)}({name} + ({position} - first), {spill(t, f'{name}{suffix}')});" for t, name in a.names(stem)
        ]

    def _over_columns(self, visit: Callable[[Scope, Lanes], None]) -> list[str]:
        """Print a loop of vectors over the columns of the block."""

        def body(position: str, part: str | None, _: int) -> list[str]:
            last = Scope(self.columns.covers)
            visit(last, Lanes((self.columns,), position, part))
            return last.lines

        return list(vector_loop("c", "first", "last", self.printer.width, 1, body))

    def _over_reduced(
        self, visit: Callable[[list[Scope], Scope, Lanes, int], None], block: tuple[list[str], list[str]] | None
    ) -> list[str]:
        """Print the reduced loops around vectors over the columns; `visit(scopes, last, lanes, u)` prints position u of an iteration."""
        outer = [Scope(x.covers) for x in self.reduced[:-1]]
        inner, unroll = self.reduced[-1], self.schedule.unroll
        names = [self.printer.fresh("k") for _ in self.reduced]
        for x, name in zip(self.reduced, names, strict=True):
            self.printer.names[x.axis] = name
        counter = names[-1]

        def iteration(count: int) -> list[str]:
            shared: list[str] = []
            scopes = [Scope(inner.covers, shared) for _ in range(count)]

            def column(last: Scope, lanes: Lanes) -> None:
                for u in range(count):
                    self.printer.names[inner.axis] = counter if u == 0 else f"({counter} + {u})"
                    mine = Scope(last.covers, last.lines)
                    visit([*self.scopes, self.block, *outer, scopes[u]], mine, lanes, u if count == unroll else -1 - u)

            lines = self._over_columns(column)
            return [*shared, *lines]

        def run(start: str, stop: str, steps: int) -> list[str]:
            lines = loop(f"for (; {counter} + {unroll} <= {stop}; {counter} += {unroll})", iteration(unroll))
            if unroll > 1 and steps % unroll:
                lines += loop(f"for (; {counter} < {stop}; {counter}++)", iteration(1))
            return [f"pos {counter} = {start};", *lines]

        span = _BLOCK_ROWS // unroll * unroll
        if block is None or inner.extent <= span:
            lines = loop("", run("0", str(inner.extent), inner.extent))
            lines = lines if block is None else loop("", [*block[0], *lines, *block[1]])
        else:
            end = f"const pos {counter}_last = {counter}_first + {span} < {inner.extent} ? {counter}_first + {span} : {inner.extent};"
            body = [end, *block[0], *run(f"{counter}_first", f"{counter}_last", inner.extent), *block[1]]
            lines = loop(f"for (pos {counter}_first = 0; {counter}_first < {inner.extent}; {counter}_first += {span})", body)
        for x, name, scope in reversed(list(zip(self.reduced[:-1], names[:-1], outer, strict=True))):
            lines = loop(f"for (pos {name} = 0; {name} < {x.extent}; {name}++)", [*scope.lines, *lines])
        return lines

    def _pass(self, group: Sequence[Accumulator]) -> None:
        """Print one pass: accumulators of the block filled, every position taken in, results at hand from here on."""
        stems = [self.printer.fresh("a") for _ in group]
        long = elements(self.reduced) > 2 * _BLOCK_ROWS and any(a.rounds for a in group)
        for a, stem in zip(group, stems, strict=True):
            for t, name in a.names(stem):
                self.block.lines += [self._array(name, t)]
                self.block.lines += [self._array(f"{name}_sum" if name == stem else f"{stem}_sum_at", t)] if long else []
            self.block.lines += self._fill(a, f"{stem}_sum" if long else stem)

        def visit(scopes: list[Scope], last: Scope, lanes: Lanes, u: int) -> None:
            first, final = u in (0, -1), u in (self.schedule.unroll - 1, -1)
            for a, stem in zip(group, stems, strict=True):
                last.lines += self._loaded(a, stem, lanes.position) if first else []
                x = self.printer.value(a.body, [*scopes, last], lanes)
                place = f"eq_splat_i64({self.printer.names[self.reduced[-1].axis]})"
                taken = a.take(f"{stem}_v", x, a.body.dtype, place, None)
                last.lines += [line.replace(f"{stem}_v_at", f"{stem}_at_v") for line in taken]
                last.lines += self._stored(a, stem, lanes.position) if final else []

        if long:
            starts = [line for a, stem in zip(group, stems, strict=True) for line in self._fill(a, stem)]
            ends: list[str] = []
            for a, stem in zip(group, stems, strict=True):
                ends += self._flush(a, stem)
            self.block.lines += self._over_reduced(visit, (starts, ends))
        else:
            self.block.lines += self._over_reduced(visit, None)
        for a, stem in zip(group, stems, strict=True):
            name = f"{stem}_sum" if long else stem
            register = "i64" if a.searches else a.register
            self.printer.stored[a.node.digest] = self._loader(a.result(name), register)
        self._precompute()

    def _flush(self, a: Accumulator, stem: str) -> list[str]:
        total = f"{stem}_sum"
        lines = [*self._loaded(a, stem, "j"), *self._loaded(a, total, "j")]
        joined = a.join(f"{total}_v", f"{stem}_v")
        lines += [x.replace(f"{total}_v_at", f"{total}_at_v").replace(f"{stem}_v_at", f"{stem}_at_v") for x in joined]
        lines += self._stored(a, total, "j")
        return loop(f"for (pos j = first; j < last; j += {self.printer.width})", lines)

    def _loader(self, name: str, register: str) -> Callable[[Lanes], str]:
        return lambda lanes: unspill(register, f"eq_load_{spilled(register)}({name} + ({lanes.position} - first))")

    def _precompute(self) -> None:
        """Store row values whose reductions are all at hand."""
        ready = []
        for e in list(self._left.values()):
            needed = [x for x in e.walk() if x.row.kind is Kind.REDUCE and x in self.problem.reductions]
            if all(x.digest in self.printer.stored for x in needed):
                ready.append(self._left.pop(e.digest))
        if not ready:
            return
        names = [f"row_{e.digest[:8]}" for e in ready]
        for e, name in zip(ready, names, strict=True):
            self.block.lines.append(self._array(name, REGISTER[e.dtype]))

        def visit(last: Scope, lanes: Lanes) -> None:
            for e, name in zip(ready, names, strict=True):
                value = self.printer.value(e, [*self.scopes, self.block, last], lanes)
                last.lines.append(f"eq_store_{REGISTER[e.dtype]}({name} + ({lanes.position} - first), {value});")

        self.block.lines += loop("", self._over_columns(visit))
        for e, name in zip(ready, names, strict=True):
            self.printer.stored[e.digest] = self._loader(name, REGISTER[e.dtype])

    def _output(self) -> None:
        def store(last: Scope, lanes: Lanes) -> None:
            self.printer.write(self.problem.lost, [*self.scopes, self.block, last], lanes)

        def visit(scopes: list[Scope], last: Scope, lanes: Lanes, _: int) -> None:
            self.printer.write(self.problem.kept, [*scopes, last], lanes)

        if self.problem.lost:
            self.block.lines += loop("", self._over_columns(store))
        if self.problem.keeps:
            self.block.lines += self._over_reduced(visit, None)
