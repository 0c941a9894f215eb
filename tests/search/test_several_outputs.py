"""Kernels with several outputs on the devices: every output is checked, and a plan runs, is saved and comes back with all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cpu.compiler import compile_source
from eqsat.codegen.cpu.families import family_of
from eqsat.codegen.cpu.point import CpuPointTile
from eqsat.codegen.cpu.reduce import CpuReduceTile
from eqsat.codegen.kernel import BufferArg, KernelSource, Schedule
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import Problem, point_problem, reduce_problem
from eqsat.ir import Expr, Input, Output, Program, apply, read, reduce
from eqsat.search import bundle
from eqsat.search.cpu_device import CpuDevice, CpuRunner
from eqsat.search.receipt import kernel_record
from eqsat.search.verify import prepare
from eqsat.types import DType
from tests.codegen.fake_cuda import build, run
from tests.search.test_cuda_worker import PRELUDE

F32, N, ROWS, LENGTH = DType.F32, 3000, 12, 70
X = read("x", ("i",), (N,), F32)
BOTH = Program(
    (Input("x", (N,), F32),), (Output("y", apply("neg", X), ("i",), F32), Output("z", apply("add", X, X), ("i",), F32))
)


def source(body: str) -> KernelSource:
    text = f"void k(void **args) {{ const float *x = args[0]; float *y = args[1], *z = args[2]; {body} }}"
    return KernelSource("c", text, "k", (BufferArg("x"), BufferArg("y"), BufferArg("z")))


def body(y: str = "-x[i]", z: str = "x[i] + x[i]", more: str = "") -> KernelSource:
    return source(f"for (long i = 0; i < {N}; i++) {{ y[i] = {y}; z[i] = {z}; }} {more}")


@pytest.fixture(scope="module")
def device() -> Iterator[CpuDevice]:
    with CpuDevice(limit_s=5.0) as opened:
        yield opened


def test_every_output_of_a_kernel_is_checked(device: CpuDevice) -> None:
    kernels = {
        "right": body(),
        "first is wrong": body(y="-x[i] * 1.001f"),
        "second is wrong": body(z="x[i]"),
        "second is not written to its end": source(
            f"for (long i = 0; i < {N}; i++) {{ y[i] = -x[i]; if (i < {N} - 1) z[i] = x[i] + x[i]; }}"
        ),
        "beyond the second": body(more=f"z[{N}] = 1;"),
        "the outputs are swapped": body(y="x[i] + x[i]", z="-x[i]"),
    }
    found = device.sweep(BOTH, [compile_source(s) for s in kernels.values()])
    status = {name: t.status for name, t in zip(kernels, found, strict=True) if t is not None}
    assert status == {name: "ok" if name == "right" else "wrong" for name in kernels}
    notes = {name: t.note for name, t in zip(kernels, found, strict=True) if t is not None}
    assert "wrote outside the buffer 'z'" in notes["beyond the second"]
    assert "z[" in notes["second is wrong"]
    assert "y[" in notes["first is wrong"]
    right = found[0]
    assert right is not None
    assert right.verdict is not None
    alone = len(prepare(BOTH, 0))
    assert len(right.verdict.checks) == alone
    assert right.verdict.power[0] == right.verdict.power[1] >= 8  # faults are seeded into both outputs


def _problem(p: Program) -> Problem:
    found = point_problem(p)
    found = reduce_problem(p) if isinstance(found, str) else found
    assert not isinstance(found, str), found
    return found


def _softmax_and_maximum() -> Executable:
    """Return a plan of two kernels: maximum and sum of exponentials of each row in one pass, then the normalised elements."""
    x, m, s = read("x", ("i", "j"), (ROWS, LENGTH), F32), read("m", ("i",), (ROWS,), F32), read("s", ("i",), (ROWS,), F32)
    top = reduce("max", "j", x)

    def normal(by: Expr, total: Expr) -> Expr:
        return apply("div", apply("exp", apply("sub", x, by)), total)

    total = reduce("sum", "j", apply("exp", apply("sub", x, top)))
    inputs = (Input("x", (ROWS, LENGTH), F32),)
    row = [Input(name, (ROWS,), F32) for name in ("m", "s")]
    first = Program(inputs, (Output("m", top, ("i",), F32), Output("s", total, ("i",), F32)))
    last = Program((*inputs, *row), (Output("y", normal(m, s), ("i", "j"), F32),))
    whole = Program(inputs, (Output("y", normal(top, total), ("i", "j"), F32), Output("m", top, ("i",), F32)))
    schedules: tuple[Schedule, ...] = (CpuReduceTile(16, 1, 0, 1, 0), CpuPointTile(16, 1, 0, 1, 0))
    steps = []
    for p, schedule in zip((first, last), schedules, strict=True):
        problem = _problem(p)
        steps.append(Step(Kernel(problem), schedule, compile_source(family_of(schedule).emit(problem, schedule))))
    return Executable(Plan(whole, tuple(s.kernel for s in steps)), tuple(steps))


@pytest.fixture(scope="module")
def plan() -> Executable:
    return _softmax_and_maximum()


def test_a_plan_with_such_a_kernel_passes_its_check_and_is_timed(plan: Executable, device: CpuDevice) -> None:
    assert plan.intermediates == {"s": ((ROWS,), "f32")}
    verdict = device.verify_plan(plan)
    assert verdict.ok, verdict.reason
    (timed,) = device.time_plans([plan], rounds=3)
    assert timed.median_ns > 0


def test_a_plan_with_such_a_kernel_runs_saved_and_loaded(plan: Executable) -> None:
    files = bundle.to_files(plan, {})
    again, _ = bundle.from_files(files)
    assert again.plan.digest == plan.plan.digest
    x = np.random.default_rng(0).standard_normal((ROWS, LENGTH), dtype=np.float32)
    y, m = CpuRunner(again)(x)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(m, x.max(1))


def test_the_receipt_names_everything_that_a_kernel_writes(plan: Executable) -> None:
    record = kernel_record(plan, 0, [])
    assert record["writes"] == ["m", "s"]
    assert record["shown"][0] == "max_j x[i,j]"
    assert len(record["shown"]) == 2


def test_both_outputs_are_checked_on_cuda(tmp_path: Path) -> None:
    build(tmp_path)
    script = """
x = read("x", ("i",), (N,), F32)
both = Program((Input("x", (N,), F32),), (Output("y", apply("neg", x), ("i",), F32), Output("z", apply("add", x, x), ("i",), F32)))
args = tuple(BufferArg(n) for n in ("x", "y", "z"))
names = ["negate_doubled__3", "negate__3", "negate_doubled_short__3", "negate_doubled_beyond__3"]
made = [KernelBinary(KernelSource("cuda", n, n, args, (N // 32, 1, 1), 32), n.encode(), "none") for n in names]
found = device.sweep(both, made)
step = Step(Kernel(point_problem(both)), Schedule(), made[0])
whole = Executable(Plan(both, (step.kernel,)), (step,))
print(json.dumps([show(t) for t in found] + [device.verify_plan(whole).ok]))
device.close()
"""
    out, _ = run(tmp_path, PRELUDE + script)
    *trials, whole = json.loads(out)
    assert [t["status"] for t in trials] == ["ok", "wrong", "wrong", "wrong"]
    assert "z[0]" in trials[1]["note"]
    assert "outside the buffer" in trials[3]["note"]
    assert whole is True
