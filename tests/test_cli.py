"""The command line: exit codes, answers on stdout, the rest on stderr."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import eqsat
from eqsat import cli, text
from eqsat.codegen.kernel import KernelSource
from eqsat.errors import CompileError, EnvironmentMissingError
from eqsat.search import cpu_device, machine
from eqsat.search.optimize import Search
from eqsat.search.result import Optimized
from eqsat.trace import to_program
from tests.conftest import linear_gelu

GOOD = """(rewrite (Maximum (Mul (Const c) a) (Const 0.0)) (Mul (Const c) (Maximum a (Const 0.0))) :when ((> c 0.0))
  :name "scale-out" :phase algebra :numerics exact :law "max(c·a, 0) = c·max(a, 0)   if c > 0")
"""
FALSE = GOOD.replace(" :when ((> c 0.0))", "")
UNBOUND = GOOD.replace("(Mul (Const c) (Maximum a", "(Mul (Const d) (Maximum a")
OPEN = GOOD.rstrip()[:-1]
FORBIDDEN = '(output "/tmp/x" a)\n'


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a program file."""
    path = tmp_path / "linear_gelu.eqsat"
    path.write_text(text.dumps(to_program(linear_gelu())))
    return path


@pytest.fixture
def python_file(tmp_path: Path) -> Path:
    """Return a Python file with a builder and an expression."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from eqsat import tensor\n\n\ndef build():\n    return doubled.sum(0)\n\n\ndoubled = tensor('x', (4, 6), 'f32') * 2\n"
    )
    return path


def rule_file(folder: Path, body: str) -> Path:
    path = folder / "mine.egg"
    path.write_text(body)
    return path


def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return what stdout holds, which must be one JSON value."""
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimise"],
        ["optimize"],
        ["optimize", "no/such/file.eqsat"],
        ["--colour"],
        ["explain", "no/such/folder"],
        ["rules", "check", "none.egg"],
    ],
)
def test_a_wrong_call_ends_with_2_and_says_so_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == cli.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err


def test_the_installed_command_is_the_same_as_the_module() -> None:
    done = subprocess.run([sys.executable, "-m", "eqsat", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"eqsat, version {eqsat.__version__}"


def test_optimize_emits_cuda_without_a_gpu(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["optimize", str(program), "--target", "sm_90", "--no-measure", "--emit", "cu,ptx,cubin", "--out", str(out)]
    assert cli.run([*arguments, "--store", str(tmp_path / "s.sqlite"), "--json"]) == cli.OK
    record = answer(capsys)
    assert sorted(Path(p).suffix for p in record["files"]) == [".cu", ".cubin", ".ptx"] * (len(record["files"]) // 3)
    assert {p.suffix for p in out.iterdir()} == {".cu", ".cubin", ".ptx"}
    assert next(out.glob("*.cubin")).read_bytes().startswith(b"\x7fELF")
    assert ".target sm_90a" in next(out.glob("*.ptx")).read_text()
    assert record["receipt"]["search"]["verdict"] == "unmeasured"


def test_optimize_prints_one_json_object_with_a_valid_receipt(
    python_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "optimize",
        f"{python_file}:doubled",
        "--target",
        "cpu",
        "--budget",
        "5s",
        "--out",
        str(tmp_path / "out"),
        "--emit",
        "bundle",
    ]
    assert cli.run([*arguments, "--store", str(tmp_path / "s.sqlite"), "--json"]) == cli.OK
    record = answer(capsys)
    schema = json.loads((Path(machine.__file__).parent / "receipt.schema.json").read_text("utf-8"))
    jsonschema.validate(record["receipt"], schema)
    assert eqsat.load(tmp_path / "out").receipt.record == record["receipt"]


def test_a_python_file_without_a_name_uses_its_builder(
    python_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["optimize", str(python_file), "--target", "cpu", "--budget", "5s", "--store", str(tmp_path / "s.sqlite")]
    assert cli.run(arguments) == cli.OK
    out = capsys.readouterr().out
    assert "kernel   out = " in out
    assert "µs" in out


def test_a_name_that_a_python_file_lacks_is_answered_with_the_names_it_has(
    python_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["optimize", f"{python_file}:tripled"]) == cli.USAGE
    assert "doubled" in capsys.readouterr().err


def test_a_malformed_program_is_shown_with_line_column_and_caret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.eqsat"
    path.write_text("(program\n  (input x f33 (4))\n  (output y f32 (i) (read x i)))\n")
    assert cli.run(["optimize", str(path)]) == cli.USAGE
    err = capsys.readouterr().err
    assert f"{path}:2:" in err
    assert "^" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "sm_12"], "sm_90"),
        (["--emit", "exe"], "cubin"),
        (["--budget", "later"], "60s"),
        (["--numerics", "wild"], "reassociates"),
    ],
)
def test_options_out_of_range_name_the_choices(
    program: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["optimize", str(program), *options]) == cli.USAGE
    assert says in capsys.readouterr().err


def test_what_the_machine_lacks_ends_with_3(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resolve(target: str) -> machine.Place:
        raise EnvironmentMissingError("expected a C compiler; found none. Install gcc.")

    monkeypatch.setattr(machine, "resolve", resolve)
    assert cli.run(["optimize", str(program)]) == cli.ENVIRONMENT
    assert "Install gcc" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_ends_with_3(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = [
        "optimize",
        str(program),
        "--target",
        "sm_90",
        "--no-measure",
        "--emit",
        "cu",
        "--out",
        str(tmp_path / "file" / "x"),
    ]
    assert cli.run([*arguments, "--store", str(tmp_path / "s.sqlite")]) == cli.ENVIRONMENT
    assert "Choose a folder" in capsys.readouterr().err


def test_no_verified_kernel_ends_with_1(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(sources: list[KernelSource], threads: int = 0) -> Iterator[tuple[int, CompileError]]:
        return ((i, CompileError("the compiler is out of order")) for i in range(len(sources)))

    monkeypatch.setattr(cpu_device, "compile_many", refuse)
    arguments = ["optimize", str(program), "--target", "cpu", "--budget", "2s", "--store", str(tmp_path / "s.sqlite")]
    assert cli.run(arguments) == cli.FAILED
    assert "'refused': " in capsys.readouterr().err


def test_an_interrupt_ends_with_130_and_the_best_is_saved(
    program: Path, optimized: Optimized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = dict(optimized.receipt.record) | {"interrupted": True}
    kept = Optimized(optimized.executable, type(optimized.receipt)(record))
    monkeypatch.setattr(Search, "run", lambda self, baseline: kept)
    arguments = [
        "optimize",
        str(program),
        "--target",
        "cpu",
        "--out",
        str(tmp_path / "out"),
        "--store",
        str(tmp_path / "s.sqlite"),
    ]
    assert cli.run(arguments) == cli.INTERRUPTED
    assert eqsat.load(tmp_path / "out").receipt.interrupted


def test_an_interrupt_before_any_plan_ends_with_130_too(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Search, baseline: object) -> Optimized:
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", run)
    assert cli.run(["optimize", str(program), "--target", "cpu", "--store", str(tmp_path / "s.sqlite")]) == cli.INTERRUPTED
    assert "nothing was saved" in capsys.readouterr().err


def test_rules_list_names_every_rule_with_its_law(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rules", "list", "--json"]) == cli.OK
    rows = answer(capsys)
    assert len({r["name"] for r in rows}) == len(rows) > 50
    assert all(r["law"] and r["phase"] and r["numerics"] for r in rows)


def test_a_true_rule_file_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rules", "check", str(rule_file(tmp_path, GOOD)), "--json"]) == cli.OK
    (row,) = answer(capsys)
    assert row["admitted"]
    assert row["compared"] > 0


def test_a_false_rule_file_fails_with_a_counterexample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rules", "check", str(rule_file(tmp_path, FALSE))]) == cli.FAILED
    out = capsys.readouterr().out
    assert "REFUSED" in out
    assert "scale-out" in out


@pytest.mark.parametrize(
    "body", [UNBOUND, OPEN, FORBIDDEN, GOOD + GOOD], ids=["unbound", "unbalanced", "forbidden command", "two of a name"]
)
def test_a_malformed_rule_file_ends_with_2_and_its_place(tmp_path: Path, body: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = rule_file(tmp_path, body)
    assert cli.run(["rules", "check", str(path)]) == cli.USAGE
    err = capsys.readouterr().err
    assert f"{path}:" in err
    assert "^" in err


def test_rules_check_reports_every_rule_of_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good").mkdir()
    files = [str(rule_file(tmp_path, FALSE)), str(rule_file(tmp_path / "good", GOOD).rename(tmp_path / "other.egg"))]
    assert cli.run(["rules", "check", *files, "--json"]) == cli.FAILED
    false, good = answer(capsys)
    assert (false["name"], false["admitted"], false["file"]) == ("mine/scale-out", False, files[0])
    assert "extents" in false["counterexample"]
    assert good["admitted"]
    assert good["method"] == "proved"
    assert {"how", "trials", "time_ms", "bound", "line"} <= good.keys()


def test_evidence_is_written_for_the_built_in_rules_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["rules", "check", str(rule_file(tmp_path, GOOD)), "--write"]) == cli.USAGE
    assert "leave FILES out" in capsys.readouterr().err


def test_a_false_rule_stops_optimize_with_1(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["optimize", str(program), "--target", "cpu", "--rules", str(rule_file(tmp_path, FALSE))]
    assert cli.run([*arguments, "--store", str(tmp_path / "s.sqlite")]) == cli.FAILED
    assert "mine/scale-out" in capsys.readouterr().err


def test_explain_takes_a_folder_or_a_file(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["explain", str(saved)]) == cli.OK
    story = capsys.readouterr().out
    assert cli.run(["explain", str(saved / "receipt.json")]) == cli.OK
    assert capsys.readouterr().out == story
    assert "Proof that the plan is the program: " in story


def test_explain_refuses_what_is_no_receipt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "receipt.json").write_text('{"a": 1}')
    assert cli.run(["explain", str(tmp_path)]) == cli.USAGE
    assert "expected a receipt" in capsys.readouterr().err


def test_replay_and_verify_end_with_0_for_an_honest_bundle(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("replay", "verify"):
        assert cli.run([command, str(saved), "--json"]) == cli.OK
        assert answer(capsys)["ok"] is True


def test_replay_and_verify_end_with_1_for_a_changed_one(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    record = json.loads((folder / "receipt.json").read_text())
    record["plan"]["kernels"][0]["binary"] = "0" * 64
    (folder / "receipt.json").write_text(json.dumps(record))
    for command in ("replay", "verify"):
        assert cli.run([command, str(folder)]) == cli.FAILED
        assert "FAIL" in capsys.readouterr().out


def test_doctor_says_what_is_usable_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--json"]) == cli.OK
    rows = {r["part"]: r for r in answer(capsys)}
    assert {"egglog", "CPU", "C compilers", "NVRTC", "GPU", "store"} <= set(rows)
    assert rows["egglog"]["usable"]
    assert rows["C compilers"]["usable"]
    assert all(r["detail"] for r in rows.values())


def test_doctor_goes_on_where_a_part_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from eqsat.codegen.cpu import compiler

    monkeypatch.setattr(compiler, "compilers", lambda: ())
    assert cli.run(["doctor"]) == cli.OK
    out = capsys.readouterr().out
    assert "--  C compilers" in out
    assert "install gcc or clang" in out
    assert "store" in out


def test_a_constant_is_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chain.py"
    path.write_text("from eqsat import tensor\nx, v, w = (tensor(n, (64, 64), 'f32') for n in 'xvw')\nchain = x @ v @ w\n")
    arguments = ["optimize", f"{path}:chain", "--target", "sm_90", "--no-measure", "--store", str(tmp_path / "s.sqlite")]
    assert cli.run([*arguments, "--constant", "v", "--constant", "w", "--json"]) == cli.OK
    kernels = json.loads(capsys.readouterr().out)["receipt"]["plan"]["kernels"]
    assert [sorted(k["reads"]) for k in kernels if k["prepared"]] == [["v", "w"]]
    assert cli.run([*arguments, "--constant", "u"]) == cli.USAGE
    assert "among the inputs x, v, w; got 'u'" in capsys.readouterr().err
