"""Whether a plan computes its program: kernel after kernel in float64 on random data, at extents small enough for a moment.

Only axes that nothing sums, positions or counts over are cut short: the plan is the chosen one, with its own constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eqsat.codegen.plan import Plan
from eqsat.ir import Expr, Input, Output, Program, read, rebuild
from eqsat.ops import Kind
from eqsat.oracle import evaluate

_FEW = 3  # positions kept of an axis that may be cut short


def departure(plan: Plan, seed: int = 0) -> float:
    """Return how far the plan's outputs are from the program's, relative to the largest element of each output."""
    short = _shortened(plan)
    program = _cut(plan.program, short)
    rng = np.random.default_rng(seed)
    data: dict[str, Any] = {i.name: _random(i, rng) for i in program.inputs}
    expected = evaluate(program, data)
    made: dict[str, Any] = dict(data)
    for kernel in plan.kernels:
        part = _cut(kernel.program, short)
        found = evaluate(part, {i.name: made[i.name] for i in part.inputs})
        made |= {o.name: value for o, value in zip(part.outputs, found, strict=True)}
    worst = 0.0
    for output, want in zip(program.outputs, expected, strict=True):
        have = made[output.name]
        if not np.isfinite(have).all():
            return float("inf")
        worst = max(worst, float(np.max(np.abs(have - want))) / max(float(np.max(np.abs(want))), 1e-30))
    return worst


def _random(i: Input, rng: np.random.Generator) -> Any:
    if i.dtype.is_float:
        # Off centre, so that sums do not vanish and their errors do not hide in a small scale.
        return (0.25 + rng.standard_normal(i.shape)).astype(i.dtype.numpy)
    return rng.integers(0, 2 if i.dtype.value == "bool" else 5, i.shape).astype(i.dtype.numpy)


def _shortened(plan: Plan) -> dict[str, int]:
    """Return new extents for the axes that may be cut: free in every expression, and read as they lie."""
    programs = [plan.program, *(k.program for k in plan.kernels)]
    extents: dict[str, int] = {}
    kept: set[str] = set()
    for p in programs:
        for o in p.outputs:
            for e in o.expr.walk():
                extents |= dict(e.type.axes)
                kept |= _fixed_axes(e)
    kept |= _renamed_axes(programs)
    return {a: min(n, _FEW) for a, n in extents.items() if a not in kept}


def _fixed_axes(e: Expr) -> set[str]:
    if e.row.kind is Kind.REDUCE:
        return {e.attrs[0]}
    if e.op == "iota":
        return {e.attrs[0]}
    if e.row.kind is Kind.ACCESS:
        mapping = e.attrs[0]
        return {a for a, _ in mapping.entries} | {a for a, _ in mapping.extents}
    return set()


def _renamed_axes(programs: list[Program]) -> set[str]:
    """Return axes of buffer dimensions that go by several names: they stay as long as each other."""
    names: dict[tuple[str, int], set[str]] = {}
    for p in programs:
        for o in p.outputs:
            for d, a in enumerate(o.axes):
                names.setdefault((o.name, d), set()).add(a)
            for e in o.expr.walk():
                if e.op == "read":
                    for d, a in enumerate(e.attrs[1]):
                        names.setdefault((e.attrs[0], d), set()).add(a)
    return {a for known in names.values() if len(known) > 1 for a in known}


def _cut(program: Program, short: Mapping[str, int]) -> Program:
    """Return the program with some extents replaced."""
    memo: dict[str, Expr] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for o in program.outputs:
        for e in o.expr.walk():
            if e.op == "read":
                name, axes = e.attrs
                old = e.type.extents
                shape = tuple(short.get(a, old[a]) if a else 1 for a in axes)
                shapes[name] = shape
                memo[e.digest] = read(name, axes, shape, e.dtype)
            else:
                memo[e.digest] = rebuild(e, tuple(memo[a.digest] for a in e.args)) if e.args else e
    inputs = tuple(Input(i.name, shapes.get(i.name, i.shape), i.dtype, i.constant) for i in program.inputs)
    return Program(inputs, tuple(Output(o.name, memo[o.expr.digest], o.axes, o.dtype, o.joined) for o in program.outputs))
