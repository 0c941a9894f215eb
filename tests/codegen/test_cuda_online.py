"""Dependent folds for CUDA: emitted kernels run by the emulator, machine code without spills, legality, bounds, schedule spaces."""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda import nvrtc, online_layout, online_wgmma
from eqsat.codegen.cuda.nvrtc import compile_many
from eqsat.codegen.cuda.online_layout import OnlineWgmmaTile
from eqsat.codegen.cuda.online_simt import OnlineSimtFamily, OnlineSimtTile
from eqsat.codegen.cuda.online_wgmma import OnlineWgmmaFamily
from eqsat.codegen.kernel import KernelBinary, KernelSource
from eqsat.codegen.online import OnlineProblem, online_problem
from eqsat.codegen.problem import point_problem
from eqsat.codegen.targets import TARGETS, parse_target
from eqsat.errors import EnvironmentMissingError, IllegalScheduleError
from eqsat.ir import Program, apply, const, iota, reduce
from eqsat.rulefile import builtin_rules
from eqsat.search.schedules import points, space_of, space_term
from eqsat.search.verify import check_outputs, prepare
from eqsat.session import Session
from tests.codegen import emulate, online_problems
from tests.codegen.emulate_mma import emulated_wgmma, run_maps
from tests.codegen.online_problems import BF16, F16, F32, attend, attention, causal, scores, several
from tests.codegen.online_problems import fold as weighted
from tests.codegen.problems import PROBLEMS, array
from tests.codegen.test_cuda_compile import disassemble, needs_disassembler

SIMT, WGMMA = OnlineSimtFamily(), OnlineWgmmaFamily()
MENU = (
    OnlineSimtTile(4, 32, 32, 128), OnlineSimtTile(4, 32, 0, 128), OnlineSimtTile(32, 64, 64, 128), OnlineSimtTile(32, 64, 0, 128),
    OnlineSimtTile(1, 128, 32, 32), OnlineSimtTile(4, 64, 64, 64), OnlineSimtTile(2, 256, 0, 64),
)  # fmt: skip

TILES = (
    OnlineWgmmaTile(16, 1, 2, 0, 1), OnlineWgmmaTile(48, 2, 2, 1, 1), OnlineWgmmaTile(32, 2, 1, 0, 2), OnlineWgmmaTile(64, 3, 2, 0, 1),
    OnlineWgmmaTile(64, 1, 3, 0, 2), OnlineWgmmaTile(32, 4, 2, 0, 1), OnlineWgmmaTile(256, 1, 1, 0, 1),
)  # fmt: skip


def normed(causally: bool) -> Program:
    """Return attention whose scores have a positive factor and a summand for each row, and grow from tile to tile."""
    row, shift = array("r", F32, m=150), array("t", F32, m=150)
    s = scores(array("q", BF16, m=150, d=32), array("K", BF16, k=150, d=32))
    slope = apply("mul", apply("cast", iota("k", 150), dtype=F32), const(0.4, F32))
    s = apply(
        "mul", apply("sub", apply("add", s, shift), slope), apply("rsqrt", apply("add", apply("mul", row, row), const(0.5, F32)))
    )
    s = causal(s) if causally else s
    weight = apply("exp", apply("sub", s, reduce("max", "k", s)))
    total = reduce("sum", "k", weight)
    o = reduce("sum", "k", apply("mul", apply("cast", weight, dtype=BF16), array("V", BF16, k=150, n=16)))
    return several(
        o=(apply("div", o, total), "mn", BF16), lse=(apply("add", apply("log", total), reduce("max", "k", s)), "m", F32)
    )


def unit_rows(causally: bool) -> Program:
    """Return attention whose rows are divided by the root of their mean square, which is a factor of the scores."""
    q, k, v = array("q", BF16, h=2, m=150, d=64), array("K", BF16, h=2, k=150, d=64), array("V", BF16, h=2, k=150, n=16)
    mean = apply("mul", reduce("sum", "d", apply("mul", q, q)), const(1 / 64, BF16))
    s = apply("mul", scores(q, k), apply("rsqrt", apply("add", mean, const(1e-6, BF16))))
    return several(o=(attend(causal(s) if causally else s, v), "hmn", BF16))


FOLDS = {
    **online_problems.FOLDS,
    "short-normed": normed(False),
    "short-normed-causal": normed(True),
    "short-unit-rows": unit_rows(False),
    "short-unit-rows-causal": unit_rows(True),
    "short-missing": attention(BF16, 210, 210, 16, 16, h=2, mask=causal),  # two of three warpgroups lack all rows of a tile
}


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
def test_folds_are_right_without_tensor_cores(tmp_path: Path) -> None:
    names = ("statistics", "parts", "pooling", "ragged", "causal", "lengths", "two-values", "short-several")
    rng = random.Random(1)
    assert wrong([(n, SIMT.emit(fold(FOLDS[n]), rng.choice(serving(n)))) for n in names], tmp_path, suites=1) == []


@needs_compiler
@pytest.mark.slow
def test_every_fold_is_right_without_tensor_cores(tmp_path: Path) -> None:
    rng = random.Random(3)
    assert (
        wrong(
            [(n, SIMT.emit(fold(FOLDS[n]), rng.choice(serving(n)))) for n in FOLDS if not fold(FOLDS[n]).statistics],
            tmp_path,
            suites=2,
        )
        == []
    )


SHORT = [n for n in FOLDS if any(WGMMA.legal(fold(FOLDS[n]), s) is None for s in TILES)]


def test_the_matrix_units_serve_all_folds_of_short_operands() -> None:
    assert {n for n in FOLDS if n.startswith("short")} | {"bf16", "f16-narrow", "grouped-bf16"} <= set(SHORT)


def wrong_on_matrix_units(cases: Sequence[tuple[str, OnlineWgmmaTile]], folder: Path, suites: int) -> list[str]:
    """Emulate kernels; return what the verifier says of those that are wrong."""
    sources = [WGMMA.emit(fold(FOLDS[n]), s) for n, s in cases]
    out = []
    for (name, s), source, entry in zip(
        cases, sources, emulate.compile_kernels([emulated_wgmma(x) for x in sources], folder), strict=True
    ):
        prepared = prepare(FOLDS[name], 1)[:suites]
        assert prepared, f"{name}: nothing can be compared"
        for p in prepared:
            got = run_maps(entry, source, FOLDS[name], {k: np.asarray(v) for k, v in p.inputs.items()})
            check = check_outputs(got, p.expected, p.suite)
            if not check.passed:
                out.append(f"{name} with {s}: suite {check.name}: {check.note}")
    return out


@needs_compiler
def test_folds_of_short_operands_are_right_on_the_matrix_units(tmp_path: Path) -> None:
    cases = [
        ("short-several", TILES[1]),
        ("short-window", TILES[0]),
        ("short-parts", TILES[0]),
        ("grouped-bf16", TILES[0]),
        ("short-ragged", TILES[3]),
    ]
    assert wrong_on_matrix_units(cases, tmp_path, suites=1) == []


@pytest.fixture
def one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one block draw all rows, where the emulator would start one for each tile of them."""
    monkeypatch.setattr(online_layout, "TARGET", dataclasses.replace(online_layout.TARGET, processors=1))
    monkeypatch.setattr(online_wgmma, "TARGET", online_layout.TARGET)


@needs_compiler
@pytest.mark.usefixtures("one_processor")
def test_blocks_that_draw_several_tiles_of_rows_are_right(tmp_path: Path) -> None:
    cases = [
        ("short-several", TILES[1]),
        ("short-normed", TILES[0]),
        ("short-missing", TILES[3]),
        ("short-unit-rows", TILES[1]),
    ]
    assert wrong_on_matrix_units(cases, tmp_path, suites=1) == []


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("one_processor")
def test_every_fold_of_short_operands_is_right_on_the_matrix_units(tmp_path: Path) -> None:
    rng = random.Random(2)
    cases = [(n, rng.choice([s for s in TILES if WGMMA.legal(fold(FOLDS[n]), s) is None])) for n in SHORT]
    assert wrong_on_matrix_units(cases, tmp_path, suites=5) == []


def test_what_the_matrix_units_cannot_take_is_refused_with_the_reason() -> None:
    q, k, v = array("q", BF16, m=64, d=64), array("K", BF16, k=64, d=64), array("V", BF16, k=64, n=64)
    tile = OnlineWgmmaTile(64, 1, 2, 0, 1)
    across = reduce("sum", "d", apply("mul", q, array("K", BF16, d=64, k=64)))
    for o, words in (
        (attend(scores(q, array("K", F16, k=64, d=64)), v), "operands are"),
        (attend(scores(q, k), array("V", F32, k=64, n=64)), "an operand is f32"),
        (attend(apply("cast", scores(q, k), dtype=F32), v), "its weights are f32"),
        (attend(scores(apply("neg", q), k), v), "computed, not a plain read"),
        (attend(across, v), "not contiguous"),
        (attend(scores(q, k), array("V", BF16, k=64, n=60)), "multiples of 16 bytes"),
        (attend(scores(q, k), array("V", BF16, k=64, n=264)), "up to 256"),
        (weighted(scores(q, k), v, floor=0.0), "at least 0.0"),
    ):
        assert words in str(WGMMA.legal(fold(several(o=(o, "mn", BF16))), tile)), words
    plain = fold(several(o=(attend(scores(q, k), v), "mn", BF16)))
    for schedule, words in (
        (OnlineWgmmaTile(40, 1, 2, 0, 1), "steps of 16"),
        (OnlineWgmmaTile(64, 1, 2, 1, 1), "ping-pong"),
        (OnlineWgmmaTile(64, 3, 2, 0, 1), "192 rows for 64"),
        (OnlineWgmmaTile(256, 1, 2, 0, 1), "do not fit"),
        (OnlineWgmmaTile(64, 1, 64, 0, 1), "bytes of tiles"),
        (OnlineWgmmaTile(64, 1, 2, 0, 2), "batches"),
    ):
        assert words in str(WGMMA.legal(plain, schedule)), schedule


def test_the_rule_files_offer_legal_points_of_both_kinds() -> None:
    rules = builtin_rules()
    problems = [fold(p) for p in FOLDS.values()]
    problems += [
        fold(attention(BF16, m, k, d, d, h=h))
        for m, k, d, h in ((4096, 4096, 128, 64), (1, 8192, 128, 32), (2048, 2048, 256, 16))
    ]
    text = "\n".join(map(str, (*rules.declarations, *rules.facts)))
    with Session() as session:
        found = session.schedule_points([space_term("cuda", space_of(p)) for p in problems], rules.rules, declarations=text)
    for problem, some in zip(problems, found, strict=True):
        legal = [s for s in points(some) if (SIMT if isinstance(s, OnlineSimtTile) else WGMMA).legal(problem, s) is None]
        assert problem.statistics or any(isinstance(s, OnlineSimtTile) for s in legal)
        assert len(legal) <= 96
    assert any(isinstance(s, OnlineWgmmaTile) for s in legal)


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
    for name in SHORT:
        for t in TILES:
            assert rates.launch_ns <= WGMMA.bound_ns(fold(FOLDS[name]), rates) <= WGMMA.predict_ns(fold(FOLDS[name]), t, rates)


def _usable() -> bool:
    try:
        nvrtc.version()
    except EnvironmentMissingError:
        return False
    return True


@pytest.mark.skipif(not _usable(), reason="NVRTC is not installed")
def test_the_compiler_takes_it_without_spills() -> None:
    big = fold(attention(F32, 512, 512, 64, 64, h=4, mask=causal))
    sources = [
        SIMT.emit(big, OnlineSimtTile(32, 64, 64, 128)),
        SIMT.emit(fold(FOLDS["log-sum-exp-bf16"]), OnlineSimtTile(4, 128, 0, 128)),
        WGMMA.emit(fold(attention(BF16, 4096, 4096, 128, 128, h=8, mask=causal)), OnlineWgmmaTile(128, 2, 2, 1, 8)),
        WGMMA.emit(fold(attention(F16, 4096, 4096, 64, 64, h=8)), OnlineWgmmaTile(128, 3, 2, 0, 1)),
        WGMMA.emit(fold(attention(BF16, 2048, 2048, 256, 256, h=16)), OnlineWgmmaTile(64, 2, 2, 0, 1)),
        WGMMA.emit(fold(FOLDS["short-several"]), OnlineWgmmaTile(48, 2, 2, 1, 1)),
    ]
    for _, made in compile_many(sources, parse_target("sm_90")):
        assert isinstance(made, KernelBinary), made
        assert made.resources.spill_bytes == made.resources.stack_bytes == 0
        assert not made.resources.warnings


def innermost_products(text: str) -> Counter[str]:
    """Count the instructions of the least loop that holds matrix products, in disassembled machine code."""
    found: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(found)
        elif ins := re.search(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P[T\d]+ )?([A-Z0-9]+)\S*(.*)", line):
            found.append((ins[1], ins[2]))
    loops = []
    for i, (op, rest) in enumerate(found):
        to = re.search(r"`\((\.L_x_\d+)\)", rest)
        if op == "BRA" and to and labels.get(to[1], len(found)) <= i:
            loops.append(Counter(op for op, _ in found[labels[to[1]] : i + 1]))
    return min((c for c in loops if c["HGMMA"]), key=lambda c: c.total())


@needs_disassembler
@pytest.mark.parametrize("d", [64, 128])
def test_descriptors_of_the_main_loop_stay_in_uniform_registers(d: int, tmp_path: Path) -> None:
    tile = OnlineWgmmaTile(64, 3, 3, 0, 8)
    source = WGMMA.emit(fold(attention(BF16, 4096, 4096, d, d, h=16, mask=causal)), tile)
    ((_, made),) = compile_many([source], parse_target("sm_90"))
    assert isinstance(made, KernelBinary), made
    loop = innermost_products(disassemble(made.image, tmp_path))
    assert loop["HGMMA"] == d // 16 + tile.keys // 16
    assert loop["MUFU"] >= tile.keys // 2
    assert loop["R2UR"] <= 4
    assert loop["MEMBAR"] == 0
