"""Rules that log their uses: each use becomes an equation between ground terms.

The engine keeps classes, not terms, and rewrites its rows whenever classes merge. So a second sort mirrors the values: its
terms are never merged, and every class has one of them as its representative. A rule that fires puts its two sides, spelled
with representatives, into a relation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eqsat import signature
from eqsat.congruence import Terms, float_text, literal_text
from eqsat.rulefile import Rule
from eqsat.sexpr import Node, listed, symbol
from eqsat.stepcheck import Equation
from eqsat.worker import MIRROR, PROBED


def mirror_declarations() -> str:
    """Return the mirror sort: a constructor `Mirror…` for each of sort T, a representative mirror term for each class."""
    lines = ["(sort MirrorTerm)"]
    rules = []
    for name, (args, out) in signature.constructors().items():
        if out != "T":
            continue
        sorts = ["MirrorTerm" if s == "T" else s for s in args]
        lines.append(f"(constructor {MIRROR}{name} ({' '.join(sorts)}) MirrorTerm)")
        variables = [f"a{i}" for i in range(len(args))]
        body = "".join(f" (= r{i} (mirror-of a{i}))" for i, s in enumerate(args) if s == "T")
        mirrored = [f"r{i}" if s == "T" else f"a{i}" for i, s in enumerate(args)]
        rules.append(
            f"(rule ((= e ({name} {' '.join(variables)})){body}) ((set (mirror-of e) ({MIRROR}{name} {' '.join(mirrored)})))"
            f' :ruleset rs-analysis :name "mirror/{name}")'
        )
    lines += ["(function mirror-of (T) MirrorTerm :merge old)"]
    lines += [f"(relation {table} (String MirrorTerm MirrorTerm))" for table in ("used-rule", PROBED)]
    return "\n".join(lines + rules)


def equations_of(rule: Rule) -> list[Equation]:
    """Return what a rule equates: a rewrite's directions, or the unions of values of a general rule.

    A general rule names classes by `(= e pattern)`; the pattern stands in for `e`, so that both sides are spelled out.
    """
    if rule.directions:
        return [Equation(rule.name, name != rule.name, a, b, rule.conditions) for name, a, b in rule.directions]
    sorts = dict(rule.sorts)
    spelled = {
        f.args[0].text: f.args[1]
        for f in rule.conditions
        if f.head == "=" and f.args[0].kind == "symbol" and f.args[1].head in signature.constructors()
    }
    spelled |= {a.args[0].text: a.args[1] for a in rule.actions if a.head == "let"}
    named = {v: _spell(n, spelled) for v, n in spelled.items()}
    rest = tuple(f for f in rule.conditions if not (f.head == "=" and f.args[0].text in named))
    return [
        Equation(rule.name, False, _spell(a.args[0], named), _spell(a.args[1], named), rest)
        for a in rule.actions
        if a.head == "union" and _sort(a.args[0], sorts, named) == "T"
    ]


def _sort(node: Node, sorts: dict[str, str], named: dict[str, Node]) -> str:
    if node.kind == "symbol" and node.text in named:
        node = named[node.text]
    if node.kind == "symbol":
        return sorts.get(node.text, "")
    return signature.constructors().get(node.head, ((), ""))[1]


def _spell(node: Node, named: dict[str, Node]) -> Node:
    """Replace variables by the patterns that they name, in the patterns too."""
    if node.kind == "symbol" and node.text in named:
        inner = {v: n for v, n in named.items() if v != node.text}
        return _spell(named[node.text], inner)
    if node.kind != "list":
        return node
    return listed(*(_spell(i, named) for i in node.items))


def logging_rule(rule: Rule, *, probe: bool = False) -> str:
    """Return the rule as egglog text that also logs each use; `{ruleset}` stands for its ruleset.

    With `probe` it logs what it would equate, into a table of its own, and does nothing else.
    """
    sorts = dict(rule.sorts)
    declared = " ".join(str(a) for m in rule.made for a in m.actions)
    out = []
    for n, equation in enumerate(equations_of(rule)):
        mirrored = {v for side in (equation.left, equation.right) for v in _term_variables(side, sorts)}
        reps = " ".join(f"(= {v}--mirror (mirror-of {v}))" for v in sorted(mirrored))
        sides = [_mirror(side, mirrored) for side in (equation.left, equation.right)]
        used = f'({PROBED if probe else "used-rule"} "{rule.name}#{n}" {sides[0]} {sides[1]})'
        if rule.directions:
            body = f"(= matched--class {equation.left}) {reps} {' '.join(map(str, equation.conditions))}"
            actions = f"{declared} (union matched--class {equation.right}) {used}"
        else:
            body = f"{' '.join(map(str, rule.conditions))} {reps}"
            actions = f"{declared} {' '.join(map(str, rule.actions))} {used}"
        name = f"{rule.name}#{n}--probe" if probe else f"{rule.name}#{n}"
        out.append(f'(rule ({body}) ({used if probe else actions}) :ruleset {{ruleset}} :name "{name}")')
    return "\n".join(out) or ("" if probe else rule.egglog("{ruleset}"))


def grounded(terms: Terms, mirrors: Mapping[int, tuple[str, tuple[Any, ...]]], mirror: int, known: dict[int, int]) -> int:
    """Return the term that a mirror term out of a log spells; `known` keeps what was read."""
    if mirror in known:
        return known[mirror]
    sorts_of = signature.constructors()
    stack = [(mirror, False)]
    while stack:
        m, ready = stack.pop()
        if m in known:
            continue
        op, args = mirrors[m]
        sorts = sorts_of[op][0]
        if not ready:
            stack.append((m, True))
            stack.extend((a, False) for a, s in zip(args, sorts, strict=True) if s == "T")
            continue
        plain = (known[a] if s == "T" else str(a) if s == "Index" else _text_of(a) for a, s in zip(args, sorts, strict=True))
        known[m] = terms.add(op, tuple(plain))
    return known[mirror]


def _text_of(value: str | float | int) -> str:
    """Canonical text of a literal that came out of the engine."""
    if isinstance(value, str):
        return literal_text(Node("string", value))
    return float_text(value) if isinstance(value, float) else repr(value)


def _term_variables(node: Node, sorts: dict[str, str]) -> set[str]:
    if node.kind == "symbol":
        return {node.text} if sorts.get(node.text) == "T" else set()
    return set().union(*(_term_variables(a, sorts) for a in node.args)) if node.kind == "list" else set()


def _mirror(node: Node, mirrored: set[str]) -> Node:
    if node.kind == "symbol":
        return symbol(f"{node.text}--mirror") if node.text in mirrored else node
    if node.head not in signature.constructors():
        return node
    return listed(f"{MIRROR}{node.head}", *(_mirror(a, mirrored) for a in node.args))
