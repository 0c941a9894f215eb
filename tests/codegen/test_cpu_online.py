"""Dependent folds on the CPU: results of many programs and schedules, tiles that masks leave out, legality, bounds, spaces."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cpu.compiler import compilers
from eqsat.codegen.cpu.online import CpuOnlineTile, OnlineFamily
from eqsat.codegen.kernel import Rates
from eqsat.codegen.online import OnlineProblem, online_problem
from eqsat.codegen.problem import Problem, point_problem
from eqsat.errors import IllegalScheduleError
from eqsat.rulefile import builtin_rules
from eqsat.search.faults import power
from eqsat.search.schedules import points, space_of, space_term
from eqsat.search.verify import check_outputs, prepare
from eqsat.session import Session
from tests.codegen.cpu_run import call_all, compile_many
from tests.codegen.online_problems import BF16, F32, FOLDS, attention, causal
from tests.codegen.problems import PROBLEMS

FAMILY = OnlineFamily()
MENU = (
    CpuOnlineTile(16, 1, 16, 1, 1, 1, 0),
    CpuOnlineTile(64, 48, 64, 6, 4, 1, 0),
    CpuOnlineTile(32, 4, 32, 2, 2, 0, 0),
    CpuOnlineTile(64, 1, 64, 1, 8, 1, 0),
    CpuOnlineTile(64, 1, 256, 1, 1, 1, 0),
    CpuOnlineTile(16, 3, 16, 3, 1, 0, 0),
    CpuOnlineTile(64, 16, 128, 8, 2, 0, 0),
)


def fold_of(name: str) -> OnlineProblem:
    found = online_problem(FOLDS[name])
    assert isinstance(found, OnlineProblem), found
    return found


def serving(name: str) -> list[CpuOnlineTile]:
    return [s for s in MENU if FAMILY.legal(fold_of(name), s) is None]


def verify(cases: Sequence[tuple[str, CpuOnlineTile]], folder: Path, suites: int, seed: int = 1) -> None:
    """Emit, compile, run and check each pair of program and schedule on a few suites of inputs."""
    sources = [FAMILY.emit(fold_of(n), s) for n, s in cases]
    entries = compile_many(sources, folder)
    prepared = {n: prepare(FOLDS[n], seed=seed) for n in {n for n, _ in cases}}
    for (n, s), source, entry in zip(cases, sources, entries, strict=True):
        for suite in prepared[n][:suites]:
            found = check_outputs(call_all(entry, source, FOLDS[n], suite.inputs), suite.expected, suite.suite)
            assert found.passed, f"{n} {s}: {found.name}: {found.note}"


def test_every_fold_is_right_with_some_schedule(tmp_path: Path) -> None:
    rng = random.Random(1)
    verify([(n, rng.choice(serving(n))) for n in FOLDS], tmp_path, suites=5)


def test_a_fold_is_right_with_every_kind_of_schedule(tmp_path: Path) -> None:
    cases = [(n, s) for n in ("ragged", "several", "causal") for s in serving(n)]
    assert {s for _, s in cases} >= set(MENU) - {MENU[4]}
    verify(cases, tmp_path, suites=1, seed=2)


@pytest.mark.skipif(not any(c.name == "zig" for c in compilers()), reason="the ziglang wheel is not installed")
def test_zig_compiles_it(tmp_path: Path) -> None:
    zig = next(c for c in compilers() if c.name == "zig")
    source = FAMILY.emit(fold_of("window"), CpuOnlineTile(64, 24, 64, 6, 4, 1, 2))
    (entry,) = compile_many([source], tmp_path, zig, level="-O2")
    suite = prepare(FOLDS["window"], seed=2, quick=True)[0]
    assert check_outputs(call_all(entry, source, FOLDS["window"], suite.inputs), suite.expected, suite.suite).passed


def test_elements_of_every_fold_can_be_compared() -> None:
    for name, program in FOLDS.items():
        normal = next(p for p in prepare(program, seed=1, quick=True) if p.suite.name == "normal")
        for r in normal.expected:
            assert r.bound is not None
            assert np.isfinite(r.bound[np.isfinite(r.value)]).all(), name


def test_the_check_of_a_fold_has_power() -> None:
    program = FOLDS["causal"]
    rejected, tried = power(program, prepare(program, seed=1))
    assert tried >= 4
    assert rejected == tried


def test_a_row_that_is_masked_out_whole_gives_nan_and_no_other_row_does(tmp_path: Path) -> None:
    program, schedule = FOLDS["masked-rows"], CpuOnlineTile(64, 12, 64, 6, 4, 1, 0)
    source = FAMILY.emit(fold_of("masked-rows"), schedule)
    (entry,) = compile_many([source], tmp_path)
    rng = np.random.default_rng(3)
    arrays = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in program.inputs}
    (out,) = call_all(entry, source, program, arrays)
    assert np.isnan(out[:9]).all()
    assert np.isfinite(out[9:]).all()


def test_a_part_whose_maximum_is_floored_gives_zero_where_all_is_masked(tmp_path: Path) -> None:
    program = FOLDS["parts"]
    source = FAMILY.emit(fold_of("parts"), CpuOnlineTile(64, 4, 64, 2, 1, 1, 0))
    (entry,) = compile_many([source], tmp_path)
    arrays = {"x": np.full((6, 4, 37), -np.inf, np.float32), "v": np.ones((4, 37, 9), np.float32)}
    top, total, values = call_all(entry, source, program, arrays)
    assert (top == -np.inf).all()
    assert (total == 0).all()
    assert (values == 0).all()


def test_tiles_that_the_mask_leaves_out_are_not_computed(tmp_path: Path) -> None:
    """Keys beyond the mask are NaN: whoever computed with them would spoil the result."""
    program = attention(F32, 256, 256, 16, 16, mask=lambda s: causal(s))
    problem = online_problem(program)
    assert isinstance(problem, OnlineProblem)
    source = FAMILY.emit(problem, CpuOnlineTile(64, 48, 64, 6, 4, 1, 0))
    (entry,) = compile_many([source], tmp_path)
    rng = np.random.default_rng(4)
    arrays = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in program.inputs}
    clean = call_all(entry, source, program, arrays)[0]
    arrays["V"][64:] = np.nan
    dirty = call_all(entry, source, program, arrays)[0]
    assert np.array_equal(clean[:48], dirty[:48])  # the first tile of rows sees the first tile of keys alone
    assert np.isnan(dirty[64:]).all()


def test_schedules_that_cannot_serve_say_why() -> None:
    plain, stats = fold_of("plain"), fold_of("log-sum-exp")
    tall = online_problem(attention(F32, 256, 4096, 64, 64))
    assert isinstance(tall, OnlineProblem)
    cases: list[tuple[Problem, CpuOnlineTile, str]] = [
        (plain, CpuOnlineTile(48, 1, 16, 1, 1, 1, 0), "vectors have"),
        (plain, CpuOnlineTile(64, 0, 16, 1, 1, 1, 0), "at least 1"),
        (plain, CpuOnlineTile(64, 8, 16, 1, 1, 0, 2), "OpenMP"),
        (plain, CpuOnlineTile(64, 8, 64, 8, 4, 1, 0), "registers"),
        (plain, CpuOnlineTile(64, 9, 64, 6, 4, 1, 0), "whole register tiles"),
        (plain, CpuOnlineTile(64, 192, 64, 6, 4, 1, 0), "rows for 64"),
        (stats, CpuOnlineTile(64, 8, 64, 4, 1, 1, 0), "no contraction"),
        (tall, CpuOnlineTile(64, 96, 4096, 6, 4, 1, 0), "are more than"),
    ]
    for problem, schedule, words in cases:
        assert words in str(FAMILY.legal(problem, schedule)), schedule
    point = point_problem(PROBLEMS["point-prime"])
    assert not isinstance(point, str)
    assert "dependent fold" in str(FAMILY.legal(point, MENU[0]))
    with pytest.raises(IllegalScheduleError, match="vectors have"):
        FAMILY.emit(plain, CpuOnlineTile(48, 1, 16, 1, 1, 1, 0))


def test_bounds_use_no_more_cores_than_there_are_rows() -> None:
    rates = Rates(read=10, copy=10, flops=(("f32", 100.0),), issue=400, launch_ns=1)
    one_row = online_problem(attention(F32, 1, 512, 64, 64))
    rows = online_problem(attention(F32, 64, 512, 64, 64))
    assert isinstance(one_row, OnlineProblem)
    assert isinstance(rows, OnlineProblem)
    many = dataclasses.replace(rates, cores=8)
    assert FAMILY.bound_ns(one_row, many) == FAMILY.bound_ns(one_row, rates)
    assert FAMILY.bound_ns(rows, many) == pytest.approx(FAMILY.bound_ns(rows, rates) / 8)


def test_bounds_count_only_what_no_mask_takes_away() -> None:
    rates = Rates(read=1e6, copy=1e6, flops=(("f32", 100.0),), issue=1e6, launch_ns=1)
    whole, half = (online_problem(attention(F32, 512, 512, 64, 64, mask=mask)) for mask in (None, causal))
    assert isinstance(whole, OnlineProblem)
    assert isinstance(half, OnlineProblem)
    assert FAMILY.bound_ns(half, rates) == pytest.approx(0.48 * FAMILY.bound_ns(whole, rates), rel=0.02)
    assert FAMILY.bound_ns(fold_of("lengths"), rates) < FAMILY.bound_ns(fold_of("plain"), rates)  # the lengths may all be 0


def test_bounds_are_below_predictions() -> None:
    rates = Rates(read=40, copy=40, flops=(("f32", 256.0), ("f64", 128.0)), issue=512, launch_ns=50, cores=2)
    for name in FOLDS:
        for s in serving(name):
            assert 50 <= FAMILY.bound_ns(fold_of(name), rates) <= FAMILY.predict_ns(fold_of(name), s, rates), (name, s)


def test_the_rule_file_offers_each_fold_legal_points() -> None:
    rules = builtin_rules()
    problems = [fold_of(n) for n in FOLDS]
    for dtype in (F32, BF16):
        large = online_problem(attention(dtype, 512, 512, 64, 64, h=4))
        assert isinstance(large, OnlineProblem)
        problems.append(large)
    text = "\n".join(map(str, (*rules.declarations, *rules.facts)))
    with Session() as session:
        found = session.schedule_points([space_term("cpu", space_of(p)) for p in problems], rules.rules, declarations=text)
    for problem, some in zip(problems, found, strict=True):
        legal = [s for s in points(some) if FAMILY.legal(problem, s) is None]
        assert 1 <= len(legal) <= 45
    assert len(legal) > 20
