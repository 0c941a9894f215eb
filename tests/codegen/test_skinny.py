"""The skinny family: what it refuses, that its kernels compile clean, and (emulated) that they compute the right thing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda.nvrtc import compile_source
from eqsat.codegen.cuda.skinny import SkinnyFamily, SkinnyTile
from eqsat.codegen.cuda.wgmma import WgmmaFamily
from eqsat.codegen.problem import ContractProblem, contract_problem
from eqsat.codegen.targets import parse_target
from eqsat.ir import Program
from eqsat.oracle import evaluate
from eqsat.rulefile import builtin_rules
from eqsat.search.rulebase import declarations
from eqsat.search.schedules import points, space_of, space_term
from eqsat.session import Session
from tests.codegen.contract_problems import (
    BOARD,
    F16,
    F32,
    batched,
    gated,
    linear,
    linear_silu,
    rms_linear,
    scaled_max,
    transposed_left,
)
from tests.codegen.emulate import compile_kernels, run_kernel
from tests.codegen.emulate_mma import emulated

FAMILY = SkinnyFamily()
ONE, PAIR, THREE = SkinnyTile(8, 1, 2, 1, 2, 2, 1), SkinnyTile(8, 1, 4, 2, 2, 2, 1), SkinnyTile(8, 2, 2, 3, 1, 2, 1)
K_MAJOR = SkinnyTile(4, 1, 4, 2, 3, 2, 1)


def problem(program: Program) -> ContractProblem:
    found = contract_problem(program)
    assert isinstance(found, ContractProblem), found
    return found


COMPILED = [
    ("nn", linear(16, 4096, 4096), SkinnyTile(8, 1, 8, 2, 2, 2, 1), "sm_90"),
    ("nt", linear(16, 4096, 4096, w="jk"), SkinnyTile(2, 1, 16, 4, 4, 2, 2), "sm_90"),
    ("statistic, prologue", rms_linear(16, 4096, 4096), SkinnyTile(8, 2, 4, 4, 2, 2, 1), "sm_90"),
    ("gated", gated(8, 11008, 4096), SkinnyTile(8, 4, 2, 3, 2, 2, 1), "sm_90"),
    ("through memory", gated(16, 11008, 4096), SkinnyTile(8, 2, 4, 3, 1, 2, 1, 1), "sm_80"),
    ("straight", linear(16, 4096, 4096), SkinnyTile(8, 1, 8, 2, 2, 2, 1, 0, 1), "sm_90"),
    ("straight with a statistic and a gain", rms_linear(16, 4096, 4096), SkinnyTile(8, 1, 8, 2, 2, 2, 1, 0, 1), "sm_90"),
    ("straight, gated", gated(16, 11008, 4096), SkinnyTile(8, 1, 4, 1, 2, 2, 2, 0, 1), "sm_80"),
    ("without clusters, on an older part", linear(8, 4096, 1024, dtype=F16), SkinnyTile(8, 1, 4, 1, 2, 2, 2), "sm_80"),
]


@pytest.mark.parametrize(("program", "schedule", "target"), [c[1:] for c in COMPILED], ids=[c[0] for c in COMPILED])
def test_a_kernel_compiles_without_spills(program: Program, schedule: SkinnyTile, target: str) -> None:
    source = FAMILY.emit(problem(program), schedule)
    assert source.requires == target
    binary = compile_source(source, parse_target(target))  # spills or a stack frame would raise
    assert binary.resources.registers * source.block * schedule.blocks <= 65536


EMULATED: list[tuple[str, Program, SkinnyTile]] = [
    ("columns contiguous", linear(16, 64, 256), PAIR),
    ("columns contiguous, three blocks", linear(12, 136, 320), THREE),
    ("k contiguous", linear(16, 72, 256, w="jk"), K_MAJOR),
    ("k contiguous, odd columns, part of a chunk", linear(11, 37, 264, w="jk", out=F32), K_MAJOR),
    ("f16, few rows", linear(2, 64, 128, dtype=F16), ONE),
    ("odd k", linear(5, 72, 77), ONE),
    ("thirty-three rows", linear(33, 64, 128), SkinnyTile(8, 1, 2, 2, 1, 2, 1)),
    ("root mean square and gain", rms_linear(9, 64, 256), PAIR),
    ("two statistics", scaled_max(3, 64, 192), THREE),
    ("gated", gated(8, 64, 256), PAIR),
    ("transposed, computed left operand", transposed_left(6, 64, 128), ONE),
    ("batched", batched(3, 4, 72, 128), PAIR),
    ("through memory", linear(10, 72, 256), SkinnyTile(8, 1, 2, 3, 1, 2, 1, 1)),
    ("statistics through memory, batched", scaled_max(3, 136, 192), SkinnyTile(8, 1, 2, 2, 2, 2, 1, 1)),
    ("straight", linear(11, 64, 256), SkinnyTile(8, 1, 2, 2, 2, 2, 1, 0, 1)),
    ("straight, alone, one row, part of a chunk", linear(1, 104, 264), SkinnyTile(8, 1, 4, 1, 1, 2, 1, 0, 1)),
    ("straight, k contiguous, gated", gated(9, 40, 256, w="jk"), SkinnyTile(2, 2, 2, 3, 2, 2, 1, 0, 1)),
    ("straight, root mean square and gain", rms_linear(9, 64, 256), SkinnyTile(8, 1, 4, 2, 1, 2, 1, 0, 1)),
    ("straight, two statistics, alone", scaled_max(3, 136, 192), SkinnyTile(8, 2, 2, 1, 2, 2, 1, 0, 1)),
    ("straight, two statistics through memory", scaled_max(10, 136, 192), SkinnyTile(8, 1, 2, 2, 2, 2, 1, 1, 1)),
    ("straight, batched, three blocks", batched(3, 4, 72, 320), SkinnyTile(8, 1, 2, 3, 1, 2, 1, 0, 1)),
    ("straight, an odd number of statistics from three blocks", rms_linear(1, 64, 320), SkinnyTile(8, 1, 2, 3, 1, 2, 1, 0, 1)),
    ("sixteen tiles", linear(8, 128, 256), SkinnyTile(16, 1, 2, 2, 1, 2, 1)),
]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_emulated_kernels_agree_with_the_oracle(tmp_path: Path) -> None:
    sources = [emulated(FAMILY.emit(problem(p), s)) for _, p, s in EMULATED]
    entries = compile_kernels(sources, tmp_path)
    rng = np.random.default_rng(0)
    wrong = {}
    for entry, source, (name, program, _) in zip(entries, sources, EMULATED, strict=True):
        inputs = {i.name: rng.standard_normal(i.shape).astype(i.dtype.numpy) for i in program.inputs}
        want = np.asarray(evaluate(program, inputs)[0], np.float64)
        got = run_kernel(entry, source, program, inputs, times=1).astype(np.float64)
        error = np.abs(got - want).max() / np.abs(want).max()
        if not error <= 2 * program.outputs[0].dtype.roundoff + 1e-6:
            wrong[name] = error
    assert not wrong


def refusal(program: Program, schedule: SkinnyTile = ONE) -> str:
    why = FAMILY.legal(problem(program), schedule)
    assert why is not None
    return why


def test_many_rows_are_refused() -> None:
    assert "64 rows" in refusal(linear(65, 128, 128))


def test_rows_of_the_big_matrix_that_are_not_whole_vectors_are_refused() -> None:
    assert "16 bytes" in refusal(linear(8, 100, 128))
    assert "16 bytes" in refusal(linear(8, 104, 132, w="jk"), K_MAJOR)


def test_f32_operands_are_refused() -> None:
    assert "bf16 and f16" in refusal(linear(8, 128, 128, dtype=F32))


def test_a_tile_that_does_not_fit_the_layout_is_refused() -> None:
    assert "column tiles" in refusal(linear(8, 128, 128), SkinnyTile(4, 1, 4, 1, 1, 2, 1))
    assert "column tiles" in refusal(linear(8, 128, 128, w="jk"), SkinnyTile(3, 1, 4, 1, 1, 2, 1))


def test_a_left_operand_that_is_not_whole_vectors_cannot_go_straight_to_registers() -> None:
    straight = SkinnyTile(8, 1, 2, 1, 2, 2, 1, 0, 1)
    assert "vectors of 8" in refusal(transposed_left(6, 64, 128), straight)
    assert "vectors of 8" in refusal(linear(5, 72, 77), straight)
    assert "chunks of 32" in refusal(scaled_max(3, 64, 136), straight)


def test_every_block_of_a_cluster_needs_a_share_of_k() -> None:
    assert "share" in refusal(linear(8, 128, 160), SkinnyTile(8, 1, 1, 4, 1, 2, 1))
    assert "share" in refusal(linear(8, 128, 64), SkinnyTile(8, 1, 1, 3, 1, 2, 1))


def test_registers_and_shared_memory_bound_the_blocks_of_a_multiprocessor() -> None:
    assert "registers" in refusal(gated(16, 512, 512), SkinnyTile(8, 1, 8, 1, 2, 2, 2))
    assert "shared memory" in refusal(linear(64, 512, 4096), SkinnyTile(8, 1, 2, 1, 1, 2, 1))


@pytest.fixture(scope="module")
def offered() -> dict[str, list[object]]:
    """Return the legal wgmma and skinny points of the board's shapes and of two small ones."""
    rules = builtin_rules()
    problems = {c.name: c.problem for c in BOARD} | {
        "small": problem(linear_silu(5, 40, 24)),
        "small k-major": problem(linear(3, 40, 24, w="jk")),
    }
    with Session() as session:
        terms = [space_term("cuda", space_of(p)) for p in problems.values()]
        found = session.schedule_points(terms, rules.rules, declarations=declarations(rules))
    families = (WgmmaFamily(), FAMILY)
    return {
        name: [s for s in points(f) if any(type(s) in g.schedules and g.legal(p, s) is None for g in families)]
        for (name, p), f in zip(problems.items(), found, strict=True)
    }


@pytest.mark.parametrize("name", [*(c.name for c in BOARD), "small", "small k-major"])
def test_the_menu_offers_every_problem_some_points_and_not_too_many(name: str, offered: dict[str, list[object]]) -> None:
    assert 1 <= len(offered[name]) <= 80
