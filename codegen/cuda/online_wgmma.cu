// online_wgmma.cu: a dependent fold on the tensor cores of sm_90a, after FlashAttention-3 (Shah et al., 2024). A block takes GROUPS
// times 64 rows of one batch at a time; a producer thread brings tiles of keys and values by TMA, from the last tile down; each
// warpgroup keeps its rows' scores, weights and sums in registers. The scores of the next tile are made while the values of the
// last one are added up, and with ping-pong the exponentials of one warpgroup run under the products of the other. Persistent
// blocks draw their work from a counter, so that the producer loads for the next rows while the consumers finish the last ones.
constexpr int BM = GROUPS * 64, ROW_TILES = (M + BM - 1) / BM, KEY_TILES = (KEYS_ALL + KEYS - 1) / KEYS, ITEMS = BATCH * ROW_TILES;
constexpr u32 ROWS_BYTES = BM * DP * 128, VALUES_BYTES = KEYS * VP * 128;
constexpr u32 KEYS_BYTES = KEYS * DP * 128;                                 //@along
constexpr u32 KEYS_BYTES = KEYS * STEPS * 32;                               // panels of 64 keys, a position of d in each 128 bytes //@across
DEV u64 keys_descriptor(u32 a) { return (u64)((a & 0x3ffff) >> 4) | ((u64)((STEPS * 2048) >> 4) << 16) | (64ull << 32) | (1ull << 62); }  //@across
// Values lie with their rows (keys) 128 bytes apart, 64 positions in a panel.
DEV u64 values_descriptor(u32 a) { return (u64)((a & 0x3ffff) >> 4) | ((u64)((KEYS * 128) >> 4) << 16) | (64ull << 32) | (1ull << 62); }
DEV float quad_max(float v) { v = fmaxf(v, shuffle_xor(v, 1)); return fmaxf(v, shuffle_xor(v, 2)); }
DEV float quad_sum(float v) { v += shuffle_xor(v, 1); return v + shuffle_xor(v, 2); }
// HEADS batches at a time, whose keys and values stay in L2; among them the last tiles of rows first, the longest under a causal mask.
// ptxas moves the wait for a product above arithmetic that is independent of it, which then no longer runs beside the product; a
// branch on the arithmetic that holds what it does not predicate keeps the order (x, a sum of weights, is never negative).
DEV void after(float x) { if (__any_sync(~0u, x < 0.f)) __nanosleep(1); }  //@ordered
struct Place {
  int batch, first_row, last_row;
  DEV Place(int item) {
    const int several = item / (HEADS * ROW_TILES) * HEADS, heads = min(HEADS, BATCH - several), in = item - several * ROW_TILES;
    batch = several + in % heads;
    first_row = (ROW_TILES - 1 - in / heads) * BM;
    last_row = min(first_row + BM, M) - 1;
  }
};

KERNEL(THREADS, 1, 1) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u;
  Ring<STAGES, KEYS_BYTES, GROUPS * 4, 1> keys(smem + KEYS_AT);
  Ring<STAGES, VALUES_BYTES, GROUPS * 4, 1> values(smem + VALUES_AT);
  const u32 rows_full = values.full(2 * STAGES), rows_empty = rows_full + 8;
  volatile int* const drawn = (volatile int*)(raw + (rows_empty + 8 - smem_u32(raw)));  // the item whose rows are there  //@persistent
  if (threadIdx.x == 0) {
    mbar_init(rows_full, 1);
    mbar_init(rows_empty, GROUPS * 4);
    keys.init();
    values.init();
  }
  begin_dependent();
  __syncthreads();
  const int wg = warpgroup();

  if (wg == GROUPS) {                                                       // producer: one thread
    reg_dec<PRODUCER_REGISTERS>();                                          //@budget
    if (threadIdx.x == GROUPS * 128) {
      tma_prefetch(&map_q); tma_prefetch(&map_k); tma_prefetch(&map_v);
      u32 freed = 1;                                                        //@persistent
      for (int item = blockIdx.x, after; item < ITEMS; item = after, freed ^= 1) {  //@persistent
        after = gridDim.x + (int)atomicAdd(work, 1u);                       //@persistent
      {                                                                     //@once
        const int item = blockIdx.x;                                        //@once
        const Place at_item(item);
        const int batch = at_item.batch, first_row = at_item.first_row, last_row = at_item.last_row;
        NEXT_TILE
        int n = next(KEY_TILES - 1);
        auto load_keys = [&]() {
          const u32 k = keys.acquire();
          UNROLL for (int p = 0; p < DP; ++p) tma_load3(k + p * KEYS * 128, &map_k, keys.full(keys.s), p * 64, n * KEYS, BATCH_K);  //@along
          UNROLL for (int p = 0; p < KEYS / 64; ++p) tma_load3(k + p * STEPS * 2048, &map_k, keys.full(keys.s), n * KEYS + p * 64, 0, BATCH_K);  //@across
          keys.next();
        };
        if (n >= 0) load_keys();
        mbar_wait(rows_empty, freed);                                       //@persistent
        *drawn = item;                                                      //@persistent
        mbar_expect(rows_full, ROWS_BYTES);
        UNROLL for (int g = 0; g < GROUPS; ++g)
          UNROLL for (int p = 0; p < DP; ++p) tma_load3(smem + (g * DP + p) * 8192, &map_q, rows_full, p * 64, first_row + g * 64, BATCH_Q);
        while (n >= 0) {
          const u32 v = values.acquire();
          UNROLL for (int p = 0; p < VP; ++p) tma_load3(v + p * KEYS * 128, &map_v, values.full(values.s), p * 64, n * KEYS, BATCH_V);
          values.next();
          n = next(n - 1);
          if (n >= 0) load_keys();
        }
      }
      mbar_wait(rows_empty, freed);                                         //@persistent
      *drawn = ITEMS;                                                       //@persistent
      mbar_arrive(rows_full);                                               //@persistent
      __threadfence();                                                      //@persistent
      if (atomicAdd(work + 1, 1u) == gridDim.x - 1) { work[0] = 0; work[1] = 0; }  // the last block leaves the counters as it found them  //@persistent
    }
  } else {                                                                  // consumers: 64 rows each
    reg_inc<CONSUMER_REGISTERS>();                                          //@budget
    const int lane = lane_id();
    const u64 dq = desc128(smem + wg * DP * 8192);
    const u32 staging = smem + STAGING_AT + wg * BUFFERS * 8192;              //@staged
    int pass = 0;                                                           //@staged
    if (wg == 1) named_arrive(8, 256);                                      //@pingpong
    for (u32 filled = 0;; filled ^= 1) {                                    //@persistent
      mbar_wait(rows_full, filled);                                         //@persistent
      const int item = __shfl_sync(~0u, *drawn, 0);                         //@persistent
      if (item >= ITEMS) break;                                             //@persistent
    {                                                                       //@once
      mbar_wait(rows_full, 0);                                              //@once
      const int item = blockIdx.x;                                          //@once
      const Place at_item(item);
      const int batch = at_item.batch, first_row = at_item.first_row, last_row = at_item.last_row;
      const int row0 = first_row + wg * 64 + warp_in_group() * 16 + lane / 4;
      NEXT_TILE
      float s[KEYS / 2], o[NV / 2], top[2] = {-EQ_INF, -EQ_INF}, sum[2] = {0.f, 0.f}, rebase[2];
      float pivot[2] = {-EQ_INF, -EQ_INF};                                  //@lazy
      bool moved = false;                                                   //@lazy
      u32 weights[KEYS / 4];
      UNROLL for (int i = 0; i < NV / 2; ++i) o[i] = 0.f;
      auto make_scores = [&](u32 k) {
        const u64 dk = desc128(k);                                          //@along
        const u64 dk = keys_descriptor(k);                                  //@across
        wg_fence();
        UNROLL for (int i = 0; i < STEPS; ++i) {
          const u64 step = (i / 4 * KEYS * 128 + i % 4 * 32) / 16;          //@along
          const u64 step = i * 128;                                         //@across
          wgmma_scores(s, dq + (i / 4 * 8192 + i % 4 * 32) / 16, dk + step, i != 0);
        }
        wg_commit();
      };
      auto add_values = [&](u32 v) {
        const u64 dv = values_descriptor(v);
        wg_fence();
        UNROLL for (int i = 0; i < KEYS / 16; ++i) wgmma_values(o, weights[4 * i], weights[4 * i + 1], weights[4 * i + 2], weights[4 * i + 3], dv + i * 128);
        wg_commit();
      };
      // Accumulators to weights relative to the pivot; how far the sums before are to be scaled.
      auto weigh = [&](int n) {
        const int first = n * KEYS, last = min(first + KEYS, KEYS_ALL) - 1;
        FINISH
        float most[2];
        UNROLL for (int half = 0; half < 2; ++half) {
          float m = top[half];
          UNROLL for (int i = 0; i < KEYS / 2; ++i) if (((i >> 1) & 1) == half) m = fmaxf(m, s[i]);
          most[half] = quad_max(m);
        }
        moved = __any_sync(~0u, (most[0] - pivot[0]) * SCALE > LAG || (most[1] - pivot[1]) * SCALE > LAG);  //@lazy
        UNROLL for (int half = 0; half < 2; ++half) {
          const float m = most[half];                                       //@exact
          const float m = moved ? most[half] : pivot[half];                 //@lazy
          const float safe = m == -EQ_INF ? 0.f : m;  // a row that is masked out so far keeps weights of 0
          rebase[half] = eq_ex2((top[half] - safe) * SCALE);                //@exact
          rebase[half] = eq_ex2((pivot[half] - safe) * SCALE);              //@lazy
          pivot[half] = m;                                                  //@lazy
          top[half] = most[half];
          const float shift = safe * SCALE;                                 //@moderate
          float part = 0.f;
          UNROLL for (int i = 0; i < KEYS / 2; ++i)
            if (((i >> 1) & 1) == half) {
              s[i] = eq_ex2(fmaf(s[i], SCALE, -shift));                     //@moderate
              s[i] = eq_ex2((s[i] - safe) * SCALE);                         //@huge
              part += s[i];
            }
          sum[half] = sum[half] * rebase[half] + part;
        }
      };
      auto pack = [&]() { UNROLL for (int i = 0; i < KEYS / 4; ++i) weights[i] = PACK(s[2 * i], s[2 * i + 1]); };
      auto scale = [&]() { UNROLL for (int i = 0; i < NV / 2; ++i) o[i] *= rebase[(i >> 1) & 1]; };

      int n = next(KEY_TILES - 1);
      if (n >= 0) {
        const u32 k0 = keys.wait();
        named_sync(8 + wg, 256);                                            //@pingpong
        make_scores(k0);
        named_arrive(8 + (wg ^ 1), 256);                                    //@pingpong
        wg_wait<0>(); pin(s); keys.release(keys.s); keys.next();
        weigh(n);
        pack();
        for (n = next(n - 1); n >= 0; n = next(n - 1)) {
          const u32 k = keys.wait();
          named_sync(8 + wg, 256);                                          //@pingpong
          make_scores(k);
          add_values(values.wait());
          named_arrive(8 + (wg ^ 1), 256);                                  //@pingpong
          wg_wait<1>(); pin(s); keys.release(keys.s); keys.next();
          weigh(n);
          after(sum[0] + sum[1]);                                           //@ordered
          wg_wait<0>(); pin(o); values.release(values.s); values.next();
          scale();                                                          //@exact
          if (moved) scale();                                               //@lazy
          pack();
        }
        if (lane == 0) mbar_arrive(rows_empty);                             //@early
        add_values(values.wait());
        wg_wait<0>(); pin(o); values.release(values.s); values.next();
      } else {
        if (lane == 0) mbar_arrive(rows_empty);                             //@early
      }

      PARTS
      UNROLL for (int half = 0; half < 2; ++half) {
        const bool inside = row0 + 8 * half < M;
        const int row = inside ? row0 + 8 * half : M - 1;
        const float behind = top[half] == -EQ_INF ? 1.f : eq_ex2((pivot[half] - top[half]) * SCALE);  //@lazy
        UNROLL for (int i = 0; i < NV / 2; ++i) if (((i >> 1) & 1) == half) o[i] *= behind;  //@lazy
        const float total = quad_sum(sum[half]), most = top[half] * FACTOR, nothing = NAN_OF;  //@exact
        const float total = quad_sum(sum[half]) * behind, most = top[half] * FACTOR, nothing = NAN_OF;  //@lazy
        STORE_ROW
        PART_VALUES
      }
      STORE_VALUES
      if (threadIdx.x % 128 == 0) bulk_wait_read<0>();                      //@late
      named_sync(1 + wg, 128);                                              //@late
      if (lane == 0) mbar_arrive(rows_empty);                               //@late
    }
    if (threadIdx.x % 128 == 0) bulk_wait_read<0>();                        //@staged
  }
}
