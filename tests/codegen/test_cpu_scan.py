"""Scans on the CPU: emitted C compiled and run against the oracle, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqsat.codegen.cpu.scan import CpuScanTile, ScanFamily
from eqsat.codegen.problem import ReduceProblem, reduce_problem
from eqsat.codegen.targets import parse_target
from eqsat.ir import Program
from eqsat.rulefile import builtin_rules
from eqsat.search.verify import check_outputs, prepare
from eqsat.session import Session
from eqsat.trace import trace
from tests.codegen import cpu_run
from tests.codegen import scan_programs as programs

TILES = (CpuScanTile(16, 1, 1, 0), CpuScanTile(32, 1, 1, 0), CpuScanTile(64, 2, 1, 0), CpuScanTile(64, 4, 1, 0))


def problem(found: Program) -> ReduceProblem:
    result = reduce_problem(found)
    assert not isinstance(result, str), result
    return result


def test_every_kernel_computes_what_the_oracle_does(tmp_path: Path) -> None:
    family = ScanFamily()
    problems = {n: problem(programs.program(n)) for n in programs.PROGRAMS}
    cases = [(n, s) for n, p in problems.items() for s in TILES if family.legal(p, s) is None]
    assert {n for n, _ in cases} == set(problems)
    sources = [family.emit(problems[n], s) for n, s in cases]
    wrong = []
    for (name, schedule), source, entry in zip(cases, sources, cpu_run.compile_many(sources, tmp_path), strict=True):
        for p in prepare(problems[name].program, 1, quick=True):
            got = cpu_run.call(entry, source, problems[name].program, {k: np.asarray(v) for k, v in p.inputs.items()})
            check = check_outputs([got], p.expected, p.suite)
            if not check.passed:
                wrong.append(f"{name} with {schedule}: suite {check.name}: {check.note}")
    assert wrong == []


def test_the_rule_files_offer_a_schedule_for_every_scan() -> None:
    rules = builtin_rules()
    problems = [problem(programs.program(n)) for n in programs.PROGRAMS]
    text = "\n".join(map(str, (*rules.declarations, *rules.facts)))
    spaces = [f'(ReduceSpace "cpu" {p.row_count} {p.length})' for p in problems]
    with Session() as session:
        found = session.schedule_points(spaces, rules.rules, declarations=text)
    for p, points in zip(problems, found, strict=True):
        tiles = [CpuScanTile(*map(int, a[-4:])) for name, a in points if name == "CpuScanTile"]
        assert any(ScanFamily().legal(p, s) is None for s in tiles)


@pytest.mark.parametrize(
    ("function", "tile", "why"),
    [
        (lambda x: x.sum(-1), CpuScanTile(16, 1, 1, 0), "not one of every prefix"),
        (lambda x: np.cumsum(x, 1), CpuScanTile(64, 8, 1, 0), "less than an unrolled iteration"),
        (lambda x: np.cumsum(x), CpuScanTile(16, 1, 0, 0), "not shared among threads"),
        (lambda x: np.cumsum(x, 1), CpuScanTile(8, 1, 1, 0), "vectors have"),
    ],
)
def test_what_does_not_fit_is_refused(function: Any, tile: CpuScanTile, why: str) -> None:
    reason = ScanFamily().legal(problem(trace(function, programs.array(8, 64))), tile)
    assert reason is not None
    assert why in reason


def test_a_scan_is_bounded_and_expected_by_its_bytes() -> None:
    rates = parse_target("cpu").rates
    short, long = (problem(trace(lambda x: np.cumsum(x, 1), programs.array(n, 1 << 22 >> n.bit_length() - 1))) for n in (1024, 4))
    family, tile = ScanFamily(), CpuScanTile(64, 4, 1, 0)
    assert family.bound_ns(short, rates) == family.bound_ns(long, rates)
    assert family.bound_ns(short, rates) <= family.predict_ns(short, tile, rates) == family.predict_ns(long, tile, rates)
