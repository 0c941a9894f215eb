"""The CPU families on a catalogue of programs and on drawn ones: results, legality, text, bounds, schedule spaces."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eqsat.access import AccessMap, Index
from eqsat.codegen.cpu.columns import CpuColumnTile
from eqsat.codegen.cpu.compiler import compilers
from eqsat.codegen.cpu.contract import CpuContractTile
from eqsat.codegen.cpu.families import FAMILIES, family_of
from eqsat.codegen.cpu.point import CpuPointTile
from eqsat.codegen.cpu.reduce import CpuReduceTile
from eqsat.codegen.cpu.skinny import CpuSkinnyTile
from eqsat.codegen.kernel import KernelSource, Rates, Schedule
from eqsat.codegen.problem import ContractProblem, PointProblem, Problem, contract_problem, point_problem, reduce_problem
from eqsat.errors import IllegalScheduleError
from eqsat.ir import Expr, Program, access, apply, const, reduce
from eqsat.rulefile import builtin_rules
from eqsat.search.verify import check_outputs, prepare
from eqsat.session import Session
from eqsat.types import DType
from tests.codegen.cpu_run import call, compile_many, emit_all, problem_of
from tests.codegen.problems import PROBLEMS, array, gelu, matmul, program, softmax
from tests.strategies import programs

FALLBACKS: tuple[Schedule, ...] = (
    CpuPointTile(16, 1, 0, 1, 0), CpuReduceTile(16, 1, 0, 1, 0), CpuContractTile(16, 4, 2, 256, 64, 512, 1, 0),
)  # fmt: skip
MENU: tuple[Schedule, ...] = (
    *(CpuPointTile(b, u, t, p, 0) for b, u, t, p in itertools.product((16, 32, 64), (1, 2, 4), (0, 16), (1, 0))),
    *(CpuReduceTile(b, u, k, p, 0) for b, u, k, p in itertools.product((16, 32, 64), (1, 2, 4), (0, 1, 2), (1, 0))),
    *(CpuColumnTile(b, u, w, p, 0) for b, u, w, p in itertools.product((16, 32, 64), (1, 3, 4), (16, 64, 256), (1, 0))),
    CpuContractTile(64, 6, 4, 384, 192, 1536, 1, 0), CpuContractTile(64, 8, 3, 16, 16, 96, 1, 0),
    CpuContractTile(32, 6, 2, 5, 6, 32, 0, 0), CpuContractTile(16, 3, 1, 7, 9, 8, 1, 0), CpuContractTile(64, 12, 2, 32, 24, 64, 0, 0),
    *(CpuSkinnyTile(b, d, j, w, p, 0) for b, d, j, w, p in itertools.product((16, 32, 64), (3, 16), (1, 2, 4), (16, 64, 128), (1, 0))),
)  # fmt: skip


def serving(problem: Problem) -> list[Schedule]:
    """Return the schedules of the menu that are legal for a problem, the fallback first."""
    return [s for s in (*FALLBACKS, *MENU) if family_of(s).legal(problem, s) is None]


def verify(cases: Sequence[tuple[Program, Schedule]], folder: Path, *, suites: int = 2) -> None:
    """Emit, compile, run and check each pair on a few suites of inputs."""
    sources = emit_all(cases)
    entries = compile_many(sources, folder)
    for (p, s), source, entry in zip(cases, sources, entries, strict=True):
        prepared = prepare(p, seed=1, quick=True)[:suites]
        for suite in prepared:
            check = check_outputs([call(entry, source, p, suite.inputs)], suite.expected, suite.suite)
            assert check.passed, f"{s}: {check.name}: {check.note}\n{source.text[: source.text.index('*/')]}"


def chosen(names: Sequence[str], seed: int) -> list[tuple[Program, Schedule]]:
    """Return each program of the catalogue with one legal schedule, drawn by the seed."""
    rng = random.Random(seed)
    return [(PROBLEMS[n], rng.choice(serving(problem_of(PROBLEMS[n])))) for n in names]


def test_the_catalogue_is_right_with_some_schedule_each(tmp_path: Path) -> None:
    names = [n for n in PROBLEMS if not n.startswith("function")]
    verify(chosen(names, seed=1), tmp_path)


def test_a_program_is_right_with_every_kind_of_schedule(tmp_path: Path) -> None:
    names = ["point-transpose", "reduce-softmax-odd", "reduce-sum-columns", "contract-rms", "contract-gated", "contract-skinny"]
    cases = []
    for name in names:
        legal = serving(problem_of(PROBLEMS[name]))
        cases += [(PROBLEMS[name], s) for s in (legal[0], *random.Random(name).sample(legal[1:], k=min(3, len(legal) - 1)))]
    verify(cases, tmp_path, suites=1)


@pytest.mark.skipif(not any(c.name == "zig" for c in compilers()), reason="the ziglang wheel is not installed")
def test_zig_compiles_every_family(tmp_path: Path) -> None:
    zig = next(c for c in compilers() if c.name == "zig")
    cases = [
        (PROBLEMS["point-swiglu"], CpuPointTile(64, 1, 0, 1, 2)),
        (PROBLEMS["reduce-softmax-odd"], CpuReduceTile(32, 1, 1, 1, 2)),
        (PROBLEMS["reduce-argmin-column"], CpuColumnTile(64, 4, 64, 1, 2)),
        (PROBLEMS["contract-rms"], CpuContractTile(64, 6, 4, 384, 192, 1536, 1, 2)),
        (PROBLEMS["contract-skinny"], CpuSkinnyTile(64, 8, 2, 64, 1, 2)),
        (PROBLEMS["function-sqrt-f32"], CpuPointTile(64, 1, 0, 1, 2)),
        (PROBLEMS["function-pow-f64"], CpuPointTile(64, 1, 0, 1, 2)),
    ]
    sources = emit_all(cases)
    entries = compile_many(sources, tmp_path, zig, level="-O2")
    for (p, s), source, entry in zip(cases, sources, entries, strict=True):
        assert "compiler=zig" in source.options
        suite = prepare(p, seed=2, quick=True)[0]
        check = check_outputs([call(entry, source, p, suite.inputs)], suite.expected, suite.suite)
        assert check.passed, f"{s}: {check.note}"


def drawn(rounds: int) -> list[Program]:
    """Draw programs, 20 a round; the first round of Hypothesis is its simplest and holds one program."""
    out: dict[str, Program] = {}

    @settings(
        max_examples=rounds,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(programs(depth=4, outputs=1), min_size=20, max_size=20))
    def collect(found: list[Program]) -> None:
        out.update((p.digest, p) for p in found)

    collect()
    return list(out.values())


def test_drawn_programs_are_right(tmp_path: Path) -> None:
    rng = random.Random(5)
    cases: list[tuple[Program, Schedule]] = []
    kinds: set[str] = set()
    for p in drawn(rounds=5):
        found = [x for x in (contract_problem(p), point_problem(p), reduce_problem(p)) if not isinstance(x, str)]
        if found:
            kinds.add(found[0].family)
            cases.append((p, rng.choice(serving(found[0]))))
    assert len(cases) > 60
    assert kinds >= {"point", "reduce"}
    verify(cases, tmp_path, suites=3)


def contraction(rng: random.Random) -> Program:
    """Draw a contraction: one or two axes in each group in any layout, two batch axes now and then, a prologue, an epilogue."""
    extents = {a: rng.choice([1, 2, 3, 5, 7, 16, 17, 33]) for a in "bcmpnqkj"}
    batch, m, n, k = (
        rng.sample(group, rng.choice(sizes))
        for group, sizes in (("bc", [0, 0, 2]), ("mp", [1, 2]), ("nq", [1, 2]), ("kj", [1, 2]))
    )
    kinds = [DType.F32, DType.F32, DType.BF16, DType.F16, DType.F64, DType.I32]

    def read(name: str, axes: Sequence[str], dtype: DType) -> Expr:
        order = rng.sample(list(axes), len(axes))
        return array(name, dtype, **{a: extents[a] for a in order})

    a, b = read("a", batch + m + k, rng.choice(kinds)), read("b", batch + n + k, rng.choice(kinds))
    scaled = apply("mul", a, read("g", k, DType.F32)) if a.dtype.is_float and rng.random() < 0.4 else a
    total = apply("mul", scaled, b)
    for axis in k:
        total = reduce("sum", axis, total)
    if total.dtype.is_float and rng.random() < 0.5:
        total = apply("mul", total, apply("sigmoid", read("r", [*n, *batch], DType.F32)))
    return program(total, rng.sample(sorted(total.axes), len(total.axes)))


def test_drawn_contractions_are_right(tmp_path: Path) -> None:
    rng = random.Random(8)
    cases: list[tuple[Program, Schedule]] = []
    for _ in range(30):
        p = contraction(rng)
        found = contract_problem(p)
        if not isinstance(found, str):
            cases.append((p, rng.choice(serving(found))))
    assert len(cases) > 15
    verify(cases, tmp_path)


def test_casts_to_integers_give_0_for_what_is_not_finite(tmp_path: Path) -> None:
    values = np.array([1.75, -1.75, np.nan, np.inf, -np.inf, 1e6, -0.0], np.float32)
    p = program(apply("cast", array("x", DType.F32, n=7), dtype=DType.I32), "n")
    (source,) = emit_all([(p, FALLBACKS[0])])
    (entry,) = compile_many([source], tmp_path)
    assert call(entry, source, p, {"x": values}).tolist() == [1, -1, 0, 0, 0, 1000000, 0]


def layouts() -> list[Program]:
    """Contractions and reductions over several axes in orders that neither merge nor line up."""
    a, b = array("a", DType.F32, x=5, y=7, k=11, j=3), array("b", DType.F32, j=3, h=4, k=11, d=5)
    two = reduce("sum", "k", reduce("sum", "j", apply("mul", a, b)))
    scores = array("p", DType.F32, b=2, h=3, s=9, t=7)
    values = array("v", DType.F16, b=2, t=7, h=3, d=5)
    x = array("x", DType.BF16, a=3, b=4, c=5, d=6)
    total = reduce("sum", "a", reduce("sum", "c", apply("cast", x, dtype=DType.F32)))
    shifted = AccessMap((("k", Index.axis("u") * 2 + Index.const(-3)),), (("u", 9),))
    window = access(array("w", DType.F32, k=12, n=20), shifted)
    return [
        program(two, "hyxd"),
        program(apply("tanh", two), "xydh"),
        program(matmul(scores, values, "t"), "bshd"),
        program(apply("sub", apply("cast", x, dtype=DType.F32), total), "abcd"),
        program(total, "db"),
        program(matmul(array("q", DType.F32, m=20, u=9), window, "u"), "mn"),
        program(softmax(array("z", DType.F32, a=6, i=10, b=3), "i"), "bia"),
        program(reduce("argmax", "i", array("z", DType.F16, a=6, i=10, b=3)), "ba"),
    ]


def test_axes_in_any_order_are_right(tmp_path: Path) -> None:
    rng = random.Random(3)
    cases = []
    for p in layouts():
        legal = serving(problem_of(p))
        cases += [(p, s) for s in rng.sample(legal, k=min(3, len(legal)))]
    verify(cases, tmp_path)


def test_contractions_are_right_at_block_edges(tmp_path: Path) -> None:
    tile = CpuContractTile(32, 6, 2, 16, 12, 32, 1, 0)
    cases: list[tuple[Program, Schedule]] = []
    for m, n, k in ((1, 1, 1), (6, 16, 16), (7, 17, 17), (12, 32, 33), (13, 33, 15), (25, 64, 48)):
        a, b = array("a", DType.F32, m=m, k=k), array("b", DType.F32, n=n, k=k)
        cases.append((program(gelu(matmul(a, b)), "mn"), tile))
    verify([c for c in cases if not isinstance(contract_problem(c[0]), str)], tmp_path)


def test_every_problem_has_a_legal_fallback() -> None:
    for name, p in PROBLEMS.items():
        for found in (contract_problem(p), point_problem(p), reduce_problem(p)):
            if not isinstance(found, str):
                assert any(family_of(s).legal(found, s) is None for s in FALLBACKS), name


def test_an_illegal_schedule_says_why() -> None:
    problem = problem_of(PROBLEMS["contract-f32"])
    schedule = CpuContractTile(64, 16, 4, 256, 64, 512, 1, 0)
    with pytest.raises(IllegalScheduleError, match="more than 32 registers"):
        family_of(schedule).emit(problem, schedule)
    assert "zig has no OpenMP" in str(
        family_of(FALLBACKS[0]).legal(problem_of(PROBLEMS["point-swiglu"]), CpuPointTile(32, 1, 0, 0, 2))
    )
    assert "expected a point problem" in str(family_of(FALLBACKS[0]).legal(problem, FALLBACKS[0]))


def test_the_text_stands_alone_and_says_what_it_is() -> None:
    p = PROBLEMS["reduce-softmax-odd"]
    schedule = CpuReduceTile(64, 1, 1, 0, 0)
    source = family_of(schedule).emit(problem_of(p), schedule)
    assert "#include" not in source.text
    assert str(schedule) in source.text
    assert "x: f32[5, 37]" in source.text
    assert source.options == ("-fno-math-errno", "-fopenmp")
    assert source.digest == family_of(schedule).emit(problem_of(p), schedule).digest


def test_bounds_lie_below_predictions_and_above_the_launch() -> None:
    rates = Rates(read=50, copy=40, flops=(("f32", 200.0), ("f64", 100.0)), issue=400, launch_ns=60, cache_bytes=1 << 25)
    for name, p in PROBLEMS.items():
        problem = problem_of(p)
        for s in serving(problem)[:3]:
            family = family_of(s)
            bound = family.bound_ns(problem, rates)
            assert bound >= rates.launch_ns, name
            assert np.isfinite(family.predict_ns(problem, s, rates)), name


def test_bounds_charge_memory_only_beyond_the_cache() -> None:
    p = program(apply("add", array("x", DType.F32, n=1 << 24), const(1.0, DType.F32)), "n")
    rates = Rates(read=10, copy=10, flops=(("f32", 1e9),), issue=1000, launch_ns=0)
    family = FAMILIES[0]
    assert family.bound_ns(problem_of(p), rates) == pytest.approx(p.bytes / 1000)
    some = dataclasses.replace(rates, cache_bytes=1 << 20)
    assert family.bound_ns(problem_of(p), some) == pytest.approx((1 << 20) / 1000 + (p.bytes - (1 << 20)) / 10)


def test_bounds_allow_for_every_core() -> None:
    one = Rates(read=10, copy=10, flops=(("f32", 100.0),), issue=400, launch_ns=1)
    for name in ("point-swiglu", "reduce-softmax", "contract-f32"):
        problem = problem_of(PROBLEMS[name])
        for family in FAMILIES:
            if any(type(s) in family.schedules for s in serving(problem)):
                many = family.bound_ns(problem, dataclasses.replace(one, cores=4))
                assert many == pytest.approx(family.bound_ns(problem, one) / 4), name


def space_term(problem: Problem) -> str:
    if isinstance(problem, PointProblem):
        return f'(PointSpace "cpu" {problem.output.expr.type.elements})'
    if isinstance(problem, ContractProblem):
        return f'(ContractSpace "cpu" {" ".join(map(str, problem.shape))})'
    return f'(ReduceSpace "cpu" {problem.row_count} {problem.length})'


def test_the_rule_files_offer_each_space_legal_points() -> None:
    rules = builtin_rules()
    classes = {s.__name__: s for f in FAMILIES for s in f.schedules}
    problems = [problem_of(p) for p in PROBLEMS.values()]
    text = "\n".join(map(str, (*rules.declarations, *rules.facts)))
    with Session() as session:
        found = session.schedule_points([space_term(p) for p in problems], rules.rules, declarations=text)
    offered: set[str] = set()
    for problem, points in zip(problems, found, strict=True):
        schedules = [
            classes[name](*a[len(a) - len(dataclasses.fields(classes[name])) :]) for name, a in points if name in classes
        ]
        legal = [s for s in schedules if family_of(s).legal(problem, s) is None]
        assert 1 <= len(legal) <= 45
        offered |= {type(s).__name__ for s in legal}
    assert offered == set(classes) - {"CpuOnlineTile", "CpuScanTile", "CpuWindowTile"}  # these have tests of their own


def test_tiles_for_wide_stacks_are_refused() -> None:
    p = program(matmul(array("a", DType.F32, m=4096, k=4096), array("b", DType.F32, k=4096, n=64)), "mn")
    schedule = CpuContractTile(64, 6, 4, 4096, 4092, 1536, 1, 0)
    assert "packed block" in str(family_of(schedule).legal(problem_of(p), schedule))


def test_every_source_is_plain_c(tmp_path: Path) -> None:
    sources: list[KernelSource] = emit_all(chosen(list(PROBLEMS)[:6], seed=2))
    assert all(s.language == "c" and s.text.isascii() for s in sources)
