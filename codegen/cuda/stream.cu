// The big matrices come by TMA through a ring of slots, each with one unit: KB of k by COLS columns of every matrix of a part, and
// beside them x of the same k. Either all units of all column tiles are numbered, k innermost, and a block takes an equal stretch of
// them (even), or the blocks of a cluster share the k of a tile, and clusters take tiles in turn.
// W is the 16-row side of mma.m16n8k16 and x the 8-column side.
constexpr int MT = (M + 7) / 8, ROWS = 8 * MT;                              // tiles of 8 rows of x
constexpr int SIXTEENS = COUNT * COLS / 16, EACH = SIXTEENS / WARPS;        // tiles of 16 columns: of a unit, and of a consumer warp
constexpr int CHUNKS = KB / 32;                                             // x of a unit: a warp makes 8 rows by 32 of k at a time
constexpr u32 MATRIX = COLS * KB * 2, W_BYTES = COUNT * MATRIX, LEFT_MATRIX = ROWS * KB * 2, STATISTIC_BYTES = STATISTICS * ROWS * 4;
constexpr u32 LEFT_AT = STAGES * W_BYTES, STATISTICS_AT = LEFT_AT + STAGES * LEFT_BYTES, BARRIERS_AT = STATISTICS_AT + STAGES * STATISTIC_BYTES;
constexpr int UNITS = BATCH * TILES * SPLITS;                               // of a tile there are SPLITS
constexpr int SLOT = COUNT * COLS * ROWS + STATISTICS * ROWS;               // floats that a block leaves of a tile it shares
constexpr int CONSUMERS = WARPS * 32, FRAGMENTS = COLS / 16 * MT, MINE = ((FRAGMENTS + CK - 1) / CK + WARPS - 1) / WARPS;  // fragments of the sums of a matrix, and a warp's
//@begin even
DEV int first_unit(int block) { return (int)((i64)block * UNITS / GRID); }
DEV int block_of(int unit) { return (int)(((i64)(unit + 1) * GRID - 1) / UNITS); }
DEV int tile_of(int u) { return u / SPLITS; }
DEV int step_of(int u) { return u % SPLITS; }
//@end
//@begin cluster
constexpr int CLUSTERS = GRID / CK, SHARE = (FRAGMENTS + CK - 1) / CK;       // SHARE: of a tile the fragments that one block adds, at the most
constexpr u32 INBOX_AT = (BARRIERS_AT + 24 * STAGES + 31) / 16 * 16, INBOX_STATISTICS = INBOX_AT + 512 * CK * SHARE * COUNT, ALL_HERE = INBOX_STATISTICS + 4 * CK * STATISTICS * ROWS;
DEV int rank_here() { return CK > 1 ? (int)cluster_rank() : 0; }
DEV int first_step(int rank) { return SPLITS * rank / CK; }
DEV int tile_of(int u) { return CK > 1 ? blockIdx.x / CK : blockIdx.x + u / SPLITS * CLUSTERS; }  // several blocks share one tile only
DEV int step_of(int u) { return CK > 1 ? first_step(rank_here()) + u : u % SPLITS; }
DEV int first_fragment(int rank) { return FRAGMENTS * rank / CK; }
DEV void push4(u32 to, const float (&v)[4], u32 bar, u32 rank) { asm volatile("{ .reg .b32 d, m; mapa.shared::cluster.u32 d, %0, %6; mapa.shared::cluster.u32 m, %1, %6; st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [d], {%2, %3, %4, %5}, [m]; }" :: "r"(to), "r"(bar), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(rank) : "memory"); }
DEV void push1(u32 to, float v, u32 bar, u32 rank) { asm volatile("{ .reg .b32 d, m; mapa.shared::cluster.u32 d, %0, %3; mapa.shared::cluster.u32 m, %1, %3; st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [d], %2, [m]; }" :: "r"(to), "r"(bar), "f"(v), "r"(rank) : "memory"); }
//@end

// Four 8 by 8 matrices of 16-bit elements from shared memory, of which each lane names a row; transposed, it gets them by columns.
DEV void ldmatrix4(u32 (&r)[4], u32 at) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory"); }
DEV void ldmatrix4_transposed(u32 (&r)[4], u32 at) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory"); }
DEV u32 slot_word(u32 at) { u32 v; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory"); return v; }
DEV void put_slot_word(u32 at, u32 v) { asm volatile("st.shared.u32 [%0], %1;" :: "r"(at), "r"(v) : "memory"); }
DEV void put_sums(u32 at, const float (&v)[4]) { asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" :: "r"(at), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory"); }
DEV void put_slot16(u32 at, const Raw<16>& v) { asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" :: "r"(at), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3]) : "memory"); }
// What other blocks left in memory: past the level-1 cache, which does not see their writes.
DEV Raw<16> far16(const float* p) { Raw<16> v; asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3]) : "l"(p) : "memory"); return v; }
DEV float far_one(const float* p) { float v; asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory"); return v; }
// Counts a block whose writes before are then seen by whoever counts later.
DEV u32 count_one(u32* p) { u32 old; asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(old) : "l"(p) : "memory"); return old; }
DEV void leave16(float* p, const float (&v)[4]) { asm volatile("st.global.cg.v4.f32 [%0], {%1,%2,%3,%4};" :: "l"(p), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory"); }
DEV void leave_one(float* p, float v) { asm volatile("st.global.cg.f32 [%0], %1;" :: "l"(p), "f"(v) : "memory"); }

// x of a unit lies as the matrices with contiguous k do: panels of 64 of k, in which each row is 128 swizzled bytes.
DEV u32 left_place(int row, int chunk) { return chunk / 8 * (ROWS * 128) + row * 128 + ((chunk % 8 ^ row % 8) << 4); }  // of 8 of k
//@begin copied
DEV void load_left(u32 to, const TMap* map, u32 full, int k, int batch) {
  UNROLL for (int p = 0; p < KB / 64; ++p) tma_load3(to + p * ROWS * 128, map, full, k + 64 * p, 0, batch);
}
//@end
//@begin computed
template <int BYTES> DEV Raw<BYTES> slot_raw(u32 at) {
  Raw<BYTES> r;
  UNROLL for (int c = 0; c < BYTES / 16; ++c) {
    const Raw<16> v = shared16(at + 16 * c);
    UNROLL for (int i = 0; i < 4; ++i) r.w[4 * c + i] = v.w[i];
  }
  return r;
}
//@end
//@begin n_major
// A unit of one matrix: panels of 64 columns, in which each k is 128 swizzled bytes.
DEV void load_matrix(u32 to, const TMap* map, u32 full, int n, int k, int batch) {
  UNROLL for (int p = 0; p < COLS / 64; ++p) tma_load3(to + p * KB * 128, map, full, n + 64 * p, k, batch);
}
DEV void columns16(u32 (&a)[4], u32 unit, int sixteen, int j) {
  const int lane = lane_id(), column = sixteen % (COLS / 16) * 16, k = 16 * j + lane / 16 * 8 + lane % 8;
  ldmatrix4_transposed(a, unit + sixteen / (COLS / 16) * MATRIX + column / 64 * (KB * 128) + k * 128 + (((column % 64 / 8 + lane / 8 % 2) ^ (lane % 8)) << 4));
}
//@end
//@begin k_major
// A unit of one matrix: panels of 64 of k, in which each column is 128 swizzled bytes.
DEV void load_matrix(u32 to, const TMap* map, u32 full, int n, int k, int batch) {
  UNROLL for (int p = 0; p < KB / 64; ++p) tma_load3(to + p * COLS * 128, map, full, k + 64 * p, n, batch);
}
DEV void columns16(u32 (&a)[4], u32 unit, int sixteen, int j) {
  const int lane = lane_id(), column = sixteen % (COLS / 16) * 16 + lane / 8 % 2 * 8 + lane % 8;
  ldmatrix4(a, unit + sixteen / (COLS / 16) * MATRIX + j / 4 * (COLS * 128) + column * 128 + (((j % 4 * 2 + lane / 16) ^ (lane % 8)) << 4));
}
//@end

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) eqsat_kernel(PARAMETERS) {  //@single
extern "C" __global__ void __cluster_dims__(CK, 1, 1) __launch_bounds__(THREADS, BLOCKS) eqsat_kernel(PARAMETERS) {  //@shared
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u, full = smem + BARRIERS_AT, empty = full + 8 * STAGES, raw_full = empty + 8 * STAGES, verdict = raw_full + 8 * STAGES;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = lane_id();
  const int begin = first_unit(blockIdx.x), end = first_unit(blockIdx.x + 1);  //@even
  const int begin = 0, end = (BATCH * TILES - (int)blockIdx.x + CLUSTERS - 1) / CLUSTERS * SPLITS;  //@alone
  const int begin = 0, end = first_step(rank_here() + 1) - first_step(rank_here());  //@shared
  if (threadIdx.x >= THREADS - 32) {                                        // a lane for each slot: one after the other takes half a µs
    if (lane == 0) { PREFETCH }
    for (int i = lane; i < STAGES; i += 32) { mbar_init(full + 8 * i, STAGERS ? 2 : 1); mbar_init(empty + 8 * i, WARPS); mbar_init(raw_full + 8 * i, 1); }
    if (lane == 0) mbar_init(smem + ALL_HERE, 1);                           //@shared
    mbar_init_fence();
  }
  begin_dependent();
  __syncthreads();
//@begin shared
  if (threadIdx.x == 0) mbar_expect(smem + ALL_HERE, CK * (512 * COUNT * (first_fragment(rank_here() + 1) - first_fragment(rank_here())) + 4 * STATISTICS * ROWS));
  cluster_arrive();
//@end

  if (warp == WARPS + STAGERS) {                                            // producer: one thread
    if (lane == 0) {
      int s = 0;
      u32 parity = 1;
      for (int u = begin; u < end; ++u) {
        const int tile = tile_of(u), k = step_of(u) * KB, batch = tile / TILES, slab = tile % TILES;
        SELECT
        mbar_wait(empty + 8 * s, parity);
        LOAD_LEFT
        mbar_expect(full + 8 * s, W_BYTES + (STAGERS ? 0 : LEFT_BYTES));
        LOAD
        if (++s == STAGES) { s = 0; parity ^= 1; }
      }
    }
    __syncwarp();                                                           //@shared
    cluster_wait();                                                         //@shared
//@begin made
  } else if (warp >= WARPS) {                                               // stagers: x of a unit each, in turn
    for (int u = begin + warp - WARPS; u < end; u += STAGERS) {
      const int s = (u - begin) % STAGES, k0 = step_of(u) * KB, batch = tile_of(u) / TILES;
      const u32 left = smem + LEFT_AT + s * LEFT_BYTES;
      Raw<16> made[MT][CHUNKS];
      float found[MT][STATISTICS];                                          //@statistics
      mbar_wait(empty + 8 * s, ((u - begin) / STAGES + 1) & 1);             // else the phase before might be taken for this one //@computed
      mbar_wait(raw_full + 8 * s, (u - begin) / STAGES & 1);                //@computed
      UNROLL for (int t = 0; t < MT; ++t) {
        const int m = min(8 * t + lane % 8, M - 1);                         //@fetched
        INIT
        UNROLL for (int c = 0; c < CHUNKS; ++c) {
          const int k = k0 + 32 * c + lane / 8 * 8;
          float value[8] = {};
          if (K % KB == 0 || k < K) {
            STAGE
          }
          made[t][c] = Pack<T>::from<8>(value);
        }
        REDUCE_ROWS
      }
      mbar_wait(empty + 8 * s, ((u - begin) / STAGES + 1) & 1);             //@fetched
      UNROLL for (int t = 0; t < MT; ++t) {
        UNROLL for (int c = 0; c < CHUNKS; ++c) put_slot16(left + left_place(8 * t + lane % 8, 4 * c + lane / 8), made[t][c]);
        LEAVE_ROWS
      }
      fence_async_shared();                                                 // the next copy may overwrite it //@computed
      __syncwarp();
      if (lane == 0) mbar_arrive(full + 8 * s);
    }
//@end
    cluster_wait();                                                         //@shared_made
  } else {                                                                  // consumers: EACH tiles of 16 columns a warp
    float acc[EACH][MT][4] = {};
    float stat = STATISTIC_NEUTRAL;                                         //@statistics
    float* const slots = workspace + COUNTERS;                              //@even
    u32* const counters = (u32*)workspace;                                  //@even
    int s = 0;
    u32 parity = 0;
    for (int u = begin; u < end; ++u) {
      const int tile = tile_of(u);
      mbar_wait(full + 8 * s, parity);
      __syncwarp();
      // The slot before this one is free once its fragments have been used: an arrival overtakes loads that are still on their way.
      if (lane == 0 && u > begin) mbar_arrive(empty + 8 * (s ? s - 1 : STAGES - 1));
      const u32 unit = smem + s * W_BYTES, x = smem + LEFT_AT + s * LEFT_BYTES + lane % 4 * 4;
      UNROLL for (int j = 0; j < KB / 16; ++j) {
        u32 b[MT][2];
        UNROLL for (int t = 0; t < MT; ++t)
          UNROLL for (int h = 0; h < 2; ++h) b[t][h] = slot_word(x + left_place(8 * t + lane / 4, 2 * j + h));
        UNROLL for (int i = 0; i < EACH; ++i) {
          u32 a[4];
          columns16(a, unit, warp * EACH + i, j);
          UNROLL for (int t = 0; t < MT; ++t) MMA(acc[i][t], a[0], a[1], a[2], a[3], b[t][0], b[t][1]);
        }
      }
      ADD_STATISTICS
      if (++s == STAGES) { s = 0; parity ^= 1; }
//@begin even
      if (u + 1 < end && (u + 1) % SPLITS) continue;
      // The tile's last unit, or the block's: leave the sums in memory. The last block that shares the tile adds all, in their order.
      const int start = tile * SPLITS, first = block_of(start), last = block_of(start + SPLITS - 1);
      constexpr int from_first = 0, to_first = FRAGMENTS;
      float* const mine = slots + (i64)(2 * blockIdx.x + (begin < start)) * SLOT;
      UNROLL for (int i = 0; i < EACH; ++i)
        UNROLL for (int t = 0; t < MT; ++t) {
          leave16(mine + ((warp * EACH + i) * MT + t) * 128 + lane * 4, acc[i][t]);
          UNROLL for (int e = 0; e < 4; ++e) acc[i][t][e] = 0.f;
        }
      if (threadIdx.x < STATISTICS * ROWS) leave_one(mine + COUNT * COLS * ROWS + threadIdx.x, stat);  //@even_statistics
      named_sync(1, CONSUMERS);
      if (first < last) {
        if (threadIdx.x == 0) {
          const bool all = count_one(counters + tile) == (u32)(last - first);
          if (all) counters[tile] = 0;
          put_slot_word(verdict, all);
        }
        named_sync(1, CONSUMERS);
        STATISTIC_AGAIN
        if (!slot_word(verdict)) continue;
      }
//@end
//@begin cluster
      if (CK > 1 ? u + 1 < end : (u + 1) % SPLITS != 0) continue;
      constexpr int first = 0, last = CK - 1;
      const int from_first = first_fragment(rank_here()), to_first = first_fragment(rank_here() + 1);
      cluster_wait();                                                       // every block of the cluster has begun //@shared
      UNROLL for (int i = 0; i < EACH; ++i)
        UNROLL for (int t = 0; t < MT; ++t) {
          const int n = (warp * EACH + i) / (COLS / 16), f = (warp * EACH + i) % (COLS / 16) * MT + t;
          const int to = ((f + 1) * CK - 1) / FRAGMENTS;                    //@shared
          push4(smem + INBOX_AT + ((rank_here() * SHARE + f - first_fragment(to)) * COUNT + n) * 512 + lane * 16, acc[i][t], smem + ALL_HERE, to);  //@shared
          put_sums(smem + INBOX_AT + (f * COUNT + n) * 512 + lane * 16, acc[i][t]);  //@alone
          UNROLL for (int e = 0; e < 4; ++e) acc[i][t][e] = 0.f;
        }
      PUSH_STATISTICS
      mbar_wait(smem + ALL_HERE, 0);                                        //@shared
      named_sync(1, CONSUMERS);                                             //@alone
//@end
      STATISTIC_AGAIN
      const int batch = tile / TILES, slab = tile % TILES;
      PLACE
      const int from_fragment = from_first + warp, to_fragment = to_first;
      float sum[MINE][COUNT][4] = {};
      STATISTICS_HERE
#pragma unroll 2
      for (int c = first; c <= last; ++c) {                                 // in their order, whoever adds
        const float* const from = slots + (i64)(2 * c + (c == first && first_unit(c) < start)) * SLOT;  //@even
        UNROLL for (int i = 0; i < MINE; ++i)
          if (from_fragment + i * WARPS < to_fragment)
            UNROLL for (int n = 0; n < COUNT; ++n) {
              const Raw<16> v = far16(from + n * COLS * ROWS + (from_fragment + i * WARPS) * 128 + lane * 4);  //@even
              const Raw<16> v = shared16(smem + INBOX_AT + ((c * SHARE + from_fragment + i * WARPS - from_first) * COUNT + n) * 512 + lane * 16);  //@cluster
              UNROLL for (int e = 0; e < 4; ++e) sum[i][n][e] += __uint_as_float(v.w[e]);
            }
        GATHER_STATISTICS
      }
      // A lane holds two rows of x at a column of 8, and at the one 8 columns on; with its neighbour's, two columns at one row.
      const int odd = lane / 4 % 2;
      UNROLL for (int i = 0; i < MINE; ++i) {
        const int f = from_fragment + i * WARPS, t = f % MT, y_row = 8 * t + lane % 4 * 2 + odd;
        if (f < to_fragment) {
          STATISTICS_OF_ROW
          UNROLL for (int half = 0; half < 2; ++half) {
            const int y_col = n0 + 16 * (f / MT) + 8 * half + lane / 4 - odd;
            float pair[COUNT][2];
            UNROLL for (int n = 0; n < COUNT; ++n) {
              const float even_row = sum[i][n][2 * half], odd_row = sum[i][n][2 * half + 1], own = odd ? odd_row : even_row;
              const float other = shuffle_xor(odd ? even_row : odd_row, 4);
              pair[n][0] = odd ? other : own; pair[n][1] = odd ? own : other;
            }
            EPILOGUE
          }
        }
      }
      named_sync(1, CONSUMERS);                                             // the slot may be written again
    }
  }
}
