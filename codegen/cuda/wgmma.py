"""The wgmma family: TMA, warp specialisation and the tensor cores of sm_90a, with any pointwise epilogue and row statistics."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import traffic_ns, wave_factor
from eqsat.codegen.cuda.emit import (
    assemble,
    literal,
    output_names,
    parameter_names,
    part,
    refuse_illegal,
    register_type,
    stored_type,
    used_inputs,
)
from eqsat.codegen.cuda.left import (
    Left,
    computed_left,
    left_reads,
    print_fetch,
    print_fragments,
    print_riding,
    print_scalars,
    print_words,
    rides,
)
from eqsat.codegen.cuda.operand import (
    Operand,
    accumulates_in_f32,
    direct_store,
    epilogue,
    epilogue_reads,
    operand,
    output_joins,
    output_offset,
    output_position,
    output_vector,
    plain_read,
)
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.kernel import Arg, BufferArg, KernelSource, Rates, Schedule, TensorMapArg, WorkspaceArg
from eqsat.codegen.printer import is_load, print_statements
from eqsat.codegen.problem import Contract, ContractProblem, Problem, SummedContractProblem, nest
from eqsat.codegen.targets import Target
from eqsat.ir import Expr
from eqsat.types import DType

Served = Contract | SummedContractProblem
SHARED_BYTES = 233472  # shared memory of a multiprocessor of sm_90 (CUDA programming guide, compute capabilities)
SHARED_RESERVED = 1024  # of it, for each block
SMS = 132  # multiprocessors of the SXM parts of sm_90; a persistent grid of another size is correct too
FILL_SHARE = 0.3  # of the rate of the nearest cache at which tiles come from the level-2 cache (10 TB/s on an H200)
SHARING_NS = 2000.0  # blocks that share a sum count, wait for each other, and read what the others left
PANEL_BYTES = 8192  # 64 rows of 128 bytes: an operand panel, and one staging buffer of a warpgroup
# Live fp32 accumulators a thread can hold beside the loop's own registers, and registers of producer and consumers, by the
# number of consumer warpgroups (found by compiling: above these ptxas spills or serialises wgmma).
ACCUMULATORS = {1: 224, 2: 192, 3: 96}
ACCUMULATORS_RESIDENT = 128  # of one warpgroup, where two blocks share a multiprocessor's registers
ROWS, TMA, DIRECT = "rows", "staged", "direct"  # how outputs leave: flags of the templates
REGISTERS = {1: (0, 0), 2: (40, 232), 3: (32, 160)}


@dataclass(frozen=True, slots=True)
class WgmmaTile(Schedule):
    """A tile of the output and how the warpgroups share it.

    `bm` × `bn` per block; `groups` consumer warpgroups, which split the tile by rows or (`pingpong`) take whole tiles in turn;
    clusters of `cm` × `cn` blocks multicast the operand they share; `raster` rows of tiles run together; `resident` blocks share
    a multiprocessor. The sum over k is cut into `slices` for as many blocks, which wait for each other and add up a part each.
    """

    bm: int
    bn: int
    groups: int
    pingpong: int
    cm: int
    cn: int
    raster: int
    resident: int = 1
    slices: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """What the emitter derives from a problem and a schedule: operands, the use of shared memory, tiles per warpgroup.

    `a` is the left operand as it lies in memory, or the first matrix that it is computed from (`left`).
    `bs` are the right operands of each part. The tiles of all parts lie side by side, each part's in whole clusters: `starts` are
    the first columns of the parts, then the end.
    `more` are the operands of further terms of a sum, and how long their sums are.
    `a_rows` rows of the left operand are loaded for each tile: of a tile of 64 rows only those that there are. The matrix units
    read on into the right operand's tile behind them, which makes rows of the accumulator that nobody stores.
    """

    a: Operand
    a_rows: int
    bs: tuple[tuple[Operand, ...], ...]
    starts: tuple[int, ...]
    store: str
    tiles: int
    slot_bytes: int
    buffers: int
    stages: int
    left: Left | None = None
    more: tuple[tuple[Operand, Operand, int], ...] = ()

    @property
    def lefts(self) -> tuple[Operand, ...]:
        """The matrices of the left operand that are brought into shared memory."""
        return (self.a,) if self.left is None else tuple(o for _, o in self.left.staged)

    @property
    def staging_bytes(self) -> int:
        """Bytes of staging for one warpgroup."""
        return self.buffers * PANEL_BYTES


class WgmmaFamily:
    """bf16 and f16 contractions on sm_90a."""

    name = "wgmma"
    schedules: tuple[type[Schedule], ...] = (WgmmaTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, Served) or not isinstance(schedule, WgmmaTile):
            return "it serves contractions with a WgmmaTile"
        found = _layout(problem, schedule)
        return found if isinstance(found, str) else None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source for sm_90a."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, Served)
        assert isinstance(schedule, WgmmaTile)
        layout = _layout(problem, schedule)
        assert isinstance(layout, Layout)
        problem = turned(problem)
        cluster, slices = schedule.cm * schedule.cn, _slices(problem, schedule)[0]
        tiles = _tiles(problem, schedule)
        return assemble(
            problem.program,
            schedule,
            "wgmma",
            "\n".join(
                [
                    _wrapper(layout, schedule),
                    part("tile.cuh"),
                    _constants(problem, schedule, layout),
                    _kernel(problem, schedule, layout),
                ]
            ),
            args=_arguments(problem, schedule, layout),
            grid=(min(tiles, SMS * schedule.resident // cluster * cluster) * slices, 1, 1),
            block=_threads(schedule),
            cluster=cluster,
            shared_bytes=_shared_bytes(schedule.groups, layout.slot_bytes, layout.stages, layout.staging_bytes),
            workspace_bytes=_workspace_bytes(problem, schedule, layout) if slices > 1 else 0,
            requires="sm_90a",
            cooperative=slices > 1,
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least."""
        assert isinstance(problem, Served)
        return max(traffic_ns(problem.program, rates), problem.flops / rates.rate("bf16"))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: padded tiles in whole waves, larger tiles nearer the rate, and the fill of the ring."""
        assert isinstance(problem, Served)
        assert isinstance(schedule, WgmmaTile)
        s = schedule
        problem = turned(problem)
        batch, m, n, k = problem.shape
        tiles = batch * -(-m // s.bm) * sum(-(-p.shape[2] // s.bn) for p in problem.parts)
        waves = wave_factor(rates, tiles * s.slices, s.resident)
        padded = tiles * s.bm * s.bn / max(batch * m * n, 1)
        arithmetic = problem.flops / rates.rate("bf16") * padded
        # What comes from the level-2 cache for each step of 64; a cluster brings what its blocks share once.
        filled = tiles * -(-k // 64) * 128 * (s.bm / s.cn + s.bn / s.cm) / (FILL_SHARE * rates.issue)
        arithmetic = max(arithmetic, filled) * waves
        shared = 0.0 if s.slices == 1 else SHARING_NS + 8 * tiles * s.slices * s.bm * s.bn / rates.copy
        return max(arithmetic, traffic_ns(problem.program, rates)) + shared + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: wgmma is Hopper's own."""
        return target.arch == "sm_90a"


def turned(problem: Served) -> Served:
    """Return the problem with rows and columns exchanged where its right operand is computed and its left one is not.

    The matrix units take only the left operand from registers. The output is then stored by its columns.
    """
    if not isinstance(problem, ContractProblem) or len(problem.contractions) > 1 or problem.statistics:
        return problem
    c = problem.contractions[0]
    if plain_read(c.a) is None or plain_read(c.b) is not None:
        return problem
    return dataclasses.replace(problem, m=problem.n, n=problem.m, contractions=(dataclasses.replace(c, a=c.b, b=c.a),))


def _layout(problem: Served, s: WgmmaTile) -> Layout | str:
    problem = turned(problem)
    left = _left(problem.parts[0])
    if isinstance(left, str):
        return left
    a = left if isinstance(left, Operand) else left.staged[0][1]
    computed = left if isinstance(left, Left) else None
    found: list[tuple[Operand, ...]] = []
    for p in problem.parts:
        rights = _rights(p, a.dtype)
        if isinstance(rights, str):
            return rights
        if (
            refusal := _schedule_refusal(s, len(p.contractions), computed)
            or accumulates_in_f32(p)
            or _statistics_refusal(p, computed)
        ):
            return refusal
        found.append(rights)
    more = _further_terms(problem, a) if isinstance(problem, SummedContractProblem) else ()
    if isinstance(more, str):
        return more
    if more and (computed is not None or any(x.k_major != a.k_major for x, _, _ in more)):
        return "the left operands of a sum of contractions are read alike, and none is computed"
    bs = tuple(found)
    every = [*(b for group in bs for b in group), *(b for _, b, _ in more)]
    lefts = (a,) if computed is None else tuple(o for _, o in computed.staged)
    if not all(o.aligned(8) for o in (*lefts, *every, *(x for x, _, _ in more))):
        return "TMA needs every stride of its operands to be a multiple of 16 bytes"
    if len({b.k_major for b in every}) > 1:
        return "its right operands lie in different orders"
    if len({len(group) for group in bs}) > 1:
        return "its outputs take different numbers of contractions"
    if any(min(p.shape) == 0 for p in problem.parts):
        return "an extent is 0"
    if refusal := _sliced_refusal(problem, s):
        return refusal
    store = _store(problem, s)
    a_rows = _loaded_rows(problem, s, a, bs[0])
    slot = len(lefts) * _tile_bytes(a, a_rows) + sum(_tile_bytes(b, s.bn) for b in bs[0])
    stages, buffers = _stages(s, slot, store != DIRECT)
    if stages < 3:
        return f"only {stages} stages of {slot} bytes fit into shared memory; a ring needs 3"
    tiles = s.bm // 64 if s.pingpong else s.bm // (64 * s.groups)
    return Layout(a, a_rows, bs, _starts(problem, s.bn * s.cn), store, tiles, slot, buffers, stages, computed, more)


def _further_terms(problem: SummedContractProblem, a: Operand) -> tuple[tuple[Operand, Operand, int], ...] | str:
    """Return operands and length of every term of a sum but the first, or why one is no product of matrices."""
    out: list[tuple[Operand, Operand, int]] = []
    for t in problem.terms[1:]:
        left, rights = operand(t, t.contractions[0].a, t.m), _rights(t, a.dtype)
        if isinstance(left, str):
            return left
        if isinstance(rights, str):
            return rights
        if left.dtype is not a.dtype:
            return f"its left operands are {a.dtype} and {left.dtype}"
        out.append((left, rights[0], t.shape[3]))
    return tuple(out)


def _left(problem: ContractProblem) -> Operand | Left | str:
    """Return the left operand as it lies in memory, or what it is computed from: itself, where its statistics need registers."""
    found = operand(problem, problem.contractions[0].a, problem.m)
    plain = plain_read(problem.contractions[0].a) is not None
    return (
        computed_left(problem)
        if not plain or (isinstance(found, Operand) and problem.statistics and not found.k_major)
        else found
    )


def _rights(problem: ContractProblem, dtype: DType) -> tuple[Operand, ...] | str:
    """Return the right operands, which are of the left one's type."""
    out: list[Operand] = []
    for c in problem.contractions:
        b = operand(problem, c.b, problem.n)
        if isinstance(b, str):
            return b
        if b.dtype is not dtype:
            return f"its operands are {dtype} and {b.dtype}"
        out.append(b)
    return tuple(out)


def _slices(problem: Served, s: WgmmaTile) -> tuple[int, int]:
    """Return (slices, steps of each): as many slices as the schedule wants, or fewer where each has whole steps."""
    steps = -(-problem.parts[0].shape[3] // 64)
    each = -(-steps // s.slices)
    return -(-steps // each), each


def _sliced_refusal(problem: Served, s: WgmmaTile) -> str | None:
    """Refuse slices where they do not serve; a block of each is resident at once, so that they can wait for each other."""
    if s.slices == 1:
        return None
    if s.slices < 1 or s.pingpong:
        return "the sum over k is cut for blocks whose warpgroups do not take tiles in turn"
    if problem.statistics or isinstance(problem, SummedContractProblem):
        return "row statistics and sums of several products are not cut into slices"
    tiles = _tiles(problem, s)
    if tiles * s.slices > SMS * s.resident:
        return f"{tiles} tiles in {s.slices} slices are not resident at once"
    return None


def _tiles(problem: Served, s: WgmmaTile) -> int:
    """Return the number of tiles, in whole clusters."""
    batch, m, _, _ = problem.shape
    return batch * -(-m // (s.bm * s.cm)) * s.cm * (_starts(problem, s.bn * s.cn)[-1] // s.bn)


def _part_floats(s: WgmmaTile, layout: Layout) -> int:
    return s.bm * s.bn * len(layout.bs[0])


def _workspace_bytes(problem: Served, s: WgmmaTile, layout: Layout) -> int:
    tiles = _tiles(problem, s)
    return _counter_bytes(tiles) + 4 * tiles * _slices(problem, s)[0] * _part_floats(s, layout)


def _counter_bytes(tiles: int) -> int:
    return -(-4 * tiles // 256) * 256


def _store(problem: Served, s: WgmmaTile) -> str:
    """Return how the outputs leave: through TMA, by rows through each warp's staging, or straight from registers."""
    if s.slices > 1:
        return DIRECT
    if all(_stored(p, s) is not None for p in problem.parts):
        return TMA
    return ROWS if all(p.output.dtype.bytes == 2 and output_vector(p) for p in problem.parts) else DIRECT


def _starts(problem: Served, step: int) -> tuple[int, ...]:
    """Return where the columns of each part begin if each has whole steps, and where the last ends."""
    return tuple(itertools.accumulate((-(-p.shape[2] // step) * step for p in problem.parts), initial=0))


def _schedule_refusal(s: WgmmaTile, count: int, left: Left | None) -> str | None:
    if s.groups not in REGISTERS or s.bm % 64 or not 64 <= s.bm <= 256 or s.bn % 16 or not 16 <= s.bn <= 256:
        return "a tile is 64, 128, 192 or 256 rows by 16 to 256 columns in steps of 16, for 1 to 3 warpgroups"
    if s.pingpong not in (0, 1) or (s.pingpong and s.groups != 2):
        return "ping-pong takes two warpgroups"
    if not s.pingpong and s.bm % (64 * s.groups):
        return "each warpgroup takes the same number of 64-row tiles"
    if s.cm not in (1, 2, 4) or s.cn not in (1, 2, 4) or s.cm * s.cn > 4 or s.bn % (8 * s.cm) or s.raster < 1:
        return "a cluster has 1, 2 or 4 blocks that load whole groups of 8 columns each, and a raster has at least one row"
    if s.resident not in (1, 2) or (s.resident == 2 and (s.groups > 1 or s.cm * s.cn > 1)):
        return "one block, or two of one warpgroup and without a cluster, share a multiprocessor"
    tiles = s.bm // 64 if s.pingpong else s.bm // (64 * s.groups)
    live = tiles * s.bn // 2 * count + (0 if left is None else left.registers(tiles))
    if s.resident == 2 and live > ACCUMULATORS_RESIDENT:
        return f"{live} accumulators and fragments a thread do not fit where two blocks share a multiprocessor"
    if live > ACCUMULATORS[s.groups] or (s.groups == 3 and s.bn > 192):
        return f"{live} accumulators and fragments a thread do not fit beside {s.groups} warpgroups"
    return None


def _statistics_refusal(problem: ContractProblem, computed: Left | None) -> str | None:
    left = plain_read(problem.contractions[0].a)
    for s in problem.statistics:
        for e in nest(s)[1].walk():
            other = is_load(e) and e != left and not (left and e in left.walk())
            if (other and computed is None) or e.op in ("iota", "access"):
                return "a row statistic reads something else than the left operand"
        if s.dtype.accumulator is not DType.F32:
            return f"a row statistic is {s.dtype}; the template computes it in f32"
    if problem.statistics and problem.shape[3] % 64:
        return "row statistics ride on whole steps of 64 along k"
    return None


@dataclass(frozen=True, slots=True)
class Stored:
    """How TMA sees an output: extents and strides in elements of columns, rows and what is outermost; `turned`: of rows, columns.

    Outermost is the batch, or (`head` columns each, 0 if they all lie together) the heads that the columns are divided into.
    """

    extents: tuple[int, int, int]
    strides: tuple[int, int]
    head: int
    turned: bool = False


def _stored(problem: ContractProblem, s: WgmmaTile) -> Stored | None:
    """Return how the output leaves through TMA: if it is 16-bit, columns or rows contiguous, its other steps multiples of 16 bytes."""
    if problem.output.dtype.bytes != 2:
        return None
    batch, m, n, _ = problem.shape
    joins = output_joins(problem)
    if joins is not None:
        found = Stored((n, m, batch), (joins[1], joins[0]), 0) if joins[2] == 1 else None
        if found is None and joins[1] == 1:
            found = Stored((m, n, batch), (joins[2], joins[0]), 0, turned=True)
    else:
        found = _stored_by_head(problem, s) if batch == 1 else None
    return found if found is not None and all(x % 8 == 0 for x in found.strides) else None


def _stored_by_head(problem: ContractProblem, s: WgmmaTile) -> Stored | None:
    """Return how an output leaves whose columns are heads that lie apart, each of whole panels."""
    for i in range(1, len(problem.n)):
        split = dataclasses.replace(problem, batch=problem.n[:i], n=problem.n[i:])
        joins, (heads, m, head, _) = output_joins(split), split.shape
        if joins is not None and joins[2] == 1 and head % _panel(s) == 0:
            return Stored((head, m, heads), (joins[1], joins[0]), head)
    return None


def _panel(s: WgmmaTile) -> int:
    """Return the columns of the box of a store: the most that divide the tile's."""
    return next(p for p in (64, 32, 16) if s.bn % p == 0)


def _loaded_rows(problem: Served, s: WgmmaTile, a: Operand, bs: tuple[Operand, ...]) -> int:
    """Return the rows of the left operand to load for a tile: all, or of a tile of 64 only what few rows there are."""
    rows = -(-problem.shape[1] // 8) * 8
    behind = sum(_tile_bytes(b, s.bn) for b in bs)
    fewer = s.bm == 64 and s.cm * s.cn == 1 and a.k_major and rows < 64 and rows * 128 + behind >= 64 * 128
    return rows if fewer else s.bm


def _tile_bytes(o: Operand, rows: int) -> int:
    return rows * 128 if o.k_major else -(-rows // 64) * PANEL_BYTES


def _threads(s: WgmmaTile) -> int:
    """Return the threads of a block: consumers, and a producer that is a whole warpgroup where it hands over registers."""
    return s.groups * 128 + (128 if REGISTERS[s.groups][0] else 32)


def _shared_bytes(groups: int, slot: int, stages: int, staging: int) -> int:
    return 1024 + groups * staging + stages * (slot + 16)


def _stages(s: WgmmaTile, slot: int, staged: bool) -> tuple[int, int]:
    """Return (stages, staging buffers): two buffers unless one makes room for a fourth stage; never more than 8 stages."""
    options = [(0, 0)] if not staged else [(2, 2 * PANEL_BYTES), (1, PANEL_BYTES)]
    limit = SHARED_BYTES // s.resident - SHARED_RESERVED
    fits = [(min(8, (limit - _shared_bytes(s.groups, slot, 0, bytes_)) // (slot + 16)), count) for count, bytes_ in options]
    return fits[-1] if fits[0][0] < 4 <= fits[-1][0] or fits[0][0] < 3 else fits[0]


def _wrapper(layout: Layout, s: WgmmaTile) -> str:
    """Print the one wgmma instruction in use: D[64, n] (fp32) += A · B, both in shared memory, or A in registers."""
    r, kind = s.bn // 2, layout.a.dtype.value
    regs = ", ".join(f"%{i}" for i in range(r))
    outs = ", ".join(f'"+f"(d[{i}])' for i in range(r))
    if layout.left is not None:
        parts = ", ".join(f"%{r + i}" for i in range(4))
        return (
            f"DEV void wgmma_left(float (&d)[{r}], const u32 (&a)[4], u64 b, int accumulate) {{\n"
            f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{r + 5}, 0; wgmma.mma_async.sync.aligned.m64n{s.bn}k16.f32.{kind}.{kind} "\n'
            f'    "{{{regs}}}, {{{parts}}}, %{r + 4}, p, 1, 1, {int(not layout.bs[0][0].k_major)}; }}"\n    : {outs}\n'
            f'    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));\n}}\n'
        )
    tail = f"p, 1, 1, {int(not layout.a.k_major)}, {int(not layout.bs[0][0].k_major)}"
    return (
        f"DEV void wgmma(float (&d)[{r}], u64 a, u64 b, int accumulate) {{\n"
        f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{r + 2}, 0; wgmma.mma_async.sync.aligned.m64n{s.bn}k16.f32.{kind}.{kind} "\n'
        f'    "{{{regs}}}, %{r}, %{r + 1}, {tail}; }}"\n    : {outs}\n    : "l"(a), "l"(b), "r"(accumulate));\n}}\n'
    )


def _constants(problem: Served, s: WgmmaTile, layout: Layout) -> str:
    batch, m, n, _ = problem.shape
    k = problem.parts[0].shape[3]
    if len(layout.bs) > 1:
        n = layout.starts[-1]
    steps = sum(-(-x // 64) for x in (k, *(more for _, _, more in layout.more)))
    producer, consumer = REGISTERS[s.groups]
    values = {
        "BATCH": batch, "M": m, "N": n, "K": k, "STEPS": steps,
        "BM": s.bm, "A_ROWS": layout.a_rows, "BN": s.bn, "GROUPS": s.groups, "TILES": layout.tiles, "CM": s.cm, "CN": s.cn, "RASTER": s.raster,
        "STAGES": layout.stages, "LEFTS": len(layout.lefts), "COUNT": len(layout.bs[0]), "STATISTICS": len(problem.statistics),
        "CONSUMER_WARPS": 4 * (1 if s.pingpong else s.groups),
        "BUFFERS": layout.buffers, "STAGING": s.groups * layout.staging_bytes,
        "SLICES": _slices(problem, s)[0], "PER_SLICE": 64 * _slices(problem, s)[1], "PART": _part_floats(s, layout),
        "COUNTERS": _counter_bytes(_tiles(problem, s)), "THREADS": _threads(s), "RESIDENT": s.resident, "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer,
    }  # fmt: skip
    kinds = {True: "KMajor", False: "MnMajor"}
    return "\n".join(
        [
            *(f"constexpr int {name} = {value};" for name, value in values.items()),
            f"using A = {kinds[layout.a.k_major]}<A_ROWS, CN>;",
            f"using B = {kinds[layout.bs[0][0].k_major]}<BN, CM>;",
            f"using T = {layout.a.dtype};",
        ]
    )


def _kernel(problem: Served, s: WgmmaTile, layout: Layout) -> str:
    cluster = s.cm * s.cn > 1
    flags = {
        "cluster" if cluster else "alone",
        "pingpong" if s.pingpong else "cooperative",
        "sliced" if s.slices > 1 else "whole",
        layout.store,
        "loaded" if layout.left is None else "computed",
        *(["riding"] if layout.left is not None and problem.statistics and rides(problem.parts[0], layout.left) else []),
        *(["turns"] if layout.left is not None and s.groups == 2 and not s.pingpong else []),
        *(["vectors"] if layout.left is not None and layout.left.vectors else []),
        *(["statistics"] if problem.statistics else []),
        *(["ridden"] if problem.statistics and layout.left is None else []),
        *(["budget"] if REGISTERS[s.groups][0] else []),
    }
    count, several = len(layout.bs[0]), len(layout.bs) > 1
    column = "tile.n - start" if several else "tile.n"
    maps = [f"w{c}" if several else f"&map_b{c}" for c in range(count)]
    slots = {
        "PARAMETERS": [_parameters(problem, s, layout)],
        "PREFETCH": [f"tma_prefetch(&{m});" for m in _maps(layout)],
        "SELECT": _select(layout) if several else [],
        "LOAD_A": [
            f"A::load(slot + {i} * A::bytes, &{name}, full, tile.m, k, tile.batch, rn, same_rows);"
            for i, name in enumerate(_left_maps(layout))
        ],
        "LOAD_B": [
            f"B::load(slot + LEFTS * A::bytes + {c} * B::bytes, {m}, full, {column}, k, tile.batch, rm, same_columns);"
            for c, m in enumerate(maps)
        ],
        "MORE": [
            line
            for i, (_, _, k) in enumerate(layout.more)
            for line in (
                f"for (int k = 0; k < {k}; k += 64, in.next()) {{",
                "  const u32 slot = in.acquire(), full = in.full(in.s);",
                f"  A::load(slot, &more_a{i}, full, tile.m, k, tile.batch, rn, same_rows);",
                f"  B::load(slot + A::bytes, &more_b{i}, full, tile.n, k, tile.batch, rm, same_columns);",
                "}",
            )
        ],
        **(_ridden(problem) if layout.left is None else _computed(problem, layout.left)),
        "FINISH": _finish(problem, s, layout),
    }
    return fill(part("wgmma.cu"), flags, slots)


def _ridden(problem: Served) -> dict[str, list[str]]:
    """Print the row statistics of a left operand that the matrix units read from shared memory: two threads for each row."""
    found = list(enumerate(_combine(e) for e in problem.statistics))
    return {
        "INIT": [" ".join(f"part[i][{j}] = {op}::neutral();" for j, op in found)],
        "TOTAL": [" ".join(f"row_total<{op}>(part[i][{j}], stat[i][{j}]);" for j, op in found)],
        "ACCUMULATE": _accumulate(problem),
    }


def _computed(problem: Served, left: Left) -> dict[str, list[str]]:
    """Print a left operand that is computed in registers, and its row statistics: four threads have each row."""
    lead, combine = problem.parts[0], [_combine(e) for e in problem.statistics]
    return {
        "INIT": [" ".join(f"stat[i][{j}][0] = stat[i][{j}][1] = {op}::neutral();" for j, op in enumerate(combine))],
        "TOTAL": [" ".join(f"quad_total<{op}>(stat[i][{j}]);" for j, op in enumerate(combine))],
        "SCALARS": print_scalars(lead, left),
        "FETCH": print_fetch(lead, left),
        "FRAGMENTS": print_fragments(left),
        "WORD": print_words(lead, left, combine),
        "RIDE": print_riding(lead, left, combine) if combine and rides(lead, left) else [],
    }


def _by_part(layout: Layout, values: Sequence[object]) -> str:
    """Print the choice of a value by the part that a tile belongs to."""
    chosen = "".join(f"tile.n < {end} ? {v} : " for v, end in zip(values[:-1], layout.starts[1:], strict=False))
    return f"{chosen}{values[-1]}"


def _select(layout: Layout) -> list[str]:
    """Print what tells the producer which part's right operands a tile takes, and from which column on."""
    maps = [[f"&map_b{c}_{p}" for p in range(len(layout.bs))] for c in range(len(layout.bs[0]))]
    return [
        f"const int start = {_by_part(layout, layout.starts[:-1])};",
        *(f"const TMap* const w{c} = {_by_part(layout, names)};" for c, names in enumerate(maps)),
    ]


def _finish(problem: Served, s: WgmmaTile, layout: Layout) -> list[str]:
    """Print what becomes of the accumulators, for the part that the tile belongs to."""
    name, unit = ("sum", " + 8 * unit") if s.slices > 1 else ("acc", "")
    accumulators = [f"{name}[{c}][i].v[v + e]" for c in range(len(layout.bs[0]))]
    statistics = [f"stat[i][{j}][half]" for j in range(len(problem.statistics))]
    several, out = len(layout.bs) > 1, []
    for i, p in enumerate(problem.parts):
        stored = _stored(p, s) if layout.store == TMA else None
        slots = {
            "EPILOGUE": epilogue(p, accumulators, statistics),
            "STORE": direct_store(p) if layout.store == DIRECT else [],
            "COLUMN": [(f"tile.n - {layout.starts[i]}" if several else "tile.n") + unit],
            "WIDTH": ["8" if s.slices > 1 else "BN"],
            "MAP_Y": [_output_maps(layout)[i] if layout.store == TMA else ""],
            "VEC": [str(output_vector(p))],
            "COLUMNS": [str(p.shape[2])],
            "OUT": [output_names(p.program)[p.output_index]],
            "OFFSET": [output_offset(p, output_position(p))],
            "Y": [stored_type(p.output.dtype)],
            "HEAD": [str(stored.head if stored else 0)],
            "STORE_TILE": ["store_turned" if stored and stored.turned else "store_tile"],
        }
        lines = fill(part("wgmma_finish.cu"), {layout.store}, slots).splitlines()
        if several:
            head = f"if (tile.n < {layout.starts[i + 1]}) {{" if i + 1 < len(problem.parts) else "{"
            lines = [f"{'else ' if i else ''}{head}", *(f"  {line}" for line in lines), "}"]
        out += lines
    return out


def _combine(statistic: Expr) -> str:
    return statistic.op.capitalize()


def _accumulate(problem: Served) -> list[str]:
    """Print the statements that add one element `x` of the left operand to the statistics."""
    left = plain_read(problem.parts[0].contractions[0].a)
    roots = [nest(e)[1] for e in problem.statistics]

    def leaf(e: Expr) -> str | None:
        return "x" if e == left else literal(e) if e.op == "const" else None

    lines, values = print_statements(roots, leaf, register_type)
    ops = [_combine(e) for e in problem.statistics]
    return [*lines, *(f"part[i][{j}] = {op}::of(part[i][{j}], {v});" for j, (op, v) in enumerate(zip(ops, values, strict=True)))]


def _maps(layout: Layout) -> list[str]:
    rights = [f"map_b{c}{end}" for end, group in zip(_ends(layout), layout.bs, strict=True) for c in range(len(group))]
    more = [f"more_{x}{i}" for i in range(len(layout.more)) for x in "ab"]
    return [*_left_maps(layout), *rights, *more, *(_output_maps(layout) if layout.store == TMA else [])]


def _left_maps(layout: Layout) -> list[str]:
    return ["map_a"] if len(layout.lefts) == 1 else [f"map_a{i}" for i in range(len(layout.lefts))]


def _output_maps(layout: Layout) -> list[str]:
    return [f"map_y{end}" for end in _ends(layout)]


def _ends(layout: Layout) -> list[str]:
    """Return what the names of each part's maps end in."""
    return [""] if len(layout.bs) == 1 else [f"_{p}" for p in range(len(layout.bs))]


def _read_beside(problem: Served, layout: Layout) -> list[str]:
    """Return the buffers that the epilogues, and a computed left operand beside its matrices, read: they are passed as pointers."""
    read = frozenset().union(*(epilogue_reads(p) for p in problem.parts))
    read |= frozenset() if layout.left is None else left_reads(layout.left)
    return [i.name for i in used_inputs(problem.program) if i.name in read]


def _parameters(problem: Served, s: WgmmaTile, layout: Layout) -> str:
    names, inputs = parameter_names(problem.program), {i.name: i for i in problem.program.inputs}
    items = [f"TMAP {m}" for m in _maps(layout)]
    items += [f"const {stored_type(inputs[p].dtype)}* __restrict__ {names[p]}" for p in _read_beside(problem, layout)]
    items += ["u8* __restrict__ workspace"] if s.slices > 1 else []
    outs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    return ", ".join(
        items if layout.store == TMA else [*items, *(f"{stored_type(o.dtype)}* __restrict__ {name}" for o, name in outs)]
    )


def _arguments(problem: Served, s: WgmmaTile, layout: Layout) -> tuple[Arg, ...]:
    batch, m, _, _ = problem.shape
    k = problem.parts[0].shape[3]
    args: list[Arg] = [_operand_map(o, m, k, batch, layout.a_rows, s.cn) for o in layout.lefts]
    for p, group in zip(problem.parts, layout.bs, strict=True):
        args += [_operand_map(b, p.shape[2], k, batch, s.bn, s.cm) for b in group]
    for a, b, length in layout.more:
        args += [_operand_map(a, m, length, batch, layout.a_rows, s.cn)]
        args += [_operand_map(b, problem.parts[0].shape[2], length, batch, s.bn, s.cm)]
    args += [_output_map(p, s) for p in problem.parts if layout.store == TMA]
    args += [BufferArg(name) for name in _read_beside(problem, layout)]
    args += [WorkspaceArg(zeroed=True)] if s.slices > 1 else []
    return (*args, *(BufferArg(o.name) for o in problem.program.outputs if layout.store != TMA))


def _output_map(problem: ContractProblem, s: WgmmaTile) -> TensorMapArg:
    found = _stored(problem, s)
    assert found is not None
    n, m, _ = found.extents
    strides = (_stride(found.strides[0], n, 1), _stride(found.strides[1], n, m))
    box, swizzle = ((64, _panel(s), 1), 128) if found.turned else ((_panel(s), 64, 1), 2 * _panel(s))
    return TensorMapArg(problem.output.name, problem.output.dtype, found.extents, strides, box, swizzle)


def _stride(elements: int, inner: int, between: int) -> int:
    """Return a stride in bytes; where the extent is 1 and the stride immaterial, one that TMA accepts."""
    return 2 * elements if elements else -(-2 * inner * between // 16) * 16


def _operand_map(o: Operand, rows: int, k: int, batch: int, tile_rows: int, peers: int) -> TensorMapArg:
    if o.k_major:
        strides = (_stride(o.row_stride, k, 1), _stride(o.batch_stride, k, rows))
        return TensorMapArg(o.name, o.dtype, (k, rows, batch), strides, (64, tile_rows // peers, 1), 128)
    strides = (_stride(o.k_stride, rows, 1), _stride(o.batch_stride, rows, k))
    return TensorMapArg(o.name, o.dtype, (rows, k, batch), strides, (64, 64 // peers, 1), 128)
