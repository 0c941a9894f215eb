"""Plans too deep for a bound on the whole are checked kernel by kernel."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from eqsat.codegen.cpu.compiler import compile_source
from eqsat.codegen.kernel import BufferArg, KernelSource, Schedule
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import point_problem
from eqsat.ir import Expr, Input, Output, Program, apply, const, read
from eqsat.search.cpu_device import CpuDevice
from eqsat.search.device import Check, Verdict
from eqsat.search.step_check import undecided
from eqsat.types import DType
from tests.codegen.fake_cuda import build, run
from tests.search.test_cuda_worker import PRELUDE

F32, N, DEPTH = DType.F32, 500, 5
RIGHT = "y[i] = sinf(1000.0f * x[i]);"


@pytest.fixture(scope="module")
def device() -> Iterator[CpuDevice]:
    with CpuDevice(limit_s=5.0) as opened:
        yield opened


def turned(e: Expr) -> Expr:
    """Return sin(1000·e), whose error is up to a thousand times that of e."""
    return apply("sin", apply("mul", e, const(1000.0, F32)))


def deep(*bodies: str, more: str = "") -> Executable:
    """Return a plan of kernels that turn a value again and again, in C; `bodies` replace the first ones."""
    names = ["x", *(f"t{n}" for n in range(DEPTH - 1)), "y"]
    whole = read("x", ("i",), (N,), F32)
    steps = []
    for n, (source, sink) in enumerate(itertools.pairwise(names)):
        whole = turned(whole)
        program = Program((Input(source, (N,), F32),), (Output(sink, turned(read(source, ("i",), (N,), F32)), ("i",), F32),))
        problem = point_problem(program)
        assert not isinstance(problem, str)
        body = bodies[n] if n < len(bodies) else RIGHT
        text = f"#include <math.h>\nvoid k(void **args) {{ float *x = args[0], *y = args[1]; for (int i = 0; i < {N}; i++) {{ {body} }} {more} }}"
        args = (BufferArg(source), BufferArg(sink))
        steps.append(Step(Kernel(problem), Schedule(), compile_source(KernelSource("c", text, "k", args))))
    program = Program((Input("x", (N,), F32),), (Output("y", whole, ("i",), F32),))
    return Executable(Plan(program, tuple(s.kernel for s in steps)), tuple(steps))


def test_a_deep_plan_that_is_right_passes_kernel_by_kernel(device: CpuDevice) -> None:
    verdict = device.verify_plan(deep())
    assert verdict.ok, verdict.reason
    added = [c for c in verdict.checks if "kernel by kernel" in c.name]
    assert [c.name for c in added] == ["normal, kernel by kernel", "uniform, kernel by kernel"]
    assert all(0 < c.worst <= 1 for c in added)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("y[i] = sinf(1000.0f * x[i]) * 1.001f;", "expected"),
        ("y[i] = i == 7 ? 0.5f : sinf(1000.0f * x[i]);", "t1[7]"),
        (RIGHT + f" if (i == {N - 1}) y[i + 1] = 0;", "wrote outside the buffer 't1'"),
        (RIGHT + " x[i] = 0;", "changed 't0', which it reads"),
    ],
    ids=["another value", "another element", "beyond the end", "its input is changed"],
)
def test_a_wrong_kernel_deep_inside_is_named(device: CpuDevice, body: str, what: str) -> None:
    verdict = device.verify_plan(deep(RIGHT, body))
    assert not verdict.ok
    assert "kernel t1" in verdict.reason
    assert what in verdict.reason


def test_only_what_passed_without_telling_is_undecided() -> None:
    plan = deep()
    passed, failed = Check("normal", True, 0.5, 0), Check("normal", False, 2.0, 0)
    assert undecided(plan, Verdict(()))
    assert undecided(plan, Verdict((passed,), (3, 4)))
    assert not undecided(plan, Verdict((passed,), (4, 4)))
    assert not undecided(plan, Verdict((passed, failed), (3, 4)))
    alone = dataclasses.replace(plan, steps=plan.steps[:1])
    assert not undecided(alone, Verdict((passed,), (3, 4)))


def test_a_verdict_without_checks_says_that_nothing_was_compared() -> None:
    assert "nothing could be compared" in Verdict(()).reason


def test_on_cuda_each_kernel_of_such_a_plan_is_checked(tmp_path: Path) -> None:
    build(tmp_path)
    script = """
from eqsat.ir import const
import dataclasses
def vague(made):  # the same plan of a program whose bound is far above any value
    out = apply("sin", apply("mul", made.plan.program.outputs[0].expr, const(1e30, F32)))
    program = Program(made.plan.program.inputs, (Output("y", out, ("i",), F32),))
    return dataclasses.replace(made, plan=dataclasses.replace(made.plan, program=program))
found = [device.verify_plan(vague(plan(*names))) for names in (("negate", "negate_b"), ("negate_short", "negate"))]
print(json.dumps([[v.ok, v.reason, [c.name for c in v.checks]] for v in found]))
device.close()
"""
    out, _ = run(tmp_path, PRELUDE + script)
    right, short = json.loads(out)
    assert right[0]
    assert right[2][-2:] == ["normal, kernel by kernel", "uniform, kernel by kernel"]
    assert not short[0]
