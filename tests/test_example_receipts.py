"""The receipts kept beside the examples are valid, closed, and about the examples as they are."""

import json
from pathlib import Path

import jsonschema
import pytest

import eqsat.search.receipt
from eqsat import text
from eqsat.programfile import program_in
from eqsat.trace import as_program

ROOT = Path(__file__).resolve().parent.parent
KEPT = sorted((ROOT / "examples" / "receipts").iterdir())
SCHEMA = json.loads((Path(eqsat.search.receipt.__file__).parent / "receipt.schema.json").read_text())


@pytest.mark.parametrize("folder", KEPT, ids=lambda f: f.name)
def test_a_kept_receipt_is_valid_verified_and_closed(folder: Path) -> None:
    record = json.loads((folder / "receipt.json").read_text())
    jsonschema.validate(record, SCHEMA)
    assert record["search"]["verdict"].startswith("closed")
    assert record["derivation"]["status"] == "derived"
    assert all(c["passed"] for c in record["verification"]["checks"])


@pytest.mark.parametrize("folder", KEPT, ids=lambda f: f.name)
def test_a_kept_receipt_is_about_the_example_as_it_is(folder: Path) -> None:
    record = json.loads((folder / "receipt.json").read_text())
    program = as_program(program_in(str(ROOT / "examples" / f"{folder.name}.py")))
    assert text.loads(record["program"]["text"]).digest == program.digest
