"""Dependent folds on the tensor cores of sm_90a: scores and weighted values by wgmma, any score, masks decided by tile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import processors
from eqsat.codegen.cuda.emit import (
    assemble,
    output_names,
    parameter_names,
    part,
    refuse_illegal,
    register_type,
    stored_type,
    used_inputs,
)
from eqsat.codegen.cuda.online_operand import Sheet, output_sheet, sheet
from eqsat.codegen.cuda.online_print import Code, box, offset, outputs_over, places, row_values
from eqsat.codegen.cuda.online_simt import computed_share, fold_bound_ns
from eqsat.codegen.cuda.operand import MATRIX_DTYPES, loads_of
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.kernel import Arg, BufferArg, KernelSource, Rates, Schedule, WorkspaceArg
from eqsat.codegen.masks import ALWAYS, NEVER, both, unmasked, vanishes
from eqsat.codegen.online import Accumulated, OnlineProblem, bare
from eqsat.codegen.printer import is_load, strides
from eqsat.codegen.problem import Problem
from eqsat.codegen.targets import Target, parse_target
from eqsat.ir import Expr, Output, apply, rebuild
from eqsat.ops import Kind
from eqsat.types import DType

_TARGET = parse_target("sm_90")
# Registers of producer and consumers where the producer is a warpgroup that hands its own over, by consumer warpgroups.
_REGISTERS = {1: (0, 0), 2: (24, 240), 3: (32, 160), 4: (24, 112)}
_LIVE = {1: 190, 2: 190, 3: 128, 4: 84}  # scores, weights and sums that a thread can hold (found by compiling)
_COLUMNS = {1: 256, 2: 256, 3: 192, 4: 128}  # of one product: registers at the kernel's entry bound the instruction
_BESIDE = {1: 0.035, 2: 0.0155, 3: 0.010, 4: 0.010}  # ns of a row and key beside the products, by consumer warpgroups
_PANEL_BYTES = 8192  # 64 rows of 128 bytes
_BARRIERS = 1024  # behind buffers; what follows stays aligned
_LIMIT = 256.0  # see OnlineWgmmaTile
_OWN_ROWS = ("max(first_row + wg * 64, 0)", "max(first_row + wg * 64 + 63, 0)")  # of a warpgroup
_LOG2_E = math.log2(math.e)
_HUGE = 1e30  # a finite constant beyond it might overflow when it is scaled, so that shifts are taken off first


@dataclass(frozen=True, slots=True)
class OnlineWgmmaTile(Schedule):
    """64 rows for each of `groups` warpgroups, `keys` keys at a time in `stages` buffers.

    `pingpong`: two warpgroups take turns at the matrix units; `heads` batches run side by side.

    Notes
    -----
    A row's weights are relative to a pivot p that is one of its scores, and no weight may pass L = 2^8: while none does, p stays,
    and the maximum M is not even looked for; where one does, p becomes the maximum so far, and the sums before are scaled. So
    p ≤ M ≤ p + ln L, and nothing is lost: with w = e^(s − p), Σ w·v = e^(M − p)·Σ e^(s − M)·v, and where an output does not stay the
    same when all sums of a row are scaled alike (`_pivot_matters`), they are scaled by e^(p − M) at the end, once. A weight's
    rounding is relative; weights are at most L instead of 1, which f16 holds, and sums of 2^31 of them are finite in f32; so the
    relative errors are those of weights relative to M, with fewer roundings from scaling.
    """

    keys: int
    groups: int
    stages: int
    pingpong: int
    heads: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """Operands as matrices, the accumulator with values, and the score without its scale: a constant, and factors of rows."""

    left: Sheet
    right: Sheet
    values: Sheet
    wide: Accumulated
    score: Expr
    factor: float
    row_factors: tuple[Expr, ...]

    @property
    def panels(self) -> tuple[int, int]:
        """Panels of 64 elements that a row of keys, and one of values, takes."""
        return -(-self.left.inner // 64), -(-self.values.inner // 64)

    @property
    def columns(self) -> int:
        """Value positions that the matrix units make: the extent in steps of 8."""
        return -(-self.values.inner // 8) * 8


class OnlineWgmmaFamily:
    """Dependent folds of bf16 and f16 operands on sm_90a."""

    name = "online-wgmma"
    schedules: tuple[type[Schedule], ...] = (OnlineWgmmaTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, OnlineProblem) or not isinstance(schedule, OnlineWgmmaTile):
            return f"expected a dependent fold and an OnlineWgmmaTile; got {problem.family} and {type(schedule).__name__}"
        found = _layout(problem)
        return found if isinstance(found, str) else _schedule_refusal(problem, found, schedule)

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source for sm_90a."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineWgmmaTile)
        layout = _layout(problem)
        assert isinstance(layout, _Layout)
        return assemble(
            problem.program,
            schedule,
            "online-wgmma",
            "\n".join(
                [
                    _wrappers(layout, schedule),
                    part("tile.cuh"),
                    _constants(problem, layout, schedule),
                    _kernel(problem, layout, schedule),
                ]
            ),
            args=_arguments(problem, layout, schedule),
            grid=(min(_items(problem, schedule), _TARGET.processors), 1, 1),
            block=_threads(schedule),
            shared_bytes=_shared(problem, layout, schedule).end,
            workspace_bytes=8,
            requires="sm_90a",
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least; of the outputs alone where tiles may be masked out."""
        assert isinstance(problem, OnlineProblem)
        batch, m, *_ = problem.shape
        return fold_bound_ns(problem, rates, "bf16", batch * -(-m // 64))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: products, what a tile's weights and barriers take beside them, whole tiles of rows on each multiprocessor."""
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineWgmmaTile)
        s = schedule
        _, m, k, d, n = problem.shape
        items, several = _items(problem, s), processors(rates)
        keys = -(-k // s.keys) * s.keys
        wide = -(-d // 16) * 16 + -(-n // 8) * 8
        # of one row and key on a multiprocessor, in ns; the products at the matrix units' own rate, the rest as measured on an H200
        products = 2 * wide / (_TARGET.rates.rate("bf16") / _TARGET.processors)
        beside = _BESIDE[s.groups] + 0.005 * s.pingpong + 0.0025 * (s.stages < 3) + 0.6 / s.keys + 0.0001 * s.keys
        share = computed_share(problem, 64, s.keys)
        item = 64 * s.groups * keys * share * (products + beside) + 800.0
        rounds = math.ceil(items / several) if share == 1 else max(items / several, 1.0) + 0.25
        # the batches whose keys and values all multiprocessors read at a time are to stay in the second-level cache
        sides = min(several, items) / min(s.heads * -(-m // (64 * s.groups)), items)
        # fewer blocks than multiprocessors do not fill memory's latency
        streamed = share * problem.program.bytes / rates.read / min(1.0, items / several)
        return max(rounds * item + 1500.0, streamed, self.bound_ns(problem, rates)) + rates.launch_ns + sides

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: wgmma is Hopper's own."""
        return target.arch == "sm_90a"


def _layout(problem: OnlineProblem) -> _Layout | str:
    c = problem.contraction
    if c is None or len(problem.wide) != 1:
        return "it serves scores that are contracted and one accumulator with value axes"
    wide = problem.wide[0]
    if any(a.value.op != "const" or a.value.attrs[0] != 1 for a in problem.accumulators if not a.axes):
        return "beside it, it sums the weights alone"
    if problem.dtype is not DType.F32 or c.node.dtype.accumulator is not DType.F32:
        return "the matrix units accumulate in f32"
    if problem.floor > -_HUGE:
        return f"a maximum of at least {problem.floor} is not carried"
    if any(o.dtype not in (DType.F32, DType.BF16, DType.F16) for o, _ in outputs_over(problem, wide.axes)):
        return "the outputs with value axes are stored as f32, bf16 or f16"
    names = places(problem)
    found = [
        sheet(problem, c.a, problem.d, problem.m, names),
        sheet(problem, c.b, problem.d, problem.over, names),
        sheet(problem, wide.value, wide.axes, problem.over, names),
    ]
    sheets = [f for f in found if isinstance(f, Sheet)]
    if len(sheets) < 3:
        return next(f for f in found if isinstance(f, str))
    left, right, values = sheets
    if len({f.dtype for f in sheets}) > 1:
        return f"its operands are {left.dtype}, {right.dtype} and {values.dtype}"
    if wide.weight.dtype is not values.dtype:
        return f"its weights are {wide.weight.dtype}; the matrix units would round them to {values.dtype}"
    if left.inner > 256 or values.inner > 256:
        return f"{left.inner} contracted and {values.inner} value positions; the template holds up to 256"
    score, factor, row_factors = _unscaled(problem.score, frozenset(problem.over))
    return _Layout(left, right, values, wide, score, factor, row_factors)


def _schedule_refusal(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> str | None:
    if s.groups not in _REGISTERS or s.keys % 16 or not 16 <= s.keys <= 256 or s.stages < 1 or s.heads < 1:
        return "a tile is 64 rows for each of 1 to 4 warpgroups by 16 to 256 keys in steps of 16"
    if s.pingpong not in (0, 1) or (s.pingpong and s.groups != 2):
        return "ping-pong takes two warpgroups"
    if max(s.keys, layout.columns) > _COLUMNS[s.groups]:
        return f"{s.groups} warpgroups leave registers for products of at most {_COLUMNS[s.groups]} columns"
    live = s.keys // 2 + s.keys // 4 + layout.columns // 2
    if live > _LIVE[s.groups]:
        return f"{live} scores, weights and sums a thread do not fit beside {s.groups} warpgroups"
    batch, m, k, _, _ = problem.shape
    if s.groups > 1 and 64 * (s.groups - 1) >= m:
        return f"{64 * s.groups} rows for {m}"
    if s.keys >= 2 * max(k, 16) or s.heads >= 2 * batch:
        return f"tiles of {s.keys} keys and {s.heads} batches for {k} and {batch}"
    if (taken := _shared(problem, layout, s).end) > _TARGET.shared_bytes:
        return f"{taken} bytes of tiles; a block has {_TARGET.shared_bytes}"
    return None


def _items(problem: OnlineProblem, s: OnlineWgmmaTile) -> int:
    batch, m, *_ = problem.shape
    return batch * -(-m // (64 * s.groups))


def _unscaled(score: Expr, over: frozenset[str]) -> tuple[Expr, float, tuple[Expr, ...]]:
    """Return (u, c, f) with score = c·u·Πf: positive factors that are constant or the row's are left to the exponential's own scale."""
    e = bare(score)
    if e.op in ("mul", "div") and e.args[1].op == "const" and 0 < e.args[1].attrs[0] < math.inf:
        inner, factor, rows = _unscaled(e.args[0], over)
        return inner, factor * e.args[1].attrs[0] if e.op == "mul" else factor / e.args[1].attrs[0], rows
    if e.op == "mul":
        for x, rest in (e.args, e.args[::-1]):
            if x.op == "const" and 0 < x.attrs[0] < math.inf:
                inner, factor, rows = _unscaled(rest, over)
                return inner, factor * x.attrs[0], rows
            if not x.axes & over and bare(x).op in ("rsqrt", "exp"):
                inner, factor, rows = _unscaled(rest, over)
                return inner, factor, (*rows, x)
    if e.op == "where" and e.args[2].op == "const" and e.args[2].attrs[0] == -math.inf:
        inner, factor, rows = _unscaled(e.args[1], over)
        return apply("where", e.args[0], inner, e.args[2]), factor, rows
    return e, 1.0, ()


def _threads(s: OnlineWgmmaTile) -> int:
    return s.groups * 128 + (128 if _REGISTERS[s.groups][0] else 32)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What lies in shared memory, in this order: buffers of rows, staging of the outputs, keys, values.

    The barriers of a buffer lie behind it. `staging` counts buffers of a panel for each warpgroup.
    """

    layout: _Layout
    schedule: OnlineWgmmaTile
    rows: int
    staging: int

    @property
    def staging_at(self) -> int:
        """Where the staging begins."""
        return self.rows * self.schedule.groups * self.layout.panels[0] * _PANEL_BYTES + _BARRIERS

    @property
    def keys_at(self) -> int:
        """Where the keys begin."""
        return self.staging_at + self.schedule.groups * self.staging * _PANEL_BYTES

    @property
    def values_at(self) -> int:
        """Where the values begin."""
        return self.keys_at + self._tiles(0) + _BARRIERS

    @property
    def end(self) -> int:
        """Bytes of a block: tiles, barriers, and what aligning the first tile may take."""
        return 1024 + self.values_at + self._tiles(1) + 16 * self.schedule.stages

    def _tiles(self, operand: int) -> int:
        return self.schedule.stages * self.schedule.keys * 128 * self.layout.panels[operand]


def _shared(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> _Shared:
    """Return the best use of shared memory that fits: rows loaded ahead, and outputs that leave by TMA."""
    several = _items(problem, s) > _TARGET.processors
    stores = bool(_output_sheets(problem, layout))
    options = [_Shared(layout, s, r, t) for r in ((2, 1) if several else (1,)) for t in ((2, 1) if stores else (0,))]
    least = _Shared(layout, s, 1, 0)
    return next((x for x in options if x.end <= _TARGET.shared_bytes), least)


def _wrappers(layout: _Layout, s: OnlineWgmmaTile) -> str:
    """Print the two wgmma instructions in use: both operands in shared memory, and the weights in registers."""
    kind = layout.left.dtype.value

    def text(name: str, n: int, a: str, inputs: str, first: int, tail: str) -> str:
        r = n // 2
        regs = ", ".join(f"%{i}" for i in range(r))
        outs = ", ".join(f'"+f"(d[{i}])' for i in range(r))
        count = r + first
        operand = "{" + ", ".join(f"%{r + i}" for i in range(4)) + "}" if first == 5 else f"%{r}"
        return (
            f"DEV void {name}(float (&d)[{r}], {a}) {{\n"
            f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{count}, 0; wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} "\n'
            f'    "{{{regs}}}, {operand}, %{count - 1}, p, 1, 1, {tail}; }}"\n    : {outs}\n    : {inputs});\n}}\n'
        )

    scores = text("wgmma_scores", s.keys, "u64 a, u64 b, int accumulate", '"l"(a), "l"(b), "r"(accumulate)', 2, "0, 0")
    weights = '"r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(1)'
    return scores + text("wgmma_values", layout.columns, "u32 a0, u32 a1, u32 a2, u32 a3, u64 b", weights, 5, "1")


def _constants(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> str:
    batch, m, k, d, _ = problem.shape
    producer, consumer = _REGISTERS[s.groups]
    shared = _shared(problem, layout, s)
    values = {
        "BATCH": batch, "M": m, "KEYS_ALL": k, "KEYS": s.keys, "GROUPS": s.groups, "STAGES": s.stages, "HEADS": s.heads,
        "DP": layout.panels[0], "VP": layout.panels[1], "NV": layout.columns, "STEPS": -(-d // 16), "THREADS": _threads(s),
        "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer, "KEYS_AT": shared.keys_at, "VALUES_AT": shared.values_at,
        "ROW_STAGES": shared.rows, "BUFFERS": shared.staging, "STAGING_AT": shared.staging_at,
    }  # fmt: skip
    lines = [f"constexpr int {name} = {value};" for name, value in values.items()]
    scale = layout.factor * _LOG2_E
    return "\n".join([*lines, f"constexpr float SCALE = {scale!r}f, FACTOR = {layout.factor!r}f, LIMIT = {_LIMIT!r}f;"])


def _kernel(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> str:
    tile, row_lines, key_lines = box(problem, ("max(first_row, 0)", "first_row + BM - 1"), ("first", "last"))
    nothing = vanishes(layout.score, tile)
    own, own_row_lines, _ = box(problem, _OWN_ROWS, ("first", "last"))
    own_nothing = vanishes(layout.score, own)
    huge = any(e.op == "const" and _HUGE <= abs(e.attrs[0]) < math.inf for e in layout.score.walk())
    shared = _shared(problem, layout, s)
    flags = {
        "huge" if huge else "moderate",
        *(["pingpong"] if s.pingpong else []),
        *(["budget"] if _REGISTERS[s.groups][0] else []),
        *(["staged"] if shared.staging else []),
        "tops" if _pivot_matters(problem) else "free",
    }
    slots = {
        "PARAMETERS": [_parameters(problem, layout, shared)],
        "ROW_SPANS": row_lines,
        "KEY_SPANS": key_lines,
        "SKIP": [nothing if nothing not in (ALWAYS, NEVER) else "false"],
        "OWN_ROW_SPANS": own_row_lines,
        "OWN_SKIP": [own_nothing if own_nothing not in (ALWAYS, NEVER) else "false"],
        "BATCH_Q": [layout.left.number],
        "BATCH_K": [layout.right.number],
        "BATCH_V": [layout.values.number],
        "PACK": [f"pack_{layout.left.dtype}"],
        "FINISH": _finish(problem, layout, s),
        "NAN_OF": ["most - most" if problem.floor == -math.inf else "0.f"],
        "SCALE_OF_ROW": ["scale[half]" if layout.row_factors else "SCALE"],
        "FACTOR_OF_ROW": [f"(scale[half] * {1 / _LOG2_E!r}f)" if layout.row_factors else "FACTOR"],
        **_score_parts(problem, layout),
        "STORE_ROW": _store_rows(problem),
        **_store_values(problem, layout, shared),
    }
    return fill(part("online_wgmma.cu"), flags, slots)


def _pivot_matters(problem: OnlineProblem) -> bool:
    """Whether an output would change if all accumulators of a row were scaled alike: by one that uses the maximum, or is no ratio."""
    degrees: dict[Expr, int | None] = {a.node: 1 for a in problem.accumulators}

    def degree(e: Expr) -> int | None:
        if e not in degrees:
            degrees[e] = None if e.row.kind is Kind.REDUCE else _degree(e, [degree(a) for a in e.args])
        return degrees[e]

    return any(degree(o.expr) != 0 for o in problem.program.outputs)


def _degree(e: Expr, args: Sequence[int | None]) -> int | None:
    """Return by which power of a common factor of the accumulators a value grows; None if by none."""
    known = [d for d in args if d is not None]
    if len(known) < len(args):
        return None
    match e.op:
        case "mul":
            return sum(known)
        case "div":
            return known[0] - known[1]
        case "recip":
            return -known[0]
        case "neg":
            return known[0]
        case "cast" if e.dtype in (DType.F32, DType.BF16):
            return known[0]
        case "add" | "sub" if known[0] == known[1]:
            return known[0]
        case _:
            return 0 if not any(known) else None


def _finish(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> list[str]:
    """Print what turns the products `s` into scores: nothing or little in a tile that no mask cuts, all of it elsewhere."""
    tile, row_lines, key_lines = box(problem, _OWN_ROWS, ("first", "last"))
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


def _scores(problem: OnlineProblem, layout: _Layout, score: Expr, *, whole: bool) -> list[str]:
    """Print the score of each element; `whole`: all keys of the tile exist. What varies with the row alone comes first."""
    c = problem.contraction
    assert c is not None
    if whole and bare(score) == c.node:
        return []
    names = places(problem, row=problem.m, key=problem.over)
    kept = {e: f"score_part{n}[half]" for n, e in enumerate(_kept_parts(problem, layout))}
    apart = [e for e in _row_parts(score, frozenset(problem.over), c.node) if e not in kept]
    before, values = Code(problem, names, kept, "r", "at").lines(apart)
    named = [f"const auto row_part{n} = {v};" for n, v in enumerate(values)]
    at_hand = kept | {e: f"row_part{n}" for n, e in enumerate(apart)} | {c.node: "dot"}
    inside, (value,) = Code(problem, names, at_hand, "t", "at").lines([score])
    key = "first + 8 * j + 2 * (lane % 4) + e"
    return [
        "UNROLL for (int half = 0; half < 2; ++half) {",
        "  const int row = max(row0 + 8 * half, 0);",
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


def _kept_parts(problem: OnlineProblem, layout: _Layout) -> list[Expr]:
    """Return the parts of a score that are loaded or made of loads, once for a row, and kept."""
    c = problem.contraction
    assert c is not None
    parts = _row_parts(layout.score, frozenset(problem.over), c.node)
    return [e for e in parts if set(problem.m) & e.axes and any(is_load(x) for x in e.walk())]


def _score_parts(problem: OnlineProblem, layout: _Layout) -> dict[str, list[str]]:
    """Print what a row's scores need beside the products: parts that do not vary with the keys, and the row's scale."""
    parts = _kept_parts(problem, layout)
    lines, values = Code(problem, places(problem, row=problem.m), {}, "w", "at").lines([*parts, *layout.row_factors])
    named = [f"score_part{n}[half] = {v};" for n, v in enumerate(values[: len(parts)])]
    factors = values[len(parts) :]
    return {
        "SCORE_PARTS": [
            *(f"{register_type(e.dtype)} score_part{n}[2];" for n, e in enumerate(parts)),
            *(["float scale[2];"] if factors else []),
        ],
        "SCORE_PART_VALUES": [*lines, *named, *([f"scale[half] = {' * '.join(['SCALE', *factors])};"] if factors else [])],
    }


def _row_parts(score: Expr, over: frozenset[str], dot: Expr) -> list[Expr]:
    """Return the largest parts of a score that load or compute something and do not vary along the keys."""
    out: dict[Expr, None] = {}
    stack, seen = [score], set()
    while stack:
        e = stack.pop()
        if e in seen or e == dot or e.op in ("const", "iota"):
            continue
        seen.add(e)
        if e.axes & over:
            stack.extend(e.args if e.op not in ("read", "access") else ())
        else:
            out[e] = None
    return list(out)


def _at_row(problem: OnlineProblem) -> dict[Expr, str]:
    total = "(total + nothing)" if _pivot_matters(problem) else "total"
    return row_values(problem, "most", {a.node: total for a in problem.accumulators if not a.axes})


def _store_rows(problem: OnlineProblem) -> list[str]:
    """Print the outputs over the rows alone: one lane of four stores them."""
    alone = outputs_over(problem, ())
    if not alone:
        return []
    names = places(problem, row=problem.m)
    lines, values = Code(problem, names, _at_row(problem), "t", "at").lines([o.expr for o, _ in alone])
    stores = [f"store_one({name} + {offset(o, names)}, {v});" for (o, name), v in zip(alone, values, strict=True)]
    return ["if (inside && lane % 4 == 0) {", *(f"  {line}" for line in (*lines, *stores)), "}"]


def _store_values(problem: OnlineProblem, layout: _Layout, shared: _Shared) -> dict[str, list[str]]:
    """Print the outputs over rows and values: what varies with the row alone, then each output by TMA or in pairs of neighbours."""
    axes = frozenset(layout.wide.axes)
    over = [(o, name, _by_reciprocals(o, axes)) for o, name in outputs_over(problem, layout.wide.axes)]
    parts = list(dict.fromkeys(p for _, _, e in over for p in _row_parts(e, axes, layout.wide.node)))
    lines, values = Code(problem, places(problem, row=problem.m), _at_row(problem), "u", "at").lines(parts)
    at_hand = {e: f"part{n}[half]" for n, e in enumerate(parts)} | {layout.wide.node: "o[i + e]"}
    printer = _OutputPrinter(problem, layout, at_hand)
    sheets = _stored_sheets(problem, layout, shared)
    direct = [x for x in over if x[1] not in sheets]
    return {
        "PARTS": [f"{register_type(e.dtype)} part{n}[2];" for n, e in enumerate(parts)],
        "PART_VALUES": [*lines, *(f"part{n}[half] = {v};" for n, v in enumerate(values))],
        "STORE_VALUES": [
            *(line for o, name, e in over if name in sheets for line in printer.staged(o, name, e, sheets[name])),
            *(printer.direct(direct) if direct else []),
        ],
    }


def _by_reciprocals(o: Output, axes: frozenset[str]) -> Expr:
    """Return an output's value with products by reciprocals of row values for divisions, where it is stored in 16 bits."""
    if o.dtype not in MATRIX_DTYPES:
        return o.expr
    memo: dict[Expr, Expr] = {}
    for e in o.expr.walk():
        if e.row.kind is Kind.REDUCE:
            memo[e] = e
            continue
        args = tuple(memo[a] for a in e.args)
        made = rebuild(e, args) if args else e
        if e.op == "div" and e.args[1].op != "const" and not e.args[1].axes & axes and all(a.dtype.is_float for a in args):
            product = apply("mul", args[0], apply("recip", args[1]))
            made = product if product.dtype is e.dtype else made
        memo[e] = made
    return memo[o.expr]


@dataclass(frozen=True, slots=True)
class _OutputPrinter:
    """Prints outputs over rows and values; `at_hand`: the C of the accumulator and of row values, of element i + e of half a tile."""

    problem: OnlineProblem
    layout: _Layout
    at_hand: Mapping[Expr, str]

    def _pair(self, wanted: Sequence[tuple[str, Expr]]) -> list[str]:
        """Print the loop that makes two neighbours of each output in an array."""
        n = self.layout.values.inner
        names = places(self.problem, row=self.problem.m, col=self.layout.wide.axes)
        lines, values = Code(self.problem, names, self.at_hand, "t", "at").lines([e for _, e in wanted])
        return [
            "UNROLL for (int e = 0; e < 2; ++e) {",
            f"  const int col = {'column + e' if n % 8 == 0 else f'min(column + e, {n - 1})'};",
            *(f"  {line}" for line in lines),
            *(f"  {name}[e] = (float)({v});" for (name, _), v in zip(wanted, values, strict=True)),
            "}",
        ]

    def staged(self, o: Output, name: str, wanted: Expr, to: Sheet) -> list[str]:
        """Print an output that leaves through shared memory and TMA; rows before the first are computed, and not stored."""
        where = f"&map_{name}, staging, pass, first_row + wg * 64, 0, {to.number}"
        return [
            f"store_tile<{stored_type(o.dtype)}, NV, BUFFERS, 0>({where}, [&](int i, int half, int column, float (&y)[2]) {{",
            "  const int row = max(row0 + 8 * half, 0);",
            *(f"  {line}" for line in self._pair([("y", wanted)])),
            "});",
        ]

    def direct(self, over: Sequence[tuple[Output, str, Expr]]) -> list[str]:
        """Print outputs that are stored from registers: two neighbours of a row at once where they are one aligned piece."""
        problem, axes, n = self.problem, self.layout.wide.axes, self.layout.values.inner
        inside = self._pair([(f"y{i}", e) for i, (_, _, e) in enumerate(over)])
        for i, (o, name, _) in enumerate(over):
            first, second = (
                offset(o, {**places(problem, row=problem.m, col=axes), **_moved(problem, axes, x)})
                for x in ("column", "(column + 1)")
            )
            if _pairs(problem, o, axes):
                both_of = f"Pack<{stored_type(o.dtype)}>::from<2>(y{i})"
                inside.append(f"if (column < {n}) store_raw<{2 * o.dtype.bytes}, PLAIN>({name} + {first}, {both_of});")
            else:
                inside += [
                    f"if (column < {n}) store_one({name} + {first}, y{i}[0]);",
                    f"if (column + 1 < {n}) store_one({name} + {second}, y{i}[1]);",
                ]
        return [
            "UNROLL for (int half = 0; half < 2; ++half) {",
            "  const int row = row0 + 8 * half;",
            "  if (row >= 0)",
            "    UNROLL for (int j = 0; j < NV / 8; ++j) {",
            "      const int i = 4 * j + 2 * half, column = 8 * j + 2 * (lane % 4);",
            *(f"      float y{k}[2];" for k in range(len(over))),
            *(f"      {line}" for line in inside),
            "    }",
            "}",
        ]


def _output_sheets(problem: OnlineProblem, layout: _Layout) -> dict[str, Sheet]:
    """Return, by C parameter, how TMA stores the outputs that it can store: in 16 bits, their columns in whole steps of 16."""
    if layout.columns % 16:
        return {}
    names = places(problem)
    found = {name: output_sheet(problem, o, layout.wide.axes, names) for o, name in outputs_over(problem, layout.wide.axes)}
    return {name: s for name, s in found.items() if s is not None}


def _stored_sheets(problem: OnlineProblem, layout: _Layout, shared: _Shared) -> dict[str, Sheet]:
    return _output_sheets(problem, layout) if shared.staging else {}


def _moved(problem: OnlineProblem, axes: tuple[str, ...], column: str) -> Mapping[str, str]:
    found = places(problem, **{column: axes})
    return {a: found[a] for a in axes}


def _pairs(problem: OnlineProblem, o: Output, axes: tuple[str, ...]) -> bool:
    """Whether two neighbouring values, the first at an even place, are one aligned piece of the output."""
    ext = problem.program.extents
    steps = {a: n for a, n in zip(o.axes, strides(o.shape), strict=True) if a and ext[a] > 1}
    real = [a for a in axes if ext[a] > 1]
    if not real or ext[real[-1]] % 2 or steps[real[-1]] != 1 or o.dtype not in (DType.F32, DType.BF16, DType.F16):
        return False
    return all(n % 2 == 0 for a, n in steps.items() if a != real[-1])


def _pointers(problem: OnlineProblem, layout: _Layout) -> list[str]:
    """Return the inputs that are passed as pointers: what scores and outputs read beside the operands."""
    c = problem.contraction
    assert c is not None
    known: dict[Expr, str] = {a.node: "" for a in problem.accumulators} | {problem.pivot: ""}
    known |= row_values(problem, "", {})
    found = [
        *loads_of([layout.score, *layout.row_factors], {c.node: ""}),
        *loads_of([o.expr for o in problem.program.outputs], known),
    ]
    names = {(e.args[0] if e.op == "access" else e).attrs[0] for e in found}
    return [i.name for i in used_inputs(problem.program) if i.name in names]


def _parameters(problem: OnlineProblem, layout: _Layout, shared: _Shared) -> str:
    names, inputs = parameter_names(problem.program), {i.name: i for i in problem.program.inputs}
    sheets = _stored_sheets(problem, layout, shared)
    items = [f"TMAP map_{x}" for x in ("q", "k", "v", *sheets)]
    items += [f"const {stored_type(inputs[p].dtype)}* __restrict__ {names[p]}" for p in _pointers(problem, layout)]
    outs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    items += [f"{stored_type(o.dtype)}* __restrict__ {name}" for o, name in outs if name not in sheets]
    return ", ".join([*items, "u32* __restrict__ work"])


def _arguments(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> tuple[Arg, ...]:
    sheets = _stored_sheets(problem, layout, _shared(problem, layout, s))
    panel = next(p for p in (64, 32, 16, 8) if layout.columns % p == 0)  # of `store_tile`
    maps: list[Arg] = [layout.left.map(64), layout.right.map(s.keys), layout.values.map(s.keys)]
    maps += [sheet.map(64, panel) for sheet in sheets.values()]
    outs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    buffers = [*_pointers(problem, layout), *(o.name for o, name in outs if name not in sheets)]
    return (*maps, *(BufferArg(name) for name in buffers), WorkspaceArg(zeroed=True))
