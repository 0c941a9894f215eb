"""The wgmma family: what it refuses, that its kernels compile clean, and (emulated) that they compute the right thing."""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda.nvrtc import compile_source
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.cuda.wgmma import WgmmaFamily, WgmmaTile
from eqsat.codegen.kernel import KernelBinary, TensorMapArg
from eqsat.codegen.problem import ContractProblem, SummedContractProblem, contract_problem
from eqsat.codegen.targets import parse_target
from eqsat.errors import IllegalScheduleError
from eqsat.ir import Program, apply, reduce
from eqsat.oracle import evaluate
from tests.codegen.contract_problems import (
    BF16,
    BIG,
    CASES,
    F16,
    F32,
    Case,
    Shape,
    batched,
    bias_gelu_residual,
    gated,
    linear,
    product_linear,
    rms_gated,
    rms_linear,
    rms_linear_silu,
    scaled_max,
    shifted_linear,
    sum_on_the_right,
    two_products,
)
from tests.codegen.emulate import compile_kernels
from tests.codegen.emulate_mma import emulated_wgmma, run_wgmma

FAMILY = WgmmaFamily()
BASE, TURNS, TALL = WgmmaTile(128, 256, 2, 0, 2, 1, 8), WgmmaTile(128, 128, 2, 1, 1, 1, 8), WgmmaTile(256, 128, 2, 0, 1, 2, 8)
SMALL, THREE = WgmmaTile(64, 64, 1, 0, 1, 1, 8), WgmmaTile(192, 96, 3, 0, 1, 1, 8)
BY_NAME = {c.name: c for c in CASES}


def problem(program: Program) -> ContractProblem | SummedContractProblem:
    found = contract_problem(program)
    assert isinstance(found, ContractProblem | SummedContractProblem), found
    return found


def built(program: Program, schedule: WgmmaTile) -> KernelBinary:
    return compile_source(FAMILY.emit(problem(program), schedule), parse_target("sm_90"))


COMPILED = [
    ("nn", linear(4096, 4096, 4096), BASE, 4),
    ("tn turns", linear(4096, 4096, 4096, x="ki"), TURNS, 8),
    ("tt f16", linear(1024, 1024, 1024, x="ki", w="jk", dtype=F16), THREE, 4),
    ("statistic", rms_linear_silu(4096, 8192, 4096), BASE, 4),
    ("gated", gated(4096, 11008, 4096), WgmmaTile(128, 128, 2, 0, 1, 1, 8), 8),
    ("heavy epilogue", bias_gelu_residual(4096, 16384, 4096), BASE, 4),
    ("two blocks of few rows", gated(16, 11008, 4096), WgmmaTile(64, 64, 1, 0, 1, 1, 8, 2), 8),
    ("two blocks of many accumulators", gated(16, 11008, 4096), WgmmaTile(64, 128, 1, 0, 1, 1, 8, 2), 8),
    ("odd rows and columns", linear(4093, 4095, 4096, w="jk"), TALL, 8),
    ("gain and root mean square in registers", rms_linear(4096, 4096, 4096), BASE, 4),
    ("two matrices make the left operand", product_linear(4096, 4096, 4096, x="ki"), WgmmaTile(128, 192, 2, 0, 1, 2, 8), 4),
]


@pytest.mark.parametrize(("program", "schedule", "issued"), [c[1:] for c in COMPILED], ids=[c[0] for c in COMPILED])
def test_a_kernel_compiles_without_spills_and_issues_the_matrix_instructions_of_its_tile(
    program: Program, schedule: WgmmaTile, issued: int, tmp_path: Path
) -> None:
    binary = built(program, schedule)  # spills, a stack frame or serialised wgmma would raise
    assert binary.resources.spill_bytes == 0
    assert binary.resources.stack_bytes == 0
    assert not binary.resources.warnings
    counted = hgmma_shapes(binary, tmp_path)
    assert counted, "no HGMMA in the machine code"
    assert len(counted) % issued == 0  # one step of k, perhaps unrolled
    assert set(counted) == {f"64x{schedule.bn}x16"}


def hgmma_shapes(binary: KernelBinary, folder: Path) -> list[str]:
    try:
        import nvidia.cu13  # an optional wheel of the test machine
    except ImportError:
        pytest.skip("nvdisasm is not installed")
    found = [Path(p) / "bin" / "nvdisasm" for p in nvidia.cu13.__path__]
    tool = next((p for p in found if p.exists()), None)
    if tool is None:
        pytest.skip("nvdisasm is not installed")
    path = folder / "kernel.cubin"
    path.write_bytes(binary.image)
    text = subprocess.run([str(tool), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    assert "MEMBAR" not in text[text.find("HGMMA") : text.rfind("HGMMA")], "a memory fence in the main loop"
    return re.findall(r"HGMMA\.(\w+)\.F32", text)


def rms_of_scaled(m: int, n: int, k: int) -> Program:
    s = Shape(BF16, i=m, j=n, k=k)
    left = apply("sub", s("x", "ik"), s("g", "k"))
    return s.program(apply("mul", s.rms(left), s.matmul(left, s("w", "kj"))))


def rms_of_transposed(m: int, n: int, k: int) -> Program:
    s = Shape(BF16, i=m, j=n, k=k)
    x = s("x", "ki")
    return s.program(apply("mul", s.rms(x), s.matmul(x, s("w", "kj"))))


WRAPS = WgmmaTile(64, 256, 1, 0, 1, 1, 2)
EMULATED: list[tuple[str, Program, WgmmaTile]] = [
    ("nn cluster of rows", linear(200, 136, 136), WgmmaTile(64, 64, 1, 0, 2, 1, 2)),
    ("nn cluster of columns", linear(130, 200, 72), WgmmaTile(128, 64, 2, 0, 1, 2, 8)),
    ("nt in turn, cluster", linear(200, 200, 200, w="jk"), WgmmaTile(64, 96, 2, 1, 2, 1, 8)),
    ("tn, two panels of columns in part", linear(136, 176, 128, x="ki"), WgmmaTile(64, 176, 1, 0, 1, 1, 8)),
    ("tt, two tiles a group", linear(264, 72, 72, x="ki", w="jk"), WgmmaTile(256, 64, 2, 0, 1, 1, 8)),
    ("the ring wraps, staging buffers turn", linear(72, 264, 1024), WRAPS),
    ("f16, narrow panels", linear(64, 96, 64, dtype=F16), WgmmaTile(64, 48, 1, 0, 1, 1, 8)),
    ("f32 output, odd columns", linear(70, 77, 72, w="jk", out=F32), WgmmaTile(64, 64, 1, 0, 1, 1, 8)),
    ("odd columns", linear(70, 77, 72, w="jk"), WgmmaTile(64, 64, 1, 0, 1, 1, 8)),
    ("statistics", scaled_max(72, 64, 128), WgmmaTile(128, 64, 2, 0, 1, 1, 8)),
    ("root mean square in turn", rms_linear_silu(136, 128, 128), WgmmaTile(128, 64, 2, 1, 1, 1, 8)),
    ("gated cluster", gated(136, 96, 128), WgmmaTile(64, 48, 1, 0, 2, 1, 8)),
    ("bias, gelu, residual", bias_gelu_residual(72, 88, 64), WgmmaTile(64, 64, 1, 0, 1, 1, 8)),
    (
        "gain and root mean square in registers, an odd number of steps",
        rms_linear(136, 136, 192),
        WgmmaTile(64, 64, 1, 0, 2, 1, 2),
    ),
    ("computed left, two tiles a group", shifted_linear(264, 72, 128), WgmmaTile(256, 32, 2, 0, 1, 1, 8)),
    (
        "computed left, transposed, in turn",
        shifted_linear(136, 72, 128, x="ki", w="jk", gain=F32),
        WgmmaTile(64, 32, 2, 1, 1, 1, 8),
    ),
    ("two matrices make the left operand", product_linear(72, 72, 128), WgmmaTile(64, 32, 1, 0, 1, 1, 8)),
    ("two transposed matrices make it", product_linear(72, 72, 256, x="ki"), WgmmaTile(64, 32, 1, 0, 1, 2, 8)),
    ("root mean square, gain, two products", rms_gated(72, 48, 192), WgmmaTile(64, 16, 1, 0, 1, 1, 8)),
    ("statistics of a transposed left operand", rms_of_transposed(72, 40, 128), WgmmaTile(64, 32, 1, 0, 1, 1, 8)),
    ("a sum on the right, turned", sum_on_the_right(136, 136, 192), WgmmaTile(64, 64, 1, 0, 2, 1, 2)),
    ("a sum on the right, narrow panels", sum_on_the_right(75, 72, 128, w="jk"), WgmmaTile(64, 48, 2, 1, 1, 1, 8)),
    ("a sum on the right, panels of 32", sum_on_the_right(104, 72, 128), WgmmaTile(64, 96, 1, 0, 1, 2, 8)),
    ("a sum in two slices, of which one is shorter", linear(50, 136, 456), WgmmaTile(64, 96, 1, 0, 1, 1, 8, 1, 2)),
    ("a sum in three slices, computed left", shifted_linear(50, 64, 320), WgmmaTile(64, 64, 1, 0, 1, 1, 8, 1, 3)),
    ("rows of odd lengths are copied", linear(70, 99, 75), WgmmaTile(64, 64, 1, 0, 1, 1, 8)),
    ("one operand is copied", linear(50, 104, 75, x="ki", w="jk"), WgmmaTile(64, 64, 1, 0, 1, 1, 8)),
    ("an odd left operand, clusters", linear(75, 64, 128, x="ki"), WgmmaTile(64, 32, 1, 0, 1, 2, 8)),
    ("clusters of four", linear(200, 200, 136), WgmmaTile(64, 64, 1, 0, 2, 2, 8)),
    ("clusters of four rows", linear(200, 70, 136, w="jk"), WgmmaTile(64, 32, 1, 0, 4, 1, 8)),
    ("slices and clusters", linear(40, 120, 264), WgmmaTile(64, 64, 1, 0, 1, 2, 8, 1, 2)),
    ("two sums in two slices", gated(56, 40, 256), WgmmaTile(64, 48, 1, 0, 1, 1, 8, 2, 2)),
    ("computed left in f16, turns", rms_linear(136, 40, 128, dtype=F16), WgmmaTile(128, 32, 2, 0, 1, 1, 8)),
    ("statistics that need a vector", rms_of_scaled(72, 40, 192), WgmmaTile(64, 32, 1, 0, 1, 1, 8)),
    ("two products over different axes", two_products(136, 200, 136, 16), WgmmaTile(64, 64, 1, 0, 2, 1, 2)),
    ("two transposed products in turn", two_products(136, 72, 128, 72, "ki", "jk", "ri", "jr"), WgmmaTile(64, 32, 2, 1, 1, 1, 8)),
    ("few rows, two blocks", linear(11, 200, 136), WgmmaTile(64, 64, 1, 0, 1, 1, 8, 2)),
    ("few rows and a statistic", rms_linear_silu(5, 128, 128), WgmmaTile(64, 64, 1, 0, 1, 1, 8, 2)),
    ("few rows in turn, batched", batched(3, 20, 200, 72, w="bjk"), WgmmaTile(64, 64, 2, 1, 1, 1, 8)),
    ("few rows of narrow tiles, gated", gated(8, 64, 72, w="jk"), WgmmaTile(64, 32, 1, 0, 1, 1, 8, 2)),
    ("batched", batched(3, 72, 64, 72), WgmmaTile(64, 64, 1, 0, 1, 1, 8)),
    ("batched, transposed", batched(2, 64, 72, 64, x="bki", w="bjk"), WgmmaTile(64, 64, 1, 0, 1, 2, 8)),
]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_emulated_kernels_agree_with_the_oracle(tmp_path: Path) -> None:
    sources = [emulated_wgmma(FAMILY.emit(problem(p), s)) for _, p, s in EMULATED]
    entries = compile_kernels(sources, tmp_path)
    rng = np.random.default_rng(0)
    wrong = {}
    for entry, source, (name, program, _) in zip(entries, sources, EMULATED, strict=True):
        inputs = {i.name: rng.standard_normal(i.shape).astype(i.dtype.numpy) for i in program.inputs}
        want = np.asarray(evaluate(program, inputs)[0], np.float64)
        got = run_wgmma(entry, source, program, inputs).astype(np.float64)
        error = np.abs(got - want).max() / np.abs(want).max()
        if not error <= 2 * program.outputs[0].dtype.roundoff + 1e-6:
            wrong[name] = error
    assert not wrong


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_the_emulator_sees_a_slot_freed_too_early_and_a_buffer_reused_too_early(tmp_path: Path) -> None:
    program = linear(72, 264, 1024)
    faults = [
        (program, WRAPS, "if (last >= 0) release(last); last = s; next();", "release(s); last = s; next();"),
        (linear(72, 264, 128), WgmmaTile(64, 256, 2, 1, 1, 1, 8), "if (lane == 0) bulk_wait_read<BUFFERS - 1>();", ""),
        (
            rms_linear(72, 64, 512),
            WRAPS,
            "slot = in.wait();\n              compute(slot, left[1 - p]);",
            "slot = in.wait();\n              compute(slot, left[p]);",
        ),
    ]
    rng = np.random.default_rng(0)
    faulty = []
    for of, schedule, old, new in faults:
        source = FAMILY.emit(problem(of), schedule)
        assert old in source.text
        faulty.append(emulated_wgmma(dataclasses.replace(source, text=source.text.replace(old, new))))
    for entry, kernel, (of, *_) in zip(compile_kernels(faulty, tmp_path), faulty, faults, strict=True):
        inputs = {i.name: rng.standard_normal(i.shape).astype(i.dtype.numpy) for i in of.inputs}
        want = np.asarray(evaluate(of, inputs)[0], np.float64)
        got = run_wgmma(entry, kernel, of, inputs).astype(np.float64)
        assert not np.abs(got - want).max() <= 0.1 * np.abs(want).max()


def refusal(program: Program, schedule: WgmmaTile = BASE) -> str:
    why = FAMILY.legal(problem(program), schedule)
    assert why is not None
    return why


def test_every_case_of_the_list_is_legal() -> None:
    refused = [(c.name, s, w) for c in CASES for s in c.schedules if (w := c.family.legal(c.problem, s)) is not None]
    assert refused == []


def test_strides_that_tma_cannot_take_are_refused_where_no_one_block_in_all_copies_the_matrix() -> None:
    assert "16 bytes" in refusal(batched(2, 128, 128, 132))
    assert "16 bytes" in refusal(linear(128, 201, 6400), WgmmaTile(128, 64, 2, 0, 1, 1, 8, 1, 8))


def test_matrices_with_odd_rows_are_copied_and_only_those() -> None:
    source = FAMILY.emit(problem(linear(128, 201, 128)), WgmmaTile(128, 64, 2, 0, 1, 1, 8))
    maps = {a.name: a for a in source.args if isinstance(a, TensorMapArg)}
    assert source.cooperative
    assert maps["x"].strides[0] == 256
    assert (maps[""].extents, maps[""].strides[0], maps[""].offset) == ((201, 128, 1), 416, 256)
    assert source.workspace_bytes == 256 + 2 * 128 * 208


def test_f32_operands_are_refused() -> None:
    assert "bf16 and f16" in refusal(linear(128, 128, 128, dtype=F32))


def test_where_both_operands_are_computed_the_right_one_is_refused() -> None:
    s = Shape(BF16, i=128, j=128, k=128)
    right = apply("mul", s("w", "kj"), s("g", "k"))
    assert "computed" in refusal(s.program(s.matmul(apply("mul", s("x", "ik"), s("g", "k")), right)))


def test_a_computed_right_operand_takes_the_place_of_the_left_one() -> None:
    source = FAMILY.emit(problem(sum_on_the_right(256, 512, 128)), WgmmaTile(128, 192, 2, 0, 1, 2, 8))
    maps = [a for a in source.args if isinstance(a, TensorMapArg)]
    assert [m.name for m in maps] == ["u", "v", "x", "y"]
    assert maps[-1].box == (64, 64, 1)
    assert maps[-1].extents == (512, 256, 1)
    assert "store_turned" in source.text


def test_a_computed_left_operand_that_would_be_rounded_is_refused() -> None:
    s = Shape(BF16, i=128, j=128, k=128)
    left = apply("mul", apply("cast", s("x", "ik"), dtype=F32), apply("cast", s("g", "k"), dtype=F32))
    assert "would round" in refusal(s.program(s.matmul(left, apply("cast", s("w", "kj"), dtype=F32)), F32))


def test_a_computed_left_operand_needs_whole_steps_of_k_because_padding_may_not_be_zero() -> None:
    assert "steps of 64" in refusal(rms_linear(128, 128, 136))


def test_fragments_of_a_computed_left_operand_count_among_the_registers() -> None:
    assert "fragments" in refusal(rms_linear(512, 512, 512), TALL)


def test_a_widening_cast_of_an_operand_is_still_a_plain_read() -> None:
    s = Shape(BF16, i=128, j=128, k=128)
    wide = s.matmul(apply("cast", s("x", "ik"), dtype=F32), apply("cast", s("w", "kj"), dtype=F32))
    assert FAMILY.legal(problem(s.program(wide, F32)), BASE) is None


def test_statistics_of_a_left_operand_that_is_contiguous_along_its_rows_come_from_registers() -> None:
    assert "wgmma_left" in FAMILY.emit(problem(rms_of_transposed(128, 128, 128)), BASE).text


def test_statistics_need_whole_steps_of_k_because_padding_is_no_element() -> None:
    assert "steps of 64" in refusal(scaled_max(128, 128, 136))


def test_a_sum_of_products_over_different_axes_is_one_problem_of_several_terms() -> None:
    found = problem(two_products(128, 256, 512, 16))
    assert isinstance(found, SummedContractProblem)
    assert [t.shape for t in found.terms] == [(1, 128, 256, 512), (1, 128, 256, 16)]
    assert found.shape == (1, 128, 256, 528)
    assert found.flops == 2 * 128 * 256 * 528


def test_products_over_different_axes_that_are_not_added_are_no_one_kernel() -> None:
    s = Shape(BF16, i=128, j=128, k=128, r=64)
    second = reduce("sum", "r", apply("mul", s("t", "ir"), s("b", "rj")))
    assert isinstance(contract_problem(s.program(apply("mul", s.matmul(s("x", "ik"), s("w", "kj")), second))), str)


def test_the_terms_of_a_sum_must_lie_alike() -> None:
    assert "alike" in refusal(two_products(128, 128, 128, 64, t="ri"))
    assert "different orders" in refusal(two_products(128, 128, 128, 64, b="jr"))


def test_accumulators_that_do_not_fit_are_refused() -> None:
    assert "accumulators" in refusal(linear(512, 512, 512), WgmmaTile(256, 256, 2, 0, 1, 1, 8))
    assert "accumulators" in refusal(gated(512, 512, 512), BASE)


def test_a_tile_that_leaves_no_room_for_three_stages_is_refused() -> None:
    s = Shape(BF16, i=512, j=512, k=512)
    x = s("x", "ik")
    six = [s.matmul(x, s(f"w{i}", "kj")) for i in range(6)]
    assert "stages" in refusal(
        s.program(functools.reduce(lambda a, b: apply("add", a, b), six)), WgmmaTile(256, 16, 2, 0, 1, 1, 8)
    )


def test_emitting_an_illegal_schedule_raises() -> None:
    with pytest.raises(IllegalScheduleError, match="ping-pong"):
        FAMILY.emit(problem(linear(512, 512, 512)), WgmmaTile(128, 128, 3, 1, 1, 1, 8))


def test_boxes_cover_the_tile_once_over_the_blocks_that_share_it() -> None:
    maps = [a for a in FAMILY.emit(problem(linear(512, 512, 512)), BASE).args if isinstance(a, TensorMapArg)]
    assert [m.box for m in maps] == [(64, 128, 1), (64, 32, 1), (64, 16, 1)]  # w: 4 panels, half the k of each
    maps = [a for a in FAMILY.emit(problem(linear(512, 512, 512, w="jk")), BASE).args if isinstance(a, TensorMapArg)]
    assert [m.box for m in maps] == [(64, 128, 1), (64, 128, 1), (64, 16, 1)]


def test_two_blocks_share_a_multiprocessor_only_where_they_fit() -> None:
    assert "multiprocessor" in refusal(linear(64, 512, 512), WgmmaTile(64, 64, 1, 0, 1, 1, 8, 3))
    assert "one warpgroup" in refusal(linear(64, 512, 512), WgmmaTile(128, 64, 2, 0, 1, 1, 8, 2))
    assert "accumulators" in refusal(gated(64, 512, 512), WgmmaTile(64, 192, 1, 0, 1, 1, 8, 2))
    source = FAMILY.emit(problem(gated(16, 11008, 4096)), WgmmaTile(64, 64, 1, 0, 1, 1, 8, 2))
    assert source.grid == (172, 1, 1)
    assert 2 * (source.shared_bytes + 1024) <= 233472


def test_only_the_rows_that_there_are_are_loaded() -> None:
    few, tile = linear(11, 512, 512), WgmmaTile(64, 64, 1, 0, 1, 1, 8)
    maps = [a for a in FAMILY.emit(problem(few), tile).args if isinstance(a, TensorMapArg)]
    assert maps[0].box == (64, 16, 1)
    behind = FAMILY.emit(problem(linear(11, 512, 512, w="jk")), WgmmaTile(64, 32, 1, 0, 1, 1, 8)).args
    assert isinstance(behind[0], TensorMapArg)
    assert behind[0].box == (64, 64, 1), "the matrix units would read past the tiles of the last slot"


def test_slices_are_blocks_that_are_resident_at_once_and_none_is_empty() -> None:
    deep, tile = linear(256, 256, 64 * 100), WgmmaTile(128, 128, 2, 0, 1, 1, 8, 1, 33)
    source = FAMILY.emit(problem(deep), tile)
    assert source.grid == (4 * 25, 1, 1)  # 100 steps in slices of 4
    assert source.cooperative
    assert source.workspace_bytes == 256 + 4 * 100 * 128 * 128
    assert "resident" in refusal(linear(1024, 1024, 6400), tile)
    assert FAMILY.emit(problem(deep), dataclasses.replace(tile, cm=2)).grid == (4 * 25, 1, 1)
    assert "turn" in refusal(deep, WgmmaTile(128, 128, 2, 1, 1, 1, 8, 1, 33))
    assert "statistics" in refusal(rms_linear(256, 256, 6400), tile)


def test_the_grid_is_persistent_and_whole_clusters() -> None:
    source = FAMILY.emit(problem(linear(4096, 4096, 4096)), BASE)
    assert source.grid == (132, 1, 1)
    assert source.cluster == 2
    assert FAMILY.emit(problem(linear(256, 256, 256)), BASE).grid == (2, 1, 1)


@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith("wgmma")], ids=lambda c: c.name)
def test_shared_memory_stays_within_the_limit(case: Case) -> None:
    for s in case.schedules:
        assert case.family.emit(case.problem, s).shared_bytes <= 232448


def test_template_lines_depend_on_flags_and_slots_take_their_indentation() -> None:
    text = "a  //@one\nb //@two\n//@begin two\nc\n//@end\n  SLOT\nf(SLOT);\n"
    assert fill(text, {"one"}, {"SLOT": ["x", "y"]}) == "a\n  x\n  y\nf(x y);\n"


def test_big_schedules_are_those_of_the_menu() -> None:
    menu = Path(__file__).parents[2].joinpath("rules", "schedule-sm90-contract.egg").read_text(encoding="utf-8")
    for s in BIG:
        assert f"(wgmma-tile {s.bm} {s.bn} {s.groups} {s.pingpong})" in menu
