"""Convolutions on the matrix units of sm_90a: windows of 1 to 3 dimensions, any stride, dilation, padding and memory order.

A contraction of which one operand is a window (`eqsat.codegen.windows`): channels are summed in blocks, and a tile of positions,
with all that its taps reach, comes to the chip once for each block. Converter warps lay it out as 16-byte vectors of 8 channels;
without a swizzle, the operand of the matrix instruction may begin at any vector, so every tap is the same data from another
address on. What the other operand (the weights) needs of layout is done once, by all blocks, into a workspace: tiles in the
order of use, which bulk copies bring.

An f32 value is three bf16 terms (24 bits). Of their nine products the six of relative weight 2^-16 and more are made, the small ones
first; what is left out is below 2^-25 of the product. The matrix units cut off what does not fit when they add, so that only the
products of a few taps are added there, and their sums to totals in f32. An infinity or NaN is its own first term, the others 0.
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
    VECTOR,
    Layout,
    WindowContractTile,
    processors_of_grid,
    window_layout,
)
from eqsat.codegen.cuda.window_print import print_constants, print_instruction, print_kernel
from eqsat.codegen.kernel import BufferArg, KernelSource, Rates, Schedule, WorkspaceArg
from eqsat.codegen.problem import ContractProblem, Problem
from eqsat.codegen.targets import Target

PRODUCTS_A_CYCLE = 2048  # multiply-adds of 16-bit values in a clock of a multiprocessor
# Clocks beside the products, seen on an H200: of an instruction, of the barriers of a tap, of a sum that is added to the totals,
# of 32 vectors of input that are laid out, and of as many bytes of output that pass shared memory twice.
INSTRUCTION, TAP, ADDITION, VECTORS, STORED_BYTES = 15.0, 100.0, 100.0, 13.0, 64.0


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
        cycles = tile_cycles(layout) * wave_factor(rates, layout.tiles, 1) * layout.tiles
        packing = rates.launch_ns * (2 + layout.weight_tiles * layout.weight_bytes / 2**20)
        arithmetic = cycles * PRODUCTS_A_CYCLE * 2 / rates.rate("bf16")
        return max(arithmetic, traffic_ns(problem.program, rates)) + packing + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: wgmma is Hopper's own."""
        return target.arch == "sm_90a"


def tile_cycles(layout: Layout) -> float:
    """Return the clocks of a multiprocessor for one tile of the output: of its products or its input, and of its output."""
    s, taps = layout.schedule, layout.steps * layout.taps
    instructions = taps * GROUPS * s.channels // 16 * len(layout.products)
    additions = layout.steps * -(-layout.taps // layout.chain) if layout.planes > 1 else 0
    copies = layout.columns.dim.taps if layout.columns.copied else 1
    vectors = layout.steps * s.channels // VECTOR * layout.lines.span * layout.across * copies * layout.planes
    stored = GROUPS * layout.places * 64 * 4 / STORED_BYTES
    products = instructions * (layout.n / 2 + INSTRUCTION) + taps * TAP + additions * ADDITION
    return max(products, vectors / 32 * VECTORS) + stored
