"""Run emitted window kernels on the CPU: the Hopper vocabulary of `emulate_mma`, operands without a swizzle, bulk copies."""

from __future__ import annotations

import dataclasses
import re

from eqsat.codegen.kernel import KernelSource
from tests.codegen.emulate_mma import emulated_wgmma

VOCABULARY = r"""
static void fence_async_all() {}
static u32 count_seen(const u32* p) { return *p; }
static void shared_put16(u32 at, const Raw<16>& r) { if (at % 16) abort(); memcpy(here(at), &r, 16); }
template <int N> static Raw<N> shared_get(u32 at) { Raw<N> r; memcpy(&r, here(at), N); return r; }
template <int N, class P> static Raw<N * (int)sizeof(P)> free_load(const P* p) { return ordered<N>(p); }
static void shared_put4(u32 at, float a) { memcpy(here(at), &a, 4); }
static void shared_put8(u32 at, float a, float b) { if (at % 8) abort(); shared_put4(at, a); shared_put4(at + 4, b); }
template <class S> static float shared_one(u32 at) { if (at % sizeof(S)) abort(); Raw<4> r; r.w[0] = 0; memcpy(&r, here(at), sizeof(S)); return Element<S>::get(r, 0); }
// Copies of a thread are done when it waits for them.
struct Copied { u32 to; const void* from; int bytes; };
static Copied copied[1024][256];
static int copies[1024];
template <int N> static void async_copy(u32 to, const void* from, bool there) {
  if (to % N || (unsigned long long)from % N || copies[current] >= 256) abort();
  copied[current][copies[current]++] = {to, there ? from : nullptr, N};
}
static void async_wait() {
  for (int i = 0; i < copies[current]; ++i) {
    const Copied& c = copied[current][i];
    c.from ? (void)memcpy(here(c.to), c.from, c.bytes) : (void)memset(here(c.to), 0, c.bytes);
  }
  copies[current] = 0;
}
static void bulk_load(u32 dst, const void* src, u32 bytes, u32 bar) {
  if (dst % 16 || bytes % 16 || (unsigned long long)src % 16) abort();
  memcpy(here(dst), src, bytes);
  Barrier& b = barriers[rank_here()][bar / 8];
  b.bytes -= bytes;
  settle(b);
}
"""
# What the vocabulary of wgmma kernels may have or not, by what it begins with.
COMMON = {
    "#define SPIN_NS": "1000000000ull",
    "static u64 globaltimer()": "{ return 0; }",
    "static void fault()": "{ abort(); }",
    "static void begin_dependent()": "{}",
}
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
    ours = r"^template <int N> DEV (?:Raw<N> shared_get|void async_copy)\(.*?^}\n"
    ours += r"|^template <class S> DEV float shared_one\(.*?^}\n"
    text = re.sub(ours, "", done.text, flags=re.DOTALL | re.MULTILINE)
    head, mark, tail = text.replace(SWIZZLED, EITHER).partition("// tile.cuh:")
    for name in ("void begin_dependent", "u64 globaltimer"):
        head = head.replace(f"DEV {name}()", f"DEV {name}_()")
    common = "".join(f"{start} {rest}\n" for start, rest in COMMON.items() if start not in head)
    return dataclasses.replace(done, text=head + common + VOCABULARY + mark + tail)
