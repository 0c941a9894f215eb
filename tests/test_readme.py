"""The README says what was run: its code, outputs and tables are the files that running made."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "bench" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def time(median_ns: float) -> dict[str, float]:
    return {"median_ns": median_ns, "low_ns": 0.9 * median_ns, "high_ns": 1.1 * median_ns}


def record(**rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "device": "some GPU", "created": "2026-01-02T03:04:05+00:00", "environment": {"numpy": "2.0", "misled": []},
        "rates": {"read": 100.0, "copy": 90.0, "flops": {"f32": 2000.0}, "launch_ns": 1.0}, "rows": rows,
    }  # fmt: skip


def row(eqsat_ns: float, baseline_ns: float, **more: Any) -> dict[str, Any]:
    times = {"eqsat": time(eqsat_ns), "again": time(eqsat_ns), "numpy": time(baseline_ns)}
    return {"times": times, "bound": "memory", "verdict": "closed", "gap": 0.0, "program_bytes": 1000, "plan_flops": 500, **more}


def test_the_readme_is_up_to_date_with_its_files(tables: ModuleType) -> None:
    assert tables.filled(README, ROOT / "bench" / "results") == README, "run `make tables`"


def test_a_change_of_a_result_makes_it_out_of_date(tables: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "first.txt").write_text("another output\n")
    (tmp_path / "search.txt").write_text("another speed\n")
    (tmp_path / "gpu.json").write_text(json.dumps(record(gemm=row(1000, 2000))))
    found = json.loads((ROOT / "bench" / "results" / "discovery.json").read_text(encoding="utf-8"))
    (tmp_path / "discovery.json").write_text(json.dumps(found | {"rows": {}}))
    changed = tables.filled(README, tmp_path)
    assert "another output" in changed
    assert "another speed" in changed
    assert "0 of 0 found" in changed
    assert "| gemm | 1 [0.9, 1.1] | numpy 2 | 2.00 |" in changed


def test_a_part_that_nothing_makes_is_an_error(tables: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="prose"):
        tables.filled("<!-- begin prose -->\n<!-- end prose -->", tmp_path)


def test_rows_won_by_algebra_are_left_out_of_the_mean(tables: ModuleType) -> None:
    shown = tables.board(record(a=row(1, 2), b=row(1, 8), c=row(1, 1000, bound="algebra")))
    assert "left out: 4.00 (2 rows)" in shown


def test_losses_errors_and_open_searches_are_shown(tables: ModuleType) -> None:
    shown = tables.board(record(slow=row(4000, 1000, verdict="open", gap=0.31), none={"error": "NoKernelError: none"}))
    assert "| 0.25 |" in shown
    assert "open, 31 %" in shown
    assert "NoKernelError: none" in shown


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in x]
    assert links
    assert [x for x in links if not (ROOT / x).exists()] == []


def test_every_make_target_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`make ([a-z-]+)`", README))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= named <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_the_first_code_is_ten_lines_at_most(tables: ModuleType) -> None:
    lines = [x for x in tables.FIRST.read_text().splitlines() if x.strip()]
    assert len(lines) <= 10
