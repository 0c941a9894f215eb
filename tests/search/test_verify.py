"""Suites, references, comparison, and the power of the comparison."""

from __future__ import annotations

import numpy as np
import pytest

from eqsat.ir import Expr, Input, Output, Program, apply, const, read, reduce
from eqsat.oracle import evaluate, from_float64
from eqsat.search.exactness import exact_magnitude
from eqsat.search.faults import power
from eqsat.search.guarded import GuardedBuffer
from eqsat.search.verify import (
    KERNEL,
    PLAN,
    Prepared,
    check_outputs,
    prepare,
    references,
    suites,
)
from eqsat.types import DType

F32, F16, BF16 = DType.F32, DType.F16, DType.BF16


def program(expr: Expr, axes: tuple[str, ...], *inputs: Input) -> Program:
    return Program(inputs, (Output("out", expr, axes, expr.dtype),))


def matmul(m: int, n: int, k: int, dtype: DType) -> Program:
    a, b = read("a", ("i", "k"), (m, k), dtype), read("b", ("k", "j"), (k, n), dtype)
    return program(reduce("sum", "k", apply("mul", a, b)), ("i", "j"), Input("a", (m, k), dtype), Input("b", (k, n), dtype))


def softmax(m: int, n: int, dtype: DType) -> Program:
    x = read("x", ("i", "j"), (m, n), dtype)
    e = apply("exp", apply("sub", x, reduce("max", "j", x)))
    return program(apply("div", e, reduce("sum", "j", e)), ("i", "j"), Input("x", (m, n), dtype))


def rmsnorm(m: int, n: int, dtype: DType) -> Program:
    x = read("x", ("i", "j"), (m, n), dtype)
    mean = apply("mul", reduce("sum", "j", apply("mul", x, x)), const(1 / n, dtype))
    return program(apply("mul", x, apply("rsqrt", apply("add", mean, const(1e-6, dtype)))), ("i", "j"), Input("x", (m, n), dtype))


def gelu(n: int, dtype: DType) -> Program:
    x = read("x", ("i",), (n,), dtype)
    inner = apply(
        "mul",
        const(0.7978845608, dtype),
        apply("add", x, apply("mul", const(0.044715, dtype), apply("mul", x, apply("mul", x, x)))),
    )
    half = apply("mul", const(0.5, dtype), x)
    return program(apply("mul", half, apply("add", const(1.0, dtype), apply("tanh", inner))), ("i",), Input("x", (n,), dtype))


def numpy_matmul(p: Prepared, k: int | None = None) -> list[np.ndarray]:
    a, b = (p.inputs[n].astype(np.float32) for n in "ab")
    with np.errstate(over="ignore"):
        return [(a[:, :k] @ b[:k]).astype(p.expected[0].dtype.numpy)]


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_a_right_matmul_passes_every_suite_and_a_dropped_tile_fails_nearly_all(dtype: DType) -> None:
    p = matmul(48, 40, 1024, dtype)
    prepared = prepare(p, seed=3)
    assert [x.suite.name for x in prepared] == ["exact", "normal", "uniform", "edges", "wide", "special"]
    for x in prepared:
        assert check_outputs(numpy_matmul(x), x.expected, x.suite).passed
    failed = {x.suite.name for x in prepared if not check_outputs(numpy_matmul(x, 1024 - 16), x.expected, x.suite).passed}
    assert {"exact", "normal", "uniform", "edges"} <= failed


def test_the_uniform_suite_alone_rejects_a_dropped_tile_of_a_float16_matmul() -> None:
    p = matmul(32, 32, 4096, F16)
    (uniform,) = [s for s in suites(p, 0) if s.name == "uniform"]
    inputs = uniform.inputs()
    x = Prepared(uniform, inputs, references(p, inputs))
    check = check_outputs(numpy_matmul(x, 4096 - 16), x.expected, uniform)
    assert not check.passed
    assert check.worst > 3
    assert "out[" in check.note
    assert "expected" in check.note


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("make", [softmax, rmsnorm, lambda m, n, d: matmul(m, n, 512, d), lambda m, n, d: gelu(m * n, d)])
def test_every_seeded_fault_is_rejected(make: object, dtype: DType) -> None:
    p = make(32, 512, dtype)  # type: ignore[operator]
    rejected, tried = power(p, prepare(p, seed=1))
    assert rejected == tried >= 4


def test_a_checker_with_wide_bounds_shows_in_the_power_test() -> None:
    p = softmax(8, 64, F32)
    loose = [
        Prepared(x.suite, x.inputs, [type(r)(r.name, r.dtype, r.value, r.bound * 1e7) for r in x.expected if r.bound is not None])
        for x in prepare(p, seed=1)
    ]
    rejected, tried = power(p, loose)
    assert rejected < tried


def test_a_fault_that_changes_nothing_is_not_counted() -> None:
    x = read("x", ("i", "j"), (4, 4), F32)
    copy = program(apply("maximum", x, x), ("i", "j"), Input("x", (4, 4), F32))
    one = prepare(copy, seed=0)
    rejected, tried = power(copy, one)
    assert rejected == tried  # "a copy of x" is right here
    names = power(program(apply("mul", x, const(0.0, F32)), ("i", "j"), Input("x", (4, 4), F32)), [one[0]])
    assert names[0] <= names[1]


def test_exact_inputs_keep_every_partial_sum_representable() -> None:
    assert exact_magnitude(matmul(8, 8, 4096, BF16), KERNEL) == 8
    assert exact_magnitude(matmul(8, 8, 4096, BF16), PLAN) == 8  # its one sum is the output, rounded once
    chain = matmul(8, 8, 4096, BF16).outputs[0].expr
    rows = program(reduce("sum", "j", chain), ("i",), *matmul(8, 8, 4096, BF16).inputs)
    assert exact_magnitude(rows, KERNEL) > 0
    assert exact_magnitude(rows, PLAN) == 0  # the product may be stored in 8 digits
    assert exact_magnitude(softmax(4, 4, F32), KERNEL) == 0
    assert exact_magnitude(matmul(2, 2, 1 << 20, F32), KERNEL) == 2  # 4·2^20 stays below 2^23; 16·2^20 would not


def test_a_mean_over_a_power_of_two_is_exact_and_over_another_count_is_not() -> None:
    def mean(n: int) -> Program:
        x = read("x", ("i", "j"), (4, n), F32)
        return program(apply("mul", reduce("sum", "j", x), const(1 / n, F32)), ("i",), Input("x", (4, n), F32))

    assert exact_magnitude(mean(64), KERNEL) == 8
    assert exact_magnitude(mean(63), KERNEL) == 0


def test_the_exact_suite_allows_no_error_at_all() -> None:
    p = matmul(8, 8, 64, F32)
    x = prepare(p, seed=0)[0]
    right = numpy_matmul(x)
    assert check_outputs(right, x.expected, x.suite).passed
    right[0][3, 5] = np.nextafter(right[0][3, 5], np.float32(1e9))
    check = check_outputs(right, x.expected, x.suite)
    assert not check.passed
    assert "out[3, 5]" in check.note
    assert "exactly" in check.note


def test_the_same_seed_draws_the_same_inputs_and_another_seed_does_not() -> None:
    first, again, other = (suites(softmax(4, 8, F32), seed)[0].inputs()["x"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_an_output_that_was_not_written_fails() -> None:
    p = softmax(4, 8, F32)
    for x in prepare(p, seed=0):
        buffer = GuardedBuffer((4, 8), F32)
        assert not check_outputs([buffer.array], x.expected, x.suite).passed


def test_classes_of_non_finite_values_are_compared() -> None:
    x = read("x", ("i",), (64,), F32)
    p = program(apply("log", x), ("i",), Input("x", (64,), F32))
    special = next(s for s in prepare(p, seed=0) if s.suite.name == "special")
    with np.errstate(all="ignore"):
        right = np.log(special.inputs["x"].astype(np.float64)).astype(np.float32)
    assert np.isnan(right).any()
    assert check_outputs([right], special.expected, special.suite).passed
    assert not check_outputs([np.where(np.isnan(right), np.float32(0), right)], special.expected, special.suite).passed


def test_integer_and_truth_outputs_are_compared_exactly() -> None:
    x = read("x", ("i", "j"), (4, 8), F32)
    for expr in (reduce("argmax", "j", x), apply("lt", x, const(0.5, F32))):
        axes = tuple(sorted(expr.axes))
        p = program(expr, axes, Input("x", (4, 8), F32))
        for s in prepare(p, seed=5):
            right = from_float64(np, evaluate(p, s.inputs)[0], expr.dtype)
            assert check_outputs([right], s.expected, s.suite).passed
            wrong = ~right if expr.dtype is DType.BOOL else right + 1
            assert not check_outputs([wrong], s.expected, s.suite).passed


def test_programs_without_elements_pass() -> None:
    p = softmax(0, 8, F32)
    x = suites(p, 0)[0]
    assert check_outputs([np.zeros((0, 8), np.float32)], references(p, x.inputs()), x).passed


def test_guard_bands_see_a_write_outside_and_inputs_changed() -> None:
    buffer = GuardedBuffer((5,), BF16)
    assert np.isnan(buffer.array.astype(np.float32)).all()
    assert buffer.intact
    assert buffer.array.ctypes.data % 64 == 0
    data = np.arange(5).astype(BF16.numpy)
    buffer.fill(data)
    assert buffer.equals(data)
    buffer.array[2] = 9
    assert not buffer.equals(data)
    beyond = np.lib.stride_tricks.as_strided(buffer.array, (6,), buffer.array.strides)
    beyond[5] = 1
    assert not buffer.intact
