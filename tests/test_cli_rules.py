"""The commands about rules: new files, how often rules fire, what a rule is worth."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from eqsat.cli import commands, run

EVEN = """(rewrite (Cos (Neg a)) (Cos a)
  :name "cos-even" :phase algebra :numerics exact :law "cos(−a) = cos a")
"""
PROGRAM = """from eqsat import numpy_like as fn
from eqsat.trace import tensor

def build():
    x = tensor("x", (64, 96), "f32")
    return fn.cos(-x)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "even.egg").write_text(EVEN)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def said(*arguments: str) -> list[dict[str, object]] | dict[str, object]:
    return json.loads(CliRunner().invoke(commands, arguments, standalone_mode=False).stdout)


def test_the_value_of_a_rule_is_shown_by_leaving_it_out(folder: Path) -> None:
    rows = said(
        "rules", "value", str(folder / "even.egg"), str(folder / "program.py"), "--target", "cpu", "--no-measure", "--json"
    )
    assert [r["without"] for r in rows] == ["", "even/cos-even", None]
    assert rows[0]["nodes"] > rows[1]["nodes"] == rows[2]["nodes"]
    assert all(r["time_ns"] > 0 and not r["measured"] for r in rows)


def test_a_report_counts_matches_and_names_what_never_fired(folder: Path) -> None:
    record = said("rules", "report", str(folder / "program.py"), "--rules", str(folder / "even.egg"), "--json")
    matches = {r["rule"]: r["matches"] for r in record["rules"]}
    assert matches["even/cos-even"] > 0
    assert matches["sum-swap"] == 0


def test_a_rule_left_out_by_the_command_line_takes_no_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(
        [
            "optimize",
            f"{folder / 'program.py'}",
            "--target",
            "cpu",
            "--no-measure",
            "--without",
            "add-commute",
            "--json",
            "--store",
            ":memory:",
        ]
    )
    names = {r["name"] for r in json.loads(capsys.readouterr().out)["receipt"]["saturation"]["rules"]}
    assert code == 0
    assert "mul-commute" in names
    assert "add-commute" not in names


def test_a_misspelt_rule_is_answered_with_those_that_are_near(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["optimize", str(folder / "program.py"), "--target", "cpu", "--without", "ad-commute"]) == 2
    assert "did you mean add-commute" in capsys.readouterr().err
