"""A reduction over small windows as patches: what part of each buffer one thread reads for its tile of outputs.

A tile is some positions along a strip axis by some along the innermost axis of the outputs. Of a load at such a tile the
distance to the tile's corner is known when the kernel is printed: `base` (what varies from tile to tile) plus `places` (what
varies within it), dimension by dimension. The places of all outputs and all positions of the windows make the patch.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eqsat.codegen.cuda.emit import output_names
from eqsat.codegen.cuda.loads import Load, LoopAxis, affine, find_loads, join_axes, row_major
from eqsat.codegen.cuda.reduce_shape import Reduction
from eqsat.codegen.printer import read_indices
from eqsat.codegen.problem import ReduceProblem, nest
from eqsat.ir import Output


@dataclass(frozen=True, slots=True)
class Line:
    """An affine index of one dimension of a buffer: Σ factor·axis + offset."""

    factors: tuple[tuple[str, int], ...]
    offset: int
    extent: int

    def factor(self, axis: str) -> int:
        """Return how far one step along `axis` goes."""
        return dict(self.factors).get(axis, 0)

    def places(self, ranges: Mapping[str, int]) -> tuple[int, ...]:
        """Return the distances that the axes in `ranges` make up, sorted, the offset left out."""
        steps = [[f * i for i in range(ranges[a])] for a, f in self.factors if a in ranges]
        return tuple(sorted({sum(p) for p in itertools.product(*steps)}))

    def bounds(self, extents: Mapping[str, int]) -> tuple[int, int]:
        """Return the least and the greatest index over the axes' ranges."""
        ends = [sorted((0, f * (extents[a] - 1))) for a, f in self.factors]
        return self.offset + sum(low for low, _ in ends), self.offset + sum(high for _, high in ends)


@dataclass(frozen=True, slots=True)
class Windowed:
    """A load with one line for each dimension of its buffer."""

    load: Load
    lines: tuple[Line, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements from one index to the next, dimension by dimension."""
        shape = self.load.buffer.shape
        return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


@dataclass(frozen=True, slots=True)
class WindowShape:
    """Loops over the outputs, loads by dimension, the reductions.

    `inner` and `strip` are axes; `strip` is "" where none shares a dimension of some load with the window.
    """

    problem: ReduceProblem
    loads: tuple[Windowed, ...]
    loops: tuple[LoopAxis, ...]
    reductions: tuple[Reduction, ...]
    inner: str
    strip: str

    @property
    def overlapping(self) -> bool:
        """Whether a window and an axis of the outputs move along one dimension of some load."""
        return any(_shares(self.loads, a, self.problem.reduced) for a in self.problem.rows)

    @property
    def outputs(self) -> tuple[tuple[Output, str], ...]:
        """Outputs with their C names."""
        program = self.problem.program
        return tuple(zip(program.outputs, output_names(program), strict=True))

    def tile(self, rows: int, columns: int) -> dict[str, int]:
        """Return the ranges of the axes that vary within a tile: the strip, the innermost axis, the window."""
        extents = self.problem.program.extents
        out = {a: extents[a] for a in self.problem.reduced}
        if self.strip:
            out[self.strip] = rows
        if self.inner:
            out[self.inner] = columns
        return out


@functools.lru_cache(maxsize=256)  # asked once for each schedule of a space
def window_shape(problem: ReduceProblem) -> WindowShape | str:
    """Return loops, loads and reductions of a reduction over windows, or why no thread can hold a tile's patches."""
    program = problem.program
    if problem.keeps:
        return "an output keeps the positions of the window"
    bodies = [Reduction(node, nest(node)[1], n) for n, node in enumerate(problem.reductions)]
    if any(r.is_arg for r in bodies):
        return "it asks for a place within the window"
    known = {e.digest for e in problem.reductions}
    if any(e.digest in known for r in bodies for e in r.body.walk()):
        return "a reduction waits for another"
    extents = program.extents
    loads: list[Windowed] = []
    for load in find_loads(program).values():
        lines = _lines(load, extents)
        if lines is None:
            return f"the index of {load.buffer.name} is not affine"
        loads.append(Windowed(load, lines))
    rows = [a for a in problem.rows if extents[a] > 1]
    inner = rows[-1] if rows else ""
    strip = next((a for a in reversed(rows[:-1]) if _shares(loads, a, problem.reduced)), "")
    iotas = {e.attrs[0] for e in program.walk() if e.op == "iota"}
    pinned = frozenset(iotas | {inner, strip} - {""}).union(*(x.load.guard_axes for x in loads))
    accesses = [dict(x.load.steps or ()) for x in loads] + [row_major(o.axes, extents) for o in program.outputs]
    loops = join_axes(problem.rows, extents, accesses, pinned, "r")
    return WindowShape(problem, tuple(loads), loops, tuple(bodies), inner, strip)


def _lines(load: Load, extents: Mapping[str, int]) -> tuple[Line, ...] | None:
    _, indices = read_indices(load.expr)
    lines = []
    for index, extent in zip(indices, load.buffer.shape, strict=True):
        part = affine(index.simplify(extents))
        if part is None:
            return None
        factors = tuple(sorted((a, f) for a, f in part[0].items() if f and extents[a] > 1))
        lines.append(Line(factors, part[1], extent))
    return tuple(lines)


def _shares(loads: Iterable[Windowed], axis: str, reduced: tuple[str, ...]) -> bool:
    """Whether moving along `axis` moves a window over elements that its neighbour reads too."""
    return any(line.factor(axis) and any(line.factor(k) for k in reduced) for x in loads for line in x.lines)
