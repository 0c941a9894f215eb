"""A rule of one's own: own_rule.egg says that cos(−a) = cos a, and the search uses it once its gate has let it in."""

from __future__ import annotations

from pathlib import Path

from eqsat.array import Array
from eqsat.numpy_like import cos
from eqsat.trace import tensor

RULES = Path(__file__).with_name("own_rule.egg")
BOARD = {"rows": 8192, "columns": 8192, "dtype": "f32"}


def build(rows: int = 512, columns: int = 1024, dtype: str = "f32") -> Array:
    """Return the row sums of cos(0 − x·s), written with a sign that the cosine does not see."""
    x = tensor("x", (rows, columns), dtype)
    s = tensor("s", (columns,), dtype, constant=True)
    return cos(-(x * s)).sum(axis=1)


if __name__ == "__main__":
    from eqsat import optimize

    best = optimize(build(), rules=[RULES])
    print(best.leaderboard)
    print(best.receipt)
