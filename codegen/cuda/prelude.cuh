// prelude.cuh: the vocabulary of emitted CUDA kernels, without any CUDA header, so that NVRTC needs no include path.
// 1 types · 2 stored element types and 16-byte accesses · 3 ids, barriers, shuffles · 4 Hopper: clusters, mbarrier, TMA, wgmma.
// Everything is inlined; what a kernel does not use costs nothing.

// ---- 1 types ----------------------------------------------------------------------------------------------------
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
#define DEV __device__ __forceinline__
#define UNROLL _Pragma("unroll")

DEV u32 pack_bf16(float lo, float hi) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
DEV u32 pack_f16(float lo, float hi) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
DEV float bf16_lo(u32 v) { return __uint_as_float(v << 16); }
DEV float bf16_hi(u32 v) { return __uint_as_float(v & 0xffff0000u); }
DEV float f16_value(u16 v) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v)); return r; }
DEV float f16_lo(u32 v) { return f16_value((u16)v); }
DEV float f16_hi(u32 v) { return f16_value((u16)(v >> 16)); }

// ---- 2 stored element types and accesses ------------------------------------------------------------------------
// A buffer of 16-bit floats is a buffer of bf16 or f16; its values are float in registers.
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
template <class T> struct Value { typedef T type; };
template <> struct Value<bf16> { typedef float type; };
template <> struct Value<f16> { typedef float type; };

// BYTES of memory held in 32-bit registers; below 4 bytes one register holds them.
template <int BYTES> struct Raw { u32 w[BYTES < 4 ? 1 : BYTES / 4]; };

// Element i (a compile-time constant once unrolled) of raw memory as a value.
template <class T> struct Element;
template <> struct Element<float> {
  template <class R> DEV static float get(const R& r, int i) { return __uint_as_float(r.w[i]); }
  template <class R> DEV static void put(R& r, int i, float v) { r.w[i] = __float_as_uint(v); }
};
template <> struct Element<int> {
  template <class R> DEV static int get(const R& r, int i) { return (int)r.w[i]; }
  template <class R> DEV static void put(R& r, int i, int v) { r.w[i] = (u32)v; }
};
template <> struct Element<i64> {
  template <class R> DEV static i64 get(const R& r, int i) { return (i64)(((u64)r.w[2 * i + 1] << 32) | r.w[2 * i]); }
  template <class R> DEV static void put(R& r, int i, i64 v) { r.w[2 * i] = (u32)(u64)v; r.w[2 * i + 1] = (u32)((u64)v >> 32); }
};
template <> struct Element<double> {
  template <class R> DEV static double get(const R& r, int i) { return __longlong_as_double(Element<i64>::get(r, i)); }
  template <class R> DEV static void put(R& r, int i, double v) { Element<i64>::put(r, i, __double_as_longlong(v)); }
};
template <> struct Element<bf16> {
  template <class R> DEV static float get(const R& r, int i) { return i & 1 ? bf16_hi(r.w[i / 2]) : bf16_lo(r.w[i / 2]); }
};
template <> struct Element<f16> {
  template <class R> DEV static float get(const R& r, int i) { return i & 1 ? f16_hi(r.w[i / 2]) : f16_lo(r.w[i / 2]); }
};
template <> struct Element<bool> {
  template <class R> DEV static bool get(const R& r, int i) { return ((r.w[i / 4] >> (8 * (i % 4))) & 0xffu) != 0; }
};

// N values rounded to the stored type, as raw memory.
template <class T> struct Pack {
  template <int N, class V> DEV static Raw<N * (int)sizeof(T)> from(const V (&v)[N]) {
    Raw<N * (int)sizeof(T)> r;
    UNROLL for (int i = 0; i < N; ++i) Element<T>::put(r, i, (T)v[i]);
    return r;
  }
};
template <> struct Pack<bf16> {
  template <int N, class V> DEV static Raw<N * 2> from(const V (&v)[N]) {
    Raw<N * 2> r;
    UNROLL for (int i = 0; i < N; i += 2) r.w[i / 2] = pack_bf16((float)v[i], i + 1 < N ? (float)v[i + 1 < N ? i + 1 : i] : 0.f);
    return r;
  }
};
template <> struct Pack<f16> {
  template <int N, class V> DEV static Raw<N * 2> from(const V (&v)[N]) {
    Raw<N * 2> r;
    UNROLL for (int i = 0; i < N; i += 2) r.w[i / 2] = pack_f16((float)v[i], i + 1 < N ? (float)v[i + 1 < N ? i + 1 : i] : 0.f);
    return r;
  }
};
template <> struct Pack<bool> {
  template <int N, class V> DEV static Raw<N> from(const V (&v)[N]) {
    Raw<N> r;
    UNROLL for (int i = 0; i < (N + 3) / 4; ++i) r.w[i] = 0;
    UNROLL for (int i = 0; i < N; ++i) r.w[i / 4] |= (v[i] ? 1u : 0u) << (8 * (i % 4));
    return r;
  }
};

// Cache hints. L2 priorities need a policy register on sm_90 (the .L2::evict_* qualifiers are sm_100 and later).
// A plain load stays before the next barrier, where one with `.nc` (it may: inputs are never the output) is moved down to its
// first use, so that memory waits once more.
constexpr int PLAIN = 0, STREAMING = 1, NO_ALLOCATE = 2, EVICT_FIRST = 3, CACHED = 4;
struct V4 { u32 x, y, z, w; };
#define LOAD16(name, q) DEV V4 name(const void* p) { V4 v; asm volatile("ld.global" q ".v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p)); return v; }
#define STORE16(name, q) DEV void name(void* p, V4 v) { asm volatile("st.global" q ".v4.u32 [%0], {%1,%2,%3,%4};" :: "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }
LOAD16(ld_plain, "") LOAD16(ld_nc, ".nc") LOAD16(ld_cs, ".cs") LOAD16(ld_na, ".nc.L1::no_allocate")
STORE16(st_plain, "") STORE16(st_cs, ".cs") STORE16(st_na, ".L1::no_allocate")
DEV u64 policy_first() { u64 p; asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p)); return p; }
DEV u64 policy_last() { u64 p; asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(p)); return p; }
DEV V4 ld_ef(const void* p) { V4 v; asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p), "l"(policy_first())); return v; }
DEV void st_ef(void* p, V4 v) { asm volatile("st.global.L1::no_allocate.L2::cache_hint.v4.u32 [%0], {%1,%2,%3,%4}, %5;" :: "l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "l"(policy_first()) : "memory"); }
template <int HINT> DEV V4 load16(const void* p) { return HINT == STREAMING ? ld_cs(p) : HINT == NO_ALLOCATE ? ld_na(p) : HINT == EVICT_FIRST ? ld_ef(p) : HINT == CACHED ? ld_nc(p) : ld_plain(p); }
template <int HINT> DEV void store16(void* p, V4 v) {
  if constexpr (HINT == STREAMING) st_cs(p, v);
  else if constexpr (HINT == NO_ALLOCATE) st_na(p, v);
  else if constexpr (HINT == EVICT_FIRST) st_ef(p, v);
  else st_plain(p, v);
}

// Aligned memory of BYTES (1, 2, 4, 8 or a multiple of 16) into registers and back.
template <int BYTES, int HINT> DEV Raw<BYTES> load_raw(const void* p) {
  Raw<BYTES> r;
  if constexpr (BYTES % 16 == 0) {
    UNROLL for (int c = 0; c < BYTES / 16; ++c) {
      const V4 v = load16<HINT>((const u8*)p + 16 * c);
      r.w[4 * c] = v.x; r.w[4 * c + 1] = v.y; r.w[4 * c + 2] = v.z; r.w[4 * c + 3] = v.w;
    }
  } else if constexpr (BYTES == 8) {
    asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(r.w[0]), "=r"(r.w[1]) : "l"(p));
  } else if constexpr (BYTES == 4) {
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(r.w[0]) : "l"(p));
  } else if constexpr (BYTES == 2) {
    u16 h; asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(h) : "l"(p)); r.w[0] = h;
  } else {
    static_assert(BYTES == 1, "an access is of 1, 2, 4, 8 or a multiple of 16 bytes");
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(r.w[0]) : "l"(p));
  }
  return r;
}
template <int BYTES> DEV Raw<BYTES> zero_raw() {
  Raw<BYTES> r;
  UNROLL for (int i = 0; i < (BYTES < 4 ? 1 : BYTES / 4); ++i) r.w[i] = 0;
  return r;
}
template <int BYTES, int HINT> DEV void store_raw(void* p, const Raw<BYTES>& r) {
  if constexpr (BYTES % 16 == 0) {
    UNROLL for (int c = 0; c < BYTES / 16; ++c) store16<HINT>((u8*)p + 16 * c, V4{r.w[4 * c], r.w[4 * c + 1], r.w[4 * c + 2], r.w[4 * c + 3]});
  } else if constexpr (BYTES == 8) {
    asm volatile("st.global.v2.u32 [%0], {%1,%2};" :: "l"(p), "r"(r.w[0]), "r"(r.w[1]) : "memory");
  } else if constexpr (BYTES == 4) {
    asm volatile("st.global.u32 [%0], %1;" :: "l"(p), "r"(r.w[0]) : "memory");
  } else if constexpr (BYTES == 2) {
    asm volatile("st.global.u16 [%0], %1;" :: "l"(p), "h"((u16)r.w[0]) : "memory");
  } else {
    static_assert(BYTES == 1, "an access is of 1, 2, 4, 8 or a multiple of 16 bytes");
    asm volatile("st.global.u8 [%0], %1;" :: "l"(p), "r"(r.w[0]) : "memory");
  }
}
// One element at p, as a value; and a value to p.
template <class T> DEV typename Value<T>::type load_one(const T* p) { return Element<T>::get(load_raw<(int)sizeof(T), PLAIN>(p), 0); }
template <class T, class V> DEV void store_one(T* p, V v) { const V a[1] = {v}; store_raw<(int)sizeof(T), PLAIN>(p, Pack<T>::template from<1>(a)); }
// One element of shared memory. A 16-bit float goes there and back unrounded, since it came from such a buffer.
DEV float shared_value(const bf16& p) { return bf16_lo(p.bits); }
DEV float shared_value(const f16& p) { return f16_value(p.bits); }
template <class T> DEV T shared_value(const T& p) { return p; }
DEV void put_shared(bf16& p, float v) { p.bits = (u16)pack_bf16(v, 0.f); }
DEV void put_shared(f16& p, float v) { p.bits = (u16)pack_f16(v, 0.f); }
template <class T> DEV void put_shared(T& p, T v) { p = v; }

// ---- 3 ids, barriers, shuffles ----------------------------------------------------------------------------------
DEV int lane_id() { return threadIdx.x % 32; }
DEV u32 smem_u32(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEV void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
DEV void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
DEV u64 globaltimer() { u64 t; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)); return t; }
// First of all in a kernel that may follow another of its plan: lets the blocks of the kernel after it come to multiprocessors that
// have room, once all blocks of this one run, and waits until the kernels before it have ended and their writes are seen. Where
// the launches do not overlap, neither does anything.
DEV void begin_dependent() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Shuffles a value of any trivially copyable type of whole 32-bit words (or a bool) with the lane that differs in `mask`.
template <class T> DEV T shuffle_xor(T v, int mask) {
  if constexpr (sizeof(T) < 4) return (T)__shfl_xor_sync(~0u, (int)v, mask);
  else {
    union U { T value; u32 w[sizeof(T) / 4]; DEV U() {} } in, out;
    in.value = v;
    UNROLL for (int i = 0; i < (int)(sizeof(T) / 4); ++i) out.w[i] = __shfl_xor_sync(~0u, in.w[i], mask);
    return out.value;
  }
}
// Counts this block as done and says to every thread whether it was the last of `blocks`; resets the counter for the next launch.
// The writes of all blocks that came before are visible to the last one.
DEV bool last_block(u32* counter, u32 blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == blocks - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// ---- 4 Hopper ---------------------------------------------------------------------------------------------------
#ifndef SPIN_NS
#define SPIN_NS 1000000000ull  // a barrier that never flips faults after 1 s instead of hanging the device
#endif
struct alignas(64) TMap { u8 opaque[128]; };  // = CUtensorMap, passed by value as a __grid_constant__ parameter

// Clusters: rank of this block, a barrier over all its blocks, and a word of another block's shared memory.
DEV u32 cluster_rank() { u32 r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
DEV void cluster_sync() { asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory"); }
DEV u32 peer_word(u32 at, u32 rank) {
  u32 v;
  asm volatile("{ .reg .b32 a; mapa.shared::cluster.u32 a, %1, %2; ld.shared::cluster.u32 %0, [a]; }" : "=r"(v) : "r"(at), "r"(rank) : "memory");
  return v;
}
template <class T> DEV T peer_value(const T* p, u32 rank) {
  union U { T value; u32 w[(sizeof(T) + 3) / 4]; DEV U() {} } out;
  UNROLL for (int i = 0; i < (int)((sizeof(T) + 3) / 4); ++i) out.w[i] = peer_word(smem_u32(p) + 4 * i, rank);
  return out.value;
}
DEV void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <int R> DEV void reg_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(R)); }
template <int R> DEV void reg_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(R)); }

// A store to null kills the grid like a trap, but unlike a trap it leaves ptxas its setmaxnreg budget (trap: C7512 and spills).
DEV void fault() { asm volatile("st.global.u32 [%0], %1;" :: "l"(0ull), "r"(0) : "memory"); }
DEV void mbar_init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory"); }
DEV void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void mbar_expect(u32 bar, u32 bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory"); }
DEV void mbar_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory"); }
// Arrives on the same barrier of another block of the cluster. Unqualified on purpose: `.release.cluster` costs a MEMBAR.GPU.
DEV void mbar_arrive_at(u32 bar, u32 rank) {
  asm volatile("{ .reg .b32 ra; mapa.shared::cluster.u32 ra, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [ra]; }" :: "r"(bar), "r"(rank) : "memory");
}
DEV bool mbar_try(u32 bar, u32 parity) {
  u32 ok;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(ok) : "r"(bar), "r"(parity) : "memory");
  return ok;
}
DEV void mbar_wait(u32 bar, u32 parity) {
  if (mbar_try(bar, parity)) return;
  const u64 start = globaltimer();  // only on the slow path
  while (!mbar_try(bar, parity))
    if (globaltimer() - start > SPIN_NS) { fault(); break; }
}

// TMA: tensor tiles and linear bulk copies.
DEV void tma_prefetch(const TMap* m) { asm volatile("prefetch.tensormap [%0];" :: "l"(m) : "memory"); }
DEV void tma_load(u32 dst, const TMap* m, u32 bar, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               :: "r"(dst), "l"(m), "r"(bar), "r"(x), "r"(y) : "memory");
}
DEV void tma_load_mc(u32 dst, const TMap* m, u32 bar, int x, int y, u16 mask) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;"
               :: "r"(dst), "l"(m), "r"(bar), "r"(x), "r"(y), "h"(mask) : "memory");
}
DEV void tma_store(const TMap* m, u32 src, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" :: "l"(m), "r"(src), "r"(x), "r"(y) : "memory");
}
DEV void tma_load3(u32 dst, const TMap* m, u32 bar, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
               :: "r"(dst), "l"(m), "r"(bar), "r"(x), "r"(y), "r"(z) : "memory");
}
DEV void tma_load3_mc(u32 dst, const TMap* m, u32 bar, int x, int y, int z, u16 mask) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;"
               :: "r"(dst), "l"(m), "r"(bar), "r"(x), "r"(y), "r"(z), "h"(mask) : "memory");
}
DEV void tma_store3(const TMap* m, u32 src, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" :: "l"(m), "r"(src), "r"(x), "r"(y), "r"(z) : "memory");
}
DEV void bulk_load(u32 dst, const void* src, u32 bytes, u32 bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" :: "r"(dst), "l"(src), "r"(bytes), "r"(bar) : "memory");
}
DEV void bulk_store(void* dst, u32 src, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" :: "l"(dst), "r"(src), "r"(bytes) : "memory");
}
DEV void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N> DEV void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(N) : "memory"); }
template <int N> DEV void bulk_wait() { asm volatile("cp.async.bulk.wait_group %0;" :: "n"(N) : "memory"); }

// wgmma: fences, and the descriptor of a K-major operand tile of 128-byte rows written by TMA with a 128-byte swizzle.
DEV void wg_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wg_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEV void wg_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }
// Keeps the compiler from reading accumulators before the wait that makes them valid.
template <int N> DEV void pin(float (&d)[N]) {
  UNROLL for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i]) :: "memory");
}
DEV u64 desc128(u32 addr) { return (u64)((addr & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62); }

// mma.sync and the shared-memory shuffles around it.
DEV void stmatrix4(u32 addr, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" :: "r"(addr), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
DEV void stmatrix4_transposed(u32 addr, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" :: "r"(addr), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
DEV void mma16816(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEV void mma16816_f16(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
