"""The smallest counterexample: fewest axes, smallest extents, plainest numbers, and its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from eqsat.access import Index
from eqsat.gate.draw import Draw, evaluate
from eqsat.gate.equation import Equation
from eqsat.gate.value import Comparison, Domain
from eqsat.indexterms import MADE

_ROUNDS = 40
_PLAIN = (0.0, 1.0, -1.0, 2.0)
_NUMBERS = (1, -1, 2, -2)


@dataclass(frozen=True, slots=True)
class Situation:
    """A draw and the numbers in its tensors (one dimension for each axis of the draw)."""

    draw: Draw
    values: Mapping[str, np.ndarray[Any, Any]]


def shrink(situation: Situation, failing: Callable[[Situation], Situation | None]) -> Situation:
    """Return a situation that still fails and that no single simplification leaves failing.

    Parameters
    ----------
    situation : Situation
    failing : callable
        Returns a candidate, completed by what the guards bind, if it is a counterexample; None if it is not, or if the rule
        does not apply.
    """
    for _ in range(_ROUNDS):
        better = next((s for s in map(failing, _simpler(situation)) if s is not None), None)
        if better is None:
            return situation
        situation = better
    return situation


def _simpler(s: Situation) -> Iterator[Situation]:
    yield from _fewer_axes(s)
    yield from _smaller_extents(s)
    if s.draw.same:
        yield Situation(replace(s.draw, same={}), s.values)
    for v, n in s.draw.numbers.items():
        plainer = _NUMBERS[: _NUMBERS.index(n)] if n in _NUMBERS else _NUMBERS
        for plain in plainer:
            yield Situation(replace(s.draw, numbers={**s.draw.numbers, v: Fraction(plain)}), s.values)
    yield from _plainer_indices(s)
    yield from _plainer_numbers(s)


def _plainer_indices(s: Situation) -> Iterator[Situation]:
    """Replace an index expression by a part of it, then by the first position."""
    for v, index in s.draw.index.items():
        for plain in (*index.args, Index.const(0), Index.const(1)):
            if plain != index and len(str(plain)) <= len(str(index)) and not (index.op == "const" and index.value in (0, 1)):
                yield Situation(replace(s.draw, index={**s.draw.index, v: plain}), s.values)


def _fewer_axes(s: Situation) -> Iterator[Situation]:
    order = list(s.draw.extents)
    for v, axes in s.draw.axes.items():
        for a in sorted(axes):
            fewer = replace(s.draw, axes={**s.draw.axes, v: axes - {a}})
            yield Situation(fewer, {**s.values, v: np.take(s.values[v], [0], order.index(a))})


def _smaller_extents(s: Situation) -> Iterator[Situation]:
    order = list(s.draw.extents)
    for a, n in s.draw.extents.items():
        if a.startswith(MADE):
            continue  # it follows from the others
        for smaller in range(1, min(n, 3)):
            values = {v: np.take(x, range(min(smaller, x.shape[order.index(a)])), order.index(a)) for v, x in s.values.items()}
            yield Situation(replace(s.draw, extents={**s.draw.extents, a: smaller}), values)


def _plainer_numbers(s: Situation) -> Iterator[Situation]:
    for v, x in s.values.items():
        for plain in _PLAIN:
            if not (x == plain).all() and not np.isin(x, _PLAIN[: _PLAIN.index(plain)]).all():
                yield Situation(s.draw, {**s.values, v: np.full(x.shape, plain)})
    for v, x in s.values.items():
        for place in np.ndindex(x.shape):
            rank = _PLAIN.index(float(x[place])) if float(x[place]) in _PLAIN else len(_PLAIN)
            for plain in (*_PLAIN[:rank], *([float(np.round(x[place]))] if x[place] != np.round(x[place]) else [])):
                changed = np.array(x, dtype=np.float64)
                changed[place] = plain
                yield Situation(s.draw, {**s.values, v: changed})


def shown(equation: Equation, s: Situation, domain: Domain, comparison: Comparison) -> str:
    """Return the counterexample as text: both sides with their values, extents, and what every variable holds."""
    draw = s.draw
    tensors = {v: domain.tensor(x, draw.types[v]) for v, x in s.values.items()}
    place = tuple(int(i) for i in np.argwhere(comparison.wrong)[0])
    lines = []
    for label, term in (("left ", equation.left), ("right", equation.right)):
        with np.errstate(all="ignore"):
            value = domain.shown(evaluate(term, draw, domain, tensors))
        one = value[tuple(min(i, n - 1) for i, n in zip(place, value.shape, strict=True))]
        lines.append(f"  {label}  {term} = {_plain(one)}")
    used = sorted(set().union(*draw.axes.values(), *(i.axes for i in draw.index.values())) | set(draw.axis.values()))
    at = ", ".join(
        f"{a}={i}" for a, i in zip(draw.extents, place, strict=True) if comparison.wrong.shape[list(draw.extents).index(a)] > 1
    )
    lines.append(f"  extents  {', '.join(f'{a}={draw.extents[a]}' for a in used) or 'none'}{f'; at {at}' if at else ''}")
    merged = [f"{v} is {a}" for v, a in draw.axis.items() if v != a and not a.startswith(MADE)]
    merged += [f"{v} is {i}" for v, i in draw.index.items()]
    numbers = [f"{v} = {_plain(n)}" for v, n in draw.numbers.items()]
    held = [f"{v}[{' '.join(sorted(draw.axes[v]))}] = {_array(x)}" for v, x in s.values.items()]
    return "\n".join([*lines, f"  with     {', '.join([*merged, *numbers, *held])}"])


def _plain(number: Any) -> str:
    return f"{number}" if isinstance(number, (bool, np.bool_)) else f"{float(number):.9g}"


def _array(x: np.ndarray[Any, Any]) -> str:
    return (
        np.array2string(np.squeeze(x), separator=" ", precision=9).replace("\n", "") if x.size > 1 else _plain(x.reshape(-1)[0])
    )
