"""Pointwise kernels: one loop nest in the order of the output, vectors along its innermost loop."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cpu.bounds import streaming_bound_ns
from eqsat.codegen.cpu.loads import Load, Loop, loads, merged
from eqsat.codegen.cpu.loops import Body, loop, parallel, vector_loop
from eqsat.codegen.cpu.model import streaming_ns
from eqsat.codegen.cpu.source import assemble
from eqsat.codegen.cpu.vector import Lanes, Printer, Scope, widest
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import PointProblem, Problem
from eqsat.codegen.targets import Target
from eqsat.errors import IllegalScheduleError

VECTOR_BYTES = (16, 32, 64)
_CHUNK_VECTORS = 1024  # one iteration of a threaded loop over a flat array: enough work to hide a fork (0.6 us)


@dataclass(frozen=True, slots=True)
class CpuPointTile(Schedule):
    """A pointwise loop nest.

    Parameters
    ----------
    vector_bytes : int
        Bytes of a vector of the widest type that occurs: 16, 32 or 64.
    unroll : int
        Vectors in one iteration of the innermost loop.
    tile : int
        0, or the side (in elements) of the square tiles that walk a transposed read and the output together.
    threads : int
        1, or 0 for all cores.
    compiler : int
        0 any, 1 the system's, 2 zig.
    """

    vector_bytes: int
    unroll: int
    tile: int
    threads: int
    compiler: int


class PointFamily:
    """Pointwise programs on the CPU."""

    name = "cpu-point"
    schedules: tuple[type[Schedule], ...] = (CpuPointTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, PointProblem) or not isinstance(schedule, CpuPointTile):
            return f"expected a point problem and a CpuPointTile; got {problem.family} and {type(schedule).__name__}"
        if refusal := common_refusal(schedule.vector_bytes, schedule.unroll, schedule.threads, schedule.compiler):
            return refusal
        loops = _loops(problem)
        width = lanes_of(problem, schedule.vector_bytes)
        if schedule.unroll > 1 and loops[-1].extent < width * schedule.unroll:
            return f"the innermost loop has {loops[-1].extent} elements; one unrolled iteration takes {width * schedule.unroll}"
        if schedule.tile:
            if schedule.tile % width:
                return f"a tile of {schedule.tile} is not a whole number of vectors of {width} elements"
            if _partner(problem, loops) is None:
                return "no read is contiguous along another loop: there is nothing to tile"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        if refusal := self.legal(problem, schedule):
            raise IllegalScheduleError(f"{schedule}: {refusal}")
        assert isinstance(problem, PointProblem)
        assert isinstance(schedule, CpuPointTile)
        printer = Printer(problem.program, lanes_of(problem, schedule.vector_bytes))
        loops = _loops(problem)
        for i, x in enumerate(loops):
            printer.names[x.axis] = f"i{i}"
        body = (_tiled if schedule.tile else _nest)(problem, schedule, printer, loops)
        mask_bits = 8 * widest([o.expr for o in problem.program.outputs])
        return assemble(printer, schedule, body, mask_bits=mask_bits, threads=schedule.threads, compiler=schedule.compiler)

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time of the bytes or of the arithmetic, whichever is longer, over the launch floor."""
        return streaming_bound_ns(problem.program, rates)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return the time that a model expects."""
        assert isinstance(problem, PointProblem)
        assert isinstance(schedule, CpuPointTile)
        inner = _loops(problem)[-1]
        pieces = sum(x.expr.type.elements for x in loads(problem.program) if _in_pieces(x, inner))
        return streaming_ns(
            problem.program,
            rates,
            vector_bytes=schedule.vector_bytes,
            unroll=schedule.unroll,
            threads=schedule.threads,
            gathered=pieces // 2 if schedule.tile else pieces,
        )

    def serves(self, target: Target) -> bool:
        """Return whether the target is a CPU."""
        return target.kind == "cpu"


def common_refusal(vector_bytes: int, unroll: int, threads: int, compiler: int) -> str | None:
    """Return what is wrong with the fields that all CPU schedules share."""
    if vector_bytes not in VECTOR_BYTES:
        return f"vectors have {VECTOR_BYTES} bytes; got {vector_bytes}"
    if not 1 <= unroll <= 16:
        return f"expected 1 to 16 vectors in an iteration; got {unroll}"
    if threads not in (0, 1):
        return f"threads is 1 or 0 (all cores); got {threads}"
    if compiler not in (0, 1, 2):
        return f"compiler is 0 (any), 1 (system) or 2 (zig); got {compiler}"
    return "zig has no OpenMP" if compiler == 2 and threads != 1 else None


def lanes_of(problem: Problem, vector_bytes: int) -> int:
    """Return the elements of a vector: as many as fit of the widest type that occurs."""
    return vector_bytes // widest([o.expr for o in problem.program.outputs])


def _loops(problem: PointProblem) -> tuple[Loop, ...]:
    """Return the loops, at least one."""
    extents = problem.output.expr.type.extents
    return merged(problem.program, problem.axes, extents) or (Loop("", 1, frozenset()),)


def _in_pieces(load: Load, inner: Loop) -> bool:
    """Whether a load varies along the innermost loop without being contiguous there."""
    return bool(inner.covers & load.expr.axes) and load.offset.factor(inner.axis) != 1


def _partner(problem: PointProblem, loops: tuple[Loop, ...]) -> Loop | None:
    """Return the loop along which some read is contiguous that strides along the innermost loop."""
    for x in loops[:-1]:
        for load in loads(problem.program):
            if load.offset.factor(x.axis) == 1 and _in_pieces(load, loops[-1]):
                return x
    return None


def _nest(problem: PointProblem, schedule: CpuPointTile, printer: Printer, loops: tuple[Loop, ...]) -> list[str]:
    scopes = [Scope()] + [Scope(x.covers) for x in loops[:-1]]
    inner = loops[-1]
    counter = printer.names[inner.axis] = f"i{len(loops) - 1}"
    flat = len(loops) == 1 and schedule.threads != 1
    chunk = _CHUNK_VECTORS * printer.width * schedule.unroll
    start, stop = ("first", "last") if flat else ("0", inner.extent)
    lines = list(vector_loop(counter, start, stop, printer.width, schedule.unroll, _vector(printer, scopes, inner)))
    if flat:
        last = f"const pos last = first + {chunk} < {inner.extent} ? first + {chunk} : {inner.extent};"
        lines = [*parallel(0), *loop(f"for (pos first = 0; first < {inner.extent}; first += {chunk})", [last, *lines])]
    for i, x in reversed(list(enumerate(loops[:-1]))):
        pragma = parallel(schedule.threads) if i == 0 else []
        lines = [*pragma, *loop(f"for (pos i{i} = 0; i{i} < {x.extent}; i{i}++)", scopes[i + 1].lines + lines)]
    return scopes[0].lines + lines


def _vector(printer: Printer, scopes: list[Scope], inner: Loop) -> Body:
    """Return the printer of one vector of each output at a position of the innermost loop."""

    def body(position: str, part: str | None, _: int) -> list[str]:
        last = Scope(inner.covers)
        lanes = Lanes((inner,), position, part)
        printer.write(printer.program.outputs, [*scopes, last], lanes)
        return last.lines

    return body


def _tiled(problem: PointProblem, schedule: CpuPointTile, printer: Printer, loops: tuple[Loop, ...]) -> list[str]:
    """Walk squares of the innermost loop and of the one along which a read is contiguous; other loops stay outside."""
    partner, inner, tile = _partner(problem, loops), loops[-1], schedule.tile
    assert partner is not None
    others = [x for x in loops[:-1] if x is not partner]
    scopes = [Scope()] + [Scope(x.covers) for x in others] + [Scope(partner.covers)]
    p, q = printer.names[partner.axis], printer.names[inner.axis]
    lines = list(vector_loop(q, f"{q}_tile", f"{q}_end", printer.width, schedule.unroll, _vector(printer, scopes, inner)))
    lines = loop(f"for (pos {p} = {p}_tile; {p} < {p}_end; {p}++)", scopes[-1].lines + lines)
    for name, extent in ((q, inner.extent), (p, partner.extent)):
        end = f"const pos {name}_end = {name}_tile + {tile} < {extent} ? {name}_tile + {tile} : {extent};"
        pragma = parallel(schedule.threads) if name == p and not others else []
        lines = [*pragma, *loop(f"for (pos {name}_tile = 0; {name}_tile < {extent}; {name}_tile += {tile})", [end, *lines])]
    for i, x in reversed(list(enumerate(others))):
        name = printer.names[x.axis]
        pragma = parallel(schedule.threads) if i == 0 else []
        lines = [*pragma, *loop(f"for (pos {name} = 0; {name} < {x.extent}; {name}++)", scopes[i + 1].lines + lines)]
    return scopes[0].lines + lines
