"""Contractions without tensor cores: every dtype, shape, layout, prologue, epilogue, several contractions and statistics."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import traffic_ns, wave_factor
from eqsat.codegen.cuda.contract_tiles import (
    STATIC_SHARED_BYTES,
    Fragment,
    blocks_of,
    contract_shape,
    epilogue,
    sides,
    tile_place,
)
from eqsat.codegen.cuda.emit import assemble, parameters, refuse_illegal, register_type
from eqsat.codegen.cuda.loads import index_type
from eqsat.codegen.cuda.reduce_print import indent
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Contract, ContractProblem, Problem
from eqsat.codegen.targets import Target

PAD = 4  # elements behind each row of a tile: fewer bank conflicts, and 16-byte rows stay aligned

PARTS = ("prelude.cuh", "math.cuh", "reduce.cuh", "simt.cu")


@dataclass(frozen=True, slots=True)
class SimtTile(Schedule):
    """A block makes `bm` x `bn` outputs, `bk` of the summed axes at a time; a thread makes `tm` x `tn` of them."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.bm // self.tm * (self.bn // self.tn)


class SimtFamily:
    """The contract kernel that serves every problem on every architecture."""

    name = "simt"
    schedules: tuple[type[Schedule], ...] = (SimtTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, Contract):
            return f"a contract kernel cannot serve a {problem.family} problem"
        if not isinstance(schedule, SimtTile):
            return f"a plain contract kernel has no schedule {type(schedule).__name__}"
        s = schedule
        if min(s.bm, s.bn, s.bk, s.tm, s.tn) < 1 or s.bm % s.tm or s.bn % s.tn or s.tn not in (1, 2, 4, 8, 16):
            return "the thread tile divides the block tile, and tn is a power of two up to 16"
        if s.threads % 32 or not 32 <= s.threads <= 1024 or s.bm % 8 or s.bn % 8 or s.bk % 4:
            return f"{s.threads} threads: expected a multiple of 32 up to 1024, bm and bn multiples of 8, bk of 4"
        if len({_tile_types(p) for p in problem.parts}) > 1:
            return "its outputs take different numbers or types of right operands"
        lead = problem.parts[0]
        shared = _shared_bytes(lead, s)
        if shared > STATIC_SHARED_BYTES:
            return f"{shared} bytes of tiles in shared memory; {STATIC_SHARED_BYTES} are there without asking for more"
        words = s.tm * s.tn * sum(max(c.node.dtype.accumulator.bytes, 4) // 4 for c in lead.contractions)
        moved = sum(t * s.bk // s.threads for t in (s.bm, *(s.bn for _ in lead.contractions)))
        if min(255, 65536 // s.threads) < words + moved + s.tm + s.tn + 24:
            return f"{words} accumulator and {moved} operand registers for each of {s.threads} threads"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source; raises IllegalScheduleError if `legal` objects."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, Contract)
        assert isinstance(schedule, SimtTile)
        return _emit(problem, schedule)

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the larger of the time to move each byte once and the time of the arithmetic at the dtype's own rate."""
        assert isinstance(problem, Contract)
        path = problem.parts[0].contractions[0].node.dtype.accumulator.value
        return max(traffic_ns(problem.program, rates), problem.flops / rates.rate(path))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: the arithmetic by how well a thread tile reuses what it reads, in whole waves of blocks."""
        assert isinstance(problem, Contract)
        assert isinstance(schedule, SimtTile)
        s = schedule
        batch, m, n, _ = problem.shape
        blocks = sum(blocks_of(p, s) for p in problem.parts)
        path = problem.parts[0].contractions[0].node.dtype.accumulator.value
        # Each step reads tm + tn values from shared memory for tm·tn multiply-adds: 8 by 8 reaches some 80 % of the peak.
        reuse = s.tm * s.tn / (s.tm + s.tn)
        padded = blocks * s.bm * s.bn / max(batch * m * n, 1)
        arithmetic = (
            problem.flops
            / rates.rate(path)
            * padded
            * (1 + 1 / reuse)
            * wave_factor(rates, blocks, max(2048 // s.threads // 4, 1))
        )
        return max(arithmetic, traffic_ns(problem.program, rates)) + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: every CUDA device."""
        return target.kind == "cuda"


def _shared_bytes(problem: ContractProblem, s: SimtTile) -> int:
    lead = problem.contractions[0]
    tiles = s.bk * (s.bm + PAD) * max(lead.a.dtype.accumulator.bytes, 1)
    tiles += sum(s.bk * (s.bn + PAD) * c.b.dtype.accumulator.bytes for c in problem.contractions)
    return tiles + sum(s.bm * s.bk * x.dtype.accumulator.bytes for x in problem.statistics)


def _tile_types(problem: ContractProblem) -> tuple[str, ...]:
    """Return the C types of the tiles of a part's right operands."""
    return tuple(register_type(c.b.dtype) for c in problem.contractions)


def _emit(problem: Contract, s: SimtTile) -> KernelSource:
    """Return the source: tiles in shared memory, then what the blocks of each part do with them."""
    program, lead = problem.program, problem.parts[0]
    ends = list(itertools.accumulate(blocks_of(p, s) for p in problem.parts))
    lines = [
        f"alignas(16) __shared__ {register_type(lead.contractions[0].a.dtype)} tile_a[{s.bk}][{s.bm + PAD}];",
        *(f"alignas(16) __shared__ {t} tile_b{i}[{s.bk}][{s.bn + PAD}];" for i, t in enumerate(_tile_types(lead))),
        *sides(contract_shape(lead), s)[0].shared_statistics(),
    ]
    if len(problem.parts) == 1:
        lines += _part(lead, s, "blockIdx.x")
    else:
        for i, (p, begin) in enumerate(zip(problem.parts, [0, *ends], strict=False)):
            head = f"if (blockIdx.x < {ends[i]}) {{" if i + 1 < len(ends) else "{"
            lines += [f"{'else ' if i else ''}{head}", *indent(_part(p, s, f"blockIdx.x - {begin}")), "}"]
    text = [
        f'extern "C" __global__ void __launch_bounds__({s.threads}) eqsat_kernel({parameters(program)}) {{',
        *indent(lines),
        "}",
    ]
    return assemble(program, s, "simt", "\n".join(text) + "\n", parts=PARTS, grid=(max(ends[-1], 1), 1, 1), block=s.threads)


def _part(problem: ContractProblem, s: SimtTile, block: str) -> list[str]:
    """Print what one block of a part does: its tile of the output, `block` counted from the part's first."""
    shape = contract_shape(problem)
    depth = problem.shape[3]
    left, right = sides(shape, s)
    tile_names = [f"tile_b{i}" for i in range(len(problem.contractions))]
    accumulators = [register_type(c.node.dtype) for c in problem.contractions]
    fragment = Fragment(
        s.tm, f"down * {s.tm} + i", s.tn, min(s.tn, 4), f"Columns<{s.bn}, {s.tn}>::at(side, g)", "acc{}[i][g + j]"
    )
    return [
        *tile_place(problem, s, block),
        f"const int side = threadIdx.x % {s.bn // s.tn}, down = threadIdx.x / {s.bn // s.tn};",
        *(f"{t} acc{i}[{s.tm}][{s.tn}];" for i, t in enumerate(accumulators)),
        f"UNROLL for (int i = 0; i < {s.tm}; ++i)",
        f"  UNROLL for (int j = 0; j < {s.tn}; ++j) {{ {' '.join(f'acc{i}[i][j] = 0;' for i in range(len(accumulators)))} }}",
        *left.declare_statistics(),
        left.struct(),
        right.struct(),
        f"{index_type(depth + s.bk)} from = 0;",
        *left.fetch(),
        *right.fetch(),
        f"while (from < {depth}) {{",
        *indent([*left.put(["tile_a"]), *right.put(tile_names)]),
        "  __syncthreads();",
        f"  from += {s.bk};",
        f"  if (from < {depth}) {{  // the next tile flies while this one is multiplied",
        *indent([*left.fetch(), *right.fetch()], 4),
        "  }",
        *(
            f"  multiply<{s.tm}, {s.tn}, {s.bn}>(acc{i}, tile_a, {name}, down * {s.tm}, side);"
            for i, name in enumerate(tile_names)
        ),
        "  __syncthreads();",
        "}",
        *left.combine_statistics(fragment),
        *epilogue(shape, s, fragment),
    ]
