"""The command line: optimize programs, look at rules and receipts, bench, and say what this machine can do.

Exit codes: 0 ok, 1 no verified kernel or a failed check, 2 usage, 3 environment, 130 interrupted with the best saved.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

import eqsat
from eqsat.cli_rules import add_commands
from eqsat.errors import EnvironmentMissingError, EqsatError, FalseRuleError, NoKernelError, UsageError, WrongResultError
from eqsat.programfile import program_in

OK, FAILED, USAGE, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 130


def run(arguments: list[str]) -> int:
    """Run the command line with `arguments`; return the exit code. Errors are printed on stderr, in one paragraph each."""
    try:
        code = commands.main(args=arguments, prog_name="eqsat", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _say("interrupted before there was anything to keep; nothing was saved", INTERRUPTED)
    except click.ClickException as e:
        e.show()
        return USAGE
    except (NoKernelError, WrongResultError, FalseRuleError) as e:
        return _say(str(e), FAILED)
    except EnvironmentMissingError as e:
        return _say(str(e), ENVIRONMENT)
    except UsageError as e:
        return _say(str(e), USAGE)
    except EqsatError as e:
        return _say(str(e), FAILED)


def _say(text: str, code: int) -> int:
    click.echo(f"eqsat: {text}", err=True)
    return code


def _emit(record: Mapping[str, Any] | list[Any], text: Callable[[], str], as_json: bool) -> None:
    click.echo(json.dumps(record, indent=1, default=str) if as_json else text())


@click.group()
@click.version_option(eqsat.__version__, prog_name="eqsat")
def commands() -> None:
    """Superoptimise tensor programs: saturate, extract, emit, verify, measure."""


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; everything else goes to stderr.")
_store = click.option(
    "--store", type=click.Path(path_type=Path), help="Where measurements are remembered (default: the user's cache)."
)
_rules = click.option("--rules", multiple=True, type=click.Path(path_type=Path), help="A rule file to add; may be repeated.")
_budget = click.option("--budget", default="60s", show_default=True, help='Time for the search, such as "60s" or "5min".')
_target = click.option(
    "--target", default="native", show_default=True, help="native, cpu, sm_80, sm_86, sm_89, sm_90, sm_100, sm_120."
)


@commands.command("optimize")
@click.argument("what", metavar="FILE[:NAME]")
@_target
@click.option("--emit", default="", help="Comma-separated: cu, c, ptx, cubin, so, receipt, bundle.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Folder for emitted files.")
@_rules
@_budget
@click.option("--precision", type=click.Choice(["strict", "tf32", "fast"]), default="strict", show_default=True)
@click.option("--numerics", default="exact,reassociates", show_default=True, help="Rule classes admitted, comma-separated.")
@click.option("--no-measure", is_flag=True, help="Choose by model; measure nothing.")
@click.option("--profile-rules", is_flag=True, help="Print matches and time of each rule.")
@click.option("--without", multiple=True, metavar="RULE", help="Leave a rule out; may be repeated.")
@click.option("--constant", multiple=True, metavar="INPUT", help="An input whose contents never change; may be repeated.")
@_store
@_json
def optimize_command(
    what: str, target: str, emit: str, out: Path, rules: tuple[Path, ...], budget: str, precision: str, numerics: str,
    no_measure: bool, profile_rules: bool, without: tuple[str, ...], constant: tuple[str, ...], store: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Optimize the program in FILE: a program text (.eqsat), or a Python file with NAME (an expression or a builder)."""
    wanted = _emit_kinds(emit)
    found = eqsat.optimize(
        program_in(what), target=target, budget=budget, rules=rules, precision=precision, numerics=numerics.split(","),
        measure=not no_measure, store=store, without=without, constants=constant,
    )  # fmt: skip
    written = emit_files(found.files(), wanted, out)
    interrupted = bool(found.receipt.interrupted)
    if interrupted and "bundle" not in wanted:
        written += emit_files(found.files(), ("bundle",), out)
    record = {"receipt": dict(found.receipt.record), "files": [str(p) for p in written]}
    _emit(record, lambda: f"{found.leaderboard}\n\n{found.receipt}", as_json)
    if profile_rules:
        rows = sorted(found.receipt.saturation["rules"], key=lambda r: -r["time_ms"])
        lines = [f"{r['name']:<40}{r['matches']:>9}{r['time_ms']:>9.2f} ms" for r in rows]
        click.echo("\n".join(lines), err=as_json)
    for p in written:
        click.echo(f"wrote {p}", err=True)
    return INTERRUPTED if interrupted else OK


_KINDS = ("cu", "c", "ptx", "cubin", "so", "receipt", "bundle")


def _emit_kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(k.strip() for k in text.split(",") if k.strip())
    if unknown := [k for k in kinds if k not in _KINDS]:
        raise UsageError(f"expected --emit out of {', '.join(_KINDS)}; got {', '.join(unknown)}")
    return kinds


def emit_files(files: Mapping[str, bytes], kinds: Iterable[str], folder: Path) -> list[Path]:
    """Write the files of a bundle that are of the kinds asked for; return their paths."""
    kinds = set(kinds)
    chosen = [
        n for n in files if "bundle" in kinds or Path(n).suffix[1:] in kinds or (n == "receipt.json" and "receipt" in kinds)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            (folder / name).write_bytes(files[name])
    except OSError as e:
        raise EnvironmentMissingError(f"expected to write to {folder}; got {e}. Choose a folder with space.") from e
    return [folder / n for n in chosen]


@commands.group("rules")
def rules_group() -> None:
    """List and check rewrite rules."""


@rules_group.command("list")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@_json
def rules_list(files: tuple[Path, ...], as_json: bool) -> int:
    """List the rules in FILES (default: the built-in ones) with their laws."""
    found = _rule_set(files)
    rows = [{"name": r.name, "phase": r.phase, "numerics": r.numerics, "law": r.law, "digest": r.digest} for r in found.rules]
    _emit(rows, lambda: "\n".join(f"{r['name']:<36}{r['phase']:<12}{r['numerics']:<14}{r['law']}" for r in rows), as_json)
    return OK


@rules_group.command("check")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--shipped", is_flag=True, help="Check the built-in rules (the default without FILES), unstable ones too.")
@click.option("--write", is_flag=True, help="Keep the evidence for the built-in rules in rules/evidence.json.")
@_json
def rules_check(files: tuple[Path, ...], shipped: bool, write: bool, as_json: bool) -> int:
    """Prove or test every law in FILES: exit 0 if all are admitted, 1 if one is refused, 2 if a file is malformed."""
    from eqsat.gate.evidence import write_committed  # only this command gates without a search
    from eqsat.rulecheck import judge_rules
    from eqsat.rulefile import builtin_rules, load_rules

    if write and files:
        raise UsageError("--write keeps the evidence for the built-in rules; leave FILES out")
    rules = [*(builtin_rules(unstable=True) if shipped or not files else ()), *(load_rules(files) if files else ())]
    verdicts = judge_rules(rules)
    _emit([v.record() for v in verdicts], lambda: "\n".join(map(str, verdicts)), as_json)
    if not all(v.admitted for v in verdicts):
        return FAILED
    if write:
        click.echo(f"wrote {write_committed([v.evidence for v in verdicts if v.evidence])}", err=True)
    return OK


def _rule_set(files: tuple[Path, ...]) -> Any:
    from eqsat.rulefile import builtin_rules, load_rules  # reads every rule file

    return load_rules(files) if files else builtin_rules()


add_commands(rules_group, _emit, program_in)


@commands.command("explain")
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--all", "everything", is_flag=True, help="Show commutations and regroupings too.")
@click.option("--width", type=click.IntRange(40), default=None, help="Characters of a line; the terminal's by default.")
@_json
def explain_command(folder: Path, everything: bool, width: int | None, as_json: bool) -> int:
    """Tell the story of a receipt as a proof: FOLDER is one that --emit bundle or save() wrote, or a receipt.json."""
    from eqsat.search.explain import explain, proof_of

    record = read_receipt(folder)
    columns = width or max(60, shutil.get_terminal_size((120, 24)).columns)
    _emit(proof_of(record) if as_json else {}, lambda: explain(record, everything=everything, width=columns), as_json)
    return OK


def read_receipt(path: Path) -> dict[str, Any]:
    """Return the receipt's record at `path` (the file, or a folder that holds it)."""
    file = path / "receipt.json" if path.is_dir() else path
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise UsageError(f"expected a receipt (JSON) at {file}; got {e}") from e
    if not isinstance(record, dict) or "program" not in record or "search" not in record:
        raise UsageError(f"expected a receipt written by eqsat at {file}; it lacks 'program' or 'search'")
    return record


@commands.command("replay")
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@_json
def replay_command(folder: Path, as_json: bool) -> int:
    """Do again what the receipt in FOLDER says: derive, emit, compile; compare digests."""
    from eqsat.search.replay import replay

    report = replay(folder)
    _emit(report.record(), lambda: str(report), as_json)
    return OK if report.ok else FAILED


@commands.command("verify")
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@_json
def verify_command(folder: Path, as_json: bool) -> int:
    """Check the kernels saved in FOLDER against the oracle again, and every digest."""
    from eqsat.search.replay import verify

    report = verify(folder)
    _emit(report.record(), lambda: str(report), as_json)
    return OK if report.ok else FAILED


class _Bench(click.Group):
    """A group whose first command, `board`, need not be named: `eqsat bench gemm` is `eqsat bench board gemm`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "--help"}:
            args = ["board", *args]
        return super().parse_args(ctx, args)


@commands.group("bench", cls=_Bench)
def bench_group() -> None:
    """Time the board's workloads beside their baselines (the default), or run the discovery suite."""


@bench_group.command("discovery")
@click.argument("rows", nargs=-1)
@click.option("--target", help="The target whose model chooses (default: each row's own).")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write the record to this file.")
def discovery_command(rows: tuple[str, ...], target: str | None, file: Path | None) -> int:
    """Choose plans by model for the suite's programs (or ROWS) and say which ones an expert would write: exit 1 unless all."""
    from eqsat.search import discovery  # stands on the whole pipeline

    record = discovery.run_suite(rows, target=target, tell=lambda outcome: click.echo(discovery.line(outcome)))
    ok = sum(r["ok"] for r in record["rows"].values())
    click.echo(f"{ok} of {len(record['rows'])} found")
    if file is not None and record["rows"]:
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": {}}
        merged = record | {"rows": kept["rows"] | record["rows"]}  # rows that were not run again stay
        file.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if len(record["rows"]) < len(discovery.rows_named(rows)):
        return _say("interrupted; the rows above are what there is", INTERRUPTED)
    return OK if ok == len(record["rows"]) else FAILED


_out = click.option("--out", type=click.Path(path_type=Path), help="Folder for the JSON file of this device.")
_modes = click.option(
    "--modes",
    default="eager,compile,max-autotune",
    show_default=True,
    help="PyTorch modes to compare with on a GPU, comma-separated.",
)
_shard = click.option(
    "--shard",
    default="0/1",
    show_default=True,
    metavar="I/N",
    help="Run every N-th row from the I-th on; shards may share --out.",
)


def _run_bench(source: str, names: tuple[str, ...], as_json: bool, modes: str, shard: str, **options: Any) -> int:
    from eqsat.search.bench import run_rows

    part = re.fullmatch(r"(\d+)/([1-9]\d*)", shard)
    if part is None or int(part[1]) >= int(part[2]):
        raise UsageError(f"expected --shard I/N with I < N; got {shard!r}")
    wanted = tuple(m.strip() for m in modes.split(",") if m.strip())
    record = run_rows(names, source=source, modes=wanted, shard=(int(part[1]), int(part[2])), **options)
    _emit(record, lambda: str(record["table"]), as_json)
    return OK


@bench_group.command("board")
@click.argument("names", nargs=-1)
@_target
@_budget
@_out
@_store
@_modes
@_shard
@_json
def bench_command(names: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Run the board (or the workloads NAMES) side by side with the device's baselines."""
    return _run_bench("board", names, as_json, **options)


@bench_group.command("sweep")
@click.argument("sweep")
@click.argument("names", nargs=-1)
@_target
@_budget
@_out
@_store
@_modes
@_shard
@_json
def sweep_command(sweep: str, names: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Run one kind of kernel over many shapes: SWEEP is gemm, attention or memory; NAMES choose some of its rows."""
    return _run_bench(f"sweep-{sweep}", names, as_json, **options)


@bench_group.command("program")
@click.argument("what", metavar="FILE[:NAME]")
@_target
@_budget
@_out
@_store
@_modes
@_json
def program_command(what: str, as_json: bool, **options: Any) -> int:
    """Run a program of your own; a Python file may define baseline(torch, *inputs) to compare with."""
    return _run_bench(what, (), as_json, shard="0/1", **options)


@bench_group.command("model")
@click.option(
    "--store", "stores", multiple=True, type=click.Path(path_type=Path, exists=True), help="Measurements; may be repeated."
)
@click.option("--target", default="sm_90", show_default=True)
@click.option("--write", is_flag=True, help="Keep the fit beside the code generators, where choices without a device use it.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for model-<target>.json.")
@_json
def model_command(stores: tuple[Path, ...], target: str, write: bool, out: Path | None, as_json: bool) -> int:
    """Fit the models on stored measurements of the board and the sweeps; say how well they order kernels left out of the fit."""
    from eqsat.search import model_fit

    record = model_fit.run(stores, target, write=write, out=out)
    _emit(record, lambda: model_fit.table(record), as_json)
    return OK


@commands.command("doctor")
@_json
def doctor_command(as_json: bool) -> int:
    """Say what is usable on this machine, and why not."""
    from eqsat.search.doctor import examine

    rows = examine()
    _emit([r.record() for r in rows], lambda: "\n".join(map(str, rows)), as_json)
    return OK
