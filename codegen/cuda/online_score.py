"""Printing the scores of a dependent fold on the matrix units: masks by tile, what a row adds, statistics of the rows."""

from __future__ import annotations

from eqsat.codegen.cuda.emit import register_type
from eqsat.codegen.cuda.online_layout import Layout, OnlineWgmmaTile
from eqsat.codegen.cuda.online_print import Code, box, places
from eqsat.codegen.cuda.online_store import row_parts
from eqsat.codegen.masks import ALWAYS, NEVER, both, unmasked
from eqsat.codegen.online import OnlineProblem, bare
from eqsat.codegen.printer import is_load
from eqsat.codegen.problem import nest
from eqsat.ir import Expr

OWN_ROWS = ("max(first_row + wg * 64, 0)", "max(min(first_row + wg * 64 + 63, M - 1), 0)")  # of a warpgroup


def finish_lines(problem: OnlineProblem, layout: Layout, s: OnlineWgmmaTile) -> list[str]:
    """Print what turns the products `s` into scores: nothing or little in a tile that no mask cuts, all of it elsewhere."""
    tile, row_lines, key_lines = box(problem, OWN_ROWS, ("first", "last"))
    condition, plain = unmasked(layout.score, tile)
    inside = ALWAYS if problem.shape[2] % s.keys == 0 else "first + KEYS <= KEYS_ALL"
    condition = both([inside, condition]) if condition != NEVER else inside
    easy = _scores(problem, layout, plain if unmasked(layout.score, tile)[0] != NEVER else layout.score, whole=True)
    if condition == ALWAYS:
        return easy
    hard = _scores(problem, layout, layout.score, whole=inside == ALWAYS)
    if not easy:
        return [
            "{",
            *(f"  {x}" for x in (*row_lines, *key_lines)),
            f"  if (!({condition})) {{",
            *(f"    {x}" for x in hard),
            "  }",
            "}",
        ]
    return [
        "{",
        *(f"  {x}" for x in (*row_lines, *key_lines)),
        f"  if ({condition}) {{",
        *(f"    {x}" for x in easy),
        "  } else {",
        *(f"    {x}" for x in hard),
        "  }",
        "}",
    ]


def _scores(problem: OnlineProblem, layout: Layout, score: Expr, *, whole: bool) -> list[str]:
    """Print the score of each element; `whole`: all keys of the tile exist. What varies with the row alone comes first."""
    c = problem.contraction
    assert c is not None
    if whole and bare(score) == c.node:
        return []
    names = places(problem, row=problem.m, key=problem.over)
    kept = {e: f"score_part{n}[half]" for n, e in enumerate(_kept_parts(problem, layout))}
    apart = [e for e in row_parts(score, frozenset(problem.over), c.node) if e not in kept]
    before, values = Code(problem, names, kept, "r", "at").lines(apart)
    named = [f"const auto row_part{n} = {v};" for n, v in enumerate(values)]
    at_hand = kept | {e: f"row_part{n}" for n, e in enumerate(apart)} | {c.node: "dot"}
    inside, (value,) = Code(problem, names, at_hand, "t", "at").lines([score])
    key = "first + 8 * j + 2 * (lane % 4) + e"
    return [
        "UNROLL for (int half = 0; half < 2; ++half) {",
        "  const int row = min(max(row0 + 8 * half, 0), M - 1);",
        *(f"  {line}" for line in (*before, *named)),
        "  UNROLL for (int j = 0; j < KEYS / 8; ++j)",
        "    UNROLL for (int e = 0; e < 2; ++e) {",
        f"      const int key = {key if whole else f'min({key}, KEYS_ALL - 1)'};",
        "      const float dot = s[4 * j + 2 * half + e];",
        *(f"      {line}" for line in inside),
        f"      s[4 * j + 2 * half + e] = {value if whole else f'{key} < KEYS_ALL ? (float)({value}) : -EQ_INF'};",
        "    }",
        "}",
    ]


def _kept_parts(problem: OnlineProblem, layout: Layout) -> list[Expr]:
    """Return the parts of a score that are loaded or made of loads, once for a row, and kept."""
    c = problem.contraction
    assert c is not None
    parts = row_parts(layout.score, frozenset(problem.over), c.node)
    return [e for e in parts if set(problem.m) & e.axes and any(is_load(x) for x in e.walk())]


def score_parts(problem: OnlineProblem, layout: Layout) -> dict[str, list[str]]:
    """Print what a row's scores need beside the products: parts that do not vary with the keys, and the row's scale."""
    parts = _kept_parts(problem, layout)
    at_hand = {e: f"stat[{n}][half]" for n, e in enumerate(problem.statistics)}
    lines, values = Code(problem, places(problem, row=problem.m), at_hand, "w", "at").lines([*parts, *layout.row_factors])
    named = [f"score_part{n}[half] = {v};" for n, v in enumerate(values[: len(parts)])]
    factors = values[len(parts) :]
    return {
        "SCORE_PARTS": [
            *(f"{register_type(e.dtype)} score_part{n}[2];" for n, e in enumerate(parts)),
            *(["float scale[2];"] if factors else []),
        ],
        "SCORE_PART_VALUES": [*lines, *named, *([f"scale[half] = {' * '.join(['SCALE', *factors])};"] if factors else [])],
    }


def statistics_parts(problem: OnlineProblem) -> dict[str, list[str]]:
    """Print the statistics of the rows in shared memory: two threads gather each row's elements `x`."""
    c = problem.contraction
    assert c is not None
    combine = [e.op.capitalize() for e in problem.statistics]
    body = Code(problem, {}, {bare(c.a): "x"}, "g")
    lines, values = body.lines([nest(e)[1] for e in problem.statistics])
    return {
        "NEUTRAL": [f"gathered[{n}] = {op}::neutral();" for n, op in enumerate(combine)],
        "GATHER": [
            *lines,
            *(f"gathered[{n}] = {op}::of(gathered[{n}], {v});" for n, (op, v) in enumerate(zip(combine, values, strict=True))),
        ],
        "TOTAL": [f"row_total<{op}>(gathered[{n}], stat[{n}]);" for n, op in enumerate(combine)],
    }
