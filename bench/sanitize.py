"""Run kernels of every CUDA family on small problems, for a memory checker to watch.

    compute-sanitizer --tool memcheck --error-exitcode 9 python bench/sanitize.py OUT.json
    compute-sanitizer --tool racecheck --error-exitcode 9 python bench/sanitize.py OUT.json

The problems are what the board's and the sweeps' workloads lower to when their extents are cut down; of each schedule class a few points
are taken, spread over the model's order. Everything runs in this process, since a checker slows a worker beyond its limits, and results are
not looked at: the search verifies each kernel it takes. OUT.json counts what became of the kernels of each class; the exit status is 1 if one
faulted, and the checker's own if it found something.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eqsat.codegen.cuda import driver, nvrtc
from eqsat.codegen.cuda.driver import Memory, Stream, fill
from eqsat.codegen.kernel import KernelBinary, Schedule
from eqsat.codegen.targets import parse_target
from eqsat.errors import CompileError, EqsatError, IllegalScheduleError
from eqsat.kernelgraph import KernelGraph
from eqsat.search import machine
from eqsat.search.candidates import Candidate
from eqsat.search.cuda_steps import LoadedSteps
from eqsat.search.optimize import Search
from eqsat.search.options import Options
from eqsat.search.progress import Silent
from eqsat.search.rulebase import admitted_rules, for_target
from eqsat.search.schedules import family_of
from eqsat.search.store import Store
from eqsat.search.workloads import SWEEPS, Workload, workloads_of

_TARGET = "sm_90"
_LARGEST = 1 << 16  # elements of an array
_BYTE = 0x3C  # of every input: small numbers in each floating type


def main() -> int:
    """Run the command; 1 if a kernel faulted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--points", type=int, default=2, help="kernels of each schedule class and problem")
    parser.add_argument("--most", type=int, default=16, help="kernels of each schedule class in all")
    parser.add_argument("--seconds", type=float, default=300.0, help="begin no problem after that time")
    parser.add_argument("--only", default="", help="schedule classes whose name has this part")
    options = parser.parse_args()
    with driver.current_context(driver.open_device(0)):
        record = _record(options)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))
    return int(any("fault" in c for c in record["kernels"].values()))


def _record(options: argparse.Namespace) -> dict[str, Any]:
    target, began, stream = parse_target(_TARGET), time.monotonic(), Stream()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    notes: list[str] = []
    seen: set[tuple[str, str]] = set()
    for w in _small():
        if time.monotonic() - began > options.seconds:
            notes.append(f"out of time before {w.name}")
            break
        for c in _candidates(w):
            wanted = [s for s in _spread(c, options.points) if options.only in type(s).__name__ and (c.key, str(s)) not in seen]
            chosen = [s for s in wanted if counts[type(s).__name__].total() < options.most]
            seen |= {(c.key, str(s)) for s in chosen}
            built = nvrtc.compile_many([family_of(s).emit(c.problem, s) for s in chosen], target)
            for index, binary in built:
                status = "refused" if isinstance(binary, CompileError) else _run(stream, c, binary)
                kind = type(chosen[index]).__name__
                counts[kind][status.split(":")[0]] += 1
                if status not in ("ok", "refused"):
                    notes.append(f"{w.name}: {chosen[index]}: {status}")
        print(f"{time.monotonic() - began:6.1f} s  {w.name}", file=sys.stderr, flush=True)
    return {"kernels": {k: dict(v) for k, v in sorted(counts.items())}, "notes": notes}


def _small() -> Iterator[Workload]:
    """Yield the board's and the sweeps' workloads with extents cut down; those that no longer make a program are left out."""
    seen: set[str] = set()
    for source in ("board", *(f"sweep-{s}" for s in SWEEPS)):
        for w in workloads_of(source, "cuda"):
            small = dataclasses.replace(w, inputs=tuple((n, _cut(shape), d) for n, shape, d in w.inputs))
            with contextlib.suppress(EqsatError, ValueError):
                digest = small.program().digest
                if digest not in seen:
                    seen.add(digest)
                    yield small


def _cut(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape whose extents keep their order and their divisors as far as 16 goes; equal extents stay equal."""
    limit = {1: 4096, 2: 256, 3: 64}.get(len(shape), 32)
    return tuple(n if n <= limit else limit + (n % 16) for n in shape)


def _candidates(w: Workload) -> list[Candidate]:
    options = Options(target=_TARGET)
    place = machine.resolve(_TARGET)
    ruleset = for_target(admitted_rules(options)[0], place.target)
    with contextlib.closing(Search(w.program(), options, place, Store(":memory:"), Silent(), time.monotonic() + 60)) as search:
        _, frozen = search.saturate(ruleset)
        found, _ = search.lower(KernelGraph(search.program, frozen), ruleset)
    return [c for c in found if all(i.elements <= _LARGEST for i in c.node.program.inputs)]


def _spread(c: Candidate, points: int) -> list[Schedule]:
    """Return a few schedules of each class, the likeliest first, the others spread over the model's order."""
    classes: dict[type[Schedule], list[Schedule]] = defaultdict(list)
    for s in c.legal:
        classes[type(s)].append(s)
    return [found[i * len(found) // points] for found in classes.values() for i in range(min(points, len(found)))]


def _run(stream: Stream, c: Candidate, binary: KernelBinary) -> str:
    """Run a kernel twice on buffers of exactly its arrays' sizes; "ok", or what the driver says."""
    program = c.node.program
    sizes = {t.name: t.bytes for t in (*program.inputs, *program.outputs)}
    blocks = {name: Memory(nbytes) for name, nbytes in sizes.items()}
    try:
        steps = LoadedSteps([binary])
        scratch = steps.scratch({}, stream.handle)
        for block in blocks.values():
            fill(block.pointer, _BYTE, block.nbytes, stream.handle)
        for launch in steps.bind({name: block.pointer for name, block in blocks.items()}, scratch) * 2:
            launch(stream.handle)
        stream.synchronize()
    except IllegalScheduleError:
        return "refused"
    except EqsatError as e:
        return f"fault: {e}"
    return "ok"


if __name__ == "__main__":
    sys.exit(main())
