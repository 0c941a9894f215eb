"""Bounded saturation in a worker: what it finds, where it stops, and how failures are mended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from eqsat.egraph import check_syntax, split_forms
from eqsat.errors import EnvironmentMissingError, SaturationError, TextError, UsageError
from eqsat.ir import Input, Output, Program, apply, const, read, reduce
from eqsat.saturation import PHASES, Limits, Phase, RuleText
from eqsat.session import Session
from eqsat.types import DType


def rule(name: str, text: str, phase: str = "algebra") -> RuleText:
    return RuleText(name, phase, f'{text[:-1]} :ruleset {{ruleset}} :name "{name}")')


MUL_COMM = rule("mul-comm", "(rewrite (Mul a b) (Mul b a))")
MUL_ASSOC = rule(
    "mul-assoc",
    "(rewrite (Mul a (Mul b c)) (Mul (Mul a b) c) :when ((= x (axes a)) (= y (axes b)) (!= (set-empty) (set-intersect x y))))",
)
SUM_FACTOR = rule("sum-factor", "(birewrite (Sum k (Mul a b)) (Mul a (Sum k b)) :when ((= x (axes a)) (set-not-contains x k)))")
SUM_SWAP = rule("sum-swap", "(rewrite (Sum j (Sum k a)) (Sum k (Sum j a)))")
ANCHOR = rule("anchor-sum", '(rule ((= e (Sum k a))) ((union (Anchor e) (ReduceAnchor "sum" (set-of k) a))))', "lowering")
PRODUCTS = [MUL_COMM, MUL_ASSOC, SUM_FACTOR, SUM_SWAP, ANCHOR]
SUMS = [
    rule("add-comm", "(rewrite (Add a b) (Add b a))"),
    rule("add-assoc", "(rewrite (Add a (Add b c)) (Add (Add a b) c))"),
    rule("add-assoc-back", "(rewrite (Add (Add a b) c) (Add a (Add b c)))"),
]


@pytest.fixture(scope="module")
def session():
    with Session() as open_session:
        yield open_session


def chain_times_vector() -> Program:
    """(A·B)·v: two products of matrices, or two of a matrix with a vector."""
    a, b = read("a", ("i", "j"), (64, 64), DType.F32), read("b", ("j", "k"), (64, 64), DType.F32)
    v = read("v", ("k",), (64,), DType.F32)
    product = reduce("sum", "j", apply("mul", a, b))
    inputs = (Input("a", (64, 64), DType.F32), Input("b", (64, 64), DType.F32), Input("v", (64,), DType.F32))
    return Program(inputs, (Output("y", reduce("sum", "k", apply("mul", product, v)), ("i",), DType.F32),))


def rms_norm_linear() -> Program:
    x = read("x", ("i", "k"), (16, 64), DType.F32)
    w = read("w", ("k", "j"), (64, 32), DType.F32)
    mean = apply("div", reduce("sum", "k", apply("mul", x, x)), const(64, DType.F32))
    norm = apply("mul", x, apply("rsqrt", apply("add", mean, const(1e-6, DType.F32))))
    inputs = (Input("x", (16, 64), DType.F32), Input("w", (64, 32), DType.F32, constant=True))
    return Program(inputs, (Output("y", reduce("sum", "k", apply("mul", norm, w)), ("i", "j"), DType.F32),))


def long_sum(count: int) -> Program:
    out = read("x0", ("i",), (8,), DType.F32)
    for n in range(1, count):
        out = apply("add", out, read(f"x{n}", ("i",), (8,), DType.F32))
    return Program(tuple(Input(f"x{n}", (8,), DType.F32) for n in range(count)), (Output("y", out, ("i",), DType.F32),))


def test_the_chain_finds_the_product_with_the_vector_first(session):
    report, frozen = session.saturate(chain_times_vector(), PRODUCTS)
    assert report.stop == "saturated"
    root = frozen.roots[0]
    vector_first = [
        n for n in frozen.nodes[root]
        if n.op == "Sum" and n.literals == ("j",)
        and any(
            m.op == "Mul" and any(frozen.axes[c] == ("j",) for c in m.children) for m in frozen.nodes[n.children[0]]
        )
    ]  # fmt: skip
    assert vector_first


def test_the_row_scale_leaves_the_matrix_product(session):
    _, frozen = session.saturate(rms_norm_linear(), PRODUCTS)
    scaled = [n for n in frozen.nodes[frozen.roots[0]] if n.op == "Mul"]
    assert any(frozen.axes[n.children[0]] == ("i",) for n in scaled)


def test_every_anchored_value_leads_to_a_region(session):
    _, frozen = session.saturate(rms_norm_linear(), PRODUCTS)
    assert frozen.roots[0] in frozen.anchor_of
    assert {n.op for r in frozen.anchor_of.values() for n in frozen.nodes[r]} == {"ReduceAnchor"}


def test_the_report_counts_matches_of_each_rule_and_prints_as_a_table(session):
    report, frozen = session.saturate(chain_times_vector(), PRODUCTS)
    counts = {r.name: r.matches for r in report.rules}
    assert counts["mul-comm"] > 0
    assert counts["anchor-sum"] == sum(map(len, (frozen.nodes[r] for r in set(frozen.anchor_of.values()))))
    assert "sum-factor" in str(report)
    assert str(report).startswith("saturated: ")


def test_two_workers_give_the_same_table():
    tables = []
    for _ in range(2):
        with Session() as own:
            tables.append(own.saturate(rms_norm_linear(), PRODUCTS)[1])
    assert tables[0] == tables[1]


def test_a_phase_with_rounds_stops_after_them(session):
    distribute = rule("mul-distribute", "(rewrite (Mul a (Add b c)) (Add (Mul a b) (Mul a c)))", "distribute")
    report, _ = session.saturate(rms_norm_linear(), [distribute])
    assert {p.name: p.stop for p in report.phases}["distribute"] == "saturated"
    once = (Phase("once", ("algebra",), rounds=1),)
    assert session.saturate(long_sum(6), SUMS, phases=once)[0].phases[0].stop == "rounds"


def test_the_node_limit_stops_growth_and_is_reported(session):
    report, frozen = session.saturate(long_sum(12), [*SUMS, ANCHOR], limits=Limits(nodes=2000))
    stops = {p.name: p.stop for p in report.phases}
    assert report.stop == stops["algebra"] == "nodes"
    assert stops["algebra after distribution"] == "skipped"
    assert stops["lowering"] == "saturated"
    assert frozen.node_count >= 2000


def test_a_step_that_takes_too_long_is_killed_and_the_run_repeated_up_to_it(session):
    limits = Limits(nodes=1 << 40, matches=1 << 40, soft_s=1.5, hard_s=1.5)
    report, frozen = session.saturate(long_sum(24), SUMS, limits=limits)
    assert report.stop == "time"
    assert "hard limit of 1.5 s" in report.replays[0]
    assert frozen.node_count > 100


def test_a_worker_that_runs_out_of_memory_is_replaced(session):
    limits = Limits(nodes=1 << 40, matches=1 << 40, soft_s=60, hard_s=60, memory_bytes=20 << 20)
    report, frozen = session.saturate(long_sum(24), SUMS, limits=limits)
    assert report.stop == "memory"
    assert frozen.node_count > 100


def test_a_lowering_rule_that_does_not_end_is_an_error_that_says_so(session):
    endless = rule("endless", "(rule ((= e (Exp a))) ((Exp e)))", "lowering")
    x = read("x", ("i",), (4,), DType.F32)
    program = Program((Input("x", (4,), DType.F32),), (Output("y", apply("exp", x), ("i",), DType.F32),))
    with pytest.raises(SaturationError, match="lowering or analysis rule that does not end"):
        session.saturate(program, [endless], limits=Limits(soft_s=0.1, hard_s=0.1))


def test_ctrl_c_while_waiting_ends_the_worker_and_leaves_the_session_usable(session):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    start_s = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            session.saturate(long_sum(24), SUMS, limits=Limits(nodes=1 << 40, matches=1 << 40, soft_s=60, hard_s=60))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start_s < 2
    assert session.saturate(long_sum(3), SUMS)[0].stop == "saturated"


def test_a_worker_that_died_while_idle_is_replaced_without_a_replay():
    with Session() as own:
        own._process.kill()
        own._process.wait()
        report, _ = own.saturate(long_sum(3), SUMS)
    assert (report.stop, report.replays) == ("saturated", ())


def test_a_worker_without_the_engine_is_an_error_of_the_environment(monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    with Session() as own, pytest.raises(EnvironmentMissingError, match="egglog"):
        own.saturate(long_sum(3), SUMS)


def test_the_engine_is_taken_as_it_is_where_egglog_is_already_imported():
    code = "import egglog.bindings as b; from eqsat.egraph import engine; assert engine() is b"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_a_rule_that_contradicts_a_dtype_is_an_error(session):
    wrong = rule("wrong", '(rewrite (Mul a b) (Cast (Mul a b) "f64"))')
    with pytest.raises(SaturationError, match="dtype"):
        session.saturate(chain_times_vector(), [wrong])
    assert session.saturate(chain_times_vector(), PRODUCTS)[0].stop == "saturated"


def test_a_rule_over_an_unknown_constructor_is_an_error_with_its_name(session):
    with pytest.raises(TextError, match="Frob"):
        session.saturate(chain_times_vector(), [rule("frob", "(rewrite (Frob a) a)")])


def test_a_panic_of_the_engine_is_an_ordinary_error(session):
    with pytest.raises(SaturationError, match="engine stopped"):
        session.saturate(chain_times_vector(), [], declarations='(rule () () :name "a") (rule () () :name "a")')
    assert session.saturate(long_sum(3), SUMS)[0].stop == "saturated"


MENU = """
(sort Space)
(constructor PointSpace (String i64) Space) (constructor PointTile (String i64 i64 i64) Space)
(relation point-menu (i64 i64)) (point-menu 128 1) (point-menu 256 4) (point-menu 256 3)
"""
TILE = rule(
    "point-tile",
    "(rule ((= s (PointSpace t n)) (point-menu a b) (= 0 (% n b))) ((union s (PointTile t n a b))))",
    "schedule",
)


def test_a_schedule_space_lists_its_legal_points(session):
    found = session.schedule_points(['(PointSpace "cuda" 8)', '(PointSpace "cuda" 9)'], [TILE, *SUMS], declarations=MENU)
    assert found == [
        [("PointTile", ("cuda", 8, 128, 1)), ("PointTile", ("cuda", 8, 256, 4))],
        [("PointTile", ("cuda", 9, 128, 1)), ("PointTile", ("cuda", 9, 256, 3))],
    ]


def test_points_without_a_key_merge_spaces_and_are_refused(session):
    unkeyed = rule("bare", '(rule ((= s (PointSpace t n))) ((union s (PointTile "" 0 1 1))))', "schedule")
    with pytest.raises(SaturationError, match="merges them"):
        session.schedule_points(['(PointSpace "cuda" 8)', '(PointSpace "cuda" 9)'], [unkeyed], declarations=MENU)


def test_a_space_without_a_point_is_an_empty_list(session):
    assert session.schedule_points(['(PointSpace "cuda" 8)'], [], declarations=MENU) == [[]]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("(sort A)\n (sort", "f.egg:2:2: "),
        ("(sort A))", "f.egg:1:9: "),
        ('(A "b', "f.egg:1:4: "),
        ("\n(rewrite (A))", "f.egg:2:"),
    ],
)
def test_syntax_errors_name_the_place(text, place):
    with pytest.raises(TextError) as caught:
        check_syntax(text, "f.egg")
    assert str(caught.value).startswith(place)


def test_forms_keep_their_line_and_skip_comments():
    assert list(split_forms('; (a\n(b "(")\n\n(c\n d)')) == [(2, '(b "(")'), (4, "(c\n d)")]


def test_many_rules_load_without_copying_the_text_into_each():
    rules = "\n".join(f'(rewrite (Foo {i}) (Foo {i + 1}) :name "r{i}")' for i in range(800))
    check_syntax(f"(datatype M (Foo i64))\n{rules}", "many.egg")


def test_limits_are_checked():
    with pytest.raises(UsageError, match="soft_s ≤ hard_s"):
        Limits(soft_s=2, hard_s=1)


def test_the_default_phases_end_with_the_analysis():
    assert PHASES[-1].rules == ("analysis",)
