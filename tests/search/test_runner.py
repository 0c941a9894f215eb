"""The runner against a stand-in for libcuda: what it launches, with which pointers, on which stream."""

import json

import pytest

from tests.codegen.fake_cuda import build, run

PRELUDE = """
import itertools, json, sys, types
torch = types.ModuleType("torch")
class Named:
    def __init__(self, name): self.name = name
    def __str__(self): return "torch." + self.name
for name in ("float32", "bfloat16", "strided"):
    setattr(torch, name, Named(name))
class Tensor:
    strided_like = True
    def __init__(self, pointer, shape=(8,), dtype=torch.float32, device="cuda", index=0):
        self.pointer, self.shape, self.dtype, self.layout = pointer, shape, dtype, torch.strided
        self.device = types.SimpleNamespace(type=device, index=index)
    def data_ptr(self): return self.pointer
    def is_contiguous(self): return True
    def get_device(self): return self.device.index if self.device.type == "cuda" else -1
Tensor.__module__ = "torch"
torch.Tensor = Tensor
fresh = itertools.cycle([0xa000, 0xb000])
torch.empty = lambda shape, dtype, device: Tensor(next(fresh), shape, dtype)
torch.device = lambda *a: a
current = types.SimpleNamespace(cuda_stream=0x11)
torch.cuda = types.SimpleNamespace(current_stream=lambda device: current)
sys.modules["torch"] = torch

from eqsat.codegen.kernel import BufferArg, KernelBinary, KernelSource, Schedule, WorkspaceArg
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import point_problem
from eqsat.ir import Input, Output, Program, apply, read
from eqsat.search.runner import CudaRunner
from eqsat.types import DType
from eqsat.errors import EqsatError
F32 = DType.F32
def kernel(source, sink, entry, **more):
    program = Program((Input(source, (8,), F32),), (Output(sink, apply("neg", read(source, ("i",), (8,), F32)), ("i",), F32),))
    args = (BufferArg(source), BufferArg(sink), *([WorkspaceArg(True)] if more else []))
    binary = KernelBinary(KernelSource("cuda", "", entry, args, block=8, **more), b"image", "none")
    return Step(Kernel(point_problem(program)), Schedule(), binary)
def executable(*steps):
    e = read("x", ("i",), (8,), F32)
    for _ in steps:
        e = apply("neg", e)
    program = Program((Input("x", (8,), F32),), (Output("y", e, ("i",), F32),))
    return Executable(Plan(program, tuple(s.kernel for s in steps)), steps)
one = executable(kernel("x", "y", "one__2"))
two = executable(kernel("x", "h", "first__2"), kernel("h", "y", "second__3", workspace_bytes=64))
"""


@pytest.fixture(scope="module")
def fake_cuda(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake_cuda")
    build(folder)
    return lambda script: run(folder, PRELUDE + script)


def test_a_kernel_runs_on_the_caller_s_stream_with_the_caller_s_pointers(fake_cuda):
    out, log = fake_cuda("""
y = CudaRunner(one)(Tensor(0x100))
print(hex(y.pointer), type(y).__name__)
""")
    assert out == "0xa000 Tensor"
    assert log[-1] == "launch one__2 grid 1 1 1 block 8 1 1 shared 0 stream 11 args 100 a000"


def test_an_explicit_stream_and_output_are_used(fake_cuda):
    _, log = fake_cuda("""
mine = Tensor(0xc000)
assert CudaRunner(one)(Tensor(0x100), stream=types.SimpleNamespace(cuda_stream=0x22), out=mine) is mine
""")
    assert log[-1].endswith("stream 22 args 100 c000")


def test_a_repeated_call_packs_nothing_anew(fake_cuda):
    out, log = fake_cuda("""
from eqsat.codegen.cuda import driver
packed = []
plain = driver.Launch.__init__
driver.Launch.__init__ = lambda self, *a, **more: (packed.append(1), plain(self, *a, **more))[1]
run = CudaRunner(one)
for _ in range(6):
    run(Tensor(0x100))
print(len(packed))
""")
    assert out == "2"  # the allocator hands out two addresses in turn
    assert [line[-4:] for line in log if line.startswith("launch")] == ["a000", "b000"] * 3


def test_a_plan_of_several_kernels_is_one_graph_with_its_own_intermediate(fake_cuda):
    _, log = fake_cuda("""
run = CudaRunner(two)
run(Tensor(0x100), out=Tensor(0xc000))
run(Tensor(0x100), out=Tensor(0xc000))
""")
    assert [line for line in log if "load" not in line and not line.startswith("  ")] == [
        "instantiate",
        "graph stream 11",
        "graph stream 11",
    ]
    first, second = (line.split("args ")[1].split() for line in log[-2:])
    assert first[0] == "100"
    assert first[1] == second[0]  # the intermediate
    assert second[1] == "c000"


def test_new_pointers_beyond_the_memory_update_the_oldest_graph(fake_cuda):
    _, log = fake_cuda("""
run = CudaRunner(two, remembered=1)
run(Tensor(0x100), out=Tensor(0xc000))
run(Tensor(0x200), out=Tensor(0xd000))
""")
    assert [line.split()[0] for line in log if line.split()[0] in ("instantiate", "update", "graph")] == [
        "instantiate",
        "graph",
        "update",
        "graph",
    ]
    assert log[-1].split("args ")[1].split()[1] == "d000"


def test_a_plan_inside_the_caller_s_capture_is_launched_kernel_by_kernel(fake_cuda):
    _, log = fake_cuda("""
CudaRunner(two)(Tensor(0x100), out=Tensor(0xc000), stream=0x7777)
""")
    assert [line.split()[1] for line in log if line.startswith("launch")] == ["first__2", "second__3"]
    assert "instantiate" not in log


def test_a_plan_may_be_run_without_a_graph(fake_cuda):
    _, log = fake_cuda("CudaRunner(two, graph=False)(Tensor(0x100), out=Tensor(0xc000))")
    assert [line.split()[1] for line in log if line.startswith("launch")] == ["first__2", "second__3"]


def test_two_streams_do_not_share_an_intermediate(fake_cuda):
    _, log = fake_cuda("""
run = CudaRunner(two, graph=False)
run(Tensor(0x100), out=Tensor(0xc000), stream=0x31)
run(Tensor(0x100), out=Tensor(0xc000), stream=0x32)
""")
    firsts = [line.split("args ")[1].split()[1] for line in log if line.startswith("launch first__2")]
    assert len(set(firsts)) == 2


def test_a_thread_without_a_context_gets_ours_for_the_launch(fake_cuda):
    _, log = fake_cuda("CudaRunner(executable(kernel('x', 'y', 'homeless__2')))(Tensor(0x100))")
    assert log[-1].startswith("launch homeless")


def test_wrong_arguments_are_refused_by_name_before_any_launch(fake_cuda):
    out, log = fake_cuda("""
import numpy as np
run = CudaRunner(one)
run(Tensor(0x100))
said = []
for args in ((), (Tensor(0x100, (9,)),), (Tensor(0x100, dtype=torch.bfloat16),), (Tensor(0x104),), (Tensor(0x100, device="cpu"),),
             (np.zeros(8, np.float32),)):
    try:
        run(*args)
    except EqsatError as e:
        said.append(str(e))
try:
    run(Tensor(0x100), stream="main")
except EqsatError as e:
    said.append(str(e))
print(json.dumps(said))
""")
    said = json.loads(out)
    expected = [
        "expected 1 arguments (x: f32[8]); got 0",
        "got shape [9]",
        "got dtype bfloat16",
        "aligned to 16 bytes",
        "on cpu (torch)",
        "on cpu (numpy)",
        "expected a stream",
    ]
    assert len(said) == len(expected)
    for text, part in zip(said, expected, strict=True):
        assert part in text
    assert all("argument 'x'" in text for text in said[1:6])
    assert len([line for line in log if line.startswith("launch")]) == 1


def test_a_repeated_call_costs_few_microseconds_of_python(fake_cuda):
    out, _ = fake_cuda("""
import os, time
run, x = CudaRunner(one), Tensor(0x100)
calls = 0
run._launch = lambda key: None
for _ in range(200): run(x)
best = 1.0
for _ in range(20):
    start = time.perf_counter()
    for _ in range(200): run(x)
    best = min(best, (time.perf_counter() - start) / 200)
print(best * 1e6)
""")
    assert float(out) < 100  # loose: the machine may be busy; the bar is measured on the device
