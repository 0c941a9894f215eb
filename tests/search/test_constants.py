"""What depends on constants alone runs once: plans know which kernels, runners and timing leave them out of the calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqsat import numpy_like as fn
from eqsat.codegen.cpu.compiler import compile_source
from eqsat.codegen.cpu.families import family_of
from eqsat.codegen.cpu.point import CpuPointTile
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import point_problem
from eqsat.codegen.targets import parse_target
from eqsat.errors import UsageError
from eqsat.ir import Expr, Input, Output, Program, apply, iota, read
from eqsat.kernelgraph import KernelGraph
from eqsat.rulefile import builtin_rules
from eqsat.search import bundle, machine
from eqsat.search.candidates import candidates_of, mark_prepared
from eqsat.search.constants import Constants
from eqsat.search.cpu_device import CpuDevice, CpuRunner
from eqsat.search.machine import Place
from eqsat.search.optimize import optimize
from eqsat.search.result import Optimized
from eqsat.search.rulebase import declarations
from eqsat.session import Session
from eqsat.trace import as_program, with_constants
from eqsat.types import DType
from tests.codegen.fake_cuda import build, run
from tests.search.fake_device import FakeDevice
from tests.search.test_cuda_worker import PRELUDE as CUDA_DEVICE
from tests.search.test_runner import PRELUDE

F32, N = DType.F32, 5000
X, V, W = (Input(name, (N,), F32, constant=name != "x") for name in "xvw")


def value(name: str) -> Expr:
    return read(name, ("i",), (N,), F32)


def step(inputs: Sequence[Input], name: str, expr: Expr) -> Step:
    problem = point_problem(Program(tuple(inputs), (Output(name, expr, ("i",), F32),)))
    assert not isinstance(problem, str)
    schedule = CpuPointTile(16, 1, 0, 1, 0)
    return Step(Kernel(problem), schedule, compile_source(family_of(schedule).emit(problem, schedule)))


def executable(steps: Sequence[Step], *outputs: tuple[str, Expr]) -> Executable:
    program = Program((X, V, W), tuple(Output(name, e, ("i",), F32) for name, e in outputs))
    return Executable(Plan(program, tuple(s.kernel for s in steps)), tuple(steps))


def weighted() -> Executable:
    """Return y = x + exp(v·w), with v·w and its exponential in kernels of their own."""
    p, e = apply("mul", value("v"), value("w")), apply("exp", value("p"))
    steps = [
        step((V, W), "p", p),
        step((Input("p", (N,), F32),), "e", e),
        step((X, Input("e", (N,), F32)), "y", apply("add", value("x"), value("e"))),
    ]
    return executable(steps, ("y", apply("add", value("x"), apply("exp", p))))


def arrays(seed: int = 0) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(N, dtype=np.float32) for _ in range(3)]


def expected(x: Any, v: Any, w: Any) -> Any:
    return x + np.exp(v * w)


def test_a_plan_tells_what_runs_once() -> None:
    found = weighted()
    assert [k.name for k in found.plan.prepared] == ["p", "e"]
    once, call = found.preparation, found.call
    assert once.reads == ("v", "w")
    assert once.writes == {"e": ((N,), "f32")}
    assert once.intermediates == {"p": ((N,), "f32")}
    assert call.reads == ("x", "e")
    assert [s.kernel.name for s in call.steps] == ["y"]
    assert call.intermediates == {}


def test_an_output_is_made_in_each_call_though_it_depends_on_constants_alone() -> None:
    found = executable([step((V, W), "z", apply("mul", value("v"), value("w")))], ("z", apply("mul", value("v"), value("w"))))
    assert found.plan.prepared == ()
    _, v, w = arrays()
    run_it = CpuRunner(found)
    first, second = run_it(_, v, w), run_it(_, v, w)
    assert first is not second
    np.testing.assert_array_equal(first, second)


def test_a_buffer_that_two_kernels_write_is_not_prepared() -> None:
    x = read("x", ("i",), (N,), F32)
    t = apply("exp", value("v"))
    both = point_problem(Program((X, V), (Output("y", apply("add", x, t), ("i",), F32), Output("t", t, ("i",), F32))))
    alone = point_problem(Program((V,), (Output("t", t, ("i",), F32),)))
    assert not isinstance(both, str)
    assert not isinstance(alone, str)
    plan = Plan(Program((X, V), (Output("y", apply("add", x, t), ("i",), F32),)), (Kernel(alone), Kernel(both)))
    assert plan.prepared == ()


def test_the_second_call_with_the_same_constants_does_not_compute_with_them_again() -> None:
    run_it = CpuRunner(weighted())
    x, v, w = arrays()
    np.testing.assert_allclose(run_it(x, v, w), expected(x, v, w), rtol=1e-5, atol=1e-5)
    old = w.copy()
    w[...] = 0  # breaks the promise, and so shows that the array is not read
    np.testing.assert_allclose(run_it(2 * x, v, w), expected(2 * x, v, old), rtol=1e-5, atol=1e-5)
    again = w.copy()
    np.testing.assert_allclose(run_it(x, v, again), expected(x, v, 0 * w), rtol=1e-5, atol=1e-5)


def test_several_sets_of_constants_are_kept_side_by_side() -> None:
    run_it = CpuRunner(weighted())
    x, *_ = arrays()
    sets = [arrays(seed)[1:] for seed in range(4)]
    wanted = [expected(x, *s) for s in sets]
    for s, y in zip(sets, wanted, strict=True):
        np.testing.assert_allclose(run_it(x, *s), y, rtol=1e-5, atol=1e-5)
    for s in sets:
        s[0][...] = np.nan
    for s, y in zip(sets, wanted, strict=True):
        np.testing.assert_allclose(run_it(x, *s), y, rtol=1e-5, atol=1e-5)


def test_a_saved_plan_prepares_when_it_is_loaded_again() -> None:
    found, _ = bundle.from_files(bundle.to_files(weighted(), {}))
    x, v, w = arrays()
    run_it = CpuRunner(found)
    want = expected(x, v, w)
    run_it(x, v, w)
    v[...] = np.nan
    np.testing.assert_allclose(run_it(x, v, w), want, rtol=1e-5, atol=1e-5)


def test_whole_plans_are_checked_with_their_preparation_and_timed_without() -> None:
    heavy = value("v")
    for _ in range(12):
        heavy = apply("sin", apply("add", heavy, value("w")))
    steps = [step((V, W), "t", heavy), step((X, Input("t", (N,), F32)), "y", apply("add", value("x"), value("t")))]
    whole = executable(steps, ("y", apply("add", value("x"), heavy)))
    program = Program(tuple(Input(i.name, i.shape, i.dtype) for i in whole.plan.program.inputs), whole.plan.program.outputs)
    each_call = Executable(Plan(program, whole.plan.kernels), whole.steps)
    assert each_call.plan.prepared == ()
    with CpuDevice() as device:
        assert device.verify_plan(whole).ok
        once, always = device.time_plans([whole, each_call], rounds=5)
    assert once.median_ns < 0.25 * always.median_ns


class _Counted:
    """An array of a library that counts writes."""

    _version = 0


class _Uncounted:
    @property
    def _version(self) -> int:
        raise RuntimeError("Inference tensors do not track version counter")


def test_an_array_counts_as_another_when_it_was_written_or_moved() -> None:
    made: list[int] = []

    def make(pointers: Sequence[int]) -> int:
        made.append(pointers[0])
        return pointers[0]

    known = Constants(["w"], [0], make)
    w = _Counted()
    assert known.of([w], [10]) == 10
    assert known.of([w], [10]) == 10
    assert made == [10]
    w._version += 1
    known.of([w], [10])
    known.of([w], [20])
    known.of([_Counted()], [10])
    assert made == [10, 10, 20, 10]
    quiet = _Uncounted()
    known.of([quiet], [30])
    known.of([quiet], [30])
    assert made[4:] == [30]


def test_the_sets_used_longest_ago_are_dropped() -> None:
    made: list[int] = []
    known = Constants(["w"], [0], lambda p: made.append(p[0]), remembered=2)
    a, b, c = _Counted(), _Counted(), _Counted()
    for w, at in ((a, 1), (b, 2), (a, 1), (c, 3), (a, 1), (b, 2)):
        known.of([w], [at])
    assert made == [1, 2, 3, 2]


def test_the_caller_is_told_when_the_constants_never_stay() -> None:
    known = Constants(["w"], [0], lambda p: p[0], remembered=2)
    kept = [_Counted() for _ in range(9)]
    for n, w in enumerate(kept[:4]):
        known.of([w], [n])
    with pytest.warns(UserWarning, match="constants w from call to call"):
        known.of([kept[4]], [4])
    for n, w in enumerate(kept[5:]):  # once is enough
        known.of([w], [10 + n])


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fake_cuda")
    build(folder)
    return folder


CUDA = """
w, e = Input("w", (8,), F32, constant=True), read("w", ("i",), (8,), F32)
def made(inputs, name, expr, entry):
    program = Program(inputs, (Output(name, expr, ("i",), F32),))
    args = (*(BufferArg(i.name) for i in inputs), BufferArg(name))
    return Step(Kernel(point_problem(program)), Schedule(), KernelBinary(KernelSource("cuda", "", entry, args, block=8), b"image", "none"))
def of(name): return read(name, ("i",), (8,), F32)
x, t = Input("x", (8,), F32), Input("t", (8,), F32)
steps = (made((w,), "t", apply("neg", e), "once__2"), made((x, t), "y", apply("add", of("x"), of("t")), "call__3"))
program = Program((x, w), (Output("y", apply("add", of("x"), apply("neg", e)), ("i",), F32),))
weighted = Executable(Plan(program, tuple(s.kernel for s in steps)), steps)
"""


def test_on_cuda_only_the_first_call_with_the_constants_launches_what_prepares(fake: Path) -> None:
    script = """
run = CudaRunner(weighted)
w1, w2 = Tensor(0x200), Tensor(0x300)
for w in (w1, w1, w2, w1, w2):
    run(Tensor(0x100), w)
"""
    _, log = run(fake, PRELUDE + CUDA + script)
    launches = [line.split()[1] for line in log if line.startswith("launch")]
    assert launches == ["once__2", "call__3", "call__3", "once__2", "call__3", "call__3", "call__3"]
    prepared = {line.split()[-1] for line in log if line.startswith("launch once")}
    read_by = [line.split()[-2] for line in log if line.startswith("launch call")]
    assert len(prepared) == 2
    assert set(read_by) == prepared
    assert read_by[0] == read_by[1] == read_by[3] != read_by[2] == read_by[4]


def test_what_a_captured_graph_reads_is_kept_when_other_constants_come(fake: Path) -> None:
    script = """
import eqsat.codegen.cuda.driver as driver
run = CudaRunner(weighted)
run._constants.remembered = 2
first = Tensor(0x200)
run(Tensor(0x100), first)
real, driver.is_capturing = driver.is_capturing, lambda stream: True
run(Tensor(0x100), first)
driver.is_capturing = real
freed = []
free, driver.cu.cuMemFree = driver.cu.cuMemFree, lambda pointer: freed.append(int(pointer))
others = [Tensor(0x300 + 16 * n) for n in range(4)]
for w in others:
    run(Tensor(0x100), w)
print(len(freed))
driver.cu.cuMemFree = free
"""
    out, _ = run(fake, PRELUDE + CUDA + script)
    assert out == "2"  # of four new sets two are kept, and two went; the captured one did not


def test_a_stream_is_not_captured_before_its_constants_are_prepared(fake: Path) -> None:
    script = """
import eqsat.codegen.cuda.driver as driver
run = CudaRunner(weighted)
w = Tensor(0x200)
real, driver.is_capturing = driver.is_capturing, lambda stream: True
try:
    run(Tensor(0x100), w)
except EqsatError as e:
    print(e)
driver.is_capturing = real
run(Tensor(0x100), w)
"""
    out, log = run(fake, PRELUDE + CUDA + script)
    assert "a call with the constants w before the stream is captured" in out
    assert sum(line.startswith("launch once") for line in log) == 1


def test_what_no_input_is_needed_for_is_prepared_too() -> None:
    position = apply("cast", iota("i", N), dtype=F32)
    last = step((X, Input("t", (N,), F32)), "y", apply("add", value("x"), value("t")))
    found = executable([step((), "t", position), last], ("y", apply("add", value("x"), position)))
    assert [k.name for k in found.plan.prepared] == ["t"]
    x, v, w = arrays()
    np.testing.assert_allclose(CpuRunner(found)(x, v, w), x + np.arange(N, dtype=np.float32), rtol=1e-6)


def test_constants_are_declared_by_name() -> None:
    program = as_program(lambda x, w: x @ w, ((4, 8), "f32"), ((8, 3), "f32"))
    assert [i.constant for i in with_constants(program, ["w"]).inputs] == [False, True]
    assert with_constants(program, []) is program
    with pytest.raises(UsageError, match="among the inputs x, w; got 'W'"):
        with_constants(program, ["W"])


@pytest.fixture(scope="module")
def product() -> Optimized:
    """Return x·v·w with constants v and w, searched on a device whose times follow the bounds."""
    specs = [((64, 64), "f32")] * 3
    program = with_constants(as_program(lambda x, v, w: x @ v @ w, *specs), ["v", "w"])
    return searched(program)


def searched(program: Program) -> Optimized:
    device = FakeDevice(spread=0.1)
    place = Place(parse_target("cpu"), device.name, device.fingerprint, lambda _: device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "resolve", lambda _: place)
        return optimize(program, store=":memory:")


def test_the_search_prefers_what_is_prepared_once(product: Optimized) -> None:
    plan = product.executable.plan
    (once,) = plan.prepared
    assert once.reads in (("v", "w"), ("w", "v"))
    assert len(product.executable.call.steps) == 1


def test_one_right_schedule_is_enough_for_what_is_prepared(product: Optimized) -> None:
    once = next(k for k in product.receipt.plan["kernels"] if k["prepared"])
    each = next(k for k in product.receipt.plan["kernels"] if not k["prepared"])
    assert len([t for t in once["trials"] if t["status"] == "ok"]) == 1
    assert len([t for t in each["trials"] if t["status"] == "ok"]) > 1


def test_the_receipt_tells_what_is_prepared_and_counts_the_call_alone(product: Optimized) -> None:
    once = next(k for k in product.receipt.plan["kernels"] if k["prepared"])
    assert once["prepared"]["bytes"] == product.receipt.prepared_bytes == 4 * 64 * 64
    assert once["prepared"]["median_ns"] > 0
    assert product.receipt.flops == 2 * 64**3
    assert f"prepared {once['writes'][0]} = " in str(product.receipt)
    assert "ms once for the constants" in str(product.receipt)
    assert "0.0164 MB kept" in str(product.receipt)
    assert f"prepared {once['writes'][0]} (contract)" in str(product.leaderboard)


def test_without_the_promise_nothing_is_prepared(product: Optimized) -> None:
    inputs = tuple(Input(i.name, i.shape, i.dtype) for i in product.executable.plan.program.inputs)
    program = Program(inputs, product.executable.plan.program.outputs)
    found = searched(program)
    assert found.executable.plan.prepared == ()
    assert len(found.executable.call.steps) == 2
    assert not any(k["prepared"] for k in found.receipt.plan["kernels"])


def test_what_is_far_larger_than_the_inputs_is_not_favoured_for_being_prepared() -> None:
    def outer(u: Any, v: Any, x: Any) -> Any:
        return fn.exp(u[:, None] * v[None, :]) @ x

    rules = builtin_rules()

    def made(n: int) -> set[bool]:
        program = with_constants(as_program(outer, ((n,), "f32"), ((n,), "f32"), ((n,), "f32")), ["u", "v"])
        with Session() as session:
            _, frozen = session.saturate(program, rules.rules, declarations=declarations(rules))
        graph = KernelGraph(program, frozen)
        found, _ = candidates_of(graph.kernels)
        return {c.prepared for c in mark_prepared(found, graph)}

    assert made(64) == {True, False}
    assert made(4096) == {False}  # 64 MiB from 48 KiB


def test_on_cuda_a_plan_is_timed_without_its_preparation(fake: Path) -> None:
    script = """
import dataclasses
def timed(constant):
    made = plan("negate", "negate_b", "negate")
    inputs = tuple(dataclasses.replace(i, constant=constant) for i in made.plan.program.inputs)
    whole = dataclasses.replace(made.plan, program=Program(inputs, made.plan.program.outputs))
    return dataclasses.replace(made, plan=whole)
once, always = timed(True), timed(False)
assert [len(p.call.steps) for p in (once, always)] == [1, 3]
print(json.dumps([m.median_ns for m in device.time_plans([once, always, once])] + [device.verify_plan(once).ok]))
device.close()
"""
    out, _ = run(fake, CUDA_DEVICE + script)
    once, always, again, right = json.loads(out)
    assert once == again == pytest.approx(2000, rel=0.01)  # a launch takes 2 µs there
    assert always == pytest.approx(6000, rel=0.01)
    assert right
