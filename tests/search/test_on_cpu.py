"""From an expression to a kernel that runs on this CPU, compared with NumPy; saved, loaded, and called with the wrong arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import eqsat
from eqsat import numpy_like as fn
from eqsat import optimize, tensor
from eqsat.errors import ShapeError, UsageError
from eqsat.search.result import Optimized

Arrays = list[np.ndarray[Any, Any]]


def draw(best: Optimized, seed: int = 0) -> Arrays:
    """Return random inputs for a program, in the dtypes it takes."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(-9, 9, i.shape).astype(i.dtype.numpy)
        if i.dtype.numpy.kind in "ib"
        else rng.standard_normal(i.shape).astype(i.dtype.numpy)
        for i in best.executable.plan.program.inputs
    ]


def softmax64(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu64(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


def rms64(x: Any) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def rms(x: eqsat.array.Array) -> eqsat.array.Array:
    return x * fn.rsqrt(fn.mean(x * x, axis=-1, keepdims=True) + 1e-6)


f32 = "f32"
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[tuple[int, ...], str]], float]] = {
    "softmax of odd rows": (fn.softmax, softmax64, [((7, 33), f32)], 1e-5),
    "one row, one column": (lambda x: x.sum(0) + 1, lambda x: x.sum(0) + 1, [((1, 1), f32)], 1e-6),
    "RMSNorm then a matrix": (lambda x, w: rms(x) @ w, lambda x, w: rms64(x) @ w, [((3, 17), f32), ((17, 5), f32)], 1e-5),
    "mean of bf16": (lambda x: fn.mean(x, axis=0), lambda x: x.mean(0), [((9, 13), "bf16")], 1e-2),
    "integers are exact": (lambda x, y: (x * y).sum(-1), lambda x, y: (x * y).sum(-1), [((4, 7), "i32"), ((4, 7), "i32")], 0.0),
    "double precision": (lambda x, y: fn.exp(x).sum(1) * y, lambda x, y: np.exp(x).sum(1) * y, [((6, 11), "f64"), ((6,), "f64")], 1e-13),
    "a transposed copy": (lambda x: x.mT, lambda x: x.T, [((5, 9), f32)], 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_computes_what_numpy_computes(name: str) -> None:
    ours, theirs, specs, tolerance = CASES[name]
    inputs = [tensor("xy"[n] if n < 2 else f"z{n}", shape, dtype) for n, (shape, dtype) in enumerate(specs)]
    best = optimize(ours(*inputs), target="cpu", budget="5s", store=":memory:")
    arrays = draw(best)
    wide = [a if a.dtype.kind == "i" else a.astype(np.float64) for a in arrays]
    expected = theirs(*wide)
    found = best(*arrays)
    assert found.dtype == best.executable.plan.program.outputs[0].dtype.numpy
    np.testing.assert_allclose(found.astype(expected.dtype), expected, rtol=tolerance, atol=tolerance)


def test_several_outputs_come_back_in_order() -> None:
    x = tensor("x", (4, 6), "f32")
    best = optimize([x.sum(0), x + 1], target="cpu", budget="4s", store=":memory:")
    (a,) = draw(best)
    total, more = best(a)
    np.testing.assert_allclose(total, a.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(more, a + 1)


def test_a_python_function_with_example_arrays_is_traced() -> None:
    x = np.ones((3, 8), np.float32)
    best = optimize(lambda a: fn.maximum(a, 0) * 2, x, target="cpu", budget="4s", store=":memory:")
    np.testing.assert_array_equal(best(-x), np.zeros_like(x))


def linear_gelu64(x: Any, w: Any, b: Any) -> Any:
    return gelu64(x.astype(np.float64) @ w + b)


def test_a_saved_program_runs_as_before_without_a_search(optimized: Optimized, saved: Path) -> None:
    arrays = draw(optimized)
    again = eqsat.load(saved)
    np.testing.assert_allclose(again(*arrays), linear_gelu64(*arrays), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(again(*arrays), optimized(*arrays))
    assert again.receipt.record == optimized.receipt.record
    assert again.source == optimized.source


def test_two_calls_give_two_arrays(optimized: Optimized) -> None:
    arrays = draw(optimized)
    first = optimized(*arrays)
    kept = first.copy()
    optimized(*draw(optimized, seed=1))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a[:2], "expected 3 arguments"),
        (lambda a: [a[0][:4], a[1], a[2]], r"'x'.*5, 19"),
        (lambda a: [a[0].astype(np.float64), a[1], a[2]], r"'x'.*f32"),
        (lambda a: [np.asfortranarray(a[0]), a[1], a[2]], r"'x'.*row-major"),
        (lambda a: [a[0], a[1], a[2].astype(ml_dtypes.bfloat16)], r"'b'.*f32"),
        (lambda a: [a[0].tolist(), a[1], a[2]], "'x'"),
        (lambda a: [None, a[1], a[2]], "'x'"),
    ],
    ids=["too few", "shape", "dtype", "layout", "bf16 for f32", "a list", "nothing"],
)
def test_wrong_arrays_are_refused_by_name(optimized: Optimized, change: Callable[[Arrays], list[Any]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        optimized(*change(draw(optimized)))


def test_an_empty_extent_is_refused_when_it_is_written() -> None:
    with pytest.raises(ShapeError, match="at least 1"):
        fn.mean(tensor("x", (0, 4), "f32"), axis=0)


def test_the_receipt_tells_flops_bytes_counts_and_closure(optimized: Optimized) -> None:
    receipt = optimized.receipt
    program = optimized.executable.plan.program
    assert receipt.flops >= 2 * 5 * 19 * 23
    assert receipt.bytes >= program.bytes
    assert receipt.counts["ok"] > 0
    assert receipt.closed is str(receipt.search["verdict"]).startswith("closed")
    assert receipt.median_ns is not None
    assert receipt.median_ns > 0
    with pytest.raises(AttributeError, match="a receipt has no entry 'speed'"):
        _ = receipt.speed
