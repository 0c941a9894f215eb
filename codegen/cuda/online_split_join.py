"""How those that share the keys of a tile of rows join their sums: within a block, in a cluster, or through memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from eqsat.codegen.cuda.emit import part
from eqsat.codegen.cuda.online_print import Code, offset, outputs_over, row_values
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.online import Accumulated, OnlineProblem
from eqsat.ir import Expr

Way = Literal["alone", "cluster", "memory"]
Places = Callable[..., dict[str, str]]  # the C expression of each axis, for flat positions given as groups of axes


def way_to_join(parts: int, memory: int) -> Way:
    """Return how `parts` blocks join their sums."""
    return "alone" if parts == 1 else "memory" if memory else "cluster"


def joined_floats(rows: int, columns: int, sharers: int, parts: int, memory: int) -> int:
    """Return the words of shared memory that the joining takes."""
    taken = sharers * rows * (columns + 3)
    if way_to_join(parts, memory) == "cluster":
        taken += parts * (-(-rows * columns // parts) + 1 + 2 * rows) + 4
    return taken


def counters(tiles: int) -> int:
    """Return the words of a workspace that count finished blocks."""
    return -(-tiles // 32) * 32


def workspace_words(tiles: int, parts: int, rows: int, columns: int) -> int:
    """Return the words of the workspace through which blocks join the sums of so many tiles of rows."""
    return counters(tiles) + tiles * parts * rows * (columns + 2)


def join_lines(problem: OnlineProblem, wide: Accumulated, way: Way, places: Places) -> list[str]:
    """Print the joining and the outputs; `places` takes row=, col= groups and knows the batch."""
    slots = {
        "NAN_OF": ["most - most"],  # NaN where a whole row is masked out, as (-inf) - (-inf) is; else 0
        "ROW_OUTPUTS": _row_outputs(problem, places, "rank == 0" if way == "cluster" else "true"),
        "STORE": _store(problem, wide, places),
    }
    return fill(part("online_split_join.cu"), {way}, slots).splitlines()


def _at_row(problem: OnlineProblem) -> dict[Expr, str]:
    return row_values(problem, "most", {a.node: "(total + nan)" for a in problem.accumulators if not a.axes})


def _row_outputs(problem: OnlineProblem, places: Places, condition: str) -> list[str]:
    """Print the outputs over the rows alone: by one block of those that share the keys."""
    alone = outputs_over(problem, ())
    if not alone:
        return []
    names = places()
    lines, values = Code(problem, names, _at_row(problem), "t", "at").lines([o.expr for o, _ in alone])
    stores = [f"store_one({name} + {offset(o, names)}, {v});" for (o, name), v in zip(alone, values, strict=True)]
    return [
        f"if ({condition})",
        "  for (int i = threadIdx.x; i < ROWS && first_row + i < M; i += THREADS) {",
        "    const int row = first_row + i;",
        "    const float most = most_of(i), nan = most - most;",
        "    float total = 0.f;",
        "    UNROLL for (int p = 0; p < PARTS; ++p) total += total_of(p, i) * rebased(top_of(p, i), most);",
        *(f"    {line}" for line in (*lines, *stores)),
        "  }",
    ]


def _store(problem: OnlineProblem, wide: Accumulated, places: Places) -> list[str]:
    """Print the outputs over rows and values at row `row` and value position `col`."""
    over = outputs_over(problem, wide.axes)
    names = places(col=wide.axes)
    at_hand = _at_row(problem) | {wide.node: "(x + nan)"}
    lines, values = Code(problem, names, at_hand, "t", "at").lines([o.expr for o, _ in over])
    stores = [f"store_one({name} + {offset(o, names)}, {v});" for (o, name), v in zip(over, values, strict=True)]
    return [*lines, *stores]
