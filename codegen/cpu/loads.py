"""How loads move through memory: offsets as affine forms of the axes, and which neighbouring axes act as one loop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from eqsat.access import Index
from eqsat.codegen.printer import is_load, print_index, read_indices, strides
from eqsat.ir import Expr, Input, Output, Program


@dataclass(frozen=True, slots=True)
class Affine:
    """constant + Σ factor·axis + Σ factor·index, the last for indices that divide or take remainders."""

    factors: tuple[tuple[str, int], ...]
    constant: int
    others: tuple[tuple[Index, int], ...]

    def factor(self, axis: str) -> int:
        """Return the elements by which one step along `axis` moves (0 if it does not; only for axes not in `others`)."""
        return dict(self.factors).get(axis, 0)

    @property
    def opaque(self) -> frozenset[str]:
        """Axes on which it depends in a way that is not affine."""
        return frozenset().union(*(index.axes for index, _ in self.others))

    def text(self, names: Mapping[str, str]) -> str:
        """Print it as C; an axis whose name is "0" (extent 1, or merged into its neighbour) drops out."""
        terms = [_times(names[a], f) for a, f in self.factors if f and names[a] != "0"]
        terms += [_times(print_index(index, names), f) for index, f in self.others]
        if self.constant or not terms:
            terms.append(str(self.constant))
        return " + ".join(terms)


def _times(text: str, factor: int) -> str:
    return text if factor == 1 else f"{text} * {factor}"


def affine(parts: Iterable[tuple[Index, int]]) -> Affine:
    """Return Σ factor·index over `parts` as an affine form."""
    factors: dict[str, int] = {}
    others: list[tuple[Index, int]] = []
    constant = 0
    todo = list(parts)
    while todo:
        index, f = todo.pop()
        match index.op:
            case "axis":
                factors[index.name] = factors.get(index.name, 0) + f
            case "const":
                constant += index.value * f
            case "add":
                todo += [(a, f) for a in index.args]
            case "mul":
                todo.append((index.args[0], f * index.value))
            case _:
                others.append((index, f))
    return Affine(tuple(sorted(factors.items())), constant, tuple(others))


@dataclass(frozen=True, slots=True)
class Load:
    """A read of a buffer: its offset, and the conditions (index, least, greatest) under which it is inside."""

    expr: Expr
    buffer: Input
    offset: Affine
    guards: tuple[tuple[Index, int | None, int | None], ...]

    @property
    def guard_axes(self) -> frozenset[str]:
        """Axes on which being inside depends."""
        return frozenset().union(*(index.axes for index, _, _ in self.guards))

    def guard_text(self, names: Mapping[str, str]) -> str:
        """Print the condition as C, "" if it always holds."""
        parts: list[str] = []
        for index, low, high in self.guards:
            c = print_index(index, names)
            parts += [f"{c} >= {low}"] if low is not None else []
            parts += [f"{c} <= {high}"] if high is not None else []
        return " && ".join(parts)


def load_of(e: Expr, buffer: Input) -> Load:
    """Return the load that node `e` (a read, or an access of a read) makes of `buffer`."""
    _, indices = read_indices(e)
    extents = dict(e.type.extents)
    if e.op == "access":
        extents |= dict(e.attrs[0].extents)
    simple = [i.simplify(extents) for i in indices]
    guards: list[tuple[Index, int | None, int | None]] = []
    for index, n in zip(simple, buffer.shape, strict=True):
        low, high = index.bounds(extents)
        if e.op == "access" and (low < 0 or high >= n):
            guards.append((index, 0 if low < 0 else None, n - 1 if high >= n else None))
    return Load(e, buffer, affine(zip(simple, strides(buffer.shape), strict=True)), tuple(guards))


def loads(program: Program, roots: Sequence[Expr] | None = None) -> tuple[Load, ...]:
    """Return every load that the program's outputs (or `roots`) make, each once; a read under an access counts as that access."""
    buffers = {i.name: i for i in program.inputs}
    out: dict[str, Load] = {}
    stack = list(roots if roots is not None else [o.expr for o in program.outputs])
    seen: set[str] = set()
    while stack:
        e = stack.pop()
        if e.digest in seen:
            continue
        seen.add(e.digest)
        if is_load(e):
            out[e.digest] = load_of(e, buffers[read_indices(e)[0]])
        else:
            stack.extend(reversed(e.args))
    return tuple(out.values())


def output_offset(output: Output) -> Affine:
    """Return the offset of an element of the output in its row-major buffer."""
    parts = [(Index.axis(a), s) for a, s in zip(output.axes, strides(output.shape), strict=True) if a]
    return affine(parts)


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop that stands for one axis or for several merged ones: `axis` counts, the other `covers` stay at 0."""

    axis: str
    extent: int
    covers: frozenset[str]


def merged(program: Program, axes: Sequence[str], extents: Mapping[str, int], *, with_output: bool = True) -> tuple[Loop, ...]:
    """Return the loops for `axes` (outer first): extents of 1 are dropped and neighbours merged where every load allows it.

    Two neighbours p, q act as one where each load and each output move q's extent times as far for p as for q, and
    neither is used by a guard, a division or an iota.
    """
    found = loads(program)
    moves = [x.offset for x in found] + ([output_offset(o) for o in program.outputs] if with_output else [])
    fixed = frozenset().union(*(m.opaque for m in moves), *(x.guard_axes for x in found))
    fixed |= {e.attrs[0] for e in program.walk() if e.op == "iota"}
    out: list[Loop] = []
    for axis in axes:
        n = extents[axis]
        if n == 1:
            continue
        last = out[-1] if out else None
        if (
            last
            and last.axis not in fixed
            and axis not in fixed
            and all(m.factor(last.axis) == n * m.factor(axis) for m in moves)
        ):
            out[-1] = Loop(axis, last.extent * n, last.covers | {axis})
        else:
            out.append(Loop(axis, n, frozenset([axis])))
    return tuple(out)


def elements(loops: Sequence[Loop]) -> int:
    """Return the iterations of a nest of loops."""
    return math.prod(x.extent for x in loops)
