"""Evaluation slice by slice gives what evaluation of the whole gives."""

from __future__ import annotations

import numpy as np
import pytest

from eqsat import slicing
from eqsat.access import AccessMap, Index
from eqsat.errorbound import evaluate_with_bound
from eqsat.ir import Expr, Input, Output, Program, access, apply, const, iota, read, reduce
from eqsat.oracle import evaluate
from eqsat.types import DType

F32, BF16 = DType.F32, DType.BF16
X = read("x", ("i", "j"), (37, 50), F32)
B = read("b", ("j",), (50,), BF16)


def program(expr: Expr, axes: tuple[str, ...]) -> Program:
    names = {e.attrs[0] for e in expr.walk() if e.op == "read"}
    known = (Input("x", (37, 50), F32), Input("b", (50,), BF16))
    return Program(tuple(i for i in known if i.name in names), (Output("out", expr, axes, expr.dtype),))


def softmax(x: Expr, axis: str) -> Expr:
    e = apply("exp", apply("sub", x, reduce("max", axis, x)))
    return apply("div", e, reduce("sum", axis, e))


ROWS = apply("mul", softmax(X, "j"), B)
PADDED = access(X, AccessMap((("j", Index.axis("p") + Index.const(-1)),), (("p", 52),)))
CASES = {
    "rows": (ROWS, ("i", "j"), "i"),
    "rows, transposed output": (ROWS, ("j", "i"), "i"),
    "columns": (softmax(X, "i"), ("i", "j"), "j"),
    "a pad along the other axis": (apply("tanh", PADDED), ("p", "i"), "i"),
    "a mask along the other axis": (
        apply("where", apply("lt", iota("j", 50), const(7, DType.I64)), X, const(0.1, F32)),
        ("i", "j"),
        "i",
    ),
    "one dimension": (apply("exp", apply("neg", B)), ("j",), "j"),
    "a sum of everything": (reduce("sum", "i", reduce("sum", "j", X)), (), None),
}


@pytest.mark.parametrize("name", CASES)
def test_slices_agree_with_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expr, axes, axis = CASES[name]
    p = program(expr, axes)
    rng = np.random.default_rng(0)
    data = {i.name: rng.standard_normal(i.shape).astype(i.dtype.numpy) for i in p.inputs}
    ((value, bound),) = evaluate_with_bound(p, data)
    (plain,) = evaluate(p, data)
    monkeypatch.setattr(slicing, "_SLICE_ELEMENTS", 20)
    if axis is not None:
        monkeypatch.setattr(slicing, "_choose", lambda _, __: axis)
    ((sliced, sliced_bound),) = evaluate_with_bound(p, data)
    assert sliced.shape == value.shape
    np.testing.assert_allclose(sliced, value, rtol=1e-14)
    np.testing.assert_allclose(sliced_bound, bound, rtol=1e-12)
    np.testing.assert_allclose(evaluate(p, data)[0], plain, rtol=1e-14)


def test_only_an_axis_that_nothing_mixes_is_sliced() -> None:
    def chosen(expr: Expr, axes: tuple[str, ...]) -> str | None:
        return slicing._choose(program(expr, axes), 20)

    assert chosen(ROWS, ("i", "j")) == "i"
    assert chosen(softmax(X, "i"), ("i", "j")) == "j"
    assert chosen(PADDED, ("p", "i")) == "i"
    assert chosen(apply("add", iota("i", 37), iota("j", 50)), ("i", "j")) is None
    assert chosen(softmax(reduce("sum", "i", X), "j"), ("j",)) is None


def test_an_input_read_along_two_axes_is_not_sliced() -> None:
    square = Input("s", (50, 50), F32)
    both = apply("add", read("s", ("i", "j"), (50, 50), F32), read("s", ("j", "i"), (50, 50), F32))
    p = Program((square,), (Output("out", both, ("i", "j"), F32),))
    assert slicing._choose(p, 20) is None


def test_narrowing_changes_one_extent_everywhere() -> None:
    p = slicing.narrowed(program(ROWS, ("i", "j")), "i", 5)
    assert [i.shape for i in p.inputs] == [(5, 50), (50,)]
    assert p.outputs[0].shape == (5, 50)
