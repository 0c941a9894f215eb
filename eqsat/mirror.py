"""Rules that log their uses: each use becomes an equation between ground terms.

The engine keeps classes, not terms, and rewrites its rows whenever classes merge. So a second sort mirrors the values: its
terms are never merged, and every class has one of them as its representative. A rule that fires puts its two sides, spelled
with representatives, into a relation.
"""

from __future__ import annotations

from eqsat import signature
from eqsat.rulefile import Rule
from eqsat.sexpr import Node, listed, symbol
from eqsat.stepcheck import Equation
from eqsat.worker import MIRROR


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
    lines += ["(function mirror-of (T) MirrorTerm :merge old)", "(relation used-rule (String MirrorTerm MirrorTerm))"]
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


def logging_rule(rule: Rule) -> str:
    """Return the rule as egglog text that also logs each use; `{ruleset}` stands for its ruleset."""
    sorts = dict(rule.sorts)
    declared = " ".join(str(m.action) for m in rule.made)
    out = []
    for n, equation in enumerate(equations_of(rule)):
        mirrored = {v for side in (equation.left, equation.right) for v in _term_variables(side, sorts)}
        reps = " ".join(f"(= {v}--mirror (mirror-of {v}))" for v in sorted(mirrored))
        sides = [_mirror(side, mirrored) for side in (equation.left, equation.right)]
        used = f'(used-rule "{rule.name}#{n}" {sides[0]} {sides[1]})'
        if rule.directions:
            body = f"(= matched--class {equation.left}) {reps} {' '.join(map(str, equation.conditions))}"
            actions = f"{declared} (union matched--class {equation.right}) {used}"
        else:
            body = f"{' '.join(map(str, rule.conditions))} {reps}"
            actions = f"{declared} {' '.join(map(str, rule.actions))} {used}"
        out.append(f'(rule ({body}) ({actions}) :ruleset {{ruleset}} :name "{rule.name}#{n}")')
    return "\n".join(out) or rule.egglog("{ruleset}")


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
