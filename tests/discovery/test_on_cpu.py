"""The suite's programs at small, odd extents, compiled for this CPU by model, run, and held against float64.

`EQSAT_DISCOVERY=all` runs every row; without it, a few.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from eqsat.ir import Input
from eqsat.oracle import evaluate
from eqsat.search.discovery_rows import ROWS, Row
from eqsat.search.optimize import optimize

FEW = ("attention_decode", "chain_3", "matrices_times_vector")
CHOSEN = [r for r in ROWS if os.environ.get("EQSAT_DISCOVERY") == "all" or r.name in FEW]
ALLOWED = {"bf16": 2e-2, "f16": 2e-3, "f32": 2e-5}  # relative to the largest element; by the least precise type of the program


def drawn(i: Input, rng: np.random.Generator) -> Any:
    """Return random data; slopes, gains and biases (what has one dimension) are small, as they are in models."""
    if not i.dtype.is_float:
        return rng.integers(0, 5, i.shape).astype(i.dtype.numpy)
    return ((0.25 + rng.standard_normal(i.shape)) / (16 if len(i.shape) == 1 else 1)).astype(i.dtype.numpy)


@pytest.mark.parametrize("row", CHOSEN, ids=lambda r: r.name)
def test_the_plan_compiled_for_this_cpu_computes_the_program(row: Row) -> None:
    program = row.small()
    rng = np.random.default_rng(0)
    data = {i.name: drawn(i, rng) for i in program.inputs}
    best = optimize(program, target="cpu", measure=False, store=":memory:", rules=row.rules, numerics=row.numerics)
    found = best(*data.values())
    allowed = max(ALLOWED.get(i.dtype.value, 0.0) for i in program.inputs)
    for have, want in zip(found if isinstance(found, tuple) else (found,), evaluate(program, data), strict=True):
        difference = np.max(np.abs(np.asarray(have, np.float64) - want))
        assert difference <= allowed * np.max(np.abs(want))
