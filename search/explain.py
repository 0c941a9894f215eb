"""Tell a receipt's story: the program, each rewrite with its law, the kernels, what was measured and what was not proved."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from eqsat import text
from eqsat.formula import show
from eqsat.ir import Program
from eqsat.search.prooftext import Prose, ShownPart, ShownStep, wrapped
from eqsat.search.receipt import Receipt

WIDTH = 120


def explain(record: Mapping[str, Any], *, everything: bool = False, width: int = WIDTH) -> str:
    """Return the story as text.

    Parameters
    ----------
    record : mapping
        A receipt's record.
    everything : bool
        Show the steps that only reorder or regroup too.
    width : int
        Characters of a line.
    """
    program = text.loads(record["program"]["text"], file="receipt.json")
    lines = [*_about(program, width), *_proofs(record, program, everything, width)]
    return "\n".join([*lines, "", "Plan", *(f"  {x}" for x in str(Receipt(record)).splitlines())])


def proof_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the proof as plain data: parts with numbered steps, each with law, evidence, and both sides as mathematics."""
    program = text.loads(record["program"]["text"], file="receipt.json")
    return {
        "program": {o.name: show(o.expr) for o in program.outputs},
        "status": record["derivation"]["status"],
        "proof": record.get("proof"),
        "parts": [dataclasses.asdict(p) for p in Prose(record, program).parts()],
        "regions": [_region_proof(r) for r in _regions(record)],
    }


def _region_proof(region: Mapping[str, Any]) -> dict[str, Any]:
    return {"count": region["count"], "kernels": list(region["kernels"])} | proof_of(region)


def _regions(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the different regions of a program that was split, each as a record of its own."""
    parts = (record.get("regions") or {}).get("parts", ())
    return [{**p, "program": {"text": p["program"]}, "rules": record["rules"]} for p in parts]


def _about(program: Program, width: int) -> list[str]:
    inputs = ", ".join(f"{i.name} {i.dtype}{list(i.shape)}" for i in program.inputs)
    lines = wrapped(inputs, width, "Program, of ", "  ")
    for o in program.outputs:
        lines += wrapped(show(o.expr), width, f"  {o.name} = ", "      ")
    return lines


def _proofs(record: Mapping[str, Any], program: Program, everything: bool, width: int) -> list[str]:
    """Return the proof, or those of the regions."""
    regions = _regions(record)
    if not regions:
        return _proof(record, program, everything, width)
    lines = []
    for n, region in enumerate(regions, 1):
        inner = text.loads(region["program"]["text"], file="receipt.json")
        times = f", which occurs {region['count']} times" if region["count"] > 1 else ""
        lines += ["", f"Region {n}{times}", *_about(inner, width), *_proof(region, inner, everything, width)]
    return lines


def _proof(record: Mapping[str, Any], program: Program, everything: bool, width: int) -> list[str]:
    derivation = record["derivation"]
    parts = list(Prose(record, program).parts()) if derivation["steps"] else []
    steps = [s for p in parts for s in p.steps]
    named = [where for p in parts for where in (p.where, *(s.where for s in p.steps))]
    letters = Letters({letter: meaning for where in named for letter, meaning in where})
    lines = ["", *wrapped(_headline(record, steps), width, "", "  ")]
    if value := (record.get("proof") or {}).get("value"):
        lines += wrapped(value["note"], width, "  Values: ", "    ")
    hidden = 0
    for part in parts:
        shown = [s for s in part.steps if everything or not s.rearranges]
        hidden += len(part.steps) - len(shown)
        lines += _part(part, shown, width, letters, titled=len(parts) > 1)
    if hidden:
        lines += [
            "",
            *wrapped(f"{_count(hidden, 'step')} not shown, which only reorder or regroup (--all shows them)", width, "  ", "  "),
        ]
    for end in derivation.get("ends", ()):
        if end["to"]:
            lines += wrapped(end["to"], width, f"  so {end['output']} = ", "      ")
    return lines


def _headline(record: Mapping[str, Any], steps: Sequence[ShownStep]) -> str:
    """Return what is proved, in one line."""
    status = record["derivation"]["status"]
    if status != "derived":
        return f"Proof that the plan is the program: no derivation ({status})"
    rules = len({s.rule for s in steps if s.law})
    weakest = (record.get("proof") or {}).get("weakest")
    resting = f", weakest evidence of a rule: {weakest}" if weakest else ""
    length = f"{_count(len(steps), 'step')} by {_count(rules, 'rule')}" if steps else "no step is needed"
    return f"Proof that the plan is the program: {length}{resting}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


@dataclasses.dataclass(slots=True)
class Letters:
    """What letters stand for; each is explained where it is first shown."""

    meanings: Mapping[str, str]
    told: set[str] = dataclasses.field(default_factory=set)

    def first(self, *texts: str) -> list[tuple[str, str]]:
        """Return the letters that these texts show for the first time, those in their meanings too."""
        out: list[tuple[str, str]] = []
        pending = [name for t in texts for name in re.findall(r"\b[A-Z]\d*\b", t)]
        while pending:
            name = pending.pop(0)
            if name in self.meanings and name not in self.told:
                self.told.add(name)
                out.append((name, self.meanings[name]))
                pending += re.findall(r"\b[A-Z]\d*\b", self.meanings[name])
        return out


def _part(part: ShownPart, steps: Sequence[ShownStep], width: int, letters: Letters, *, titled: bool) -> list[str]:
    lines: list[str] = []
    if titled and part.name:
        lines += ["", *wrapped(f"{part.before} = {part.after}", width, f"  {part.name}: ", "      ")]
        lines += _where(letters.first(part.before, part.after), width)
    for s in steps:
        arrow = ", right to left" if s.reverse else ""
        lines += wrapped(f"{s.rule}{arrow}" + (f": {s.law}" if s.law else ""), width, f"  {s.number}. ", "       ")
        if s.evidence:
            lines += wrapped(s.evidence, width, "       (", "        ")
            lines[-1] += ")"
        if s.before == s.after:
            lines += wrapped(s.before, width, "       in another spelling: ", "           ")
        else:
            lines += wrapped(s.before, width, "         ", "           ")
            lines += wrapped(s.after, width, "       = ", "           ")
        within = s.within if len(s.within) <= 2 * width else ""
        if within:
            lines += wrapped(within, width, "       in ", "          ")
        lines += _where(letters.first(s.before, s.after, within), width)
    return lines


def _where(defined: Sequence[tuple[str, str]], width: int) -> list[str]:
    return [line for name, meaning in defined for line in wrapped(meaning, width, f"       where {name} = ", "             ")]
