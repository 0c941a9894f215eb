"""Reductions on CUDA: rows held in registers or streamed, rows over a cluster or a grid, columns, and a fallback for all."""

from __future__ import annotations

import math

from eqsat.codegen.cuda.bounds import (
    IN_FLIGHT_BYTES,
    L2_BYTES_PER_PROCESSOR,
    arithmetic_ns,
    latency_factor,
    processors,
    traffic_ns,
)
from eqsat.codegen.cuda.emit import refuse_illegal
from eqsat.codegen.cuda.loads import INT_LIMIT
from eqsat.codegen.cuda.reduce_columns import emit_columns
from eqsat.codegen.cuda.reduce_held_columns import elements_each, emit_held_columns
from eqsat.codegen.cuda.reduce_held_rows import LARGEST_CLUSTER, SHARED_BYTES, emit_held_rows, vectors_each
from eqsat.codegen.cuda.reduce_legal import (
    column_refusal,
    grid_refusal,
    held_column_refusal,
    held_grid_refusal,
    parked_refusal,
    row_refusal,
)
from eqsat.codegen.cuda.reduce_parked import emit_parked_rows, vectors_of
from eqsat.codegen.cuda.reduce_rows import REGISTERS, emit_grid, emit_rows
from eqsat.codegen.cuda.reduce_schedule import (
    ColumnTile,
    FallbackReduceTile,
    GridReduceTile,
    HeldColumnTile,
    HeldGridTile,
    ParkedRowTile,
    RowTile,
)
from eqsat.codegen.cuda.reduce_shape import ReduceShape, reduce_shape
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Problem, ReduceProblem, nest
from eqsat.codegen.targets import Target


class ReduceFamily:
    """Row, column and whole reductions, with everything pointwise before, between and after them."""

    name = "reduce"
    schedules: tuple[type[Schedule], ...] = (
        RowTile, ParkedRowTile, ColumnTile, HeldColumnTile, GridReduceTile, HeldGridTile, FallbackReduceTile,
    )  # fmt: skip

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ReduceProblem):
            return f"a reduce kernel cannot serve a {problem.family} problem"
        for e in problem.reductions:
            if e.op in ("argmax", "argmin") and len(nest(e)[0]) > 1:
                return f"{e.op} of {e.op} is not one reduction: materialise the inner one"
            if e.op in ("argmax", "argmin") and problem.length >= INT_LIMIT:
                return f"a position among {problem.length} elements does not fit 32 bits"
        shape = _shape(problem, schedule)
        match schedule:
            case RowTile():
                return row_refusal(shape, schedule)
            case ParkedRowTile():
                return parked_refusal(shape, schedule)
            case ColumnTile():
                return column_refusal(shape, schedule)
            case HeldColumnTile():
                return held_column_refusal(shape, schedule)
            case GridReduceTile():
                return grid_refusal(shape, schedule)
            case HeldGridTile():
                return held_grid_refusal(shape, schedule)
            case FallbackReduceTile():
                return None if 1 <= schedule.rows <= 8 else "a block has 1 to 8 rows"
            case _:
                return f"a reduce kernel has no schedule {type(schedule).__name__}"

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, ReduceProblem)
        shape = _shape(problem, schedule)
        match schedule:
            case RowTile():
                return emit_rows(shape, schedule)
            case ParkedRowTile():
                return emit_parked_rows(shape, schedule)
            case ColumnTile():
                return emit_columns(shape, schedule)
            case HeldColumnTile():
                return emit_held_columns(shape, schedule)
            case GridReduceTile():
                return emit_grid(shape, schedule)
            case HeldGridTile():
                return emit_held_rows(shape, schedule)
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
        shape = _shape(problem, schedule)
        bound = self.bound_ns(problem, rates)
        return bound * _model_factor(shape, schedule, rates, bound)

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: every CUDA device (clusters are left to the compiler to refuse)."""
        return target.kind == "cuda"


def _shape(problem: ReduceProblem, schedule: Schedule) -> ReduceShape:
    """Return the problem's shape; neighbouring columns pick different terms, so there a sum of one term is a sum like others."""
    return reduce_shape(problem, not isinstance(schedule, ColumnTile | HeldColumnTile))


def _traffic_ns(shape: ReduceShape, rates: Rates) -> float:
    """Return the time of memory: each byte once, but for rows that several passes go over and the whole device cannot hold."""
    program, problem = shape.problem.program, shape.problem
    once = traffic_ns(program, rates)
    row = sum(x.expr.type.elements * x.dtype.bytes for x in shape.loads if shape.is_held(x))
    if len(shape.passes) == 1 or row <= problem.row_count * processors(rates) * (4 * REGISTERS + SHARED_BYTES):
        return once
    again = len(shape.passes) - (not problem.keeps)
    moved = program.bytes + again * row
    return max(once * moved / max(program.bytes, 1), moved / (processors(rates) * L2_BYTES_PER_PROCESSOR))


def _issue_ns(shape: ReduceShape, rates: Rates) -> float:
    """Return the time for every row to bring its elements to registers.

    No template shares an element between rows, except that lanes along the rows (16 at most) share one that is the same for them.
    """
    points = shape.problem.row_count * shape.problem.length
    rows = set(shape.problem.rows)
    loaded = sum(points * x.dtype.bytes / (1 if rows <= x.axes else 16) for x in shape.loads if shape.varies(x.expr))
    return loaded / rates.issue


def _model_factor(shape: ReduceShape, s: Schedule, rates: Rates, bound: float) -> float:
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
        case ParkedRowTile():
            factor = 1.02 + 0.02 * math.log2(s.cluster) + 0.03 * abs(s.resident - 3) + 0.02 * (s.warps > 8)
            return factor * latency_factor(rates, rows * 32 * s.warps * s.cluster, vectors_of(shape, s) * s.width)
        case ColumnTile():
            lanes = shape.lanes(s.width, shape.rows[-1])
            factor = 1.02 + 0.35 * (len(shape.passes) - (not shape.problem.keeps)) + 0.05 * math.log2(max(16 / (lanes * size), 1))
            threads = rows / lanes * s.split * s.groups
            return factor * latency_factor(rates, threads, s.count * lanes * size) + 0.0005 * s.split
        case HeldColumnTile():
            lanes = shape.lanes(s.width, shape.rows[-1])
            each = elements_each(shape, s)
            across = lanes * size * s.columns  # bytes that a block reads side by side
            factor = (
                1.02
                + 0.03 * math.log2(max(256 / across, 1))
                + 0.02 * math.log2(s.cluster)
                + 0.05 * math.log2(max(16 / (lanes * size), 1))
            )
            factor += 0.02 * abs(math.log2(each / 8)) + 0.002 * s.hint
            return factor * latency_factor(rates, max(rows / lanes, 1) * s.groups * s.cluster, each * lanes * size)
        case HeldGridTile():
            lanes = shape.lanes(s.width, shape.reduced[-1])
            held = s.teams * s.split * s.threads * vectors_each(shape, s) * lanes * size
            once = traffic_ns(shape.problem.program, rates)
            if s.split <= LARGEST_CLUSTER:
                flight = IN_FLIGHT_BYTES * processors(rates) / max(held, 1.0)
                return (once / max(bound, 1.0)) * max(1.0, flight) * (1.04 + 0.03 * math.log2(s.split))
            waits = 3000.0 * len(shape.passes) * -(-rows // s.teams)  # ns: a trip or two through the level-2 cache
            return (once / max(bound, 1.0)) * (1.02 + waits / once) * max(1.0, IN_FLIGHT_BYTES * processors(rates) / held)
        case GridReduceTile():
            lanes = shape.lanes(s.width, shape.reduced[-1])
            return 1.02 * latency_factor(rates, rows * s.split * s.threads, s.count * lanes * size) + 0.00005 * s.split
        case _:
            return 8.0 * latency_factor(rates, rows * 32, 4 * size)
