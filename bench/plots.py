"""Draw the README's plots from the results: speed-ups over the best baseline, and where each row stands under the roofline.

`python bench/plots.py` writes `bench/results/plots/*.svg` for every device whose board is there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from tables import RESULTS, boards, ratio

PLOTS = RESULTS / "plots"
COLOURS = {"memory": "#2a78b5", "arithmetic": "#d1622b", "algebra": "#7a9a3c"}
STYLE = {"svg.hashsalt": "eqsat", "svg.fonttype": "none", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}


def main() -> int:
    """Draw both plots of every device."""
    mpl.use("svg")
    PLOTS.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for record in boards(RESULTS):
            name = record["device"].split("(")[0].strip().lower().replace(" ", "-")
            _save(speedups(record), PLOTS / f"{name}-speedups.svg")
            _save(roofline(record), PLOTS / f"{name}-roofline.svg")
    return 0


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    plt.close(figure)


def speedups(record: dict[str, Any]) -> Any:
    """Return bars of the ratio to the best baseline, slowest first, with the 95 % interval and the row's goal."""
    rows = sorted(((n, r) for n, r in record["rows"].items() if ratio(r)), key=lambda pair: ratio(pair[1]) or 0.0)
    figure, axes = plt.subplots(figsize=(7.5, 0.17 * len(rows) + 1.0))
    for at, (_, row) in enumerate(rows):
        own, value = row["times"]["eqsat"], ratio(row) or 0.0
        ends = [value * (1 - own["median_ns"] / own["high_ns"]), value * (own["median_ns"] / own["low_ns"] - 1)]
        axes.barh(
            at,
            value - 1,
            left=1,
            color=COLOURS[row["bound"]],
            height=0.7,
            xerr=[[ends[0]], [ends[1]]],
            error_kw={"linewidth": 0.7},
        )
        if row.get("goal"):
            axes.plot([row["goal"]] * 2, [at - 0.42, at + 0.42], color="black", linewidth=1.2)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xscale("log")
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xlabel(f"times as fast as the best baseline in the same run, {record['device']} (black: the goal)")
    _legend(axes)
    return figure


def roofline(record: dict[str, Any]) -> Any:
    """Return every row's rate of arithmetic over its intensity, under the memory's and the units' measured ceilings."""
    rates = record["rates"]
    figure, axes = plt.subplots(figsize=(7.5, 4.0))
    for row in record["rows"].values():
        if "eqsat" not in row.get("times", {}) or not row["plan_flops"]:
            continue
        rate = row["plan_flops"] / row["times"]["eqsat"]["median_ns"] / 1e3
        axes.scatter(row["plan_flops"] / row["program_bytes"], rate, color=COLOURS[row["bound"]], s=14)
    low, high = axes.get_xlim()
    intensities = [max(low, 0.05), high]
    for name, flops in _ceilings(rates["flops"]).items():
        axes.plot([flops / rates["read"], high], [flops / 1e3] * 2, color="grey", linewidth=0.8)
        axes.annotate(name, (high, flops / 1e3), fontsize=7, va="bottom", ha="right")
    axes.plot(intensities, [x * rates["read"] / 1e3 for x in intensities], color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(top=2 * max(rates["flops"].values()) / 1e3)
    axes.set_xlabel("operations of the plan for each byte that the program must move")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(f"{record['device']}: ceilings as measured, read {rates['read']:.0f} GB/s", fontsize=8)
    _legend(axes)
    return figure


def _ceilings(flops: dict[str, float]) -> dict[str, float]:
    """Return the rates of arithmetic by name; types whose rates are a few per cent apart share a line."""
    found: dict[str, float] = {}
    for name, rate in sorted(flops.items(), key=lambda pair: pair[1]):
        last = next(reversed(found), "")
        joined = bool(last) and rate < 1.1 * found[last]
        found[f"{last}, {name}" if joined else name] = found.pop(last) if joined else rate
    return found


def _legend(axes: Any) -> None:
    handles = [plt.Line2D([], [], marker="s", linestyle="", color=c, label=f"limited by {n}") for n, c in COLOURS.items()]
    handles[-1].set_label("won by algebra")
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="lower right")


if __name__ == "__main__":
    sys.exit(main())
