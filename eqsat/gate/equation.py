"""What a rule claims, as equations between two terms, and the dtypes for which the claim is made."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eqsat.ops import BY_CONSTRUCTOR, Kind, Op, Result
from eqsat.rulefile import Rule
from eqsat.rulelint import MadeAxis
from eqsat.sexpr import Node, listed
from eqsat.signature import RANGES, arithmetic, weak_dtype

TYPES = ("f32", "bf16", "f16", "i32", "bool", "weak")
"""Dtypes tried for each variable: two floats that meet in a third type, an integer, truth values and constants."""

_LOGIC = ("and", "or", "not", "any", "all")
_MOST_TYPED = 3  # variables typed in all combinations; a fourth one and later ones are f32


@dataclass(frozen=True, slots=True)
class Equation:
    """`left` = `right` wherever `guards` hold.

    Attributes
    ----------
    name : str
        Name of the egglog rewrite that makes the claim.
    left, right : Node
        Terms of sort `T`; `left` is the matched one.
    guards : tuple of Node
        Macros and comparisons; what defines a tensor variable has been put in its place.
    tensors, axes, numbers, types, indices : tuple of str
        Variables by what they stand for: tensors, axis names, numbers (f64 and i64), dtype names, index expressions.
    made : tuple of MadeAxis
        Axes that the rule brings in.
    """

    name: str
    left: Node
    right: Node
    guards: tuple[Node, ...]
    tensors: tuple[str, ...]
    axes: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]
    types: tuple[str, ...]
    indices: tuple[str, ...] = ()
    made: tuple[MadeAxis, ...] = ()

    @property
    def operations(self) -> frozenset[str]:
        """Names of the ops on both sides."""
        nodes = itertools.chain(self.left.walk(), self.right.walk())
        return frozenset(BY_CONSTRUCTOR[n.head].name for n in nodes if n.head in BY_CONSTRUCTOR)


def equations(rule: Rule) -> tuple[Equation, ...]:
    """Return what `rule` claims about tensors; nothing if it only lowers.

    A rewrite claims one equation, a birewrite two; a `rule` one for each union of tensors and each fact about a range in its
    actions, the equations in its body put in place of the variables that they define. A fact claims what it means:
    `(at-least-zero e)` is max(e, 0) = e.
    """
    if rule.kind != "rule":
        return tuple(_equation(rule, name, a, b, rule.guards) for name, a, b in rule.directions)
    sorts = dict(rule.sorts)
    lets = {a.args[0].text: a.args[1] for a in rule.actions if a.head == "let"}
    unions = [a for a in rule.actions if a.head == "union" and any(_is_tensor(x, sorts, lets) for x in a.args)]
    found = []
    for u in unions:
        left, right = (_resolved(x, lets) for x in u.args)
        found.append(_equation(rule, rule.name, left, right, rule.guards))
    for a in rule.actions:
        if a.head in RANGES:
            op, limit = RANGES[a.head]
            stated = _resolved(a.args[0], lets)
            bounded = listed(op, stated, listed("Const", Node("float", repr(limit))))
            found.append(_equation(rule, rule.name, stated, bounded, rule.guards))
    return tuple(found)


def _is_tensor(node: Node, sorts: Mapping[str, str], lets: Mapping[str, Node]) -> bool:
    if node.kind == "symbol":
        return sorts.get(node.text) == "T" or (node.text in lets and _is_tensor(lets[node.text], sorts, lets))
    return node.head in BY_CONSTRUCTOR


def _equation(rule: Rule, name: str, left: Node, right: Node, guards: Sequence[Node]) -> Equation:
    sorts = dict(rule.sorts)
    defined: dict[str, Node] = {}
    rest: list[Node] = []
    for g in guards:
        v, e = _definition(g, sorts)
        if v and v not in defined:
            defined[v] = e
        elif g.head not in BY_CONSTRUCTOR:  # a term as a fact only says that it is present
            rest.append(g)
    left, right = _resolved(left, defined), _resolved(right, defined)
    kept = tuple(_resolved(g, defined) for g in rest)
    used = {n.text for t in (left, right, *kept) for n in t.walk() if n.kind == "symbol"}
    used |= {n.text for m in rule.made for t in (*m.stems, m.extent) for n in t.walk() if n.kind == "symbol"}
    made = {m.variable for m in rule.made}
    types = {n.args[1].text for t in (left, right) for n in t.walk() if n.head == "Cast" and n.args[1].kind == "symbol"}
    typed = types | {
        v for g in kept if g.head == "=" for v, e in _sides(g) if e.head in ("dtype", "promote", "floating", "counting")
    }
    names = [v for v, s in rule.sorts if v in used]
    return Equation(
        name, left, right, kept,
        tuple(v for v in names if sorts[v] == "T"),
        tuple(v for v in names if sorts[v] == "String" and v not in typed and v not in made),
        tuple((v, sorts[v]) for v in names if sorts[v] in ("f64", "i64")),
        tuple(v for v in names if v in typed),
        tuple(v for v in names if sorts[v] == "Index"),
        rule.made,
    )  # fmt: skip


def _sides(guard: Node) -> Iterator[tuple[str, Node]]:
    for v, e in (guard.args, tuple(reversed(guard.args))):
        if v.kind == "symbol":
            yield v.text, e


def _definition(guard: Node, sorts: Mapping[str, str]) -> tuple[str, Node]:
    if guard.head == "=" and len(guard.args) == 2:
        for v, e in _sides(guard):
            if sorts.get(v) == "T" and e.head in BY_CONSTRUCTOR:
                return v, e
    return "", guard


def _resolved(node: Node, by: Mapping[str, Node]) -> Node:
    if node.kind == "symbol" and node.text in by:
        return _resolved(by[node.text], {v: e for v, e in by.items() if v != node.text})
    if node.kind != "list":
        return node
    return Node("list", "", tuple(_resolved(i, by) for i in node.items), node.line, node.column)


class UncheckableError(Exception):
    """The gate cannot evaluate a part of the rule."""


class IllTypedError(Exception):
    """A term applies an op to a dtype that no program applies it to."""


def dtype_of(node: Node, types: Mapping[str, str]) -> str:
    """Return the dtype that the e-graph's analysis gives a term whose variables have these dtypes.

    Raises
    ------
    IllTypedError
        Where truth values meet arithmetic, or numbers meet logic: programs cast first, so no term is like that.
    """
    if node.kind == "symbol":
        return types[node.text]
    row = BY_CONSTRUCTOR[node.head]
    if row.name == "access":
        return dtype_of(node.args[2], types)
    if row.name == "read":
        raise UncheckableError(f"the gate cannot evaluate {node.head}: what it means depends on the program")
    if row.name == "const":
        return "weak"
    if row.name == "iota":
        return "i64"
    if row.name == "cast":
        dtype_of(node.args[0], types)
        to = types[node.args[1].text] if node.args[1].kind == "symbol" else node.args[1].text
        if to == "weak":
            raise IllTypedError("a cast to no dtype")
        return to
    operands = node.args[1:] if row.kind is Kind.REDUCE else node.args
    return _typed(row, tuple(dtype_of(o, types) for o in operands))


@functools.lru_cache(maxsize=4096)
def _typed(row: Op, operands: tuple[str, ...]) -> str:
    logic = row.name in _LOGIC
    if arithmetic(row) and "bool" in operands:
        raise IllTypedError(f"{row.name} of bool")
    if (logic and any(d not in ("bool", "weak") for d in operands)) or (
        row.result is Result.BRANCHES and operands[0] not in ("bool", "weak")
    ):
        raise IllTypedError(f"{row.name} of {operands}")
    return weak_dtype(row, operands)


def typings(equation: Equation) -> list[dict[str, str]]:
    """Return the dtypes of the variables under which the left side is a term that programs have, and the guards hold."""
    truths = _truths(equation)
    tried = equation.tensors[:_MOST_TYPED]
    rest = {v: "bool" if v in truths else "f32" for v in equation.tensors[_MOST_TYPED:]}
    found = []
    for combination in itertools.product(*(("bool", "weak") if v in truths else TYPES for v in tried)):
        types = {**dict(zip(tried, combination, strict=True)), **rest}
        for chosen in _with_type_names(equation, types):
            try:
                dtype_of(equation.left, chosen)
            except IllTypedError:
                continue
            if all(_allows(g, chosen) for g in equation.guards):
                found.append(chosen)
    return found


def _truths(equation: Equation) -> frozenset[str]:
    """Variables that stand where only truth values do: operands of logic, and the condition of a choice."""
    found: set[str] = set()
    for n in (n for side in (equation.left, equation.right) for n in side.walk() if n.head in BY_CONSTRUCTOR):
        row = BY_CONSTRUCTOR[n.head]
        operands = n.args[1:] if row.kind is Kind.REDUCE else n.args[:1] if row.result is Result.BRANCHES else n.args
        if row.name in _LOGIC or row.result is Result.BRANCHES:
            found.update(o.text for o in operands if o.kind == "symbol")
    return frozenset(found)


def _with_type_names(equation: Equation, types: dict[str, str]) -> Iterator[dict[str, str]]:
    """Bind the variables that stand for dtype names: by a guard, else to each name."""
    known = dict(types)
    free = []
    for name in equation.types:
        values = [e for g in equation.guards if g.head == "=" for v, e in _sides(g) if v == name and e.head == "dtype"]
        try:
            if values:
                known[name] = dtype_of(values[0].args[0], known)
            else:
                free.append(name)
        except IllTypedError:
            return
    for combination in itertools.product([t for t in TYPES if t != "weak"], repeat=len(free)):
        yield known | dict(zip(free, combination, strict=True))


def _allows(guard: Node, types: Mapping[str, str]) -> bool:
    """Whether a guard about dtypes holds; any other guard is decided elsewhere and passes here."""
    match guard.head, guard.args:
        case "float", (a,):
            return dtype_of(a, types) not in ("i32", "i64", "bool")
        case "typed", (a,):
            return dtype_of(a, types) != "weak"
        case "numeric", (a,):
            return dtype_of(a, types) != "bool"
        case "same-dtype", (a, b):
            return dtype_of(a, types) == dtype_of(b, types)
        case "groups", (a, b):
            pair = {dtype_of(a, types), dtype_of(b, types)}
            return pair not in ({"weak", "i32"}, {"weak", "i64"})
        case head, (a,) if head in RANGES and a.kind == "symbol":
            return dtype_of(a, types) != "bool"
        case ("=" | "!=") as op, (a, b):
            x, y = _type_name(a, types), _type_name(b, types)
            return x is None or y is None or (x == y) == (op == "=")
    return True


def _type_name(node: Node, types: Mapping[str, str]) -> str | None:
    if node.head == "dtype":
        return dtype_of(node.args[0], types)
    if node.head == "promote":
        a, b = (_type_name(x, types) for x in node.args)
        return None if a is None or b is None else weak_dtype(BY_CONSTRUCTOR["Maximum"], (a, b))
    if node.kind == "string":
        return node.text
    return types.get(node.text) if node.kind == "symbol" and node.text in types else None
