"""Cumulative reductions as loops and loads: a reduction of every prefix (`eqsat.prefix`) is one pass along its axis."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from eqsat.codegen.cuda.emit import output_names, register_type
from eqsat.codegen.cuda.loads import Load, LoopAxis, find_loads, join_axes, lanes_of, row_major
from eqsat.codegen.cuda.reduce_shape import OPERATORS
from eqsat.codegen.problem import ReduceProblem
from eqsat.ir import Expr, Input, Output, Program, apply, rename, substitute
from eqsat.prefix import Prefix, prefix


@dataclass(frozen=True, slots=True)
class Scanned:
    """One cumulative reduction: its node, and what it adds up at each position of the axis of the result."""

    node: Expr
    operand: Expr
    number: int

    @property
    def operator(self) -> str:
        """The C++ operator with its accumulator type."""
        return f"{OPERATORS[self.node.op]}<{register_type(self.node.dtype)}>"


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
    program, extents = problem.program, problem.program.extents
    forms = [prefix(e) for e in problem.reductions]
    form = forms[0]
    if form is None or any(f is None for f in forms):
        return "a reduction is not one of every prefix of an axis"
    if len({(f.axis, f.along, f.suffix, f.strict) for f in forms if f}) > 1:
        return "its prefixes run along different axes or in different directions"
    if extents[form.along] < 2:
        return "the axis has one position"
    known = {e.digest for e in problem.reductions}
    scans = []
    for n, (node, f) in enumerate(zip(problem.reductions, forms, strict=True)):
        assert f is not None
        if any(e.digest in known for e in f.operand.walk()):
            return "a reduction waits for another"
        scans.append(Scanned(node, rename(f.operand, {f.axis: f.along}), n))
    elements = _elements(program, scans)
    loads = tuple(find_loads(elements).values())
    pinned = frozenset({form.along, *(e.attrs[0] for e in elements.walk() if e.op == "iota")}).union(*(x.pinned for x in loads))
    stores = tuple(_store(o, name, extents) for o, name in zip(program.outputs, output_names(program), strict=True))
    accesses = [dict(x.steps) for x in (*loads, *stores) if x.steps is not None]
    loops = join_axes(problem.rows, extents, accesses, pinned, "r")
    while len(loops) > 1 and loops[-1].extent == 1:
        loops = loops[:-1]
    return ScanShape(problem, form, loads, loops, tuple(scans), stores)


def _elements(program: Program, scans: list[Scanned]) -> Program:
    """Return the pointwise program that reads at a position what the scan and the outputs need there."""
    by = {s.node: s.operand if s.operand.dtype is s.node.dtype else apply("cast", s.operand, dtype=s.node.dtype) for s in scans}
    outputs = tuple(Output(o.name, substitute(o.expr, by), o.axes, o.dtype) for o in program.outputs)
    return Program(program.inputs, outputs)


def _store(out: Output, name: str, extents: Mapping[str, int]) -> Load:
    steps = {a: s for a, s in row_major(out.axes, extents).items() if extents[a] > 1}
    return Load(out.expr, Input(name, out.shape, out.dtype), name, tuple(sorted(steps.items())), 0, frozenset())
