"""The skinny family: few rows times a big matrix, at the rate at which the matrix can be read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from eqsat.codegen.cuda.bounds import processors, traffic_ns, wave_factor
from eqsat.codegen.cuda.emit import arguments, assemble, parameter_names, parameters, part, refuse_illegal, stored_type
from eqsat.codegen.cuda.few_rows import big_matrices, combine, few_rows_refusal, stage_left
from eqsat.codegen.cuda.operand import (
    Operand,
    axis_names,
    buffers,
    contiguous,
    direct_store,
    epilogue,
    loads_of,
    plain_read,
    vector_code,
)
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.printer import print_offset
from eqsat.codegen.problem import Contract, ContractProblem, Problem, nest
from eqsat.codegen.targets import Target
from eqsat.ir import Expr
from eqsat.types import DType

SHARED_LIMIT = 232448  # bytes a block may ask for on sm_90; sm_86 and sm_89 give the least of the mma parts, 99 KB
SHARED_EVERYWHERE = 101376
# To add the sums of blocks that split k: through memory, and in clusters of two and of more (measured on an H200).
MEMORY_NS, CLUSTER_NS = 2000.0, {2: 700.0, 3: 3000.0}


@dataclass(frozen=True, slots=True)
class SkinnyTile(Schedule):
    """How a block divides its columns and k among its warps.

    A warp takes `nt` tiles of 8 columns; `wn` warps lie side by side, `wk` split k, and so do `ck` blocks, which add their sums
    through the shared memory of a cluster or (`memory`) through a workspace; `depth` chunks of 32 k are on their way for each
    warp; `hint` is the cache policy of the big matrix's loads (an enumerator of the prelude); `blocks` of them are to fit on one
    multiprocessor. With `straight`, x goes from memory to registers beside the chunk that it meets, else through shared memory.
    """

    nt: int
    wn: int
    wk: int
    ck: int
    depth: int
    hint: int
    blocks: int
    memory: int = 0
    straight: int = 0


class SkinnyFamily:
    """Contractions of few rows with bf16 or f16 operands, by mma.sync (sm_80 and later; clusters need sm_90)."""

    name = "skinny"
    schedules: tuple[type[Schedule], ...] = (SkinnyTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, Contract) or not isinstance(schedule, SkinnyTile):
            return "it serves contractions with a SkinnyTile"
        return few_rows_refusal(problem) or _schedule_refusal(problem.parts[0], schedule)

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, Contract)
        assert isinstance(schedule, SkinnyTile)
        shared = _shared_bytes(problem.parts[0], schedule)
        return assemble(
            problem.program,
            schedule,
            "skinny",
            "\n".join([part("tile.cuh"), _constants(problem, schedule), _kernel(problem, schedule)]),
            args=arguments(problem.program, workspace=_through_memory(schedule)),
            workspace_bytes=_workspace_bytes(problem, schedule),
            grid=(_slabs(problem, schedule)[-1] * schedule.ck, problem.shape[0], 1),
            block=schedule.wn * schedule.wk * 32,
            cluster=1 if schedule.memory else schedule.ck,
            shared_bytes=shared,
            requires="sm_90" if (schedule.ck > 1 and not schedule.memory) or shared > SHARED_EVERYWHERE else "sm_80",
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least."""
        assert isinstance(problem, Contract)
        return max(traffic_ns(problem.program, rates), problem.flops / rates.rate("bf16"))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: the traffic in whole waves of blocks, slower where few bytes are on their way."""
        assert isinstance(problem, Contract)
        assert isinstance(schedule, SkinnyTile)
        s = schedule
        blocks = problem.shape[0] * s.ck * _slabs(problem, s)[-1]
        # Blocks that are all resident share memory's rate, however few a multiprocessor has; else the last wave is partly idle.
        resident = min(s.blocks, blocks / processors(rates))
        waves = wave_factor(rates, blocks, s.blocks) if blocks > processors(rates) * s.blocks else max(1.0, 0.8 / resident)
        # About 32 KB must be in flight on each multiprocessor to reach the read rate (measured on an H200).
        in_flight = max(resident, 1.0) * s.wn * s.wk * s.nt * s.depth * 8 * 32 * 2
        starved = max(1.0, 32768 / max(in_flight, 1))
        # Every block reads its share of x from the caches, at 44 bytes a ns for each multiprocessor: straight to registers that
        # goes on beside the stream, through shared memory before it.
        left = 2 * blocks * problem.shape[1] * problem.shape[3] / s.ck / (44 * processors(rates))
        stream = traffic_ns(problem.program, rates) * starved * waves
        sums = 0.0 if s.ck == 1 else MEMORY_NS if s.memory else CLUSTER_NS[min(s.ck, 3)]
        return stream + left * (0.25 * s.wn if s.straight else 1.0) + sums + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: mma.sync of bf16 came with sm_80."""
        return target.kind == "cuda" and target.capability >= 80


def _slabs(problem: Contract, s: SkinnyTile) -> tuple[int, ...]:
    """Return how many slabs of columns lie before each part, and how many there are."""
    return tuple(itertools.accumulate((-(-p.shape[2] // (s.wn * s.nt * 8)) for p in problem.parts), initial=0))


def _left_loads(problem: ContractProblem) -> tuple[Expr, ...] | str:
    """Return the loads that the left operand and the statistics take, or why they are not whole vectors of 8 along k."""
    known, inner = buffers(problem.program), problem.k[-1]
    found = loads_of([problem.contractions[0].a, *(nest(e)[1] for e in problem.statistics)], {})
    if any(
        inner not in e.axes or not contiguous(e, known[e.attrs[0]], inner, 8) or e.dtype.bytes < 2
        for e in found
        if e.op == "read"
    ):
        return "what the left operand loads is not whole vectors of 8 along k"
    if any(e.op != "read" for e in found):
        return "what the left operand loads leaves its buffer"
    if problem.statistics and problem.shape[3] % 32:
        return "row statistics ride on whole chunks of 32 along k"
    return tuple(found)


def _schedule_refusal(problem: ContractProblem, s: SkinnyTile) -> str | None:
    found = big_matrices(problem)
    assert not isinstance(found, str)
    if min(s.nt, s.wn, s.wk, s.depth, s.blocks) < 1 or s.nt % (2 if found[0].k_major else 8):
        return "a warp takes an even number of column tiles (a multiple of 8 where the columns are contiguous)"
    if s.straight not in (0, 1) or s.wn * s.wk > 32 or not 1 <= s.ck <= (16 if s.memory else 8) or not 0 <= s.hint <= 3:
        return "a block has at most 32 warps, a cluster at most 8 blocks, and 16 add through memory"
    chunks = -(-problem.shape[3] // 32)
    if -(-chunks // s.ck) * (s.ck - 1) >= chunks:
        return f"{chunks} chunks of k do not give every one of {s.ck} blocks its share"
    tiles = -(-problem.shape[1] // 8)
    registers = len(found) * s.nt * (2 * tiles + 4 * s.depth)
    if s.straight:
        loads = _left_loads(problem)
        if isinstance(loads, str):
            return loads
        registers += s.depth * sum(2 * e.dtype.bytes * _copies(problem, e) for e in loads)
    if registers > min(224, 65536 // (s.wn * s.wk * 32 * s.blocks) - 24):
        return f"{registers} registers of operands and sums a thread do not fit beside {s.blocks} blocks of {s.wn * s.wk} warps"
    shared = _shared_bytes(problem, s)
    if shared * s.blocks + 1024 * s.blocks > SHARED_LIMIT + 1024:
        return f"{s.blocks} blocks with {shared} bytes of shared memory do not fit on one multiprocessor"
    return None


def _copies(problem: ContractProblem, load: Expr) -> int:
    """Return how many vectors of a load a lane holds: one for each tile of 8 rows, where it changes with the row."""
    return -(-problem.shape[1] // 8) if set(problem.m) & load.axes else 1


def _stats_at(problem: ContractProblem, s: SkinnyTile) -> int:
    """Bytes of the region that x and later the partial sums use; the statistics lie behind it."""
    _, m, _, k = problem.shape
    rows = -(-m // 8) * 8
    chunks = -(-k // 32)
    share = -(-chunks // s.ck)
    parts = s.wk * len(problem.contractions) * rows * (s.wn * s.nt * 8 + 4) * 4
    return parts if s.straight else max(rows * (share | 1) * 64, parts)


def _segments(problem: ContractProblem, s: SkinnyTile) -> int:
    return s.wk if s.straight else max(1, s.wn * s.wk // problem.shape[1])


def _inbox_at(problem: ContractProblem, s: SkinnyTile) -> int:
    """Bytes before the sums that come from the blocks of a cluster."""
    return -(-(_stats_at(problem, s) + 4 * len(problem.statistics) * problem.shape[1] * _segments(problem, s)) // 16) * 16


def _shared_bytes(problem: ContractProblem, s: SkinnyTile) -> int:
    if s.ck == 1 or s.memory:
        return _inbox_at(problem, s)
    m = problem.shape[1]
    own = -(-m * s.wn * s.nt * 4 // s.ck)
    floats = s.ck * (len(problem.contractions) * own * 2 + len(problem.statistics) * m)
    return _inbox_at(problem, s) + -(-floats // 2) * 8 + 8  # the barrier last


def _through_memory(s: SkinnyTile) -> bool:
    return bool(s.memory) and s.ck > 1


def _counters(problem: Contract, s: SkinnyTile) -> int:
    """Words at the start of the workspace that count the finished blocks of each slab, in whole vectors of 16 bytes."""
    return -(-problem.shape[0] * _slabs(problem, s)[-1] // 4) * 4


def _workspace_bytes(problem: Contract, s: SkinnyTile) -> int:
    if not _through_memory(s):
        return 0
    batch, m, _, _ = problem.shape
    slot = m * (len(problem.parts[0].contractions) * s.wn * s.nt * 8 + len(problem.statistics))
    return 4 * (_counters(problem, s) + batch * _slabs(problem, s)[-1] * s.ck * slot)


def _constants(problem: Contract, s: SkinnyTile) -> str:
    _, m, n, k = problem.shape
    lead = problem.parts[0]
    found = big_matrices(lead)
    assert not isinstance(found, str)
    big = found[0]
    values = {
        "M": m, "K": k, "COUNT": len(found), "NT": s.nt, "WN": s.wn, "WK": s.wk, "CK": s.ck, "DEPTH": s.depth,
        "HINT": s.hint, "BLOCKS": s.blocks, "VECTOR": 8 if k % 8 == 0 else 1, "SLABS": _slabs(problem, s)[-1],
        "WHOLE_SLABS": int(all(p.shape[2] % (s.wn * s.nt * 8) == 0 for p in problem.parts)),
        "STATS_AT": _stats_at(lead, s), "INBOX_AT": _inbox_at(lead, s), "STATISTICS": len(problem.statistics), "COUNTERS": _counters(problem, s),
    }  # fmt: skip
    lines = [f"constexpr int {name} = {value};" for name, value in values.items()]
    if len(problem.parts) == 1:
        lines += [f"constexpr int N = {n};", f"constexpr i64 W_STRIDE = {_stride(big)};"]
    return "\n".join([*lines, f"using T = {stored_type(big.dtype)};"])


def _stride(big: Operand) -> int:
    return big.row_stride if big.k_major else big.k_stride


def _kernel(problem: Contract, s: SkinnyTile) -> str:
    lead, several = problem.parts[0], len(problem.parts) > 1
    found = big_matrices(lead)
    assert not isinstance(found, str)
    k_major = found[0].k_major
    flags = {
        "k_major" if k_major else "n_major",
        "several" if several else "one",
        "alone" if s.ck == 1 else "memory" if s.memory else "cluster",
        *(["no_cluster"] if s.ck == 1 or s.memory else []),
        *(["split"] if s.ck > 1 else []),
        "straight" if s.straight else "staged",
        "vector" if problem.shape[3] % 8 == 0 else "scalar",
        *(["statistics"] if problem.statistics else []),
    }
    slots = {
        "PARAMETERS": [parameters(problem.program, "float" if _through_memory(s) else "")],
        "SELECT": _select(problem, s) if several else [],
        "SLAB_HERE": ["(slab_here - slabs_before)" if several else "blockIdx.x / CK"],
        "LOAD_FIRST": _loads(problem, s, "k0 + (wk + d * WK) * 32"),
        "LOAD_NEXT": _loads(problem, s, "k0 + (here + STEP) * 32"),
        **_straight(lead, s),
        "INIT": [f"float part{j} = {combine(lead, j)}::neutral();" for j in range(len(problem.statistics))],
        "STAGE": stage_left(lead, 8 if problem.shape[3] % 8 == 0 else 1),
        "REDUCE_ROW": _reduce_row(lead),
        "TOTAL": _total(lead, s),
        "LEAVE_STATISTICS": _leave_statistics(lead),
        "PUSH_STATISTICS": _push_statistics(lead),
        "EPILOGUE": _finish(problem, s),
        "MMA": ["mma16816_f16" if found[0].dtype is DType.F16 else "mma16816"],
    }
    return fill(part("skinny.cu"), flags, slots)


def _by_part(problem: Contract, s: SkinnyTile, values: Sequence[object]) -> str:
    """Print the choice of a value by the part whose slab a block makes."""
    ends = _slabs(problem, s)[1:]
    return "".join(f"slab_here < {end} ? {v} : " for v, end in zip(values[:-1], ends, strict=False)) + str(values[-1])


def _select(problem: Contract, s: SkinnyTile) -> list[str]:
    """Print which part a block belongs to: the slabs before it, its columns, and its big matrices."""
    names = parameter_names(problem.program)
    found = [m for p in problem.parts if not isinstance(m := big_matrices(p), str)]
    sources = [[f"{names[b.name]}{_batch_offset(b)}" for b in group] for group in found]
    return [
        "const int slab_here = blockIdx.x / CK;",
        f"const int slabs_before = {_by_part(problem, s, _slabs(problem, s)[:-1])};",
        f"const int columns = {_by_part(problem, s, [p.shape[2] for p in problem.parts])};",
        f"const i64 stride = {_by_part(problem, s, [_stride(group[0]) for group in found])};",
        *(f"const T* const matrix{c} = {_by_part(problem, s, g)};" for c, g in enumerate(zip(*sources, strict=True))),
    ]


def _batch_offset(big: Operand) -> str:
    return f" + (i64)batch * {big.batch_stride}" if big.batch_stride else ""


def _finish(problem: Contract, s: SkinnyTile) -> list[str]:
    """Print the epilogue and the store of a pair of columns, for the part that the block belongs to."""
    accumulators = [f"sum[{c}][e]" for c in range(len(problem.parts[0].contractions))]
    statistics = [f"stat{j}" for j in range(len(problem.statistics))]
    out: list[str] = []
    for i, p in enumerate(problem.parts):
        lines = ["float y[2];", *epilogue(p, accumulators, statistics), *direct_store(p)]
        if len(problem.parts) > 1:
            head = f"if (slab_here < {_slabs(problem, s)[i + 1]}) {{" if i + 1 < len(problem.parts) else "{"
            lines = [f"{'else ' if i else ''}{head}", *(f"  {line}" for line in lines), "}"]
        out += lines
    return out


def _loads(problem: Contract, s: SkinnyTile, k: str) -> list[str]:
    found = big_matrices(problem.parts[0])
    assert not isinstance(found, str)
    names = parameter_names(problem.program)
    if len(problem.parts) > 1:
        chunks = [f"w[d][{c}].load(matrix{c}, {k}, n, g, q, columns, stride);" for c in range(len(found))]
    else:
        chunks = [f"w[d][{c}].load({names[b.name]}{_batch_offset(b)}, {k}, n, g, q);" for c, b in enumerate(found)]
    return [*chunks, *(_left_load(problem.parts[0], k) if s.straight else [])]


def _left_load(problem: ContractProblem, chunk: str) -> list[str]:
    """Print the loads of the left operand for the chunk of k that begins at `chunk`."""
    loads = _left_loads(problem)
    assert not isinstance(loads, str)
    known, pointers = buffers(problem.program), parameter_names(problem.program)
    names = axis_names({"batch": problem.batch, "m": problem.m, "k": problem.k}, problem.program.extents)
    out = [f"{{ const int k = {chunk} + 8 * q;"]
    for i, e in enumerate(loads):
        size = f"<{8 * e.dtype.bytes}>"
        at = f"{pointers[e.attrs[0]]} + {print_offset(e, known[e.attrs[0]], names)}"
        out.append(f"UNROLL for (int t = 0; t < {_copies(problem, e)}; ++t) {{ const int m = min(8 * t + g, M - 1);")
        out.append(f"if (K % 32 == 0 || k < K) left[d].x{i}[t] = kept{size}({at}); else left[d].x{i}[t] = zero_raw{size}(); }}")
    return [*out, "}"]


def _straight(problem: ContractProblem, s: SkinnyTile) -> dict[str, list[str]]:
    """Print how the left operand's values come about in registers, and what the statistics take of them."""
    loads = _left_loads(problem)
    if not s.straight or isinstance(loads, str):
        return {}
    a = problem.contractions[0].a
    read = plain_read(a)
    vectors = {e: f"left[d].x{i}[{'t' if _copies(problem, e) > 1 else '0'}]" for i, e in enumerate(loads)}
    names, moved = (
        axis_names({"batch": problem.batch, "m": problem.m, k: problem.k}, problem.program.extents) for k in ("k", "(k + e)")
    )
    results = [] if read is not None else [("value[e] = {};", a)]
    ops = [combine(problem, j) for j in range(len(problem.statistics))]
    results += [
        (f"part{j}[t] = {op}::of(part{j}[t], {{}});", nest(e)[1])
        for j, (op, e) in enumerate(zip(ops, problem.statistics, strict=True))
    ]
    at_hand = {e: f"Element<{stored_type(e.dtype)}>::get({v}, e)" for e, v in vectors.items()}
    code = vector_code(problem.program, results, at_hand, names, moved, problem.k, 8) if results else []
    leave = "if (wn == 0 && q == 0 && 8 * t + g < M)"
    return {
        "LEFT_MEMBERS": [f"Raw<{8 * e.dtype.bytes}> x{i}[{_copies(problem, e)}];" for i, e in enumerate(loads)],
        "LEFT_VALUE": [*code, f"x[t] = {vectors[read]};"]
        if read is not None
        else ["float value[8];", *code, "x[t] = Pack<T>::from<8>(value);"],
        "INIT_ROWS": [
            f"float part{j}[MT]; UNROLL for (int t = 0; t < MT; ++t) part{j}[t] = {op}::neutral();" for j, op in enumerate(ops)
        ],
        "LEAVE_ROWS": [
            line
            for j, op in enumerate(ops)
            for line in (
                "UNROLL for (int t = 0; t < MT; ++t) {",
                f"  for (int o = 1; o < 4; o *= 2) part{j}[t] = {op}::of(part{j}[t], shuffle_xor(part{j}[t], o));",
                f"  {leave} stats[({j} * M + 8 * t + g) * SEGMENTS + wk] = part{j}[t];",
                "}",
            )
        ],
    }


def _reduce_row(problem: ContractProblem) -> list[str]:
    out: list[str] = []
    for j in range(len(problem.statistics)):
        step = f"part{j} = {combine(problem, j)}::of(part{j}, shuffle_xor(part{j}, o));"
        out.append(f"UNROLL for (int o = 16; o; o /= 2) {step}")
        out.append(f"if (lane == 0) stats[{j} * M * SEGMENTS + task] = part{j};")
    return out


def _total(problem: ContractProblem, s: SkinnyTile) -> list[str]:
    out: list[str] = []
    count = len(problem.statistics)
    for j in range(count):
        op = combine(problem, j)
        out.append(f"float stat{j} = {op}::neutral();")
        if s.ck == 1:
            at = f"stats[({j} * M + y_row) * SEGMENTS + v]"
            out.append(f"UNROLL for (int v = 0; v < SEGMENTS; ++v) stat{j} = {op}::of(stat{j}, {at});")
            continue
        at = (
            f"slots[r * SLOT + COUNT * M * SLAB + {j} * M + y_row]"
            if s.memory
            else f"inbox[INBOX + (r * {count} + {j}) * M + y_row]"
        )
        out.append(f"UNROLL for (int r = 0; r < CK; ++r) stat{j} = {op}::of(stat{j}, {at});")
    return out


def _push_statistics(problem: ContractProblem) -> list[str]:
    """Print how a block's statistics go to every block of the cluster."""
    out: list[str] = []
    for j in range(len(problem.statistics)):
        op, at = combine(problem, j), f"inbox + INBOX + (rank * STATISTICS + {j}) * M + i / CK"
        gather = f"UNROLL for (int v = 0; v < SEGMENTS; ++v) s = {op}::of(s, stats[({j} * M + i / CK) * SEGMENTS + v]);"
        send = f"push({at}, s, all_here, i % CK);"
        out.append(f"for (int i = threadIdx.x; i < M * CK; i += THREADS) {{ float s = {op}::neutral(); {gather} {send} }}")
    return out


def _leave_statistics(problem: ContractProblem) -> list[str]:
    """Print how a block's statistics go to its slot of the workspace."""
    out: list[str] = []
    for j in range(len(problem.statistics)):
        op, slot = combine(problem, j), f"slots[rank * SLOT + COUNT * M * SLAB + {j} * M + i]"
        gather = f"UNROLL for (int v = 0; v < SEGMENTS; ++v) s = {op}::of(s, stats[({j} * M + i) * SEGMENTS + v]);"
        out.append(f"for (int i = threadIdx.x; i < M; i += THREADS) {{ float s = {op}::neutral(); {gather} {slot} = s; }}")
    return out
