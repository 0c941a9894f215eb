"""Random situations in which a rule applies: axes, extents, dtypes and numbers that satisfy its guards."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from eqsat.access import Index, IndexOp
from eqsat.gate.equation import Equation, UncheckableError
from eqsat.gate.index import random_index, taker
from eqsat.gate.value import Domain, Value
from eqsat.indexterms import INDEX_CONSTRUCTORS, MADE, substituted
from eqsat.ops import BY_CONSTRUCTOR, Kind
from eqsat.rulelint import FUNCTIONS, MACROS
from eqsat.sexpr import Node
from eqsat.signature import COSTS, RANGES

Number = Fraction | int | float

EXTENTS = ((2, 3, 5, 4, 1, 6), (3, 1, 4, 2, 5, 6), (5, 2, 1, 3, 4, 6), (1, 4, 2, 5, 3, 6))
"""Extents given to the axes of a draw in turn: distinct within a row, and each of the first axes has extent 1 once."""

_SPARE_AXES = ("p", "q")
_LARGE = 900.0  # beyond the range of exp in float64 (709): what overflows is seen
_TRIES = 300  # random situations tried for one that satisfies the guards


@dataclass(frozen=True, slots=True)
class Draw:
    """One situation.

    Attributes
    ----------
    axis : dict of str to str
        Axis name for each axis variable.
    extents : dict of str to int
        In order of the arrays' dimensions.
    axes : dict of str to frozenset of str
        Axes of each tensor variable.
    types : dict of str to str
        dtype of each tensor variable, and value of each variable for a dtype name.
    numbers : dict of str to number
    same : dict of str to str
        Tensor variables that hold the same values as another.
    index : dict of str to Index
        Index expression of each index variable.
    """

    axis: Mapping[str, str]
    extents: Mapping[str, int]
    axes: Mapping[str, frozenset[str]]
    types: Mapping[str, str]
    numbers: Mapping[str, Number]
    same: Mapping[str, str]
    index: Mapping[str, Index] = field(default_factory=dict)

    def shape(self, variable: str) -> tuple[int, ...]:
        """Return the shape of a tensor variable's array, extent 1 where it does not vary."""
        return tuple(n if a in self.axes[variable] else 1 for a, n in self.extents.items())

    def name(self, node: Node) -> str:
        """Return the axis that a string or an axis variable stands for."""
        if node.kind == "string":
            return node.text
        if node.text not in self.axis:
            raise UncheckableError(f"the gate cannot tell which axis {node} is")
        return self.axis[node.text]


def axes_of(node: Node, draw: Draw) -> frozenset[str] | None:
    """Return the axes of a term, or None if it reduces over an axis that its operand lacks."""
    if node.kind == "symbol":
        return draw.axes[node.text]
    row = BY_CONSTRUCTOR.get(node.head)
    if row is None or row.name == "read":
        raise UncheckableError(f"the gate cannot evaluate {node}: what it means depends on the program")
    if row.name == "access":
        inner = axes_of(node.args[2], draw)
        axis = draw.name(node.args[0])
        return (inner - {axis}) | index_axes(node.args[1], draw) if inner is not None and axis in inner else None
    if row.name == "const":
        return frozenset()
    if row.name == "iota":
        return frozenset((draw.name(node.args[0]),))
    if row.kind is Kind.REDUCE:
        inner = axes_of(node.args[1], draw)
        axis = draw.name(node.args[0])
        return inner - {axis} if inner is not None and axis in inner else None
    found: set[str] = set()
    for operand in node.args[: row.arity]:
        inner = axes_of(operand, draw)
        if inner is None:
            return None
        found |= inner
    return frozenset(found)


def index_axes(node: Node, draw: Draw) -> frozenset[str]:
    """Return the axes that an index expression varies over."""
    if node.kind == "symbol":
        return draw.index[node.text].axes
    if node.head == "Axis":
        return frozenset((draw.name(node.args[0]),))
    if node.head == "Substitute":
        inner, axis = index_axes(node.args[0], draw), draw.name(node.args[1])
        return (inner - {axis}) | index_axes(node.args[2], draw) if axis in inner else inner
    return frozenset[str]().union(*(index_axes(a, draw) for a in node.args if _is_index(a, draw)))


def _is_index(node: Node, draw: Draw) -> bool:
    return node.head in INDEX_CONSTRUCTORS or (node.kind == "symbol" and node.text in draw.index)


def index_of(node: Node, draw: Draw, numbers: Mapping[str, Number]) -> Index:
    """Return the index expression that a term of sort `Index` stands for."""
    if node.kind == "symbol":
        return draw.index[node.text]
    match node.head, node.args:
        case "Axis", (k,):
            return Index.axis(draw.name(k))
        case "Whole", (c,):
            return Index.const(int(number(c, draw, numbers)))
        case "Plus", (a, b):
            return Index("add", args=(index_of(a, draw, numbers), index_of(b, draw, numbers)))
        case "Substitute", (a, k, b):
            return substituted(index_of(a, draw, numbers), draw.name(k), index_of(b, draw, numbers))
        case head, (a, n) if head in _SCALED:
            factor = int(number(n, draw, numbers))
            if factor < 1 and head != "Times":
                raise UncheckableError(f"{node} divides by {factor}; guard with (> n 0)")
            return Index(_SCALED[head], value=factor, args=(index_of(a, draw, numbers),))
    raise UncheckableError(f"the gate cannot evaluate the index {node}")


_SCALED: Mapping[str, IndexOp] = {"Times": "mul", "Quotient": "div", "Remainder": "mod"}


def draws(equation: Equation, typings: Sequence[dict[str, str]], extents: Sequence[int], rng: random.Random) -> Iterator[Draw]:
    """Yield random situations that satisfy the guards and make the left side a term that programs have."""
    literals = [
        n.number for t in (equation.left, *equation.guards) for n in t.walk() if n.kind == "float" and math.isfinite(n.number)
    ]
    named, matched, needs = _literal_axes(equation), _matched(equation), _needs(equation)
    while True:
        for _ in range(_TRIES):
            draw = applied(equation, _random_draw(equation, typings, extents, literals, named, needs, rng), matched)
            if draw is not None:
                yield draw
                break
        else:
            return


def _matched(equation: Equation) -> frozenset[str]:
    """Return the variables that the left side and facts of relations bind."""
    facts = [g for g in equation.guards if is_menu(g)]
    return frozenset(n.text for t in (equation.left, *facts) for n in t.walk() if n.kind == "symbol")


def applied(equation: Equation, draw: Draw, matched: frozenset[str] | None = None) -> Draw | None:
    """Return the situation with the numbers that guards bind, or None if the rule does not apply in it."""
    matched = _matched(equation) if matched is None else matched
    numbers = {v: n for v, n in draw.numbers.items() if v in matched}
    draw = replace(draw, numbers=numbers)
    if axes_of(equation.left, draw) is None:
        return None
    waiting = list(equation.guards)
    while waiting:
        ready = [g for g in waiting if not _unbound(g, equation, numbers)] or [g for g in waiting if _bind(g, draw, numbers)]
        if not ready:
            raise UncheckableError(f"the gate cannot tell what {waiting[0]} binds")
        if not all(_holds(g, draw, numbers) for g in ready):
            return None
        waiting = [g for g in waiting if g not in ready]
    return _with_made_axes(equation, draw, numbers)


def _with_made_axes(equation: Equation, draw: Draw, numbers: Mapping[str, Number]) -> Draw:
    """Return the situation with the axes that the rule brings in, after all others."""
    if not equation.made:
        return draw
    axis = {v: a for v, a in draw.axis.items() if v in equation.axes}
    extents = {a: n for a, n in draw.extents.items() if not a.startswith(MADE)}
    for m in equation.made:
        extent = number(m.extent, draw, numbers)
        if extent < 1 or extent != int(extent):
            raise UncheckableError(f"it makes the axis {m.variable} of extent {extent}; guard against it")
        axis[m.variable] = MADE + m.variable
        extents[MADE + m.variable] = int(extent)
    return replace(draw, axis=axis, extents=extents)


def is_menu(guard: Node) -> bool:
    """Whether a guard is a fact of a relation: a premise of the search, without which the law is tested."""
    return guard.head == "other-origin" or (
        "-" in guard.head
        and guard.head not in MACROS
        and guard.head not in FUNCTIONS
        and all(a.kind != "list" or a.head in _NUMERIC for a in guard.args)
    )


def _unbound(guard: Node, equation: Equation, numbers: Mapping[str, Number]) -> bool:
    """Whether a guard mentions a number that is not known yet."""
    names = {v for v, _ in equation.numbers}
    return bool(names) and any(n.text in names and n.text not in numbers for n in guard.walk() if n.kind == "symbol")


def _bind(guard: Node, draw: Draw, numbers: dict[str, Number]) -> bool:
    """Bind the variable of `(= v calculation)` if the calculation's own variables are known."""
    if guard.head != "=" or len(guard.args) != 2:
        return False
    for v, e in (guard.args, tuple(reversed(guard.args))):
        if v.kind == "symbol" and v.text not in numbers and e.kind == "list":
            try:
                numbers[v.text] = number(e, draw, numbers)
            except UncheckableError:
                continue
            return True
    return False


def _random_draw(
    equation: Equation, typings: Sequence[dict[str, str]], extents: Sequence[int], literals: list[float], named: Sequence[str],
    needs: Sequence[tuple[str, tuple[Node, ...]]], rng: random.Random,
) -> Draw:  # fmt: skip
    axis = dict(zip(equation.axes, equation.axes, strict=True))
    if len(axis) > 1 and rng.random() < 0.15:  # two axis variables may well stand for one axis
        axis[equation.axes[1]] = axis[equation.axes[0]]
    pool = list(dict.fromkeys([*axis.values(), *named, *_SPARE_AXES]))
    types = rng.choice(typings)
    tensors = equation.tensors
    density = rng.choice((0.35, 0.6, 0.85))
    axes = {v: frozenset(a for a in pool if types[v] != "weak" and rng.random() < density) for v in tensors}
    same = {}
    if len(tensors) > 1 and rng.random() < 0.1:
        v, w = rng.sample(tensors, 2)
        if types[v] == types[w]:
            same[v] = w
            axes[v] = axes[w]
    for v, fitted in _fitted(needs, axis, axes, types).items():
        axes[v] = fitted
        axes |= {x: fitted for x, y in same.items() if v in (x, y)} | {y: fitted for x, y in same.items() if v in (x, y)}
    numbers = {v: _number(sort, literals, rng) for v, sort in equation.numbers}
    index = {v: random_index(pool, rng) for v in equation.indices}
    lengths = [extents[i] if i < len(extents) else 7 + i for i in range(len(pool))]
    if rng.random() < 0.5:
        rng.shuffle(lengths)
    return Draw(axis, dict(zip(pool, lengths, strict=True)), axes, types, numbers, same, index)


def _literal_axes(equation: Equation) -> tuple[str, ...]:
    """Return the axes that the rule names in quotes."""
    found = [
        n.args[0].text
        for t in (equation.left, equation.right)
        for n in t.walk()
        if n.head in BY_CONSTRUCTOR and BY_CONSTRUCTOR[n.head].kind is Kind.REDUCE and n.args[0].kind == "string"
    ]
    return tuple(dict.fromkeys(found))


def _needs(equation: Equation) -> tuple[tuple[str, tuple[Node, ...]], ...]:
    """Return what guards on variables and the reductions of the left side ask of axes; guards about two variables last."""
    reduced = [
        ("has", (n.args[0], n.args[-1]))
        for n in equation.left.walk()
        if n.head in BY_CONSTRUCTOR and BY_CONSTRUCTOR[n.head].kind in (Kind.REDUCE, Kind.ACCESS)
    ]
    alone = [(g.head, g.args) for g in equation.guards if g.head in ("has", "free-of", "scalar")]
    paired = [(g.head, g.args) for g in equation.guards if g.head in ("within", "same-axes", "alike-but")]
    return tuple((head, args) for head, args in (*reduced, *alone, *paired) if all(a.kind in ("symbol", "string") for a in args))


def _fitted(
    needs: Sequence[tuple[str, tuple[Node, ...]]],
    axis: Mapping[str, str],
    axes: Mapping[str, frozenset[str]],
    types: Mapping[str, str],
) -> dict[str, frozenset[str]]:
    """Return axes changed to fit what is asked of them: fewer draws are in vain."""
    out = dict(axes)

    def named(k: Node) -> frozenset[str]:
        return frozenset((k.text if k.kind == "string" else axis.get(k.text, k.text),))

    for head, args in needs:
        v = args[-1].text
        if v not in out or types[v] == "weak":
            continue
        match head, args:
            case "has", (k, _):
                out[v] |= named(k)
            case "free-of", (k, _):
                out[v] -= named(k)
            case "scalar", _:
                out[v] = frozenset()
            case "within", (a, _) if types.get(a.text) != "weak" and a.text in out:
                out[a.text] &= out[v]
            case "same-axes", (a, _) if a.text in out:
                out[v] = out[a.text]
            case "alike-but", (k, a, m, _) if a.text in out:
                out[v] = (out[a.text] - named(k)) | named(m)
    return {v: fitted for v, fitted in out.items() if fitted != axes[v]}


def _number(sort: str, literals: list[float], rng: random.Random) -> Number:
    if sort == "i64":
        return rng.randint(1, 5)
    choice = rng.random()
    if literals and choice < 0.2:
        return Fraction(rng.choice(literals))
    return Fraction(rng.randint(-3, 3)) if choice < 0.6 else Fraction(rng.randint(-40, 40), 8)


def _holds(guard: Node, draw: Draw, numbers: Mapping[str, Number]) -> bool:
    """Decide a guard whose variables are all known; guards about dtypes are decided by `typings`."""
    head, args = guard.head, guard.args
    if head in ("free-of", "has"):
        found = axes_of(args[1], draw)
        return found is not None and (draw.name(args[0]) in found) == (head == "has")
    if head in RANGES and args[0].kind != "symbol":
        raise UncheckableError(f"the gate draws numbers for variables, and {guard} speaks of a term; state it of its variables")
    if head in ("float", "typed", "numeric", "same-dtype", "groups", "constant", *COSTS, *RANGES):
        return True  # dtypes are chosen to fit, and numbers are drawn to fit (`within_ranges`)
    if head in _AXES:
        sets = [axes_of(a, draw) for a in args]
        known = [s for s in sets if s is not None]
        return len(known) == len(sets) and _AXES[head](*known)
    if head == "whole":
        value = number(args[0], draw, numbers)
        return np.isfinite(float(value)) and value == int(value)
    if head == "alike-but":
        rests = [axes_of(a, draw) for a in (args[1], args[3])]
        one, other = (None if r is None else r - {draw.name(k)} for r, k in zip(rests, (args[0], args[2]), strict=True))
        return one is not None and one == other
    if head == "inside":
        index, name = index_of(args[0], draw, numbers), draw.name(args[1])
        low, high = index.bounds(draw.extents)
        return low >= 0 and high < draw.extents[name]
    if head == "index-free-of":
        return draw.name(args[0]) not in index_axes(args[1], draw)
    if is_menu(guard):
        return True
    if head not in _COMPARE or len(args) != 2:
        raise UncheckableError(f"the gate cannot evaluate the guard {guard}; use the guards of rules/README.md and comparisons")
    if head in ("=", "!=") and any(_is_type(a, draw) for a in args):
        return True
    if head == "!=" and all(_is_tensor(a, draw) or _is_index(a, draw) for a in args):
        return True  # a premise about classes, not about values: the law is tested without it
    if head in ("=", "!=") and all(a.kind == "string" or a.text in draw.axis for a in args):
        return (draw.name(args[0]) == draw.name(args[1])) == (head == "=")
    return _COMPARE[head](number(args[0], draw, numbers), number(args[1], draw, numbers))


def _is_type(node: Node, draw: Draw) -> bool:
    if node.head in ("dtype", "promote", "floating", "counting"):
        return True
    return node.kind == "symbol" and node.text in draw.types and node.text not in draw.axes


def _is_tensor(node: Node, draw: Draw) -> bool:
    return node.head in BY_CONSTRUCTOR or (node.kind == "symbol" and node.text in draw.axes)


_AXES: Mapping[str, Callable[..., bool]] = {
    "scalar": lambda x: not x,
    "share-axis": lambda x, y: bool(x & y),
    "same-axes": lambda x, y: bool(x == y),
    "within": lambda x, y: bool(x <= y),
    "apart": lambda x, y: not x & y,
    "exceeds": lambda x, y: not x <= y,
}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b), "!=": lambda a, b: bool(a != b), "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b), ">": lambda a, b: bool(a > b), ">=": lambda a, b: bool(a >= b),
}  # fmt: skip


def number(node: Node, draw: Draw, numbers: Mapping[str, Number]) -> Number:
    """Evaluate a numeric expression, exactly where it is rational."""
    if node.kind == "symbol" and node.text in numbers:
        return numbers[node.text]
    if node.kind == "int":
        return int(node.text)
    if node.kind == "float":
        value = node.number
        return Fraction(value) if np.isfinite(value) else value
    if node.head == "extent":
        name = draw.name(node.args[0])
        return draw.extents[name]
    operation = _NUMERIC.get(node.head)
    if operation is None:
        raise UncheckableError(f"the gate cannot evaluate {node}; use + - * / ^ min max neg abs to-f64 and (extent k)")
    args = [number(a, draw, numbers) for a in node.args]
    try:
        return operation(*args)
    except ZeroDivisionError:
        return float("nan")


def _power(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int):
        return a ^ b  # egglog's ^ over i64 is exclusive or
    if isinstance(a, float) or isinstance(b, float) or b != int(b):
        return float(a) ** float(b) if a >= 0 else float("nan")
    return Fraction(a) ** int(b)


def _quotient(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    exact = Fraction(a) / Fraction(b)
    return math.trunc(exact) if isinstance(a, int) and isinstance(b, int) else exact  # i64 division truncates


def _remainder(a: Number, b: Number) -> Number:
    return (
        a - b * math.trunc(a / b)
        if isinstance(a, float) or isinstance(b, float)
        else a - b * math.trunc(Fraction(a) / Fraction(b))
    )


_NUMERIC: Mapping[str, Callable[..., Number]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": _quotient,
    "%": _remainder, "^": _power, "min": min, "max": max, "neg": lambda a: -a, "abs": abs,
    "to-f64": Fraction, "to-i64": int,
}  # fmt: skip


def evaluate(node: Node, draw: Draw, domain: Domain, tensors: Mapping[str, Value]) -> Value:
    """Evaluate a term in a number system."""
    if node.kind == "symbol":
        return tensors[node.text]
    row = BY_CONSTRUCTOR[node.head]
    rank = len(draw.extents)
    if row.name == "const":
        return domain.constant(number(node.args[0], draw, draw.numbers), rank)
    if row.name == "iota":
        place = list(draw.extents).index(draw.name(node.args[0]))
        steps = np.arange(draw.extents[draw.name(node.args[0])])
        return domain.tensor(steps.reshape([-1 if i == place else 1 for i in range(rank)]), "i64")
    if row.name == "access":
        arg = evaluate(node.args[2], draw, domain, tensors)
        return domain.gather(arg, taker(draw.extents, draw.name(node.args[0]), index_of(node.args[1], draw, draw.numbers)))
    if row.kind is Kind.REDUCE:
        arg = evaluate(node.args[1], draw, domain, tensors)
        return domain.reduce(row, arg, list(draw.extents).index(draw.name(node.args[0])))
    to = ""
    if row.name == "cast":
        to = draw.types[node.args[1].text] if node.args[1].kind == "symbol" else node.args[1].text
    return domain.apply(row, [evaluate(a, draw, domain, tensors) for a in node.args[: row.arity]], to)


def tensor_numbers(rng: np.random.Generator, shape: tuple[int, ...], kind: str, style: str, prime: int) -> np.ndarray[Any, Any]:
    """Draw a tensor's numbers: mixed signs with zeros, and (residues aside) now and then one number throughout.

    Parameters
    ----------
    rng : Generator
    shape : tuple of int
    kind : str
        dtype of the variable.
    style : {"residues", "whole", "ordinary", "signed", "large", "wide"}
    prime : int
        Modulus of residues; 0 for any other style.

    Returns
    -------
    array
        In float64 (residues in int64), to be taken into a number system.
    """
    if prime:
        return rng.integers(0, prime, shape)
    if kind == "bool":
        return rng.integers(0, 2, shape).astype(np.float64)
    if style == "masked" and kind != "i32":  # −∞ at some places and all along some slices, as masked scores have it
        hidden = rng.random(shape) < 0.2
        for dimension, n in enumerate(shape):
            hidden |= rng.random([n if d == dimension else 1 for d in range(len(shape))]) < 0.2
        return np.where(hidden, -np.inf, rng.normal(0, 2, shape))
    if rng.random() < 0.1:
        return np.full(shape, float(rng.choice([0, 1, -1, 2])))
    if style == "whole" or kind == "i32":
        return rng.integers(-4, 5, shape).astype(np.float64)
    if style == "large":
        return rng.uniform(-_LARGE, _LARGE, shape)
    if style == "wide":
        return rng.choice([-1.0, 1.0], shape) * np.where(
            rng.random(shape) < 0.5, rng.uniform(0, 12, shape), 10 ** rng.uniform(-9, 2.5, shape)
        )
    drawn = rng.normal(0, 2, shape)
    choice = rng.random(shape)
    drawn = np.where(choice < 0.1, 0.0, np.where(choice > 0.9, np.round(drawn) + 0.0, drawn))
    # The sign of a zero is no value of a tensor program; only the class `exact` promises it.
    return np.where(choice < 0.05, -0.0, drawn) if style == "signed" else drawn


def within_ranges(equation: Equation, draw: Draw, values: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the numbers moved into the ranges that the guards state; what fits stays as it is."""
    out = dict(values)
    stated: dict[str, set[str]] = {}
    for g in equation.guards:
        if g.head in RANGES:
            v = g.args[0].text
            for w in {v, draw.same.get(v, v), *(x for x, y in draw.same.items() if y == v)} & set(out):
                stated.setdefault(w, set()).add(g.head)
    for v, heads in stated.items():
        for head in sorted(heads):
            out[v] = _INTO_RANGE[head](out[v])
        if {"at-least-zero", "at-most-zero"} <= heads:
            out[v] = np.zeros_like(out[v])
    return out


_INTO_RANGE: Mapping[str, Callable[[Any], Any]] = {
    "at-least-zero": np.abs,
    "at-most-zero": lambda x: -np.abs(x),
    "at-most-one": lambda x: np.where(x > 1, 1 / np.maximum(x, 1), x),
}


def degree(node: Node, draw: Draw) -> tuple[int, int]:
    """Return the degrees of numerator and denominator of a term, a rational function of its variables' elements."""
    if node.kind == "symbol":
        return 1, 0
    row = BY_CONSTRUCTOR[node.head]
    if row.name == "const":
        return 0, 0
    if row.kind is Kind.REDUCE:
        n, d = degree(node.args[1], draw)
        extent = draw.extents[draw.name(node.args[0])]
        return (n + (extent - 1) * d, extent * d) if row.name == "sum" else (extent * n, extent * d)
    if row.name == "access":
        return degree(node.args[2], draw)
    parts = [degree(a, draw) for a in node.args]
    match row.name, parts:
        case (("add" | "sub"), [(a, b), (c, d)]):
            return max(a + d, c + b), b + d
        case "mul", [(a, b), (c, d)]:
            return a + c, b + d
        case "div", [(a, b), (c, d)]:
            return a + d, b + c
        case "recip", [(a, b)]:
            return b, a
        case _:
            return parts[0]
