"""Tell a receipt's story: the program, each rewrite with its law, the kernels, what was measured and what was not proved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eqsat.search.receipt import Receipt

_BOOKKEEPING = ("comm", "assoc")


def explain(record: Mapping[str, Any], *, everything: bool = False) -> str:
    """Return the story as text; `everything` shows commutations and regroupings too."""
    laws = {r["name"]: r for r in record["rules"]}
    lines = ["The program", f"  {record['derivation'].get('before', '')}".rstrip()]
    lines += [f"  {x}" for x in record["program"]["text"].strip().splitlines()]
    lines += ["", f"The rewrites ({record['derivation']['status']})"]
    hidden = 0
    for n, step in enumerate(record["derivation"].get("steps", ()), 1):
        name = step["rule"]
        if not everything and any(word in name for word in _BOOKKEEPING):
            hidden += 1
            continue
        rule = laws.get(name.removesuffix("-reverse"), {})
        arrow = " (right to left)" if step.get("direction") == "reverse" else ""
        lines.append(f"  {n}. {name}{arrow}: {rule.get('law', '')}  [{rule.get('numerics', '?')}; {_evidence(rule)}]")
        lines.append(f"       {step['before']}")
        lines.append(f"    →  {step['after']}")
    if hidden:
        lines.append(f"  ({hidden} commutations and regroupings not shown)")
    lines += ["", "The plan"]
    return "\n".join(lines + [f"  {x}" for x in str(Receipt(record)).splitlines()])


def _evidence(rule: Mapping[str, Any]) -> str:
    evidence = rule.get("evidence", {})
    return f"{evidence.get('method', 'no evidence recorded')}"
