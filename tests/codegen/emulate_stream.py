"""Run emitted stream kernels on the CPU: the Hopper vocabulary of `emulate_wgmma.hpp` with mma.sync, ldmatrix and a workspace."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eqsat.codegen.kernel import BufferArg, KernelSource, TensorMapArg
from eqsat.ir import Program
from tests.codegen.emulate import aligned
from tests.codegen.emulate_mma import ORDERED, VOCABULARY, Map

MATRIX_UNITS = VOCABULARY[VOCABULARY.index("template <bool F16>") : VOCABULARY.index("constexpr int SHARED")]
SHARED_MEMORY = r"""
template <bool TRANSPOSED> static void ldmatrix_of(u32 (&r)[4], u32 at) {
  static u32 from[1024];
  from[current] = at;
  warp_barrier();
  const int base = current / 32 * 32, lane = current % 32;
  for (int q = 0; q < 4; ++q)
    for (int e = 0; e < 2; ++e) {
      const int row = TRANSPOSED ? lane % 4 * 2 + e : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + e;
      memcpy((u16*)&r[q] + e, here(from[base + 8 * q + row] + 2 * column), 2);
    }
  warp_barrier();
}
static void ldmatrix4(u32 (&r)[4], u32 at) { ldmatrix_of<false>(r, at); }
static void ldmatrix4_transposed(u32 (&r)[4], u32 at) { ldmatrix_of<true>(r, at); }
static u32 slot_word(u32 at) { u32 v; memcpy(&v, here(at), 4); return v; }
static void put_slot_word(u32 at, u32 v) { memcpy(here(at), &v, 4); }
static void put_slot16(u32 at, const Raw<16>& v) { check_aligned(here(at), 16); memcpy(here(at), &v, 16); }
static void bulk_load(u32 dst, const void* src, u32 bytes, u32 bar) {
  check_aligned(src, 16); check_aligned(here(dst), 16); if (bytes % 16) abort();
  memcpy(here(dst), src, bytes);
  Barrier& b = barriers[rank_here()][bar / 8];
  b.bytes -= bytes;
  settle(b);
}
static Raw<16> far16(const float* p) { check_aligned(p, 16); Raw<16> v; memcpy(&v, p, 16); return v; }
static void put_sums(u32 at, const float (&v)[4]) { check_aligned(here(at), 16); memcpy(here(at), v, 16); }
static Gate begun;
static unsigned begun_phase[1024];
static void cluster_arrive() { begun_phase[current] = begun.phase; gate_arrive(begun, BLOCK * CLUSTER); }
static void cluster_wait() { while (begun.phase == begun_phase[current]) yield_thread(); }
static void push_bytes(u32 to, const void* from, u32 bytes, u32 bar, u32 rank) {
  memcpy(shared[rank] + to, from, bytes);
  Barrier& b = barriers[rank][bar / 8];
  b.bytes -= bytes;
  settle(b);
}
static void push4(u32 to, const float (&v)[4], u32 bar, u32 rank) { push_bytes(to, v, 16, bar, rank); }
static void push1(u32 to, float v, u32 bar, u32 rank) { push_bytes(to, &v, 4, bar, rank); }
static u32 count_one(u32* p) { return atomicAdd(p, 1u); }
static float far_one(const float* p) { return *p; }
static void leave16(float* p, const float (&v)[4]) { check_aligned(p, 16); memcpy(p, v, 16); }
static void leave_one(float* p, float v) { *p = v; }
"""


def emulated_stream(source: KernelSource) -> KernelSource:
    """Rewrite a stream kernel for `emulate.compile_kernels`; the blocks of a cluster run at once, as slices of one block's threads."""
    cluster = source.cluster
    constants = {
        "BLOCK": source.block,
        "CLUSTER": cluster,
        "HALF": int("using T = f16;" in source.text),
        "TRANSPOSED_A": 0,
        "TRANSPOSED_B": 0,
    }
    text = re.sub(ORDERED, "", source.text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^DEV (u32 smem_u32|void named_arrive).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^DEV Raw<16> (?:shared16|fragment|fragment_transposed)\(.*?^}\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"__cluster_dims__\([^)]*\) ?|^DEV int rank_here\(.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^#define KERNEL.*$", "#define KERNEL(threads, cluster, resident) static void", text, flags=re.MULTILINE)
    text = re.sub(r"^#define TMAP.*$", "#define TMAP const TMap", text, flags=re.MULTILINE)
    text = text.replace("  begin_dependent();\n", "")
    text = re.sub(r"^// A ring of STAGES.*?(?=^constexpr int BATCH = )", "", text, flags=re.DOTALL | re.MULTILINE)
    head, mark, tail = text.partition("// tile.cuh:")
    for old, new in {
        "extern __shared__ u8 raw[];": "enter(); u8* const raw = shared[rank_here()] + 16;",
        "__syncthreads()": "block_sync()",
        "threadIdx.x": f"((int)threadIdx.x % {source.block})",
        "blockIdx.x": f"((int)blockIdx.x * {cluster} + rank_here())",
        "gridDim.x": str(source.grid[0]),
    }.items():
        tail = tail.replace(old, new)
    ordered = (
        "template <int N, class P> static Raw<N * (int)sizeof(P)> ordered(const P* p) { return load_raw<N * (int)sizeof(P), PLAIN>(p); }\n"
        "template <int N, class P> static Raw<N * (int)sizeof(P)> free_load(const P* p) { return ordered<N>(p); }\n"
    )
    vocabulary = Path(__file__).with_name("emulate_wgmma.hpp").read_text(encoding="utf-8")
    named = "".join(f"constexpr int {n} = {v};\n" for n, v in constants.items())
    text = head + named + vocabulary + MATRIX_UNITS + SHARED_MEMORY + ordered + mark + tail
    return dataclasses.replace(source, text=text, grid=(source.grid[0] // cluster, 1, 1), block=source.block * cluster, cluster=1)


def run_stream(
    entry: Any, source: KernelSource, program: Program, inputs: Mapping[str, np.ndarray[Any, Any]], times: int = 2
) -> list[np.ndarray[Any, Any]]:
    """Run an emulated kernel `times` times over one workspace and return its outputs; a write outside them is an error."""
    results = {o.name: aligned(np.full(math.prod(o.shape) * o.dtype.bytes, 0xCB, np.uint8)) for o in program.outputs}
    arrays = {name: aligned(a) for name, a in inputs.items()} | results
    workspace = aligned(np.zeros(source.workspace_bytes, np.uint8))
    keep, pointers = [], []
    for arg in source.args:
        if isinstance(arg, TensorMapArg):
            assert all(s % 16 == 0 for s in arg.strides), "TMA wants strides of whole 16 bytes"
            assert all(0 < b <= 256 for b in arg.box), "TMA wants boxes of at most 256"
            keep.append(Map(arrays[arg.name].ctypes.data, arg.extents, arg.strides, arg.box, arg.swizzle, arg.dtype.bytes))
            pointers.append(ctypes.addressof(keep[-1]))
        else:
            pointers.append((arrays[arg.name] if isinstance(arg, BufferArg) else workspace).ctypes.data)
    for _ in range(times):
        for result in results.values():
            result[...] = 0xCB
        entry((ctypes.c_void_p * len(pointers))(*pointers), source.grid[0], source.block)
    for array in (*results.values(), workspace):
        around = np.asarray(array.base)
        start = array.ctypes.data - around.ctypes.data
        assert np.all(around[:start] == 0xA5), "written before the memory it was given"
        assert np.all(around[start + array.nbytes :] == 0xA5), "written behind the memory it was given"
    return [results[o.name].view(o.dtype.numpy).reshape(o.shape) for o in program.outputs]
