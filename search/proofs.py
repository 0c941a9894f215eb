"""Whether a plan computes its program: asked of every plan that is about to be compiled as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eqsat.codegen.plan import Plan
from eqsat.departure import first_departure
from eqsat.derivation import Derivation, derive_all
from eqsat.errors import NoKernelError
from eqsat.gate.evidence import Evidence
from eqsat.ir import Program
from eqsat.proof.agreement import Agreement, agree
from eqsat.rulefile import RuleSet
from eqsat.search.compose import compose
from eqsat.search.rulebase import declarations
from eqsat.session import Session

MOST_REFUSED = 16
"""Plans refused before a search gives up: so many wrong ones mean a false rule, which the notes then name."""

_STRENGTH = ("structural", "proved", "field", "fuzz")  # of a rule's evidence, from strong to weak


class RuleAtFaultError(Exception):
    """A plan is not its program, because of this rule: the search starts again without it."""

    def __init__(self, rule: str, note: str) -> None:
        super().__init__(note)
        self.rule = rule


@dataclass(slots=True)
class Proofs:
    """What is known of the plans of one program; each is looked at once."""

    program: Program
    ruleset: RuleSet
    session: Session | None = None
    known: dict[str, Agreement] = field(default_factory=dict)

    def of(self, plan: Plan) -> Agreement:
        """Return how far the plan, composed into one expression for each output, is known to equal the program."""
        if plan.digest not in self.known:
            relative = sum(r.bound for r in self.ruleset.rules)
            self.known[plan.digest] = agree([o.expr for o in self.program.outputs], compose(plan), relative=relative)
        return self.known[plan.digest]

    def refuse(self, plan: Plan) -> str:
        """Return a note on a plan that is not its program, which is refused.

        Raises
        ------
        RuleAtFaultError
            If the first rule that changed a value is known.
        NoKernelError
            If too many plans were refused already.
        """
        note = f"plan {plan.digest[:12]} was refused before it was compiled: {self.of(plan)}"
        found = self.derived(plan)
        at = self._departure(found)
        if at is not None:
            rule = found.steps[at - 1].rule
            raise RuleAtFaultError(rule, f"{note}; step {at} is the first that changes a value: rule {rule} is left out")
        note += f"; the rule at fault is unknown ({found.status})"
        refused = sum(not f.holds for f in self.known.values())
        if refused >= MOST_REFUSED:
            raise NoKernelError(f"{refused} plans were refused because they are not the program; the last one: {note}")
        return note

    def derived(self, plan: Plan) -> Derivation:
        """Return the derivation of the plan from the program."""
        sources = [o.expr for o in self.program.outputs]
        facts = declarations(self.ruleset)
        targets = compose(plan, called=True)
        return derive_all(self.program, sources, targets, self.ruleset.rules, declarations=facts, session=self.session)

    def _departure(self, found: Derivation) -> int | None:
        """Return the first step of a derivation that changes a value by more than its rule may."""
        bounds = {r.name: r.bound for r in self.ruleset.rules if r.bound}
        return first_departure(found, self.program, bounds) if found.found else None

    def checked(self, plan: Plan) -> dict[str, Any]:
        """Return the record of the plan's derivation, both sides of every step evaluated too: one that differs is no proof."""
        found = self.derived(plan)
        record = found.record()
        at = self._departure(found)
        if at is not None:
            record["status"] = f"refused: step {at}, rule {found.steps[at - 1].rule}, changes a value"
        return record


def proof_record(found: Agreement, derivation: Mapping[str, Any], evidence: Mapping[str, Evidence]) -> dict[str, Any]:
    """Return what the receipt says of the proof: by derivation if there is one, else by what `found` says.

    `weakest` is the weakest evidence among the rules that the derivation uses.
    """
    used = {s["rule"] for s in derivation["steps"] if s["rule"]}
    methods = {evidence[r].method for r in used if r in evidence}
    derived = derivation["status"] == "derived" and used <= evidence.keys()
    weakest = max(methods, key=lambda m: _STRENGTH.index(m) if m in _STRENGTH else len(_STRENGTH), default=None)
    value = {
        "method": found.method, "log2_bound": found.log2_bound, "trials": found.trials, "compared": found.compared,
        "note": str(found),
    }  # fmt: skip
    return {"method": "derived" if derived else found.method, "weakest": weakest if derived else None, "value": value}
