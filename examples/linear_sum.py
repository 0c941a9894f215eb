"""A linear layer whose outputs are summed: the rules move the sum to the weights."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.trace import tensor

BOARD = {"rows": 1024, "inner": 8192, "columns": 8192, "dtype": "f32"}


def build(rows: int = 128, inner: int = 1024, columns: int = 1024, dtype: str = "f32") -> Array:
    """Return the row sums of x @ w.T."""
    x = tensor("x", (rows, inner), dtype)
    w = tensor("w", (columns, inner), dtype)
    return (x @ w.T).sum(axis=1)


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
