"""Problems that one pass along an axis solves: every reduction is one of all prefixes of that axis (`eqsat.prefix`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from eqsat.codegen.problem import ReduceProblem
from eqsat.ir import Expr, Output, Program, apply, rename, substitute
from eqsat.prefix import Prefix, prefix


@dataclass(frozen=True, slots=True)
class Scanned:
    """One cumulative reduction: its node, and what it takes in at each position of the axis of the result."""

    node: Expr
    operand: Expr
    number: int


@dataclass(frozen=True, slots=True)
class ScanForm:
    """The direction of a scan, its reductions, and the pointwise program that reads what is needed at a position."""

    form: Prefix
    scans: tuple[Scanned, ...]
    elements: Program


@functools.lru_cache(maxsize=256)  # asked once for each schedule of a space
def scan_form(problem: ReduceProblem) -> ScanForm | str:
    """Return the scan that a reduce problem is, or why it is none."""
    program = problem.program
    forms = [prefix(e) for e in problem.reductions]
    form = forms[0]
    if form is None or any(f is None for f in forms):
        return "a reduction is not one of every prefix of an axis"
    if len({(f.axis, f.along, f.suffix, f.strict) for f in forms if f}) > 1:
        return "its prefixes run along different axes or in different directions"
    if program.extents[form.along] < 2:
        return "the axis has one position"
    known = {e.digest for e in problem.reductions}
    scans: list[Scanned] = []
    for n, (node, f) in enumerate(zip(problem.reductions, forms, strict=True)):
        assert f is not None
        if any(e.digest in known for e in f.operand.walk()):
            return "a reduction waits for another"
        scans.append(Scanned(node, rename(f.operand, {f.axis: f.along}), n))
    by = {s.node: s.operand if s.operand.dtype is s.node.dtype else apply("cast", s.operand, dtype=s.node.dtype) for s in scans}
    outputs = tuple(Output(o.name, substitute(o.expr, by), o.axes, o.dtype) for o in program.outputs)
    return ScanForm(form, tuple(scans), Program(program.inputs, outputs))
