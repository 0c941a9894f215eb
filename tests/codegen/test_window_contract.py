"""Convolutions on the matrix units: what a window is, what is refused, that kernels compile clean and (emulated) are right."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqsat import numpy_like as enp
from eqsat.access import Index
from eqsat.array import Array
from eqsat.codegen.cuda.nvrtc import compile_source
from eqsat.codegen.cuda.window_layout import Layout, WindowContractTile, window_layout
from eqsat.codegen.cuda.window_wgmma import WindowWgmmaFamily
from eqsat.codegen.problem import ContractProblem, contract_problem
from eqsat.codegen.targets import parse_target
from eqsat.codegen.windows import WindowOperand, affine_terms, widened_load, window_operand
from eqsat.errors import IllegalScheduleError
from eqsat.ir import Program
from eqsat.oracle import evaluate
from eqsat.trace import tensor, to_program
from eqsat.windows import conv, conv_transpose
from tests.codegen.emulate import compile_kernels, run_outputs
from tests.codegen.emulate_window import emulated_window
from tests.codegen.test_wgmma import hgmma_shapes

FAMILY = WindowWgmmaFamily()
Tile = WindowContractTile
HALF = Tile(64, 64, 64, 16, 0)


def program(f: Callable[..., Array], dtype: str, *shapes: tuple[int, ...]) -> Program:
    inputs = [tensor(name, shape, dtype) for name, shape in zip("xwbr", shapes, strict=False)]
    return to_program(f(*inputs), inputs=inputs)


def convolution(x: tuple[int, ...], w: tuple[int, ...], dtype: str = "bf16", **options: Any) -> Program:
    return program(lambda a, b: conv(a, b, **options), dtype, x, w)


def transposed(x: tuple[int, ...], w: tuple[int, ...], dtype: str = "bf16") -> Program:
    return program(conv_transpose, dtype, x, w)


def finished(x: tuple[int, ...], w: tuple[int, ...], dtype: str = "bf16") -> Program:
    """Return relu(conv(x, w) + b) + r: a bias by channel, a residual by position."""
    places = (x[0], w[0], *x[2:])
    return program(
        lambda a, b, c, r: enp.relu(conv(a, b, padding=1) + c.reshape(-1, *(1,) * (len(x) - 2))) + r, dtype, x, w, (w[0],), places
    )


def channels_last(x: tuple[int, ...], w: tuple[int, ...], dtype: str = "bf16") -> Program:
    """Return the convolution of (batch, *space, channels) with (*taps, channels, outputs), its result channels last."""

    def f(a: Array, b: Array) -> Array:
        windows = enp.sliding_window_view(enp.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0))), b.shape[:2], axis=(1, 2))
        return enp.einsum("nhwcrs,rsco->nhwo", windows, b)

    return program(f, dtype, x, w)


def grouped(x: tuple[int, ...], w: tuple[int, ...], dtype: str = "bf16") -> Program:
    """Return the convolution of (batch, groups, channels, h, w) with (groups, outputs, channels, r, s)."""

    def f(a: Array, b: Array) -> Array:
        return enp.einsum("ngchwrs,gocrs->ngohw", enp.sliding_window_view(a, b.shape[3:], axis=(3, 4)), b)

    return program(f, dtype, x, w)


def split_groups(x: tuple[int, ...], w: tuple[int, ...], dtype: str = "bf16") -> Program:
    """Return the convolution of (batch, groups · channels, h, w) with (groups, outputs, channels, r, s)."""

    def f(a: Array, b: Array) -> Array:
        groups, _, channels, *taps = b.shape
        windows = enp.sliding_window_view(a, taps, axis=(2, 3))
        apart = windows.reshape(a.shape[0], groups, channels, *windows.shape[2:])
        return enp.einsum("ngchwrs,gocrs->ngohw", apart, b)

    return program(f, dtype, x, w)


def problem(p: Program) -> ContractProblem:
    found = contract_problem(p)
    assert isinstance(found, ContractProblem), found
    return found


def layout(p: Program, s: WindowContractTile) -> Layout:
    found = window_layout(problem(p), s)
    assert isinstance(found, Layout), found
    return found


def operand_of(p: Program) -> WindowOperand | str:
    q = problem(p)
    loaded = widened_load(q.contractions[0].b)
    assert loaded is not None
    return window_operand(loaded, p.inputs[0], {*q.n, *q.batch}, q.k)


def test_a_window_says_how_each_dimension_of_its_buffer_moves() -> None:
    found = operand_of(convolution((2, 16, 20, 21), (8, 16, 3, 5), stride=(1, 2), padding=(1, 4), dilation=(1, 3)))
    assert isinstance(found, WindowOperand)
    _, channels, lines, columns = found.dims
    assert (channels.position, channels.taps, channels.leaves) == ("", 16, False)
    assert (lines.stride, lines.dilation, lines.offset, lines.taps) == (1, 1, -1, 3)
    assert (columns.stride, columns.dilation, columns.offset, columns.taps) == (2, 3, -4, 5)
    assert columns.leaves
    assert [columns.shift(t) for t in range(5)] == [0, 3, 6, 9, 12]


def test_taps_that_run_backwards_are_counted_from_the_last() -> None:
    found = operand_of(transposed((1, 16, 6, 7), (16, 8, 3, 3)))
    assert isinstance(found, WindowOperand)
    lines = found.dims[2]
    assert (lines.dilation, lines.offset, lines.first) == (-1, 0, -2)
    assert [lines.shift(t) for t in range(3)] == [2, 1, 0]


def test_two_free_axes_in_one_dimension_are_no_window() -> None:
    p = program(lambda a, b: enp.einsum("nchw,oc->nohw", a.reshape(2, 16, 4, 3), b), "bf16", (2, 16, 12), (8, 16))
    q = problem(p)
    loaded = widened_load(q.contractions[0].b)
    assert loaded is not None
    found = window_operand(loaded, p.inputs[0], {*q.n, *q.batch}, q.k)
    assert found == "the index (+ (* k 3) l) moves with more than one free and one summed axis"


def test_a_function_that_keeps_zero_passes_a_padding_without_a_mask() -> None:
    p = program(lambda a, b: conv(enp.relu(a), b, padding=1), "bf16", (1, 16, 8, 8), (16, 16, 3, 3))
    assert FAMILY.legal(problem(p), HALF) is None
    masked = program(lambda a, b: conv(enp.exp(a), b, padding=1), "bf16", (1, 16, 8, 8), (16, 16, 3, 3))
    assert "where" in {e.op for e in masked.walk()}
    assert "where" not in {e.op for e in p.walk()}


def test_an_index_that_divides_has_no_affine_terms() -> None:
    i = Index.axis("i")
    assert affine_terms(i * 3 + Index.const(2)) == ({"i": 3}, 2)
    assert affine_terms(i // 3) is None


BOARD = convolution((64, 128, 56, 56), (128, 128, 3, 3), padding=1)


@pytest.mark.parametrize(
    ("p", "s", "why"),
    [
        (BOARD, Tile(96, 64, 64, 64, 0), "64 or 128 channels"),
        (BOARD, Tile(128, 64, 64, 24, 0), "16 to 128 channels"),
        (convolution((1, 16, 9, 300), (16, 16, 3, 3), padding=1), Tile(64, 8, 1, 16, 0), None),
        (convolution((1, 512, 256, 256), (16, 512, 3, 3), "f32", padding=1), Tile(64, 128, 128, 128, 0), "bytes of shared memory"),
        (convolution((1, 16, 32, 32), (16, 16, 3, 3), "f32", padding=1), Tile(64, 256, 256, 16, 0), "twice the registers"),
        (convolution((1, 3, 32, 32), (16, 3, 3, 3), "f32", padding=1), HALF, "no room"),
        (program(lambda a, b: a @ b, "bf16", (64, 64), (64, 64)), HALF, "plain matrices"),
        (program(lambda a, b: conv(enp.exp(a), b), "bf16", (1, 16, 8, 8), (16, 16, 3, 3)), HALF, "keeps 0"),
        (program(lambda a, b, c: conv(a * c, b), "bf16", (1, 16, 8, 8), (16, 16, 3, 3), (1, 16, 8, 8)), HALF, "keeps 0"),
        (convolution((1, 16, 8, 8), (16, 16, 3, 3), "f64", padding=1), HALF, "both bf16"),
    ],
)  # fmt: skip
def test_what_a_schedule_cannot_serve_is_refused_with_a_reason(p: Program, s: WindowContractTile, why: str | None) -> None:
    found = FAMILY.legal(problem(p), s)
    if why is None:
        assert found is None
        return
    assert found is not None
    assert why in found
    with pytest.raises(IllegalScheduleError, match="expected a legal schedule"):
        FAMILY.emit(problem(p), s)


def test_lines_of_positions_are_divided_evenly_and_padded_to_eight() -> None:
    found = layout(BOARD, Tile(128, 256, 256, 64, 0))
    assert (found.lines.tile, found.columns.tile, found.n, found.tiles) == (4, 56, 232, 64 * 14)
    assert found.taps == 9
    assert found.steps == 2
    narrow = layout(BOARD, Tile(64, 128, 32, 64, 0))
    assert (narrow.columns.tile, narrow.columns.count, narrow.halves) == (28, 2, 2)
    assert narrow.lines.tile % 2 == 0


COMPILED = [
    (BOARD, Tile(128, 256, 256, 64, 0), "64x232x16", 4),
    (program(lambda a, b: enp.relu(conv(a, b, padding=1)), "f32", (64, 128, 56, 56), (128, 128, 3, 3)), Tile(128, 128, 256, 32, 0), "64x120x16", 12),
    (transposed((16, 32, 32, 32, 32), (32, 64, 3, 3, 3), "f32"), Tile(64, 128, 256, 16, 0), "64x112x16", 6),
    (finished((8, 64, 28, 28), (64, 64, 3, 3)), Tile(64, 256, 256, 32, 0), "64x208x16", 2),
]  # fmt: skip


@pytest.mark.parametrize(("p", "s", "shape", "issued"), COMPILED, ids=["bf16", "f32", "transposed 3d", "epilogue"])
def test_a_kernel_compiles_without_spills_and_issues_the_matrix_instructions_of_its_tile(
    p: Program, s: WindowContractTile, shape: str, issued: int, tmp_path: Path
) -> None:
    binary = compile_source(FAMILY.emit(problem(p), s), parse_target("sm_90"))  # spills or serialised wgmma would raise
    assert not binary.resources.warnings
    counted = hgmma_shapes(binary, tmp_path)
    assert set(counted) == {shape}
    assert len(counted) % issued == 0


EMULATED: list[tuple[str, Program, WindowContractTile]] = [
    ("two tiles of lines", convolution((2, 24, 9, 8), (72, 24, 3, 3), padding=1), Tile(128, 64, 8, 16, 0)),
    ("bias and residual, half the lines each", finished((1, 64, 11, 16), (40, 64, 3, 3)), Tile(64, 64, 16, 64, 0)),
    (
        "strides, two tiles of columns",
        convolution((2, 20, 10, 10), (20, 20, 3, 3), "f16", stride=2, padding=1),
        Tile(64, 96, 4, 32, 0),
    ),
    ("dilation, odd taps and columns", convolution((1, 16, 12, 13), (16, 16, 3, 2), dilation=2), Tile(64, 128, 64, 16, 0)),
    ("a line", convolution((2, 32, 37), (24, 32, 5), padding=2), Tile(128, 64, 16, 32, 0)),
    ("three dimensions", convolution((1, 16, 5, 6, 7), (24, 16, 3, 3, 3), padding=1), HALF),
    ("three strides", convolution((1, 16, 7, 7, 9), (16, 16, 3, 3, 3), stride=(2, 2, 3), padding=1), HALF),
    ("transposed", transposed((2, 16, 6, 7), (16, 24, 3, 3)), HALF),
    ("f32", convolution((1, 8, 6, 8), (16, 8, 3, 3), "f32", padding=1), HALF),
    ("f32, several steps", convolution((1, 40, 5, 6), (8, 40, 3, 3), "f32"), Tile(128, 64, 64, 16, 0)),
    ("channels last", channels_last((2, 7, 6, 24), (3, 3, 24, 40)), Tile(64, 64, 64, 16, 0)),
    ("channels last, odd channels", channels_last((1, 6, 6, 20), (3, 3, 20, 17)), Tile(64, 64, 64, 32, 0)),
    ("channels last of f32", channels_last((1, 6, 6, 16), (3, 3, 16, 24), "f32"), HALF),
    ("groups", grouped((2, 3, 16, 6, 9), (3, 24, 16, 3, 3)), HALF),
    ("groups of channels", split_groups((1, 24, 6, 7), (3, 20, 8, 3, 3)), HALF),
    ("copies for every tap", convolution((2, 24, 9, 8), (72, 24, 3, 3), padding=1), Tile(128, 64, 8, 16, 1)),
    (
        "copies, strides, tiles of columns",
        convolution((2, 20, 10, 11), (20, 20, 3, 4), "f16", stride=(1, 2), padding=2),
        Tile(64, 96, 4, 32, 1),
    ),
    ("copies, dilation, half the lines each", finished((1, 40, 11, 16), (40, 40, 3, 3)), Tile(64, 64, 16, 16, 1)),
    ("copies of f32, backwards", transposed((1, 16, 3, 4, 5), (16, 8, 2, 3, 3), "f32"), Tile(64, 64, 64, 16, 1)),
    ("copies, channels last", channels_last((2, 7, 6, 24), (3, 3, 24, 40)), Tile(64, 64, 64, 16, 1)),
    ("a function of the input", program(lambda a, b: conv(enp.silu(a), b), "bf16", (2, 24, 6, 9), (40, 24, 3, 3)), HALF),
    (
        "a function of f32 input",
        program(lambda a, b: conv(enp.relu(a), b), "f32", (1, 8, 5, 8), (8, 8, 3, 3)),
        Tile(64, 64, 64, 16, 1),
    ),
    ("one tap", convolution((2, 24, 6, 10), (40, 24, 1, 1)), HALF),
]


def inputs_of(p: Program) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {i.name: rng.standard_normal(i.shape).astype(i.dtype.numpy) for i in p.inputs}


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_emulated_kernels_agree_with_the_oracle(tmp_path: Path) -> None:
    sources = [emulated_window(FAMILY.emit(problem(p), s)) for _, p, s in EMULATED]
    entries = compile_kernels(sources, tmp_path)
    wrong = {}
    for entry, source, (name, p, _) in zip(entries, sources, EMULATED, strict=True):
        inputs = inputs_of(p)
        want = np.asarray(evaluate(p, inputs)[0], np.float64)
        (got,) = run_outputs(entry, source, p, inputs)
        error = np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()
        if not error <= 2 * p.outputs[0].dtype.roundoff + 1e-6:
            wrong[name] = error
    assert not wrong


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_f32_values_beyond_bf16_and_those_that_are_not_finite_come_out_as_ieee_says(tmp_path: Path) -> None:
    p = convolution((1, 8, 5, 5), (8, 8, 3, 3), "f32")
    source = emulated_window(FAMILY.emit(problem(p), HALF))
    (entry,) = compile_kernels([source], tmp_path)
    inputs = inputs_of(p)
    x, w = inputs["x"], inputs["w"]
    x[...], w[...] = 0, 0
    w[:, 0, 1, 1] = 1
    x[0, 0, 1, 1:4] = np.float32(3.4e38), np.float32(np.inf), np.float32(np.nan)
    x[0, 0, 2, 1:4] = np.float32(-np.inf), np.float32(1 + 2**-23), np.float32(1e-30)
    (got,) = run_outputs(entry, source, p, inputs)
    want = np.broadcast_to(x[0, 0, 1:4, 1:4], (8, 3, 3))
    poisoned = ~np.isfinite(want)
    # 0 · ∞ is NaN: an infinity reaches its own place, and makes NaN of the places whose taps of weight 0 see it
    assert not np.isfinite(got[0][poisoned]).any()
    only = np.zeros_like(x)
    only[0, 0, 1, 1], only[0, 0, 2, 2], only[0, 0, 3, 3] = np.float32(3.4e38), np.float32(1 + 2**-23), np.float32(1e-30)
    (got,) = run_outputs(entry, source, p, inputs | {"x": only})
    assert np.array_equal(got[0], np.broadcast_to(only[0, 0, 1:4, 1:4], (8, 3, 3)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is built with g++")
def test_the_emulator_sees_input_overwritten_too_early(tmp_path: Path) -> None:
    p, s = convolution((1, 64, 6, 8), (72, 64, 3, 3), padding=1), Tile(128, 64, 64, 16, 0)
    source = FAMILY.emit(problem(p), s)
    waited = "const u32 input = x.wait() + first_point * 16;"
    assert waited in source.text
    freed = dataclasses.replace(source, text=source.text.replace(waited, f"{waited} x.last = x.s; x.release();"))
    early = emulated_window(freed)
    (entry,) = compile_kernels([early], tmp_path)
    inputs = inputs_of(p)
    (got,) = run_outputs(entry, early, p, inputs)
    want = np.asarray(evaluate(p, inputs)[0], np.float64)
    assert not np.allclose(got.astype(np.float64), want, rtol=0.02, atol=0.02)


def test_the_menu_of_the_rules_is_legal_for_a_convolution_of_the_board() -> None:
    menu = Path(__file__).parents[2].joinpath("rules", "schedule-window-contract-sm90.egg").read_text(encoding="utf-8")
    tiles = [tuple(map(int, t)) for t in re.findall(r"\(shifted-contract-tile (\d+) (\d+) (\d+)\)", menu)]
    inputs = [tuple(map(int, t)) for t in re.findall(r"\(shifted-contract-input (\d+) (\d)\)", menu)]
    assert tiles
    q = problem(BOARD)
    legal = {(t, i) for t in tiles for i in inputs if FAMILY.legal(q, Tile(*t, *i)) is None}
    assert {t for t, _ in legal} == set(tiles)
    assert {i for _, i in legal} == set(inputs)
