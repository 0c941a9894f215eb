"""LayerNorm, GELU and a residual: two statistics of a row and an epilogue."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.numpy_like import gelu, layer_norm
from eqsat.trace import tensor

BOARD = {"rows": 16384, "columns": 4096, "dtype": "bf16"}


def build(rows: int = 512, columns: int = 1024, dtype: str = "f32") -> Array:
    """Return gelu(layer_norm(x)) + residual."""
    x = tensor("x", (rows, columns), dtype)
    weight = tensor("weight", (columns,), dtype, constant=True)
    bias = tensor("bias", (columns,), dtype, constant=True)
    residual = tensor("residual", (rows, columns), dtype)
    return gelu(layer_norm(x, weight, bias)) + residual


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
