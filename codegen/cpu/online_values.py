"""Operands and sums of a dependent fold on the CPU: what packing needs to know, register tiles, and accumulators with values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eqsat.codegen.cpu.loads import Loop
from eqsat.codegen.cpu.loops import loop, vector_loop
from eqsat.codegen.cpu.pack import pack
from eqsat.codegen.cpu.vector import Lanes, Printer, Scope, converted, positions
from eqsat.codegen.online import Accumulated
from eqsat.codegen.printer import is_load
from eqsat.ir import Expr, Output
from eqsat.types import DType

if TYPE_CHECKING:
    from eqsat.codegen.cpu.online_nest import OnlineNest


def covers(loops: Sequence[Loop]) -> frozenset[str]:
    """Return all axes of some loops."""
    return frozenset().union(*(x.covers for x in loops))


@dataclass(slots=True)
class Operand:
    """What `pack` needs to know: where it prints, the loops that count as k, and the type it packs to."""

    nest: OnlineNest
    k: tuple[Loop, ...]

    @property
    def printer(self) -> Printer:
        """The printer of values."""
        return self.nest.printer

    @property
    def outer(self) -> list[Scope]:
        """The scopes outside the packing."""
        return self.nest.scopes

    @property
    def element(self) -> str:
        """The C type packed to."""
        return self.nest.element

    @property
    def register(self) -> str:
        """The register type packed to."""
        return self.nest.register

    @property
    def dtype(self) -> DType:
        """The type packed to."""
        return self.nest.problem.dtype

    def place(self, loops: Sequence[Loop], position: str) -> None:
        """Set the names of a group's axes for a scalar position."""
        self.printer.names |= positions(loops, position)

    def along(self, e: Expr, loops: Sequence[Loop]) -> bool:
        """Whether the largest read of `e` is contiguous along the innermost of `loops`."""
        return self.nest.along(e, loops)


def register_tile(nest: OnlineNest, vectors: int) -> list[str]:
    """Return a function that adds products over `kc` in a tile of registers, to 0 or to what is there times `scale`."""
    e, v, rows = nest.element, f"v{nest.register}", nest.tiling.tile_rows
    grid = [(i, j) for i in range(rows) for j in range(vectors)]
    at = {(i, j): f"*({v} *)(to + {i} * row_to + {j * nest.width})" for i, j in grid}
    step = [f"const {v} b{j} = eq_load_{nest.register}(b + {j * nest.width});" for j in range(vectors)]
    for i in range(rows):
        sums = " ".join(f"c{i}_{j} += x * b{j};" for j in range(vectors))
        step.append(f"{{ const {e} x = a[{i} * row_a + k]; {sums} }}")
    step.append("b += row_b;")
    scaled = [
        f"{{ const {e} x = scale[{i}]; {' '.join(f'c{i}_{j} = {at[i, j]} * x;' for j in range(vectors))} }}" for i in range(rows)
    ]
    head = (
        f"static __attribute__((noinline)) void tile{vectors}(pos kc, const {e} *restrict a, pos row_a, const {e} *restrict b, pos row_b, "
        f"{e} *restrict to, pos row_to, const {e} *restrict scale)"
    )
    return loop(
        head,
        [
            *(f"{v} {', '.join(f'c{i}_{j} = {{0}}' for j in range(vectors))};" for i in range(rows)),
            *loop("if (scale)", scaled),
            *loop("for (pos k = 0; k < kc; k++)", step),
            *(f"{at[i, j]} = c{i}_{j};" for i, j in grid),
        ],
    )


class Values:
    """The accumulators over one set of value axes: packed values and an array of sums for each."""

    def __init__(self, nest: OnlineNest, number: int, loops: tuple[Loop, ...], found: list[Accumulated]) -> None:
        self.nest, self.number, self.loops, self.found = nest, number, loops, found
        self.axes = found[0].axes
        self.extent = nest.problem.extent(self.axes)
        width = nest.printer.width
        count = -(-self.extent // width)  # vectors that hold one row, in panels of nearly equal size
        self.vectors = -(-count // -(-count // nest.tiling.vectors))
        self.panel = self.vectors * width
        self.padded = -(-self.extent // self.panel) * self.panel

    def _names(self) -> list[tuple[Accumulated, str]]:
        return [(a, f"{self.number}_{i}") for i, a in enumerate(self.found)]

    def declare(self) -> list[str]:
        """Declare the sums of a tile of rows, 0, and room for a tile of values."""
        rows, keys = self.nest.rows, self.nest.keys
        lines = [self.nest.array(f"values{name}", rows * self.padded) for _, name in self._names()]
        lines += [f"memset(values{name}, 0, sizeof values{name});" for _, name in self._names()]
        packed = [name for a, name in self._names() if not self._rows_in_memory(a)]
        return [*lines, *(self.nest.array(f"packed{name}", keys * self.padded) for name in packed)]

    def _rows_in_memory(self, a: Accumulated) -> tuple[str, int] | None:
        """Return the address of the tile's first row of values and the step to the next, if they need no packing."""
        nest, e = self.nest, a.value
        if not is_load(e) or e.dtype is not nest.problem.dtype or self.padded != self.extent:
            return None
        load = nest.printer.loads[e.digest]
        axes = (nest.over[0].axis, self.loops[0].axis)
        if (
            load.guards
            or len(nest.over) + len(self.loops) > 2
            or load.offset.opaque & set(axes)
            or load.offset.factor(axes[1]) != 1
        ):
            return None
        at = load.offset.text(nest.printer.names | {axes[0]: "key_first", axes[1]: "0"})
        return f"{nest.printer.pointers[load.buffer.name]} + {at}", load.offset.factor(axes[0])

    def accumulate(self) -> list[str]:
        """Scale the sums of each row and add the tile's weighted values."""
        nest, lines = self.nest, []
        step, size = nest.tiling.tile_rows, self.padded
        for a, name in self._names():
            if found := self._rows_in_memory(a):
                right = f"{found[0]} + j, {found[1]}"
            else:
                right = f"packed{name} + j * keys, {self.panel}"
                panels = pack(Operand(nest, nest.over), a.value, self.loops, self.panel, "0", str(self.extent), f"packed{name}")
                # `pack` counts keys of the tile from k_first
                lines += loop("", ["const pos k_first = key_first, kc = keys;", *panels])
            call = (
                f"tile{self.vectors}(keys, weights + i * {nest.keys}, {nest.keys}, {right}, "
                f"values{name} + i * {size} + j, {size}, rebase + i);"
            )
            inner = loop(f"for (pos i = 0; i < rows; i += {step})", [call])
            lines += loop(f"for (pos j = 0; j < {size}; j += {self.panel})", inner)
        return lines

    def write(self, output: Output, row: Scope) -> list[str]:
        """Print the output of row r along the value axes."""
        nest = self.nest
        r, dtype = nest.register, nest.problem.dtype
        for a, name in self._names():

            def at(lanes: Lanes, name: str = name, own: DType = a.node.dtype) -> str:
                sums = f"(eq_load_{r}(values{name} + r * {self.padded} + {lanes.position}) + nan)"
                return converted(sums, dtype, own)

            nest.printer.stored[a.node.digest] = at

        def body(position: str, part: str | None, _: int) -> list[str]:
            last = Scope(covers(self.loops))
            nest.printer.write([output], [*nest.scopes, row, last], Lanes(self.loops, position, part))
            return last.lines

        return loop("", list(vector_loop("column", "0", self.extent, nest.width, 1, body)))
