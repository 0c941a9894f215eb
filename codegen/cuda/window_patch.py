"""What one thread reads for its tile of outputs: the places of each buffer, and the load instructions that bring them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from eqsat.codegen.cuda.window_shape import Windowed, WindowShape


@dataclass(frozen=True, slots=True)
class Access:
    """One load instruction along the last dimension: `count` elements from place `first` on, of which `wanted` are kept."""

    first: int
    count: int
    wanted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Patch:
    """What one thread reads through a load: the places in each dimension, and the accesses along the last one."""

    windowed: Windowed
    places: tuple[tuple[int, ...], ...]
    accesses: tuple[Access, ...]

    @property
    def varying(self) -> tuple[int, ...]:
        """The dimensions with more than one place."""
        return tuple(d for d, p in enumerate(self.places) if len(p) > 1)

    def extent(self, d: int) -> int:
        """Return the distance from the first to the last place of dimension `d`, both counted."""
        return self.places[d][-1] - self.places[d][0] + 1

    @property
    def registers(self) -> int:
        """32-bit registers that hold it."""
        elements = math.prod(len(p) for p in self.places)
        return elements * max(self.windowed.load.dtype.accumulator.bytes // 4, 1)

    @property
    def instructions(self) -> int:
        """Load instructions of a thread."""
        return math.prod(len(p) for p in self.places[:-1]) * len(self.accesses)


@functools.lru_cache(maxsize=1024)
def patches(shape: WindowShape, rows: int, columns: int) -> tuple[Patch, ...]:
    """Return the patch of each load for tiles of `rows` by `columns` outputs."""
    tile = shape.tile(rows, columns)
    corners = {shape.strip: rows, shape.inner: columns}
    out = []
    for x in shape.loads:
        places = tuple(line.places(tile) for line in x.lines)
        out.append(Patch(x, places, _accesses(x, places, corners, frozenset(tile)) if x.lines else ()))
    return tuple(out)


def _accesses(
    x: Windowed, places: tuple[tuple[int, ...], ...], corners: Mapping[str, int], tile: frozenset[str]
) -> tuple[Access, ...]:
    """Choose the load instructions along the last dimension: aligned vectors where at least two of their elements are wanted."""
    line, last = x.lines[-1], places[-1]
    most = 16 // x.load.dtype.bytes
    moved = [f * corners.get(a, 0 if a in tile else 1) for a, f in line.factors]
    while most > 1 and (line.extent % most or any(m % most for m in moved)):
        most //= 2
    chunks: dict[int, list[int]] = {}
    for p in last:
        chunks.setdefault((p + line.offset) // most, []).append(p)
    out: list[Access] = []
    for number, wanted in sorted(chunks.items()):
        start, size = number * most - line.offset, most
        while size > 1:  # the half that holds all that is wanted, if one does
            half = [p for p in wanted if p >= start + size // 2]
            if half and len(half) < len(wanted):
                break
            start, size = (start + size // 2 if half else start), size // 2
        out.append(Access(start, size, tuple(wanted)))
    return tuple(out)
