"""Rules: loading `.egg` files, refusing what they may not say, and writing rules out as egglog commands.

A rule file is data. It holds rewrites, rules, relations and facts; nothing in it can touch a file or run code, because
every other command is refused.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from eqsat.errors import RuleError
from eqsat.rulelint import MadeAxis, Sorts, Source, Vocabulary, bound_variables, expand, freshness, held_names, meant, variables
from eqsat.sexpr import Node, read_forms
from eqsat.signature import RANGES

RuleKind = Literal["rewrite", "birewrite", "rule"]

PHASES = ("analysis", "algebra", "distribute", "fold", "pack", "lowering", "schedule")
NUMERICS = ("exact", "reassociates", "approximates", "unstable")
DEFAULT_NUMERICS = ("exact", "reassociates")
"""Classes of rules that a search admits unless told otherwise."""

_DECLARATIONS = ("relation", "sort", "constructor", "function")
_SHIPPED_ONLY = ("sort", "constructor", "function", "set")
_NESTING = 100  # of any form: rules are walked by recursion
_KEYS = (":name", ":phase", ":numerics", ":law", ":bound", ":when", ":axes")
_REQUIRED = (":name", ":phase", ":numerics")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule with its law and the place where it stands.

    Attributes
    ----------
    name : str
        Unique; rules of a user's file carry the file's stem in front (`mine/sum-factor`).
    file, line : str, int
    phase : str
        One of `PHASES`.
    numerics : str
        One of `NUMERICS`.
    law : str
        The equation in mathematics; may be empty.
    bound : float
        Relative error allowed to an `approximates` rule; 0 for the others.
    kind : {"rewrite", "birewrite", "rule"}
    lhs, rhs : Node or None
        Both sides of a rewrite.
    guards : tuple of Node
        Conditions of a rewrite, or the body of a `rule`, as written.
    conditions : tuple of Node
        The same with the guard macros written out.
    actions : tuple of Node
        What a `rule` does.
    sorts : tuple of (str, str)
        Sort of every variable.
    builtin : bool
        Whether it is shipped with eqsat.
    made : tuple of MadeAxis
        The axes that it brings in.
    digest : str
        SHA-256 over everything that the rule's truth depends on.
    """

    name: str
    file: str
    line: int
    phase: str
    numerics: str
    law: str
    bound: float
    kind: RuleKind
    lhs: Node | None
    rhs: Node | None
    guards: tuple[Node, ...]
    conditions: tuple[Node, ...]
    actions: tuple[Node, ...]
    sorts: tuple[tuple[str, str], ...]
    builtin: bool
    made: tuple[MadeAxis, ...] = ()
    digest: str = field(default="", init=False)

    def __post_init__(self) -> None:
        parts = [self.kind, self.numerics, repr(self.bound), str(self.lhs), str(self.rhs)]
        parts += ["when", *map(str, self.guards), "do", *map(str, self.actions)]
        parts += [str(n) for m in self.made for n in (m.definition, *m.actions)]
        object.__setattr__(self, "digest", hashlib.sha256("\n".join(parts).encode()).hexdigest())

    @property
    def directions(self) -> tuple[tuple[str, Node, Node], ...]:
        """Name, left and right side of each egglog rewrite; none for a `rule`."""
        if self.lhs is None or self.rhs is None:
            return ()
        forth = (self.name, self.lhs, self.rhs)
        return (forth, (f"{self.name}-reverse", self.rhs, self.lhs)) if self.kind == "birewrite" else (forth,)

    @property
    def ways(self) -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
        """Constructors and relations that it matches, and those that it makes; a birewrite has two ways."""
        if self.directions:
            return tuple((held_names([a, *self.conditions]), held_names([b])) for _, a, b in self.directions)
        return ((held_names(self.conditions), held_names(self.actions)),)

    @property
    def names(self) -> tuple[str, ...]:
        """Names under which egglog reports its matches."""
        return tuple(n for n, _, _ in self.directions) or (self.name,)

    def egglog(self, ruleset: str) -> str:
        """Return the egglog commands that add it to `ruleset`; a birewrite becomes two named rewrites."""
        facts = " ".join(map(str, self.conditions))
        declared = [a for m in self.made for a in m.actions]
        if self.kind == "rule":
            actions = " ".join(map(str, (*declared, *self.actions)))
            return f'(rule ({facts}) ({actions}) :ruleset {ruleset} :name "{self.name}")'
        if declared:
            actions = f"{' '.join(map(str, declared))} (union matched--class {self.rhs})"
            return f'(rule ((= matched--class {self.lhs}) {facts}) ({actions}) :ruleset {ruleset} :name "{self.name}")'
        when = f" :when ({facts})" if facts else ""
        return "\n".join(f'(rewrite {a} {b}{when} :ruleset {ruleset} :name "{name}")' for name, a, b in self.directions)

    def __str__(self) -> str:
        return f"{self.name}: {self.law}" if self.law else self.name


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules with the declarations and facts that they rest on.

    `str()` of a declaration or fact is the egglog command.
    """

    rules: tuple[Rule, ...]
    declarations: tuple[Node, ...] = ()
    facts: tuple[Node, ...] = ()

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __add__(self, other: RuleSet) -> RuleSet:
        """Return both sets together; what is in both is kept once."""
        return RuleSet(
            tuple({r.name: r for r in (*self.rules, *other.rules)}.values()),
            tuple(dict.fromkeys((*self.declarations, *other.declarations))),
            tuple(dict.fromkeys((*self.facts, *other.facts))),
        )

    def phase(self, name: str) -> tuple[Rule, ...]:
        """Return the rules of one phase, in order."""
        return tuple(r for r in self.rules if r.phase == name)

    def admit(self, numerics: Iterable[str] = DEFAULT_NUMERICS, without: Iterable[str] = ()) -> RuleSet:
        """Return the set with only the rules of these numeric classes, and without the rules named."""
        classes, dropped = set(numerics), set(without)
        return replace(self, rules=tuple(r for r in self.rules if r.numerics in classes and r.name not in dropped))

    @property
    def digest(self) -> str:
        """SHA-256 over all rules, declarations and facts."""
        parts = [f"{r.name} {r.phase} {r.digest}" for r in self.rules]
        parts += [str(n) for n in (*self.declarations, *self.facts)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load_rules(paths: Sequence[Path | str], check_syntax: Callable[[str, str], None] | None = None) -> RuleSet:
    """Load rule files that a user names.

    Parameters
    ----------
    paths : sequence of Path or str
    check_syntax : callable, optional
        `check_syntax(egglog text, file)` is asked to parse each rule once more; it raises what it finds.

    Returns
    -------
    RuleSet
        The rules of these files alone. They may use the relations that eqsat ships.

    Raises
    ------
    RuleError
        With file, line, column and a caret, on anything malformed, forbidden, incomplete or named twice.
    """
    loaded = _load(_sources([Path(p) for p in paths], builtin=False), _shipped())
    if check_syntax is not None:
        for r in loaded.rules:
            check_syntax(r.egglog(f"rs-{r.phase}"), r.file)
    return loaded


@functools.cache
def builtin_rules(*, unstable: bool = False) -> RuleSet:
    """Load the rules shipped with eqsat.

    Parameters
    ----------
    unstable : bool
        Whether to include rules that hold over the reals but lose range or accuracy; no search admits them by default.
    """
    loaded = _load(_shipped(), ())
    return loaded if unstable else loaded.admit([n for n in NUMERICS if n != "unstable"])


@functools.cache
def _shipped() -> tuple[tuple[Source, tuple[Node, ...]], ...]:
    with resources.as_file(resources.files("eqsat") / "rules") as folder:
        return _sources(sorted(folder.glob("*.egg")), builtin=True)


def _sources(paths: Iterable[Path], *, builtin: bool) -> tuple[tuple[Source, tuple[Node, ...]], ...]:
    """Read files into forms; the position of every error is known from here on."""
    out = []
    for path in paths:
        file = path.name if builtin else str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise RuleError(f"the rule file cannot be read ({e}); give the path of a UTF-8 text file", file=file) from e
        out.append((Source(file, text, builtin), read_forms(text, file, RuleError, _NESTING)))
    return tuple(out)


def _load(files: Sequence[tuple[Source, tuple[Node, ...]]], known: Sequence[tuple[Source, tuple[Node, ...]]]) -> RuleSet:
    """Read declarations first, then rules and facts: no file needs to care about order."""
    vocabulary = Vocabulary()
    declarations: list[Node] = []
    facts: list[Node] = []
    rules: dict[str, Rule] = {}
    declared = [(f, source) for source, forms in (*known, *files) for f in forms if f.head in _DECLARATIONS]
    for form, source in sorted(declared, key=lambda d: d[0].head != "sort"):  # a file may use a sort of another one
        _refuse_if_not_shipped(form, source)
        vocabulary.declare(form, source)
        declarations.append(form)
    for source, forms in files:
        for form in forms:
            if form.head in ("rewrite", "birewrite", "rule"):
                rule = _Form(form, source, vocabulary).rule()
                for name in rule.names:
                    if name in rules:
                        first = f"{rules[name].file}:{rules[name].line}"
                        raise source.error(f"the name {name} is taken by the rule at {first}; choose another", form)
                rules.update(dict.fromkeys(rule.names, rule))
            elif form.head not in _DECLARATIONS:
                facts.append(_fact(form, source, vocabulary))
    return RuleSet(tuple(dict.fromkeys(rules.values())), tuple(declarations), tuple(facts))


def _refuse_if_not_shipped(form: Node, source: Source) -> None:
    if form.head in _SHIPPED_ONLY and not source.builtin:
        raise source.error(f"{form.head} is open only to the files shipped with eqsat; declare a relation instead", form)


def _fact(form: Node, source: Source, vocabulary: Vocabulary) -> Node:
    if form.head == "set" and source.builtin:
        return form
    found_by_rules = {"constant", *RANGES}
    if form.head not in vocabulary.relations or form.head in found_by_rules:
        allowed = ["rewrite", "birewrite", "rule", "relation", *sorted(vocabulary.relations - found_by_rules)]
        shown = form.head or str(form)
        raise source.error(
            f"{shown} is not allowed in a rule file, which holds only rewrite, birewrite, rule, relation and facts of declared "
            f"relations{meant(form.head, allowed)}",
            form,
        )
    Sorts(vocabulary, source).visit(form)
    if found := variables(form):
        raise source.error(f"a fact has no variables; got {', '.join(sorted(found))}", form)
    return form


class _Form:
    """One rewrite, birewrite or rule on its way to a `Rule`."""

    def __init__(self, form: Node, source: Source, vocabulary: Vocabulary) -> None:
        self.form, self.source, self.vocabulary = form, source, vocabulary
        self.terms, self.keys = self._split()
        self.sorts = Sorts(vocabulary, source)
        self.made: tuple[MadeAxis, ...] = ()

    def _split(self) -> tuple[list[Node], dict[str, Node]]:
        items = list(self.form.args)
        first = next((i for i, n in enumerate(items) if n.kind == "symbol" and n.text.startswith(":")), len(items))
        keys: dict[str, Node] = {}
        for i in range(first, len(items), 2):
            key = items[i]
            if key.kind != "symbol" or key.text not in _KEYS:
                why = "; the phase says which ruleset it joins" if key.text == ":ruleset" else meant(key.text, _KEYS)
                raise self.source.error(f"expected one of the keys {', '.join(_KEYS)}; got {key}{why}", key)
            if key.text in keys:
                raise self.source.error(f"{key} is given twice", key)
            if i + 1 == len(items):
                raise self.source.error(f"{key} has no value", key)
            keys[key.text] = items[i + 1]
        return items[:first], keys

    def rule(self) -> Rule:
        """Check the form and build the rule."""
        meta = self._metadata()
        if len(self.terms) != 2:
            what = "a body and actions" if self.form.head == "rule" else "a left and a right side"
            raise self.source.error(f"{self.form.head} takes {what}; got {len(self.terms)} terms", self.form)
        return self._general(meta) if self.form.head == "rule" else self._rewrite(meta)

    def _metadata(self) -> dict[str, str]:
        for key in _REQUIRED:
            if key not in self.keys:
                raise self.source.error(f"this {self.form.head} lacks {key}; every rule has {', '.join(_REQUIRED)}", self.form)
        out = {k: v.text for k, v in self.keys.items() if k not in (":when", ":axes")}
        for key in (":name", ":law", ":bound"):
            if key in self.keys and self.keys[key].kind != "string":
                raise self.source.error(f"{key} is a string in quotes; got {self.keys[key]}", self.keys[key])
        for key, choices in ((":phase", PHASES), (":numerics", NUMERICS)):
            if out[key] not in choices or self.keys[key].kind != "symbol":
                at = self.keys[key]
                raise self.source.error(f"{key} is one of {', '.join(choices)}; got {at}{meant(at.text, choices)}", at)
        name = out[":name"]
        if not name or name != name.lower() or not all(c.isalnum() or c == "-" for c in name) or name.endswith("-reverse"):
            why = "lower case with hyphens, without -reverse at the end (a birewrite's second half has it)"
            raise self.source.error(f'a rule is named "subject-what": {why}; got {self.keys[":name"]}', self.keys[":name"])
        if not self.source.builtin:
            out[":name"] = f"{Path(self.source.file).stem}/{name}"
        return out

    def _bound(self, meta: dict[str, str]) -> float:
        given = self.keys.get(":bound")
        if (meta[":numerics"] == "approximates") != (given is not None):
            raise self.source.error(
                'a rule that approximates, and no other, states its largest relative error as :bound "1e-6"', given or self.form
            )
        if given is None:
            return 0.0
        try:
            bound = float(given.text)
        except ValueError:
            bound = -1.0
        if not 0 < bound < 1:
            raise self.source.error(f"the bound is a relative error between 0 and 1, such as 1e-6; got {given}", given)
        return bound

    def _build(
        self, meta: dict[str, str], guards: tuple[Node, ...], sides: tuple[Node | None, Node | None], actions: tuple[Node, ...]
    ) -> Rule:
        kind: RuleKind = "rule" if self.form.head == "rule" else "birewrite" if self.form.head == "birewrite" else "rewrite"
        matched = bound_variables([*([sides[0]] if sides[0] else []), *guards])
        fresh = [m.definition for m in self.made] + freshness(self.made, self.sorts.found, matched)
        return Rule(
            meta[":name"], self.source.file, self.form.line, meta[":phase"], meta[":numerics"], meta.get(":law", ""),
            self._bound(meta), kind, *sides, guards, expand([*guards, *fresh]), actions,
            tuple(sorted(self.sorts.found.items())), self.source.builtin, self.made,
        )  # fmt: skip

    def _made_axes(self, bound: set[str]) -> set[str]:
        """Read `:axes`; return the variables that name the new axes."""
        given = self.keys.get(":axes")
        if given is None:
            return set()
        if self.form.head == "birewrite":
            raise self.source.error("a birewrite brings in no axes, which its reverse would have to find again", given)
        if given.kind != "list" or not given.items:
            raise self.source.error(":axes takes new axes in parentheses: ((o k (/ n 4)) (i k 4))", given)
        for entry in given.items:
            if len(entry.items) < 3 or any(n.kind != "symbol" for n in entry.items[:-1]):
                raise self.source.error(
                    f"a new axis is (NAME AXIS… EXTENT): a new variable, the axes it is made from, its extent; got {entry}", entry
                )
            name, *stems = entry.items[:-1]
            if name.text in bound or any(m.variable == name.text for m in self.made):
                raise self.source.error(f"{name} stands for something already; a new axis has a new name", name)
            self._check_bound([*stems, entry.items[-1]], bound)
            for stem in (name, *stems):
                self.sorts.visit(stem, "String")
            self.sorts.visit(entry.items[-1], "i64")
            self.made = (*self.made, MadeAxis(name.text, tuple(stems), entry.items[-1]))
        return {m.variable for m in self.made}

    def _rewrite(self, meta: dict[str, str]) -> Rule:
        lhs, rhs = self.terms
        when = self.keys.get(":when")
        if when is not None and when.kind != "list":
            raise self.source.error(f":when takes guards in parentheses: ((free-of k a)); got {when}", when)
        guards = when.items if when else ()
        if lhs.kind != "list":
            raise self.source.error(f"the left side is a call, so that it can be matched; got {lhs}", lhs)
        self.sorts.visit(lhs, "T")
        self._facts(guards)
        self.sorts.visit(rhs, "T")
        bound = bound_variables([lhs, *guards])
        made = self._made_axes(bound)
        self._check_bound([*guards, rhs], bound | made)
        if self.form.head == "birewrite":
            if rhs.kind != "list":
                raise self.source.error(f"the right side of a birewrite is a call, so that it can be matched; got {rhs}", rhs)
            self._check_bound([*guards, lhs], bound_variables([rhs, *guards]))
        used_by_axes = {v for m in self.made for n in (m.extent, *m.stems) for v in variables(n)}
        self._check_used(guards, variables(lhs), variables(rhs) | used_by_axes)
        return self._build(meta, guards, (lhs, rhs), ())

    def _general(self, meta: dict[str, str]) -> Rule:
        body, actions = self.terms
        for part, what in ((body, "the body"), (actions, "the actions")):
            if part.kind != "list" or not part.items:
                raise self.source.error(f"{what} of a rule is a list with at least one element; got {part}", part)
        if ":when" in self.keys:
            raise self.source.error("a rule has its conditions in the body; :when belongs to rewrites", self.keys[":when"])
        self._facts(body.items)
        bound = bound_variables(body.items)
        self._check_bound(body.items, bound)
        bound |= self._made_axes(bound)
        for action in actions.items:
            bound |= self._action(action, bound)
        return self._build(meta, body.items, (None, None), actions.items)

    def _action(self, action: Node, bound: set[str]) -> set[str]:
        """Check one action; return the variables that it binds."""
        match action.head, action.args:
            case "union", (a, b):
                sort = self.sorts.visit(a) or self.sorts.visit(b)
                self.sorts.visit(a, sort)
                self.sorts.visit(b, sort)
                self._check_bound([a, b], bound)
            case "let", (v, e):
                self.sorts.visit(v, self.sorts.visit(e))
                self._check_bound([e], bound)
                return {v.text}
            case "set", (call, value):
                _refuse_if_not_shipped(action, self.source)
                self.sorts.visit(value, self.sorts.visit(call))
                self._check_bound([call, value], bound)
            case name, _:
                if name not in self.vocabulary.names or name in ("axes", "dtype", "extent", "promote"):
                    known = ["union", "let", *self.vocabulary.relations]
                    raise self.source.error(
                        f"an action is a union, a let, or a fact of a relation; got {action}{meant(name, known)}", action
                    )
                self.sorts.visit(action)
                self._check_bound([action], bound)
        return set()

    def _facts(self, facts: Iterable[Node]) -> None:
        """Check facts twice: sorts learnt from a later one serve an earlier comparison."""
        listed = list(facts)
        for f in (*listed, *listed):
            if f.kind != "list":
                raise self.source.error(f"a guard is a fact in parentheses; got {f}", f)
            self.sorts.visit(f)

    def _check_bound(self, nodes: Iterable[Node], bound: set[str]) -> None:
        for node in nodes:
            loose = variables(node) - bound
            for n in node.walk():
                if n.kind == "symbol" and n.text in loose:
                    raise self.source.error(
                        f"the variable {n.text} is bound nowhere on the matched side{meant(n.text, bound)}", n
                    )

    def _check_used(self, guards: Sequence[Node], left: set[str], right: set[str]) -> None:
        """Refuse guards that restrict nothing: a misspelt variable hides there."""
        linked = set(left)
        for _ in guards:
            linked |= set().union(*(variables(g) for g in guards if variables(g) & linked), set())
        for i, g in enumerate(guards):
            if g in guards[:i]:
                raise self.source.error(f"the guard {g} is given twice", g)
            if not variables(g) & linked:
                raise self.source.error(f"the guard {g} says nothing about the left side; remove it or name its variables", g)
            if g.head == "=" and g.args[0].kind == "symbol":
                v = g.args[0].text
                others = set().union(left, right, *(variables(o) for o in guards if o is not g))
                if v not in others:
                    raise self.source.error(f"the guard binds {v}, which nothing uses; remove it", g)
