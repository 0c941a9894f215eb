"""Cumulative sums, products and extrema: what they mean, how they are recognised, evaluated in one pass, and bounded."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from eqsat import numpy_like as fn
from eqsat import scans as scans_module
from eqsat.array import Array
from eqsat.errorbound import Rounding, evaluate_with_bound
from eqsat.errors import DTypeError
from eqsat.ir import Expr, Program, const
from eqsat.ops import Kind
from eqsat.oracle import evaluate
from eqsat.prefix import evaluated, prefix
from eqsat.scans import cummax, cummin, cumprod, cumsum
from eqsat.slicing import evaluate_in_slices
from eqsat.trace import tensor, trace
from eqsat.types import DType

REFERENCES: dict[str, tuple[Callable[..., Array], Any]] = {
    "sum": (cumsum, np.add),
    "prod": (cumprod, np.multiply),
    "max": (cummax, np.maximum),
    "min": (cummin, np.minimum),
}


def data(*shape: int) -> Any:
    return np.round(np.random.default_rng(shape).normal(size=shape) * 2, 1)


def run(function: Callable[..., Any], *arrays: Any) -> Any:
    program = trace(function, *arrays)
    return evaluate(program, {i.name: a for i, a in zip(program.inputs, arrays, strict=True)})[0]


def expected(ufunc: Any, x: Any, axis: int, reverse: bool, exclusive: bool) -> Any:
    y = np.flip(x, axis) if reverse else x
    out = ufunc.accumulate(y, axis=axis)
    if exclusive:
        neutral = ufunc.identity if ufunc.identity is not None else -np.inf if ufunc is np.maximum else np.inf
        first = np.full_like(np.take(out, [0], axis), neutral)
        out = np.concatenate([first, np.take(out, range(x.shape[axis] - 1), axis)], axis)
    return np.flip(out, axis) if reverse else out


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_scan_accumulates_along_its_axis(name: str, axis: int, reverse: bool, exclusive: bool) -> None:
    function, ufunc = REFERENCES[name]
    x = data(4, 5, 3)
    got = run(lambda x: function(x, axis, reverse=reverse, exclusive=exclusive), x)
    np.testing.assert_allclose(got, expected(ufunc, x, axis % 3, reverse, exclusive), rtol=1e-12)


def test_numpy_scans_trace() -> None:
    x = data(4, 6)
    for function in (lambda x: np.cumsum(x, axis=1), lambda x: np.cumprod(x, 0), np.cumsum, lambda x: np.maximum.accumulate(x)):
        np.testing.assert_allclose(run(function, x), function(x), rtol=1e-12)


def test_whole_numbers_stay_whole() -> None:
    x = np.arange(-6, 6, dtype=np.int32).reshape(3, 4)
    np.testing.assert_array_equal(run(lambda x: cummax(x, 1), x), np.maximum.accumulate(x, 1))
    np.testing.assert_array_equal(run(lambda x: cumsum(x, 0), x), np.cumsum(x, 0))
    with pytest.raises(DTypeError, match="floats and i32"):
        cummin(tensor("x", (4,), "i64"))


def nodes(function: Callable[..., Any], *shape: int) -> list[Expr]:
    program = trace(function, (shape, "f32"))
    return [e for e in program.walk() if e.row.kind is Kind.REDUCE]


@pytest.mark.parametrize(
    ("function", "suffix", "strict"),
    [
        (lambda x: cumsum(x, 0), False, False),
        (lambda x: cumsum(x, 0, exclusive=True), False, True),
        (lambda x: cumsum(x, 0, reverse=True), True, False),
        (lambda x: cumprod(fn.exp(x) + 1, 0, reverse=True, exclusive=True), True, True),
    ],
)
def test_a_scan_is_recognised_by_its_mask(function: Callable[..., Any], suffix: bool, strict: bool) -> None:
    (found,) = map(prefix, nodes(function, 9))
    assert found is not None
    assert (found.suffix, found.strict) == (suffix, strict)


def test_a_mask_with_its_branches_exchanged_is_recognised() -> None:
    position = fn.iota(9)
    (found,) = map(prefix, nodes(lambda x: fn.where(position.reshape(9, 1) < position.reshape(1, 9), 0.0, x).sum(-1), 9))
    assert found is not None
    assert (found.suffix, found.strict) == (False, False)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: fn.where(fn.iota(9).reshape(1, 9) <= fn.iota(9).reshape(9, 1), x.reshape(1, 9), 1.0).sum(-1),
        lambda x: fn.where(fn.iota(9).reshape(1, 9) <= fn.iota(4).reshape(4, 1), x.reshape(1, 9), 0.0).sum(-1),
        lambda x: fn.where(fn.iota(9).reshape(1, 9) <= fn.iota(9).reshape(9, 1), x.reshape(1, 9) * x.reshape(9, 1), 0.0).sum(-1),
        lambda x: fn.where(x.reshape(1, 9) <= x.reshape(9, 1), x.reshape(1, 9), 0.0).sum(-1),
        lambda x: x.sum(),
    ],
)
def test_what_is_no_prefix_is_none(function: Callable[..., Any]) -> None:
    assert all(prefix(e) is None for e in nodes(function, 9))


def test_a_scan_of_a_long_axis_needs_no_square_of_it() -> None:
    program = trace(lambda x: cumsum(x, 1) * 2, ((3, 1 << 20), "f32"))
    values = evaluated([program.outputs[0].expr])
    assert max(e.type.elements for e in values) == 3 << 20
    assert program.flops == 2 * (3 << 20)
    x = np.ones((3, 1 << 20), np.float32)
    (got,) = evaluate(program, {"x": x})
    np.testing.assert_array_equal(got[:, -1], np.full(3, 2.0 * (1 << 20)))


def test_large_scans_are_evaluated_in_slices_of_their_rows() -> None:
    program = trace(lambda x: cumsum(x, 1), ((64, 4096), "f32"))
    x = data(64, 4096).astype(np.float32)
    seen = []

    def whole(p: Program, arrays: Any) -> Any:
        seen.append(p.outputs[0].shape)
        return [(np.cumsum(arrays["x"].astype(np.float64), 1),)]

    found = evaluate_in_slices(program, {"x": x}, whole)
    assert found is not None
    assert len(seen) > 1
    np.testing.assert_allclose(found[0][0], np.cumsum(x.astype(np.float64), 1), rtol=1e-12)


def test_a_nest_of_sums_around_a_scan_keeps_the_scan() -> None:
    x = data(3, 4, 5)
    np.testing.assert_allclose(run(lambda x: cumsum(x, 1).sum(0), x), np.cumsum(x, 1).sum(0), rtol=1e-12)
    np.testing.assert_allclose(run(lambda x: cumsum(x.sum(0), 1), x), np.cumsum(x.sum(0), 1), rtol=1e-12)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_bound_covers_a_float32_scan_and_is_not_idle(name: str) -> None:
    function, ufunc = REFERENCES[name]
    x = (data(8, 300) * (0.05 if name == "prod" else 1.0)).astype(np.float32)
    program = trace(lambda x: function(fn.exp(x), 1), x)
    ((value, bound),) = evaluate_with_bound(program, {"x": x}, rounding=Rounding(stored=False))
    got = ufunc.accumulate(np.exp(x), axis=1)
    error = np.abs(got - value)
    compared = np.isfinite(bound)
    assert compared.mean() > 0.9
    assert (error <= bound)[compared].all()
    assert float(np.median((bound / np.abs(value))[compared])) < 1e-3


def test_the_bound_grows_along_the_axis_and_sees_what_a_masked_sum_sees() -> None:
    x = np.ones((1, 32), np.float32)
    program = trace(lambda x: cumsum(x, 1), x)
    ((_, bound),) = evaluate_with_bound(program, {"x": x}, rounding=Rounding(stored=False))
    assert (np.diff(bound[0]) > 0).all()
    assert bound[0, -1] <= 32 * 32 * 2.0**-24


def test_an_infinity_reaches_only_what_comes_after_it() -> None:
    x = np.array([1.0, np.inf, 2.0, 3.0], np.float32)
    program = trace(lambda x: cumsum(x, 0), x)
    ((value, bound),) = evaluate_with_bound(program, {"x": x}, rounding=Rounding(stored=False))
    assert np.isinf(value).tolist() == [False, True, True, True]
    assert (bound < 1e-5).all()


def test_a_constant_that_is_not_neutral_is_seen() -> None:
    assert prefix(const(1.0, DType.F32)) is None


def test_the_examples_of_the_module_run() -> None:
    assert doctest.testmod(scans_module).failed == 0
