"""The CUDA device and the runner on a real GPU: what the stand-ins cannot show."""

import time

import numpy as np
import pytest

from eqsat.codegen.kernel import BufferArg, KernelSource, Schedule
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import point_problem
from eqsat.errors import DTypeError, ShapeError, UsageError
from eqsat.ir import Input, Output, Program, apply, read
from eqsat.search.cuda_device import CudaDevice
from eqsat.search.runner import CudaRunner
from eqsat.types import DType

pytestmark = pytest.mark.device

N = 1 << 20
BODY = "{ int i = blockIdx.x * 256 + threadIdx.x; %s }"
KERNELS = {
    "right": "y[i] = -x[i];",
    "again": "y[i] = 0.f - x[i] * 1.f;",
    "wrong": "y[i] = -x[i] + (i == 777 ? 1.f : 0.f);",
    "unwritten": f"if (i != {N - 1}) y[i] = -x[i];",
    "beyond": f"y[i] = -x[i]; if (i == {N - 1}) y[i + 1] = 0.f;",
    "wild": "y[i + (1ll << 40)] = x[i];",
    "endless": "volatile float* v = y; long long t = clock64(); while (v[0] != 12345.f && clock64() - t < (1ll << 35)) {} y[i] = -x[i];",
}


def negation(source="x", sink="y", dtype=DType.F32):
    e = apply("neg", read(source, ("i",), (N,), dtype))
    return Program((Input(source, (N,), dtype),), (Output(sink, e, ("i",), dtype),))


def source(body, inner="x", outer="y"):
    text = f'extern "C" __global__ void k(const float* x, float* y) {BODY % body}'
    return KernelSource("cuda", text, "k", (BufferArg(inner), BufferArg(outer)), (N // 256, 1, 1), 256)


@pytest.fixture(scope="module")
def device():
    with CudaDevice(limit_s=5.0) as made:
        yield made


@pytest.fixture(scope="module")
def binaries(device):
    made = dict(device.compile([source(body) for body in KERNELS.values()]))
    return {name: made[i] for i, name in enumerate(KERNELS)}


@pytest.fixture(scope="module")
def trials(device, binaries):
    return dict(zip(binaries, device.sweep(negation(), list(binaries.values())), strict=True))


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("right", "ok"),
        ("again", "ok"),
        ("wrong", "wrong"),
        ("unwritten", "wrong"),
        ("beyond", "wrong"),
        ("wild", "fault"),
        ("endless", "timeout"),
    ],
)
def test_each_kernel_gets_its_status_and_the_sweep_goes_on(trials, name, status):
    assert trials[name].status == status, trials[name].note


def test_a_streaming_kernel_is_timed_cold_between_the_launch_floor_and_the_copy_rate(device, trials):
    m = trials["right"].measurement
    rates = device.rates()
    assert 8 * N / (1.1 * rates.copy) < m.median_ns < 100_000
    assert m.low_ns <= m.median_ns <= m.high_ns
    assert 200 < m.clock_mhz < 4000


def test_the_ceilings_are_those_of_a_gpu(device):
    rates = device.rates()
    assert 200 < rates.copy < rates.read * 2
    assert rates.rate("f32") > 1000
    assert rates.rate("bf16") > rates.rate("f32")
    assert 300 < rates.launch_ns < 5000


def test_a_second_sweep_of_small_kernels_is_quick(device, binaries):
    good = [source(f"y[i] = -x[i]; /* {i} */ if (x[i] > 1e30f) y[i] = {i}.f;") for i in range(30)]
    made = [b for _, b in sorted(device.compile(good))]
    start = time.monotonic()
    device.sweep(negation(), made)
    assert time.monotonic() - start < 3.0


@pytest.fixture(scope="module")
def twice(device):
    """Return a plan of two launches: y = -(-x)."""
    e = apply("neg", apply("neg", read("x", ("i",), (N,), DType.F32)))
    whole = Program((Input("x", (N,), DType.F32),), (Output("y", e, ("i",), DType.F32),))
    made = dict(device.compile([source(KERNELS["right"], "x", "h"), source(KERNELS["right"], "h", "y")]))
    programs = (negation("x", "h"), negation("h", "y"))
    steps = tuple(Step(Kernel(point_problem(p)), Schedule(), made[i]) for i, p in enumerate(programs))
    return Executable(Plan(whole, tuple(s.kernel for s in steps)), steps)


def test_a_plan_is_verified_and_timed(device, twice):
    assert device.verify_plan(twice).ok
    a, b = device.time_plans([twice, twice], rounds=11)
    assert a.median_ns == pytest.approx(b.median_ns, rel=0.05)


@pytest.mark.parametrize("graph", [True, False])
def test_a_plan_runs_on_cupy_arrays(twice, graph):
    cupy = pytest.importorskip("cupy")
    run = CudaRunner(twice, graph=graph)
    for seed in range(3):
        x = cupy.random.default_rng(seed).standard_normal(N, dtype=np.float32)
        y = run(x)
        assert isinstance(y, cupy.ndarray)
        assert bool((y == x).all())
        with cupy.cuda.Stream(non_blocking=True) as stream:
            stream.wait_event(cupy.cuda.get_current_stream().record())
            assert bool((run(x) == x).all())


def test_a_plan_runs_on_torch_tensors_and_inside_a_caller_s_graph(twice):
    torch = pytest.importorskip("torch")
    run = CudaRunner(twice)
    x = torch.randn(N, device="cuda")
    assert torch.equal(run(x), x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            y = run(x)
    x.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, x)


def test_bfloat16_tensors_pass_by_pointer(device):
    torch = pytest.importorskip("torch")
    text = f'extern "C" __global__ void k(const unsigned short* x, unsigned short* y) {BODY % "y[i] = x[i] ^ 0x8000;"}'
    made = dict(device.compile([KernelSource("cuda", text, "k", (BufferArg("x"), BufferArg("y")), (N // 256, 1, 1), 256)]))
    program = negation(dtype=DType.BF16)
    kernel = Kernel(point_problem(program))
    run = CudaRunner(Executable(Plan(program, (kernel,)), (Step(kernel, Schedule(), made[0]),)))
    x = torch.randn(N, device="cuda").bfloat16()
    assert torch.equal(run(x), -x)


def test_wrong_arrays_are_refused(twice):
    torch = pytest.importorskip("torch")
    run = CudaRunner(twice)
    with pytest.raises(ShapeError, match="argument 'x'"):
        run(torch.zeros(N + 1, device="cuda"))
    with pytest.raises(DTypeError, match="got dtype float16"):
        run(torch.zeros(N, device="cuda", dtype=torch.float16))
    with pytest.raises(UsageError, match="on cpu"):
        run(torch.zeros(N))
    with pytest.raises(UsageError, match="Make it contiguous"):
        run(torch.zeros(2 * N, device="cuda")[::2])
    with pytest.raises(UsageError, match="aligned to 16 bytes"):
        run(torch.zeros(N + 1, device="cuda")[1:])
