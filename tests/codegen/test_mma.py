"""The mma family: what it refuses, that its kernels compile clean for every target, and (emulated) that they compute the right thing."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda.mma import MmaFamily, MmaTile
from eqsat.codegen.cuda.nvrtc import compile_source
from eqsat.codegen.kernel import KernelSource
from eqsat.codegen.problem import contract_problem
from eqsat.codegen.targets import parse_target
from eqsat.ir import Program
from eqsat.search.verify import check_outputs, prepare
from eqsat.search.workloads.contract import gemm
from tests.codegen.contract_problems import (
    F16,
    F32,
    attention_like,
    batched,
    bias_gelu_residual,
    gated,
    linear,
    rms_linear,
    scaled_max,
    shifted_linear,
    transposed_left,
)
from tests.codegen.emulate import compile_kernels, run_kernel
from tests.codegen.emulate_stream import MATRIX_UNITS

FAMILY = MmaFamily()
FRAGMENTS = r"""
template <bool TRANSPOSED> static void fragment_of(u32 (&r)[4], const void* p) {
  static const char* from[1024];
  from[current] = (const char*)p;
  check_aligned(p, 16);
  warp_barrier();
  const int base = current / 32 * 32, lane = current % 32;
  for (int q = 0; q < 4; ++q)
    for (int e = 0; e < 2; ++e) {
      const int row = TRANSPOSED ? lane % 4 * 2 + e : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + e;
      memcpy((u16*)&r[q] + e, from[base + 8 * q + row] + 2 * column, 2);
    }
  warp_barrier();
}
static void tile_fragment(u32 (&r)[4], const void* p) { fragment_of<false>(r, p); }
static void tile_fragment_transposed(u32 (&r)[4], const void* p) { fragment_of<true>(r, p); }
static void multiply_add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) { mma_of<false>(d, {a[0], a[1], a[2], a[3], b0, b1}); }
static void multiply_add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) { mma_of<true>(d, {a[0], a[1], a[2], a[3], b0, b1}); }
"""
SMALL, TWO, TALL, SINGLE = (
    MmaTile(32, 32, 16, 2, 2, 2),
    MmaTile(16, 64, 32, 1, 4, 2),
    MmaTile(64, 32, 32, 4, 1, 2),
    MmaTile(64, 64, 16, 2, 2, 1),
)
PROBLEMS: dict[str, tuple[Program, MmaTile]] = {
    "both contiguous along k": (linear(40, 48, 64, w="jk"), SMALL),
    "right contiguous along n": (linear(64, 64, 96), SINGLE),
    "odd strides": (linear(37, 51, 77), SMALL),
    "odd strides, right along k": (linear(33, 65, 47, w="jk"), TALL),
    "left contiguous along m": (transposed_left(70, 72, 64), TWO),
    "f16, stored in f32": (linear(20, 66, 40, dtype=F16, out=F32), TWO),
    "batches": (batched(3, 33, 40, 50), SMALL),
    "heads": (attention_like(2, 3, 20, 36, 16), SMALL),
    "bias, gelu and a residual": (bias_gelu_residual(35, 48, 40), SINGLE),
    "two contractions": (gated(24, 40, 48), SMALL),
    "row statistics and a gain": (rms_linear(40, 40, 64), SMALL),
    "a maximum and a sum": (scaled_max(19, 36, 40), TWO),
    "a computed left operand": (shifted_linear(36, 40, 64), SMALL),
}


def emulated(source: KernelSource) -> KernelSource:
    """Give the functions that are PTX in C++."""
    at = re.search(r"^// mma\.cu:.*$", source.text, flags=re.MULTILINE)
    assert at is not None
    return dataclasses.replace(source, text=f"{source.text[: at.end()]}\n{MATRIX_UNITS}{FRAGMENTS}{source.text[at.end() :]}")


def emitted(program: Program, schedule: MmaTile) -> KernelSource:
    problem = contract_problem(program)
    assert not isinstance(problem, str), problem
    return FAMILY.emit(problem, schedule)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
def test_every_layout_prologue_and_epilogue_is_right(tmp_path: Path) -> None:
    sources = [emitted(program, s) for program, s in PROBLEMS.values()]
    entries = compile_kernels([emulated(s) for s in sources], tmp_path)
    for (name, (program, _)), source, entry in zip(PROBLEMS.items(), sources, entries, strict=True):
        prepared = prepare(program, 1, quick=True)
        assert prepared, f"{name}: nothing can be compared"
        for p in prepared:
            got = run_kernel(entry, source, program, {k: np.asarray(v) for k, v in p.inputs.items()})
            check = check_outputs([got], p.expected, p.suite)
            assert check.passed, f"{name}: suite {check.name}: {check.note}"


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"])
def test_it_compiles_without_spills_and_feeds_the_matrix_units(target: str) -> None:
    schedule = MmaTile(128, 128, 32, 2, 4, 2)
    binary = compile_source(emitted(gemm(512, 512, 512).program(), schedule), parse_target(target), ptx=True)
    assert binary.resources.spill_bytes == binary.resources.stack_bytes == 0
    mi, ni = schedule.warp_tiles
    steps = schedule.bk // 16
    assert len(re.findall(r"\bmma\.sync", binary.ptx)) == mi * ni * steps
    assert len(re.findall(r"\bldmatrix\.sync", binary.ptx)) == (mi + ni // 2) * steps


def test_strides_that_tma_refuses_are_served() -> None:
    odd = contract_problem(linear(333, 111, 55))
    assert not isinstance(odd, str)
    assert FAMILY.legal(odd, SMALL) is None


@pytest.mark.parametrize(
    ("program", "schedule", "why"),
    [
        (linear(64, 64, 64, dtype=F32), SMALL, "take bf16 or f16"),
        (linear(64, 64, 64), MmaTile(24, 64, 16, 1, 1, 2), "16 rows by 16 columns"),
        (linear(64, 64, 64), MmaTile(256, 256, 64, 2, 4, 2), "shared memory"),
        (gated(64, 64, 64), MmaTile(128, 128, 16, 2, 2, 2), "accumulator"),
    ],
)
def test_what_it_cannot_serve_is_said(program: Program, schedule: MmaTile, why: str) -> None:
    problem = contract_problem(program)
    assert not isinstance(problem, str)
    assert why in (FAMILY.legal(problem, schedule) or "")


def test_older_devices_get_the_matrix_units_from_it() -> None:
    assert [t for t in ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120", "cpu") if FAMILY.serves(parse_target(t))] == [
        "sm_80", "sm_86", "sm_89", "sm_90", "sm_120",
    ]  # fmt: skip
