"""Axes that a program takes apart: the values stay, the divisions go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from eqsat import numpy_like as xp
from eqsat import text
from eqsat.array import Array
from eqsat.canonical import shared
from eqsat.ir import Program
from eqsat.oracle import evaluate
from eqsat.refinement import refined
from eqsat.trace import tensor, to_program


def _group_norm(x: Array, g: Array) -> Array:
    y = x.reshape(2, 3, 4, 5)
    centred = y - xp.mean(y, axis=(2, 3), keepdims=True)
    y = centred * xp.rsqrt(xp.mean(centred * centred, axis=(2, 3), keepdims=True) + 1e-5)
    return y.reshape(2, 12, 5) * g.reshape(12, 1)


def _grouped_heads(x: Array, g: Array) -> Array:
    y = x.reshape(2, 3, 4, 5) * g.reshape(3, 4, 1)
    return xp.softmax(y, -1).reshape(2, 12, 5) + x


def _own_position(x: Array, g: Array) -> Array:
    y = xp.broadcast_to(x.reshape(2, 3, 4, 5).sum(2, keepdims=True), (2, 3, 4, 5)).reshape(2, 12, 5)
    return y * xp.iota(12, "f32").reshape(12, 1) + g.reshape(12, 1)


def _twice(x: Array, g: Array) -> Array:
    y = xp.broadcast_to(x.reshape(2, 3, 4, 5).sum(2, keepdims=True), (2, 3, 4, 5)).reshape(2, 12, 5)
    y = xp.broadcast_to(y.reshape(2, 6, 2, 5).max(2, keepdims=True), (2, 6, 2, 5)).reshape(2, 12, 5)
    return y * g.reshape(12, 1)


def _slipping(x: Array, g: Array) -> Array:
    return x.reshape(2, 3, 4, 5)[:, :, 1:3].reshape(2, 6, 5) * g[:6].reshape(6, 1)


CASES: dict[str, Callable[[Array, Array], Array]] = {
    f.__name__.strip("_"): f for f in (_group_norm, _grouped_heads, _own_position, _twice, _slipping)
}


def program_of(name: str) -> Program:
    x, g = tensor("x", (2, 12, 5)), tensor("g", (12,))
    return to_program(CASES[name](x, g), inputs=[x, g])


@pytest.mark.parametrize("name", CASES)
def test_the_values_of_a_refined_program_are_those_of_the_program(name):
    program = program_of(name)
    rng = np.random.default_rng(1)
    inputs = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in program.inputs}
    for made in (refined(program), shared(refined(program))):
        for a, b in zip(evaluate(program, inputs), evaluate(made, inputs), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("name", ["group_norm", "own_position"])
def test_statistics_of_groups_are_read_without_a_division(name):
    made = refined(program_of(name))
    assert "//" in text.dumps(program_of(name))
    assert "//" not in text.dumps(made)
    assert "%" not in text.dumps(made)
    assert made.outputs[0].shape == (2, 12, 5)
    assert [len(d) for d in made.outputs[0].dimensions] == [1, 2, 1]


def test_a_program_without_divisions_stays():
    x = tensor("x", (4, 6))
    program = to_program(xp.softmax(x))
    assert refined(program) is program


def test_an_output_over_joined_axes_reads_back_from_its_text():
    made = refined(program_of("group_norm"))
    assert text.loads(text.dumps(made)).digest == made.digest
