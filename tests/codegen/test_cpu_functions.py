"""How accurate the vector functions of the CPU prelude are, measured against wider arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy import special

from eqsat.codegen.cpu.point import CpuPointTile
from eqsat.ir import Input, Output, Program, apply, read
from eqsat.types import DType
from tests.codegen.cpu_run import Array, run_each

TILE = CpuPointTile(32, 1, 0, 1, 0)
WIDE = {DType.F32: np.float64, DType.F64: np.longdouble}
UNARY: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "recip": lambda x: 1 / x,
    "floor": np.floor,
    "erf": lambda x: special.erf(x.astype(np.float64)),
}
RANGE = {"exp": 1.0, "sigmoid": 0.98, "tanh": 0.3, "erf": 0.08}  # of the exponent's range, where the interesting part is
LIMIT_ULP = 4.0


def arguments(op: str, dtype: np.dtype[Any], count: int) -> Array:
    """Draw arguments: near 0, over the function's own range, over all magnitudes, and the edges of the format."""
    rng = np.random.default_rng(7)
    info = np.finfo(dtype)
    edge = float(np.log(info.max))
    spread = np.exp(rng.uniform(np.log(float(info.tiny)), np.log(float(info.max)), count)) * rng.choice([-1, 1], count)
    edges = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, info.tiny, info.max, -info.max, info.smallest_subnormal, 0.5, 1e6]
    own = rng.uniform(-1, 1, count) * edge * RANGE.get(op, 100.0)
    return np.concatenate([rng.standard_normal(count), own, spread, edges]).astype(dtype)


def ulp_error(got: Array, want: Array) -> Array:
    """Return |got − want| in units of the last place of `want`; equal values (NaN, infinities too) give at most 0.5."""
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype)
        same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        error = np.abs(got.astype(want.dtype) - want) / np.spacing(np.abs(rounded)).astype(want.dtype)
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error)).astype(np.float64)


def unary(op: str, dtype: DType, count: int) -> Program:
    return Program((Input("x", (count,), dtype),), (Output("y", apply(op, read("x", ("i",), (count,), dtype)), ("i",), dtype),))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64])
def test_functions_are_within_four_units_of_the_last_place(dtype: DType, tmp_path: Path) -> None:
    if dtype is DType.F64 and np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("long double is no wider than double here")
    xs = {op: arguments(op, dtype.numpy, 1500) for op in UNARY}
    cases = [(unary(op, dtype, len(x)), TILE) for op, x in xs.items()]
    found = run_each(cases, [{"x": x} for x in xs.values()], tmp_path)
    for (op, x), got in zip(xs.items(), found, strict=True):
        with np.errstate(all="ignore"):
            want = np.asarray(UNARY[op](x.astype(WIDE[dtype])))
        if op in ("sin", "cos") and dtype is DType.F64:  # the x87 reduction is exact only as far as its 66 bits of pi
            x, got, want = (a[np.abs(x) < 1e3] for a in (x, got, want))
        error = ulp_error(got, want)
        if op in ("exp", "sigmoid"):  # results below the normal range are 0
            error[(got == 0) & (np.abs(want) < np.finfo(dtype.numpy).tiny)] = 0.0
        at = int(np.argmax(error))
        assert error[at] <= LIMIT_ULP, f"{op}({x[at]!r}) = {got[at]!r}; expected {want[at]!r}: {error[at]:.2f} ulp"


def test_pow_follows_ieee_754(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    special_a = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, np.inf, -np.inf, np.nan, 0.5, -0.5, 3.0]
    special_b = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, np.inf, -np.inf, np.nan, 7.0, 1e30]
    grid_a, grid_b = (g.ravel() for g in np.meshgrid(special_a, special_b))
    for dtype in (DType.F32, DType.F64):
        a = np.concatenate([grid_a, np.exp(rng.uniform(-5, 5, 3000)), -rng.uniform(0.5, 3, 300)]).astype(dtype.numpy)
        b = np.concatenate([grid_b, rng.uniform(-15, 15, 3000), np.floor(rng.uniform(-30, 30, 300))]).astype(dtype.numpy)
        x, y = (read(n, ("i",), a.shape, dtype) for n in "ab")
        program = Program(
            (Input("a", a.shape, dtype), Input("b", a.shape, dtype)), (Output("y", apply("pow", x, y), ("i",), dtype),)
        )
        got = run_each([(program, TILE)], [{"a": a, "b": b}], tmp_path)[0]
        with np.errstate(all="ignore"):
            error = ulp_error(got, np.power(a.astype(WIDE[dtype]), b.astype(WIDE[dtype])))
        at = int(np.argmax(error))
        assert error[at] <= LIMIT_ULP, f"pow({a[at]!r}, {b[at]!r}) = {got[at]!r}: {error[at]:.2f} ulp ({dtype})"


def test_trigonometry_reduces_huge_arguments(tmp_path: Path) -> None:
    # sin and cos of 2^120, 2^1000 and 1e22, from a computation with 1300 bits
    x = np.array([2.0**120, 2.0**1000, 1e22, -1e22])
    known = {
        "sin": [0.37782010936075202, -0.15920170308624244, -0.85220084976718880, 0.85220084976718880],
        "cos": [-0.92587902285483787, 0.98724607759891348, 0.52321478539513895, 0.52321478539513895],
    }
    found = run_each([(unary(op, DType.F64, 4), TILE) for op in known], [{"x": x}] * 2, tmp_path)
    for want, got in zip(known.values(), found, strict=True):
        assert np.allclose(got, want, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("dtype", "held"), [(DType.F16, np.float16), (DType.BF16, ml_dtypes.bfloat16)])
def test_sixteen_bit_floats_convert_as_numpy_converts_them(dtype: DType, held: Any, tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16).view(held)
    rng = np.random.default_rng(5)
    with np.errstate(all="ignore"):
        exact = every.astype(np.float64)
        between = (exact[1:] + exact[:-1]) / 2  # ties
        ties = np.concatenate([between, np.nextafter(between, np.inf), np.nextafter(between, -np.inf)])
        wide = np.concatenate([ties, rng.standard_normal(2000), [np.inf, -np.inf, np.nan, 1e30, -1e-30]])
        single = wide.astype(np.float32)

    def copy(source: DType, target: DType, count: int) -> Program:
        return Program((Input("x", (count,), source),), (Output("y", read("x", ("i",), (count,), source), ("i",), target),))

    cases = [copy(dtype, DType.F32, 65536), copy(DType.F32, dtype, single.size), copy(DType.F64, dtype, wide.size)]
    up, down, far = run_each([(p, TILE) for p in cases], [{"x": every}, {"x": single}, {"x": wide}], tmp_path)
    with np.errstate(all="ignore"):
        assert np.array_equal(up, every.astype(np.float32), equal_nan=True)
        assert np.array_equal(down.astype(np.float32), single.astype(held).astype(np.float32), equal_nan=True)
    if held is np.float16:  # ml_dtypes rounds float64 through float32, twice
        with np.errstate(all="ignore"):
            assert np.array_equal(far, wide.astype(held), equal_nan=True)
    else:
        finite = np.isfinite(wide) & (np.abs(wide) < 1e38)
        spacing = np.spacing(np.abs(far[finite].astype(np.float32))).astype(np.float64) * 65536
        assert (np.abs(far[finite].astype(np.float64) - wide[finite]) <= spacing / 2).all()
