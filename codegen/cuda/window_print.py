"""Printing the parts of a convolution kernel that follow from its layout: indices, loads, the packing of weights, the epilogue."""

from __future__ import annotations

from collections.abc import Sequence

from eqsat.codegen.cuda.emit import literal, output_names, parameter_names, part, register_type, stored_type, used_inputs
from eqsat.codegen.cuda.operand import axis_names, buffers, output_offset, scalar_load, vector_code
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.cuda.window_layout import (
    CONVERTERS,
    GROUPS,
    HEAD_BYTES,
    REGISTERS,
    SLOTS,
    THREADS,
    VECTOR,
    Layout,
    processors_of_grid,
)
from eqsat.codegen.printer import print_statements
from eqsat.ir import Expr

MOST_UNROLLED = 9  # taps whose operands' addresses are constants of the code


def print_instruction(layout: Layout) -> str:
    """Print the one wgmma instruction in use: D[64, n] (fp32) += A · B, both in shared memory, both contiguous along k."""
    count, kind = layout.n // 2, layout.term.value
    names = ", ".join(f"%{i}" for i in range(count))
    outs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    return (
        f"DEV void wgmma(float (&d)[{count}], u64 a, u64 b, int accumulate) {{\n"
        f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{count + 2}, 0; '
        f'wgmma.mma_async.sync.aligned.m64n{layout.n}k16.f32.{kind}.{kind} "\n'
        f'    "{{{names}}}, %{count}, %{count + 1}, p, 1, 1, 0, 0; }}"\n    : {outs}\n    : "l"(a), "l"(b), "r"(accumulate));\n}}\n'
    )


def print_constants(layout: Layout) -> str:
    """Print the compile-time numbers of a kernel, the vectors at which its taps begin, and its element types."""
    s = layout.schedule
    units = layout.weight_tiles * (s.channels // VECTOR) * s.bm
    each = THREADS * max(1, -(-units // (THREADS * processors_of_grid())))
    values = {
        "BM": s.bm, "KC": s.channels, "N": layout.n, "GROUPS": GROUPS, "PLANES": layout.planes, "POINTS": layout.points,
        "CHAIN": layout.chain, "SLOTS": SLOTS, "STAGES": layout.stages,  "TILES": layout.tiles, "X_STEPS": layout.steps, "TAPS": layout.taps,
        "WIDTH": layout.width, "PIECE": layout.piece, "PIECES": layout.pieces, "LOADS": layout.loads, "FLIGHT": layout.flight, "VECTORS": s.channels // VECTOR * layout.lines.span * layout.across, "THREADS": THREADS, "CONVERTERS": CONVERTERS,
        "PRODUCER_REGISTERS": REGISTERS[0], "CONSUMER_REGISTERS": REGISTERS[1], "HEAD": HEAD_BYTES,
        "WEIGHT_UNITS": units, "UNITS": each, "PARTS": -(-units // each),
        "GROUP_ROWS": 64 if layout.halves == 1 else 0,
        "LINE": layout.columns.tile, "LINE_PITCH": layout.columns.pitch, "PLACES": layout.places, "PASSES": layout.passes,
        "CHUNK": layout.chunk, "PITCH": layout.chunk_pitch, "STORED": layout.stored,
        "GROUP_LINES": 0 if layout.halves == 1 else layout.group_lines,
        "GROUP_POINTS": 0 if layout.halves == 1 else layout.group_lines * layout.columns.pitch,
    }  # fmt: skip
    return "\n".join(
        [
            *(f"constexpr int {name} = {value};" for name, value in values.items()),
            *_shift(layout),
            f"using S = {stored_type(layout.operand.dtype)};",
            f"using T = {stored_type(layout.term)};",
        ]
    )


def _shift(layout: Layout) -> list[str]:
    """Print the function that returns for each tap of a tile of input the vector at which its operand begins."""
    lines, columns, count = layout.lines, layout.columns, layout.columns.dim.taps
    down = f"tap / {count} * {lines.dim.dilation} + {lines.dim.shift(0)}"
    along = f"tap % {count} * {columns.dim.dilation} + {columns.dim.shift(0)}"
    plane, place = (
        (f"tap % {count}", "0") if columns.copied else (f"along % {columns.dim.stride}", f"along / {columns.dim.stride}")
    )
    row = f"(down % {lines.dim.stride} * {columns.planes} + {plane}) * {lines.pitch} + down / {lines.dim.stride}"
    return [
        "DEV constexpr int shift_of(int tap) {",
        f"  const int down = {down}{'' if columns.copied else f', along = {along}'};",
        f"  return ({row}) * {columns.pitch} + {place};",
        "}",
    ]


def print_kernel(layout: Layout) -> str:
    """Print the kernel: the template with everything that follows from the layout."""
    program = layout.problem.program
    names, inputs = parameter_names(program), used_inputs(program)
    parameters = [f"const {stored_type(i.dtype)}* __restrict__ {names[i.name]}" for i in inputs]
    (to,) = output_names(program)
    weight = _buffer_name(layout.weights)
    positions = ["row", "col", *(f"o{i}" for i in range(len(layout.outer)))]
    slots: dict[str, Sequence[str]] = {
        "PARAMETERS": [", ".join([*parameters, f"{stored_type(layout.problem.output.dtype)}* __restrict__ {to}"])],
        "WEIGHT_PARAMETERS": [f"const {stored_type(layout.weights.dtype)}* {names[weight]}"],
        "WEIGHT_ARGUMENTS": [names[weight]],
        "POSITION_FIELDS": [", ".join(positions)],
        "SPLIT_TILE": _split_tile(layout),
        "SPLIT_UNIT": _split_unit(layout),
        "WEIGHT": _weight(layout),
        "WEIGHT_TILE": [_weight_tile(layout)],
        "SPLIT_STEP": _split_step(layout),
        "SPLIT_PIECE": _split_piece(layout),
        "SPLIT_VECTOR": _split_vector(layout),
        "SPLIT_BLOCK": _split_block(layout),
        "COLUMN_WANTED": [f"column >= 0 && column < {layout.columns.span}"],
        "WHOLE_CHANNEL": [_whole_channel(layout)],
        "CHANNEL_STEP": [str(layout.channel.step)],
        "TAP_LOOP": ["UNROLL" if layout.taps <= MOST_UNROLLED else ""],
        "GATHER": _gather(layout),
        "COMPUTE": _computed(layout),
        "PUT_VECTOR": _put_vector(layout),
        "PRODUCTS": _multiply(layout),
        "TO_STAGING": _put(layout),
        "SPLIT_STORE": _split_store(layout),
        "INSIDE": [_stored_inside(layout)],
        "FINISH": _finish(layout),
    }
    flags = {
        "values" if layout.planes == 1 else "terms",
        "async" if layout.copied else "plain",
        "blocks" if layout.blocked else "places",
    }
    return fill(part("window_wgmma.cu"), flags, slots)


def _buffer_name(load: Expr) -> str:
    return str((load.args[0] if load.op == "access" else load).attrs[0])


def _split_tile(layout: Layout) -> list[str]:
    """Print the coordinates of tile `t`: channels first, so that tiles of one input run together."""
    parts = [("m", layout.row_tiles, layout.schedule.bm), ("col", layout.columns.count, layout.columns.tile)]
    parts += [("row", layout.lines.count, layout.lines.tile)]
    parts += [(f"o{i}", d.positions, 1) for i, d in reversed(list(enumerate(layout.outer)))]
    return [f"{name} = rest % {count} * {times}; rest /= {count};" for name, count, times in parts]


def _weight_tile(layout: Layout) -> str:
    """Print the number of the weights' tile that an output tile takes: its channels, of its group."""
    group = "0"
    for a in layout.problem.batch:
        at = next((f"tile.o{i}" for i, d in enumerate(layout.outer) if d.position == a), "0")
        group = f"({group} * {layout.problem.program.extents[a]} + {at})"
    return f"({group} * {layout.row_tiles} + tile.m / BM)"


def _split_unit(layout: Layout) -> list[str]:
    """Print which vector of the packed weights a unit is: taps fastest, as neighbours in memory usually are."""
    s = layout.schedule
    return [
        "int rest = unit;",
        f"const int tap = rest % {layout.taps}; rest /= {layout.taps};",
        f"const int row = rest % {s.bm}; rest /= {s.bm};",
        f"const int vector = rest % {s.channels // VECTOR}; rest /= {s.channels // VECTOR};",
        f"const int step = rest % {layout.steps}; rest /= {layout.steps};",
        f"const int y_row = rest % {layout.row_tiles} * {s.bm} + row, batch = rest / {layout.row_tiles};",
        f"const int tile = rest * {layout.steps * layout.taps} + step * {layout.taps} + tap, from = step % {layout.blocks} * {s.channels} + vector * 8;",
    ]


def _weight(layout: Layout) -> list[str]:
    """Print the load of one weight, where there is one."""
    problem, program = layout.problem, layout.problem.program
    names = axis_names({"y_row": layout.rows, "batch": problem.batch}, program.extents)
    names[layout.channel.tap] = "channel"
    names |= _tap_names(layout, "tap", "step")
    names |= {a: "0" for a in problem.k if a not in names}
    buffer = buffers(program)[_buffer_name(layout.weights)]
    value = scalar_load(layout.weights, buffer, "at", parameter_names(program)[buffer.name], names)
    return [f"if (y_row < {problem.extent(layout.rows)} && channel < {layout.channel.taps}) v[i] = {value};"]


def _tap_names(layout: Layout, tap: str, step: str) -> dict[str, str]:
    """Return the C expression of each tap's axis: those within a tile of input, and those that are steps."""
    inner, names = layout.columns.dim, {}
    if inner.tap:
        names[inner.tap] = f"({tap} % {inner.taps})"
    if layout.lines.dim.tap:
        names[layout.lines.dim.tap] = f"({tap} / {inner.taps})"
    before = layout.blocks
    for d in layout.outer:
        if d.tap:
            names[d.tap] = f"({step} / {before} % {d.taps})"
            before *= d.taps
    return names


def _split_step(layout: Layout) -> list[str]:
    """Print where a step of the sum reads: its channels, its outer taps, and whether they are inside the buffer."""
    taps, inside, terms = _tap_names(layout, "0", "step"), [], []
    for i, d in enumerate(layout.outer):
        at = f"tile.o{i} * {d.stride} + {d.offset}" + (f" + {taps[d.tap]} * {d.dilation}" if d.tap else "")
        inside += [f"{at} >= 0 && {at} < {d.extent}"] if d.leaves else []
        terms.append(f"(i64)({at}) * {d.step}")
    names = parameter_names(layout.problem.program)
    return [
        f"const int channel = step % {layout.blocks} * KC;",
        f"const bool there = {' && '.join(inside) or 'true'};",
        f"const S* const origin = {names[layout.operand.name]};",
        f"const S* const source = origin + {' + '.join(terms) or '0'};",
    ]


def _start(layout: Layout) -> str:
    """Print the buffer column at which the pieces of a line start."""
    d = layout.columns.dim
    if layout.columns.count > 1 and not layout.along_channels:
        return f"((tile.col * {d.stride} + {d.first}) & {-layout.width})"
    first = d.first + layout.columns.reached[0]
    first -= 0 if layout.along_channels else first % layout.width
    return f"(tile.col * {d.stride} + {first})" if layout.columns.count > 1 else str(first)


def _inside(layout: Layout, columns: str) -> list[str]:
    """Print the conditions under which line `y` and a column are in the buffer."""
    lines, d = layout.lines.dim, layout.columns.dim
    checks = ["there", *(["y >= 0", f"y < {lines.extent}"] if lines.leaves else [])]
    return checks + ([f"{columns} >= 0", f"{columns} < {d.extent}"] if layout.columns.count > 1 and d.leaves else [])


def _split_piece(layout: Layout) -> list[str]:
    """Print which channel, line and columns a piece of the input is, where that is in memory, and whether it is there."""
    lines, columns, channel = layout.lines.dim, layout.columns.dim, layout.channel
    count, height = layout.line_pieces, layout.lines.span
    if layout.along_channels:
        halves, blocks = layout.operand.dtype.bytes // 2, layout.schedule.channels // VECTOR
        out = [
            f"const int half = q % {halves}, x0 = {_start(layout)} + q / {halves} % {layout.across};",
            f"const int line = q / {count} % {height}, c = q / {count * height} * {VECTOR} + half * {VECTOR // halves};",
        ]
        assert blocks * height * count == layout.pieces
    else:
        out = [
            f"const int x0 = {_start(layout)} + q % {count} * WIDTH;",
            f"const int line = q / {count} % {height}, c = q / {count * height};",
        ]
    inside = _inside(layout, "x0")
    if not layout.along_channels and layout.columns.count == 1:
        inside += [f"x0 < {columns.extent}"] if columns.extent % layout.width else []
    inside += [f"channel + c < {channel.taps}"] if channel.taps % layout.schedule.channels else []
    return [
        *out,
        f"const int y = tile.row * {lines.stride} + {lines.first} + line;",
        f"const bool within = {' && '.join(inside)};",
        f"const i64 at = (i64)y * {lines.step} + (i64)x0 * {columns.step} + (i64)(channel + c + {channel.offset}) * {channel.step};",
    ]


def _whole_channel(layout: Layout) -> str:
    """Print the condition under which channel `i` of 8 is one that there is."""
    return "" if layout.channel.taps % layout.schedule.channels == 0 else f"channel + vector * 8 + i < {layout.channel.taps} &&"


def _split_block(layout: Layout) -> list[str]:
    """Print which 8 channels, line and columns a block of 8 pieces is, where its first is in memory, and whether it is there."""
    lines, columns, channel = layout.lines.dim, layout.columns.dim, layout.channel
    vectors, count = layout.schedule.channels // VECTOR, layout.line_pieces
    return [
        f"const int vector = u % {vectors}, line = u / {vectors * count}, x0 = {_start(layout)} + u / {vectors} % {count} * WIDTH;",
        f"const int first_column = x0 - (tile.col * {columns.stride} + {columns.first});",
        f"const int y = tile.row * {lines.stride} + {lines.first} + line;",
        f"const bool within = {' && '.join(_inside(layout, 'x0'))};",
        f"const i64 at = (i64)y * {lines.step} + (i64)x0 * {columns.step} + (i64)(channel + vector * 8 + {channel.offset}) * {channel.step};",
    ]


def _split_vector(layout: Layout) -> list[str]:
    """Print which line, column (counted from the tile's first) and 8 channels a vector of the laid out input is."""
    across, height = layout.across, layout.lines.span
    return [
        f"const int column = u % {across} + {layout.columns.reached[0]}, line = u / {across} % {height}, vector = u / {across * height};"
    ]


def _gather(layout: Layout) -> list[str]:
    """Print how 8 channels of one place are read: from the input as it came, or from memory."""
    lines, columns, channel = layout.lines.dim, layout.columns.dim, layout.channel
    size, row = layout.operand.dtype.bytes, layout.line_pieces * layout.piece
    first = f"tile.col * {columns.stride} + {columns.first} + column"
    if not layout.copied:
        inside = " && ".join(_inside(layout, "x0"))
        tail = f" && channel + vector * 8 + i < {channel.taps}" if channel.taps % layout.schedule.channels else ""
        return [
            f"const int x0 = {first}, y = tile.row * {lines.stride} + {lines.first} + line;",
            f"const bool within = {inside};",
            f"const i64 at = (i64)y * {lines.step} + (i64)x0 * {columns.step} + (i64)(channel + vector * 8 + {channel.offset}) * {channel.step};",
            f"UNROLL for (int i = 0; i < 8; ++i) v[i] = within{tail} ? load_one(source + at + (i64)i * {channel.step}) : 0.f;",
        ]
    if layout.along_channels:
        place = f"((vector * {layout.lines.span} + line) * {layout.across} + column - {layout.columns.reached[0]}) * {8 * size}"
        lines_ = [f"const u32 from = raw_tile + {place};"]
        for half in range(size // 2):
            lines_ += [
                f"{{ const Raw<16> r = shared16(from + {16 * half}); "
                f"UNROLL for (int i = 0; i < {16 // size}; ++i) v[{half * (16 // size)} + i] = Element<S>::get(r, i); }}"
            ]
        return lines_
    return [
        f"const u32 from = raw_tile + (vector * 8 * {layout.lines.span} + line) * {row} + ({first} - {_start(layout)}) * {size};",
        f"UNROLL for (int i = 0; i < 8; ++i) v[i] = shared_one<S>(from + i * {layout.lines.span * row});",
    ]


def _computed(layout: Layout) -> list[str]:
    """Print what is multiplied in the place of the values that were read."""
    if layout.function == layout.window:
        return []
    lines, values = print_statements([layout.function], lambda e: _operand_leaf(layout, e), register_type)
    return ["UNROLL for (int i = 0; i < 8; ++i) {", *(f"  {x}" for x in [*lines, f"v[i] = {values[0]};"]), "}"]


def _operand_leaf(layout: Layout, e: Expr) -> str | None:
    return "v[i]" if e == layout.window else literal(e) if e.op == "const" else None


def _put_vector(layout: Layout) -> list[str]:
    """Print where a vector goes: to its place, or to its place for every tap along the line that reads it."""
    lines, columns = layout.lines, layout.columns
    plane, height = ("0", "line") if lines.planes == 1 else (f"line % {lines.planes}", f"line / {lines.planes}")
    rows = f"(({plane}) * {columns.planes} + PLANE) * {lines.pitch} + {height}"
    if not columns.copied:
        t = columns.dim.stride
        part_, along = ("0", "column") if t == 1 else (f"column % {t}", f"column / {t}")
        return [f"shared_put16(to + (({rows.replace('PLANE', part_)}) * {columns.pitch} + {along}) * 16, r);"]
    out = []
    for tap in range(columns.dim.taps):
        shift, stride = columns.dim.shift(tap), columns.dim.stride
        guard = f"column >= {shift} && column < {shift + (columns.tile - 1) * stride + 1}"
        guard += f" && (column - {shift}) % {stride} == 0" if stride > 1 else ""
        place = f"(column - {shift}) / {stride}" if stride > 1 else f"column - {shift}"
        out.append(f"if ({guard}) shared_put16(to + (({rows.replace('PLANE', str(tap))}) * {columns.pitch} + {place}) * 16, r);")
    return out


def _multiply(layout: Layout) -> list[str]:
    """Print the products of one tap: all pairs of terms that count, those of the first terms when all the others are added."""
    *small, large = layout.products
    if not small:
        return _each_16([large], "step + tap + k > 0")
    return [*_each_16(small, "tap - head + k > 0"), "wg_commit();", *_each_16([large], "true")]


def _each_16(pairs: list[tuple[int, int]], more: str) -> list[str]:
    """Print the products of some pairs of terms for each 16 channels; `more` says whether there are sums to add to."""
    out = [
        f"  wgmma(acc.v, desc_vectors(weights + {a} * W_TERM + k * 32 * BM, 16 * BM), "
        f"desc_vectors(shifted + {b} * TERM_BYTES + k * 32 * POINTS, 16 * POINTS), {'true' if i else more});"
        for i, (a, b) in enumerate(pairs)
    ]
    return ["UNROLL for (int k = 0; k < KC / 16; ++k) {", *out, "}"]


def _put(layout: Layout) -> list[str]:
    """Print how a pair of sums goes to its place in shared memory: together if a line never ends between the two."""
    one = [
        "const int place = (column + q) % LINE_PITCH, index = (column + q) / LINE_PITCH * LINE + place;",
        "if (place < LINE && index >= begin && index < end) shared_put4(to + (index - begin) * 4, SUM[i + q]);",
    ]
    two = [
        "const int place = column % LINE_PITCH, index = column / LINE_PITCH * LINE + place;",
        "if (place < LINE && index >= begin && index < end) shared_put8(to + (index - begin) * 4, SUM[i], SUM[i + 1]);",
    ]
    whole = layout.columns.pitch % 2 == 0 and layout.columns.tile % 2 == 0
    sums = "acc.v" if layout.planes == 1 else "total"
    lines = two if whole else ["UNROLL for (int q = 0; q < 2; ++q) {", *(f"  {x}" for x in one), "}"]
    return [x.replace("SUM", sums) for x in lines]


def _split_store(layout: Layout) -> list[str]:
    """Print which row and position a vector of the output is: the output's neighbours go to neighbouring lanes."""
    if layout.rows_first:
        return ["const int row = u % 16, index = begin + u / 16 * STORED;"]
    return ["const int row = u / (CHUNK / STORED), index = begin + u % (CHUNK / STORED) * STORED;"]


def _stored_inside(layout: Layout) -> str:
    """Print the condition under which a vector is part of the output."""
    guards = [f"y_row < {layout.problem.extent(layout.rows)}"]
    if layout.lines.dim.positions % layout.lines.tile:
        guards.append(f"at_row < {layout.lines.dim.positions}")
    if layout.columns.dim.positions % layout.columns.tile:
        guards.append(f"at_col < {layout.columns.dim.positions}")
    return " && ".join(guards)


def _finish(layout: Layout) -> list[str]:
    """Print the epilogue at `STORED` neighbours, and their store."""
    problem, program, width = layout.problem, layout.problem.program, layout.stored
    names, out, column = _position_names(layout), problem.output, layout.columns.dim.position
    moved = names | {column: f"({names[column]} + e)"}
    at_hand = {problem.contractions[0].node: "sum[e]"}
    lines = vector_code(program, [("y[e] = {};", out.expr)], at_hand, names, moved, (column,), width)
    to, at = output_names(program)[0], output_offset(problem, names)
    pack = f"Pack<{stored_type(out.dtype)}>::template from<{width}>(y)"
    return [*lines, f"store_raw<{width * out.dtype.bytes}, PLAIN>({to} + {at}, {pack});"]


def _position_names(layout: Layout) -> dict[str, str]:
    """Return the C expression of each axis of the output at a position."""
    names = axis_names({"y_row": layout.rows}, layout.problem.program.extents)
    names |= {d.position: f"tile.o{i}" for i, d in enumerate(layout.outer) if d.position}
    if layout.lines.dim.position:
        names[layout.lines.dim.position] = "at_row"
    names[layout.columns.dim.position] = "at_col"
    return {a: names.get(a, "0") for a in layout.problem.program.extents}
