"""The frontend: every operation against NumPy through the oracle, axis naming, refusals."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from eqsat import formula as formula_module
from eqsat import numpy_like as fn
from eqsat import text
from eqsat import trace as trace_module
from eqsat.array import Array
from eqsat.contraction import einsum
from eqsat.errors import DTypeError, ShapeError, TraceError, UsageError
from eqsat.ir import Program
from eqsat.ops import OPS, Kind
from eqsat.oracle import evaluate
from eqsat.trace import as_program, tensor, to_program, trace
from eqsat.types import DType


def data(*shape: int, seed: int = 0) -> Any:
    """Return small signed float64 values, zeros among them."""
    values = np.round(np.random.default_rng((seed, *shape)).normal(size=shape) * 2, 1)
    return np.asarray(values)


def run(function: Callable[..., Any], *arrays: Any) -> Any:
    """Trace `function` on `arrays` and evaluate the program on them."""
    program = trace(function, *arrays)
    values = evaluate(program, {i.name: a for i, a in zip(program.inputs, arrays, strict=True)})
    assert [o.shape for o in program.outputs] == [v.shape for v in values]
    return values[0]


def agree(function: Callable[..., Any], reference: Callable[..., Any], *arrays: Any) -> None:
    np.testing.assert_allclose(run(function, *arrays), reference(*arrays), rtol=1e-12, atol=1e-12)


def formula(value: Any) -> str:
    return text.show(to_program(value).outputs[0].expr)


def accesses_of_values(program: Program) -> int:
    nodes = {e for out in program.outputs for e in out.expr.walk()}
    return sum(e.op == "access" and e.args[0].op != "read" for e in nodes)


X, Y, V = data(4, 6), data(4, 6, seed=1), data(6, seed=2)

# The same function of NumPy arrays and of traced ones: the NumPy protocols, operators and methods.
PLAIN: dict[str, Callable[..., Any]] = {
    "operators": lambda x, y, v: -x + y * v - (x - 2) / (abs(y) + 1) + 3 * x**2 - x**3 + 2 ** (x * 0.5),
    "reversed operators": lambda x, y, v: (1 - x) * (2 / (abs(x) + 1)) + (3 + v),
    "comparisons": lambda x, y, v: (x < y) | (x <= v) & ~(x > 0) | (x >= 1) & (y != x) | (x == y),
    "powers": lambda x, y, v: abs(x) ** 0.5 + (abs(x) + 1) ** -0.5 + (abs(x) + 1) ** -1 + (abs(x) + 1) ** v,
    "floor division": lambda x, y, v: x // 1.5 + x % 1.5 + np.floor_divide(y, 0.7) + np.remainder(y, 0.7),
    "softmax of NumPy": lambda x, y, v: np.exp(x - np.max(x, axis=-1, keepdims=True)) / np.sum(np.exp(x), -1, keepdims=True),
    "reductions": lambda x, y, v: np.sum(x, 0) + np.mean(x, 0) + np.max(x, 0) - np.min(x, axis=0) * np.prod(y, axis=0),
    "reductions of all": lambda x, y, v: x.sum() + x.mean() + x.max() - x.min() + np.prod(y) + np.var(x) + np.std(y),
    "methods": lambda x, y, v: x.sum(axis=1, keepdims=True) * x.mean(1, keepdims=True) + x.var(axis=1, keepdims=True) + y.std(0),
    "ddof": lambda x, y, v: np.var(x, axis=1, ddof=1) + np.std(x, axis=1, ddof=1),
    "any and all": lambda x, y, v: np.any(x > 1, axis=1) & ~np.all(y < 0, axis=1) | x.any(1) & y.all(axis=1),
    "argmax": lambda x, y, v: np.argmax(x, axis=1) + x.argmin(axis=1) + np.argmax(y),
    "elementary": lambda x, y, v: (
        np.exp(x) + np.log(abs(x) + 1) + np.sqrt(abs(x)) + np.tanh(x) + np.sin(x) * np.cos(y) + np.tan(x * 0.1)
        + np.floor(x) + np.ceil(y) + np.square(x) + np.reciprocal(abs(x) + 1) + np.exp2(x) + np.log2(abs(x) + 1) + np.log10(abs(y) + 2)
    ),
    "scipy's": lambda x, y, v: special.erf(x) + special.expit(y),
    "maximum": lambda x, y, v: np.maximum(x, y) + np.minimum(x, 0) + np.clip(y, -1, 1) + np.maximum(v, 0.5),
    "where": lambda x, y, v: np.where(x > 0, x, y * v) + np.where(x > y, 1.0, 0.0),
    "logic": lambda x, y, v: np.logical_and(x > 0, y > 0) | np.logical_not(x > 1) | np.logical_or(x, y),
    "isnan": lambda x, y, v: np.isnan(x),
    "matmul": lambda x, y, v: x @ y.T + (x @ v) + np.matmul(y, x.T).T,
    "dot and outer": lambda x, y, v: np.dot(x, v)[:, None] * np.outer(y[:, 0], v),
    "vector products": lambda x, y, v: v @ v + (v @ x.T) @ x[:, 0],
    "einsum": lambda x, y, v: np.einsum("ij,kj,j->ik", x, y, v),
    "transposes": lambda x, y, v: x.T + np.transpose(y) + x.swapaxes(0, 1) + y.transpose(1, 0) + np.swapaxes(x, -1, 0),
    "reshapes": lambda x, y, v: x.reshape(2, 2, 6).sum(0) + x.reshape(-1, 3).reshape(2, 12)[:, :6] + np.ravel(y)[:12].reshape(2, 6),
    "reshape across": lambda x, y, v: x.reshape(3, 8) @ y.reshape(8, 3),
    "slices": lambda x, y, v: x[1:3, ::2] + y[::-1][:2, 1::2] - v[::-2],
    "indices": lambda x, y, v: x[1] * v + x[-1, 2] + y[:, None, 3, None][2:, 0, :] + x[..., 0][3],
    "flips": lambda x, y, v: np.flip(x) + np.flip(y, 0) + np.flip(v),
    "pads": lambda x, y, v: np.pad(x, 1) + np.pad(y, ((1, 1), (2, 0)), constant_values=-1.5),
    "pad of a sum": lambda x, y, v: np.pad(x.sum(1), (2, 1)) + np.pad(np.exp(y.sum(1)), (1, 2)),
    "pad of a slice": lambda x, y, v: np.pad(x[1:3, 2:4], ((1, 1), (2, 2))) * x,
    "windows": lambda x, y, v: np.lib.stride_tricks.sliding_window_view(x, (2, 3)).sum(1),
    "windows of a sum": lambda x, y, v: np.lib.stride_tricks.sliding_window_view(x.sum(1), 3) * 2,
    "concatenations": lambda x, y, v: np.concatenate([x, y * 2, x[:1]]) + np.concatenate((v[:2], v[2:])),
    "stacks": lambda x, y, v: np.stack([x, y, x + y], axis=1),
    "split": lambda x, y, v: np.split(x, 2)[0] + np.split(y, 2)[1] * np.split(x, [2], axis=0)[1],
    "broadcasts": lambda x, y, v: np.broadcast_to(v, (4, 6)) * x + np.expand_dims(v, 0) + np.squeeze(x[:1]),
    "triangles": lambda x, y, v: np.tril(x) + np.triu(y, 1) - np.tril(y, -1),
    "like": lambda x, y, v: np.zeros_like(x) + np.ones_like(y) * 2 + np.full_like(v, 3.0),
    "a broadcast result": lambda x, y, v: np.broadcast_to(v, (3, 4, 6)),
    "a constant result": lambda x, y, v: np.ones_like(x),
    "unit dimensions": lambda x, y, v: x[:1].sum(0) + x[:, :1].max(1)[0] + np.mean(y[:1], axis=0),
    "argmax of a unit dimension": lambda x, y, v: np.argmax(x[:1], axis=0) + np.argmin(y[:, :1], axis=1)[1],
    "sums of broadcasts": lambda x, y, v: np.broadcast_to(v, (4, 6)).sum(0) + np.broadcast_to(v[:, None], (6, 3)).prod(1)
    + np.broadcast_to(v, (4, 6)).max(axis=0) + np.broadcast_to(v, (4, 6)).argmax(0),
    "ufunc methods": lambda x, y, v: np.add.reduce(x, axis=1) + np.maximum.reduce(y, axis=1),
    "self products": lambda x, y, v: (x @ x.T) @ (x @ x.T).T @ x[:, :4] @ x[:4, :4],
    "a value met by its transpose": lambda x, y, v: (lambda s: s + s.T + s[::-1])(np.exp(x @ y.T * 0.1)),
    "a residual": lambda x, y, v: x[:, :4] + x[:, :4] @ y[:, :4] + np.tanh(x[:, :4] @ y[:, :4]) @ y[:, :4],
    "powers of a matrix": lambda x, y, v: (lambda a: a @ a @ a + a @ (a @ a))(x[:, :4]),
    "a shifted difference": lambda x, y, v: x[:, 1:] - x[:, :-1] + (x @ y.T @ y)[:, 1:],
    "pieces of a product": lambda x, y, v: (lambda h: h[:, :2] * h[:, 2:])(x @ y.T),
    "pieces that overlap": lambda x, y, v: (lambda h: h[:, :3] * h[:, 1:])(x @ y.T),
    "grouped statistics": lambda x, y, v: (lambda g: ((g - g.mean(2, keepdims=True)) / (g.var(2, keepdims=True) + 1)).reshape(4, 6) * v)(
        x.reshape(4, 2, 3)
    ),
    "a mean of positions": lambda x, y, v: (x * np.argmax(y, axis=0)).sum(axis=1),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numpy_code_traces_and_means_the_same(name: str) -> None:
    agree(PLAIN[name], PLAIN[name], X, Y, V)


LIKE: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "softmax": (lambda x: fn.softmax(x, 0), lambda x: special.softmax(x, 0)),
    "softmax over two axes": (lambda x: fn.softmax(x, (0, 1)), lambda x: special.softmax(x, (0, 1))),
    "log_softmax": (fn.log_softmax, lambda x: special.log_softmax(x, -1)),
    "logsumexp": (fn.logsumexp, special.logsumexp),
    "logsumexp of rows": (lambda x: fn.logsumexp(x, -1, keepdims=True), lambda x: special.logsumexp(x, -1, keepdims=True)),
    "sigmoid": (fn.sigmoid, special.expit),
    "silu": (fn.silu, lambda x: x * special.expit(x)),
    "relu": (fn.relu, lambda x: np.maximum(x, 0)),
    "gelu": (fn.gelu, lambda x: x * special.ndtr(x)),
    "gelu by tanh": (
        lambda x: fn.gelu(x, "tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    "rsqrt": (lambda x: fn.rsqrt(abs(x) + 1), lambda x: 1 / np.sqrt(abs(x) + 1)),
    "rms_norm": (fn.rms_norm, lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)),
    "layer_norm": (fn.layer_norm, lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)),
    "weights": (
        lambda x: fn.layer_norm(x, x[0], x[1]) + fn.rms_norm(x, x[0]),
        lambda x: (
            (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * x[0]
            + x[1]
            + x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * x[0]
        ),
    ),
    "arange": (lambda x: x * fn.arange(6) + fn.arange(1, 13, 2, "f64"), lambda x: x * np.arange(6) + np.arange(1, 13, 2)),
    "iota and full": (
        lambda x: x + fn.iota(6, "f64") + fn.full((4, 1), 2.0) + fn.zeros(6) + fn.ones(1),
        lambda x: x + np.arange(6) + 3,
    ),
    "causal mask": (
        lambda x: fn.where(fn.arange(6) <= fn.arange(4).reshape(4, 1), x, -math.inf).max(1),
        lambda x: np.where(np.arange(6) <= np.arange(4)[:, None], x, -math.inf).max(1),
    ),
    "a slice of positions": (lambda x: x[0] * fn.arange(9)[3:].astype("f64")[::-1], lambda x: x[0] * np.arange(3, 9)[::-1]),
    "a reshape of positions": (
        lambda x: x[:2, :3] * fn.arange(6).reshape(2, 3) + fn.arange(12).reshape(2, 6).T.reshape(4, 3)[2:],
        lambda x: x[:2, :3] * np.arange(6).reshape(2, 3) + np.arange(12).reshape(2, 6).T.reshape(4, 3)[2:],
    ),
    "permute and mT": (lambda x: x.reshape(2, 2, 6).permute(2, 0, 1).mT, lambda x: x.reshape(2, 2, 6).transpose(2, 0, 1).swapaxes(1, 2)),
    "flatten and squeeze": (lambda x: x[:, :1].squeeze(1) + x.flatten()[:4], lambda x: x[:, 0] + x.ravel()[:4]),
    "heads": (
        lambda x: fn.softmax((x @ x.T).reshape(4, 2, 2).permute(1, 0, 2), -1).permute(1, 0, 2).reshape(4, 4) @ x,
        lambda x: special.softmax((x @ x.T).reshape(4, 2, 2).transpose(1, 0, 2), -1).transpose(1, 0, 2).reshape(4, 4) @ x,
    ),
    "concatenated products": (
        lambda x: fn.concatenate([x, x @ x.T, fn.softmax(x)], axis=1) @ fn.full((16, 2), 0.5, "f64"),
        lambda x: np.concatenate([x, x @ x.T, special.softmax(x, -1)], axis=1) @ np.full((16, 2), 0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIKE)
def test_functions_agree_with_their_reference(name: str) -> None:
    agree(*LIKE[name], X)


@pytest.mark.parametrize("row", [r for r in OPS.values() if r.kind is Kind.POINTWISE and r.name != "cast"], ids=lambda r: r.name)
def test_every_pointwise_row_traces(row: Any) -> None:
    from eqsat.array import pointwise
    from tests.strategies import takes_numbers

    positive = [abs(data(3, 4, seed=s)) + 0.5 for s in range(row.arity)]
    arrays = positive if takes_numbers(row) else [p > 1 for p in positive]
    if row.name == "where":
        arrays[0] = positive[0] > 1
    agree(lambda *xs: pointwise(row.name, *xs), lambda *xs: row.evaluate(np, *xs), *arrays)


EINSUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)), ("ij,jk", (2, 3), (3, 4)), ("ba", (2, 3)), ("ii", (3, 3)), ("ii->i", (3, 3)), ("iji->j", (3, 2, 3)),
    ("i,i", (3,), (3,)), ("i,j", (3,), (4,)), ("ij->", (2, 3)), ("ij->j", (2, 3)), ("...ij,...jk->...ik", (2, 2, 3), (3, 4)),
    ("...ij,...jk", (5, 2, 3), (1, 3, 4)), ("b...,b...->b...", (2, 3), (2, 4, 3)), ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
    ("ij,ij,ij->i", (2, 3), (2, 3), (2, 3)), ("ij , jk -> ki", (2, 3), (3, 4)), ("bhid,bhjd->bhij", (2, 2, 3, 4), (2, 2, 3, 4)),
    ("...->...", (2, 3)), ("i...->...", (2, 3)), ("ij,kl->ijkl", (2, 2), (3, 2)), ("ij,ji->", (2, 3), (3, 2)), (",i->i", (), (3,)),
    ("ii,ij->ij", (3, 3), (3, 2)), ("ij,j->ij", (2, 1), (3,)),
]  # fmt: skip


@pytest.mark.parametrize("case", EINSUMS, ids=lambda c: c[0])
def test_einsum_agrees_with_numpy(case: tuple[Any, ...]) -> None:
    subscripts, *shapes = case
    arrays = [data(*shape, seed=i) for i, shape in enumerate(shapes)]
    agree(lambda *xs: einsum(subscripts, *xs), lambda *xs: np.einsum(subscripts, *xs), *arrays)


def test_einsum_understands_lists_of_numbers() -> None:
    agree(lambda x, y: einsum(x, [0, 1], y, [2, 1], [0, 2]), lambda x, y: np.einsum(x, [0, 1], y, [2, 1], [0, 2]), X, Y)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: einsum("ij,jk", x), UsageError, "2 terms for 1 operands"),
        (lambda x: einsum("ijk->i", x), ShapeError, "names 3 dimensions"),
        (lambda x: einsum("i->i", x), ShapeError, "names 1 dimensions"),
        (lambda x: einsum("ij->ik", x), UsageError, "occur in the terms"),
        (lambda x: einsum("ij->ii", x), UsageError, "distinct"),
        (lambda x: einsum("i1->i", x), UsageError, "letters"),
        (lambda x: einsum("ij,ij->", x, x.T), ShapeError, "'i' has the extents 4 and 6"),
    ],
)
def test_einsum_refuses_what_makes_no_sense(call: Callable[[Array], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(tensor("x", (4, 6)))


# Any composition

_UNARY: list[tuple[str, Callable[[Any], Any]]] = [
    ("transpose", lambda a: a.T),
    ("flip", lambda a: np.flip(a, -1) if a.ndim else a),
    ("slice", lambda a: a[..., 1:] if a.ndim and a.shape[-1] > 1 else a),
    ("stride", lambda a: a[::2] if a.ndim else a),
    ("index", lambda a: a[0] if a.ndim else a),
    ("expand", lambda a: a[None, ..., None] if 0 < a.ndim < 3 else a),
    ("merge", lambda a: a.reshape(-1)),
    ("split", lambda a: a.reshape(2, -1) if a.size % 2 == 0 else a),
    ("split last", lambda a: a.reshape((*a.shape[:-1], 2, -1)) if a.ndim and a.shape[-1] % 2 == 0 and a.ndim < 4 else a),
    ("pad", lambda a: np.pad(a, ((1, 0),) * a.ndim) if a.ndim and a.size < 60 else a),
    ("pad ones", lambda a: np.pad(a, ((0, 1),) * a.ndim, constant_values=1) if a.ndim and a.size < 60 else a),
    ("sum", lambda a: a.sum(-1) if a.ndim else a),
    ("max", lambda a: a.max(0, keepdims=True) if a.ndim else a),
    ("centre", lambda a: a - a.sum(-1, keepdims=True) if a.ndim else a),
    ("argmax", lambda a: np.argmax(a, axis=0) if a.ndim else a),
    ("negate", lambda a: -a),
    ("bound", lambda a: np.minimum(np.maximum(a, -5), 7)),
    ("repeat", lambda a: np.broadcast_to(a, (2, *a.shape)) if a.ndim < 3 and a.size < 60 else a),
    ("diagonal", lambda a: np.einsum("...ii->...i", a) if a.ndim > 1 and a.shape[-1] == a.shape[-2] else a),
]
_BINARY: list[tuple[str, Callable[[Any, Any], Any]]] = [
    ("add", lambda a, b: a + b),
    ("subtract", lambda a, b: a - 2 * b),
    ("matmul", lambda a, b: np.minimum(np.maximum(a @ b, -9), 9)),
    ("gram", lambda a, b: np.minimum(np.maximum(a @ np.swapaxes(a, -1, -2), -9), 9)),
    ("where", lambda a, b: np.where(a > 0, a, b)),
    ("concatenate", lambda a, b: np.concatenate([a, b], axis=-1)),
    ("stack", lambda a, b: np.stack([a, b], axis=0)),
]


def _grow(steps: list[tuple[int, int, int]], leaves: list[Any], valid: Callable[[Any, Any], bool]) -> list[Any]:
    """Apply random steps to a growing list of values; a step that does not fit the shapes is left out."""
    values = list(leaves)
    for which, a, b in steps:
        left, right = values[a % len(values)], values[b % len(values)]
        if which < len(_UNARY):
            values.append(_UNARY[which][1](left))
        elif valid(_BINARY[which - len(_UNARY)][0], (left.shape, right.shape)):
            values.append(_BINARY[which - len(_UNARY)][1](left, right))
    return values


def _fits(name: Any, shapes: Any) -> bool:
    (a, b) = shapes
    if name == "matmul":
        return len(a) >= 1 and len(b) == 2 and a[-1] == b[0]
    if name == "gram":
        return len(a) >= 2
    if name == "concatenate":
        return len(a) == len(b) > 0 and a[:-1] == b[:-1] and a[-1] + b[-1] < 30
    if name == "stack":
        return bool(a == b and len(a) < 4)
    try:
        return math.prod(np.broadcast_shapes(a, b)) < 200
    except ValueError:
        return False


@given(
    st.lists(
        st.tuples(st.integers(0, len(_UNARY) + len(_BINARY) - 1), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=9
    ),
    st.integers(0, 3),
)
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_composition_means_what_numpy_means(steps: list[tuple[int, int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaves = [rng.integers(-3, 4, shape).astype(np.float64) for shape in ((4, 4), (4,), (2, 3, 4), (6, 4), (1, 4))]
    expected = _grow(steps, leaves, _fits)
    traced = _grow(steps, [tensor(f"x{i}", leaf.shape, "f64") for i, leaf in enumerate(leaves)], _fits)
    wanted = [(e, t) for e, t in zip(expected[len(leaves) :], traced[len(leaves) :], strict=True)][-2:]
    if not wanted:
        return
    program = to_program([t for _, t in wanted])
    values = evaluate(program, {i.name: leaves[int(i.name[1:])] for i in program.inputs})
    for (reference, _), value in zip(wanted, values, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-9)
    assert text.loads(text.dumps(program)).digest == program.digest


# Axis naming


def test_names_do_not_depend_on_the_identity_of_objects() -> None:
    def build() -> Program:
        x, w = tensor("x", (4, 8)), tensor("w", (8, 8))
        return to_program(fn.softmax(x @ w) @ w.T)

    assert build().digest == build().digest


def test_axes_are_letters_in_order_of_the_outputs_then_the_inputs() -> None:
    x, w = tensor("x", (4, 8)), tensor("w", (8, 5))
    program = to_program((x @ w).T)
    assert program.outputs[0].axes == ("i", "j")
    assert formula((x @ w).T) == "Σ_k x[j,k]·w[k,i]"


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda x, w, s: x @ x.T, "Σ_k x[i,k]·x[j,k]"),
        (lambda x, w, s: s @ s.T @ s, "Σ_l (Σ_k s[i,k]·s[l,k])·s[l,j]"),
        (lambda x, w, s: s + s.T, "s[i,j] + s[j,i]"),
        (lambda x, w, s: s + x @ x.T, "s[i,j] + Σ_k x[i,k]·x[j,k]"),
        (lambda x, w, s: s + s @ s, "s[i,j] + Σ_k s[i,k]·s[k,j]"),
        (lambda x, w, s: x.sum(1) + (x @ w).sum(1), "Σ_j x[i,j] + Σ_k Σ_j x[i,j]·w[j,k]"),
        (lambda x, w, s: x.sum(1)[:, None] + w.sum(0)[:, None].T * 0 + w.sum(0), "Σ_k x[i,k] + (Σ_k w[k,j])·0 + Σ_k w[k,j]"),
        (lambda x, w, s: x.reshape(2, 2, 8).reshape(4, 8), "x[i,j]"),
        (lambda x, w, s: x.T.reshape(8, 2, 2).permute(1, 2, 0).reshape(4, 8), "x[i,j]"),
        (lambda x, w, s: x[:, ::-1][:, ::-1], "x[i,j]"),
        (lambda x, w, s: einsum("ii->i", s), "s[i,i]"),
    ],
)
def test_programs_are_named_as_on_paper(build: Callable[..., Any], expected: str) -> None:
    assert formula(build(tensor("x", (4, 8)), tensor("w", (8, 5)), tensor("s", (4, 4)))) == expected


def test_sums_side_by_side_share_their_bound_axis() -> None:
    x, y = tensor("x", (4, 8)), tensor("y", (4, 8))
    assert formula(x.sum(1) + y.sum(1)) == "Σ_j x[i,j] + Σ_j y[i,j]"


def test_nested_sums_keep_their_axes_apart() -> None:
    a = tensor("a", (4, 4))
    program = to_program(a @ a @ a @ a)
    assert len(program.extents) == 5


def test_a_gated_product_shares_its_contraction_axes() -> None:
    x, a, b = tensor("x", (4, 8)), tensor("a", (8, 6)), tensor("b", (8, 6))
    assert set(to_program(fn.silu(x @ a) * (x @ b)).extents) == {"i", "j", "k"}


def test_a_value_used_once_is_renamed_down_to_its_inputs() -> None:
    x, wq, wk = tensor("x", (4, 8)), tensor("wq", (8, 8)), tensor("wk", (8, 8))
    program = to_program(fn.softmax((x @ wq) @ (x @ wk).T) @ x)
    assert accesses_of_values(program) == 0


def test_a_computed_value_met_by_its_transpose_is_read_again_not_computed_again() -> None:
    x = tensor("x", (4, 8))
    p = fn.softmax(x)
    program = to_program(p @ p.T)
    assert accesses_of_values(program) == 1
    assert sum(e.op == "exp" for e in program.outputs[0].expr.walk()) == 1


def test_disjoint_pieces_of_a_product_become_two_products() -> None:
    x, w = tensor("x", (4, 8)), tensor("w", (8, 12))
    gate, up = fn.split(x @ w, 2, axis=1)
    program = to_program(fn.silu(gate) * up)
    assert accesses_of_values(program) == 0
    assert "w[k,j+6]" in text.show(program.outputs[0].expr)


def test_overlapping_pieces_of_a_product_are_not_computed_twice() -> None:
    x, w = tensor("x", (4, 8)), tensor("w", (8, 12))
    h = x @ w
    program = to_program(h[:, 1:] * h[:, :-1])
    assert accesses_of_values(program) == 2
    assert sum(e.op == "sum" for e in program.outputs[0].expr.walk()) == 1


def test_a_reshape_does_not_recompute_a_reduction_at_more_positions() -> None:
    x = tensor("x", (4, 2, 6))
    program = to_program(fn.softmax(x).reshape(4, 12))
    assert all(e.args[0].type.elements <= 48 for e in program.outputs[0].expr.walk() if e.op in ("max", "sum"))


def test_slices_of_pointwise_values_read_slices_of_inputs() -> None:
    x, b = tensor("x", (4, 8)), tensor("b", (8,))
    assert formula(fn.exp(x * 2 + b)[1:, ::-1]) == "exp(x[i+1,-j+7]·2 + b[-j+7])"


# Types


@pytest.mark.parametrize(
    ("build", "dtype"),
    [
        (lambda h, f, i, b: h * 2.0 + 1, "bf16"),
        (lambda h, f, i, b: h + f, "f32"),
        (lambda h, f, i, b: h * np.float64(2), "bf16"),
        (lambda h, f, i, b: h / np.sqrt(64), "bf16"),
        (lambda h, f, i, b: i + 1, "i32"),
        (lambda h, f, i, b: i * 0.5, "f32"),
        (lambda h, f, i, b: i / 2, "f32"),
        (lambda h, f, i, b: b.sum(), "i64"),
        (lambda h, f, i, b: b + b, "bool"),
        (lambda h, f, i, b: b + 1, "i64"),
        (lambda h, f, i, b: fn.where(b, h, 0.0), "bf16"),
        (lambda h, f, i, b: fn.where(b, 1.0, 0.0), "f32"),
        (lambda h, f, i, b: h.sum(0), "bf16"),
        (lambda h, f, i, b: h.mean(), "bf16"),
        (lambda h, f, i, b: h @ h, "bf16"),
        (lambda h, f, i, b: fn.softmax(h), "bf16"),
        (lambda h, f, i, b: h.argmax(), "i64"),
        (lambda h, f, i, b: h < 1, "bool"),
        (lambda h, f, i, b: h.astype(np.float32), "f32"),
        (lambda h, f, i, b: h.astype("f16").astype(float), "f32"),
        (lambda h, f, i, b: b @ b, "bool"),
        (lambda h, f, i, b: b.max(), "bool"),
        (lambda h, f, i, b: i**2, "i32"),
    ],
)
def test_types_follow_the_operands_and_scalars_are_weak(build: Callable[..., Array], dtype: str) -> None:
    value = build(tensor("h", (4,), "bf16"), tensor("f", (4,)), tensor("i", (4,), "i32"), tensor("b", (4,), "bool"))
    assert value.dtype is DType.parse(dtype)
    assert to_program(value).outputs[0].dtype is value.dtype


def test_truth_values_add_and_multiply_as_in_numpy() -> None:
    a, b = data(3, 4) > 0, data(4, 3) > 0
    agree(lambda a, b: (a + b.T) * a, lambda a, b: (a + b.T) * a, a, b)
    agree(lambda a, b: a @ b, lambda a, b: a @ b, a, b)


def test_integers_stay_exact() -> None:
    a = np.array([[2**40 + 1, -3], [5, 7]])
    assert (
        run(lambda a: (a * a[0] + a**3).sum(0) - 2**41, a[:, 1:]).tolist()
        == ((a[:, 1:] * a[0, 1:] + a[:, 1:] ** 3).sum(0) - 2**41).tolist()
    )


# Programs


def test_parameters_name_the_inputs_and_unused_ones_stay() -> None:
    program = trace(lambda first, *rest: first + rest[0], ((3,), "f32"), ((3,), "f32"), ((2,), "bf16"))
    assert [(i.name, i.shape) for i in program.inputs] == [("first", (3,)), ("rest0", (3,)), ("rest1", (2,))]


def test_specs_are_tensors_pairs_and_arrays() -> None:
    program = trace(lambda x, w, b: x @ w + b, tensor("any", (2, 3), "bf16"), ([3, 4], "bf16"), np.zeros(4, np.float32))
    assert [str(i.dtype) for i in program.inputs] == ["bf16", "bf16", "f32"]


def test_a_constant_tensor_stays_constant() -> None:
    x, w = tensor("x", (2, 3)), tensor("w", (3, 4), constant=True)
    assert [i.constant for i in to_program(x @ w).inputs] == [False, True]
    assert [i.constant for i in trace(lambda a, b: a @ b, x, w).inputs] == [False, True]


def test_several_outputs_come_in_order() -> None:
    x = tensor("x", (2, 3))
    program = to_program((x + 1, x.sum(0)), names=("more", "total"))
    assert [(o.name, o.shape) for o in program.outputs] == [("more", (2, 3)), ("total", (3,))]
    assert [o.name for o in to_program((x, x)).outputs] == ["out0", "out1"]


def test_an_output_never_takes_the_name_of_an_input() -> None:
    assert to_program(tensor("out", (2,)) + 1).outputs[0].name == "out_"


def test_as_program_takes_programs_expressions_and_functions() -> None:
    x = tensor("x", (2,))
    program = to_program(x + 1)
    assert as_program(program) is program
    assert as_program(x + 1) == program
    assert as_program(lambda x: x + 1, ((2,), "f32")) == program


@pytest.mark.parametrize("module", [trace_module, formula_module], ids=lambda m: m.__name__)
def test_the_examples_in_the_docstrings_are_true(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_all_functions_are_in_one_place() -> None:
    assert all(callable(getattr(fn, name)) for name in fn.__all__)
    assert {"einsum", "matmul", "softmax", "where"} <= set(fn.__all__)


# Refusals


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda x: 1 if x.sum() > 0 else 2, TraceError, "where"),
        (lambda x: (x > 0) and (x < 1), TraceError, "&"),
        (lambda x: float(x.sum()), TraceError, "float"),
        (lambda x: int(x.sum()), TraceError, "int"),
        (lambda x: range(x), TraceError, "index"),
        (lambda x: list(x), TraceError, "iterated"),
        (lambda x: 1.0 in x, TraceError, "in"),
        (lambda x: np.asarray(x), TraceError, "NumPy array"),
        (lambda x: x.item(), TraceError, "item"),
        (lambda x: x.__setitem__(0, 1), TraceError, "immutable"),
        (lambda x: x + np.ones((4, 6)), TraceError, "parameter"),
        (lambda x: x + "a", TraceError, "number"),
        (lambda x: np.linalg.inv(x), TraceError, "inv"),
        (lambda x: np.arctan(x), TraceError, "arctan"),
        (lambda x: np.diff(x), TraceError, "diff"),
        (lambda x: np.subtract.accumulate(x), TraceError, "accumulate"),
        (lambda x: np.sum(x, where=x > 0), TraceError, "where"),
        (lambda x: np.pad(x, 1, mode="edge"), TraceError, "constant"),
        (lambda x: x + x.T, ShapeError, r"\[4, 6\] and \[6, 4\]"),
        (lambda x: x @ x, ShapeError, r"extent 6.*extent 4"),
        (lambda x: x @ 2.0, ShapeError, "at least one dimension"),
        (lambda x: x.sum(2), ShapeError, "axis from -2 to 1"),
        (lambda x: x.sum((0, -2)), ShapeError, "twice"),
        (lambda x: x.argmax((0, 1)), ShapeError, "one axis"),
        (lambda x: x.reshape(5, 5), ShapeError, "24 elements"),
        (lambda x: x.reshape(-1, -1), ShapeError, "at least 1"),
        (lambda x: x.permute(0, 0), ShapeError, "swapaxes"),
        (lambda x: x[4], ShapeError, "outside"),
        (lambda x: x[0, 0, 0], ShapeError, "at most 2"),
        (lambda x: x[x > 0], ShapeError, "where"),
        (lambda x: x[[0, 1]], ShapeError, "list"),
        (lambda x: x[2:2], ShapeError, "empty"),
        (lambda x: x[..., ...], ShapeError, "ellipsis"),
        (lambda x: x.squeeze(0), ShapeError, "extent 1"),
        (lambda x: fn.broadcast_to(x, (4, 5)), ShapeError, r"\[4, 5\]"),
        (lambda x: fn.concatenate([x, x.T]), ShapeError, "differ"),
        (lambda x: fn.stack([x, x.T]), ShapeError, "one shape"),
        (lambda x: fn.split(x, 5), ShapeError, "5 equal"),
        (lambda x: fn.pad(x, -1), ShapeError, "pad widths"),
        (lambda x: fn.gelu(x, "exact"), UsageError, "approximate"),
        (lambda x: x.astype("f8"), DTypeError, "f8"),
        (lambda x: x & x, DTypeError, "bool operands"),
        (lambda x: ~x, DTypeError, "bool operands"),
        (lambda x: fn.where(x, x, x), DTypeError, "bool condition"),
        (lambda x: -(x > 0), DTypeError, "bool"),
        (lambda x: x.astype("i32") // 2, DTypeError, "floats"),
        (lambda x: x.astype("i32") + 2**40, DTypeError, "wider"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_refused_with_advice(use: Callable[[Array], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        use(tensor("x", (4, 6)))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: tensor("2x", (4,)), UsageError, "identifier"),
        (lambda: tensor("x", (4, 0)), ShapeError, "at least 1"),
        (lambda: tensor("x", (4.5,)), ShapeError, "whole numbers"),
        (lambda: tensor("x", (4,), "int7"), DTypeError, "int7"),
        (lambda: to_program(tensor("x", (4,)) + tensor("x", (1,))), ShapeError, "two tensors are called 'x'"),
        (lambda: trace(lambda x: x + tensor("w", (4,)), ((4,), "f32")), TraceError, "'w'"),
        (lambda: trace(lambda x, y: x, ((4,), "f32")), UsageError, "'y'"),
        (lambda: trace(lambda x: x, ((4,), "f32"), ((4,), "f32")), UsageError, "takes 1 arrays"),
        (lambda: trace(lambda x: x, 3), UsageError, "expected a \\(shape, dtype\\) pair"),
        (lambda: trace(lambda x: "no", ((4,), "f32")), TraceError, "returned str"),
        (lambda: trace(lambda x: (), ((4,), "f32")), TraceError, "empty tuple"),
        (lambda: as_program(3), UsageError, "int"),
        (lambda: to_program(tensor("x", (4,)), names=("x",)), UsageError, "output names"),
    ],
)  # fmt: skip
def test_a_wrong_program_is_refused_with_advice(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
