"""Every op of the table with every dtype on the CPU, against the oracle with its error bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eqsat.codegen.cpu.columns import CpuColumnTile
from eqsat.codegen.cpu.point import CpuPointTile
from eqsat.codegen.cpu.reduce import CpuReduceTile
from eqsat.codegen.kernel import Schedule
from eqsat.ir import Expr, Input, Output, Program, apply, const, iota, read, reduce
from eqsat.ops import TABLE, Kind
from eqsat.search.verify import check_outputs, prepare
from eqsat.types import DType, promote
from tests.codegen.cpu_run import Array, call, compile_many, emit_all, run_each

WITHOUT_BOOL = {"sub", "neg", "floor"}  # NumPy, and with it the oracle, does not define them on truth values
POINTWISE = [row for row in TABLE if row.kind is Kind.POINTWISE]
REDUCTIONS = [row for row in TABLE if row.kind is Kind.REDUCE]


def stacked(values: list[Expr], out: DType) -> Expr:
    """Return the values along a new axis `o`, all cast to one type: one kernel tests them all."""
    place = iota("o", len(values))
    result = apply("cast", values[-1], dtype=out)
    for at in range(len(values) - 2, -1, -1):
        result = apply("where", apply("eq", place, const(at, DType.I64)), apply("cast", values[at], dtype=out), result)
    return result


def compare(programs: list[Program], schedules: list[Schedule], folder: Path) -> None:
    """Run each program with its schedule on every suite that the verifier draws."""
    sources = emit_all(list(zip(programs, schedules, strict=True)))
    entries = compile_many(sources, folder)
    for program, schedule, source, entry in zip(programs, schedules, sources, entries, strict=True):
        prepared = prepare(program, seed=1, quick=True)
        assert prepared
        for suite in prepared:
            check = check_outputs([call(entry, source, program, suite.inputs)], suite.expected, suite.suite)
            assert check.passed, f"{program.inputs} {schedule} {check.name}: {check.note}"


def wide(dtype: DType) -> DType:
    """Return a float type that holds the values of `dtype` (small integers too)."""
    return DType.F64 if dtype in (DType.F64, DType.I64) else DType.F32


def pointwise_values(x: Expr, y: Expr, truth: Expr) -> list[Expr]:
    """Return every pointwise op on these operands."""
    out: list[Expr] = []
    for row in POINTWISE:
        both = promote(x.dtype, y.dtype)
        if (both is DType.BOOL and row.name in WITHOUT_BOOL) or (
            row.arity == 1 and x.dtype is DType.BOOL and row.name in WITHOUT_BOOL
        ):
            continue
        if row.name == "cast":
            out += [apply("cast", x, dtype=d) for d in DType]
        elif row.name == "where":
            out += [apply("where", truth, x, y), apply("where", x, y, y)]
        elif row.arity == 1:
            out.append(apply(row.name, x))
        else:
            out.append(apply(row.name, x, y))
    return out


PAIRS = [(d, d) for d in DType] + [
    (DType.F32, DType.I64), (DType.F16, DType.BF16), (DType.I32, DType.BF16), (DType.BOOL, DType.F32),
    (DType.F64, DType.BOOL), (DType.I32, DType.I64), (DType.F16, DType.F64),
]  # fmt: skip


def test_every_pointwise_op_takes_every_dtype(tmp_path: Path) -> None:
    programs: list[Program] = []
    tiles: list[Schedule] = []
    for at, (a, b) in enumerate(PAIRS):
        n = 21
        x, y, t = read("x", ("i",), (n,), a), read("y", ("i",), (n,), b), read("t", ("i",), (n,), DType.BOOL)
        values = pointwise_values(x, y, t)
        out = wide(promote(a, b))
        inputs = (Input("x", (n,), a), Input("y", (n,), b), Input("t", (n,), DType.BOOL))
        programs.append(Program(inputs, (Output("z", stacked(values, out), ("o", "i"), out),)))
        tiles.append(CpuPointTile((16, 32, 64)[at % 3], 1, 0, 1, 0))
    compare(programs, tiles, tmp_path)


def reduction_values(x: Expr, axis: str) -> list[Expr]:
    """Return every reduction of x; products of small factors."""
    out: list[Expr] = []
    for row in REDUCTIONS:
        body = x
        if row.name == "prod" and x.dtype.is_float:
            body = apply("add", const(1.0, x.dtype), apply("mul", x, const(2.0**-6, x.dtype)))
        elif row.name == "prod" and x.dtype is not DType.BOOL:
            sign = apply("maximum", apply("minimum", x, const(1, x.dtype)), const(-1, x.dtype))
            body = apply("where", apply("eq", x, const(0, x.dtype)), const(1, x.dtype), sign)
        out.append(reduce(row.name, axis, body))
    return out


@pytest.mark.parametrize("axis", ["i", "k"])
def test_every_reduction_takes_every_dtype(axis: str, tmp_path: Path) -> None:
    programs: list[Program] = []
    tiles: list[Schedule] = []
    shape = (19, 37)
    free = "k" if axis == "i" else "i"
    for at, d in enumerate(DType):
        x = read("x", ("i", "k"), shape, d)
        expr = stacked(reduction_values(x, axis), wide(d))
        programs.append(Program((Input("x", shape, d),), (Output("z", expr, ("o", free), wide(d)),)))
        vector_bytes = (16, 32, 64)[at % 3]
        tiles.append(
            CpuColumnTile(vector_bytes, 2, 32, 1, 0) if axis == "i" else CpuReduceTile(vector_bytes, 1 + at % 2, 0, 1, 0)
        )
    compare(programs, tiles, tmp_path)


def one(expr: Expr, shape: tuple[int, ...], dtype: DType, axes: tuple[str, ...]) -> Program:
    return Program((Input("x", shape, dtype),), (Output("z", expr, axes, expr.dtype),))


def numpy_reduction(op: str, x: Array, axis: int) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(getattr(np, op)(x, axis=axis))


def test_nan_goes_through_every_reduction_as_in_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    data = rng.standard_normal((23, 70)).astype(np.float32)
    data[rng.random(data.shape) < 0.02] = np.nan
    data[3] = np.inf
    data[:, 5] = -np.inf
    x = read("x", ("i", "k"), data.shape, DType.F32)
    names = ("max", "min", "argmax", "argmin")
    cases: list[tuple[Program, Schedule]] = []
    for op in names:
        cases.append((one(reduce(op, "k", x), data.shape, DType.F32, ("i",)), CpuReduceTile(64, 2, 0, 1, 0)))
        cases.append((one(reduce(op, "i", x), data.shape, DType.F32, ("k",)), CpuColumnTile(32, 4, 64, 1, 0)))
    found = run_each(cases, [{"x": data}] * len(cases), tmp_path)
    for at, got in enumerate(found):
        want = numpy_reduction(names[at // 2], data, 1 - at % 2)
        assert np.array_equal(got, want, equal_nan=got.dtype.kind == "f"), names[at // 2]


def test_the_first_of_equal_values_wins(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    data = rng.integers(0, 3, (40, 77)).astype(np.int32)
    x = read("x", ("i", "k"), data.shape, DType.I32)
    cases: list[tuple[Program, Schedule]] = []
    for op in ("argmax", "argmin"):
        cases.append((one(reduce(op, "k", x), data.shape, DType.I32, ("i",)), CpuReduceTile(64, 4, 0, 1, 0)))
        cases.append((one(reduce(op, "i", x), data.shape, DType.I32, ("k",)), CpuColumnTile(64, 4, 64, 1, 0)))
    found = run_each(cases, [{"x": data}] * len(cases), tmp_path)
    for at, got in enumerate(found):
        assert np.array_equal(got, numpy_reduction(("argmax", "argmin")[at // 2], data, 1 - at % 2))


def test_integers_wrap_as_in_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    data = rng.integers(-(2**31), 2**31, (5, 33)).astype(np.int32)
    data[0, 0] = -(2**31)
    x = read("x", ("i", "k"), data.shape, DType.I32)
    square, negative = apply("mul", x, x), apply("neg", x)
    cases: list[tuple[Program, Schedule]] = [
        (one(apply("add", square, negative), data.shape, DType.I32, ("i", "k")), CpuPointTile(32, 2, 0, 1, 0)),
        (one(reduce("sum", "k", square), data.shape, DType.I32, ("i",)), CpuReduceTile(32, 2, 0, 1, 0)),
        (one(apply("cast", apply("cast", x, dtype=DType.I64), dtype=DType.I32), data.shape, DType.I32, ("i", "k")), CpuPointTile(32, 1, 0, 1, 0)),
    ]  # fmt: skip
    points, sums, same = run_each(cases, [{"x": data}] * 3, tmp_path)
    with np.errstate(over="ignore"):
        assert np.array_equal(points, data * data - data)
        assert np.array_equal(sums, (data * data).sum(1, dtype=np.int32))
    assert np.array_equal(same, data)
