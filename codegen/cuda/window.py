"""Reductions over small windows whose neighbours overlap: pooling, depthwise convolution, stencils.

Each thread makes a tile of outputs, some positions along a strip axis by some neighbours along the innermost axis, out of a
patch of each buffer that it holds in registers: what windows of one tile share is read once, in vectors where they are aligned.
"""

from __future__ import annotations

import math

from eqsat.codegen.cuda.bounds import arithmetic_ns, latency_factor, processors, traffic_ns
from eqsat.codegen.cuda.emit import refuse_illegal
from eqsat.codegen.cuda.window_emit import HINTS, WindowPrinter, WindowTile
from eqsat.codegen.cuda.window_patch import patches
from eqsat.codegen.cuda.window_shape import WindowShape, window_shape
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Problem, ReduceProblem
from eqsat.codegen.targets import Target

COLUMNS = (1, 2, 4, 8, 16)
MOST_POINTS = 4096  # of the text, which is unrolled
HELD_REGISTERS = 168  # of 255 for each thread; the rest computes


class WindowFamily:
    """Reductions over windows on CUDA."""

    name = "window"
    schedules: tuple[type[Schedule], ...] = (WindowTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ReduceProblem):
            return f"a window kernel cannot serve a {problem.family} problem"
        if not isinstance(schedule, WindowTile):
            return f"a window kernel has no schedule {type(schedule).__name__}"
        shape = window_shape(problem)
        return shape if isinstance(shape, str) else _refusal(shape, schedule)

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, WindowTile)
        shape = window_shape(problem)
        assert not isinstance(shape, str)
        return WindowPrinter(shape, schedule).kernel()

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time to move each byte once, at least that of the arithmetic."""
        return max(traffic_ns(problem.program, rates), arithmetic_ns(problem.program, rates))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: the bytes at the memory rate, or the instructions of a tile at the issue rate, the longer."""
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, WindowTile)
        shape = window_shape(problem)
        assert not isinstance(shape, str)
        return _predict_ns(shape, schedule, rates)

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: every CUDA device."""
        return target.kind == "cuda"


def _refusal(shape: WindowShape, s: WindowTile) -> str | None:
    if not 1 <= s.rows <= 16 or s.columns not in COLUMNS or s.threads % 32 or not 32 <= s.threads <= 1024:
        return f"rows are 1 to 16, columns one of {COLUMNS}, threads a multiple of 32 up to 1024"
    if not 0 <= s.hint < len(HINTS):
        return f"the hint is one of 0 to {len(HINTS) - 1}"
    if not shape.overlapping:
        return "no load moves along an axis of the outputs and along the window in one dimension"
    extents = shape.problem.program.extents
    if s.rows > (extents[shape.strip] if shape.strip else 1):
        return "the strip is longer than its axis"
    if s.columns > 1 and (not shape.inner or extents[shape.inner] % s.columns):
        return f"the innermost extent is not a multiple of {s.columns}"
    points = shape.problem.length * s.rows * s.columns
    if points > MOST_POINTS:
        return f"{points} positions of windows would be unrolled; {MOST_POINTS} are allowed"
    found = patches(shape, s.rows, s.columns)
    if any(x.extent(d) > 64 for x in found for d in x.varying):
        return "a patch spans more than 64 places of a dimension"
    held = sum(x.registers for x in found)
    held += s.rows * s.columns * sum(max(r.node.dtype.accumulator.bytes // 4, 1) for r in shape.reductions)
    return f"{held} registers for each thread; {HELD_REGISTERS} are there" if held > HELD_REGISTERS else None


def _predict_ns(shape: WindowShape, s: WindowTile, rates: Rates) -> float:
    program, found = shape.problem.program, patches(shape, s.rows, s.columns)
    outputs = s.rows * s.columns
    tiles = shape.problem.row_count / outputs
    each = sum(sum(e.row.arity > 0 and e.op not in ("access", "cast") for e in r.body.walk()) or 1 for r in shape.reductions)
    loads = sum(x.instructions for x in found)
    instructions = 40 + outputs * (2 + shape.problem.length * each) + 3 * loads
    clock = rates.rate("f32") / (256 * processors(rates))  # 128 multiply-adds a clock for each multiprocessor
    issued = tiles / 32 * instructions / (4 * clock * processors(rates))
    held = sum(x.registers for x in found)
    resident = min(65536 / (held + outputs + 32), 2048)  # threads of a multiprocessor
    waiting = latency_factor(rates, min(tiles, resident * processors(rates)), 4 * held)
    loaded = tiles * sum(math.prod(map(len, x.places)) * x.windowed.load.dtype.bytes for x in found)
    halo = loaded / max(sum(i.bytes for i in program.inputs), 1)
    # Slopes of sweeps on an H200: accesses of a neighbour's bytes (a thread's own 16 are best), rows that registers hold, hints.
    wide = math.log2(s.columns * max(o.dtype.bytes for o in program.outputs) / 16)
    shaped = 1 + 0.003 * max(halo - 1, 0) + (0.02 * wide if wide > 0 else -0.005 * wide) + 0.004 * math.log2(s.rows)
    moved = traffic_ns(program, rates) * shaped * waiting
    return max(moved, issued) * (1 + 0.01 * s.hint + 0.002 * math.log2(max(s.threads / 128, 1)))
