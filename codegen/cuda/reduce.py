"""Reductions on CUDA: rows held in registers or streamed, rows over a cluster or a grid, columns, and a fallback for all."""

from __future__ import annotations

import math

from eqsat.codegen.cuda.bounds import L2_BYTES_PER_PROCESSOR, arithmetic_ns, latency_factor, processors, traffic_ns
from eqsat.codegen.cuda.emit import refuse_illegal
from eqsat.codegen.cuda.loads import Load, LoopAxis
from eqsat.codegen.cuda.reduce_columns import emit_columns
from eqsat.codegen.cuda.reduce_rows import emit_grid, emit_rows
from eqsat.codegen.cuda.reduce_schedule import HINTS, ColumnTile, FallbackReduceTile, GridReduceTile, RowTile
from eqsat.codegen.cuda.reduce_shape import ReduceShape, reduce_shape, row_registers, wide_dtype
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Problem, ReduceProblem, nest
from eqsat.codegen.targets import Target

WIDTHS = (1, 2, 4, 8, 16, 32)
HELD_REGISTERS = 160  # of 255 for each thread; the rest computes
STATIC_SHARED_BYTES = 48 * 1024
LARGEST_CLUSTER = 16  # blocks, of which one has all registers of a multiprocessor at most
REGISTERS = 65536


class ReduceFamily:
    """Row, column and whole reductions, with everything pointwise before, between and after them."""

    name = "reduce"
    schedules: tuple[type[Schedule], ...] = (RowTile, ColumnTile, GridReduceTile, FallbackReduceTile)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ReduceProblem):
            return f"a reduce kernel cannot serve a {problem.family} problem"
        for e in problem.reductions:
            if e.op in ("argmax", "argmin") and len(nest(e)[0]) > 1:
                return f"{e.op} of {e.op} is not one reduction: materialise the inner one"
        shape = reduce_shape(problem)
        match schedule:
            case RowTile():
                return _row_refusal(shape, schedule)
            case ColumnTile():
                return _column_refusal(shape, schedule)
            case GridReduceTile():
                return _grid_refusal(shape, schedule)
            case FallbackReduceTile():
                return None if 1 <= schedule.rows <= 8 else "a block has 1 to 8 rows"
            case _:
                return f"a reduce kernel has no schedule {type(schedule).__name__}"

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, ReduceProblem)
        shape = reduce_shape(problem)
        match schedule:
            case RowTile():
                return emit_rows(shape, schedule)
            case ColumnTile():
                return emit_columns(shape, schedule)
            case GridReduceTile():
                return emit_grid(shape, schedule)
            case _:
                assert isinstance(schedule, FallbackReduceTile)
                return emit_rows(shape, RowTile(warps=1, rows=schedule.rows, width=1, cluster=1, stream=4, hint=0))

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time to move the bytes, to bring every operand to registers, or of the arithmetic: the longest."""
        assert isinstance(problem, ReduceProblem)
        program, shape = problem.program, reduce_shape(problem)
        return max(_traffic_ns(shape, rates), _issue_ns(shape, rates), arithmetic_ns(program, rates))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: the bytes at the memory rate, stretched by short or long lanes, extra passes, idle processors."""
        assert isinstance(problem, ReduceProblem)
        shape = reduce_shape(problem)
        return self.bound_ns(problem, rates) * _model_factor(shape, schedule, rates)

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: every CUDA device (clusters are left to the compiler to refuse)."""
        return target.kind == "cuda"


def _traffic_ns(shape: ReduceShape, rates: Rates) -> float:
    """Return the time of memory: each byte once, but for rows that several passes go over.

    One cluster at most works on such a row, since a grid cannot wait for itself; and what the registers of a cluster do not
    hold is read again.
    """
    program, problem = shape.problem.program, shape.problem
    once = traffic_ns(program, rates)
    if len(shape.passes) == 1:
        return once
    again = len(shape.passes) - (not problem.keeps) if problem.length > LARGEST_CLUSTER * REGISTERS else 0
    row = sum(x.expr.type.elements * x.dtype.bytes for x in shape.loads if shape.varies(x.expr))
    busy = min(processors(rates), problem.row_count * LARGEST_CLUSTER)
    return max(
        once * (program.bytes + again * row) / max(program.bytes, 1),
        (program.bytes + again * row) / (busy * L2_BYTES_PER_PROCESSOR),
    )


def _issue_ns(shape: ReduceShape, rates: Rates) -> float:
    """Return the time for every row to bring its elements to registers.

    No template shares an element between rows, except that lanes along the rows (16 at most) share one that is the same for them.
    """
    points = shape.problem.row_count * shape.problem.length
    rows = set(shape.problem.rows)
    loaded = sum(points * x.dtype.bytes / (1 if rows <= x.axes else 16) for x in shape.loads if shape.varies(x.expr))
    return loaded / rates.issue


def _model_factor(shape: ReduceShape, s: Schedule, rates: Rates) -> float:
    """Return how far above its bound a schedule is expected to run."""
    rows, length = shape.problem.row_count, max(shape.problem.length, 1)
    size = max((x.dtype.bytes for x in shape.loads), default=4)
    match s:
        case RowTile():
            lanes = shape.lanes(s.width, shape.reduced[-1])
            each = length / (32 * s.warps * s.cluster)
            factor = 1 + 0.08 * max(math.log2(16 / each), 0) + 0.15 * max(math.log2(each / 64), 0) + 0.25 * (s.warps == 32)
            factor += 0.02 * math.log2(s.cluster) + 0.03 * math.log2(max(16 / (lanes * size), 1)) + 0.002 * s.hint
            if s.stream:
                each = s.stream * lanes
                factor = 1.05 + 0.35 * (len(shape.passes) - (not shape.problem.keeps))
            return factor * latency_factor(rates, rows * 32 * s.warps * s.cluster, each * size)
        case ColumnTile():
            lanes = shape.lanes(s.width, shape.rows[-1])
            factor = 1.02 + 0.35 * (len(shape.passes) - (not shape.problem.keeps)) + 0.05 * math.log2(max(16 / (lanes * size), 1))
            blocks = max(rows / (lanes * s.columns), 1) * s.split
            return factor * latency_factor(rates, blocks * s.columns * s.groups, s.count * lanes * size) + 0.002 * s.split
        case GridReduceTile():
            lanes = shape.lanes(s.width, shape.reduced[-1])
            return 1.02 * latency_factor(rates, rows * s.split * s.threads, s.count * lanes * size) + 0.00005 * s.split
        case _:
            return 8.0 * latency_factor(rates, rows * 32, 4 * size)


def _width_refusal(shape: ReduceShape, inner: LoopAxis, width: int) -> str | None:
    lanes = shape.lanes(width, inner)
    if lanes > 1 and inner.extent % lanes:
        return f"the innermost extent {inner.extent} is not a multiple of the {lanes} elements of a vector"
    if width > 1 and lanes == 1:
        return "a vector of this width holds a single element: it is the schedule of width 1"
    largest = max((x.buffer.elements for x in shape.loads), default=0)
    loads = [x for x in shape.loads if x.buffer.elements == largest]
    stores = shape.element_stores
    if width > 1 and not any(shape.mode(x, inner, lanes) == "vector" for x in (*loads, *stores)):
        return "nothing large is contiguous along its vectors"
    other = shape.rows[-1] if inner is shape.reduced[-1] else shape.reduced[-1]
    if any(_contiguous(x, other) for x in loads) and not any(_contiguous(x, inner) for x in (*loads, *stores)):
        return "what it reads is contiguous along the other axes: lanes would stride"
    if width == 1 and shape.lanes(16, inner) > 1 and inner.extent % shape.lanes(16, inner) == 0:
        wide = shape.lanes(16, inner)
        if any(x.axes & set(inner.axes) for x in loads) and all(shape.mode(x, inner, wide) == "vector" for x in loads):
            return "single elements where vectors of 16 bytes serve"
    return None


def _contiguous(load: Load, loop: LoopAxis) -> bool:
    return bool(loop.axes) and load.step(loop.axes[-1]) == 1


def _row_refusal(shape: ReduceShape, s: RowTile) -> str | None:
    if s.warps not in (1, 2, 4, 8, 16, 32) or s.cluster not in (1, 2, 4, 8) or not 1 <= s.rows <= 8 or s.warps * s.rows > 32:
        return "a row has a power of two of warps up to 32, a cluster up to 8 blocks, a block up to 8 rows and 32 warps"
    if s.rows > 1 and s.cluster > 1:
        return "a cluster serves one row"
    if s.width not in WIDTHS or s.stream not in (0, 1, 2, 4, 8) or not 0 <= s.hint < len(HINTS):
        return f"the width is one of {WIDTHS}, the stream one of 0, 1, 2, 4, 8, the hint one of 0 to {len(HINTS) - 1}"
    inner, length = shape.reduced[-1], shape.problem.length
    lanes = shape.lanes(s.width, inner)
    if why := _width_refusal(shape, inner, s.width):
        return why
    vectors = length // lanes
    threads = s.warps * 32
    if s.warps > 1 and threads * s.cluster > 2 * max(vectors, 1):
        return f"{threads * s.cluster} threads share {vectors} vectors of a row"
    each = -(-max(vectors, 1) // (s.cluster * threads)) if s.stream == 0 else s.stream
    registers = row_registers(shape, each * lanes, inner, lanes)
    budget = min(HELD_REGISTERS, 65536 // (threads * s.rows) - 24)
    if registers > budget:
        return f"{registers} registers for each thread to hold its part of the row; {budget} are there"
    return "a row this short fits the registers" if s.stream and s.cluster > 1 and vectors <= s.stream * threads else None


def _column_refusal(shape: ReduceShape, s: ColumnTile) -> str | None:
    if s.columns % 32 or s.columns * s.groups > 1024 or s.columns < 32 or s.groups < 1 or not 1 <= s.count <= 16 or s.split < 1:
        return "columns are a multiple of 32, and columns times groups at most 1024; 1 to 16 elements are in flight"
    if s.width not in WIDTHS:
        return f"the width is one of {WIDTHS}"
    if s.split > 1 and not shape.single:
        return "only one pass without elements in the output can be split over blocks"
    if s.split > 1 and s.split * s.groups > shape.problem.length:
        return "more thread groups than elements along the reduced axes"
    inner = shape.rows[-1]
    lanes = shape.lanes(s.width, inner)
    if why := _width_refusal(shape, inner, s.width):
        return why
    wide = 16 if any(r.is_arg for g in shape.passes for r in g) else wide_dtype(shape).bytes
    shared = sum(s.columns * s.groups * lanes * wide for g in shape.passes for _ in g) if s.groups > 1 else 0
    if shared > STATIC_SHARED_BYTES:
        return f"{shared} bytes of shared memory for the partial results; {STATIC_SHARED_BYTES} are there without asking for more"
    loads = sum(max(lanes * x.dtype.bytes // 4, 1) for x in shape.loads)
    words = s.count * loads + lanes * wide // 4 * len(shape.problem.reductions)
    budget = min(HELD_REGISTERS, 65536 // (s.columns * s.groups) - 24)
    return f"{words} registers for each thread; {budget} are there" if words > budget else None


def _grid_refusal(shape: ReduceShape, s: GridReduceTile) -> str | None:
    if s.threads not in (64, 128, 256, 512, 1024) or s.count not in (1, 2, 4, 8) or s.split < 2 or s.width not in WIDTHS:
        return "threads are a power of two from 64 to 1024, count one of 1, 2, 4, 8, and two blocks or more share a row"
    if not 0 <= s.hint < len(HINTS):
        return f"the hint is one of 0 to {len(HINTS) - 1}"
    if not shape.single:
        return "only one pass without elements in the output can be split over blocks"
    inner = shape.reduced[-1]
    lanes = shape.lanes(s.width, inner)
    if why := _width_refusal(shape, inner, s.width):
        return why
    if s.split * s.threads > 2 * shape.problem.length // lanes:
        return "more threads than vectors in a row"
    words = row_registers(shape, s.count * lanes, inner, lanes)
    return f"{words} registers of loads in flight for each thread" if words > HELD_REGISTERS // 2 else None
