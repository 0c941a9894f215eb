"""Softmax of rows: a maximum, a sum that depends on it, and a division, in one pass over the memory."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.numpy_like import softmax
from eqsat.trace import tensor

BOARD = {"rows": 8192, "columns": 8192, "dtype": "bf16"}  # the size at which it is measured on a GPU


def build(rows: int = 512, columns: int = 1024, dtype: str = "f32") -> Array:
    """Return softmax(x) along the last dimension."""
    x = tensor("x", (rows, columns), dtype)
    return softmax(x)


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
