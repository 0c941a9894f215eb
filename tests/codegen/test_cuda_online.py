"""Dependent folds for CUDA: emitted kernels run by the emulator, machine code without spills, legality, bounds, schedule spaces."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda import nvrtc
from eqsat.codegen.cuda.nvrtc import compile_many
from eqsat.codegen.cuda.online_simt import OnlineSimtFamily, OnlineSimtTile
from eqsat.codegen.kernel import KernelBinary, KernelSource
from eqsat.codegen.online import OnlineProblem, online_problem
from eqsat.codegen.problem import point_problem
from eqsat.codegen.targets import TARGETS, parse_target
from eqsat.errors import EnvironmentMissingError, IllegalScheduleError
from eqsat.ir import Program
from eqsat.search.verify import check_outputs, prepare
from tests.codegen import emulate
from tests.codegen.online_problems import BF16, F32, FOLDS, attention, causal
from tests.codegen.problems import PROBLEMS

SIMT = OnlineSimtFamily()
MENU = (
    OnlineSimtTile(4, 32, 32, 128), OnlineSimtTile(4, 32, 0, 128), OnlineSimtTile(32, 64, 64, 128), OnlineSimtTile(32, 64, 0, 128),
    OnlineSimtTile(1, 128, 32, 32), OnlineSimtTile(4, 64, 64, 64), OnlineSimtTile(2, 256, 0, 64),
)  # fmt: skip


def fold(program: Program) -> OnlineProblem:
    found = online_problem(program)
    assert isinstance(found, OnlineProblem), found
    return found


def serving(name: str) -> list[OnlineSimtTile]:
    return [s for s in MENU if SIMT.legal(fold(FOLDS[name]), s) is None]


def wrong(cases: Sequence[tuple[str, KernelSource]], folder: Path, suites: int) -> list[str]:
    """Compile and run kernels; return what the verifier says of those that are wrong."""
    out = []
    for (name, source), entry in zip(cases, emulate.compile_kernels([s for _, s in cases], folder), strict=True):
        prepared = prepare(FOLDS[name], 1)[:suites]
        assert prepared, f"{name}: nothing can be compared"
        for p in prepared:
            got = emulate.run_outputs(entry, source, FOLDS[name], {k: np.asarray(v) for k, v in p.inputs.items()}, times=1)
            check = check_outputs(got, p.expected, p.suite)
            if not check.passed:
                out.append(f"{name}: suite {check.name}: {check.note}\n{source.text[:300]}")
    return out


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")


@needs_compiler
def test_every_fold_is_right_with_one_of_its_schedules(tmp_path: Path) -> None:
    rng = random.Random(1)
    cases = [(n, SIMT.emit(fold(FOLDS[n]), rng.choice(serving(n)))) for n in FOLDS]
    assert wrong(cases, tmp_path, suites=2) == []


@needs_compiler
@pytest.mark.slow
def test_every_fold_is_right_with_all_schedules(tmp_path: Path) -> None:
    for n in FOLDS:
        assert wrong([(n, SIMT.emit(fold(FOLDS[n]), s)) for s in serving(n)], tmp_path, suites=5) == []


def test_schedules_that_cannot_serve_say_why() -> None:
    plain, rows = fold(FOLDS["plain"]), fold(FOLDS["log-sum-exp"])
    for problem, schedule, words in (
        (plain, OnlineSimtTile(6, 32, 32, 128), "the same number of rows"),
        (plain, OnlineSimtTile(4, 32, 0, 128), "value positions"),
        (rows, OnlineSimtTile(4, 32, 32, 128), "value positions"),
        (plain, OnlineSimtTile(64, 128, 128, 128), "of tiles"),
        (rows, OnlineSimtTile(64, 512, 0, 32), "values of f32"),
    ):
        assert words in str(SIMT.legal(problem, schedule)), schedule
    point = point_problem(PROBLEMS["point-prime"])
    assert not isinstance(point, str)
    assert "dependent fold" in str(SIMT.legal(point, MENU[0]))
    with pytest.raises(IllegalScheduleError, match="the same number of rows"):
        SIMT.emit(plain, OnlineSimtTile(6, 32, 32, 128))


def test_bounds_are_below_predictions() -> None:
    rates = TARGETS["sm_90"].rates
    for name in FOLDS:
        for s in serving(name):
            assert rates.launch_ns <= SIMT.bound_ns(fold(FOLDS[name]), rates) <= SIMT.predict_ns(fold(FOLDS[name]), s, rates)


def _usable() -> bool:
    try:
        nvrtc.version()
    except EnvironmentMissingError:
        return False
    return True


@pytest.mark.skipif(not _usable(), reason="NVRTC is not installed")
def test_the_compiler_takes_it_without_spills() -> None:
    big = fold(attention(F32, 512, 512, 64, 64, h=4, mask=causal))
    narrow = fold(attention(BF16, 512, 512, 128, 128))
    sources = [
        SIMT.emit(big, OnlineSimtTile(32, 64, 64, 128)),
        SIMT.emit(narrow, OnlineSimtTile(32, 64, 128, 128)),
        SIMT.emit(fold(FOLDS["log-sum-exp-bf16"]), OnlineSimtTile(4, 128, 0, 128)),
    ]
    for _, made in compile_many(sources, parse_target("sm_90")):
        assert isinstance(made, KernelBinary), made
        assert made.resources.spill_bytes == made.resources.stack_bytes == 0
