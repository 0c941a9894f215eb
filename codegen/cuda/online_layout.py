"""What a dependent fold is to the matrix units: schedule points, operands as matrices, the score's scale, shared memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eqsat.codegen.cuda.online_operand import Sheet, output_sheet, sheet
from eqsat.codegen.cuda.online_print import outputs_over, places
from eqsat.codegen.kernel import Schedule
from eqsat.codegen.online import Accumulated, OnlineProblem, bare
from eqsat.codegen.targets import parse_target
from eqsat.ir import Expr, apply
from eqsat.ops import Kind
from eqsat.types import DType

TARGET = parse_target("sm_90")
PANEL_BYTES = 8192  # 64 rows of 128 bytes
HUGE = 1e30  # a finite constant beyond it might overflow when it is scaled, so that shifts are taken off first
_BARRIERS = 1024  # behind buffers; what follows stays aligned


@dataclass(frozen=True, slots=True)
class OnlineWgmmaTile(Schedule):
    """64 rows for each of `groups` warpgroups, `keys` keys at a time in `stages` buffers.

    `pingpong`: two warpgroups take turns at the matrix units; `heads` batches run side by side.

    Notes
    -----
    A row's weights are relative to a pivot p that is one of its scores, and no weight may pass L = 2^8: while none does, p stays,
    and the maximum M is not even looked for; where one does, p becomes the maximum so far, and the sums before are scaled. So
    p ≤ M ≤ p + ln L, and nothing is lost: with w = e^(s − p), Σ w·v = e^(M − p)·Σ e^(s − M)·v, and where an output does not stay the
    same when all sums of a row are scaled alike (`pivot_matters`), they are scaled by e^(p − M) at the end, once. A weight's
    rounding is relative; weights are at most L instead of 1, which f16 holds, and sums of 2^31 of them are finite in f32; so the
    relative errors are those of weights relative to M, with fewer roundings from scaling.
    """

    keys: int
    groups: int
    stages: int
    pingpong: int
    heads: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Operands as matrices, the accumulator with values, and the score without its scale: a constant, and factors of rows."""

    left: Sheet
    right: Sheet
    values: Sheet
    wide: Accumulated
    score: Expr
    factor: float
    row_factors: tuple[Expr, ...]

    @property
    def panels(self) -> tuple[int, int]:
        """Panels of 64 elements that a row of keys, and one of values, takes."""
        return -(-self.left.inner // 64), -(-self.values.inner // 64)

    @property
    def columns(self) -> int:
        """Value positions that the matrix units make: the extent in steps of 8."""
        return -(-self.values.inner // 8) * 8


def layout_of(problem: OnlineProblem) -> Layout | str:
    """Return how the matrix units see a problem, or why they do not serve it."""
    c = problem.contraction
    if c is None or len(problem.wide) != 1:
        return "it serves scores that are contracted and one accumulator with value axes"
    wide = problem.wide[0]
    if any(a.value.op != "const" or a.value.attrs[0] != 1 for a in problem.accumulators if not a.axes):
        return "beside it, it sums the weights alone"
    if problem.dtype is not DType.F32 or c.node.dtype.accumulator is not DType.F32:
        return "the matrix units accumulate in f32"
    if problem.floor > -HUGE:
        return f"a maximum of at least {problem.floor} is not carried"
    if any(o.dtype not in (DType.F32, DType.BF16, DType.F16) for o, _ in outputs_over(problem, wide.axes)):
        return "the outputs with value axes are stored as f32, bf16 or f16"
    names = places(problem)
    found = [
        sheet(problem, c.a, problem.d, problem.m, names),
        sheet(problem, c.b, problem.d, problem.over, names),
        sheet(problem, wide.value, wide.axes, problem.over, names),
    ]
    sheets = [f for f in found if isinstance(f, Sheet)]
    if len(sheets) < 3:
        return next(f for f in found if isinstance(f, str))
    left, right, values = sheets
    if len({f.dtype for f in sheets}) > 1:
        return f"its operands are {left.dtype}, {right.dtype} and {values.dtype}"
    if wide.weight.dtype is not values.dtype:
        return f"its weights are {wide.weight.dtype}; the matrix units would round them to {values.dtype}"
    if refusal := _statistics_refusal(problem, left):
        return refusal
    if left.inner > 256 or values.inner > 256:
        return f"{left.inner} contracted and {values.inner} value positions; the template holds up to 256"
    score, factor, row_factors = _unscaled(problem.score, frozenset(problem.over))
    return Layout(left, right, values, wide, score, factor, row_factors)


def _statistics_refusal(problem: OnlineProblem, left: Sheet) -> str | None:
    """Return why statistics of the rows' operand cannot be taken of the rows in shared memory, or None."""
    if problem.statistics and left.inner % 64:
        return f"statistics are taken of whole panels of 64 elements; a row has {left.inner}"
    for s in problem.statistics:
        if s.op not in ("sum", "max", "min") or s.dtype.accumulator is not DType.F32:
            return f"a statistic is {s.op} in {s.dtype}; it takes sum, max and min in f32"
        if any(e.op == "iota" for e in s.walk()):
            return "a statistic depends on positions"
    return None


def _unscaled(score: Expr, over: frozenset[str]) -> tuple[Expr, float, tuple[Expr, ...]]:
    """Return (u, c, f) with score = c·u·Πf: positive factors that are constant or the row's are left to the exponential's own scale."""
    e = bare(score)
    if e.op in ("mul", "div") and e.args[1].op == "const" and 0 < e.args[1].attrs[0] < math.inf:
        inner, factor, rows = _unscaled(e.args[0], over)
        return inner, factor * e.args[1].attrs[0] if e.op == "mul" else factor / e.args[1].attrs[0], rows
    if e.op == "mul":
        for x, rest in (e.args, e.args[::-1]):
            if x.op == "const" and 0 < x.attrs[0] < math.inf:
                inner, factor, rows = _unscaled(rest, over)
                return inner, factor * x.attrs[0], rows
            if not x.axes & over and bare(x).op in ("rsqrt", "exp"):
                inner, factor, rows = _unscaled(rest, over)
                return inner, factor, (*rows, x)
    if e.op == "where" and e.args[2].op == "const" and e.args[2].attrs[0] == -math.inf:
        inner, factor, rows = _unscaled(e.args[1], over)
        return apply("where", e.args[0], inner, e.args[2]), factor, rows
    return e, 1.0, ()


def items(problem: OnlineProblem, s: OnlineWgmmaTile) -> int:
    """Return the number of tiles of rows, which the blocks draw one after the other."""
    batch, m, *_ = problem.shape
    return batch * -(-m // (64 * s.groups))


def output_sheets(problem: OnlineProblem, layout: Layout) -> dict[str, Sheet]:
    """Return, by C parameter, how TMA stores the outputs that it can store: in 16 bits, their columns in whole steps of 16."""
    if layout.columns % 16:
        return {}
    names = places(problem)
    found = {name: output_sheet(problem, o, layout.wide.axes, names) for o, name in outputs_over(problem, layout.wide.axes)}
    return {name: s for name, s in found.items() if s is not None}


@dataclass(frozen=True, slots=True)
class Shared:
    """What lies in shared memory, in this order: buffers of rows, staging of the outputs, keys, values.

    The barriers of a buffer lie behind it. `staging` counts buffers of a panel for each warpgroup.
    """

    layout: Layout
    schedule: OnlineWgmmaTile
    rows: int
    staging: int

    @property
    def staging_at(self) -> int:
        """Where the staging begins."""
        return self.rows * self.schedule.groups * self.layout.panels[0] * PANEL_BYTES + _BARRIERS

    @property
    def keys_at(self) -> int:
        """Where the keys begin."""
        return self.staging_at + self.schedule.groups * self.staging * PANEL_BYTES

    @property
    def values_at(self) -> int:
        """Where the values begin."""
        return self.keys_at + self._tiles(0) + _BARRIERS

    @property
    def end(self) -> int:
        """Bytes of a block: tiles, barriers, and what aligning the first tile may take."""
        return 1024 + self.values_at + self._tiles(1) + 16 * self.schedule.stages

    def _tiles(self, operand: int) -> int:
        return self.schedule.stages * self.schedule.keys * 128 * self.layout.panels[operand]


def shared_of(problem: OnlineProblem, layout: Layout, s: OnlineWgmmaTile) -> Shared:
    """Return the best use of shared memory that fits: rows loaded ahead, and outputs that leave by TMA."""
    several = items(problem, s) > TARGET.processors
    stores = bool(output_sheets(problem, layout))
    options = [Shared(layout, s, r, t) for r in ((2, 1) if several else (1,)) for t in ((2, 1) if stores else (0,))]
    least = Shared(layout, s, 1, 0)
    return next((x for x in options if x.end <= TARGET.shared_bytes), least)


def pivot_matters(problem: OnlineProblem) -> bool:
    """Whether an output would change if all accumulators of a row were scaled alike: by one that uses the maximum, or is no ratio."""
    degrees: dict[Expr, int | None] = {a.node: 1 for a in problem.accumulators}

    def degree(e: Expr) -> int | None:
        if e not in degrees:
            degrees[e] = None if e.row.kind is Kind.REDUCE else _degree(e, [degree(a) for a in e.args])
        return degrees[e]

    return any(degree(o.expr) != 0 for o in problem.program.outputs)


def _degree(e: Expr, args: Sequence[int | None]) -> int | None:
    """Return by which power of a common factor of the accumulators a value grows; None if by none."""
    known = [d for d in args if d is not None]
    if len(known) < len(args):
        return None
    match e.op:
        case "mul":
            return sum(known)
        case "div":
            return known[0] - known[1]
        case "recip":
            return -known[0]
        case "neg":
            return known[0]
        case "cast" if e.dtype in (DType.F32, DType.BF16):
            return known[0]
        case "add" | "sub" if known[0] == known[1]:
            return known[0]
        case _:
            return 0 if not any(known) else None
