"""Convolutions and pooling against loops over the positions of the output, through the oracle."""

from __future__ import annotations

import doctest
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from eqsat import numpy_like as fn
from eqsat import windows as windows_module
from eqsat.errors import ShapeError, UsageError
from eqsat.oracle import evaluate
from eqsat.trace import tensor, trace
from eqsat.windows import avg_pool, conv, conv_transpose, depthwise_conv, max_pool, windows


def data(*shape: int, seed: int = 0) -> Any:
    return np.round(np.random.default_rng((seed, *shape)).normal(size=shape) * 2, 1)


def run(function: Callable[..., Any], *arrays: Any) -> Any:
    program = trace(function, *arrays)
    return evaluate(program, {i.name: a for i, a in zip(program.inputs, arrays, strict=True)})[0]


def places(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, shape))


def looped_conv(x: Any, w: Any, stride: Any, pads: Any, dilation: Any, groups: int) -> Any:
    """Add up one product after another, as the definition says."""
    space, taps = x.shape[2:], w.shape[2:]
    out_space = tuple(
        (n + a + b - d * (k - 1) - 1) // s + 1 for n, k, s, (a, b), d in zip(space, taps, stride, pads, dilation, strict=True)
    )
    out = np.zeros((x.shape[0], w.shape[0], *out_space))
    per, each = w.shape[0] // groups, x.shape[1] // groups
    for n, o, c in places((x.shape[0], w.shape[0], each)):
        channel = o // per * each + c
        for p in places(out_space):
            for r in places(taps):
                at = tuple(i * s + j * d - a for i, s, j, d, (a, _) in zip(p, stride, r, dilation, pads, strict=True))
                if all(0 <= i < e for i, e in zip(at, space, strict=True)):
                    out[(n, o, *p)] += x[(n, channel, *at)] * w[(o, c, *r)]
    return out


def looped_transpose(x: Any, w: Any, stride: Any, cut: Any, more: Any, dilation: Any, groups: int) -> Any:
    """Scatter each element of the input."""
    space, taps = x.shape[2:], w.shape[2:]
    whole = tuple((n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip(space, stride, dilation, taps, more, strict=True))
    per, each = w.shape[1], x.shape[1] // groups
    out = np.zeros((x.shape[0], per * groups, *whole))
    for n, c, o in places((x.shape[0], x.shape[1], per)):
        for i in places(space):
            for r in places(taps):
                at = tuple(a * s + b * d for a, s, b, d in zip(i, stride, r, dilation, strict=True))
                out[(n, c // each * per + o, *at)] += x[(n, c, *i)] * w[(c, o, *r)]
    kept: Any = (..., *(slice(p, m - p) for p, m in zip(cut, whole, strict=True)))
    return out[kept]


CONVOLUTIONS = [
    ((2, 3, 7), (4, 3, 3), (1,), ((0, 0),), (1,), 1),
    ((2, 4, 9), (6, 2, 3), (2,), ((1, 2),), (2,), 2),
    ((1, 3, 6, 5), (2, 3, 3, 2), (1, 1), ((1, 1), (0, 1)), (1, 1), 1),
    ((2, 4, 7, 6), (4, 2, 3, 3), (2, 1), ((1, 1), (1, 1)), (1, 2), 2),
    ((2, 4, 6, 6), (8, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4),
    ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), (1, 2, 1), ((0, 1), (1, 1), (0, 0)), (1, 1, 2), 1),
]  # fmt: skip


@pytest.mark.parametrize(("x_shape", "w_shape", "stride", "pads", "dilation", "groups"), CONVOLUTIONS)
def test_a_convolution_is_the_sum_over_channels_and_places(
    x_shape: Any, w_shape: Any, stride: Any, pads: Any, dilation: Any, groups: int
) -> None:
    x, w = data(*x_shape), data(*w_shape, seed=1)
    got = run(lambda x, w: conv(x, w, stride, pads, dilation, groups), x, w)
    np.testing.assert_allclose(got, looped_conv(x, w, stride, pads, dilation, groups), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 0, 2)])
def test_a_depthwise_convolution_takes_each_channel_alone(stride: int, padding: int, dilation: int) -> None:
    x, w = data(2, 3, 8, 7), data(3, 3, 2, seed=1)
    got = run(lambda x, w: depthwise_conv(x, w, stride, padding, dilation), x, w)
    want = looped_conv(x, w[:, None], (stride,) * 2, ((padding,) * 2,) * 2, (dilation,) * 2, 3)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


TRANSPOSED = [
    ((2, 3, 5), (3, 2, 3), (1,), (0,), (0,), (1,), 1),
    ((2, 3, 5), (3, 2, 3), (1,), (1,), (0,), (2,), 1),
    ((2, 4, 5), (4, 3, 4), (2,), (1,), (1,), (1,), 2),
    ((1, 2, 4), (2, 2, 2), (3,), (0,), (2,), (1,), 1),
    ((1, 3, 4, 3), (3, 2, 3, 2), (2, 1), (1, 0), (1, 0), (1, 1), 1),
    ((1, 4, 3, 4), (4, 2, 3, 3), (2, 3), (1, 2), (0, 1), (2, 1), 2),
    ((1, 2, 3, 3, 2), (2, 3, 3, 2, 3), (1, 1, 1), (0, 0, 0), (0, 0, 0), (1, 1, 1), 1),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "stride", "cut", "more", "dilation", "groups"), TRANSPOSED)
def test_a_transposed_convolution_scatters_each_element(
    x_shape: Any, w_shape: Any, stride: Any, cut: Any, more: Any, dilation: Any, groups: int
) -> None:
    x, w = data(*x_shape), data(*w_shape, seed=1)
    got = run(lambda x, w: conv_transpose(x, w, stride, cut, more, dilation, groups), x, w)
    want = looped_transpose(x, w, stride, cut, more, dilation, groups)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_transposed_convolution_of_stride_one_multiplies_no_more_than_a_convolution() -> None:
    shapes = ((1, 4, 9, 9), "f32"), ((4, 8, 3, 3), "f32")
    turned = trace(lambda x, w: conv_transpose(x, w), *shapes)
    plain = trace(lambda x, w: conv(x, w.swapaxes(0, 1), padding=2), *shapes)
    assert turned.flops == plain.flops


def test_a_transposed_convolution_of_stride_two_does_not_multiply_by_stuffed_zeros() -> None:
    shapes = ((1, 4, 16, 16), "f32"), ((4, 8, 4, 4), "f32")
    strided = trace(lambda x, w: conv_transpose(x, w, stride=2), *shapes)
    useful = trace(conv, ((1, 4, 35, 35), "f32"), ((8, 4, 2, 2), "f32"))
    assert strided.outputs[0].shape == useful.outputs[0].shape
    assert strided.flops <= 1.1 * useful.flops


@pytest.mark.parametrize("name", ["max", "mean", "mean of what is there"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((2, 2), (2, 2), (0, 0)), ((3, 2), (2, 1), (1, 0)), ((3, 3), (3, 2), (1, 1))]
)
def test_a_pool_takes_the_windows_one_by_one(name: str, kernel: Any, stride: Any, padding: Any) -> None:
    x = data(2, 3, 7, 8) - 5  # below zero: a padding of zeros would show in a maximum
    pads = ((0, 0), (0, 0), *((p, p) for p in padding))
    values = np.pad(x, pads, constant_values=-math.inf if name == "max" else 0)
    there = np.pad(np.ones_like(x), pads)
    space = tuple((n - k) // s + 1 for n, k, s in zip(values.shape[2:], kernel, stride, strict=True))
    want = np.zeros((*x.shape[:2], *space))
    for p in places(space):
        cut: Any = (..., *(slice(i * s, i * s + k) for i, s, k in zip(p, stride, kernel, strict=True)))
        part, count = values[cut], there[cut].sum((-2, -1))
        sums = part.sum((-2, -1))
        at: Any = (..., *p)
        want[at] = part.max((-2, -1)) if name == "max" else sums / (math.prod(kernel) if name == "mean" else count)
    pools = {
        "max": lambda x: max_pool(x, kernel, stride, padding),
        "mean": lambda x: avg_pool(x, kernel, stride, padding),
        "mean of what is there": lambda x: avg_pool(x, kernel, stride, padding, count_include_pad=False),
    }
    np.testing.assert_allclose(run(pools[name], x), want, rtol=1e-12)


def test_pools_take_their_extent_as_stride_and_every_rank_of_space() -> None:
    x = data(1, 2, 4, 6, 2)
    np.testing.assert_allclose(run(lambda x: max_pool(x, 2), x), x.reshape(1, 2, 2, 2, 3, 2, 1, 2).max((3, 5, 7)))
    line = data(3, 2, 9)
    np.testing.assert_allclose(run(lambda x: avg_pool(x, 3), line), line.reshape(3, 2, 3, 3).mean(-1))


def test_padding_same_keeps_the_extents() -> None:
    program = trace(lambda x, w: conv(x, w, padding="same", dilation=(1, 2)), ((1, 2, 7, 9), "f32"), ((3, 2, 4, 3), "f32"))
    assert program.outputs[0].shape == (1, 3, 7, 9)


def test_a_window_is_one_access_of_the_input() -> None:
    program = trace(lambda x, w: fn.relu(conv(x, w, stride=2, padding=1)), ((1, 2, 7, 9), "f32"), ((3, 2, 3, 3), "f32"))
    accesses = [e for e in program.walk() if e.op == "access"]
    assert len(accesses) == 1
    assert accesses[0].args[0].op == "read"


def test_windows_read_a_value_outside() -> None:
    x = data(5)
    got = run(lambda x: windows(x, (3,), padding=1, value=7.0), x)
    np.testing.assert_allclose(got, np.lib.stride_tricks.sliding_window_view(np.pad(x, 1, constant_values=7.0), 3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w: conv(x, w, groups=3), "3 groups"),
        (lambda x, w: conv(x[0], w), "as many dimensions of space"),
        (lambda x, w: conv(x, w, padding=(1, 1, 1)), "paddings"),
        (lambda x, w: conv(x, w, stride=0), "strides of at least 1"),
        (lambda x, w: conv(x, w, dilation=4), "does not fit"),
        (lambda x, w: max_pool(x.astype("i32"), 2), "takes floats"),
        (lambda x, w: depthwise_conv(x, w), "depthwise_conv"),
        (lambda x, w: conv_transpose(x, w.swapaxes(0, 1), padding=9), "nothing of the output"),
    ],
)
def test_what_does_not_fit_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        function(tensor("x", (2, 4, 6, 6)), tensor("w", (8, 4, 3, 3)))


def test_padding_by_an_unknown_word_is_refused() -> None:
    with pytest.raises(UsageError, match="'same' or 'valid'"):
        conv(tensor("x", (2, 4, 6, 6)), tensor("w", (8, 4, 3, 3)), padding="full")  # type: ignore[arg-type]


def test_the_examples_of_the_module_run() -> None:
    assert doctest.testmod(windows_module).failed == 0
