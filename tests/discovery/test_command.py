"""`eqsat bench discovery`, and the table that the README makes of its record."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from eqsat import cli
from eqsat.search import bench

ROOT = Path(__file__).resolve().parents[2]


def table(record: dict[str, Any]) -> str:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "bench" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.discovery(record))


def test_rows_are_run_by_name_shown_and_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert cli.run(["bench", "discovery", "matrices_times", "--json", str(file)]) == cli.OK
    out = capsys.readouterr().out
    assert "1 of 1 found" in out
    assert "2 kernels" in out
    record = json.loads(file.read_text(encoding="utf-8"))
    (row,) = record["rows"].values()
    assert (row["row"], row["ok"], row["missing"], row["derivation"]) == ("matrices_times_vector", True, [], "derived")
    shown = table(record)
    assert "1 of 1 found" in shown
    assert "| matrices times vector: (a @ b) @ v | 2 kernels; " in shown
    missed = record | {"rows": {"x": row | {"ok": False, "missing": ["a product is stored"]}}}
    assert "**not found**: a product is stored. Chosen: 2 kernels" in table(missed)


def test_another_target_may_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "discovery", "matrices_times", "--target", "cpu"]) == cli.OK
    assert " cpu " in capsys.readouterr().out


def test_a_row_that_is_not_found_fails_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from eqsat.search import discovery

    impossible = discovery.dataclasses.replace(discovery.rows_named(["chain_3"])[0], check=lambda p: ["what nobody can give"])
    monkeypatch.setattr(discovery, "ROWS", (impossible,))
    assert cli.run(["bench", "discovery"]) == cli.FAILED
    assert "lacks: what nobody can give" in capsys.readouterr().out


def test_an_unknown_row_is_an_error_that_lists_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "discovery", "perpetual_motion"]) == cli.USAGE
    assert "rmsnorm_linear" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["bench", "gemm"], ["bench", "board", "gemm"], ["bench", "--budget", "60s", "gemm"]])
def test_the_board_needs_no_name(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bench, "run_rows", lambda names, **_: asked.append(names) or {"table": "a table"})
    assert cli.run(words) == cli.OK
    assert asked == [("gemm",)]
