"""Convolutions on the matrix units of sm_90a: windows of 1 to 3 dimensions, any stride, dilation, padding and memory order.

A contraction of which one operand is a window (`eqsat.codegen.windows`): channels are summed in blocks, and a tile of positions,
with all that its taps reach, comes to the chip once for each block. Converter warps lay it out as 16-byte vectors of 8 channels;
without a swizzle, the operand of the matrix instruction may begin at any vector, so every tap is the same data from another
address on. What the other operand (the weights) needs of layout is done once, by all blocks, into a workspace: tiles in the
order of use, which bulk copies bring.

The input's vectors and the weights' tiles are read from shared memory at 64·16·2 + n·16·2 bytes for 64·n·16 products: 128 bytes a
clock suffice from n = 32 on. A tile of positions is loaded once for all taps, so that level-2 traffic is far below a matrix product's.
"""

from __future__ import annotations

import math

from eqsat.codegen.cuda.bounds import traffic_ns, wave_factor
from eqsat.codegen.cuda.emit import assemble, part, refuse_illegal, used_inputs
from eqsat.codegen.cuda.operand import MATRIX_DTYPES
from eqsat.codegen.cuda.window_layout import (
    GROUPS,
    HEAD_BYTES,
    THREADS,
    Layout,
    WindowContractTile,
    processors_of_grid,
    window_layout,
)
from eqsat.codegen.cuda.window_print import print_constants, print_instruction, print_kernel
from eqsat.codegen.kernel import BufferArg, KernelSource, Rates, Schedule, WorkspaceArg
from eqsat.codegen.problem import ContractProblem, Problem
from eqsat.codegen.targets import Target


class WindowWgmmaFamily:
    """Convolutions of 16-bit floats, and of f32 split into three of them, on sm_90a."""

    name = "window-contract"
    schedules: tuple[type[Schedule], ...] = (WindowContractTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ContractProblem) or not isinstance(schedule, WindowContractTile):
            return "it serves contractions with one output, with a WindowContractTile"
        found = window_layout(problem, schedule)
        return found if isinstance(found, str) else None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source for sm_90a."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, ContractProblem)
        assert isinstance(schedule, WindowContractTile)
        layout = window_layout(problem, schedule)
        assert isinstance(layout, Layout)
        return assemble(
            problem.program,
            schedule,
            self.name,
            "\n".join([print_instruction(layout), part("tile.cuh"), print_constants(layout), print_kernel(layout)]),
            args=(
                *(BufferArg(i.name) for i in used_inputs(problem.program)),
                BufferArg(problem.output.name),
                WorkspaceArg(zeroed=True),
            ),
            grid=(min(layout.tiles, processors_of_grid()), 1, 1),
            block=THREADS,
            shared_bytes=layout.shared_bytes,
            workspace_bytes=HEAD_BYTES + layout.weight_tiles * layout.weight_bytes,
            requires="sm_90a",
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least."""
        assert isinstance(problem, ContractProblem)
        terms = 1 if problem.contractions[0].a.dtype in MATRIX_DTYPES else 6
        return max(traffic_ns(problem.program, rates), terms * problem.flops / rates.rate("bf16"))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: all products of the tiles, in whole waves, by how well shared memory feeds them, and the packing."""
        assert isinstance(problem, ContractProblem)
        assert isinstance(schedule, WindowContractTile)
        layout = window_layout(problem, schedule)
        if isinstance(layout, str):
            return math.inf
        n = layout.n
        depth = layout.steps * layout.taps * schedule.channels
        flops = 2.0 * layout.tiles * GROUPS * 64 * n * depth * len(layout.products)
        starved = max(1.0, (64 + n) * 2 * 16 / 128 / (n / 2))
        arithmetic = flops / rates.rate("bf16") * starved * wave_factor(rates, layout.tiles, 1)
        packing = rates.launch_ns * (2 + layout.weight_tiles * layout.weight_bytes / 2**20)
        return max(arithmetic, traffic_ns(problem.program, rates)) + packing + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: wgmma is Hopper's own."""
        return target.arch == "sm_90a"
