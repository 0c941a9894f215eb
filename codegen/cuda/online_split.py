"""Dependent folds of few rows: many warps share out the keys, which stream once, at the rate at which memory can be read."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import L2_BYTES_PER_PROCESSOR, processors, traffic_ns, wave_factor
from eqsat.codegen.cuda.emit import arguments, assemble, parameter_names, parameters, part, refuse_illegal, stored_type
from eqsat.codegen.cuda.online_print import Code
from eqsat.codegen.cuda.online_simt import computed_share, fold_bound_ns
from eqsat.codegen.cuda.online_split_join import counters, join_lines, joined_floats, way_to_join, workspace_words
from eqsat.codegen.cuda.online_split_layout import Layout, Packed, layout_of, packed_places, rows_of, steps_of
from eqsat.codegen.cuda.operand import buffers, contiguous
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.masks import ALWAYS, NEVER, Box, spans, vanishes
from eqsat.codegen.online import OnlineProblem, outer_reductions
from eqsat.codegen.printer import print_offset
from eqsat.codegen.problem import Problem
from eqsat.codegen.targets import Target
from eqsat.ir import Expr
from eqsat.types import DType

SHARED_LIMIT = 232448  # bytes a block may ask for on sm_90; 99 KB is what sm_86 and sm_89 give
SHARED_EVERYWHERE = 101376
_LIVE = 200  # operands, scores and sums that a thread can hold beside addresses (found by compiling)
_MOST_BLOCKS = 1 << 20  # no bound on the blocks that may share a problem


@dataclass(frozen=True, slots=True)
class OnlineSplitTile(Schedule):
    """A warp takes `rows` rows and passes over its share of the keys, `keys` at a time.

    `warps` of a block and `parts` blocks share the keys of a tile of rows; the blocks join their sums through the shared memory
    of a cluster or (`memory`) through a workspace. `resident` blocks are to fit on one multiprocessor.
    """

    rows: int
    keys: int
    warps: int
    parts: int
    memory: int
    resident: int


class OnlineSplitFamily:
    """Dependent folds of bf16 and f16 operands by mma.sync (sm_80 and later; clusters need sm_90)."""

    name = "online-split"
    schedules: tuple[type[Schedule], ...] = (OnlineSplitTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, OnlineProblem) or not isinstance(schedule, OnlineSplitTile):
            return f"expected a dependent fold and an OnlineSplitTile; got {problem.family} and {type(schedule).__name__}"
        if problem.statistics:
            return "it takes no statistics of the rows' operand"
        found = layout_of(problem)
        return found if isinstance(found, str) else _schedule_refusal(problem, found, schedule)

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineSplitTile)
        layout = layout_of(problem)
        assert isinstance(layout, Layout)
        s = schedule
        batches, tiles = _tiles(problem, layout, s)
        shared = _shared_bytes(layout, s)
        return assemble(
            problem.program,
            s,
            "online-split",
            "\n".join([part("tile.cuh"), _constants(problem, layout, s), _kernel(problem, layout, s)]),
            args=arguments(problem.program, workspace=bool(s.memory)),
            workspace_bytes=4 * workspace_words(batches * tiles, s.parts, s.rows, layout.values.inner) if s.memory else 0,
            grid=(batches * tiles * s.parts, 1, 1),
            block=32 * s.warps,
            cluster=1 if s.memory else s.parts,
            shared_bytes=shared,
            requires="sm_90" if (s.parts > 1 and not s.memory) or shared > SHARED_EVERYWHERE else "sm_80",
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least; of the outputs alone where tiles may be masked out."""
        assert isinstance(problem, OnlineProblem)
        return fold_bound_ns(problem, rates, "bf16", _MOST_BLOCKS)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: keys and values from memory and caches, instructions, and the joining of the parts."""
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineSplitTile)
        layout = layout_of(problem)
        assert isinstance(layout, Layout)
        s = schedule
        batches, tiles = _tiles(problem, layout, s)
        blocks, cores = batches * tiles * s.parts, processors(rates)
        _, _, keys, d, n = problem.shape
        share = computed_share(problem, s.rows, s.keys)
        at_once = min(float(blocks), cores * s.resident)
        waves = wave_factor(rates, blocks, s.resident) if blocks > at_once else 1.0
        # three quarters of a tile of each warp is on its way at a time
        in_flight = at_once * s.warps * s.keys * (d + n) * 1.5
        stream = share * traffic_ns(problem.program, rates) * max(1.0, 32768 * cores / in_flight) * waves
        pairs = batches * tiles * keys * share  # of 16 keys and a tile of rows, once divided by 16
        busy_cores = min(float(blocks), cores)
        from_caches = 2 * pairs * (d + n) / (0.35 * L2_BYTES_PER_PROCESSOR * busy_cores)
        # instructions of a warp for 16 keys, at 1.7 a ns for each of four schedulers; few warps wait for themselves
        work = 30 + (d + n) * 0.25 + s.rows / 8 * (30 + (d + n) * 0.15)
        busy = pairs / 16 * work * max(1.0, 8 * cores / (s.warps * at_once)) / (6.0 * cores) * waves
        # a warp waits for each of its tiles in turn; then there are the first loads and the joining (measured on an H200)
        chain = -(-keys // (s.keys * s.parts * s.warps)) * (800.0 + 10.0 * s.keys) * waves
        joined = 1500.0 + 25.0 * s.parts + 1000.0 * s.memory if s.parts > 1 else 800.0
        return max(stream, from_caches, busy, chain, self.bound_ns(problem, rates)) + 3000.0 + joined + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: mma.sync of bf16 came with sm_80."""
        return target.kind == "cuda" and target.capability >= 80


def _tiles(problem: OnlineProblem, layout: Layout, s: OnlineSplitTile) -> tuple[int, int]:
    batches, m = rows_of(problem, layout.packed)
    return batches, -(-m // s.rows)


def _schedule_refusal(problem: OnlineProblem, layout: Layout, s: OnlineSplitTile) -> str | None:
    if s.rows not in (8, 16, 32) or s.keys not in (16, 32, 64) or not 1 <= s.warps <= 16 or s.resident < 1:
        return "a warp takes 8, 16 or 32 rows and 16, 32 or 64 keys at a time, a block has 1 to 16 warps"
    if s.memory not in (0, 1) or not 1 <= s.parts <= (64 if s.memory else 16) or (s.memory and s.parts == 1):
        return "the keys have 1 to 16 parts in a cluster, 2 to 64 through memory"
    _, m = rows_of(problem, layout.packed)
    if s.rows > 8 and s.rows >= 2 * m:
        return f"{s.rows} rows for {m}"
    if s.rows == 8 and m > 16:
        return f"8 rows a warp for {m}: keys would be brought for each"
    if s.parts * s.warps >= 2 * max(1, problem.shape[2] // s.keys):
        return f"{s.parts} parts of {s.warps} warps for {problem.shape[2]} keys"
    if s.resident * s.warps * 32 * (live := _live(layout, s)) > 65536 - 32 * s.resident * s.warps * 30 or live > _LIVE:
        return f"{live} operands, scores and sums for each of {32 * s.warps} threads, {s.resident} times"
    if (taken := _shared_bytes(layout, s)) * s.resident > SHARED_LIMIT:
        return f"{taken} bytes of sums, {s.resident} times; a multiprocessor has {SHARED_LIMIT}"
    return None


def _live(layout: Layout, s: OnlineSplitTile) -> int:
    """Count the registers of a thread that hold rows, keys, values, scores and sums."""
    groups, bands, tiles, steps = s.rows // 8, -(-layout.values.inner // 64), s.keys // 16, steps_of(layout)
    return groups * (2 * steps + 16 * bands + 4 * tiles) + tiles * (4 * steps + 16 * bands)


def _shared_bytes(layout: Layout, s: OnlineSplitTile) -> int:
    return 4 * joined_floats(s.rows, layout.values.inner, s.warps, s.parts, s.memory)


def _constants(problem: OnlineProblem, layout: Layout, s: OnlineSplitTile) -> str:
    batches, tiles = _tiles(problem, layout, s)
    values = {
        "M": rows_of(problem, layout.packed)[1], "KEYS_ALL": problem.shape[2], "ROWS": s.rows, "KEYS": s.keys, "SHARERS": s.warps,
        "PARTS": s.parts, "ROW_TILES": tiles, "RESIDENT": s.resident, "D": problem.shape[3], "N": layout.values.inner,
        "COUNTERS": counters(batches * tiles),
    }  # fmt: skip
    lines = [f"constexpr int {name} = {value};" for name, value in values.items()]
    lines.append(f"constexpr i64 KEY_STRIDE = {layout.keys.row_stride}, VALUE_STRIDE = {layout.values.row_stride};")
    return "\n".join([*lines, f"using T = {stored_type(layout.keys.dtype)};"])


def _kernel(problem: OnlineProblem, layout: Layout, s: OnlineSplitTile) -> str:
    joining = way_to_join(s.parts, s.memory)
    flags = {joining, "across" if layout.across else "along", *(["apart"] if joining != "cluster" else [])}
    pointers = parameter_names(problem.program)
    tile, row_lines, key_lines = _box(problem, layout.packed)
    nothing = vanishes(problem.score, tile)
    slots = {
        "PARAMETERS": [parameters(problem.program, "float" if s.memory else "")],
        "KEYS_AT": [f"{pointers[layout.keys.name]} + (i64)({layout.keys.number}) * {layout.keys.step}"],
        "VALUES_AT": [f"{pointers[layout.values.name]} + (i64)({layout.values.number}) * {layout.values.step}"],
        "ROW_SPANS": row_lines,
        "KEY_SPANS": key_lines,
        "SKIP": [nothing if nothing not in (ALWAYS, NEVER) else "false"],
        "MMA": ["mma16816" if layout.keys.dtype is DType.BF16 else "mma16816_f16"],
        "PACK": [f"pack_{layout.keys.dtype}"],
        "LEFT": [line.replace("PACK", f"pack_{layout.keys.dtype}") for line in _left(problem, layout)],
        "SCORES": _scores(problem, layout, whole=problem.shape[2] % s.keys == 0),
        "JOIN": join_lines(
            problem, layout.wide, joining, lambda **groups: packed_places(problem, layout.packed, "row", **groups)
        ),
    }
    return fill(part("online_split.cu"), flags, slots)


def _box(problem: OnlineProblem, packed: Packed) -> tuple[Box, list[str], list[str]]:
    """Return the box of a tile, the lines that name its ends of rows and what is uniform in it, those that name its ends of keys."""
    ext = problem.program.extents
    low, high = (packed_places(problem, packed, str(r)) for r in (0, packed.size - 1))
    span = {a: (low[a], high[a]) for a in problem.batch}
    ends = [f"{x} / {packed.size}" if packed.size > 1 else x for x in ("first_row", "last_row")]
    row_spans, row_lines = spans([(a, ext[a]) for a in problem.m], ends[0], ends[1], "row_span", "int")
    key_spans, key_lines = spans([(a, ext[a]) for a in problem.over], "first", "last", "key_span", "int")
    used = {e.attrs[0] for e in problem.score.walk() if e.op == "iota"}
    before = row_lines if used & set(problem.m) else []  # grows as masks ask for uniform values
    fixed = frozenset(problem.batch) - {packed.axis}
    known: dict[str, str] = {}

    def uniform(e: Expr) -> str | None:
        if not e.axes <= fixed or any(x.op == "iota" for x in e.walk()) or outer_reductions([e]):
            return None
        if e.digest not in known:
            lines, (value,) = Code(problem, low, {}, f"uniform{len(known)}_").lines([e])
            known[e.digest] = f"uniform{len(known)}"
            before.extend([*lines, f"const i64 {known[e.digest]} = {value};"])
        return known[e.digest]

    return Box(span | row_spans | key_spans, ext, uniform), before, key_lines if used & set(problem.over) else []


def _left(problem: OnlineProblem, layout: Layout) -> list[str]:
    """Print the registers of row `row` as the scores want them: neighbours along d at once where they are one piece of memory."""
    a = layout.rows.a
    d = problem.shape[3]
    width = 2 if layout.across else 8
    first = "16 * c + 2 * t + 8 * h" if layout.across else "32 * c + 8 * t"
    if a.op == "read" and contiguous(a, buffers(problem.program)[a.attrs[0]], problem.d[-1], width):
        names = packed_places(problem, layout.packed, "row", d=problem.d)
        load = print_offset(a, buffers(problem.program)[a.attrs[0]], names)
        text = f"free_load<{width}>({parameter_names(problem.program)[a.attrs[0]]} + {load})"
        whole = d % (16 if layout.across else 32) == 0
        piece = text if whole else f"d < D ? {text} : zero_raw<{2 * width}>()"
        if layout.across:
            body = [f"  const int d = {first};", f"  const Raw<4> x = {piece};", "  q[r][c][h] = x.w[0];"]
            return ["UNROLL for (int c = 0; c < STEPS; ++c) UNROLL for (int h = 0; h < 2; ++h) {", *body, "}"]
        body = [
            f"  const int d = {first};",
            f"  const Raw<16> x = {piece};",
            "  UNROLL for (int i = 0; i < 4; ++i) q[r][2 * c + i / 2][i % 2] = x.w[i];",
        ]
        return ["UNROLL for (int c = 0; c < STEPS / 2; ++c) {", *body, "}"]
    lines, (value,) = Code(problem, packed_places(problem, layout.packed, "row", d=problem.d), {}, "t", "at").lines([a])
    at = f"{first} + e" if layout.across else "32 * (c / 2) + 8 * t + 4 * (c % 2) + 2 * h + e"
    return [
        "UNROLL for (int c = 0; c < STEPS; ++c) UNROLL for (int h = 0; h < 2; ++h) {",
        "  float x[2] = {};",
        "  UNROLL for (int e = 0; e < 2; ++e) {",
        f"    const int d = {at};",
        "    if (d < D) {",
        *(f"      {line}" for line in lines),
        f"      x[e] = (float)({value});",
        "    }",
        "  }",
        "  q[r][c][h] = PACK(x[0], x[1]);",
        "}",
    ]


def _scores(problem: OnlineProblem, layout: Layout, *, whole: bool) -> list[str]:
    """Print the score of each element from its product; `whole`: all keys of a tile exist."""
    if whole and problem.score == layout.rows.node:
        return []
    names = packed_places(problem, layout.packed, "row", key=problem.over)
    lines, (value,) = Code(problem, names, {layout.rows.node: "dot"}, "t", "at").lines([problem.score])
    key = "first + key_of(u, g, h)"
    return [
        "UNROLL for (int r = 0; r < GROUPS; ++r)",
        "  UNROLL for (int e = 0; e < 2; ++e) {",
        "    const int row = min(first_row + 8 * r + 2 * t + e, M - 1);",
        "    UNROLL for (int u = 0; u < TILES; ++u)",
        "      UNROLL for (int h = 0; h < 2; ++h) {",
        f"        const int key = {key if whole else f'min({key}, KEYS_ALL - 1)'};",
        "        const float dot = s[u][r][2 * h + e];",
        *(f"        {line}" for line in lines),
        f"        s[u][r][2 * h + e] = {value if whole else f'{key} < KEYS_ALL ? (float)({value}) : -EQ_INF'};",
        "      }",
        "  }",
    ]
