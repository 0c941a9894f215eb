"""The stream family: few rows times big matrices, which come by TMA in equal shares to all multiprocessors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import processors, traffic_ns
from eqsat.codegen.cuda.emit import assemble, output_names, parameter_names, part, refuse_illegal, stored_type, used_inputs
from eqsat.codegen.cuda.few_rows import big_matrices, combine, few_rows_refusal, stage_left
from eqsat.codegen.cuda.left import computed_left
from eqsat.codegen.cuda.operand import (
    Operand,
    accumulates_in_f32,
    axis_names,
    axis_strides,
    buffers,
    contiguous,
    direct_store,
    epilogue,
    epilogue_reads,
    joined_stride,
    loads_of,
    operand,
)
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.kernel import Arg, BufferArg, KernelSource, Rates, Schedule, TensorMapArg, WorkspaceArg
from eqsat.codegen.printer import print_offset
from eqsat.codegen.problem import Contract, ContractProblem, Problem, SummedContractProblem, nest
from eqsat.codegen.targets import TARGETS, Target
from eqsat.ir import Expr
from eqsat.types import DType

Served = Contract | SummedContractProblem
HOPPER = TARGETS["sm_90"]
PANEL = 64  # elements in the 128 bytes of a swizzled row
MOST_STAGES = 64
RESERVED = 1024  # shared memory that the system takes of each block
CLUSTER_NS = 700.0  # to send sums within a cluster
START_NS = 700.0  # until the first copy by a tensor map arrives, more than a load takes
SHARING_NS = 1800.0  # to leave sums in memory, count, and read those of others: three trips to the L2


@dataclass(frozen=True, slots=True)
class StreamTile(Schedule):
    """How the matrices are cut into units, and the roles of a block's warps.

    A unit is `kb` of k by `cols` columns of every matrix of a part. `warps` multiply, `stagers` make x where it is not copied; `ring` KiB at the most
    of units are on their way for each of the `blocks` that share a multiprocessor. Either the blocks take equal shares of all units
    (`cluster` 0), and the last to finish adds what several have of a tile, through memory; or the blocks of a cluster share the k of a
    tile, and add their sums through shared memory.
    """

    cols: int
    kb: int
    warps: int
    stagers: int
    ring: int
    blocks: int
    cluster: int = 0

    @property
    def threads(self) -> int:
        """Threads of a block: consumers, stagers, and a warp for the copies."""
        return 32 * (self.warps + self.stagers + 1)


class StreamFamily:
    """Contractions of few rows with bf16 or f16 operands, by TMA and mma.sync (sm_90)."""

    name = "stream"
    schedules: tuple[type[Schedule], ...] = (StreamTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, Served) or not isinstance(schedule, StreamTile):
            return "it serves contractions with a StreamTile"
        return _problem_refusal(problem) or _schedule_refusal(problem, schedule)

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, Served)
        assert isinstance(schedule, StreamTile)
        return assemble(
            problem.program,
            schedule,
            "stream",
            "\n".join([part("tile.cuh"), _constants(problem, schedule), _kernel(problem, schedule)]),
            args=_arguments(problem, schedule),
            workspace_bytes=_workspace_bytes(problem, schedule),
            grid=(_grid(problem, schedule), 1, 1),
            block=schedule.threads,
            shared_bytes=_shared_bytes(problem, schedule),
            requires="sm_90",
            cluster=max(1, schedule.cluster),
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least."""
        assert isinstance(problem, Served)
        return max(traffic_ns(problem.program, rates), problem.flops / rates.rate("bf16"))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: the largest share of the stream, x beside it, and what sharing tiles takes at the end."""
        assert isinstance(problem, Served)
        assert isinstance(schedule, StreamTile)
        s, grid = schedule, _grid(problem, schedule)
        units = _units(problem, s)
        uneven = -(-units // grid) * grid / units if not s.cluster else max(1.0, 0.8 * processors(rates) / grid)
        starved = max(1.0, 65536 / (s.blocks * _stages(problem, s) * _unit_bytes(problem, s)))
        # Blocks that begin at different k read stretches of a row that are far apart in time: 128 bytes alone cost 30 % (measured).
        narrow = 1.3 if not s.cluster and not _matrix(problem).k_major and s.cols < 2 * PANEL else 1.0
        lead = problem.parts[0]
        # x comes from the L2 with every unit: it takes its share of what a multiprocessor can receive.
        beside = 1 + 0.2 * _rows(problem) / (s.cols * len(lead.contractions))
        shared_by = max(1.0, grid * s.cols / (sum(p.shape[2] for p in problem.parts) * problem.shape[0]))
        finish = (
            (CLUSTER_NS if s.cluster > 1 else 0.0) if s.cluster else SHARING_NS + 4 * shared_by * _slot_floats(problem, s) / 60
        )
        return traffic_ns(problem.program, rates) * uneven * starved * narrow * beside + finish + START_NS + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: TMA came with sm_90, and the ring wants its shared memory."""
        return target.kind == "cuda" and target.capability >= HOPPER.capability and target.shared_bytes >= HOPPER.shared_bytes


@dataclass(frozen=True, slots=True)
class Copies:
    """What of the left operand comes by TMA: matrices (the loads that read them), and vectors along k.

    Of a `plain` left operand the matrix is all there is; else the stagers compute it in the place of the first matrix. Without any
    matrix they fetch what they need from memory themselves.
    """

    matrices: tuple[tuple[Expr, Operand], ...] = ()
    vectors: tuple[Expr, ...] = ()
    plain: bool = False


def _copies(problem: Served) -> Copies:
    lead = problem.parts[0]
    a = lead.contractions[0].a
    one = operand(lead, a, lead.m)
    if not lead.statistics and not isinstance(one, str):
        return Copies(((a, one),), (), plain=True) if _whole(one) else Copies()
    found = computed_left(lead)
    if isinstance(found, str) or not all(_whole(o) for _, o in found.staged):
        return Copies()
    known, extents = buffers(lead.program), lead.program.extents
    for e in found.vectors:
        buffer = known[e.attrs[0]]
        if not contiguous(e, buffer, lead.k[-1], 8) or joined_stride(lead.k, axis_strides(e, buffer), extents) != 1:
            return Copies()
    return Copies(found.staged, found.vectors)


def _whole(o: Operand) -> bool:
    """Whether an operand is whole vectors of 16 bytes along k."""
    return o.k_major and o.aligned(8)


def _terms(problem: Served) -> tuple[ContractProblem, ...]:
    """Return the contractions that follow one another along k: those of the first part, or of every term of a sum."""
    return problem.terms if isinstance(problem, SummedContractProblem) else problem.parts[:1]


def _problem_refusal(problem: Served) -> str | None:
    if not isinstance(problem, SummedContractProblem):
        return few_rows_refusal(problem)
    if refusal := next((r for t in problem.terms if (r := few_rows_refusal(t))), None):
        return refusal
    if not all(_copies(t).plain for t in problem.terms):
        return "a term of the sum computes its left operand"
    if len({(_matrix(t).dtype, _matrix(t).k_major) for t in problem.terms}) > 1:
        return "the terms of the sum take big matrices of different dtypes or orders"
    return accumulates_in_f32(problem.parts[0])


def _splits(problem: Served, s: StreamTile) -> tuple[int, ...]:
    """Return how many units of a tile lie before each term, and how many there are."""
    return tuple(itertools.accumulate((-(-t.shape[3] // s.kb) for t in _terms(problem)), initial=0))


def _schedule_refusal(problem: Served, s: StreamTile) -> str | None:
    count, k_major = len(problem.parts[0].contractions), _matrix(problem).k_major
    if not 0 <= s.cluster <= 8:
        return "a cluster has at most 8 blocks"
    if _splits(problem, s)[-1] < s.cluster:
        return f"{_splits(problem, s)[-1]} units of a tile do not give each of {s.cluster} blocks one"
    if s.cluster > 1 and problem.shape[0] * _tiles(problem, s)[-1] > HOPPER.processors * s.blocks // s.cluster:
        return "a cluster that adds sums takes one tile, and there are more tiles than clusters"
    if any(t.shape[3] % 8 for t in _terms(problem)):
        return "x comes in vectors of 8 along k"
    if min(s.cols, s.kb, s.warps, s.ring, s.blocks) < 1 or s.stagers < 0 or s.threads > 1024:
        return "every figure but the stagers is at least 1, and a block has at most 1024 threads"
    if (s.stagers == 0) != _copies(problem).plain:
        return "a plain left operand is copied and needs no stagers (0); any other is made by at least one"
    if s.kb % PANEL or s.kb > 256:
        return "a unit is whole panels of 64 of k, at most four"
    if k_major and (s.cols % 16 or s.cols > 256):
        return "where k is contiguous, a unit has 16 to 256 columns in steps of 16"
    if not k_major and s.cols % PANEL:
        return "where columns are contiguous, a unit is whole panels of 64 columns"
    if count * s.cols % (16 * s.warps):
        return "every warp takes the same number of 16-column tiles"
    if len(problem.statistics) * _rows(problem) > 32 * s.warps:
        return "a thread keeps at most one row statistic"
    if _units(problem, s) >= 2**31:
        return "there are too many units to count"
    tiles = _rows(problem) // 8
    registers = max(count * s.cols // 16 // s.warps * tiles * 4 + 2 * tiles, tiles * s.kb // 32 * 4 + 16)
    if registers > min(224, 65536 // (s.threads * s.blocks)) - 32:
        return f"{registers} registers of sums or of x a thread do not fit beside {s.blocks} blocks of {s.threads} threads"
    if _stages(problem, s) <= max(2, s.stagers):
        return (
            f"{_stages(problem, s)} units of {_unit_bytes(problem, s)} bytes fit into the ring; it needs 3, and more than stagers"
        )
    return None


def _matrix(problem: Served) -> Operand:
    found = big_matrices(problem.parts[0])
    assert not isinstance(found, str)
    return found[0]


def _rows(problem: Served) -> int:
    return -(-problem.shape[1] // 8) * 8


def _tiles(problem: Served, s: StreamTile) -> tuple[int, ...]:
    """Return how many column tiles lie before each part, and how many there are."""
    return tuple(itertools.accumulate((-(-p.shape[2] // s.cols) for p in problem.parts), initial=0))


def _units(problem: Served, s: StreamTile) -> int:
    return problem.shape[0] * _tiles(problem, s)[-1] * _splits(problem, s)[-1]


def _grid(problem: Served, s: StreamTile) -> int:
    most = HOPPER.processors * s.blocks
    if s.cluster:
        return min(most // s.cluster, problem.shape[0] * _tiles(problem, s)[-1]) * s.cluster
    return min(most, _units(problem, s))


def _vectors_at(problem: Served, s: StreamTile) -> list[int]:
    """Return where the vectors lie behind the matrices of the left operand in a slot, and where they end."""
    copies = _copies(problem)
    sizes = (-(-s.kb * e.dtype.bytes // 128) * 128 for e in copies.vectors)
    return list(itertools.accumulate(sizes, initial=max(1, len(copies.matrices)) * _rows(problem) * s.kb * 2))


def _left_bytes(problem: Served, s: StreamTile) -> int:
    """Bytes of a slot for the left operand, in whole swizzled panels."""
    return -(-_vectors_at(problem, s)[-1] // 1024) * 1024


def _unit_bytes(problem: Served, s: StreamTile) -> int:
    """Bytes of a slot of the ring: the matrices, the left operand, and the statistics of a unit."""
    matrices = 2 * s.kb * len(problem.parts[0].contractions) * s.cols
    return matrices + _left_bytes(problem, s) + 4 * len(problem.statistics) * _rows(problem)


def _stages(problem: Served, s: StreamTile) -> int:
    room = min(HOPPER.shared_bytes // s.blocks - (s.blocks - 1) * RESERVED - _inbox_bytes(problem, s), 1024 * s.ring) - 1024 - 16
    return min(MOST_STAGES, room // (_unit_bytes(problem, s) + 24))


def _shared_bytes(problem: Served, s: StreamTile) -> int:
    return 1024 + _stages(problem, s) * (_unit_bytes(problem, s) + 24) + 16 + _inbox_bytes(problem, s)


def _inbox_bytes(problem: Served, s: StreamTile) -> int:
    """Bytes for the sums that the blocks of a cluster send for one of them to add."""
    if not s.cluster:
        return 0
    fragments = s.cols // 16 * (_rows(problem) // 8)
    sums = 512 * s.cluster * -(-fragments // s.cluster) * len(problem.parts[0].contractions)
    return 16 + sums + 4 * s.cluster * len(problem.statistics) * _rows(problem) + 16


def _slot_floats(problem: Served, s: StreamTile) -> int:
    """Floats that a block leaves of a tile that it shares."""
    return _rows(problem) * (len(problem.parts[0].contractions) * s.cols + len(problem.statistics))


def _counters(problem: Served, s: StreamTile) -> int:
    """Words at the start of the workspace that count the blocks that have left their sums of each tile, in whole vectors."""
    return -(-problem.shape[0] * _tiles(problem, s)[-1] // 4) * 4


def _workspace_bytes(problem: Served, s: StreamTile) -> int:
    return 0 if s.cluster else 4 * (_counters(problem, s) + 2 * _grid(problem, s) * _slot_floats(problem, s))


def _constants(problem: Served, s: StreamTile) -> str:
    batch, m, _, k = problem.parts[0].shape
    values = {
        "BATCH": batch, "M": m, "K": k, "COUNT": len(problem.parts[0].contractions), "STATISTICS": len(problem.statistics),
        "TILES": _tiles(problem, s)[-1], "COLS": s.cols, "KB": s.kb, "WARPS": s.warps, "STAGERS": s.stagers,
        "STAGES": _stages(problem, s), "BLOCKS": s.blocks, "GRID": _grid(problem, s), "THREADS": s.threads,
        "COUNTERS": _counters(problem, s), "CK": max(1, s.cluster), "SPLITS": _splits(problem, s)[-1], "LEFT_BYTES": _left_bytes(problem, s),
    }  # fmt: skip
    return "\n".join(
        [*(f"constexpr int {name} = {v};" for name, v in values.items()), f"using T = {stored_type(_matrix(problem).dtype)};"]
    )


def _kernel(problem: Served, s: StreamTile) -> str:
    lead, big = problem.parts[0], _matrix(problem)
    several = len(problem.parts) > 1
    copies = _copies(problem)
    kind = {"copied"} if copies.plain else {"made", "computed", "copied"} if copies.matrices else {"made", "fetched"}
    flags = {
        "k_major" if big.k_major else "n_major",
        *({"cluster", "shared" if s.cluster > 1 else "alone"} if s.cluster else {"even"}),
        "shared" if s.cluster > 1 else "single",
        *({"shared_made"} if s.cluster > 1 and s.stagers else {}),
        *({"even_statistics"} if problem.statistics and not s.cluster else {}),
        *kind,
        *(["statistics"] if problem.statistics else []),
    }
    ops = [combine(lead, j) for j in range(len(problem.statistics))]
    at = "smem + STATISTICS_AT + s * STATISTIC_BYTES"
    neutral = "".join(f"threadIdx.x < {j + 1} * ROWS ? {op}::neutral() : " for j, op in enumerate(ops)) + "0.f"
    first = f"(slab - {_by_part(problem, s, _tiles(problem, s)[:-1])}) * COLS" if several else "slab * COLS"
    slots = {
        "PARAMETERS": [_parameters(problem, s)],
        "PREFETCH": [f"tma_prefetch(&{name});" for name in _map_names(problem)],
        "LOAD_LEFT": _load_computed(problem, s, copies) if s.stagers and copies.matrices else [],
        "SELECT": [f"const int n0 = {first};", *_select(problem, s)],
        "LOAD": _load(problem, s),
        "INIT": [f"float part{j} = {op}::neutral();" for j, op in enumerate(ops)],
        "STAGE": _stage_computed(problem, s, copies) if copies.matrices else stage_left(lead, 8),
        "REDUCE_ROWS": [
            line
            for j, op in enumerate(ops)
            for line in (f"UNROLL for (int o = 8; o < 32; o *= 2) part{j} = {op}::of(part{j}, shuffle_xor(part{j}, o));", f"found[t][{j}] = part{j};")
        ],
        "LEAVE_ROWS": [
            f"if (lane < 8) put_slot_word({at} + ({j} * ROWS + 8 * t + lane) * 4, __float_as_uint(found[t][{j}]));" for j in range(len(ops))
        ],
        "STATISTIC_NEUTRAL": [neutral],
        "ADD_STATISTICS": [
            f"if (threadIdx.x / ROWS == {j}) stat = {op}::of(stat, __uint_as_float(slot_word({at} + threadIdx.x * 4)));"
            for j, op in enumerate(ops)
        ],
        "PLACE": [f"const int n0 = {first};"],
        "STATISTICS_HERE": [f"float all{j}[MINE]; UNROLL for (int i = 0; i < MINE; ++i) all{j}[i] = {op}::neutral();" for j, op in enumerate(ops)],
        "GATHER_STATISTICS": [
            f"UNROLL for (int i = 0; i < MINE; ++i) all{j}[i] = {op}::of(all{j}[i], {_part_of_statistic(s, j)});"
            for j, op in enumerate(ops)
        ],
        "STATISTIC_AGAIN": [f"stat = {neutral};"] if problem.statistics else [],
        "PUSH_STATISTICS": _push_statistics(problem, s),
        "STATISTICS_OF_ROW": [f"const float stat{j} = all{j}[i];" for j in range(len(ops))],
        "EPILOGUE": _finish(problem, s),
        "MMA": ["mma16816_f16" if big.dtype is DType.F16 else "mma16816"],
    }  # fmt: skip
    return fill(part("stream.cu"), flags, slots)


def _part_of_statistic(s: StreamTile, j: int) -> str:
    """Print what block `c` has of a statistic, for the row of fragment `i`."""
    row = f"{j} * ROWS + (from_fragment + i * WARPS) % MT * 8 + lane % 4 * 2 + lane / 4 % 2"
    if s.cluster:
        return f"__uint_as_float(slot_word(smem + INBOX_STATISTICS + (c * STATISTICS * ROWS + {row}) * 4))"
    return f"far_one(from + COUNT * COLS * ROWS + {row})"


def _push_statistics(problem: Served, s: StreamTile) -> list[str]:
    """Print how a block's statistics go to every block of its cluster."""
    if not problem.statistics or not s.cluster:
        return []
    here = "threadIdx.x < STATISTICS * ROWS"
    if s.cluster == 1:
        return [f"if ({here}) put_slot_word(smem + INBOX_STATISTICS + threadIdx.x * 4, __float_as_uint(stat));"]
    to = "smem + INBOX_STATISTICS + (rank_here() * STATISTICS * ROWS + threadIdx.x) * 4"
    return [f"if ({here}) UNROLL for (int to = 0; to < CK; ++to) push1({to}, stat, smem + ALL_HERE, to);"]


def _load(problem: Served, s: StreamTile) -> list[str]:
    """Print the copies of a unit: the big matrices, and a left operand that is plain."""
    several, terms, splits = len(problem.parts) > 1, _terms(problem), _splits(problem, s)
    out: list[str] = []
    for i, term in enumerate(terms):
        k = f"k - {splits[i] * s.kb}" if i else "k"
        maps = [f"matrix{c}" if several else f"&{name}" for c, name in enumerate(_maps(problem)[i])]
        lines = [
            f"load_matrix(smem + s * W_BYTES + {c} * MATRIX, {name}, full + 8 * s, n0, {k}, batch);"
            for c, name in enumerate(maps)
        ]
        if _copies(term).plain:
            lines.append(f"load_left(smem + LEFT_AT + s * LEFT_BYTES, &map_x{i}, full + 8 * s, {k}, batch);")
        if len(terms) > 1:
            head = f"if (k < {splits[i + 1] * s.kb}) {{" if i + 1 < len(terms) else "{"
            lines = [f"{'else ' if i else ''}{head}", *(f"  {line}" for line in lines), "}"]
        out += lines
    return out


def _load_computed(problem: Served, s: StreamTile, copies: Copies) -> list[str]:
    """Print the copies of what the left operand of a unit is computed from."""
    lead, at = problem.parts[0], _vectors_at(problem, s)
    known, pointers = buffers(problem.program), parameter_names(problem.program)
    names = axis_names({"batch": lead.batch, "k": lead.k}, problem.program.extents)
    each = sum(e.dtype.bytes for e in copies.vectors)
    out = [
        "const u32 left = smem + LEFT_AT + s * LEFT_BYTES;",
        f"mbar_expect(raw_full + 8 * s, {len(copies.matrices)} * LEFT_MATRIX + {each} * min(KB, K - k));",
    ]
    out += [f"load_left(left + {i} * LEFT_MATRIX, &map_x{i}, raw_full + 8 * s, k, batch);" for i in range(len(copies.matrices))]
    for i, e in enumerate(copies.vectors):
        name = e.attrs[0]
        source = f"{pointers[name]} + {print_offset(e, known[name], names)}"
        out.append(f"bulk_load(left + {at[i]}, {source}, {e.dtype.bytes} * min(KB, K - k), raw_full + 8 * s);")
    return out


def _stage_computed(problem: Served, s: StreamTile, copies: Copies) -> list[str]:
    """Print how 8 neighbours of the left operand come of what was copied, and what the statistics take of them."""
    at = _vectors_at(problem, s)
    at_hand: dict[Expr, str] = {}
    before = []
    for i, (e, o) in enumerate(copies.matrices):
        before.append(
            f"const Raw<16> raw{i} = slot_raw<16>(left + {i} * LEFT_MATRIX + left_place(8 * t + lane % 8, 4 * c + lane / 8));"
        )
        at_hand[e] = f"Element<{stored_type(o.dtype)}>::get(raw{i}, e)"
    for i, e in enumerate(copies.vectors):
        before.append(
            f"const auto vector{i} = slot_raw<{8 * e.dtype.bytes}>(left + {at[i]} + (32 * c + lane / 8 * 8) * {e.dtype.bytes});"
        )
        at_hand[e] = f"Element<{stored_type(e.dtype)}>::get(vector{i}, e)"
    return [*before, *stage_left(problem.parts[0], 8, at_hand)]


def _by_part(problem: Served, s: StreamTile, values: Sequence[object]) -> str:
    """Print the choice of a value by the part that a tile belongs to."""
    chosen = "".join(f"slab < {end} ? {v} : " for v, end in zip(values[:-1], _tiles(problem, s)[1:], strict=False))
    return f"({chosen}{values[-1]})" if chosen else str(values[-1])


def _maps(problem: Served) -> list[list[str]]:
    """Return the names of the tensor maps of the big matrices: of each part, or of each term of a sum."""
    groups = _terms(problem) if isinstance(problem, SummedContractProblem) else problem.parts
    several = len(groups) > 1
    return [[f"map_w{c}_{i}" if several else f"map_w{c}" for c in range(len(p.contractions))] for i, p in enumerate(groups)]


def _map_names(problem: Served) -> list[str]:
    lefts = sum(len(_copies(t).matrices) for t in _terms(problem))
    return [*(f"map_x{i}" for i in range(lefts)), *(name for group in _maps(problem) for name in group)]


def _select(problem: Served, s: StreamTile) -> list[str]:
    """Print which matrices a tile is of."""
    if len(problem.parts) == 1:
        return []
    groups = zip(*_maps(problem), strict=True)
    return [f"const TMap* const matrix{c} = {_by_part(problem, s, [f'&{name}' for name in g])};" for c, g in enumerate(groups)]


def _finish(problem: Served, s: StreamTile) -> list[str]:
    """Print the epilogue and the store of a pair of columns, for the part that the tile belongs to."""
    accumulators = [f"pair[{c}][e]" for c in range(len(problem.parts[0].contractions))]
    statistics = [f"stat{j}" for j in range(len(problem.statistics))]
    out: list[str] = []
    for i, p in enumerate(problem.parts):
        lines = ["float y[2];", *epilogue(p, accumulators, statistics), *direct_store(p)]
        if len(problem.parts) > 1:
            head = f"if (slab < {_tiles(problem, s)[i + 1]}) {{" if i + 1 < len(problem.parts) else "{"
            lines = [f"{'else ' if i else ''}{head}", *(f"  {line}" for line in lines), "}"]
        out += lines
    return out


def _read_beside(problem: Served) -> list[str]:
    """Return the buffers that are passed as pointers: what x is made of, and what the epilogues read."""
    lead, copies = problem.parts[0], _copies(problem)
    mapped = dict.fromkeys((e for e, _ in copies.matrices), "")
    left = loads_of([lead.contractions[0].a, *(nest(e)[1] for e in problem.statistics)], mapped)
    read = frozenset((e.args[0] if e.op == "access" else e).attrs[0] for e in left).union(
        *(epilogue_reads(p) for p in problem.parts)
    )
    return [i.name for i in used_inputs(problem.program) if i.name in read]


def _parameters(problem: Served, s: StreamTile) -> str:
    names, inputs = parameter_names(problem.program), {i.name: i for i in problem.program.inputs}
    outs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    return ", ".join(
        [
            *(f"TMAP {name}" for name in _map_names(problem)),
            *(f"const {stored_type(inputs[p].dtype)}* __restrict__ {names[p]}" for p in _read_beside(problem)),
            *(f"{stored_type(o.dtype)}* __restrict__ {name}" for o, name in outs),
            *([] if s.cluster else ["float* __restrict__ workspace"]),
        ]
    )


def _arguments(problem: Served, s: StreamTile) -> tuple[Arg, ...]:
    maps = [_tensor_map(t, o, t.shape[1], _rows(problem)) for t in _terms(problem) for _, o in _copies(t).matrices]
    for p in _terms(problem) if isinstance(problem, SummedContractProblem) else problem.parts:
        found = big_matrices(p)
        assert not isinstance(found, str)
        maps += [_tensor_map(p, b, p.shape[2], s.cols if b.k_major else s.kb) for b in found]
    beside = [BufferArg(name) for name in (*_read_beside(problem), *(o.name for o in problem.program.outputs))]
    return (*maps, *beside) if s.cluster else (*maps, *beside, WorkspaceArg(zeroed=True))


def _tensor_map(problem: ContractProblem, o: Operand, rows: int, box: int) -> TensorMapArg:
    """Return the map of an operand of so many rows (or columns), of which a copy takes `box` by a panel of what is contiguous."""
    batch, _, _, k = problem.shape
    inner, outer, step = (k, rows, o.row_stride) if o.k_major else (rows, k, o.k_stride)
    row = 2 * step or -(-2 * inner // 16) * 16  # where the extent is 1, any stride that TMA accepts
    return TensorMapArg(o.name, o.dtype, (inner, outer, batch), (row, 2 * o.batch_stride or row * outer), (PANEL, box, 1), 128)
