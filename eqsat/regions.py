"""Split a large program at narrow borders into regions that are searched on their own, equal ones once.

A border is a place in the order of evaluation where few computed values are still needed: between the layers of a network
that is the residual stream. What crosses it is stored, so no kernel reaches across; what that can cost is reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from eqsat.canonical import shared
from eqsat.errors import UsageError
from eqsat.ir import Expr, Input, Output, Program, read, rebuild, rename
from eqsat.naming import canonical, canonical_names, relabel
from eqsat.region_borders import Order, choose_borders

REGION_OPERATIONS = 40
"""Operations of a region that saturates, and whose kernels are listed and chosen, in about a second (bench/notes.md)."""
STRETCH_OPERATIONS = 96
"""Operations of a stretch between narrow places (attention with masks and biases), which is split only if it outgrows the e-graph."""


@dataclass(frozen=True, slots=True)
class Border:
    """A computed value that is stored where the program is split: buffer name, axes, shape, dtype name, bytes."""

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of a program between borders.

    Parameters
    ----------
    program : Program
        The region under canonical names: equal for regions that differ only in names.
    inputs, outputs : tuple of str
        The buffers of the whole program that `program`'s inputs and outputs stand for, in their order.
    axes : tuple of (str, str)
        Axis of `program`, axis of the whole program.
    operations : int
        Operations computed; the region's size.
    """

    program: Program
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: tuple[tuple[str, str], ...]
    operations: int


@dataclass(frozen=True, slots=True)
class Partition:
    """A program as regions in order of evaluation, and the values stored between them."""

    program: Program
    regions: tuple[Region, ...]
    borders: tuple[Border, ...]

    @property
    def distinct(self) -> tuple[Program, ...]:
        """The different regions in order of first occurrence."""
        return tuple({r.program.digest: r.program for r in self.regions}.values())

    def count(self, program: Program) -> int:
        """Return how many regions are `program` up to names."""
        return sum(r.program.digest == program.digest for r in self.regions)

    @property
    def border_bytes(self) -> int:
        """Bytes that the borders store: written once, and read at least once."""
        return sum(b.bytes for b in self.borders)

    def __str__(self) -> str:
        sizes = ", ".join(str(r.operations) for r in self.regions)
        lines = [f"{len(self.regions)} regions ({len(self.distinct)} different) of {sizes} operations"]
        lines += [f"border {b.name}: {b.dtype}{list(b.shape)}, {b.bytes} bytes stored" for b in self.borders]
        return "\n".join(lines)


def split(program: Program, operations: int = REGION_OPERATIONS, stretch: int | None = None) -> Partition:
    """Split `program` into regions of at most `operations` operations where borders allow it.

    Parameters
    ----------
    program : Program
    operations : int
        A program of no more operations is one region.
    stretch : int, optional
        What a stretch may have that has no narrow place, where a single value is all that is still needed; by default as many.
        Beyond that it is split where at most two computed values cross, and stays whole where there is no such place.

    Returns
    -------
    Partition
        Among the ways to split, one with few operations in *different* regions (they are searched once each) and few borders is
        taken, then one that stores the fewest bytes.
    """
    if operations < 1:
        raise UsageError(f"a region holds at least one operation; got a limit of {operations}")
    whole = operations if stretch is None else max(operations, stretch)
    order = Order.of(program)
    cutter = _Cutter(program, order)
    ends = [] if order.size <= operations else choose_borders(order, operations, whole, cutter.key)
    return cutter.cut([0, *ends, len(order.values)])


def rejoin(partition: Partition) -> Program:
    """Write the regions as one program again: it computes what the program that was split computes."""
    made: dict[str, tuple[tuple[str, ...], Expr]] = {}
    for region in partition.regions:
        names = dict(region.axes)
        outer = dict(zip((i.name for i in region.program.inputs), region.inputs, strict=True))
        memo: dict[str, Expr] = {}
        for out, name in zip(region.program.outputs, region.outputs, strict=True):
            expr = _with_reads(relabel(out.expr, names), outer, made, memo)
            made[name] = tuple(names.get(a, "") for a in out.axes), expr
    outputs = []
    for o in partition.program.outputs:
        axes, expr = made[o.name]
        outputs.append(Output(o.name, expr, axes, o.dtype))
    return Program(partition.program.inputs, tuple(outputs))


def _with_reads(
    expr: Expr, outer: Mapping[str, str], made: Mapping[str, tuple[tuple[str, ...], Expr]], memo: dict[str, Expr]
) -> Expr:
    for e in expr.walk():
        if e.digest in memo:
            continue
        if e.op != "read":
            memo[e.digest] = rebuild(e, tuple(memo[a.digest] for a in e.args))
        elif (name := outer[e.attrs[0]]) in made:
            axes, value = made[name]
            memo[e.digest] = rename(value, {a: b for a, b in zip(axes, e.attrs[1], strict=True) if a})
        else:
            memo[e.digest] = _read_as(e, name)
    return memo[expr.digest]


def _read_as(e: Expr, name: str) -> Expr:
    extents = e.type.extents
    return read(name, e.attrs[1], tuple(extents[a] if a else 1 for a in e.attrs[1]), e.dtype)


class _Cutter:
    """Cuts a program at given places."""

    def __init__(self, program: Program, order: Order) -> None:
        self.program, self.order = program, order
        self.axis_rank = {a: n for n, a in enumerate(axis_ranks(program))}
        self.outputs: dict[str, list[Output]] = {}
        for out in program.outputs:
            self.outputs.setdefault(out.expr.digest, []).append(out)
        taken = {i.name for i in program.inputs} | {o.name for o in program.outputs}
        stems = ("border" + "_" * n for n in range(len(taken) + 1))
        self.stem = next(s for s in stems if not any(t.startswith(s) for t in taken))
        self.buffers: dict[str, tuple[Input, tuple[str, ...]]] = {}
        self.fixed = _constant_values(program)
        self.regions: dict[tuple[int, int], Region] = {}

    def key(self, start: int, end: int) -> str:
        """Return the digest of the region of these places."""
        return self.region(start, end).program.digest

    def cut(self, ends: Sequence[int]) -> Partition:
        """Return the regions between consecutive places."""
        stretches = list(itertools.pairwise(ends))
        borders = [b for start, end in stretches for e in self.order.live(start, end) if (b := self._border(e)) is not None]
        return Partition(self.program, tuple(self.region(a, b) for a, b in stretches), tuple(borders))

    def _border(self, e: Expr) -> Border | None:
        """Return a stored value as the report shows it; None if it is an output of the program."""
        buffer, layout = self.buffer(e)
        if any(o.name == buffer.name for o in self.program.outputs):
            return None
        return Border(buffer.name, layout, buffer.shape, buffer.dtype.value, buffer.bytes)

    def buffer(self, e: Expr) -> tuple[Input, tuple[str, ...]]:
        """Return the buffer that keeps a value for later regions, and its axes: an output's, if one holds it as it is."""
        if e.digest not in self.buffers:
            for out in self.outputs.get(e.digest, ()):
                if out.dtype is e.dtype:
                    self.buffers[e.digest] = Input(out.name, out.shape, out.dtype), out.axes
                    break
            else:
                layout = tuple(sorted(e.axes, key=self.axis_rank.__getitem__))
                extents = e.type.extents
                name = f"{self.stem}{self.order.position[e.digest]}"
                buffer = Input(name, tuple(extents[a] for a in layout), e.dtype, e.digest in self.fixed)
                self.buffers[e.digest] = buffer, layout
        return self.buffers[e.digest]

    def region(self, start: int, end: int) -> Region:
        """Return the region of places start…end−1."""
        if (start, end) not in self.regions:
            self.regions[start, end] = self._region(start, end)
        return self.regions[start, end]

    def _region(self, start: int, end: int) -> Region:
        made: dict[str, Expr] = {}
        outputs: list[Output] = []
        for e in self.order.values[start:end]:
            made[e.digest] = rebuild(e, tuple(self._operand(a, made) for a in e.args))
            outputs += [Output(o.name, made[e.digest], o.axes, o.dtype) for o in self.outputs.get(e.digest, ())]
        if end == len(self.order.values):  # outputs that need no reduction are computed with what comes last
            outputs += [o for o in self.program.outputs if o.expr.digest not in self.order.position]
        for e in self.order.live(start, end):
            buffer, layout = self.buffer(e)
            if all(o.name != buffer.name for o in outputs):
                outputs.append(Output(buffer.name, made[e.digest], layout, e.dtype))
        return self._named(tuple(outputs), start, self.order.operations(start, end))

    def _operand(self, e: Expr, made: Mapping[str, Expr]) -> Expr:
        if e.digest in made:
            return made[e.digest]
        if e.digest not in self.order.position:
            return e  # computed again from the program's inputs
        buffer, layout = self.buffer(e)
        return read(buffer.name, layout, buffer.shape, buffer.dtype)

    def _named(self, outputs: tuple[Output, ...], start: int, operations: int) -> Region:
        """Rename buffers and axes in order of first visit."""
        known = {i.name: i for i in (*self.program.inputs, *(b for b, _ in self.buffers.values()))}
        seen = dict.fromkeys(e.attrs[0] for out in outputs for e in out.expr.walk() if e.op == "read")
        to = {name: f"given{n}" for n, name in enumerate(seen)}
        memo: dict[str, Expr] = {}
        exprs = [_renamed_reads(out.expr, to, memo) for out in outputs]
        inputs = tuple(Input(to[n], known[n].shape, known[n].dtype, known[n].constant) for n in seen)
        renamed = tuple(
            Output(f"made{n}", expr, out.axes, out.dtype) for n, (out, expr) in enumerate(zip(outputs, exprs, strict=True))
        )
        program = shared(Program(inputs, renamed))
        # Outside, an axis of the region's own is called after the place too: another region may have one of that name.
        stem = f"at{start}_"
        axes = tuple((new, old if old in self.axis_rank else stem + old) for old, new in canonical_names(program).items())
        return Region(canonical(program), tuple(seen), tuple(o.name for o in outputs), axes, operations)


def _renamed_reads(expr: Expr, to: Mapping[str, str], memo: dict[str, Expr]) -> Expr:
    for e in expr.walk():
        if e.digest not in memo:
            memo[e.digest] = _read_as(e, to[e.attrs[0]]) if e.op == "read" else rebuild(e, tuple(memo[a.digest] for a in e.args))
    return memo[expr.digest]


def axis_ranks(program: Program) -> Iterable[str]:
    """Yield all axes: those of outputs in their order, then those of reads, then the rest."""
    seen: dict[str, None] = {}
    for out in program.outputs:
        seen.update(dict.fromkeys(a for a in out.axes if a))
    nodes = list(program.walk())
    for e in nodes:
        if e.op == "read":
            seen.update(dict.fromkeys(a for a in e.attrs[1] if a))
    for e in nodes:
        seen.update(dict.fromkeys(sorted(e.axes)))
    return seen


def _constant_values(program: Program) -> set[str]:
    """Digests of the values that depend on nothing but constants and inputs declared constant."""
    fixed = {i.name for i in program.inputs if i.constant}
    out: set[str] = set()
    for e in program.walk():
        if e.attrs[0] in fixed if e.op == "read" else all(a.digest in out for a in e.args):
            out.add(e.digest)
    return out
