"""The schedule points of scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from eqsat.codegen.kernel import Schedule

HINTS = ("PLAIN", "STREAMING", "NO_ALLOCATE", "EVICT_FIRST")


@dataclass(frozen=True, slots=True)
class ScanRowTile(Schedule):
    """For outputs contiguous along the scanned axis: `warps` warps to a row, `rows` rows to a block.

    A thread holds `count` vectors of `width` bytes of the widest stored type (1: single elements). A longer row comes tile by
    tile, and what was added up so far is carried on; with `ahead`, a tile is on its way while the one before it is summed.
    """

    warps: int
    rows: int
    count: int
    width: int
    hint: int
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class ScanColumnTile(Schedule):
    """For outputs contiguous along another axis: blocks of `columns` threads across by `groups` along the scanned axis.

    A thread holds `count` vectors of `width` bytes, one position after another; the groups follow each other, tile by tile;
    `ahead` as for rows.
    """

    columns: int
    groups: int
    count: int
    width: int
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class ScanGridTile(Schedule):
    """For few long rows: each tile of a row has a block of `warps` warps, which waits for the totals of the tiles before it.

    `count`, `width` and `hint` as for rows. Blocks take their tiles in the order in which they begin, so that none waits for one
    that has no place to run.
    """

    warps: int
    count: int
    width: int
    hint: int


Tile: TypeAlias = ScanRowTile | ScanColumnTile | ScanGridTile
