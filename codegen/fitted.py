"""What measurements teach the models: a correction of each schedule class's prediction, fitted on stored trials.

A family's `predict_ns` is analytic: bytes, operations, waves, latencies. What it leaves out (caches, issue slots, the cost of a barrier)
is smooth in the knobs of a schedule and the size of a problem, so the logarithm of measured over predicted time is fitted as a
polynomial of second degree in their logarithms, by ridge regression (Hoerl and Kennard 1970). The weights are data beside this module,
one file a target, written by `eqsat bench model`; without a file, or for a class that it lacks, a prediction stands as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eqsat.codegen.kernel import Family, Rates, Schedule
from eqsat.codegen.problem import Problem

FOLDER = Path(__file__).resolve().parent / "fits"
_MOST = 3.0  # a correction is at most so large a factor (as a logarithm): beyond what was measured a polynomial means nothing


@dataclass(frozen=True, slots=True)
class Correction:
    """The fit of one schedule class: features are shifted by `mean`, divided by `spread`, weighed and added to `offset`."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    offset: float

    def __call__(self, found: np.ndarray) -> float:
        """Return the logarithm of measured over predicted time that is to be expected."""
        scaled = (found - np.asarray(self.mean)) / np.asarray(self.spread)
        return float(np.clip(self.offset + scaled @ np.asarray(self.weights), -_MOST, _MOST))


def features(problem: Problem, schedule: Schedule, predicted_ns: float) -> np.ndarray:
    """Return the logarithms of a schedule's knobs and a problem's size, and their products.

    Returns
    -------
    numpy.ndarray
        float64; its length depends on the schedule's class alone.
    """
    knobs = [math.log2(1 + max(int(getattr(schedule, f.name)), 0)) for f in dataclasses.fields(schedule)]
    program = problem.program
    sizes = [math.log2(1 + predicted_ns), math.log2(1 + program.bytes), math.log2(1 + program.flops)]
    first = np.asarray([*sizes, *knobs])
    products = np.outer(first, first)[np.triu_indices(len(first))]
    return np.concatenate([first, products])


def predicted_ns(
    family: Family, problem: Problem, schedule: Schedule, rates: Rates, corrections: Mapping[str, Correction]
) -> float:
    """Return the family's prediction times what the fit of the schedule's class says."""
    own = family.predict_ns(problem, schedule, rates)
    fit = corrections.get(type(schedule).__name__)
    return own if fit is None or not 0 < own < math.inf else own * math.exp(fit(features(problem, schedule, own)))


@functools.cache
def corrections(target: str) -> Mapping[str, Correction]:
    """Return the fits that ship for a target, by the name of the schedule class; none if there is no file."""
    path = FOLDER / f"{target}.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["classes"]
    return {
        n: Correction(tuple(f["mean"]), tuple(f["spread"]), tuple(f["weights"]), float(f["offset"])) for n, f in found.items()
    }


def write(target: str, fits: Mapping[str, Correction], about: Mapping[str, Any]) -> Path:
    """Write the fits of a target beside this module, with what they were fitted on; return the file."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{target}.json"
    classes = {n: {k: _rounded(v) for k, v in dataclasses.asdict(f).items()} for n, f in sorted(fits.items())}
    path.write_text(json.dumps({**about, "classes": classes}, indent=1) + "\n", encoding="utf-8")
    corrections.cache_clear()
    return path


def _rounded(value: Any) -> Any:
    return [float(f"{x:.5g}") for x in value] if isinstance(value, list | tuple) else float(f"{value:.5g}")
