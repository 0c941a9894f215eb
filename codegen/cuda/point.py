"""Pointwise kernels: every element of each output is a function of loads. Vector accesses along the innermost axis, or turned tiles."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import partial

from eqsat.codegen.cuda.bounds import arithmetic_ns, issue_ns, latency_factor, traffic_ns
from eqsat.codegen.cuda.emit import Scope, assemble, output_names, parameters, refuse_illegal, register_type, stored_type
from eqsat.codegen.cuda.loads import (
    AxisNames,
    Load,
    LoopAxis,
    access_mode,
    axis_names,
    field_type,
    field_value,
    find_loads,
    index_type,
    iota_text,
    join_axes,
    lanes_of,
    load_guard,
    load_offset,
    print_fetch,
    row_major,
    split_index,
)
from eqsat.codegen.cuda.shorten import call_short, short_in_all
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import PointProblem, Problem
from eqsat.codegen.targets import Target
from eqsat.ir import Expr

HINTS = ("PLAIN", "STREAMING", "NO_ALLOCATE", "EVICT_FIRST")
WIDTHS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class PointTile(Schedule):
    """Each thread makes `count` vectors; `width` is the bytes of a vector of the widest stored type (1: single elements)."""

    threads: int
    count: int
    width: int
    hint: int


@dataclass(frozen=True, slots=True)
class TransposeTile(Schedule):
    """Loads that are contiguous along another axis than the output go through `tile` x `tile` tiles in shared memory."""

    tile: int
    threads: int
    width: int
    hint: int


@dataclass(frozen=True, slots=True)
class PointShape:
    """A point problem as loops and loads: what both templates start from."""

    problem: PointProblem
    loads: tuple[Load, ...]
    loops: tuple[LoopAxis, ...]

    @property
    def inner(self) -> LoopAxis:
        """The loop along which the outputs are contiguous."""
        return self.loops[-1]

    @property
    def elements(self) -> int:
        """Elements of each output."""
        return self.problem.output.expr.type.elements

    def lanes(self, width: int) -> int:
        """Return the outputs of one vector: `width` bytes of the widest type among outputs and contiguous loads."""
        wide = [x.dtype for x in self.loads if self.inner.axes and x.step(self.inner.axes[-1]) == 1]
        return lanes_of(width, [*(o.dtype for o in self.problem.program.outputs), *wide])


@functools.lru_cache(maxsize=256)  # asked once for each schedule of a space
def point_shape(problem: PointProblem) -> PointShape:
    """Return the loops of a point problem, axes joined wherever all accesses allow it."""
    program = problem.program
    loads = tuple(find_loads(program).values())
    extents = program.extents
    iotas = {e.attrs[0] for e in program.walk() if e.op == "iota"}
    pinned = frozenset(iotas).union(*(x.pinned for x in loads))
    accesses = [dict(x.steps) for x in loads if x.steps is not None] + [row_major(problem.axes, extents)]
    return PointShape(problem, loads, join_axes(problem.axes, extents, accesses, pinned, "i"))


class PointFamily:
    """Pointwise kernels on CUDA."""

    name = "point"
    schedules: tuple[type[Schedule], ...] = (PointTile, TransposeTile)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, PointProblem):
            return f"a point kernel cannot serve a {problem.family} problem"
        shape = point_shape(problem)
        if isinstance(schedule, TransposeTile):
            return _turned_refusal(shape, schedule)
        if not isinstance(schedule, PointTile):
            return f"a point kernel has no schedule {type(schedule).__name__}"
        if schedule.threads % 32 or not 32 <= schedule.threads <= 1024 or not 1 <= schedule.count <= 8:
            return "threads are a multiple of 32 up to 1024, and a thread makes 1 to 8 vectors"
        if schedule.width not in WIDTHS or not 0 <= schedule.hint < len(HINTS):
            return f"the width is one of {WIDTHS} and the hint one of 0 to {len(HINTS) - 1}"
        return _vector_refusal(shape, schedule)

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, PointProblem)
        shape = point_shape(problem)
        if isinstance(schedule, TransposeTile):
            return _emit_turned(shape, schedule)
        assert isinstance(schedule, PointTile)
        return _emit_vectors(shape, schedule)

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time to move each byte once, at least an empty kernel's."""
        program = problem.program
        return max(traffic_ns(program, rates), issue_ns(program, rates), arithmetic_ns(program, rates))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: the bytes at the memory rate, stretched by narrow and strided accesses."""
        assert isinstance(problem, PointProblem)
        shape = point_shape(problem)
        turned = isinstance(schedule, TransposeTile)
        assert isinstance(schedule, PointTile | TransposeTile)
        lanes = shape.lanes(schedule.width)
        wasted = sum(_wasted_bytes(x, shape, lanes) for x in shape.loads if not (turned and _turned_loop(shape) and x.steps))
        factor = 1 + wasted / max(problem.program.bytes, 1) + 0.03 * turned
        factor += (
            0.03 * math.log2(max(16 / (lanes * min(o.dtype.bytes for o in problem.program.outputs)), 1)) + 0.002 * schedule.hint
        )
        if isinstance(schedule, PointTile):
            factor += 0.004 * (schedule.count - 1) + 0.01 * (schedule.threads < 256)
            each = schedule.count * sum(min(lanes * x.dtype.bytes, 64) for x in shape.loads)
            factor *= latency_factor(rates, shape.elements / (lanes * schedule.count), each)
        return traffic_ns(problem.program, rates) * factor

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: every CUDA device."""
        return target.kind == "cuda"


def _wasted_bytes(load: Load, shape: PointShape, lanes: int) -> float:
    """Return the bytes moved in vain by a strided read: 32-byte sectors of which one element is used."""
    if access_mode(load, shape.inner, lanes) == "uniform" or (shape.inner.axes and load.step(shape.inner.axes[-1]) == 1):
        return 0.0
    return load.expr.type.elements * (32 - load.dtype.bytes)


def _vector_refusal(shape: PointShape, s: PointTile) -> str | None:
    lanes = shape.lanes(s.width)
    if lanes > 1 and shape.inner.extent % lanes:
        return f"the innermost extent {shape.inner.extent} is not a multiple of the {lanes} elements of a vector"
    if s.width > 1 and lanes == 1:
        return "a vector of this width holds a single element: it is the schedule of width 1"
    words = s.count * sum(
        max(lanes * x.dtype.bytes // 4, 1) for x in shape.loads if access_mode(x, shape.inner, lanes) != "uniform"
    )
    if words > 128:
        return f"{words} registers of loads in flight for each thread"
    if s.count > 1 and shape.elements <= lanes * s.threads:
        return "one block with one vector for each thread covers the output"
    if s.hint and not any(access_mode(x, shape.inner, lanes) == "vector" and lanes * x.dtype.bytes >= 16 for x in shape.loads):
        return "a cache hint needs 16-byte accesses"
    return None


def _leaf(e: Expr, *, loads: dict[str, str], names: dict[str, str], inner: LoopAxis) -> str | None:
    """Return the C of a load or a position at lane `j` of a vector."""
    if e.digest in loads:
        return loads[e.digest]
    if e.op == "iota":
        position = names[e.attrs[0]]
        return iota_text(e, f"{position} + j" if position == inner.var else position)
    return None


def _make(shape: PointShape, lanes: int, hint: str, fields: dict[str, str], names: dict[str, str], at: str) -> list[str]:
    """Print the statements that make a vector of each output and store it at the offset `at`."""
    program = shape.problem.program
    short = partial(call_short, short_in_all(program.outputs))
    scope = Scope(partial(_leaf, loads=fields, names=names, inner=shape.inner), "t", call=short)
    made = {
        f"o{n}" if n else "o": (o, name) for n, (o, name) in enumerate(zip(program.outputs, output_names(program), strict=True))
    }
    values = [f"{variable}[j] = {scope.value(o.expr)};" for variable, (o, _) in made.items()]
    lines = [f"{register_type(o.dtype)} {variable}[{lanes}];" for variable, (o, _) in made.items()]
    lines += [f"UNROLL for (int j = 0; j < {lanes}; ++j) {{", *(f"  {line}" for line in (*scope.take(), *values)), "}"]
    for variable, (o, name) in made.items():
        size = lanes * o.dtype.bytes
        packed = f"Pack<{stored_type(o.dtype)}>::template from<{lanes}>({variable})"
        lines.append(f"store_raw<{size}, {hint if size >= 16 else 'PLAIN'}>({name} + {at}, {packed});")
    return lines


def _emit_vectors(shape: PointShape, s: PointTile) -> KernelSource:
    program = shape.problem.program
    lanes, hint = shape.lanes(s.width), HINTS[s.hint]
    vectors = shape.elements // lanes
    index = index_type(shape.elements + s.threads * s.count * lanes)
    names = AxisNames(axis_names(shape.loops))
    split = [f"const {index} at = v * {lanes};", *split_index("at", shape.loops, shape.elements)]
    fields: dict[str, str] = {}
    members: list[str] = []
    fetch: list[str] = []
    for n, load in enumerate(shape.loads):
        mode = access_mode(load, shape.inner, lanes)
        ctype, suffix = field_type(load, mode, lanes)
        members.append(f"{ctype} x{n}{suffix};")
        offset, guard = load_offset(load, shape.loops, names), load_guard(load, names)
        wide = hint if lanes * load.dtype.bytes >= 16 else "PLAIN"
        fetch += print_fetch(load, mode, f"f.x{n}", shape.inner, lanes, wide, offset, guard)
        fields[load.expr.digest] = field_value(load, mode, f"f.x{n}")
    body = [
        f'extern "C" __global__ void __launch_bounds__({s.threads}) eqsat_kernel({parameters(program)}) {{',
        f"  struct Fetched {{ {' '.join(members)} }};",
        f"  point_vectors<Fetched, {s.threads}, {s.count}, {index}>(",
        f"    {vectors},",
        f"    [&](Fetched& f, {index} v) {{",
        *(f"      {line}" for line in (split + fetch if fetch else [])),
        "    },",
        f"    [&](const Fetched& f, {index} v) {{",
        *(f"      {line}" for line in (*split, *_make(shape, lanes, hint, fields, names, "at"))),
        "    });",
        "}",
    ]
    blocks = max(-(-vectors // (s.threads * s.count)), 1)
    return assemble(
        program,
        s,
        "point",
        "\n".join(body) + "\n",
        parts=("prelude.cuh", "math.cuh", "point.cu"),
        grid=(blocks, 1, 1),
        block=s.threads,
    )


def _turned_loop(shape: PointShape) -> LoopAxis | None:
    """Return the loop along which some load is contiguous although the output is not: the tile's other side."""
    for loop in reversed(shape.loops[:-1]):
        if loop.axes and any(_is_turned(x, loop) for x in shape.loads):
            return loop
    return None


def _is_turned(load: Load, loop: LoopAxis) -> bool:
    return load.steps is not None and not load.guard_axes and load.step(loop.axes[-1]) == 1


def _turned_lanes(shape: PointShape, load: Load, loop: LoopAxis, s: TransposeTile) -> int:
    """Return the elements of one access along the turned loop: a vector where all strides keep it aligned, else 1."""
    lanes = lanes_of(s.width, [load.dtype])
    others = [step for axis, step in load.steps or () if axis not in loop.axes]
    aligned = loop.extent % lanes == 0 and load.offset % lanes == 0 and all(step % lanes == 0 for step in others)
    return lanes if aligned else 1


def _turned_refusal(shape: PointShape, s: TransposeTile) -> str | None:
    loop = _turned_loop(shape)
    if loop is None:
        return "no load is contiguous along another axis than the output"
    if s.tile not in (32, 64) or s.threads not in (128, 256, 512) or s.width not in (1, 4, 8, 16) or not 0 <= s.hint < len(HINTS):
        return "the tile is 32 or 64, threads are 128, 256 or 512, the width is 1, 4, 8 or 16"
    lanes = shape.lanes(s.width)
    if lanes > 1 and shape.inner.extent % lanes:
        return f"the innermost extent {shape.inner.extent} is not a multiple of the {lanes} elements of a vector"
    if s.width > 1 and lanes == 1:
        return "a vector of this width holds a single element: it is the schedule of width 1"
    if s.tile * s.tile // lanes < s.threads:
        return "the tile has fewer vectors than the block has threads"
    turned = [x for x in shape.loads if _is_turned(x, loop)]
    held = sum(s.tile * (s.tile + max(4 // x.dtype.bytes, 1)) * x.dtype.bytes for x in turned)
    if held > 48 * 1024:
        return f"{held} bytes of tiles in shared memory; 49152 are there without asking for more"
    words = sum(s.tile * s.tile * x.dtype.bytes // 4 // s.threads for x in turned)
    return f"{words} registers of loads in flight for each thread" if words > 96 else None


def _emit_turned(shape: PointShape, s: TransposeTile) -> KernelSource:
    program = shape.problem.program
    rows = _turned_loop(shape)
    assert rows is not None
    columns, lanes, hint = shape.inner, shape.lanes(s.width), HINTS[s.hint]
    extents = program.extents
    batch = [loop for loop in shape.loops if loop not in (rows, columns)]
    batches = 1
    for loop in batch:
        batches *= loop.extent
    tiles = [-(-loop.extent // s.tile) for loop in (rows, columns)]
    names = AxisNames(axis_names(shape.loops))
    index = index_type(shape.elements + s.tile * s.tile)
    grid = tiles[0] * tiles[1] * batches
    lines = [
        f"const {index} block = blockIdx.x;",
        f"const int columns = block % {tiles[1]} * {s.tile}, rows = block / {tiles[1]} % {tiles[0]} * {s.tile};",
        *(split_index(f"(block / {tiles[0] * tiles[1]})", batch, batches) if batch else []),
    ]
    fields: dict[str, str] = {}
    fetch: list[str] = []
    moved = {rows.var: "rows", columns.var: "columns"}
    for n, load in enumerate(shape.loads):
        stored = stored_type(load.dtype)
        if _is_turned(load, rows):
            at = load_offset(load, [LoopAxis(moved.get(x.var, x.var), x.axes, x.extent) for x in shape.loops], names)
            lines.append(f"__shared__ Turned<{stored}, {s.tile}> tile{n};")
            count = _turned_lanes(shape, load, rows, s)
            wide = hint if count * load.dtype.bytes >= 16 else "PLAIN"
            step = load.step(columns.axes[-1]) if columns.axes else 0
            lines.append(
                f"turn<{stored}, {s.tile}, {s.threads}, {count}, {wide}, {index_type(load.buffer.elements)}>"
                f"(tile{n}, {load.parameter} + {at}, {step}, {rows.extent} - rows, {columns.extent} - columns);"
            )
            fields[load.expr.digest] = f"shared_value(tile{n}.at[p][q + j])"
            continue
        mode = access_mode(load, columns, lanes)
        ctype, suffix = field_type(load, mode, lanes)
        fetch.append(f"{ctype} x{n}{suffix};")
        wide = hint if lanes * load.dtype.bytes >= 16 else "CACHED"
        offset, guard = load_offset(load, shape.loops, names), load_guard(load, names)
        fetch += print_fetch(load, mode, f"x{n}", columns, lanes, wide, offset, guard)
        fields[load.expr.digest] = field_value(load, mode, f"x{n}")
    store_at = _store_offset(shape, row_major(shape.problem.axes, extents))
    body = [
        f'extern "C" __global__ void __launch_bounds__({s.threads}) eqsat_kernel({parameters(program)}) {{',
        *(f"  {line}" for line in lines),
        "  __syncthreads();",
        f"  UNROLL for (int t = threadIdx.x; t < {s.tile * s.tile // lanes}; t += {s.threads}) {{",
        f"    const int p = t / {s.tile // lanes}, q = t % {s.tile // lanes} * {lanes};",
        f"    const {index_type(rows.extent)} {rows.var} = rows + p;",
        f"    const {index_type(columns.extent)} {columns.var} = columns + q;",
        f"    if ({rows.var} >= {rows.extent} || {columns.var} >= {columns.extent}) continue;",
        *(f"    {line}" for line in fetch),
        *(f"    {line}" for line in _make(shape, lanes, hint, fields, names, f"({store_at})")),
        "  }",
        "}",
    ]
    return assemble(
        program,
        s,
        "point",
        "\n".join(body) + "\n",
        parts=("prelude.cuh", "math.cuh", "point.cu"),
        grid=(max(grid, 1), 1, 1),
        block=s.threads,
    )


def _store_offset(shape: PointShape, steps: dict[str, int]) -> str:
    """Print the element offset of the outputs at the loops' position."""
    cast = "" if index_type(shape.elements) == "int" else "(i64)"
    return " + ".join(f"{cast}{loop.var} * {steps[loop.axes[-1]]}" for loop in shape.loops if loop.axes) or "0"
