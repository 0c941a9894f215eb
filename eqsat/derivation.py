"""Derivations: the chain of named rules that leads from one expression to another one equal to it.

The engine gives no proofs. So the saturation is run again with rules that log every use as an equation between ground
terms; a proof-producing congruence closure over the log gives the chain, and every step of it is checked by a matcher that
knows nothing of the e-graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eqsat import signature
from eqsat.congruence import Closure, Rewrite, Terms, literal_text
from eqsat.errors import EqsatError
from eqsat.ir import Expr, Output, Program
from eqsat.mirror import equations_of, logging_rule, mirror_declarations
from eqsat.oracle import evaluate
from eqsat.rulefile import Rule
from eqsat.saturation import PHASES, Limits, Phase, RuleText
from eqsat.session import Session
from eqsat.sexpr import Node, read_forms
from eqsat.stepcheck import StepChecker
from eqsat.terms import from_term
from eqsat.worker import UseLog

Direction = Literal["forward", "reverse"]
_LARGEST = 20_000  # constructors in a term written out as a tree; beyond that nobody reads the chain


@dataclass(frozen=True, slots=True)
class Step:
    """One use of one rule.

    Parameters
    ----------
    rule : str
    direction : {"forward", "reverse"}
        "reverse": the rule is read from right to left.
    position : tuple of int
        Path of argument numbers from the root of the whole term to the subterm that changes.
    before, after : str
        That subterm.
    whole : str
        The whole term after the step.
    guards : bool or None
        Whether the rule's guards were recomputed on the subterm itself. False: they hold in the e-graph only, which knows
        more about it than its spelling shows. None: a guard uses a relation or function that only the engine evaluates.
    rearranges : bool
        Whether it only reorders or regroups.
    """

    rule: str
    direction: Direction
    position: tuple[int, ...]
    before: str
    after: str
    whole: str
    guards: bool | None
    rearranges: bool

    def record(self) -> dict[str, object]:
        """Return the step as plain data for a receipt."""
        return {
            "rule": self.rule, "direction": self.direction, "position": list(self.position),
            "before": self.before, "after": self.after, "guards": self.guards, "rearranges": self.rearranges,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Derivation:
    """A chain from `source` to `target`, or the reason why there is none.

    Parameters
    ----------
    source, target : str
        Whole terms.
    steps : tuple of Step
        Empty where nothing had to be rewritten, and where nothing was found.
    status : str
        "derived", or "not found: …" with the reason.
    """

    source: str
    target: str
    steps: tuple[Step, ...]
    status: str

    @property
    def found(self) -> bool:
        """Whether `steps` lead from source to target."""
        return self.status == "derived"

    def __str__(self) -> str:
        lines, hidden = [self.source if self.found else self.status], 0
        for n, step in enumerate(self.steps, 1):
            if step.rearranges:
                hidden += 1
                continue
            arrow = "" if step.direction == "forward" else " (right to left)"
            lines += [f"{n:>4}. {step.rule}{arrow}", f"        {step.before}", f"      → {step.after}"]
        if hidden:
            lines.append(f"({hidden} steps that only reorder or regroup are not shown)")
        return "\n".join(lines)


class _NotFoundError(Exception):
    """There is no chain, for this reason."""


def derive(
    program: Program,
    source: Expr,
    target: Expr,
    rules: Iterable[Rule],
    *,
    declarations: str = "",
    session: Session | None = None,
    limits: Limits | None = None,
    phases: Sequence[Phase] = PHASES,
) -> Derivation:
    """Find the chain of rules that leads from `source` to `target`.

    Parameters
    ----------
    program : Program
        Gives inputs and extents; both expressions read its inputs.
    source, target : Expr
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
    limits = limits or Limits(nodes=3 * Limits().nodes, soft_s=5.0, hard_s=10.0)
    search = _Search(program, [r for r in rules if r.phase == "analysis" or any(r.phase in p.rules for p in phases if p.grows)])
    try:
        ends = search.read_ends(source, target)
    except EqsatError as error:
        return Derivation("", "", (), f"not found: {error}")
    texts = search.terms.text(ends[0]), search.terms.text(ends[1])
    if ends[0] == ends[1]:
        return Derivation(*texts, (), "derived")
    own = session or Session()
    try:
        found = own.log_uses(
            search.load_text,
            search.logging_rules(),
            "(= $source $target)",
            declarations="\n".join([declarations, mirror_declarations()]),
            limits=limits,
            phases=[p for p in phases if p.grows],
        )
        return Derivation(*texts, search.chain(ends, found, time.monotonic() + limits.hard_s), "derived")
    except (_NotFoundError, EqsatError) as error:
        return Derivation(*texts, (), f"not found: {error}")
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

    def read_ends(self, source: Expr, target: Expr) -> tuple[int, int]:
        """Write both expressions for the engine, and read them back as terms."""
        writer = signature.TermWriter({i.name for i in self._program.inputs if i.constant})
        for expr in (source, target):
            self.extents |= {a: n for node in expr.walk() for a, n in node.type.axes}
        lines = signature.extent_facts(self.extents)
        for name, expr in (("$source", source), ("$target", target)):
            term = writer.strong(expr)
            lines += [*writer.take_lines(), f"(let {name} {term})"]
        self.load_text = "\n".join(lines) + "\n"
        names: dict[str, int] = {}
        for form in read_forms(self.load_text):
            if form.head == "let":
                names[form.args[0].text] = self.terms.read(form.args[1], names)
        ends = names["$source"], names["$target"]
        for t in ends:
            if self.terms.size(t) > _LARGEST:
                raise EqsatError(f"a term of {self.terms.size(t)} constructors is too large to be written out")
        return ends

    def logging_rules(self) -> list[RuleText]:
        """Return the rules, each logging its uses."""
        return [RuleText(r.name, r.phase, logging_rule(r)) for r in self._rules]

    def chain(self, ends: tuple[int, int], found: UseLog, deadline_s: float) -> tuple[Step, ...]:
        """Return the checked steps from one end to the other."""
        if not found.reached:
            why = {"saturated": "the rules do not lead from one to the other", "time": "the time limit of the replay came first"}
            raise _NotFoundError(why.get(found.stop, f"the limit on {found.stop} came first"))

        def late() -> None:
            if time.monotonic() > deadline_s:
                raise _NotFoundError("the time limit came while the chain was put together")

        closure = Closure(self.terms)
        for t in ends:
            closure.cover(t)
        ground: dict[int, int] = {}
        for name, left, right in found.uses:
            late()
            closure.equate(self._ground(left, found, ground), self._ground(right, found, ground), name)
            if closure.equal(*ends):
                break
        else:
            raise _NotFoundError("the log of rule uses does not connect the two terms")
        return self._checked(ends, _without_loops(self.terms, ends[0], closure.explain(*ends, late), late), late)

    def _ground(self, mirror: int, found: UseLog, ground: dict[int, int]) -> int:
        """Return the term that a mirror term spells."""
        stack = [(mirror, False)]
        while stack:
            m, ready = stack.pop()
            if m in ground:
                continue
            op, args = found.terms[m]
            sorts = signature.constructors()[op][0]
            if not ready:
                stack.append((m, True))
                stack.extend((a, False) for a, s in zip(args, sorts, strict=True) if s == "T")
                continue
            plain = (
                ground[a] if s == "T" else str(a) if s == "Index" else _text_of(a) for a, s in zip(args, sorts, strict=True)
            )
            ground[m] = self.terms.add(op, tuple(plain))
        return ground[mirror]

    def _checked(self, ends: tuple[int, int], rewrites: Sequence[Rewrite], late: Callable[[], None]) -> tuple[Step, ...]:
        """Check every rewrite, and write the steps out."""
        checker = StepChecker(self.terms, self._program, self.extents)
        whole, out = ends[0], []
        for r in rewrites:
            late()
            equation = self._equations[r.rule]
            left, right = (r.before, r.after) if r.forward else (r.after, r.before)
            if self.terms.at(whole, r.position) != r.before or not checker.holds(equation, left, right):
                raise _NotFoundError(
                    f"the use of {equation.name} on {self.terms.text(left)} did not pass the check outside the e-graph"
                )
            whole = self.terms.replace(whole, r.position, r.after)
            direction: Direction = "forward" if r.forward != equation.reverse else "reverse"
            texts = self.terms.text(r.before), self.terms.text(r.after), self.terms.text(whole)
            guards = checker.guards_hold(equation, left)
            out.append(Step(equation.name, direction, r.position, *texts, guards, equation.rearranges))
        if whole != ends[1]:
            raise _NotFoundError("the chain does not end in the target")
        return tuple(out)


def _without_loops(terms: Terms, start: int, rewrites: Sequence[Rewrite], late: Callable[[], None]) -> list[Rewrite]:
    """Drop every stretch that comes back to a whole term that was there before."""
    wholes = [start]
    for r in rewrites:
        late()
        wholes.append(terms.replace(wholes[-1], r.position, r.after))
    last = {t: i for i, t in enumerate(wholes)}
    out, i = [], last[start]
    while i < len(rewrites):
        out.append(rewrites[i])
        i = last[wholes[i + 1]]
    return out


def _text_of(value: str | float | int) -> str:
    """Canonical text of a literal that came out of the engine."""
    if isinstance(value, str):
        return literal_text(Node("string", value))
    return repr(value)


def first_departure(derivation: Derivation, program: Program, inputs: Mapping[str, Any], tolerance: float = 1e-9) -> int | None:
    """Return the number of the first step (from 1) that changes the value, or None: the derivation as a bisector.

    Parameters
    ----------
    derivation : Derivation
        One that was found.
    program : Program
        The one it was derived for.
    inputs : mapping of str to array
        Arrays for all its inputs.
    tolerance : float
        Difference allowed, relative to the largest element of the source's value.
    """

    def value(term: str) -> Any:
        expr = from_term(term, program)
        axes = tuple(sorted(first.axes))
        return evaluate(Program(program.inputs, (Output("value", expr, axes, expr.dtype),)), inputs)[0]

    first = from_term(derivation.source, program)
    expected = value(derivation.source)
    allowed = tolerance * float(np.max(np.abs(expected), initial=0.0))
    for n, step in enumerate(derivation.steps, 1):
        if not np.allclose(value(step.whole), expected, rtol=0.0, atol=allowed, equal_nan=True):
            return n
    return None
