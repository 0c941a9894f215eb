"""The reference evaluator and the error bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqsat.access import AccessMap, Index
from eqsat.errorbound import Rounding, evaluate_with_bound
from eqsat.errors import ShapeError, UsageError
from eqsat.ir import Expr, Input, Output, Program, access, apply, const, iota, read, reduce
from eqsat.oracle import evaluate, from_float64, product_factors, to_float64
from eqsat.types import DType

F32, F16, BF16, I64 = DType.F32, DType.F16, DType.BF16, DType.I64
REGISTERS = Rounding(stored=False)


def program(expr: Expr, axes: tuple[str, ...], *inputs: Input, dtype: DType | None = None) -> Program:
    return Program(inputs, (Output("out", expr, axes, dtype or expr.dtype),))


def matmul(m: int, n: int, k: int, dtype: DType) -> Program:
    a, b = read("a", ("i", "k"), (m, k), dtype), read("b", ("k", "j"), (k, n), dtype)
    return program(reduce("sum", "k", apply("mul", a, b)), ("i", "j"), Input("a", (m, k), dtype), Input("b", (k, n), dtype))


def softmax(m: int, n: int, dtype: DType) -> Program:
    x = read("x", ("i", "j"), (m, n), dtype)
    e = apply("exp", apply("sub", x, reduce("max", "j", x)))
    return program(apply("div", e, reduce("sum", "j", e)), ("i", "j"), Input("x", (m, n), dtype))


def rmsnorm_linear(m: int, n: int, k: int, dtype: DType) -> Program:
    x, g, w = read("x", ("i", "k"), (m, k), dtype), read("g", ("k",), (k,), dtype), read("w", ("k", "j"), (k, n), dtype)
    mean = apply("mul", reduce("sum", "k", apply("mul", x, x)), const(1 / k, dtype))
    h = apply("mul", apply("mul", x, apply("rsqrt", apply("add", mean, const(1e-6, dtype)))), g)
    y = reduce("sum", "k", apply("mul", h, w))
    return program(y, ("i", "j"), Input("x", (m, k), dtype), Input("g", (k,), dtype), Input("w", (k, n), dtype))


def accessed(entries: dict[str, Index], extents: dict[str, int], x: Expr) -> Expr:
    return access(x, AccessMap(tuple(entries.items()), tuple(extents.items())))


def worst(got: np.ndarray, value: np.ndarray, bound: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(got, dtype=np.float64) - value) / bound))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# -- values


def test_a_contraction_agrees_with_einsum_in_any_layout(rng: np.random.Generator) -> None:
    a, b = read("a", ("k", "b", "i"), (5, 2, 3), F32), read("b", ("j", "b", "k"), (4, 2, 5), F32)
    p = program(reduce("sum", "k", apply("mul", a, b)), ("j", "i", "b"), Input("a", (5, 2, 3), F32), Input("b", (4, 2, 5), F32))
    x, y = rng.standard_normal((5, 2, 3)), rng.standard_normal((4, 2, 5))
    (got,) = evaluate(p, {"a": x, "b": y})
    np.testing.assert_allclose(got, np.einsum("kbi,jbk->jib", x, y), rtol=1e-12, atol=1e-14)


def test_a_chain_of_products_under_nested_sums_agrees_with_einsum(rng: np.random.Generator) -> None:
    a, b, v = read("a", ("i", "j"), (3, 4), F32), read("b", ("j", "k"), (4, 5), F32), read("v", ("k",), (5,), F32)
    body = apply("neg", apply("div", apply("mul", apply("mul", a, b), v), const(2.0, F32)))
    expr = reduce("sum", "k", reduce("sum", "j", body))
    p = program(expr, ("i",), Input("a", (3, 4), F32), Input("b", (4, 5), F32), Input("v", (5,), F32))
    arrays = [rng.standard_normal(s) for s in ((3, 4), (4, 5), (5,))]
    (got,) = evaluate(p, dict(zip("abv", arrays, strict=True)))
    np.testing.assert_allclose(got, -np.einsum("ij,jk,k->i", *arrays) / 2, rtol=1e-12)


def test_a_product_that_expands_is_taken_apart_and_one_that_does_not_is_not() -> None:
    x, g, w = read("x", ("i", "k"), (8, 4), F32), read("g", ("k",), (4,), F32), read("w", ("k", "j"), (4, 9), F32)
    scaled = apply("mul", x, g)
    assert product_factors(scaled) == (scaled,)
    assert product_factors(apply("mul", scaled, w)) == (scaled, w)


def test_a_large_contraction_does_not_hold_its_join_in_memory() -> None:
    p = matmul(3000, 3000, 400, F32)  # the join would take 29 GB
    (got,) = evaluate(p, {"a": np.ones((3000, 400), np.float32), "b": np.ones((400, 3000), np.float32)})
    assert (got == 400).all()


def test_integers_stay_exact_beyond_float64(rng: np.random.Generator) -> None:
    x = read("x", ("i",), (2,), I64)
    p = program(apply("add", x, const(1, I64)), ("i",), Input("x", (2,), I64))
    assert evaluate(p, {"x": np.array([2**60, -(2**60)])})[0].tolist() == [2**60 + 1, 1 - 2**60]


def test_slices_pads_and_strides_read_zero_outside() -> None:
    x = read("x", ("i",), (4,), F32)
    p = program(accessed({"i": Index.axis("p") * 2 + Index.const(-1)}, {"p": 4}, x), ("p",), Input("x", (4,), F32))
    assert evaluate(p, {"x": np.array([1.0, 2, 3, 4], np.float32)})[0].tolist() == [0, 2, 4, 0]


def test_a_joined_axis_is_a_reshape(rng: np.random.Generator) -> None:
    x = read("x", ("i", "j"), (3, 4), F32)
    flat = accessed({"i": Index.axis("p") // 4, "j": Index.axis("p") % 4}, {"p": 12}, x)
    array = rng.standard_normal((3, 4))
    assert (evaluate(program(flat, ("p",), Input("x", (3, 4), F32)), {"x": array})[0] == array.reshape(12)).all()


def test_a_diagonal_and_a_window_are_gathered(rng: np.random.Generator) -> None:
    array = rng.standard_normal((4, 4))
    x = read("x", ("i", "j"), (4, 4), F32)
    diagonal = accessed({"i": Index.axis("d"), "j": Index.axis("d")}, {"d": 4}, x)
    assert (evaluate(program(diagonal, ("d",), Input("x", (4, 4), F32)), {"x": array})[0] == np.diag(array)).all()
    window = accessed({"j": Index.axis("p") + Index.axis("w")}, {"p": 4, "w": 3}, x)
    (got,) = evaluate(program(window, ("i", "p", "w"), Input("x", (4, 4), F32)), {"x": array})
    padded = np.pad(array, ((0, 0), (0, 2)))
    assert (got == np.lib.stride_tricks.sliding_window_view(padded, 3, axis=1)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 3), st.integers(-4, 4))
def test_a_line_reads_what_its_index_says(old: int, new: int, step: int, offset: int) -> None:
    x = read("x", ("i",), (old,), F32)
    array = np.arange(1.0, old + 1)
    p = program(accessed({"i": Index.axis("p") * step + Index.const(offset)}, {"p": new}, x), ("p",), Input("x", (old,), F32))
    want = [array[step * i + offset] if 0 <= step * i + offset < old else 0.0 for i in range(new)]
    assert evaluate(p, {"x": array})[0].tolist() == want


def test_reductions_over_nothing_give_their_neutral_element() -> None:
    x = read("x", ("i", "k"), (2, 0), F32)
    data = {"x": np.zeros((2, 0), np.float32)}
    for op, want in (("sum", 0.0), ("prod", 1.0), ("max", -np.inf), ("min", np.inf)):
        assert evaluate(program(reduce(op, "k", x), ("i",), Input("x", (2, 0), F32)), data)[0].tolist() == [want] * 2
        ((value, bound),) = evaluate_with_bound(program(reduce(op, "k", x), ("i",), Input("x", (2, 0), F32)), data)
        assert value.tolist() == [want] * 2
        assert bound.tolist() == [0.0] * 2
    with pytest.raises(ShapeError, match="its extent is 0"):
        evaluate(program(reduce("argmax", "k", x), ("i",), Input("x", (2, 0), F32)), data)


def test_a_deep_program_does_not_exhaust_the_stack() -> None:
    e: Expr = read("x", ("i",), (2,), F32)
    for _ in range(3000):
        e = apply("add", e, const(1.0, F32))
    assert evaluate(program(e, ("i",), Input("x", (2,), F32)), {"x": np.zeros(2)})[0].tolist() == [3000.0] * 2


def test_missing_and_misshapen_arrays_are_named() -> None:
    p = matmul(2, 3, 4, F32)
    with pytest.raises(UsageError, match="input 'b'"):
        evaluate(p, {"a": np.zeros((2, 4))})
    with pytest.raises(ShapeError, match=r"'b' has shape \(4, 3\); the array has shape \(3, 4\)"):
        evaluate(p, {"a": np.zeros((2, 4)), "b": np.zeros((3, 4))})


def test_rounding_to_sixteen_bits_is_done_once() -> None:
    halfway = 1.0 + 2.0**-8 + 2.0**-40  # float32 rounds it to the tie, and a second rounding would go down to 1
    assert float(from_float64(np, np.array([halfway]), BF16)[0]) == 1.0 + 2.0**-7
    assert float(from_float64(np, np.array([1.0 + 2.0**-11 + 2.0**-40]), F16)[0]) == 1.0 + 2.0**-10


def test_bfloat16_may_come_as_bits(rng: np.random.Generator) -> None:
    x = rng.standard_normal(100).astype(BF16.numpy)
    assert (to_float64(np, x.view(np.uint16), BF16) == x.astype(np.float64)).all()


# -- bounds


@pytest.mark.parametrize("draw", ["random", "standard_normal"])
@pytest.mark.parametrize("stored", [True, False])
def test_the_bound_holds_a_float16_matmul_and_catches_a_dropped_tile(rng: np.random.Generator, draw: str, stored: bool) -> None:
    k = 4096
    a, b = (getattr(rng, draw)(s).astype(np.float16) for s in ((64, k), (k, 64)))
    ((value, bound),) = evaluate_with_bound(matmul(64, 64, k, F16), {"a": a, "b": b}, rounding=Rounding(stored=stored))
    wide_a, wide_b = a.astype(np.float32), b.astype(np.float32)
    assert worst((wide_a @ wide_b).astype(np.float16), value, bound) <= 1
    assert worst((wide_a[:, :-16] @ wide_b[:-16]).astype(np.float16), value, bound) > 5
    assert worst((wide_a[:, :-1] @ wide_b[:-1]).astype(np.float16), value, bound) > 1


def test_the_bound_of_a_float32_matmul_catches_bfloat16_inputs(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((64, 1024), (1024, 64)))
    ((value, bound),) = evaluate_with_bound(matmul(64, 64, 1024, F32), {"a": a, "b": b})
    assert worst(a @ b, value, bound) <= 1
    low = [x.astype(BF16.numpy).astype(np.float32) for x in (a, b)]
    assert worst(low[0] @ low[1], value, bound) > 10


def test_tf32_factors_pass_only_when_asked_for(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((64, 256), (256, 64)))
    cut = [(x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b)]
    ((value, strict),) = evaluate_with_bound(matmul(64, 64, 256, F32), {"a": a, "b": b}, rounding=REGISTERS)
    relaxed = Rounding(stored=False, multiplicand=2.0**-10)
    ((_, loose),) = evaluate_with_bound(matmul(64, 64, 256, F32), {"a": a, "b": b}, rounding=relaxed)
    assert worst(cut[0] @ cut[1], value, strict) > 10
    assert worst(cut[0] @ cut[1], value, loose) <= 1


def test_a_plan_may_store_what_a_kernel_keeps_in_registers(rng: np.random.Generator) -> None:
    p = softmax(16, 500, BF16)
    x = (3 * rng.standard_normal((16, 500))).astype(BF16.numpy)
    wide = x.astype(np.float32)
    shifted = (wide - wide.max(1, keepdims=True)).astype(BF16.numpy).astype(np.float32)  # stored in between
    fused = np.exp(wide - wide.max(1, keepdims=True))
    split = np.exp(shifted).astype(BF16.numpy).astype(np.float32)
    outputs = [(e / e.sum(1, keepdims=True)).astype(BF16.numpy) for e in (fused, split)]
    ((value, kernel),) = evaluate_with_bound(p, {"x": x}, rounding=REGISTERS)
    ((_, plan),) = evaluate_with_bound(p, {"x": x})
    assert worst(outputs[0], value, kernel) <= 1 < worst(outputs[1], value, kernel)
    assert worst(outputs[1], value, plan) <= 1


def test_a_row_scale_deferred_past_a_sum_stays_within_the_bound(rng: np.random.Generator) -> None:
    p = rmsnorm_linear(8, 32, 2048, BF16)
    data = {n: rng.standard_normal(s).astype(BF16.numpy) for n, s in (("x", (8, 2048)), ("g", (2048,)), ("w", (2048, 32)))}
    x, g, w = (data[n].astype(np.float32) for n in "xgw")
    r = 1 / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6)
    orders = {
        "scaled before": (x * r * g).astype(BF16.numpy).astype(np.float32) @ w,
        "scaled after": ((x * g).astype(BF16.numpy).astype(np.float32) @ w) * r,
    }
    for rounding in (REGISTERS, Rounding()):
        ((value, bound),) = evaluate_with_bound(p, data, rounding=rounding)
        for y in orders.values():
            assert worst(y.astype(BF16.numpy), value, bound) <= 1
        dropped = (x * r * g)[:, :-128] @ w[:-128]
        assert worst(dropped, value, bound) > 5


def test_long_float32_sums_in_any_order_stay_within_the_bound(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 100_000)).astype(np.float32)
    p = program(reduce("sum", "k", read("x", ("i", "k"), x.shape, F32)), ("i",), Input("x", x.shape, F32))
    ((value, bound),) = evaluate_with_bound(p, {"x": x})
    for order in (x, x[:, ::-1], np.sort(x, axis=1)):
        assert worst(np.add.accumulate(order, axis=1, dtype=np.float32)[:, -1], value, bound) <= 1
        assert worst(order.sum(1), value, bound) <= 1
    assert worst(x[:, :-2000].sum(1), value, bound) > 1


def test_where_is_not_compared_tightly_where_its_condition_may_flip() -> None:
    x = read("x", ("i",), (3,), F32)
    computed = apply("mul", x, const(0.1, F32))
    chosen = apply("where", apply("lt", computed, const(0.1, F32)), const(5.0, F32), const(-5.0, F32))
    ((value, bound),) = evaluate_with_bound(
        program(chosen, ("i",), Input("x", (3,), F32)), {"x": np.array([0.0, 1.0, 2.0], np.float32)}
    )
    assert value.tolist() == [5.0, -5.0, -5.0]
    assert bound.tolist() == [0.0, 10.0, 0.0]


def test_exact_operands_ask_for_the_class_of_a_non_finite_result() -> None:
    x = read("x", ("i",), (3,), F32)
    data = {"x": np.array([-1.0, 0.0, 1.0], np.float32)}
    ((value, bound),) = evaluate_with_bound(program(apply("log", x), ("i",), Input("x", (3,), F32)), data)
    assert np.isnan(value[0])
    assert value[1] == -np.inf
    assert bound[:2].tolist() == [0.0, 0.0]
    inexact = apply("log", apply("sub", apply("mul", x, const(0.1, F32)), apply("mul", const(0.1, F32), x)))
    ((value, bound),) = evaluate_with_bound(program(inexact, ("i",), Input("x", (3,), F32)), data)
    assert np.isinf(bound[[0, 2]]).all()
    assert bound[1] == 0.0  # 0·0.1 is exactly 0, whatever 0.1 was rounded to


def test_what_may_overflow_its_type_is_not_compared() -> None:
    x = read("x", ("i",), (2,), F16)
    data = {"x": np.array([200.0, 300.0], np.float16)}
    ((_, bound),) = evaluate_with_bound(program(apply("mul", x, x), ("i",), Input("x", (2,), F16)), data, rounding=REGISTERS)
    assert np.isfinite(bound).tolist() == [True, False]
    grown = apply("exp", read("x", ("i",), (2,), F32))
    ((_, bound),) = evaluate_with_bound(program(grown, ("i",), Input("x", (2,), F32)), {"x": np.array([80.0, 90.0], np.float32)})
    assert np.isfinite(bound).tolist() == [True, False]


def test_scores_that_are_masked_out_leave_the_others_comparable() -> None:
    s = apply("mul", read("x", ("i", "k"), (2, 4), F32), const(0.3, F32))
    masked = apply("where", apply("le", iota("k", 4), iota("i", 2)), s, const(-np.inf, F32))
    weight = apply("exp", apply("sub", masked, reduce("max", "k", masked)))
    p = program(reduce("sum", "k", apply("mul", weight, s)), ("i",), Input("x", (2, 4), F32))
    ((value, bound),) = evaluate_with_bound(p, {"x": np.arange(8, dtype=np.float32).reshape(2, 4)})
    assert np.isfinite(value).all()
    assert (bound < 1e-5).all()


def test_beside_an_exact_infinity_only_what_could_cancel_it_is_in_doubt() -> None:
    x = read("x", ("i",), (3,), F32)
    rough = apply("mul", x, const(0.1, F32))
    data = {"x": np.array([1.0, 0.0, 3e38], np.float32)}
    lost = apply("add", rough, const(-np.inf, F32))
    ((value, bound),) = evaluate_with_bound(program(lost, ("i",), Input("x", (3,), F32)), data)
    assert (value == -np.inf).all()
    assert not bound.any()
    third = apply("sub", apply("add", rough, const(1 / 3, F32)), const(1 / 3, F32))  # 0 with an error, in the middle
    ((_, bound),) = evaluate_with_bound(program(apply("mul", third, const(np.inf, F32)), ("i",), Input("x", (3,), F32)), data)
    assert np.isinf(bound).tolist() == [False, True, False]


def test_a_maximum_has_the_error_of_the_operand_that_it_takes() -> None:
    x = read("x", ("i",), (3,), F32)
    rough = apply("mul", x, const(0.1, F32))
    data = {"x": np.array([1.0, -1.0, 0.0], np.float32)}
    for op, sign in (("maximum", -1.0), ("minimum", 1.0)):
        p = program(apply(op, rough, const(sign * 3e38, F32)), ("i",), Input("x", (3,), F32))
        ((_, bound),) = evaluate_with_bound(p, data)
        assert (bound < 1e-7).all()
    p = program(apply("maximum", rough, const(0.1, F32)), ("i",), Input("x", (3,), F32))
    ((_, bound),) = evaluate_with_bound(p, data)
    assert (bound > 0).all()


def test_elements_far_from_the_extremum_do_not_spoil_its_error() -> None:
    rough = apply("mul", read("x", ("k",), (3,), F32), const(0.1, F32))
    for op, far in (("max", -3e38), ("min", 3e38)):
        p = program(reduce(op, "k", rough), (), Input("x", (3,), F32))
        ((value, bound),) = evaluate_with_bound(p, {"x": np.array([1.0, far, 2.0], np.float32)})
        assert abs(value) < 1
        assert 0 < bound < 1e-6


def test_a_maximum_of_a_number_and_nan_is_not_compared() -> None:
    x = read("x", ("i",), (2,), F32)
    chosen = apply("maximum", apply("log", x), const(0.0, F32))
    ((_, bound),) = evaluate_with_bound(program(chosen, ("i",), Input("x", (2,), F32)), {"x": np.array([-1.0, 2.0], np.float32)})
    assert np.isinf(bound).tolist() == [True, False]


def test_positions_of_rivals_are_not_compared() -> None:
    x = read("x", ("i", "k"), (2, 3), F32)
    third = apply("div", x, const(3.0, F32))
    data = {"x": np.array([[1, 5, 5], [1, 5, 2]], np.float32)}
    ((value, bound),) = evaluate_with_bound(program(reduce("argmax", "k", third), ("i",), Input("x", (2, 3), F32)), data)
    assert value.tolist() == [1, 1]
    assert bound.tolist() == [np.inf, 0.0]
    ((_, bound),) = evaluate_with_bound(program(reduce("argmax", "k", x), ("i",), Input("x", (2, 3), F32)), data)
    assert bound.tolist() == [0.0, 0.0]


def test_a_value_read_twice_through_a_window_is_not_taken_for_independent(rng: np.random.Generator) -> None:
    n, w = 64, 48
    x = read("x", ("i",), (n + w,), F32)
    rough = apply("mul", x, const(1 / 3, F32))
    once = reduce("sum", "w", accessed({"i": Index.axis("w")}, {"w": w}, rough))
    window = accessed({"i": Index.axis("p") + Index.axis("w")}, {"p": n, "w": w}, rough)
    every = reduce("sum", "p", reduce("sum", "w", window))
    data = {"x": np.ones(n + w, np.float32)}
    rounding = Rounding(confidence=1.0)
    ((_, few),) = evaluate_with_bound(program(once, (), Input("x", (n + w,), F32)), data, rounding=rounding)
    ((_, many),) = evaluate_with_bound(program(every, (), Input("x", (n + w,), F32)), data, rounding=rounding)
    assert many > few * n  # dependent errors add up; independent ones would grow with the square root


_UNARY = ("exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "erf", "sin", "cos", "recip", "neg", "abs")


@pytest.mark.parametrize("op", _UNARY)
def test_float32_arithmetic_stays_within_the_bound_after_an_inexact_operand(op: str, rng: np.random.Generator) -> None:
    x = rng.random(2000).astype(np.float32) * 4 + np.float32(0.01)
    e = apply(op, apply("mul", read("x", ("i",), (2000,), F32), const(0.7, F32)))
    p = program(e, ("i",), Input("x", (2000,), F32))
    ((value, bound),) = evaluate_with_bound(p, {"x": x})
    rough = x * np.float32(0.7)
    (through,) = evaluate(program(apply(op, read("x", ("i",), (2000,), F32)), ("i",), Input("x", (2000,), F32)), {"x": rough})
    assert worst(through.astype(np.float32), value, bound) <= 1
    assert (bound < 1e-4 * np.maximum(1, np.abs(value))).all()


@pytest.mark.parametrize("op", ["tanh", "sigmoid", "erf", "sin"])
def test_an_error_that_spans_the_steep_part_of_a_function_is_not_lost(op: str) -> None:
    x = read("x", ("i", "k"), (1, 3), F32)
    cancelled = reduce("sum", "k", apply("mul", x, const(0.1, F32)))  # 1e9 - 1e9 - 8 with an error of hundreds
    p = program(apply(op, cancelled), ("i",), Input("x", (1, 3), F32))
    ((value, bound),) = evaluate_with_bound(p, {"x": np.array([[1e10, -1e10, -80.0]], np.float32)})
    assert bound[0] >= 0.99 * (1.0 - value[0] if op != "sin" else 1.0)


def test_iota_and_comparisons_are_exact() -> None:
    mask = apply("lt", iota("j", 3), iota("i", 2))
    ((value, bound),) = evaluate_with_bound(program(mask, ("i", "j")), {})
    assert value.tolist() == [[False, False, False], [True, False, False]]
    assert not bound.any()
