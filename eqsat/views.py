"""Positional re-indexing: which element of a source each position of the result reads, one index for each source dimension.

The dimensions of the result are the axes "d0", "d1", … of the index expressions. Slices, flips, pads, permutations,
broadcasts, reshapes and diagonals are all of this form, and forms compose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, SupportsIndex

import numpy as np

from eqsat.access import Index
from eqsat.errors import ShapeError

Shape = tuple[int, ...]
Entries = tuple[Index, ...]
Fill = Literal["zero", "any"]  # what positions outside the source read: 0, or whatever is cheapest (nobody looks)


def axis_name(d: int) -> str:
    """Return the axis that stands for dimension `d` of the result; a letter keeps it apart from a number in text."""
    return f"d{d}"


def dim(d: int) -> Index:
    """Return the position along dimension `d` of the result."""
    return Index.axis(axis_name(d))


def box(shape: Shape) -> dict[str, int]:
    """Return the extents of the axes "d0", "d1", … of `shape`."""
    return {axis_name(d): n for d, n in enumerate(shape)}


def simplify(entries: Entries, shape: Shape) -> Entries:
    """Simplify the indices over `shape`; positions along dimensions of extent 1 are 0."""
    unit = {axis_name(d): Index.const(0) for d, n in enumerate(shape) if n == 1}
    return tuple(e.substitute(unit).simplify(box(shape)) for e in entries)


def inside(entry: Index, shape: Shape, extent: int) -> bool:
    """Whether `entry` stays in 0 … extent−1 all over `shape`."""
    low, high = entry.bounds(box(shape))
    return low >= 0 and high < extent


def compose(outer: Entries, fill: Fill, shape: Shape, inner: Entries, middle: Shape, source: Shape) -> Entries | None:
    """Return the indices of a view (`outer`, over `shape`) of a view (`inner`, over `middle`) of `source`, or None.

    A position where `outer` leaves `middle` must read 0 when `fill` says so. The composed index leaves `source` there only
    where `inner` passes that dimension on whole; otherwise the two views do not compose.
    """
    if fill == "zero":
        for d, entry in enumerate(outer):
            if inside(entry, shape, middle[d]):
                continue
            users = [s for s, e in enumerate(inner) if axis_name(d) in e.axes]
            if not users or any(inner[s] != dim(d) or source[s] != middle[d] for s in users):
                return None
    by = {axis_name(d): e for d, e in enumerate(outer)}
    return simplify(tuple(e.substitute(by) for e in inner), shape)


def passing(entries: Entries, shape: Shape, source: Shape) -> dict[int, int]:
    """Return the source dimensions that come through unchanged: source dimension -> dimension of the result."""
    uses: dict[str, int] = {}
    for entry in entries:
        for name in entry.axes:
            uses[name] = uses.get(name, 0) + 1
    return {
        s: int(e.name[1:])
        for s, e in enumerate(entries)
        if e.op == "axis" and uses[e.name] == 1 and shape[int(e.name[1:])] == source[s]
    }


def reshape(source: Shape, shape: Shape) -> Entries:
    """Return the indices of a row-major reshape.

    Dimensions are matched in the smallest blocks of equal product, so that a dimension that a reshape does not touch
    passes through.
    """
    if math.prod(source) != math.prod(shape):
        raise ShapeError(
            f"expected a shape with {math.prod(source)} elements, as {list(source)} has; got {list(shape)} with {math.prod(shape)}."
        )
    out: list[Index] = []
    s = d = 0
    while s < len(source):
        s_end, d_end, have, want = s + 1, d, source[s], 1
        while have != want or (d_end == d and have != 1):
            if have < want:
                have, s_end = have * source[s_end], s_end + 1
            else:
                want, d_end = want * shape[d_end], d_end + 1
        out.extend(_block(source[s:s_end], shape[d:d_end], d))
        s, d = s_end, d_end
    return simplify(tuple(out), shape)


def _block(source: Shape, shape: Shape, first: int) -> list[Index]:
    """Return the indices of one block: the result's flat position, divided among the source dimensions."""
    flat = Index.const(0)
    stride = math.prod(shape)
    for k, n in enumerate(shape):
        stride //= n
        flat = flat + dim(first + k) * stride
    out: list[Index] = []
    stride = math.prod(source)
    for n in source:
        stride //= n
        out.append((flat // stride) % n)
    return out


def parse_key(key: object, source: Shape) -> tuple[Entries, Shape]:
    """Return indices and result shape of `x[key]`; ints, slices, None and one Ellipsis are understood."""
    items = list(key) if isinstance(key, tuple) else [key]
    used = sum(item is not None and item is not Ellipsis for item in items)
    if sum(item is Ellipsis for item in items) > 1:
        raise ShapeError("an index holds one ellipsis at most")
    if used > len(source):
        raise ShapeError(f"expected at most {len(source)} indices for the shape {list(source)}; got {used}")
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    at = next(i for i, item in enumerate(items) if item is Ellipsis)
    items[at : at + 1] = [slice(None)] * (len(source) - used)
    entries: list[Index] = []
    shape: list[int] = []
    for item in items:
        if item is None:
            shape.append(1)
            continue
        extent = source[len(entries)]
        if isinstance(item, slice):
            steps = range(*item.indices(extent))
            if not len(steps):
                raise ShapeError(f"the slice {item} of an extent of {extent} is empty; every extent is at least 1")
            entries.append(dim(len(shape)) * steps.step + Index.const(steps.start))
            shape.append(len(steps))
        else:
            entries.append(Index.const(_position(item, extent)))
    return tuple(entries), tuple(shape)


def _position(item: object, extent: int) -> int:
    of_data = hasattr(item, "ndim") and not isinstance(item, np.integer)
    if isinstance(item, bool) or of_data or not isinstance(item, SupportsIndex):
        raise ShapeError(
            f"expected an int, a slice, None or ... as an index; got {type(item).__name__}. "
            "Indexing by an array is not part of the language: use where() on a mask instead."
        )
    position = item.__index__()
    if not -extent <= position < extent:
        raise ShapeError(f"the index {position} is outside an extent of {extent}")
    return position % extent


def broadcast_shapes(shapes: Sequence[Shape], what: str) -> Shape:
    """Return the shape that `shapes` broadcast to, aligned at the last dimension."""
    rank = max((len(s) for s in shapes), default=0)
    out = [1] * rank
    for shape in shapes:
        for d, n in enumerate(shape, rank - len(shape)):
            if n != 1 and out[d] not in (1, n):
                listed = " and ".join(str(list(s)) for s in shapes)
                raise ShapeError(
                    f"{what}: the shapes {listed} do not broadcast: dimension {d - rank} has extents {out[d]} and {n}. "
                    "Reshape or transpose one of them."
                )
            out[d] = max(out[d], n)
    return tuple(out)


def axis_numbers(axis: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Return the dimensions that `axis` names, counted from 0 and sorted; None names all."""
    if axis is None:
        return tuple(range(rank))
    chosen = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    for a in chosen:
        if not -rank <= a < rank:
            raise ShapeError(f"expected an axis from {-rank} to {rank - 1}; got {a}")
    out = tuple(sorted(a % rank for a in chosen))
    if len(set(out)) != len(out):
        raise ShapeError(f"the axes {chosen} name one dimension twice")
    return out
