"""RMSNorm and a linear layer for a few rows: the time goes into reading the weight once."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.numpy_like import rms_norm
from eqsat.trace import tensor

BOARD = {"rows": 16, "inner": 4096, "columns": 4096, "dtype": "bf16"}


def build(rows: int = 16, inner: int = 1024, columns: int = 1024, dtype: str = "f32") -> Array:
    """Return (rms_norm(x)·g) @ w."""
    x = tensor("x", (rows, inner), dtype)
    g = tensor("g", (inner,), dtype, constant=True)
    w = tensor("w", (inner, columns), dtype, constant=True)
    return rms_norm(x, g, eps=1e-6) @ w


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
