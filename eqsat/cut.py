"""What a cut is: one fused region, told apart from others by what it loads and what anchors it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Load = tuple[str, ...] | tuple[str, int]
"""What a region reads: ("read", input, axes) or ("buf", class)."""

Form = tuple[Any, ...]
"""An expression tree over loads: (op name, literals, operands…)."""

Anchors = frozenset[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Mode:
    """What anchors a cut: nothing ("point"), or reductions over one set of axes.

    `over` are the reduced axes. For "reduce", `free` holds the axes of the reductions' results; for "contract" the axes of
    the products' sums, and `shared` the loads of each operand that all contractions have in common. What is reduced beside
    contractions is a statistic of such an operand, taken in the same pass: `summed` are the loads that reductions go over,
    and `nested` says that one of them needs another's result. A sum of contractions of different operands is one accumulator,
    to which each adds in turn: then `over` are the axes of all, and nothing is shared. "online" is a dependent fold: `score` says which class
    the pivot is taken of, what that loads and what anchors it; all parts of one region have the same score.
    """

    family: str = "point"
    over: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()
    shared: frozenset[frozenset[Load]] = frozenset()
    score: tuple[int, frozenset[Load], Anchors] | None = None
    summed: frozenset[Load] = frozenset()
    nested: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """A region: its mode, anchors (class-level identities), what it loads, weighted elements computed, and its expression tree.

    `rank` orders the cuts of a class, best first: an estimate of what they cost, loads and their making included, then the
    number of loads.
    """

    mode: Mode
    anchors: Anchors
    loads: frozenset[Load]
    work: float
    form: Form
    rank: tuple[float, int] = field(default=(0.0, 0), compare=False, repr=False)


_POINT = Mode()
_NOTHING_SHARED: frozenset[frozenset[Load]] = frozenset([frozenset()])


def _sum(modes: list[Mode], axes: frozenset[str]) -> Mode | None:
    """Return the mode of a sum of contractions with different operands or axes; None if it is of something else too."""
    if any(m.family != "contract" or m.free != axes or m.summed for m in modes):
        return None
    return Mode("contract", frozenset().union(*(m.over for m in modes)), axes, _NOTHING_SHARED)


def join(modes: list[Mode], axes: frozenset[str], *, small: bool = False, added: bool = False) -> Mode | None:
    """Return the mode of a pointwise node over parts of these modes, or None where no family could serve it.

    Parameters
    ----------
    modes : list of Mode
    axes : frozenset of str
        Axes of the node.
    small : bool
        Whether the node has so few elements that a reduction may be done again for each position of the axes it lacks.
    added : bool
        Whether the node is the sum of the parts.
    """
    anchored = [m for m in modes if m.family != "point"]
    if not anchored:
        return _POINT
    lead = anchored[0]
    if any(m.over != lead.over for m in anchored):
        return _sum(modes, axes) if added else None
    free = frozenset().union(*(m.free for m in anchored))
    if any(m.family == "online" for m in anchored):
        same = all(m.family == "online" and m.score == lead.score for m in anchored)
        return Mode("online", lead.over, free, score=lead.score) if same and axes <= free else None
    contracts = [m for m in anchored if m.family == "contract"]
    summed = frozenset().union(*(m.summed for m in anchored))
    nested = any(m.nested for m in anchored)
    if not contracts:
        rows = free | axes - lead.over
        return Mode("reduce", lead.over, rows, summed=summed, nested=nested) if small or rows == free else None
    wide = contracts[0]
    shared = frozenset(loads for loads in frozenset.intersection(*(m.shared for m in contracts)) if summed <= loads)
    if not shared and added:
        return _sum(modes, axes)
    if not shared or nested or any(m.free != wide.free for m in contracts):
        return None
    if any(not m.free <= wide.free for m in anchored) or not axes <= wide.free:
        return None
    return Mode("contract", wide.over, wide.free, shared, summed=summed)
