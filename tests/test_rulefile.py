"""Rule files: what loads, how it is written out, and what is refused where."""

from __future__ import annotations

import pytest

from eqsat.egraph import check_syntax
from eqsat.errors import RuleError
from eqsat.rulefile import Rule, RuleSet, builtin_rules, load_rules

META = ':name "x" :phase algebra :numerics exact'


@pytest.fixture
def load(tmp_path):
    def from_text(text: str, name: str = "mine.egg") -> RuleSet:
        path = tmp_path / name
        path.write_text(text.replace("META", META), encoding="utf-8")
        return load_rules([path])

    return from_text


def one(rules: RuleSet) -> Rule:
    (rule,) = rules.rules
    return rule


def test_a_rewrite_is_written_with_its_guards_expanded(load):
    rule = one(load("(rewrite (Sum k (Mul a b)) (Mul a (Sum k b)) :when ((free-of k a)) META)"))
    assert rule.egglog("rs-algebra") == (
        "(rewrite (Sum k (Mul a b)) (Mul a (Sum k b)) :when ((= a--axes (axes a)) (set-not-contains a--axes k)) "
        ':ruleset rs-algebra :name "mine/x")'
    )


def test_each_analysis_is_read_once_however_many_guards_ask_for_it(load):
    rule = one(load("(rewrite (Sum k (Mul a b)) (Sum k (Mul b a)) :when ((has k a) (has k b) (share-axis a b)) META)"))
    assert [str(c) for c in rule.conditions].count("(= a--axes (axes a))") == 1


def test_a_birewrite_becomes_two_named_rewrites(load):
    rule = one(load("(birewrite (Mul a (Const 2.0)) (Add a a) META)"))
    first, second = rule.egglog("rs-q").splitlines()
    assert first == '(rewrite (Mul a (Const 2.0)) (Add a a) :ruleset rs-q :name "mine/x")'
    assert second == '(rewrite (Add a a) (Mul a (Const 2.0)) :ruleset rs-q :name "mine/x-reverse")'
    assert rule.names == ("mine/x", "mine/x-reverse")


def test_a_general_rule_keeps_its_body_and_actions(load):
    rule = one(load("(rule ((= e (Neg a)) (= a (Neg b))) ((union e b)) META)"))
    assert rule.egglog("rs-q") == '(rule ((= e (Neg a)) (= a (Neg b))) ((union e b)) :ruleset rs-q :name "mine/x")'


def test_a_rule_knows_where_it_stands(load):
    rule = one(load(";; a comment\n\n  (rewrite (Neg (Neg a)) a META)"))
    assert (rule.line, rule.phase, rule.numerics, rule.builtin) == (3, "algebra", "exact", False)
    assert rule.file.endswith("mine.egg")


def test_relations_and_facts_travel_with_the_rules(load):
    loaded = load("(my-tile 3) (relation my-tile (i64)) (my-tile -4)")
    assert [str(n) for n in loaded.facts] == ["(my-tile 3)", "(my-tile -4)"]
    assert "(relation my-tile (i64))" in [str(n) for n in loaded.declarations]


def test_a_users_rule_may_use_a_shipped_relation(load):
    relations = [d for d in builtin_rules().declarations if d.head == "relation"]
    shipped = next(d for d in relations if {s.text for s in d.items[2].items} == {"i64"})
    name, sorts = shipped.items[1].text, shipped.items[2].items
    fact = f"({name} {' '.join('1' for _ in sorts)})"
    assert [str(n) for n in load(fact).facts] == [fact]


def test_sets_of_rules_add_up_without_repeating_declarations(load):
    mine = load("(rewrite (Neg (Neg a)) a META)")
    both = builtin_rules() + mine
    assert len(both) == len(builtin_rules()) + 1
    assert len(set(map(str, both.declarations))) == len(both.declarations)


def test_unstable_rules_are_not_among_the_shipped_ones_unless_asked_for():
    assert not {"unstable"} & {r.numerics for r in builtin_rules()}
    assert {"unstable"} & {r.numerics for r in builtin_rules(unstable=True)}


def test_rules_can_be_admitted_by_class_and_left_out_by_name():
    kept = builtin_rules().admit(["exact"], without=["neg-neg"])
    assert {r.numerics for r in kept} == {"exact"}
    assert "neg-neg" not in {r.name for r in kept}


def test_the_digest_follows_the_content_and_not_the_place(load):
    first = one(load("(rewrite (Neg (Neg a)) a META)"))
    moved = one(load('\n\n(rewrite (Neg  (Neg a)) a :numerics exact :phase fold :name "y")', "other.egg"))
    changed = one(load("(rewrite (Neg (Neg a)) (Neg (Neg a)) META)"))
    assert first.digest == moved.digest != changed.digest


def test_every_shipped_rule_parses_in_egglog():
    for rule in builtin_rules(unstable=True):
        check_syntax(rule.egglog("rs-q"), rule.file)


def test_a_given_syntax_check_sees_every_rule(tmp_path):
    path = tmp_path / "mine.egg"
    path.write_text(f"(rewrite (Neg (Neg a)) a {META})")
    seen: list[str] = []
    load_rules([path], check_syntax=lambda text, file: seen.append(text))
    assert seen == ['(rewrite (Neg (Neg a)) a :ruleset rs-algebra :name "mine/x")']


MALFORMED = {
    "a parenthesis left open": ("(rewrite (Neg a)\n  (Exp a META", "2:3", "never closed"),
    "one parenthesis too many": ("(rewrite (Neg (Neg a)) a META))", "1:67", "closes nothing"),
    "a string left open": ('(rewrite (Neg a) a :name "x)', "1:26", "not closed"),
    "an unbound variable": ("(rewrite (Mul a b) (Mul a c) META)", "1:27", "the variable c is bound nowhere"),
    "an unbound variable in a guard": ("(rewrite (Exp a) a :when ((free-of j a)) META)", "1:36", "j is bound nowhere"),
    "an unbound number": ("(rewrite (Const c) (Const (* c d)) META)", "1:32", "d is bound nowhere"),
    "a birewrite with a side that binds less": ("(birewrite (Mul a b) (Neg a) META)", "1:19", "b is bound nowhere"),
    "a misspelt constructor": ("(rewrite (Summ k a) a META)", "1:10", "did you mean Sum?"),
    "a misspelt guard": ("(rewrite (Sum k a) a :when ((freeof k a)) META)", "1:29", "did you mean free-of?"),
    "a wrong number of arguments": ("(rewrite (Mul a) a META)", "1:10", "Mul takes 2 arguments (T T); got 1"),
    "a tensor where an axis is wanted": ("(rewrite (Sum (Neg a) b) b META)", "1:15", "expected a value of sort String"),
    "one variable with two sorts": ("(rewrite (Sum k (Mul a k)) a META)", "1:24", "used as String and as T"),
    "a whole number where a float is wanted": ("(rewrite (Mul (Const 1) a) a META)", "1:22", "write 1.0"),
    "a variable with a declared name": ("(rewrite (Neg extent) extent META)", "1:15", "rename the variable"),
    "a constructor without arguments": ("(rewrite (Neg Exp) a META)", "1:15", "Exp has the name of something declared"),
    "a left side that matches everything": ("(rewrite a (Neg (Neg a)) META)", "1:10", "the left side is a call"),
    "a guard about nothing": ('(rewrite (Neg a) a :when ((> 2.0 1.0)) META)', "1:27", "says nothing about the left side"),
    "a guard twice": ("(rewrite (Sum k a) a :when ((has k a) (has k a)) META)", "1:39", "given twice"),
    "a binding that nothing uses": ("(rewrite (Sum k a) a :when ((= n (extent k))) META)", "1:29", "binds n, which nothing uses"),
    "no name": ("(rewrite (Neg (Neg a)) a :phase algebra :numerics exact)", "1:1", "lacks :name"),
    "no phase": ('(rewrite (Neg (Neg a)) a :name "x" :numerics exact)', "1:1", "lacks :phase"),
    "no numeric class": ('(rewrite (Neg (Neg a)) a :name "x" :phase algebra)', "1:1", "lacks :numerics"),
    "an unknown phase": ('(rewrite (Neg a) a :name "x" :phase algbra :numerics exact)', "1:37", "did you mean algebra?"),
    "an unknown class": ('(rewrite (Neg a) a :name "x" :phase algebra :numerics exakt)', "1:55", "did you mean exact?"),
    "a ruleset": ("(rewrite (Neg a) a :ruleset r)", "1:20", "the phase says which ruleset"),
    "an unknown key": ("(rewrite (Neg a) a :whn () META)", "1:20", "did you mean :when?"),
    "a key twice": ("(rewrite (Neg a) a META META)", "1:61", ":name is given twice"),
    "a name in capitals": ('(rewrite (Neg a) a :name "Neg" :phase algebra :numerics exact)', "1:26", "lower case with hyphens"),
    "a name that ends like a second half": (
        '(rewrite (Neg a) a :name "x-reverse" :phase algebra :numerics exact)', "1:26", "without -reverse",
    ),
    "an approximation without its bound": (
        '(rewrite (Exp a) a :name "x" :phase algebra :numerics approximates)', "1:1", "states its largest relative error",
    ),
    "a bound that is no number": (
        '(rewrite (Exp a) a :name "x" :phase algebra :numerics approximates :bound "small")', "1:75", "between 0 and 1",
    ),
    "a bound on an exact rule": ('(rewrite (Exp a) a META :bound "1e-3")', "1:68", "no other"),
    "one side only": ("(rewrite (Neg a) META)", "1:1", "got 1 terms"),
    "conditions of a rule as guards": ("(rule ((= e (Neg a))) ((union e a)) :when ((has k a)) META)", "1:43", "in the body"),
    "a rule without actions": ("(rule ((= e (Neg a))) () META)", "1:23", "at least one element"),
    "an action that is none": ("(rule ((= e (Neg a))) ((delete (Neg a))) META)", "1:24", "an action is a union"),
    "an action that sets an analysis": ('(rule ((= e (Neg a))) ((set (dtype e) "f32")) META)', "1:24", "only to the files shipped"),
    "a relation named like a variable": ("(relation tile (i64))", "1:11", "at least one hyphen"),
    "a relation over an unknown sort": ("(relation my-tile (int))", "1:20", "unknown sort int"),
    "a relation declared twice": ("(relation my-tile (i64)) (relation my-tile (i64))", "1:36", "taken already"),
    "a fact with a variable": ("(relation my-tile (i64)) (my-tile n)", "1:26", "a fact has no variables"),
    "a fact of the wrong sort": ("(relation my-tile (i64)) (my-tile 1.0)", "1:35", "expected a value of sort i64"),
    "a fact about constness": ('(constant (Read "w" "k n"))', "1:1", "not allowed in a rule file"),
    "a bare word": ("rewrite", "1:1", "not allowed in a rule file"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_at_the_place(load, case):
    text, place, says = MALFORMED[case]
    with pytest.raises(RuleError) as caught:
        load(text)
    assert f"mine.egg:{place}: " in str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).endswith("^")


COMMANDS = [
    "include",
    "input",
    "output",
    "run",
    "run-schedule",
    "push",
    "pop",
    "let",
    "set",
    "extract",
    "check",
    "print-function",
    "print-size",
    "ruleset",
    "unstable-combined-ruleset",
    "py-exec",
    "py-eval",
    "simplify",
    "delete",
    "query-extract",
    "datatype",
    "sort",
    "function",
    "constructor",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_could_do_something_else_is_refused(load, command):
    with pytest.raises(RuleError, match=f"{command} is (not allowed|open only)"):
        load(f'({command} "/etc/passwd" (x) T)')


def test_a_name_taken_twice_names_both_places(load):
    with pytest.raises(RuleError, match=r"mine\.egg:2:1: the name mine/x is taken by the rule at .*mine\.egg:1"):
        load("(rewrite (Neg (Neg a)) a META)\n(rewrite (Exp (Log a)) a META)")


def test_the_second_half_of_a_birewrite_takes_a_name_too(load):
    both = load('(birewrite (Mul a b) (Mul b a) META)\n(rewrite (Neg (Neg a)) a :name "x-r" :phase algebra :numerics exact)')
    assert [n for r in both for n in r.names] == ["mine/x", "mine/x-reverse", "mine/x-r"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RuleError, match=r"nowhere\.egg.*cannot be read"):
        load_rules([tmp_path / "nowhere.egg"])


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "binary.egg"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuleError, match=r"binary\.egg.*UTF-8"):
        load_rules([path])


@pytest.mark.parametrize("text", ["(" * 5000, "(" * 5000 + ")" * 5000])
def test_a_file_nested_without_end_is_refused_where_it_gets_too_deep(load, text):
    with pytest.raises(RuleError, match=r"mine\.egg:1:101: .*deeper than 100"):
        load(text)


def test_a_directory_of_the_same_stem_twice_is_a_name_clash(tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "mine.egg")
        paths[-1].write_text(f"(rewrite (Neg (Neg a)) a {META})")
    with pytest.raises(RuleError, match="is taken by the rule at"):
        load_rules(paths)
