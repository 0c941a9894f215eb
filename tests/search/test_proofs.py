"""Plans are compared with their program before they are compiled: wrong ones are refused, and the rule at fault is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqsat import numpy_like as fn
from eqsat import optimize, tensor
from eqsat.codegen.targets import parse_target
from eqsat.errors import NoKernelError
from eqsat.gate.evidence import Evidence
from eqsat.proof.agreement import Agreement
from eqsat.rulefile import RuleSet, load_rules
from eqsat.search import machine, proofs
from eqsat.search.machine import Place
from eqsat.search.proofs import proof_record
from eqsat.search.rulebase import admitted_rules
from tests.search.fake_device import FakeDevice


def with_false_rule(monkeypatch: pytest.MonkeyPatch, folder: Path, rule: str) -> None:
    """Let a false rule past the gate."""
    file = folder / "false.egg"
    file.write_text(rule)
    false = load_rules([file])

    def admitted(options: object) -> tuple[RuleSet, dict[str, Evidence]]:
        found, evidence = admitted_rules(options)  # type: ignore[arg-type]
        return found + false, evidence

    monkeypatch.setattr("eqsat.search.optimize.admitted_rules", admitted)


NO_EXP = '(rewrite (Exp a) a :name "forget-exp" :phase algebra :numerics exact :law "e^a = a, which is false")'


def test_by_model_a_wrong_plan_is_refused_and_the_rule_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_false_rule(monkeypatch, tmp_path, NO_EXP)
    x = tensor("x", (64, 64), "f32")
    found = optimize(fn.exp(x) + 1.0, target="sm_90", measure=False, store=":memory:")
    assert found.receipt.proof["method"] in ("derived", "identical")
    assert found.receipt.proof["value"]["method"] in ("identical", "field", "normal form")
    (note,) = (n for n in found.receipt.notes if "refused" in n)
    assert "is the first that changes a value: rule false/forget-exp is left out" in note


def test_measured_plans_are_refused_before_they_are_compiled_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_false_rule(monkeypatch, tmp_path, NO_EXP)
    device = FakeDevice()
    place = Place(parse_target("cpu"), device.name, device.fingerprint, lambda store: device)
    monkeypatch.setattr(machine, "resolve", lambda target: place)
    x = tensor("x", (64, 64), "f32")
    found = optimize(fn.exp(x) + 1.0, store=":memory:", budget=10)
    assert any("refused" in n and "false/forget-exp" in n for n in found.receipt.notes)
    assert found.receipt.proof["value"]["method"] in ("identical", "field", "normal form")


def test_a_search_that_finds_wrong_plans_only_gives_up_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "agree", lambda *sides, relative: Agreement("refuted", note="made up"))
    with pytest.raises(NoKernelError, match="refused before it was compiled: not equal: made up"):
        optimize(tensor("x", (8, 8), "f32") * 2, target="sm_90", measure=False, store=":memory:")


def test_the_receipt_says_how_the_plan_is_known_to_be_the_program() -> None:
    x, w = tensor("x", (64, 32), "f32"), tensor("w", (32, 16), "f32")
    found = optimize((x @ w).sum(-1), target="sm_90", measure=False, store=":memory:")
    proof = found.receipt.proof
    assert proof["method"] == "derived"
    assert proof["weakest"] in ("proved", "field", "fuzz")
    assert proof["value"]["method"] in ("field", "normal form")
    assert "proof    derived (weakest evidence of a rule: " in str(found)


def test_without_a_derivation_the_comparison_of_values_counts() -> None:
    value = Agreement("field", -45.0, 2, 18)
    found = proof_record(value, {"status": "not found: the time limit came", "steps": []}, {})
    assert (found["method"], found["weakest"], found["value"]["log2_bound"]) == ("field", None, -45.0)


def test_a_derivation_by_a_rule_without_evidence_does_not_count() -> None:
    steps = {"status": "derived", "steps": [{"rule": "unknown"}]}
    assert proof_record(Agreement("float", None, 4, 9), steps, {})["method"] == "float"
