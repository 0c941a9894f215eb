"""Which rules can fire at all in a program's e-graph: the others are not even loaded, which takes most of a short saturation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from eqsat.rulefile import Rule
from eqsat.saturation import PHASES, EgglogRule, Phase

_CALL = re.compile(r"\(([A-Za-z][A-Za-z0-9-]*)")
_RELATION = re.compile(r"\(relation ([a-z0-9-]+)")
_ALWAYS = frozenset({"constant"})  # relations that the analysis of every program may fill

AnyRule = TypeVar("AnyRule", bound=EgglogRule)


def relevant(rules: Sequence[AnyRule], *texts: str, phases: Sequence[Phase] = PHASES) -> tuple[list[AnyRule], frozenset[str]]:
    """Return the rules that can fire, in order, and every constructor and relation that the e-graph can come to hold.

    Parameters
    ----------
    rules : sequence of EgglogRule
        One that is no `Rule` says nothing about itself and is kept.
    *texts : str
        egglog text with the facts and terms to start from.
    phases : sequence of Phase
        The course: what a late phase makes, rules of earlier ones never meet.

    Notes
    -----
    A rule fires only if every constructor and relation that it matches is there, from the start or made by another rule that
    fires in time. What this leaves out would never match; which of the rest do is for the e-graph to find.
    """
    runs = {name: [i for i, p in enumerate(phases) if name in p.rules] for p in phases for name in p.rules}
    runs["analysis"] = list(range(len(phases)))
    since = dict.fromkeys(_ALWAYS.union(*(_CALL.findall(t) for t in texts)), 0)  # phase from which on a name is there
    ways = [(i, runs.get(r.phase, [0]), needs, makes) for i, r in enumerate(rules) for needs, makes in _ways(r)]
    kept: set[int] = set()
    while True:
        before = dict(since)
        for i, at, needs, makes in ways:
            if not needs <= since.keys():
                continue
            first = max((since[n] for n in needs), default=0)
            fires = next((t for t in at if t >= first), None)
            if fires is not None:
                kept.add(i)
                since |= {name: min(fires, since.get(name, fires)) for name in makes}
        if since == before:
            return [rules[i] for i in sorted(kept)], frozenset(since)


def needed_text(declarations: str, rules: Sequence[EgglogRule]) -> str:
    """Return the declarations without the relations, and facts of them, that none of these rules speaks of.

    Parameters
    ----------
    declarations : str
        One command a line.
    rules : sequence of EgglogRule
        Where one is no `Rule`, everything is kept.
    """
    if not all(isinstance(r, Rule) for r in rules):
        return declarations
    spoken = frozenset[str]().union(*(needs | makes for r in rules for needs, makes in _ways(r)))
    lines = declarations.splitlines()
    unspoken = {m[1] for line in lines if (m := _RELATION.match(line)) and m[1] not in spoken}
    facts = tuple(f"({name} " for name in unspoken)
    return "\n".join(x for x in lines if not x.startswith(facts) and not ((m := _RELATION.match(x)) and m[1] in unspoken))


def _ways(rule: EgglogRule) -> Sequence[tuple[frozenset[str], frozenset[str]]]:
    if isinstance(rule, Rule):
        return rule.ways
    return [(frozenset(), frozenset(_CALL.findall(rule.egglog(""))))]
