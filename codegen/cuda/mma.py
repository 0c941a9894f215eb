"""Contractions of 16-bit operands by mma.sync: sm_80 and later, any strides, accesses and prologues, any epilogue.

Threads fetch the operands themselves, as the plain kernels do, so nothing asks for aligned strides; tiles go to shared memory in 16 bits
and to the matrix units by ldmatrix. On sm_90 it serves what TMA cannot read; elsewhere it is the only way to the matrix units.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import processors, traffic_ns, wave_factor
from eqsat.codegen.cuda.contract_tiles import (
    STATIC_SHARED_BYTES,
    Fragment,
    blocks_of,
    contract_shape,
    epilogue,
    sides,
    tile_place,
)
from eqsat.codegen.cuda.emit import assemble, parameters, refuse_illegal, stored_type
from eqsat.codegen.cuda.loads import index_type
from eqsat.codegen.cuda.operand import accumulates_in_f32
from eqsat.codegen.cuda.reduce_print import indent
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Contract, ContractProblem, Problem
from eqsat.codegen.targets import Target
from eqsat.types import DType

_PARTS = ("prelude.cuh", "math.cuh", "reduce.cuh", "mma.cu")
_TYPES = (DType.BF16, DType.F16)
_PAD = 8  # elements behind each row of a tile
_LANES_LOADED, _LANES_ISSUED = 61.0, 243.0  # per ns and multiprocessor: 32 and 128 a clock at 1.9 GHz
_REGISTERS = 65536  # of a multiprocessor (CUDA programming guide, compute capabilities 8.0 to 9.0)


@dataclass(frozen=True, slots=True)
class MmaTile(Schedule):
    """A block makes `bm` × `bn` outputs, `bk` of the summed axes at a time, in `wm` × `wn` warps; `buffers` tiles take turns."""

    bm: int
    bn: int
    bk: int
    wm: int
    wn: int
    buffers: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.wm * self.wn

    @property
    def warp_tiles(self) -> tuple[int, int]:
        """Tiles of 16 rows, and of 8 columns, of a warp."""
        return self.bm // self.wm // 16, self.bn // self.wn // 8


class MmaFamily:
    """bf16 and f16 contractions on every device from sm_80."""

    name = "mma"
    schedules: tuple[type[Schedule], ...] = (MmaTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, Contract) or not isinstance(schedule, MmaTile):
            return "it serves contractions with an MmaTile"
        s = schedule
        if (
            min(s.bm, s.bn, s.bk, s.wm, s.wn) < 1
            or s.bm % (16 * s.wm)
            or s.bn % (16 * s.wn)
            or s.bk % 16
            or s.buffers not in (1, 2)
        ):
            return (
                "a warp makes 16 rows by 16 columns or several of them, bk is a multiple of 16, and one or two tiles take turns"
            )
        if s.threads > 1024:
            return f"{s.threads} threads; a block has 1024 at most"
        lead = problem.parts[0]
        if len({_types(p) for p in problem.parts}) > 1:
            return "its outputs take different numbers or types of operands"
        if len(set(_types(lead))) > 1 or _types(lead)[0] not in _TYPES:
            return f"its operands are {', '.join(map(str, _types(lead)))}; the matrix units take bf16 or f16"
        for p in problem.parts:
            if refusal := accumulates_in_f32(p):
                return refusal
        shared = _shared_bytes(lead, s)
        if shared > STATIC_SHARED_BYTES:
            return f"{shared} bytes of tiles in shared memory; {STATIC_SHARED_BYTES} are there without asking for more"
        mi, ni = s.warp_tiles
        count = len(lead.contractions)
        moved = (s.bm + count * s.bn) * s.bk // 2 // s.threads
        if min(255, _REGISTERS // s.threads) < 4 * mi * ni * count + moved + 4 * mi + 40:
            return f"{4 * mi * ni * count} accumulator and {moved} operand registers for each of {s.threads} threads"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, Contract)
        assert isinstance(schedule, MmaTile)
        return _emit(problem, schedule)

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the matrix units need at the least."""
        assert isinstance(problem, Contract)
        return max(traffic_ns(problem.program, rates), problem.flops / rates.rate(_types(problem.parts[0])[0].value))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: padded tiles in whole waves, the staging of each element, and the pass of a tile."""
        assert isinstance(problem, Contract)
        assert isinstance(schedule, MmaTile)
        s = schedule
        batch, m, _, k = problem.shape
        lead = problem.parts[0]
        count = len(lead.contractions)
        blocks = sum(blocks_of(p, s) for p in problem.parts)
        resident = max(1, min(2048 // s.threads, 2 * 512 // s.threads))
        padded = blocks * s.bm * s.bn / max(batch * m * sum(p.shape[2] for p in problem.parts), 1)
        # the share of the units' rate that fragments out of shared memory feed: a warp's tile of 64×64 the most
        mi, ni = s.warp_tiles
        fed = 0.6 * min(1.0, math.sqrt(16 * mi * 8 * ni) / 56)
        products = problem.flops / rates.rate(_types(lead)[0].value) * padded / fed
        # what threads bring to shared memory: a load and a store for each vector, and the conversion of each element
        lanes = min(side.lanes for side in sides(contract_shape(lead), s))
        staged = blocks * (s.bm + count * s.bn) * k * (2 / (_LANES_LOADED * lanes) + 2 / _LANES_ISSUED) / processors(rates)
        waves = wave_factor(rates, blocks, resident)
        steps = -(-k // s.bk) * math.ceil(blocks / (processors(rates) * resident)) * (350.0 + 150.0 * (s.buffers == 1))
        return max((products + staged) * waves, steps, traffic_ns(problem.program, rates)) + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target."""
        return target.kind == "cuda" and target.capability >= 80


def _types(problem: ContractProblem) -> tuple[DType, ...]:
    """Return the types of a part's operands."""
    return (problem.contractions[0].a.dtype, *(c.b.dtype for c in problem.contractions))


def _shared_bytes(problem: ContractProblem, s: MmaTile) -> int:
    left, right = sides(contract_shape(problem), s)
    tiles = [(s.bm, left.along_k), *((s.bn, right.along_k) for _ in problem.contractions)]
    operands = sum(2 * (rows * (s.bk + _PAD) if along_k else s.bk * (rows + _PAD)) for rows, along_k in tiles)
    return s.buffers * operands + sum(s.bm * s.bk * x.dtype.accumulator.bytes for x in problem.statistics)


def _emit(problem: Contract, s: MmaTile) -> KernelSource:
    """Return the source: tiles in shared memory, then what the blocks of each part do with them."""
    lead = problem.parts[0]
    ends = list(itertools.accumulate(blocks_of(p, s) for p in problem.parts))
    lines = []
    for i, (p, begin) in enumerate(zip(problem.parts, [0, *ends], strict=False)):
        one = len(problem.parts) == 1
        head = "{" if one or i + 1 == len(ends) else f"if (blockIdx.x < {ends[i]}) {{"
        lines += [f"{'else ' if i else ''}{head}", *indent(_part(p, s, f"blockIdx.x - {begin}")), "}"]
    text = [
        f"using T = {stored_type(_types(lead)[0])};",
        f'extern "C" __global__ void __launch_bounds__({s.threads}) eqsat_kernel({parameters(problem.program)}) {{',
        *indent(lines),
        "}",
    ]
    return assemble(
        problem.program, s, "mma", "\n".join(text) + "\n", parts=_PARTS, grid=(max(ends[-1], 1), 1, 1), block=s.threads,
        requires="sm_80",
    )  # fmt: skip


def _part(problem: ContractProblem, s: MmaTile, block: str) -> list[str]:
    """Print what one block of a part does: its tile of the output, `block` counted from the part's first."""
    shape = contract_shape(problem)
    _, _, _, depth = problem.shape
    left, right = sides(shape, s)
    mi, ni = s.warp_tiles
    count = len(problem.contractions)
    names = [f"tile_b{i}[turn]" for i in range(count)]

    def operand(rows: int, *, along_k: bool) -> str:
        return f"Operand<T, {rows}, {s.bk}, {'true' if along_k else 'false'}>"

    fragment = Fragment(
        2 * mi, "warp_row + i / 2 * 16 + i % 2 * 8 + threadIdx.x % 32 / 4",
        2 * ni, 2, "warp_column + g / 2 * 8 + threadIdx.x % 4 * 2 + g % 2",
        "acc{}[i / 2][(g + j) / 2][i % 2 * 2 + (g + j) % 2]",
    )  # fmt: skip
    turn = ["turn ^= 1;"] if s.buffers == 2 else ["__syncthreads();"]
    return [
        f"__shared__ {operand(s.bm, along_k=left.along_k)} tile_a[{s.buffers}];",
        *(f"__shared__ {operand(s.bn, along_k=right.along_k)} tile_b{i}[{s.buffers}];" for i in range(count)),
        *left.shared_statistics(),
        *tile_place(problem, s, block),
        f"const int warp = threadIdx.x / 32, warp_row = warp / {s.wn} * {16 * mi}, warp_column = warp % {s.wn} * {8 * ni};",
        *(f"float acc{i}[{mi}][{ni}][4] = {{}};" for i in range(count)),
        *left.declare_statistics(),
        left.struct(),
        right.struct(),
        f"{index_type(depth + s.bk)} from = 0;",
        "int turn = 0;",
        *left.fetch(),
        *right.fetch(),
        f"while (from < {depth}) {{",
        *indent([*left.put(["tile_a[turn].at"], "T"), *right.put([f"{n}.at" for n in names], "T")]),
        "  __syncthreads();",
        f"  from += {s.bk};",
        f"  if (from < {depth}) {{  // the next tile flies while this one is multiplied",
        *indent([*left.fetch(), *right.fetch()], 4),
        "  }",
        *(
            f"  multiply_tile<T, {mi}, {ni}, {s.bk}>(acc{i}, tile_a[turn], {name}, warp_row, warp_column);"
            for i, name in enumerate(names)
        ),
        *indent(turn),
        "}",
        *left.combine_statistics(fragment),
        *epilogue(shape, s, fragment),
    ]
