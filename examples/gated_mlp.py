"""The gated half of a feed-forward block: silu(x @ A)·(x @ B), two products that share their left side."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.numpy_like import silu
from eqsat.trace import tensor

BOARD = {"rows": 8, "inner": 4096, "columns": 11008, "dtype": "bf16"}


def build(rows: int = 8, inner: int = 1024, columns: int = 2048, dtype: str = "f32") -> Array:
    """Return silu(x @ gate)·(x @ up)."""
    x = tensor("x", (rows, inner), dtype)
    gate = tensor("gate", (inner, columns), dtype, constant=True)
    up = tensor("up", (inner, columns), dtype, constant=True)
    return silu(x @ gate) * (x @ up)


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
