"""Dependent folds on the tensor cores of sm_90a: scores and weighted values by wgmma, any score, masks decided by tile."""

from __future__ import annotations

import math

from eqsat.codegen.cuda.bounds import processors
from eqsat.codegen.cuda.emit import (
    assemble,
    output_names,
    parameter_names,
    part,
    refuse_illegal,
    stored_type,
    used_inputs,
)
from eqsat.codegen.cuda.online_layout import (
    HUGE,
    TARGET,
    Layout,
    OnlineWgmmaTile,
    Shared,
    items,
    layout_of,
    pivot_matters,
    shared_of,
)
from eqsat.codegen.cuda.online_print import box, fold_instructions, row_values
from eqsat.codegen.cuda.online_score import OWN_ROWS, finish_lines, score_parts, statistics_parts
from eqsat.codegen.cuda.online_simt import computed_share, fold_bound_ns
from eqsat.codegen.cuda.online_store import store_rows, store_values, stored_sheets
from eqsat.codegen.cuda.operand import loads_of
from eqsat.codegen.cuda.template import fill
from eqsat.codegen.kernel import Arg, BufferArg, KernelSource, Rates, Schedule, WorkspaceArg
from eqsat.codegen.masks import ALWAYS, NEVER, vanishes
from eqsat.codegen.online import OnlineProblem
from eqsat.codegen.problem import Problem
from eqsat.codegen.targets import Target
from eqsat.ir import Expr

# Registers of producer and consumers where the producer is a warpgroup that hands its own over, by consumer warpgroups.
_REGISTERS = {1: (0, 0), 2: (24, 240), 3: (32, 160), 4: (24, 112)}
_LIVE = {1: 190, 2: 190, 3: 128, 4: 84}  # scores, weights and sums that a thread can hold (found by compiling)
_COLUMNS = {1: 256, 2: 256, 3: 192, 4: 128}  # of one product: registers at the kernel's entry bound the instruction
_CROWDED = {1: 0.8, 2: 1.0, 3: 1.28, 4: 1.3}  # by how much longer a warpgroup takes beside others, by their number
_TARGET_RATE = TARGET.rates.rate("bf16")
_LIMIT = 256.0  # see OnlineWgmmaTile
_LOG2_E = math.log2(math.e)


class OnlineWgmmaFamily:
    """Dependent folds of bf16 and f16 operands on sm_90a."""

    name = "online-wgmma"
    schedules: tuple[type[Schedule], ...] = (OnlineWgmmaTile,)

    def legal(self, problem: Problem, schedule: Schedule) -> str | None:
        """Return why the schedule cannot serve the problem, or None."""
        if not isinstance(problem, OnlineProblem) or not isinstance(schedule, OnlineWgmmaTile):
            return f"expected a dependent fold and an OnlineWgmmaTile; got {problem.family} and {type(schedule).__name__}"
        found = layout_of(problem)
        return found if isinstance(found, str) else _schedule_refusal(problem, found, schedule)

    def emit(self, problem: Problem, schedule: Schedule) -> KernelSource:
        """Return the source for sm_90a."""
        refuse_illegal(self.legal(problem, schedule), schedule)
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineWgmmaTile)
        layout = layout_of(problem)
        assert isinstance(layout, Layout)
        return assemble(
            problem.program,
            schedule,
            "online-wgmma",
            "\n".join(
                [
                    fold_instructions(layout.left.dtype.value, schedule.keys, layout.columns),
                    part("tile.cuh"),
                    _constants(problem, layout, schedule),
                    _kernel(problem, layout, schedule),
                ]
            ),
            args=_arguments(problem, layout, schedule),
            grid=(min(items(problem, schedule), TARGET.processors), 1, 1),
            block=_threads(schedule),
            shared_bytes=shared_of(problem, layout, schedule).end,
            workspace_bytes=8,
            requires="sm_90a",
        )

    def bound_ns(self, problem: Problem, rates: Rates) -> float:
        """Return the time that memory or the tensor cores need at the least; of the outputs alone where tiles may be masked out."""
        assert isinstance(problem, OnlineProblem)
        batch, m, *_ = problem.shape
        return fold_bound_ns(problem, rates, "bf16", batch * -(-m // 64))

    def predict_ns(self, problem: Problem, schedule: Schedule, rates: Rates) -> float:
        """Return a model's time: steps of a tile of keys in which products and weights overlap, on whole rounds of tiles of rows."""
        assert isinstance(problem, OnlineProblem)
        assert isinstance(schedule, OnlineWgmmaTile)
        s = schedule
        *_, k, d, n = problem.shape
        tiles, several = items(problem, s), processors(rates)
        share = computed_share(problem, 64, s.keys)
        # One warpgroup's products, under load at seven eighths of the clock; from its scores to its weights, which others lengthen.
        wide = -(-d // 16) * 16 + -(-n // 8) * 8
        products = 1.15 * 2 * 64 * s.keys * wide / (_TARGET_RATE / TARGET.processors)
        weights = (250.0 + 3.6 * s.keys) * _CROWDED[s.groups]
        inside, outside = s.groups * products, products + weights
        step = max(inside, outside) + 0.2 * min(inside, outside)
        step *= 1.0 + 0.025 * (s.stages < 3) + 0.03 * s.pingpong + 0.02 * (share < 1 and s.heads < 32)
        tile = -(-k // s.keys) * share * step + 800.0 * (1 + (share < 1))
        rounds = (
            (tiles / several + math.ceil(tiles / several)) / 2 if share == 1 and tiles > several else max(tiles / several, 1.0)
        )
        # fewer blocks than multiprocessors do not fill memory's latency
        streamed = share * problem.program.bytes / rates.read / min(1.0, tiles / several)
        return max(rounds * tile + 1500.0, streamed, self.bound_ns(problem, rates)) + rates.launch_ns

    def serves(self, target: Target) -> bool:
        """Return whether its kernels run on a target: wgmma is Hopper's own."""
        return target.arch == "sm_90a"


def _schedule_refusal(problem: OnlineProblem, layout: Layout, s: OnlineWgmmaTile) -> str | None:
    if s.groups not in _REGISTERS or s.keys % 16 or not 16 <= s.keys <= 256 or s.stages < 1 or s.heads < 1:
        return "a tile is 64 rows for each of 1 to 4 warpgroups by 16 to 256 keys in steps of 16"
    if s.pingpong not in (0, 1) or (s.pingpong and s.groups != 2):
        return "ping-pong takes two warpgroups"
    if max(s.keys, layout.columns) > _COLUMNS[s.groups]:
        return f"{s.groups} warpgroups leave registers for products of at most {_COLUMNS[s.groups]} columns"
    live = s.keys // 2 + s.keys // 4 + layout.columns // 2
    if live > _LIVE[s.groups]:
        return f"{live} scores, weights and sums a thread do not fit beside {s.groups} warpgroups"
    batch, m, k, _, _ = problem.shape
    if s.groups > 1 and 64 * (s.groups - 1) >= m:
        return f"{64 * s.groups} rows for {m}"
    if s.keys >= 2 * max(k, 16) or s.heads >= 2 * batch:
        return f"tiles of {s.keys} keys and {s.heads} batches for {k} and {batch}"
    if (taken := shared_of(problem, layout, s).end) > TARGET.shared_bytes:
        return f"{taken} bytes of tiles; a block has {TARGET.shared_bytes}"
    return None


def _threads(s: OnlineWgmmaTile) -> int:
    return s.groups * 128 + (128 if _REGISTERS[s.groups][0] else 32)


def _constants(problem: OnlineProblem, layout: Layout, s: OnlineWgmmaTile) -> str:
    batch, m, k, d, _ = problem.shape
    producer, consumer = _REGISTERS[s.groups]
    shared = shared_of(problem, layout, s)
    values = {
        "BATCH": batch, "M": m, "KEYS_ALL": k, "KEYS": s.keys, "GROUPS": s.groups, "STAGES": s.stages, "HEADS": s.heads,
        "DP": layout.panels[0], "VP": layout.panels[1], "NV": layout.columns, "STEPS": -(-d // 16), "THREADS": _threads(s),
        "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer, "KEYS_AT": shared.keys_at, "VALUES_AT": shared.values_at,
        "STATISTICS": len(problem.statistics), "ROW_STAGES": shared.rows, "BUFFERS": shared.staging, "STAGING_AT": shared.staging_at,
    }  # fmt: skip
    lines = [f"using T = {layout.left.dtype};", *(f"constexpr int {name} = {value};" for name, value in values.items())]
    scale = layout.factor * _LOG2_E
    return "\n".join([*lines, f"constexpr float SCALE = {scale!r}f, FACTOR = {layout.factor!r}f, LIMIT = {_LIMIT!r}f;"])


def _kernel(problem: OnlineProblem, layout: Layout, s: OnlineWgmmaTile) -> str:
    tile, row_lines, key_lines = box(problem, ("max(first_row, 0)", "min(first_row + BM, M) - 1"), ("first", "last"))
    nothing = vanishes(layout.score, tile)
    own, own_row_lines, _ = box(problem, OWN_ROWS, ("first", "last"))
    own_nothing = vanishes(layout.score, own)
    huge = any(e.op == "const" and HUGE <= abs(e.attrs[0]) < math.inf for e in layout.score.walk())
    shared = shared_of(problem, layout, s)
    flags = {
        "huge" if huge else "moderate",
        *(["pingpong"] if s.pingpong else []),
        *(["budget"] if _REGISTERS[s.groups][0] else []),
        *(["staged"] if shared.staging else []),
        *(["statistics"] if problem.statistics else []),
        "tops" if pivot_matters(problem) else "free",
    }
    slots = {
        "PARAMETERS": [_parameters(problem, layout, shared)],
        "ROW_SPANS": row_lines,
        "KEY_SPANS": key_lines,
        "SKIP": [nothing if nothing not in (ALWAYS, NEVER) else "false"],
        "OWN_ROW_SPANS": own_row_lines,
        "OWN_SKIP": [own_nothing if own_nothing not in (ALWAYS, NEVER) else "false"],
        "BATCH_Q": [layout.left.number],
        "BATCH_K": [layout.right.number],
        "BATCH_V": [layout.values.number],
        "PACK": [f"pack_{layout.left.dtype}"],
        "FINISH": finish_lines(problem, layout, s),
        "NAN_OF": ["most - most" if problem.floor == -math.inf else "0.f"],
        "SCALE_OF_ROW": ["scale[half]" if layout.row_factors else "SCALE"],
        "FACTOR_OF_ROW": [f"(scale[half] * {1 / _LOG2_E!r}f)" if layout.row_factors else "FACTOR"],
        **score_parts(problem, layout),
        **statistics_parts(problem),
        "STORE_ROW": store_rows(problem),
        **store_values(problem, layout, shared),
    }
    return fill(part("online_wgmma.cu"), flags, slots)


def _pointers(problem: OnlineProblem, layout: Layout) -> list[str]:
    """Return the inputs that are passed as pointers: what scores and outputs read beside the operands."""
    c = problem.contraction
    assert c is not None
    known: dict[Expr, str] = {a.node: "" for a in problem.accumulators} | {problem.pivot: ""}
    known |= row_values(problem, "", {})
    found = [
        *loads_of([layout.score, *layout.row_factors], {c.node: ""}),
        *loads_of([o.expr for o in problem.program.outputs], known),
    ]
    names = {(e.args[0] if e.op == "access" else e).attrs[0] for e in found}
    return [i.name for i in used_inputs(problem.program) if i.name in names]


def _parameters(problem: OnlineProblem, layout: Layout, shared: Shared) -> str:
    names, inputs = parameter_names(problem.program), {i.name: i for i in problem.program.inputs}
    sheets = stored_sheets(problem, layout, shared)
    items = [f"TMAP map_{x}" for x in ("q", "k", "v", *sheets)]
    items += [f"const {stored_type(inputs[p].dtype)}* __restrict__ {names[p]}" for p in _pointers(problem, layout)]
    outs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    items += [f"{stored_type(o.dtype)}* __restrict__ {name}" for o, name in outs if name not in sheets]
    return ", ".join([*items, "u32* __restrict__ work"])


def _arguments(problem: OnlineProblem, layout: Layout, s: OnlineWgmmaTile) -> tuple[Arg, ...]:
    sheets = stored_sheets(problem, layout, shared_of(problem, layout, s))
    panel = next(p for p in (64, 32, 16, 8) if layout.columns % p == 0)  # of `store_tile`
    maps: list[Arg] = [layout.left.map(64), layout.right.map(s.keys), layout.values.map(s.keys)]
    maps += [sheet.map(64, panel) for sheet in sheets.values()]
    outs = zip(problem.program.outputs, output_names(problem.program), strict=True)
    buffers = [*_pointers(problem, layout), *(o.name for o, name in outs if name not in sheets)]
    return (*maps, *(BufferArg(name) for name in buffers), WorkspaceArg(zeroed=True))
