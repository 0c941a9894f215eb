"""Fit the models on stored measurements, and say how well they order schedules of kernels that they have not seen.

The exhaustive best of a kernel is the fastest of all its schedules that were measured. A model is judged by the kernels left out of
its fit: how its order correlates with the measured one (Spearman), and how much slower than the exhaustive best its first choice is,
and the best of its first eight.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eqsat.codegen import fitted
from eqsat.codegen.fitted import Correction, features
from eqsat.codegen.kernel import Family, Rates, Schedule
from eqsat.codegen.problem import Problem
from eqsat.errors import UsageError
from eqsat.ir import Program
from eqsat.kernelgraph import KernelGraph
from eqsat.search import machine
from eqsat.search.optimize import Search
from eqsat.search.options import Options
from eqsat.search.progress import Silent
from eqsat.search.rulebase import admitted_rules, for_target
from eqsat.search.schedules import family_of
from eqsat.search.statistics import median
from eqsat.search.store import Store, default_path
from eqsat.search.workloads import SWEEPS, workloads_of

LEAST_TRIALS = 8  # of a kernel: fewer say nothing of an order
_LEAST_ROWS = 40  # of a schedule class: fewer are not fitted
_PENALTIES = (0.3, 3.0, 30.0, 300.0)
_FOLDS = 8


@dataclass(slots=True)
class Measured:
    """A kernel and the times of its schedules, in ns."""

    key: str
    problem: Problem
    times: dict[Schedule, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quality:
    """How a model does on one kernel: rank correlation, and the loss of its first choice and of the best of its first eight."""

    correlation: float
    first: float
    eight: float


def run(paths: Sequence[Path], target: str, *, write: bool = False, out: Path | None = None) -> dict[str, Any]:
    """Fit and judge the models on what stores know of the kernels of the board and the sweeps.

    Parameters
    ----------
    paths : sequence of Path
        Stores; the user's own if empty.
    target : str
    write : bool
        Keep the fits beside the code generators.
    out : Path, optional
        Folder for the record, `model-<target>.json`.

    Raises
    ------
    UsageError
        The stores know too little of these kernels.
    """
    kind = machine.resolve(target).target.kind
    rows = [w for source in ("board", *(f"sweep-{s}" for s in SWEEPS)) for w in workloads_of(source, kind)]
    stores = [Store(p) for p in paths or (default_path(),)]
    try:
        kernels = kernels_of((w.program() for w in rows), stores, target)
    finally:
        for s in stores:
            s.close()
    if len(kernels) < _FOLDS:
        raise UsageError(
            f"expected stores with {LEAST_TRIALS} trials each of at least {_FOLDS} kernels for {target}; found {len(kernels)}. "
            "Run `eqsat bench` with --store first."
        )
    record, fits = report(kernels, target)
    about = {k: record[k] for k in ("target", "penalty")} | {
        "kernels": len(kernels),
        "trials": record["families"]["all"]["trials"],
    }
    if write:
        fitted.write(target, fits, about)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"model-{target}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def kernels_of(programs: Iterable[Program], stores: Sequence[Store], target: str) -> list[Measured]:
    """Return the kernels of programs with what stores know of their schedules, each kernel once.

    Nothing is measured or compiled: the programs are saturated and lowered, and each legal schedule looked up.
    """
    place = machine.resolve(target)
    admitted, _ = admitted_rules(Options(target=target))
    ruleset = for_target(admitted, place.target)
    found: dict[str, Measured] = {}
    for program in programs:
        options = Options(target=target, measure=False)
        with contextlib.closing(
            Search(program, options, place, stores[0], Silent(), time.monotonic() + options.budget_s)
        ) as search:
            _, frozen = search.saturate(ruleset)
            candidates, _ = search.lower(KernelGraph(program, frozen), ruleset)
        for c in candidates:
            if c.key in found:
                continue
            known = {s: ns for store in stores for s, ns in store.measured(c.key).items()}
            times = {s: known[str(s)] for s in c.legal if str(s) in known} if known else {}
            if len(times) >= LEAST_TRIALS:
                found[c.key] = Measured(c.key, c.problem, times)
    return list(found.values())


def fit(kernels: Sequence[Measured], rates: Rates, penalty: float) -> dict[str, Correction]:
    """Return a correction for each schedule class that has enough trials."""
    rows: dict[str, list[tuple[np.ndarray, float]]] = defaultdict(list)
    for k in kernels:
        for s, ns in k.times.items():
            own = family_of(s).predict_ns(k.problem, s, rates)
            if 0 < own < math.inf:
                rows[type(s).__name__].append((features(k.problem, s, own), math.log(ns / own)))
    return {name: _ridge(found, penalty) for name, found in rows.items() if len(found) >= _LEAST_ROWS}


def _ridge(rows: Sequence[tuple[np.ndarray, float]], penalty: float) -> Correction:
    x, y = np.stack([f for f, _ in rows]), np.asarray([v for _, v in rows])
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 1e-9, spread, np.inf)  # what never varies has no weight
    scaled, offset = (x - mean) / spread, y.mean()
    gram = scaled.T @ scaled + penalty * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, scaled.T @ (y - offset))
    finite = np.where(np.isfinite(spread), spread, 1.0)
    return Correction(tuple(mean), tuple(finite), tuple(np.where(np.isfinite(spread), weights, 0.0)), float(offset))


def judge(kernel: Measured, predicted: Callable[[Family, Problem, Schedule], float]) -> Quality:
    """Return how an order by `predicted` does on a kernel."""
    schedules = list(kernel.times)
    real = np.asarray([kernel.times[s] for s in schedules])
    guess = np.asarray([predicted(family_of(s), kernel.problem, s) for s in schedules])
    order = np.argsort(guess, kind="stable")
    least = real.min()
    return Quality(_spearman(guess, real), real[order[0]] / least - 1, real[order[:8]].min() / least - 1)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr  # slow import, needed by this command alone

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def held_out(kernels: Sequence[Measured], rates: Rates, penalty: float) -> dict[str, Quality]:
    """Return the quality on each kernel of a fit on the kernels of the other folds."""
    found: dict[str, Quality] = {}
    order = np.random.default_rng(0).permutation(len(kernels))
    folds = [{int(i) for i in order[n::_FOLDS]} for n in range(_FOLDS)]
    for fold in folds:
        fits = fit([k for i, k in enumerate(kernels) if i not in fold], rates, penalty)
        for i in fold:
            found[kernels[i].key] = judge(kernels[i], _corrected(rates, fits))
    return found


def _corrected(rates: Rates, fits: Mapping[str, Correction]) -> Callable[[Family, Problem, Schedule], float]:
    return lambda family, problem, schedule: fitted.predicted_ns(family, problem, schedule, rates, fits)


def report(kernels: Sequence[Measured], target: str) -> tuple[dict[str, Any], dict[str, Correction]]:
    """Fit, judge by kernels left out, and return the record of both and the fits on everything.

    Returns
    -------
    record : dict
        `families`: for each, the number of kernels and trials, and for the analytic and the fitted model the medians of the rank
        correlation and of the losses, and the geometric mean of best over chosen time; `corrected`: the families whose fit is kept.
    fits : dict of str to Correction
    """
    rates = machine.resolve(target).target.rates
    penalty = min(_PENALTIES, key=lambda p: sum(math.log1p(q.first) for q in held_out(kernels, rates, p).values()))
    analytic = {k.key: judge(k, _corrected(rates, {})) for k in kernels}
    learned = held_out(kernels, rates, penalty)
    groups = {name: list(found) for name, found in itertools.groupby(sorted(kernels, key=_family), key=_family)}
    groups["all"] = list(kernels)
    families: dict[str, dict[str, Any]] = {
        name: {
            "kernels": len(found),
            "trials": sum(len(k.times) for k in found),
            "analytic": _summary([analytic[k.key] for k in found]),
            "fitted": _summary([learned[k.key] for k in found]),
        }
        for name, found in groups.items()
    }
    # where a family's kernels left out are chosen worse with the fit than without, its prediction stays as it is
    kept = {
        name for name, row in families.items() if name != "all" and row["fitted"]["share_first"] > row["analytic"]["share_first"]
    }
    fits = fit([k for k in kernels if _family(k) in kept], rates, penalty)
    return {"target": target, "penalty": penalty, "corrected": sorted(kept), "families": families}, fits


def _family(kernel: Measured) -> str:
    return kernel.problem.family


def _summary(found: Sequence[Quality]) -> dict[str, float]:
    return {
        "correlation": median([q.correlation for q in found]),
        "first": median([q.first for q in found]),
        "eight": median([q.eight for q in found]),
        "share_first": math.exp(-sum(math.log1p(q.first) for q in found) / max(len(found), 1)),
        "share_eight": math.exp(-sum(math.log1p(q.eight) for q in found) / max(len(found), 1)),
    }


def table(record: Mapping[str, Any]) -> str:
    """Return the record as text."""
    head = f"{'family':<12}{'kernels':>8}{'trials':>8}{'model':>10}{'rank corr.':>12}{'first':>8}{'eight':>8}{'share of best: first':>22}{'eight':>8}"
    lines = [head]
    for name, row in record["families"].items():
        for model in ("analytic", "fitted"):
            q = row[model]
            lines.append(
                f"{name:<12}{row['kernels']:>8}{row['trials']:>8}{model:>10}{q['correlation']:>12.2f}{100 * q['first']:>7.1f}%{100 * q['eight']:>7.1f}%"
                f"{100 * q['share_first']:>21.1f}%{100 * q['share_eight']:>7.1f}%"
            )
    return "\n".join(lines)
