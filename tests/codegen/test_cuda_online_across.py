"""Keys that lie side by side in memory for each contracted position, on the tensor cores of sm_90a."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cuda import nvrtc
from eqsat.codegen.cuda.nvrtc import compile_many
from eqsat.codegen.cuda.online_wgmma import OnlineWgmmaFamily, OnlineWgmmaTile
from eqsat.codegen.kernel import KernelBinary
from eqsat.codegen.online import OnlineProblem, online_problem
from eqsat.codegen.targets import parse_target
from eqsat.errors import EnvironmentMissingError
from eqsat.search.verify import check_outputs, prepare
from tests.codegen import emulate
from tests.codegen.emulate_mma import emulated_wgmma, run_maps
from tests.codegen.online_problems import BF16, F16, across

FAMILY = OnlineWgmmaFamily()
ONE = OnlineWgmmaTile(keys=64, groups=1, stages=2, pingpong=0, persistent=0, ordered=0, lag=0, heads=1)
TWO = OnlineWgmmaTile(keys=128, groups=2, stages=2, pingpong=1, persistent=0, ordered=0, lag=8, heads=2)


def fold(dtype: object, *sizes: int) -> OnlineProblem:
    found = online_problem(across(dtype, *sizes))  # type: ignore[arg-type]
    assert isinstance(found, OnlineProblem), found
    return found


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
def test_keys_side_by_side_are_taken_as_they_are(tmp_path: Path) -> None:
    cases = [((F16, 70, 152, 64, 64, 2), TWO), ((BF16, 40, 72, 24, 40, 1), ONE), ((BF16, 64, 136, 128, 64, 1), ONE)]
    sources = [FAMILY.emit(fold(*sizes), s) for sizes, s in cases]
    entries = emulate.compile_kernels([emulated_wgmma(s) for s in sources], tmp_path)
    for (sizes, _), source, entry in zip(cases, sources, entries, strict=True):
        program = across(*sizes)
        for p in prepare(program, 1)[:2]:
            got = run_maps(entry, source, program, {k: np.asarray(v) for k, v in p.inputs.items()})
            assert check_outputs(got, p.expected, p.suite).passed


def test_tiles_are_of_whole_panels() -> None:
    narrow = OnlineWgmmaTile(keys=80, groups=1, stages=2, pingpong=0, persistent=0, ordered=0, lag=0, heads=1)
    assert "panels of 64" in str(FAMILY.legal(fold(F16, 70, 152, 64, 64, 2), narrow))


def _usable() -> bool:
    try:
        nvrtc.version()
    except EnvironmentMissingError:
        return False
    return True


@pytest.mark.skipif(not _usable(), reason="NVRTC is not installed")
def test_the_compiler_takes_it_without_spills() -> None:
    sources = [FAMILY.emit(fold(F16, 256, 4096, 64, 64, 32), s) for s in (ONE, TWO)]
    for _, made in compile_many(sources, parse_target("sm_90")):
        assert isinstance(made, KernelBinary), made
        assert made.resources.spill_bytes == made.resources.stack_bytes == 0
        assert not made.resources.warnings
