"""Which rules can fire at all in a program's e-graph: the others are not even loaded, which takes most of a short saturation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from eqsat.rulefile import Rule
from eqsat.saturation import EgglogRule

_CALL = re.compile(r"\(([A-Za-z][A-Za-z0-9-]*)")
_RELATION = re.compile(r"\(relation ([a-z0-9-]+)")
_ALWAYS = frozenset({"constant"})  # relations that the analysis of every program may fill

AnyRule = TypeVar("AnyRule", bound=EgglogRule)


def relevant(rules: Sequence[AnyRule], *texts: str) -> tuple[list[AnyRule], frozenset[str]]:
    """Return the rules that can fire, in order, and every constructor and relation that the e-graph can come to hold.

    Parameters
    ----------
    rules : sequence of EgglogRule
        One that is no `Rule` says nothing about itself and is kept.
    *texts : str
        egglog text with the facts and terms to start from.

    Notes
    -----
    A rule fires only if every constructor and relation that it matches is there, from the start or made by another rule that
    fires. What this leaves out would never match; which of the rest do is for the e-graph to find.
    """
    held = set(_ALWAYS).union(*(_CALL.findall(t) for t in texts))
    waiting = [(i, needs, makes) for i, rule in enumerate(rules) for needs, makes in _ways(rule)]
    kept: set[int] = set()
    while True:
        fires = [(i, makes) for i, needs, makes in waiting if needs <= held]
        if not fires:
            return [rules[i] for i in sorted(kept)], frozenset(held)
        waiting = [way for way in waiting if not way[1] <= held]
        kept.update(i for i, _ in fires)
        held = held.union(*(makes for _, makes in fires))


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
