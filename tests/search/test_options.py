"""Options are checked once, and say what they expect."""

from pathlib import Path

import pytest

from eqsat.errors import UsageError
from eqsat.search.options import Options, parse_budget


@pytest.mark.parametrize(
    ("given", "seconds"), [("60s", 60), ("500ms", 0.5), ("2min", 120), ("1h", 3600), (3, 3), ("7", 7), ("1.5m", 90)]
)
def test_budgets_are_read_with_their_units(given: object, seconds: float) -> None:
    assert parse_budget(given) == pytest.approx(seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["soon", "5 parsecs", "-3s", 0, "", True])
def test_other_budgets_are_refused_with_an_example(given: object) -> None:
    with pytest.raises(UsageError, match="expected a budget"):
        parse_budget(given)  # type: ignore[arg-type]


def test_unknown_precision_and_numerics_name_the_choices() -> None:
    with pytest.raises(UsageError, match="strict, tf32, fast"):
        Options(precision="half")
    with pytest.raises(UsageError, match="exact, reassociates"):
        Options(numerics=("roughly",))


def test_a_missing_rule_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mine\.egg"):
        Options(rules=(tmp_path / "mine.egg",))


def test_the_digest_follows_the_contents_of_rule_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.egg"
    file.write_text(";; one")
    before = Options(rules=(file,)).digest
    file.write_text(";; two")
    assert Options(rules=(file,)).digest != before
    assert Options(budget_s=1).digest == Options(budget_s=2).digest
