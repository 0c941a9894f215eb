"""RMSNorm: x·rsqrt(mean(x²) + ε), times a weight."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.numpy_like import rms_norm
from eqsat.trace import tensor

BOARD = {"rows": 16384, "columns": 4096, "dtype": "bf16"}


def build(rows: int = 512, columns: int = 1024, dtype: str = "f32") -> Array:
    """Return rms_norm(x) times a weight for each column."""
    x = tensor("x", (rows, columns), dtype)
    weight = tensor("weight", (columns,), dtype, constant=True)
    return rms_norm(x, weight, eps=1e-6)


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
