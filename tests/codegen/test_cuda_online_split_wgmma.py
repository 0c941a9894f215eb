"""Dependent folds whose keys warpgroups and blocks share: emulated kernels, machine code without spills, legality."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda import nvrtc
from eqsat.codegen.cuda.nvrtc import compile_many
from eqsat.codegen.cuda.online_split_wgmma import OnlineSplitWgmmaFamily, OnlineSplitWgmmaTile
from eqsat.codegen.kernel import KernelBinary
from eqsat.codegen.online import OnlineProblem, online_problem
from eqsat.codegen.targets import TARGETS, parse_target
from eqsat.errors import EnvironmentMissingError
from eqsat.ir import Program, apply
from eqsat.search.verify import check_outputs, prepare
from tests.codegen import emulate
from tests.codegen.emulate_mma import run_maps
from tests.codegen.emulate_online_split import emulated_online_split_wgmma
from tests.codegen.online_problems import BF16, F16, FOLDS, across, attend, attention, scores, several
from tests.codegen.problems import array

FAMILY = OnlineSplitWgmmaFamily()
TILES = (
    OnlineSplitWgmmaTile(16, 1, 2, 1, 0, 1), OnlineSplitWgmmaTile(32, 2, 1, 1, 0, 1), OnlineSplitWgmmaTile(16, 1, 2, 2, 0, 1),
    OnlineSplitWgmmaTile(64, 1, 2, 2, 0, 2), OnlineSplitWgmmaTile(64, 2, 2, 1, 0, 1), OnlineSplitWgmmaTile(16, 3, 1, 1, 0, 1),
    OnlineSplitWgmmaTile(64, 2, 1, 2, 0, 1),
)  # fmt: skip


def fold(program: Program) -> OnlineProblem:
    found = online_problem(program)
    assert isinstance(found, OnlineProblem), found
    return found


def serving(program: Program) -> list[OnlineSplitWgmmaTile]:
    return [s for s in TILES if FAMILY.legal(fold(program), s) is None]


SHORT = [n for n, p in FOLDS.items() if serving(p)]


def wrong(cases: Sequence[tuple[str, Program, OnlineSplitWgmmaTile]], folder: Path, suites: int) -> list[str]:
    """Emulate kernels; return what the verifier says of those that are wrong."""
    sources = [FAMILY.emit(fold(p), s) for _, p, s in cases]
    entries = emulate.compile_kernels([emulated_online_split_wgmma(s) for s in sources], folder)
    out = []
    for (name, program, s), source, entry in zip(cases, sources, entries, strict=True):
        made = emulated_online_split_wgmma(source)
        prepared = prepare(program, 1)[:suites]
        assert prepared, f"{name}: nothing can be compared"
        for p in prepared:
            got = run_maps(entry, made, program, {k: np.asarray(v) for k, v in p.inputs.items()})
            check = check_outputs(got, p.expected, p.suite)
            if not check.passed:
                out.append(f"{name} with {s}: suite {check.name}: {check.note}")
    return out


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")


@needs_compiler
def test_folds_are_right_however_the_keys_are_shared(tmp_path: Path) -> None:
    names = ("short-several", "short-window", "short-parts", "short-lengths", "short-bias", "short-finite-mask")
    rng = random.Random(5)
    cases = [(n, FOLDS[n], rng.choice(serving(FOLDS[n]))) for n in names]
    even = across(F16, 70, 320, 64, 64, 1)
    cases += [("across", even, s) for s in TILES if FAMILY.legal(fold(even), s) is None]
    cases += [("across, ragged", across(BF16, 40, 152, 24, 40, 1), TILES[3])]
    assert wrong(cases, tmp_path, suites=1) == []


@needs_compiler
@pytest.mark.slow
def test_every_fold_is_right_with_every_way_to_share_its_keys(tmp_path: Path) -> None:
    cases = [(n, FOLDS[n], s) for n in SHORT for s in serving(FOLDS[n])]
    assert wrong(cases, tmp_path, suites=2) == []


def test_what_it_cannot_take_is_refused_with_the_reason() -> None:
    q, k, v = array("q", BF16, m=64, d=64), array("K", BF16, k=640, d=64), array("V", BF16, k=640, n=64)
    tile = OnlineSplitWgmmaTile(64, 1, 2, 2, 0, 1)
    for o, words in (
        (attend(scores(q, array("K", F16, k=640, d=64)), v), "rows, keys, weights and values are"),
        (attend(scores(apply("neg", q), k), v), "computed, not a plain read"),
        (attend(scores(q, k), array("V", BF16, n=64, k=640)), "not contiguous"),
        (attend(scores(q, k), array("V", BF16, k=640, n=256)), "up to 128"),
    ):
        assert words in str(FAMILY.legal(fold(several(o=(o, "mn", BF16))), tile)), words
    plain = fold(several(o=(attend(scores(q, k), v), "mn", BF16)))
    assert FAMILY.legal(plain, tile) is None
    assert "panels of 64" in str(FAMILY.legal(fold(across(F16, 64, 640, 64, 64, 1)), OnlineSplitWgmmaTile(80, 1, 2, 2, 0, 1)))
    for schedule, words in (
        (OnlineSplitWgmmaTile(40, 1, 2, 1, 0, 1), "steps of 16"),
        (OnlineSplitWgmmaTile(64, 1, 2, 17, 0, 1), "1 to 16 parts"),
        (OnlineSplitWgmmaTile(64, 1, 2, 1, 1, 1), "2 to 64 through memory"),
        (OnlineSplitWgmmaTile(240, 1, 2, 1, 0, 1), "do not fit"),
        (OnlineSplitWgmmaTile(128, 2, 1, 8, 0, 1), "8 parts of 2 warpgroups"),
        (OnlineSplitWgmmaTile(64, 1, 12, 2, 0, 1), "bytes of tiles"),
    ):
        assert words in str(FAMILY.legal(plain, schedule)), schedule


def test_bounds_are_below_predictions() -> None:
    rates = TARGETS["sm_90"].rates
    for name in SHORT:
        for s in serving(FOLDS[name]):
            assert rates.launch_ns <= FAMILY.bound_ns(fold(FOLDS[name]), rates) <= FAMILY.predict_ns(fold(FOLDS[name]), s, rates)


def _usable() -> bool:
    try:
        nvrtc.version()
    except EnvironmentMissingError:
        return False
    return True


@pytest.mark.skipif(not _usable(), reason="NVRTC is not installed")
def test_the_compiler_takes_it_without_spills() -> None:
    wide, many = fold(attention(BF16, 64, 8192, 128, 128, h=8)), fold(across(F16, 256, 4096, 64, 64, 32))
    cases = [
        (many, OnlineSplitWgmmaTile(128, 2, 2, 1, 0, 1)), (many, OnlineSplitWgmmaTile(128, 1, 2, 2, 0, 2)), (many, OnlineSplitWgmmaTile(64, 3, 2, 1, 0, 1)),
        (many, OnlineSplitWgmmaTile(128, 1, 1, 16, 1, 1)), (wide, OnlineSplitWgmmaTile(64, 2, 1, 8, 0, 1)),
    ]  # fmt: skip
    for index, made in compile_many([FAMILY.emit(p, s) for p, s in cases], parse_target("sm_90")):
        assert isinstance(made, KernelBinary), (cases[index][1], made)
        assert made.resources.spill_bytes == made.resources.stack_bytes == 0
        assert not made.resources.warnings
