"""Programs made from rules: a side of a rule over inputs of drawn axes, extents and dtypes."""

from __future__ import annotations

import random
from collections.abc import Mapping

from eqsat.gate.draw import EXTENTS, Draw, draws, index_of, is_menu, number
from eqsat.gate.equation import Equation, typings
from eqsat.indexterms import INDEX_CONSTRUCTORS, index_term
from eqsat.ir import Expr, Input, Output, Program, read
from eqsat.rulelint import MACROS
from eqsat.sexpr import Node, listed, read_forms
from eqsat.signature import COSTS, TermWriter, extent_facts
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
    terms = {v: _in_range(_read_term(r), [g.head for g in equation.guards if g.args[0].text == v]) for v, r in reads.items()}
    some = (
        Program(inputs, (Output("o", next(iter(reads.values())), next(iter(reads.values())).attrs[1], DType.F64),))
        if reads
        else None
    )
    empty = Program((Input("none", (), DType.F32),), (Output("o", read("none", (), (), DType.F32), (), DType.F32),))
    expr = from_term(str(_ground(side, draw, terms)), some or empty, extents=draw.extents)
    return Program(inputs or empty.inputs, (Output("y", expr, tuple(sorted(expr.axes)), expr.dtype),))


def load_text(equation: Equation, draw: Draw, *beside: Node) -> str:
    """Return the left side as it stands, with what the e-graph must know: no way through expressions, which join accesses.

    `beside` are the other terms that the rule matches.
    """
    writer = TermWriter([g.args[0].text for g in equation.guards if g.head == "constant"])
    lines = extent_facts(draw.extents)
    terms: dict[str, Node] = {}
    for v in equation.tensors:
        (name,) = read_forms(writer.strong(_read(v, draw)))
        lines += writer.take_lines()
        terms[v] = _in_range(name, [g.head for g in equation.guards if g.args[0].text == v])
    facts = [_ground(g, draw, terms) for g in equation.guards if (is_menu(g) and g.head not in MACROS) or g.head in COSTS]
    ground = [_ground(term, draw, terms) for term in (equation.left, *beside)]
    return "\n".join([*lines, *map(str, facts), *(f"(let $left{i} {term})" for i, term in enumerate(ground))])


def _read(variable: str, draw: Draw) -> Expr:
    axes = tuple(sorted(draw.axes[variable]))
    return read(variable, axes, tuple(draw.extents[a] for a in axes), DType(draw.types[variable]))


def _read_term(expr: Expr) -> Node:
    return listed("Read", Node("string", expr.attrs[0]), Node("string", " ".join(expr.attrs[1])))


def _in_range(term: Node, guards: list[str]) -> Node:
    """Wrap a read so that the analysis finds it in the ranges that the guards ask for."""
    if {"at-least-zero", "at-most-one"} <= set(guards):
        return listed("Sigmoid", term)
    if "at-least-zero" in guards:
        term = listed("Abs", term)
    if "at-most-zero" in guards:
        term = listed("Neg", listed("Abs", term))
    return listed("Minimum", listed("Const", Node("float", "1.0")), term) if "at-most-one" in guards else term


def _ground(node: Node, draw: Draw, terms: Mapping[str, Node]) -> Node:
    """Put terms, axis names and numbers in place of the variables."""
    if node.head == "Const":
        return listed("Const", Node("float", repr(float(number(node.args[0], draw, draw.numbers)))))
    if node.head in INDEX_CONSTRUCTORS or (node.kind == "symbol" and node.text in draw.index):
        return read_forms(index_term(index_of(node, draw, draw.numbers)))[0]
    if node.kind == "list":
        return Node("list", "", tuple(_ground(i, draw, terms) for i in node.items))
    if node.kind == "symbol" and node.text in terms:
        return terms[node.text]
    if node.kind == "symbol" and node.text in draw.axis:
        return Node("string", draw.axis[node.text])
    if node.kind == "symbol" and node.text in draw.types:
        return Node("string", draw.types[node.text])
    if node.kind == "symbol" and node.text in draw.numbers:
        return Node("int", str(draw.numbers[node.text]))
    return node
