"""Which rules met where two values became equal that differ in a fact which never changes.

The engine says only which fact it was. So the saturation is run again with rules that log their uses, up to the step that
contradicts; what its rule would equate there shows the two values, and the log shows which rules brought them in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eqsat import signature
from eqsat.congruence import Closure, Terms
from eqsat.errors import ContradictionError, EqsatError
from eqsat.ir import Program
from eqsat.mirror import grounded, logging_rule, mirror_declarations
from eqsat.prooflines import Part, parts_of
from eqsat.rulefile import Rule
from eqsat.saturation import EgglogRule, Limits, Phase, RuleText
from eqsat.sexpr import read_forms
from eqsat.stepcheck import StepChecker

if TYPE_CHECKING:
    from eqsat.session import Session
    from eqsat.worker import Clash

_PATIENCE_S = 10.0
_SHOWN = 160
_NEXT = "Find the false one with `eqsat rules check`, or leave it out (--without RULE)."


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that met another one: its term, its dtype, the rule that brought it in ("": the program) and from what."""

    text: str
    dtype: str
    rule: str = ""
    origin: str = ""

    def __str__(self) -> str:
        came = f", which rule {self.rule} made of {self.origin}," if self.rule else ""
        return f"{self.text}{came} ({self.dtype})"


def explained(
    session: Session,
    error: ContradictionError,
    program: Program,
    rules: Sequence[EgglogRule],
    declarations: str,
    limits: Limits,
    phases: Sequence[Phase],
) -> ContradictionError:
    """Return the error with the names of the rules that met, as far as a logged replay shows them."""
    if not error.rules:
        return ContradictionError(f"{error} before any rule ran: the program's own facts contradict each other")
    (last,) = error.rules
    plain = ContradictionError(f"{error}, in a step of rule {last}. {_NEXT}", error.rules)
    search = _Replay(program)
    try:
        found = search.clash(session, rules, declarations, limits, phases)
        values = search.values(found) if found is not None else None
    except EqsatError:
        return plain
    if found is None or values is None:
        return plain
    left, right = values
    names = tuple(dict.fromkeys([found.rule, *(v.rule for v in values if v.rule)]))
    met = f"rules {' and '.join(names)} contradict each other" if len(names) > 1 else f"rule {found.rule} contradicts the program"
    return ContradictionError(f"{met}: {found.rule} makes {left} equal to {right}. {_NEXT}", names)


class _Replay:
    """One logged replay of a saturation that contradicts."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._terms = Terms()
        roots = tuple(f"$root{i}" for i in range(len(program.outputs)))
        self._load_text = signature.load_text(program, roots)

    def clash(
        self, session: Session, rules: Sequence[EgglogRule], declarations: str, limits: Limits, phases: Sequence[Phase]
    ) -> Clash | None:
        """Run up to the step that contradicts."""
        growing = {phase for p in phases if p.grows for phase in p.rules} - {"analysis"}
        logged = [RuleText(r.name, r.phase, logging_rule(r)) if isinstance(r, Rule) and r.phase in growing else r for r in rules]
        probes = {r.name: logging_rule(r, probe=True) for r in rules if isinstance(r, Rule) and r.phase in growing}
        facts = "\n".join([declarations, mirror_declarations()])
        return session.look_into(self._load_text, logged, probes, declarations=facts, limits=limits, phases=phases)

    def values(self, found: Clash) -> tuple[_Value, _Value] | None:
        """Return the first two values of different dtypes that the rule would equate."""
        checker = StepChecker(self._terms, self._program, self._program.extents)
        ground: dict[int, int] = {}
        pairs = [tuple(grounded(self._terms, found.terms, m, ground) for m in pair) for _, *pair in found.probed]
        apart = [(a, b) for a, b in pairs if checker.dtype(a) != checker.dtype(b)]
        if not apart:
            return None
        own = self._own_terms()
        closure = Closure(self._terms)
        for t in (*own, *(t for pair in apart for t in pair)):
            closure.cover(t)
        uses = []
        for name, left, right in found.uses:
            a, b = (grounded(self._terms, found.terms, m, ground) for m in (left, right))
            closure.equate(a, b, name)
            uses.append((name, a, b))
        a, b = min(apart, key=lambda pair: sum(map(self._terms.size, pair)))
        return self._value(a, closure, own, uses, checker), self._value(b, closure, own, uses, checker)

    def _own_terms(self) -> list[int]:
        """Return the program's own terms."""
        names: dict[str, int] = {}
        for form in read_forms(self._load_text):
            if form.head == "let":
                names[form.args[0].text] = self._terms.read(form.args[1], names)
        return sorted(self._within(*names.values()))

    def _within(self, *roots: int) -> set[int]:
        """Return all subterms."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            t = stack.pop()
            if t not in seen:
                seen.add(t)
                stack.extend(self._terms.operands(t))
        return seen

    def _value(
        self, term: int, closure: Closure, own: Sequence[int], uses: Sequence[tuple[str, int, int]], checker: StepChecker
    ) -> _Value:
        """Return a value with the last rule on the way to it from the program, or else the rule that first wrote it."""
        text, dtype = self._brief(term), checker.dtype(term)
        if term in own:
            return _Value(text, dtype)
        origins = [t for t in own if closure.equal(t, term)]
        for origin in origins[:1]:
            deadline_s = time.monotonic() + _PATIENCE_S

            def late(until_s: float = deadline_s) -> None:
                if time.monotonic() > until_s:
                    raise EqsatError("the time limit came while the chain was put together")

            rule = _last_rule(parts_of(self._terms, closure, [(origin, term)], late))
            return _Value(text, dtype, rule.rpartition("#")[0], self._brief(origin))
        for name, left, right in uses:
            if term in self._within(right):
                return _Value(text, dtype, name.rpartition("#")[0], self._brief(left))
        return _Value(text, dtype)

    def _brief(self, term: int) -> str:
        if self._terms.size(term) > _SHOWN:
            return f"a term of {self._terms.size(term)} constructors"
        text = self._terms.text(term)
        return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"


def _last_rule(parts: Sequence[Part]) -> str:
    """Return the rule of the last step of the last part, parts that it uses looked into."""
    part = parts[-1]
    while True:
        line = part.lines[-1]
        if line.rule is not None:
            return line.rule
        assert line.part is not None
        part = parts[line.part]
