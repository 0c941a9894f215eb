"""The bench: rows are real programs, a run writes what it measured, and tables say no more than the record does."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqsat.errors import EnvironmentMissingError, UsageError
from eqsat.oracle import evaluate
from eqsat.search import beside, machine
from eqsat.search.bench import run_board, table
from eqsat.search.bench_timing import draw, numpy_baseline
from eqsat.search.beside import MISLEADING, time_calls
from eqsat.search.workloads import Workload, board


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
        found = run_board(["gelu_fused"], target="cpu", budget="5s", store=folder / "s.sqlite", out=folder / "results")
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
        run_board(["no_such_row"], target="cpu")


def test_a_target_that_is_not_here_cannot_be_benched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cuda_place", lambda wanted: "there is no GPU")
    with pytest.raises(EnvironmentMissingError, match="there is no GPU"):
        run_board(target="sm_90")


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
