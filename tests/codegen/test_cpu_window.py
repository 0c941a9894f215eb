"""Windows on the CPU: emitted C compiled and run against the oracle, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqsat import numpy_like as fn
from eqsat.codegen.cpu.window import CpuWindowTile, WindowFamily
from eqsat.codegen.problem import ReduceProblem, reduce_problem
from eqsat.ir import Program
from eqsat.rulefile import builtin_rules
from eqsat.search.verify import check_outputs, prepare
from eqsat.session import Session
from eqsat.trace import trace
from tests.codegen import cpu_run
from tests.codegen import window_programs as programs

TILES = (CpuWindowTile(16, 1, 1, 0), CpuWindowTile(32, 1, 1, 0), CpuWindowTile(64, 2, 1, 0), CpuWindowTile(64, 4, 1, 0))


def problem(found: Program) -> ReduceProblem:
    result = reduce_problem(found)
    assert not isinstance(result, str), result
    return result


def test_every_kernel_computes_what_the_oracle_does(tmp_path: Path) -> None:
    family = WindowFamily()
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


def test_the_rule_files_offer_a_schedule_for_every_reduction_over_windows() -> None:
    rules = builtin_rules()
    problems = [problem(programs.program(n)) for n in programs.PROGRAMS]
    text = "\n".join(map(str, (*rules.declarations, *rules.facts)))
    spaces = [f'(ReduceSpace "cpu" {p.row_count} {p.length})' for p in problems]
    with Session() as session:
        found = session.schedule_points(spaces, rules.rules, declarations=text)
    for p, points in zip(problems, found, strict=True):
        tiles = [CpuWindowTile(*map(int, a[-4:])) for name, a in points if name == "CpuWindowTile"]
        assert any(WindowFamily().legal(p, s) is None for s in tiles)


@pytest.mark.parametrize(
    ("function", "tile", "why"),
    [
        (lambda x: fn.softmax(x, -1), CpuWindowTile(16, 1, 1, 0), "keeps the positions"),
        (lambda x: x.sum(-1), CpuWindowTile(16, 1, 1, 0), "no load moves along"),
        (lambda x: fn.argmax(fn.windows(x, (3,)), -1), CpuWindowTile(16, 1, 1, 0), "a place within the window"),
        (lambda x: fn.avg_pool(x, (9, 17), 1), CpuWindowTile(16, 1, 1, 0), "153 positions"),
        (lambda x: fn.avg_pool(x, (3, 3), 1), CpuWindowTile(64, 8, 1, 0), "less than an unrolled iteration"),
        (lambda x: fn.avg_pool(x, (3, 3), 1), CpuWindowTile(64, 0, 1, 0), "expected 1 to 16 vectors"),
    ],
)
def test_what_does_not_fit_is_refused(function: Any, tile: CpuWindowTile, why: str) -> None:
    found = problem(
        trace(function, programs.image(1, 24, 64) if "pool" in function.__code__.co_names[-1] else programs.image(24, 64))
    )
    reason = WindowFamily().legal(found, tile)
    assert reason is not None
    assert why in reason


def test_only_the_edges_of_a_row_are_guarded() -> None:
    found = problem(trace(lambda x, w: fn.depthwise_conv(x, w, padding=1), programs.image(1, 2, 8, 64), programs.image(2, 3, 3)))
    text = WindowFamily().emit(found, CpuWindowTile(32, 1, 1, 0)).text
    left, inside, right = re.split(r"pos p\d+ = (?:1|63);", text[text.index("static void kernel") :])
    assert "gathered" in left
    assert "gathered" not in inside
    assert "gathered" in right
