"""Dependent folds on the tensor cores of sm_90a: scores and weighted values by wgmma, any score, masks decided by tile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import processors
from eqsat.codegen.cuda.emit import assemble, output_names, parameter_names, part, refuse_illegal, stored_type, used_inputs
from eqsat.codegen.cuda.online_operand import Sheet, sheet
from eqsat.codegen.cuda.online_print import Code, box, offset, outputs_over, places, row_values
from eqsat.codegen.cuda.online_simt import computed_share, fold_bound_ns
from eqsat.codegen.cuda.operand import loads_of
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.cuda.wgmma import SHARED_BYTES, SHARED_RESERVED
from eqsat.codegen.kernel import Arg, BufferArg, KernelSource, Rates, Schedule
from eqsat.codegen.masks import ALWAYS, NEVER, both, unmasked, vanishes
from eqsat.codegen.online import Accumulated, OnlineProblem, bare
from eqsat.codegen.printer import strides
from eqsat.codegen.problem import Problem
from eqsat.codegen.targets import Target
from eqsat.ir import Expr, Output, apply
from eqsat.types import DType

_REGISTERS = {1: (0, 0), 2: (24, 240), 3: (32, 160)}  # of producer and consumers, by the number of consumer warpgroups
_LIVE = {1: 200, 2: 200, 3: 128}  # scores, weights and sums that a thread can hold (found by compiling)
_LOG2_E = math.log2(math.e)
_HUGE = 1e30  # a finite constant beyond it might overflow when it is scaled, so that shifts are taken off first


@dataclass(frozen=True, slots=True)
class OnlineWgmmaTile(Schedule):
    """64 rows for each of `groups` warpgroups, `keys` keys at a time in `stages` buffers.

    `pingpong`: two warpgroups take turns at the matrix units; `heads` batches run side by side.
    """

    keys: int
    groups: int
    stages: int
    pingpong: int
    heads: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """Operands as matrices, the accumulator with values, and the score without its scale."""

    left: Sheet
    right: Sheet
    values: Sheet
    wide: Accumulated
    score: Expr
    factor: float

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
        batch, m, _, _, _ = problem.shape
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
            grid=(batch * -(-m // (64 * schedule.groups)), 1, 1),
            block=_threads(schedule),
            shared_bytes=_shared_bytes(layout, schedule),
            requires="sm_90a",
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least; of the outputs alone where tiles may be masked out."""
        assert isinstance(problem, OnlineProblem)
        batch, m, *_ = problem.shape
        return fold_bound_ns(problem, rates, "bf16", batch * -(-m // 64))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: products, exponentials beside them, whole waves of blocks, and the pass of a tile of rows."""
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineWgmmaTile)
        s = schedule
        batch, m, k, d, n = problem.shape
        blocks = batch * -(-m // (64 * s.groups))
        waves = math.ceil(blocks / processors(rates))
        # of one block on its multiprocessor: padded products at 70 to 75 % of the rate, 4 exponentials of a clock beside them
        keys = -(-k // s.keys) * s.keys
        wide = -(-d // 16) * 16 + -(-n // 8) * 8
        products = 2 * 64 * s.groups * keys * wide / (rates.rate("bf16") / processors(rates)) * (1.35 + 8.0 / s.keys)
        exponentials = 64 * s.groups * keys / 7.0 / 4.0
        # one warpgroup alone, or two without turns, wait for their own exponentials
        beside = {1: 0.9, 2: 0.5 - 0.1 * s.pingpong, 3: 0.45}[s.groups]
        share = computed_share(problem, 64 * s.groups, s.keys)
        tiles = waves * (share * (products + beside * exponentials) + 1500.0 + 300.0 * (s.stages < 2))
        # fewer blocks than multiprocessors do not fill memory's latency
        streamed = share * problem.program.bytes / rates.read / min(1.0, blocks / processors(rates))
        return max(tiles, streamed, self.bound_ns(problem, rates)) + rates.launch_ns - 0.5 * (s.heads > 1)

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
    score, factor = _unscaled(problem.score)
    return _Layout(left, right, values, wide, score, factor)


def _schedule_refusal(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> str | None:
    if s.groups not in _REGISTERS or s.keys % 16 or not 16 <= s.keys <= 256 or s.stages < 1 or s.heads < 1:
        return "a tile is 64 rows for each of 1 to 3 warpgroups by 16 to 256 keys in steps of 16"
    if s.pingpong not in (0, 1) or (s.pingpong and s.groups != 2):
        return "ping-pong takes two warpgroups"
    if s.groups == 3 and max(s.keys, layout.columns) > 192:
        return "three warpgroups leave registers for products of at most 192 columns"
    live = s.keys // 2 + s.keys // 4 + layout.columns // 2
    if live > _LIVE[s.groups]:
        return f"{live} scores, weights and sums a thread do not fit beside {s.groups} warpgroups"
    batch, m, k, _, _ = problem.shape
    if s.groups > 1 and 64 * (s.groups - 1) >= m:
        return f"{64 * s.groups} rows for {m}"
    if s.keys >= 2 * max(k, 16) or s.heads >= 2 * batch:
        return f"tiles of {s.keys} keys and {s.heads} batches for {k} and {batch}"
    if (taken := _shared_bytes(layout, s)) > SHARED_BYTES - SHARED_RESERVED:
        return f"{taken} bytes of tiles; a block has {SHARED_BYTES - SHARED_RESERVED}"
    return None


def _unscaled(score: Expr) -> tuple[Expr, float]:
    """Return (u, c) with score = c·u and c > 0: a constant factor is left to the exponential's own scale."""
    e = bare(score)
    if e.op in ("mul", "div") and e.args[1].op == "const" and 0 < e.args[1].attrs[0] < math.inf:
        inner, factor = _unscaled(e.args[0])
        return inner, factor * e.args[1].attrs[0] if e.op == "mul" else factor / e.args[1].attrs[0]
    if e.op == "mul" and e.args[0].op == "const" and 0 < e.args[0].attrs[0] < math.inf:
        inner, factor = _unscaled(e.args[1])
        return inner, factor * e.args[0].attrs[0]
    if e.op == "where" and e.args[2].op == "const" and e.args[2].attrs[0] == -math.inf:
        inner, factor = _unscaled(e.args[1])
        return apply("where", e.args[0], inner, e.args[2]), factor
    return e, 1.0


def _threads(s: OnlineWgmmaTile) -> int:
    return s.groups * 128 + (128 if _REGISTERS[s.groups][0] else 32)


def _shared_bytes(layout: _Layout, s: OnlineWgmmaTile) -> int:
    keys, values = layout.panels
    return 1024 + s.groups * 64 * keys * 128 + s.stages * s.keys * 128 * (keys + values) + 1024 + 16 * s.stages + 8


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
    values = {
        "BATCH": batch, "M": m, "KEYS_ALL": k, "KEYS": s.keys, "GROUPS": s.groups, "STAGES": s.stages, "HEADS": s.heads,
        "DP": layout.panels[0], "VP": layout.panels[1], "NV": layout.columns, "STEPS": -(-d // 16), "THREADS": _threads(s),
        "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer,
    }  # fmt: skip
    lines = [f"constexpr int {name} = {value};" for name, value in values.items()]
    scale = layout.factor * _LOG2_E
    return "\n".join([*lines, f"constexpr float SCALE = {scale!r}f, FACTOR = {layout.factor!r}f;"])


def _kernel(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> str:
    tile, row_lines, key_lines = box(problem, ("first_row", "last_row"), ("first", "last"))
    nothing = vanishes(layout.score, tile)
    huge = any(e.op == "const" and _HUGE <= abs(e.attrs[0]) < math.inf for e in layout.score.walk())
    flags = {*(["pingpong"] if s.pingpong else []), *(["budget"] if s.groups > 1 else []), "huge" if huge else "moderate"}
    slots = {
        "PARAMETERS": [_parameters(problem, layout)],
        "ROW_SPANS": row_lines,
        "KEY_SPANS": key_lines,
        "SKIP": [nothing if nothing not in (ALWAYS, NEVER) else "false"],
        "BATCH_Q": [layout.left.number],
        "BATCH_K": [layout.right.number],
        "BATCH_V": [layout.values.number],
        "PACK": [f"pack_{layout.left.dtype}"],
        "FINISH": _finish(problem, layout, s),
        "NAN_OF": ["most - most" if problem.floor == -math.inf else "0.f"],
        "STORE_ROW": _store_rows(problem),
        "STORE_VALUES": _store_values(problem, layout),
    }
    return fill(part("online_wgmma.cu"), flags, slots)


def _finish(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> list[str]:
    """Print what turns the products `s` into scores: nothing or little in a tile that no mask cuts, all of it elsewhere."""
    rows = ("min(first_row + wg * 64, M - 1)", "min(first_row + wg * 64 + 63, M - 1)")
    tile, row_lines, key_lines = box(problem, rows, ("first", "last"))
    condition, plain = unmasked(layout.score, tile)
    inside = ALWAYS if problem.shape[2] % s.keys == 0 else "first + KEYS <= KEYS_ALL"
    condition = both([inside, condition]) if condition != NEVER else inside
    easy = _scores(problem, plain if unmasked(layout.score, tile)[0] != NEVER else layout.score, whole=True)
    if condition == ALWAYS:
        return easy
    hard = _scores(problem, layout.score, whole=inside == ALWAYS)
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


def _scores(problem: OnlineProblem, score: Expr, *, whole: bool) -> list[str]:
    """Print the score of each element; `whole`: all keys of the tile exist. What varies with the row alone comes first."""
    c = problem.contraction
    assert c is not None
    if whole and bare(score) == c.node:
        return []
    names = places(problem, row=problem.m, key=problem.over)
    apart = _row_parts(score, frozenset(problem.over), c.node)
    before, values = Code(problem, names, {}, "r", "at").lines(apart)
    named = [f"const auto row_part{n} = {v};" for n, v in enumerate(values)]
    at_hand = {e: f"row_part{n}" for n, e in enumerate(apart)} | {c.node: "dot"}
    inside, (value,) = Code(problem, names, at_hand, "t", "at").lines([score])
    key = "first + 8 * j + 2 * (lane % 4) + e"
    return [
        "UNROLL for (int half = 0; half < 2; ++half) {",
        "  const int row = min(row0 + 8 * half, M - 1);",
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
    return row_values(problem, "most", {a.node: "(total + nan)" for a in problem.accumulators if not a.axes})


def _store_rows(problem: OnlineProblem) -> list[str]:
    """Print the outputs over the rows alone: one lane of four stores them."""
    alone = outputs_over(problem, ())
    if not alone:
        return []
    names = places(problem, row=problem.m)
    lines, values = Code(problem, names, _at_row(problem), "t", "at").lines([o.expr for o, _ in alone])
    stores = [f"store_one({name} + {offset(o, names)}, {v});" for (o, name), v in zip(alone, values, strict=True)]
    return ["if (lane % 4 == 0) {", *(f"  {line}" for line in (*lines, *stores)), "}"]


def _store_values(problem: OnlineProblem, layout: _Layout) -> list[str]:
    """Print the outputs over rows and values: two neighbours of a row."""
    axes = layout.wide.axes
    n = layout.values.inner
    over = outputs_over(problem, axes)
    names = places(problem, row=problem.m, col=axes)
    at_hand = _at_row(problem) | {layout.wide.node: "(o[4 * j + 2 * half + e] + nan)"}
    lines, values = Code(problem, names, at_hand, "t", "at").lines([o.expr for o, _ in over])
    put = [f"y{i}[e] = (float)({v});" for i, v in enumerate(values)]
    out = [
        *(f"float y{i}[2];" for i in range(len(over))),
        "UNROLL for (int e = 0; e < 2; ++e) {",
        f"  const int col = {'column + e' if n % 8 == 0 else f'min(column + e, {n - 1})'};",
        *(f"  {line}" for line in (*lines, *put)),
        "}",
    ]
    for i, (o, name) in enumerate(over):
        first, second = (
            offset(o, {**places(problem, row=problem.m, col=axes), **_moved(problem, axes, x)})
            for x in ("column", "(column + 1)")
        )
        if _pairs(problem, o, axes):
            out.append(
                f"if (column < {n}) store_raw<{2 * o.dtype.bytes}, PLAIN>({name} + {first}, Pack<{stored_type(o.dtype)}>::from<2>(y{i}));"
            )
        else:
            out += [
                f"if (column < {n}) store_one({name} + {first}, y{i}[0]);",
                f"if (column + 1 < {n}) store_one({name} + {second}, y{i}[1]);",
            ]
    return out


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
    found = [*loads_of([layout.score], {c.node: ""}), *loads_of([o.expr for o in problem.program.outputs], known)]
    names = {(e.args[0] if e.op == "access" else e).attrs[0] for e in found}
    return [i.name for i in used_inputs(problem.program) if i.name in names]


def _parameters(problem: OnlineProblem, layout: _Layout) -> str:
    names, inputs = parameter_names(problem.program), {i.name: i for i in problem.program.inputs}
    items = [f"TMAP map_{x}" for x in "qkv"]
    items += [f"const {stored_type(inputs[p].dtype)}* __restrict__ {names[p]}" for p in _pointers(problem, layout)]
    outs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    return ", ".join([*items, *(f"{stored_type(o.dtype)}* __restrict__ {name}" for o, name in outs)])


def _arguments(problem: OnlineProblem, layout: _Layout, s: OnlineWgmmaTile) -> tuple[Arg, ...]:
    maps: list[Arg] = [layout.left.map(64 * s.groups), layout.right.map(s.keys), layout.values.map(s.keys)]
    buffers = [*_pointers(problem, layout), *(o.name for o in problem.program.outputs)]
    return (*maps, *(BufferArg(name) for name in buffers))
