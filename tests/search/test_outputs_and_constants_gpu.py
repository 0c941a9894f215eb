"""On a real GPU: kernels with several outputs, checked and timed; and plans that prepare what constants give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from eqsat.codegen.cuda.families import FAMILIES
from eqsat.codegen.cuda.point import PointTile
from eqsat.codegen.cuda.reduce_schedule import ColumnTile, FallbackReduceTile, RowTile
from eqsat.codegen.kernel import KernelBinary, Schedule
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import Problem, point_problem, reduce_problem
from eqsat.errors import UsageError
from eqsat.ir import Expr, Input, Output, Program, apply, read, reduce
from eqsat.search.cuda_device import CudaDevice
from eqsat.search.runner import CudaRunner
from eqsat.types import DType

pytestmark = pytest.mark.device

F32, BF16 = DType.F32, DType.BF16
ROWS, LENGTH, N = 2048, 4096, 1 << 20


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    with CudaDevice(limit_s=10.0) as made:
        yield made


def value(name: str, *axes: str) -> Expr:
    sizes = {"i": ROWS, "j": LENGTH, "n": N}
    return read(name, axes, tuple(sizes[a] for a in axes), F32)


def program(inputs: Sequence[Input], **outputs: tuple[Expr, tuple[str, ...]]) -> Program:
    return Program(tuple(inputs), tuple(Output(name, e, axes, e.dtype) for name, (e, axes) in outputs.items()))


def statistics() -> Program:
    x = value("x", "i", "j")
    m = reduce("max", "j", x)
    total = reduce("sum", "j", apply("exp", apply("sub", x, m)))
    return program([Input("x", (ROWS, LENGTH), F32)], m=(m, ("i",)), s=(total, ("i",)))


def columns() -> Program:
    x = value("x", "j", "i")
    squares = reduce("sum", "j", apply("mul", x, x))
    return program([Input("x", (LENGTH, ROWS), F32)], m=(reduce("max", "j", x), ("i",)), s=(squares, ("i",)))


def mixed() -> Program:
    x = value("x", "i", "j")
    m = reduce("max", "j", x)
    e = apply("cast", apply("exp", apply("sub", x, m)), dtype=BF16)
    return program([Input("x", (ROWS, LENGTH), F32)], y=(e, ("i", "j")), m=(m, ("i",)))


def pointwise() -> Program:
    x = value("x", "n")
    return program([Input("x", (N,), F32)], a=(apply("exp", x), ("n",)), b=(apply("cast", x, dtype=BF16), ("n",)))


CASES: dict[str, tuple[Program, tuple[Schedule, ...]]] = {
    "statistics": (statistics(), (RowTile(4, 1, 16, 1, 0, 0), RowTile(4, 1, 16, 2, 0, 0), RowTile(8, 1, 16, 1, 2, 1), FallbackReduceTile(4))),
    "columns": (columns(), (ColumnTile(32, 16, 1, 16, 4), ColumnTile(32, 8, 8, 16, 2), ColumnTile(64, 8, 1, 4, 2))),
    "mixed": (mixed(), (RowTile(4, 1, 16, 1, 0, 0), RowTile(8, 1, 16, 2, 0, 1), RowTile(4, 1, 16, 1, 4, 0))),
    "pointwise": (pointwise(), (PointTile(256, 1, 16, 0), PointTile(256, 2, 16, 1), PointTile(128, 4, 8, 0))),
}  # fmt: skip


def problem_of(p: Program) -> Problem:
    found = point_problem(p)
    found = reduce_problem(p) if isinstance(found, str) else found
    assert not isinstance(found, str), found
    return found


def compiled(device: CudaDevice, p: Program, schedules: Sequence[Schedule]) -> list[KernelBinary]:
    problem = problem_of(p)
    families = [next(f for f in FAMILIES if type(s) in f.schedules) for s in schedules]
    legal = [(f, s) for f, s in zip(families, schedules, strict=True) if f.legal(problem, s) is None]
    assert legal
    made = dict(device.compile([f.emit(problem, s) for f, s in legal]))
    assert all(isinstance(b, KernelBinary) for b in made.values()), made
    return [b for _, b in sorted(made.items()) if isinstance(b, KernelBinary)]


@pytest.mark.parametrize("name", CASES)
def test_kernels_with_several_outputs_are_right_and_near_one_pass(device: CudaDevice, name: str) -> None:
    p, schedules = CASES[name]
    trials = device.sweep(p, compiled(device, p, schedules))
    assert all(t is not None and t.status == "ok" for t in trials), [t and t.note for t in trials]
    best = min(t.measurement.median_ns for t in trials if t is not None and t.measurement is not None)
    assert p.bytes / (1.1 * device.rates().read) < best < 4 * p.bytes / device.rates().copy + 10_000


def weighted(device: CudaDevice) -> Executable:
    """Return y = x + exp(w), the exponential prepared."""
    w, x = Input("w", (N,), F32, constant=True), Input("x", (N,), F32)
    e, t = apply("exp", value("w", "n")), Input("t", (N,), F32)
    parts = [program([w], t=(e, ("n",))), program([x, t], y=(apply("add", value("x", "n"), value("t", "n")), ("n",)))]
    schedule = PointTile(256, 1, 16, 0)
    steps = tuple(Step(Kernel(problem_of(p)), schedule, compiled(device, p, [schedule])[0]) for p in parts)
    whole = program([x, w], y=(apply("add", value("x", "n"), e), ("n",)))
    return Executable(Plan(whole, tuple(s.kernel for s in steps)), steps)


@pytest.fixture(scope="module")
def plan(device: CudaDevice) -> Executable:
    return weighted(device)


def test_a_plan_with_a_preparation_is_verified_whole_and_timed_without(device: CudaDevice, plan: Executable) -> None:
    assert device.verify_plan(plan).ok
    inputs = tuple(Input(i.name, i.shape, i.dtype) for i in plan.plan.program.inputs)
    each_call = Executable(Plan(Program(inputs, plan.plan.program.outputs), plan.plan.kernels), plan.steps)
    once, always = device.time_plans([plan, each_call], rounds=10)
    assert once.median_ns < 0.8 * always.median_ns


def test_constants_are_read_once_and_known_again_on_another_stream(plan: Executable) -> None:
    cupy = pytest.importorskip("cupy")
    x, w = cupy.linspace(-1, 1, N, dtype=cupy.float32), cupy.linspace(-2, 2, N, dtype=cupy.float32)
    want = cupy.asnumpy(x) + np.exp(cupy.asnumpy(w))
    run = CudaRunner(plan)
    np.testing.assert_allclose(cupy.asnumpy(run(x, w)), want, rtol=1e-5, atol=1e-5)
    w[...] = 0  # breaks the promise: what was prepared is used on
    with cupy.cuda.Stream(non_blocking=True) as stream:
        found = run(x, w)
        stream.synchronize()
    np.testing.assert_allclose(cupy.asnumpy(found), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cupy.asnumpy(run(x, w.copy())), cupy.asnumpy(x) + 1, rtol=1e-5, atol=1e-5)


def test_a_tensor_written_in_place_is_prepared_anew(plan: Executable) -> None:
    torch: Any = pytest.importorskip("torch")
    x, w = torch.linspace(-1, 1, N, device="cuda"), torch.zeros(N, device="cuda")
    run = CudaRunner(plan)
    torch.testing.assert_close(run(x, w), x + 1)
    w.fill_(1.0)
    torch.testing.assert_close(run(x, w), x + torch.exp(w))


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_captured_call_needs_its_constants_prepared_first(plan: Executable) -> None:
    torch: Any = pytest.importorskip("torch")
    x, w, y = (torch.zeros(N, device="cuda") for _ in range(3))
    run = CudaRunner(plan)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(UsageError, match="before the stream is captured"), torch.cuda.graph(graph, stream=stream):
            run(x, w, out=y)
        run(x, w, out=y)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run(x, w, out=y)
    x.fill_(3.0)
    torch.cuda.synchronize()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(y, x + 1)
