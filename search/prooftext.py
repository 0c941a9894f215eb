"""A receipt's derivation as a proof that people read: numbered steps in mathematics, long common parts called by letters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eqsat.congruence import Terms
from eqsat.errors import EqsatError
from eqsat.formula import show
from eqsat.ir import Expr, Program
from eqsat.sexpr import read_forms
from eqsat.terms import from_term

_NAMED = 18  # characters of a part that gets a letter, if a step leaves it as it is
_LARGEST = 400  # operations of a term that is still written out


@dataclass(frozen=True, slots=True)
class ShownStep:
    """One step as people read it.

    Parameters
    ----------
    number : int
        Among the steps of the whole proof, from 1.
    rule, law, evidence : str
        Of a rule; `rule` is "lemma 2" where an earlier part is used, `law` and `evidence` then empty.
    reverse : bool
        Whether the rule is read from right to left.
    before, after : str
        The subterm that changes.
    within : str
        The whole term after the step, the changed part in ⟦ ⟧; empty where the whole changes.
    where : tuple of (str, str)
        Letters that occur here for the first time, and what they stand for.
    rearranges : bool
    """

    number: int
    rule: str
    law: str
    evidence: str
    reverse: bool
    before: str
    after: str
    within: str
    where: tuple[tuple[str, str], ...]
    rearranges: bool


@dataclass(frozen=True, slots=True)
class ShownPart:
    """A chain of steps: what it proves ("y", an output; or "lemma 2"), and its ends."""

    name: str
    before: str
    after: str
    where: tuple[tuple[str, str], ...]
    steps: tuple[ShownStep, ...]


@dataclass(slots=True)
class Prose:
    """Writes the derivation of one receipt."""

    record: Mapping[str, Any]
    program: Program
    _letters: dict[str, str] = field(default_factory=dict)  # digest of a subexpression -> its letter
    _exprs: dict[str, Expr] = field(default_factory=dict)  # name in the receipt -> its meaning
    _terms: Terms = field(default_factory=Terms)
    _numbers: dict[str, int] = field(default_factory=dict)

    def parts(self) -> Iterator[ShownPart]:
        """Yield the parts in order: lemmas, then the outputs."""
        derivation = self.record["derivation"]
        for name, text in derivation.get("names", ()):
            self._numbers[name] = self._terms.read(read_forms(text)[0], self._numbers)
            self._exprs[name] = from_term(text, self.program, names=self._exprs)
        laws = {r["name"]: r for r in self.record["rules"]}
        ends = derivation.get("parts")
        if ends is None:  # receipts written before derivations had parts: one chain
            yield ShownPart("", "", "", (), tuple(self._step(n, s, laws, None) for n, s in enumerate(derivation["steps"], 1)))
            return
        steps = list(enumerate(derivation["steps"], 1))
        for number, (before, after) in enumerate(ends):
            whole = [self._read(before)]
            goal = number - (len(ends) - derivation["goals"])
            name = f"lemma {number + 1}" if goal < 0 else self.program.outputs[goal].name
            left, right, where = self._sides(before, after)
            mine = tuple(self._step(n, s, laws, whole) for n, s in steps if s["part"] == number)
            yield ShownPart(name, left, right, where, mine)

    def _step(self, number: int, step: Mapping[str, Any], laws: Mapping[str, Any], whole: list[int] | None) -> ShownStep:
        """Write one step; `whole` is the part's term before it, and then the one after it."""
        rule = laws.get(step["rule"].removesuffix("-reverse"))
        before, after, where = self._sides(step["before"], step["after"])
        within = ""
        if whole is not None:
            whole[0] = self._terms.replace(whole[0], tuple(step["position"]), self._read(step["after"]))
            if step["position"]:
                within = self._around(whole[0], step["after"], after)
        name = step["rule"] or f"lemma {step['uses'] + 1}"
        law, evidence = (rule["law"], told(rule)) if rule else ("", "")
        reverse = step["direction"] == "reverse"
        return ShownStep(number, name, law, evidence, reverse, before, after, within, where, step["rearranges"])

    def _sides(self, before: str, after: str) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """Return both terms as mathematics, and the letters that are new."""
        left, right = self._expr(before), self._expr(after)
        if left is None or right is None:
            return _cut(before), _cut(after), ()
        fresh = self._name_common(left, right)
        names = dict(self._letters)
        for whole in (left, right):
            names.pop(whole.digest, None)
        defined = tuple((self._letters[e.digest], self._defined(e)) for e in fresh)
        return show(left, names), show(right, names), defined

    def _name_common(self, left: Expr, right: Expr) -> list[Expr]:
        """Give letters to the largest parts that both sides have, if they are long."""
        common = {e.digest for e in left.walk()} & {e.digest for e in right.walk()}
        fresh: list[Expr] = []
        seen: set[str] = set()
        stack = [left, right]
        while stack:
            e = stack.pop()
            if e.digest in seen or e.digest in self._letters:
                continue
            seen.add(e.digest)
            if e.digest in common and e.args and e.digest not in (left.digest, right.digest):
                if len(show(e, self._letters)) > _NAMED:
                    self._letters[e.digest] = self._letter()
                    fresh.append(e)
                continue
            stack.extend(reversed(e.args))
        return fresh

    def _letter(self) -> str:
        """Return the next of A, B, …, Z, A1, … that no input or axis is called."""
        taken = {i.name for i in self.program.inputs} | set(self.program.extents) | set(self._letters.values())
        names = (chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "") for i in itertools.count())
        return next(name for name in names if name not in taken)

    def _defined(self, e: Expr) -> str:
        return show(e, {d: name for d, name in self._letters.items() if d != e.digest})

    def _around(self, whole: int, text: str, shown: str) -> str:
        """Return the whole term with the changed part marked."""
        expr, part = self._expr_of(whole), self._expr(text)
        if expr is None or part is None or expr.digest == part.digest:
            return ""
        inside = {e.digest for e in part.walk()}
        names = {d: name for d, name in self._letters.items() if d not in inside}
        return show(expr, names | {part.digest: f"⟦{shown}⟧"})

    def _read(self, text: str) -> int:
        return self._terms.read(read_forms(text)[0], self._numbers)

    def _expr(self, text: str) -> Expr | None:
        """Return a term's meaning; None where it cannot be written as mathematics, or is too long."""
        try:
            expr = from_term(text, self.program, names=self._exprs)
        except EqsatError:
            return None
        return expr if sum(1 for _ in expr.walk()) <= _LARGEST else None

    def _expr_of(self, term: int) -> Expr | None:
        if self._terms.size(term) > _LARGEST:
            return None
        names = {number: name for name, number in self._numbers.items()}
        return self._expr(self._terms.text(term, names))


def told(rule: Mapping[str, Any]) -> str:
    """Return in words on what a rule was admitted."""
    evidence = rule["evidence"]
    parts = [rule["numerics"]]
    match evidence["method"]:
        case "proved":
            parts.append(f"proved by {evidence['how']}" if evidence.get("how") else "proved")
        case "field":
            parts.append("tested in prime fields and floats")
        case "fuzz":
            parts.append("tested in floats")
        case _:
            parts.append("claims nothing about values")
    if evidence["method"] != "proved" and evidence.get("trials"):
        parts.append(f"{evidence['trials']} situations, {evidence['compared']} elements compared")
    if evidence["method"] == "field" and evidence.get("log2_bound") is not None:
        parts.append(f"chance that a false law passes ≤ 2^{evidence['log2_bound']:.0f}")
    return "; ".join(parts)


def wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    """Return `text` in lines of at most `width` characters, broken after an operator or a comma where there is one."""
    lines, head = [], first
    while len(head) + len(text) > width:
        room = max(20, width - len(head))
        at = max(text.rfind(sign, 0, room) + len(sign.rstrip()) for sign in (" + ", " − ", ", ", "·", " "))
        at = room if at < room // 3 else at
        lines.append(head + text[:at].rstrip())
        text, head = text[at:].lstrip(), rest
    return [*lines, head + text]


def _cut(text: str) -> str:
    return text if len(text) <= _LARGEST else text[:_LARGEST] + " …"
