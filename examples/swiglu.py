"""SwiGLU's activation: silu(gate)·up, nothing but memory traffic."""

from __future__ import annotations

from eqsat.array import Array
from eqsat.numpy_like import silu
from eqsat.trace import tensor

BOARD = {"rows": 16384, "columns": 11008, "dtype": "bf16"}


def build(rows: int = 512, columns: int = 2048, dtype: str = "f32") -> Array:
    """Return silu(gate)·up."""
    gate = tensor("gate", (rows, columns), dtype)
    up = tensor("up", (rows, columns), dtype)
    return silu(gate) * up


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build())
    print(best.leaderboard)
    print(best.receipt)
