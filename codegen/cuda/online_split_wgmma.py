"""Dependent folds of a few tiles of rows on the tensor cores of sm_90a: warpgroups and blocks share the keys of each tile."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import processors
from eqsat.codegen.cuda.emit import assemble, output_names, parameter_names, part, refuse_illegal, stored_type, used_inputs
from eqsat.codegen.cuda.online_operand import Sheet, sheet
from eqsat.codegen.cuda.online_print import Code, box, fold_instructions, places, row_values
from eqsat.codegen.cuda.online_simt import computed_share, fold_bound_ns
from eqsat.codegen.cuda.online_split_join import counters, join_lines, joined_floats, way_to_join, workspace_words
from eqsat.codegen.cuda.operand import loads_of
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.kernel import Arg, BufferArg, KernelSource, Rates, Schedule, WorkspaceArg
from eqsat.codegen.masks import ALWAYS, NEVER, vanishes
from eqsat.codegen.online import Accumulated, OnlineProblem
from eqsat.codegen.problem import Problem
from eqsat.codegen.targets import TARGETS, Target
from eqsat.ir import Expr
from eqsat.types import DType

_TARGET = TARGETS["sm_90"]
_LIVE = {1: 200, 2: 170, 3: 110}  # scores, weights and sums that a thread can hold beside so many warpgroups (found by compiling)
_HUGE = 1e30  # a finite constant beyond it might overflow when it is scaled, so that shifts are taken off first
_MOST_BLOCKS = 1 << 20  # no bound on the blocks that may share a problem


@dataclass(frozen=True, slots=True)
class OnlineSplitWgmmaTile(Schedule):
    """`sharers` warpgroups of a block and `parts` blocks share the keys of 64 rows, `keys` at a time in `stages` buffers.

    The blocks join their sums through the shared memory of a cluster or (`memory`) through a workspace; `resident` of them are
    to fit on one multiprocessor.
    """

    keys: int
    sharers: int
    stages: int
    parts: int
    memory: int
    resident: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """Operands as matrices and the accumulator with values.

    `across`: the keys lie side by side in memory, for each position that is contracted.
    """

    left: Sheet
    keys: Sheet
    across: bool
    values: Sheet
    wide: Accumulated

    @property
    def steps(self) -> int:
        """Products of 16 contracted positions that a score takes."""
        return -(-self.left.inner // 16)

    @property
    def panels(self) -> tuple[int, int]:
        """Panels of 64 elements that a row, and one of values, takes."""
        return -(-self.left.inner // 64), -(-self.values.inner // 64)

    @property
    def columns(self) -> int:
        """Value positions that the matrix units make: the extent in steps of 8."""
        return -(-self.values.inner // 8) * 8


class OnlineSplitWgmmaFamily:
    """Dependent folds of bf16 and f16 operands on sm_90a, few tiles of rows."""

    name = "online-split-wgmma"
    schedules: tuple[type[Schedule], ...] = (OnlineSplitWgmmaTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, OnlineProblem) or not isinstance(schedule, OnlineSplitWgmmaTile):
            return f"expected a dependent fold and an OnlineSplitWgmmaTile; got {problem.family} and {type(schedule).__name__}"
        if problem.statistics:
            return "it takes no statistics of the rows' operand"
        found = _layout(problem)
        return found if isinstance(found, str) else _schedule_refusal(problem, found, schedule)

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source for sm_90a."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineSplitWgmmaTile)
        layout = _layout(problem)
        assert isinstance(layout, _Layout)
        s = schedule
        tiles = _tiles(problem)
        kernel = [
            fold_instructions(layout.left.dtype.value, s.keys, layout.columns, across=layout.across),
            part("tile.cuh"),
            _constants(problem, layout, s),
            _kernel(problem, layout, s),
        ]
        return assemble(
            problem.program,
            s,
            "online-split-wgmma",
            "\n".join(kernel),
            args=_arguments(problem, layout, s),
            workspace_bytes=4 * workspace_words(tiles, s.parts, 64, layout.values.inner) if s.memory else 0,
            grid=(tiles * s.parts, 1, 1),
            block=160 * s.sharers,
            cluster=1 if s.memory else s.parts,
            shared_bytes=_shared_bytes(layout, s),
            requires="sm_90a",
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least; of the outputs alone where tiles may be masked out."""
        assert isinstance(problem, OnlineProblem)
        return fold_bound_ns(problem, rates, "bf16", _MOST_BLOCKS)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: products, exponentials beside them, whole waves of blocks, and the joining of the parts."""
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineSplitWgmmaTile)
        s = schedule
        _, _, keys, d, n = problem.shape
        blocks = _tiles(problem) * s.parts
        waves = math.ceil(blocks / (processors(rates) * s.resident))
        each = -(-keys // (s.keys * s.sharers * s.parts)) * computed_share(problem, 64, s.keys)  # tiles of keys of a warpgroup
        wide = -(-d // 16) * 16 + -(-n // 8) * 8
        rate = rates.rate("bf16") / processors(rates)
        products, exponentials = 2 * 64 * s.keys * wide / rate * 1.4, 64 * s.keys / 28.0
        together = s.sharers * min(float(s.resident), max(1.0, blocks / processors(rates)))  # warpgroups of a multiprocessor
        tile = max(together * max(products, 0.6 * exponentials), products + exponentials + 250.0)
        joined = 1500.0 + 25.0 * s.parts + 1000.0 * s.memory if s.parts > 1 else 800.0
        traffic = problem.program.bytes / rates.read
        return max(waves * (each * tile + 1500.0), traffic, self.bound_ns(problem, rates)) + 1500.0 + joined + rates.launch_ns

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
    names = places(problem)
    along, across = (sheet(problem, c.b, *axes, names) for axes in ((problem.d, problem.over), (problem.over, problem.d)))
    left = sheet(problem, c.a, problem.d, problem.m, names)
    keys = along if isinstance(along, Sheet) or isinstance(across, str) else across
    values = sheet(problem, wide.value, wide.axes, problem.over, names)
    if isinstance(left, str) or isinstance(keys, str) or isinstance(values, str):
        return next(x for x in (left, keys, values) if isinstance(x, str))
    if not left.dtype is keys.dtype is values.dtype is wide.weight.dtype:
        return f"rows, keys, weights and values are {left.dtype}, {keys.dtype}, {wide.weight.dtype} and {values.dtype}"
    if max(left.inner, values.inner) > 128:
        return f"{left.inner} contracted and {values.inner} value positions; the template holds up to 128"
    return _Layout(left, keys, keys is across, values, wide)


def _tiles(problem: OnlineProblem) -> int:
    batch, m, *_ = problem.shape
    return batch * -(-m // 64)


def _schedule_refusal(problem: OnlineProblem, layout: _Layout, s: OnlineSplitWgmmaTile) -> str | None:
    if s.sharers not in _LIVE or s.keys % 16 or not 16 <= s.keys <= 256 or s.stages < 1 or s.resident < 1:
        return "1 to 3 warpgroups share 64 rows by 16 to 256 keys in steps of 16"
    if layout.across and s.keys % 64:
        return "keys that lie side by side come in panels of 64"
    if s.memory not in (0, 1) or not 1 <= s.parts <= (64 if s.memory else 16) or (s.memory and s.parts == 1):
        return "the keys have 1 to 16 parts in a cluster, 2 to 64 through memory"
    live = s.keys // 2 + s.keys // 4 + layout.columns // 2
    if live > min(_LIVE[s.sharers], 65536 // (160 * s.sharers * s.resident) - 40):
        return f"{live} scores, weights and sums a thread do not fit beside {s.sharers} warpgroups, {s.resident} times"
    keys = problem.shape[2]
    if s.parts * s.sharers >= 2 * max(1, keys // s.keys):
        return f"{s.parts} parts of {s.sharers} warpgroups for {keys} keys"
    if (taken := _shared_bytes(layout, s)) * s.resident > _TARGET.shared_bytes:
        return f"{taken} bytes of tiles, {s.resident} times; a multiprocessor has {_TARGET.shared_bytes}"
    return None


def _sums_at(layout: _Layout, s: OnlineSplitWgmmaTile) -> int:
    """Return where the sums begin: behind the rows, the rings of each warpgroup, and two barriers."""
    keys = s.keys * 32 * layout.steps if layout.across else s.keys * 128 * layout.panels[0]
    rings = s.stages * (keys + s.keys * 128 * layout.panels[1]) + 2048
    return layout.panels[0] * 8192 + s.sharers * rings + 16


def _shared_bytes(layout: _Layout, s: OnlineSplitWgmmaTile) -> int:
    return 1024 + _sums_at(layout, s) + 4 * joined_floats(64, layout.values.inner, s.sharers, s.parts, s.memory)


def _constants(problem: OnlineProblem, layout: _Layout, s: OnlineSplitWgmmaTile) -> str:
    _, m, keys, _, _ = problem.shape
    values = {
        "M": m, "KEYS_ALL": keys, "KEYS": s.keys, "SHARERS": s.sharers, "STAGES": s.stages, "PARTS": s.parts, "RESIDENT": s.resident,
        "TOGETHER": 1 if s.memory else s.parts, "ROW_TILES": -(-m // 64), "DP": layout.panels[0], "VP": layout.panels[1],
        "STEPS": layout.steps, "N": layout.values.inner, "NV": layout.columns, "SUMS_AT": _sums_at(layout, s),
        "COUNTERS": counters(_tiles(problem)),
    }  # fmt: skip
    return "\n".join(f"constexpr int {name} = {value};" for name, value in values.items())


def _kernel(problem: OnlineProblem, layout: _Layout, s: OnlineSplitWgmmaTile) -> str:
    way = way_to_join(s.parts, s.memory)
    tile, row_lines, key_lines = box(problem, ("first_row", "last_row"), ("first", "last"))
    nothing = vanishes(problem.score, tile)
    huge = any(e.op == "const" and _HUGE <= abs(e.attrs[0]) < math.inf for e in problem.score.walk())
    slots = {
        "PARAMETERS": [_parameters(problem, layout, s)],
        "ROW_SPANS": row_lines,
        "KEY_SPANS": key_lines,
        "SKIP": [nothing if nothing not in (ALWAYS, NEVER) else "false"],
        "BATCH_Q": [layout.left.number],
        "BATCH_K": [layout.keys.number],
        "BATCH_V": [layout.values.number],
        "PACK": [f"pack_{layout.left.dtype}"],
        "SCORES": _scores(problem, whole=problem.shape[2] % s.keys == 0),
        "JOIN": join_lines(problem, layout.wide, way, lambda **groups: places(problem, row=problem.m, **groups)),
    }
    flags = {way, "across" if layout.across else "along", "huge" if huge else "moderate"}
    return fill(part("online_split_wgmma.cu"), flags, slots)


def _scores(problem: OnlineProblem, *, whole: bool) -> list[str]:
    """Print the score of each element from its product; `whole`: all keys of a tile exist."""
    c = problem.contraction
    assert c is not None
    if whole and problem.score == c.node:
        return []
    names = places(problem, row=problem.m, key=problem.over)
    lines, (value,) = Code(problem, names, {c.node: "dot"}, "t", "at").lines([problem.score])
    key = "first + 8 * j + 2 * (lane % 4) + e"
    return [
        "UNROLL for (int half = 0; half < 2; ++half) {",
        "  const int row = min(first_row + row0 + 8 * half, M - 1);",
        "  UNROLL for (int j = 0; j < KEYS / 8; ++j)",
        "    UNROLL for (int e = 0; e < 2; ++e) {",
        f"      const int key = {key if whole else f'min({key}, KEYS_ALL - 1)'};",
        "      const float dot = s[4 * j + 2 * half + e];",
        *(f"      {line}" for line in lines),
        f"      s[4 * j + 2 * half + e] = {value if whole else f'{key} < KEYS_ALL ? (float)({value}) : -EQ_INF'};",
        "    }",
        "}",
    ]


def _pointers(problem: OnlineProblem) -> list[str]:
    """Return the inputs that are passed as pointers: what scores and outputs read beside the operands."""
    c = problem.contraction
    assert c is not None
    known: dict[Expr, str] = {a.node: "" for a in problem.accumulators} | {problem.pivot: ""} | row_values(problem, "", {})
    found = [*loads_of([problem.score], {c.node: ""}), *loads_of([o.expr for o in problem.program.outputs], known)]
    names = {(e.args[0] if e.op == "access" else e).attrs[0] for e in found}
    return [i.name for i in used_inputs(problem.program) if i.name in names]


def _parameters(problem: OnlineProblem, layout: _Layout, s: OnlineSplitWgmmaTile) -> str:
    names, inputs = parameter_names(problem.program), {i.name: i for i in problem.program.inputs}
    items = [f"TMAP map_{x}" for x in "qkv"]
    items += [f"const {stored_type(inputs[p].dtype)}* __restrict__ {names[p]}" for p in _pointers(problem)]
    outs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    items += [f"{stored_type(o.dtype)}* __restrict__ {name}" for o, name in outs]
    return ", ".join([*items, *(["float* __restrict__ workspace"] if s.memory else [])])


def _arguments(problem: OnlineProblem, layout: _Layout, s: OnlineSplitWgmmaTile) -> tuple[Arg, ...]:
    keys = layout.keys.map(16 * layout.steps if layout.across else s.keys)
    buffers = [*_pointers(problem), *(o.name for o in problem.program.outputs)]
    work: list[Arg] = [WorkspaceArg(zeroed=True)] if s.memory else []
    return (layout.left.map(64), keys, layout.values.map(s.keys), *(BufferArg(name) for name in buffers), *work)
