"""Attention as it is written down: softmax(q @ kᵀ/√d) @ v, with the scores in full."""

from __future__ import annotations

import math

from eqsat.array import Array
from eqsat.numpy_like import softmax
from eqsat.trace import tensor

BOARD = {"batch": 4, "heads": 32, "length": 2048, "width": 128, "dtype": "bf16"}


def build(batch: int = 1, heads: int = 2, length: int = 256, width: int = 64, dtype: str = "f32") -> Array:
    """Return softmax(q @ kᵀ/√width) @ v for each head."""
    shape = (batch, heads, length, width)
    q, k, v = tensor("q", shape, dtype), tensor("k", shape, dtype), tensor("v", shape, dtype)
    return softmax(q @ k.mT * (1 / math.sqrt(width))) @ v


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
