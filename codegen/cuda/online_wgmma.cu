// online_wgmma.cu: a dependent fold on the tensor cores of sm_90a, after FlashAttention-3 (Shah et al., 2024). A block takes GROUPS
// times 64 rows of one batch; a producer thread brings tiles of keys and values by TMA, from the last tile down; each warpgroup
// keeps its rows' scores, weights and sums in registers. The scores of the next tile are made while the values of the last one
// are added up, and with ping-pong the exponentials of one warpgroup run under the products of the other.
constexpr int BM = GROUPS * 64, ROW_TILES = (M + BM - 1) / BM, KEY_TILES = (KEYS_ALL + KEYS - 1) / KEYS;
constexpr u32 ROWS_BYTES = BM * DP * 128, KEYS_BYTES = KEYS * DP * 128, VALUES_BYTES = KEYS * VP * 128;
// Values lie with their rows (keys) 128 bytes apart, 64 positions in a panel.
DEV u64 values_descriptor(u32 a) { return (u64)((a & 0x3ffff) >> 4) | ((u64)((KEYS * 128) >> 4) << 16) | (64ull << 32) | (1ull << 62); }
DEV float quad_max(float v) { v = fmaxf(v, shuffle_xor(v, 1)); return fmaxf(v, shuffle_xor(v, 2)); }
DEV float quad_sum(float v) { v += shuffle_xor(v, 1); return v + shuffle_xor(v, 2); }

KERNEL(THREADS, 1, 1) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u;
  Ring<STAGES, KEYS_BYTES, GROUPS * 4, 1> keys(smem + ROWS_BYTES);
  Ring<STAGES, VALUES_BYTES, GROUPS * 4, 1> values(smem + ROWS_BYTES + STAGES * KEYS_BYTES + 1024);
  const u32 rows_full = values.full(2 * STAGES);
  if (threadIdx.x == 0) {
    mbar_init(rows_full, 1);
    keys.init();
    values.init();
  }
  __syncthreads();
  // HEADS batches at a time, whose keys and values stay in L2; among them the last tiles of rows first, the longest under a causal mask
  const int several = blockIdx.x / (HEADS * ROW_TILES) * HEADS, heads = min(HEADS, BATCH - several), in = blockIdx.x - several * ROW_TILES;
  const int batch = several + in % heads, first_row = (ROW_TILES - 1 - in / heads) * BM, last_row = min(first_row + BM, M) - 1;
  const int wg = warpgroup();
  ROW_SPANS
  auto next = [&](int n) {  // the next tile of keys, downwards from n, that is not masked out for all rows of the block; -1 if none
    for (; n >= 0; --n) {
      const int first = n * KEYS, last = min(first + KEYS, KEYS_ALL) - 1;
      KEY_SPANS
      if (!(SKIP)) break;
    }
    return n;
  };

  if (wg == GROUPS) {                                                       // producer: one thread
    reg_dec<PRODUCER_REGISTERS>();                                          //@budget
    if (threadIdx.x == GROUPS * 128) {
      tma_prefetch(&map_q); tma_prefetch(&map_k); tma_prefetch(&map_v);
      mbar_expect(rows_full, ROWS_BYTES);
      UNROLL for (int p = 0; p < DP; ++p) tma_load3(smem + p * BM * 128, &map_q, rows_full, p * 64, first_row, BATCH_Q);
      for (int n = next(KEY_TILES - 1); n >= 0; n = next(n - 1), keys.next(), values.next()) {
        const u32 k = keys.acquire();
        UNROLL for (int p = 0; p < DP; ++p) tma_load3(k + p * KEYS * 128, &map_k, keys.full(keys.s), p * 64, n * KEYS, BATCH_K);
        const u32 v = values.acquire();
        UNROLL for (int p = 0; p < VP; ++p) tma_load3(v + p * KEYS * 128, &map_v, values.full(values.s), p * 64, n * KEYS, BATCH_V);
      }
    }
  } else {                                                                  // consumers: 64 rows each
    reg_inc<CONSUMER_REGISTERS>();                                          //@budget
    const int lane = lane_id(), row0 = first_row + wg * 64 + warp_in_group() * 16 + lane / 4;
    float s[KEYS / 2], o[NV / 2], top[2] = {-EQ_INF, -EQ_INF}, sum[2] = {0.f, 0.f}, rebase[2];
    u32 weights[KEYS / 4];
    UNROLL for (int i = 0; i < NV / 2; ++i) o[i] = 0.f;
    const u64 dq = desc128(smem + wg * 64 * 128);
    auto make_scores = [&](u32 k) {
      const u64 dk = desc128(k);
      wg_fence();
      UNROLL for (int i = 0; i < STEPS; ++i) wgmma_scores(s, dq + (i / 4 * BM * 128 + i % 4 * 32) / 16, dk + (i / 4 * KEYS * 128 + i % 4 * 32) / 16, i != 0);
      wg_commit();
    };
    auto add_values = [&](u32 v) {
      const u64 dv = values_descriptor(v);
      wg_fence();
      UNROLL for (int i = 0; i < KEYS / 16; ++i) wgmma_values(o, weights[4 * i], weights[4 * i + 1], weights[4 * i + 2], weights[4 * i + 3], dv + i * 128);
      wg_commit();
    };
    // Accumulators to weights relative to the maximum so far; how far the sums before are to be scaled.
    auto weigh = [&](int n) {
      const int first = n * KEYS, last = min(first + KEYS, KEYS_ALL) - 1;
      FINISH
      UNROLL for (int half = 0; half < 2; ++half) {
        float m = top[half];
        UNROLL for (int i = 0; i < KEYS / 2; ++i) if (((i >> 1) & 1) == half) m = fmaxf(m, s[i]);
        m = quad_max(m);
        const float safe = m == -EQ_INF ? 0.f : m;  // a row that is masked out so far keeps weights of 0
        rebase[half] = eq_ex2((top[half] - safe) * SCALE);
        top[half] = m;
        const float shift = safe * SCALE;                                   //@moderate
        float part = 0.f;
        UNROLL for (int i = 0; i < KEYS / 2; ++i)
          if (((i >> 1) & 1) == half) {
            s[i] = eq_ex2(fmaf(s[i], SCALE, -shift));                       //@moderate
            s[i] = eq_ex2((s[i] - safe) * SCALE);                           //@huge
            part += s[i];
          }
        sum[half] = sum[half] * rebase[half] + part;
      }
    };
    auto pack = [&]() { UNROLL for (int i = 0; i < KEYS / 4; ++i) weights[i] = PACK(s[2 * i], s[2 * i + 1]); };
    auto scale = [&]() { UNROLL for (int i = 0; i < NV / 2; ++i) o[i] *= rebase[(i >> 1) & 1]; };

    if (wg == 1) named_arrive(8, 256);                                      //@pingpong
    int n = next(KEY_TILES - 1);
    mbar_wait(rows_full, 0);
    if (n >= 0) {
      const u32 k0 = keys.wait();
      named_sync(8 + wg, 256);                                              //@pingpong
      make_scores(k0);
      named_arrive(8 + (wg ^ 1), 256);                                      //@pingpong
      wg_wait<0>(); pin(s); keys.release(keys.s); keys.next();
      weigh(n);
      pack();
      for (n = next(n - 1); n >= 0; n = next(n - 1)) {
        const u32 k = keys.wait();
        named_sync(8 + wg, 256);                                            //@pingpong
        make_scores(k);
        add_values(values.wait());
        named_arrive(8 + (wg ^ 1), 256);                                    //@pingpong
        wg_wait<1>(); pin(s); keys.release(keys.s); keys.next();
        weigh(n);
        wg_wait<0>(); pin(o); values.release(values.s); values.next();
        scale();
        pack();
      }
      add_values(values.wait());
      wg_wait<0>(); pin(o); values.release(values.s);
    }

    UNROLL for (int half = 0; half < 2; ++half) {
      const int row = row0 + 8 * half;
      const float total = quad_sum(sum[half]), most = top[half] * FACTOR, nan = NAN_OF;  // NaN where a whole row is masked out
      if (row < M) {
        STORE_ROW
        UNROLL for (int j = 0; j < NV / 8; ++j) {
          const int column = 8 * j + 2 * (lane % 4);
          STORE_VALUES
        }
      }
    }
  }
}
