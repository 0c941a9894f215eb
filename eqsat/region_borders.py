"""Where a program is narrow: values in order of evaluation, what is still needed at each place, and the choice of borders.

Values that need no reduction (reads, positions, and what is pointwise over them, such as a mask) never cross a border:
they are computed again from the program's inputs.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from eqsat.ir import Expr, Program
from eqsat.ops import Kind

_WIDTH = 2  # computed values that may cross a border: a residual stream and what is about to be added to it


@dataclass(frozen=True, slots=True)
class Order:
    """The values of a program that need a reduction, operands before users, and the last place that needs each.

    Parameters
    ----------
    values : tuple of Expr
    position : dict of str to int
        Digest to place.
    last : tuple of int
        Last place whose value uses this one; its own place if none does.
    free : tuple of int
        For each value the operations without a reduction that it takes as operands, transitively, as bits.
    stored : frozenset of int
        Places of values that outputs of the program hold as they are: crossing a border costs them nothing.
    barred : frozenset of int
        Places of values that cross no border: nothing but reductions use them (the products under a sum), or an output holds
        them in another type.
    inputs : tuple of (int, int, int)
        First and last place that reads each input which is no constant, and its bytes.
    size : int
        Operations of the program.
    """

    values: tuple[Expr, ...]
    position: dict[str, int]
    last: tuple[int, ...]
    free: tuple[int, ...]
    stored: frozenset[int]
    barred: frozenset[int]
    inputs: tuple[tuple[int, int, int], ...]
    size: int

    @staticmethod
    def of(program: Program) -> Order:
        """Return the order in which a walk from the outputs meets the values of `program`."""
        free: dict[str, int] = {}
        reads: dict[str, frozenset[str]] = {}  # of what needs no reduction
        values: list[Expr] = []
        position: dict[str, int] = {}
        last: list[int] = []
        taken: list[int] = []
        pointwise: set[int] = set()  # places with a user that is no reduction
        spans: dict[str, tuple[int, int]] = {}
        varying = {i.name: i.bytes for i in program.inputs if not i.constant}
        bits = 0
        for e in program.walk():
            below = 0
            for a in e.args:
                below |= free.get(a.digest, 0)
            names = frozenset().union(*(reads.get(a.digest, frozenset()) for a in e.args))
            if e.row.kind is Kind.LEAF:
                free[e.digest] = 0
                reads[e.digest] = frozenset([e.attrs[0]]) & varying.keys() if e.op == "read" else frozenset()
            elif e.row.kind is not Kind.REDUCE and all(a.digest in free for a in e.args):
                free[e.digest] = below | 1 << bits
                reads[e.digest] = names
                bits += 1
            else:
                here = len(values)
                for a in e.args:
                    if a.digest in position:
                        last[position[a.digest]] = here
                        if e.row.kind is not Kind.REDUCE:
                            pointwise.add(position[a.digest])
                for name in names:
                    spans[name] = (spans.get(name, (here, here))[0], here)
                position[e.digest] = here
                values.append(e)
                last.append(here)
                taken.append(below)
        held = [(position[o.expr.digest], o.dtype is o.expr.dtype) for o in program.outputs if o.expr.digest in position]
        stored = frozenset(p for p, as_it_is in held if as_it_is)
        reduced = {p for p, until in enumerate(last) if until > p} - pointwise - stored
        barred = frozenset(p for p, as_it_is in held if not as_it_is) | reduced
        inputs = tuple((a, b, varying[name]) for name, (a, b) in spans.items())
        return Order(tuple(values), position, tuple(last), tuple(taken), stored, barred, inputs, len(values) + bits)

    def live(self, start: int, end: int) -> Iterator[Expr]:
        """Yield the values of places start…end−1 that places from `end` on need."""
        for p in range(start, end):
            if self.last[p] >= end:
                yield self.values[p]

    def operations(self, start: int, end: int) -> int:
        """Return the operations that a region over places start…end−1 computes, those without a reduction included."""
        bits = 0
        for p in range(start, end):
            bits |= self.free[p]
        return end - start + bits.bit_count()

    def needed(self) -> list[int]:
        """Return for each place the bytes of what values before it, or inputs read there, values after it need."""
        change = [0] * (len(self.values) + 2)
        spans = [
            (p, until, e.type.elements * e.dtype.bytes) for p, (e, until) in enumerate(zip(self.values, self.last, strict=True))
        ]
        for first, until, size in (*spans, *self.inputs):
            change[first + 1] += size
            change[until + 1] -= size
        return list(itertools.accumulate(change))

    def crossings(self) -> list[int | None]:
        """Return for each place from 0 to the end the bytes that cross a border before it; None where it may not be one."""
        leaving: list[list[int]] = [[] for _ in range(len(self.values) + 2)]
        for p, until in enumerate(self.last):
            leaving[until + 1].append(p)
        crossing: set[int] = set()
        out: list[int | None] = []
        for place in range(len(self.values) + 1):
            crossing.difference_update(leaving[place])
            if crossing & self.barred or len(crossing - self.stored) > _WIDTH:
                out.append(None)
            else:
                out.append(sum(self.values[p].type.elements * self.values[p].dtype.bytes for p in crossing - self.stored))
            if place < len(self.values) and self.last[place] > place:
                crossing.add(place)
        return out


@dataclass(frozen=True, slots=True)
class Widths:
    """What crosses each place of an order, and how large regions may be.

    Parameters
    ----------
    order : Order
    stored : tuple of (int or None)
        Bytes that a border there stores; None where none may be.
    needed : tuple of int
        Bytes of all values needed on both sides, inputs and outputs of the program included.
    narrow : tuple of int
        Places, ascending, where one value is all that is still needed.
    merged, whole : int
        Operations of a region, at most: if a narrow place lies within it, and if none does.
    """

    order: Order
    stored: tuple[int | None, ...]
    needed: tuple[int, ...]
    narrow: tuple[int, ...]
    merged: int
    whole: int

    @staticmethod
    def of(order: Order, merged: int, whole: int) -> Widths:
        """Return the widths at all places.

        What is needed through more than half of the program (a mask, an encoder's result) is background: it is not counted in a
        stretch that has no narrow place otherwise and is too large.
        """
        stored, needed = order.crossings(), order.needed()
        places = [p for p in range(1, len(order.values)) if stored[p] is not None]
        strict = _necks(order, places, background=False)
        loose = _necks(order, places, background=True)
        narrow = list(strict)
        for a, b in itertools.pairwise([0, *strict, len(order.values)]):
            if order.operations(a, b) > whole:
                narrow += [p for p in loose if a < p < b]
        return Widths(order, tuple(stored), tuple(needed), tuple(sorted(narrow)), merged, whole)

    @property
    def places(self) -> list[int]:
        """Where a border may be."""
        return [p for p in range(1, len(self.order.values)) if self.stored[p] is not None]

    def excess(self, a: int, b: int, size: int) -> int:
        """Return by how many operations a region over places a…b−1 of this size is too large."""
        at = bisect.bisect_right(self.narrow, a)
        within = at < len(self.narrow) and self.narrow[at] < b
        return max(0, size - (self.merged if within else self.whole))


Key = Callable[[int, int], Hashable]
_BORDER = 4  # operations saved that are worth another border


def choose_borders(order: Order, merged: int, whole: int, key: Key) -> list[int]:
    """Return the places before which regions begin, ascending, 0 left out.

    Parameters
    ----------
    order : Order
    merged, whole : int
        Operations of a region, at most: of one made of several stretches between narrow places, and of a single stretch.
    key : callable
        `key(a, b)` is equal for stretches (of places a…b−1) that are one region up to names.

    Notes
    -----
    Considered are the split that stores least and, over the narrowest places, every periodic one: a network of equal layers
    then falls into equal regions.
    """
    end = len(order.values)
    widths = Widths.of(order, merged, whole)
    points: list[int] = []
    for a, b in itertools.pairwise([0, *widths.narrow, end]):
        inner = [p for p in widths.places if a < p < b] if order.operations(a, b) > whole else []
        points += _cheapest(widths, inner, a, b) if inner else []
        points += [b] if b < end else []
    parts = {a: key(a, b) for a, b in itertools.pairwise([0, *points, end])}
    at = sorted(parts)

    def joined(a: int, b: int) -> Hashable:
        return tuple(parts[p] for p in at[bisect.bisect_left(at, a) : bisect.bisect_left(at, b)])

    least = _cheapest(widths, widths.places, 0, end)
    found = [(_score(widths, least, joined if set(least) <= set(points) else key), least)]
    found += [(_score(widths, ends, joined), ends) for ends in _periodic(widths, points)]
    return min(found, key=lambda f: f[0])[1]


def _necks(order: Order, places: Sequence[int], *, background: bool) -> list[int]:
    """Return the places where one value, computed or given, is all that is still needed.

    With `background`, what is needed through more than half of the program does not count.
    """
    end = len(order.values)
    change = [0] * (end + 2)
    spans = [*((p, until, 0) for p, until in enumerate(order.last)), *order.inputs]
    for first, until, _ in spans:
        if until > first and not (background and 2 * (until - first) > end):
            change[first + 1] += 1
            change[until + 1] -= 1
    counts = list(itertools.accumulate(change))
    return [p for p in places if counts[p] <= 1]


def _cheapest(widths: Widths, places: Sequence[int], start: int, end: int) -> list[int]:
    """Return the borders out of `places` that store the fewest bytes with regions that are not too large.

    Where no such borders exist, the regions that are too large have the fewest operations in excess. Of equal ones those are
    taken where the least is needed on both sides, then those with regions of like size.
    """
    stops = [start, *places, end]
    best: dict[int, tuple[tuple[int, int, int, int, int], int]] = {start: ((0, 0, 0, 0, 0), start)}
    for i, a in enumerate(stops[:-1]):
        (excess, cost, wide, count, squares), _ = best[a]
        bits = 0
        for b_index in range(i + 1, len(stops)):
            b = stops[b_index]
            for p in range(stops[b_index - 1], b):
                bits |= widths.order.free[p]
            size = b - a + bits.bit_count()
            over = widths.excess(a, b, size)
            if over and b_index > i + 1:
                break
            stored, needed = (0, 0) if b == end else (widths.stored[b] or 0, widths.needed[b])
            option = (excess + over, cost + stored, wide + needed, count + 1, squares + size * size)
            if b not in best or option < best[b][0]:
                best[b] = (option, a)
    ends: list[int] = []
    at = best[end][1]
    while at != start:
        ends.append(at)
        at = best[at][1]
    return ends[::-1]


def _periodic(widths: Widths, points: Sequence[int]) -> Iterator[list[int]]:
    """Yield the splits that leave out all but every n-th of `points`, from each first one on."""
    order, end = widths.order, len(widths.order.values)
    for step in range(1, len(points) + 2):
        fits = False
        for first in range(min(step, len(points))):
            ends = list(points[first::step])
            over = [widths.excess(a, b, order.operations(a, b)) for a, b in itertools.pairwise([0, *ends, end])]
            fits |= not min(over)
            if not any(over) or step == 1:
                yield ends
        if not fits:
            return


def _score(widths: Widths, ends: Sequence[int], key: Key) -> tuple[int, int, int, int]:
    """Return operations beyond the limits, those of different regions (a border counts as some), bytes stored, and regions."""
    order = widths.order
    sizes: dict[Hashable, int] = {}
    excess = 0
    for a, b in itertools.pairwise([0, *ends, len(order.values)]):
        size = order.operations(a, b)
        sizes.setdefault(key(a, b), size)
        excess += widths.excess(a, b, size)
    return excess, sum(sizes.values()) + _BORDER * len(ends), sum(widths.stored[p] or 0 for p in ends), len(ends)
