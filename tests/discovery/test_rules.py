"""The shipped rules are general laws: none is named after a pattern that the suite discovers, nor speaks of one."""

import re

import pytest

from eqsat.rulefile import Rule, builtin_rules

PATTERNS = (
    "attention", "softmax", "flash", "norm", "lora", "adapter", "mlp", "gate", "swiglu", "qkv", "query", "decode", "causal", "sliding",
    "alibi", "crossentropy", "logsumexp", "variance", "welford", "distance", "chain", "frobenius", "trace", "winograd", "conv",
    "transformer", "linear", "dequant", "quant",
)  # fmt: skip


def rules() -> tuple[Rule, ...]:
    return builtin_rules(unstable=True).rules


@pytest.mark.parametrize("word", PATTERNS)
def test_no_rule_names_a_pattern(word: str) -> None:
    named = [r.name for r in rules() if word in re.sub(r"[^a-z]", "", r.name.lower())]
    told = [r.name for r in rules() if re.search(rf"\b{word}", r.law.lower())]
    assert (named, told) == ([], [])


def test_there_are_rules_to_look_at() -> None:
    assert len(rules()) > 50
