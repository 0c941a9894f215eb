"""What the schedules of the reduce family ask of a problem: layouts, registers, shared memory."""

from __future__ import annotations

from eqsat.codegen.cuda.loads import Load, LoopAxis
from eqsat.codegen.cuda.reduce_held_columns import elements_each
from eqsat.codegen.cuda.reduce_held_rows import SHARED_BYTES, staged_bytes, staged_loads, vectors_each
from eqsat.codegen.cuda.reduce_parked import held_registers, parked_bytes, vectors_of
from eqsat.codegen.cuda.reduce_rows import REGISTERS
from eqsat.codegen.cuda.reduce_schedule import (
    HINTS,
    ColumnTile,
    GridReduceTile,
    HeldColumnTile,
    HeldGridTile,
    ParkedRowTile,
    RowTile,
)
from eqsat.codegen.cuda.reduce_shape import ReduceShape, row_registers, wide_dtype

WIDTHS = (1, 2, 4, 8, 16, 32)
HELD_REGISTERS = 160  # of 255 for each thread; the rest computes
STATIC_SHARED_BYTES = 48 * 1024
COMPUTING = 20  # registers of a thread besides those that hold, at the least
PARKING_STEP = 4  # vectors: the menu's step
CLUSTERS = (1, 2, 4, 8, 16)


def _width_refusal(shape: ReduceShape, inner: LoopAxis, width: int) -> str | None:
    lanes = shape.lanes(width, inner)
    if lanes > 1 and inner.extent % lanes:
        return f"the innermost extent {inner.extent} is not a multiple of the {lanes} elements of a vector"
    if width > 1 and lanes == 1:
        return "a vector of this width holds a single element: it is the schedule of width 1"
    largest = max((x.buffer.elements for x in shape.loads), default=0)
    loads = [x for x in shape.loads if x.buffer.elements == largest]
    stores = shape.element_stores
    if width > 1 and not any(shape.mode(x, inner, lanes) == "vector" for x in (*loads, *stores)):
        return "nothing large is contiguous along its vectors"
    other = shape.rows[-1] if inner is shape.reduced[-1] else shape.reduced[-1]
    if any(_contiguous(x, other) for x in loads) and not any(_contiguous(x, inner) for x in (*loads, *stores)):
        return "what it reads is contiguous along the other axes: lanes would stride"
    if width == 1 and shape.lanes(16, inner) > 1 and inner.extent % shape.lanes(16, inner) == 0:
        wide = shape.lanes(16, inner)
        if any(x.axes & set(inner.axes) for x in loads) and all(shape.mode(x, inner, wide) == "vector" for x in loads):
            return "single elements where vectors of 16 bytes serve"
    return None


def _contiguous(load: Load, loop: LoopAxis) -> bool:
    return bool(loop.axes) and load.step(loop.axes[-1]) == 1


def row_refusal(shape: ReduceShape, s: RowTile) -> str | None:
    """Return why a schedule for rows in the registers of a block or a cluster cannot serve a problem, or None."""
    if s.warps not in (1, 2, 4, 8, 16, 32) or s.cluster not in CLUSTERS or not 1 <= s.rows <= 8 or s.warps * s.rows > 32:
        return "a row has a power of two of warps up to 32, a cluster up to 16 blocks, a block up to 8 rows and 32 warps"
    if s.rows > 1 and s.cluster > 1:
        return "a cluster serves one row"
    if s.width not in WIDTHS or s.stream not in (0, 1, 2, 4, 8) or not 0 <= s.hint < len(HINTS):
        return f"the width is one of {WIDTHS}, the stream one of 0, 1, 2, 4, 8, the hint one of 0 to {len(HINTS) - 1}"
    inner, length = shape.reduced[-1], shape.problem.length
    lanes = shape.lanes(s.width, inner)
    if why := _width_refusal(shape, inner, s.width):
        return why
    vectors = length // lanes
    threads = s.warps * 32
    if s.warps > 1 and threads * s.cluster > 2 * max(vectors, 1):
        return f"{threads * s.cluster} threads share {vectors} vectors of a row"
    each = -(-max(vectors, 1) // (s.cluster * threads)) if s.stream == 0 else s.stream
    registers = row_registers(shape, each * lanes, inner, lanes)
    budget = min(HELD_REGISTERS, REGISTERS // (threads * s.rows) - 24)
    if registers > budget:
        return f"{registers} registers for each thread to hold its part of the row; {budget} are there"
    if s.stream and s.cluster > 1 and vectors <= s.stream * threads:
        return "a row this short fits the registers"
    return "registers hold what the passes would read again" if s.stream and not shape.single and vectors <= 8 * threads else None


def column_refusal(shape: ReduceShape, s: ColumnTile) -> str | None:
    """Return why a schedule for columns cannot serve a problem, or None."""
    if (
        s.columns % 8
        or s.columns * s.groups % 32
        or not 32 <= s.columns * s.groups <= 1024
        or not 1 <= s.count <= 16
        or s.split < 1
    ):
        return "columns are a multiple of 8, columns times groups one of 32 and at most 1024; 1 to 16 elements are in flight"
    if s.width not in WIDTHS:
        return f"the width is one of {WIDTHS}"
    if s.split > 1 and not shape.single:
        return "only one pass without elements in the output can be split over blocks"
    if s.split > 1 and s.split * s.groups > shape.problem.length:
        return "more thread groups than elements along the reduced axes"
    inner = shape.rows[-1]
    lanes = shape.lanes(s.width, inner)
    if why := _width_refusal(shape, inner, s.width):
        return why
    wide = 16 if any(r.is_arg for g in shape.passes for r in g) else wide_dtype(shape).bytes
    shared = sum(s.columns * s.groups * lanes * wide for g in shape.passes for _ in g) if s.groups > 1 else 0
    if shared > STATIC_SHARED_BYTES:
        return f"{shared} bytes of shared memory for the partial results; {STATIC_SHARED_BYTES} are there without asking for more"
    loads = sum(max(lanes * x.dtype.bytes // 4, 1) for x in shape.loads)
    words = s.count * loads + lanes * wide // 4 * len(shape.problem.reductions)
    budget = min(HELD_REGISTERS, REGISTERS // (s.columns * s.groups) - 24)
    return f"{words} registers for each thread; {budget} are there" if words > budget else None


def held_column_refusal(shape: ReduceShape, s: HeldColumnTile) -> str | None:
    """Return why a schedule for columns that are held cannot serve a problem, or None."""
    threads = s.columns * s.groups
    if s.columns not in (4, 8, 16, 32, 64, 128, 256) or threads % 32 or not 64 <= threads <= 1024 or s.groups < 1:
        return "columns are a power of two from 4 to 256, and columns times groups a multiple of 32 from 64 to 1024"
    if s.cluster not in CLUSTERS or s.width not in WIDTHS or not 0 <= s.hint < len(HINTS):
        return f"the cluster is one of {CLUSTERS}, the width one of {WIDTHS}, the hint one of 0 to {len(HINTS) - 1}"
    if shape.single:
        return "one pass over the elements needs none of them later"
    if s.groups * s.cluster > max(shape.problem.length, 1):
        return "more thread groups than elements along the reduced axes"
    inner = shape.rows[-1]
    lanes = shape.lanes(s.width, inner)
    if why := _width_refusal(shape, inner, s.width):
        return why
    if s.columns * lanes > 2 * max(shape.problem.row_count, lanes) and s.columns > 4:
        return "more than half of the columns of a block are none"
    parts = threads // 32 if s.columns < 32 else s.groups
    shared = sum((parts + 1) * s.columns * lanes * max(r.partial_bytes, 4) for g in shape.passes for r in g)
    if shared > STATIC_SHARED_BYTES:
        return f"{shared} bytes of shared memory for the partial results; {STATIC_SHARED_BYTES} are there without asking for more"
    registers = row_registers(shape, elements_each(shape, s) * lanes, inner, lanes)
    budget = min(HELD_REGISTERS, REGISTERS // threads - 24)
    return f"{registers} registers for each thread to hold its elements; {budget} are there" if registers > budget else None


def held_grid_refusal(shape: ReduceShape, s: HeldGridTile) -> str | None:
    """Return why a schedule for rows that teams of blocks hold cannot serve a problem, or None."""
    if s.threads not in (128, 256, 512, 1024) or s.split < 1 or not 1 <= s.teams <= max(shape.problem.row_count, 1):
        return "threads are a power of two from 128 to 1024, and there is a row for each team"
    if s.width not in WIDTHS or s.ahead not in (0, 1) or not 0 <= s.hint < len(HINTS):
        return f"the width is one of {WIDTHS}, ahead 0 or 1, the hint one of 0 to {len(HINTS) - 1}"
    if shape.single:
        return "one pass over the elements needs none of them later"
    inner = shape.reduced[-1]
    lanes = shape.lanes(s.width, inner)
    if why := _width_refusal(shape, inner, s.width):
        return why
    if s.split * s.threads > 2 * max(shape.problem.length // lanes, 1):
        return "more threads than vectors in a row"
    registers = row_registers(shape, vectors_each(shape, s) * lanes, inner, lanes)
    budget = min(HELD_REGISTERS, REGISTERS // s.threads - 24)
    if registers > budget:
        return f"{registers} registers for each thread to hold its part of the row; {budget} are there"
    far = s.split > CLUSTERS[-1]
    if s.ahead and s.teams >= shape.problem.row_count:
        return "no row comes after a team's first"
    if s.ahead and not staged_loads(shape, s.width):
        return "nothing that is held comes in aligned chunks of 16 bytes"
    if not far and (s.split not in CLUSTERS or not s.ahead):
        return "a team of one block or a cluster takes row after row where the next one is on its way"
    shared = staged_bytes(shape, s)
    return f"{shared} bytes of shared memory for the row that comes; {SHARED_BYTES} are there" if shared > SHARED_BYTES else None


def parked_refusal(shape: ReduceShape, s: ParkedRowTile) -> str | None:
    """Return why a schedule for rows that are parked in part cannot serve a problem, or None."""
    threads = 32 * s.warps
    if s.warps not in (4, 8, 16, 32) or s.cluster not in CLUSTERS or not 1 <= s.resident <= 2048 // threads:
        return f"a block has 4, 8, 16 or 32 warps, a multiprocessor 2048 threads, the cluster is one of {CLUSTERS}"
    if s.width not in WIDTHS or not 0 <= s.hint < len(HINTS):
        return f"the width is one of {WIDTHS}, the hint one of 0 to {len(HINTS) - 1}"
    if shape.single:
        return "one pass over the elements needs none of them later"
    inner = shape.reduced[-1]
    if why := _width_refusal(shape, inner, s.width):
        return why
    vectors = vectors_of(shape, s)
    if not 1 <= s.parked <= vectors:
        return f"{s.parked} of the {vectors} vectors of a thread are parked"
    if len(staged_loads(shape, s.width)) < sum(shape.is_held(x) for x in shape.loads) or not staged_loads(shape, s.width):
        return "not all that is held comes in aligned chunks of 16 bytes"
    shared = parked_bytes(shape, s) * s.resident
    if shared > SHARED_BYTES:
        return f"{shared} bytes of shared memory for what is parked; {SHARED_BYTES} are there"
    budget = min(HELD_REGISTERS, REGISTERS // (threads * s.resident) - COMPUTING)
    registers = held_registers(shape, s, s.parked)
    if registers > budget:
        return f"{registers} registers for each thread to hold the rest of the row; {budget} are there"
    ample = held_registers(shape, s, s.parked - PARKING_STEP) <= budget - COMPUTING
    return "registers could hold more of the row" if ample else None


def grid_refusal(shape: ReduceShape, s: GridReduceTile) -> str | None:
    """Return why a schedule for rows over a grid cannot serve a problem, or None."""
    if s.threads not in (64, 128, 256, 512, 1024) or s.count not in (1, 2, 4, 8) or s.split < 2 or s.width not in WIDTHS:
        return "threads are a power of two from 64 to 1024, count one of 1, 2, 4, 8, and two blocks or more share a row"
    if not 0 <= s.hint < len(HINTS):
        return f"the hint is one of 0 to {len(HINTS) - 1}"
    if not shape.single:
        return "only one pass without elements in the output can be split over blocks"
    inner = shape.reduced[-1]
    lanes = shape.lanes(s.width, inner)
    if why := _width_refusal(shape, inner, s.width):
        return why
    if s.split * s.threads > 2 * shape.problem.length // lanes:
        return "more threads than vectors in a row"
    words = row_registers(shape, s.count * lanes, inner, lanes)
    return f"{words} registers of loads in flight for each thread" if words > HELD_REGISTERS // 2 else None
