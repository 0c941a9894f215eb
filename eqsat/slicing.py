"""Evaluate large programs slice by slice along an axis that nothing mixes, so that temporaries stay in a cache, or fit a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eqsat.ir import Expr, Output, Program, read, rebuild
from eqsat.ops import Array, Kind
from eqsat.prefix import evaluated, prefix

# Elements of the largest value of a slice: 256 KiB in float64, of which several fit a private cache.
_SLICE_ELEMENTS = 1 << 15
# On a GPU nothing is gained but room: 1 GiB in float64, of which a score with its error takes some ten at a time.
_SLICE_ELEMENTS_GPU = 1 << 27

Evaluate = Callable[[Program, Mapping[str, Array]], Sequence[tuple[Array, ...]]]


def evaluate_in_slices(
    program: Program, inputs: Mapping[str, Array], evaluate: Evaluate, xp: Any = np
) -> list[tuple[Array, ...]] | None:
    """Evaluate slice by slice; None if the program is small or no axis can be sliced.

    Parameters
    ----------
    program : Program
    inputs : mapping of str to array
    evaluate : callable
        Evaluates a program: for each output, one or several arrays in its layout.
    xp : module
        NumPy or CuPy.

    Returns
    -------
    list of tuple of array, or None
        As `evaluate` would give for the whole.
    """
    nodes = evaluated([o.expr for o in program.outputs])
    largest = max((e.type.elements for e in nodes), default=0)
    limit = _SLICE_ELEMENTS if xp is np else _SLICE_ELEMENTS_GPU
    by_products = xp is np and any(e.op == "sum" and prefix(e) is None and _expands(e.args[0]) for e in nodes)
    if largest <= 2 * limit or by_products:
        return None
    axis = _choose(program, limit)
    if axis is None:
        return None
    extent = program.outputs[0].expr.type.extents[axis]
    step = max(1, limit * extent // largest)
    where = _dimensions(program, axis) or {}
    programs = {n: narrowed(program, axis, n) for n in {min(step, extent), extent % step} - {0}}
    results: list[list[Array]] = []
    for start in range(0, extent, step):
        n = min(step, extent - start)
        cut = {name: _cut(inputs[name], where.get(name), start, n) for name in inputs}
        for at, parts in enumerate(evaluate(programs[n], cut)):
            dimension = program.outputs[at].axes.index(axis)
            if start == 0:
                results.append([_whole(p, dimension, extent, xp) for p in parts])
            for whole, part in zip(results[at], parts, strict=True):
                _cut(whole, dimension, start, n)[...] = part
    return [tuple(r) for r in results]


def _whole(part: Array, dimension: int, extent: int, xp: Any) -> Array:
    return xp.empty([extent if d == dimension else n for d, n in enumerate(part.shape)], dtype=part.dtype)


def _cut(array: Array, dimension: int | None, start: int, n: int) -> Array:
    return array if dimension is None else array[(slice(None),) * dimension + (slice(start, start + n),)]


def _expands(e: Expr) -> bool:
    """Whether a summed value is larger than its operands: a contraction, which is evaluated by matrix products."""
    return bool(e.args) and e.type.elements > max(a.type.elements for a in e.args)


def _choose(program: Program, limit: int) -> str | None:
    """Return the axis to slice: shared by all outputs, mixed by nothing, and such that little is evaluated again."""
    shared = [a for a in program.outputs[0].axes if a and all(a in o.axes for o in program.outputs)]
    for axis in shared:
        extent = program.outputs[0].expr.type.extents[axis]
        nodes = evaluated([o.expr for o in program.outputs])
        fixed = sum(e.type.elements for e in nodes if axis not in e.axes)
        if extent > 1 and fixed <= 4 * limit and all(_is_pure(e, axis) for e in nodes) and _dimensions(program, axis) is not None:
            return axis
    return None


def _is_pure(e: Expr, axis: str) -> bool:
    """Whether a node treats all positions along an axis alike."""
    if e.row.kind is Kind.REDUCE or e.op == "iota":
        return bool(e.attrs[0] != axis)
    if e.row.kind is Kind.ACCESS:
        mapping = e.attrs[0]
        return all(axis != a and axis not in index.axes for a, index in mapping.entries)
    return True


def _dimensions(program: Program, axis: str) -> dict[str, int | None] | None:
    """Return the dimension of each input that runs along the axis; None if some input is read in two ways."""
    found: dict[str, int | None] = {}
    for e in _reads(program):
        name, axes = e.attrs
        dimension = axes.index(axis) if axis in axes else None
        if found.setdefault(name, dimension) != dimension:
            return None
    return found


def _reads(program: Program) -> Iterator[Expr]:
    return (e for o in program.outputs for e in o.expr.walk() if e.op == "read")


def narrowed(program: Program, axis: str, extent: int) -> Program:
    """Return the program with another extent along an axis that nothing mixes."""
    memo: dict[str, Expr] = {}

    def go(root: Expr) -> Expr:
        for e in root.walk():
            if e.digest in memo:
                continue
            if e.op == "read" and axis in e.axes:
                name, axes = e.attrs
                extents = {**e.type.extents, axis: extent}
                memo[e.digest] = read(name, axes, tuple(extents[a] if a else 1 for a in axes), e.dtype)
            else:
                memo[e.digest] = rebuild(e, tuple(memo[a.digest] for a in e.args))
        return memo[root.digest]

    outputs = tuple(Output(o.name, go(o.expr), o.axes, o.dtype) for o in program.outputs)
    shapes = {
        e.attrs[0]: tuple(e.type.extents[a] if a else 1 for a in e.attrs[1])
        for o in outputs
        for e in o.expr.walk()
        if e.op == "read"
    }
    inputs = tuple(dataclasses.replace(i, shape=shapes.get(i.name, i.shape)) for i in program.inputs)
    return Program(inputs, outputs)
