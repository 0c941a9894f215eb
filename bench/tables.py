"""Fill in the README: code and its real output, and the tables, from files that running made. Nothing here is typed by hand.

`python bench/tables.py` rewrites the parts of README.md between markers; `--check` only says whether they are up to date;
`--run` runs the first example on this machine before that and keeps its output.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
FIRST, FIRST_OUTPUT = ROOT / "examples" / "first.py", RESULTS / "first.txt"
SECTION = re.compile(r"(<!-- begin (?P<name>[a-z-]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def main(arguments: list[str]) -> int:
    """Run the command; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if README.md is not up to date")
    parser.add_argument("--run", action="store_true", help="run the first example and keep its output")
    options = parser.parse_args(arguments)
    if options.run:
        FIRST_OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        FIRST_OUTPUT.write_text(run_first(), encoding="utf-8")
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = filled(before, RESULTS)
    if options.check:
        print("README.md is up to date" if after == before else "README.md is out of date: run `make tables`")
        return int(after != before)
    readme.write_text(after, encoding="utf-8")
    return 0


def run_first() -> str:
    """Return what the first example prints on this machine, in an environment that slows nothing down."""
    from eqsat.search.beside import MISLEADING
    from eqsat.search.cpu_device import fingerprint

    clean = {k: v for k, v in os.environ.items() if k not in MISLEADING} | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        clean["XDG_CACHE_HOME"] = folder
        done = subprocess.run([sys.executable, str(FIRST)], cwd=folder, env=clean, capture_output=True, text=True, check=True)
    today = datetime.datetime.now(datetime.UTC).date()
    return f"# {fingerprint()}; {today}\n{done.stdout}"


def filled(readme: str, results: Path) -> str:
    """Return the README with every marked part made anew from files.

    Raises
    ------
    KeyError
        If the README marks a part that nothing makes.
    """
    makers: dict[str, Callable[[], str]] = {
        "first-code": lambda: f"```python\n{FIRST.read_text(encoding='utf-8').strip()}\n```\n",
        "first-output": lambda: f"```text\n{(results / 'first.txt').read_text(encoding='utf-8').strip()}\n```\n",
        "search-speed": lambda: f"```text\n{(results / 'search.txt').read_text(encoding='utf-8').strip()}\n```\n",
        "discovery": lambda: discovery(json.loads((results / "discovery.json").read_text(encoding="utf-8"))),
        "tables": lambda: "\n".join(map(board, boards(results))),
        "sweeps": lambda: "\n".join(map(sweep, sweeps(results))),
    }
    return SECTION.sub(lambda m: m[1] + makers[m["name"]]() + m[3], readme)


def boards(results: Path) -> list[dict[str, Any]]:
    """Return the boards' records, in order of their files' names."""
    return [r for r in _records(results) if r.get("source", "board") == "board"]


def sweeps(results: Path) -> list[dict[str, Any]]:
    """Return the sweeps' records, in order of their files' names."""
    return [r for r in _records(results) if r.get("source", "board").startswith("sweep-")]


def _records(results: Path) -> list[dict[str, Any]]:
    records = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(results.glob("*.json"))]
    return [r for r in records if "device" in r]


def discovery(record: dict[str, Any]) -> str:
    """Return the discovery suite as a Markdown table: what was written, what the search chose, how it got there."""
    rows = record["rows"].values()
    found = sum(r["ok"] for r in rows)
    lines = [
        f"{found} of {len(rows)} found, {record['created'][:10]}; `eqsat bench discovery` makes this table. Plans are chosen by model "
        "for the target named, with the classes of rules and the rule files beside it admitted as well; steps of a derivation that only "
        "reorder or regroup are not counted.",
        "",
        "| program | what was discovered | target | derivation | e-nodes | search |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_discovery_row, rows), ""])


def _discovery_row(r: dict[str, Any]) -> str:
    lacks = "" if r["ok"] else f"**not found**: {'; '.join(r['missing']) or r['derivation']}. Chosen: "
    steps = "–" if r["telling"] is None else f"{r['telling']} steps"
    cells = [
        f"{r['row'].replace('_', ' ')}: {r['program']}",
        f"{lacks}{r['found'] or 'nothing'}",
        ", ".join([r["target"], *r["admitted"]]),
        steps,
        r["nodes"],
    ]
    shown = [str(c).replace("|", "\\|") for c in cells]
    return f"| {' | '.join(shown)} | {r['seconds']:.2f} s |"


def board(record: dict[str, Any]) -> str:
    """Return one device's results as a Markdown table, with what they were measured on and when."""
    versions = ", ".join(f"{k} {v}" for k, v in record["environment"].items() if isinstance(v, str))
    lines = [
        f"**{record['device']}**, {record['created'][:10]} ({versions})  ",
        _ceilings([row["rates"] for row in record["rows"].values() if "rates" in row] or [record["rates"]]),
        "",
        "| workload | eqsat, µs [95 %] | baselines, µs | × best baseline | goal | × back to back | × after writes | GB/s | GFLOP/s | of ceiling | search |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(name, row) for name, row in record["rows"].items()]
    ratios = [r for row in record["rows"].values() if (r := ratio(row)) and row["bound"] != "algebra"]
    if ratios:
        reached = [row for row in record["rows"].values() if row.get("goal") and (r := ratio(row)) and r >= row["goal"]]
        lines += [
            "",
            f"Geometric mean of the ratios, rows won by algebra left out: {_mean(ratios):.2f} ({len(ratios)} rows); "
            f"{sum(r >= 0.98 for r in ratios)} of them at 0.98 or more; {len(reached)} rows at their goal. {_against_itself(record)}",
        ]
    return "\n".join([*lines, ""])


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _against_itself(record: dict[str, Any]) -> str:
    """Return how far apart the two series of the same kernel are that every row runs: what a difference must exceed to mean anything."""
    pairs = {n: r["times"] for n, r in record["rows"].items() if {"eqsat", "again"} <= set(r.get("times", {}))}
    apart = {n: abs(t["again"]["median_ns"] / t["eqsat"]["median_ns"] - 1) for n, t in pairs.items()}
    if not apart:
        return ""
    middle, worst = sorted(apart.values())[len(apart) // 2], max(apart, key=apart.__getitem__)
    return (
        f"The same kernel against itself differs by {100 * middle:.1f} % (median), at most {100 * apart[worst]:.1f} % ({worst})."
    )


def sweep(record: dict[str, Any]) -> str:
    """Return a sweep as a summary, with its rows folded away."""
    rows = {n: r for n, r in record["rows"].items() if ratio(r)}
    ratios = sorted((ratio(r) or 0.0, n) for n, r in rows.items())
    name = record["source"].removeprefix("sweep-")
    lines = [f"**{name}** on {record['device']}, {record['created'][:10]}: {len(record['rows'])} rows, {len(rows)} timed."]
    if ratios:
        share = [r["ceiling"] for r in rows.values() if r.get("ceiling")]
        of_ceiling = (
            f" Of the ceiling: median {100 * sorted(share)[len(share) // 2]:.0f} %, least {100 * min(share):.0f} %."
            if share
            else ""
        )
        lines[0] += (
            f" Ratio to the best baseline: geometric mean {_mean([r for r, _ in ratios]):.2f}, "
            f"least {ratios[0][0]:.2f} ({ratios[0][1]}), most {ratios[-1][0]:.2f} ({ratios[-1][1]}).{of_ceiling}"
        )
    lines += [
        "",
        "<details><summary>rows</summary>",
        "",
        "| workload | eqsat, µs [95 %] | baselines, µs | × best baseline | of ceiling |",
        "|---|---|---|---|---|",
    ]
    for n, r in record["rows"].items():
        if "eqsat" not in r.get("times", {}):
            lines.append(f"| {n} | {r.get('error', 'not timed')} | | | |")
            continue
        lines.append(f"| {' | '.join([n, *_shown(r)[:2], _number(ratio(r)), _percent(r.get('ceiling'))])} |")
    return "\n".join([*lines, "", "</details>", ""])


def _ceilings(measured: list[dict[str, Any]]) -> str:
    """Return the ceilings; a range where rows come from runs that measured their own."""

    def spread(values: list[float], form: str) -> str:
        ends = dict.fromkeys((format(min(values), form), format(max(values), form)))
        return "–".join(ends)

    flops = [f"{name} {spread([r['flops'][name] / 1e3 for r in measured], '.3g')} TFLOP/s" for name in measured[0]["flops"]]
    memory = [f"{name} {spread([r[name] for r in measured], '.0f')} GB/s" for name in ("read", "copy")]
    return f"Ceilings, measured in the run of each row: {', '.join([*memory, *flops])}"


def _baselines(row: dict[str, Any], kind: str) -> dict[str, float]:
    return {name: t["median_ns"] for name, t in row.get(kind, {}).items() if name not in ("eqsat", "again")}


def ratio(row: dict[str, Any], kind: str = "times") -> float | None:
    """Return the best baseline's time over ours: "times" cold; on a GPU "stream" back to back, "dirty" after large writes."""
    others = _baselines(row, kind)
    return min(others.values()) / row[kind]["eqsat"]["median_ns"] if others and "eqsat" in row[kind] else None


def _row(name: str, row: dict[str, Any]) -> str:
    if "eqsat" not in row.get("times", {}):
        return f"| {name} | {row.get('error', 'not timed')} | | | | | | | | | |"
    own = row["times"]["eqsat"]
    cold, *others = (ratio(row, kind) for kind in ("times", "stream", "dirty"))
    cells = [
        name,
        *_shown(row),
        _number(cold),
        _number(row.get("goal")),
        *map(_number, others),
        f"{row['program_bytes'] / own['median_ns']:.0f}",
        f"{row['plan_flops'] / own['median_ns']:.0f}",
        _percent(row.get("ceiling")),
        row["verdict"] if row["verdict"] != "open" else f"open, {100 * row['gap']:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


def _shown(row: dict[str, Any]) -> tuple[str, str]:
    """Return our time with its interval, and the baselines', fastest first."""
    own = row["times"]["eqsat"]
    others = ", ".join(f"{k} {_us(v)}" for k, v in sorted(_baselines(row, "times").items(), key=lambda pair: pair[1])) or "–"
    return f"{_us(own['median_ns'])} [{_us(own['low_ns'])}, {_us(own['high_ns'])}]", others


def _number(value: float | None) -> str:
    return f"{value:.2f}" if value else "–"


def _percent(value: float | None) -> str:
    return f"{100 * value:.0f} %" if value else "–"


def _us(ns: float) -> str:
    return f"{ns / 1e3:,.0f}" if ns >= 1e6 else f"{ns / 1e3:.4g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
