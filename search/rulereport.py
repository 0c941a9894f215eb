"""What each rule is worth: how often it fires over many programs and what it costs; and what a plan is with and without it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eqsat.gate.equation import Equation, equations
from eqsat.gate.instance import program as instance
from eqsat.gate.instance import situation
from eqsat.ir import Program
from eqsat.rulefile import Rule, RuleSet
from eqsat.saturation import Limits
from eqsat.search.optimize import optimize
from eqsat.search.result import Optimized
from eqsat.search.rulebase import declarations
from eqsat.search.store import Store
from eqsat.session import Session

_FEW = Limits(nodes=4000, soft_s=0.5)


@dataclass(frozen=True, slots=True)
class Firing:
    """One rule over a set of programs: in how many it matched, how often in all, and its time."""

    rule: str
    phase: str
    programs: int
    matches: int
    time_ms: float


def firings(programs: Mapping[str, Program], ruleset: RuleSet, tell: Callable[[str], None] = lambda _: None) -> list[Firing]:
    """Saturate every program under the rules and count.

    Parameters
    ----------
    programs : mapping of str to Program
    ruleset : RuleSet
    tell : callable
        Called with the name of each program before it is saturated.

    Returns
    -------
    list of Firing
        Dearest first; rules of phase `schedule`, which see no programs, are left out. Those with 0 matches never fired.
    """
    matches: dict[str, list[int]] = {}
    times_ms: dict[str, float] = {}
    with Session() as session:
        for name, program in programs.items():
            tell(name)
            report, _ = session.saturate(program, ruleset.rules, declarations=declarations(ruleset))
            for count in report.rules:
                matches.setdefault(count.name, []).append(count.matches)
                times_ms[count.name] = times_ms.get(count.name, 0.0) + count.time_ms
    rows = []
    for r in ruleset:
        if r.phase not in ("schedule", "analysis"):
            counts = matches.get(r.name, [])
            rows.append(Firing(r.name, r.phase, sum(m > 0 for m in counts), sum(counts), times_ms.get(r.name, 0.0)))
    return sorted(rows, key=lambda f: (-f.time_ms, f.rule))


def redundant_rules(ruleset: RuleSet, tell: Callable[[str], None] = lambda _: None) -> list[str]:
    """Return the rules whose law the others reach on their own: both sides meet in one class without the rule.

    Parameters
    ----------
    ruleset : RuleSet
    tell : callable
        Called with the name of each rule before it is tried.

    Notes
    -----
    Each rule is tried on one instance, alone, with all others kept: of two rules that follow from each other both are listed,
    and one of them has to stay. A redundant rule may still save rounds.
    """
    found = []
    with Session() as session:
        for rule in ruleset:
            claims = equations(rule)
            if not claims or rule.phase == "analysis":
                continue
            tell(rule.name)
            others = [r for r in ruleset.rules if r.name != rule.name]
            if all(_meet(session, claim, others, declarations(ruleset)) for claim in claims):
                found.append(rule.name)
    return found


def _meet(session: Session, claim: Equation, rules: Sequence[Rule], text: str) -> bool:
    """Return whether the rules unite both sides of an instance of the claim."""
    drawn = situation(claim)
    left, right = (instance(claim, side, drawn) for side in (claim.left, claim.right))
    if left.outputs[0].expr == right.outputs[0].expr:
        return False
    both = (left.outputs[0], replace(right.outputs[0], name="right"))
    _, frozen = session.saturate(Program(left.inputs, both), rules, declarations=text, limits=_FEW)
    return len(set(frozen.roots)) == 1


@dataclass(frozen=True, slots=True)
class Value:
    """The outcome of a search under one set of rules.

    `without` is the rule left out, "" for none, and None where no rule of the file takes part. `time_ns` was measured
    if `measured`, else it is what the model expects.
    """

    without: str | None
    time_ns: float
    measured: bool
    kernels: tuple[str, ...]
    nodes: int
    saturation_ms: float

    def __str__(self) -> str:
        who = {None: "without the file", "": "with all its rules"}.get(self.without, f"without {self.without}")
        how = "" if self.measured else " by model"
        graph = f"{len(self.kernels)} kernels, {self.nodes} e-nodes in {self.saturation_ms:.0f} ms"
        head = f"{who:<40}{self.time_ns / 1e3:>10.2f} µs{how}; {graph}"
        return "\n".join([head, *(f"    {k}" for k in self.kernels)])


def values(program: Program, files: Sequence[Path], names: Iterable[str], **options: Any) -> list[Value]:
    """Search with all rules of `files`, without each rule in `names`, and without the files.

    Parameters
    ----------
    program : Program
    files : sequence of Path
        Rule files under test.
    names : iterable of str
        Rules to leave out one at a time; built-in ones may be among them.
    **options
        Passed on to `optimize`: target, budget, measure, numerics.

    Returns
    -------
    list of Value
        Kernels that occur in several of the searches are measured once.
    """
    with contextlib.closing(Store(":memory:")) as store:

        def run(rules: Sequence[Path], without: tuple[str, ...]) -> Optimized:
            return optimize(program, rules=rules, without=without, store=store, **options)

        found = [_value("", run(files, ()))]
        found += [_value(n, run(files, (n,))) for n in names]
        if files:
            found.append(_value(None, run((), ())))
    return found


def _value(without: str | None, result: Optimized) -> Value:
    record = result.receipt.record
    measured = result.receipt.median_ns
    shown = (line for k in record["plan"]["kernels"] for line in zip(k["writes"], k["shown"], strict=True))
    return Value(
        without,
        float(record["search"]["bound_ns"]) if measured is None else measured,
        measured is not None,
        tuple(f"{name} = {text}" for name, text in shown),
        int(record["saturation"]["nodes"]),
        float(record["saturation"]["time_ms"]),
    )


def known_programs() -> dict[str, Program]:
    """Return the programs of the boards and of the discovery suite, by name."""
    from eqsat.search.discovery_rows import ROWS
    from eqsat.search.workloads import board

    programs = {w.name: w.program() for device in ("cuda", "cpu") for w in board(device)}
    return programs | {f"discovery {r.name}": r.program() for r in ROWS}
