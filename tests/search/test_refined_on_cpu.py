"""A program with axes taken apart, from the search to the result: the caller's shapes are his own."""

from __future__ import annotations

import numpy as np

import eqsat
from eqsat import numpy_like as xp
from eqsat.array import Array


def _group_norm(x: Array, g: Array) -> Array:
    y = x.reshape(4, 2, 8, 16)
    centred = y - xp.mean(y, axis=(2, 3), keepdims=True)
    y = centred * xp.rsqrt(xp.mean(centred * centred, axis=(2, 3), keepdims=True) + 1e-5)
    return y.reshape(4, 16, 16) * g.reshape(16, 1)


def test_a_norm_over_groups_is_one_kernel_and_has_the_shape_it_was_written_with():
    best = eqsat.optimize(
        _group_norm, ((4, 16, 16), "f32"), ((16,), "f32"), target="cpu", budget="6s", store=":memory:", progress=False
    )
    rng = np.random.default_rng(2)
    x, g = rng.standard_normal((4, 16, 16), dtype=np.float32), rng.standard_normal(16, dtype=np.float32)
    y = x.astype(np.float64).reshape(4, 2, 128)
    y = (y - y.mean(2, keepdims=True)) / np.sqrt(y.var(2, keepdims=True) + 1e-5)
    found = best(x, g)
    assert found.shape == (4, 16, 16)
    np.testing.assert_allclose(found, y.reshape(4, 16, 16) * g.reshape(16, 1), rtol=1e-4, atol=1e-5)
    assert len(best.receipt.plan["kernels"]) == 1
