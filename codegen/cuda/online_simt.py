"""Dependent folds without tensor cores: every dtype, shape, layout, score and value, on every CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import L2_BYTES_PER_PROCESSOR, arithmetic_ns, processors, traffic_ns, wave_factor
from eqsat.codegen.cuda.emit import assemble, parameters, part, refuse_illegal, stored_type
from eqsat.codegen.cuda.loads import find_loads
from eqsat.codegen.cuda.online_print import Code, box, groups, offset, outputs_over, places, row_values, shifted
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.masks import ALWAYS, NEVER, SURE, kept_share, unmasked, vanishes
from eqsat.codegen.online import Accumulated, OnlineProblem
from eqsat.codegen.problem import Problem
from eqsat.codegen.targets import Target
from eqsat.ir import Expr

DEPTH = 16  # positions of d that are staged at a time
STATIC_SHARED_BYTES = 48 * 1024
_REGISTERS = 160  # of a thread that tiles may take


@dataclass(frozen=True, slots=True)
class OnlineSimtTile(Schedule):
    """A block takes `rows` rows and passes over the keys `keys` at a time; it makes `values` value positions of them."""

    rows: int
    keys: int
    values: int
    threads: int


class OnlineSimtFamily:
    """The kernel of dependent folds that serves every problem on every architecture."""

    name = "online-simt"
    schedules: tuple[type[Schedule], ...] = (OnlineSimtTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, OnlineProblem) or not isinstance(schedule, OnlineSimtTile):
            return f"expected a dependent fold and an OnlineSimtTile; got {problem.family} and {type(schedule).__name__}"
        if problem.statistics:
            return "it takes no statistics of the rows' operand"
        s = schedule
        if s.threads % 32 or not 32 <= s.threads <= 1024 or s.rows < 1 or s.rows % (s.threads // 32):
            return "a block has 32 to 1024 threads, and each of its warps the same number of rows"
        if s.keys < 32 or s.keys % 32 or s.values % 32 or (s.values < 32) is bool(problem.wide):
            return "keys come 32 or a multiple at a time, and so do value positions (0 where there are none)"
        if (taken := _shared_bytes(problem, s)) > STATIC_SHARED_BYTES:
            return f"{taken} bytes of tiles; {STATIC_SHARED_BYTES} are there without asking for more"
        warp_rows = s.rows // (s.threads // 32)
        count = max((len(found) for _, found in groups(problem)), default=0)
        words = warp_rows * (2 * s.keys // 32 + count * s.values // 32 + 2 + len(_narrow(problem)))
        if words * problem.dtype.bytes // 4 > min(_REGISTERS, 65536 // s.threads - 40):
            return f"{words} values of {problem.dtype} for each of {s.threads} threads"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineSimtTile)
        return _emit(problem, schedule)

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time of the bytes or of the arithmetic; where tiles may be masked out, of the outputs alone."""
        assert isinstance(problem, OnlineProblem)
        return fold_bound_ns(problem, rates, problem.dtype.value, _most_blocks(problem))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: products from shared memory, in whole waves of blocks, and exponentials beside them."""
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineSimtTile)
        s = schedule
        batch, m, k, d, n = problem.shape
        chunks = _chunks(problem, s)
        blocks = batch * -(-m // s.rows) * chunks
        warp_rows = s.rows // (s.threads // 32)
        reuse = warp_rows * (s.keys / 32) / (warp_rows + s.keys / 32)
        padded = -(-m // s.rows) * s.rows / m * -(-k // s.keys) * s.keys / k
        products = 2 * batch * m * k * (d * chunks + n) / rates.rate(problem.dtype.value) * padded * (1 + 1 / reuse)
        total = (products + arithmetic_ns(problem.program, rates)) * computed_share(problem, s.rows, s.keys)
        return (
            max(
                total * wave_factor(rates, blocks, max(2048 // s.threads // 4, 1)),
                self.bound_ns(problem, rates),
            )
            + rates.launch_ns
        )

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: every CUDA device."""
        return target.kind == "cuda"


def fold_bound_ns(problem: OnlineProblem, rates: Rates, path: str, blocks: int) -> float:
    """Return the time that memory or the multiply-adds on a path need at the least, with at most so many blocks.

    A block passes over all keys of its rows. Of positions that are masked out nothing is sure to be computed, nor to be read.
    """
    share = kept_share(problem.score)
    busy = min(blocks, processors(rates))
    products = problem.flops / (rates.rate(path) * busy / processors(rates))
    if share == 1:
        brought = sum(i.bytes for i in problem.program.inputs) / (busy * L2_BYTES_PER_PROCESSOR)
        return max(traffic_ns(problem.program, rates), products, brought)
    written = sum(o.bytes for o in problem.program.outputs)
    return max(written / max(rates.read, rates.copy), SURE * (share or 0.0) * products, rates.launch_ns)


def _most_blocks(problem: OnlineProblem) -> int:
    """Return how many blocks there are where each has one row and 32 positions of the values."""
    batch, m, *_ = problem.shape
    return batch * m * (sum(-(-problem.extent(axes) // 32) for axes, _ in groups(problem)) or 1)


def computed_share(problem: OnlineProblem, rows: int, keys: int) -> float:
    """Return the expected share of the tiles of `rows` by `keys` that are computed: those that a mask cuts are, whole."""
    share = kept_share(problem.score) or 1.0
    return min(1.0, share + 0.5 * (rows + keys) / problem.shape[2]) if share < 1 else 1.0


def _narrow(problem: OnlineProblem) -> list[Accumulated]:
    return [a for a in problem.accumulators if not a.axes]


def _chunks(problem: OnlineProblem, s: OnlineSimtTile) -> int:
    return sum(-(-problem.extent(axes) // s.values) for axes, _ in groups(problem)) or 1


def _shared_bytes(problem: OnlineProblem, s: OnlineSimtTile) -> int:
    operands = DEPTH * (s.rows + 1 + s.keys + 1) if problem.contraction else 0
    values = s.keys * s.values if problem.wide else 0
    return problem.dtype.bytes * ((s.rows * s.keys if problem.wide else 0) + max(operands, values))


def _emit(problem: OnlineProblem, s: OnlineSimtTile) -> KernelSource:
    batch, m, k, d, _ = problem.shape
    warps = s.threads // 32
    tiles = -(-m // s.rows)
    staged = problem.contraction is not None or bool(problem.wide)
    values = {
        "ROWS": s.rows, "KEYS": s.keys, "COLUMNS": s.values, "THREADS": s.threads, "RW": s.rows // warps, "KW": s.keys // 32,
        "NW": max(s.values // 32, 1), "DEPTH": DEPTH, "M": m, "KEYS_ALL": k, "D": d, "TILES": tiles, "CHUNKS": _chunks(problem, s),
        "SUMS": max(len(_narrow(problem)), 1), "COUNT": max((len(found) for _, found in groups(problem)), default=1),
        "STAGE": s.rows * s.keys if problem.wide else 0,
    }  # fmt: skip
    flags = {
        *(["contraction"] if problem.contraction else []),
        *(["values"] if problem.wide else []),
        *(["staged"] if staged else []),
    }
    constants = [f"constexpr int {name} = {value};" for name, value in values.items()]
    body = [*constants, f"using T = {stored_type(problem.dtype)};", '#define UNROLL4 _Pragma("unroll 4")', ""]
    return assemble(
        problem.program,
        s,
        "online-simt",
        "\n".join([*body, fill(part("online_simt.cu"), flags, _slots(problem, s))]),
        grid=(batch * tiles * values["CHUNKS"], 1, 1),
        block=s.threads,
        shared_bytes=_shared_bytes(problem, s),
    )


def _slots(problem: OnlineProblem, s: OnlineSimtTile) -> dict[str, Sequence[str]]:
    tile, row_lines, key_lines = box(problem, ("first_row", "last_row"), ("first", "last"))
    nothing = vanishes(problem.score, tile)
    condition, plain = unmasked(problem.score, tile)
    names = places(problem, row=problem.m, key=problem.over)
    c = problem.contraction
    at_hand: dict[Expr, str] = {c.node: "dot"} if c else {}
    slots: dict[str, Sequence[str]] = {
        "PARAMETERS": [parameters(problem.program)],
        "ROW_SPANS": row_lines,
        "KEY_SPANS": key_lines,
        "SKIP": [f"if ({nothing}) continue;"] if nothing not in (ALWAYS, NEVER) else [],
        "SCORE": _score(problem, plain if condition == ALWAYS else problem.score, names, at_hand),
        "PARTS": _parts(problem, names, at_hand | {problem.score: "s"}),
        "SHIFT_NOW": [shifted(problem, "now")],
        "SHIFT_BEFORE": [shifted(problem, "top[i]")],
        "SHIFT_EXACT": [shifted(problem, "top[i]", exact=True)],
        "ACCUMULATE": _accumulate(problem, s),
        "STORE": _store(problem, s),
    }
    if c:
        left, right = _along_d(problem, c.a), _along_d(problem, c.b)
        slots |= {
            "LEFT_ROW": ["i / DEPTH" if left else "i % ROWS"], "LEFT_DEPTH": ["i % DEPTH" if left else "i / ROWS"],
            "RIGHT_KEY": ["i / DEPTH" if right else "i % KEYS"], "RIGHT_DEPTH": ["i % DEPTH" if right else "i / KEYS"],
            "LEFT": _value(problem, c.a, places(problem, row=problem.m, d=problem.d)),
            "RIGHT": _value(problem, c.b, places(problem, key=problem.over, d=problem.d)),
        }  # fmt: skip
    return slots


def _along_d(problem: OnlineProblem, e: Expr) -> bool:
    """Whether the largest load of an operand is contiguous along the last contracted axis."""
    inside = {x.digest for x in e.walk()}
    found = [x for x in find_loads(problem.program).values() if x.expr.digest in inside]
    return bool(found) and max(found, key=lambda x: x.expr.type.elements).step(problem.d[-1]) == 1


def _value(problem: OnlineProblem, e: Expr, names: dict[str, str]) -> list[str]:
    lines, (value,) = Code(problem, names, {}).lines([e])
    return [*lines, f"x = (T)({value});"]


def _score(problem: OnlineProblem, score: Expr, names: dict[str, str], at_hand: dict[Expr, str]) -> list[str]:
    lines, (value,) = Code(problem, names, at_hand).lines([score])
    return [*lines, f"s = (T)({value});"]


def _parts(problem: OnlineProblem, names: dict[str, str], at_hand: dict[Expr, str]) -> list[str]:
    found = _narrow(problem)
    lines, values = Code(problem, names, at_hand).lines([a.value for a in found])
    return [*lines, *(f"part[{n}] += w * (T)({v});" for n, v in enumerate(values))]


def _accumulate(problem: OnlineProblem, s: OnlineSimtTile) -> list[str]:
    """Print how the weighted values of a tile join the accumulators, for the group that this block's chunk belongs to."""
    out: list[str] = []
    start = 0
    for axes, found in groups(problem):
        names = places(problem, key=problem.over, col=axes)
        extent = problem.extent(axes)
        count = -(-extent // s.values)
        lines = []
        for n, a in enumerate(found):
            fetch, (value,) = Code(problem, names, {}).lines([a.value])
            lines += [
                "__syncthreads();",
                "for (int i = threadIdx.x; i < KEYS * COLUMNS; i += THREADS) {",
                f"  const int key = first + i / COLUMNS, col = (chunk - {start}) * COLUMNS + i % COLUMNS;",
                "  T x = 0;",
                f"  if (key < KEYS_ALL && col < {extent}) {{",
                *(f"    {line}" for line in fetch),
                f"    x = (T)({value});",
                "  }",
                "  stage[i] = x;",
                "}",
                "__syncthreads();",
                f"UNROLL for (int i = 0; i < RW; ++i) UNROLL for (int j = 0; j < NW; ++j) acc[{n}][i][j] *= rebase[i];",
                "UNROLL4 for (int c = 0; c < KEYS; ++c)",
                "  UNROLL for (int j = 0; j < NW; ++j) {",
                "    const T x = stage[c * COLUMNS + 32 * j + lane];",
                f"    UNROLL for (int i = 0; i < RW; ++i) acc[{n}][i][j] += weights[i * KEYS + c] * x;",
                "  }",
            ]
        out += [f"if (chunk >= {start} && chunk < {start + count}) {{", *(f"  {line}" for line in lines), "}"]
        start += count
    return out


def _store(problem: OnlineProblem, s: OnlineSimtTile) -> list[str]:
    """Print the outputs of row `row`: those over the rows alone by one lane of the first chunk's block, the others by all lanes."""
    at_row = row_values(problem, "top[i]", {a.node: f"(sum[{n}][i] + nan)" for n, a in enumerate(_narrow(problem))})
    out: list[str] = []
    alone = outputs_over(problem, ())
    if alone:
        names = places(problem, row=problem.m)
        lines, values = Code(problem, names, at_row).lines([o.expr for o, _ in alone])
        stores = [f"store_one({name} + {offset(o, names)}, {v});" for (o, name), v in zip(alone, values, strict=True)]
        out += ["if (chunk == 0 && lane == 0) {", *(f"  {line}" for line in (*lines, *stores)), "}"]
    start = 0
    for axes, found in groups(problem):
        extent = problem.extent(axes)
        count = -(-extent // s.values)
        names = places(problem, row=problem.m, col=axes)
        over = outputs_over(problem, axes)
        at_hand = at_row | {a.node: f"(acc[{n}][i][j] + nan)" for n, a in enumerate(found)}
        lines, values = Code(problem, names, at_hand).lines([o.expr for o, _ in over])
        stores = [f"store_one({name} + {offset(o, names)}, {v});" for (o, name), v in zip(over, values, strict=True)]
        out += [
            f"if (chunk >= {start} && chunk < {start + count})",
            "  UNROLL for (int j = 0; j < NW; ++j) {",
            f"    const int col = (chunk - {start}) * COLUMNS + 32 * j + lane;",
            f"    if (col < {extent}) {{",
            *(f"      {line}" for line in (*lines, *stores)),
            "    }",
            "  }",
        ]
        start += count
    return out
