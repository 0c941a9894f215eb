"""(A @ B) @ v: the rules find A @ (B @ v), which reads two matrices and multiplies none."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.trace import tensor

BOARD = {"size": 4096, "dtype": "bf16"}


def build(size: int = 512, dtype: str = "f32") -> Array:
    """Return (a @ b) @ v."""
    a = tensor("a", (size, size), dtype)
    b = tensor("b", (size, size), dtype)
    v = tensor("v", (size,), dtype)
    return (a @ b) @ v


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
