"""Rules that cannot fire are left out, and no others."""

from __future__ import annotations

import pytest

from eqsat.relevance import needed_text, relevant
from eqsat.rulefile import builtin_rules, load_rules
from eqsat.saturation import RuleText

RULES = {r.name: r for r in builtin_rules()}


def kept(names: str, *texts: str) -> list[str]:
    return [r.name for r in relevant([RULES[n] for n in names.split()], *texts)[0]]


def test_a_rule_is_kept_if_the_program_has_what_it_matches():
    assert kept("sum-factor add-same", '(let $a (Sum "k" (Mul (Read "x" "k") (Const 2.0))))') == ["sum-factor"]


def test_a_rule_is_kept_if_a_kept_rule_makes_what_it_matches():
    assert kept("pow-half recip-sqrt div-recip", "(Div (Const 1.0) (Pow a (Const 0.5)))") == [
        "pow-half",
        "recip-sqrt",
        "div-recip",
    ]
    assert kept("pow-half recip-sqrt div-recip", "(Pow a (Const 0.5))") == ["pow-half"]


def test_a_rule_that_says_nothing_about_itself_is_kept():
    opaque = RuleText("mine", "algebra", "(rewrite (Exp a) (Log a) :ruleset {ruleset})")
    assert relevant([opaque, RULES["pow-half"]], "(Sin a)") == ([opaque], frozenset({"rewrite", "Exp", "Log", "Sin", "constant"}))


def test_a_premise_needs_its_fact(tmp_path):
    (tmp_path / "mine.egg").write_text(
        "(relation my-menu (i64)) (relation my-other (i64)) (my-menu 2)\n"
        '(rewrite (Sum k a) (Neg (Neg (Sum k a))) :when ((my-menu n) (= n (extent k))) :name "a" :phase algebra :numerics exact)\n'
        '(rewrite (Max k a) (Neg (Neg (Max k a))) :when ((my-other n) (= n (extent k))) :name "b" :phase algebra :numerics exact)\n'
    )
    mine = load_rules([tmp_path / "mine.egg"])
    own = [d for d in mine.declarations if "my-" in str(d)]
    text = "\n".join(map(str, (*own, *mine.facts)))
    rules = relevant(mine.rules, text, "(Sum k (Max k x))")[0]
    assert [r.name for r in rules] == ["mine/a"]
    assert needed_text(text, rules).splitlines() == ["(relation my-menu (i64))", "(my-menu 2)"]


@pytest.mark.parametrize("name", ["access-exp", "access-sum"])
def test_rules_about_accesses_are_left_out_where_there_are_none(name):
    assert kept(name, "(Exp (Sum a))") == []
