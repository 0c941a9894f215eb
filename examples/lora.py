"""A linear layer with a low-rank update: x @ W + (x @ A) @ B."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.trace import tensor

BOARD = {"rows": 16, "inner": 4096, "columns": 4096, "rank": 16, "dtype": "bf16"}


def build(rows: int = 16, inner: int = 1024, columns: int = 1024, rank: int = 16, dtype: str = "f32") -> Array:
    """Return x @ w + (x @ a) @ b."""
    x = tensor("x", (rows, inner), dtype)
    w = tensor("w", (inner, columns), dtype, constant=True)
    a = tensor("a", (inner, rank), dtype, constant=True)
    b = tensor("b", (rank, columns), dtype, constant=True)
    return x @ w + (x @ a) @ b


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
