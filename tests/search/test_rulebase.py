"""Where rules come from: the package's own, the caller's files, and other packages by an entry point."""

import sys
from pathlib import Path

import pytest

from eqsat.errors import UsageError
from eqsat.search.options import Options
from eqsat.search.rulebase import admitted_rules, package_rules

LAW = """(rewrite (Maximum (Mul (Const c) a) (Const 0.0)) (Mul (Const c) (Maximum a (Const 0.0))) :when ((> c 0.0))
  :name "scale-out" :phase algebra :numerics exact :law "max(c·a, 0) = c·max(a, 0)   if c > 0")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package that brings a rule file, and that must not be imported for it."""
    (tmp_path / "brings_rules" / "rules").mkdir(parents=True)
    (tmp_path / "brings_rules" / "__init__.py").write_text("raise RuntimeError('loading rules runs no code')\n")
    (tmp_path / "brings_rules" / "rules" / "relu.egg").write_text(LAW)
    info = tmp_path / "brings_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brings-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eqsat.rules]\nrelu = brings_rules.rules\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_package_brings_rules_by_an_entry_point_and_none_of_its_code_runs(package: Path) -> None:
    (file,) = package_rules()
    assert file == package / "brings_rules" / "rules" / "relu.egg"
    assert "brings_rules" not in sys.modules
    rules, evidence = admitted_rules(Options(rules=package_rules()))
    assert "relu/scale-out" in {r.name for r in rules.rules}
    assert evidence["relu/scale-out"].compared > 0


def test_an_entry_point_without_rule_files_names_its_package(package: Path) -> None:
    (package / "brings_rules" / "rules" / "relu.egg").unlink()
    with pytest.raises(UsageError, match="brings-rules"):
        package_rules()


def test_rules_of_another_numeric_class_are_left_out() -> None:
    exact, _ = admitted_rules(Options(numerics=("exact",)))
    assert {r.numerics for r in exact.rules} == {"exact"}
    usual, _ = admitted_rules(Options())
    assert "unstable" not in {r.numerics for r in usual.rules}
    assert len(usual.rules) > len(exact.rules)
