"""Check the CUDA side on a real GPU in one run: compile, verify and time problems of every family; write JSON, print a table.

    PYTHONPATH=. python3 bench/device_selfcheck.py OUT [--seconds 270] [--only TEXT] [--points 4] [--no-board]

Problems come from tests/codegen (small and odd ones) and from the board's shapes. Where a problem has no schedules of its own,
legal points are drawn at random from every schedule class of every CUDA family. A problem that fails costs only itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eqsat.codegen.cuda import families
from eqsat.codegen.kernel import Family, KernelBinary, KernelSource, Rates, Schedule
from eqsat.codegen.plan import Executable, Kernel, Plan, Step
from eqsat.codegen.problem import Problem, contract_problem, point_problem, reduce_problem
from eqsat.errors import CompileError, EqsatError
from eqsat.ir import Program, apply, reduce
from eqsat.search.cuda_device import CudaDevice
from eqsat.search.device import Trial
from eqsat.search.runner import CudaRunner
from eqsat.types import DType

# What a mistake in a family's Python may raise: reported with its problem, and the run goes on.
FAILURES = (EqsatError, AssertionError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)
_VALUES = (0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512)
_DRAWS = 1500
_BUDGET_S = 20.0  # for one problem


@dataclasses.dataclass
class Item:
    """A problem, the kernels to try, and what became of them."""

    name: str
    program: Program
    schedules: list[tuple[Family, Problem, Schedule]]
    trials: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    best: tuple[float, Schedule, Problem, KernelBinary] | None = None


def say(text: str) -> None:
    """Show progress at once."""
    print(text, file=sys.stderr, flush=True)


def problems_of(program: Program) -> Iterator[Problem]:
    """Yield the program as a problem of each kind that it is."""
    for find in (point_problem, reduce_problem, contract_problem):
        found = find(program)
        if not isinstance(found, str):
            yield found


def drawn_schedules(program: Program, points: int, seed: int) -> list[tuple[Family, Problem, Schedule]]:
    """Draw up to `points` legal points of each schedule class that serves the program."""
    draw = random.Random(seed)
    return [
        (family, problem, schedule)
        for problem in problems_of(program)
        for family in families.FAMILIES
        for kind in family.schedules
        for schedule in legal_points(family, problem, kind, points, draw)
    ]


def legal_points(family: Family, problem: Problem, kind: type[Schedule], points: int, draw: random.Random) -> list[Schedule]:
    """Draw legal points of one class, whose fields are small integers; half of the tries change one field of a legal point."""
    count = len(dataclasses.fields(kind))
    legal: dict[tuple[int, ...], Schedule] = {}
    refusals: set[str] = set()
    for attempt in range(_DRAWS if count else 1):
        if legal and attempt % 2:
            fields = list(draw.choice(list(legal)))
            fields[draw.randrange(count)] = draw.choice(_VALUES)
        else:
            fields = [draw.choice(_VALUES) for _ in range(count)]
        schedule = kind(*fields)
        refusal = family.legal(problem, schedule)
        if refusal is None:
            legal[tuple(fields)] = schedule
        else:
            refusals.add(refusal)
        if len(legal) >= 4 * points or (attempt > 200 and not legal and len(refusals) == 1):
            break  # enough to choose from; or the family does not serve the problem, whatever the point
    return draw.sample(list(legal.values()), min(points, len(legal)))


def given_schedules(program: Program, schedules: Iterable[Schedule]) -> list[tuple[Family, Problem, Schedule]]:
    """Pair schedules with the family and the problem that they are legal for."""
    found = []
    for schedule in schedules:
        family = next(f for f in families.FAMILIES if type(schedule) in f.schedules)
        fitting = [p for p in problems_of(program) if family.legal(p, schedule) is None]
        found += [(family, p, schedule) for p in fitting[:1]]
    return found


def streaming_board() -> dict[str, Program]:
    """Return memory-bound programs at the sizes of the board."""
    from tests.codegen.problems import array, program, rms_norm, silu, softmax

    bf16, f32 = DType.BF16, DType.F32
    gate, up = array("x", bf16, m=8192, n=8192), array("y", bf16, m=8192, n=8192)
    return {
        "board-swiglu-8192x8192-bf16": program(apply("mul", silu(gate), up), "mn", bf16),
        "board-softmax-8192x8192-f32": program(softmax(array("x", f32, m=8192, n=8192), "n"), "mn"),
        "board-softmax-8192x8192-bf16": program(softmax(apply("cast", gate, dtype=f32), "n"), "mn", bf16),
        "board-rms-norm-16384x4096-bf16": program(rms_norm(array("x", bf16, m=16384, n=4096), array("g", bf16, n=4096), "n"), "mn", bf16),
        "board-column-sum-16384x8192-f32": program(reduce("sum", "m", array("x", f32, m=16384, n=8192)), "n"),
    }  # fmt: skip


def collect(only: str, points: int, board: bool) -> list[Item]:
    """Return every problem that there is to check; the large ones first, as they say most."""
    from tests.codegen import contract_problems, grouped_problems, problems

    named: list[tuple[str, Program, Sequence[Schedule]]] = []
    if board:
        named += [(c.name, c.program, c.schedules) for c in contract_problems.BOARD]
        named += grouped_problems.BOARD
        named += [(n, p, ()) for n, p in streaming_board().items()]
    named += [(n, p, ()) for n, p in problems.PROBLEMS.items()]
    named += [(c.name, c.program, c.schedules) for c in contract_problems.CASES]
    named += grouped_problems.CASES
    items = []
    for i, (name, program, schedules) in enumerate(named):
        if only not in name:
            continue
        try:
            kernels = (
                given_schedules(program, schedules)
                if schedules
                else drawn_schedules(program, 4 * points if name.startswith("board") else points, i)
            )
        except FAILURES:
            kernels = []
            items.append(Item(name, program, [], [{"schedule": "-", "status": "error", "note": traceback.format_exc()[-600:]}]))
            continue
        items.append(Item(name, program, kernels))
    return items


def compile_all(device: CudaDevice, items: Sequence[Item]) -> dict[tuple[int, int], KernelBinary]:
    """Emit and compile every kernel; what fails is recorded with its item."""
    sources: list[KernelSource] = []
    owners: list[tuple[int, int]] = []
    for i, item in enumerate(items):
        for j, (family, problem, schedule) in enumerate(item.schedules):
            try:
                sources.append(family.emit(problem, schedule))
                owners.append((i, j))
            except FAILURES as reason:
                item.trials.append(
                    {"schedule": str(schedule), "status": "emit failed", "note": f"{type(reason).__name__}: {reason}"[:400]}
                )
    say(f"compiling {len(sources)} kernels of {len(items)} problems")
    start, binaries = time.monotonic(), {}
    for done, (at, result) in enumerate(device.compile(sources), 1):
        i, j = owners[at]
        if isinstance(result, CompileError):
            pruned = "pruned" in str(result)
            note = {
                "schedule": str(items[i].schedules[j][2]),
                "status": "pruned" if pruned else "does not compile",
                "note": str(result)[:600],
            }
            items[i].trials.append(note)
        else:
            binaries[i, j] = result
        if done % 200 == 0:
            say(f"  {done} of {len(sources)}, {time.monotonic() - start:.1f} s")
    say(f"compiled in {time.monotonic() - start:.1f} s: {len(sources) / max(time.monotonic() - start, 1e-9):.0f} a second")
    return binaries


def record(schedule: Schedule, binary: KernelBinary, trial: Trial | None) -> dict[str, Any]:
    """Return a trial as plain data."""
    out: dict[str, Any] = {
        "schedule": str(schedule),
        "status": "cut" if trial is None else trial.status,
        "registers": binary.resources.registers,
    }
    if trial is not None and trial.note:
        out["note"] = trial.note[:600]
    if trial is not None and trial.measurement is not None:
        m = trial.measurement
        out |= {
            "median_ns": m.median_ns,
            "low_ns": m.low_ns,
            "high_ns": m.high_ns,
            "samples": len(m.samples_ns),
            "clock_mhz": m.clock_mhz,
        }
    if trial is not None and trial.verdict is not None:
        out["worst"] = {c.name: c.worst for c in trial.verdict.checks}
        out["power"] = trial.verdict.power
    return out


def sweep(device: CudaDevice, item: Item, binaries: dict[int, KernelBinary]) -> None:
    """Verify and time one problem's kernels."""
    start = time.monotonic()
    try:
        trials = device.sweep(item.program, list(binaries.values()), deadline_s=start + _BUDGET_S)
    except FAILURES as reason:
        item.trials.append({"schedule": "-", "status": "sweep failed", "note": f"{type(reason).__name__}: {reason}"[-1500:]})
        trials = []
    for (j, binary), trial in zip(binaries.items(), trials, strict=False):
        _, problem, schedule = item.schedules[j]
        item.trials.append(record(schedule, binary, trial))
        if trial is not None and trial.status == "ok" and trial.measurement is not None:
            median = trial.measurement.median_ns
            if item.best is None or median < item.best[0]:
                item.best = (median, schedule, problem, binary)
    item.seconds = time.monotonic() - start


def row(item: Item, rates: Rates) -> str:
    """Return one line: counts, best time, rates reached, and share of the roofline."""
    counts = Counter(t["status"] for t in item.trials)
    shown = " ".join(f"{n} {status}" for status, n in counts.most_common())
    if item.best is None:
        return f"{item.name[:44]:44} {'-':>10}  {'':32} {item.seconds:5.1f}s  {shown}"
    ns, schedule, problem, _ = item.best
    flops = getattr(problem, "flops", 0) or item.program.flops
    family = next(f for f in families.FAMILIES if type(schedule) in f.schedules)
    share = family.bound_ns(problem, rates) / ns
    rate = f"{item.program.bytes / ns:6.0f} GB/s {flops / ns / 1e3:6.1f} TFLOP/s {share:4.0%}"
    return f"{item.name[:44]:44} {ns / 1e3:8.2f}µs  {rate:32} {item.seconds:5.1f}s  {shown}  {schedule}"


def call_overhead(items: Sequence[Item]) -> dict[str, float]:
    """Return host µs of one call of a small kernel through the runner with PyTorch and CuPy arrays, and of the launch alone."""
    small = [
        i
        for i in items
        if i.best is not None and 0 < i.program.bytes < 1 << 20 and all(x.dtype.value == "f32" for x in i.program.inputs)
    ]
    if not small:
        return {}
    item = small[0]
    assert item.best is not None
    _, schedule, problem, binary = item.best
    executable = Executable(Plan(item.program, (Kernel(problem),)), (Step(Kernel(problem), schedule, binary),))
    found: dict[str, float] = {}
    for library in ("torch", "cupy"):
        try:
            arrays, synchronize = _device_arrays(library, item.program)
            run = CudaRunner(executable)
            found[f"{library} call"] = _host_us(lambda run=run, arrays=arrays: run(*arrays), synchronize)
            launch = next(iter(run._replays.values()))  # the bare launch, to compare with
            found[f"{library} launch alone"] = _host_us(lambda launch=launch: launch(0), synchronize)
        except (*FAILURES, ImportError) as reason:
            say(f"runner with {library}: {type(reason).__name__}: {reason}")
    return found


def _device_arrays(library: str, program: Program) -> tuple[list[Any], Any]:
    if library == "torch":
        import torch  # optional: only to measure the call from PyTorch

        return [torch.randn(i.shape, device="cuda") for i in program.inputs], torch.cuda.synchronize
    import cupy  # optional: only to measure the call from CuPy

    return [cupy.random.standard_normal(i.shape).astype("float32") for i in program.inputs], cupy.cuda.Device().synchronize


def _host_us(call: Any, synchronize: Any) -> float:
    best = float("inf")
    for _ in range(20):
        synchronize()
        start = time.perf_counter()
        for _ in range(100):
            call()
        best = min(best, (time.perf_counter() - start) / 100)
    synchronize()
    return best * 1e6


def write(out: Path, device: CudaDevice, rates: Rates | None, items: Sequence[Item], extra: dict[str, Any]) -> None:
    """Write everything found so far."""
    body = {
        "device": device.fingerprint,
        "rates": dataclasses.asdict(rates) if rates else None,
        "problems": [{"name": i.name, "seconds": round(i.seconds, 2), "trials": i.trials} for i in items],
        **extra,
    }
    (out / "selfcheck.json").write_text(json.dumps(body, indent=1))


def main() -> int:
    """Run the check; the exit code is 1 if anything was wrong, faulted or failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=270.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--no-board", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    items = collect(options.only, options.points, not options.no_board)
    with CudaDevice() as device:
        rates = measured_rates(device)
        binaries = compile_all(device, items)
        for number, item in enumerate(items):
            own = {j: b for (i, j), b in binaries.items() if i == number}
            if time.monotonic() - started > options.seconds:
                item.trials.append({"schedule": "-", "status": "no time left", "note": ""})
            elif own:
                sweep(device, item, own)
                say(f"[{number + 1}/{len(items)}] {row(item, rates) if rates else item.name}")
                if number % 10 == 9:
                    write(options.out, device, rates, items, {})
        extra = {
            "call_us": call_overhead(items),
            "workers_replaced": device.workers_replaced,
            "seconds": time.monotonic() - started,
        }
        write(options.out, device, rates, items, extra)
    return report(items, rates, extra)


def measured_rates(device: CudaDevice) -> Rates | None:
    """Measure and show the ceilings."""
    start = time.monotonic()
    try:
        rates = device.rates()
    except FAILURES as reason:
        say(f"the ceilings could not be measured: {type(reason).__name__}: {reason}")
        return None
    shown = ", ".join(f"{path} {rate / 1e3:.1f}" for path, rate in rates.flops)
    say(
        f"{device.fingerprint}\nread {rates.read:.0f} GB/s, copy {rates.copy:.0f} GB/s, TFLOP/s: {shown}, empty kernel {rates.launch_ns:.0f} ns"
    )
    say(f"({time.monotonic() - start:.1f} s with the start of the worker)")
    return rates


def report(items: Sequence[Item], rates: Rates | None, extra: dict[str, Any]) -> int:
    """Print the table, then what went wrong; return the exit code."""
    for item in items:
        print(row(item, rates) if rates else item.name)
    bad = [(i.name, t) for i in items for t in i.trials if t["status"] not in ("ok", "pruned", "cut", "no time left")]
    print(f"\n{len(bad)} kernels failed" + (":" if bad else ""))
    for name, trial in bad[:40]:
        print(f"  {name} | {trial['schedule']} | {trial['status']} | {' '.join(str(trial.get('note', '')).split())[:240]}")
    totals = Counter(t["status"] for i in items for t in i.trials)
    print(", ".join(f"{n} {status}" for status, n in totals.most_common()))
    print(
        f"host µs: {', '.join(f'{k} {v:.1f}' for k, v in extra['call_us'].items())}; workers replaced {extra['workers_replaced']}; {extra['seconds']:.0f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
