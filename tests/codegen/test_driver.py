import json

import pytest

from eqsat.codegen.cuda import driver, limits
from eqsat.codegen.kernel import BufferArg, KernelSource, TensorMapArg
from eqsat.errors import EnvironmentMissingError, UsageError
from eqsat.types import DType
from tests.codegen.fake_cuda import build, run

PRELUDE = """
import json
from eqsat.codegen.cuda import driver
from eqsat.codegen.kernel import BufferArg, KernelBinary, KernelSource, TensorMapArg, WorkspaceArg
from eqsat.types import DType
context = driver.open_device(0)
def kernel(entry, args, **more):
    return driver.LoadedKernel(KernelBinary(KernelSource("cuda", "", entry, args, **more), b"image", "none"))
X, Y = BufferArg("x"), BufferArg("y")
"""


@pytest.fixture(scope="module")
def fake_cuda(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake_cuda")
    build(folder)
    return lambda script: run(folder, PRELUDE + script)


def test_a_launch_passes_geometry_stream_and_pointers_as_the_driver_reads_them(fake_cuda):
    _, log = fake_cuda("""
with driver.current_context(context):
    k = kernel("scale__3", (X, Y, WorkspaceArg()), grid=(7, 2, 3), block=128, shared_bytes=1024, workspace_bytes=64)
    driver.Launch(k, {"x": 0x100, "y": 0x200}, 0x300)(0x9000)
""")
    assert log[-1] == "launch scale__3 grid 7 2 3 block 128 1 1 shared 1024 stream 9000 args 100 200 300"


def test_an_overlapping_launch_asks_for_programmatic_serialization_and_is_otherwise_the_same(fake_cuda):
    _, log = fake_cuda("""
with driver.current_context(context):
    k = kernel("scale__3", (X, Y, WorkspaceArg()), grid=(7, 2, 3), block=128, shared_bytes=1024, workspace_bytes=64)
    launch = driver.Launch(k, {"x": 0x100, "y": 0x200}, 0x300, overlapping=True)
    launch(0x9000)
    launch(0x9100)
""")
    assert log[-4:] == [
        "launch attribute 6 = 1",
        "launch scale__3 grid 7 2 3 block 128 1 1 shared 1024 stream 9000 args 100 200 300",
        "launch attribute 6 = 1",
        "launch scale__3 grid 7 2 3 block 128 1 1 shared 1024 stream 9100 args 100 200 300",
    ]


def test_a_kernel_without_arguments_can_be_launched(fake_cuda):
    _, log = fake_cuda("""
with driver.current_context(context):
    driver.Launch(kernel("nothing__0", ()), {})(0)
""")
    assert log[-1] == "launch nothing__0 grid 1 1 1 block 1 1 1 shared 0 stream 0 args"


def test_much_shared_memory_and_large_clusters_are_opted_into(fake_cuda):
    _, log = fake_cuda("""
with driver.current_context(context):
    kernel("small__0", (), shared_bytes=16 * 1024)
    kernel("both__0", (), shared_bytes=48 * 1024)  # static shared memory comes on top
    kernel("large__0", (), shared_bytes=200000, cluster=16)
""")
    assert [line for line in log if line.startswith("attribute")] == [
        "attribute both__0 8 49152",
        "attribute large__0 8 200000",
        "attribute large__0 14 1",
    ]


def test_a_tensor_map_is_encoded_with_promotion_and_zero_fill_and_passed_by_value(fake_cuda):
    _, log = fake_cuda("""
m = TensorMapArg("x", DType.BF16, (4096, 1000), (8192,), (64, 128), 128)
with driver.current_context(context):
    driver.Launch(kernel("gemm__2", (m, Y)), {"x": 0x1000, "y": 0x200})(0)
""")
    assert log[-2:] == [
        "map type 9 rank 2 at 1000 dims 4096 1000 strides 8192 box 64/1 128/1 interleave 0 swizzle 3 l2 3 fill 0",
        "launch gemm__2 grid 1 1 1 block 1 1 1 shared 0 stream 0 args 7e50002 200",
    ]


def test_a_graph_replays_its_launches_and_takes_new_arguments(fake_cuda):
    _, log = fake_cuda("""
with driver.current_context(context):
    s, k = driver.Stream(), kernel("step__1", (X,))
    first = [driver.Launch(k, {"x": 1}), driver.Launch(k, {"x": 2})]
    g = driver.Graph(first, s)
    g(0x42)
    assert g.update([driver.Launch(k, {"x": 3}), driver.Launch(k, {"x": 4})], s)
    g(0x43)
    assert len(g) == 2
""")
    shown = [line.replace("launch step__1 grid 1 1 1 block 1 1 1 shared 0 stream 0 ", "") for line in log[1:]]
    assert shown == [
        "instantiate",
        "graph stream 42",
        "  args 1",
        "  args 2",
        "update",
        "graph stream 43",
        "  args 3",
        "  args 4",
    ]


def test_faults_name_cuda_s_error_and_say_whether_the_context_is_lost(fake_cuda):
    out, _ = fake_cuda("""
found = []
with driver.current_context(context):
    for entry in ("faulty__0", "absent"):
        try:
            k = kernel("faulty" if entry == "faulty__0" else entry, ())
            driver.Launch(k, {})(0)
        except driver.DriverFaultError as e:
            found.append((e.code, e.sticky, str(e)))
print(json.dumps(found))
""")
    (first, second) = json.loads(out)
    assert first[:2] == ["CUDA_ERROR_ILLEGAL_ADDRESS", True]
    assert "the launch of 'faulty'" in first[2]
    assert second[:2] == ["CUDA_ERROR_NOT_FOUND", False]
    assert "finding 'absent' in its binary" in second[2]


def test_memory_is_filled_copied_freed_and_its_lack_is_a_missing_environment(fake_cuda):
    out, _ = fake_cuda("""
from eqsat.errors import EnvironmentMissingError
with driver.current_context(context):
    a, b, none = driver.Memory(64), driver.Memory(64), driver.Memory(0)
    driver.fill(a.pointer, driver.POISON, 64)
    driver.copy(b.pointer + 8, a.pointer, 8)
    print(driver.to_host(b.pointer + 8, 8).hex(), none.pointer, a.pointer % 256)
    try:
        driver.Memory(1 << 50)
    except EnvironmentMissingError as e:
        print(e)
""")
    lines = out.splitlines()
    assert lines[0] == "ffffffffffffffff 0 0"
    assert "1,125,899,906,842,624 bytes" in lines[1]
    assert "CUDA_ERROR_OUT_OF_MEMORY" in lines[1]


def test_events_tell_the_time_between_them_in_ns(fake_cuda):
    out, _ = fake_cuda("""
with driver.current_context(context):
    a, b = driver.Event(), driver.Event()
    a.record(0); b.record(0); b.synchronize()
    print(round(a.elapsed_ns(b)))
""")
    assert out == "500"


def test_the_device_is_described_and_the_caller_s_context_is_put_back(fake_cuda):
    out, _ = fake_cuda("""
i = driver.device_info(0)
print(i.name, i.target, i.processors, i.clock_mhz, i.l2_bytes, i.driver)
with driver.current_context(context):
    kernel("a__0", ())
try:
    kernel("b__0", ())
except driver.DriverFaultError as e:
    print(e.code)
""")
    assert out.splitlines() == ["Fake H200 sm_90 132 1980.0 62914560 CUDA 13.0", "CUDA_ERROR_INVALID_CONTEXT"]


def test_a_machine_without_a_driver_has_no_device_and_says_why():
    if driver.device_count():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EnvironmentMissingError, match=r"expected an NVIDIA driver \(libcuda\)"):
        driver.device_info()


MAP = {"name": "x", "dtype": DType.BF16, "extents": (4096, 100), "strides": (8192,), "box": (64, 128), "swizzle": 128}


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(DType.BF16, "BFLOAT16"), (DType.F16, "FLOAT16"), (DType.F32, "TFLOAT32"), (DType.F64, "FLOAT64"), (DType.BOOL, "UINT8")],
)
def test_a_tensor_map_takes_the_driver_s_type_for_the_dtype(dtype, name):
    box = (128 // dtype.bytes, 8)
    assert limits.tensor_map_fields(TensorMapArg(**{**MAP, "dtype": dtype, "box": box})).data_type == name


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"strides": (8190,)}, "multiples of 16 bytes"),
        ({"strides": ()}, "a stride for each dimension but the innermost"),
        ({"box": (64, 257)}, "box extents from 1 to 256"),
        ({"box": (128, 8)}, "no wider than the swizzle"),
        ({"box": (60, 8)}, "multiple of 16 bytes"),
        ({"swizzle": 48}, "swizzle of 0, 32, 64 or 128"),
        ({"extents": (0, 100)}, "extents from 1 to"),
    ],
)
def test_a_tensor_map_that_the_hardware_cannot_hold_is_refused_by_name(change, expected):
    with pytest.raises(UsageError, match=f"tensor map of 'x': expected .*{expected}"):
        limits.tensor_map_fields(TensorMapArg(**{**MAP, **change}))


def test_a_tensor_map_needs_an_aligned_buffer():
    with pytest.raises(UsageError, match="aligned to 16 bytes; got 0x1008"):
        limits.tensor_map_fields(TensorMapArg(**MAP), pointer=0x1008)


@pytest.mark.parametrize(
    ("geometry", "reason"),
    [
        ({"grid": (0, 1, 1)}, "grid"),
        ({"grid": (1, 70000, 1)}, "grid"),
        ({"block": 1025}, "block"),
        ({"grid": (7, 1, 1), "cluster": 2}, "cluster"),
    ],
)
def test_a_launch_geometry_that_the_driver_would_refuse_is_explained(geometry, reason):
    source = KernelSource("cuda", "", "k", (BufferArg("x"),), **{"grid": (8, 1, 1), "block": 128, **geometry})
    assert limits.launch_geometry_error(source).startswith(reason)


def test_a_plain_launch_geometry_is_accepted():
    assert limits.launch_geometry_error(KernelSource("cuda", "", "k", (), (8, 1, 1), 128, cluster=2)) is None


@pytest.mark.device
def test_a_compiled_kernel_runs_and_a_graph_of_it_is_timed():
    from eqsat.codegen.cuda import nvrtc
    from eqsat.codegen.targets import parse_target

    text = 'extern "C" __global__ void add_one(int* y) { y[threadIdx.x] += 1; }'
    source = KernelSource("cuda", text, "add_one", (BufferArg("y"),), block=32)
    binary = nvrtc.compile_source(source, parse_target(driver.device_info().target))
    with driver.current_context(driver.open_device(0)):
        stream, memory = driver.Stream(), driver.Memory(128)
        driver.fill(memory.pointer, 0, 128, stream.handle)
        launch = driver.Launch(driver.LoadedKernel(binary), {"y": memory.pointer})
        graph = driver.Graph([launch] * 10, stream)
        start, end = driver.Event(), driver.Event()
        start.record(stream.handle)
        graph(stream.handle)
        end.record(stream.handle)
        stream.synchronize()
        assert driver.to_host(memory.pointer, 128) == (10).to_bytes(4, "little") * 32
        assert 0 < start.elapsed_ns(end) < 1e9
