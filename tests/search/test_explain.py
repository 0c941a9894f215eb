"""A receipt told as a proof: numbered steps with law and evidence, in lines of a given width."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import eqsat.search.receipt
from eqsat import cli, optimize, tensor
from eqsat import numpy_like as fn
from eqsat.search.explain import explain, proof_of
from eqsat.search.prooftext import wrapped

SCHEMA = json.loads((Path(eqsat.search.receipt.__file__).parent / "receipt.schema.json").read_text())


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """Return the receipt of a program with two outputs that share a derivation."""
    x, g, w = tensor("x", (64, 4096), "bf16"), tensor("g", (4096,), "bf16"), tensor("w", (4096, 512), "bf16")
    out = fn.rms_norm(x, g) @ w
    found = optimize([fn.silu(out), out], target="sm_90", measure=False, store=":memory:")
    return dict(json.loads(json.dumps(dict(found.receipt.record))))


def test_a_receipt_with_parts_is_of_the_schema(record: dict[str, Any]) -> None:
    jsonschema.validate(record, SCHEMA)
    assert record["derivation"]["goals"] == 2


@pytest.mark.parametrize("width", [60, 110])
def test_no_line_of_the_proof_is_wider_than_asked(record: dict[str, Any], width: int) -> None:
    story = explain(record, width=width).split("\nPlan\n")[0]
    assert max(map(len, story.splitlines())) <= width + 1  # a closing parenthesis may follow


def test_steps_are_numbered_and_say_rule_law_and_evidence(record: dict[str, Any]) -> None:
    story = explain(record)
    assert re.search(r"\n  \d+\. div-recip: a / b = a·\(1/b\)\n       \(reassociates; proved by normal form\)\n", story)
    assert "weakest evidence of a rule: " in story
    assert "Values: proved equal over the reals" in story


def test_reorderings_are_shown_only_if_asked_for(record: dict[str, Any]) -> None:
    hidden = sum(s["rearranges"] for s in record["derivation"]["steps"])
    assert hidden
    assert f"{hidden} steps not shown" in explain(record)
    assert "mul-commute" not in explain(record)
    numbers = [int(n) for n in re.findall(r"\n  (\d+)\. ", explain(record, everything=True))]
    assert numbers == list(range(1, len(record["derivation"]["steps"]) + 1))


def test_every_letter_is_explained_where_it_is_first_shown(record: dict[str, Any]) -> None:
    seen: set[str] = set()
    story = explain(record, everything=True, width=4000).split("\nPlan\n")[0]
    for block in re.split(r"\n(?=  \d+\. |\n)", story.split("Proof that")[1]):
        seen |= set(re.findall(r"where ([A-Z]\d*) = ", block))
        assert set(re.findall(r"(?<![\w(])([A-Z]\d*)(?=[·)/⟧]|$)", block, re.MULTILINE)) <= seen


def test_the_changed_part_is_marked_in_the_whole(record: dict[str, Any]) -> None:
    assert re.search(r"\n       in .*⟦.*⟧", explain(record))


def test_a_shared_equality_is_a_lemma_that_both_outputs_use(record: dict[str, Any]) -> None:
    parts = proof_of(record)["parts"]
    assert [p["name"] for p in parts][-2:] == ["out0", "out1"]
    lemmas = {p["name"] for p in parts[:-2]}
    used = {s["rule"] for p in parts for s in p["steps"] if s["rule"].startswith("lemma")}
    assert used == lemmas


def test_the_proof_as_json_has_every_step_with_both_sides(
    record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "receipt.json").write_text(json.dumps(record))
    assert cli.run(["explain", str(tmp_path), "--json"]) == cli.OK
    told = json.loads(capsys.readouterr().out)
    steps = [s for p in told["parts"] for s in p["steps"]]
    assert len(steps) == len(record["derivation"]["steps"])
    assert all(s["before"] and s["after"] for s in steps)
    assert told["proof"]["method"] == "derived"


def test_a_receipt_without_a_derivation_says_so(record: dict[str, Any]) -> None:
    gone = {**record, "derivation": {"status": "not found: the limit on nodes came first", "steps": []}}
    assert "no derivation (not found: the limit on nodes came first)" in explain(gone)


def test_lines_are_broken_after_operators() -> None:
    assert wrapped("aaaa·bbbb + cccc·dddd", 24, "  x = ", "      ") == ["  x = aaaa·bbbb + cccc·", "      dddd"]
    assert wrapped("a" * 50, 30, "", "") == ["a" * 30, "a" * 20]
