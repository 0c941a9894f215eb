"""Printing pointwise kernels: the fetches and the values of a vector, one place after another or row after row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from eqsat.codegen.cuda.emit import Scope, assemble, output_names, parameters, register_type, stored_type
from eqsat.codegen.cuda.loads import (
    AxisNames,
    Load,
    LoopAxis,
    access_mode,
    axis_names,
    field_type,
    field_value,
    index_type,
    iota_text,
    load_guard,
    load_offset,
    print_fetch,
    split_index,
)
from eqsat.codegen.cuda.point_shape import HINTS, PointShape, PointSweepTile, PointTile
from eqsat.codegen.cuda.shorten import call_short, short_in_all
from eqsat.codegen.kernel import KernelSource
from eqsat.ir import Expr


def leaf_text(e: Expr, *, loads: dict[str, str], names: dict[str, str], inner: LoopAxis) -> str | None:
    """Return the C of a load or a position at lane `j` of a vector."""
    if e.digest in loads:
        return loads[e.digest]
    if e.op == "iota":
        position = names[e.attrs[0]]
        return iota_text(e, f"{position} + j" if position == inner.var else position)
    return None


def make_vectors(shape: PointShape, lanes: int, hint: str, fields: dict[str, str], names: dict[str, str], at: str) -> list[str]:
    """Print the statements that make a vector of each output and store it at the offset `at`."""
    program = shape.problem.program
    short = partial(call_short, short_in_all(program.outputs))
    scope = Scope(partial(leaf_text, loads=fields, names=names, inner=shape.inner), "t", call=short)
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


@dataclass
class _Fetch:
    """Loads as the fields of a struct: its members, the statements that fill it, and the C of lane `j` of each load."""

    members: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


def _fetch(shape: PointShape, loads: Sequence[Load], lanes: int, hint: str, into: str) -> _Fetch:
    """Print the loads of a vector at the loops' position into the struct `into`."""
    out = _Fetch()
    names = AxisNames(axis_names(shape.loops))
    for n, load in enumerate(loads):
        mode = access_mode(load, shape.inner, lanes)
        ctype, suffix = field_type(load, mode, lanes)
        out.members.append(f"{ctype} x{n}{suffix};")
        offset, guard = load_offset(load, shape.loops, names), load_guard(load, names)
        wide = hint if lanes * load.dtype.bytes >= 16 else "PLAIN"
        out.lines += print_fetch(load, mode, f"{into}.x{n}", shape.inner, lanes, wide, offset, guard)
        out.fields[load.expr.digest] = field_value(load, mode, f"{into}.x{n}")
    return out


def emit_vectors(shape: PointShape, s: PointTile) -> KernelSource:
    """Print the kernel whose threads make vectors one block's width apart."""
    program = shape.problem.program
    lanes, hint = shape.lanes(s.width), HINTS[s.hint]
    vectors = shape.elements // lanes
    index = index_type(shape.elements + s.threads * s.count * lanes)
    names = AxisNames(axis_names(shape.loops))
    split = [f"const {index} at = v * {lanes};", *split_index("at", shape.loops, shape.elements)]
    own = _fetch(shape, shape.loads, lanes, hint, "f")
    body = [
        f'extern "C" __global__ void __launch_bounds__({s.threads}) eqsat_kernel({parameters(program)}) {{',
        f"  struct Fetched {{ {' '.join(own.members)} }};",
        f"  point_vectors<Fetched, {s.threads}, {s.count}, {index}>(",
        f"    {vectors},",
        f"    [&](Fetched& f, {index} v) {{",
        *(f"      {line}" for line in (split + own.lines if own.lines else [])),
        "    },",
        f"    [&](const Fetched& f, {index} v) {{",
        *(f"      {line}" for line in (*split, *make_vectors(shape, lanes, hint, own.fields, names, "at"))),
        "    });",
        "}",
    ]
    return _assembled(shape, s, body, max(-(-vectors // (s.threads * s.count)), 1))


def emit_sweep(shape: PointShape, s: PointSweepTile) -> KernelSource:
    """Print the kernel whose threads make the vectors at one place of several rows."""
    program = shape.problem.program
    lanes, hint = shape.lanes(s.width), HINTS[s.hint]
    rows = shape.loops[0].extent
    along = shape.elements // rows // lanes
    groups = -(-rows // s.count)
    index = index_type(shape.elements + (s.count * along + s.threads) * lanes)
    names = AxisNames(axis_names(shape.loops))
    split = [f"const {index} at = v * {lanes};", *split_index("at", shape.loops, shape.elements)]
    near = _fetch(shape, shape.shared, lanes, "PLAIN", "s")
    own = _fetch(shape, [x for x in shape.loads if x not in shape.shared], lanes, hint, "f")
    body = [
        f'extern "C" __global__ void __launch_bounds__({s.threads}) eqsat_kernel({parameters(program)}) {{',
        f"  struct Shared {{ {' '.join(near.members)} }};",
        f"  struct Fetched {{ {' '.join(own.members)} }};",
        f"  point_sweep<Shared, Fetched, {s.threads}, {s.count}, {index}>(",
        f"    {along}, {rows}, {groups},",
        f"    [&](Shared& s, {index} v) {{",
        *(f"      {line}" for line in (*split, *near.lines)),
        "    },",
        f"    [&](Fetched& f, {index} v) {{",
        *(f"      {line}" for line in (*split, *own.lines)),
        "    },",
        f"    [&](const Shared& s, const Fetched& f, {index} v) {{",
        *(f"      {line}" for line in (*split, *make_vectors(shape, lanes, hint, near.fields | own.fields, names, "at"))),
        "    });",
        "}",
    ]
    return _assembled(shape, s, body, max(-(-along // s.threads) * groups, 1))


def _assembled(shape: PointShape, s: PointTile | PointSweepTile, body: Sequence[str], blocks: int) -> KernelSource:
    return assemble(
        shape.problem.program,
        s,
        "point",
        "\n".join(body) + "\n",
        parts=("prelude.cuh", "math.cuh", "point.cu"),
        grid=(blocks, 1, 1),
        block=s.threads,
    )
