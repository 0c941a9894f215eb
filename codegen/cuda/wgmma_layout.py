"""What a wgmma kernel is made of: its schedule point, operands, the use of shared memory, and what no kernel can serve."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

from eqsat.codegen.cuda.left import Left, computed_left
from eqsat.codegen.cuda.operand import Operand, accumulates_in_f32, operand, output_joins, output_vector, plain_read
from eqsat.codegen.kernel import Schedule
from eqsat.codegen.printer import is_load
from eqsat.codegen.problem import Contract, ContractProblem, SummedContractProblem, nest
from eqsat.codegen.targets import TARGETS
from eqsat.types import DType

Served = Contract | SummedContractProblem
SHARED_BYTES = 233472  # shared memory of a multiprocessor of sm_90 (CUDA programming guide, compute capabilities)
SHARED_RESERVED = 1024  # of it, for each block
SMS = TARGETS["sm_90"].processors  # a persistent grid of another size is correct too
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
    `packed` are operands whose rows TMA cannot step over: as they lie, as they are copied, rows (the outer extent) and their length.
    `more` are the operands of further terms of a sum, and how long their sums are.
    Where each block has one tile at the most (`once`), the output is staged in the ring, which has been emptied by then.
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
    once: bool = False
    left: Left | None = None
    packed: tuple[tuple[Operand, Operand, int, int], ...] = ()
    more: tuple[tuple[Operand, Operand, int], ...] = ()

    @property
    def lefts(self) -> tuple[Operand, ...]:
        """The matrices of the left operand that are brought into shared memory."""
        return (self.a,) if self.left is None else tuple(o for _, o in self.left.staged)

    @property
    def staging_bytes(self) -> int:
        """Bytes of shared memory for the staging of one warpgroup alone."""
        return 0 if self.once else self.buffers * PANEL_BYTES


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


def layout_of(problem: Served, s: WgmmaTile) -> Layout | str:
    """Return what follows from a problem and a schedule, or why the schedule cannot serve the problem."""
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
    packed = _packed(problem, s, tuple(dict.fromkeys((*lefts, *every, *(x for x, _, _ in more)))), a)
    if isinstance(packed, str):
        return packed
    if len({b.k_major for b in every}) > 1:
        return "its right operands lie in different orders"
    if len({len(group) for group in bs}) > 1:
        return "its outputs take different numbers of contractions"
    if any(min(p.shape) == 0 for p in problem.parts):
        return "an extent is 0"
    if refusal := _sliced_refusal(problem, s):
        return refusal
    store = store_of(problem, s)
    a_rows = _loaded_rows(problem, s, a, bs[0])
    slot = len(lefts) * _tile_bytes(a, a_rows) + sum(_tile_bytes(b, s.bn) for b in bs[0])
    tiles = s.bm // 64 if s.pingpong else s.bm // (64 * s.groups)
    staged = -(-s.bn // 64) * tiles * PANEL_BYTES
    stages, buffers = _stages(s, slot, store != DIRECT)
    alone, _ = _stages(s, slot, staged=False)
    once = store == TMA and not s.pingpong and tiles_of(problem, s) <= SMS * s.resident and s.groups * staged <= alone * slot
    if once:
        stages, buffers = alone, staged // PANEL_BYTES
    if stages < 3:
        return f"only {stages} stages of {slot} bytes fit into shared memory; a ring needs 3"
    as_copied = {old: new for old, new, _, _ in packed}
    a, bs = as_copied.get(a, a), tuple(tuple(as_copied.get(b, b) for b in group) for group in bs)
    starts = starts_of(problem, s.bn * s.cn)
    return Layout(a, a_rows, bs, starts, store, tiles, slot, buffers, stages, once, computed, packed, more)


def _packed(
    problem: Served, s: WgmmaTile, every: tuple[Operand, ...], a: Operand
) -> tuple[tuple[Operand, Operand, int, int], ...] | str:
    """Return the operands that are to be copied to rows of whole 16 bytes, or why they cannot be."""
    crooked = [o for o in every if not o.aligned(8)]
    if not crooked:
        return ()
    lead = problem.parts[0]
    alone = isinstance(problem, ContractProblem) and s.slices == 1 and plain_read(lead.contractions[0].a) is not None
    if not alone or lead.shape[0] > 1:
        return "TMA needs every stride of its operands to be a multiple of 16 bytes"
    _, m, n, k = lead.shape
    found, at = [], counter_bytes(1)
    for o in crooked:
        outer, inner = (m if o == a else n, k) if o.k_major else (k, m if o == a else n)
        pitch = -(-inner // 8) * 8
        row, step = (pitch, 1) if o.k_major else (1, pitch)
        found.append((o, Operand("", o.dtype, row, step, 0, at), outer, inner))
        at += -(-2 * outer * pitch // 256) * 256
    return tuple(found)


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


def slices_of(problem: Served, s: WgmmaTile) -> tuple[int, int]:
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
    tiles = tiles_of(problem, s)
    if tiles * s.slices > SMS * s.resident:
        return f"{tiles} tiles in {s.slices} slices are not resident at once"
    return None


def tiles_of(problem: Served, s: WgmmaTile) -> int:
    """Return the number of tiles, in whole clusters."""
    batch, m, _, _ = problem.shape
    return batch * -(-m // (s.bm * s.cm)) * s.cm * (starts_of(problem, s.bn * s.cn)[-1] // s.bn)


def part_floats(s: WgmmaTile, layout: Layout) -> int:
    """Return the accumulators of a tile, which a block leaves to those that share its sum."""
    return s.bm * s.bn * len(layout.bs[0])


def workspace_bytes(problem: Served, s: WgmmaTile, layout: Layout) -> int:
    """Return the bytes of the workspace: counters, and copied operands, or the accumulators of each slice."""
    if layout.packed:
        _, last, outer, inner = layout.packed[-1]
        return last.offset + 2 * outer * (-(-inner // 8) * 8)
    tiles = tiles_of(problem, s)
    return counter_bytes(tiles) + 4 * tiles * slices_of(problem, s)[0] * part_floats(s, layout) if s.slices > 1 else 0


def counter_bytes(tiles: int) -> int:
    """Return the bytes of the counters, in whole lines."""
    return -(-4 * tiles // 256) * 256


def store_of(problem: Served, s: WgmmaTile) -> str:
    """Return how the outputs leave: through TMA, by rows through each warp's staging, or straight from registers."""
    if s.slices > 1:
        return DIRECT
    if all(stored_form(p, s) is not None for p in problem.parts):
        return TMA
    return ROWS if all(p.output.dtype.bytes == 2 and output_vector(p) for p in problem.parts) else DIRECT


def starts_of(problem: Served, step: int) -> tuple[int, ...]:
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


def stored_form(problem: ContractProblem, s: WgmmaTile) -> Stored | None:
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
        if joins is not None and joins[2] == 1 and head % panel_of(s) == 0:
            return Stored((head, m, heads), (joins[1], joins[0]), head)
    return None


def panel_of(s: WgmmaTile) -> int:
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


def threads_of(s: WgmmaTile) -> int:
    """Return the threads of a block: consumers, and a producer that is a whole warpgroup where it hands over registers."""
    return s.groups * 128 + (128 if REGISTERS[s.groups][0] else 32)


def shared_bytes(groups: int, slot: int, stages: int, staging: int) -> int:
    """Return the shared memory of a block: staging for each warpgroup, and slots with two barriers each, from a multiple of 1024 on."""
    return 1024 + groups * staging + stages * (slot + 16)


def _stages(s: WgmmaTile, slot: int, staged: bool) -> tuple[int, int]:
    """Return (stages, staging buffers): two buffers unless one makes room for a fourth stage; never more than 8 stages."""
    options = [(0, 0)] if not staged else [(2, 2 * PANEL_BYTES), (1, PANEL_BYTES)]
    limit = SHARED_BYTES // s.resident - SHARED_RESERVED
    fits = [(min(8, (limit - shared_bytes(s.groups, slot, 0, bytes_)) // (slot + 16)), count) for count, bytes_ in options]
    return fits[-1] if fits[0][0] < 4 <= fits[-1][0] or fits[0][0] < 3 else fits[0]
