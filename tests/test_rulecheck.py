"""The gate: true rules pass with evidence, false ones are refused with a small counterexample."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from eqsat.errors import FalseRuleError, RuleError
from eqsat.gate import evidence
from eqsat.gate.evidence import committed
from eqsat.rulecheck import Evidence, check_rule, check_rules
from eqsat.rulefile import Rule, builtin_rules, load_rules

META = ':name "x" :phase algebra :numerics reassociates'


@pytest.fixture
def load(tmp_path):
    def from_text(text: str) -> Rule:
        path = tmp_path / "mine.egg"
        path.write_text(text.replace("META", META), encoding="utf-8")
        (rule,) = load_rules([path]).rules
        return rule

    return from_text


@pytest.fixture(scope="module")
def shipped() -> dict[str, Evidence]:
    return {e.rule: e for e in check_rules(builtin_rules(unstable=True), use_committed=False)}


def test_every_shipped_rule_passes(shipped):
    assert len(shipped) == len(builtin_rules(unstable=True))
    least = {"proved": 8, "field": 24, "fuzz": 24}
    assert all(e.compared >= least[e.method] and len(e.extents) >= 3 for e in shipped.values() if e.method != "structural")


def test_every_shipped_rule_that_claims_values_is_proved_or_tested_in_fields_with_a_bound_below_2_to_the_minus_40(shipped):
    assert shipped["sum-factor"].how == "normal form"
    weaker = {e.rule: e.why for e in shipped.values() if e.method not in ("proved", "field", "structural")}
    assert not weaker
    assert all(e.log2_bound is not None and e.log2_bound <= -40 for e in shipped.values() if e.method == "field")


def test_the_committed_evidence_is_up_to_date(shipped):
    for rule in builtin_rules(unstable=True):
        kept, found = committed(rule.digest, rule.name), shipped[rule.name]
        assert kept is not None, f"no committed evidence for {rule.name} as it is now; run: make evidence"
        assert (kept.method, kept.how, kept.numerics) == (found.method, found.how, found.numerics), rule.name


def test_loading_the_shipped_rules_with_committed_evidence_takes_no_time():
    rules = builtin_rules(unstable=True)
    began = time.perf_counter()
    check_rules(rules)
    assert time.perf_counter() - began < 0.05


def test_committed_evidence_of_another_gate_does_not_count(monkeypatch):
    rule = builtin_rules().rules[0]
    assert committed(rule.digest, rule.name) is not None
    monkeypatch.setattr("eqsat.gate.evidence.judge_digest", lambda: "another")
    evidence._shipped.cache_clear()
    try:
        assert committed(rule.digest, rule.name) is None
    finally:
        evidence._shipped.cache_clear()


def test_each_axis_of_a_law_has_extent_one_once():
    factor = next(r for r in builtin_rules() if r.name == "sum-factor")
    assignments = [dict(a.split("=") for a in text.split()) for text in check_rule(factor).extents]
    assert all(len(set(a.values())) == len(a) for a in assignments)
    assert any(a["k"] == "1" for a in assignments)


def test_lowering_and_schedule_rules_are_structural():
    found = check_rules(builtin_rules().phase("lowering"))
    assert {e.method for e in found} == {"structural"}


def test_the_same_rule_gives_the_same_evidence():
    rule = next(r for r in builtin_rules() if r.name == "fold-rebase")
    assert check_rule(rule) == check_rule(rule) != check_rule(rule, seed=1)


TRUE = {
    "a general rule": "(rule ((= e (Sub x c)) (= x (Add a b)) (groups b c)) ((union e (Sub a (Sub c b)))) META)",
    "a rule with a let": "(rule ((= e (Neg (Sub a b)))) ((let s (Sub b a)) (union e s)) META)",
    "a literal axis": '(rewrite (Sum "h" (Mul a b)) (Mul a (Sum "h" b)) :when ((free-of "h" a)) META)',
    "a rule about one extent": "(rewrite (Max k (Min k2 a)) (Sum k (Min k2 a)) :when ((= 1 (extent k)) (numeric a)) META)",
    "a mean": "(rewrite (Mul (Const (/ 1.0 (to-f64 n))) (Sum k (Sub a b))) (Sub (Mul (Const (/ 1.0 (to-f64 n))) (Sum k a)) b)"
              " :when ((free-of k b) (= n (extent k)) (float a) (float b)) META)",
    "a guard between numbers": "(rewrite (Maximum (Mul (Const x) a) (Mul (Const y) a)) (Mul (Const y) a)"
                               " :when ((>= y x) (= x y)) META)",
    "distinct axes": "(rewrite (Sum j (Sum k (Mul a b))) (Mul (Sum j a) (Sum k b))"
                     " :when ((!= j k) (has j a) (free-of k a) (has k b) (free-of j b)) META)",
    "a comparison": '(rewrite (Not (Lt a b)) (Le b a) META)',
    "order": "(rewrite (Maximum a (Minimum a b)) a :when ((within b a) (same-dtype a b)) META)",
    "argmax of a shift": "(rewrite (ArgMax k (Add a b)) (ArgMax k a) :when ((free-of k b) (within b a) (scalar b) (has k a) (same-dtype a b))"
                         ' :name "x" :phase algebra :numerics unstable)',
    "positions": "(rewrite (Max k (Iota k)) (Max k (Mul (Const 1.0) (Iota k))) META)",
    "a widening cast": '(rewrite (Max k (Cast a "f64")) (Cast (Max k a) "f64") :when ((numeric a)) :name "x" :phase algebra :numerics exact)',
    "an approximation within its bound":
        '(rewrite (Exp (Mul (Const 0.0001) (Tanh a))) (Add (Const 1.0) (Mul (Const 0.0001) (Tanh a))) :when ((float a))'
        ' :name "x" :phase algebra :numerics approximates :bound "1e-7")',
    "a power of a number": "(rewrite (Mul (Const x) (Mul (Const x) a)) (Mul (Const (^ x 2.0)) a) META)",
    "an even extent": "(rewrite (Sum k (Mul a a)) (Sum k (Mul a a)) :when ((= 0 (% (extent k) 2))) META)",
    "a both-ways law": "(birewrite (Mul a (Neg b)) (Neg (Mul a b)) META)",
    "a rebase to the local maximum":
        "(rewrite (Sum i (Exp (Sub s m))) (Mul (Exp (Sub (Max i s) m)) (Sum i (Exp (Sub s (Max i s)))))"
        " :when ((free-of i m) (float s) (float m)) META)",
}  # fmt: skip


@pytest.mark.parametrize("case", TRUE)
def test_a_true_rule_is_admitted(load, case):
    found = check_rule(load(TRUE[case]))
    assert found.compared >= (8 if found.method == "proved" else 24)


FALSE = {
    "sum of product": (
        '(rewrite (Sum k (Mul a b)) (Mul (Sum k a) (Sum k b)) :when ((has k a) (has k b)) META)',
        "is false",
    ),
    "missing guard": (
        '(rewrite (Sum k (Mul a b)) (Mul a (Sum k b)) META)',
        "changes the axes",
    ),
    "wrong axis": (
        '(rewrite (Sum k (Mul a b)) (Mul a (Sum k b)) :when ((free-of k b)) META)',
        "changes the axes",
    ),
    "exp of product": (
        '(rewrite (Exp (Mul a b)) (Mul (Exp a) (Exp b)) :when ((float a) (float b)) META)',
        "is false",
    ),
    "max over sum": (
        '(rewrite (Max k (Sum j a)) (Sum j (Max k a)) META)',
        "is false",
    ),
    "sign": (
        '(rewrite (Sub a b) (Sub b a) META)',
        "is false",
    ),
    "sub assoc": (
        '(rewrite (Sub a (Sub b c)) (Sub (Sub a b) c) META)',
        "is false",
    ),
    "exp overflow": (
        '(rewrite (Exp (Add a b)) (Mul (Exp a) (Exp b)) :when ((float a) (float b)) META)',
        "loses range",
    ),
    "log exp": (
        '(rewrite (Log (Exp a)) a :when ((float a)) META)',
        "loses range",
    ),
    "a over a": (
        '(rewrite (Div a a) (Mul (Const 1.0) (Add a (Sub (Const 1.0) a))) :when ((float a)) META)',
        "is false",
    ),
    "cancel quotient": (
        '(rewrite (Div (Mul a b) b) a :when ((same-dtype a b) (float a) (within b a)) META)',
        "is false",
    ),
    "int division": (
        '(rewrite (Div a b) (Mul a (Recip b)) META)',
        "changes the dtype",
    ),
    "half of int": (
        '(rewrite (Div a (Const 2.0)) (Mul (Const 0.5) a) META)',
        "changes the dtype",
    ),
    "max scale any": (
        '(rewrite (Max k (Mul (Const c) a)) (Mul (Const c) (Max k a)) META)',
        "is false",
    ),
    "max scale nonneg wrong": (
        '(rewrite (Max k (Mul (Const c) a)) (Mul (Const c) (Max k a)) :when ((< c 0.0)) META)',
        "is false",
    ),
    "max neg": (
        '(rewrite (Max k (Neg a)) (Neg (Max k a)) META)',
        "is false",
    ),
    "max sub": (
        '(rewrite (Max k (Sub a b)) (Sub a (Max k b)) :when ((free-of k a)) META)',
        "is false",
    ),
    "max add": (
        '(rewrite (Max k (Add a b)) (Add (Max k a) (Max k b)) :when ((has k a) (has k b)) META)',
        "is false",
    ),
    "max swap min": (
        '(rewrite (Max k (Min j a)) (Min j (Max k a)) META)',
        "is false",
    ),
    "extent forgotten": (
        '(rewrite (Sum k (Add a b)) (Add (Sum k a) b) :when ((free-of k b)) META)',
        "is false",
    ),
    "extent wrong axis": (
        '(rewrite (Sum j (Sum k (Add a b))) (Add (Sum j (Sum k a)) (Mul (Const (to-f64 n)) (Sum j b))) :when ((free-of k b) (has j b) (has j a) (has k a) (= n (extent j))) META)',
        "is false",
    ),
    "mean off": (
        '(rewrite (Sum k (Sub a b)) (Sub (Sum k a) (Mul (Const (to-f64 (- n 1))) b)) :when ((free-of k b) (= n (extent k))) META)',
        "is false",
    ),
    "sqrt sum": (
        '(rewrite (Sqrt (Add a b)) (Add (Sqrt a) (Sqrt b)) :when ((float a) (float b)) META)',
        "is false",
    ),
    "sqrt square": (
        '(rewrite (Sqrt (Mul a a)) a :when ((float a)) META)',
        "is false",
    ),
    "abs drop": (
        '(rewrite (Abs a) a META)',
        "is false",
    ),
    "rsqrt twice": (
        '(rewrite (Mul (Rsqrt a) (Rsqrt a)) (Recip a) :when ((float a)) META)',
        "is false",
    ),
    "recip add": (
        '(rewrite (Recip (Add a b)) (Add (Recip a) (Recip b)) :when ((float a) (float b)) META)',
        "is false",
    ),
    "sigmoid sign": (
        '(rewrite (Recip (Add (Const 1.0) (Exp a))) (Sigmoid a) META)',
        "is false",
    ),
    "tanh half": (
        '(rewrite (Add (Const 1.0) (Tanh a)) (Mul (Const 2.0) (Sigmoid a)) META)',
        "is false",
    ),
    "where swap": (
        '(rewrite (Where c a b) (Where c b a) META)',
        "is false",
    ),
    "where broadcast": (
        '(rewrite (Where c a a) a META)',
        "changes the axes",
    ),
    "sub cancel dtype": (
        '(rewrite (Sub (Add a c) (Add b c)) (Sub a b) :when ((within c a)) META)',
        "changes the dtype",
    ),
    "x minus x": (
        '(rewrite (Sub a a) (Const 0.0) META)',
        "changes the dtype",
    ),
    "zero times": (
        '(rewrite (Mul (Const 0.0) a) (Const 0.0) META)',
        "changes the dtype",
    ),
    "factor wrong": (
        '(rewrite (Add (Mul a b) (Mul a c)) (Mul a (Mul b c)) META)',
        "is false",
    ),
    "floor add": (
        '(rewrite (Floor (Add a b)) (Add (Floor a) (Floor b)) META)',
        "is false",
    ),
    "lt flip": (
        '(rewrite (Lt a b) (Le b a) META)',
        "is false",
    ),
    "not lt": (
        '(rewrite (Not (Lt a b)) (Lt b a) META)',
        "is false",
    ),
    "exact assoc": (
        '(rewrite (Add a (Add b c)) (Add (Add a b) c) :name "x" :phase algebra :numerics exact)',
        "claims to be exact",
    ),
    "exact div": (
        '(rewrite (Div a b) (Mul a (Recip b)) :when ((float a) (float b)) :name "x" :phase algebra :numerics exact)',
        "claims to be exact",
    ),
    "loose bound": (
        '(rewrite (Exp a) (Add (Const 1.0) a) :when ((float a)) :name "x" :phase algebra :numerics approximates :bound "1e-3")',
        "is false",
    ),
    "sum swap reduce": (
        '(rewrite (Sum k (Max j a)) (Max j (Sum k a)) META)',
        "is false",
    ),
    "pow two int": (
        '(rewrite (Pow a (Const 2.0)) (Mul a a) META)',
        "changes the dtype",
    ),
    "prod sum": (
        '(rewrite (Prod k (Mul a b)) (Mul a (Prod k b)) :when ((free-of k a)) META)',
        "is false",
    ),
    "prod sum const": (
        '(rewrite (Prod k (Mul (Const c) a)) (Mul (Const c) (Prod k a)) META)',
        "is false",
    ),
    "argmax neg": (
        '(rewrite (ArgMax k (Neg a)) (ArgMax k a) META)',
        "is false",
    ),
    "any all": (
        '(rewrite (Not (Any k a)) (Any k (Not a)) META)',
        "is false",
    ),
    "truncating cast": (
        '(rewrite (Cast (Cast a "i32") d) a :when ((= d (dtype a))) META)',
        "is false",
    ),
    "rule form": (
        '(rule ((= e (Sum k (Mul a b)))) ((union e (Mul a (Sum k b)))) META)',
        "changes the axes",
    ),
    "a fraction among positions": (
        '(rewrite (Add a (Add b c)) (Add (Add a b) c) META)',
        "lets a fraction meet whole numbers",
    ),
    "rule form two": (
        '(rule ((= e (Sub x c)) (= x (Add a b))) ((union e (Sub a (Add b c)))) META)',
        "is false",
    ),
    "sum merge bool": (
        '(rewrite (Add (Sum k a) (Sum j a)) (Sum k (Sum j (Mul (Const 2.0) a))) META)',
        "changes the axes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FALSE)
def test_a_false_rule_is_refused(load, case):
    text, says = FALSE[case]
    with pytest.raises(FalseRuleError, match=r"the rule mine/x at .*mine\.egg:1") as caught:
        check_rule(load(text))
    assert says in str(caught.value)


def test_the_counterexample_is_as_small_as_it_can_be(load):
    with pytest.raises(FalseRuleError) as caught:
        check_rule(load("(rewrite (Sum k (Mul a b)) (Mul (Sum k a) (Sum k b)) :when ((has k a) (has k b)) META)"))
    assert str(caught.value).splitlines()[1:-1] == [
        "  left   (Sum k (Mul a b)) = 2",
        "  right  (Mul (Sum k a) (Sum k b)) = 4",
        "  extents  k=2",
        "  with     a[k] = [1. 1.], b[k] = [1. 1.]",
    ]


def test_the_counterexample_says_what_the_guards_bound(load):
    off = (
        "(rewrite (Sum k (Add a b)) (Add (Sum k a) (Mul (Const (to-f64 (- n 1))) b)) :when ((free-of k b) (= n (extent k))) META)"
    )
    with pytest.raises(FalseRuleError, match="n = 1") as caught:
        check_rule(load(off))
    assert "extents  k=1" in str(caught.value)


def test_the_law_is_quoted_in_the_refusal(load):
    with pytest.raises(FalseRuleError, match=r"the rule mine/x \(a − b = b − a\)"):
        check_rule(load('(rewrite (Sub a b) (Sub b a) META :law "a − b = b − a")'))


UNTESTABLE = {
    "facts only": ("(rule ((= e (Exp a))) ((constant e)) META)", "states facts and no equation"),
    "a read": ("(rewrite (Add (Read n x) a) a META)", "depends on the program"),
    "an axis of extent zero": ("(rewrite (Sum k a) (Sum o (Access k (Axis o) a)) :when ((has k a) (= n (extent k))) :axes ((o k (- n 1))) META)", "of extent 0"),
    "guards that never hold": ("(rewrite (Sum k a) (Neg a) :when ((free-of k a)) META)", "too few of the situations"),
    "types that never fit": ("(rewrite (Neg (Lt a b)) (Lt b a) META)", "for no dtypes"),
    "a side that is hardly ever defined": ("(rewrite (Log (Sub (Neg (Exp a)) (Const 1.0))) (Log (Neg (Add (Exp a) (Const 1.0)))) META)", "state the domain"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNTESTABLE)
def test_a_rule_that_cannot_be_tested_is_refused_with_the_reason(load, case):
    text, says = UNTESTABLE[case]
    with pytest.raises(RuleError, match=r"mine\.egg:1:1: the rule mine/x cannot be tested") as caught:
        check_rule(load(text))
    assert says in str(caught.value)


def test_a_law_is_tested_without_the_premises_that_are_facts_of_a_relation(load):
    premise = "(relation my-pair (T T)) (rewrite (Sub a b) (Sub b a) :when ((my-pair a b)) META)"
    with pytest.raises(FalseRuleError):
        check_rule(load(premise))
    assert check_rule(load(premise.replace("Sub", "Add"))).compared >= 24


def test_a_users_lowering_rule_is_structural(load):
    anchor = '(rule ((= e (Sum k a))) ((union (Anchor e) (ReduceAnchor "sum" (set-of k) a))) :name "x" :phase lowering :numerics exact)'
    assert check_rule(load(anchor)).method == "structural"


def test_a_lowering_rule_that_equates_tensors_is_tested_all_the_same(load):
    with pytest.raises(FalseRuleError):
        check_rule(load('(rule ((= e (Exp a))) ((union e a)) :name "x" :phase lowering :numerics reassociates)'))


def test_evidence_is_kept_by_digest_and_not_gathered_twice(tmp_path):
    rules = builtin_rules().rules[:10]
    first = check_rules(rules, tmp_path, use_committed=False)
    files = sorted(tmp_path.glob("*.json"))
    assert [f.stem for f in files] == sorted({r.digest for r in rules})
    files[0].write_text(files[0].read_text().replace('"trials": ', '"trials": 1000'))
    changed = [e for e in check_rules(rules, tmp_path, use_committed=False) if e not in first]
    assert [e.digest for e in changed] == [files[0].stem]


@pytest.mark.parametrize(
    "damage", [lambda t: t[:40], lambda t: "", lambda t: json.dumps({**json.loads(t), "gate": "an older one"})]
)
def test_damaged_or_outdated_evidence_is_gathered_again(tmp_path, damage):
    rule = next(r for r in builtin_rules() if r.name == "neg-neg")
    (first,) = check_rules([rule], tmp_path, use_committed=False)
    file = tmp_path / f"{rule.digest}.json"
    whole = file.read_text()
    file.write_text(damage(whole))
    assert check_rules([rule], tmp_path, use_committed=False) == [first]
    without_time = [{k: v for k, v in json.loads(t).items() if k != "time_ms"} for t in (file.read_text(), whole)]
    assert without_time[0] == without_time[1]


def test_a_folder_that_cannot_be_written_is_said_and_costs_only_time(tmp_path, caplog):
    taken = tmp_path / "file"
    taken.write_text("")
    rule = next(r for r in builtin_rules() if r.name == "neg-neg")
    with caplog.at_level(logging.WARNING):
        (found,) = check_rules([rule], taken, use_committed=False)
    assert found.method == "proved"
    assert "could not be kept" in caplog.text


def test_evidence_reads_as_a_sentence(load):
    rule = next(r for r in builtin_rules() if r.name == "sum-factor")
    assert str(check_rule(rule)).startswith("sum-factor: proved (normal form), ")
    tested = Evidence("x", "0", "field", "exact", 10, 30, log2_bound=-60.0)
    assert str(tested) == "x: field, 10 situations, 30 elements (exact), a false law passes with probability ≤ 2^-60"


def readme_blocks(kind: str) -> list[str]:
    text = (Path(__file__).parents[1] / "rules" / "README.md").read_text(encoding="utf-8")
    return [part.split("```")[0] for part in text.split(f"```{kind}\n")[1:]]


def test_the_readmes_own_rule_passes(load):
    assert check_rule(load(readme_blocks("lisp")[1])).numerics == "exact"


@pytest.mark.parametrize(("number", "method"), list(enumerate(["proved", "proved", "field", "proved", "proved", "fuzz"], 2)))
def test_each_example_of_the_readme_passes(load, number, method):
    assert check_rule(load(readme_blocks("lisp")[number])).method == method


def test_the_readmes_menu_entry_is_one_that_the_shipped_schedules_read(tmp_path):
    path = tmp_path / "menu.egg"
    path.write_text(readme_blocks("lisp")[8], encoding="utf-8")
    (fact,) = load_rules([path]).facts
    assert f"({fact.head} " in "".join(str(c) for r in builtin_rules().phase("schedule") for c in r.conditions)


def test_the_readme_shows_what_the_gate_answers(load):
    without = readme_blocks("lisp")[1].replace("  :when ((> c 0.0))\n", "")
    with pytest.raises(FalseRuleError) as caught:
        check_rule(load(without))
    said = str(caught.value).replace("mine/", "relu/")
    shown = readme_blocks("text")[0].strip()
    assert said.splitlines()[1:] == shown.splitlines()[1:]
