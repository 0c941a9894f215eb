"""Blocked contractions: packed panels, a register tile of sums, and the epilogue when the last block of k is in."""

from __future__ import annotations

from dataclasses import dataclass

from eqsat.codegen.cpu.bounds import contract_bound_ns
from eqsat.codegen.cpu.contraction import ContractNest, side_by_side, sum_dtype
from eqsat.codegen.cpu.loops import loop, parallel
from eqsat.codegen.cpu.model import shared, up
from eqsat.codegen.cpu.pack import pack
from eqsat.codegen.cpu.point import common_refusal
from eqsat.codegen.cpu.source import assemble
from eqsat.codegen.cpu.vector import widest
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import Contract, Problem
from eqsat.codegen.targets import Target
from eqsat.errors import IllegalScheduleError

_REGISTERS = 32  # vector registers of the largest register file (AVX-512, NEON)
_STACK_BYTES = 1 << 20  # the most that a packed block of the left operand may take of a thread's stack


@dataclass(frozen=True, slots=True)
class CpuContractTile(Schedule):
    """A blocked contraction, after the structure of BLIS (Van Zee and van de Geijn, 2015).

    Parameters
    ----------
    vector_bytes : int
        Bytes of a vector of sums: 16, 32 or 64.
    rows, vectors : int
        The register tile: rows of the left operand by vectors of columns.
    kc, mc, nc : int
        Extents of the blocks of k, of rows (a packed block sits in L2) and of columns (in L3 or memory).
    threads : int
        1, or 0 for all cores.
    compiler : int
        0 any, 1 the system's, 2 zig.
    """

    vector_bytes: int
    rows: int
    vectors: int
    kc: int
    mc: int
    nc: int
    threads: int
    compiler: int


class ContractFamily:
    """Blocked contractions: legal for every contract problem of every type."""

    name = "cpu-contract"
    schedules: tuple[type[Schedule], ...] = (CpuContractTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, Contract) or not isinstance(schedule, CpuContractTile):
            return f"expected a contract problem and a CpuContractTile; got {problem.family} and {type(schedule).__name__}"
        s = schedule
        if refusal := common_refusal(s.vector_bytes, s.vectors, s.threads, s.compiler):
            return refusal
        if min(s.rows, s.kc, s.mc, s.nc) < 1:
            return "rows and blocks are at least 1"
        if s.rows * s.vectors + s.vectors > _REGISTERS:
            return f"{s.rows} x {s.vectors} sums and {s.vectors} vectors of b are more than {_REGISTERS} registers"
        columns = s.vectors * _lanes(problem, s)
        if s.mc % s.rows or s.nc % columns:
            return f"blocks of {s.mc} rows and {s.nc} columns are not whole tiles of {s.rows} x {columns}"
        if min(s.mc, _up(problem.shape[1], s.rows)) * min(s.kc, problem.shape[3]) * sum_dtype(problem).bytes > _STACK_BYTES:
            return f"a packed block of {s.mc} x {s.kc} is more than {_STACK_BYTES} bytes"
        return None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        if refusal := self.legal(problem, schedule):
            raise IllegalScheduleError(f"{schedule}: {refusal}")
        assert isinstance(problem, Contract)
        assert isinstance(schedule, CpuContractTile)
        nest = ContractNest(problem, _lanes(problem, schedule))
        body = nest.wrapped([*nest.statistics(schedule.threads), *side_by_side([_blocks(part, schedule) for part in nest.parts])])
        return assemble(
            nest.printer,
            schedule,
            body,
            mask_bits=8 * widest([o.expr for o in problem.program.outputs]),
            threads=schedule.threads,
            compiler=schedule.compiler,
            functions=_register_tile(nest, schedule),
            workspace_bytes=nest.workspace_bytes,
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time of the multiply-adds or of the bytes, whichever is longer, over the launch floor."""
        return contract_bound_ns(problem, rates)

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return the time that a model expects."""
        assert isinstance(problem, Contract)
        assert isinstance(schedule, CpuContractTile)
        s = schedule
        batch, m, _, k = problem.shape
        columns = s.vectors * _lanes(problem, s)
        # fewer than 8 sums wait for one another; more than 12 gain nothing and make edges dearer
        slow = {16: 4.0, 32: 2.0, 64: 1.15}[s.vector_bytes] * (max(1.0, 8.0 / (s.rows * s.vectors)) + 0.002 * s.rows * s.vectors)
        blocks = 1.0 + 20.0 / min(s.kc, max(k, 1)) + 4.0 / min(s.mc, max(m, 1))
        padded = up(m, (s.rows,)) * sum(p.flops * up(p.shape[2], (columns,)) for p in problem.parts) / max(problem.flops, 1)
        arithmetic = problem.flops / rates.rate("f64" if _lanes(problem, s) * 8 == s.vector_bytes else "f32")
        packed = sum(m * k * -(-p.shape[2] // s.nc) + k * p.shape[2] * len(p.contractions) for p in problem.parts) * batch * 0.2
        return shared(arithmetic * slow * blocks * padded + packed, s.threads, rates) + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether the target is a CPU."""
        return target.kind == "cpu"


def _lanes(problem: Contract, schedule: CpuContractTile) -> int:
    return schedule.vector_bytes // sum_dtype(problem).bytes


def _up(count: int, step: int) -> int:
    return max(1, -(-count // step)) * step


def _register_tile(nest: ContractNest, schedule: CpuContractTile) -> list[str]:
    """Return the innermost function: a tile of sums over `kc`, written to `to` or added to what is there."""
    rows, vectors, width = schedule.rows, schedule.vectors, nest.printer.width
    v, e, s = nest.vector, nest.element, nest.scalar
    grid = [(i, j) for i in range(rows) for j in range(vectors)]
    step = [f"const {v} b{j} = *(const {v} *)(b + {j * width});" for j in range(vectors)]
    for i in range(rows):
        sums = " ".join(f"c{i}_{j} += x * b{j};" for j in range(vectors))
        step.append(f"{{ const {s} x = ({s})a[{i}]; {sums} }}")
    step += [f"a += {rows};", f"b += {vectors * width};"]
    target = [f"*({v} *)(to + {(i * vectors + j) * width})" for i, j in grid]
    head = (
        f"static __attribute__((noinline)) void tile(pos kc, const {e} *restrict a, const {e} *restrict b, "
        f"{e} *restrict to, int add)"
    )
    return loop(
        head,
        [
            *(f"{v} {', '.join(f'c{i}_{j} = {{0}}' for j in range(vectors))};" for i in range(rows)),
            *loop("for (pos k = 0; k < kc; k++)", step),
            *loop("if (add)", [f"c{i}_{j} += {t};" for (i, j), t in zip(grid, target, strict=True)]),
            *(f"{t} = c{i}_{j};" for (i, j), t in zip(grid, target, strict=True)),
        ],
    )


def _blocks(nest: ContractNest, schedule: CpuContractTile) -> list[str]:
    """Print the blocks: columns, k (the right operand is packed), rows (the left is), then tiles."""
    problem, count = nest.problem, len(nest.problem.contractions)
    _, m, n, k = problem.shape
    rows, columns = schedule.rows, schedule.vectors * nest.printer.width
    kc, mc, nc = min(schedule.kc, max(k, 1)), min(schedule.mc, _up(m, rows)), min(schedule.nc, _up(n, columns))
    several = k > kc
    for c in range(count):
        nest.scratch(f"packed_b{c}", kc * nc, nest.element, nest.bytes)
        if several:
            nest.scratch(f"sums{c}", _up(m, rows) * nc, nest.element, nest.bytes)
    packed_b = [
        line
        for c, x in enumerate(problem.contractions)
        for line in pack(nest, x.b, nest.n, columns, "n_first", "ncs", f"packed_b{c}")
    ]
    row_block = [
        f"const pos mcs = {m} - m_first < {mc} ? {m} - m_first : {mc};",
        f"{nest.element} packed_a[{mc * kc}] __attribute__((aligned(64)));",
        *pack(nest, problem.contractions[0].a, nest.m, rows, "m_first", "mcs", "packed_a"),
        *_tiles(nest, schedule, nc, several),
    ]
    k_block = [
        f"const pos kc = {k} - k_first < {kc} ? {k} - k_first : {kc};",
        *packed_b,
        *parallel(schedule.threads),
        *loop(f"for (pos m_first = 0; m_first < {m}; m_first += {mc})", row_block),
    ]
    # an empty k still needs its epilogue: one round with kc = 0
    stop = max(k, 1)
    column_block = [
        f"const pos ncs = {n} - n_first < {nc} ? {n} - n_first : {nc};",
        *loop(f"for (pos k_first = 0; k_first < {stop}; k_first += {kc})", k_block),
    ]
    return loop(f"for (pos n_first = 0; n_first < {n}; n_first += {nc})", column_block)


def _tiles(nest: ContractNest, schedule: CpuContractTile, nc: int, several: bool) -> list[str]:
    """Print the loops over the register tiles of a block, and the epilogue of each after the last block of k."""
    problem, count = nest.problem, len(nest.problem.contractions)
    _, m, n, k = problem.shape
    rows, columns = schedule.rows, schedule.vectors * nest.printer.width
    lines: list[str] = []
    for c in range(count):
        if several:
            slot = f"((m_first + i) / {rows} * {nc // columns} + j / {columns}) * {rows * columns}"
            lines.append(f"{nest.element} *const at{c} = sums{c} + {slot};")
        else:
            lines.append(f"{nest.element} at{c}[{rows * columns}] __attribute__((aligned(64)));")
        add = "k_first > 0" if several else "0"
        lines.append(f"tile(kc, packed_a + i * kc, packed_b{c} + j * kc, at{c}, {add});")
    lines += [f"if (k_first + kc < {k}) continue;"] if several else []
    lines += [
        "const pos row_first = m_first + i, column_first = n_first + j;",
        f"const pos row_stop = row_first + {rows} < {m} ? row_first + {rows} : {m};",
        f"const pos column_stop = column_first + {columns} < {n} ? column_first + {columns} : {n};",
    ]

    def sums(c: int, position: str) -> str:
        return f"at{c} + (row - row_first) * {columns} + ({position} - column_first)"

    epilogue = nest.epilogue(sums, "column_first", "column_stop", "row")
    lines += loop("for (pos row = row_first; row < row_stop; row++)", epilogue)
    return loop(f"for (pos j = 0; j < ncs; j += {columns})", loop(f"for (pos i = 0; i < mcs; i += {rows})", lines))
