"""Derivations: the chain of named rules that leads from one expression to another one equal to it.

The engine gives no proofs. So the saturation is run again with rules that log every use as an equation between ground
terms; a proof-producing congruence closure over the log gives the chain, and every step of it is checked by a matcher that
knows nothing of the e-graph.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eqsat import signature
from eqsat.access import AccessMap, Index
from eqsat.congruence import Closure, Terms
from eqsat.errors import EqsatError
from eqsat.ir import Expr, Program, access, read, rebuild
from eqsat.mirror import equations_of, grounded, logging_rule, mirror_declarations
from eqsat.prooflines import Line, Pair, Part, parts_of
from eqsat.relevance import relevant
from eqsat.rulefile import Rule
from eqsat.saturation import PHASES, Limits, Phase, RuleText
from eqsat.session import Session
from eqsat.sexpr import read_forms
from eqsat.stepcheck import StepChecker
from eqsat.worker import UseLog

Direction = Literal["forward", "reverse"]
_PLAIN = 20_000  # constructors in all terms of a derivation written out; beyond that, subterms that recur get names
_NAMED = 8  # constructors of a subterm that is worth a name


@dataclass(frozen=True, slots=True)
class Step:
    """One use of one rule, or of an earlier part of the derivation.

    Parameters
    ----------
    part : int
        Number of the part that it belongs to.
    rule : str
        Empty where it uses a part.
    uses : int or None
        Number of the part used: its two ends are `before` and `after`, or the other way round if `direction` is "reverse".
    direction : {"forward", "reverse"}
        "reverse": the rule is read from right to left.
    position : tuple of int
        Path of argument numbers from the root of the part's term to the subterm that changes.
    before, after : str
        That subterm.
    guards : bool or None
        Whether the rule's guards were recomputed on the subterm itself. False: they hold in the e-graph only, which knows
        more about it than its spelling shows. None: a guard uses a relation or function that only the engine evaluates.
    rearranges : bool
        Whether it only reorders or regroups.
    """

    part: int
    rule: str
    uses: int | None
    direction: Direction
    position: tuple[int, ...]
    before: str
    after: str
    guards: bool | None
    rearranges: bool

    def record(self) -> dict[str, object]:
        """Return the step as plain data for a receipt."""
        return dataclasses.asdict(self) | {"position": list(self.position)}


@dataclass(frozen=True, slots=True)
class Derivation:
    """A chain from each source to its target, or the reason why there is none.

    Parameters
    ----------
    ends : tuple of (str, str)
        For each part, the term it starts from and the one it leads to. The last `goals` parts are what was asked for; those
        before are equalities that later parts use.
    goals : int
    steps : tuple of Step
        In order; those of a part follow each other. Empty where nothing had to be rewritten, and where nothing was found.
    names : tuple of (str, str)
        Names that stand for subterms in all texts, each one's own text using earlier names only. Without any if the terms are
        short.
    status : str
        "derived", or "not found: …" with the reason.
    """

    ends: tuple[tuple[str, str], ...]
    goals: int
    steps: tuple[Step, ...]
    names: tuple[tuple[str, str], ...]
    status: str

    @property
    def found(self) -> bool:
        """Whether the steps lead from every source to its target."""
        return self.status == "derived"

    @property
    def source(self) -> str:
        """The term that the last part starts from."""
        return self.ends[-1][0] if self.ends else ""

    @property
    def target(self) -> str:
        """The term that the last part leads to."""
        return self.ends[-1][1] if self.ends else ""

    def record(self) -> dict[str, object]:
        """Return it as plain data for a receipt."""
        return {
            "status": self.status,
            "goals": self.goals,
            "parts": [list(e) for e in self.ends],
            "names": [list(n) for n in self.names],
            "steps": [s.record() for s in self.steps],
        }

    def __str__(self) -> str:
        lines, hidden = [self.source if self.found else self.status], 0
        for n, step in enumerate(self.steps, 1):
            if step.rearranges:
                hidden += 1
                continue
            arrow = "" if step.direction == "forward" else " (right to left)"
            what = step.rule or f"part {step.uses}"
            lines += [f"{n:>4}. {what}{arrow}", f"        {step.before}", f"      → {step.after}"]
        if hidden:
            lines.append(f"({hidden} steps that only reorder or regroup are not shown)")
        return "\n".join(lines)


class _NotFoundError(Exception):
    """There is no chain, for this reason."""


def derive(program: Program, source: Expr, target: Expr, rules: Iterable[Rule], **how: Any) -> Derivation:
    """Find the chain of rules that leads from `source` to `target`; see `derive_all`."""
    return derive_all(program, [source], [target], rules, **how)


def derive_all(
    program: Program,
    sources: Sequence[Expr],
    targets: Sequence[Expr],
    rules: Iterable[Rule],
    *,
    declarations: str = "",
    session: Session | None = None,
    limits: Limits | None = None,
    phases: Sequence[Phase] = PHASES,
) -> Derivation:
    """Find the chains of rules that lead from each source to its target, in one replay of the saturation.

    Parameters
    ----------
    program : Program
        Gives inputs and extents; all expressions read its inputs.
    sources, targets : sequence of Expr
    rules : iterable of Rule
    declarations : str
        egglog text that the rules rest on.
    session : Session, optional
        A worker to use; without it one is started for the occasion.
    limits : Limits, optional
        `hard_s` bounds the replay and the search for the chain, each. The default leaves room for both ends' terms.
    phases : sequence of Phase, optional
        Those that grow the e-graph are run; the others have nothing to prove.

    Returns
    -------
    Derivation
        With status "derived" and checked steps, or "not found: …". A failure is a result, not an error: the equality was
        established by saturation, and the receipt then says that its chain is missing.
    """
    limits = limits or Limits(nodes=3 * Limits().nodes, matches=3 * Limits().matches, soft_s=5.0, hard_s=10.0)
    search = _Search(program, [r for r in rules if r.phase == "analysis" or any(r.phase in p.rules for p in phases if p.grows)])
    try:
        goals = search.read_ends(sources, targets)
    except EqsatError as error:
        return Derivation((), len(sources), (), (), f"not found: {error}")
    open_goals = [n for n, (a, b) in enumerate(goals) if a != b]
    if not open_goals:
        return search.written([Part(a, b, ()) for a, b in goals], len(goals), "derived")
    own = session or Session()
    try:
        found = own.log_uses(
            search.load_text,
            search.logging_rules(declarations),
            " ".join(f"(= $source{n} $target{n})" for n in open_goals),
            declarations="\n".join([declarations, mirror_declarations()]),
            limits=limits,
            phases=[p for p in phases if p.grows],
        )
        return search.chains(goals, found, time.monotonic() + limits.hard_s)
    except (_NotFoundError, EqsatError) as error:
        return search.written([Part(a, b, ()) for a, b in goals], len(goals), f"not found: {error}")
    finally:
        if session is None:
            own.close()


class _Search:
    """One search for a chain."""

    def __init__(self, program: Program, rules: Sequence[Rule]) -> None:
        self.terms = Terms()
        self.load_text = ""
        self.extents = program.extents
        self._program, self._rules = program, rules
        self._equations = {f"{r.name}#{n}": e for r in rules for n, e in enumerate(equations_of(r))}

    def read_ends(self, sources: Sequence[Expr], targets: Sequence[Expr]) -> list[Pair]:
        """Write all expressions for the engine, and read them back as terms."""
        targets = _read_alike(sources, targets)
        writer = signature.TermWriter(signature.constant_inputs(self._program))
        ends = [(f"$source{n}", e) for n, e in enumerate(sources)] + [(f"$target{n}", e) for n, e in enumerate(targets)]
        for _, expr in ends:
            self.extents |= {a: n for node in expr.walk() for a, n in node.type.axes}
        lines = signature.extent_facts(self.extents)
        for name, expr in ends:
            term = writer.strong(expr)
            lines += [*writer.take_lines(), f"(let {name} {term})"]
        self.load_text = "\n".join(lines) + "\n"
        names: dict[str, int] = {}
        for form in read_forms(self.load_text):
            if form.head == "let":
                names[form.args[0].text] = self.terms.read(form.args[1], names)
        return [(names[f"$source{n}"], names[f"$target{n}"]) for n in range(len(sources))]

    def logging_rules(self, declarations: str) -> list[RuleText]:
        """Return the rules that can fire, each logging its uses."""
        used, _ = relevant(self._rules, declarations, self.load_text)
        return [RuleText(r.name, r.phase, logging_rule(r)) for r in used]

    def chains(self, goals: Sequence[Pair], found: UseLog, deadline_s: float) -> Derivation:
        """Return the checked steps from each end to the other."""
        if not found.reached:
            why = {"saturated": "the rules do not lead from one to the other", "time": "the time limit of the replay came first"}
            raise _NotFoundError(why.get(found.stop, f"the limit on {found.stop} came first"))

        def late() -> None:
            if time.monotonic() > deadline_s:
                raise _NotFoundError("the time limit came while the chain was put together")

        closure = Closure(self.terms)
        for t in (t for pair in goals for t in pair):
            closure.cover(t)
        ground: dict[int, int] = {}
        waiting = [g for g in goals if not closure.equal(*g)]
        for name, left, right in found.uses:
            late()
            a, b = (grounded(self.terms, found.terms, m, ground) for m in (left, right))
            closure.equate(a, b, name)
            while waiting and closure.equal(*waiting[-1]):
                waiting.pop()
            if not waiting:
                break
        else:
            raise _NotFoundError("the log of rule uses does not connect the two terms")
        return self._checked(parts_of(self.terms, closure, goals, late), len(goals), late)

    def _checked(self, parts: Sequence[Part], goals: int, late: Callable[[], None]) -> Derivation:
        """Check every line of every part, then write all of it out."""
        checker = StepChecker(self.terms, self._program, self.extents)
        guards: dict[Line, bool | None] = {}
        for number, part in enumerate(parts):
            whole = part.before
            for r in part.lines:
                late()
                if self.terms.at(whole, r.position) != r.before or not self._holds(r, number, parts, checker):
                    what = r.rule or f"part {r.part}"
                    raise _NotFoundError(
                        f"the use of {what} on {self._brief(r.before)} did not pass the check outside the e-graph"
                    )
                if r.rule is not None:
                    guards[r] = checker.guards_hold(self._equations[r.rule], r.before if r.forward else r.after)
                whole = self.terms.replace(whole, r.position, r.after)
            if whole != part.after:
                raise _NotFoundError("the chain does not end in the target")
        return self.written(parts, goals, "derived", guards)

    def _holds(self, r: Line, number: int, parts: Sequence[Part], checker: StepChecker) -> bool:
        left, right = (r.before, r.after) if r.forward else (r.after, r.before)
        if r.rule is not None:
            return checker.holds(self._equations[r.rule], left, right)
        return r.part is not None and r.part < number and (parts[r.part].before, parts[r.part].after) == (left, right)

    def _brief(self, term: int) -> str:
        text = self.terms.text(term) if self.terms.size(term) < _PLAIN else f"a term of {self.terms.size(term)} constructors"
        return text if len(text) < 400 else text[:400] + " …"

    def written(
        self, parts: Sequence[Part], goals: int, status: str, guards: Mapping[Line, bool | None] | None = None
    ) -> Derivation:
        """Write terms and steps out as text."""
        roots = [t for p in parts for t in (p.before, p.after, *(x for r in p.lines for x in (r.before, r.after)))]
        names = self._names(roots)
        texts = {t: self.terms.text(t, names) if t not in names else names[t] for t in set(roots)}
        steps = []
        for number, part in enumerate(parts):
            for r in part.lines:
                equation = self._equations[r.rule] if r.rule is not None else None
                forward = r.forward if equation is None else r.forward != equation.reverse
                rule, rearranges = ("", False) if equation is None else (equation.name, equation.rearranges)
                direction: Direction = "forward" if forward else "reverse"
                known = (guards or {}).get(r)
                sides = texts[r.before], texts[r.after]
                steps.append(Step(number, rule, r.part, direction, r.position, *sides, known, rearranges))
        listed = tuple((name, self.terms.text(t, {x: n for x, n in names.items() if x != t})) for t, name in names.items())
        return Derivation(tuple((texts[p.before], texts[p.after]) for p in parts), goals, tuple(steps), listed, status)

    def _names(self, roots: Sequence[int]) -> dict[int, str]:
        """Return names for subterms that recur, operands before users; none if all terms together are short."""
        if sum(self.terms.size(t) for t in roots) <= _PLAIN:
            return {}
        users: Counter[int] = Counter(set(roots))
        order: list[int] = []
        seen: set[int] = set()
        stack = [(t, False) for t in reversed(roots)]
        while stack:
            t, ready = stack.pop()
            if ready:
                order.append(t)
            elif t not in seen:
                seen.add(t)
                stack.append((t, True))
                for a in set(self.terms.operands(t)):
                    users[a] += 1
                    stack.append((a, False))
        chosen = [t for t in order if users[t] > 1 and self.terms.size(t) >= _NAMED]
        return {t: f"$s{n}" for n, t in enumerate(chosen)}


def _read_alike(sources: Sequence[Expr], targets: Sequence[Expr]) -> list[Expr]:
    """Spell reads of the targets that only call axes otherwise than the sources do as accesses of the sources' reads.

    x[o,k] and x[i,k] with o in the place of i are one value in two spellings; the rules know the second one alone.
    """
    seen: dict[str, list[tuple[str, ...]]] = {}
    for node in (n for e in sources for n in e.walk() if n.op == "read"):
        seen.setdefault(node.attrs[0], []).append(node.attrs[1])
    memo: dict[str, Expr] = {}
    for node in (n for e in targets for n in e.walk()):
        if node.digest in memo:
            continue
        memo[node.digest] = rebuild(node, tuple(memo[a.digest] for a in node.args))
        known = seen.get(node.attrs[0], []) if node.op == "read" else []
        if known and node.attrs[1] not in known:
            extents = dict(node.type.axes)
            axes = min(known, key=lambda own: sum(a != b for a, b in zip(own, node.attrs[1], strict=True)))
            calls = {a: b for a, b in zip(axes, node.attrs[1], strict=True) if a != b}
            if all(calls) and all(calls.values()):
                own = read(node.attrs[0], axes, tuple(extents[b] if b else 1 for b in node.attrs[1]), node.dtype)
                entries = tuple((a, Index.axis(b)) for a, b in calls.items())
                memo[node.digest] = access(own, AccessMap(entries, tuple((b, extents[b]) for b in calls.values())))
    return [memo[e.digest] for e in targets]
