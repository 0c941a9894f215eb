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
from eqsat.kernelgraph import KernelGraph
from eqsat.numpy_like import softmax
from eqsat.planchoice import Action, Chooser
from eqsat.rulefile import builtin_rules
from eqsat.search.candidates import bound_candidates, candidates_of
from eqsat.search.cpu_device import cpu_name
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
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [f"# {cpu_name()}, {len(os.sched_getaffinity(0))} cores, Python {sys.version.split()[0]}, {today}"]
    for line in itertools.chain(examples(), (importing(), second_run_and_call(), compiling())):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        (ROOT / "bench" / "results" / "search.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def examples() -> Iterator[str]:
    """Saturate each example at the size of the board, enumerate its kernels and choose a plan by bounds."""
    rules = builtin_rules().admit(("exact", "reassociates"))
    target = parse_target("sm_90")
    yield f"{'example':<26}{'saturate':>10}{'kernels':>10}{'choose':>10}{'all':>10}   nodes  kernels"
    with Session() as session:
        for path in sorted((ROOT / "examples").glob("*.py")):
            module = _load(path)
            if not hasattr(module, "BOARD"):
                continue
            program = as_program(module.build(**module.BOARD))
            marks = [time.perf_counter()]
            report, frozen = session.saturate(program, rules.rules, declarations=declarations(rules))
            marks.append(time.perf_counter())
            graph = KernelGraph(program, frozen)
            found, _ = candidates_of(graph.kernels)
            marks.append(time.perf_counter())
            bounds = [c.problem.program.bytes / target.rates.read for c in found]
            Chooser([Action(c.node.writes, c.node.needs) for c in found], graph.goals).exact(bounds)
            marks.append(time.perf_counter())
            steps = [f"{b - a:.2f} s" for a, b in itertools.pairwise(marks)] + [f"{marks[-1] - marks[0]:.2f} s"]
            yield f"{path.stem:<26}{''.join(f'{s:>10}' for s in steps)}{report.nodes:>8}{len(found):>9}"
    own, worker = (resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    yield f"most memory: {own} MB here, {worker} MB in the worker"


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if "build(" in path.read_text(encoding="utf-8"):
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
