"""Which rules the others reach on their own, and which they do not."""

from pathlib import Path

from eqsat.rulefile import RuleSet, builtin_rules, load_rules
from eqsat.search.rulereport import firings, redundant_rules
from eqsat.trace import tensor, to_program

META = ":phase algebra :numerics reassociates"


def some_rules(tmp_path: Path, *texts: str) -> RuleSet:
    path = tmp_path / "mine.egg"
    path.write_text("\n".join(texts))
    kept = [r for r in builtin_rules() if r.name in ("neg-neg", "mul-neg", "mul-commute", "sub-neg")]
    return RuleSet(tuple(kept)) + load_rules([path])


def test_a_rule_that_follows_from_the_others_is_redundant_and_one_that_does_not_is_kept(tmp_path: Path) -> None:
    follows = f'(rewrite (Mul (Neg a) (Neg b)) (Mul a b) :name "two-signs" {META} :law "(−a)·(−b) = a·b")'
    new = f'(rewrite (Abs (Neg a)) (Abs a) :name "no-sign" {META} :law "|−a| = |a|")'
    found = redundant_rules(some_rules(tmp_path, follows, new))
    assert "mine/two-signs" in found
    assert "mine/no-sign" not in found
    assert "neg-neg" not in found


def test_firings_count_programs_and_matches_of_each_rule() -> None:
    x = tensor("x", (4, 8), "f32")
    ruleset = builtin_rules()
    rows = {f.rule: f for f in firings({"sum": to_program((x * 2.0).sum(axis=-1)), "abs": to_program(abs(x))}, ruleset)}
    assert rows["mul-commute"].programs == 1
    assert rows["sum-factor"].matches >= 1
    assert rows["exp-add" if "exp-add" in rows else "max-swap"].matches == 0
