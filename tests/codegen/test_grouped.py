"""Contractions of one left operand with several outputs: one launch, emulated, compiled and run."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cpu.contract import ContractFamily, CpuContractTile
from eqsat.codegen.cpu.skinny import CpuSkinnyTile
from eqsat.codegen.cpu.skinny import SkinnyFamily as CpuSkinnyFamily
from eqsat.codegen.cuda.nvrtc import compile_source
from eqsat.codegen.cuda.simt import SimtFamily, SimtTile
from eqsat.codegen.cuda.skinny import SkinnyFamily, SkinnyTile
from eqsat.codegen.cuda.wgmma import WgmmaFamily, WgmmaTile
from eqsat.codegen.kernel import Rates, TensorMapArg
from eqsat.codegen.problem import contract_problem
from eqsat.codegen.targets import parse_target
from eqsat.ir import Program, apply
from eqsat.oracle import evaluate
from eqsat.search.verify import check_outputs, prepare
from tests.codegen.contract_problems import BF16, F16, F32, Shape
from tests.codegen.cpu_run import call_all, compile_many
from tests.codegen.emulate import compile_kernels, run_outputs
from tests.codegen.emulate_mma import emulated, emulated_wgmma, run_maps
from tests.codegen.grouped_problems import (
    BOARD,
    CASES,
    batches,
    gates,
    grouped,
    heads,
    plain,
    projections,
    queries_and_keys,
    same_columns,
    together,
    with_epilogues,
)

WGMMA, SKINNY, SIMT = WgmmaFamily(), SkinnyFamily(), SimtFamily()
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")


def departure(program: Program, inputs: dict[str, np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the largest error of any output, relative to its largest element, in units of its roundoff."""
    wanted = [np.asarray(w, np.float64) for w in evaluate(program, inputs)]
    errors = [np.abs(g.astype(np.float64) - w).max() / np.abs(w).max() for g, w in zip(found, wanted, strict=True)]
    return max(e / (2 * o.dtype.roundoff + 1e-6) for e, o in zip(errors, program.outputs, strict=True))


def drawn(program: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {i.name: rng.standard_normal(i.shape).astype(i.dtype.numpy) for i in program.inputs}


COMPILED = [
    ("equal", projections(2048, (4096, 4096, 4096), 4096), WgmmaTile(128, 256, 2, 0, 2, 1, 8)),
    ("heads with a statistic", heads(2048, 32, 8, 128, 4096), WgmmaTile(128, 128, 2, 1, 1, 1, 8)),
    ("three epilogues", with_epilogues(2048, (4096, 1024, 1024), 4096), WgmmaTile(128, 256, 2, 0, 1, 2, 8)),
    ("gates", gates(2048, (4096, 1024), 4096), WgmmaTile(128, 128, 2, 0, 1, 1, 8)),
]


@pytest.mark.parametrize(("program", "schedule"), [c[1:] for c in COMPILED], ids=[c[0] for c in COMPILED])
def test_a_kernel_of_several_outputs_compiles_without_spills(program: Program, schedule: WgmmaTile) -> None:
    binary = compile_source(WGMMA.emit(grouped(program), schedule), parse_target("sm_90"))
    assert (binary.resources.spill_bytes, binary.resources.stack_bytes, binary.resources.warnings) == (0, 0, ())


ALONE, WIDE, TURNS = WgmmaTile(64, 64, 1, 0, 1, 1, 8), WgmmaTile(64, 64, 1, 0, 1, 2, 2), WgmmaTile(64, 96, 2, 1, 2, 1, 8)
EMULATED: list[tuple[str, Program, WgmmaTile]] = [
    ("three parts of different columns", projections(72, (136, 64, 8), 136), ALONE),
    ("clusters of columns, parts that end within one", projections(136, (72, 200), 72), WIDE),
    ("clusters of rows in turn, k contiguous, f16", projections(200, (104, 192), 136, w="jk", dtype=F16), TURNS),
    ("the same columns", same_columns(72, 72, 72), ALONE),
    ("by head, with a statistic", heads(72, 3, 2, 24, 128), WgmmaTile(128, 64, 2, 0, 1, 1, 8)),
    ("rows under two names, with a statistic", queries_and_keys(72, 48, 128), WgmmaTile(64, 48, 1, 0, 1, 1, 8)),
    ("heads that whole panels make, stored by head", heads(72, 3, 2, 64, 128), WgmmaTile(128, 128, 2, 0, 1, 2, 8)),
    ("heads of narrow panels, clusters of rows", heads(200, 5, 3, 32, 128), WgmmaTile(64, 96, 2, 1, 2, 1, 8)),
    ("epilogues of each kind, stored directly", with_epilogues(72, (64, 72, 136), 64), ALONE),
    ("gates", gates(72, (48, 104), 72), WgmmaTile(64, 48, 1, 0, 2, 1, 8)),
    ("batched, few rows", batches(3, 20, (72, 136), 72), WgmmaTile(64, 64, 2, 1, 1, 1, 8)),
]


@needs_compiler
def test_emulated_tiles_of_the_matrix_units_agree_with_the_oracle(tmp_path: Path) -> None:
    sources = [emulated_wgmma(WGMMA.emit(grouped(p), s)) for _, p, s in EMULATED]
    wrong = {}
    for entry, source, (name, program, _) in zip(compile_kernels(sources, tmp_path), sources, EMULATED, strict=True):
        inputs = drawn(program)
        if not (error := departure(program, inputs, run_maps(entry, source, program, inputs))) <= 1:
            wrong[name] = error
    assert not wrong


COMPILED_SKINNY = [
    ("unequal", projections(16, (4096, 1024, 1024), 4096), SkinnyTile(8, 1, 8, 2, 2, 2, 1)),
    ("k contiguous, straight", projections(8, (4096, 1024), 4096, w="jk"), SkinnyTile(2, 1, 16, 4, 4, 2, 1, 0, 1)),
    ("heads with a statistic", heads(16, 32, 8, 128, 4096), SkinnyTile(8, 1, 8, 2, 2, 2, 1, 0, 1)),
    ("gates through memory", gates(16, (4096, 1024), 4096), SkinnyTile(8, 2, 4, 3, 1, 2, 1, 1)),
]


@pytest.mark.parametrize(("program", "schedule"), [c[1:] for c in COMPILED_SKINNY], ids=[c[0] for c in COMPILED_SKINNY])
def test_a_kernel_of_few_rows_and_several_outputs_compiles_without_spills(program: Program, schedule: SkinnyTile) -> None:
    source = SKINNY.emit(grouped(program), schedule)
    binary = compile_source(source, parse_target("sm_90"))
    assert (binary.resources.spill_bytes, binary.resources.stack_bytes) == (0, 0)
    assert binary.resources.registers * source.block * schedule.blocks <= 65536


EMULATED_SKINNY: list[tuple[str, Program, SkinnyTile]] = [
    ("three parts of different columns", projections(16, (136, 64, 8), 256), SkinnyTile(8, 1, 4, 2, 2, 2, 1)),
    ("k contiguous, odd columns", projections(11, (37, 72), 264, w="jk"), SkinnyTile(4, 1, 4, 2, 3, 2, 1)),
    ("k contiguous, whole slabs, f16", projections(3, (64, 32), 256, w="jk", dtype=F16), SkinnyTile(4, 1, 4, 1, 2, 2, 1)),
    ("the same columns", same_columns(5, 72, 128), SkinnyTile(8, 1, 2, 1, 2, 2, 1)),
    ("by head, with a statistic, straight", heads(9, 3, 2, 24, 256), SkinnyTile(8, 1, 4, 2, 1, 2, 1, 0, 1)),
    ("rows under two names, with a statistic", queries_and_keys(12, 48, 128), SkinnyTile(8, 1, 2, 2, 1, 2, 1)),
    ("epilogues of each kind, three blocks", with_epilogues(12, (64, 72, 136), 320), SkinnyTile(8, 2, 2, 3, 1, 2, 1)),
    ("gates through memory", gates(8, (72, 136), 192), SkinnyTile(8, 1, 2, 2, 2, 2, 1, 1)),
    ("batched, through memory", batches(3, 4, (72, 136), 192), SkinnyTile(8, 1, 2, 3, 1, 2, 1, 1)),
]


@needs_compiler
def test_emulated_kernels_of_few_rows_agree_with_the_oracle(tmp_path: Path) -> None:
    sources = [emulated(SKINNY.emit(grouped(p), s)) for _, p, s in EMULATED_SKINNY]
    wrong = {}
    for entry, source, (name, program, _) in zip(compile_kernels(sources, tmp_path), sources, EMULATED_SKINNY, strict=True):
        inputs = drawn(program)
        if not (error := departure(program, inputs, run_outputs(entry, source, program, inputs, times=1))) <= 1:
            wrong[name] = error
    assert not wrong


CPU_PROGRAMS = {
    "three parts of different columns": projections(19, (40, 33, 5), 37),
    "k contiguous": projections(6, (40, 7), 50, w="jk"),
    "the same columns": same_columns(9, 23, 31),
    "by head": heads(7, 3, 2, 8, 24),
    "rows under two names": queries_and_keys(7, 20, 24),
    "epilogues of each kind": with_epilogues(12, (20, 33, 8), 29),
    "gates": gates(5, (17, 40), 21),
    "batched": batches(3, 6, (18, 9), 20),
    "a statistic of one part, weights in either order": plain(8, (21, 30), 26),
}
CPU_MENU = {
    ContractFamily(): [
        CpuContractTile(b, r, v, kc, r * 2, 64 // b * 16 * v, t, 0)
        for b, (r, v), kc, t in itertools.product((16, 32, 64), ((4, 2), (3, 1)), (8, 256), (1, 0))
    ],
    CpuSkinnyFamily(): [
        CpuSkinnyTile(b, d, v, c, t, 0) for b, d, v, c, t in itertools.product((16, 32, 64), (1, 8), (1, 4), (16, 64), (1, 0))
    ],
}


@pytest.mark.parametrize("name", CPU_PROGRAMS)
def test_every_output_is_right_on_the_cpu(name: str, tmp_path: Path) -> None:
    p = CPU_PROGRAMS[name]
    problem, rng = grouped(p), random.Random(3)
    legal = {f: [s for s in menu if f.legal(problem, s) is None] for f, menu in CPU_MENU.items()}
    assert all(legal[f] or problem.shape[1] > 16 for f in legal)
    chosen = [(f, s) for f, found in legal.items() for s in rng.sample(found, min(2, len(found)))]
    sources = [f.emit(problem, s) for f, s in chosen]
    suites = prepare(p, seed=1, quick=True)[:2]
    for (_, schedule), source, entry in zip(chosen, sources, compile_many(sources, tmp_path), strict=True):
        for suite in suites:
            check = check_outputs(call_all(entry, source, p, suite.inputs), suite.expected, suite.suite)
            assert check.passed, f"{schedule}: {check.name}: {check.note}"


def refusal(program: Program) -> str:
    found = contract_problem(program)
    assert isinstance(found, str)
    return found


def test_the_columns_of_all_parts_count_and_each_part_knows_its_output() -> None:
    problem = grouped(projections(4, (8, 16, 24), 32))
    assert problem.shape == (1, 4, 48, 32)
    assert [p.output.name for p in problem.parts] == ["y0", "y1", "y2"]
    assert problem.flops == problem.program.flops == 2 * 4 * 48 * 32


def test_parts_have_the_statistics_of_all_each_under_its_own_names() -> None:
    assert len(grouped(queries_and_keys(6, 8, 16)).statistics) == 1
    lead, other = grouped(heads(6, 2, 1, 8, 16)).parts
    assert lead.statistics == other.statistics


def test_outputs_of_another_left_operand_or_other_summed_axes_are_no_one_kernel() -> None:
    s = Shape(BF16, i=4, j=8, k=16, p=8)
    first = ("y0", s.matmul(s("x", "ik"), s("w0", "kj")), "ij", BF16)
    assert "left operand" in refusal(together(first, ("y1", s.matmul(s("z", "ik"), s("w1", "kj")), "ij", BF16)))
    scaled = apply("mul", s("x", "ik"), s("g", "k"))
    assert "left operand" in refusal(together(first, ("y1", s.matmul(scaled, s("w1", "kj")), "ij", BF16)))
    assert "left operand" in refusal(together(first, ("y1", s.matmul(s("x", "ik"), s("w1", "kp")), "pi", BF16)))
    assert "several outputs" in refusal(together(first, ("y1", s("x", "ik"), "ik", BF16)))


def test_outputs_that_lay_their_rows_out_otherwise_are_no_one_kernel() -> None:
    s = Shape(BF16, a=3, b=4, j=8, k=16)
    values = [s.matmul(s("x", "abk"), s(f"w{c}", "kj")) for c in range(2)]
    assert "orders" in refusal(together(("y0", values[0], "abj", BF16), ("y1", values[1], "baj", BF16)))


def test_families_refuse_parts_that_no_tile_serves() -> None:
    s = Shape(BF16, i=64, k=64, p=64, q=64)
    x = s("x", "ik")
    gate = apply("mul", s.matmul(x, s("a", "kp")), s.matmul(x, s("b", "kp")))
    unlike = grouped(together(("y0", gate, "ip", BF16), ("y1", s.matmul(x, s("w", "kq")), "iq", BF16)))
    assert "numbers of contractions" in str(WGMMA.legal(unlike, ALONE))
    assert "numbers" in str(SKINNY.legal(unlike, SkinnyTile(8, 1, 2, 1, 1, 2, 1)))
    turned = grouped(together(*((f"y{c}", s.matmul(x, s(f"w{c}", w)), f"i{c}", BF16) for c, w in (("p", "kp"), ("q", "qk")))))
    assert "orders" in str(WGMMA.legal(turned, ALONE))
    assert "orders" in str(SKINNY.legal(turned, SkinnyTile(8, 1, 2, 1, 1, 2, 1)))
    assert "different numbers" in str(SIMT.legal(unlike, SimtTile(16, 16, 16, 1, 1)))
    assert SIMT.legal(turned, SimtTile(16, 16, 16, 1, 1)) is None


def test_every_part_begins_with_a_tile_of_its_own() -> None:
    problem, tile = grouped(projections(128, (100 * 8, 8, 64), 64)), WgmmaTile(128, 256, 2, 0, 1, 2, 8)
    source = WGMMA.emit(problem, tile)
    assert source.grid == ((2 + 1 + 1) * 2, 1, 1)
    assert [a.name for a in source.args if isinstance(a, TensorMapArg)] == ["x", "w0", "w1", "w2", "y0", "y1", "y2"]


def test_bytes_and_operations_of_all_parts_bound_the_kernel() -> None:
    rates = Rates(4000.0, 3800.0, (("bf16", 900000.0), ("f32", 60000.0)), 30000.0, 2000.0)
    two, three = (WGMMA.bound_ns(grouped(projections(4096, c, 4096)), rates) for c in ((4096, 4096), (4096, 8192)))
    assert three == pytest.approx(two * 1.5)
    few = grouped(projections(8, (4096, 4096), 4096))
    assert SKINNY.bound_ns(few, rates) >= few.program.bytes / rates.read


def test_every_case_for_the_device_has_a_legal_schedule_of_its_family() -> None:
    for name, program, schedules in (*CASES, *BOARD):
        assert [s for s in schedules if any(f.legal(grouped(program), s) is None for f in (WGMMA, SKINNY))], name


@needs_compiler
def test_emulated_plain_kernels_agree_with_the_oracle(tmp_path: Path) -> None:
    tiles = (SimtTile(16, 16, 16, 1, 1), SimtTile(32, 64, 8, 2, 4))
    cases = [(name, p, s) for name, p in CPU_PROGRAMS.items() for s in tiles if SIMT.legal(grouped(p), s) is None]
    assert len(cases) == 2 * len(CPU_PROGRAMS)
    sources = [SIMT.emit(grouped(p), s) for _, p, s in cases]
    wrong = {}
    for entry, source, (name, program, schedule) in zip(compile_kernels(sources, tmp_path), sources, cases, strict=True):
        inputs = drawn(program)
        if not (error := departure(program, inputs, run_outputs(entry, source, program, inputs, times=1))) <= 1:
            wrong[f"{name}: {schedule}"] = error
    assert not wrong


def test_a_plain_kernel_of_several_outputs_compiles_without_spills() -> None:
    program = projections(512, (512, 128, 128), 512, dtype=F32)
    binary = compile_source(SIMT.emit(grouped(program), SimtTile(128, 128, 8, 8, 8)), parse_target("sm_90"))
    assert (binary.resources.spill_bytes, binary.resources.stack_bytes) == (0, 0)


def test_outputs_by_head_leave_through_tensor_maps_where_heads_are_whole_panels() -> None:
    wide, narrow = WgmmaTile(128, 128, 2, 0, 1, 1, 8), WgmmaTile(128, 96, 2, 0, 1, 1, 8)
    problem = grouped(heads(256, 6, 2, 32, 128))
    maps = {a.name: a for a in WGMMA.emit(problem, narrow).args if isinstance(a, TensorMapArg)}
    assert maps["q"].extents == (32, 256, 6)
    assert maps["v"].extents == (32, 256, 2)
    assert {m.name for m in WGMMA.emit(problem, wide).args if isinstance(m, TensorMapArg)} == {"x", "wq", "wv"}
