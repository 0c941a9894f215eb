"""How a convolution falls into tiles: which operand is the window, its channels, lines and columns, and the use of shared memory."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from eqsat.codegen.cuda.operand import MATRIX_DTYPES
from eqsat.codegen.cuda.window_sides import Sides, window_sides
from eqsat.codegen.kernel import Schedule
from eqsat.codegen.printer import strides
from eqsat.codegen.problem import ContractProblem
from eqsat.codegen.targets import parse_target
from eqsat.codegen.windows import WindowDim, WindowOperand
from eqsat.ir import Expr
from eqsat.types import DType

GROUPS = 2  # consumer warpgroups; a third one brings weights (one thread) and input (three warps)
THREADS = (GROUPS + 1) * 128
CONVERTERS = 96
REGISTERS = (104, 200)  # of the producers, of the consumers: 104 + 2·200 = 504, what three warpgroups of 168 are started with
ACCUMULATORS = 128  # fp32 values a consumer thread can hold beside the loop's own registers
HEAD_BYTES = 128  # of the workspace: three counters before the packed weights
ALIGNMENT_BYTES = 256  # of shared memory: alignment, and the number of the part of the weights in hand
SLOTS = 2  # tiles of input on the chip
MOST_FLIGHT = 2  # blocks of input that a thread has on their way
MOST_CHUNK = 64  # positions of the output that pass shared memory at once
MOST_CHAIN = 32  # products of first terms in a row that the matrix units add: a longer sum loses what they cut off
MOST_STAGES = 16
LEAST_STAGES = 3
VECTOR = 8  # values of a 16-byte vector


@dataclass(frozen=True, slots=True)
class WindowContractTile(Schedule):
    """A tile of channels × positions.

    `bm` channels a block: 128, a warpgroup takes 64 of them for all positions of the tile, or 64, for half of the positions each;
    at most `columns` positions for a warpgroup, in lines of at most `width`; `channels` are summed in blocks of so many. With
    `copies` the input lies on the chip once for every tap along a line, so that nothing lies between lines of positions.
    """

    bm: int
    columns: int
    width: int
    channels: int
    copies: int


@dataclass(frozen=True, slots=True)
class Line:
    """A tiled dimension of the output: `tile` positions of a block, of which there are `count` along it.

    On the chip its input lies in planes: one for each remainder by the stride, or (`copied`) one for each tap.
    """

    dim: WindowDim
    tile: int
    count: int
    copied: bool = False

    @property
    def planes(self) -> int:
        """Planes of the input on the chip."""
        return self.dim.taps if self.copied else self.dim.stride

    @property
    def pitch(self) -> int:
        """Positions of a plane: what a tile and its taps reach, or in a copy whole lines of memory's banks."""
        return -(-self.tile // 8) * 8 if self.copied else self.tile + self.dim.span // self.dim.stride

    @property
    def span(self) -> int:
        """Elements of the buffer that a tile and its taps reach."""
        return (self.tile - 1) * self.dim.stride + self.dim.span + 1

    @property
    def reached(self) -> tuple[int, int]:
        """Elements of the buffer that tiles bring, counted from a tile's first: of a single tile those that there are."""
        if self.count > 1:
            return 0, self.span
        return max(-self.dim.first, 0), max(min(self.span, self.dim.extent - self.dim.first), 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the emitter derives from a problem and a schedule.

    `rows` are the axes of the output that the weights bring (channels), `weights` their load; `function` is
    the window's load, or what is multiplied in its place. `lines` and `columns` are the tiled
    dimensions, `outer` those that are one position (and one tap) at a time.
    """

    problem: ContractProblem
    schedule: WindowContractTile
    operand: WindowOperand
    window: Expr
    function: Expr
    weights: Expr
    rows: tuple[str, ...]
    channel: WindowDim
    lines: Line
    columns: Line
    outer: tuple[WindowDim, ...]
    width: int
    along_channels: bool
    stages: int

    @property
    def halves(self) -> int:
        """Into how many parts the lines are divided between warpgroups."""
        return GROUPS * 64 // self.schedule.bm

    @property
    def group_lines(self) -> int:
        """Lines of one warpgroup."""
        return self.lines.tile // self.halves

    @property
    def n(self) -> int:
        """Columns of the accumulator: positions of a warpgroup, those between lines included."""
        return -(-((self.group_lines - 1) * self.columns.pitch + self.columns.tile) // 8) * 8

    @property
    def points(self) -> int:
        """Vectors for 8 channels of a tile of input.

        Whole lines of memory's banks; an odd number where neighbouring lanes write neighbouring blocks of channels.
        """
        count = self.lines.planes * self.columns.planes * self.lines.pitch * self.columns.pitch
        return count | 1 if self.blocked else -(-count // 8) * 8

    @property
    def planes(self) -> int:
        """16-bit terms of a value."""
        return 1 if self.function.dtype in MATRIX_DTYPES else 3

    @property
    def term(self) -> DType:
        """What the matrix units multiply."""
        return self.function.dtype if self.planes == 1 else DType.BF16

    @property
    def products(self) -> list[tuple[int, int]]:
        """Which terms of weights and input are multiplied, small products first; what is left out is below f32's roundoff."""
        if self.planes == 1:
            return [(0, 0)]
        return [(0, 2), (2, 0), (1, 1), (0, 1), (1, 0), (0, 0)]

    @property
    def taps(self) -> int:
        """Taps that one tile of input serves."""
        return self.lines.dim.taps * self.columns.dim.taps

    @property
    def chain(self) -> int:
        """Taps whose products the matrix units add up before their sum is added to the totals, where values have several terms."""
        return self.taps if self.planes == 1 else max(MOST_CHAIN // self.schedule.channels, 1)

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.channel.taps // self.schedule.channels)

    @property
    def steps(self) -> int:
        """Tiles of input that one tile of the output takes."""
        return self.blocks * math.prod(d.taps for d in self.outer)

    @property
    def row_tiles(self) -> int:
        """Tiles of channels."""
        return -(-self.problem.extent(self.rows) // self.schedule.bm)

    @property
    def batch(self) -> int:
        """Weights of their own (groups)."""
        return self.problem.extent(self.problem.batch)

    @property
    def tiles(self) -> int:
        """Tiles of the output."""
        return self.row_tiles * self.lines.count * self.columns.count * math.prod(d.positions for d in self.outer)

    @property
    def across(self) -> int:
        """Elements of the buffer along a line of a tile of input."""
        first, end = self.columns.reached
        return max(end - first, 0)

    @property
    def line_pieces(self) -> int:
        """Pieces of contiguous memory that bring a line of one channel, or (of neighbouring channels) of 8."""
        if self.along_channels:
            return self.across * self.operand.dtype.bytes // 2
        first, end = self.columns.reached
        if self.columns.count > 1:
            return -(-(end - first + self.width - 1) // self.width)
        start = self.columns.dim.first + first
        return -(-(start % self.width + end - first) // self.width)

    @property
    def pieces(self) -> int:
        """Pieces that make a tile of input."""
        channels = self.schedule.channels // (VECTOR if self.along_channels else 1)
        return channels * self.lines.span * self.line_pieces

    @property
    def piece(self) -> int:
        """Bytes of a piece."""
        return 16 if self.along_channels else self.width * self.operand.dtype.bytes

    @property
    def copied(self) -> bool:
        """Whether the input comes to shared memory as it is, before it is laid out: in pieces from 4 bytes on."""
        return self.piece >= 4

    @property
    def blocked(self) -> bool:
        """Whether a thread brings 8 pieces of 8 channels for itself; else all bring a tile together, to be read place by place."""
        return self.copied and not self.along_channels and not self.columns.copied

    @property
    def loads(self) -> int:
        """Blocks of 8 pieces that make a tile of input."""
        return self.schedule.channels // VECTOR * self.lines.span * self.line_pieces

    @property
    def flight(self) -> int:
        """Blocks of a thread that are on their way at once."""
        return min(MOST_FLIGHT, max(-(-self.loads // CONVERTERS), 1))

    @property
    def raw_bytes(self) -> int:
        """Shared memory for input as it comes."""
        if self.blocked:
            return self.flight * CONVERTERS * VECTOR * self.piece
        return -(-self.pieces * self.piece // 16) * 16 if self.copied else 0

    @property
    def places(self) -> int:
        """Positions of the output that a warpgroup makes."""
        return self.group_lines * self.columns.tile

    @property
    def passes(self) -> int:
        """In how many parts the sums pass through shared memory on their way out."""
        return -(-self.places // MOST_CHUNK)

    @property
    def chunk(self) -> int:
        """Positions of one part, whole vectors."""
        return -(-self.places // (self.passes * VECTOR)) * VECTOR

    @property
    def chunk_pitch(self) -> int:
        """Bytes between the rows of a part: 32 more than a multiple of 64, so that pairs of four rows lie in different banks."""
        return -(-(4 * self.chunk - 32) // 64) * 64 + 32

    @property
    def stored(self) -> int:
        """Neighbouring positions that leave as one vector."""
        out, d = self.problem.output, self.columns.dim
        steps = {a: s for a, s in zip(out.axes, strides(out.shape), strict=True) if a}
        width = 16 // out.dtype.bytes
        apart = [s for a, s in steps.items() if a != d.position]
        while width > 1 and (
            steps.get(d.position, 0) != 1 or self.columns.tile % width or d.positions % width or any(s % width for s in apart)
        ):
            width //= 2
        return width

    @property
    def rows_first(self) -> bool:
        """Whether the output's neighbours are channels."""
        out = self.problem.output
        last = next((a for a in reversed(out.axes) if a), "")
        return last in self.rows

    @property
    def input_bytes(self) -> int:
        """Bytes of a tile of input."""
        return -(-self.planes * (self.schedule.channels // VECTOR) * self.points * 16 // 128) * 128

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of one tap and block of channels."""
        return self.planes * self.schedule.bm * self.schedule.channels * 2

    @property
    def weight_tiles(self) -> int:
        """Tiles that the weights are packed into."""
        return self.batch * self.row_tiles * self.steps * self.taps

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory."""
        return (
            ALIGNMENT_BYTES
            + SLOTS * (self.input_bytes + 16)
            + self.stages * (self.weight_bytes + 16)
            + self.raw_bytes
            + GROUPS * 64 * self.chunk_pitch
        )


def processors_of_grid() -> int:
    """Return the blocks of a persistent grid; another number of multiprocessors runs it too."""
    return parse_target("sm_90").processors


@functools.lru_cache(maxsize=512)
def window_layout(problem: ContractProblem, s: WindowContractTile) -> Layout | str:
    """Return how a schedule serves a problem, or why it does not."""
    if refusal := _schedule_refusal(s):
        return refusal
    found = window_sides(problem)
    return found if isinstance(found, str) else _fitted(problem, s, found)


def _schedule_refusal(s: WindowContractTile) -> str | None:
    if s.bm not in (64, 128) or not 8 <= s.columns <= 2 * ACCUMULATORS or s.columns % 8:
        return "a tile has 64 or 128 channels and 8 to 256 positions for a warpgroup, in steps of 8"
    if s.copies not in (0, 1):
        return "the input lies on the chip once, or once for every tap along a line"
    if s.width < 1 or s.channels % 16 or not 16 <= s.channels <= 128:
        return "lines have at least one position; blocks have 16 to 128 channels, in steps of 16"
    return None


def _fitted(problem: ContractProblem, s: WindowContractTile, f: Sides) -> Layout | str:
    """Return the layout with as many stages of weights as fit, or why none does."""
    if s.copies and f.columns.taps == 1:
        return "there is one tap along a line: copies are the input itself"
    tiles = _tiles(s, f.lines, f.columns)
    if tiles is None:
        return f"lines of {f.columns.positions} positions do not fit into {s.columns} columns"
    along_channels, width = _vectors(f.operand, f.channel, f.columns)
    made = [
        Layout(
            problem,
            s,
            f.operand,
            f.window,
            f.function,
            f.weights,
            f.rows,
            f.channel,
            *tiles,
            f.outer,
            width,
            along_channels,
            stages,
        )
        for stages in range(MOST_STAGES, LEAST_STAGES - 1, -1)
    ]
    if made[0].planes > 1 and made[0].n > ACCUMULATORS:
        return f"{made[0].n} positions: sums of terms and their totals take twice the registers"
    limit = parse_target("sm_90").shared_bytes
    fit = next((x for x in made if x.shared_bytes <= limit), None)
    return f"{made[-1].shared_bytes} bytes of shared memory; {limit} are there" if fit is None else fit


def _tiles(s: WindowContractTile, lines: WindowDim, columns: WindowDim) -> tuple[Line, Line] | None:
    """Return the tiles of lines and of columns: as many positions as a warpgroup's accumulators hold, alike in all tiles."""
    halves = GROUPS * 64 // s.bm
    across = Line(columns, *_even(columns.positions, min(s.width, s.columns)), copied=s.copies == 1)
    height = (s.columns - across.tile) // across.pitch + 1
    if across.tile > s.columns:
        return None
    tile, _ = _even(-(-lines.positions // halves), height)
    tile *= halves
    return Line(lines, tile, -(-lines.positions // tile)), across


def _even(extent: int, most: int) -> tuple[int, int]:
    """Return the extent of tiles of at most `most` that are as equal as can be, and how many there are."""
    count = -(-extent // most)
    return -(-extent // count), count


def _vectors(operand: WindowOperand, channel: WindowDim, columns: WindowDim) -> tuple[bool, int]:
    """Return whether 8 neighbouring channels are one vector of memory, and else how many neighbours along the columns are."""
    size = operand.dtype.bytes
    others = [d.step for d in operand.dims if d not in (channel, columns) and d.extent > 1]
    fits = channel.step == 1 and channel.taps % VECTOR == 0 and channel.offset % (16 // size) == 0
    if fits and all(x % (16 // size) == 0 for x in (*others, columns.step)):
        return True, VECTOR
    width = 16 // size
    while width > 1 and (columns.step != 1 or columns.extent % width or any(x % width for x in (*others, channel.step))):
        width //= 2
    return False, width
