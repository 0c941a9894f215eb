"""Index expressions in the e-graph: the sort `Index`, its analyses, and its terms as text.

An index class carries `index-axes` (what it varies over), `index-low` and `index-high` (an interval that holds its values,
by interval arithmetic). `(Substitute ix j jx)`, ix with jx in the place of axis j, is evaluated by the analysis. Two indices
in one class are equal at all whole numbers, not only within the extents: else p = p mod 3 (for p < 3) would become a false
equation where 2·p is put in the place of p. Outside the e-graph an index term is written in one canonical spelling, in which
the extents are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eqsat.access import Index
from eqsat.errors import TextError
from eqsat.sexpr import Node, read_forms

INDEX_CONSTRUCTORS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "Axis": (("String",), "Index"),
    "Whole": (("i64",), "Index"),
    "Plus": (("Index", "Index"), "Index"),
    "Times": (("Index", "i64"), "Index"),
    "Quotient": (("Index", "i64"), "Index"),
    "Remainder": (("Index", "i64"), "Index"),
    "Substitute": (("Index", "String", "Index"), "Index"),
}
"""Argument sorts and result sort: position along an axis, number, sum, product, floor quotient, remainder, substitution."""

MADE = "~"
"""Stands in the name of every axis that a rule or a loader makes, `stem~tagEXTENT`, and in no other."""

_SCALED = {"mul": "Times", "div": "Quotient", "mod": "Remainder"}
_ROUNDS = 8


def made_axis(stem: str, tag: str, extent: int) -> str:
    """Return the name of a new axis; it ends with its extent, so that one name never has two."""
    return f"{stem}{MADE}{tag}{extent}"


def made_extent(name: str) -> int | None:
    """Return the extent of an axis that a rule or a loader made, or None for an axis of a program."""
    if MADE not in name:
        return None
    tail = name.rpartition(MADE)[2]
    digits = tail[len(tail.rstrip("0123456789")) :]
    return int(digits) if digits else None


def origin(name: str) -> str:
    """Return the axes that a made axis was made from, joined by "+"; any other axis is its own origin."""
    return name.rpartition(MADE)[0] or name


def extent_in(name: str, extents: Mapping[str, int]) -> int | None:
    """Return the extent of an axis by `extents`, or by its name if it is a made one; None if neither tells."""
    return extents[name] if name in extents else made_extent(name)


def canonical(index: Index, extents: Mapping[str, int]) -> Index:
    """Return an equal index in a canonical spelling that varies over the same axes.

    Summands are joined and ordered, quotients and remainders that the extents decide are removed.
    """
    known = dict(extents) | {a: n for a in index.axes if a not in extents and (n := made_extent(a)) is not None}
    bounded = index.axes <= known.keys()
    for _ in range(_ROUNDS):
        plain = _ordered(index.simplify(known) if bounded else index.substitute({}))
        if plain == index or plain.axes != index.axes:
            break
        index = plain
    return _ordered(index)


def _ordered(index: Index) -> Index:
    """Return the same tree with the summands of every sum in order of their text, constants last."""
    parts = tuple(_ordered(a) for a in index.args)
    if index.op != "add":
        return Index(index.op, index.name, index.value, parts)
    summands: list[Index] = []
    stack = list(parts)
    while stack:
        part = stack.pop()
        if part.op == "add":
            stack += part.args
        else:
            summands.append(part)
    summands.sort(key=lambda s: (s.op == "const", str(s)))
    out = summands[0]
    for s in summands[1:]:
        out = Index("add", args=(out, s))
    return out


def substituted(index: Index, axis: str, by: Index) -> Index:
    """Return the tree with `by` in the place of `axis`, nothing joined: what cancels keeps its axes."""
    if index.op == "axis" and index.name == axis:
        return by
    return Index(index.op, index.name, index.value, tuple(substituted(a, axis, by) for a in index.args))


def index_term(index: Index) -> str:
    """Write an index expression as a term of sort `Index`."""
    match index.op:
        case "axis":
            return f'(Axis "{index.name}")'
        case "const":
            return f"(Whole {index.value})"
        case "add":
            return f"(Plus {index_term(index.args[0])} {index_term(index.args[1])})"
        case _:
            return f"({_SCALED[index.op]} {index_term(index.args[0])} {index.value})"


def read_index(node: Node | str) -> Index:
    """Read a ground term of sort `Index`; `Substitute` is carried out.

    Raises
    ------
    TextError
        If it is none.
    """
    if isinstance(node, str):
        (node,) = read_forms(node, "<index>")
    args = node.args
    sorts = INDEX_CONSTRUCTORS.get(node.head, ((), ""))[0]
    wanted = {"String": "string", "i64": "int", "Index": "list"}
    if not sorts or [wanted[s] for s in sorts] != [a.kind for a in args]:
        raise TextError(
            'expected an index: (Axis "k"), (Whole 3), (Plus a b), (Times a 3), (Quotient a 3), (Remainder a 3); got '
            f"{node}", file="<index>", line=node.line, column=node.column, source=str(node),
        )  # fmt: skip
    match node.head:
        case "Axis":
            return Index.axis(args[0].text)
        case "Whole":
            return Index.const(int(args[0].text))
        case "Plus":
            return Index("add", args=(read_index(args[0]), read_index(args[1])))
        case "Substitute":
            return substituted(read_index(args[0]), args[1].text, read_index(args[2]))
        case head:
            op = next(o for o, name in _SCALED.items() if name == head)
            return Index(op, value=int(args[1].text), args=(read_index(args[0]),))  # type: ignore[arg-type]


def index_texts(tables: Mapping[str, Any]) -> dict[int, str]:
    """Return the canonical term of every index class.

    Parameters
    ----------
    tables : mapping
        All tables of an e-graph (`EGraph.tables`).
    """
    extents = {args[0]: n for args, n in tables["extent"].rows}
    evaluated = [name for name in INDEX_CONSTRUCTORS if name != "Substitute"]
    rows = [(name, args, result) for name in evaluated for args, result in tables[name].rows]
    found: dict[int, tuple[int, str]] = {}
    while True:
        before = dict(found)
        for name, args, result in rows:
            sorts = INDEX_CONSTRUCTORS[name][0]
            if any(a not in found for a, s in zip(args, sorts, strict=True) if s == "Index"):
                continue
            parts = [
                found[a][1] if s == "Index" else f'"{a}"' if s == "String" else str(a) for a, s in zip(args, sorts, strict=True)
            ]
            text = f"({' '.join([name, *parts])})"
            if result not in found or (len(text), text) < found[result]:
                found[result] = len(text), text
        if found == before:
            return {c: index_term(canonical(read_index(text), extents)) for c, (_, text) in found.items()}


def index_declarations(*, rules: bool) -> list[str]:
    """Return the constructors and analyses of sort `Index` as egglog commands; the rules, if wanted, join `rs-analysis`."""
    lines = [f"(constructor {name} ({' '.join(args)}) {out})" for name, (args, out) in INDEX_CONSTRUCTORS.items()]
    lines += [
        "(function index-axes (Index) Axes :merge (set-intersect old new))",
        "(function index-low (Index) i64 :merge (max old new))",
        "(function index-high (Index) i64 :merge (min old new))",
    ]
    lines += [f'(rule ({body}) ({head}) :ruleset rs-analysis :name "analysis/index-{name}")' for name, body, head in _analyses()]
    return lines + [
        f'(rewrite {left} {right}{f" :when ({when})" if when else ""} :ruleset rs-analysis :name "analysis/index-{name}")'
        for name, left, right, when in _REWRITES
    ]


def _analyses() -> list[tuple[str, str, str]]:
    """Name, body and head of the rules that give axes and bounds."""

    def facts(axes: str, low: str, high: str) -> str:
        return f"(set (index-axes e) {axes}) (set (index-low e) {low}) (set (index-high e) {high})"

    def known(i: str) -> str:
        return f"(= x{i} (index-axes a{i})) (= l{i} (index-low a{i})) (= h{i} (index-high a{i}))"

    floor = "(/ (- {0} (% (+ (% {0} n) n) n)) n)"  # the engine's quotient and remainder truncate
    return [
        ("axis", "(= e (Axis k)) (= n (extent k))", facts("(set-of k)", "0", "(- n 1)")),
        ("whole", "(= e (Whole c))", facts("(set-empty)", "c", "c")),
        ("plus", f"(= e (Plus a0 a1)) {known('0')} {known('1')}", facts("(set-union x0 x1)", "(+ l0 l1)", "(+ h0 h1)")),
        ("times", f"(= e (Times a0 n)) {known('0')}", facts("x0", "(min (* l0 n) (* h0 n))", "(max (* l0 n) (* h0 n))")),
        ("quotient", f"(= e (Quotient a0 n)) {known('0')} (> n 0)", facts("x0", floor.format("l0"), floor.format("h0"))),
        ("remainder", f"(= e (Remainder a0 n)) {known('0')} (> n 0)", facts("x0", "0", "(- n 1)")),
        ("remainder-within", f"(= e (Remainder a0 n)) {known('0')} (>= l0 0) (< h0 n)", facts("x0", "l0", "h0")),
    ]


# Without this, zero (1 − 1, or 0·2) is spelled in ways that make ever new numbers.
_VARIES = "(!= (index-axes a) (set-empty))"
_REWRITES = (
    ("substitute-axis", "(Substitute (Axis j) j x)", "x", ""),
    ("substitute-other", "(Substitute (Axis i) j x)", "(Axis i)", "(!= i j)"),
    ("substitute-whole", "(Substitute (Whole c) j x)", "(Whole c)", ""),
    ("substitute-plus", "(Substitute (Plus a b) j x)", "(Plus (Substitute a j x) (Substitute b j x))", ""),
    ("substitute-times", "(Substitute (Times a n) j x)", "(Times (Substitute a j x) n)", ""),
    ("substitute-quotient", "(Substitute (Quotient a n) j x)", "(Quotient (Substitute a j x) n)", ""),
    ("substitute-remainder", "(Substitute (Remainder a n) j x)", "(Remainder (Substitute a j x) n)", ""),
    ("plus-zero", "(Plus a (Whole 0))", "a", ""),
    ("plus-whole-last", "(Plus (Whole c) a)", "(Plus a (Whole c))", ""),
    ("plus-wholes", "(Plus (Whole c) (Whole d))", "(Whole (+ c d))", ""),
    (
        "plus-plus-whole",
        "(Plus (Plus a (Whole c)) b)",
        "(Plus (Plus a b) (Whole c))",
        f"{_VARIES} (!= (index-axes b) (set-empty))",
    ),
    ("plus-whole-whole", "(Plus (Plus a (Whole c)) (Whole d))", "(Plus a (Whole (+ c d)))", _VARIES),
    ("times-one", "(Times a 1)", "a", ""),
    ("times-whole", "(Times (Whole c) n)", "(Whole (* c n))", ""),
    ("times-times", "(Times (Times a m) n)", "(Times a (* m n))", _VARIES),
    ("times-plus", "(Times (Plus a b) n)", "(Plus (Times a n) (Times b n))", ""),
    ("quotient-one", "(Quotient a 1)", "a", ""),
)
"""Name, left side, right side and condition; each keeps the axes, as every rule does."""
