"""Run emitted window kernels on the CPU: the Hopper vocabulary of `emulate_mma`, operands without a swizzle, bulk copies."""

from __future__ import annotations

import dataclasses

from eqsat.codegen.kernel import KernelSource
from tests.codegen.emulate_mma import emulated_wgmma

VOCABULARY = r"""
#define SPIN_NS 1000000000ull
static u64 globaltimer() { return 0; }
static void fault() { abort(); }
static void begin_dependent() {}
static void fence_async_all() {}
static u32 load_acquire(const u32* p) { return *p; }
static void shared_put16(u32 at, const Raw<16>& r) { if (at % 16) abort(); memcpy(here(at), &r, 16); }
static void bulk_load(u32 dst, const void* src, u32 bytes, u32 bar) {
  if (dst % 16 || bytes % 16 || (unsigned long long)src % 16) abort();
  memcpy(here(dst), src, bytes);
  Barrier& b = barriers[rank_here()][bar / 8];
  b.bytes -= bytes;
  settle(b);
}
"""
# How a descriptor without a swizzle addresses an operand that is contiguous along k (PTX ISA, "Canonical layouts": K-major).
SWIZZLED = "memcpy(&bits, here(swizzled(at, 128)), 2);"
EITHER = (
    "if (d >> 62 == 0) memcpy(&bits, here(start + mn / 8 * stride + mn % 8 * 16 + k / 8 * leading + k % 8 * 2), 2);\n  else "
    + SWIZZLED
)


def emulated_window(source: KernelSource) -> KernelSource:
    """Rewrite a window kernel for `emulate.compile_kernels`."""
    done = emulated_wgmma(source)
    assert SWIZZLED in done.text
    head, mark, tail = done.text.replace(SWIZZLED, EITHER).partition("// tile.cuh:")
    head = head.replace("DEV void begin_dependent() {", "DEV void begin_dependent_() {").replace(
        "DEV u64 globaltimer()", "DEV u64 globaltimer_()"
    )
    return dataclasses.replace(done, text=head + VOCABULARY + mark + tail)
