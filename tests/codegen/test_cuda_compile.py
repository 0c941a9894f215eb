"""NVRTC without a GPU: every family compiles for its architectures, without spills or stack, and the machine code says what it should."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eqsat.codegen.cuda import nvrtc
from eqsat.codegen.cuda.nvrtc import compile_many, compile_source, parse_resources, unfit
from eqsat.codegen.cuda.point import PointFamily, PointSweepTile, PointTile, TransposeTile
from eqsat.codegen.cuda.reduce import ReduceFamily
from eqsat.codegen.cuda.reduce_schedule import (
    ColumnTile,
    FallbackReduceTile,
    GridReduceTile,
    HeldColumnTile,
    HeldGridTile,
    ParkedRowTile,
    RowTile,
)
from eqsat.codegen.cuda.simt import SimtFamily, SimtTile
from eqsat.codegen.kernel import KernelSource, WorkspaceArg
from eqsat.codegen.problem import PointProblem, contract_problem, point_problem, reduce_problem
from eqsat.codegen.targets import parse_target
from eqsat.errors import CompileError, EnvironmentMissingError, UsageError
from eqsat.ir import Input, Output, Program, apply, const, read
from eqsat.ops import TABLE, Kind
from eqsat.types import DType

F32, BF16 = DType.F32, DType.BF16
SM90, SM80 = parse_target("sm_90"), parse_target("sm_80")


def _usable() -> bool:
    try:
        nvrtc.version()
    except EnvironmentMissingError:
        return False
    return True


pytestmark = pytest.mark.skipif(not _usable(), reason="NVRTC is not installed")


def _problems() -> Any:
    spec = importlib.util.spec_from_file_location("codegen_problems", Path(__file__).with_name("problems.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make = _problems()


def point(program: Program, schedule: PointTile | TransposeTile) -> KernelSource:
    """Emit a point kernel."""
    found = point_problem(program)
    assert not isinstance(found, str), found
    return PointFamily().emit(found, schedule)


def reduce(program: Program, schedule: Any) -> KernelSource:
    """Emit a reduce kernel."""
    found = reduce_problem(program)
    assert not isinstance(found, str), found
    return ReduceFamily().emit(found, schedule)


def contract(program: Program, schedule: SimtTile) -> KernelSource:
    """Emit a plain contract kernel."""
    found = contract_problem(program)
    assert not isinstance(found, str), found
    return SimtFamily().emit(found, schedule)


def swiglu(rows: int = 16384, length: int = 11008) -> Program:
    """Return silu(a)·b on bf16."""
    a, b = (make.array(x, BF16, m=rows, n=length) for x in "ab")
    return make.program(apply("mul", make.silu(a), b), "mn", BF16)


def row_softmax(rows: int = 8192, length: int = 8192) -> Program:
    """Return the softmax of bf16 rows."""
    return make.program(make.softmax(make.array("x", BF16, m=rows, n=length), "n"), "mn", BF16)


def column_sum(rows: int = 16384, columns: int = 8192) -> Program:
    """Return Σ over the outer axis."""
    return make.program(make.reduce("sum", "m", make.array("x", F32, m=rows, n=columns)), "n")


def disassemble(image: bytes, folder: Path) -> str:
    """Return the machine code as text."""
    found = [f for f in importlib.metadata.files("nvidia-cuda-nvdisasm") or () if f.name == "nvdisasm"]
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(image)
    return subprocess.run([str(found[0].locate()), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout


def _has_disassembler() -> bool:
    try:
        return bool(importlib.metadata.files("nvidia-cuda-nvdisasm"))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_disassembler = pytest.mark.skipif(not _has_disassembler(), reason="nvdisasm is not installed")


def parked_softmax():
    return make.program(make.softmax(make.array("x", F32, m=64, n=393216), "n"), "mn")


def board() -> dict[str, KernelSource]:
    """Return kernels of the board's sizes, one or two for each template."""
    x = make.array("x", F32, m=4096, n=2048)
    wide = make.array("x", BF16, m=1024, n=131072)
    tall, long = make.array("x", F32, m=1024, n=4096), make.array("x", F32, m=64, n=1 << 20)
    g = make.array("g", F32, n=2048)
    gemv = make.program(make.matmul(make.array("a", BF16, m=4096, k=4096), make.array("v", BF16, k=4096)), "m", BF16)
    dot = make.program(make.matmul(make.array("a", F32, k=1 << 24), make.array("b", F32, k=1 << 24)), ())
    gemm = make.program(make.matmul(make.array("a", F32, m=1024, k=512), make.array("b", F32, k=512, n=1024)), "mn")
    return {
        "swiglu": point(swiglu(), PointTile(256, 1, 16, 0)),
        "transpose": point(make.program(x, "nm"), TransposeTile(64, 256, 16, 0)),
        "softmax": reduce(row_softmax(), RowTile(8, 1, 16, 1, 0, 0)),
        "softmax-cluster": reduce(make.program(make.softmax(wide, "n"), "mn", BF16), RowTile(8, 1, 16, 8, 0, 0)),
        "gemv": reduce(gemv, RowTile(2, 2, 16, 1, 0, 0)),
        "column-sum": reduce(column_sum(), ColumnTile(32, 8, 8, 16, 4)),
        "column-softmax": reduce(make.program(make.softmax(tall, "m"), "mn"), HeldColumnTile(16, 32, 4, 16, 0)),
        "row-teams": reduce(make.program(make.softmax(wide, "n"), "mn", BF16), HeldGridTile(512, 4, 66, 16, 1, 0)),
        "row-grid": reduce(make.program(make.softmax(long, "n"), "mn"), HeldGridTile(512, 66, 2, 16, 1, 0)),
        "row-parked": reduce(parked_softmax(), ParkedRowTile(16, 16, 16, 8, 3, 0)),
        "normalised": point(make.program(apply("mul", apply("add", x, g), g), "mn"), PointSweepTile(256, 4, 16, 0)),
        "dot": reduce(dot, GridReduceTile(256, 264, 16, 4, 0)),
        "fallback": reduce(row_softmax(33, 131), FallbackReduceTile(4)),
        "gemm": contract(gemm, SimtTile(128, 128, 8, 8, 8)),
    }


def test_every_template_compiles_for_hopper_without_spills_or_stack():
    kernels = board()
    for index, result in compile_many(list(kernels.values()), SM90, 2):
        name = list(kernels)[index]
        assert not isinstance(result, CompileError), f"{name}: {result}"
        assert (result.resources.spill_bytes, result.resources.stack_bytes) == (0, 0), name
        assert 0 < result.resources.registers <= 168, name
        assert result.image[:4] == b"\x7fELF"


def test_what_needs_no_cluster_compiles_for_ampere():
    kernels = {name: k for name, k in board().items() if k.requires == ""}
    assert len(kernels) == 9
    for _, result in compile_many(list(kernels.values()), SM80, 2):
        assert not isinstance(result, CompileError), result


@pytest.mark.parametrize("dtype", list(DType), ids=str)
def test_every_pointwise_op_compiles_without_a_stack_frame(dtype):
    total = const(0.0, DType.F64)
    reads = [make.array(f"x{i}", dtype, n=256) for i in range(3)]
    for op in TABLE:
        if op.kind is not Kind.POINTWISE or (dtype.is_float and op.name in ("and", "or", "not")):
            continue
        if dtype is DType.BOOL and op.name in ("neg", "sub"):  # NumPy refuses them as well
            continue
        args = [apply("lt", reads[1], reads[2]), *reads[:2]] if op.name == "where" else reads[: op.arity]
        for to in list(DType) if op.name == "cast" else [None]:
            value = apply(op.name, *args, dtype=to)
            total = apply("add", total, apply("cast", value, dtype=DType.F64))
    source = point(make.program(total, "n", DType.F64), PointTile(64, 1, 1, 0))
    found = compile_source(source, SM90).resources
    assert (found.stack_bytes, found.spill_bytes) == (0, 0)


@needs_disassembler
def test_pointwise_kernels_load_and_store_sixteen_bytes_at_a_time(tmp_path):
    code = disassemble(compile_source(point(swiglu(), PointTile(256, 2, 16, 0)), SM90).image, tmp_path)
    accesses = re.findall(r"\b(LDG|STG)\.E(\.[A-Z0-9.]*)?", code)
    assert len(accesses) == 6
    assert all("128" in width for _, width in accesses)
    assert not re.search(r"\b(LDL|STL)\b", code)
    # Every load of both vectors is issued before the first is used.
    assert code.rindex("LDG") < code.index("MUFU")


@needs_disassembler
def test_a_row_is_read_from_memory_once_when_it_fits_the_registers(tmp_path):
    code = disassemble(compile_source(reduce(row_softmax(), RowTile(8, 1, 16, 1, 0, 0)), SM90).image, tmp_path)
    assert len(re.findall(r"\bLDG\.E\.128", code)) == 4  # 8192 elements, 256 threads, 8 at a time
    assert len(re.findall(r"\bSTG\.E\.128", code)) == 4


def test_a_variant_that_spills_is_pruned_and_may_be_let_through():
    source = point(swiglu(), PointTile(256, 1, 16, 0))
    text = source.text.replace("__launch_bounds__(256)", "__launch_bounds__(1024, 2)").replace(
        "UNROLL for (int j = 0; j < 8; ++j)", _HUNGRY
    )
    hungry = KernelSource("cuda", text, source.entry, source.args, source.grid, source.block)
    with pytest.raises(CompileError, match=r"pruned: the kernel for sm_90a (spills|keeps)"):
        compile_source(hungry, SM90)
    assert compile_source(hungry, SM90, allow_spills=True).resources.spill_bytes > 0


_HUNGRY = """float many[96];
      UNROLL for (int i = 0; i < 96; ++i) many[i] = load_one(in0 + i * v);
      __syncthreads();
      UNROLL for (int i = 0; i < 96; ++i) many[i] *= many[(i * 7 + 5) % 96];
      __syncthreads();
      float all = 0; UNROLL for (int i = 0; i < 96; ++i) all = all * many[i] + 1.f;
      if (all == 0.5f) return;
      UNROLL for (int j = 0; j < 8; ++j)"""


def test_a_source_that_does_not_compile_brings_the_compilers_log():
    source = KernelSource("cuda", 'extern "C" __global__ void eqsat_kernel() { nonsense(); }', "eqsat_kernel", ())
    with pytest.raises(CompileError, match=r'identifier "nonsense" is undefined'):
        compile_source(source, SM90)


def test_ptx_comes_on_request():
    source = point(swiglu(), PointTile(256, 1, 16, 0))
    assert ".target sm_90a" in compile_source(source, SM90, ptx=True).ptx
    assert compile_source(source, SM90).ptx == ""


def test_c_source_is_refused_by_the_cuda_compiler():
    with pytest.raises(UsageError, match="expected CUDA source for a CUDA target; got c for sm_90"):
        compile_source(KernelSource("c", "", "f", ()), SM90)


def test_resources_are_read_from_the_log():
    log = """ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16640 bytes smem
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"""
    found = parse_resources(log)
    assert (found.registers, found.stack_bytes, found.spill_bytes, found.shared_bytes) == (40, 16, 20, 16640)
    assert "C7510" in found.warnings[0]
    assert unfit(found) == "spills 20 bytes of registers"


def test_an_output_of_integers_divides_as_floats():
    a, b = (read(x, ("n",), (8,), DType.I32) for x in "ab")
    program = Program(tuple(Input(x, (8,), DType.I32) for x in "ab"), (Output("y", apply("div", a, b), ("n",), F32),))
    found = point_problem(program)
    assert isinstance(found, PointProblem)
    assert "eq_div(" in PointFamily().emit(found, PointTile(64, 1, 1, 0)).text


@pytest.mark.slow
def test_many_sources_compile_in_processes_and_a_caller_may_leave_early():
    sources = [point(swiglu(), PointTile(t, c, 16, h)) for t in (128, 256, 512, 1024) for c in (1, 2) for h in (0, 1)]
    found = dict(compile_many(sources, SM90, 5))
    assert sorted(found) == list(range(16))
    assert not any(isinstance(b, CompileError) for b in found.values())
    results = compile_many(sources, SM90, 5)
    next(results)
    results.close()  # type: ignore[attr-defined]


@needs_disassembler
def test_a_parked_row_is_read_from_memory_once_and_waits_for_no_register(tmp_path):
    source = reduce(parked_softmax(), ParkedRowTile(16, 16, 16, 8, 3, 0))
    code = disassemble(compile_source(source, SM90).image, tmp_path)
    assert len(re.findall(r"\bLDG\.E\.128", code)) == 4  # 12 vectors of a thread, of which 8 are parked
    assert len(re.findall(r"\bLDGSTS", code)) == 8


@needs_disassembler
def test_the_next_row_is_on_its_way_before_blocks_wait_for_each_other(tmp_path):
    x = make.array("x", F32, m=64, n=1 << 20)
    source = reduce(make.program(make.softmax(x, "n"), "mn"), HeldGridTile(512, 66, 2, 16, 1, 0))
    code = disassemble(compile_source(source, SM90).image, tmp_path)
    assert code.rindex("LDGSTS") < code.index("ATOM")
    assert source.cooperative
    assert source.args[-1] == WorkspaceArg(zeroed=True)


@needs_disassembler
def test_a_cluster_does_not_wait_for_its_stores(tmp_path):
    code = disassemble(compile_source(board()["softmax-cluster"], SM90).image, tmp_path)
    assert code.rindex("MEMBAR") < code.index("STG.E.128")  # a release waits for stores: the last one comes before them
    assert code.rindex("UCGABAR_WAIT") > code.rindex("STG.E.128")
