"""Legality, bounds, predictions, launch geometry and text of the CUDA families, without any compiler."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from eqsat.codegen.cuda.emit import literal
from eqsat.codegen.cuda.families import FAMILIES, family_of
from eqsat.codegen.cuda.loads import find_loads
from eqsat.codegen.cuda.point import PointFamily, PointSweepTile, PointTile, TransposeTile, point_shape
from eqsat.codegen.cuda.reduce import ReduceFamily
from eqsat.codegen.cuda.reduce_schedule import (
    ColumnTile,
    FallbackReduceTile,
    GridReduceTile,
    HeldColumnTile,
    HeldGridTile,
    ParkedRowTile,
    RowTile,
)
from eqsat.codegen.cuda.reduce_shape import kept_values, reduce_shape
from eqsat.codegen.cuda.simt import SimtFamily, SimtTile
from eqsat.codegen.kernel import BufferArg, WorkspaceArg
from eqsat.codegen.problem import Problem, contract_problem, point_problem, reduce_problem
from eqsat.codegen.targets import TARGETS, parse_target
from eqsat.errors import IllegalScheduleError, UsageError
from eqsat.ir import Program, apply, const
from eqsat.rulefile import builtin_rules
from eqsat.search.schedules import points, space_of, space_term
from eqsat.session import Session
from eqsat.types import DType

F32, BF16 = DType.F32, DType.BF16
RATES = parse_target("sm_90").rates


def _problems() -> Any:
    spec = importlib.util.spec_from_file_location("codegen_problems", Path(__file__).with_name("problems.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make = _problems()


def named(name: str) -> Problem:
    """Return the anatomy of one of the listed problems."""
    find = {"point": point_problem, "function": point_problem, "reduce": reduce_problem, "contract": contract_problem}[
        name.split("-")[0]
    ]
    found = find(make.PROBLEMS[name])
    assert not isinstance(found, str), found
    return found


@pytest.mark.parametrize("name", list(make.PROBLEMS))
def test_the_unconditional_schedules_serve_every_problem(name):
    problem = named(name)
    for family in FAMILIES:
        fallback = {"point": PointTile(128, 1, 1, 0), "reduce": FallbackReduceTile(4), "simt": SimtTile(16, 16, 16, 1, 1)}.get(
            family.name
        )
        if fallback is not None and problem.family == {"simt": "contract"}.get(family.name, family.name):
            assert family.legal(problem, fallback) is None
            source = family.emit(problem, fallback)
            assert 0 < source.grid[0] < 2**31
            assert 32 <= source.block <= 1024
            assert family.bound_ns(problem, RATES) <= family.predict_ns(problem, fallback, RATES)


def test_a_schedule_finds_its_family():
    assert family_of(PointTile(128, 1, 1, 0)).name == "point"
    assert family_of(RowTile(1, 1, 1, 1, 0, 0)).name == "reduce"
    assert family_of(SimtTile(16, 16, 16, 1, 1)).name == "simt"


def test_an_illegal_schedule_is_refused_with_the_reason():
    with pytest.raises(IllegalScheduleError, match=r"expected a legal schedule; got PointTile .*131 is not a multiple of the 8"):
        PointFamily().emit(named("point-prime"), PointTile(128, 1, 16, 0))


def test_axes_that_all_accesses_step_through_evenly_become_one_loop():
    problem = named("point-swiglu")
    assert [loop.extent for loop in point_shape(problem).loops] == [24 * 64]
    assert [loop.extent for loop in point_shape(named("point-permute")).loops] == [60, 4]


def test_a_load_through_a_pad_is_guarded_and_its_axes_stay_apart():
    problem = named("point-pad")
    load = next(x for x in find_loads(problem.program).values() if x.guard_axes)
    assert load.guard_axes == {"hp", "wp"}
    text = PointFamily().emit(problem, PointTile(128, 1, 1, 0)).text
    assert "< 8 ? load_one(" in text


def test_a_transposed_load_takes_the_tile_and_a_plain_one_does_not():
    assert PointFamily().legal(named("point-transpose-16"), TransposeTile(64, 256, 16, 0)) is None
    assert "contiguous" in str(PointFamily().legal(named("point-swiglu"), TransposeTile(64, 256, 16, 0)))


def test_softmax_keeps_its_exponentials_and_nothing_else():
    shape = reduce_shape(named("reduce-softmax"))
    assert [[e.op for e in group] for group in kept_values(shape, 64)] == [[], ["exp"], []]


def test_a_row_that_does_not_fit_the_registers_is_refused_and_streams():
    problem = named("reduce-long-rows")
    assert "registers" in str(ReduceFamily().legal(problem, RowTile(4, 1, 16, 1, 0, 0)))
    assert ReduceFamily().legal(problem, RowTile(4, 1, 16, 1, 4, 0)) is None


def test_row_schedules_do_not_serve_columns_nor_column_schedules_rows():
    assert "contiguous" in str(ReduceFamily().legal(named("reduce-sum-columns"), RowTile(4, 1, 16, 1, 0, 0)))
    assert "contiguous" in str(ReduceFamily().legal(named("reduce-gemv"), ColumnTile(32, 4, 1, 16, 2)))


def test_only_one_pass_can_be_split_over_blocks():
    assert "one pass" in str(ReduceFamily().legal(named("reduce-softmax"), GridReduceTile(64, 2, 16, 1, 0)))


def test_a_sum_that_picks_one_term_is_no_pass_over_the_row():
    shape = reduce_shape(named("reduce-cross-entropy"))
    assert [[r.node.op for r in group] for group in shape.passes] == [["max"], ["sum"]]
    assert [p.axis for p in shape.picked] == ["n"]
    alone = reduce_shape(named("reduce-picked-alone"))
    assert len(alone.passes) == 1
    assert alone.picked == ()


def test_columns_are_held_only_where_a_second_pass_needs_them():
    assert "one pass" in str(ReduceFamily().legal(named("reduce-sum-columns"), HeldColumnTile(16, 16, 1, 16, 0)))
    assert ReduceFamily().legal(named("reduce-softmax-transposed"), HeldColumnTile(4, 16, 1, 16, 0)) is None


def test_teams_of_blocks_that_meet_are_launched_together():
    long = reduce_problem(make.program(make.softmax(make.array("x", F32, m=4, n=1 << 20), "n"), "mn"))
    assert not isinstance(long, str)
    source = ReduceFamily().emit(long, HeldGridTile(512, 66, 1, 16, 0, 0))
    assert source.cooperative
    assert source.grid == (66, 1, 1)
    assert "meet((u32*)workspace + team, 66, part == 0);" in source.text
    short = reduce_problem(make.program(make.softmax(make.array("x", F32, m=4, n=1 << 18), "n"), "mn"))
    assert not isinstance(short, str)
    cluster = ReduceFamily().emit(short, HeldGridTile(1024, 16, 2, 16, 1, 0))
    assert not cluster.cooperative
    assert cluster.cluster == 16
    assert "next one is on its way" in str(ReduceFamily().legal(short, HeldGridTile(1024, 16, 2, 16, 0, 0)))


def test_a_row_is_parked_only_as_far_as_registers_ask_for():
    long = reduce_problem(make.program(make.softmax(make.array("x", F32, m=4, n=393216), "n"), "mn"))
    assert not isinstance(long, str)
    legal = ReduceFamily().legal
    assert legal(long, ParkedRowTile(16, 16, 16, 8, 3, 0)) is None
    assert "to hold the rest of the row" in str(legal(long, ParkedRowTile(16, 16, 16, 2, 3, 0)))
    assert "registers could hold more" in str(legal(long, ParkedRowTile(16, 16, 16, 12, 1, 0)))
    assert "shared memory" in str(legal(long, ParkedRowTile(8, 16, 16, 24, 3, 0)))


def test_rows_sweep_only_past_what_they_share():
    x, g = make.array("x", F32, m=64, n=256), make.array("g", F32, n=256)
    shared = point_problem(make.program(apply("mul", x, g), "mn"))
    assert not isinstance(shared, str)
    assert PointFamily().legal(shared, PointSweepTile(64, 4, 16, 0)) is None
    assert "share nothing" in str(PointFamily().legal(named("point-swiglu"), PointSweepTile(64, 4, 16, 0)))


def test_argmax_over_two_axes_is_refused():
    x = make.array("x", F32, m=4, n=5)
    program = make.program(make.reduce("argmax", "m", make.reduce("argmax", "n", x)), ())
    found = reduce_problem(program)
    assert isinstance(found, str) or "not one reduction" in str(ReduceFamily().legal(found, FallbackReduceTile(1)))


def test_a_split_reduction_asks_for_a_zeroed_workspace():
    source = ReduceFamily().emit(named("reduce-sum-columns"), ColumnTile(32, 4, 3, 16, 2))
    assert source.args == (BufferArg("x"), BufferArg("out"), WorkspaceArg(zeroed=True))
    assert source.workspace_bytes == 16 + 4 * 64 * 3


def test_a_cluster_says_that_it_needs_hopper():
    problem = named("reduce-long-rows")
    assert ReduceFamily().emit(problem, RowTile(32, 1, 16, 8, 0, 0)).requires == "sm_90"


def test_the_head_of_a_source_lists_buffers_schedule_and_program():
    head = PointFamily().emit(named("point-swiglu"), PointTile(64, 1, 8, 0)).text.split("\n// prelude")[0]
    for part in (
        "PointTile threads=64 count=1 width=8 hint=0",
        "in0 = x: bf16[24, 64]",
        "out = out: bf16[24, 64] over [m n]",
        "(sigmoid x[m n])",
    ):
        assert part in head


def test_the_bound_is_the_time_to_move_every_byte_once():
    a, b = (make.array(x, BF16, m=16384, n=11008) for x in "ab")
    problem = point_problem(make.program(apply("mul", a, b), "mn", BF16))
    assert not isinstance(problem, str)
    assert PointFamily().bound_ns(problem, RATES) == pytest.approx(3 * 16384 * 11008 * 2 / 4800)


def test_the_bound_of_a_matrix_product_is_its_arithmetic():
    a, b = make.array("a", F32, m=4096, k=4096), make.array("b", F32, k=4096, n=4096)
    problem = contract_problem(make.program(make.matmul(a, b), "mn"))
    assert not isinstance(problem, str)
    assert SimtFamily().bound_ns(problem, RATES) == pytest.approx(2 * 4096**3 / 67e3)


def test_the_model_prefers_wide_vectors_and_held_rows():
    problem = reduce_problem(make.program(make.softmax(make.array("x", BF16, m=8192, n=8192), "n"), "mn", BF16))
    assert not isinstance(problem, str)
    expected = [
        ReduceFamily().predict_ns(problem, s, RATES)
        for s in (RowTile(8, 1, 16, 1, 0, 0), RowTile(32, 1, 16, 1, 0, 0), FallbackReduceTile(1))
    ]
    assert expected == sorted(expected)
    assert expected[0] < expected[1] < expected[2]


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (0.1, F32, "(0.1f)"), (1.0, F32, "(1.0f)"), (1e-30, BF16, "(1e-30f)"), (0.1, DType.F64, "(0.1)"), (float("-inf"), F32, "(-EQ_INF)"),
        (-3, DType.I64, "-3ll"), (-3, DType.I32, "(-3)"), (True, DType.BOOL, "true"), (16777216.0, F32, "(1.6777216e+07f)"),
    ],
)  # fmt: skip
def test_constants_print_so_that_they_read_back(value, dtype, text):
    assert literal(const(value, dtype)) == text


def test_targets_are_found_by_name():
    assert parse_target("sm_90").arch == "sm_90a"
    assert {t.capability for t in TARGETS.values()} == {80, 86, 89, 90, 100, 120, 0}


@pytest.mark.parametrize("name", ["sm_70", "native", "H200"])
def test_an_unknown_target_is_refused_with_the_known_ones(name):
    with pytest.raises(UsageError, match=r"expected a (concrete )?target out of sm_80, .*cpu"):
        parse_target(name)


KEYS = {"point": 1, "reduce": 2, "window": 2, "scan": 2, "simt": 4, "online-simt": 5, "online-wgmma": 5}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in KEYS], ids=lambda f: f.name)
def test_the_rule_files_declare_each_schedule_with_its_fields_behind_the_key(family):
    declared = {d.items[1].text: d.items[2].items for d in builtin_rules().declarations if d.head == "constructor"}
    for schedule in family.schedules:
        sorts = [n.text for n in declared[schedule.__name__]]
        assert sorts == ["String"] + ["i64"] * (KEYS[family.name] + len(dataclasses.fields(schedule)))


def test_the_spaces_of_the_board_have_legal_points_and_every_space_has_one():
    rules = builtin_rules()
    declarations = "\n".join(map(str, (*rules.declarations, *rules.facts)))
    wide = make.array("x", BF16, m=8192, n=8192)
    programs = {
        "softmax": make.program(make.softmax(wide, "n"), "mn", BF16),
        "column-sum": make.program(make.reduce("sum", "m", make.array("x", F32, m=16384, n=8192)), "n"),
        "pointwise": make.program(make.silu(wide), "mn", BF16),
        **{
            n: make.PROBLEMS[n]
            for n in ("point-empty", "reduce-empty-rows", "reduce-length-one", "point-prime", "contract-k-one")
        },
    }
    problems = {n: problem_of(p) for n, p in programs.items()}
    with Session() as session:
        found = session.schedule_points(
            [space_term("cuda", space_of(p)) for p in problems.values()], rules.rules, declarations=declarations
        )
    for (name, problem), listed in zip(problems.items(), found, strict=True):
        schedules = points(listed)
        legal = [s for s in schedules if family_of(s).legal(problem, s) is None]
        assert 1 <= len(legal) <= 100, name
        kinds = {type(s) for s in legal}
        assert kinds >= {"softmax": {RowTile}, "column-sum": {ColumnTile}, "pointwise": {PointTile}}.get(name, set())


def problem_of(program: Program) -> Problem:
    """Return the program's anatomy: a contraction if it is one, else a reduction, else pointwise."""
    for find in (contract_problem, reduce_problem, point_problem):
        found = find(program)
        if not isinstance(found, str):
            return found
    raise AssertionError("no family serves the program")
