// emulate_wgmma.hpp: the Hopper vocabulary of wgmma kernels in C++, inside the kernel's namespace. A cluster runs as one block.
// Asynchronous work is done as late as its waits allow, so that a slot freed too early or a buffer reused too early shows.
struct Map { u8* base; long long extents[3], strides[2], box[3]; int swizzle, bytes; };  // strides and swizzle in bytes
struct TMap { const Map* map; TMap() {} explicit TMap(void* p) : map((const Map*)p) {} };
constexpr int SHARED = 232448 + 1024;
alignas(1024) static u8 shared[4][SHARED];
static int rank_here() { return (int)threadIdx.x / BLOCK; }
static u8* here(u32 at) { return shared[rank_here()] + at; }
static u32 smem_u32(const void* p) { return (u32)((const u8*)p - shared[rank_here()]); }
static u32 cluster_rank() { return rank_here() % CLUSTER /* peers */; }
static int peer(int rank) { return rank_here() / CLUSTER /* peers */ * CLUSTER /* peers */ + rank; }  // blocks that wait for each other may be several clusters
static int min(int a, int b) { return a < b ? a : b; }

struct Gate { int arrived; unsigned phase; };
static Gate gates[4][16], whole;
static void gate_arrive(Gate& g, int count) { if (++g.arrived == count) { g.arrived = 0; ++g.phase; } }
static void gate_sync(Gate& g, int count) { const unsigned mine = g.phase; gate_arrive(g, count); while (g.phase == mine) yield_thread(); }
static void named_sync(int id, int count) { gate_sync(gates[rank_here()][id], count); }
static void named_arrive(int id, int count) { gate_arrive(gates[rank_here()][id], count); }
static void block_sync() { named_sync(0, BLOCK); }
static void cluster_sync() { gate_sync(whole, BLOCK * CLUSTER); }
template <class V> static V __shfl_sync(unsigned, V v, int from) {
  lane_word[current] = bits_as<unsigned>(v);
  warp_barrier();
  const V r = bits_as<V>(lane_word[current / 32 * 32 + from % 32]);
  warp_barrier();
  return r;
}

static bool __any_sync(unsigned, bool v) {
  lane_word[current] = v;
  warp_barrier();
  bool r = false;
  for (int lane = 0; lane < 32; ++lane) r |= lane_word[current / 32 * 32 + lane] != 0;
  warp_barrier();
  return r;
}
static void __nanosleep(unsigned) {}

struct Barrier { int count, pending; long long bytes; unsigned phase; };
static Barrier barriers[4][SHARED / 8];
static void settle(Barrier& b) { if (b.pending == 0 && b.bytes == 0) { ++b.phase; b.pending = b.count; } }
static void mbar_init(u32 at, u32 n) { barriers[rank_here()][at / 8] = {(int)n, (int)n, 0, 0}; }
static void mbar_init_fence() {}
static void arrive_at(int rank, u32 at) { Barrier& b = barriers[rank][at / 8]; if (b.pending == 0) abort(); --b.pending; settle(b); }
static void mbar_arrive(u32 at) { arrive_at(rank_here(), at); }
static void mbar_arrive_at(u32 at, u32 rank) { arrive_at(peer((int)rank), at); }
static void mbar_expect(u32 at, u32 bytes) { barriers[rank_here()][at / 8].bytes += bytes; mbar_arrive(at); }
static void mbar_wait(u32 at, u32 parity) { while ((barriers[rank_here()][at / 8].phase & 1) == parity) yield_thread(); }

// Tensor copies of boxes. A 128-byte swizzle exchanges address bits 4-6 with bits 7-9 xored in, 64: 4-5 with 7-8, 32: 4 with 7.
static u32 swizzled(u32 at, int swizzle) { return swizzle ? at ^ (((at >> 7) & (swizzle / 16 - 1)) << 4) : at; }
template <class F> static void each_of_box(const Map& m, u32 at, int x, int y, int z, F f) {
  for (int c = 0; c < m.box[2]; ++c)
    for (int b = 0; b < m.box[1]; ++b)
      for (int a = 0; a < m.box[0]; ++a) {
        const u32 to = swizzled(at + (u32)(((c * m.box[1] + b) * m.box[0] + a) * m.bytes), m.swizzle);
        const long long i[3] = {x + a, y + b, z + c};
        const bool inside = i[0] >= 0 && i[0] < m.extents[0] && i[1] >= 0 && i[1] < m.extents[1] && i[2] >= 0 && i[2] < m.extents[2];
        f(to, inside ? m.base + i[0] * m.bytes + i[1] * m.strides[0] + i[2] * m.strides[1] : nullptr);
      }
}
static void tma_load3_mc(u32 dst, const TMap* t, u32 bar, int x, int y, int z, u16 mask) {
  const Map& m = *t->map;
  if (dst % 128 || m.box[0] * m.bytes > (m.swizzle ? m.swizzle : 1 << 20)) abort();
  for (int i = 0; i < CLUSTER /* peers */; ++i)
    if (mask >> i & 1) {
      const int r = peer(i);
      each_of_box(m, dst, x, y, z, [&](u32 to, const u8* from) { from ? (void)memcpy(shared[r] + to, from, m.bytes) : (void)memset(shared[r] + to, 0, m.bytes); });
      Barrier& b = barriers[r][bar / 8];
      b.bytes -= m.box[0] * m.box[1] * m.box[2] * m.bytes;
      settle(b);
    }
}
static void tma_load3(u32 dst, const TMap* t, u32 bar, int x, int y, int z) { tma_load3_mc(dst, t, bar, x, y, z, 1 << cluster_rank()); }

// TMA stores wait in groups of their thread.
struct Store { const TMap* map; u32 src; int x, y, z, group; };
static Store stores[1024][64];
static int store_first[1024], store_end[1024], store_group[1024];
// A store, unlike a load, must not start before the first element: the device faults.
static void tma_store3(const TMap* t, u32 src, int x, int y, int z) { if (x < 0 || y < 0 || z < 0) abort(); stores[current][store_end[current]++ % 64] = {t, src, x, y, z, store_group[current]}; }
static void bulk_commit() { ++store_group[current]; }
template <int N> static void bulk_wait_read() {
  for (int& i = store_first[current]; i < store_end[current] && stores[current][i % 64].group < store_group[current] - N; ++i) {
    const Store& s = stores[current][i % 64];
    each_of_box(*s.map->map, s.src, s.x, s.y, s.z, [&](u32 from, u8* to) { if (to) memcpy(to, here(from), s.map->map->bytes); });
  }
}
template <int N> static void bulk_wait() { bulk_wait_read<N>(); }
static void fence_async_shared() {}
static void tma_prefetch(const TMap*) {}
static void stmatrix4(u32 at, u32 a, u32 b, u32 c, u32 d) {
  static u32 regs[1024][4];
  regs[current][0] = a; regs[current][1] = b; regs[current][2] = c; regs[current][3] = d;
  warp_barrier();
  const int lane = current % 32;
  for (int q = 0; q < 4; ++q) memcpy(here(at + 4 * q), &regs[current - lane + lane % 8 * 4 + q][lane / 8], 4);
  warp_barrier();
}
static void stmatrix4_transposed(u32 at, u32 a, u32 b, u32 c, u32 d) {
  static u32 to[1024];
  to[current] = at;
  warp_barrier();
  const int base = current / 32 * 32, lane = current % 32;
  const u32 w[4] = {a, b, c, d};
  for (int q = 0; q < 4; ++q)
    for (int e = 0; e < 2; ++e) {
      const u16 bits = (u16)(w[q] >> (16 * e));
      memcpy(here(to[base + 8 * q + lane % 4 * 2 + e] + 2 * (lane / 4)), &bits, 2);
    }
  warp_barrier();
}
// Blocks that wait for each other run as one, like a cluster.
static u32 add_release(u32* p, u32 v) { const u32 old = *p; *p += v; return old; }
static u32 load_acquire(const u32* p) { yield_thread(); return *p; }
static void leave4(float* p, const float* v) { memcpy(p, v, 16); }
static void load4(float (&v)[4], const float* p) { memcpy(v, p, 16); }
static void fault() { abort(); }
static u64 globaltimer() { return 0; }
static u32 shared_word(u32 at) { u32 x; memcpy(&x, here(at), 4); return x; }
static u32 shared_half(u32 at) { u16 x; memcpy(&x, here(at), 2); return x; }
static Raw<16> shared16(u32 at) { Raw<16> x; memcpy(&x, here(at), 16); return x; }

// wgmma reads its operands through descriptors: start (bits 0-13) and the leading and stride byte offsets (16-29, 32-45), all in units
// of 16 bytes, by the canonical layouts of the 128-byte swizzle. K-major: 8 rows are `stride` apart. MN-major: 8 of k are `stride`
// apart, 64 of m or n are `leading` apart. The swizzle acts on the address.
static float operand_value(u64 d, int mn, int k, int transposed, bool f16) {
  const u32 start = (u32)(d & 0x3fff) << 4, leading = (u32)(d >> 16 & 0x3fff) << 4, stride = (u32)(d >> 32 & 0x3fff) << 4;
  const u32 at = transposed ? start + mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2 : start + mn / 8 * stride + mn % 8 * 128 + k * 2;
  u16 bits;
  memcpy(&bits, here(swizzled(at, 128)), 2);
  return f16 ? f16_value(bits) : bits_as<float>((u32)bits << 16);
}
struct Issue { float* d; int n; u64 a, b; int accumulate, group; bool registers, values; u32 w[4]; };
static Issue issues[1024][64];
static int issue_first[1024], issue_end[1024], issue_group[1024];
template <int R> static void wgmma(float (&d)[R], u64 a, u64 b, int accumulate) { issues[current][issue_end[current]++ % 64] = {d, 2 * R, a, b, accumulate, issue_group[current], false, false}; }
// The forms of dependent folds: both operands in shared memory, and the left one in registers (PTX ISA, "Register fragments for
// wgmma.mma_async.m64nNk16"), with a right one that lies MN-major. All lanes of a warp issue before one of them goes on.
template <int R> static void wgmma_scores(float (&d)[R], u64 a, u64 b, int accumulate) { wgmma(d, a, b, accumulate); }
template <int R> static void wgmma_values(float (&d)[R], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
  issues[current][issue_end[current]++ % 64] = {d, 2 * R, 0, b, 1, issue_group[current], true, true, {a0, a1, a2, a3}};
  warp_barrier();
}
// A computed left operand in registers. They are read when the product is due: what is overwritten before shows.
template <int R> static void wgmma_left(float (&d)[R], const u32 (&a)[4], u64 b, int accumulate) {
  issues[current][issue_end[current]++ % 64] = {d, 2 * R, (u64)&a, b, accumulate, issue_group[current], true, false};
  warp_barrier();
}
template <bool TRANSPOSED> static Raw<16> ldmatrix(u32 at) {
  static u32 from[1024];
  from[current] = at;
  warp_barrier();
  const int base = current / 32 * 32, lane = current % 32;
  Raw<16> x;
  for (int q = 0; q < 4; ++q)
    for (int e = 0; e < 2; ++e) {
      const int row = TRANSPOSED ? lane % 4 * 2 + e : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + e;
      memcpy((u16*)&x.w[q] + e, here(from[base + 8 * q + row] + 2 * column), 2);
    }
  warp_barrier();
  return x;
}
template <class T, class F> static u32 pair_of(u32 a, u32 b, F f) {
  Raw<4> x, y;
  x.w[0] = a; y.w[0] = b;
  float z[2];
  for (int i = 0; i < 2; ++i) z[i] = f(Element<T>::get(x, i), Element<T>::get(y, i));
  return Pack<T>::template from<2>(z).w[0];
}
template <class T> static u32 pair_mul(u32 a, u32 b) { return pair_of<T>(a, b, [](float u, float v) { return u * v; }); }
template <class T> static u32 pair_add(u32 a, u32 b) { return pair_of<T>(a, b, [](float u, float v) { return u + v; }); }
template <class T> static u32 pair_sub(u32 a, u32 b) { return pair_of<T>(a, b, [](float u, float v) { return u - v; }); }
static Raw<16> fragment(u32 at) { return ldmatrix<false>(at); }
static Raw<16> fragment_transposed(u32 at) { return ldmatrix<true>(at); }
static void wg_fence() {}
static void wg_commit() { ++issue_group[current]; }
template <int N> static void wg_wait() {
  for (int& at = issue_first[current]; at < issue_end[current] && issues[current][at % 64].group < issue_group[current] - N; ++at) {
    const Issue& s = issues[current][at % 64];
    const int t = current % BLOCK % 128, row0 = t / 32 * 16 + t % 32 / 4;
    float left[2][16];
    for (int h = 0; h < 2; ++h)
      for (int k = 0; k < 16; ++k)
        if (s.registers) {
          const Issue& peer = issues[current - t % 4 + k % 8 / 2][at % 64];
          const u32 w = (peer.values ? peer.w : (const u32*)peer.a)[k / 8 * 2 + h], bits = k & 1 ? w >> 16 : w & 0xffff;
          left[h][k] = HALF ? f16_value((u16)bits) : bits_as<float>(bits << 16);
        } else left[h][k] = operand_value(s.a, row0 + 8 * h, k, TRANSPOSED_A, HALF);
    for (int j = 0; j < s.n / 8; ++j)
      for (int e = 0; e < 2; ++e)
        for (int h = 0; h < 2; ++h) {
          float sum = s.accumulate ? s.d[4 * j + 2 * h + e] : 0.f;
          for (int k = 0; k < 16; ++k) sum += left[h][k] * operand_value(s.b, 8 * j + t % 4 * 2 + e, k, s.values || TRANSPOSED_B, HALF);
          s.d[4 * j + 2 * h + e] = sum;
        }
  }
}
template <int N> static void pin(float (&)[N]) {}
static u64 desc128(u32 addr) { return (u64)((addr & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62); }
template <int R> static void reg_inc() {}
template <int R> static void reg_dec() {}

// The first thread of a cluster makes everything new; shared memory starts as NaN.
static void enter() {
  static int entered = 0;
  if (entered++ % (BLOCK * CLUSTER)) return;
  memset(shared, 0xff, sizeof shared); memset(gates, 0, sizeof gates); memset(barriers, 0, sizeof barriers); whole = {};
  memset(store_first, 0, sizeof store_first); memset(store_end, 0, sizeof store_end); memset(store_group, 0, sizeof store_group);
  memset(issue_first, 0, sizeof issue_first); memset(issue_end, 0, sizeof issue_end); memset(issue_group, 0, sizeof issue_group);
}
