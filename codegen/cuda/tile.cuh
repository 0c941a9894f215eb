// tile.cuh: the vocabulary of the contract kernels over prelude.cuh. A TMA ring, swizzled operand tiles, wgmma accumulators,
// row statistics, a swizzled TMA store. Everything is a compile-time shape, everything inlines.
#define KERNEL(threads, cluster, resident) extern "C" __global__ void __cluster_dims__(cluster, 1, 1) __launch_bounds__(threads, resident)
#define TMAP const __grid_constant__ TMap
DEV int warpgroup() { return __shfl_sync(~0u, threadIdx.x / 128, 0); }  // uniform, so that descriptors stay in uniform registers
DEV int warp_in_group() { return (threadIdx.x / 32) % 4; }

// The two halves of a cluster barrier that hands on no writes, and so needs no memory fence: whoever has waited may write to its peers.
DEV void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
DEV void cluster_wait() { asm volatile("barrier.cluster.wait;" ::: "memory"); }
// Sends floats to the same place in another block's shared memory; they count as 4 bytes each at its barrier.
DEV void push(float* to, float a, u32 bar, u32 rank) { asm volatile("{ .reg .b32 d, m; mapa.shared::cluster.u32 d, %0, %3; mapa.shared::cluster.u32 m, %1, %3; st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [d], %2, [m]; }" :: "r"(smem_u32(to)), "r"(bar), "f"(a), "r"(rank) : "memory"); }
DEV void push2(float* to, float a, float b, u32 bar, u32 rank) { asm volatile("{ .reg .b32 d, m; mapa.shared::cluster.u32 d, %0, %4; mapa.shared::cluster.u32 m, %1, %4; st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [d], {%2, %3}, [m]; }" :: "r"(smem_u32(to)), "r"(bar), "f"(a), "f"(b), "r"(rank) : "memory"); }

// f(0), f(1), … f(N-1) with constants: an array that is indexed by them stays in registers whatever the body's size (a large
// loop is not always unrolled in time, and then its arrays go to local memory).
template <int I> struct Constant { DEV constexpr operator int() const { return I; } };
template <int N, int I = 0, class F> DEV void repeat(F f) {
  if constexpr (I < N) { f(Constant<I>{}); repeat<N, I + 1>(f); }
}

// Combining functions of row statistics, with their neutral elements.
struct Sum { DEV static float neutral() { return 0.f; } DEV static float of(float a, float b) { return a + b; } };
struct Max { DEV static float neutral() { return -EQ_INF; } DEV static float of(float a, float b) { return eq_maximum(a, b); } };
struct Min { DEV static float neutral() { return EQ_INF; } DEV static float of(float a, float b) { return eq_minimum(a, b); } };

// Loads for code beside the matrix units. `at` and `free_load` (N neighbours, aligned to all of them) are ordinary loads, which the
// compiler may merge and move. `ordered` loads stay behind the barriers before them: not `.nc`, which ptxas moves above a barrier
// and above the wait for the matrix units, all loads of a tile at once, until registers spill.
template <class T> DEV typename Value<T>::type at(const T* p) {
  if constexpr (sizeof(T) == 2) { Raw<2> r; r.w[0] = *(const u16*)p; return Element<T>::get(r, 0); }
  else return *p;
}
template <int N, class T> DEV Raw<N * (int)sizeof(T)> free_load(const T* p) {
  constexpr int BYTES = N * (int)sizeof(T);
  Raw<BYTES> r;
  if constexpr (BYTES % 16 == 0)
    UNROLL for (int c = 0; c < BYTES / 16; ++c) { const uint4 v = ((const uint4*)p)[c]; r.w[4 * c] = v.x; r.w[4 * c + 1] = v.y; r.w[4 * c + 2] = v.z; r.w[4 * c + 3] = v.w; }
  else if constexpr (BYTES == 8) { const uint2 v = *(const uint2*)p; r.w[0] = v.x; r.w[1] = v.y; }
  else if constexpr (BYTES == 4) r.w[0] = *(const u32*)p;
  else if constexpr (BYTES == 2) r.w[0] = *(const u16*)p;
  else r.w[0] = *(const u8*)p;
  return r;
}
template <int N, class T> DEV Raw<N * (int)sizeof(T)> ordered(const T* p) {
  constexpr int BYTES = N * (int)sizeof(T);
  Raw<BYTES> r;
  if constexpr (BYTES % 16 == 0)
    UNROLL for (int c = 0; c < BYTES / 16; ++c) { const V4 v = ld_plain((const u8*)p + 16 * c); r.w[4 * c] = v.x; r.w[4 * c + 1] = v.y; r.w[4 * c + 2] = v.z; r.w[4 * c + 3] = v.w; }
  else if constexpr (BYTES == 8) asm volatile("ld.global.v2.u32 {%0,%1}, [%2];" : "=r"(r.w[0]), "=r"(r.w[1]) : "l"(p) : "memory");
  else if constexpr (BYTES == 4) asm volatile("ld.global.u32 %0, [%1];" : "=r"(r.w[0]) : "l"(p) : "memory");
  else if constexpr (BYTES == 2) { u16 h; asm volatile("ld.global.u16 %0, [%1];" : "=h"(h) : "l"(p) : "memory"); r.w[0] = h; }
  else asm volatile("ld.global.u8 %0, [%1];" : "=r"(r.w[0]) : "l"(p) : "memory");
  return r;
}
// 16 bytes of a matrix that streams by, with a cache hint; stays before the barriers behind it (ptxas would sink a `.nc` load).
template <int HINT> DEV Raw<16> stream16(const void* p) {
  Raw<16> r;
  if constexpr (HINT == STREAMING) asm volatile("ld.global.cs.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3]) : "l"(p));
  else if constexpr (HINT == NO_ALLOCATE) asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3]) : "l"(p));
  else if constexpr (HINT == EVICT_FIRST) asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;" : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3]) : "l"(p), "l"(policy_first()));
  else asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.w[0]), "=r"(r.w[1]), "=r"(r.w[2]), "=r"(r.w[3]) : "l"(p));
  return r;
}
template <class T> DEV typename Value<T>::type ordered_one(const T* p) { return Element<T>::get(ordered<1>(p), 0); }

// A ring of STAGES slots of BYTES each; TMA fills a slot (full barrier), CONSUMERS warps of every block of the cluster free it.
template <int STAGES, u32 BYTES, int CONSUMERS, int CLUSTER> struct Ring {
  u32 data, parity = 0;
  int s = 0, last = -1;
  DEV Ring(u32 at) : data(at) {}
  DEV u32 full(int i) const { return data + STAGES * BYTES + 8 * i; }
  DEV u32 empty(int i) const { return full(STAGES + i); }
  DEV void init() { for (int i = 0; i < STAGES; ++i) { mbar_init(full(i), 1); mbar_init(empty(i), CONSUMERS * CLUSTER); } mbar_init_fence(); }
  DEV void next() { if (++s == STAGES) { s = 0; parity ^= 1; } }
  DEV void skip(int steps) { s += steps; parity ^= (s / STAGES) & 1; s %= STAGES; }
  DEV u32 acquire() { mbar_wait(empty(s), parity ^ 1); mbar_expect(full(s), BYTES); return data + s * BYTES; }  // producer
  DEV u32 wait() { mbar_wait(full(s), parity); return data + s * BYTES; }                                        // consumer
  DEV void release(int i) { if constexpr (CLUSTER > 1) { if (lane_id() < CLUSTER) mbar_arrive_at(empty(i), lane_id()); } else { if (lane_id() == 0) mbar_arrive(empty(i)); } }
  DEV void advance() { wg_wait<1>(); if (last >= 0) release(last); last = s; next(); }                           // one wgmma group stays in flight
  DEV void drain() { wg_wait<0>(); release(last); last = -1; }
};

// Persistent raster over super-tiles of (BM*CM) x (BN*CN): GROUP rows of tiles at a time, so that they share L2; batches outermost.
template <int BATCH, int M, int N, int BM, int BN, int CM, int CN, int GROUP> struct Raster {
  static constexpr int ROWS = (M + BM * CM - 1) / (BM * CM), COLS = (N + BN * CN - 1) / (BN * CN), CLUSTER = CM * CN;
  int t, m, n, batch;
  DEV Raster() : t((int)(blockIdx.x / CLUSTER) - (int)(gridDim.x / CLUSTER)) {}
  DEV Raster(int tile) : t(tile) {}
  DEV bool next() {
    t += gridDim.x / CLUSTER;
    return place();
  }
  DEV bool place() {
    if (t >= BATCH * ROWS * COLS) return false;
    batch = t / (ROWS * COLS);
    const int i = t % (ROWS * COLS), first = i / (GROUP * COLS) * GROUP, height = min(ROWS - first, GROUP), r = i - first * COLS;
    const int rank = CLUSTER > 1 ? (int)cluster_rank() : 0;
    m = ((first + r % height) * CM + rank / CN) * BM;
    n = (r / height * CN + rank % CN) * BN;
    return true;
  }
};

// One tile of the raster and no other.
template <int BATCH, int M, int N, int BM, int BN, int CM, int CN, int GROUP> struct OneTile : Raster<BATCH, M, N, BM, BN, CM, CN, GROUP> {
  bool left = true;
  DEV OneTile(int tile) : Raster<BATCH, M, N, BM, BN, CM, CN, GROUP>(tile) {}
  DEV bool next() {
    const bool first = left;
    left = false;
    return first && this->place();
  }
};

// Operand tiles of 64 elements of k in shared memory, written by TMA with a 128-byte swizzle. PEERS blocks of a cluster want the
// same tile: each loads its part of it and multicasts the part to all of `mask`.
// KMajor: rows of 64 k (128 bytes). MnMajor: panels of 64 rows-or-columns; in a panel each k is 128 bytes.
template <int ROWS, int PEERS> struct KMajor {
  static constexpr u32 bytes = ROWS * 128, step = 2;  // step: 16 elements of k, in descriptor units of 16 bytes
  static constexpr int transposed = 0;
  DEV static u32 rows64(u32 tile, int i) { return tile + i * 64 * 128; }
  DEV static u64 descriptor(u32 at) { return desc128(at); }
  DEV static void load(u32 tile, const TMap* map, u32 full, int row, int k, int batch, int part, u16 mask) {
    if constexpr (PEERS == 1) tma_load3(tile, map, full, k, row, batch);
    else tma_load3_mc(tile + part * (ROWS / PEERS) * 128, map, full, k, row + part * (ROWS / PEERS), batch, mask);
  }
};
template <int ROWS, int PEERS> struct MnMajor {
  static constexpr int panels = (ROWS + 63) / 64;
  static constexpr u32 bytes = panels * 8192, step = 128;
  static constexpr int transposed = 1;
  DEV static u32 rows64(u32 tile, int i) { return tile + i * 8192; }
  DEV static u64 descriptor(u32 at) { return (u64)((at & 0x3ffff) >> 4) | ((u64)(8192 >> 4) << 16) | (64ull << 32) | (1ull << 62); }
  DEV static void load(u32 tile, const TMap* map, u32 full, int row, int k, int batch, int part, u16 mask) {
    UNROLL for (int p = 0; p < panels; ++p)
      if constexpr (PEERS == 1) tma_load3(tile + p * 8192, map, full, row + p * 64, k, batch);
      else tma_load3_mc(tile + p * 8192 + part * (8192 / PEERS), map, full, row + p * 64, k + part * (64 / PEERS), batch, mask);
  }
};

// Fragments of a left operand: 16 rows of this warp by 16 of k, number q of a step, out of a tile of 64 rows, in the registers'
// order of wgmma (and of mma.sync): register r has row lane/4 + 8*(r%2), k 8*(r/2) + 2*(lane%4) and its neighbour.
DEV Raw<16> fragment(const u32 at) {
  Raw<16> x;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3]) : "r"(at) : "memory");
  return x;
}
DEV Raw<16> fragment_transposed(const u32 at) {
  Raw<16> x;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3]) : "r"(at) : "memory");
  return x;
}
template <class A> DEV Raw<16> left_fragment(u32 tile, int q) {
  const int l = lane_id(), w = warp_in_group();
  if constexpr (A::transposed) {
    const int k = 16 * q + (l & 7) + (l >> 4) * 8;
    return fragment_transposed(tile + k * 128 + (((2 * w + ((l >> 3) & 1)) ^ (k & 7)) << 4));
  } else {
    const int row = 16 * w + (l & 15);
    return fragment(tile + row * 128 + (((2 * q + (l >> 4)) ^ (row & 7)) << 4));
  }
}
// Arithmetic on pairs of 16-bit numbers, each rounded once.
template <class T> DEV u32 pair_mul(u32 a, u32 b);
template <> DEV u32 pair_mul<bf16>(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
template <> DEV u32 pair_mul<f16>(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
template <class T> DEV u32 pair_add(u32 a, u32 b);
template <> DEV u32 pair_add<bf16>(u32 a, u32 b) {
  u32 r;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
template <> DEV u32 pair_add<f16>(u32 a, u32 b) {
  u32 r;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
template <class T> DEV u32 pair_sub(u32 a, u32 b);
template <> DEV u32 pair_sub<bf16>(u32 a, u32 b) {
  u32 r;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
template <> DEV u32 pair_sub<f16>(u32 a, u32 b) {
  u32 r;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
// Combines what the four lanes that share a row have.
template <class OP> DEV void quad_total(float (&s)[2]) {
  UNROLL for (int h = 0; h < 2; ++h) {
    s[h] = OP::of(s[h], shuffle_xor(s[h], 1));
    s[h] = OP::of(s[h], shuffle_xor(s[h], 2));
  }
}

// D[64, N] of one warpgroup in wgmma order: element i of lane l is at row 16*warp + l/4 + 8*((i>>1)&1), column 8*(i/4) + 2*(l%4) + (i&1).
template <int N> struct Acc {
  float v[N / 2];
  template <class A, class B> DEV void mma(u32 a, u32 b, bool first) {  // += A[64, 64] * B[N, 64]^T
    const u64 da = A::descriptor(a), db = B::descriptor(b);
    UNROLL for (int k = 0; k < 4; ++k) wgmma(v, da + k * A::step, db + k * B::step, !first || k);
  }
  template <class B> DEV void mma_left(const u32 (&a)[4][4], u32 b, bool first) {  // the same with the left operand in registers
    const u64 db = B::descriptor(b);
    UNROLL for (int k = 0; k < 4; ++k) wgmma_left(v, a[k], db + k * B::step, !first || k);
  }
  // f(i, half, column) for the pairs i, i+1 of neighbours in a row; half: 0 is row l/4, 1 is row l/4 + 8.
  template <class F> DEV static void each_pair(F f) {
    UNROLL for (int j = 0; j < N / 8; ++j)
      UNROLL for (int half = 0; half < 2; ++half) f(4 * j + 2 * half, half, 8 * j + 2 * (lane_id() % 4));
  }
};

// Blocks that share a sum leave their parts in memory, wait for each other (all of them are resident), and read the parts of all.
// The sign of the counter flips when the last one comes; the rest of it is 0 then, so that it serves the next launch.
DEV u32 add_release(u32* p, u32 v) {
  u32 old;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
  return old;
}
DEV u32 load_acquire(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEV void meet(u32* counter, int blocks, bool first) {
  const u32 old = add_release(counter, first ? 0x80000000u - (blocks - 1) : 1u);
  const u64 start = globaltimer();
  while (((old ^ load_acquire(counter)) & 0x80000000u) == 0)
    if (globaltimer() - start > SPIN_NS) { fault(); break; }
}
DEV void leave4(float* p, const float* v) {
  asm volatile("st.global.v4.f32 [%0], {%1,%2,%3,%4};" :: "l"(p), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
}
DEV void load4(float (&v)[4], const float* p) {
  asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3]) : "l"(p) : "memory");
}
// The sum of what `COUNT` blocks left, in order; sixteen loads at a time are under way.
template <int COUNT, int STRIDE> DEV void add_parts(float (&to)[4], const float* p) {
  constexpr int AHEAD = COUNT < 16 ? COUNT : 16;
  UNROLL for (int e = 0; e < 4; ++e) to[e] = 0.f;
  for (int s = 0; s < COUNT; s += AHEAD) {
    float v[AHEAD][4];
    UNROLL for (int i = 0; i < AHEAD; ++i) load4(v[i], p + (i64)min(s + i, COUNT - 1) * STRIDE);
    UNROLL for (int i = 0; i < AHEAD; ++i)
      if (s + i < COUNT) UNROLL for (int e = 0; e < 4; ++e) to[e] += v[i][e];
  }
}

// A matrix whose rows no tensor map can step over is copied once, by all blocks, to rows of whole 16 bytes.
DEV void fence_async() {
  asm volatile("fence.proxy.async;" ::: "memory");
}
template <int THREADS_, int OUTER, int INNER, int STRIDE, class T> DEV void pack_rows(const T* from, u8* to) {
  constexpr int CHUNKS = (INNER + 7) / 8;
  for (int i = blockIdx.x * THREADS_ + threadIdx.x; i < OUTER * CHUNKS; i += gridDim.x * THREADS_) {
    const int row = i / CHUNKS, c = i % CHUNKS * 8;
    const u16* p = (const u16*)from + (i64)row * STRIDE + c;
    Raw<16> x;
    UNROLL for (int j = 0; j < 4; ++j) {
      const u32 lo = c + 2 * j < INNER ? p[2 * j] : 0, hi = c + 2 * j + 1 < INNER ? p[2 * j + 1] : 0;
      x.w[j] = lo | hi << 16;
    }
    store_raw<16, PLAIN>(to + (i64)i * 16, x);
  }
}

// Row statistics ride the k-major tile that the matrix units read: two threads for each of 64 rows, in the warp that holds these
// rows of the accumulator. `row_values` hands over this thread's half row; `row_total` gives the lane the totals of its two rows.
DEV Raw<16> shared16(u32 at) {
  Raw<16> x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(x.w[0]), "=r"(x.w[1]), "=r"(x.w[2]), "=r"(x.w[3]) : "r"(at));
  return x;
}
DEV u32 shared_word(u32 at) { u32 x; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(at)); return x; }
DEV u32 shared_half(u32 at) { u16 x; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(at)); return x; }
template <class T, class F> DEV void row_values(u32 tile, F f) {
  const int t = threadIdx.x % 128, r = t / 2;
  UNROLL for (int c = 0; c < 4; ++c) {
    const Raw<16> x = shared16(tile + r * 128 + ((((t & 1) * 4 + c) ^ (r & 7)) << 4));
    UNROLL for (int i = 0; i < 8; ++i) f(Element<T>::get(x, i));
  }
}
template <class OP> DEV void row_total(float s, float (&out)[2]) {
  const float whole = OP::of(s, shuffle_xor(s, 1));
  out[0] = __shfl_sync(~0u, whole, (lane_id() / 4) * 2);
  out[1] = __shfl_sync(~0u, whole, (lane_id() / 4 + 8) * 2);
}

// value(i, half, column, y) as of Acc::each_pair -> 16-bit -> swizzled staging -> TMA store, up to 64 columns a pass over BUFFERS
// buffers of 8 KB. The store map's box is 64 rows of PANEL columns: the largest of 64, 32, 16 that divides N, so that no store
// passes the tile's edge. The values are made between the barriers of their own pass: made before, the loads of all columns would
// be issued at once and spill. With HEAD, the columns are those of heads of so many, which lie apart: the map's third axis counts
// them, and whole panels make a head.
template <class T, int N, int BUFFERS, int HEAD, class F> DEV void store_tile(const TMap* map, u32 staging, int& pass, int m, int n, int batch, F value) {
  constexpr int PANEL = N % 64 == 0 ? 64 : N % 32 == 0 ? 32 : 16;
  constexpr int SHIFT = PANEL == 64 ? 0 : PANEL == 32 ? 1 : 2, MASK = PANEL / 8 - 1;  // swizzle: chunk ^= (row >> SHIFT) & MASK
  const bool leader = threadIdx.x % 128 == 0;
  repeat<(N + 63) / 64>([&](auto round) {
    const int c = 64 * round;
    const u32 buffer = staging + (pass++ % BUFFERS) * 8192;
    if (leader) bulk_wait_read<BUFFERS - 1>();
    named_sync(1 + warpgroup(), 128);
    UNROLL for (int j = 0; j < 4; ++j)
      if (c + 16 * j < N) {
        const int panel = 16 * j / PANEL, row = warp_in_group() * 16 + (lane_id() & 15), chunk = 16 * j % PANEL / 8 + lane_id() / 16;
        float d[8];
        UNROLL for (int p = 0; p < 4; ++p) {
          float y[2];
          value((c + 16 * j) / 2 + 2 * p, p & 1, c + 16 * j + 8 * (p / 2) + 2 * (lane_id() % 4), y);
          d[2 * p] = y[0]; d[2 * p + 1] = y[1];
        }
        const Raw<16> r = Pack<T>::template from<8>(d);
        stmatrix4(buffer + panel * 64 * PANEL * 2 + row * PANEL * 2 + ((chunk ^ ((row >> SHIFT) & MASK)) << 4), r.w[0], r.w[1], r.w[2], r.w[3]);
      }
    fence_async_shared();
    named_sync(1 + warpgroup(), 128);
    if (leader) {
      UNROLL for (int p = 0; p < 64 / PANEL; ++p)
        if (c + p * PANEL < N) {
          const int column = n + c + p * PANEL;
          if constexpr (HEAD) tma_store3(map, buffer + p * 64 * PANEL * 2, column % HEAD, m, column / HEAD);
          else tma_store3(map, buffer + p * 64 * PANEL * 2, column, m, batch);
        }
      bulk_commit();
    }
  });
}
// The same where each warp is for itself: it stages its 16 rows of 64 columns and stores them by a map whose box has 16 rows.
template <class T, int N, int BUFFERS, int HEAD, class F> DEV void store_by_warp(const TMap* map, u32 staging, int& pass, int m, int n, int batch, F value) {
  constexpr int PANEL = N % 64 == 0 ? 64 : N % 32 == 0 ? 32 : 16;
  constexpr int SHIFT = PANEL == 64 ? 0 : PANEL == 32 ? 1 : 2, MASK = PANEL / 8 - 1;
  const int lane = lane_id(), top = warp_in_group() * 16;
  repeat<(N + 63) / 64>([&](auto round) {
    const int c = 64 * round;
    const u32 buffer = staging + (pass++ % BUFFERS) * 8192 + warp_in_group() * 2048;
    if (lane == 0) bulk_wait_read<BUFFERS - 1>();
    __syncwarp();
    UNROLL for (int j = 0; j < 4; ++j)
      if (c + 16 * j < N) {
        const int panel = 16 * j / PANEL, row = lane & 15, chunk = 16 * j % PANEL / 8 + lane / 16;
        float d[8];
        UNROLL for (int p = 0; p < 4; ++p) {
          float y[2];
          value((c + 16 * j) / 2 + 2 * p, p & 1, c + 16 * j + 8 * (p / 2) + 2 * (lane % 4), y);
          d[2 * p] = y[0]; d[2 * p + 1] = y[1];
        }
        const Raw<16> r = Pack<T>::template from<8>(d);
        stmatrix4(buffer + panel * 16 * PANEL * 2 + row * PANEL * 2 + ((chunk ^ ((row >> SHIFT) & MASK)) << 4), r.w[0], r.w[1], r.w[2], r.w[3]);
      }
    fence_async_shared();
    __syncwarp();
    if (lane == 0) {
      UNROLL for (int p = 0; p < 64 / PANEL; ++p)
        if (c + p * PANEL < N) {
          const int column = n + c + p * PANEL;
          if constexpr (HEAD) tma_store3(map, buffer + p * 16 * PANEL * 2, column % HEAD, m + top, column / HEAD);
          else tma_store3(map, buffer + p * 16 * PANEL * 2, column, m + top, batch);
        }
      bulk_commit();
    }
  });
}
// The same without TMA, where each warp is for itself: its 16 rows pass through its own part of the staging, and leave as 16-byte
// vectors of neighbouring lanes (as single elements or pairs where rows are not aligned to VEC = 8 elements). `at(row, column)` is the
// address of element (row, column) of the tile; nothing is stored beyond `rows` and `columns`.
template <class T, int N, int BUFFERS, int VEC, class F, class P> DEV void store_rows(u32 staging, int rows, int columns, F value, P at) {
  const int lane = lane_id(), mine = warp_in_group() * 16;
  repeat<(N + 63) / 64>([&](auto round) {
    const int c = 64 * round;
    const u32 buffer = staging + (round % BUFFERS) * 8192 + warp_in_group() * 2048;
    if (BUFFERS == 1 && round > 0) __syncwarp();
    UNROLL for (int j = 0; j < 4; ++j)
      if (c + 16 * j < N) {
        float d[8];
        UNROLL for (int p = 0; p < 4; ++p) {
          float y[2];
          value((c + 16 * j) / 2 + 2 * p, p & 1, c + 16 * j + 8 * (p / 2) + 2 * (lane % 4), y);
          d[2 * p] = y[0]; d[2 * p + 1] = y[1];
        }
        const Raw<16> r = Pack<T>::template from<8>(d);
        const int row = lane & 15, chunk = 2 * j + lane / 16;
        stmatrix4(buffer + row * 128 + ((chunk ^ (row & 7)) << 4), r.w[0], r.w[1], r.w[2], r.w[3]);
      }
    __syncwarp();
    constexpr int WIDE = VEC == 8 ? 8 : VEC >= 2 ? 2 : 1, LANES = 64 / WIDE < 32 ? 64 / WIDE : 32;  // lanes side by side in a row
    UNROLL for (int t = 0; t < 16 * 64 / (32 * WIDE); ++t) {
      const int n = t * 32 + lane, row = n / LANES / (64 / WIDE / LANES), column = n % (64 / WIDE) * WIDE;
      const u32 from = buffer + row * 128 + (((column / 8) ^ (row & 7)) << 4) + column % 8 * 2;
      if (c + column < N && mine + row < rows && c + column < columns) {
        if constexpr (WIDE == 8) store_raw<16, PLAIN>(at(mine + row, c + column), shared16(from));
        else if constexpr (WIDE == 2) { Raw<4> x; x.w[0] = shared_word(from); store_raw<4, PLAIN>(at(mine + row, c + column), x); }
        else { Raw<2> x; x.w[0] = shared_half(from); store_raw<2, PLAIN>(at(mine + row, c + column), x); }
      }
    }
  });
}
// As `store_tile`, for an output whose rows are contiguous, not its columns: each warp's 16 rows are transposed on their way to the staging
// buffer, where a row of 128 bytes is a column of the tile. The store map's box is 64 rows by as many columns as divide N.
template <class T, int N, int BUFFERS, int HEAD, class F> DEV void store_turned(const TMap* map, u32 staging, int& pass, int m, int n, int batch, F value) {
  static_assert(HEAD == 0, "columns of heads that lie apart are contiguous");
  constexpr int PANEL = N % 64 == 0 ? 64 : N % 32 == 0 ? 32 : 16;
  const bool leader = threadIdx.x % 128 == 0;
  repeat<(N + 63) / 64>([&](auto round) {
    const int c = 64 * round;
    const u32 buffer = staging + (pass++ % BUFFERS) * 8192;
    if (leader) bulk_wait_read<BUFFERS - 1>();
    named_sync(1 + warpgroup(), 128);
    UNROLL for (int j = 0; j < 4; ++j)
      if (c + 16 * j < N) {
        const int row = 16 * j + (lane_id() >> 4) * 8 + (lane_id() & 7), chunk = 2 * warp_in_group() + ((lane_id() >> 3) & 1);
        float d[8];
        UNROLL for (int p = 0; p < 4; ++p) {
          float y[2];
          value((c + 16 * j) / 2 + 2 * p, p & 1, c + 16 * j + 8 * (p / 2) + 2 * (lane_id() % 4), y);
          d[2 * p] = y[0]; d[2 * p + 1] = y[1];
        }
        const Raw<16> r = Pack<T>::template from<8>(d);
        stmatrix4_transposed(buffer + row * 128 + ((chunk ^ (row & 7)) << 4), r.w[0], r.w[1], r.w[2], r.w[3]);
      }
    fence_async_shared();
    named_sync(1 + warpgroup(), 128);
    if (leader) {
      UNROLL for (int p = 0; p < 64 / PANEL; ++p)
        if (c + p * PANEL < N) tma_store3(map, buffer + p * PANEL * 128, m, n + c + p * PANEL, batch);
      bulk_commit();
    }
  });
}
