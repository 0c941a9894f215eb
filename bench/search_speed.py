"""Measure the search itself: saturation and choice of every example at the size of the board, a second run, a call, an import.

Prints a table; `--write` also keeps it in `bench/results/search.txt`, from which the README takes it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eqsat import optimize, tensor
from eqsat.codegen.cuda import nvrtc
from eqsat.codegen.targets import parse_target
from eqsat.ir import Program
from eqsat.kernelgraph import KernelGraph
from eqsat.numpy_like import softmax
from eqsat.regions import REGION_OPERATIONS, STRETCH_OPERATIONS, split
from eqsat.rulefile import builtin_rules
from eqsat.search.candidates import bound_candidates, candidates_of
from eqsat.search.cpu_device import cpu_name
from eqsat.search.extraction import unmeasured_choice
from eqsat.search.rulebase import declarations
from eqsat.search.schedules import family_of, points, space_term
from eqsat.session import Session
from eqsat.trace import as_program

ROOT = Path(__file__).resolve().parent.parent
COMPILED = 64


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep the table in bench/results/search.txt")
    options = parser.parse_args(arguments)
    import scipy.optimize  # noqa: F401 - its import is not part of the choice

    today = datetime.datetime.now(datetime.UTC).date()
    lines = [f"# {cpu_name()}, {len(os.sched_getaffinity(0))} cores, Python {sys.version.split()[0]}, {today}"]
    for line in itertools.chain(examples(), transformers(), (importing(), second_run_and_call(), compiling())):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        (ROOT / "bench" / "results" / "search.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


STAGES = ("saturate", "cut", "bound", "choose")


def examples() -> Iterator[str]:
    """Saturate each example at the size of the board, enumerate its kernels and choose a plan by bounds."""
    yield _head("example")
    with Session() as session:
        for path in sorted((ROOT / "examples").glob("*.py")):
            module = _load(path)
            if hasattr(module, "BOARD"):
                yield _row(path.stem, as_program(module.build(**module.BOARD)), session)


def transformers() -> Iterator[str]:
    """Do the same for a transformer's attention block, one layer and twelve, at 4096 wide and 2048 tokens."""
    yield _head("transformer")
    module = _load(ROOT / "bench" / "transformer.py")
    with Session() as session:
        yield _row("attention block", module.block(), session)
        yield _row("layer", module.layers(1), session)
        yield _row("12 layers", module.layers(12), session)
        worker = max(int(line.split()[1]) for line in _status(session) if line.startswith("VmHWM"))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield f"most memory: {own >> 10} MB here, {worker >> 10} MB in the worker"


def _head(what: str) -> str:
    stages = "".join(f"{s:>10}" for s in STAGES)
    return f"{what:<26}{stages}{'all':>10}{'wall':>10}   nodes  kernels  regions  least time"


def _row(name: str, program: Program, session: Session) -> str:
    """Return a line: processor seconds of each stage, of this process and the worker together, and what came of it."""
    rules = builtin_rules().admit(("exact", "reassociates"))
    facts, target = declarations(rules), parse_target("sm_90")
    seconds = dict.fromkeys(STAGES, 0.0)
    nodes = kernels = 0
    least_ns = 0.0
    began, last = time.perf_counter(), _processor_s(session)
    partition = split(program, REGION_OPERATIONS, STRETCH_OPERATIONS)

    def mark(stage: str) -> None:
        nonlocal last
        now = _processor_s(session)
        seconds[stage] += now - last
        last = now

    for region in partition.distinct:
        report, frozen = session.saturate(region, rules.rules, declarations=facts)
        mark("saturate")
        graph = KernelGraph(region, frozen)
        found, _ = candidates_of(graph.kernels)
        mark("cut")
        spaces = list(dict.fromkeys(c.space for c in found))
        listed = session.schedule_points([space_term("cuda", s) for s in spaces], rules.rules, declarations=facts)
        bound_candidates(found, {s: points(p) for s, p in zip(spaces, listed, strict=True)}, target, target.rates)
        mark("bound")
        plan = unmeasured_choice(found, graph.goals)
        mark("choose")
        nodes, kernels = nodes + report.nodes, kernels + len(found)
        least_ns += partition.count(region) * sum(found[i].low_ns for i in plan)
    steps = "".join(f"{seconds[s]:>8.2f} s" for s in STAGES) + f"{sum(seconds.values()):>8.2f} s"
    regions = f"{len(partition.regions)}/{len(partition.distinct)}"
    return f"{name:<26}{steps}{time.perf_counter() - began:>8.2f} s{nodes:>8}{kernels:>9}{regions:>9}{least_ns / 1e3:>9.1f} µs"


def _processor_s(session: Session) -> float:
    """Return the processor time of this process and the session's worker: what else the machine does is not in it."""
    fields = Path(f"/proc/{session.worker}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(session: Session) -> list[str]:
    return Path(f"/proc/{session.worker}/status").read_text(encoding="utf-8").splitlines()


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if path.parent.name != "examples" or "build(" in path.read_text(encoding="utf-8"):
        sys.modules[path.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


def importing() -> str:
    """Time `import eqsat` in fresh interpreters, less what an empty one takes."""

    def seconds(code: str) -> float:
        command = [sys.executable, "-c", code]
        return min(timeit.repeat(lambda: subprocess.run(command, cwd=ROOT, check=True), number=1, repeat=5))

    return f"import eqsat: {1e3 * (seconds('import eqsat') - seconds('pass')):.0f} ms"


def second_run_and_call() -> str:
    """Time an optimize that the store answers, in a fresh process, and a call of its result beside the kernel's own time."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store.sqlite"
        x = tensor("x", (16, 64), "f32")
        best = optimize(softmax(x), target="cpu", budget="60s", store=store)
        code = (
            "import time; began = time.perf_counter()\nfrom eqsat import optimize, tensor\nfrom eqsat.numpy_like import softmax\n"
            f"optimize(softmax(tensor('x', (16, 64), 'f32')), target='cpu', budget='60s', store={str(store)!r})\n"
            "print(time.perf_counter() - began)"
        )
        command = [sys.executable, "-c", code]
        again = float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    array = np.ones((16, 64), np.float32)
    best(array)
    call_us = min(timeit.repeat(lambda: best(array), number=2000, repeat=5)) / 2000 * 1e6
    closed = "closed" if best.receipt.closed else "open, so the search goes on"
    return f"second run in a fresh process: {again:.2f} s ({closed}); a call: {call_us:.1f} µs, of which the kernel cold {best.receipt.median_ns / 1e3:.1f} µs"


def compiling() -> str:
    """Compile matrix-product kernels for sm_90 in parallel."""
    rules = builtin_rules().admit(("exact", "reassociates"))
    target = parse_target("sm_90")
    program = as_program(tensor("x", (4096, 4096), "bf16") @ tensor("w", (4096, 4096), "bf16"))
    with Session() as session:
        _, frozen = session.saturate(program, rules.rules, declarations=declarations(rules))
        (candidate,) = [c for c in candidates_of(KernelGraph(program, frozen).kernels)[0] if c.node.family == "contract"]
        (space,) = session.schedule_points([space_term("cuda", candidate.space)], rules.rules, declarations=declarations(rules))
    bound_candidates([candidate], {candidate.space: points(space)}, target, target.rates)
    sources = [family_of(s).emit(candidate.problem, s) for s in candidate.legal[:COMPILED]]
    list(nvrtc.compile_many(sources[:4], target))  # starts the workers
    began = time.perf_counter()
    done = sum(1 for _ in nvrtc.compile_many(sources, target))
    return f"compiled with NVRTC: {done / (time.perf_counter() - began):.1f} matrix kernels a second on {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main(sys.argv[1:])
