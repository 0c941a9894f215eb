"""The schedule points of the reduce family."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.kernel import Schedule

HINTS = ("PLAIN", "STREAMING", "NO_ALLOCATE", "EVICT_FIRST")


@dataclass(frozen=True, slots=True)
class RowTile(Schedule):
    """`warps` warps to a row, `rows` rows to a block, or one row to `cluster` blocks that share memory.

    `width` is the bytes of a vector of the widest stored type (1: single elements). `stream` 0 holds the row in registers;
    else each pass loads the row again, `stream` vectors of a thread at a time.
    """

    warps: int
    rows: int
    width: int
    cluster: int
    stream: int
    hint: int


@dataclass(frozen=True, slots=True)
class ParkedRowTile(Schedule):
    """A row held by the `warps` of each of `cluster` blocks: `parked` vectors of each thread in shared memory, the others in registers.

    `resident` blocks are to be on a multiprocessor at once, so that some load or store while others compute.
    """

    warps: int
    cluster: int
    width: int
    parked: int
    resident: int
    hint: int


@dataclass(frozen=True, slots=True)
class ColumnTile(Schedule):
    """For rows that lie side by side in memory: neighbouring threads take neighbouring rows.

    A block is `columns` threads across, each with a vector of rows, by `groups` along the reduced axes, `count` elements in
    flight; `split` blocks share the reduced axes, and the last to finish combines.
    """

    columns: int
    groups: int
    split: int
    width: int
    count: int


@dataclass(frozen=True, slots=True)
class HeldColumnTile(Schedule):
    """The same with all elements held in registers, for several passes over one read.

    `groups` thread groups of each of `cluster` blocks share the reduced axes. A block may be less than a warp across.
    """

    columns: int
    groups: int
    cluster: int
    width: int
    hint: int


@dataclass(frozen=True, slots=True)
class HeldGridTile(Schedule):
    """Rows that no cluster holds: `split` blocks of `threads` hold a row in their registers, and wait for each other between passes.

    `teams` of so many blocks take row after row; all blocks are resident at once. With `ahead` the next row is on its way to
    shared memory while this one is worked on.
    """

    threads: int
    split: int
    teams: int
    width: int
    ahead: int
    hint: int


@dataclass(frozen=True, slots=True)
class GridReduceTile(Schedule):
    """`split` blocks of `threads` share each row, `count` vectors in flight; the last one combines."""

    threads: int
    split: int
    width: int
    count: int
    hint: int


@dataclass(frozen=True, slots=True)
class FallbackReduceTile(Schedule):
    """One warp to a row and single elements: serves every reduce problem. `rows` rows to a block."""

    rows: int
