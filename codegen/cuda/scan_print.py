"""Printing a scan kernel: where a block stands, what it loads, how its threads exchange totals, what it stores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from eqsat.codegen.cuda.emit import Scope, assemble, parameters, register_type, stored_type
from eqsat.codegen.cuda.loads import (
    AxisNames,
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
from eqsat.codegen.cuda.reduce_print import indent
from eqsat.codegen.cuda.scan_schedule import HINTS, ScanColumnTile, ScanGridTile, ScanRowTile, Tile
from eqsat.codegen.cuda.scan_shape import ScanShape, operator
from eqsat.codegen.cuda.shorten import call_short, short_in_all
from eqsat.codegen.kernel import KernelSource
from eqsat.ir import Expr


class ScanPrinter:
    """Prints a scan kernel. Positions are counted in the direction of the scan (`q`), and turned into those of memory."""

    def __init__(self, shape: ScanShape, s: Tile) -> None:
        self.shape, self.s = shape, s
        self.program = shape.problem.program
        self.lanes = shape.lanes(s.width)
        self.names = AxisNames(axis_names(shape.loops))
        self.length = shape.along.extent // (self.lanes if shape.rowwise else 1)  # steps of a whole scan
        self.hint = "PLAIN" if isinstance(s, ScanColumnTile) else HINTS[s.hint]
        self.short = short_in_all(self.program.outputs)
        self.index = index_type(shape.along.extent + 65536 * self.lanes)
        self.modes = [access_mode(x, shape.inner, self.lanes) for x in shape.loads]
        pairs = zip(shape.loads, self.modes, strict=True)
        self.fields = {x.expr.digest: field_value(x, mode, f"g[i].x{n}") for n, (x, mode) in enumerate(pairs)}

    @property
    def step(self) -> int:
        """Steps of the scan that a block takes in one tile."""
        s = self.s
        return s.groups * s.count if isinstance(s, ScanColumnTile) else 32 * s.warps * s.count

    def kernel(self) -> KernelSource:
        """Return the source."""
        shape, s = self.shape, self.s
        rows = math.prod(x.extent for x in shape.outer)
        workspace = 0
        tiles = -(-self.length // self.step)
        if isinstance(s, ScanGridTile):
            threads, blocks = 32 * s.warps, rows * tiles
            lines, workspace = self._grid_start(rows, tiles)
        elif isinstance(s, ScanRowTile):
            threads, blocks, lines = 32 * s.warps * s.rows, -(-rows // s.rows), self._row_start(rows)
        else:
            across = -(-shape.inner.extent // (s.columns * self.lanes))
            threads, blocks, lines = s.columns * s.groups, rows * across, self._column_start(rows, across)
        lines += self._carries()
        ahead = not isinstance(s, ScanGridTile) and bool(s.ahead)
        lines += self._first_fetch(ahead)
        body = self._tile(ahead)
        if workspace:
            lines += [*body, f"reset_tickets<{threads}>(tickets, tickets + 1, flags, {blocks});"]
        elif tiles == 1:
            lines += [f"const {self.index} tile = 0;", "const int turn = 0;", *body]
        else:
            lines += [
                "int turn = 0;",
                f"for ({self.index} tile = 0; tile < {self.length}; tile += {self.step}, turn ^= 1) {{",
                *indent(body),
                "}",
            ]
        text = [
            f'extern "C" __global__ void __launch_bounds__({threads}) eqsat_kernel({parameters(self.program, "u8" if workspace else "")}) {{',
            *indent(lines),
            "}",
        ]
        return assemble(
            self.program,
            s,
            "scan",
            "\n".join(text) + "\n",
            parts=("prelude.cuh", "math.cuh", "reduce.cuh", "scan.cuh"),
            grid=(max(blocks, 1), 1, 1),
            block=threads,
            workspace_bytes=workspace,
        )

    def _grid_start(self, rows: int, tiles: int) -> tuple[list[str], int]:
        """Print how a block takes its tile, and where the totals of tiles lie in the workspace; return its bytes too."""
        assert isinstance(self.s, ScanGridTile)
        at = (16 + 4 * rows * tiles + 15) // 16 * 16
        lines = [
            "u32* const tickets = (u32*)workspace;",
            "u32* const flags = (u32*)(workspace + 16);",
            "const int ticket = (int)take_ticket(tickets);",
            f"const int row = ticket / {tiles}, part = ticket % {tiles};",
            "const int slot = 0, turn = 0, warp = threadIdx.x / 32;",
            f"const {self.index} tile = ({self.index})part * {self.step};",
            *(split_index("row", self.shape.outer, rows) if self.shape.outer else []),
        ]
        for x in self.shape.scans:
            op = operator(x)
            lines.append(f"{op}::type* const parts{x.number} = ({op}::type*)(workspace + {at}) + (i64)row * {tiles};")
            at += (x.node.dtype.accumulator.bytes * rows * tiles + 15) // 16 * 16
        return lines, at

    def _row_start(self, rows: int) -> list[str]:
        assert isinstance(self.s, ScanRowTile)
        kind = index_type(rows + self.s.rows)
        slot = f"threadIdx.x / {32 * self.s.warps}" if self.s.rows > 1 else "0"
        return [
            f"const int slot = {slot}, warp = threadIdx.x / 32 % {self.s.warps};",
            f"const {kind} row = ({kind})blockIdx.x * {self.s.rows} + slot;",
            *([f"const bool inside = row < {rows};"] if self._ragged() else []),
            *(split_index("row", self.shape.outer, rows) if self.shape.outer else []),
        ]

    def _column_start(self, rows: int, across: int) -> list[str]:
        assert isinstance(self.s, ScanColumnTile)
        kind, inner = index_type(rows * across), self.shape.inner
        ctype = index_type(inner.extent + self.s.columns * self.lanes)
        return [
            f"const int across = threadIdx.x % {self.s.columns}, group = threadIdx.x / {self.s.columns};",
            f"const {kind} row = ({kind})blockIdx.x / {across};",
            f"const {ctype} {inner.var} = (({ctype})(blockIdx.x % {across}) * {self.s.columns} + across) * {self.lanes};",
            *([f"const bool inside = {inner.var} < {inner.extent};"] if self._ragged() else []),
            *(split_index("row", self.shape.outer, rows) if self.shape.outer else []),
        ]

    def _carries(self) -> list[str]:
        if self.shape.rowwise:
            return [f"{operator(x)}::type carry{x.number} = {operator(x)}::identity();" for x in self.shape.scans]
        lines = [f"{operator(x)}::type carry{x.number}[{self.lanes}];" for x in self.shape.scans]
        each = [f"carry{x.number}[j] = {operator(x)}::identity();" for x in self.shape.scans]
        return [*lines, f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{", *indent(each), "}"]

    def _position(self) -> list[str]:
        """Print the place in memory of vector `i`: step `q` of the scan."""
        along, last = self.shape.along, self.length - 1
        place = f"({last} - q)" if self.shape.form.suffix else "q"
        return [
            f"const {self.index} {along.var} = {f'{place} * {self.lanes}' if self.shape.rowwise and self.lanes > 1 else place};"
        ]

    def _each(self, lines: Sequence[str], otherwise: Sequence[str] = (), tile: str = "tile") -> list[str]:
        """Wrap statements for vector `i` in the loop over the vectors of a thread."""
        s = self.s
        q = f"group * {s.count} + i" if isinstance(s, ScanColumnTile) else f"(warp * {s.count} + i) * 32 + lane_id()"
        conditions = [f"q < {self.length}"] if self.length % self.step else []
        conditions += ["inside"] if self._ragged() else []
        work = [*self._position(), *lines]
        if conditions:
            work = [
                f"if ({' && '.join(conditions)}) {{",
                *indent(work),
                *(["} else {", *indent(list(otherwise))] if otherwise else []),
                "}",
            ]
        return [f"UNROLL for (int i = 0; i < {s.count}; ++i) {{", f"  const {self.index} q = {tile} + {q};", *indent(work), "}"]

    def _ragged(self) -> bool:
        """Whether some threads stand outside the rows or columns."""
        s, shape = self.s, self.shape
        if isinstance(s, ScanGridTile):
            return False
        if isinstance(s, ScanRowTile):
            return math.prod(x.extent for x in shape.outer) % s.rows != 0
        return shape.inner.extent % (s.columns * self.lanes) != 0

    def _first_fetch(self, ahead: bool) -> list[str]:
        """Print what holds the loads of a thread, and (`ahead`) those of the first tile."""
        kinds = [field_type(x, mode, self.lanes) for x, mode in zip(self.shape.loads, self.modes, strict=True)]
        members = " ".join(f"{ctype} x{n}{suffix};" for n, (ctype, suffix) in enumerate(kinds))
        lines = [f"struct Fetched {{ {members} }};"]
        return [*lines, f"Fetched g[{self.s.count}];", *self._fetch("g", "0")] if ahead else lines

    def _fetch(self, into: str, tile: str) -> list[str]:
        """Print the loads of a tile."""
        shape, fetch = self.shape, list[str]()
        for n, (x, mode) in enumerate(zip(shape.loads, self.modes, strict=True)):
            hint = self.hint if self.lanes * x.dtype.bytes >= 16 else "PLAIN"
            offset, guard = load_offset(x, shape.loops, self.names), load_guard(x, self.names)
            fetch += print_fetch(x, mode, f"{into}[i].x{n}", shape.inner, self.lanes, hint, offset, guard)
        return self._each(fetch, tile=tile)

    def _tile(self, ahead: bool) -> list[str]:
        """Print what happens to a tile: load it (or the next), add up what each thread holds, exchange, finish and store."""
        shape, count = self.shape, self.s.count
        lines = [f"Fetched {'h' if ahead else 'g'}[{count}];"]
        if ahead:
            lines += [f"if (tile + {self.step} < {self.length}) {{", *indent(self._fetch("h", f"tile + {self.step}")), "}"]
        else:
            lines += self._fetch("g", "tile")
        lines += [f"{operator(x)}::type a{x.number}[{count}][{self.lanes}];" for x in shape.scans]
        lines += self._each(self._lift(), self._nothing())
        lines += [*self._exchange(), *self._finish()]
        return [*lines, f"UNROLL for (int i = 0; i < {count}; ++i) g[i] = h[i];"] if ahead else lines

    def _scope(self, prefix: str, results: Mapping[str, str]) -> Scope:
        return Scope(partial(self._leaf, results=results), prefix, call=partial(call_short, self.short))

    def _leaf(self, e: Expr, results: Mapping[str, str]) -> str | None:
        if e.digest in results:
            return results[e.digest]
        if e.digest in self.fields:
            return self.fields[e.digest]
        if e.op == "iota":
            position = self.names[e.attrs[0]]
            return iota_text(e, f"{position} + j" if position == self.shape.inner.var else position)
        return None

    def _lift(self) -> list[str]:
        """Print what each lane of vector `i` adds up."""
        scope = self._scope("t", {})
        values = [(x, scope.value(x.operand)) for x in self.shape.scans]
        taken = [f"a{x.number}[i][j] = {operator(x)}::lift({v}, 0);" for x, v in values]
        return [f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{", *indent([*scope.take(), *taken]), "}"]

    def _nothing(self) -> list[str]:
        each = [f"a{x.number}[i][j] = {operator(x)}::identity();" for x in self.shape.scans]
        return [f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{", *indent(each), "}"]

    def _lane(self) -> str:
        """Print the lane in memory of the lane `l` of the scan."""
        return f"{self.lanes - 1} - l" if self.shape.form.suffix and self.shape.rowwise else "l"

    def _exchange(self) -> list[str]:
        """Print the totals `t` of what a thread holds, which become what comes before it."""
        s = self.s
        if isinstance(s, ScanColumnTile):
            return [line for x in self.shape.scans for line in self._exchange_columns(s, x.number, operator(x))]
        rows = s.rows if isinstance(s, ScanRowTile) else 1
        lines: list[str] = []
        for x in self.shape.scans:
            n, op = x.number, operator(x)
            lines += [
                f"{op}::type t{n}[{s.count}];",
                f"UNROLL for (int i = 0; i < {s.count}; ++i) {{",
                f"  t{n}[i] = a{n}[i][{self.lanes - 1 if self.shape.form.suffix else 0}];",
                f"  UNROLL for (int l = 1; l < {self.lanes}; ++l) t{n}[i] = {op}::combine(t{n}[i], a{n}[i][{self._lane()}]);",
                "}",
                f"scan_row<{op}, {n}, {s.warps}, {rows}, {s.count}>(t{n}, carry{n}, slot, turn);",
            ]
        if isinstance(s, ScanGridTile):
            for x in self.shape.scans:
                n, op, flags = x.number, operator(x), f"flags + (i64)row * {-(-self.length // self.step)}"
                last = x is self.shape.scans[-1]
                lines.append(f"leave_total(parts{n}, {flags if last else 'nullptr'}, part, carry{n});")
            for x in self.shape.scans:
                n, op, flags = x.number, operator(x), f"flags + (i64)row * {-(-self.length // self.step)}"
                lines += [
                    f"carry{n} = before_tile<{op}, {n}, {s.warps}>(parts{n}, {flags}, part);",
                    f"UNROLL for (int i = 0; i < {s.count}; ++i) t{n}[i] = {op}::combine(carry{n}, t{n}[i]);",
                ]
        return lines

    def _exchange_columns(self, s: ScanColumnTile, n: int, op: str) -> list[str]:
        return [
            f"{op}::type t{n}[{self.lanes}];",
            f"UNROLL for (int j = 0; j < {self.lanes}; ++j) {{",
            f"  t{n}[j] = a{n}[0][j];",
            f"  UNROLL for (int i = 1; i < {s.count}; ++i) t{n}[j] = {op}::combine(t{n}[j], a{n}[i][j]);",
            "}",
            f"scan_groups<{op}, {n}, {s.columns}, {s.groups}, {self.lanes}>(t{n}, carry{n}, across, group, turn);",
        ]

    def _finish(self) -> list[str]:
        """Print the running values of vector `i`, the outputs that follow from them, and the stores."""
        shape = self.shape
        running = "t{0}[i]" if shape.rowwise else "t{0}[j]"
        results = {x.node.digest: f"s{x.number}" for x in shape.scans}
        scope = self._scope("e", results)
        made = [f"o{n}[j] = {scope.value(o.expr)};" for n, o in enumerate(self.program.outputs)]
        lane = [f"const int j = {self._lane()};"]
        for x in shape.scans:
            at, n = running.format(x.number), x.number
            before = f"const {register_type(x.node.dtype)} s{n} = {operator(x)}::value({at});"
            add = f"{at} = {operator(x)}::combine({at}, a{n}[i][j]);"
            lane += [before, add] if shape.form.strict else [add, before]
        body = [f"{register_type(o.dtype)} o{n}[{self.lanes}];" for n, o in enumerate(self.program.outputs)]
        body += [f"UNROLL for (int l = 0; l < {self.lanes}; ++l) {{", *indent([*lane, *scope.take(), *made]), "}"]
        for n, out in enumerate(shape.stores):
            size = self.lanes * out.dtype.bytes
            hint = self.hint if size >= 16 else "PLAIN"
            at = load_offset(out, shape.loops, self.names)
            pack = f"Pack<{stored_type(out.dtype)}>::template from<{self.lanes}>(o{n})"
            body.append(f"store_raw<{size}, {hint}>({out.parameter} + {at}, {pack});")
        return self._each(body)
