"""Contractions of one left operand with several outputs: one launch, emulated, compiled and run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda.nvrtc import compile_source
from eqsat.codegen.cuda.wgmma import WgmmaFamily, WgmmaTile
from eqsat.codegen.targets import parse_target
from eqsat.ir import Program
from eqsat.oracle import evaluate
from tests.codegen.contract_problems import F16
from tests.codegen.emulate import compile_kernels
from tests.codegen.emulate_mma import emulated_wgmma, run_maps
from tests.codegen.grouped_problems import batches, gates, grouped, heads, projections, same_columns, with_epilogues

WGMMA = WgmmaFamily()
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
