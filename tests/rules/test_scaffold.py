"""New rule files: false until they are filled in, true once they are."""

from pathlib import Path

import pytest

from eqsat.errors import FalseRuleError, UsageError
from eqsat.rulecheck import check_rules
from eqsat.rulefile import load_rules
from eqsat.rulescaffold import SCAFFOLDS, scaffold

kinds = pytest.mark.parametrize("kind", SCAFFOLDS)


@kinds
def test_a_new_file_is_refused_with_a_counterexample(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FalseRuleError, match=r"is false|changes the"):
        check_rules(load_rules([scaffold(tmp_path / "mine", kind)]).rules)


@kinds
def test_with_the_premise_it_names_it_is_admitted(tmp_path: Path, kind: str) -> None:
    path = scaffold(tmp_path / "mine.egg", kind)
    path.write_text(path.read_text().replace("  :name", f"  :when ({SCAFFOLDS[kind].guards})\n  :name", 1))
    (evidence,) = check_rules(load_rules([path]).rules)
    assert evidence.rule.startswith("mine/")


def test_a_file_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    path = scaffold(tmp_path / "mine.egg")
    before = path.read_text()
    with pytest.raises(UsageError, match="exists already"):
        scaffold(path)
    assert path.read_text() == before


def test_an_unknown_kind_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="equation"):
        scaffold(tmp_path / "mine.egg", "poem")
