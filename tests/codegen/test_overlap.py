"""Kernels that may overlap: each waits for those before it first of all, in the text and in the machine code of every family."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from eqsat.codegen.cuda.emit import assemble
from eqsat.codegen.cuda.nvrtc import compile_source
from eqsat.codegen.cuda.point import PointFamily, PointTile
from eqsat.codegen.cuda.reduce import ReduceFamily
from eqsat.codegen.cuda.reduce_schedule import RowTile
from eqsat.codegen.cuda.simt import SimtFamily, SimtTile
from eqsat.codegen.cuda.skinny import SkinnyFamily, SkinnyTile
from eqsat.codegen.cuda.wgmma import WgmmaFamily, WgmmaTile
from eqsat.codegen.kernel import KernelSource, Schedule
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import PointProblem, contract_problem, point_problem, reduce_problem
from eqsat.codegen.targets import parse_target
from eqsat.ir import Input, Output, Program, apply, const, read, reduce
from eqsat.search.bundle import from_files, to_files
from eqsat.types import DType
from tests.codegen.contract_problems import linear


def _rows(n: int = 64, length: int = 4096, *, centred: bool = False) -> Program:
    x = read("x", ("i", "k"), (n, length), DType.F32)
    e = apply("sub", x, reduce("max", "k", x)) if centred else apply("mul", x, const(2.0, DType.F32))
    return Program((Input("x", (n, length), DType.F32),), (Output("y", e, ("i", "k"), DType.F32),))


def _sources() -> dict[str, KernelSource]:
    point, rows, product = point_problem(_rows()), reduce_problem(_rows(centred=True)), contract_problem(linear(512, 512, 512))
    few = contract_problem(linear(16, 512, 1024))
    assert not isinstance(point, str)
    assert not isinstance(rows, str)
    assert not isinstance(product, str)
    assert not isinstance(few, str)
    return {
        "point": PointFamily().emit(point, PointTile(256, 1, 16, 0)),
        "reduce": ReduceFamily().emit(rows, RowTile(4, 1, 16, 1, 0, 0)),
        "simt": SimtFamily().emit(product, SimtTile(64, 64, 16, 4, 4)),
        "skinny": SkinnyFamily().emit(few, SkinnyTile(8, 1, 8, 2, 2, 2, 1)),
        "wgmma": WgmmaFamily().emit(product, WgmmaTile(128, 256, 2, 0, 1, 1, 8)),
    }


def _machine_code(image: bytes, folder: Path) -> list[str]:
    try:
        import nvidia.cu13  # an optional wheel of the test machine
    except ImportError:
        pytest.skip("nvdisasm is not installed")
    tool = next((t for p in nvidia.cu13.__path__ if (t := Path(p) / "bin" / "nvdisasm").exists()), None)
    if tool is None:
        pytest.skip("nvdisasm is not installed")
    path = folder / "kernel.cubin"
    path.write_bytes(image)
    return subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("family", ["point", "reduce", "simt", "skinny", "wgmma"])
def test_no_memory_is_touched_before_the_wait(family: str, tmp_path: Path) -> None:
    code = _machine_code(compile_source(_sources()[family], parse_target("sm_90")).image, tmp_path)
    wait = [i for i, line in enumerate(code) if re.search(r"\bACQBULK\b", line)]
    touched = [i for i, line in enumerate(code) if re.search(r"\b(LDG|STG|UTMALDG|UTMASTG|UBLKCP|ATOM|RED)\b", line)]
    assert len(wait) == 1
    assert touched
    assert wait[0] < touched[0]


def test_an_older_target_has_no_such_wait() -> None:
    binary = compile_source(_sources()["point"], parse_target("sm_80"))
    assert "griddepcontrol" not in binary.ptx


def test_a_kernel_that_says_itself_where_it_waits_gets_no_second_wait() -> None:
    body = 'extern "C" __global__ void eqsat_kernel(float* y) {\n  prepare();\n  begin_dependent();\n}'
    made = assemble(_rows(), Schedule(), "test", body, parts=(), grid=(1, 1, 1), block=32)
    assert made.text.count("begin_dependent()") == 1


def test_a_bundle_remembers_whether_its_kernels_overlap() -> None:
    kernel = Kernel(_point())
    binary = compile_source(_sources()["point"], parse_target("sm_90"))
    plan = Executable(Plan(kernel.program, (kernel,)), (Step(kernel, PointTile(256, 1, 16, 0), binary),))
    for overlapped in (False, True):
        again, _ = from_files(to_files(dataclasses.replace(plan, overlapped=overlapped), {}))
        assert again.overlapped is overlapped


def _point() -> PointProblem:
    found = point_problem(_rows())
    assert not isinstance(found, str)
    return found
