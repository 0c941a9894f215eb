"""Programs made from rules: a side of a rule over inputs of drawn axes, extents and dtypes."""

from __future__ import annotations

import random
from collections.abc import Mapping

from eqsat.ir import Expr, Input, Output, Program, read
from eqsat.rulegate_draw import EXTENTS, Draw, draws, number
from eqsat.rulegate_equation import Equation, typings
from eqsat.sexpr import Node
from eqsat.terms import from_term
from eqsat.types import DType


def situation(equation: Equation, seed: int = 0) -> Draw:
    """Return a situation in which the rule applies and every tensor variable holds floats or truth values."""
    typed = [t for t in typings(equation) if not {"weak", "i32"} & set(t.values())]
    found = (d for row in EXTENTS for d, _ in zip(draws(equation, typed, row, random.Random(seed)), range(20), strict=False))
    return next(d for d in found if not d.same and len(set(d.axis.values())) == len(d.axis))


def program(equation: Equation, side: Node, draw: Draw) -> Program:
    """Return the side as a program that reads one input for each tensor variable."""
    reads = {v: _read(v, draw) for v in equation.tensors}
    inputs = tuple(Input(v, tuple(r.type.extents[a] for a in r.attrs[1]), r.dtype) for v, r in reads.items())
    some = (
        Program(inputs, (Output("o", next(iter(reads.values())), next(iter(reads.values())).attrs[1], DType.F64),))
        if reads
        else None
    )
    empty = Program((Input("none", (), DType.F32),), (Output("o", read("none", (), (), DType.F32), (), DType.F32),))
    expr = from_term(str(_ground(side, draw, reads)), some or empty, extents=draw.extents)
    return Program(inputs or empty.inputs, (Output("y", expr, tuple(sorted(expr.axes)), expr.dtype),))


def _read(variable: str, draw: Draw) -> Expr:
    axes = tuple(sorted(draw.axes[variable]))
    return read(variable, axes, tuple(draw.extents[a] for a in axes), DType(draw.types[variable]))


def _ground(node: Node, draw: Draw, reads: Mapping[str, Expr]) -> Node:
    """Put reads, axis names and numbers in place of the variables."""
    if node.head == "Const":
        return Node("list", "", (node.items[0], Node("float", repr(float(number(node.args[0], draw, draw.numbers))))))
    if node.kind == "list":
        return Node("list", "", tuple(_ground(i, draw, reads) for i in node.items))
    if node.kind == "symbol" and node.text in reads:
        axes = Node("string", " ".join(reads[node.text].attrs[1]))
        return Node("list", "", (Node("symbol", "Read"), Node("string", node.text), axes))
    if node.kind == "symbol" and node.text in draw.axis:
        return Node("string", draw.axis[node.text])
    if node.kind == "symbol" and node.text in draw.types:
        return Node("string", draw.types[node.text])
    return node
