"""Kernels of scans: the emitted text run on the CPU against the oracle, what NVRTC makes of it, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqsat import numpy_like as fn
from eqsat.codegen.cuda import nvrtc
from eqsat.codegen.cuda.nvrtc import compile_many
from eqsat.codegen.cuda.scan import ScanFamily
from eqsat.codegen.cuda.scan_schedule import ScanColumnTile, ScanGridTile, ScanRowTile
from eqsat.codegen.kernel import KernelSource, Schedule
from eqsat.codegen.problem import ReduceProblem, reduce_problem
from eqsat.codegen.targets import parse_target
from eqsat.errors import CompileError, EnvironmentMissingError, IllegalScheduleError
from eqsat.ir import Program
from eqsat.rulefile import builtin_rules
from eqsat.search.schedules import points, space_of, space_term
from eqsat.search.verify import check_outputs, prepare
from eqsat.session import Session
from eqsat.trace import trace
from tests.codegen import emulate
from tests.codegen.scan_programs import PROGRAMS, array, program

TILES: tuple[Schedule, ...] = (
    ScanRowTile(1, 1, 1, 1, 0), ScanRowTile(1, 3, 2, 4, 0), ScanRowTile(2, 2, 1, 16, 1), ScanRowTile(4, 1, 1, 8, 0), ScanRowTile(8, 1, 2, 16, 0),
    ScanRowTile(1, 2, 2, 4, 0, 1), ScanRowTile(2, 1, 1, 8, 0, 1), ScanRowTile(1, 1, 1, 1, 0, 1), ScanColumnTile(16, 4, 2, 4, 1), ScanColumnTile(32, 1, 4, 1, 1),
    ScanGridTile(2, 1, 1, 0), ScanGridTile(4, 1, 4, 0), ScanGridTile(1, 1, 16, 1),
    ScanColumnTile(32, 1, 1, 1), ScanColumnTile(8, 4, 2, 16), ScanColumnTile(16, 8, 1, 4), ScanColumnTile(32, 2, 8, 8),
)  # fmt: skip


def usable() -> bool:
    """Whether NVRTC is here."""
    try:
        nvrtc.version()
    except EnvironmentMissingError:
        return False
    return True


def problem(found: Program) -> ReduceProblem:
    result = reduce_problem(found)
    assert not isinstance(result, str), result
    return result


def cases(names: list[str]) -> list[tuple[str, Schedule, KernelSource]]:
    family = ScanFamily()
    problems = {n: problem(program(n)) for n in names}
    return [(n, s, family.emit(problems[n], s)) for n in names for s in TILES if family.legal(problems[n], s) is None]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
def test_every_kernel_computes_what_the_oracle_does(tmp_path: Path) -> None:
    found = cases(list(PROGRAMS))
    assert {name for name, _, _ in found} == set(PROGRAMS)
    wrong = []
    for (name, schedule, source), entry in zip(found, emulate.compile_kernels([c[2] for c in found], tmp_path), strict=True):
        for p in prepare(program(name), 1, quick=True):
            got = emulate.run_kernel(entry, source, program(name), {k: np.asarray(v) for k, v in p.inputs.items()})
            check = check_outputs([got], p.expected, p.suite)
            if not check.passed:
                wrong.append(f"{name} with {schedule}: suite {check.name}: {check.note}")
    assert wrong == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
def test_a_kernel_that_forgets_the_tile_before_is_found_wrong(tmp_path: Path) -> None:
    name = "one long row"
    source = ScanFamily().emit(problem(program(name)), ScanRowTile(1, 1, 1, 1, 0))
    text = source.text.replace("T before = carry;", "T before = Op::identity();")
    assert text != source.text
    broken = type(source)(**{f: getattr(source, f) for f in source.__slots__} | {"text": text})
    (entry,) = emulate.compile_kernels([broken], tmp_path)
    (p, *_) = prepare(program(name), 1, quick=True)
    got = emulate.run_kernel(entry, broken, program(name), {k: np.asarray(v) for k, v in p.inputs.items()})
    assert not check_outputs([got], p.expected, p.suite).passed


@pytest.mark.skipif(not usable(), reason="NVRTC is not installed")
def test_kernels_of_every_kind_compile_without_spills_or_stack() -> None:
    board = trace(lambda x: fn.cumsum(x, 1), array(4096, 16384))
    down = trace(lambda x: fn.cumsum(x, 0), array(4096, 16384))
    family = ScanFamily()
    found = [
        (p, s)
        for p in (board, down)
        for s in (
            ScanRowTile(16, 1, 8, 16, 0),
            ScanColumnTile(32, 16, 8, 16),
            ScanGridTile(8, 4, 16, 0),
            ScanRowTile(8, 1, 4, 16, 0, 1),
            ScanColumnTile(32, 16, 4, 16, 1),
        )
        if family.legal(problem(p), s) is None
    ]
    sources = [family.emit(problem(p), s) for p, s in found] + [
        c[2] for c in cases(["double precision", "whole numbers", "columns between"])
    ]
    for index, result in compile_many(sources, parse_target("sm_90"), 2):
        assert not isinstance(result, CompileError), f"{index}: {result}"
        assert (result.resources.spill_bytes, result.resources.stack_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("function", "specs", "tile", "why"),
    [
        (lambda x: x.sum(-1), [array(8, 9)], ScanRowTile(1, 1, 1, 1, 0), "not one of every prefix"),
        (lambda x: fn.cumsum(x, 0), [array(64, 64)], ScanRowTile(1, 1, 1, 1, 0), "not contiguous along"),
        (lambda x: fn.cumsum(x, 1), [array(64, 64)], ScanColumnTile(32, 1, 1, 1), "are contiguous along"),
        (lambda x: fn.cumsum(x, 1), [array(64, 64)], ScanRowTile(1, 1, 1, 16, 0, 1), "none is ahead"),
        (lambda x: fn.cumsum(x, 1), [array(64, 62)], ScanRowTile(1, 1, 1, 16, 0), "not a multiple"),
        (lambda x: fn.cumsum(x, 1), [array(64, 64)], ScanRowTile(4, 1, 2, 16, 0), "more vectors than the row"),
        (lambda x: fn.cumsum(x, 1), [array(64, 65536)], ScanRowTile(32, 1, 32, 16, 0), "registers"),
        (lambda x: fn.cumsum(x, 1), [array(8, 64)], ScanGridTile(1, 1, 16, 0), "tiles; blocks share"),
        (lambda x: fn.cumsum(x, 0), [array(64, 64)], ScanColumnTile(128, 8, 1, 32), "bytes of shared memory"),
    ],
)  # fmt: skip
def test_what_no_block_can_hold_is_refused(function: Callable[..., Any], specs: list[Any], tile: Schedule, why: str) -> None:
    found = problem(trace(function, *specs))
    reason = ScanFamily().legal(found, tile)
    assert reason is not None
    assert why in reason
    with pytest.raises(IllegalScheduleError, match="Choose another point"):
        ScanFamily().emit(found, tile)


def test_a_scan_is_bounded_by_its_bytes_not_by_the_square_of_its_length() -> None:
    found = problem(trace(lambda x: fn.cumsum(x, 1), array(4096, 16384)))
    rates = parse_target("sm_90").rates
    assert ScanFamily().bound_ns(found, rates) == pytest.approx(found.program.bytes / rates.copy, rel=0.05)
    assert ScanFamily().predict_ns(found, ScanRowTile(16, 1, 8, 16, 0), rates) < 1.3 * ScanFamily().bound_ns(found, rates)


def test_the_rule_files_offer_schedules_for_every_scan() -> None:
    rules = builtin_rules()
    problems = [problem(program(n)) for n in PROGRAMS]
    text = "\n".join(map(str, (*rules.declarations, *rules.facts)))
    with Session() as session:
        found = session.schedule_points([space_term("cuda", space_of(p)) for p in problems], rules.rules, declarations=text)
    for p, listed in zip(problems, found, strict=True):
        mine = [s for s in points(listed) if type(s) in ScanFamily.schedules]
        assert 1 <= sum(ScanFamily().legal(p, s) is None for s in mine) <= 90
