"""A receipt is a claim that can be checked again: what holds is said to hold, what was changed is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eqsat.errors import EnvironmentMissingError
from eqsat.search import machine
from eqsat.search.explain import explain
from eqsat.search.replay import Report, replay, verify


def failed(report: Report) -> set[str]:
    return {f.subject for f in report.findings if not f.holds}


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, name: str, change: Any) -> None:
    record = json.loads((folder / name).read_text())
    change(record)
    (folder / name).write_text(json.dumps(record))


def test_an_untouched_bundle_replays(saved: Path) -> None:
    report = replay(saved)
    assert report.ok, str(report)
    assert {f.subject for f in report.findings} >= {"derivation", "kernel 0 source", "kernel 0 binary", "program digest"}
    assert "derived" in next(f.detail for f in report.findings if f.subject == "derivation")


def test_a_cuda_bundle_replays_without_a_gpu(saved_sm90: Path) -> None:
    report = replay(saved_sm90)
    assert report.ok, str(report)


def test_an_untouched_bundle_verifies_with_the_power_of_its_checks(saved: Path) -> None:
    report = verify(saved)
    assert report.ok, str(report)
    assert sum(f.subject.startswith("check ") for f in report.findings) >= 3
    assert "power of the checks" in {f.subject for f in report.findings}


def test_verifying_a_cuda_bundle_needs_its_device(saved_sm90: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cuda_place", lambda wanted: "there is no GPU")
    with pytest.raises(EnvironmentMissingError, match="there is no GPU"):
        verify(saved_sm90)


def test_a_changed_source_is_found(copy: Path) -> None:
    text = (copy / "kernel0.c").read_text()
    (copy / "kernel0.c").write_text(text + "\n/* faster, trust me */\n")
    assert "kernel 0 source digest" in failed(replay(copy))


def test_a_changed_binary_is_found_before_it_is_believed(copy: Path, saved_sm90: Path) -> None:
    (copy / "kernel0.so").write_bytes((copy / "kernel0.so").read_bytes() + b"\0")
    assert "kernel 0 binary digest" in failed(verify(copy))
    assert "kernel 0 binary digest" in failed(replay(copy))


def test_a_receipt_for_another_program_is_found(copy: Path) -> None:
    edit(copy, "receipt.json", lambda r: r["program"].update(digest="0" * 64))
    assert "program digest" in failed(replay(copy))


def test_a_plan_that_no_rule_derives_is_found(copy: Path) -> None:
    edit(copy, "plan.json", lambda r: r.update(program=r["program"].replace("0.044715", "0.0447")))
    assert {"derivation", "program digest"} <= failed(replay(copy))


def test_a_kernel_that_is_wrong_is_found(copy: Path) -> None:
    edit(copy, "plan.json", lambda r: r.update(program=r["program"].replace("0.044715", "0.5")))
    report = verify(copy)
    assert any(s.startswith("check ") for s in failed(report)), str(report)


def test_explain_names_rules_laws_and_what_is_not_proved(saved: Path) -> None:
    record = json.loads((saved / "receipt.json").read_text())
    story = explain(record, everything=True)
    for rule in record["rules"]:
        assert rule["name"] in story
        assert rule["law"] in story
    for limit in record["not_proved"]:
        assert limit in story


def test_explain_hides_rearrangements_and_counts_them(saved: Path) -> None:
    record = json.loads((saved / "receipt.json").read_text())
    steps = record["derivation"]["steps"]
    steps += [dict(steps[0], rule="mul-shuffle", rearranges=True), dict(steps[0], rule="mul-shuffle", rearranges=True)]
    hidden = sum(bool(s["rearranges"]) for s in steps)
    assert f"{hidden} " in next(line for line in explain(record).splitlines() if "not shown" in line)
    assert "mul-shuffle" not in explain(record)
    assert "mul-shuffle" in explain(record, everything=True)
