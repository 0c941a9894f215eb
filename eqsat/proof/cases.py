"""The cases in which a rule applies: which names stand for one axis, which tensors vary along which axes, what they hold.

A tensor variable is an unknown function of those axes of the rule that it varies over; all other axes only choose the point at
which both sides are looked at. So an axis that the rule does not mention matters to the axes of the sides and not to values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from eqsat.gate.equation import Equation
from eqsat.indexterms import INDEX_CONSTRUCTORS
from eqsat.ops import BY_CONSTRUCTOR, Kind
from eqsat.proof.meaning import Values
from eqsat.sexpr import Node

_MOST_CASES = 2048  # combinations of axes and dtypes; a rule with more is tested, not proved
_MOST_VARIABLES = 8
_OTHER = "?"  # an axis that the rule does not mention


class NotProvedError(Exception):
    """No proof was found; the text says where it stopped."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way in which the rule applies.

    Attributes
    ----------
    axis : dict of str to str
        The axis that each axis name or axis variable stands for.
    axes : dict of str to frozenset of str
        Axes of each tensor and index variable, `_OTHER` for any that the rule does not mention.
    kinds : dict of str to Values
        What the elements of each tensor variable are, and what each variable for a dtype name holds.
    """

    axis: Mapping[str, str]
    axes: Mapping[str, frozenset[str]]
    kinds: Mapping[str, Values]


def cases(equation: Equation, typings: Sequence[Mapping[str, str]]) -> Iterator[Case]:
    """Yield every case that the guards about axes and dtypes leave open.

    Raises
    ------
    NotProvedError
        If there are too many, or the sides differ in their axes in one.
    """
    kinds = _kinds(equation, typings)
    for axis, axes in _axis_cases(equation, len(kinds)):
        yield from (Case(axis, axes, k) for k in kinds)


def _kinds(equation: Equation, typings: Sequence[Mapping[str, str]]) -> list[dict[str, Values]]:
    """Return the ways in which dtypes matter to the value: floats, integers, truth values.

    What holds for all reals holds for whole numbers and for 0 and 1, since every op gives them the value that it gives the
    equal real; so only the most general of several ways is looked at. For the target of a cast each way is its own.
    """

    def of(name: str) -> Values:
        return "truth" if name == "bool" else "whole" if name in ("i32", "i64") else "real"

    targets = {n.args[1].text for t in (equation.left, equation.right) for n in t.walk() if n.head == "Cast"}
    read = targets | set(equation.tensors)
    found = {tuple((v, of(name)) for v, name in t.items() if v in read): None for t in typings}
    ways = [dict(f) for f in found]

    def covers(general: dict[str, Values], special: dict[str, Values]) -> bool:
        return general != special and all(k == special[v] or (k == "real" and v not in targets) for v, k in general.items())

    return [w for w in ways if not any(covers(g, w) for g in ways)]


def axis_key(node: Node) -> str:
    """Return the name under which a case knows an axis."""
    return f"={node.text}" if node.kind == "string" else str(node)


def _named_axes(equation: Equation) -> list[str]:
    """Return every axis that the rule mentions: variables first, then names."""
    found: dict[str, None] = dict.fromkeys(equation.axes)
    for t in (equation.left, equation.right, *equation.guards):
        for n in t.walk():
            row = BY_CONSTRUCTOR.get(n.head)
            if n.head in ("free-of", "has", "index-free-of", "extent", "Axis", "Iota") or (
                row and row.kind in (Kind.REDUCE, Kind.ACCESS)
            ):
                found[axis_key(n.args[0])] = None
            elif n.head in ("Substitute", "inside"):
                found[axis_key(n.args[1])] = None
            elif n.head == "alike-but":
                found |= {axis_key(n.args[0]): None, axis_key(n.args[2]): None}
    return [name for name in found if name not in {m.variable for m in equation.made}]


def _axis_cases(equation: Equation, times: int) -> Iterator[tuple[dict[str, str], dict[str, frozenset[str]]]]:
    names, made = _named_axes(equation), {m.variable: m.variable for m in equation.made}
    variables = (*equation.tensors, *equation.indices)
    most = _MOST_CASES // max(times, 1)
    done = 0
    for axis in _partitions(names):
        if not all(_distinct(g, axis) for g in equation.guards):
            continue
        classes = [*dict.fromkeys(axis.values()), _OTHER]
        if len(variables) > _MOST_VARIABLES:
            raise NotProvedError("too many variables to go through all cases")
        possible = [list(_varying(equation, axis, c, variables)) for c in classes]
        if math.prod(map(len, possible)) > 8 * _MOST_CASES:
            raise NotProvedError("too many axes and variables to go through all cases")
        for chosen in itertools.product(*possible):
            axes = {v: frozenset(c for c, varying in zip(classes, chosen, strict=True) if v in varying) for v in variables}
            left = axes_in(equation.left, axis, axes)
            if left is None or not all(_axes_hold(g, axis, axes) for g in equation.guards):
                continue
            if axes_in(equation.right, {**axis, **made}, axes) != left:
                raise NotProvedError("the axes of the sides differ in a case")
            if any(_OTHER in s for s in axes.values()):
                continue  # values do not depend on the axes that the rule does not mention
            done += 1
            if done > most:
                raise NotProvedError("too many cases")
            yield {**axis, **made}, axes


def _varying(equation: Equation, axis: Mapping[str, str], about: str, variables: Sequence[str]) -> Iterator[frozenset[str]]:
    """Yield the sets of variables that may vary along one axis, as far as that axis alone can tell."""
    told = not any(n.head == "Substitute" for t in (equation.left, *equation.guards) for n in t.walk())
    for members in itertools.product((False, True), repeat=len(variables)):
        varying = frozenset(v for v, m in zip(variables, members, strict=True) if m)
        axes = {v: frozenset((about,)) if v in varying else frozenset[str]() for v in variables}
        if not told or (
            axes_in(equation.left, axis, axes, about) is not None
            and all(_axes_hold(g, axis, axes, about) for g in equation.guards)
        ):
            yield varying


def _partitions(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield every way in which the names stand for axes; two names in quotes are never one axis."""

    def extend(rest: Sequence[str], axis: dict[str, str]) -> Iterator[dict[str, str]]:
        if not rest:
            yield axis
            return
        first, *others = rest
        literal = not first.isidentifier()
        for c in dict.fromkeys(axis.values()):
            if not (literal and any(not n.isidentifier() for n, d in axis.items() if d == c)):
                yield from extend(others, {**axis, first: c})
        yield from extend(others, {**axis, first: first})

    yield from extend(names, {})


def _distinct(guard: Node, axis: Mapping[str, str]) -> bool:
    """Whether a guard that compares axes holds."""
    if guard.head in ("=", "!=") and all(axis_key(a) in axis for a in guard.args):
        a, b = guard.args
        return (axis[axis_key(a)] == axis[axis_key(b)]) == (guard.head == "=")
    return True


def axes_in(node: Node, axis: Mapping[str, str], axes: Mapping[str, frozenset[str]], about: str = "") -> frozenset[str] | None:
    """Return the axes of a term or an index expression; None if it reduces or replaces an axis that its operand lacks.

    With `about`, say only whether that axis is among them: the others are not looked at.
    """
    if node.kind == "symbol":
        return axes[node.text]
    row = BY_CONSTRUCTOR.get(node.head)
    if node.head in INDEX_CONSTRUCTORS:
        return _axes_of_index(node, axis, axes, about)
    if row is None or row.name == "read":
        raise NotProvedError(f"{node.head} has no meaning of its own")
    if row.name == "const":
        return frozenset()
    if row.name == "iota":
        return _only(axis[axis_key(node.args[0])], about)
    if row.kind in (Kind.REDUCE, Kind.ACCESS):
        inner = axes_in(node.args[-1], axis, axes, about)
        gone = axis[axis_key(node.args[0])]
        if inner is None or (gone not in inner and about in ("", gone)):
            return None
        parts = [inner - {gone}, *([axes_in(node.args[1], axis, axes, about)] if row.kind is Kind.ACCESS else [])]
    else:
        parts = [axes_in(a, axis, axes, about) for a in node.args[: row.arity]]
    found: set[str] = set()
    for p in parts:
        if p is None:
            return None
        found |= p
    return frozenset(found)


def _only(axis: str, about: str) -> frozenset[str]:
    return frozenset((axis,)) if about in ("", axis) else frozenset()


def _axes_of_index(node: Node, axis: Mapping[str, str], axes: Mapping[str, frozenset[str]], about: str) -> frozenset[str] | None:
    match node.head, node.args:
        case "Axis", (k,):
            return _only(axis[axis_key(k)], about)
        case "Whole", _:
            return frozenset()
        case "Plus", (a, b):
            parts = axes_in(a, axis, axes, about), axes_in(b, axis, axes, about)
            return None if parts[0] is None or parts[1] is None else parts[0] | parts[1]
        case "Substitute", (a, k, b):
            inner, new, gone = axes_in(a, axis, axes, about), axes_in(b, axis, axes, about), axis[axis_key(k)]
            return None if inner is None or new is None else (inner - {gone}) | new if gone in inner else inner
        case _, (a, _):
            return axes_in(a, axis, axes, about)
    raise NotProvedError(f"the prover cannot read the index {node}")


_AXIS_GUARDS: Mapping[str, Callable[..., bool]] = {
    "scalar": lambda x: not x,
    "same-axes": lambda x, y: bool(x == y),
    "within": lambda x, y: bool(x <= y),
}


def _axes_hold(guard: Node, axis: Mapping[str, str], axes: Mapping[str, frozenset[str]], about: str = "") -> bool:
    """Whether a guard about axes holds; any other one is left open here."""
    if guard.head in ("free-of", "has", "index-free-of"):
        if about not in ("", axis[axis_key(guard.args[0])]):
            return True
        found = axes_in(guard.args[1], axis, axes, about)
        return found is not None and (axis[axis_key(guard.args[0])] in found) == (guard.head == "has")
    if guard.head == "alike-but":
        k, a, m, b = guard.args
        one, other = axes_in(a, axis, axes, about), axes_in(b, axis, axes, about)
        return one is not None and other is not None and one - {axis[axis_key(k)]} == other - {axis[axis_key(m)]}
    if guard.head in _AXIS_GUARDS:
        sets = [axes_in(a, axis, axes, about) for a in guard.args]
        return None not in sets and _AXIS_GUARDS[guard.head](*sets)
    return True
