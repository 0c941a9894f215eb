"""Reductions over small windows: vectors along the innermost axis of the outputs, all positions of a window in one visit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from eqsat.codegen.cpu.accumulate import accumulator
from eqsat.codegen.cpu.bounds import streaming_bound_ns
from eqsat.codegen.cpu.loads import Load, affine, loads
from eqsat.codegen.cpu.loops import loop, parallel, vector_loop
from eqsat.codegen.cpu.model import streaming_ns
from eqsat.codegen.cpu.point import common_refusal, lanes_of
from eqsat.codegen.cpu.reduce import row_loops
from eqsat.codegen.cpu.source import assemble
from eqsat.codegen.cpu.vector import Lanes, Printer, Scope, widest
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.printer import read_indices
from eqsat.codegen.problem import Problem, ReduceProblem
from eqsat.codegen.targets import Target
from eqsat.errors import IllegalScheduleError

MOST_POSITIONS = 128  # of a window: the text has them one by one


@dataclass(frozen=True, slots=True)
class CpuWindowTile(Schedule):
    """Vectors along the innermost axis of the outputs, the window's positions one by one in the text.

    Parameters
    ----------
    vector_bytes : int
        Bytes of a vector of the widest type that occurs: 16, 32 or 64.
    unroll : int
        Vectors in one iteration of the innermost loop.
    threads : int
        1, or 0 for all cores.
    compiler : int
        0 any, 1 the system's, 2 zig.
    """

    vector_bytes: int
    unroll: int
    threads: int
    compiler: int


class WindowFamily:
    """Reductions over windows on the CPU."""

    name = "cpu-window"
    schedules: tuple[type[Schedule], ...] = (CpuWindowTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ReduceProblem) or not isinstance(schedule, CpuWindowTile):
            return f"expected a reduce problem and a CpuWindowTile; got {problem.family} and {type(schedule).__name__}"
        if refusal := common_refusal(schedule.vector_bytes, schedule.unroll, schedule.threads, schedule.compiler):
            return refusal
        if refusal := _shape_refusal(problem):
            return refusal
        rows = row_loops(problem)
        if schedule.unroll > 1 and rows[-1].extent < lanes_of(problem, schedule.vector_bytes) * schedule.unroll:
            return f"the innermost loop has {rows[-1].extent} elements: less than an unrolled iteration takes"
        return "one row alone is not shared among threads" if schedule.threads != 1 and len(rows) == 1 else None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        if refusal := self.legal(problem, schedule):
            raise IllegalScheduleError(f"{schedule}: {refusal}")
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, CpuWindowTile)
        nest = _WindowNest(problem, schedule)
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
        assert isinstance(schedule, CpuWindowTile)
        inner = row_loops(problem)[-1]
        strided = [x for x in loads(problem.program) if inner.covers & x.expr.axes and x.offset.factor(inner.axis) != 1]
        return streaming_ns(
            problem.program,
            rates,
            vector_bytes=schedule.vector_bytes,
            unroll=schedule.unroll,
            threads=schedule.threads,
            gathered=sum(problem.row_count * problem.length for _ in strided) // 2,
        )

    def serves(self, target: Target) -> bool:
        """Return whether the target is a CPU."""
        return target.kind == "cpu"


def _shape_refusal(problem: ReduceProblem) -> str | None:
    if problem.keeps:
        return "an output keeps the positions of the window"
    if not row_loops(problem):
        return "a whole reduction has no windows"
    if not 2 <= problem.length <= MOST_POSITIONS:
        return f"the window has {problem.length} positions; 2 to {MOST_POSITIONS} are written out"
    sums = [accumulator(e) for e in problem.reductions]
    if any(a.searches for a in sums):
        return "it asks for a place within the window"
    known = {e.digest for e in problem.reductions}
    if any(e.digest in known for a in sums for e in a.body.walk()):
        return "a reduction waits for another"
    reduced = set(problem.reduced)
    indices = (i for x in loads(problem.program) for i in read_indices(x.expr)[1])
    moving = any(i.axes & reduced and i.axes - reduced for i in indices)
    return None if moving else "no load moves along the outputs and along the window in one dimension"


class _WindowNest:
    """The loop nest of one kernel while it is being printed."""

    def __init__(self, problem: ReduceProblem, schedule: CpuWindowTile) -> None:
        self.problem, self.schedule = problem, schedule
        self.printer = Printer(problem.program, lanes_of(problem, schedule.vector_bytes))
        self.loops = row_loops(problem)
        self.inner = self.loops[-1]
        for i, x in enumerate(self.loops[:-1]):
            self.printer.names[x.axis] = f"i{i}"
        self.scopes = [Scope()] + [Scope(x.covers) for x in self.loops[:-1]]
        self.sums = [accumulator(e) for e in problem.reductions]
        self.guarded = dict(self.printer.loads)

    def lines(self) -> list[str]:
        """Return the body of the kernel."""
        first, last = self._interior()
        pieces: list[list[str]] = []
        for start, stop, free in ((0, first, False), (first, last, True), (last, self.inner.extent, False)):
            if start < stop:
                pieces.append(self._piece(start, stop, free))
        lines = [line for piece in pieces for line in piece]
        for i, x in reversed(list(enumerate(self.loops[:-1]))):
            pragma = parallel(self.schedule.threads) if i == 0 else []
            lines = [*pragma, *loop(f"for (pos i{i} = 0; i{i} < {x.extent}; i{i}++)", self.scopes[i + 1].lines + lines)]
        return self.scopes[0].lines + lines

    def _interior(self) -> tuple[int, int]:
        """Return the range of the innermost loop in which no load leaves its buffer along that axis, whatever the window's position."""
        first, last = 0, self.inner.extent
        for x in self.guarded.values():
            for index, low, high in x.guards:
                if self.inner.axis not in index.axes:
                    continue
                part = affine([(index, 1)])
                step = part.factor(self.inner.axis)
                if part.others or step < 1:
                    return 0, 0
                rest = _rest(part.factors, part.constant, self.inner.axis, self.problem.program.extents)
                if low is not None:
                    first = max(first, -((rest[0] - low) // step))
                if high is not None:
                    last = min(last, (high - rest[1]) // step + 1)
        return (first, last) if first < last else (0, 0)

    def _piece(self, start: int, stop: int, free: bool) -> list[str]:
        """Print the innermost loop from `start` to `stop`; where it is `free`, no load is guarded along it."""
        self.printer.loads = {d: _freed(x, self.inner.axis) if free else x for d, x in self.guarded.items()}
        name = self.printer.fresh("p")

        def body(position: str, part: str | None, _: int) -> list[str]:
            return self._vector(position, part)

        width = self.printer.width
        if stop - start <= width:
            part = None if stop - start == width else str(stop - start)
            return loop("", [f"const pos {name} = {start};", *self._vector(name, part)])
        return loop("", list(vector_loop(name, str(start), stop, width, self.schedule.unroll, body)))

    def _vector(self, position: str, part: str | None) -> list[str]:
        """Print the windows of one vector of outputs, and the outputs."""
        lanes, last = Lanes((self.inner,), position, part), Scope(self.inner.covers)
        stems = [self.printer.fresh("a") for _ in self.sums]
        for a, stem in zip(self.sums, stems, strict=True):
            last.lines += a.declare(stem)
        for place in self._places():
            self.printer.names |= place
            scope = Scope(frozenset(place) | self.inner.covers)
            for a, stem in zip(self.sums, stems, strict=True):
                value = self.printer.value(a.body, [*self.scopes, last, scope], lanes)
                scope.lines += a.take(stem, value, a.body.dtype, "", None)
            last.lines += scope.lines
        for a, stem in zip(self.sums, stems, strict=True):
            last.names[a.node.digest] = stem
        for o in self.problem.program.outputs:
            self.printer.store(self.printer.value(o.expr, [*self.scopes, last], lanes), last, lanes, o)
        return last.lines

    def _places(self) -> Iterator[Mapping[str, str]]:
        """Yield the positions of the window, each as the C text of its axes."""
        extents = self.problem.program.extents
        for numbers in itertools.product(*(range(extents[a]) for a in self.problem.reduced)):
            yield dict(zip(self.problem.reduced, map(str, numbers), strict=True))


def _rest(factors: tuple[tuple[str, int], ...], constant: int, axis: str, extents: Mapping[str, int]) -> tuple[int, int]:
    """Return the least and the greatest value of an affine index without its part along `axis`."""
    ends = [sorted((0, f * (extents[a] - 1))) for a, f in factors if a != axis]
    return constant + sum(low for low, _ in ends), constant + sum(high for _, high in ends)


def _freed(load: Load, axis: str) -> Load:
    """Return a load without the guards that depend on `axis`."""
    return dataclasses.replace(load, guards=tuple(g for g in load.guards if axis not in g[0].axes))
