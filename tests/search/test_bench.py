"""The bench: rows are real programs, a run writes what it measured, and tables say no more than the record does."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqsat.errors import EnvironmentMissingError, UsageError
from eqsat.oracle import evaluate
from eqsat.search import bench, beside, machine
from eqsat.search.bench import Timer, run_rows, table
from eqsat.search.bench_timing import draw, numpy_baseline
from eqsat.search.beside import MISLEADING, time_calls
from eqsat.search.optimize import optimize
from eqsat.search.workloads import SWEEPS, Workload, board, workloads_of


def test_row_names_are_unique_and_rows_say_what_bounds_them() -> None:
    rows = [*board("cpu"), *board("cuda")]
    assert len({w.name for w in rows}) == len(rows)
    assert {w.bound for w in rows} <= {"memory", "arithmetic", "algebra"}


@pytest.mark.parametrize("w", board("cpu"), ids=lambda w: w.name)
def test_a_cpu_row_and_its_baseline_compute_the_same(w: Workload) -> None:
    small = replace(w, inputs=tuple((name, tuple(min(n, 24) for n in shape), dtype) for name, shape, dtype in w.inputs))
    arrays = draw(small, 0)
    program = small.program()
    (expected,) = evaluate(program, {i.name: a for i, a in zip(program.inputs, arrays, strict=True)})
    np.testing.assert_allclose(np.asarray(numpy_baseline(small, arrays)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("w", board("cuda"), ids=lambda w: w.name)
def test_a_cuda_row_is_a_program(w: Workload) -> None:
    program = w.program()
    assert [i.name for i in program.inputs] == [name for name, _, _ in w.inputs]
    assert program.flops >= 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> tuple[dict[str, Any], Path]:
    """Return the record of one row run on this CPU, and the folder it was written to; a misleading variable is set meanwhile."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_CORETYPE", "Haswell")
        found = run_rows(["gelu_fused"], target="cpu", budget="5s", store=folder / "s.sqlite", out=folder / "results")
    return found, folder / "results"


@pytest.mark.slow
def test_a_run_is_written_as_json_with_intervals_and_both_contestants(recorded: tuple[dict[str, Any], Path]) -> None:
    record, folder = recorded
    (file,) = folder.iterdir()
    (row,) = json.loads(file.read_text())["rows"].values()
    assert {"eqsat", "again", "numpy"} <= set(row["times"])
    for t in row["times"].values():
        assert 0 < t["low_ns"] <= t["median_ns"] <= t["high_ns"]
        assert t["samples"] >= 5
    assert row["derivation"] == "derived"
    assert record["rates"]["read"] > 0


@pytest.mark.slow
def test_the_timing_process_runs_without_variables_that_slow_a_baseline(recorded: tuple[dict[str, Any], Path]) -> None:
    assert "OPENBLAS_CORETYPE" in MISLEADING
    assert recorded[0]["environment"]["misled"] == []


@pytest.mark.slow
def test_the_table_names_the_device_the_baseline_and_the_verdict(recorded: tuple[dict[str, Any], Path]) -> None:
    record, _ = recorded
    shown = table(record)
    assert shown.splitlines()[0].startswith(record["device"])
    assert "numpy" in shown
    (row,) = record["rows"].values()
    assert row["verdict"] in shown


def test_a_row_that_found_no_kernel_is_shown_with_its_error() -> None:
    record = {"device": "d", "created": "now", "rows": {"some_row": {"error": "NoKernelError: none"}}}
    assert "NoKernelError: none" in table(record)


def test_an_unknown_row_is_a_usage_error_that_lists_the_rows() -> None:
    with pytest.raises(UsageError, match="gelu_fused"):
        run_rows(["no_such_row"], target="cpu")


def test_a_target_that_is_not_here_cannot_be_benched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cuda_place", lambda wanted: "there is no GPU")
    with pytest.raises(EnvironmentMissingError, match="there is no GPU"):
        run_rows(target="sm_90")


def test_variables_that_slow_a_library_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MISLEADING:
        monkeypatch.delenv(name, raising=False)
    assert beside.misled() == []
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert beside.misled() == ["OPENBLAS_CORETYPE"]


def test_calls_are_interleaved_and_each_gets_its_rounds() -> None:
    calls: list[str] = []
    a, b = time_calls([lambda: calls.append("a"), lambda: calls.append("b")], rounds=20)
    assert len(a.samples_ns) + a.rejected >= 20
    assert len(b.samples_ns) + b.rejected >= 20
    timed = "".join(calls)[6:]
    assert "a" * 20 not in timed
    assert "b" * 20 not in timed


def test_the_wait_for_a_device_is_part_of_the_time() -> None:
    waited: list[int] = []
    (m,) = time_calls([lambda: None], rounds=5, wait=lambda: waited.append(1))
    assert len(waited) >= 8
    assert m.median_ns > 0


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_many_programs_with_baselines(name: str) -> None:
    rows = workloads_of(f"sweep-{name}", "cuda")
    assert len({w.name for w in rows}) == len(rows) >= 30
    for w in rows:
        assert w.baseline is not None
        assert [i.shape for i in w.program().inputs] == [shape for _, shape, _ in w.inputs]


def test_an_unknown_sweep_is_a_usage_error_that_lists_the_sweeps() -> None:
    with pytest.raises(UsageError, match="gemm, attention, memory"):
        run_rows(source="sweep-nothing", target="cpu")


def test_an_unknown_mode_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="eager, compile"):
        run_rows(["gelu_fused"], target="cpu", modes=("fast",))


@pytest.mark.slow
def test_a_program_of_ones_own_runs_beside_its_baseline(tmp_path: Path, own_cache: Path) -> None:
    file = tmp_path / "scaled.py"
    file.write_text(
        "import eqsat\n\n\ndef build():\n    x = eqsat.tensor('x', (64, 64), 'f32')\n    return x * 2.0 + 1.0\n\n\n"
        "def baseline(torch, x):\n    return x * 2.0 + 1.0\n"
    )
    found = run_rows(source=str(file), target="cpu", budget="5s", store=tmp_path / "s.sqlite", out=tmp_path / "results")
    times = found["rows"]["scaled"]["times"]
    assert {"eqsat", "again"} <= set(times)
    (written,) = (tmp_path / "results").glob("*.json")
    assert written.stem.endswith("-scaled")


def test_integer_inputs_are_drawn_from_the_row_s_range() -> None:
    labelled = next(w for w in board("cuda") if w.below)
    small = replace(labelled, inputs=tuple((n, (5,) * len(shape), d) for n, shape, d in labelled.inputs))
    drawn = dict(zip([n for n, _, _ in small.inputs], draw(small, 0), strict=True))
    for name, limit in small.below.items():
        assert drawn[name].dtype.kind == "i"
        assert drawn[name].min() >= 0
        assert drawn[name].max() < limit


@pytest.mark.slow
def test_a_row_that_kills_the_timing_process_costs_only_itself(tmp_path: Path, own_cache: Path) -> None:
    """The bundle of the first row is taken away: its times cannot be had, those of the second can."""
    place = machine.resolve("cpu")
    (w,) = (w for w in board("cpu") if w.name.startswith("gelu_fused"))
    optimize(w.program(), target="cpu", budget="5s", store=tmp_path / "s.sqlite", progress=False).save(tmp_path / w.name)
    with contextlib.closing(Timer("board", place, tmp_path, ())) as timer:
        lost, found = timer.time("softmax_1024x1024_f32"), timer.time(w.name)
    assert lost["times"] == {}
    assert "ended with status" in lost["note"]
    assert found["times"]["eqsat"]["median_ns"] > 0


@pytest.mark.slow
def test_rows_of_an_earlier_run_stay_when_others_run(tmp_path: Path, own_cache: Path) -> None:
    for name in ("gelu_fused", "softmax_1024"):
        found = run_rows([name], target="cpu", budget="5s", store=tmp_path / "s.sqlite", out=tmp_path / "results")
    assert set(found["rows"]) == {"gelu_fused_512x512_f32", "softmax_1024x1024_f32"}


@pytest.mark.parametrize(
    ("verdict", "ours", "replaces"), [("open", 50.0, True), ("open", 90.0, False), ("closed", 90.0, True), ("closed", 50.0, True)]
)
def test_a_search_cut_short_does_not_replace_a_faster_result(tmp_path: Path, verdict: str, ours: float, replaces: bool) -> None:
    def row(ns: float, verdict: str) -> dict[str, Any]:
        return {"verdict": verdict, "times": {"eqsat": {"median_ns": ns}, "torch eager": {"median_ns": 100.0}}}

    record = {"device": "Some Device", "source": "board", "rows": {"one": row(70.0, "closed")}}
    bench._written(record, "one", tmp_path)
    bench._written(record | {"rows": {"one": row(ours, verdict)}}, "one", tmp_path)
    kept = json.loads((tmp_path / "some-device.json").read_text())["rows"]["one"]
    assert kept["times"]["eqsat"]["median_ns"] == (ours if replaces else 70.0)
