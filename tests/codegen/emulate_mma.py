"""Run emitted skinny kernels on the CPU: `emulate.py` with the matrix instruction, and a cluster run as one large block."""

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

# mma.m16n8k16 by its fragment layout (PTX ISA, "Matrix fragments for mma.m16n8k16"), all lanes' registers in `frag`.
VOCABULARY = r"""
static unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  unsigned char bytes[8];
  memcpy(bytes, &a, 4); memcpy(bytes + 4, &b, 4);
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) r |= (unsigned)bytes[(s >> (4 * i)) & 7] << (8 * i);
  return r;
}
static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
template <bool F16> static void mma_of(float (&d)[4], const u32 (&ab)[6]) {
  static u32 frag[1024][6];
  for (int i = 0; i < 6; ++i) frag[current][i] = ab[i];
  warp_barrier();
  const int base = current / 32 * 32, g = current % 32 / 4, q = current % 4;
  auto half = [](u32 w, int i) { const u32 b = i ? w >> 16 : w & 0xffff; return F16 ? f16_value((u16)b) : bits_as<float>(b << 16); };
  auto a = [&](int row, int k) { return half(frag[base + row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)], k & 1); };
  auto b = [&](int k, int col) { return half(frag[base + col * 4 + k % 8 / 2][4 + k / 8], k & 1); };
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k) d[i] += a(g + 8 * (i / 2), k) * b(k, 2 * q + (i & 1));
  warp_barrier();
}
static void mma16816(float (&d)[4], u32 a, u32 b, u32 c, u32 e, u32 f, u32 g) { mma_of<false>(d, {a, b, c, e, f, g}); }
static void mma16816_f16(float (&d)[4], u32 a, u32 b, u32 c, u32 e, u32 f, u32 g) { mma_of<true>(d, {a, b, c, e, f, g}); }
constexpr int SHARED = 232448, BLOCK = THREADS_OF_A_BLOCK;
alignas(16) static u8 shared[8][SHARED];
static int rank_here() { return (int)threadIdx.x / BLOCK; }
// The blocks of a cluster send one another floats; the barrier opens when all have sent, and counts the bytes.
static int sent[8], expected[8];
static void cluster_arrive() {}
static void cluster_wait() { barrier(0, threads); }
static void mbar_init(u32 at, int) { if (at % 8) { fprintf(stderr, "misaligned barrier\n"); abort(); } }
static void mbar_init_fence() {}
static void mbar_expect(u32, int bytes) { expected[rank_here()] = bytes; }
static void mbar_wait(u32, u32) {
  barrier(0, threads);
  if (sent[rank_here()] != expected[rank_here()]) { fprintf(stderr, "%d bytes came, %d expected\n", sent[rank_here()], expected[rank_here()]); abort(); }
  barrier(0, threads);
  sent[rank_here()] = 0;
}
static void push(float* to, float a, u32, int rank) { *(float*)((u8*)to + (long)(rank - rank_here()) * SHARED) = a; sent[rank] += 4; }
static void push2(float* to, float a, float b, u32 bar, int rank) { push(to, a, bar, rank); push(to + 1, b, bar, rank); }
template <int N, class P> static Raw<N * (int)sizeof(P)> ordered(const P* p) { return load_raw<N * (int)sizeof(P), PLAIN>(p); }
template <int N, class P> static Raw<N * (int)sizeof(P)> free_load(const P* p) { return ordered<N>(p); }
template <int HINT> static Raw<16> stream16(const void* p) { return load_raw<16, PLAIN>(p); }
"""
ORDERED = (
    r"template <int N, class T> DEV Raw<N \* \(int\)sizeof\(T\)> (?:ordered|free_load)\(.*?^}\n"
    r"|^// 16 bytes of a matrix.*\ntemplate <int HINT> DEV Raw<16> stream16\(.*?^}\n"
)


def emulated(source: KernelSource) -> KernelSource:
    """Rewrite a skinny kernel for `emulate.compile_kernels`: the blocks of a cluster become slices of one block's threads."""
    columns, block = source.grid[0] // source.cluster, source.block
    text = re.sub(
        r"// A ring of STAGES.*?(?=^constexpr int M = )", "", source.text, flags=re.DOTALL | re.MULTILINE
    )  # TMA and wgmma
    text = re.sub(r"^#define (KERNEL|TMAP).*\n|^DEV (int warpgroup|int warp_in_group).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(ORDERED, "", text, flags=re.DOTALL | re.MULTILINE)
    head, mark, kernel = text.partition("constexpr int M = ")
    one = head.partition("template <class T> DEV typename Value<T>::type ordered_one")
    kernel = re.sub(r"__cluster_dims__\([^)]*\) ?", "", mark + kernel)
    for old, new in {
        "threadIdx.x": f"((int)threadIdx.x % {block})",
        "extern __shared__ u8 raw[];": "u8* const raw = shared[rank_here()];",
        "cluster_rank()": "rank_here()",
        "cluster_sync()": f"barrier(0, {block * source.cluster})",
        "__syncthreads()": f"barrier(1 + rank_here(), {block})",
        "blockIdx.x % CK": f"(int)blockIdx.x % {columns} % CK",
        "blockIdx.x / CK": f"(int)blockIdx.x % {columns}" + (" / CK" if source.cluster == 1 else ""),
        "blockIdx.y": f"(int)blockIdx.x / {columns}",
    }.items():
        kernel = kernel.replace(old, new)
    text = one[0] + VOCABULARY.replace("THREADS_OF_A_BLOCK", str(block)) + one[1] + one[2] + kernel
    assert block * source.cluster <= 1024, "the emulator runs at most 1024 threads"
    return dataclasses.replace(
        source, text=text, grid=(columns * math.prod(source.grid[1:]), 1, 1), block=block * source.cluster, cluster=1
    )


def emulated_wgmma(source: KernelSource) -> KernelSource:
    """Rewrite a wgmma kernel in the same way; the Hopper vocabulary comes from `emulate_wgmma.hpp`.

    Blocks that wait for each other become one, too.
    """
    block, cluster = source.block, source.grid[0] if source.cooperative else source.cluster
    instruction = re.search(r"wgmma\.mma_async.*?f32\.(\w+)\.\w+ .*?p, 1, 1, (?:(\d), )?(\d);", source.text, re.DOTALL)
    assert instruction is not None
    constants = {
        "BLOCK": block, "CLUSTER": cluster, "HALF": int(instruction[1] == "f16"),
        "TRANSPOSED_A": instruction[2] or 0, "TRANSPOSED_B": instruction[3],
    }  # fmt: skip
    text = re.sub(ORDERED, "", source.text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^DEV void wgmma(?:_scores|_values|_left)?\(.*?^}\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^DEV (u32 smem_u32|void named_arrive).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^DEV Raw<16> (?:shared16|fragment|fragment_transposed)\(.*?^}\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(
        r"^DEV (?:u32 add_release|u32 load_acquire|void leave4|void load4)\(.*?^}\n", "", text, flags=re.DOTALL | re.MULTILINE
    )
    text = re.sub(r"^template <> DEV u32 pair_\w+<\w+>\(.*?^}\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^template <class T> DEV u32 pair_.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^#define KERNEL.*$", "#define KERNEL(threads, cluster, resident) static void", text, flags=re.MULTILINE)
    text = re.sub(r"^#define TMAP.*$", "#define TMAP const TMap", text, flags=re.MULTILINE)
    head, mark, tail = text.partition("// tile.cuh:")
    for old, new in {
        "threadIdx.x": f"((int)threadIdx.x % {block})",
        "blockIdx.x": f"((int)blockIdx.x * {cluster} + rank_here())",
        "gridDim.x": str(source.grid[0]),
        "extern __shared__ u8 raw[];": "enter(); u8* const raw = shared[rank_here()] + 16;",
        "__syncthreads()": "block_sync()",
    }.items():
        tail = tail.replace(old, new)
    ordered = "template <int N, class P> static Raw<N * (int)sizeof(P)> ordered(const P* p) { return load_raw<N * (int)sizeof(P), PLAIN>(p); }\n"
    vocabulary = Path(__file__).with_name("emulate_wgmma.hpp").read_text(encoding="utf-8")
    vocabulary = vocabulary.replace("CLUSTER /* peers */", str(source.cluster))
    text = head + "".join(f"constexpr int {n} = {v};\n" for n, v in constants.items()) + vocabulary + ordered + mark + tail
    assert block * cluster <= 1024, "the emulator runs at most 1024 threads"
    return dataclasses.replace(source, text=text, grid=(source.grid[0] // cluster, 1, 1), block=block * cluster, cluster=1)


class Map(ctypes.Structure):
    """A tensor map as the emulator wants it."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("extents", ctypes.c_longlong * 3),
        ("strides", ctypes.c_longlong * 2),
        ("box", ctypes.c_longlong * 3),
        ("swizzle", ctypes.c_int),
        ("bytes", ctypes.c_int),
    )


def run_wgmma(
    entry: Any, source: KernelSource, program: Program, inputs: Mapping[str, np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """Run an emulated wgmma kernel with one output once and return it; a write outside it is an error."""
    (found,) = run_maps(entry, source, program, inputs)
    return found


def run_maps(
    entry: Any, source: KernelSource, program: Program, inputs: Mapping[str, np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any]]:
    """Run an emulated kernel that may take tensor maps once and return its outputs; a write outside them is an error."""
    results = {o.name: aligned(np.full(math.prod(o.shape) * o.dtype.bytes, 0xCB, np.uint8)) for o in program.outputs}
    arrays = {name: aligned(a) for name, a in inputs.items()} | results
    workspace = aligned(np.zeros(source.workspace_bytes, np.uint8))
    keep, pointers = [], []
    for arg in source.args:
        if isinstance(arg, TensorMapArg):
            assert all(s % 16 == 0 for s in arg.strides), "TMA wants strides of whole 16 bytes"
            assert all(0 < b <= 256 for b in arg.box), "TMA wants boxes of at most 256"
            keep.append(
                Map(
                    arrays[arg.name].ctypes.data if arg.name else workspace.ctypes.data + arg.offset,
                    tuple(arg.extents),
                    tuple(arg.strides),
                    tuple(arg.box),
                    arg.swizzle,
                    arg.dtype.bytes,
                )
            )
            pointers.append(ctypes.addressof(keep[-1]))
        else:
            pointers.append((arrays[arg.name] if isinstance(arg, BufferArg) else workspace).ctypes.data)
    for _ in range(2 if source.cooperative else 1):  # what one launch leaves must do for the next
        for result in results.values():
            result[...] = 0xCB
        entry((ctypes.c_void_p * len(pointers))(*pointers), source.grid[0], source.block)
    assert source.cooperative or not workspace.any(), "the workspace is not left as it was found"
    for result in results.values():
        around = np.asarray(result.base)
        start = result.ctypes.data - around.ctypes.data
        assert np.all(around[:start] == 0xA5), "written before the output"
        assert np.all(around[start + result.nbytes :] == 0xA5), "written behind the output"
    return [results[o.name].view(o.dtype.numpy).reshape(o.shape) for o in program.outputs]
