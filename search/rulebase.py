"""The rules a search may use: built-in families and the caller's files, admitted by the gate, filtered by numeric class."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

import eqsat
from eqsat.codegen.targets import Target
from eqsat.errors import UsageError
from eqsat.gate.evidence import Evidence
from eqsat.rulecheck import check_rules
from eqsat.rulefile import RuleSet, builtin_rules, load_rules
from eqsat.search.options import Options
from eqsat.search.store import default_path
from eqsat.sexpr import Node, listed


def admitted_rules(options: Options) -> tuple[RuleSet, dict[str, Evidence]]:
    """Return the rules of the numeric classes asked for, without those left out, each with its evidence.

    Raises
    ------
    FalseRuleError
        If a law is refuted; RuleError if a file is malformed; UsageError if a rule to leave out does not exist.
    """
    found = builtin_rules(unstable="unstable" in options.numerics)
    if options.rules:
        found = found + load_rules(options.rules)
    names = {r.name for r in found}
    if unknown := [n for n in options.without if n not in names]:
        near = [m for n in unknown for m in difflib.get_close_matches(n, names, 3, 0.5)]
        hint = f"; did you mean {', '.join(near)}?" if near else "; `eqsat rules list` shows all names"
        raise UsageError(f"expected rules to leave out that exist; got {', '.join(unknown)}{hint}")
    kept = found.admit(options.numerics, options.without)
    evidence = check_rules(kept.rules, cache_dir=default_path().parent / "evidence")
    return kept, {e.rule: e for e in evidence}


def package_rules() -> tuple[Path, ...]:
    """Return the rule files of installed packages: all `.egg` files in the folder that an entry point `eqsat.rules` names.

    Nothing of the packages is imported: rules are data.
    """
    found: list[Path] = []
    for point in sorted(importlib.metadata.entry_points(group="eqsat.rules"), key=lambda p: (p.name, p.value)):
        top, *rest = point.value.split(".")
        spec = importlib.util.find_spec(top)
        folders = [Path(f).joinpath(*rest) for f in (spec.submodule_search_locations or ())] if spec else []
        files = [file for folder in folders for file in sorted(folder.glob("*.egg"))]
        if not files:
            owner = point.dist.name if point.dist else point.name
            raise UsageError(f"expected .egg files in {point.value}, which {owner} names as its rules; found none. Uninstall it.")
        found += files
    return tuple(found)


_PART = {"cuda": 256, "cpu": 4096}
"""Elements that one worker reduces by itself where there are two stages."""
_PARTS = 32  # fewer parts than this are reduced by one worker in about the time that a second launch takes


def for_target(ruleset: RuleSet, target: Target) -> RuleSet:
    """Return the rules with the facts about a target that they ask for: its processors, how few rows leave it idle, what axes are split."""
    few = 2 * target.processors if target.kind == "cuda" else target.processors
    part = _PART[target.kind]
    facts = {"few-rows": few, "split-length": part, "split-from": _PARTS * part, "processor-count": target.processors}
    return ruleset + RuleSet((), (), tuple(listed(name, Node("int", str(n))) for name, n in facts.items()))


def declarations(ruleset: RuleSet) -> str:
    """Return the egglog text of what the rules rest on."""
    return "\n".join(map(str, (*ruleset.declarations, *ruleset.facts)))


@functools.cache
def code_digest() -> str:
    """Return a SHA-256 of everything that turns a program into a kernel: rules, code generators, templates, the language."""
    root = Path(eqsat.__file__).resolve().parent
    digest = hashlib.sha256()
    for folder in (root, root.parent / "rules", root.parent / "codegen", root / "rules", root / "codegen"):
        for path in sorted(folder.glob("**/*")):
            if path.suffix in (".py", ".cu", ".cuh", ".h", ".egg") and path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
