"""Cumulative sums, products and extrema in one pass along their axis: rows held by the threads of a block, or columns side by side."""

from __future__ import annotations

import math

from eqsat.codegen.cuda.bounds import latency_factor, processors, traffic_ns
from eqsat.codegen.cuda.emit import refuse_illegal
from eqsat.codegen.cuda.scan_print import ScanPrinter
from eqsat.codegen.cuda.scan_schedule import HINTS, ScanColumnTile, ScanGridTile, ScanRowTile, Tile
from eqsat.codegen.cuda.scan_shape import ScanShape, scan_shape
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Problem, ReduceProblem
from eqsat.codegen.targets import Target

WIDTHS = (1, 2, 4, 8, 16, 32)
HELD_REGISTERS = 160  # of 255 for each thread; the rest computes
MOST_TILES = 8192  # of a row: each block reads the totals of all before it
MOST_WAITING = 1 << 20
STATIC_SHARED_BYTES = 48 * 1024


class ScanFamily:
    """Cumulative reductions on CUDA."""

    name = "scan"
    schedules: tuple[type[Schedule], ...] = (ScanRowTile, ScanColumnTile, ScanGridTile)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ReduceProblem):
            return f"a scan kernel cannot serve a {problem.family} problem"
        shape = scan_shape(problem)
        if isinstance(shape, str):
            return shape
        match schedule:
            case ScanRowTile():
                return _row_refusal(shape, schedule)
            case ScanColumnTile():
                return _column_refusal(shape, schedule)
            case ScanGridTile():
                return _grid_refusal(shape, schedule)
            case _:
                return f"a scan kernel has no schedule {type(schedule).__name__}"

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, Tile)
        shape = scan_shape(problem)
        assert not isinstance(shape, str)
        return ScanPrinter(shape, schedule).kernel()

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time to move each byte once."""
        return traffic_ns(problem.program, rates)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: the bytes at the memory rate, stretched by idle processors, narrow accesses and barriers."""
        assert isinstance(problem, ReduceProblem)
        assert isinstance(schedule, Tile)
        shape = scan_shape(problem)
        assert not isinstance(shape, str)
        return self.bound_ns(problem, rates) * _model_factor(shape, schedule, rates)

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: every CUDA device."""
        return target.kind == "cuda"


def _held(shape: ScanShape, count: int, lanes: int, ahead: int = 0) -> int:
    """Return the registers of a thread's vectors: what was loaded (twice with the next tile `ahead`) and what is added up."""
    loaded = sum(max(x.dtype.bytes, 4 if lanes == 1 else 1) for x in shape.loads)
    summed = sum(max(s.node.dtype.accumulator.bytes, 4) for s in shape.scans)
    plain = all(s.operand.digest in {x.expr.digest for x in shape.loads} for s in shape.scans)  # a load is what is added up
    return count * lanes * ((max(loaded, summed) if plain else loaded + summed) + ahead * loaded) // 4


def _common_refusal(shape: ScanShape, count: int, width: int, ahead: int) -> str | None:
    if count not in (1, 2, 4, 8, 16, 32) or width not in WIDTHS or ahead not in (0, 1):
        return f"a thread holds 1 to 32 vectors, a power of two, the width is one of {WIDTHS}, and one tile is ahead or none"
    lanes = shape.lanes(width)
    if lanes > 1 and shape.inner.extent % lanes:
        return f"the innermost extent {shape.inner.extent} is not a multiple of the {lanes} elements of a vector"
    if width > 1 and lanes == 1:
        return "a vector of this width holds a single element: it is the schedule of width 1"
    held = _held(shape, count, lanes, ahead)
    return f"{held} registers for each thread; {HELD_REGISTERS} are there" if held > HELD_REGISTERS else None


def _row_refusal(shape: ScanShape, s: ScanRowTile) -> str | None:
    if s.warps not in (1, 2, 4, 8, 16, 32) or not 1 <= s.rows * s.warps <= 32 or not 0 <= s.hint < len(HINTS):
        return "a row has 1 to 32 warps, a block 32 in all; hints are 0 to 3"
    if s.rows > 1 and s.warps > 1 and s.rows > 15:
        return "15 rows have barriers of their own"
    if not shape.rowwise:
        return "the outputs are not contiguous along the scanned axis"
    if why := _common_refusal(shape, s.count, s.width, s.ahead):
        return why
    vectors = shape.along.extent // shape.lanes(s.width)
    held = _held(shape, s.count, shape.lanes(s.width), s.ahead) + 24
    if held * 32 * s.warps * s.rows > 65536:
        return "a block's vectors do not fit into the registers"
    if s.ahead and vectors <= 32 * s.warps * s.count:
        return "a row is one tile: none is ahead"
    return "the block has more vectors than the row" if 32 * s.warps * s.count >= 2 * max(vectors, 32) else None


def _grid_refusal(shape: ScanShape, s: ScanGridTile) -> str | None:
    if why := _row_refusal(shape, ScanRowTile(s.warps, 1, s.count, s.width, s.hint)):
        return why
    tiles = -(-(shape.along.extent // shape.lanes(s.width)) // (32 * s.warps * s.count))
    if tiles < 2 or tiles > MOST_TILES:
        return f"a row has {tiles} tiles; blocks share 2 to {MOST_TILES}"
    blocks = tiles * math.prod(x.extent for x in shape.outer)
    return f"{blocks} blocks wait for each other; {MOST_WAITING} at most" if blocks > MOST_WAITING else None


def _column_refusal(shape: ScanShape, s: ScanColumnTile) -> str | None:
    threads = s.columns * s.groups
    if s.columns not in (8, 16, 32, 64, 128) or s.groups not in (1, 2, 4, 8, 16, 32) or not 32 <= threads <= 1024:
        return "columns are 8 to 128, groups 1 to 32, powers of two, 32 to 1024 threads in all"
    if shape.rowwise:
        return "the outputs are contiguous along the scanned axis"
    if why := _common_refusal(shape, s.count, s.width, s.ahead):
        return why
    lanes = shape.lanes(s.width)
    shared = sum(2 * threads * lanes * max(x.node.dtype.accumulator.bytes, 1) for x in shape.scans)
    if shared > STATIC_SHARED_BYTES:
        return f"{shared} bytes of shared memory; {STATIC_SHARED_BYTES} are there without asking for more"
    if s.ahead and shape.along.extent <= s.groups * s.count:
        return "a scan is one tile: none is ahead"
    if (_held(shape, s.count, lanes, s.ahead) + 2 * lanes * len(shape.scans) + 24) * threads > 65536:
        return "a block's vectors do not fit into the registers"
    return "the block has more positions than the axis" if s.groups * s.count >= 2 * shape.along.extent else None


def _model_factor(shape: ScanShape, s: Tile, rates: Rates) -> float:
    lanes = shape.lanes(s.width)
    size = max((x.dtype.bytes for x in shape.loads), default=4)
    rows = math.prod(x.extent for x in shape.outer)
    if isinstance(s, ScanGridTile):
        blocks, threads, tiles = shape.along.extent * rows / (32 * s.warps * s.count * lanes), 32 * s.warps, 1.0
    elif isinstance(s, ScanRowTile):
        blocks, threads = rows / s.rows, 32 * s.warps * s.rows
        tiles = shape.along.extent / (32 * s.warps * s.count * lanes)
    else:
        blocks, threads = rows * shape.inner.extent / (s.columns * lanes), s.columns * s.groups
        tiles = shape.along.extent / (s.groups * s.count)
    ahead = 0 if isinstance(s, ScanGridTile) else s.ahead
    resident = min(blocks / processors(rates), 65536 / ((_held(shape, s.count, lanes, ahead) + 24) * threads), 2048 / threads)
    waiting = latency_factor(rates, resident * threads * processors(rates), (1 + ahead) * s.count * lanes * size)
    narrow = 0.03 * math.log2(max(16 / (lanes * size), 1))
    whole = math.ceil(tiles) / tiles  # a last tile that is partly empty
    # Slopes of a sweep on an H200 (cumulative sums of 4096 rows of 16384 floats): barriers for each tile, a long chain in each
    # thread, few or all threads of a multiprocessor in one block, streaming stores. A tile ahead was not in it.
    factor = 1.03 + narrow + 0.3 * (whole - 1) + 0.012 * math.log2(max(math.ceil(tiles), 1))
    factor += 0.04 * (s.count * lanes * size > 128) + 0.1 * max(1 - resident, 0)
    factor += 0.01 * max(math.log2(512 / threads), 0) + 0.03 * (threads > 512)
    if not isinstance(s, ScanColumnTile):
        factor += 0.03 * (s.hint > 0)
    if isinstance(s, ScanGridTile):
        factor += 0.06  # waiting for the tiles before
    return factor * waiting
