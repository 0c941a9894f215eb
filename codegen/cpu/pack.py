"""Packing an operand of a contraction into panels: any expression of any layout, evaluated while it is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eqsat.codegen.cpu.loads import Loop
from eqsat.codegen.cpu.loops import loop, vector_loop
from eqsat.codegen.cpu.vector import Lanes, Printer, Scope, converted
from eqsat.ir import Expr
from eqsat.types import DType


class Nest(Protocol):
    """The loop nest that packs: its printer, the scopes outside, the loops that count as k, and the type it packs to."""

    @property
    def printer(self) -> Printer:
        """The printer of values."""
        ...

    @property
    def outer(self) -> list[Scope]:
        """The scopes outside the packing."""
        ...

    @property
    def k(self) -> tuple[Loop, ...]:
        """The loops that count as k."""
        ...

    @property
    def element(self) -> str:
        """The C type packed to."""
        ...

    @property
    def register(self) -> str:
        """The register type packed to."""
        ...

    @property
    def dtype(self) -> DType:
        """The type packed to."""
        ...

    def place(self, loops: Sequence[Loop], position: str) -> None:
        """Set the names of a group's axes for a scalar position."""

    def along(self, e: Expr, loops: Sequence[Loop]) -> bool:
        """Whether the largest read of `e` is contiguous along the innermost of `loops`."""


def pack(nest: Nest, e: Expr, loops: tuple[Loop, ...], panel: int, first: str, count: str, to: str) -> list[str]:
    """Print the packing of `count` rows from `first` (columns, for the right operand) and k from `k_first`, `kc` of them.

    A panel holds `panel` rows: element (row, k) is at `to[(row // panel) * panel * kc + k * panel + row % panel]`. Rows
    that are missing in the last panel are 0.
    """
    by_rows = not nest.along(e, loops) and nest.along(e, nest.k)
    inside = _across(nest, e, loops, panel, first) if by_rows else _alongside(nest, e, loops, panel, first)
    edge = f"if (rows < {panel}) memset(panel_at, 0, {panel} * kc * sizeof *panel_at);"
    head = [
        f"const pos rows = {count} - p < {panel} ? {count} - p : {panel};",
        f"{nest.element} *restrict const panel_at = {to} + p * kc;",
        edge,
    ]
    return loop(f"for (pos p = 0; p < {count}; p += {panel})", [*head, *inside])


def _alongside(nest: Nest, e: Expr, loops: tuple[Loop, ...], panel: int, first: str) -> list[str]:
    """Vectors along the rows of the panel: they are neighbours in memory, or nothing is."""
    nest.place(nest.k, "(k_first + k)")
    middle = Scope(frozenset().union(*(x.covers for x in nest.k)))

    def body(position: str, part: str | None, _: int) -> list[str]:
        last, lanes = Scope(frozenset().union(*(x.covers for x in loops))), Lanes(loops, f"({first} + p + {position})", part)
        value = converted(nest.printer.value(e, [*nest.outer, middle, last], lanes), e.dtype, nest.dtype)
        partly = "" if part is None else "_part"
        tail = "" if part is None else f", {part}"
        last.lines.append(f"eq_store{partly}_{nest.register}(panel_at + k * {panel} + {position}, {value}{tail});")
        return last.lines

    width = nest.printer.width
    full = list(vector_loop("r", "0", panel, width, max(1, panel // width), body))
    some = list(vector_loop("r", "0", "rows", width, 1, body))
    each = "for (pos k = 0; k < kc; k++)"
    # what does not vary along the rows was printed into `middle` by whichever came first: both need it
    return [
        *loop(f"if (rows == {panel})", loop(each, [*middle.lines, *full])),
        *loop("else", loop(each, [*middle.lines, *some])),
    ]


def _across(nest: Nest, e: Expr, loops: tuple[Loop, ...], panel: int, first: str) -> list[str]:
    """Vectors along k into a small square, which is then turned."""
    width = nest.printer.width
    nest.place(loops, f"({first} + p + r)")
    middle = Scope(frozenset().union(*(x.covers for x in loops)))

    def body(part: str | None) -> list[str]:
        last, lanes = Scope(frozenset().union(*(x.covers for x in nest.k))), Lanes(nest.k, "(k_first + k)", part)
        row = Scope(middle.covers, [], {})
        value = converted(nest.printer.value(e, [*nest.outer, row, last], lanes), e.dtype, nest.dtype)
        store = f"eq_store_{nest.register}(square + r * {width}, {value});"
        count = str(width) if part is None else part
        return [
            *loop("for (pos r = 0; r < rows; r++)", [*row.lines, *last.lines, store]),
            f"for (pos l = 0; l < {count}; l++)",
            f"  for (pos r = 0; r < {panel}; r++) panel_at[(k + l) * {panel} + r] = square[r * {width} + l];",
        ]

    return [
        f"{nest.element} square[{panel * width}] __attribute__((aligned(64)));",
        f"if (rows < {panel}) memset(square, 0, sizeof square);",
        "pos k = 0;",
        *loop(f"for (; k + {width} <= kc; k += {width})", body(None)),
        *loop("if (k < kc)", body("(int)(kc - k)")),
    ]
