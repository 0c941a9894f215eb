"""Which operand of a contraction is a window, and what its dimensions are for: channels, lines and columns of positions, the rest."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

from eqsat.codegen.cuda.operand import MATRIX_DTYPES, accumulates_in_f32, buffers, operands
from eqsat.codegen.problem import ContractProblem
from eqsat.codegen.windows import WindowDim, WindowOperand, factor, keeps_zero, only_load, widened_load, window_operand
from eqsat.ir import Expr
from eqsat.types import DType

LEAST_K = 64  # of f32: below, an f32 sum rounds so little that its bound leaves no room for what split products leave out


@dataclass(frozen=True, slots=True)
class Sides:
    """Which operand is the window, what its dimensions are for, and the load and the rows of the other.

    `function` is what is multiplied: the window's load, or a function of it.
    """

    operand: WindowOperand
    window: Expr
    function: Expr
    weights: Expr
    rows: tuple[str, ...]
    channel: WindowDim
    lines: WindowDim
    columns: WindowDim
    outer: tuple[WindowDim, ...]

    @property
    def shared(self) -> tuple[int, int]:
        """How many taps read the same place, and how many elements there are."""
        return self.lines.taps * self.columns.taps, math.prod(d.extent for d in self.operand.dims)


@functools.lru_cache(maxsize=64)
def window_sides(problem: ContractProblem) -> Sides | str:
    """Return the operand whose taps share most as the window, or why neither is one."""
    if refusal := _problem_refusal(problem):
        return refusal
    c = problem.contractions[0]
    found = [_side(problem, c.a, problem.m, c.b, problem.n), _side(problem, c.b, problem.n, c.a, problem.m)]
    windows = [x for x in found if isinstance(x, Sides)]
    return max(windows, key=lambda x: x.shared) if windows else str(found[0])


def _problem_refusal(problem: ContractProblem) -> str | None:
    if len(problem.contractions) > 1 or problem.statistics:
        return "it sums one product, without row statistics"
    if min(problem.shape) == 0:
        return "an extent is 0"
    c = problem.contractions[0]
    dtypes = {factor(x).dtype for x in (c.a, c.b)}
    if len(dtypes) > 1 or not dtypes <= {*MATRIX_DTYPES, DType.F32}:
        return "its operands are both bf16, both f16 or both f32"
    if refusal := accumulates_in_f32(problem):
        return refusal
    if DType.F32 in dtypes and problem.shape[3] < LEAST_K:
        return f"a sum of {problem.shape[3]} products: the bound of an f32 sum leaves split products no room"
    if dtypes <= {*MATRIX_DTYPES} and not isinstance(operands(problem), str):
        return "its operands are plain matrices"
    return None


def _side(problem: ContractProblem, weights: Expr, rows: tuple[str, ...], window: Expr, places: tuple[str, ...]) -> Sides | str:
    function, brought = factor(window), widened_load(weights)
    loaded = only_load(function)
    if brought is None or loaded is None or not keeps_zero(function):
        return "its operands are not a load, and another or a function of it that keeps 0"
    name = (loaded.args[0] if loaded.op == "access" else loaded).attrs[0]
    operand = window_operand(loaded, buffers(problem.program)[name], {*places, *problem.batch}, problem.k)
    if isinstance(operand, str):
        return operand
    channel = _channel(operand, problem.batch)
    tiled = sorted((d for d in operand.dims if d.position in places), key=lambda d: d.step)
    if channel is None or not tiled:
        return f"{operand.name!r} has no dimension of channels alone, or none of positions"
    moved = {d.position for d in operand.dims}
    if still := [a for a in (*places, *problem.batch) if a not in moved and problem.program.extents[a] > 1]:
        return f"axis {still[0]!r} moves no dimension of {operand.name!r}"
    columns, lines = tiled[0], (tiled[1] if len(tiled) > 1 else WindowDim(1, 0, "", 1, 1, "", 1, 1, 0))
    outer = tuple(d for d in operand.dims if d not in (channel, lines, columns))
    if channel.position:  # groups of channels: each is a position of its own
        outer += (
            WindowDim(channel.positions, channel.step * channel.stride, channel.position, channel.positions, 1, "", 1, 1, 0),
        )
        channel = dataclasses.replace(channel, position="", positions=1, stride=1)
    return Sides(operand, loaded, function, brought, rows, channel, lines, columns, outer)


def _channel(operand: WindowOperand, batch: tuple[str, ...]) -> WindowDim | None:
    """Return the dimension that is summed in blocks: the longest that stays in the buffer and moves with no position but a group."""
    found = [d for d in operand.dims if d.tap and d.dilation == 1 and not d.leaves]
    alone = [d for d in found if not d.position or (d.position in batch and d.stride >= d.taps)]
    return max(alone, key=lambda d: d.taps, default=None)
