"""Cumulative reductions as loops, loads and stores: what both templates start from."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from eqsat.codegen.cuda.emit import output_names, register_type
from eqsat.codegen.cuda.loads import Load, LoopAxis, find_loads, join_axes, lanes_of, row_major
from eqsat.codegen.cuda.reduce_shape import OPERATORS
from eqsat.codegen.problem import ReduceProblem
from eqsat.codegen.scans import Scanned, scan_form
from eqsat.ir import Input, Output
from eqsat.prefix import Prefix


@dataclass(frozen=True, slots=True)
class ScanShape:
    """Loops over the outputs, one of which is the axis that is scanned; the loads at a position; the reductions; the stores."""

    problem: ReduceProblem
    form: Prefix
    loads: tuple[Load, ...]
    loops: tuple[LoopAxis, ...]
    scans: tuple[Scanned, ...]
    stores: tuple[Load, ...]

    @property
    def along(self) -> LoopAxis:
        """The loop that is scanned."""
        return next(x for x in self.loops if x.axes == (self.form.along,))

    @property
    def inner(self) -> LoopAxis:
        """The loop along which the outputs are contiguous."""
        return self.loops[-1]

    @property
    def rowwise(self) -> bool:
        """Whether the outputs are contiguous along the scanned axis."""
        return self.inner == self.along

    @property
    def outer(self) -> tuple[LoopAxis, ...]:
        """The loops that are neither scanned nor innermost."""
        return tuple(x for x in self.loops if x not in (self.along, self.inner))

    def lanes(self, width: int) -> int:
        """Return the elements of a vector of `width` bytes along the innermost loop, by the widest contiguous access."""
        wide = [x.dtype for x in (*self.loads, *self.stores) if x.step(self.inner.axes[-1]) == 1]
        return lanes_of(width, wide or [x.dtype for x in self.stores])


@functools.lru_cache(maxsize=256)  # asked once for each schedule of a space
def scan_shape(problem: ReduceProblem) -> ScanShape | str:
    """Return loops, loads and reductions, or why the problem is no pass along an axis."""
    found = scan_form(problem)
    if isinstance(found, str):
        return found
    program, extents, elements = problem.program, problem.program.extents, found.elements
    loads = tuple(find_loads(elements).values())
    iotas = {e.attrs[0] for e in elements.walk() if e.op == "iota"}
    pinned = frozenset({found.form.along, *iotas}).union(*(x.pinned for x in loads))
    stores = tuple(_store(o, name, extents) for o, name in zip(program.outputs, output_names(program), strict=True))
    accesses = [dict(x.steps) for x in (*loads, *stores) if x.steps is not None]
    loops = join_axes(problem.rows, extents, accesses, pinned, "r")
    while len(loops) > 1 and loops[-1].extent == 1:
        loops = loops[:-1]
    return ScanShape(problem, found.form, loads, loops, found.scans, stores)


def operator(x: Scanned) -> str:
    """Return the C++ operator of a reduction with its accumulator type."""
    return f"{OPERATORS[x.node.op]}<{register_type(x.node.dtype)}>"


def _store(out: Output, name: str, extents: Mapping[str, int]) -> Load:
    steps = {a: s for a, s in row_major(out.axes, extents).items() if extents[a] > 1}
    return Load(out.expr, Input(name, out.shape, out.dtype), name, tuple(sorted(steps.items())), 0, frozenset())
