"""Turned tiles: loads that are contiguous along another axis than the output go through shared memory."""

from __future__ import annotations

from eqsat.codegen.cuda.emit import assemble, parameters, stored_type
from eqsat.codegen.cuda.loads import (
    AxisNames,
    Load,
    LoopAxis,
    access_mode,
    axis_names,
    field_type,
    field_value,
    index_type,
    lanes_of,
    load_guard,
    load_offset,
    print_fetch,
    row_major,
    split_index,
)
from eqsat.codegen.cuda.point_print import make_vectors
from eqsat.codegen.cuda.point_shape import HINTS, PointShape, TransposeTile
from eqsat.codegen.kernel import KernelSource


def turned_loop(shape: PointShape) -> LoopAxis | None:
    """Return the loop along which some load is contiguous although the output is not: the tile's other side."""
    for loop in reversed(shape.loops[:-1]):
        if loop.axes and any(is_turned(x, loop) for x in shape.loads):
            return loop
    return None


def is_turned(load: Load, loop: LoopAxis) -> bool:
    """Whether neighbours along `loop` lie side by side in the buffer."""
    return load.steps is not None and not load.guard_axes and load.step(loop.axes[-1]) == 1


def turned_lanes(shape: PointShape, load: Load, loop: LoopAxis, s: TransposeTile) -> int:
    """Return the elements of one access along the turned loop: a vector where all strides keep it aligned, else 1."""
    lanes = lanes_of(s.width, [load.dtype])
    others = [step for axis, step in load.steps or () if axis not in loop.axes]
    aligned = loop.extent % lanes == 0 and load.offset % lanes == 0 and all(step % lanes == 0 for step in others)
    return lanes if aligned else 1


def emit_turned(shape: PointShape, s: TransposeTile) -> KernelSource:
    """Print the kernel of turned tiles."""
    program = shape.problem.program
    rows = turned_loop(shape)
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
        if is_turned(load, rows):
            at = load_offset(load, [LoopAxis(moved.get(x.var, x.var), x.axes, x.extent) for x in shape.loops], names)
            lines.append(f"__shared__ Turned<{stored}, {s.tile}> tile{n};")
            count = turned_lanes(shape, load, rows, s)
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
    store_at = store_offset(shape, row_major(shape.problem.axes, extents))
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
        *(f"    {line}" for line in make_vectors(shape, lanes, hint, fields, names, f"({store_at})")),
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


def store_offset(shape: PointShape, steps: dict[str, int]) -> str:
    """Print the element offset of the outputs at the loops' position."""
    cast = "" if index_type(shape.elements) == "int" else "(i64)"
    return " + ".join(f"{cast}{loop.var} * {steps[loop.axes[-1]]}" for loop in shape.loops if loop.axes) or "0"
