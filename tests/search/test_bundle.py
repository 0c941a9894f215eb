"""Bundles hold everything that running and checking needs; receipts follow their schema; damage is told, not run."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import eqsat
from eqsat.errors import UsageError
from eqsat.search import bundle
from eqsat.search.result import Optimized

SCHEMA: dict[str, Any] = json.loads(importlib.resources.files("eqsat.search").joinpath("receipt.schema.json").read_text("utf-8"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("which", ["saved", "saved_sm90"])
def test_a_bundle_read_and_written_again_is_the_same(which: str, request: pytest.FixtureRequest) -> None:
    files = files_of(request.getfixturevalue(which))
    executable, receipt = bundle.from_files(files)
    assert bundle.to_files(executable, receipt) == files


def test_a_bundle_survives_packing(saved: Path) -> None:
    files = files_of(saved)
    assert bundle.unpack(bundle.pack(files)) == files


def test_a_cuda_bundle_holds_source_ptx_and_cubin_made_without_a_gpu(saved_sm90: Path) -> None:
    found = eqsat.load(saved_sm90)
    assert len(found.cubin) == len(found.executable.steps)
    assert all(image.startswith(b"\x7fELF") for image in found.cubin)
    assert ".target sm_90a" in found.ptx
    assert "__global__" in found.source
    assert {p.suffix for p in saved_sm90.iterdir()} == {".cu", ".ptx", ".cubin", ".json"}


@pytest.mark.parametrize("which", ["saved", "saved_sm90"])
def test_receipts_follow_the_schema(which: str, request: pytest.FixtureRequest) -> None:
    record = json.loads((request.getfixturevalue(which) / "receipt.json").read_text())
    jsonschema.validate(record, SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("verification"),
        lambda r: r["search"].update(verdict="probably closed"),
        lambda r: r["plan"]["kernels"].clear(),
        lambda r: r["program"].update(digest="abc"),
        lambda r: r.update(speed=1),
    ],
    ids=["an entry is missing", "another verdict", "no kernel", "a short digest", "an unknown entry"],
)
def test_the_schema_refuses_what_is_no_receipt(saved: Path, damage: Any) -> None:
    record = json.loads((saved / "receipt.json").read_text())
    damage(record)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_every_entry_of_a_receipt_is_described_by_the_schema(optimized: Optimized) -> None:
    assert set(SCHEMA["required"]) <= set(optimized.receipt.record) <= set(SCHEMA["properties"])
    assert set(SCHEMA["properties"]) - set(optimized.receipt.record) == {"regions"}  # of programs searched region by region


@pytest.mark.parametrize("name", ["plan.json", "receipt.json", "kernel0.c", "kernel0.so"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    files = files_of(saved)
    del files[name]
    with pytest.raises(UsageError, match=name):
        bundle.from_files(files)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"class": "Cpu', b'"class": "Gpu'),
        (b'"family": "contract"', b'"family": "stencil"'),
        (b'"fields": {', b'"fields": {"warp": 1,'),
        (b"{", b"["),
    ],
)
def test_a_malformed_plan_is_refused(saved: Path, old: bytes, new: bytes) -> None:
    files = files_of(saved)
    changed = files["plan.json"].replace(old, new)
    assert changed != files["plan.json"]
    with pytest.raises(UsageError, match="expected a bundle"):
        bundle.from_files(files | {"plan.json": changed})


def test_loading_what_is_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a folder"):
        eqsat.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="expected a bundle"):
        eqsat.load(tmp_path)
