"""A matrix product."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.trace import tensor

BOARD = {"m": 4096, "n": 4096, "k": 4096, "dtype": "bf16"}


def build(m: int = 512, n: int = 512, k: int = 512, dtype: str = "f32") -> Array:
    """Return a @ b."""
    a = tensor("a", (m, k), dtype)
    b = tensor("b", (k, n), dtype)
    return a @ b


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
