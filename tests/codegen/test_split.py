"""The split family: what it refuses, that its kernels compile clean, and (emulated) that they are as exact as f32 arithmetic."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqsat.codegen.cuda.split import SplitFamily, SplitTile
from eqsat.codegen.problem import ContractProblem, contract_problem
from eqsat.ir import Program, apply, const
from eqsat.oracle import evaluate
from tests.codegen.contract_problems import F32, Shape, linear
from tests.codegen.emulate import compile_kernels
from tests.codegen.emulate_split import emulated_split, run_split

FAMILY = SplitFamily()
TILE = SplitTile(128, 128, 64, 1, 8)


def problem(program: Program) -> ContractProblem:
    found = contract_problem(program)
    assert isinstance(found, ContractProblem), found
    return found


def f32(m: int, n: int, k: int, x: str = "ik", w: str = "kj") -> Program:
    return linear(m, n, k, x=x, w=w, dtype=F32)


def batched(b: int, m: int, n: int, k: int) -> Program:
    s = Shape(F32, b=b, i=m, j=n, k=k)
    return s.program(s.matmul(s("x", "bik"), s("w", "bkj")))


def with_epilogue(m: int, n: int, k: int) -> Program:
    s = Shape(F32, i=m, j=n, k=k)
    e = apply("add", s.matmul(s("x", "ik"), s("w", "kj")), s("bias", "j"))
    return s.program(apply("add", apply("maximum", e, const(0.0, F32)), s("r", "ij")))


EMULATED: list[tuple[str, Program, SplitTile]] = [
    ("nn", f32(136, 136, 100), SplitTile(64, 64, 32, 1, 2)),
    ("nt", f32(72, 136, 96, w="jk"), SplitTile(64, 128, 64, 1, 8)),
    ("tn, two warpgroups", f32(132, 68, 72, x="ki"), SplitTile(128, 64, 64, 1, 8)),
    ("tt, odd rows", f32(68, 76, 128, x="ki", w="jk"), SplitTile(64, 96, 32, 1, 8)),
    ("slices", f32(70, 72, 400), SplitTile(64, 64, 64, 5, 8)),
    ("the ring wraps, epilogue", with_epilogue(70, 76, 640), SplitTile(64, 32, 32, 1, 8)),
    ("odd columns", f32(70, 77, 128, w="jk"), SplitTile(64, 64, 32, 2, 8)),
    ("batched", batched(2, 40, 72, 64), SplitTile(64, 32, 32, 1, 8)),
]
SPOILS = ("nothing", "rows and columns of many sizes", "infinite, NaN and huge")


def drawn(program: Program, spoil: str, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    found = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in program.inputs}
    if spoil == "rows and columns of many sizes":
        for a in found.values():
            a *= np.exp2(rng.integers(-20, 21, size=(*a.shape[:-1], 1))).astype(np.float32)
            a[rng.random(a.shape) < 0.2] = 0
    if spoil == "infinite, NaN and huge":
        for name in ("x", "w"):
            flat = found[name].reshape(-1)
            for value in (np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-42, 1e-30):
                flat[rng.integers(flat.size)] = value
    return found


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_emulated_kernels_are_as_exact_as_f32_arithmetic_whatever_the_sizes(tmp_path: Path) -> None:
    sources = [emulated_split(FAMILY.emit(problem(p), s)) for _, p, s in EMULATED]
    wrong = {}
    for entry, source, (name, program, _) in zip(compile_kernels(sources, tmp_path), sources, EMULATED, strict=True):
        for spoil in SPOILS:
            inputs = drawn(program, spoil)
            with np.errstate(all="ignore"):
                want = np.asarray(evaluate(program, inputs)[0], np.float64)
                sizes = np.asarray(evaluate(program, {n: np.abs(a) for n, a in inputs.items()})[0], np.float64)
                got = run_split(entry, source, program, inputs).astype(np.float64)
                error = np.abs(got - want) / sizes
            counted = np.isfinite(want) & (sizes < 3e38)
            if counted.any() and not error[counted].max() <= 2.0**-21:
                wrong[name, spoil] = error[counted].max()
            if np.isnan(got[counted]).any() or np.isfinite(got[np.isnan(want)]).any():
                wrong[name, spoil] = "NaN"
    assert not wrong
