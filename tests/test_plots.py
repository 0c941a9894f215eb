"""The plots show every timed row, and are the same files for the same results."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture(scope="module")
def plots() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        spec = importlib.util.spec_from_file_location("plots", BENCH / "plots.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    sys.modules.pop("tables", None)


def record() -> dict[str, Any]:
    def row(ours: float, theirs: float, bound: str) -> dict[str, Any]:
        def time(ns: float) -> dict[str, float]:
            return {"median_ns": ns, "low_ns": 0.99 * ns, "high_ns": 1.02 * ns}

        times = {"eqsat": time(ours), "again": time(ours), "torch eager": time(theirs)}
        return {"times": times, "bound": bound, "goal": 1.5, "plan_flops": 1e6, "program_bytes": 1e5}

    rows = {
        "fast_row": row(1e3, 4e3, "memory"),
        "slow_row": row(2e3, 1e3, "arithmetic"),
        "failed_row": {"error": "none", "bound": "memory"},
    }
    rates = {"read": 4000.0, "copy": 4000.0, "flops": {"f32": 60e3, "bf16": 700e3, "f16": 690e3}}
    return {"device": "Some Device (model 1)", "rates": rates, "rows": rows}


def drawn(plots: ModuleType, make: str, path: Path) -> str:
    with plots.mpl.rc_context(plots.STYLE):
        plots._save(getattr(plots, make)(record()), path)
    return path.read_text(encoding="utf-8")


def test_bars_name_every_timed_row_and_no_other(plots: ModuleType, tmp_path: Path) -> None:
    shown = drawn(plots, "speedups", tmp_path / "a.svg")
    assert "fast_row" in shown
    assert "slow_row" in shown
    assert "failed_row" not in shown


def test_the_roofline_names_its_ceilings_and_joins_those_that_lie_together(plots: ModuleType, tmp_path: Path) -> None:
    shown = drawn(plots, "roofline", tmp_path / "a.svg")
    assert "f16, bf16" in shown
    assert ">f32<" in shown


@pytest.mark.parametrize("make", ["speedups", "roofline"])
def test_the_same_results_make_the_same_file(plots: ModuleType, make: str, tmp_path: Path) -> None:
    assert drawn(plots, make, tmp_path / "a.svg") == drawn(plots, make, tmp_path / "b.svg")
