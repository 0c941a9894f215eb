"""Printing the passes of a reduction: fetching a vector of elements, computing each lane, accumulating."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from eqsat.codegen.cuda.emit import Scope, register_type
from eqsat.codegen.cuda.loads import (
    AxisNames,
    Load,
    LoopAxis,
    axis_names,
    field_type,
    field_value,
    index_type,
    iota_text,
    load_guard,
    load_offset,
    print_fetch,
)
from eqsat.codegen.cuda.reduce_shape import Pick, ReduceShape, Reduction
from eqsat.codegen.cuda.shorten import call_short, short_in_all
from eqsat.ir import Expr, apply
from eqsat.types import DType


@dataclass
class RowScope:
    """Values that are the same for all elements of a row: statistics, loads without reduced axes, and what follows from them."""

    shape: ReduceShape
    names: AxisNames
    scope: Scope = field(init=False)
    statistics: dict[str, str] = field(default_factory=dict)
    short: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.scope = Scope(self._leaf, "row")
        self.short = short_in_all(self.shape.problem.program.outputs)
        self._loads = {x.expr.digest: x for x in self.shape.loads}
        self._picks = {p.node.digest: p for p in self.shape.picked}

    def _leaf(self, e: Expr) -> str | None:
        if e.digest in self.statistics:
            return self.statistics[e.digest]
        if e.digest in self._picks:
            return self._picked(self._picks[e.digest])
        if e.op == "iota":
            return iota_text(e, self.names[e.attrs[0]])
        if e.digest not in self._loads:
            return None
        return self.scope.define(register_type(e.dtype), self._loaded(self._loads[e.digest], self.shape.rows, self.names))

    @staticmethod
    def _loaded(load: Load, loops: Sequence[LoopAxis], names: AxisNames) -> str:
        get = f"load_one({load.parameter} + {load_offset(load, loops, names)})"
        guard = load_guard(load, names)
        return f"{guard} ? {get} : 0" if guard else get

    def _picked(self, pick: Pick) -> str:
        """Print the one term of a sum: its value at the position that is picked, 0 where that is outside."""
        extent = self.shape.problem.program.extents[pick.axis]
        at = self.scope.value(pick.at)
        inside = self.scope.define("bool", f"{at} >= 0 && {at} < {extent}")
        place = self.scope.define(index_type(extent), f"{inside} ? {at} : 0")
        names = AxisNames(self.names | {pick.axis: place})
        loops = (*self.shape.rows, LoopAxis(place, (pick.axis,), extent))

        def leaf(e: Expr) -> str | None:
            if e.op == "iota":
                return iota_text(e, names[e.attrs[0]])
            return self._loaded(self._loads[e.digest], loops, names) if e.digest in self._loads else None

        term = Scope(leaf, f"{place}_", self.scope, lambda e: not self.shape.varies(e))
        value = term.value(pick.value)
        self.scope.lines += term.take()
        return self.scope.define(register_type(pick.node.dtype), f"{inside} ? {value} : 0")

    def cheaper(self, e: Expr, operands: Sequence[str]) -> str | None:
        """Print an op on elements in a cheaper way of equal worth, where there is one.

        A division by a row value is a product with its reciprocal: with one corrective step, or without where the result is
        stored in 16 bits alone. For short functions see `short_functions`.
        """
        if e.digest in self.short:
            return call_short(self.short, e, operands)
        if e.op != "div" or self.shape.varies(e.args[1]) or e.args[1].op == "const":
            return None
        ctype = register_type(e.dtype)
        if any(register_type(a.dtype) != ctype for a in e.args):
            return None
        inverse = self.scope.value(apply("recip", e.args[1]))
        if all(x.dtype in (DType.F16, DType.BF16) for x in self.shape.stores):
            return f"{operands[0]} * {inverse}"
        return f"eq_div_by({operands[0]}, {operands[1]}, {inverse})"


@dataclass(frozen=True)
class ElementPrinter:
    """Prints what happens to one vector of elements along the loop `inner`.

    `at_hand` gives the C of loads and kept values that are already in registers, by digest.
    """

    shape: ReduceShape
    inner: LoopAxis
    lanes: int
    loops: tuple[LoopAxis, ...]
    hint: str

    @property
    def names(self) -> AxisNames:
        """C variables of the axes that are loops of their own."""
        return AxisNames(axis_names(self.loops))

    def members(self, loads: Sequence[tuple[int, Load]]) -> str:
        """Print the fields of a struct that holds fetched loads."""
        parts = []
        for n, load in loads:
            ctype, suffix = field_type(load, self.shape.mode(load, self.inner, self.lanes), self.lanes)
            parts.append(f"{ctype} x{n}{suffix};")
        return " ".join(parts)

    def fetch(self, loads: Sequence[tuple[int, Load]], prefix: str, *, hinted: bool, other: str = "CACHED") -> list[str]:
        """Print the statements that fetch `loads` at the loops' position into `<prefix>x<n>`; without the hint, as `other`."""
        lines: list[str] = []
        for n, load in loads:
            mode = self.shape.mode(load, self.inner, self.lanes)
            wide = self.hint if hinted and self.lanes * load.dtype.bytes >= 16 else other
            offset, guard = load_offset(load, self.loops, self.names), load_guard(load, self.names)
            lines += print_fetch(load, mode, f"{prefix}x{n}", self.inner, self.lanes, wide, offset, guard)
        return lines

    def fields(self, loads: Sequence[tuple[int, Load]], prefix: str) -> dict[str, str]:
        """Return the C of lane `j` of each fetched load, by digest."""
        return {x.expr.digest: field_value(x, self.shape.mode(x, self.inner, self.lanes), f"{prefix}x{n}") for n, x in loads}

    def scope(
        self, number: int, at_hand: dict[str, str], row: RowScope | None, statistics: dict[str, str] | None = None
    ) -> Scope:
        """Return a scope for the statements of one lane in pass `number`."""
        names = self.names

        def leaf(e: Expr) -> str | None:
            if e.digest in at_hand:
                return at_hand[e.digest]
            if statistics and e.digest in statistics:
                return statistics[e.digest]
            if e.op == "iota":
                position = names[e.attrs[0]]
                return iota_text(e, f"{position} + j" if position == self.inner.var else position)
            return None

        if row is None:
            short = short_in_all(self.shape.problem.program.outputs)
            return Scope(leaf, f"p{number}_", call=partial(call_short, short))
        return Scope(leaf, f"p{number}_", row.scope, lambda e: not self.shape.varies(e), row.cheaper)

    def position(self) -> str:
        """Print the position of lane `j` along the reduced axis, for arg-reductions (their axis is a loop of its own)."""
        axis = self.shape.problem.reduced[0]
        name = self.names[axis]
        return f"{name} + j" if name == self.inner.var else name


def accumulate(reductions: Sequence[Reduction], scope: Scope, position: str, slot: str) -> list[str]:
    """Print how lane `j` enters the accumulators `a<number>[slot]`."""
    lines: list[str] = []
    for r in reductions:
        value = scope.value(r.body)
        a = f"a{r.number}[{slot}]"
        where = position if r.is_arg else "0"
        lines += [*scope.take(), f"{a} = take<{r.operator}>({a}, {value}, {where});"]
    return lines


def declare(reductions: Sequence[Reduction], count: int) -> list[str]:
    """Print the accumulators, each set to its identity."""
    lines: list[str] = []
    for r in reductions:
        lines.append(f"{r.operator}::type a{r.number}[{count}];")
        lines.append(f"UNROLL for (int j = 0; j < {count}; ++j) a{r.number}[j] = {r.operator}::identity();")
    return lines


def made(stores: Sequence[Load]) -> list[tuple[str, Load]]:
    """Return the C array that holds a vector of each output before it is stored."""
    return [(f"o{n}" if n else "o", x) for n, x in enumerate(stores)]


def compute(stores: Sequence[Load], scope: Scope) -> list[str]:
    """Print the statements that make lane `j` of each output."""
    values = [f"{name}[j] = {scope.value(_unrounded(x.expr, x.dtype))};" for name, x in made(stores)]
    return [*scope.take(), *values]


def _unrounded(e: Expr, stored: DType) -> Expr:
    """Return the value without a last rounding to the type it is stored in: the store rounds."""
    short = e.op == "cast" and e.dtype is stored and stored in (DType.F16, DType.BF16)
    return e.args[0] if short and e.args[0].dtype.accumulator is DType.F32 else e


def indent(lines: Sequence[str], by: int = 2) -> list[str]:
    """Return the lines moved right."""
    return [" " * by + line for line in lines]


def choose(loads: Sequence[Load], wanted: Callable[[Load], bool]) -> list[tuple[int, Load]]:
    """Return the numbered loads for which `wanted` holds."""
    return [(n, x) for n, x in enumerate(loads) if wanted(x)]
