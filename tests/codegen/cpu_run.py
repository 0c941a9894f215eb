"""Compile and call emitted C for tests, without the package's own compiler room."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqsat.codegen.kernel import BufferArg, KernelSource
from eqsat.ir import Program

FLAGS = ("-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
COMPILERS = {"gcc": ("gcc",), "zig": (sys.executable, "-m", "ziglang", "cc", "-nostdlib")}


def compile_texts(texts: Sequence[str], folder: Path, compiler: str = "gcc", options: Sequence[str] = ()) -> list[ctypes.CDLL]:
    """Compile each text to a shared object; `{entry}` symbols may repeat, as each is a library of its own."""
    out = []
    for text in texts:
        name = hashlib.sha256(f"{compiler}{options}{text}".encode()).hexdigest()[:16]
        source, target = folder / f"{name}.c", folder / f"{name}.so"
        if not target.exists():
            source.write_text(text, encoding="utf-8")
            command = [*COMPILERS[compiler], "-O3", *FLAGS, *options, str(source), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}\n{text[:6000]}"
        out.append(ctypes.CDLL(str(target)))
    return out


def compile_many(sources: Sequence[KernelSource], folder: Path, compiler: str = "gcc", level: str = "-O1") -> list[Any]:
    """Compile kernels as one library each, but all in a single run of the compiler, and return their entries."""
    key = hashlib.sha256("".join(s.digest for s in sources).encode() + (compiler + level).encode()).hexdigest()[:16]
    target = folder / f"{key}.so"
    options = sorted({o for s in sources for o in s.options if o.startswith("-")})
    files = []
    for i, s in enumerate(sources):
        path = folder / f"{key}_{i}.c"
        path.write_text(s.text.replace(s.entry, f"{s.entry}_{i}"), encoding="utf-8")
        files.append(str(path))
    command = [*COMPILERS[compiler], level, *FLAGS, *options, *files, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr[:6000]}"
    library = ctypes.CDLL(str(target))
    return [getattr(library, f"{s.entry}_{i}") for i, s in enumerate(sources)]


def guarded(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return an array and the bytes around it: 256 guard bytes on both sides, all poisoned; odd alignment on purpose."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.full(count + 512 + dtype.itemsize, 0xA5, np.uint8)
    start = 256 + dtype.itemsize
    return raw[start : start + count].view(dtype).reshape(shape), raw


def call(entry: Any, source: KernelSource, program: Program, arrays: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Run a kernel; fail if it wrote outside its output."""
    output = program.outputs[0]
    out, raw = guarded(output.shape, output.dtype.numpy)
    held: dict[str, np.ndarray[Any, Any]] = {}
    for i in program.inputs:
        held[i.name], _ = guarded(i.shape, i.dtype.numpy)
        held[i.name][...] = arrays[i.name]
    workspace = np.full(source.workspace_bytes + 1, 0xA5, np.uint8)
    pointers = []
    for a in source.args:
        array = workspace if not isinstance(a, BufferArg) else out if a.name == output.name else held[a.name]
        pointers.append(array.ctypes.data)
    entry.argtypes, entry.restype = [ctypes.c_void_p], None
    entry((ctypes.c_void_p * len(pointers))(*pointers))
    size = out.size * out.itemsize
    start = 256 + output.dtype.bytes
    assert (raw[:start] == 0xA5).all(), "wrote before the output"
    assert (raw[start + size :] == 0xA5).all(), "wrote behind the output"
    return out
