"""Pointwise kernels: every element of each output is a function of loads. Vector accesses along the innermost axis, or turned tiles."""

from __future__ import annotations

import math

from eqsat.codegen.cuda.bounds import arithmetic_ns, issue_ns, latency_factor, traffic_ns
from eqsat.codegen.cuda.emit import refuse_illegal
from eqsat.codegen.cuda.loads import Load, access_mode
from eqsat.codegen.cuda.point_print import emit_sweep, emit_vectors
from eqsat.codegen.cuda.point_shape import HINTS, WIDTHS, PointShape, PointSweepTile, PointTile, TransposeTile, point_shape
from eqsat.codegen.cuda.point_turned import emit_turned, is_turned, turned_loop
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import PointProblem, Problem
from eqsat.codegen.targets import Target

__all__ = ["PointFamily", "PointSweepTile", "PointTile", "TransposeTile", "point_shape"]


class PointFamily:
    """Pointwise kernels on CUDA."""

    name = "point"
    schedules: tuple[type[Schedule], ...] = (PointTile, PointSweepTile, TransposeTile)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, PointProblem):
            return f"a point kernel cannot serve a {problem.family} problem"
        shape = point_shape(problem)
        if isinstance(schedule, TransposeTile):
            return _turned_refusal(shape, schedule)
        if not isinstance(schedule, PointTile | PointSweepTile):
            return f"a point kernel has no schedule {type(schedule).__name__}"
        if schedule.threads % 32 or not 32 <= schedule.threads <= 1024 or not 1 <= schedule.count <= 8:
            return "threads are a multiple of 32 up to 1024, and a thread makes 1 to 8 vectors"
        if schedule.width not in WIDTHS or not 0 <= schedule.hint < len(HINTS):
            return f"the width is one of {WIDTHS} and the hint one of 0 to {len(HINTS) - 1}"
        return _vector_refusal(shape, schedule) or (_sweep_refusal(shape) if isinstance(schedule, PointSweepTile) else None)

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, PointProblem)
        shape = point_shape(problem)
        if isinstance(schedule, TransposeTile):
            return emit_turned(shape, schedule)
        if isinstance(schedule, PointSweepTile):
            return emit_sweep(shape, schedule)
        assert isinstance(schedule, PointTile)
        return emit_vectors(shape, schedule)

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time to move each byte once, at least an empty kernel's."""
        program = problem.program
        return max(traffic_ns(program, rates), issue_ns(program, rates), arithmetic_ns(program, rates))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: the bytes at the memory rate, stretched by narrow and strided accesses."""
        assert isinstance(problem, PointProblem)
        shape = point_shape(problem)
        turned = isinstance(schedule, TransposeTile)
        assert isinstance(schedule, PointTile | PointSweepTile | TransposeTile)
        lanes = shape.lanes(schedule.width)
        wasted = sum(_wasted_bytes(x, shape, lanes) for x in shape.loads if not (turned and turned_loop(shape) and x.steps))
        factor = 1 + wasted / max(problem.program.bytes, 1) + 0.03 * turned
        factor += (
            0.03 * math.log2(max(16 / (lanes * min(o.dtype.bytes for o in problem.program.outputs)), 1)) + 0.002 * schedule.hint
        )
        if isinstance(schedule, PointTile | PointSweepTile):
            factor += 0.004 * (schedule.count - 1) + 0.01 * (schedule.threads < 256)
            each = schedule.count * sum(min(lanes * x.dtype.bytes, 64) for x in shape.loads)
            factor *= latency_factor(rates, shape.elements / (lanes * schedule.count), each)
        return traffic_ns(problem.program, rates) * factor

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: every CUDA device."""
        return target.kind == "cuda"


def _wasted_bytes(load: Load, shape: PointShape, lanes: int) -> float:
    """Return the bytes moved in vain by a strided read: 32-byte sectors of which one element is used."""
    if access_mode(load, shape.inner, lanes) == "uniform" or (shape.inner.axes and load.step(shape.inner.axes[-1]) == 1):
        return 0.0
    return load.expr.type.elements * (32 - load.dtype.bytes)


def _sweep_refusal(shape: PointShape) -> str | None:
    if len(shape.loops) < 2 or not any(x.buffer.elements * shape.loops[0].extent >= shape.elements for x in shape.shared):
        return "its rows share nothing as long as they are"
    return None if len(shape.shared) < len(shape.loads) else "nothing that it loads differs from row to row"


def _vector_refusal(shape: PointShape, s: PointTile | PointSweepTile) -> str | None:
    lanes = shape.lanes(s.width)
    if lanes > 1 and shape.inner.extent % lanes:
        return f"the innermost extent {shape.inner.extent} is not a multiple of the {lanes} elements of a vector"
    if s.width > 1 and lanes == 1:
        return "a vector of this width holds a single element: it is the schedule of width 1"
    words = s.count * sum(
        max(lanes * x.dtype.bytes // 4, 1) for x in shape.loads if access_mode(x, shape.inner, lanes) != "uniform"
    )
    if words > 128:
        return f"{words} registers of loads in flight for each thread"
    if s.count > 1 and shape.elements <= lanes * s.threads:
        return "one block with one vector for each thread covers the output"
    if s.hint and not any(access_mode(x, shape.inner, lanes) == "vector" and lanes * x.dtype.bytes >= 16 for x in shape.loads):
        return "a cache hint needs 16-byte accesses"
    return None


def _turned_refusal(shape: PointShape, s: TransposeTile) -> str | None:
    loop = turned_loop(shape)
    if loop is None:
        return "no load is contiguous along another axis than the output"
    if s.tile not in (32, 64) or s.threads not in (128, 256, 512) or s.width not in (1, 4, 8, 16) or not 0 <= s.hint < len(HINTS):
        return "the tile is 32 or 64, threads are 128, 256 or 512, the width is 1, 4, 8 or 16"
    lanes = shape.lanes(s.width)
    if lanes > 1 and shape.inner.extent % lanes:
        return f"the innermost extent {shape.inner.extent} is not a multiple of the {lanes} elements of a vector"
    if s.width > 1 and lanes == 1:
        return "a vector of this width holds a single element: it is the schedule of width 1"
    if s.tile * s.tile // lanes < s.threads:
        return "the tile has fewer vectors than the block has threads"
    turned = [x for x in shape.loads if is_turned(x, loop)]
    held = sum(s.tile * (s.tile + max(4 // x.dtype.bytes, 1)) * x.dtype.bytes for x in turned)
    if held > 48 * 1024:
        return f"{held} bytes of tiles in shared memory; 49152 are there without asking for more"
    words = sum(s.tile * s.tile * x.dtype.bytes // 4 // s.threads for x in turned)
    return f"{words} registers of loads in flight for each thread" if words > 96 else None
