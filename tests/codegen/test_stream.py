"""The stream family: what it refuses, that its kernels compile clean, and (emulated) that they compute the right thing."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda import stream
from eqsat.codegen.cuda.nvrtc import compile_source
from eqsat.codegen.cuda.stream import StreamFamily, StreamTile
from eqsat.codegen.problem import Contract, SummedContractProblem, contract_problem
from eqsat.codegen.targets import parse_target
from eqsat.ir import Program
from eqsat.oracle import evaluate
from eqsat.rulefile import builtin_rules
from eqsat.search.rulebase import declarations
from eqsat.search.schedules import points, space_of, space_term
from eqsat.session import Session
from tests.codegen.contract_problems import (
    F16,
    F32,
    batched,
    bias_gelu_residual,
    gated,
    linear,
    rms_linear,
    scaled_max,
    shifted_linear,
    transposed_left,
    two_products,
)
from tests.codegen.emulate import compile_kernels
from tests.codegen.emulate_stream import emulated_stream, run_stream
from tests.codegen.grouped_problems import batches, gates, heads, projections, same_columns, with_epilogues

FAMILY = StreamFamily()
ONE = StreamTile(64, 64, 2, 2, 227, 1)
WIDE = StreamTile(128, 64, 4, 1, 227, 1)
ALONG = StreamTile(32, 64, 2, 2, 227, 1)
SHORT = StreamTile(64, 64, 1, 0, 48, 1)
ALONE, TWO = StreamTile(64, 64, 2, 1, 227, 1, 1), StreamTile(64, 64, 2, 1, 227, 1, 2)


def problem(program: Program) -> Contract | SummedContractProblem:
    found = contract_problem(program)
    assert not isinstance(found, str), found
    return found


def fitted(program: Program, s: StreamTile) -> StreamTile:
    """Return the schedule without stagers if the left operand is plain."""
    copied = dataclasses.replace(s, stagers=0)
    return copied if FAMILY.legal(problem(program), copied) is None else s


COMPILED = [
    ("columns contiguous", linear(16, 4096, 4096), StreamTile(256, 64, 4, 4, 227, 1)),
    ("k contiguous", linear(16, 4096, 4096, w="jk"), StreamTile(64, 256, 4, 4, 227, 1)),
    ("statistic and gain", rms_linear(16, 4096, 4096), StreamTile(128, 64, 8, 4, 227, 1)),
    ("gated", gated(16, 11008, 4096), StreamTile(128, 64, 8, 4, 227, 1)),
    ("sixty-four rows", linear(64, 4096, 4096), StreamTile(128, 64, 8, 4, 227, 1)),
    ("two blocks", linear(8, 4096, 4096, dtype=F16), StreamTile(64, 64, 4, 4, 113, 2)),
    ("three outputs", projections(8, (4096, 1024, 1024), 4096), StreamTile(128, 64, 4, 4, 227, 1)),
    ("a cluster", linear(16, 4096, 4096), StreamTile(64, 128, 4, 4, 227, 1, 2)),
    ("a cluster, statistic and gain", rms_linear(16, 4096, 4096), StreamTile(64, 128, 4, 4, 227, 1, 2)),
    ("whole tiles, gated", gated(8, 11008, 4096), StreamTile(64, 64, 8, 4, 113, 2, 1)),
]


@pytest.mark.parametrize(("program", "schedule"), [c[1:] for c in COMPILED], ids=[c[0] for c in COMPILED])
def test_a_kernel_compiles_without_spills(program: Program, schedule: StreamTile) -> None:
    found = compile_source(FAMILY.emit(problem(program), fitted(program, schedule)), parse_target("sm_90")).resources
    assert (found.spill_bytes, found.stack_bytes, found.warnings) == (0, 0, ())


# Name, program, schedule, multiprocessors: fewer than the target's, so that blocks have whole tiles too and the emulator is quick.
EMULATED: list[tuple[str, Program, StreamTile, int]] = [
    ("columns contiguous", linear(16, 256, 4096), ONE, 7),
    ("more units than blocks, tiles shared and whole", linear(5, 4096, 96), ONE, 5),
    ("wide, part of a tile and of a unit", linear(11, 200, 1048), WIDE, 3),
    ("k contiguous", linear(9, 104, 1096, w="jk"), ALONG, 5),
    ("k contiguous, wide, f16", linear(2, 160, 512, w="jk", dtype=F16), StreamTile(64, 128, 4, 2, 227, 1), 3),
    ("the ring wraps", linear(7, 2048, 1024), SHORT, 4),
    ("f32 output, odd columns", linear(11, 101, 328, w="jk", out=F32), ALONG, 5),
    ("thirty-three rows", linear(33, 64, 4096), ONE, 5),
    ("statistic and gain", rms_linear(9, 136, 2048), ONE, 5),
    ("statistics of two kinds, part of a unit", scaled_max(3, 2048, 328), WIDE, 5),
    ("gated", gated(8, 128, 4096), StreamTile(64, 64, 4, 2, 227, 1), 5),
    ("bias, gelu, residual", bias_gelu_residual(16, 264, 512), ONE, 5),
    ("fetched left operand, transposed and computed", transposed_left(6, 64, 4096), ONE, 5),
    ("batched", batched(3, 4, 72, 1024), ONE, 5),
    ("batched, k contiguous", batched(2, 4, 72, 1024, w="bjk"), ALONG, 5),
    ("three outputs", projections(8, (200, 64, 72), 1024), ONE, 5),
    ("two outputs of one column axis", same_columns(4, 128, 2048), WIDE, 5),
    ("by head, with a statistic", heads(5, 4, 2, 32, 512), ONE, 5),
    ("one epilogue of each kind", with_epilogues(6, (72, 64, 136), 512), ONE, 5),
    ("two gates", gates(8, (64, 136), 1024), StreamTile(64, 64, 2, 2, 227, 1), 5),
    ("a sum of two products", two_products(8, 136, 512, 16), ONE, 5),
    ("a sum of two products, k contiguous, whole tiles", two_products(11, 96, 200, 24, w="jk", b="jr"), ALONE, 2),
    (
        "vectors of f32 and a scalar on the left, the ring wraps",
        shifted_linear(9, 128, 2048, gain=F32),
        StreamTile(64, 64, 2, 2, 60, 1),
        2,
    ),
    ("whole tiles", linear(11, 200, 256), ALONE, 2),
    ("whole tiles, two statistics", scaled_max(9, 320, 192), ALONE, 2),
    ("whole tiles, gated", gated(3, 192, 128), ALONE, 2),
    ("a cluster of two", linear(11, 104, 256), TWO, 4),
    ("a cluster of two, three tiles of rows, odd fragments", linear(20, 64, 256), StreamTile(64, 64, 2, 0, 227, 1, 2), 2),
    ("a cluster of two, statistic and gain", rms_linear(9, 136, 256), TWO, 6),
    ("a cluster of two, a sum of products", two_products(8, 72, 256, 16), TWO, 4),
    ("a cluster of two, gated", gated(8, 72, 256), StreamTile(64, 64, 4, 0, 227, 1, 2), 4),
    ("a cluster of two, two outputs, batched", batches(3, 4, (64, 40), 128), TWO, 12),
    ("two outputs, batched", batches(2, 4, (64, 40), 512), ONE, 5),
]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_emulated_kernels_agree_with_the_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []
    for _, p, s, processors in EMULATED:
        monkeypatch.setattr(stream, "HOPPER", dataclasses.replace(stream.HOPPER, processors=processors))
        sources.append(emulated_stream(FAMILY.emit(problem(p), fitted(p, s))))
    entries = compile_kernels(sources, tmp_path)
    rng = np.random.default_rng(0)
    wrong = {}
    for entry, source, (name, program, *_) in zip(entries, sources, EMULATED, strict=True):
        inputs = {i.name: rng.standard_normal(i.shape).astype(i.dtype.numpy) for i in program.inputs}
        for out, got, want in zip(
            program.outputs, run_stream(entry, source, program, inputs), evaluate(program, inputs), strict=True
        ):
            exact = np.asarray(want, np.float64)
            error = np.abs(got.astype(np.float64) - exact).max() / np.abs(exact).max()
            if not error <= 2 * out.dtype.roundoff + 1e-6:
                wrong[name, out.name] = error
    assert not wrong


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_the_emulator_sees_a_slot_freed_too_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HOPPER", dataclasses.replace(stream.HOPPER, processors=2))
    program = linear(7, 2048, 1024)
    source = FAMILY.emit(problem(program), SHORT)
    frees = "if (lane == 0 && u > begin) mbar_arrive(empty + 8 * (s ? s - 1 : STAGES - 1));"
    assert frees in source.text
    early = source.text.replace(frees, "if (lane == 0) mbar_arrive(empty + 8 * s); __syncwarp();")
    broken = emulated_stream(dataclasses.replace(source, text=early))
    (entry,) = compile_kernels([broken], tmp_path)
    rng = np.random.default_rng(0)
    inputs = {i.name: rng.standard_normal(i.shape).astype(i.dtype.numpy) for i in program.inputs}
    want = np.asarray(evaluate(program, inputs)[0], np.float64)
    got = run_stream(entry, broken, program, inputs, times=1)[0].astype(np.float64)
    assert not np.allclose(got, want, rtol=0.02, atol=0.5)


def refusal(program: Program, schedule: StreamTile = ONE) -> str:
    why = FAMILY.legal(problem(program), schedule)
    assert why is not None
    return why


def test_many_rows_are_refused() -> None:
    assert "64 rows" in refusal(linear(65, 128, 128))


def test_rows_of_the_big_matrix_that_are_not_whole_vectors_are_refused() -> None:
    assert "16 bytes" in refusal(linear(8, 100, 128))
    assert "along k" in refusal(linear(8, 128, 77), dataclasses.replace(ONE, stagers=0))


def test_a_unit_that_does_not_fit_the_layout_is_refused() -> None:
    assert "panels of 64 columns" in refusal(linear(8, 128, 128), StreamTile(32, 64, 2, 0, 227, 1))
    assert "16 to 256 columns" in refusal(linear(8, 128, 128, w="jk"), StreamTile(512, 64, 2, 0, 227, 1))
    assert "panels of 64 of k" in refusal(linear(8, 128, 128), StreamTile(64, 32, 2, 0, 227, 1))


def test_only_a_left_operand_that_is_not_plain_has_stagers() -> None:
    assert "copied" in refusal(linear(8, 128, 128), ONE)
    assert "made by at least one" in refusal(rms_linear(8, 128, 128), dataclasses.replace(ONE, stagers=0))


def test_a_ring_has_more_units_than_there_are_stagers() -> None:
    assert "more than stagers" in refusal(rms_linear(8, 128, 128), StreamTile(64, 64, 2, 4, 48, 1))


def test_a_ring_of_fewer_than_three_units_is_refused() -> None:
    assert "needs 3" in refusal(linear(8, 512, 512), StreamTile(256, 256, 4, 0, 227, 1))


def test_sums_that_do_not_fit_the_registers_are_refused() -> None:
    assert "registers" in refusal(linear(64, 1024, 1024), StreamTile(256, 64, 1, 0, 227, 1))


def test_a_cluster_takes_one_tile_and_shares_its_units() -> None:
    assert "more tiles than clusters" in refusal(linear(8, 8192, 1024), StreamTile(64, 64, 4, 0, 227, 1, 2))
    assert "give each of 2" in refusal(linear(8, 128, 64), StreamTile(64, 64, 4, 0, 227, 1, 2))


def test_blocks_take_equal_shares_of_the_units() -> None:
    source = FAMILY.emit(problem(linear(16, 4096, 4096)), StreamTile(256, 64, 4, 0, 227, 1))
    assert source.grid == (132, 1, 1)
    assert re.search(r"constexpr int TILES = 16;", source.text)


BOARD = {
    "plain": linear(16, 14336, 4096),
    "statistic and gain": rms_linear(16, 4096, 4096),
    "gated": gated(8, 11008, 4096),
    "a sum of products": two_products(16, 4096, 4096, 16),
    "k contiguous": linear(16, 4096, 4096, w="jk"),
}


def test_the_menu_offers_clusters_and_even_shares_for_few_rows_of_large_matrices() -> None:
    rules = builtin_rules()
    with Session() as session:
        terms = [space_term("cuda", space_of(problem(p))) for p in BOARD.values()]
        facts = f"{declarations(rules)}\n(processor-count {stream.HOPPER.processors})"
        found = session.schedule_points(terms, rules.rules, declarations=facts)
    for (name, program), offered in zip(BOARD.items(), found, strict=True):
        legal = [s for s in points(offered) if isinstance(s, StreamTile) and FAMILY.legal(problem(program), s) is None]
        assert 6 <= len(legal) <= 24, name
        assert {bool(s.cluster) for s in legal} == {True, False}, name
