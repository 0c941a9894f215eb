"""A point problem as loops and loads, and the schedule points of the family."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from eqsat.codegen.cuda.loads import Load, LoopAxis, find_loads, join_axes, lanes_of, row_major
from eqsat.codegen.kernel import Schedule
from eqsat.codegen.problem import PointProblem

HINTS = ("PLAIN", "STREAMING", "NO_ALLOCATE", "EVICT_FIRST")
WIDTHS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class PointTile(Schedule):
    """Each thread makes `count` vectors; `width` is the bytes of a vector of the widest stored type (1: single elements)."""

    threads: int
    count: int
    width: int
    hint: int


@dataclass(frozen=True, slots=True)
class PointSweepTile(Schedule):
    """Each thread makes a vector at the same place of `count` rows; what all rows share, it loads once.

    Rows are the outermost loop. Blocks that need the same shared part follow each other.
    """

    threads: int
    count: int
    width: int
    hint: int


@dataclass(frozen=True, slots=True)
class TransposeTile(Schedule):
    """Loads that are contiguous along another axis than the output go through `tile` x `tile` tiles in shared memory."""

    tile: int
    threads: int
    width: int
    hint: int


@dataclass(frozen=True, slots=True)
class PointShape:
    """A point problem as loops and loads: what both templates start from."""

    problem: PointProblem
    loads: tuple[Load, ...]
    loops: tuple[LoopAxis, ...]

    @property
    def inner(self) -> LoopAxis:
        """The loop along which the outputs are contiguous."""
        return self.loops[-1]

    @property
    def shared(self) -> tuple[Load, ...]:
        """The loads that are the same for all rows, rows being the outermost loop."""
        rows = frozenset(self.loops[0].axes)
        return tuple(x for x in self.loads if not x.axes & rows) if len(self.loops) > 1 else ()

    @property
    def elements(self) -> int:
        """Elements of each output."""
        return self.problem.output.expr.type.elements

    def lanes(self, width: int) -> int:
        """Return the outputs of one vector: `width` bytes of the widest type among outputs and contiguous loads."""
        wide = [x.dtype for x in self.loads if self.inner.axes and x.step(self.inner.axes[-1]) == 1]
        return lanes_of(width, [*(o.dtype for o in self.problem.program.outputs), *wide])


@functools.lru_cache(maxsize=256)  # asked once for each schedule of a space
def point_shape(problem: PointProblem) -> PointShape:
    """Return the loops of a point problem, axes joined wherever all accesses allow it."""
    program = problem.program
    loads = tuple(find_loads(program).values())
    extents = program.extents
    iotas = {e.attrs[0] for e in program.walk() if e.op == "iota"}
    pinned = frozenset(iotas).union(*(x.pinned for x in loads))
    accesses = [dict(x.steps) for x in loads if x.steps is not None] + [row_major(problem.axes, extents)]
    return PointShape(problem, loads, join_axes(problem.axes, extents, accesses, pinned, "i"))
