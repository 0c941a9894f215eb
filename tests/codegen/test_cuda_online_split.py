"""Dependent folds whose keys many warps share: emitted kernels run by the emulator, machine code without spills, legality, points."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda import nvrtc
from eqsat.codegen.cuda.nvrtc import compile_many
from eqsat.codegen.cuda.online_split import OnlineSplitFamily, OnlineSplitTile
from eqsat.codegen.kernel import KernelBinary
from eqsat.codegen.online import OnlineProblem, online_problem
from eqsat.codegen.targets import TARGETS, parse_target
from eqsat.errors import EnvironmentMissingError
from eqsat.ir import Program, apply
from eqsat.search.verify import check_outputs, prepare
from eqsat.types import DType
from tests.codegen import emulate
from tests.codegen.emulate_online_split import emulated_online_split
from tests.codegen.online_problems import BF16, F16, FOLDS, across, attend, attention, grouped, scores, several
from tests.codegen.problems import array

FAMILY = OnlineSplitFamily()
TILES = (
    OnlineSplitTile(8, 16, 2, 1, 0, 1), OnlineSplitTile(8, 32, 1, 2, 0, 1), OnlineSplitTile(16, 16, 2, 2, 1, 1),
    OnlineSplitTile(16, 32, 1, 3, 0, 1), OnlineSplitTile(32, 16, 3, 1, 0, 1), OnlineSplitTile(8, 16, 2, 2, 1, 1),
    OnlineSplitTile(8, 64, 1, 1, 0, 1),
)  # fmt: skip


def fold(program: Program) -> OnlineProblem:
    found = online_problem(program)
    assert isinstance(found, OnlineProblem), found
    return found


def serving(program: Program) -> list[OnlineSplitTile]:
    return [s for s in TILES if FAMILY.legal(fold(program), s) is None]


SHORT = [n for n, p in FOLDS.items() if serving(p)]


def wrong(cases: Sequence[tuple[str, Program, OnlineSplitTile]], folder: Path, suites: int) -> list[str]:
    """Emulate kernels; return what the verifier says of those that are wrong."""
    sources = [emulated_online_split(FAMILY.emit(fold(p), s)) for _, p, s in cases]
    out = []
    for (name, program, s), source, entry in zip(cases, sources, emulate.compile_kernels(sources, folder), strict=True):
        prepared = prepare(program, 1)[:suites]
        assert prepared, f"{name}: nothing can be compared"
        for p in prepared:
            got = emulate.run_outputs(entry, source, program, {k: np.asarray(v) for k, v in p.inputs.items()}, times=2)
            check = check_outputs(got, p.expected, p.suite)
            if not check.passed:
                out.append(f"{name} with {s}: suite {check.name}: {check.note}")
    return out


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")


def test_it_serves_all_folds_of_short_operands() -> None:
    assert {n for n in FOLDS if n.startswith("short")} | {"bf16", "f16-narrow", "grouped-bf16"} <= set(SHORT)


@needs_compiler
def test_folds_are_right_however_the_keys_are_shared(tmp_path: Path) -> None:
    names = ("short-several", "short-window", "short-parts", "short-ragged", "short-lengths", "short-bias", "f16-narrow")
    rng = random.Random(4)
    cases = [(n, FOLDS[n], rng.choice(serving(FOLDS[n]))) for n in names]
    cases += [("one row", attention(BF16, 1, 200, 64, 64, h=2), s) for s in TILES[:2]]
    assert wrong(cases, tmp_path, suites=1) == []


@needs_compiler
@pytest.mark.slow
def test_every_fold_is_right_with_every_way_to_share_its_keys(tmp_path: Path) -> None:
    cases = [(n, FOLDS[n], s) for n in SHORT for s in serving(FOLDS[n])]
    assert wrong(cases, tmp_path, suites=2) == []


@needs_compiler
def test_heads_that_share_their_keys_are_rows_of_one_batch(tmp_path: Path) -> None:
    one = grouped(BF16, 16, 8, 1, 70, 32)
    several_rows = grouped(F16, 8, 4, 5, 90, 24)
    assert FAMILY.emit(fold(one), TILES[0]).grid == (2, 1, 1)
    cases = [
        ("one", one, TILES[0]),
        ("one", one, TILES[1]),
        ("several", several_rows, TILES[2]),
        ("several", several_rows, TILES[4]),
    ]
    assert wrong(cases, tmp_path, suites=2) == []


@needs_compiler
def test_keys_that_lie_side_by_side_are_taken_as_they_are(tmp_path: Path) -> None:
    cases = [("even", across(F16, 40, 192, 64, 64, 2), s) for s in (TILES[2], TILES[3], TILES[4])]
    cases += [("ragged", across(BF16, 10, 152, 40, 24, 1), s) for s in (TILES[0], TILES[1], TILES[5], TILES[6])]
    assert wrong(cases, tmp_path, suites=2) == []


def test_what_it_cannot_take_is_refused_with_the_reason() -> None:
    q, k, v = array("q", BF16, m=8, d=64), array("K", BF16, k=640, d=64), array("V", BF16, k=640, n=64)
    tile = OnlineSplitTile(8, 16, 2, 2, 0, 1)
    for o, words in (
        (attend(scores(q, array("K", F16, k=640, d=64)), v), "rows, keys, weights and values are"),
        (attend(apply("cast", scores(q, k), dtype=DType.F32), v), "weights and values are bf16, bf16, f32"),
        (attend(scores(q, apply("neg", k)), v), "computed, not a plain read"),
        (attend(scores(array("q", BF16, m=8, d=20), array("K", BF16, k=640, d=20)), v), "multiples of 16 bytes"),
        (attend(scores(q, k), array("V", BF16, k=640, n=264)), "up to 256"),
    ):
        assert words in str(FAMILY.legal(fold(several(o=(o, "mn", BF16))), tile)), words
    plain = fold(several(o=(attend(scores(q, k), v), "mn", BF16)))
    assert FAMILY.legal(plain, tile) is None
    for schedule, words in (
        (OnlineSplitTile(24, 16, 2, 2, 0, 1), "8, 16 or 32 rows"),
        (OnlineSplitTile(8, 16, 2, 17, 0, 1), "1 to 16 parts"),
        (OnlineSplitTile(8, 16, 2, 1, 1, 1), "2 to 64 through memory"),
        (OnlineSplitTile(16, 16, 2, 2, 0, 1), "16 rows for 8"),
        (OnlineSplitTile(8, 16, 16, 8, 0, 1), "8 parts of 16 warps"),
        (OnlineSplitTile(8, 16, 8, 1, 0, 4), "for each of 256 threads, 4 times"),
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
    decode = fold(grouped(BF16, 64, 8, 1, 8192, 128))
    sources = [
        FAMILY.emit(decode, OnlineSplitTile(8, 16, 4, 4, 0, 3)),
        FAMILY.emit(decode, OnlineSplitTile(8, 32, 4, 8, 1, 2)),
        FAMILY.emit(fold(attention(F16, 256, 4096, 64, 64, h=2)), OnlineSplitTile(32, 16, 4, 8, 0, 2)),
        FAMILY.emit(fold(FOLDS["short-several"]), OnlineSplitTile(16, 16, 1, 3, 1, 1)),
    ]
    for index, made in compile_many(sources, parse_target("sm_90")):
        assert isinstance(made, KernelBinary), made
        assert made.resources.spill_bytes == made.resources.stack_bytes == 0
        assert not made.resources.warnings
        assert made.resources.registers * sources[index].block <= 65536


@pytest.mark.skipif(not _usable(), reason="NVRTC is not installed")
def test_without_clusters_it_runs_on_older_parts() -> None:
    source = FAMILY.emit(fold(grouped(BF16, 64, 8, 1, 8192, 128)), OnlineSplitTile(8, 16, 4, 8, 1, 3))
    assert source.requires == "sm_80"
    assert FAMILY.serves(parse_target("sm_80"))
    ((_, made),) = compile_many([source], parse_target("sm_80"))
    assert isinstance(made, KernelBinary), made
    assert made.resources.spill_bytes == made.resources.stack_bytes == 0
