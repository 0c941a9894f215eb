"""The split family: what it refuses, that its kernels compile clean, and (emulated) that they are as exact as f32 arithmetic."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqsat.codegen.cuda.nvrtc import compile_source
from eqsat.codegen.cuda.split import SplitFamily, SplitTile
from eqsat.codegen.kernel import TensorMapArg, WorkspaceArg
from eqsat.codegen.problem import ContractProblem, contract_problem
from eqsat.codegen.targets import parse_target
from eqsat.errors import IllegalScheduleError
from eqsat.ir import Program, apply, const
from eqsat.oracle import evaluate
from tests.codegen.contract_problems import F32, Shape, gated, linear, rms_linear_silu
from tests.codegen.emulate import compile_kernels
from tests.codegen.emulate_split import emulated_split, run_split
from tests.codegen.test_wgmma import hgmma_shapes

FAMILY = SplitFamily()
TILE = SplitTile(128, 128, 64, 1, 8, 0)


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
    ("nn", f32(72, 136, 100), SplitTile(64, 64, 32, 1, 2, 1)),
    ("nt", f32(72, 136, 96, w="jk"), SplitTile(64, 128, 64, 1, 8, 0)),
    ("tn, two warpgroups", f32(132, 68, 72, x="ki"), SplitTile(128, 64, 64, 1, 8, 0)),
    ("tt, odd rows", f32(68, 76, 128, x="ki", w="jk"), SplitTile(64, 96, 32, 1, 8, 1)),
    ("slices", f32(70, 40, 400), SplitTile(64, 64, 64, 5, 8, 0)),
    ("the ring wraps, epilogue", with_epilogue(70, 44, 384), SplitTile(64, 32, 32, 1, 8, 1)),
    ("odd columns", f32(70, 77, 128, w="jk"), SplitTile(64, 64, 32, 2, 8, 1)),
    ("batched", batched(2, 40, 72, 64), SplitTile(64, 32, 32, 1, 8, 1)),
]
SPOILS = ("nothing", "zeros", "rows and columns of many sizes", "infinite, NaN and huge")


def drawn(program: Program, spoil: str, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    found = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in program.inputs}
    if spoil == "zeros":
        for a in (found["x"], found["w"]):
            a[rng.random(a.shape) < 0.5] = 0
            a[: a.shape[0] // 2, : a.shape[1] // 2] = 0
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
                error = np.abs(got - want) / np.maximum(sizes, 1e-300)
            counted = np.isfinite(want) & (sizes < 3e38)
            if counted.any() and not error[counted].max() <= 2.0**-21:
                wrong[name, spoil] = error[counted].max()
            if np.isnan(got[counted]).any() or np.isfinite(got[np.isnan(want)]).any():
                wrong[name, spoil] = "NaN"
    assert not wrong


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_ordinary_numbers_stay_on_the_matrix_units_and_spoiled_ones_do_not(tmp_path: Path) -> None:
    program, tile = f32(64, 64, 128), SplitTile(64, 64, 64, 1, 8, 0)
    source = FAMILY.emit(problem(program), tile)
    call = re.search(r"by_hand<A, B, P>\(.*?\);", source.text)
    assert call is not None
    made = emulated_split(dataclasses.replace(source, text=source.text.replace(call[0], "total[panel * 16] += 1e30f;")))
    (entry,) = compile_kernels([made], tmp_path)
    largest = {s: np.nanmax(np.abs(run_split(entry, made, program, drawn(program, s)))) for s in SPOILS}
    assert max(largest[s] for s in SPOILS[:2]) < 100
    assert min(largest[s] for s in SPOILS[2:]) > 1e29


COMPILED = [
    ("nn", f32(4096, 4096, 4096), SplitTile(128, 128, 32, 1, 8, 1), "64x32x16"),
    ("nt", f32(1024, 8192, 8192, w="jk"), SplitTile(128, 64, 64, 1, 8, 0), "64x64x16"),
    ("tn", f32(4096, 4096, 4096, x="ki"), SplitTile(128, 96, 96, 1, 8, 0), "64x96x16"),
    ("slices", f32(256, 256, 524288), SplitTile(128, 128, 32, 33, 8, 1), "64x32x16"),
    ("epilogue", with_epilogue(4096, 4096, 4096), SplitTile(64, 64, 64, 1, 8, 0), "64x64x16"),
]


@pytest.mark.parametrize(("program", "schedule", "shape"), [c[1:] for c in COMPILED], ids=[c[0] for c in COMPILED])
def test_a_kernel_compiles_without_spills_and_issues_six_matrix_instructions_for_each_pass(
    program: Program, schedule: SplitTile, shape: str, tmp_path: Path
) -> None:
    binary = compile_source(
        FAMILY.emit(problem(program), schedule), parse_target("sm_90")
    )  # spills or serialised wgmma would raise
    assert binary.resources.stack_bytes == 0
    assert not binary.resources.warnings
    counted = hgmma_shapes(binary, tmp_path)
    assert counted == [shape] * (6 * schedule.bn // schedule.columns)


def refusal(program: Program, schedule: SplitTile = TILE) -> str:
    why = FAMILY.legal(problem(program), schedule)
    assert why is not None
    return why


def test_what_is_not_an_f32_matrix_is_refused() -> None:
    s = Shape(F32, i=128, j=128, k=128)
    assert "plain read of f32" in refusal(linear(128, 128, 128))
    assert "plain read of f32" in refusal(s.program(s.matmul(apply("exp", s("x", "ik")), s("w", "kj"))))
    assert "16 bytes" in refusal(f32(128, 130, 128))
    assert "one contraction" in refusal(gated(128, 128, 128, dtype=F32))
    assert "row statistics" in refusal(rms_linear_silu(128, 128, 128, dtype=F32))


def test_short_sums_are_refused_because_their_bound_leaves_no_room_for_split_products() -> None:
    assert "64 products" in refusal(f32(128, 128, 60))
    assert FAMILY.legal(problem(f32(128, 128, 64)), TILE) is None


def test_tiles_that_the_template_has_not_are_refused() -> None:
    long = f32(512, 512, 4096)
    assert "a tile is" in refusal(long, SplitTile(192, 128, 64, 1, 8, 0))
    assert "divide the tile" in refusal(long, SplitTile(128, 96, 64, 1, 8, 0))
    assert "registers" in refusal(long, SplitTile(128, 256, 64, 1, 8, 0))
    assert "raster" in refusal(long, SplitTile(128, 128, 64, 1, 0, 0))
    assert "its share" in refusal(long, SplitTile(128, 128, 64, 100, 8, 0))
    assert "workspace" in refusal(f32(4096, 4096, 4096), SplitTile(128, 128, 64, 8, 8, 0))
    with pytest.raises(IllegalScheduleError, match="a tile is"):
        FAMILY.emit(problem(long), SplitTile(96, 128, 64, 1, 8, 0))


def test_operands_are_copied_as_words_because_a_copy_of_floats_would_round_them() -> None:
    source = FAMILY.emit(problem(f32(512, 512, 4096)), SplitTile(128, 128, 64, 4, 8, 0))
    assert {a.dtype.value for a in source.args if isinstance(a, TensorMapArg)} == {"i32"}
    assert source.args[-1] == WorkspaceArg(zeroed=True)
    assert source.workspace_bytes == 4 * (16 + 16 * 4 * 128 * 128)
    assert source.grid == (16 * 4, 1, 1)
    assert source.shared_bytes <= 232448


# -- the arithmetic itself, in NumPy -----------------------------------------------------------------------------------


def cut(x: np.ndarray[Any, Any], bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cut x to multiples of 2^bits, toward zero."""
    return np.ldexp(np.trunc(np.ldexp(x, -bits)), bits)


def tensor_core(total: np.ndarray[Any, Any], a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Add 16 products to sums as Hopper's tensor cores do: aligned to the largest, cut two bits below f32, and cut to f32."""
    terms = np.concatenate([a[:, :, None] * b[None], total[:, None]], 1)
    exponent = np.frexp(np.abs(terms).max(1))[1]
    found = cut(terms, (exponent - 26)[:, None]).sum(1)
    return cut(found, np.frexp(found)[1] - 24)


def split_product(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Multiply as the kernels do."""
    scales = 12 - np.frexp(np.abs(x).max(1, keepdims=True))[1] + 1, 12 - np.frexp(np.abs(w).max())[1] + 1
    a, b = np.ldexp(x.astype(np.float64), scales[0]), np.ldexp(w.astype(np.float64), scales[1])
    h, g = (v.astype(np.float16).astype(np.float64) for v in (a, b))
    low_a, low_b = (((v - u) * 2048).astype(np.float16).astype(np.float64) for v, u in ((a, h), (b, g)))
    total, low = np.zeros((x.shape[0], w.shape[1]), np.float32), np.zeros((x.shape[0], w.shape[1]))
    back = np.ldexp(1.0, -(scales[0] + scales[1]))
    for k in range(0, x.shape[1], 32):
        high = np.zeros(low.shape)
        for j in (slice(k, k + 16), slice(k + 16, k + 32)):
            low = tensor_core(tensor_core(low, h[:, j], low_b[j]), low_a[:, j], g[j])
            high = tensor_core(high, h[:, j], g[j])
        total = (total + high * back).astype(np.float32)
    return (total + low * back / 2048).astype(np.float32)


def plain_product(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Multiply in f32, one rounding for each multiply-add, in order."""
    total = np.zeros((x.shape[0], w.shape[1]), np.float32)
    for k in range(x.shape[1]):
        total = (total + x[:, k : k + 1].astype(np.float64) * w[k : k + 1]).astype(np.float32)
    return total


@pytest.mark.parametrize("kind", ["normal", "uniform", "wide"])
@pytest.mark.parametrize("k", [64, 1024])
def test_split_products_are_at_least_as_exact_as_f32_ones(kind: str, k: int) -> None:
    rng = np.random.default_rng(k)
    x, w = (rng.random(s) if kind == "uniform" else rng.standard_normal(s) for s in ((24, k), (k, 24)))
    if kind == "wide":
        x, w = x * 10 ** rng.uniform(-3, 3, (24, 1)), w * 10 ** rng.uniform(-1, 1, (k, 1))
    x, w = x.astype(np.float32), w.astype(np.float32)
    want, sizes = x.astype(np.float64) @ w, np.abs(x).astype(np.float64) @ np.abs(w)
    errors = [(f(x, w) - want) / sizes for f in (split_product, plain_product)]
    ours, plain = (np.sqrt((e**2).mean()) for e in errors)
    assert ours <= plain
    assert np.abs(errors[0]).max() <= 1.1 * np.abs(errors[1]).max()
