"""Dependent folds on CPUs: tiles of rows by keys, with the running maximum, sums and values on the stack."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cpu.bounds import memory_bound_ns, products
from eqsat.codegen.cpu.model import shared, work
from eqsat.codegen.cpu.online_nest import OnlineNest, Tiling, groups
from eqsat.codegen.cpu.point import common_refusal
from eqsat.codegen.cpu.source import assemble
from eqsat.codegen.cpu.vector import widest
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.masks import SURE, kept_share
from eqsat.codegen.online import OnlineProblem
from eqsat.codegen.problem import Problem
from eqsat.codegen.targets import Target
from eqsat.errors import IllegalScheduleError

_REGISTERS = 32  # vector registers of the largest register file (AVX-512, NEON)
_STACK_BYTES = 3 << 19  # the most that the tiles of one task take of a thread's stack


@dataclass(frozen=True, slots=True)
class CpuOnlineTile(Schedule):
    """One pass over the keys for each tile of rows.

    Parameters
    ----------
    vector_bytes : int
        Bytes of a vector: 16, 32 or 64.
    rows, keys : int
        Extents of a tile.
    tile_rows, vectors : int
        The register tile of the contractions: rows by vectors (of keys, then of values).
    threads : int
        1, or 0 for all cores.
    compiler : int
        0 any, 1 the system's, 2 zig.
    """

    vector_bytes: int
    rows: int
    keys: int
    tile_rows: int
    vectors: int
    threads: int
    compiler: int


class OnlineFamily:
    """Dependent folds: legal for every one, with several outputs too."""

    name = "cpu-online"
    schedules: tuple[type[Schedule], ...] = (CpuOnlineTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, OnlineProblem) or not isinstance(schedule, CpuOnlineTile):
            return f"expected a dependent fold and a CpuOnlineTile; got {problem.family} and {type(schedule).__name__}"
        if problem.statistics:
            return "it takes no statistics of the rows' operand"
        s = schedule
        if refusal := common_refusal(s.vector_bytes, s.vectors, s.threads, s.compiler):
            return refusal
        if min(s.rows, s.keys, s.tile_rows) < 1:
            return "rows, keys and register tiles are at least 1"
        if s.tile_rows * s.vectors + s.vectors > _REGISTERS:
            return f"{s.tile_rows} x {s.vectors} sums and {s.vectors} vectors are more than {_REGISTERS} registers"
        batch, m, _, _, _ = problem.shape
        if s.tile_rows > 1 and s.tile_rows >= 2 * m:
            return f"register tiles of {s.tile_rows} rows for {m}"
        if s.rows % s.tile_rows:
            return f"tiles of {s.rows} rows are not whole register tiles of {s.tile_rows}"
        if s.rows > s.tile_rows and s.rows >= 2 * m:
            return f"tiles of {s.rows} rows for {m}"
        if s.threads != 1 and batch * m == 1:
            return "one row alone is not shared among threads"
        if not problem.contraction and not problem.wide and (s.tile_rows, s.vectors) != (1, 1):
            return "there is no contraction for a register tile"
        if (taken := stack_bytes(problem, s)) > _STACK_BYTES:
            return f"tiles of {taken} bytes are more than {_STACK_BYTES}"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        if refusal := self.legal(problem, schedule):
            raise IllegalScheduleError(f"{schedule}: {refusal}")
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, CpuOnlineTile)
        nest = _nest(problem, schedule)
        body = nest.lines()
        return assemble(
            nest.printer,
            schedule,
            body,
            mask_bits=8 * widest([o.expr for o in problem.program.outputs]),
            threads=schedule.threads,
            compiler=schedule.compiler,
            functions=nest.functions(),
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time of the contractions, of the exponentials or of the bytes, whichever is longest.

        Of positions that are masked out nothing is sure to be computed, nor to be read.
        """
        assert isinstance(problem, OnlineProblem)
        batch, m, _, _, _ = problem.shape
        cores = min(rates.cores, batch * m)  # a row is not shared
        share = kept_share(problem.score)
        rate = rates.rate("f64") if problem.dtype.bytes == 8 else max(rate for _, rate in rates.flops)
        arithmetic = max(problem.flops, 2 * products(problem.program)) / rate
        if share == 1:
            return max(arithmetic / cores, memory_bound_ns(problem.program, rates) / cores, rates.launch_ns)
        written = sum(o.bytes for o in problem.program.outputs) / max(rates.issue, rates.cached)
        return max(SURE * (share or 0.0) * arithmetic / cores, written / cores, rates.launch_ns)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return the time that a model expects."""
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, CpuOnlineTile)
        return _predicted_ns(problem, schedule, rates)

    def serves(self, target: Target) -> bool:
        """Return whether the target is a CPU."""
        return target.kind == "cpu"


def _nest(problem: OnlineProblem, schedule: CpuOnlineTile) -> OnlineNest:
    tiling = Tiling(schedule.rows, schedule.keys, schedule.tile_rows, schedule.vectors)
    return OnlineNest(problem, tiling, schedule.vector_bytes // problem.dtype.bytes, schedule.threads)


def stack_bytes(problem: OnlineProblem, schedule: CpuOnlineTile) -> int:
    """Return the bytes of the arrays of one task."""
    lanes = schedule.vector_bytes // problem.dtype.bytes
    _, m, k, d, _ = problem.shape
    panel = lanes * schedule.vectors
    rows, keys = min(schedule.rows, m + schedule.tile_rows), min(schedule.keys, k + panel) + panel
    values = sum((problem.extent(axes) + panel) * len(found) for axes, found in groups(problem))
    return problem.dtype.bytes * (rows * (2 * keys + d + values + 4) + keys * (d + values))


def _predicted_ns(problem: OnlineProblem, s: CpuOnlineTile, rates: Rates) -> float:
    batch, m, k, d, n = problem.shape
    wide = {16: 4.0, 32: 2.0, 64: 1.0}[s.vector_bytes]
    rate = rates.rate("f64" if problem.dtype.bytes == 8 else "f32")
    rows = min(s.rows, m)
    # fewer sums than 8 wait for one another; missing rows of a register tile are computed all the same
    sums = s.tile_rows * s.vectors
    slow = max(1.0, 8.0 / sums) * (1.0 + (s.tile_rows + s.vectors) / (2.0 * sums))
    padded = -(-m // s.tile_rows) * s.tile_rows / m * (1.0 + 0.3 * s.keys / (k + s.keys))
    products_ns = problem.flops / rate * wide * 1.15 * slow * padded
    share = kept_share(problem.score) or 1.0
    share = min(1.0, share + 0.5 * (s.rows + s.keys) / k * (share < 1))  # tiles that a mask cuts are computed whole
    pointwise = 2 * max(0.0, work(problem.program) - problem.flops / 2) / rate * wide
    # every tile of rows packs its keys and values again; a tile's maxima and sums are folded once for each row
    packing = batch * -(-m // rows) * k * (d + n) * 0.25 if d or n else 0.0
    folding = batch * m * -(-k // s.keys) * 15.0
    memory = memory_bound_ns(problem.program, rates)
    cores = max(1.0, rates.cores / max(1, min(rates.cores, batch * -(-m // s.rows))))
    total = max(share * (products_ns + pointwise + packing + folding), share * memory)
    return (shared(total, s.threads, rates) * (cores if s.threads != 1 else 1.0)) + rates.launch_ns
