"""gelu(x·s + b)·y + r: one pass over the memory where NumPy makes ten."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.numpy_like import gelu
from eqsat.trace import tensor

BOARD = {"rows": 16384, "columns": 4096, "dtype": "bf16"}


def build(rows: int = 1024, columns: int = 1024, dtype: str = "f32") -> Array:
    """Return gelu(x·s + b)·y + r."""
    x = tensor("x", (rows, columns), dtype)
    s = tensor("s", (columns,), dtype, constant=True)
    b = tensor("b", (columns,), dtype, constant=True)
    y = tensor("y", (rows, columns), dtype)
    r = tensor("r", (rows, columns), dtype)
    return gelu(x * s + b) * y + r


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
