"""Run emitted CUDA kernels on the CPU: the text compiled as C++ over `emulate.hpp`, threads as coroutines. Not for clusters."""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqsat.codegen.kernel import BufferArg, KernelSource
from eqsat.ir import Program

HERE = Path(__file__).parent
GUARD = 256
IN_ASSEMBLER = ("pack_bf16", "pack_f16", "f16_value", "eq_max_nan", "eq_min_nan", "eq_rcp_above_one", "named_sync")
RAW = """
template <int BYTES, int HINT> Raw<BYTES> load_raw(const void* p) { check_aligned(p, BYTES); Raw<BYTES> r; r.w[0] = 0; memcpy(&r, p, BYTES); return r; }
template <int BYTES, int HINT> void store_raw(void* p, const Raw<BYTES>& r) { check_aligned(p, BYTES); memcpy(p, &r, BYTES); }
"""
RUN = """
template <int... I> struct Numbers {};
template <class... A, int... I> static void call_with(void (*f)(A...), void** a, Numbers<I...>) { f((A)a[I]...); }
extern "C" void run(void** args, int grid, int block) {
  threads = block;
  for (int t = 0; t < block; ++t) if (!stack_of[t]) stack_of[t] = (char*)malloc(STACK);
  static void** arguments; arguments = args;
  for (int b = 0; b < grid; ++b) {
    blockIdx.x = b; alive = block;
    memset(finished, 0, sizeof finished); memset(arrived, 0, sizeof arrived); memset(warp_arrived, 0, sizeof warp_arrived);
    for (int t = 0; t < block; ++t) {
      getcontext(&context[t]);
      context[t].uc_stack.ss_sp = stack_of[t]; context[t].uc_stack.ss_size = STACK; context[t].uc_link = &main_context;
      makecontext(&context[t], (void (*)())+[] { call_with(eqsat_kernel, arguments, Numbers<COUNT>()); finished[current] = true; --alive; }, 0);
    }
    for (long turns = 0; alive > 0; ++turns) {
      if (turns > 1000000) { fprintf(stderr, "a barrier never opens\\n"); abort(); }
      for (int t = 0; t < block; ++t)
        if (!finished[t]) { current = t; threadIdx.x = t; swapcontext(&main_context, &context[t]); }
    }
  }
}
"""


def translate(source: KernelSource, name: str) -> str:
    """Turn a kernel's text into C++: functions written in PTX are replaced by those of the header."""
    text = re.sub(r"// ---- 4 Hopper.*?(?=// math\.cuh)", "", source.text, flags=re.DOTALL)
    for kind in ("load_raw", "store_raw"):
        text = re.sub(rf"^template <int BYTES, int HINT> DEV [^\n]* {kind}\(.*?^}}\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = text.replace("template <int BYTES> DEV Raw<BYTES> zero_raw", RAW + "template <int BYTES> DEV Raw<BYTES> zero_raw")
    text = re.sub(r"^template <int HINT> DEV void store16.*?^}\n", "", text, flags=re.DOTALL | re.MULTILINE)
    kept = []
    for line in text.split("\n"):
        asm = "asm" in line and not line.startswith("//")
        if not asm and not re.match(r"template <int HINT> DEV V4 load16|#define (LOAD16|STORE16)|(LOAD16|STORE16)\(", line):
            kept.append(line)
    text = "\n".join(kept)
    text = re.sub(r"extern __shared__ (?:alignas\(\d+\) )?(\w+) (\w+)\[\];", r"alignas(16) static \1 \2[232448];", text)
    text = text.replace('extern "C" __global__', "static")
    run = RUN.replace("void run(", f"void run_{name}(").replace("COUNT", ", ".join(map(str, range(len(source.args)))))
    return f"namespace {name} {{\n{text}\n{run}}}\n"


def compile_kernels(sources: Sequence[KernelSource], folder: Path) -> list[Any]:
    """Compile kernels into one library; return their entries."""
    text = f'#include "{HERE / "emulate.hpp"}"\n' + "".join(translate(s, f"k{i}") for i, s in enumerate(sources))
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(text, encoding="utf-8")
    command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off", str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr[:6000]}\n{source}"
    loaded = ctypes.CDLL(str(library))
    return [getattr(loaded, f"run_k{i}") for i in range(len(sources))]


def aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Copy an array to a base aligned to 16 bytes, between poisoned guard bytes."""
    raw = np.full(array.nbytes + 2 * GUARD + 16, 0xA5, np.uint8)
    start = GUARD + (-(raw.ctypes.data + GUARD)) % 16
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def run_kernel(
    entry: Any, source: KernelSource, program: Program, inputs: Mapping[str, np.ndarray[Any, Any]], times: int = 2
) -> np.ndarray[Any, Any]:
    """Run a kernel with one output `times` times and return it; see `run_outputs`."""
    (found,) = run_outputs(entry, source, program, inputs, times)
    return found


def run_outputs(
    entry: Any, source: KernelSource, program: Program, inputs: Mapping[str, np.ndarray[Any, Any]], times: int = 2
) -> list[np.ndarray[Any, Any]]:
    """Run a kernel `times` times (a workspace must be left as it was found) and return its outputs; a write outside them is an error."""
    results = {
        o.name: aligned(np.full(int(np.prod(o.shape, dtype=np.int64)) * o.dtype.bytes, 0xCB, np.uint8)) for o in program.outputs
    }
    arrays = {name: aligned(a) for name, a in inputs.items()}
    workspace = aligned(np.zeros(source.workspace_bytes, np.uint8))
    pointers = []
    for arg in source.args:
        if isinstance(arg, BufferArg):
            pointers.append((results[arg.name] if arg.name in results else arrays[arg.name]).ctypes.data)
        else:
            pointers.append(workspace.ctypes.data)
    for _ in range(times):
        for result in results.values():
            result[...] = 0xCB
        entry((ctypes.c_void_p * len(pointers))(*pointers), source.grid[0] * source.grid[1] * source.grid[2], source.block)
    for name, result in results.items():
        around = np.asarray(result.base)
        start = result.ctypes.data - around.ctypes.data
        assert np.all(around[:start] == 0xA5), f"written before the output {name!r}"
        assert np.all(around[start + result.nbytes :] == 0xA5), f"written behind the output {name!r}"
    return [results[o.name].view(o.dtype.numpy).reshape(o.shape) for o in program.outputs]
