"""A proof out of the forest of a congruence closure, written as parts: each equality that is needed twice is shown once.

Terms share subterms, and a chain over terms written out as trees repeats the steps of a shared subterm at every place where
it stands: exponentially often in a deep program. So the equality of two subterms becomes a part of its own, which later
parts use as one step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eqsat.congruence import Closure, Reason, Terms

Pair = tuple[int, int]


class Line(NamedTuple):
    """One rewrite inside a part: where in the part's term, which subterm becomes which, by a rule or by an earlier part."""

    position: tuple[int, ...]
    before: int
    after: int
    rule: str | None
    part: int | None
    forward: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A chain from one term to another one."""

    before: int
    after: int
    lines: tuple[Line, ...]


def parts_of(terms: Terms, closure: Closure, goals: Sequence[Pair], late: Callable[[], None]) -> list[Part]:
    """Return parts that end with one for each goal, in order; every part uses earlier ones only.

    `late` is called often and may raise to give up.
    """
    paths: dict[Pair, list[tuple[int, int, Reason]]] = {}
    uses: Counter[Pair] = Counter()
    order: list[Pair] = []
    asked = [_sorted(*g) for g in goals]
    uses.update(asked)
    stack = [(g, False) for g in reversed(asked)]
    while stack:
        late()
        pair, ready = stack.pop()
        if ready:
            order.append(pair)
            continue
        if pair in paths:
            continue
        paths[pair] = closure.path(*pair)
        stack.append((pair, True))
        for below in _below(terms, paths[pair]):
            uses[below] += 1
            stack.append((below, False))
    lengths: dict[Pair, int] = {}
    for pair in order:  # operands before users
        lengths[pair] = _length(terms, paths[pair], uses, lengths)
    shared = {p for p in order if uses[p] > 1 and lengths[p] > 1}
    number: dict[Pair, int] = {}
    out: list[Part] = []
    for pair in (p for p in order if p in shared):
        number[pair] = len(out)
        out.append(_part(terms, pair, paths, shared, number, late))
    goal_parts = [_goal(terms, g, paths, shared, number, late) for g in goals]
    return _used(out, goal_parts)


def _goal(
    terms: Terms,
    goal: Pair,
    paths: dict[Pair, list[tuple[int, int, Reason]]],
    shared: set[Pair],
    number: dict[Pair, int],
    late: Callable[[], None],
) -> Part:
    """Return the part of a goal: the use of an earlier one where another goal needs it too."""
    key = _sorted(*goal)
    if key in shared:
        return Part(*goal, (Line((), *goal, None, number[key], key == goal),))
    return _part(terms, goal, paths, shared, number, late)


def _part(
    terms: Terms,
    pair: Pair,
    paths: dict[Pair, list[tuple[int, int, Reason]]],
    shared: set[Pair],
    number: dict[Pair, int],
    late: Callable[[], None],
) -> Part:
    return Part(*pair, tuple(_without_loops(terms, pair[0], _lines(terms, pair, paths, shared, number, late), late)))


def _used(parts: list[Part], goals: list[Part]) -> list[Part]:
    """Return the parts that the goals rest on, numbered anew, then the goals."""
    wanted: set[int] = set()
    for n, part in reversed(list(enumerate([*parts, *goals]))):
        if n >= len(parts) or n in wanted:
            wanted.update(line.part for line in part.lines if line.part is not None)
    number = {old: new for new, old in enumerate(sorted(wanted))}

    def renumbered(part: Part) -> Part:
        lines = (line if line.part is None else line._replace(part=number[line.part]) for line in part.lines)
        return Part(part.before, part.after, tuple(lines))

    return [renumbered(p) for n, p in enumerate(parts) if n in wanted] + [renumbered(p) for p in goals]


def _below(terms: Terms, path: Sequence[tuple[int, int, Reason]]) -> list[Pair]:
    """Return the pairs of operands whose equality a path's congruences need."""
    out: list[Pair] = []
    for a, b, reason in path:
        if reason.rule is None:
            out += _operands(terms, a, b)
    return out


def _operands(terms: Terms, a: int, b: int) -> list[Pair]:
    pairs = zip(terms.args(a), terms.args(b), strict=True)
    return [_sorted(x, y) for x, y in pairs if isinstance(x, int) and isinstance(y, int) and x != y]


def _sorted(a: int, b: int) -> Pair:
    return (a, b) if a < b else (b, a)


def _path(pair: Pair, paths: dict[Pair, list[tuple[int, int, Reason]]]) -> list[tuple[int, int, Reason]]:
    """Return the path from the first to the second; the paths known are those from the lesser number."""
    key = _sorted(*pair)
    return paths[key] if key == pair else [(b, a, r.turned()) for a, b, r in reversed(paths[key])]


def _length(terms: Terms, path: Sequence[tuple[int, int, Reason]], uses: Counter[Pair], lengths: dict[Pair, int]) -> int:
    """Return how many lines a path takes, a shared part being one."""
    total = 0
    for a, b, reason in path:
        if reason.rule is not None:
            total += 1
            continue
        total += sum(1 if uses[p] > 1 else lengths[p] for p in _operands(terms, a, b))
    return total


def _lines(
    terms: Terms,
    pair: Pair,
    paths: dict[Pair, list[tuple[int, int, Reason]]],
    shared: set[Pair],
    number: dict[Pair, int],
    late: Callable[[], None],
) -> list[Line]:
    out: list[Line] = []
    stack: list[tuple[tuple[int, ...], int, int, Reason | None]] = [((), *edge) for edge in reversed(_path(pair, paths))]
    while stack:
        late()
        position, a, b, reason = stack.pop()
        if reason is None:
            out.append(Line(position, a, b, None, number[_sorted(a, b)], a < b))
            continue
        if reason.rule is not None:
            out.append(Line(position, a, b, reason.rule, None, reason.forward))
            continue
        for i, (x, y) in reversed(list(enumerate(zip(terms.args(a), terms.args(b), strict=True)))):
            if not isinstance(x, int) or not isinstance(y, int) or x == y:
                continue
            key, here = _sorted(x, y), (*position, i)
            if key in shared:
                stack.append((here, x, y, None))
                continue
            stack += [(here, *edge) for edge in reversed(_path((x, y), paths))]
    return out


def _without_loops(terms: Terms, start: int, lines: Sequence[Line], late: Callable[[], None]) -> list[Line]:
    """Drop every stretch that comes back to a whole term that was there before."""
    wholes = [start]
    for r in lines:
        late()
        wholes.append(terms.replace(wholes[-1], r.position, r.after))
    last = {t: i for i, t in enumerate(wholes)}
    out, i = [], last[start]
    while i < len(lines):
        out.append(lines[i])
        i = last[wholes[i + 1]]
    return out
