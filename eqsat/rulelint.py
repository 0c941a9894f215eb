"""What a rule may say: the vocabulary of rule files, the sorts of variables, and the guard macros."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from eqsat.errors import RuleError
from eqsat.indexterms import INDEX_CONSTRUCTORS, MADE
from eqsat.sexpr import Node, listed, symbol
from eqsat.signature import RANGES, constructors

Signature = tuple[tuple[str, ...], str]
"""Sorts of the arguments and of the result; a relation has the result sort ""."""

FUNCTIONS: Mapping[str, Signature] = {
    "axes": (("T",), "Axes"),
    "dtype": (("T",), "String"),
    "extent": (("String",), "i64"),
    "origin": (("String",), "String"),
    "promote": (("String", "String"), "String"),
    "floating": (("String",), "String"),
    "counting": (("String",), "String"),
    "index-axes": (("Index",), "Axes"),
    "index-low": (("Index",), "i64"),
    "index-high": (("Index",), "i64"),
    "constant": (("T",), ""),
    "program-axis": (("String",), ""),
    "constant-read": (("T", "i64"), ""),
    "elements": (("Axes",), "i64"),
    "counted-axes": (("Axes",), ""),
    "turn-asked": (("String", "T", "T", "T", "Axes", "Axes", "Axes"), ""),
    "turn-pays": (("String", "T", "T", "T"), ""),
    "clash-asked": (("String", "String", "T", "T", "T", "Axes", "Axes", "Axes"), ""),
    "clash-pays": (("String", "String", "T", "T", "T"), ""),
    **dict.fromkeys(RANGES, (("T",), "")),
}
"""Analyses of the e-graph, and the relations it always has."""

MACROS: Mapping[str, Signature] = {
    "free-of": (("String", "T"), ""),
    "has": (("String", "T"), ""),
    "share-axis": (("T", "T"), ""),
    "scalar": (("T",), ""),
    "same-axes": (("T", "T"), ""),
    "within": (("T", "T"), ""),
    "apart": (("T", "T"), ""),
    "exceeds": (("T", "T"), ""),
    "float": (("T",), ""),
    "typed": (("T",), ""),
    "numeric": (("T",), ""),
    "same-dtype": (("T", "T"), ""),
    "groups": (("T", "T"), ""),
    "other-origin": (("String", "String"), ""),
    "whole": (("f64",), ""),
    "alike-but": (("String", "T", "String", "T"), ""),
    "inside": (("Index", "String"), ""),
    "index-free-of": (("String", "Index"), ""),
}
"""Guards that the loader writes out as facts about axes, index expressions and dtypes."""

_SETS: Mapping[str, Signature] = {
    "set-empty": ((), "Axes"),
    "set-insert": (("Axes", "String"), "Axes"),
    "set-remove": (("Axes", "String"), "Axes"),
    "set-union": (("Axes", "Axes"), "Axes"),
    "set-intersect": (("Axes", "Axes"), "Axes"),
    "set-diff": (("Axes", "Axes"), "Axes"),
    "set-length": (("Axes",), "i64"),
    "set-get": (("Axes", "i64"), "String"),
    "set-contains": (("Axes", "String"), ""),
    "set-not-contains": (("Axes", "String"), ""),
    "to-f64": (("i64",), "f64"),
    "to-i64": (("f64",), "i64"),
    "to-string": (("i64",), "String"),
}
_ARITHMETIC = frozenset({"+", "-", "*", "/", "%", "^", "min", "max", "neg", "abs", "log2", "<<", ">>", "&", "|"})
_COMPARISONS = frozenset({"=", "!=", "<", "<=", ">", ">="})
_CALCULATED = frozenset({*_ARITHMETIC, *_COMPARISONS, *_SETS, *INDEX_CONSTRUCTORS, "set-of", "union", "let", "set"})
_VARIABLE = re.compile(r"[a-z][a-z0-9_]*")
_RELATION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")


@dataclass(frozen=True, slots=True)
class Source:
    """A rule file while it is read: its name and text for errors, and whether it is shipped with eqsat."""

    file: str
    text: str
    builtin: bool

    def error(self, reason: str, at: Node) -> RuleError:
        """Return a `RuleError` that points at `at`."""
        return RuleError(reason, file=self.file, line=at.line, column=at.column, source=self.text)


@dataclass(slots=True)
class Vocabulary:
    """Every name that may be called in a rule, with its sorts; declarations add to it."""

    names: dict[str, Signature] = field(
        default_factory=lambda: {**constructors(), **INDEX_CONSTRUCTORS, **FUNCTIONS, **MACROS, **_SETS}
    )
    relations: set[str] = field(default_factory=lambda: {"constant"})
    sorts: set[str] = field(default_factory=lambda: {"T", "Region", "Index", "Axes", "String", "i64", "f64", "bool"})

    def declare(self, form: Node, source: Source) -> None:
        """Add the name that a declaration brings.

        Raises
        ------
        RuleError
            If the form is malformed, the name is taken or breaks the naming convention, or a sort is unknown.
        """
        if len(form.items) < 2 or form.items[1].kind != "symbol":
            raise source.error(f"expected ({form.head} NAME …)", form)
        name_node = form.items[1]
        name = name_node.text
        if name in self.names or name in self.sorts or name in _ARITHMETIC | _COMPARISONS:
            raise source.error(f"the name {name} is taken already; choose another", name_node)
        if form.head == "sort":
            self.sorts.add(name)
            return
        if form.head == "relation" and not _RELATION.fullmatch(name):
            raise source.error(
                f"a relation is named in lower case with at least one hyphen (my-tile), so that no variable can hide it; got {name}",
                name_node,
            )
        if form.head == "constructor" and not re.fullmatch(r"([A-Z][a-z0-9]+)+", name):
            raise source.error(f"a constructor is named in CamelCase with at least two letters; got {name}", name_node)
        arguments = form.items[2] if len(form.items) > 2 else None
        if arguments is None or arguments.kind != "list":
            raise source.error(f"expected the sorts of the arguments in parentheses after {name}", form)
        for a in arguments.items:
            self._check_sort(a, source)
        result = ""
        if form.head == "relation":
            self.relations.add(name)
        else:
            if len(form.items) < 4:
                raise source.error(f"expected the sort of the result of {name}", form)
            self._check_sort(form.items[3], source)
            result = form.items[3].text
        self.names[name] = tuple(a.text for a in arguments.items), result

    def _check_sort(self, node: Node, source: Source) -> None:
        if node.text not in self.sorts:
            raise source.error(f"unknown sort {node}{meant(node.text, self.sorts)}", node)


def meant(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` if a known name is close to `name`."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


class Sorts:
    """Finds the sort of every variable of one rule, and refuses calls that do not fit."""

    def __init__(self, vocabulary: Vocabulary, source: Source) -> None:
        self.found: dict[str, str] = {}
        self._vocabulary, self._source = vocabulary, source

    def visit(self, node: Node, expected: str = "") -> str:
        """Return the sort of `node`, or "" if it is not known yet (or is a fact without a value).

        Raises
        ------
        RuleError
            On an unknown name, a wrong number of arguments, a sort that does not fit, or a variable that breaks the
            naming convention.
        """
        if node.kind == "list":
            sort = self._call(node, expected)
        elif node.kind == "symbol":
            sort = self._variable(node, expected)
        else:
            sort = {"string": "String", "int": "i64", "float": "f64"}[node.kind]
        if expected and sort and sort != expected:
            hint = f"; write {node.text}.0" if (node.kind, expected) == ("int", "f64") else ""
            raise self._source.error(f"expected a value of sort {expected}; got {node}, of sort {sort}{hint}", node)
        return sort

    def _variable(self, node: Node, expected: str) -> str:
        name = node.text
        if name in ("true", "false"):
            return "bool"
        if name.startswith(":"):
            raise self._source.error(f"a key such as {name} stands after the rule's terms, not among them", node)
        if name in self._vocabulary.names or name in self._vocabulary.sorts:
            raise self._source.error(f"the variable {name} has the name of something declared; rename the variable", node)
        if not _VARIABLE.fullmatch(name):
            hint = meant(name, self._vocabulary.names) or "; a variable is written in lower case (a, k, rate)"
            raise self._source.error(f"{name} is neither a variable nor a call{hint}", node)
        if expected:
            known = self.found.setdefault(name, expected)
            if known != expected:
                raise self._source.error(f"the variable {name} is used as {known} and as {expected}; use two variables", node)
        return self.found.get(name, "")

    def _call(self, node: Node, expected: str) -> str:
        name = node.head
        if not name:
            raise self._source.error(f"expected a call (NAME arguments…); got {node}", node)
        if name in _ARITHMETIC or name in _COMPARISONS or name == "set-of":
            return self._overloaded(node, expected)
        signature = self._vocabulary.names.get(name)
        if signature is None:
            known = [*self._vocabulary.names, *_ARITHMETIC, *_COMPARISONS]
            raise self._source.error(f"unknown name {name}{meant(name, known)}", node)
        sorts, result = signature
        if len(node.args) != len(sorts):
            takes = f"{len(sorts)} argument{'s' * (len(sorts) != 1)}"
            detail = f" ({' '.join(sorts)})" if sorts else ""
            raise self._source.error(f"{name} takes {takes}{detail}; got {len(node.args)}", node)
        for a, sort in zip(node.args, sorts, strict=True):
            self.visit(a, sort)
        return result

    def _overloaded(self, node: Node, expected: str) -> str:
        if node.head == "set-of":
            for a in node.args:
                self.visit(a, "String")
            return "Axes"
        if not node.args:
            raise self._source.error(f"{node.head} needs arguments", node)
        comparison = node.head in _COMPARISONS
        common = "" if comparison else expected
        for a in node.args:
            common = common or self.visit(a)
        for a in node.args:
            self.visit(a, common)
        return "" if comparison else common


def expand(guards: Sequence[Node]) -> tuple[Node, ...]:
    """Write guard macros out as facts; every analysis is read into a fresh variable once.

    Parameters
    ----------
    guards : sequence of Node
        Facts and macros, all checked by `Sorts`.

    Returns
    -------
    tuple of Node
        Facts that egglog knows, without repetitions.
    """
    out: list[Node] = []
    names: dict[tuple[str, Node], Node] = {}

    def analysis(name: str, of: Node) -> Node:
        if (name, of) not in names:
            stem = of.text if of.kind == "symbol" else f"t{len(names)}"
            names[name, of] = symbol(f"{stem}--{name}", of)
            out.append(listed("=", names[name, of], listed(name, of, at=of), at=of))
        return names[name, of]

    empty = listed("set-empty")
    for g in guards:
        match g.head, g.args:
            case "free-of", (k, a):
                out.append(listed("set-not-contains", analysis("axes", a), k, at=g))
            case "has", (k, a):
                out.append(listed("set-contains", analysis("axes", a), k, at=g))
            case "share-axis", (a, b):
                both = listed("set-intersect", analysis("axes", a), analysis("axes", b), at=g)
                out.append(listed("!=", empty, both, at=g))
            case "scalar", (a,):
                out.append(listed("=", analysis("axes", a), empty, at=g))
            case "same-axes", (a, b):
                out.append(listed("=", analysis("axes", a), analysis("axes", b), at=g))
            case "within", (a, b):
                x = analysis("axes", a)
                out.append(listed("=", x, listed("set-intersect", x, analysis("axes", b), at=g), at=g))
            case "apart", (a, b):
                both = listed("set-intersect", analysis("axes", a), analysis("axes", b), at=g)
                out.append(listed("=", empty, both, at=g))
            case "exceeds", (a, b):
                extra = listed("set-diff", analysis("axes", a), analysis("axes", b), at=g)
                out.append(listed("!=", empty, extra, at=g))
            case "float", (a,):
                d = analysis("dtype", a)
                out += [listed("!=", d, Node("string", i), at=g) for i in ("i32", "i64", "bool")]
            case "typed", (a,):
                out.append(listed("!=", analysis("dtype", a), Node("string", "weak"), at=g))
            case "numeric", (a,):
                out.append(listed("!=", analysis("dtype", a), Node("string", "bool"), at=g))
            case "same-dtype", (a, b):
                out.append(listed("=", analysis("dtype", a), analysis("dtype", b), at=g))
            case "groups", (a, b):
                pair = (analysis("dtype", a), analysis("dtype", b))
                for one, other in (pair, pair[::-1]):
                    both = listed("+", one, other, at=g)
                    out += [listed("!=", both, Node("string", f"weak{i}"), at=g) for i in ("i32", "i64")]
            case "other-origin", (j, k):
                out.append(listed("!=", analysis("origin", j), analysis("origin", k), at=g))
            case "whole", (c,):
                out.append(listed("=", c, listed("to-f64", listed("to-i64", c, at=g), at=g), at=g))
            case "alike-but", (j, a, k, b):
                left = listed("set-remove", analysis("axes", a), j, at=g)
                out.append(listed("=", left, listed("set-remove", analysis("axes", b), k, at=g), at=g))
            case "inside", (ix, k):
                out.append(listed(">=", analysis("index-low", ix), Node("int", "0"), at=g))
                out.append(listed("<", analysis("index-high", ix), analysis("extent", k), at=g))
            case "index-free-of", (k, ix):
                out.append(listed("set-not-contains", analysis("index-axes", ix), k, at=g))
            case _:
                out.append(g)
    return tuple(dict.fromkeys(out))


@dataclass(frozen=True, slots=True)
class MadeAxis:
    """An axis that a rule brings in: the variable that names it, the axes it is made from, and its extent."""

    variable: str
    stems: tuple[Node, ...]
    extent: Node

    @property
    def definition(self) -> Node:
        """The fact that binds the variable: a name that no program has, ending with the extent."""
        parts = [*self._origin, Node("string", f"{MADE}{self.variable}"), listed("to-string", self.extent)]
        return listed("=", self.variable, listed("+", *parts))

    @property
    def _origin(self) -> list[Node]:
        parts: list[Node] = []
        for stem in self.stems:
            parts += [Node("string", "+"), stem]
        return parts[1:]

    @property
    def actions(self) -> tuple[Node, Node]:
        """The actions that declare the extent, and what the axis is made from."""
        made_from = self.stems[0] if len(self.stems) == 1 else listed("+", *self._origin)
        return (
            listed("set", listed("extent", self.variable), self.extent),
            listed("set", listed("origin", self.variable), made_from),
        )


def freshness(made: Sequence[MadeAxis], sorts: Mapping[str, str], matched: Iterable[str]) -> list[Node]:
    """Return the guards under which new axes capture nothing: no matched variable already varies over one of them."""
    out = []
    for m in made:
        axis = symbol(m.variable)
        for v in sorted(matched):
            match sorts.get(v):
                case "T":
                    out.append(listed("free-of", axis, symbol(v)))
                case "Index":
                    out.append(listed("index-free-of", axis, symbol(v)))
                case "String":
                    out.append(listed("!=", axis, symbol(v)))
    return out


def held_names(nodes: Iterable[Node]) -> frozenset[str]:
    """Return the constructors and relations that terms and expanded facts call: what an e-graph holds or does not."""
    heads = {n.head for node in nodes for n in node.walk() if n.head}
    return frozenset(h for h in heads if h not in _CALCULATED and FUNCTIONS.get(h, ((), ""))[1] == "")


def variables(node: Node) -> set[str]:
    """Return the names of the variables in a checked term or fact."""
    found: set[str] = set()
    stack = [node]
    while stack:
        n = stack.pop()
        if n.kind == "list":
            stack.extend(n.args if n.head else n.items)
        elif n.kind == "symbol" and n.text not in ("true", "false"):
            found.add(n.text)
    return found


def bound_variables(facts: Sequence[Node], start: Iterable[str] = ()) -> set[str]:
    """Return the variables that matching `facts` binds.

    A call of a constructor, function or relation binds its variables; `(= v e)` binds `v` once `e`'s are bound; a
    comparison or a calculation binds nothing.
    """
    bound = set(start)
    calculated = _ARITHMETIC | _COMPARISONS | set(MACROS) | set(_SETS) | {"set-of"}

    def matched(node: Node) -> set[str]:
        if node.kind != "list" or node.head in calculated:
            return set()
        return {a.text for a in node.args if a.kind == "symbol"}.union(*(matched(a) for a in node.args))

    def inside(node: Node) -> set[str]:
        return set().union(*(matched(n) for n in node.walk()))

    while True:
        before = len(bound)
        for f in facts:
            bound |= inside(f)
            if f.head == "=" and len(f.args) == 2:
                for v, e in (f.args, reversed(f.args)):
                    if v.kind == "symbol" and variables(e) <= bound:
                        bound.add(v.text)
        if len(bound) == before:
            return bound
