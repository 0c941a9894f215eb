"""The bench tool: optimize every row of the board, then time results and baselines side by side in a fresh process.

The timing process gets saved bundles only, a cleaned environment (variables that pin a slower BLAS kernel are removed, one
thread on the CPU, as in the search), and interleaves all contestants of a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eqsat.errors import EnvironmentMissingError, EqsatError, UsageError
from eqsat.search import machine
from eqsat.search.beside import MISLEADING
from eqsat.search.machine import Place
from eqsat.search.optimize import optimize
from eqsat.search.store import Store, default_path
from eqsat.search.workloads import Workload, workloads_of

MODES = ("eager", "compile", "max-autotune")
ANSWER = "eqsat-answer "  # begins a line of the timing process that is for its parent
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_rows(
    names: Sequence[str] = (),
    *,
    source: str = "board",
    target: str = "native",
    budget: str | float = "60s",
    store: Path | None = None,
    out: Path | None = None,
    modes: Sequence[str] = MODES,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Optimize workloads and time them beside their baselines.

    Parameters
    ----------
    names : sequence of str
        Rows by name or part of a name; all of the device's rows if empty.
    source : str
        "board", "sweep-" and the name of a sweep, or FILE[:NAME] for a program of the user's own.
    target : str
    budget : str or float
        For each row's search.
    store : Path, optional
    out : Path, optional
        Folder for `<device>.json` (or `<device>-<sweep or file>.json`); results of rows that were not run again are kept.
    modes : sequence of str
        PyTorch modes to compare with on CUDA, out of `MODES`.
    shard : (i, n)
        Run every n-th row only, from the i-th on: n processes, each with a device of its own, share the work.

    Returns
    -------
    dict
        The record that is written, and `table`, the same as text.

    Raises
    ------
    EnvironmentMissingError
        The target cannot be measured on this machine.
    UsageError
        No row has such a name, or there is no such sweep, file or mode.
    """
    place = machine.resolve(target)
    kind = place.target.kind
    every = workloads_of(source, kind)
    rows = [w for w in every if not names or any(n in w.name for n in names)][shard[0] :: shard[1]]
    if not rows:
        raise UsageError(f"no row of {source} for {kind} matches {list(names)}; rows: {[w.name for w in every]}")
    if unknown := [m for m in modes if m not in MODES]:
        raise UsageError(f"expected modes out of {', '.join(MODES)}; got {', '.join(unknown)}")
    if place.open_device is None:
        raise EnvironmentMissingError(f"expected a device to measure {target} on; {place.note}. Use --target cpu.")
    with _environment(dict.fromkeys(_ONE_THREAD, "1") if kind == "cpu" else {}):
        return _run(rows, source, place, target, budget, store, out, modes)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for this process and those that it starts meanwhile."""
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for k, old in before.items():
            os.environ.pop(k) if old is None else os.environ.update({k: old})


def _run(
    rows: Sequence[Workload],
    source: str,
    place: Place,
    target: str,
    budget: str | float,
    store: Path | None,
    out: Path | None,
    modes: Sequence[str],
) -> dict[str, Any]:
    kept = Store(store or default_path())
    record: dict[str, Any] = {"device": place.name, "fingerprint": place.fingerprint, "source": source, "rows": {}}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(kept),
        contextlib.closing(Timer(source, place, Path(folder), modes)) as timer,
    ):
        for w in rows:
            row = _search(w, target, budget, kept, Path(folder) / w.name)
            if "error" not in row:
                row |= timer.time(w.name) | {"rates": timer.rates}
            if "eqsat" in row.get("times", {}) and row["bound"] == "memory":
                row["ceiling"] = _share_of_ceiling(row, timer.rates)
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            record["rows"][w.name] = row | {"created": created}
            record |= {"created": created, "environment": timer.environment, "rates": timer.rates}
            if out is not None:
                record["rows"] |= {w.name: _written(record, w.name, out)}  # what is measured is kept, whatever happens next
    shown = record if out is None else json.loads((out / f"{_file_name(place.name, source)}.json").read_text())
    return shown | {"table": table(shown)}


class Timer:
    """The process in which results are timed beside their baselines: not the one that searched, and without misleading variables.

    It is started anew if a row kills it; that row is left without times, with a note.
    """

    def __init__(self, source: str, place: Place, folder: Path, modes: Sequence[str]) -> None:
        where = source if source == "board" or source.startswith("sweep-") else str(Path(source).resolve())
        self._request = json.dumps({"source": where, "kind": place.target.kind, "modes": list(modes)})
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.environment: dict[str, Any] = {}
        self.rates: dict[str, Any] = {}

    def time(self, name: str) -> dict[str, Any]:
        """Return the times of the row whose bundle lies in the folder under its name."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        found = self._answer()
        if found is None:
            self._process.communicate()
            status, self._process = self._process.returncode, None
            return {"times": {}, "note": f"the timing process ended with status {status}"}
        return found

    def _start(self) -> None:
        env = {k: v for k, v in os.environ.items() if k not in MISLEADING} | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "eqsat.search.bench_timing", self._request]
        self._process = subprocess.Popen(
            command, cwd=self._folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        first = self._answer()
        if first is None:
            raise EnvironmentMissingError(
                f"the timing process ended with status {self._process.wait()} before it began; its output is above"
            )
        self.environment, self.rates = first["environment"], first["rates"]

    def _answer(self) -> dict[str, Any] | None:
        """Return the next answer; other lines that the process prints go to stderr; None if it ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                found: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return found
            if line.strip():
                sys.stderr.write(line)
        return None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()  # closes what it reads, waits for it, and closes what it writes


def _share_of_ceiling(row: dict[str, Any], rates: dict[str, Any]) -> float:
    """Return the rate of a row's minimal traffic over the ceiling measured in its run.

    The ceiling is the read rate for bytes that are read alone, the copy rate for as many bytes written and read with them.
    """
    copied = 2 * row["written_bytes"]
    least_ns = max(row["program_bytes"] - copied, 0) / rates["read"] + min(copied, row["program_bytes"]) / rates["copy"]
    return float(least_ns / row["times"]["eqsat"]["median_ns"])


def _search(w: Workload, target: str, budget: str | float, store: Store, folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    print(f"search {w.name}", file=sys.stderr, flush=True)  # noqa: T201 - progress of a long run
    try:
        best = optimize(w.program(), target=target, budget=budget, store=store, progress=False)
    except EqsatError as e:
        return {"bound": w.bound, "goal": w.goal, "error": f"{type(e).__name__}: {e}"[:500]}
    best.save(folder)
    r = best.receipt.record
    return {
        "bound": w.bound,
        "goal": w.goal,
        "search_s": time.monotonic() - began,
        "verdict": r["search"]["verdict"],
        "gap": r["search"]["gap"],
        "counts": r["search"]["counts"],
        "saturation_ms": r["saturation"]["time_ms"],
        "program_bytes": r["program"]["bytes"],
        "written_bytes": sum(o.bytes for o in best.executable.plan.program.outputs),
        "plan_bytes": r["plan"]["bytes"],
        "plan_flops": r["plan"]["flops"],
        "kernels": [
            {"family": k["family"], "schedule": k["schedule"], "shown": "; ".join(k["shown"]), "knobs": k["knobs"]}
            for k in r["plan"]["kernels"]
        ],
        "rules": [s["rule"] for s in r["derivation"].get("steps", ()) if not s.get("rearranges")],
        "derivation": r["derivation"]["status"],
        "worst": max((c["worst"] for c in r["verification"]["checks"]), default=None),
        "power": r["verification"]["power"],
        "searched_ns": r["timing"]["median_ns"],
    }


def _written(record: dict[str, Any], name: str, out: Path) -> dict[str, Any]:
    """Write a row to the device's file for its source, keeping the rows that are there; return the row.

    One whose search ended with its budget does not take the place of one that was faster beside its baselines.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{_file_name(record['device'], record['source'])}.json"
    row: dict[str, Any] = record["rows"][name]
    with _locked(out):
        rows = json.loads(path.read_text()).get("rows", {}) if path.exists() else {}
        if name not in rows or _replaces(row, rows[name]):
            path.write_text(json.dumps(record | {"rows": {**rows, name: row}}, indent=1) + "\n")
    return row


def _replaces(new: dict[str, Any], old: dict[str, Any]) -> bool:
    return new.get("verdict", "open") != "open" or _ratio(new) >= _ratio(old)


def _ratio(row: dict[str, Any]) -> float:
    """Return the best baseline's time over ours, 0 if there is none."""
    others = [t["median_ns"] for k, t in row.get("times", {}).items() if k not in ("eqsat", "again")]
    return float(min(others) / row["times"]["eqsat"]["median_ns"]) if others and "eqsat" in row["times"] else 0.0


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other shards from writing to a folder meanwhile."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _file_name(device: str, source: str) -> str:
    """Return a file's name out of a device's name and, unless it is the board, what was run."""
    own = "" if source == "board" else source if source.startswith("sweep-") else Path(source.split(":")[0]).stem
    return re.sub(r"[^a-z0-9]+", "-", f"{device} {own}".lower()).strip("-")


def table(record: dict[str, Any]) -> str:
    """Return the rows as text: times with their 95 % interval, ratio to the best baseline, share of the measured rate."""
    head = f"{'workload':<44}{'eqsat µs':>30}{'best baseline':>24}{'ratio':>7}{'GB/s':>8}{'GFLOP/s':>10}  search"
    lines = [f"{record['device']}, {record['created']}", head]
    for name, row in record["rows"].items():
        if "times" not in row or "eqsat" not in row["times"]:
            lines.append(f"{name:<44}{row.get('error', row.get('note', 'not timed'))[:80]}")
            continue
        own = row["times"]["eqsat"]
        others = {k: v for k, v in row["times"].items() if k not in ("eqsat", "again")}
        best = min(others, key=lambda k: others[k]["median_ns"], default="")
        ratio = f"{others[best]['median_ns'] / own['median_ns']:.2f}" if best else "–"
        shown = f"{own['median_ns'] / 1e3:.2f} [{own['low_ns'] / 1e3:.2f}, {own['high_ns'] / 1e3:.2f}]"
        other = f"{others[best]['median_ns'] / 1e3:.2f} {best}" if best else "none"
        rate, flops = row["program_bytes"] / own["median_ns"], row["plan_flops"] / own["median_ns"]
        lines.append(f"{name:<44}{shown:>30}{other:>24}{ratio:>7}{rate:>8.0f}{flops:>10.0f}  {row['verdict']}")
    return "\n".join(lines)


def interval(measured: Any) -> dict[str, Any]:
    """Return a measurement as plain data without its samples."""
    record = dataclasses.asdict(measured)
    record["samples"] = len(record.pop("samples_ns"))
    return record
