"""Kernels with several outputs: the families that serve them on the CPU and, emulated, on CUDA, and those that refuse."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cpu.columns import CpuColumnTile
from eqsat.codegen.cpu.families import FAMILIES, family_of
from eqsat.codegen.cpu.point import CpuPointTile
from eqsat.codegen.cpu.reduce import CpuReduceTile
from eqsat.codegen.cuda.families import FAMILIES as CUDA_FAMILIES
from eqsat.codegen.cuda.point import PointTile, TransposeTile
from eqsat.codegen.cuda.reduce_schedule import ColumnTile, FallbackReduceTile, GridReduceTile, RowTile
from eqsat.codegen.kernel import Family, Schedule
from eqsat.codegen.plan import Kernel, Plan
from eqsat.codegen.problem import PointProblem, Problem, ReduceProblem, contract_problem, point_problem, reduce_problem
from eqsat.errors import UsageError
from eqsat.ir import Expr, Output, Program, apply, reduce
from eqsat.search.compose import compose
from eqsat.search.verify import check_outputs, prepare
from tests.codegen import emulate
from tests.codegen.cpu_run import call_all, compile_many
from tests.codegen.problems import BF16, F16, F32, array, gelu, matmul, mean, program, real, softmax


def several(*outputs: tuple[str, Expr, tuple[str, ...]]) -> Program:
    """Return the program with these outputs; its inputs are what they read."""
    inputs = {i.name: i for _, e, axes in outputs for i in program(e, axes).inputs}
    return Program(tuple(inputs.values()), tuple(Output(name, e, axes, e.dtype) for name, e, axes in outputs))


def _point() -> Program:
    x, y, z = array("x", F32, i=7, j=33), array("y", BF16, i=7, j=33), array("z", F32, j=33, i=7)
    s = apply("add", x, apply("cast", y, dtype=F32))
    return several(
        ("s", s, ("i", "j")), ("g", apply("cast", gelu(s), dtype=F16), ("i", "j")), ("d", apply("lt", s, z), ("i", "j"))
    )


def _flat() -> Program:
    x = array("x", F32, i=8, j=32)
    return several(("u", apply("exp", x), ("i", "j")), ("v", apply("mul", x, real(2.0)), ("i", "j")))


def _statistics() -> Program:
    x = array("x", F32, i=9, j=70)
    m = reduce("max", "j", x)
    return several(
        ("m", m, ("i",)), ("l", reduce("sum", "j", apply("exp", apply("sub", x, m))), ("i",)), ("a", mean(x, "j"), ("i",))
    )


def _mixed() -> Program:
    x = array("x", F32, i=6, j=45)
    return several(("y", softmax(x, "j"), ("i", "j")), ("m", reduce("max", "j", x), ("i",)), ("c", apply("exp", x), ("i", "j")))


def _columns() -> Program:
    x = array("x", F32, j=45, i=34)
    return several(("m", reduce("max", "j", x), ("i",)), ("s", reduce("sum", "j", apply("mul", x, x)), ("i",)))


def _normal_columns() -> Program:
    x = array("x", F32, j=21, i=40)
    return several(("y", apply("cast", softmax(x, "j"), dtype=BF16), ("j", "i")), ("m", reduce("max", "j", x), ("i",)))


def _even() -> Program:
    x = array("x", BF16, i=4, j=512)
    wide = apply("cast", x, dtype=F32)
    s = reduce("sum", "j", wide)
    return several(("s", s, ("i",)), ("q", reduce("sum", "j", apply("mul", wide, wide)), ("i",)))


POINT = {"point": _point(), "flat": _flat()}
REDUCE = {
    "statistics": _statistics(), "mixed": _mixed(), "columns": _columns(), "normal-columns": _normal_columns(), "even": _even(),
}  # fmt: skip
CPU_MENU: tuple[Schedule, ...] = (
    *(CpuPointTile(b, u, t, p, 0) for b, u, t, p in itertools.product((16, 32, 64), (1, 2), (0, 16), (1, 0))),
    *(CpuReduceTile(b, u, k, p, 0) for b, u, k, p in itertools.product((16, 32, 64), (1, 2), (0, 1, 2), (1, 0))),
    *(CpuColumnTile(b, u, w, 1, 0) for b, u, w in itertools.product((16, 32, 64), (1, 3), (16, 64))),
)  # fmt: skip
CUDA_MENU: tuple[Schedule, ...] = (
    PointTile(128, 1, 1, 0), PointTile(32, 2, 4, 0), PointTile(64, 1, 8, 0), PointTile(32, 1, 16, 1), TransposeTile(32, 128, 1, 0),
    FallbackReduceTile(4), RowTile(1, 4, 16, 1, 0, 0), RowTile(2, 2, 1, 1, 0, 0), RowTile(1, 1, 1, 1, 2, 0), RowTile(2, 1, 8, 1, 1, 0),
    ColumnTile(32, 2, 1, 8, 1), ColumnTile(32, 3, 1, 1, 2), ColumnTile(64, 1, 2, 8, 1), GridReduceTile(64, 2, 1, 1, 0), GridReduceTile(64, 3, 8, 1, 0),
)  # fmt: skip


def problem_of(p: Program) -> Problem:
    found = point_problem(p)
    found = reduce_problem(p) if isinstance(found, str) else found
    assert not isinstance(found, str), found
    return found


def legal(p: Program, menu: Sequence[Schedule], families: Sequence[Family]) -> list[Schedule]:
    return [s for s in menu if next(f for f in families if type(s) in f.schedules).legal(problem_of(p), s) is None]


@pytest.mark.parametrize("name", [*POINT, *REDUCE])
def test_every_output_is_right_on_the_cpu(name: str, tmp_path: Path) -> None:
    p = {**POINT, **REDUCE}[name]
    schedules = random.Random(7).sample(found := legal(p, CPU_MENU, FAMILIES), min(6, len(found)))
    assert schedules
    sources = [family_of(s).emit(problem_of(p), s) for s in schedules]
    for schedule, source, entry in zip(schedules, sources, compile_many(sources, tmp_path), strict=True):
        for suite in prepare(p, seed=1, quick=True)[:2]:
            check = check_outputs(call_all(entry, source, p, suite.inputs), suite.expected, suite.suite)
            assert check.passed, f"{schedule}: {check.name}: {check.note}"


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.parametrize("name", [*POINT, *REDUCE])
def test_every_output_is_right_on_an_emulated_gpu(name: str, tmp_path: Path) -> None:
    p = {**POINT, **REDUCE}[name]
    schedules = legal(p, CUDA_MENU, CUDA_FAMILIES)
    assert schedules
    sources = [next(f for f in CUDA_FAMILIES if type(s) in f.schedules).emit(problem_of(p), s) for s in schedules]
    for schedule, source, entry in zip(schedules, sources, emulate.compile_kernels(sources, tmp_path), strict=True):
        for suite in prepare(p, seed=1, quick=True)[:2]:
            found = emulate.run_outputs(entry, source, p, {k: np.asarray(v) for k, v in suite.inputs.items()})
            check = check_outputs(found, suite.expected, suite.suite)
            assert check.passed, f"{schedule}: {check.name}: {check.note}"


def test_outputs_of_other_axes_or_orders_are_no_one_kernel() -> None:
    x = array("x", F32, i=3, j=5)
    turned = several(("a", x, ("i", "j")), ("b", apply("exp", x), ("j", "i")))
    assert "laid out" in str(point_problem(turned))
    row = array("r", F32, i=3)
    assert "laid out" in str(point_problem(several(("a", x, ("i", "j")), ("b", row, ("i",)))))
    s = reduce("sum", "j", x)
    t = reduce("sum", "k", array("t", F32, i=3, j=5, k=7))
    assert "different orders" in str(reduce_problem(several(("a", t, ("i", "j")), ("b", apply("exp", t), ("j", "i")))))
    assert "loses a row axis" in str(reduce_problem(several(("a", s, ("i",)), ("b", array("c", F32, j=5), ("j",)))))


def test_a_contraction_that_two_outputs_need_is_not_computed_for_each() -> None:
    a, b = array("a", F32, m=4, k=8), array("b", F32, k=8, n=6)
    c = matmul(a, b)
    assert "same contraction" in str(contract_problem(several(("c", c, ("m", "n")), ("e", apply("exp", c), ("m", "n")))))


def test_a_reduction_that_is_written_and_reduced_again_counts_as_its_own() -> None:
    x = array("x", F32, i=3, j=5)
    inner = reduce("sum", "j", x)
    found = reduce_problem(several(("rows", inner, ("i",)), ("all", reduce("sum", "i", inner), ())))
    assert "different axes" in str(found)


def test_the_problems_know_which_outputs_keep_the_reduced_axes() -> None:
    found = reduce_problem(_mixed())
    assert isinstance(found, ReduceProblem)
    assert [o.name for o in found.kept] == ["y", "c"]
    assert [o.name for o in found.lost] == ["m"]
    point = point_problem(_point())
    assert isinstance(point, PointProblem)
    assert point.axes == ("i", "j")


def _softmax_plan() -> Plan:
    x = array("x", F32, i=9, j=70)
    first = Kernel(problem_of(_statistics()))
    m, s = array("m", F32, i=9), array("l", F32, i=9)
    last = several(("y", apply("div", apply("exp", apply("sub", x, m)), s), ("i", "j")))
    return Plan(several(("y", softmax(x, "j"), ("i", "j"))), (first, Kernel(problem_of(last))))


def test_a_plan_knows_all_that_a_kernel_writes() -> None:
    plan = _softmax_plan()
    assert plan.kernels[0].writes == ("m", "l", "a")
    assert compose(plan) == (plan.program.outputs[0].expr,)
    with pytest.raises(UsageError, match=r"'y' reads \['l', 'm'\]"):
        Plan(plan.program, plan.kernels[::-1])


def test_a_kernel_must_not_write_what_the_caller_owns() -> None:
    x = array("x", F32, i=3)
    kernel = Kernel(problem_of(several(("y", apply("exp", x), ("i",)), ("x", apply("neg", x), ("i",)))))
    with pytest.raises(UsageError, match=r"writes \['x'\]"):
        Plan(several(("y", apply("exp", x), ("i",))), (kernel,))
