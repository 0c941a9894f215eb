"""The split family: f32 contractions at f32 accuracy on the tensor cores of sm_90a.

An f32 number has 24 bits, an f16 one 11, and the rounding error of f16 is itself a number of 13 bits and a sign: x = h + l to 22
bits and more, and a·b = h·h' + (h·l' + l·h') with an error of a few 2^-24, as of a rounded f32 product (Ootomo and Yokota,
"Recovering single precision accuracy from Tensor Cores", 2022). Three products at the rate of f16, where three bf16 parts take
six of the same rate, and TF32 takes three of half the rate.

What f16 lacks is range. So each row of the left operand, and each panel of 32 columns of the right one, has a power of two that
brings its sizes to f16's, and l is kept times 2^11, summed in accumulators of its own. A scale stays from step to step (32 of k)
while no h overflows and none but zeros falls below the normal numbers, which leaves 2^27 between the largest and the least size;
else a new one is chosen, and the sums made under the old one are folded into the totals. A step that no scale serves (sizes
further apart, infinite, NaN, or far from 1) is multiplied in plain f32 from shared memory, where it lies unchanged: slower, and
with the results of IEEE arithmetic.

The tensor cores cut off what does not fit when they add (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021), which
adds up over a long sum. The sums of h·h' therefore start from zero in each step, and are added to f32 totals by rounded
multiply-adds that apply the scales on the way. Those of h·l' + l·h' are 2^-11 of them; there it does not matter.

A block: one thread brings f32 tiles by TMA; a warpgroup turns the right operand's panels into planes of h and l in their own place
(two f16 planes take what the f32 tile took; a third part would not fit); one or two warpgroups of 64 rows split their left operand
in registers. Clocks of a multiprocessor for a tile of 128×128 and 32 elements of k: 768 for 3 products on the tensor cores, of
which the reading of the right operand keeps shared memory (128 bytes a clock) busy for 384; 256 for TMA to write the tiles, 128 to
read the left one, 256 to read the right one and to write its planes; 1024 in all. About 750 instructions for each scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import processors, traffic_ns, wave_factor
from eqsat.codegen.cuda.emit import assemble, output_names, parameter_names, part, refuse_illegal, stored_type, used_inputs
from eqsat.codegen.cuda.operand import (
    Operand,
    accumulates_in_f32,
    axis_strides,
    buffers,
    direct_store,
    epilogue,
    epilogue_reads,
    joined_stride,
)
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.kernel import Arg, BufferArg, KernelSource, Rates, Schedule, TensorMapArg, WorkspaceArg
from eqsat.codegen.problem import ContractProblem, Problem
from eqsat.codegen.targets import Target, parse_target
from eqsat.ir import Expr
from eqsat.types import DType

STEP = 32  # elements of k of a slot: 128 bytes
PRODUCTS = 3
LEAST_K = 64  # below, the bound of an f32 sum (a unit for each product) leaves no room for the error of split products
PRODUCER_REGISTERS = 24
# Registers of a consumer beside totals and accumulators (found by compiling: with less ptxas spills).
REST = 48
MOST_WORKSPACE = 1 << 26
# The model: what a step takes beside its products (waits, and splitting the rows, if not ahead), and how much longer than at the full
# rate the products take. Fitted to tiles from 64×96 to 128×128 on an H200.
STEP_NS, STEP_AHEAD_NS, PRODUCTS_SHARE = 515.0, 430.0, 1.25


@dataclass(frozen=True, slots=True)
class SplitTile(Schedule):
    """A tile of `bm` × `bn`, 64 rows for each consumer warpgroup, `columns` of which are multiplied at a time.

    `slices` blocks share the summed axis of a tile; the last to finish adds their sums. `raster` rows of tiles run together.
    With `ahead`, the rows of the next step are split while this one's small products are made.
    """

    bm: int
    bn: int
    columns: int
    slices: int
    raster: int
    ahead: int


@dataclass(frozen=True, slots=True)
class _Layout:
    a: Operand
    b: Operand
    stages: int


class SplitFamily:
    """f32 contractions on sm_90a, each factor as two f16 numbers."""

    name = "split"
    schedules: tuple[type[Schedule], ...] = (SplitTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, ContractProblem) or not isinstance(schedule, SplitTile):
            return "it serves contractions of one output with a SplitTile"
        found = _layout(problem, schedule)
        return found if isinstance(found, str) else None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source for sm_90a."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, ContractProblem)
        assert isinstance(schedule, SplitTile)
        layout = _layout(problem, schedule)
        assert isinstance(layout, _Layout)
        return assemble(
            problem.program,
            schedule,
            "split",
            "\n".join(
                [
                    _wrapper(layout, schedule),
                    part("tile.cuh"),
                    part("split.cuh"),
                    _constants(problem, schedule, layout),
                    _kernel(problem, schedule),
                ]
            ),
            args=_arguments(problem, schedule, layout),
            workspace_bytes=_workspace_bytes(problem, schedule),
            grid=(_grid(problem, schedule), 1, 1),
            block=_threads(schedule),
            shared_bytes=_shared_bytes(schedule, layout.stages),
            requires="sm_90a",
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least."""
        assert isinstance(problem, ContractProblem)
        return max(traffic_ns(problem.program, rates), PRODUCTS * problem.flops / rates.rate("f16"))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: whole waves of padded tiles, a share of each step for its products, and the sums of slices."""
        assert isinstance(problem, ContractProblem)
        assert isinstance(schedule, SplitTile)
        s = schedule
        blocks = _tiles(problem, s) * s.slices
        multiplied = PRODUCTS * 2 * s.bm * s.bn * STEP / rates.rate("f16") * processors(rates)
        step = (STEP_AHEAD_NS if s.ahead else STEP_NS) + PRODUCTS_SHARE * multiplied
        inside = wave_factor(rates, blocks, 1) * blocks / processors(rates) * _share(problem.shape[3], s) * step
        last = s.slices * s.bm * s.bn * 4 * processors(rates) / rates.issue * 2 if s.slices > 1 else 0.0
        return max(inside, traffic_ns(problem.program, rates)) + last + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: wgmma is Hopper's own."""
        return target.arch == "sm_90a"


def _layout(problem: ContractProblem, s: SplitTile) -> _Layout | str:
    if len(problem.contractions) != 1 or problem.statistics:
        return "it serves one contraction and no row statistics"
    if refusal := accumulates_in_f32(problem):
        return refusal
    if min(problem.shape) == 0 or problem.shape[3] < LEAST_K:
        return f"it serves sums of {LEAST_K} products and more; got {problem.shape[3]}"
    a = _operand(problem, problem.contractions[0].a, problem.m)
    b = _operand(problem, problem.contractions[0].b, problem.n)
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else str(b)
    if not (a.aligned(4) and b.aligned(4)):
        return "TMA needs every stride of its operands to be a multiple of 16 bytes"
    if refusal := _schedule_refusal(problem, s):
        return refusal
    stages = _stages(s)
    if stages < 3:
        return f"only {stages} stages fit into shared memory; a ring needs 3"
    return _Layout(a, b, stages)


def _operand(problem: ContractProblem, e: Expr, rows: tuple[str, ...]) -> Operand | str:
    """Return an f32 operand with the row axes `rows`, or why it is not a strided matrix."""
    if e.op != "read" or e.dtype is not DType.F32:
        return "an operand is not a plain read of f32"
    buffer = buffers(problem.program)[e.attrs[0]]
    steps = axis_strides(e, buffer)
    row, k, batch = (joined_stride(g, steps, problem.program.extents) for g in (rows, problem.k, problem.batch))
    if row is None or k is None or batch is None:
        return f"the axes of {buffer.name!r} do not join into rows, columns and batch"
    if 1 not in (row, k):
        return f"{buffer.name!r} is contiguous neither along its rows nor along the summed axis"
    return Operand(buffer.name, e.dtype, row, k, batch)


def _schedule_refusal(problem: ContractProblem, s: SplitTile) -> str | None:
    if s.bm not in (64, 128) or s.bn % 32 or not 32 <= s.bn <= 256:
        return "a tile is 64 or 128 rows by 32 to 256 columns in steps of 32"
    if s.columns % 32 or s.columns < 32 or s.bn % s.columns:
        return "the columns of a pass are whole panels of 32, and divide the tile"
    held = s.bn + s.columns // 2
    if held > _registers(s)[1] - REST:
        return f"{held} totals and accumulators a thread do not fit into {_registers(s)[1]} registers"
    if s.raster < 1 or s.slices < 1 or s.ahead not in (0, 1):
        return "a raster has at least one row, a sum at least one slice, and the next step is split ahead or not"
    steps = -(-problem.shape[3] // STEP)
    if _share(problem.shape[3], s) * (s.slices - 1) >= steps:
        return f"{steps} steps of k do not give every one of {s.slices} blocks its share"
    if _workspace_bytes(problem, s) > MOST_WORKSPACE:
        return (
            f"the sums of {s.slices} slices take {_workspace_bytes(problem, s)} bytes of workspace; {MOST_WORKSPACE} is the most"
        )
    return None


def _share(k: int, s: SplitTile) -> int:
    """Return the steps of k of a slice (the last may have fewer)."""
    steps = -(-k // STEP)
    return -(-steps // s.slices)


def _tiles(problem: ContractProblem, s: SplitTile) -> int:
    batch, m, n, _ = problem.shape
    return batch * -(-m // s.bm) * -(-n // s.bn)


def _grid(problem: ContractProblem, s: SplitTile) -> int:
    """Return the blocks: one for each slice of a tile, or one for each multiprocessor, which makes tile after tile."""
    tiles = _tiles(problem, s)
    return tiles * s.slices if s.slices > 1 else min(tiles, parse_target("sm_90").processors)


def _registers(s: SplitTile) -> tuple[int, int]:
    """Return the registers of a thread of the converter and of the consumers, which share what the producer leaves."""
    if s.bm == 64:
        return 152, 208
    return (72, 208) if s.bn > 96 else (104, 192)


def _threads(s: SplitTile) -> int:
    """Return the threads of a block: consumers, a converter and a producer warpgroup."""
    return (s.bm // 64 + 2) * 128


def _shared_bytes(s: SplitTile, stages: int) -> int:
    """Return what the slots take, each with three barriers and the exponents of its panels, the alignment, and a word a consumer."""
    return 1024 + s.bm * 8 + stages * ((s.bm + s.bn) * 4 * STEP + 24 + -(-s.bn // 128) * 4)


def _stages(s: SplitTile) -> int:
    return min(8, (parse_target("sm_90").shared_bytes - 64 - _shared_bytes(s, 0)) // (_shared_bytes(s, 1) - _shared_bytes(s, 0)))


def _counters(problem: ContractProblem, s: SplitTile) -> int:
    """Words at the start of the workspace that count the finished blocks of each tile, in whole vectors of 16 bytes."""
    return -(-_tiles(problem, s) // 4) * 4


def _workspace_bytes(problem: ContractProblem, s: SplitTile) -> int:
    return 4 * (_counters(problem, s) + _tiles(problem, s) * s.slices * s.bm * s.bn) if s.slices > 1 else 0


def _wrapper(layout: _Layout, s: SplitTile) -> str:
    """Print the one wgmma instruction in use: D[64, columns] (fp32) += A · B, A in registers."""
    r = s.columns // 2
    regs, outs = ", ".join(f"%{i}" for i in range(r)), ", ".join(f'"+f"(d[{i}])' for i in range(r))
    left = ", ".join(f"%{r + i}" for i in range(4))
    return (
        f"DEV void wgmma_left(float (&d)[{r}], const unsigned (&a)[4], u64 b, int accumulate) {{\n"
        f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{r + 5}, 0; wgmma.mma_async.sync.aligned.m64n{s.columns}k16.f32.f16.f16 "\n'
        f'    "{{{regs}}}, {{{left}}}, %{r + 4}, p, 1, 1, {int(not layout.b.k_major)}; }}"\n    : {outs}\n'
        f'    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));\n}}\n'
    )


def _constants(problem: ContractProblem, s: SplitTile, layout: _Layout) -> str:
    batch, m, n, k = problem.shape
    converter, consumer = _registers(s)
    values = {
        "BATCH": batch, "M": m, "N": n, "STEPS": -(-k // STEP), "BM": s.bm, "BN": s.bn, "GROUPS": s.bm // 64, "COLUMNS": s.columns,
        "RASTER": s.raster, "GRID": _grid(problem, s), "STAGES": layout.stages, "SLICES": s.slices, "SHARE": _share(k, s),
        "COUNTERS": _counters(problem, s), "THREADS": _threads(s),
        "PRODUCER_REGISTERS": PRODUCER_REGISTERS, "CONVERTER_REGISTERS": converter, "CONSUMER_REGISTERS": consumer,
    }  # fmt: skip
    kinds = {True: "KMajor32", False: "MnMajor32"}
    return "\n".join(
        [
            *(f"constexpr int {name} = {value};" for name, value in values.items()),
            f"using A = {kinds[layout.a.k_major]}<BM>;",
            f"using B = {kinds[layout.b.k_major]}<BN>;",
        ]
    )


def _kernel(problem: ContractProblem, s: SplitTile) -> str:
    at_entry = 65536 // _threads(s) // 8 * 8
    flags = {
        "slices" if s.slices > 1 else "whole",
        "ahead" if s.ahead else "plain",
        "more" if _registers(s)[0] > at_entry else "fewer",
    }
    slots = {
        "PARAMETERS": [_parameters(problem, s)],
        "EPILOGUE": epilogue(problem, ["total[v + e]"], []),
        "STORE": direct_store(problem),
    }
    return fill(part("split.cu"), flags, slots)


def _read_beside(problem: ContractProblem) -> list[str]:
    """Return the buffers that the epilogue reads, which are passed as pointers."""
    read = epilogue_reads(problem)
    return [i.name for i in used_inputs(problem.program) if i.name in read]


def _parameters(problem: ContractProblem, s: SplitTile) -> str:
    names, inputs = parameter_names(problem.program), {i.name: i for i in problem.program.inputs}
    items = ["TMAP map_a", "TMAP map_b"]
    items += [f"const {stored_type(inputs[p].dtype)}* __restrict__ {names[p]}" for p in _read_beside(problem)]
    items += [f"{stored_type(problem.output.dtype)}* __restrict__ {output_names(problem.program)[problem.output_index]}"]
    return ", ".join([*items, *(["float* __restrict__ workspace"] if s.slices > 1 else [])])


def _arguments(problem: ContractProblem, s: SplitTile, layout: _Layout) -> tuple[Arg, ...]:
    batch, m, n, k = problem.shape
    args: list[Arg] = [_map(layout.a, m, k, batch, s.bm), _map(layout.b, n, k, batch, s.bn)]
    args += [BufferArg(name) for name in _read_beside(problem)]
    args += [BufferArg(problem.output.name)]
    return (*args, WorkspaceArg(zeroed=True)) if s.slices > 1 else tuple(args)


def _map(o: Operand, rows: int, k: int, batch: int, tile_rows: int) -> TensorMapArg:
    """Return the tensor map of an operand, as whole words: a copy of floats would round or flush them."""
    if o.k_major:
        strides = (_stride(o.row_stride, k, 1), _stride(o.batch_stride, k, rows))
        return TensorMapArg(o.name, DType.I32, (k, rows, batch), strides, (STEP, tile_rows, 1), 128)
    strides = (_stride(o.k_stride, rows, 1), _stride(o.batch_stride, rows, k))
    return TensorMapArg(o.name, DType.I32, (rows, k, batch), strides, (32, STEP, 1), 128)


def _stride(elements: int, inner: int, between: int) -> int:
    """Return a stride in bytes; where the extent is 1 and the stride immaterial, one that TMA accepts."""
    return 4 * elements if elements else -(-4 * inner * between // 16) * 16
