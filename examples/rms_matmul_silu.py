"""RMSNorm, a matrix product and SiLU: the statistic rides along the product's tiles, so that one kernel does it all."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.numpy_like import rms_norm, silu
from eqsat.trace import tensor

BOARD = {"rows": 4096, "inner": 4096, "columns": 4096, "dtype": "bf16"}


def build(rows: int = 256, inner: int = 512, columns: int = 512, dtype: str = "f32") -> Array:
    """Return silu((rms_norm(x)·g) @ w)."""
    x = tensor("x", (rows, inner), dtype)
    g = tensor("g", (inner,), dtype, constant=True)
    w = tensor("w", (inner, columns), dtype, constant=True)
    return silu(rms_norm(x, g, eps=1e-6) @ w)


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
