"""The CUDA device end to end, its worker process included, on stand-ins for libcuda and CuPy."""

import json
from pathlib import Path

import pytest

from tests.codegen.fake_cuda import build, run

STAND_INS = Path(__file__).with_name("stand_ins")
PRELUDE = (
    f"import sys; sys.path.insert(0, {str(STAND_INS)!r})\n"
    + """
import json
from eqsat.codegen.kernel import BufferArg, KernelBinary, KernelSource, Schedule
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import point_problem
from eqsat.errors import EqsatError
from eqsat.ir import Input, Output, Program, apply, read
from eqsat.search.cuda_device import CudaDevice
from eqsat.types import DType
F32, N = DType.F32, 1024
def negation(source, sink):
    return Program((Input(source, (N,), F32),), (Output(sink, apply("neg", read(source, ("i",), (N,), F32)), ("i",), F32),))
def binary(entry, source="x", sink="y", image=b"image"):
    return KernelBinary(KernelSource("cuda", "", entry, (BufferArg(source), BufferArg(sink)), (N // 32, 1, 1), 32), image, "none")
def plan(*entries):
    names = ["x", *(f"h{i}" for i in range(len(entries) - 1)), "y"]
    e = read("x", ("i",), (N,), F32)
    for _ in entries:
        e = apply("neg", e)
    steps = tuple(Step(Kernel(point_problem(negation(a, b))), Schedule(), binary(n, a, b)) for n, a, b in zip(entries, names, names[1:]))
    program = Program((Input("x", (N,), F32),), (Output("y", e, ("i",), F32),))
    return Executable(Plan(program, tuple(s.kernel for s in steps)), steps)
device = CudaDevice()
def show(trial):
    return trial and dict(status=trial.status, note=trial.note, median=trial.measurement and trial.measurement.median_ns,
                          samples=trial.measurement and len(trial.measurement.samples_ns), clock=trial.measurement and trial.measurement.clock_mhz,
                          checks=trial.verdict and [c.name for c in trial.verdict.checks], power=trial.verdict and trial.verdict.power)
"""
)


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake_cuda")
    build(folder)

    def call(script):
        out, _ = run(folder, PRELUDE + script + "\ndevice.close()\n")
        return json.loads(out)

    return call


@pytest.fixture(scope="module")
def trials(fake):
    names = ["negate", "slow_negate", "negate_short", "negate_beyond", "negate_greedy", "faulty", "absent", "negate_b"]
    found = fake(f"""
names = {names}
print(json.dumps([show(t) for t in device.sweep(negation("x", "y"), [binary(n) for n in names])]))
""")
    return dict(zip(names, found, strict=True))


def test_right_kernels_pass_every_suite_and_are_timed(trials):
    for name in ("negate", "negate_b"):
        assert trials[name]["status"] == "ok"
        assert trials[name]["checks"] == ["exact", "normal", "uniform", "edges", "wide", "special"]
        assert trials[name]["power"][0] == trials[name]["power"][1] > 0
        assert trials[name]["median"] == pytest.approx(2000, rel=0.01)
        assert trials[name]["samples"] == 25
        assert trials[name]["clock"] == pytest.approx(1980)


def test_a_kernel_far_behind_the_best_gets_its_first_samples_only(trials):
    assert trials["slow_negate"]["status"] == "ok"
    assert trials["slow_negate"]["median"] == pytest.approx(20000, rel=0.01)
    assert trials["slow_negate"]["samples"] == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("negate_short", r"y[1023]: expected"),
        ("negate_beyond", "it wrote outside the buffer 'y'"),
        ("negate_greedy", "it changed its input 'x'"),
    ],
)
def test_a_wrong_kernel_is_rejected_with_the_reason_and_not_timed(trials, name, reason):
    assert trials[name]["status"] == "wrong"
    assert reason in trials[name]["note"]
    assert trials[name]["median"] is None


def test_a_fault_that_loses_the_context_costs_one_kernel(trials):
    assert trials["faulty"]["status"] == "fault"
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in trials["faulty"]["note"]


def test_a_kernel_that_cannot_be_loaded_is_a_fault_without_a_new_worker(trials):
    assert trials["absent"]["status"] == "fault"
    assert "CUDA_ERROR_NOT_FOUND" in trials["absent"]["note"]


def test_a_kernel_above_the_given_time_is_not_sampled_further(fake):
    (found,) = fake(
        'print(json.dumps([show(t) for t in device.sweep(negation("x", "y"), [binary("negate")], stop_above_ns=1500.0)]))'
    )
    assert found["samples"] == 2


def test_a_plan_is_verified_as_a_whole(fake):
    right, wrong, faulty = fake("""
print(json.dumps([(v.ok, v.reason) for v in map(device.verify_plan, (plan("negate", "negate"), plan("negate_short", "negate"), plan("faulty")))]))
""")
    assert right == [True, ""]
    assert wrong[0] is False
    assert "y[1023]" in wrong[1]
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in faulty[1]


def test_plans_are_timed_interleaved_one_graph_each(fake):
    one, two = fake("""
print(json.dumps([(m.median_ns, len(m.samples_ns)) for m in device.time_plans([plan("negate"), plan("negate", "slow_negate")], rounds=7)]))
""")
    assert one == [pytest.approx(2000, rel=0.02), 7]
    assert two == [pytest.approx(22000, rel=0.02), 7]


def test_a_plan_that_faults_while_timed_is_named(fake):
    message = fake("""
try:
    device.time_plans([plan("negate"), plan("faulty")])
except EqsatError as e:
    print(json.dumps(str(e)))
""")
    assert "timing plan 1 of 2" in message


def test_the_ceilings_are_measured_once(fake):
    first, again = fake("""
r = device.rates()
print(json.dumps([[r.read, r.copy, r.launch_ns, r.empirical, sorted(dict(r.flops))], device.rates() is r]))
""")
    assert again
    assert first[0] == pytest.approx((1 << 30) / 2000, rel=0.15)  # the stand-in's kernels take 2 µs, and an event 0.5 µs
    assert first[1] == pytest.approx(2 * first[0])
    assert first[2] == pytest.approx(2000, rel=0.01)
    assert first[3:] == [True, ["bf16", "f16", "f32", "f64", "tf32"]]


def test_equal_sources_are_compiled_once_and_a_bad_one_is_an_error(fake):
    found = fake("""
text = 'extern "C" __global__ void k(float* y) { y[threadIdx.x] = 1.f; }'
good = KernelSource("cuda", text, "k", (BufferArg("y"),), block=32)
bad = KernelSource("cuda", "nonsense", "k", (BufferArg("y"),), block=32)
made = dict(device.compile([good, bad, good]))
print(json.dumps([made[0] is made[2], type(made[1]).__name__, made[0].digest != ""]))
""")
    assert found == [True, "CompileError", True]


def test_a_program_that_is_wrong_in_every_kernel_of_two_families_is_given_up(fake):
    found = fake("""
from dataclasses import replace
def of(family, n):
    b = binary("negate_short", image=f"image {family} {n}".encode())
    return replace(b, source=replace(b.source, text=f"// eqsat: {family} kernel, {n}"))
one = [of("one", n) for n in range(14)]
both = [of(("one", "two")[n % 2], n) for n in range(14)]
print(json.dumps([[t.note[:9] for t in device.sweep(negation("x", "y"), kernels)] for kernels in (one, both)]))
""")
    assert [n.startswith("not tried") for n in found[0]] == [False] * 14
    assert [n.startswith("not tried") for n in found[1]] == [False] * 10 + [True] * 4
