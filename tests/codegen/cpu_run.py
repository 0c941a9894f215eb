"""Compile and call emitted C for tests: many kernels in few runs of the compiler, outputs between guard bytes."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqsat.codegen.cpu.compiler import Compiler, default_compiler
from eqsat.codegen.kernel import BufferArg, KernelSource, Schedule
from eqsat.codegen.problem import Problem, contract_problem, point_problem, reduce_problem
from eqsat.ir import Program

FLAGS = ("-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
_RUNS = 2  # of the compiler at the same time
Array = np.ndarray[Any, Any]


def compile_many(
    sources: Sequence[KernelSource], folder: Path, compiler: Compiler | None = None, level: str = "-O1"
) -> list[Any]:
    """Compile kernels, many to a run of the compiler, and return their entries."""
    chosen = compiler or default_compiler()
    extra = ("-nostdlib",) if chosen.name == "zig" else ()
    jobs = []
    entries: list[Any] = [None] * len(sources)
    for part in range(min(_RUNS, len(sources))):
        mine = range(part, len(sources), _RUNS)
        key = hashlib.sha256("".join([chosen.name, level, *(sources[i].digest for i in mine)]).encode()).hexdigest()[:16]
        files = []
        for i in mine:
            path = folder / f"{key}_{i}.c"
            path.write_text(sources[i].text.replace(sources[i].entry, f"{sources[i].entry}_{i}"), encoding="utf-8")
            files.append(str(path))
        options = sorted({o for i in mine for o in sources[i].options if o.startswith("-")})
        target = folder / f"{key}.so"
        command = [*chosen.command, *extra, level, *FLAGS, *options, *files, "-o", str(target)]
        jobs.append((mine, target, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)))
    for mine, target, job in jobs:
        _, log = job.communicate()
        assert job.returncode == 0, log[:6000]
        library = ctypes.CDLL(str(target))
        for i in mine:
            entries[i] = getattr(library, f"{sources[i].entry}_{i}")
    return entries


def guarded(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return an array aligned only to its elements, and the bytes around it: 256 guard bytes on both sides, all poisoned."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.full(count + 512 + dtype.itemsize, 0xA5, np.uint8)
    start = 256 + dtype.itemsize
    return raw[start : start + count].view(dtype).reshape(shape), raw


def call(entry: Any, source: KernelSource, program: Program, arrays: Mapping[str, Array]) -> Array:
    """Run a kernel with one output and return it; fail if it wrote outside of it."""
    (out,) = call_all(entry, source, program, arrays)
    return out


def call_all(entry: Any, source: KernelSource, program: Program, arrays: Mapping[str, Array]) -> list[Array]:
    """Run a kernel and return its outputs; fail if it wrote outside of them."""
    outs = {o.name: guarded(o.shape, o.dtype.numpy) for o in program.outputs}
    held: dict[str, Array] = {}
    for i in program.inputs:
        held[i.name], _ = guarded(i.shape, i.dtype.numpy)
        held[i.name][...] = arrays[i.name]
    workspace = np.full(source.workspace_bytes + 1, 0xA5, np.uint8)
    pointers = []
    for a in source.args:
        array = workspace if not isinstance(a, BufferArg) else outs[a.name][0] if a.name in outs else held[a.name]
        pointers.append(array.ctypes.data)
    entry.argtypes, entry.restype = [ctypes.c_void_p], None
    entry((ctypes.c_void_p * len(pointers))(*pointers))
    for name, (out, raw) in outs.items():
        start, size = 256 + out.itemsize, out.size * out.itemsize
        assert (raw[:start] == 0xA5).all(), f"wrote before the output {name!r}"
        assert (raw[start + size :] == 0xA5).all(), f"wrote behind the output {name!r}"
    return [out for out, _ in outs.values()]


def problem_of(program: Program) -> Problem:
    """Return the problem of a program: a contraction where it is one."""
    for finder in (contract_problem, point_problem, reduce_problem):
        found = finder(program)
        if not isinstance(found, str):
            return found
    raise AssertionError(f"no family takes it: {reduce_problem(program)}; {contract_problem(program)}")


def emit_all(cases: Iterable[tuple[Program, Schedule]]) -> list[KernelSource]:
    """Emit a kernel for each pair of program and schedule."""
    from eqsat.codegen.cpu.families import family_of

    return [family_of(s).emit(problem_of(p), s) for p, s in cases]


def run_each(cases: Sequence[tuple[Program, Schedule]], arrays: Sequence[Mapping[str, Array]], folder: Path) -> list[Array]:
    """Emit, compile and run each pair of program and schedule on its arrays."""
    sources = emit_all(cases)
    entries = compile_many(sources, folder)
    return [call(e, s, p, a) for e, s, (p, _), a in zip(entries, sources, cases, arrays, strict=True)]
