"""Kernels of windows: the emitted text run on the CPU against the oracle, what NVRTC makes of it, what is refused."""

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
from eqsat.codegen.cuda.window import WindowFamily
from eqsat.codegen.cuda.window_emit import WindowTile
from eqsat.codegen.cuda.window_patch import patches
from eqsat.codegen.cuda.window_shape import window_shape
from eqsat.codegen.kernel import KernelSource
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
from tests.codegen.window_programs import PROGRAMS, image, program

TILES = [
    WindowTile(r, c, t, h)
    for r, c, t, h in ((1, 1, 32, 0), (2, 1, 64, 0), (3, 2, 32, 0), (2, 4, 128, 1), (4, 4, 32, 0), (1, 8, 32, 1))
]


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


def cases(names: list[str]) -> list[tuple[str, WindowTile, KernelSource]]:
    family = WindowFamily()
    return [
        (n, s, family.emit(problem(program(n)), s)) for n in names for s in TILES if family.legal(problem(program(n)), s) is None
    ]


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
def test_a_kernel_that_reads_past_an_edge_is_found_wrong(tmp_path: Path) -> None:
    name = "depthwise, a line"
    source = WindowFamily().emit(problem(program(name)), WindowTile(1, 1, 32, 0))
    text = source.text.replace(" < 16 ?", " < 17 ?")
    assert text != source.text
    broken = type(source)(**{f: getattr(source, f) for f in source.__slots__} | {"text": text})
    (entry,) = emulate.compile_kernels([broken], tmp_path)
    (p, *_) = prepare(program(name), 1, quick=True)
    got = emulate.run_kernel(entry, broken, program(name), {k: np.asarray(v) for k, v in p.inputs.items()})
    assert not check_outputs([got], p.expected, p.suite).passed


@pytest.mark.skipif(not usable(), reason="NVRTC is not installed")
def test_kernels_of_every_kind_compile_without_spills_or_stack() -> None:
    found = cases(
        [
            "depthwise",
            "depthwise, bf16, bias and residual",
            "max pool, padded",
            "mean pool of volumes",
            "a blur in double precision",
        ]
    )
    for index, result in compile_many([c[2] for c in found], parse_target("sm_90"), 2):
        assert not isinstance(result, CompileError), f"{found[index][:2]}: {result}"
        assert (result.resources.spill_bytes, result.resources.stack_bytes) == (0, 0), found[index][:2]


def test_windows_of_a_tile_share_their_rows_and_read_them_in_vectors() -> None:
    shape = window_shape(problem(trace(lambda x, w: fn.depthwise_conv(x, w, padding=1), image(4, 8, 32, 32), image(8, 3, 3))))
    assert not isinstance(shape, str)
    of_x, of_w = patches(shape, 4, 4)
    assert (of_x.extent(2), of_x.extent(3)) == (6, 6)
    assert [a.count for a in of_x.accesses] == [1, 4, 1]
    assert of_x.instructions == 18
    assert of_w.instructions == 9


def test_rows_whose_pitch_is_not_aligned_are_read_by_elements() -> None:
    shape = window_shape(problem(trace(lambda x: fn.max_pool(x, 2), image(4, 8, 8, 10))))
    assert not isinstance(shape, str)
    assert [a.count for a in patches(shape, 1, 1)[0].accesses] == [2]
    odd = window_shape(problem(trace(lambda x: fn.max_pool(x, (2, 1)), image(4, 8, 8, 9))))
    assert not isinstance(odd, str)
    assert [a.count for a in patches(odd, 1, 1)[0].accesses] == [1]


@pytest.mark.parametrize(
    ("function", "specs", "tile", "why"),
    [
        (lambda x: x.sum(-1), [image(8, 9)], WindowTile(1, 1, 32, 0), "no load moves along"),
        (lambda x: fn.softmax(x, -1), [image(8, 9)], WindowTile(1, 1, 32, 0), "keeps the positions"),
        (lambda x: fn.max_pool(x, 2), [image(1, 1, 8, 6)], WindowTile(1, 2, 32, 0), "not a multiple of 2"),
        (lambda x: fn.max_pool(x, 2), [image(1, 1, 8, 6)], WindowTile(8, 1, 32, 0), "longer than its axis"),
        (lambda x: fn.argmax(fn.windows(x, (3,)), -1), [image(8, 9)], WindowTile(1, 1, 32, 0), "place within the window"),
        (lambda x, w: fn.depthwise_conv(x, w), [image(1, 1, 64, 64), image(1, 13, 13)], WindowTile(8, 4, 32, 0), "unrolled"),
        (lambda x, w: fn.depthwise_conv(x, w), [image(1, 1, 64, 68), image(1, 5, 5)], WindowTile(8, 16, 32, 0), "registers"),
    ],
)  # fmt: skip
def test_what_no_thread_can_hold_is_refused(function: Callable[..., Any], specs: list[Any], tile: WindowTile, why: str) -> None:
    found = problem(trace(function, *specs))
    reason = WindowFamily().legal(found, tile)
    assert reason is not None
    assert why in reason
    with pytest.raises(IllegalScheduleError, match="Choose another point"):
        WindowFamily().emit(found, tile)


def test_larger_tiles_are_expected_to_be_faster_until_registers_run_out() -> None:
    found = problem(trace(lambda x, w: fn.depthwise_conv(x, w, padding=1), image(64, 256, 112, 112), image(256, 3, 3)))
    rates = parse_target("sm_90").rates
    slow, fast = (WindowFamily().predict_ns(found, WindowTile(r, c, 128, 0), rates) for r, c in ((1, 1), (4, 4)))
    assert WindowFamily().bound_ns(found, rates) <= fast < slow


def test_the_rule_files_offer_schedules_for_every_reduction_over_windows() -> None:
    rules = builtin_rules()
    problems = [problem(program(n)) for n in PROGRAMS]
    text = "\n".join(map(str, (*rules.declarations, *rules.facts)))
    with Session() as session:
        found = session.schedule_points([space_term("cuda", space_of(p)) for p in problems], rules.rules, declarations=text)
    for p, listed in zip(problems, found, strict=True):
        mine = [s for s in points(listed) if type(s) in WindowFamily.schedules]
        assert 1 <= sum(WindowFamily().legal(p, s) is None for s in mine) <= 60
