"""The wgmma family: TMA, warp specialisation and the tensor cores of sm_90a, with any pointwise epilogue and row statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eqsat.codegen.cuda.bounds import processors, traffic_ns
from eqsat.codegen.cuda.emit import (
    assemble,
    literal,
    output_names,
    parameter_names,
    part,
    refuse_illegal,
    register_type,
    stored_type,
    used_inputs,
)
from eqsat.codegen.cuda.left import (
    Left,
    left_reads,
    print_fetch,
    print_fragments,
    print_riding,
    print_scalars,
    print_spread,
    print_words,
    rides,
)
from eqsat.codegen.cuda.operand import (
    Operand,
    direct_store,
    epilogue,
    epilogue_reads,
    output_offset,
    output_position,
    output_vector,
    plain_read,
)
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.cuda.wgmma_layout import (
    DIRECT,
    REGISTERS,
    SMS,
    TMA,
    Layout,
    Served,
    WgmmaTile,
    counter_bytes,
    layout_of,
    panel_of,
    part_floats,
    shared_bytes,
    slices_of,
    stored_form,
    threads_of,
    tiles_of,
    turned,
    workspace_bytes,
)
from eqsat.codegen.cuda.wgmma_layout import SHARED_BYTES as SHARED_BYTES
from eqsat.codegen.cuda.wgmma_layout import SHARED_RESERVED as SHARED_RESERVED
from eqsat.codegen.kernel import Arg, BufferArg, KernelSource, Rates, Schedule, TensorMapArg, WorkspaceArg
from eqsat.codegen.printer import print_statements
from eqsat.codegen.problem import ContractProblem, Problem, nest
from eqsat.codegen.targets import Target
from eqsat.ir import Expr

# The model, fitted on 27 products of an H200 (the schedule it puts first takes 5 % longer than the best, the best of its first four 1.5 %).
_FITTING = {1: 1.0, 2: 0.985, 4: 0.8}  # of the multiprocessors that have room for clusters of so many blocks
_SUSTAINED = 0.82  # of the rate of the matrix units, at the clock that the power limit leaves
_FILL_SHARE = 0.3  # of the rate of the nearest cache at which tiles come from the level-2 cache (10 TB/s)
_START_NS, _EPILOGUE_NS = 700.0, 500.0  # until the first tile is there; from the last product to the next tile
_SHARING_NS = 4000.0  # blocks that share a sum count, wait for each other, and read what the others left


class WgmmaFamily:
    """bf16 and f16 contractions on sm_90a."""

    name = "wgmma"
    schedules: tuple[type[Schedule], ...] = (WgmmaTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, Served) or not isinstance(schedule, WgmmaTile):
            return "it serves contractions with a WgmmaTile"
        found = layout_of(problem, schedule)
        return found if isinstance(found, str) else None

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source for sm_90a."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, Served)
        assert isinstance(schedule, WgmmaTile)
        layout = layout_of(problem, schedule)
        assert isinstance(layout, Layout)
        problem = turned(problem)
        cluster, slices = schedule.cm * schedule.cn, slices_of(problem, schedule)[0]
        tiles = tiles_of(problem, schedule)
        return assemble(
            problem.program,
            schedule,
            "wgmma",
            "\n".join(
                [
                    _wrapper(layout, schedule),
                    part("tile.cuh"),
                    _constants(problem, schedule, layout),
                    _kernel(problem, schedule, layout),
                ]
            ),
            args=_arguments(problem, schedule, layout),
            grid=(min(tiles, SMS * schedule.resident // cluster * cluster) * slices, 1, 1),
            block=threads_of(schedule),
            cluster=cluster,
            shared_bytes=shared_bytes(schedule.groups, layout.slot_bytes, layout.stages, layout.staging_bytes),
            workspace_bytes=workspace_bytes(problem, schedule, layout),
            requires="sm_90a",
            cooperative=slices > 1 or bool(layout.packed),
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least."""
        assert isinstance(problem, Served)
        return max(traffic_ns(problem.program, rates), problem.flops / rates.rate("bf16"))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: whole waves of tiles, each step by what it waits for longest, and what is not overlapped."""
        assert isinstance(problem, Served)
        assert isinstance(schedule, WgmmaTile)
        s, problem = schedule, turned(problem)
        batch, m, _, k = problem.shape
        count, computed = len(problem.parts[0].contractions), plain_read(problem.parts[0].contractions[0].a) is None
        clusters = batch * -(-m // (s.bm * s.cm)) * sum(-(-p.shape[2] // (s.bn * s.cn)) for p in problem.parts) * s.slices
        cluster, all_of_them = s.cm * s.cn, processors(rates)
        places = max(int(all_of_them * _FITTING[cluster]) * s.resident // cluster, 1)
        clock = rates.issue / all_of_them / 128  # GHz
        columns = s.bn * count
        products = 2 * s.bm * columns * 64 / (_SUSTAINED * rates.rate("bf16") / all_of_them) * s.resident
        shared = (2 * s.bm + columns + s.bm * columns / 64) / clock * s.resident
        filled = 128 * (s.bm / s.cn + columns / s.cm) * min(clusters, places) * cluster / (_FILL_SHARE * rates.issue)
        step = max(products * (1.07 if computed else 1.0), shared, filled)
        # Three stages are few; and blocks of neighbouring rows share what is longer, the right operand.
        step *= (1.0 if (s.bm + columns) * 128 <= 50 * 1024 else 1.12) * (1.01 if s.cn > 1 else 1.0)
        tile = math.ceil(k / 64 / s.slices) * step + _EPILOGUE_NS
        sharing = _SHARING_NS + 8 * clusters * cluster * s.bm * columns / rates.copy if s.slices > 1 else 0.0
        arithmetic = -(-clusters // places) * tile + sharing
        return max(arithmetic, traffic_ns(problem.program, rates)) + _START_NS + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: wgmma is Hopper's own."""
        return target.arch == "sm_90a"


def _wrapper(layout: Layout, s: WgmmaTile) -> str:
    """Print the one wgmma instruction in use: D[64, n] (fp32) += A · B, both in shared memory, or A in registers."""
    r, kind = s.bn // 2, layout.a.dtype.value
    regs = ", ".join(f"%{i}" for i in range(r))
    outs = ", ".join(f'"+f"(d[{i}])' for i in range(r))
    if layout.left is not None:
        parts = ", ".join(f"%{r + i}" for i in range(4))
        return (
            f"DEV void wgmma_left(float (&d)[{r}], const u32 (&a)[4], u64 b, int accumulate) {{\n"
            f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{r + 5}, 0; wgmma.mma_async.sync.aligned.m64n{s.bn}k16.f32.{kind}.{kind} "\n'
            f'    "{{{regs}}}, {{{parts}}}, %{r + 4}, p, 1, 1, {int(not layout.bs[0][0].k_major)}; }}"\n    : {outs}\n'
            f'    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));\n}}\n'
        )
    tail = f"p, 1, 1, {int(not layout.a.k_major)}, {int(not layout.bs[0][0].k_major)}"
    return (
        f"DEV void wgmma(float (&d)[{r}], u64 a, u64 b, int accumulate) {{\n"
        f'  asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{r + 2}, 0; wgmma.mma_async.sync.aligned.m64n{s.bn}k16.f32.{kind}.{kind} "\n'
        f'    "{{{regs}}}, %{r}, %{r + 1}, {tail}; }}"\n    : {outs}\n    : "l"(a), "l"(b), "r"(accumulate));\n}}\n'
    )


def _constants(problem: Served, s: WgmmaTile, layout: Layout) -> str:
    batch, m, n, _ = problem.shape
    k = problem.parts[0].shape[3]
    if len(layout.bs) > 1:
        n = layout.starts[-1]
    steps = sum(-(-x // 64) for x in (k, *(more for _, _, more in layout.more)))
    producer, consumer = REGISTERS[s.groups]
    values = {
        "BATCH": batch, "M": m, "N": n, "K": k, "STEPS": steps,
        "BM": s.bm, "A_ROWS": layout.a_rows, "BN": s.bn, "GROUPS": s.groups, "TILES": layout.tiles, "CM": s.cm, "CN": s.cn, "RASTER": s.raster,
        "STAGES": layout.stages, "LEFTS": len(layout.lefts), "COUNT": len(layout.bs[0]), "STATISTICS": len(problem.statistics),
        "CONSUMER_WARPS": 4 * (1 if s.pingpong else s.groups),
        "BUFFERS": layout.buffers, "STAGING": s.groups * layout.staging_bytes,
        "SLICES": slices_of(problem, s)[0], "PER_SLICE": 64 * slices_of(problem, s)[1], "PART": part_floats(s, layout),
        "COUNTERS": counter_bytes(tiles_of(problem, s)), "THREADS": threads_of(s), "RESIDENT": s.resident, "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer,
    }  # fmt: skip
    kinds = {True: "KMajor", False: "MnMajor"}
    return "\n".join(
        [
            *(f"constexpr int {name} = {value};" for name, value in values.items()),
            f"using A = {kinds[layout.a.k_major]}<A_ROWS, CN>;",
            f"using B = {kinds[layout.bs[0][0].k_major]}<BN, CM>;",
            f"using T = {layout.a.dtype};",
        ]
    )


def _kernel(problem: Served, s: WgmmaTile, layout: Layout) -> str:
    cluster = s.cm * s.cn > 1
    flags = {
        "cluster" if cluster else "alone",
        "pingpong" if s.pingpong else "cooperative",
        "sliced" if s.slices > 1 else "whole",
        layout.store,
        *(["once"] if layout.once else []),
        *(["packed"] if layout.packed else []),
        "loaded" if layout.left is None else "computed",
        *(["riding"] if layout.left is not None and problem.statistics and rides(problem.parts[0], layout.left) else []),
        *(["turns"] if layout.left is not None and s.groups == 2 and not s.pingpong else []),
        *(["vectors"] if layout.left is not None and layout.left.vectors else []),
        *(["statistics"] if problem.statistics else []),
        *(["ridden"] if problem.statistics and layout.left is None else []),
        *(["budget"] if REGISTERS[s.groups][0] else []),
    }
    count, several = len(layout.bs[0]), len(layout.bs) > 1
    column = "tile.n - start" if several else "tile.n"
    maps = [f"w{c}" if several else f"&map_b{c}" for c in range(count)]
    slots = {
        "PARAMETERS": [_parameters(problem, s, layout)],
        "PREFETCH": [f"tma_prefetch(&{m});" for m in _maps(layout)],
        "SELECT": _select(layout) if several else [],
        "PACK": _pack(problem, layout),
        "LOAD_A": [
            f"A::load(slot + {i} * A::bytes, &{name}, full, tile.m, k, tile.batch, rn, same_rows);"
            for i, name in enumerate(_left_maps(layout))
        ],
        "LOAD_B": [
            f"B::load(slot + LEFTS * A::bytes + {c} * B::bytes, {m}, full, {column}, k, tile.batch, rm, same_columns);"
            for c, m in enumerate(maps)
        ],
        "MORE": [
            line
            for i, (_, _, k) in enumerate(layout.more)
            for line in (
                f"for (int k = 0; k < {k}; k += 64, in.next()) {{",
                "  const u32 slot = in.acquire(), full = in.full(in.s);",
                f"  A::load(slot, &more_a{i}, full, tile.m, k, tile.batch, rn, same_rows);",
                f"  B::load(slot + A::bytes, &more_b{i}, full, tile.n, k, tile.batch, rm, same_columns);",
                "}",
            )
        ],
        **(_ridden(problem) if layout.left is None else _computed(problem, layout.left)),
        "FINISH": _finish(problem, s, layout),
    }
    return fill(part("wgmma.cu"), flags, slots)


def _ridden(problem: Served) -> dict[str, list[str]]:
    """Print the row statistics of a left operand that the matrix units read from shared memory: two threads for each row."""
    found = list(enumerate(_combine(e) for e in problem.statistics))
    return {
        "INIT": [" ".join(f"part[i][{j}] = {op}::neutral();" for j, op in found)],
        "TOTAL": [" ".join(f"row_total<{op}>(part[i][{j}], stat[i][{j}]);" for j, op in found)],
        "ACCUMULATE": _accumulate(problem),
    }


def _computed(problem: Served, left: Left) -> dict[str, list[str]]:
    """Print a left operand that is computed in registers, and its row statistics: four threads have each row."""
    lead, combine = problem.parts[0], [_combine(e) for e in problem.statistics]
    return {
        "INIT": [" ".join(f"stat[i][{j}][0] = stat[i][{j}][1] = {op}::neutral();" for j, op in enumerate(combine))],
        "TOTAL": [" ".join(f"quad_total<{op}>(stat[i][{j}]);" for j, op in enumerate(combine))],
        "SCALARS": print_scalars(lead, left),
        "FETCH": print_fetch(lead, left),
        "SPREAD": print_spread(left),
        "FRAGMENTS": print_fragments(left),
        "WORD": print_words(lead, left, combine),
        "RIDE": print_riding(lead, left, combine) if combine and rides(lead, left) else [],
    }


def _pack(problem: Served, layout: Layout) -> list[str]:
    """Print the copies of operands whose rows TMA cannot step over."""
    names = parameter_names(problem.program)
    out = []
    for old, new, outer, inner in layout.packed:
        stride = old.row_stride if old.k_major else old.k_stride
        out.append(f"pack_rows<THREADS, {outer}, {inner}, {stride}>({names[old.name]}, workspace + {new.offset});")
    return out


def _by_part(layout: Layout, values: Sequence[object]) -> str:
    """Print the choice of a value by the part that a tile belongs to."""
    chosen = "".join(f"tile.n < {end} ? {v} : " for v, end in zip(values[:-1], layout.starts[1:], strict=False))
    return f"{chosen}{values[-1]}"


def _select(layout: Layout) -> list[str]:
    """Print what tells the producer which part's right operands a tile takes, and from which column on."""
    maps = [[f"&map_b{c}_{p}" for p in range(len(layout.bs))] for c in range(len(layout.bs[0]))]
    return [
        f"const int start = {_by_part(layout, layout.starts[:-1])};",
        *(f"const TMap* const w{c} = {_by_part(layout, names)};" for c, names in enumerate(maps)),
    ]


def _finish(problem: Served, s: WgmmaTile, layout: Layout) -> list[str]:
    """Print what becomes of the accumulators, for the part that the tile belongs to."""
    name, unit = ("sum", " + 8 * unit") if s.slices > 1 else ("acc", "")
    accumulators = [f"{name}[{c}][i].v[v + e]" for c in range(len(layout.bs[0]))]
    statistics = [f"stat[i][{j}][half]" for j in range(len(problem.statistics))]
    several, out = len(layout.bs) > 1, []
    for i, p in enumerate(problem.parts):
        stored = stored_form(p, s) if layout.store == TMA else None
        slots = {
            "EPILOGUE": epilogue(p, accumulators, statistics),
            "STORE": direct_store(p) if layout.store == DIRECT else [],
            "COLUMN": [(f"tile.n - {layout.starts[i]}" if several else "tile.n") + unit],
            "WIDTH": ["8" if s.slices > 1 else "BN"],
            "MAP_Y": [_output_maps(layout)[i] if layout.store == TMA else ""],
            "VEC": [str(output_vector(p))],
            "COLUMNS": [str(p.shape[2])],
            "OUT": [output_names(p.program)[p.output_index]],
            "OFFSET": [output_offset(p, output_position(p))],
            "Y": [stored_type(p.output.dtype)],
            "HEAD": [str(stored.head if stored else 0)],
            "STORE_TILE": ["store_turned" if stored and stored.turned else "store_by_warp"],
        }
        lines = fill(part("wgmma_finish.cu"), {layout.store}, slots).splitlines()
        if several:
            head = f"if (tile.n < {layout.starts[i + 1]}) {{" if i + 1 < len(problem.parts) else "{"
            lines = [f"{'else ' if i else ''}{head}", *(f"  {line}" for line in lines), "}"]
        out += lines
    return out


def _combine(statistic: Expr) -> str:
    return statistic.op.capitalize()


def _accumulate(problem: Served) -> list[str]:
    """Print the statements that add one element `x` of the left operand to the statistics."""
    left = plain_read(problem.parts[0].contractions[0].a)
    roots = [nest(e)[1] for e in problem.statistics]

    def leaf(e: Expr) -> str | None:
        return "x" if e == left else literal(e) if e.op == "const" else None

    lines, values = print_statements(roots, leaf, register_type)
    ops = [_combine(e) for e in problem.statistics]
    return [*lines, *(f"part[i][{j}] = {op}::of(part[i][{j}], {v});" for j, (op, v) in enumerate(zip(ops, values, strict=True)))]


def _maps(layout: Layout) -> list[str]:
    rights = [f"map_b{c}{end}" for end, group in zip(_ends(layout), layout.bs, strict=True) for c in range(len(group))]
    more = [f"more_{x}{i}" for i in range(len(layout.more)) for x in "ab"]
    return [*_left_maps(layout), *rights, *more, *(_output_maps(layout) if layout.store == TMA else [])]


def _left_maps(layout: Layout) -> list[str]:
    return ["map_a"] if len(layout.lefts) == 1 else [f"map_a{i}" for i in range(len(layout.lefts))]


def _output_maps(layout: Layout) -> list[str]:
    return [f"map_y{end}" for end in _ends(layout)]


def _ends(layout: Layout) -> list[str]:
    """Return what the names of each part's maps end in."""
    return [""] if len(layout.bs) == 1 else [f"_{p}" for p in range(len(layout.bs))]


def _read_beside(problem: Served, layout: Layout) -> list[str]:
    """Return the buffers that the epilogues, and a computed left operand beside its matrices, read: they are passed as pointers."""
    read = frozenset().union(*(epilogue_reads(p) for p in problem.parts))
    read |= frozenset() if layout.left is None else left_reads(layout.left)
    read |= {old.name for old, _, _, _ in layout.packed}
    return [i.name for i in used_inputs(problem.program) if i.name in read]


def _parameters(problem: Served, s: WgmmaTile, layout: Layout) -> str:
    names, inputs = parameter_names(problem.program), {i.name: i for i in problem.program.inputs}
    items = [f"TMAP {m}" for m in _maps(layout)]
    items += [f"const {stored_type(inputs[p].dtype)}* __restrict__ {names[p]}" for p in _read_beside(problem, layout)]
    items += ["u8* __restrict__ workspace"] if s.slices > 1 or layout.packed else []
    outs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    return ", ".join(
        items if layout.store == TMA else [*items, *(f"{stored_type(o.dtype)}* __restrict__ {name}" for o, name in outs)]
    )


def _arguments(problem: Served, s: WgmmaTile, layout: Layout) -> tuple[Arg, ...]:
    batch, m, _, _ = problem.shape
    k = problem.parts[0].shape[3]
    args: list[Arg] = [_operand_map(o, m, k, batch, layout.a_rows, s.cn) for o in layout.lefts]
    for p, group in zip(problem.parts, layout.bs, strict=True):
        args += [_operand_map(b, p.shape[2], k, batch, s.bn, s.cm) for b in group]
    for a, b, length in layout.more:
        args += [_operand_map(a, m, length, batch, layout.a_rows, s.cn)]
        args += [_operand_map(b, problem.parts[0].shape[2], length, batch, s.bn, s.cm)]
    args += [_output_map(p, s) for p in problem.parts if layout.store == TMA]
    args += [BufferArg(name) for name in _read_beside(problem, layout)]
    args += [WorkspaceArg(zeroed=True)] if s.slices > 1 or layout.packed else []
    return (*args, *(BufferArg(o.name) for o in problem.program.outputs if layout.store != TMA))


def _output_map(problem: ContractProblem, s: WgmmaTile) -> TensorMapArg:
    found = stored_form(problem, s)
    assert found is not None
    n, m, _ = found.extents
    strides = (_stride(found.strides[0], n, 1), _stride(found.strides[1], n, m))
    box, swizzle = ((64, panel_of(s), 1), 128) if found.turned else ((panel_of(s), 16, 1), 2 * panel_of(s))
    return TensorMapArg(problem.output.name, problem.output.dtype, found.extents, strides, box, swizzle)


def _stride(elements: int, inner: int, between: int) -> int:
    """Return a stride in bytes; where the extent is 1 and the stride immaterial, one that TMA accepts."""
    return 2 * elements if elements else -(-2 * inner * between // 16) * 16


def _operand_map(o: Operand, rows: int, k: int, batch: int, tile_rows: int, peers: int) -> TensorMapArg:
    if o.k_major:
        strides = (_stride(o.row_stride, k, 1), _stride(o.batch_stride, k, rows))
        return TensorMapArg(o.name, o.dtype, (k, rows, batch), strides, (64, tile_rows // peers, 1), 128, o.offset)
    strides = (_stride(o.k_stride, rows, 1), _stride(o.batch_stride, rows, k))
    return TensorMapArg(o.name, o.dtype, (rows, k, batch), strides, (64, 64 // peers, 1), 128, o.offset)
