"""Tell a receipt's story: the program, each rewrite with its law, the kernels, what was measured and what was not proved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eqsat import text
from eqsat.errors import EqsatError
from eqsat.formula import show
from eqsat.ir import Program
from eqsat.search.receipt import Receipt
from eqsat.terms import from_term

_METHODS = {
    "field": "tested in prime fields and floats",
    "fuzz": "tested in floats",
    "structural": "claims nothing about values",
    "proved": "proved",
}


def explain(record: Mapping[str, Any], *, everything: bool = False) -> str:
    """Return the story as text; `everything` shows the steps that only reorder or regroup too."""
    program = text.loads(record["program"]["text"], file="receipt.json")
    inputs = ", ".join(f"{i.name} {i.dtype}{list(i.shape)}" for i in program.inputs)
    lines = [f"Program, of {inputs}"]
    lines += [f"  {o.name} = {show(o.expr)}" for o in program.outputs]
    lines += ["", f"Rewrites ({record['derivation']['status']})"]
    lines += _rewrites(record, program, everything)
    return "\n".join([*lines, "", "Plan", *(f"  {x}" for x in str(Receipt(record)).splitlines())])


def _rewrites(record: Mapping[str, Any], program: Program, everything: bool) -> list[str]:
    laws = {r["name"]: r for r in record["rules"]}
    lines, hidden = [], 0
    for n, step in enumerate(record["derivation"]["steps"], 1):
        if step["rearranges"] and not everything:
            hidden += 1
            continue
        rule = laws.get(step["rule"].removesuffix("-reverse"))
        arrow = ", right to left" if step["direction"] == "reverse" else ""
        lines.append(f"  {n}. {step['rule']}{arrow}" + (f": {rule['law']}" if rule else ""))
        if rule:
            lines.append(f"       {_evidence(rule)}")
        lines += [f"       {_formula(step['before'], program)}", f"     → {_formula(step['after'], program)}"]
    if hidden:
        lines.append(f"  {hidden} steps that only reorder or regroup are not shown")
    lines += [f"  {e['output']} = {e['to']}" for e in record["derivation"].get("ends", ())]
    return lines


def _formula(term: str, program: Program) -> str:
    """Return a term as mathematics; a term over axes that the program has not is shown as it is."""
    try:
        return show(from_term(term, program))
    except EqsatError:
        return term


def _evidence(rule: Mapping[str, Any]) -> str:
    evidence = rule["evidence"]
    parts = [rule["numerics"], _METHODS.get(evidence["method"], evidence["method"])]
    if evidence.get("trials"):
        parts.append(f"{evidence['trials']} situations, {evidence['compared']} elements compared")
    if evidence.get("log2_bound") is not None:
        parts.append(f"chance that a false law passes ≤ 2^{evidence['log2_bound']:.0f}")
    return "; ".join(parts)
