"""`eqsat rules new`, `report` and `value`: write a rule file, and see what rules cost and what they are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from eqsat.errors import UsageError
from eqsat.rulescaffold import SCAFFOLDS, scaffold

Emit = Callable[[Any, Callable[[], str], bool], None]
ReadProgram = Callable[[str], Any]


def add_commands(group: click.Group, emit: Emit, read_program: ReadProgram) -> None:
    """Add the commands to the group `rules`.

    Parameters
    ----------
    group : click.Group
    emit : callable
        `emit(record, text, as_json)` prints a result.
    read_program : callable
        Returns what FILE[:NAME] names.
    """
    as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")

    @group.command("new")
    @click.argument("file", type=click.Path(path_type=Path))
    @click.option("--kind", type=click.Choice(list(SCAFFOLDS)), default="equation", show_default=True)
    def new(file: Path, kind: str) -> int:
        """Write FILE with an example to fill in: it fails its check until the premise it names is added."""
        path = scaffold(file, kind)
        click.echo(f"wrote {path}; next: eqsat rules check {path}")
        return 0

    @group.command("report")
    @click.argument("programs", nargs=-1, metavar="[FILE[:NAME]]...")
    @click.option("--rules", multiple=True, type=click.Path(path_type=Path), help="A rule file to add; may be repeated.")
    @click.option("--redundant", is_flag=True, help="Also find rules whose law the others reach on their own (a minute).")
    @as_json
    def report(programs: tuple[str, ...], rules: tuple[Path, ...], redundant: bool, as_json: bool) -> int:
        """Say how often each rule fires over PROGRAMS (default: the board and the discovery suite), and its time."""
        record = _report(programs, rules, redundant, read_program)
        emit(record, lambda: _report_text(record), as_json)
        return 0

    @group.command("value")
    @click.argument("file", type=click.Path(path_type=Path))
    @click.argument("program", metavar="PROGRAM[:NAME]")
    @click.option("--rule", "names", multiple=True, help="A rule to leave out (default: each one of FILE).")
    @click.option("--target", default="native", show_default=True)
    @click.option("--budget", default="60s", show_default=True, help="Time for each search.")
    @click.option("--no-measure", is_flag=True, help="Choose by model; measure nothing.")
    @click.option("--numerics", default="exact,reassociates", show_default=True)
    @as_json
    def value(
        file: Path, program: str, names: tuple[str, ...], target: str, budget: str, no_measure: bool, numerics: str, as_json: bool
    ) -> int:
        """Search PROGRAM with all rules of FILE, without each of them, and without FILE: what plan, what time."""
        from eqsat.rulefile import load_rules  # reads every rule file
        from eqsat.search.options import parse_budget
        from eqsat.search.rulereport import values

        if not file.is_file():
            raise UsageError(f"expected a rule file; {file} does not exist or is a folder")
        left_out = names or tuple(r.name for r in load_rules([file]))
        found = values(
            read_program(program), [file], left_out, target=target, budget=parse_budget(budget), measure=not no_measure,
            numerics=numerics.split(","),
        )  # fmt: skip
        emit([dataclasses.asdict(v) for v in found], lambda: "\n".join(map(str, found)), as_json)
        return 0


def _report(names: tuple[str, ...], rules: tuple[Path, ...], redundant: bool, read_program: ReadProgram) -> dict[str, Any]:
    from eqsat.rulefile import builtin_rules, load_rules  # reads every rule file
    from eqsat.search.rulereport import firings, known_programs, redundant_rules
    from eqsat.trace import as_program

    ruleset = builtin_rules() + load_rules(rules) if rules else builtin_rules()
    programs = {n: as_program(read_program(n)) for n in names} if names else known_programs()
    found = firings(programs, ruleset, lambda name: click.echo(f"saturating {name}", err=True))
    record: dict[str, Any] = {"programs": list(programs), "rules": [dataclasses.asdict(f) for f in found]}
    if redundant:
        record["redundant"] = redundant_rules(ruleset, lambda name: click.echo(f"without {name}", err=True))
    return record


def _report_text(record: Mapping[str, Any]) -> str:
    lines = [f"{'rule':<40}{'phase':<12}{'programs':>9}{'matches':>9}{'ms':>9}"]
    fired = [r for r in record["rules"] if r["matches"]]
    lines += [f"{r['rule']:<40}{r['phase']:<12}{r['programs']:>9}{r['matches']:>9}{r['time_ms']:>9.2f}" for r in fired]
    never = [r["rule"] for r in record["rules"] if not r["matches"]]
    lines.append(f"never fired ({len(never)} of {len(record['rules'])}): {', '.join(never) or 'none'}")
    if "redundant" in record:
        lines.append(f"reached by the others ({len(record['redundant'])}): {', '.join(record['redundant']) or 'none'}")
    return "\n".join(lines)
