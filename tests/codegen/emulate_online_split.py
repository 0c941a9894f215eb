"""Run emitted kernels of split dependent folds on the CPU: as `emulate_mma.emulated`, with blocks of a cluster that read each other."""

from __future__ import annotations

import dataclasses
import re

from eqsat.codegen.kernel import KernelSource
from tests.codegen.emulate_mma import ORDERED, VOCABULARY, emulated_wgmma

MORE = r"""
template <class P> static P peer_value(const P* p, int rank) { return *(const P*)((const u8*)p + (long)(rank - rank_here()) * SHARED); }
template <class V> static V __shfl_sync(unsigned, V v, int from) {
  static V found[1024];
  found[current] = v;
  warp_barrier();
  const V r = found[current / 32 * 32 + from];
  warp_barrier();
  return r;
}
// Lane 4i + j holds elements 2j and 2j + 1 of row i.
static u32 transpose8(u32 v) {
  static u32 found[1024];
  found[current] = v;
  warp_barrier();
  const int base = current / 32 * 32, i = current % 32 / 4, j = current % 4;
  auto element = [&](int row, int col) { return (found[base + 4 * row + col / 2] >> (16 * (col % 2))) & 0xffff; };
  const u32 r = element(2 * j, i) | element(2 * j + 1, i) << 16;
  warp_barrier();
  return r;
}
static bool __any_sync(unsigned, bool v) {
  static bool found[1024];
  found[current] = v;
  warp_barrier();
  bool any = false;
  for (int i = 0; i < 32; ++i) any |= found[current / 32 * 32 + i];
  warp_barrier();
  return any;
}
"""


def emulated_online_split(source: KernelSource) -> KernelSource:
    """Rewrite a kernel for `emulate.compile_kernels`: the blocks of a cluster become slices of one block's threads."""
    block, cluster = source.block, source.cluster
    assert block * cluster <= 1024, "the emulator runs at most 1024 threads"
    text = re.sub(r"// A ring of STAGES.*?(?=^constexpr int M = )", "", source.text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^#define (KERNEL|TMAP).*\n|^DEV (int warpgroup|int warp_in_group).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(ORDERED, "", text, flags=re.DOTALL | re.MULTILINE)
    head, mark, kernel = text.partition("constexpr int M = ")
    one = head.partition("template <class T> DEV typename Value<T>::type ordered_one")
    kernel = re.sub(r"__cluster_dims__\([^)]*\) ?", "", mark + kernel)
    for old, new in {
        "threadIdx.x": f"((int)threadIdx.x % {block})",
        "blockIdx.x": f"((int)blockIdx.x * {cluster} + rank_here())",
        "extern __shared__ u8 raw[];": "u8* const raw = shared[rank_here()];",
        "cluster_sync()": f"barrier(0, {block * cluster})",
        "__syncthreads()": f"barrier(1 + rank_here(), {block})",
    }.items():
        kernel = kernel.replace(old, new)
    vocabulary = VOCABULARY.replace("THREADS_OF_A_BLOCK", str(block)) + MORE
    text = one[0] + vocabulary + one[1] + one[2] + kernel
    return dataclasses.replace(source, text=text, grid=(source.grid[0] // cluster, 1, 1), block=block * cluster, cluster=1)


SENT = r"""
static void cluster_arrive() {}
static void cluster_wait() { cluster_sync(); }
static void push(float* to, float a, u32 bar, int rank) {
  *(float*)((u8*)to + (long)(rank - rank_here()) * SHARED) = a;
  Barrier& b = barriers[rank][bar / 8];
  b.bytes -= 4;
  settle(b);
}
static void push2(float* to, float a, float b, u32 bar, int rank) { push(to, a, bar, rank); push(to + 1, b, bar, rank); }
"""


def emulated_online_split_wgmma(source: KernelSource) -> KernelSource:
    """Rewrite a kernel of warpgroups in the same way: blocks of a cluster send one another floats, which their barriers count."""
    made = emulated_wgmma(source)
    head, mark, tail = made.text.partition("// tile.cuh:")
    return dataclasses.replace(made, text=head + SENT + mark + tail)
