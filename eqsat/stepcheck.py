"""Check one step of a derivation without the e-graph: match the rule's left side, recompute its guards and its right side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eqsat.access import Index
from eqsat.congruence import Terms
from eqsat.indexterms import INDEX_CONSTRUCTORS, canonical, extent_in, origin, read_index, substituted
from eqsat.ir import Program
from eqsat.ops import BY_CONSTRUCTOR, Kind, Result
from eqsat.sexpr import Node
from eqsat.signature import COSTS, WEAK, weak_dtype

Value = Any
"""A term's number wrapped in `Term`, an index expression, an axis set, a string, or a number."""


@dataclass(frozen=True, slots=True)
class Term:
    """A bound variable that stands for a term."""

    number: int


@dataclass(frozen=True, slots=True)
class Equation:
    """What a rule equates, and under which conditions; variables are symbols.

    `name` is the rule's; `reverse` says that it is the second direction of a birewrite.
    """

    name: str
    reverse: bool
    left: Node
    right: Node
    conditions: tuple[Node, ...]

    @property
    def rearranges(self) -> bool:
        """Whether it only reorders or regroups operands of one constructor (commutativity, associativity, order of sums)."""
        sides = [sorted(str(n) for n in s.walk() if n.kind != "list") for s in (self.left, self.right)]
        heads = {n.head for s in (self.left, self.right) for n in s.walk() if n.kind == "list"}
        return sides[0] == sides[1] and len(heads) == 1


class UnknownFunctionError(Exception):
    """A guard or a right side uses a function that this checker does not know."""


class StepChecker:
    """Checks uses of equations on ground terms of one program."""

    def __init__(self, terms: Terms, program: Program, extents: Mapping[str, int]) -> None:
        self._terms = terms
        self._inputs = {i.name: i for i in program.inputs}
        self._extents = extents
        self._axes: dict[int, frozenset[str]] = {}
        self._dtype: dict[int, str] = {}

    def holds(self, equation: Equation, before: int, after: int) -> bool:
        """Return whether `after` is what the equation makes of `before`: both sides match and computed parts agree."""
        bound: dict[str, Value] = {}
        if not self._match(equation.left, before, bound):
            return False
        self._bind_conditions(equation.conditions, bound)
        known = set(bound)
        self._read_off(equation.right, after, bound)
        self._bind_conditions(equation.conditions, bound)
        return self._agrees(equation.right, after, bound) and self._defined(equation.conditions, bound, set(bound) - known)

    def guards_hold(self, equation: Equation, before: int) -> bool | None:
        """Return whether the guards hold on the term itself; None if one of them cannot be recomputed here.

        The e-graph may know more: a guard is tested there on a class, which another member may have given fewer axes.
        """
        bound: dict[str, Value] = {}
        self._match(equation.left, before, bound)
        self._bind_conditions(equation.conditions, bound)
        try:
            return all(self._true(c, bound) for c in equation.conditions)
        except UnknownFunctionError:
            return None

    def _match(self, pattern: Node, term: int, bound: dict[str, Value]) -> bool:
        if pattern.kind == "symbol":
            return bool(bound.setdefault(pattern.text, Term(term)) == Term(term))
        if pattern.kind != "list" or pattern.head != self._terms.op(term):
            return False
        args = self._terms.args(term)
        if len(args) != len(pattern.args):
            return False
        return all(
            self._match(p, a, bound) if isinstance(a, int) else self._match_literal(p, a, bound)
            for p, a in zip(pattern.args, args, strict=True)
        )

    def _match_literal(self, pattern: Node, text: str, bound: dict[str, Value]) -> bool:
        value = _value_of(text)
        if isinstance(value, Index):
            return self._match_index(pattern, value, bound)
        if pattern.kind == "symbol":
            return _same(bound.setdefault(pattern.text, value), value)
        return pattern.kind != "list" and _same(_literal(pattern), value)

    def _match_index(self, pattern: Node, index: Index, bound: dict[str, Value]) -> bool:
        """Match an index expression: by structure, or, where the pattern's variables are bound, by value."""
        if pattern.kind == "symbol":
            return bool(bound.setdefault(pattern.text, index) == index)
        try:
            return bool(self._value(pattern, bound) == index)
        except UnknownFunctionError:
            pass
        args: tuple[Value, ...]
        match index.op:
            case "axis":
                head, args = "Axis", (index.name,)
            case "const":
                head, args = "Whole", (index.value,)
            case "add":
                head, args = "Plus", index.args
            case op:
                head, args = {"mul": "Times", "div": "Quotient", "mod": "Remainder"}[op], (*index.args, index.value)
        if pattern.head != head:
            return False
        if head == "Plus":  # the canonical spelling has its own order of summands
            for way in (args, args[::-1]):
                found = dict(bound)
                if all(self._match_index(p, a, found) for p, a in zip(pattern.args, way, strict=True)):
                    bound |= found
                    return True
            return False
        for p, a in zip(pattern.args, args, strict=True):
            if isinstance(a, Index):
                if not self._match_index(p, a, bound):
                    return False
            elif p.kind == "symbol":
                if not _same(bound.setdefault(p.text, a), a):
                    return False
            elif not self._agrees_literal(p, a, bound):
                return False
        return True

    def _agrees(self, pattern: Node, term: int, bound: dict[str, Value]) -> bool:
        """Whether `term` is the instance of `pattern`, whose arguments may be computed."""
        if pattern.kind == "symbol":
            return bool(bound.get(pattern.text) == Term(term))
        if pattern.head != self._terms.op(term) or len(pattern.args) != len(self._terms.args(term)):
            return False
        for p, a in zip(pattern.args, self._terms.args(term), strict=True):
            if isinstance(a, int):
                if not self._agrees(p, a, bound):
                    return False
                continue
            if not self._agrees_literal(p, _value_of(a), bound):
                return False
        return True

    def _read_off(self, pattern: Node, term: int, bound: dict[str, Value]) -> None:
        """Bind variables that only a fact binds, or another match of the same use, to what stands in their place."""
        if pattern.kind == "symbol":
            bound.setdefault(pattern.text, Term(term))
            return
        args = self._terms.args(term)
        if pattern.head != self._terms.op(term) or len(pattern.args) != len(args):
            return
        for p, a in zip(pattern.args, args, strict=True):
            if isinstance(a, int):
                self._read_off(p, a, bound)
                continue
            value = _value_of(a)
            if isinstance(value, Index):
                self._match_index(p, value, bound)
            elif p.kind == "symbol":
                bound.setdefault(p.text, value)

    def _agrees_literal(self, pattern: Node, value: Value, bound: dict[str, Value]) -> bool:
        """Whether a literal is what the pattern computes."""
        if isinstance(value, Index):
            return self._match_index(pattern, value, bound)
        try:
            return _same(self._value(pattern, bound), value)
        except UnknownFunctionError:
            return False

    def _defined(self, conditions: Sequence[Node], bound: dict[str, Value], read_off: set[str]) -> bool:
        """Whether the variables that were read off the right side are what the conditions define them to be."""
        for c in conditions:
            if c.head == "=" and c.args[0].text in read_off:
                try:
                    if not _same(self._value(c.args[1], bound), bound[c.args[0].text]):
                        return False
                except UnknownFunctionError:
                    return False
        return True

    def _bind_conditions(self, conditions: Sequence[Node], bound: dict[str, Value]) -> None:
        """Bind the variables that `(= v expression)` defines."""
        for c in conditions:
            if c.head == "=" and c.args[0].kind == "symbol" and c.args[0].text not in bound:
                try:
                    bound[c.args[0].text] = self._value(c.args[1], bound)
                except UnknownFunctionError:
                    continue

    def _true(self, condition: Node, bound: dict[str, Value]) -> bool:
        if condition.head in COSTS:
            return True
        if condition.head in _COMPARISONS:
            return _COMPARISONS[condition.head](*(self._value(a, bound) for a in condition.args))
        return bool(self._value(condition, bound))

    def _value(self, node: Node, bound: dict[str, Value]) -> Value:
        if node.kind == "symbol":
            if node.text in bound:
                return bound[node.text]
            if node.text in ("true", "false"):
                return node.text == "true"
            raise UnknownFunctionError(node.text)
        if node.kind != "list":
            return _literal(node)
        args = [self._value(a, bound) for a in node.args]
        if node.head in INDEX_CONSTRUCTORS:
            return self._index(node.head, args)
        if node.head in _INDEX_FACTS and isinstance(args[0], Index):
            return self._index_fact(node.head, args[0])
        if node.head in ("axes", "dtype", "constant"):
            if not isinstance(args[0], Term):
                raise UnknownFunctionError(str(node))
            return {"axes": self.axes, "dtype": self.dtype, "constant": self.constant}[node.head](args[0].number)
        if node.head == "extent" and (extent := extent_in(str(args[0]), self._extents)) is not None:
            return extent
        function = _FUNCTIONS.get(node.head)
        if function is None:
            raise UnknownFunctionError(node.head)
        try:
            return function(*args)
        except (ArithmeticError, ValueError) as error:
            raise UnknownFunctionError(f"{node}: {error}") from None

    def _index(self, head: str, args: Sequence[Value]) -> Index:
        """Build an index expression in its canonical spelling."""
        if head == "Substitute":
            index = substituted(*args)
        elif head == "Axis":
            index = Index.axis(args[0])
        elif head == "Whole":
            index = Index.const(args[0])
        elif head == "Plus":
            index = Index("add", args=(args[0], args[1]))
        else:
            op = {"Times": "mul", "Quotient": "div", "Remainder": "mod"}[head]
            index = Index(op, value=args[1], args=(args[0],))  # type: ignore[arg-type]
        return canonical(index, self._extents)

    def _index_fact(self, name: str, index: Index) -> Value:
        if name == "index-axes":
            return index.axes
        known = {a: extent_in(a, self._extents) for a in index.axes}
        if None in known.values():
            raise UnknownFunctionError(name)
        return index.bounds({a: n for a, n in known.items() if n is not None})[name == "index-high"]

    def axes(self, term: int) -> frozenset[str]:
        """Return the axes of a term, from its own spelling."""
        if term not in self._axes:
            self._axes[term] = self._axes_of(term)
        return self._axes[term]

    def _axes_of(self, term: int) -> frozenset[str]:
        row, args = BY_CONSTRUCTOR[self._terms.op(term)], self._terms.args(term)
        below = [self.axes(a) for a in args if isinstance(a, int)]
        literals = [_value_of(a) for a in args if isinstance(a, str)]
        if row.name == "read":
            return frozenset(a for a in literals[1].split() if a != ".")
        if row.name == "iota":
            return frozenset(literals)
        if row.kind is Kind.ACCESS:
            axis, index = literals
            return below[0].difference((axis,)).union(index.axes)
        joined = frozenset[str]().union(*below)
        return joined - set(literals) if row.kind is Kind.REDUCE else joined

    def dtype(self, term: int) -> str:
        """Return the dtype name of a term, "weak" for constants."""
        if term not in self._dtype:
            self._dtype[term] = self._dtype_of(term)
        return self._dtype[term]

    def _dtype_of(self, term: int) -> str:
        row, args = BY_CONSTRUCTOR[self._terms.op(term)], self._terms.args(term)
        literals = [_value_of(a) for a in args if isinstance(a, str)]
        if row.result is Result.GIVEN:
            given = {"const": WEAK, "iota": "i64", "cast": str(literals[0])}
            return given[row.name] if row.name in given else self._inputs[literals[0]].dtype.value
        below = [self.dtype(a) for a in args if isinstance(a, int)]
        return below[0] if row.kind is Kind.ACCESS else weak_dtype(row, below)

    def constant(self, term: int) -> bool:
        """Return whether the term reads only inputs that are the same in every call."""
        if self._terms.op(term) == "Read":
            return self._inputs[_value_of(str(self._terms.args(term)[0]))].constant
        return all(self.constant(a) for a in self._terms.operands(term))


def _literal(node: Node) -> Value:
    return node.text if node.kind == "string" else int(node.text) if node.kind == "int" else node.number


def _value_of(text: str) -> Value:
    """Value of a literal from its canonical text."""
    if text.startswith('"'):
        return text[1:-1]
    if text.startswith("("):
        return read_index(text)
    try:
        return int(text)
    except ValueError:
        return float(text)


def _same(a: Value, b: Value) -> bool:
    """Equality; floats up to the last place, in which the engine's power function may differ from ours."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 2**-51 * max(abs(a), abs(b))
    return type(a) is type(b) and bool(a == b)


def _added(*parts: Value) -> Value:
    """Sum of numbers; strings are joined."""
    out = parts[0]
    for p in parts[1:]:
        out = out + p
    return out


_INDEX_FACTS = ("index-axes", "index-low", "index-high")
_COMPARISONS: dict[str, Callable[..., bool]] = {
    "=": _same, "!=": lambda a, b: not _same(a, b), "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Value]] = {
    "+": _added, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if isinstance(a, float) else int(a / b), "%": lambda a, b: type(a)(math.fmod(a, b)), "^": lambda a, b: a**b,
    "neg": lambda a: -a, "abs": abs, "min": min, "max": max, "to-f64": float, "to-i64": int, "origin": origin, "to-string": str,
    "set-empty": lambda: frozenset(), "set-of": lambda *names: frozenset(names),
    "set-union": lambda a, b: a | b, "set-intersect": lambda a, b: a & b, "set-diff": lambda a, b: a - b,
    "set-insert": lambda a, k: a | {k}, "set-remove": lambda a, k: a - {k}, "set-length": len,
    "set-contains": lambda a, k: k in a, "set-not-contains": lambda a, k: k not in a,
}  # fmt: skip
