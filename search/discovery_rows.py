"""The rows of the discovery suite: a program as people write it, what an expert writes instead, and how to tell the two apart.

A check looks at the chosen plan alone (kernels, what each sums over, what it reads, how large its intermediates are) and
returns what the plan lacks. It knows the program's inputs by name; no check looks for a rule, a schedule, or a text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqsat import numpy_like as np
from eqsat.array import Array
from eqsat.ir import Program
from eqsat.search import discovery_checks as must
from eqsat.search.discovery_checks import Check
from eqsat.trace import tensor, to_program

EXAMPLE_RULES = Path(__file__).resolve().parent.parent / "examples" / "rules"
_FEW = 32
_NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True, slots=True)
class Row:
    """One program of the suite.

    Parameters
    ----------
    name : str
    text : str
        The program as people write it.
    expert : str
        What an expert writes instead, in words.
    inputs : tuple of (name, shape, dtype, constant)
    expression : callable
        Takes traced arrays; returns one or a tuple.
    check : callable
        Returns what the chosen plan lacks.
    numerics : tuple of str
        Classes of rules admitted.
    rules : tuple of path
        Rule files beside the built-in ones.
    target : str
        The target whose model chooses, unless the caller names another.
    """

    name: str
    text: str
    expert: str
    inputs: tuple[tuple[str, tuple[int, ...], str, bool], ...]
    expression: Callable[..., Array | tuple[Array, ...]]
    check: Check
    numerics: tuple[str, ...] = ("exact", "reassociates")
    rules: tuple[Path, ...] = ()
    target: str = "sm_90"

    def program(self) -> Program:
        """Return the program, its inputs in the row's order."""
        inputs = [tensor(name, shape, dtype, constant) for name, shape, dtype, constant in self.inputs]
        return to_program(self.expression(*inputs), inputs=inputs)

    def small(self) -> Program:
        """Return the same program at small, odd extents: those above 32 shrink, equal ones alike."""
        large = sorted({n for _, shape, _, _ in self.inputs for n in shape if n > _FEW})
        fewer = {n: _FEW + 7 * (rank + 1) for rank, n in enumerate(large)}
        inputs = [tensor(name, [fewer.get(n, n) for n in shape], dtype, fixed) for name, shape, dtype, fixed in self.inputs]
        return to_program(self.expression(*inputs), inputs=inputs)


def _specs(dtype: str, given: Mapping[str, tuple[int, ...]], constant: Iterable[str] = ()) -> tuple[Any, ...]:
    fixed = set(constant)
    return tuple((name, shape, dtype, name in fixed) for name, shape in given.items())


# Programs


def _attention(q: Array, k: Array, v: Array) -> Array:
    return np.softmax(_scores(q, k)) @ v


def _projected(x: Array, *weights: Array) -> Array:
    return _attention(*(np.einsum("tc,chd->htd", x, w) for w in weights))


def _scores(q: Array, k: Array) -> Array:
    return (q @ k.mT) * (1 / math.sqrt(q.shape[-1]))


def _positions(s: Array) -> tuple[Array, Array]:
    return np.iota(s.shape[-2]).reshape(-1, 1), np.iota(s.shape[-1]).reshape(1, -1)


def _causal(q: Array, k: Array, v: Array) -> Array:
    s = _scores(q, k)
    i, j = _positions(s)
    return np.softmax(np.where(j <= i, s, _NEGATIVE_INFINITY)) @ v


def _window(q: Array, k: Array, v: Array) -> Array:
    s = _scores(q, k)
    i, j = _positions(s)
    return np.softmax(np.where((j <= i) & (i - j < 512), s, _NEGATIVE_INFINITY)) @ v


def _alibi(q: Array, k: Array, v: Array, slope: Array) -> Array:
    s = _scores(q, k)
    i, j = _positions(s)
    bias = slope.reshape(-1, 1, 1) * (i - j).astype("f32")
    return np.softmax(s - bias.astype("bf16")) @ v


def _grouped(q: Array, k: Array, v: Array) -> Array:
    def repeated(x: Array) -> Array:
        h, n, d = x.shape
        return np.broadcast_to(x.reshape(h, 1, n, d), (h, 4, n, d)).reshape(4 * h, n, d)

    return _attention(q, repeated(k), repeated(v))


def _qk_norm(q: Array, k: Array, v: Array) -> Array:
    def unit(x: Array) -> Array:
        return np.rms_norm(x.astype("f32")).astype("bf16")

    return _attention(unit(q), unit(k), v)


def _decode(q: Array, k: Array, v: Array) -> Array:
    weights = np.softmax(np.einsum("hd,hsd->hs", q, k) * (1 / math.sqrt(q.shape[-1])))
    return np.einsum("hs,hsd->hd", weights, v)


def _linear_attention(q: Array, k: Array, v: Array) -> Array:
    s = np.exp(q) @ np.exp(k).mT
    return (s @ v) / np.sum(s, axis=-1, keepdims=True)


def _cross_entropy(x: Array, label: Array) -> Array:
    mine = np.sum(np.where(np.iota(x.shape[1]) == label.reshape(-1, 1), x, 0), axis=1)
    return np.logsumexp(x, axis=1) - mine


def _chain(*matrices: Array) -> Array:
    total = matrices[0]
    for m in matrices[1:]:
        total = total @ m
    return total


def chain_row(dims: Sequence[int], name: str = "") -> Row:
    """Return the row of a chain of matrices, written from left to right."""
    count = len(dims) - 1
    letters = "abcdefghij"[:count]
    return Row(
        name or f"chain_{count}", "@".join(letters), "the order of least multiplications",
        _specs("f32", {c: (m, n) for c, (m, n) in zip(letters, itertools.pairwise(dims), strict=True)}),
        _chain, must.in_the_best_order(dims),
    )  # fmt: skip


def _conv(x: Array, w: Array) -> Array:
    windows = np.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.einsum("nchwrs,ocrs->nohw", windows, w)


def _conv_line(x: Array, w: Array) -> Array:
    return np.einsum("cns,ocs->on", np.sliding_window_view(x, w.shape[2], axis=1), w)


_QKV = {"q": (32, 2048, 128), "k": (32, 2048, 128), "v": (32, 2048, 128)}
_SCORES = 32 * 2048 * 2048
_FLASH = must.all_of(must.one_online, must.nothing_as_large_as(2048 * 2048, "a head's scores"))


def _norm_rows() -> list[Row]:
    weights = ("g", "b", "w")
    return [
        Row(
            "rmsnorm_linear", "(x·rsqrt(mean(x²) + ε)·g) @ w",
            "x @ (g·w prepared), Σx² in the same pass, the scale after the contraction",
            _specs("bf16", {"x": (4096, 4096), "g": (4096,), "w": (4096, 4096)}, weights),
            lambda x, g, w: np.rms_norm(x, g) @ w,
            must.all_of(must.kernels(1), must.taken_as_it_is("x"), must.two_reads, must.statistics_ride("x")),
        ),
        Row(
            "layernorm_linear", "layer_norm(x, g, b) @ w",
            "r·(x @ (g·w) − μ·Σ(g·w)) + b @ w: the contraction takes x itself, the rest is prepared or per row",
            _specs("bf16", {"x": (4096, 4096), "g": (4096,), "b": (4096,), "w": (4096, 4096)}, weights),
            lambda x, g, b, w: np.layer_norm(x, g, b) @ w,
            must.all_of(must.products(1), must.taken_as_it_is("x"), must.two_reads, must.nothing_as_large_as(4096 * 4096, "x")),
        ),
    ]  # fmt: skip


def _attention_rows() -> list[Row]:
    return [
        Row("attention", "softmax(q @ kᵀ·s) @ v", "one pass over keys with running maximum and sums", _specs("bf16", _QKV),
            _attention, _FLASH),
        Row("attention_causal", "softmax(where(j ≤ i, q @ kᵀ·s, −∞)) @ v", "the same pass; masked tiles are skipped",
            _specs("bf16", _QKV), _causal, _FLASH),
        Row("attention_window", "softmax(where(i − 512 < j ≤ i, q @ kᵀ·s, −∞)) @ v", "the same pass over the band",
            _specs("bf16", _QKV), _window, _FLASH),
        Row("attention_alibi", "softmax(q @ kᵀ·s − m·(i − j)) @ v", "the same pass; the bias is computed from positions",
            (*_specs("bf16", _QKV), ("slope", (32,), "f32", False)), _alibi, _FLASH),
        Row("attention_grouped", "attention(q, repeat(k, 4), repeat(v, 4))", "the same pass; heads read k[h // 4]",
            _specs("bf16", {"q": (32, 2048, 128), "k": (8, 2048, 128), "v": (8, 2048, 128)}), _grouped, _FLASH),
        Row("attention_qk_norm", "attention(rms_norm(q), rms_norm(k), v)",
            "the scales of rows leave q @ kᵀ: the pass contracts q and k themselves", _specs("bf16", _QKV), _qk_norm,
            must.all_of(must.nothing_as_large_as(32 * 2048 * 128, "q"), must.contracted_alone("q", "k"),
                    must.some_online)),
        Row("attention_decode", "softmax(q·K·s)·V for one position, 65,536 keys, in f32 (16-bit keys have a kernel whose blocks share them)",
            "parts of the keys in parallel, each with its own maximum and sums; a small kernel combines them",
            _specs("f32", {"q": (8, 128), "k": (8, 65536, 128), "v": (8, 65536, 128)}), _decode, must.split_and_combined),
        Row("attention_linear", "(e^q @ (e^k)ᵀ) @ v, normalised by row", "e^q @ ((e^k)ᵀ @ v): no product of positions with positions",
            _specs("f32", {"q": (16, 4096, 64), "k": (16, 4096, 64), "v": (16, 4096, 64)}), _linear_attention,
            must.all_of(must.nothing_over(16 * 4096 * 4096, "scores of every pair"), must.saves(8))),
    ]  # fmt: skip


def _linear_rows() -> list[Row]:
    square = (4096, 4096)
    return [
        Row("lora", "x @ (w + a @ b), 16 rows", "x @ w + (x @ a) @ b: a @ b is never formed",
            _specs("bf16", {"x": (16, 4096), "w": square, "a": (4096, 16), "b": (16, 4096)}), lambda x, w, a, b: x @ (w + a @ b),
            must.all_of(must.products(3), must.nothing_as_large_as(4096 * 4096, "w"), must.nothing_over(4096 * 4096, "a @ b"))),
        Row("lora_merged", "x @ w + (x @ a) @ b, weights constant", "x @ (w + a @ b prepared)",
            _specs("bf16", {"x": square, "w": square, "a": (4096, 16), "b": (16, 4096)}, ("w", "a", "b")),
            lambda x, w, a, b: x @ w + (x @ a) @ b, must.all_of(must.kernels(1), must.products(1), must.two_reads)),
        Row("lora_fused", "x @ w + (x @ a) @ b, 4096 rows", "t = x @ a; x @ w and t @ b in one kernel",
            _specs("bf16", {"x": square, "w": square, "a": (4096, 16), "b": (16, 4096)}), lambda x, w, a, b: x @ w + (x @ a) @ b,
            must.all_of(must.kernels(2), must.nothing_as_large_as(4096 * 4096, "x @ w"))),
        Row("gated_mlp", "silu(x @ a)·(x @ b)", "one kernel: both contractions share the tiles of x",
            _specs("bf16", {"x": (2048, 4096), "a": (4096, 11008), "b": (4096, 11008)}),
            lambda x, a, b: np.silu(x @ a) * (x @ b), must.all_of(must.kernels(1), must.products(2), must.two_reads)),
        Row("qkv", "concatenate(x @ wq, x @ wk, x @ wv), weights constant", "x @ (the weights side by side, prepared)",
            _specs("bf16", {"x": (2048, 4096), "wq": square, "wk": square, "wv": square}, ("wq", "wk", "wv")),
            lambda x, wq, wk, wv: np.concatenate((x @ wq, x @ wk, x @ wv), axis=1),
            must.all_of(must.kernels(1), must.products(1), must.two_reads, must.read_once("x"))),
        Row("qkv_apart", "x @ wq, x @ wk, x @ wv, fewer columns in wk and wv", "one kernel writes all three, no weight is moved",
            _specs("bf16", {"x": (2048, 4096), "wq": square, "wk": (4096, 1024), "wv": (4096, 1024)}, ("wq", "wk", "wv")),
            lambda x, wq, wk, wv: (x @ wq, x @ wk, x @ wv),
            must.all_of(must.kernels(1), must.products(3), *map(must.taken_as_it_is, ("wq", "wk", "wv")), must.read_once("x"))),
        Row("attention_projected", "softmax(q @ kᵀ·s) @ v, q, k, v = x @ wq, x @ wk, x @ wv by head", "one kernel for q, k and v, one pass over keys",
            (("x", (2048, 2048), "bf16", False), *((f"w{c}", (2048, 32, 64), "bf16", True) for c in "qkv")), _projected,
            must.all_of(must.kernels(2), must.products(5), must.read_once("x"))),
        Row("stacked_linear", "(x @ w1 + b1) @ w2 + b2, weights constant", "x @ (w1 @ w2 prepared) + (b1 @ w2 + b2 prepared)",
            _specs("bf16", {"x": (2048, 4096), "w1": square, "b1": (4096,), "w2": square, "b2": (4096,)}, ("w1", "b1", "w2", "b2")),
            lambda x, w1, b1, w2, b2: (x @ w1 + b1) @ w2 + b2, must.all_of(must.kernels(1), must.products(1), must.two_reads)),
        Row("dequantised_linear", "(x·sx) @ (w·sw), scales by row and column", "x @ w, both scales after the contraction",
            (("x", square, "bf16", False), ("sx", (4096, 1), "f32", False), ("w", (4096, 11008), "bf16", False),
             ("sw", (11008,), "f32", False)),
            lambda x, sx, w, sw: (x.astype("f32") * sx) @ (w.astype("f32") * sw),
            must.all_of(must.kernels(1), must.taken_as_it_is("x"), must.taken_as_it_is("w"), must.two_reads)),
        Row("dequantised_rounded", "x @ bf16(w·sw)", "x @ w, the scale after the contraction",
            (("x", square, "bf16", False), ("w", (4096, 11008), "bf16", False), ("sw", (11008,), "f32", False)),
            lambda x, w, sw: x @ (w.astype("f32") * sw).astype("bf16"),
            must.all_of(must.kernels(1), must.taken_as_it_is("x"), must.taken_as_it_is("w"), must.two_reads)),
    ]  # fmt: skip


def _algebra_rows() -> list[Row]:
    square = (2048, 2048)
    wide = {"a": (2048, 1024), "b": (1024, 2048)}
    whole = 2048 * 2048
    no_product = must.nothing_over(whole, "the whole product")
    narrow = 4096 * 4096
    return [
        Row("matrices_times_vector", "(a @ b) @ v", "a @ (b @ v)", _specs("bf16", {"a": square, "b": square, "v": (2048,)}),
            lambda a, b, v: (a @ b) @ v, must.all_of(no_product, must.saves(500))),
        chain_row((1024, 512, 1024, 256)), chain_row((1024, 256, 1024, 512, 768, 256, 1024)),
        chain_row((768, 1024, 256, 1024, 512, 1024, 768, 384, 1024, 640, 1024)),
        Row("sum_of_product", "sum(a @ b)", "Σ_k colsum(a)·rowsum(b)", _specs("f32", wide), lambda a, b: np.sum(a @ b),
            must.all_of(no_product, must.saves(500))),
        Row("mean_of_product", "mean(a @ b)", "Σ_k colsum(a)·rowsum(b) / n", _specs("f32", wide), lambda a, b: np.mean(a @ b),
            must.all_of(no_product, must.saves(500))),
        Row("trace_of_product", "trace(a @ b)", "Σ_ik a_ik·b_ki", _specs("f32", wide), lambda a, b: np.einsum("ii->", a @ b),
            must.all_of(no_product, must.computes_at_most(3 * 2048 * 1024))),
        Row("norm_of_product", "sum((a @ b)²), a tall and thin", "Σ (aᵀa)·(b bᵀ): two small Gram matrices",
            _specs("f32", {"a": (4096, 64), "b": (64, 4096)}), lambda a, b: np.sum((a @ b) * (a @ b)),
            must.all_of(must.nothing_over(narrow, "the whole product"), must.saves(16))),
        Row("shared_factor", "a @ b + a @ c", "a @ (b + c)", _specs("bf16", {"a": (4096, 4096), "b": (4096, 4096), "c": (4096, 4096)}),
            lambda a, b, c: a @ b + a @ c, must.products(1)),
        Row("shared_factor_of_four", "a @ b + a @ c + a @ d + a @ e", "a @ (b + c + d + e)",
            _specs("bf16", dict.fromkeys("abcde", (4096, 4096))),
            lambda a, b, c, d, e: a @ b + a @ c + a @ d + a @ e, must.products(1)),
        Row("pairwise_distances", "Σ_k (a_ik − b_jk)²", "|a|² + |b|² − 2·a @ bᵀ: the pairs go through a contraction",
            _specs("f32", {"a": (4096, 256), "b": (8192, 256)}),
            lambda a, b: np.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=-1),
            must.all_of(must.products(1), must.two_reads), numerics=("exact", "reassociates", "unstable")),
        Row("cross_entropy", "logsumexp(x) − x[label], 50,304 classes", "one pass over the logits: running maximum, sum, and the label's logit",
            (("x", (8192, 50304), "bf16", False), ("label", (8192,), "i64", False)), _cross_entropy,
            must.all_of(must.kernels(1), must.one_pass("x"))),
        Row("variance", "mean((x − mean(x))²) of a whole matrix", "one pass: parts about their own means, combined (Chan, Golub, LeVeque)",
            _specs("f32", {"x": (8192, 8192)}), lambda x: np.var(x), must.one_stable_pass),
    ]  # fmt: skip


def _convolution_rows() -> list[Row]:
    return [
        Row("convolution", "Σ_crs x[c, h + r, w + s]·w[o, c, r, s]", "one contraction over channels and windows",
            _specs("bf16", {"x": (8, 256, 58, 58), "w": (256, 256, 3, 3)}), _conv,
            must.all_of(must.products(1), must.two_reads, must.sums_over(3), must.on_matrix_units)),
        Row("convolution_1x1", "the same with windows of one pixel", "a matrix product",
            _specs("bf16", {"x": (8, 256, 56, 56), "w": (512, 256, 1, 1)}), _conv,
            must.all_of(must.kernels(1), must.products(1), must.two_reads, must.sums_over(1), must.on_matrix_units)),
        Row("convolution_fast", "y[o, n] = Σ_cs x[c, n + s]·w[o, c, s], three taps", "Winograd F(2, 3): four products for six",
            (("x", (1024, 4098), "f32", False), ("w", (1024, 1024, 3), "f32", True)), _conv_line,
            must.multiplies_at_most(1024 * 1024 * 4096 * 2),
            numerics=("exact", "reassociates", "approximates"), rules=(EXAMPLE_RULES / "winograd.egg",)),
    ]  # fmt: skip


ROWS: tuple[Row, ...] = (*_norm_rows(), *_attention_rows(), *_linear_rows(), *_algebra_rows(), *_convolution_rows())
