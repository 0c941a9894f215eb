"""Hypothesis strategies: random well-typed programs drawn from the op table, and arrays to run them on.

Every row of the table is drawn, new rows without a line written here. Extents are tiny; the axes i, j, k, l always have
the same extents, so that any expressions can meet.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eqsat import ir
from eqsat.access import AccessMap, Index
from eqsat.ir import Expr, Input, Output, Program
from eqsat.ops import TABLE, Kind, Op, Result
from eqsat.types import DType

EXTENTS: Mapping[str, int] = {"i": 2, "j": 3, "k": 4, "l": 6}
NUMBERS = (DType.F32, DType.F64, DType.F16, DType.BF16, DType.I32, DType.I64)
FLOATS = (DType.F32, DType.F64, DType.F16, DType.BF16)


@functools.cache
def takes_numbers(row: Op) -> bool:
    """Whether a pointwise row is defined on floats (otherwise on truth values): its own function is asked."""
    if row.evaluate is OPS_WITHOUT_FUNCTION:
        return True
    try:
        row.evaluate(np, *(np.ones(1) for _ in range(row.arity)))
    except TypeError:
        return False
    return True


OPS_WITHOUT_FUNCTION = next(row.evaluate for row in TABLE if row.name == "cast")


@st.composite
def indices(draw: st.DrawFn) -> Index:
    """Draw an index expression over the axes i, j, k, l: affine, with // or % now and then."""
    out = Index.const(draw(st.integers(-2, 2)))
    for axis in draw(st.lists(st.sampled_from(sorted(EXTENTS)), min_size=0, max_size=2, unique=True)):
        out = Index.axis(axis) * draw(st.sampled_from([1, 1, 2, -1, 3])) + out
    match draw(st.integers(0, 5)):
        case 0:
            return out // draw(st.integers(1, 4)) + Index.const(draw(st.integers(-1, 1)))
        case 1:
            return out % draw(st.integers(1, 4))
        case _:
            return out


class _Maker:
    """Draws expressions; collects the inputs that they read."""

    def __init__(self, draw: st.DrawFn, dtypes: Sequence[DType], rows: Sequence[Op], masks: bool) -> None:
        self.draw, self.dtypes, self.rows, self.masks = draw, dtypes, rows, masks
        self.inputs: dict[str, Input] = {}

    def expr(self, depth: int, truth: bool = False) -> Expr:
        rows = [r for r in self.rows if self._gives_truth(r) is truth and (r.kind is Kind.LEAF) is (depth == 0)]
        if depth and (not rows or self.draw(st.integers(0, 4)) == 0):
            return self.expr(0, truth)
        if truth and not depth:
            return self._mask() if self.masks and self.draw(st.booleans()) else self._read(DType.BOOL)
        return self._node(self.draw(st.sampled_from(rows)), depth)

    @staticmethod
    def _gives_truth(row: Op) -> bool:
        return row.result is Result.BOOL

    def _node(self, row: Op, depth: int) -> Expr:
        draw = self.draw
        if row.kind is Kind.LEAF:
            return self._leaf(row)
        if row.kind is Kind.REDUCE:
            arg = self.expr(depth - 1, truth=row.result is Result.BOOL)
            return ir.reduce(row.name, draw(st.sampled_from(sorted(arg.axes))), arg) if arg.axes else self._node_or_leaf(row, arg)
        if row.kind is Kind.ACCESS:
            return self._access(self.expr(depth - 1))
        if row.result is Result.GIVEN:
            return ir.apply(row.name, self.expr(depth - 1, draw(st.booleans())), dtype=draw(st.sampled_from(self.dtypes)))
        truths = [(row.result is Result.BRANCHES and n == 0) or not takes_numbers(row) for n in range(row.arity)]
        return ir.apply(row.name, *(self.expr(depth - 1, truth) for truth in truths))

    def _node_or_leaf(self, row: Op, arg: Expr) -> Expr:
        """Return something of the kind that `row` gives, where its operand has no axis to reduce."""
        return arg if arg.dtype is not DType.BOOL or row.result is Result.BOOL else self.expr(0)

    def _leaf(self, row: Op) -> Expr:
        if row.name == "read":
            return self._read(self.draw(st.sampled_from(self.dtypes)))
        if row.name == "iota":
            axis = self.draw(st.sampled_from(sorted(EXTENTS)))
            return ir.iota(axis, EXTENTS[axis])
        dtype = self.draw(st.sampled_from(self.dtypes))
        if dtype.is_float:
            return ir.const(self.draw(st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e-6, 3.25, math.inf])), dtype)
        return ir.const(self.draw(st.integers(-3, 3)), dtype)

    def _mask(self) -> Expr:
        """Compare positions: a causal mask, a band, a prefix, or one that holds everywhere or nowhere."""
        draw = self.draw
        a, b = draw(st.sampled_from(sorted(EXTENTS))), draw(st.sampled_from(sorted(EXTENTS)))
        left = ir.apply("add", ir.iota(a, EXTENTS[a]), ir.const(draw(st.integers(-6, 6)), DType.I64))
        right = ir.iota(b, EXTENTS[b]) if draw(st.booleans()) else ir.const(draw(st.integers(-1, 6)), DType.I64)
        return ir.apply(draw(st.sampled_from(["lt", "le"])), *draw(st.permutations([left, right])))

    def _read(self, dtype: DType) -> Expr:
        if self.inputs and self.draw(st.booleans()):
            source = self.draw(st.sampled_from(sorted(self.inputs.values(), key=lambda i: i.name)))
            if source.dtype is dtype:
                return ir.read(source.name, self._axes_for(source.shape), source.shape, dtype)
        axes = self.draw(st.lists(st.sampled_from(sorted(EXTENTS)), max_size=3, unique=True))
        shape = [EXTENTS[a] for a in axes]
        if self.draw(st.integers(0, 5)) == 0:
            at = self.draw(st.integers(0, len(axes)))
            axes.insert(at, "")
            shape.insert(at, 1)
        name = f"x{len(self.inputs)}"
        self.inputs[name] = Input(name, tuple(shape), dtype, self.draw(st.booleans()))
        return ir.read(name, tuple(axes), tuple(shape), dtype)

    @staticmethod
    def _axes_for(shape: tuple[int, ...]) -> tuple[str, ...]:
        by_extent = {n: a for a, n in EXTENTS.items()}
        return tuple("" if n == 1 else by_extent[n] for n in shape)

    def _access(self, arg: Expr) -> Expr:
        if not arg.axes:
            return arg
        replaced = self.draw(st.lists(st.sampled_from(sorted(arg.axes)), min_size=1, max_size=2, unique=True))
        entries = tuple((a, self.draw(indices())) for a in replaced)
        used = sorted({b for _, index in entries for b in index.axes})
        return ir.access(arg, AccessMap(entries, tuple((b, EXTENTS[b]) for b in used)))


@st.composite
def programs(
    draw: st.DrawFn,
    depth: int = 4,
    outputs: int = 2,
    dtypes: Sequence[DType] = NUMBERS,
    without: Sequence[str] = (),
    accesses: bool = True,
    masks: bool = False,
) -> Program:
    """Draw a program.

    Parameters
    ----------
    depth : int
        Greatest height of an expression.
    outputs : int
        Greatest number of outputs.
    dtypes : sequence of DType
        Element types of numeric leaves and casts (truth values occur besides).
    without : sequence of str
        Names of ops that are not wanted.
    accesses : bool
        Whether accesses are drawn.
    masks : bool
        Whether comparisons of positions are drawn as truth values, even where comparisons of data are not wanted.
    """
    rows = [r for r in TABLE if r.name not in without and (accesses or r.kind is not Kind.ACCESS)]
    maker = _Maker(draw, dtypes, rows, masks)
    made: list[Output] = []
    for n in range(draw(st.integers(1, outputs))):
        expr = maker.expr(draw(st.integers(1, depth)), truth=draw(st.integers(0, 7)) == 0)
        axes = list(draw(st.permutations(sorted(expr.axes))))
        if draw(st.integers(0, 7)) == 0:
            axes.insert(draw(st.integers(0, len(axes))), "")
        made.append(Output(f"y{n}", expr, tuple(axes), expr.dtype))
    return Program(tuple(maker.inputs.values()), tuple(made))


def example_inputs(program: Program, seed: int = 0, exact: bool = False) -> dict[str, Any]:
    """Return arrays for the inputs of `program`: small signed values with zeros among them; whole ones if `exact`."""
    rng = np.random.default_rng(seed)
    out: dict[str, Any] = {}
    for source in program.inputs:
        if source.dtype is DType.BOOL:
            out[source.name] = rng.integers(0, 2, source.shape).astype(bool)
        elif exact or not source.dtype.is_float:
            out[source.name] = rng.integers(-3, 4, source.shape).astype(source.dtype.numpy)
        else:
            out[source.name] = np.round(rng.normal(size=source.shape) * 2, 2).astype(source.dtype.numpy)
    return out
