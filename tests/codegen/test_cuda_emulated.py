"""Emitted point, reduce and plain contract kernels, run on the CPU by the emulator, against the oracle and its error bound."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda.point import PointFamily, PointSweepTile, PointTile, TransposeTile
from eqsat.codegen.cuda.reduce import ReduceFamily
from eqsat.codegen.cuda.reduce_schedule import (
    ColumnTile,
    FallbackReduceTile,
    GridReduceTile,
    HeldColumnTile,
    HeldGridTile,
    ParkedRowTile,
    RowTile,
)
from eqsat.codegen.cuda.simt import SimtFamily, SimtTile
from eqsat.codegen.kernel import Family, KernelSource, Schedule
from eqsat.codegen.problem import Problem, contract_problem, point_problem, reduce_problem
from eqsat.ir import Program
from eqsat.search.verify import check_outputs, prepare
from tests.codegen import emulate
from tests.codegen.problems import PROBLEMS

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")


SCHEDULES: dict[str, tuple[Schedule, ...]] = {
    "point": (
        PointTile(128, 1, 1, 0), PointTile(32, 2, 4, 0), PointTile(64, 1, 8, 0), PointTile(32, 3, 16, 0), PointTile(32, 1, 32, 1),
        PointSweepTile(32, 2, 16, 0), PointSweepTile(32, 4, 1, 0), PointSweepTile(64, 3, 8, 1), TransposeTile(32, 128, 1, 0), TransposeTile(32, 128, 8, 0), TransposeTile(64, 256, 16, 1),
    ),
    "reduce": (
        FallbackReduceTile(4), RowTile(1, 4, 16, 1, 0, 0), RowTile(2, 1, 8, 1, 0, 0), RowTile(4, 2, 16, 1, 0, 1), RowTile(8, 1, 1, 1, 0, 0),
        RowTile(16, 1, 4, 1, 0, 0), RowTile(4, 1, 16, 1, 2, 0), RowTile(2, 2, 1, 1, 1, 0), ColumnTile(32, 1, 1, 1, 1),
        ColumnTile(32, 4, 1, 16, 2), ColumnTile(64, 2, 3, 8, 4), ColumnTile(32, 3, 1, 1, 8), GridReduceTile(64, 2, 1, 1, 0),
        GridReduceTile(128, 7, 8, 4, 0), GridReduceTile(64, 3, 16, 2, 0), HeldColumnTile(8, 8, 1, 16, 0), HeldColumnTile(32, 3, 1, 1, 0),
        HeldColumnTile(4, 16, 1, 8, 1), HeldColumnTile(64, 1, 1, 4, 0), HeldGridTile(128, 1, 2, 16, 1, 0), HeldGridTile(128, 1, 1, 8, 1, 0),
        HeldGridTile(128, 1, 3, 16, 1, 1), ParkedRowTile(4, 1, 16, 24, 1, 0), ParkedRowTile(4, 1, 16, 26, 1, 1), ParkedRowTile(8, 1, 16, 10, 2, 0),
        ParkedRowTile(8, 1, 16, 20, 2, 0), ParkedRowTile(4, 1, 8, 24, 1, 0),  HeldGridTile(256, 1, 2, 16, 1, 1),
    ),
    "contract": (
        SimtTile(64, 64, 8, 4, 4), SimtTile(32, 32, 8, 2, 2), SimtTile(16, 64, 16, 1, 4), SimtTile(128, 64, 16, 8, 4), SimtTile(16, 16, 16, 1, 1),
    ),
}  # fmt: skip
FAMILIES: dict[str, Family] = {"point": PointFamily(), "reduce": ReduceFamily(), "contract": SimtFamily()}


def problem_of(program: Program) -> Problem:
    """Return the program's anatomy: a contraction if it is one, else a reduction, else pointwise."""
    for find in (contract_problem, reduce_problem, point_problem):
        found = find(program)
        if not isinstance(found, str):
            return found
    raise AssertionError("no family serves the program")


def wrong(cases: Sequence[tuple[str, Schedule, KernelSource]], folder: Path) -> list[str]:
    """Compile and run kernels; return what the verifier says of those that are wrong."""
    out = []
    for (name, schedule, source), entry in zip(cases, emulate.compile_kernels([c[2] for c in cases], folder), strict=True):
        prepared = prepare(PROBLEMS[name], 1, quick=True)
        assert prepared, f"{name}: nothing can be compared"
        for p in prepared:
            got = emulate.run_kernel(entry, source, PROBLEMS[name], {k: np.asarray(v) for k, v in p.inputs.items()})
            check = check_outputs([got], p.expected, p.suite)
            if not check.passed:
                out.append(f"{name} with {schedule}: suite {check.name}: {check.note}")
    return out


def cases(names: Sequence[str], *, every: bool) -> list[tuple[str, Schedule, KernelSource]]:
    """Return kernels for the named problems: all legal schedules of the lists above, or one of them, another for each problem."""
    out = []
    for n, name in enumerate(names):
        problem = problem_of(PROBLEMS[name])
        family = FAMILIES[problem.family]
        legal = [s for s in SCHEDULES[problem.family] if family.legal(problem, s) is None]
        assert legal, f"{name}: no schedule is legal"
        out += [(name, s, family.emit(problem, s)) for s in (legal if every else [legal[n % len(legal)]])]
    return out


GROUPS = ("point", "reduce", "contract")


@pytest.mark.parametrize("group", GROUPS)
def test_every_problem_is_right_under_one_of_its_schedules(group, tmp_path):
    names = [n for n in PROBLEMS if n.startswith(group)]
    assert wrong(cases(names, every=False), tmp_path) == []


def test_the_op_functions_agree_with_the_oracle(tmp_path):
    names = [n for n in PROBLEMS if n.startswith("function") and n.endswith(("f32", "f64"))]
    assert wrong(cases(names, every=False), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("group", [*GROUPS, "function"])
def test_every_problem_is_right_under_all_schedules(group, tmp_path):
    names = [n for n in PROBLEMS if n.startswith(group)]
    for i in range(0, len(names), 8):
        assert wrong(cases(names[i : i + 8], every=True), tmp_path) == []


def test_a_kernel_that_leaves_out_the_last_vector_is_found_wrong(tmp_path):
    name = "reduce-sum-rows"
    problem = problem_of(PROBLEMS[name])
    source = FAMILIES["reduce"].emit(problem, FallbackReduceTile(4))
    broken = type(source)(
        **{f: getattr(source, f) for f in source.__slots__} | {"text": source.text.replace("end = 512", "end = 511")}
    )
    assert broken.text != source.text
    assert wrong([(name, FallbackReduceTile(4), broken)], tmp_path)
