// online_wgmma.cu: a dependent fold on the tensor cores of sm_90a, after FlashAttention-3 (Shah et al., 2024). A block takes GROUPS
// times 64 rows of one batch at a time; a producer thread brings tiles of keys and values by TMA, from the last tile down; each
// warpgroup keeps its rows' scores, weights and sums in registers. The scores of the next tile are made while the values of the
// last one are added up, and with ping-pong the exponentials of one warpgroup run under the products of the other. Blocks stay
// and draw their rows from a counter; the first scores of the next rows are made while the last values of these are added up.
constexpr int BM = GROUPS * 64, ROW_TILES = (M + BM - 1) / BM, KEY_TILES = (KEYS_ALL + KEYS - 1) / KEYS, ITEMS = BATCH * ROW_TILES;
constexpr u32 ROWS_BYTES = BM * DP * 128, KEYS_BYTES = KEYS * DP * 128, VALUES_BYTES = KEYS * VP * 128;
// Values lie with their rows (keys) 128 bytes apart, 64 positions in a panel.
DEV u64 values_descriptor(u32 a) { return (u64)((a & 0x3ffff) >> 4) | ((u64)((KEYS * 128) >> 4) << 16) | (64ull << 32) | (1ull << 62); }
DEV float quad_max(float v) { v = fmaxf(v, shuffle_xor(v, 1)); return fmaxf(v, shuffle_xor(v, 2)); }
DEV float quad_sum(float v) { v += shuffle_xor(v, 1); return v + shuffle_xor(v, 2); }
// HEADS batches at a time, whose keys and values stay in L2; among them the last tiles of rows first, the longest under a causal mask.
// Tiles end with the last row (up to whole 64), so that warpgroups lack rows where a causal mask leaves the fewest keys: all of
// theirs, since TMA loads from negative rows, but does not store there.
struct Place {
  int batch, first_row;
  DEV Place(int item) {
    const int several = item / (HEADS * ROW_TILES) * HEADS, in = item - several * ROW_TILES;
    const int heads = BATCH % HEADS == 0 ? HEADS : min(HEADS, BATCH - several);
    batch = several + in % heads;
    first_row = (M + 63) / 64 * 64 - (in / heads + 1) * BM;
  }
};

KERNEL(THREADS, 1, 1) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u;
  Ring<ROW_STAGES, ROWS_BYTES, GROUPS * 4, 1> rows(smem);
  Ring<STAGES, KEYS_BYTES, GROUPS * 4, 1> keys(smem + KEYS_AT);
  Ring<STAGES, VALUES_BYTES, GROUPS * 4, 1> values(smem + VALUES_AT);
  volatile int* const drawn = (volatile int*)(raw + (rows.full(2 * ROW_STAGES) - smem_u32(raw)));  // the item whose rows are in a slot
  if (threadIdx.x == 0) {
    rows.init();
    keys.init();
    values.init();
  }
  begin_dependent();
  __syncthreads();
  const int wg = warpgroup();
  auto next = [&](const Place& here, int n) {  // the next tile of keys, downwards from n, that is not masked out for all rows; -1 if none
    const int batch = here.batch, first_row = here.first_row;
    ROW_SPANS
    _Pragma("unroll 1") for (; n >= 0; --n) {
      const int first = n * KEYS, last = min(first + KEYS, KEYS_ALL) - 1;
      KEY_SPANS
      if (!(SKIP)) break;
    }
    return n;
  };
  auto first_tile = [&](const Place& here) { return max(next(here, KEY_TILES - 1), 0); };  // of rows without keys: any

  if (wg == GROUPS) {                                                       // producer: one thread
    reg_dec<PRODUCER_REGISTERS>();                                          //@budget
    if (threadIdx.x == GROUPS * 128) {
      tma_prefetch(&map_q); tma_prefetch(&map_k); tma_prefetch(&map_v);
      for (int item = blockIdx.x, after; item < ITEMS; item = after, rows.next()) {
        after = gridDim.x + (int)atomicAdd(work, 1u);
        const Place here(item);
        const int batch = here.batch;
        int n = first_tile(here);
        auto load_keys = [&]() {
          const u32 k = keys.acquire();
          UNROLL for (int p = 0; p < DP; ++p) tma_load3(k + p * KEYS * 128, &map_k, keys.full(keys.s), p * 64, n * KEYS, BATCH_K);
          keys.next();
        };
        load_keys();
        mbar_wait(rows.empty(rows.s), rows.parity ^ 1);
        drawn[rows.s] = item;
        mbar_expect(rows.full(rows.s), ROWS_BYTES);
        UNROLL for (int g = 0; g < GROUPS; ++g)
          UNROLL for (int p = 0; p < DP; ++p)
            tma_load3(rows.data + rows.s * ROWS_BYTES + (g * DP + p) * 8192, &map_q, rows.full(rows.s), p * 64, here.first_row + g * 64, BATCH_Q);
        for (;;) {
          const u32 v = values.acquire();
          UNROLL for (int p = 0; p < VP; ++p) tma_load3(v + p * KEYS * 128, &map_v, values.full(values.s), p * 64, n * KEYS, BATCH_V);
          values.next();
          n = next(here, n - 1);
          if (n < 0) break;
          load_keys();
        }
      }
      mbar_wait(rows.empty(rows.s), rows.parity ^ 1);
      drawn[rows.s] = ITEMS;
      mbar_arrive(rows.full(rows.s));
      __threadfence();
      if (atomicAdd(work + 1, 1u) == gridDim.x - 1) { work[0] = 0; work[1] = 0; }  // the last block leaves the counters as it found them
    }
  } else {                                                                  // consumers: 64 rows each
    reg_inc<CONSUMER_REGISTERS>();                                          //@budget
    const int lane = lane_id();
    const u32 staging = smem + STAGING_AT + wg * BUFFERS * 8192;            //@staged
    int pass = 0;                                                           //@staged
    float s[KEYS / 2], o[NV / 2], sum[2], pivot[2], shift[2];
    float top[2];                                                           //@tops
    u32 weights[KEYS / 4];
    auto draw = [&]() {
      mbar_wait(rows.full(rows.s), rows.parity);
      return __shfl_sync(~0u, (int)drawn[rows.s], 0);
    };
    Place here(draw());
    SCORE_PARTS
    auto begin = [&]() {  // the rows at `here`
      const int batch = here.batch, first_row = here.first_row, row0 = first_row + wg * 64 + warp_in_group() * 16 + lane / 4;
      float stat[STATISTICS][2], gathered[STATISTICS];                      //@statistics
      NEUTRAL
      UNROLL for (int p = 0; p < DP; ++p)                                   //@statistics
        row_values<T>(rows.data + rows.s * ROWS_BYTES + (wg * DP + p) * 8192, [&](float x) {  //@statistics
          GATHER
        });                                                                 //@statistics
      TOTAL
      UNROLL for (int half = 0; half < 2; ++half) {
        const int row = min(max(row0 + 8 * half, 0), M - 1);
        SCORE_PART_VALUES
      }
      UNROLL for (int i = 0; i < NV / 2; ++i) o[i] = 0.f;
      UNROLL for (int half = 0; half < 2; ++half) { sum[half] = shift[half] = 0.f; pivot[half] = -EQ_INF; }
      top[0] = top[1] = -EQ_INF;                                            //@tops
    };
    auto passed = [&](const Place& here, int n) {  // a tile that no row of this warpgroup needs, and not the last one
      const int batch = here.batch, first_row = here.first_row, first = n * KEYS, last = min(first + KEYS, KEYS_ALL) - 1;
      OWN_ROW_SPANS
      KEY_SPANS
      const bool outside = ROW_TILES * BM - M >= 64 && first_row + wg * 64 < 0;
      return __any_sync(~0u, (outside || (OWN_SKIP)) && next(here, n - 1) >= 0);
    };
    int n = first_tile(here);
    u64 dq = 0;
    auto make_scores = [&](u32 k) {
      const u64 dk = desc128(k);
      wg_fence();
      UNROLL for (int i = 0; i < STEPS; ++i) wgmma_scores(s, dq + (i / 4 * 8192 + i % 4 * 32) / 16, dk + (i / 4 * KEYS * 128 + i % 4 * 32) / 16, i != 0);
      wg_commit();
    };
    auto add_values = [&](u32 v) {
      const u64 dv = values_descriptor(v);
      wg_fence();
      UNROLL for (int i = 0; i < KEYS / 16; ++i) wgmma_values(o, weights[4 * i], weights[4 * i + 1], weights[4 * i + 2], weights[4 * i + 3], dv + i * 128);
      wg_commit();
    };
    auto finish = [&]() {
      const int batch = here.batch, first_row = here.first_row, row0 = first_row + wg * 64 + warp_in_group() * 16 + lane / 4;
      PARTS
      UNROLL for (int half = 0; half < 2; ++half) {
        const int row = min(max(row0 + 8 * half, 0), M - 1);
        const bool inside = row == row0 + 8 * half;
        const float total = quad_sum(sum[half]);                            //@free
        const float highest = quad_max(top[half]), most = highest * FACTOR_OF_ROW, nothing = NAN_OF;  // NaN where a whole row is masked out  //@tops
        const float behind = pivot[half] == -EQ_INF ? 1.f : eq_ex2((pivot[half] - highest) * SCALE_OF_ROW), total = quad_sum(sum[half]) * behind;  //@tops
        UNROLL for (int i = 0; i < NV / 2; ++i) if (((i >> 1) & 1) == half) o[i] = o[i] * behind + nothing;  //@tops
        STORE_ROW
        PART_VALUES
      }
      STORE_VALUES
    };

    if (wg == 1) named_arrive(8, 256);                                      //@pingpong
    for (int item = 0;;) {  // rows whose first tiles of keys are passed over are not chained to those before
      for (; passed(here, n); n = next(here, n - 1)) {
        keys.wait(); keys.release(keys.s); keys.next();
        values.wait(); values.release(values.s); values.next();
        named_sync(8 + wg, 256);                                            //@pingpong
        named_arrive(8 + (wg ^ 1), 256);                                    //@pingpong
      }
      dq = desc128(rows.data + rows.s * ROWS_BYTES + wg * DP * 8192);
      const u32 k0 = keys.wait();
      named_sync(8 + wg, 256);                                              //@pingpong
      make_scores(k0);
      named_arrive(8 + (wg ^ 1), 256);                                      //@pingpong
      wg_wait<0>(); pin(s); keys.release(keys.s); keys.next();
      begin();
      for (bool fresh = true;;) {
        {
          const int batch = here.batch, first_row = here.first_row, row0 = first_row + wg * 64 + warp_in_group() * 16 + lane / 4;
          const int first = n * KEYS, last = min(first + KEYS, KEYS_ALL) - 1;
          FINISH
        }
        wg_wait<0>(); pin(o);
        if (!fresh) { values.release(values.s); values.next(); }
        // Scores to weights relative to the pivots. These stay as long as no weight passes LIMIT; else they become the maxima so far,
        // and what was summed before is scaled.
        for (bool moved = fresh;; moved = true) {
          if (moved)
            UNROLL for (int half = 0; half < 2; ++half) {
              float m = pivot[half];
              UNROLL for (int i = 0; i < KEYS / 2; ++i) if (((i >> 1) & 1) == half) m = fmaxf(m, s[i]);
              m = quad_max(m);
              const float to = m == -EQ_INF ? 0.f : m;  // a row that is masked out so far keeps weights of 0
              const float rebase = pivot[half] == -EQ_INF ? 0.f : eq_ex2(shift[half] - to * SCALE_OF_ROW);  //@moderate
              const float rebase = pivot[half] == -EQ_INF ? 0.f : eq_ex2((shift[half] - to) * SCALE_OF_ROW);  //@huge
              shift[half] = to * SCALE_OF_ROW;                                     //@moderate
              shift[half] = to;                                             //@huge
              pivot[half] = m;
              sum[half] *= rebase;
              UNROLL for (int i = 0; i < NV / 2; ++i) if (((i >> 1) & 1) == half) o[i] *= rebase;
            }
          float part[2] = {0.f, 0.f};
          UNROLL for (int i = 0; i < KEYS / 2; i += 2) {
            const int half = (i >> 1) & 1;
            const float a = eq_ex2(fmaf(s[i], SCALE_OF_ROW, -shift[half])), b = eq_ex2(fmaf(s[i + 1], SCALE_OF_ROW, -shift[half]));  //@moderate
            const float a = eq_ex2((s[i] - shift[half]) * SCALE_OF_ROW), b = eq_ex2((s[i + 1] - shift[half]) * SCALE_OF_ROW);  //@huge
            part[half] += a;
            part[half] += b;
            weights[i / 2] = PACK(a, b);
            top[half] = fmaxf(fmaxf(top[half], s[i]), s[i + 1]);            //@tops
          }
          const bool kept = part[0] <= LIMIT && part[1] <= LIMIT && pivot[0] > -EQ_INF && pivot[1] > -EQ_INF;
          if (moved || !__any_sync(~0u, !kept)) {
            sum[0] += part[0];
            sum[1] += part[1];
            break;
          }
        }

        const int following = next(here, n - 1);
        fresh = __any_sync(~0u, following < 0);  // a vote, so that the branch is uniform, and descriptors stay in uniform registers
        n = following;
        if (fresh) {
          rows.release(rows.s); rows.next();
          item = draw();
          if (__any_sync(~0u, item >= ITEMS)) break;
          const Place there(item);
          n = first_tile(there);
          if (passed(there, n)) break;
          dq = desc128(rows.data + rows.s * ROWS_BYTES + wg * DP * 8192);
        }
        const u32 k = keys.wait();
        named_sync(8 + wg, 256);                                            //@pingpong
        make_scores(k);
        add_values(values.wait());
        named_arrive(8 + (wg ^ 1), 256);                                    //@pingpong
        wg_wait<1>(); pin(s); keys.release(keys.s); keys.next();
        if (fresh) {
          wg_wait<0>(); pin(o); values.release(values.s); values.next();
          finish();
          here = Place(item);
          begin();
        }
      }
      add_values(values.wait());
      wg_wait<0>(); pin(o); values.release(values.s); values.next();
      finish();
      if (__any_sync(~0u, item >= ITEMS)) break;
      here = Place(item);
    }
    if (threadIdx.x % 128 == 0) bulk_wait_read<0>();                        //@staged
  }
}
