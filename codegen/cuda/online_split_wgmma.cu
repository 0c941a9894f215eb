// online_split_wgmma.cu: a dependent fold of a tile of 64 rows whose keys SHARERS warpgroups of a block, and PARTS blocks, share out. Each
// warpgroup has a producer warp and buffers of its own, takes every SHARERS-th tile of keys of its block, and keeps maxima and sums of
// its own, so that the exponentials of one run beside the products of another; at the end all join what they have.
constexpr int ROWS = 64, THREADS = SHARERS * 160, KEY_TILES = (KEYS_ALL + KEYS - 1) / KEYS, PITCH = N + 1, ELEMENTS = ROWS * N;
constexpr u32 ROWS_BYTES = DP * 8192, VALUES_BYTES = KEYS * VP * 128;
constexpr u32 KEYS_BYTES = KEYS * DP * 128;                                 //@along
constexpr u32 KEYS_BYTES = KEYS * STEPS * 32;                               // panels of 64 keys, a position of d in each 128 bytes //@across
constexpr u32 KEYS_RING = STAGES * KEYS_BYTES + 1024, VALUES_RING = STAGES * VALUES_BYTES + 1024;
constexpr float LOG2_E = 1.4426950408889634f;
// Values lie with their rows (keys) 128 bytes apart, 64 positions in a panel.
DEV u64 values_descriptor(u32 a) { return (u64)((a & 0x3ffff) >> 4) | ((u64)((KEYS * 128) >> 4) << 16) | (64ull << 32) | (1ull << 62); }
DEV u64 keys_descriptor(u32 a) { return (u64)((a & 0x3ffff) >> 4) | ((u64)((STEPS * 2048) >> 4) << 16) | (64ull << 32) | (1ull << 62); }  //@across
DEV float quad_max(float v) { v = fmaxf(v, shuffle_xor(v, 1)); return fmaxf(v, shuffle_xor(v, 2)); }
DEV float quad_sum(float v) { v += shuffle_xor(v, 1); return v + shuffle_xor(v, 2); }
// What sums relative to the maximum `top` are multiplied by to be relative to `most`; 0 where nothing but -inf was seen.
DEV float rebased(float top, float most) { return eq_ex2((top - (most == -EQ_INF ? 0.f : most)) * LOG2_E); }

KERNEL(THREADS, TOGETHER, RESIDENT) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u;
  float* const sums = (float*)(raw + (smem - smem_u32(raw)) + SUMS_AT);     // [sharer][row][value]
  float* const tops = sums + SHARERS * ROWS * PITCH, * const totals = tops + SHARERS * ROWS;  // [sharer][row]
//@begin cluster
  constexpr int OWN = ((ELEMENTS + PARTS - 1) / PARTS + 1) / 2 * 2;         // results that one block of the cluster finishes
  float* const inbox = totals + SHARERS * ROWS, * const top_in = inbox + PARTS * OWN, * const total_in = top_in + PARTS * ROWS;
//@end
  const int rank = blockIdx.x % PARTS, tile = blockIdx.x / PARTS % ROW_TILES, batch = blockIdx.x / (PARTS * ROW_TILES);
  const int first_row = tile * ROWS, last_row = min(first_row + ROWS, M) - 1;
  const int begin = (int)((i64)KEY_TILES * rank / PARTS), end = (int)((i64)KEY_TILES * (rank + 1) / PARTS);
  const int wg = warpgroup();
  const bool produces = wg >= SHARERS;                                      // whole warps: the last SHARERS of the block
  const int sharer = produces ? __shfl_sync(~0u, (int)threadIdx.x / 32, 0) - 4 * SHARERS : wg;
  const u32 ring = smem + ROWS_BYTES + sharer * (KEYS_RING + VALUES_RING);
  Ring<STAGES, KEYS_BYTES, 4, 1> keys(ring);
  Ring<STAGES, VALUES_BYTES, 4, 1> values(ring + KEYS_RING);
  const u32 rows_full = smem + ROWS_BYTES + SHARERS * (KEYS_RING + VALUES_RING);
//@begin cluster
  const int own_first = rank * OWN, own_end = min(ELEMENTS, own_first + OWN);
  const u32 all_here = rows_full + 8;
//@end
  if (threadIdx.x == 0) {
    mbar_init(rows_full, 1);
    mbar_init(all_here, 1);                                                 //@cluster
    mbar_init_fence();
    mbar_expect(all_here, PARTS * (4 * max(own_end - own_first, 0) + 8 * ROWS));  //@cluster
  }
  if (produces && lane_id() == 0) { keys.init(); values.init(); }
  cluster_arrive();                                                         //@cluster
  begin_dependent();
  __syncthreads();
  ROW_SPANS
  auto next = [&](int n) {  // this sharer's next tile of keys from n on that is not masked out for all rows of the block
    for (; n < end; n += SHARERS) {
      const int first = n * KEYS, last = min(first + KEYS, KEYS_ALL) - 1;
      KEY_SPANS
      if (!(SKIP)) break;
    }
    return n;
  };

  if (produces) {
    if (lane_id() == 0) {
      tma_prefetch(&map_q); tma_prefetch(&map_k); tma_prefetch(&map_v);
      if (sharer == 0) {
        mbar_expect(rows_full, ROWS_BYTES);
        UNROLL for (int p = 0; p < DP; ++p) tma_load3(smem + p * 8192, &map_q, rows_full, p * 64, first_row, BATCH_Q);
      }
      for (int n = next(begin + sharer); n < end; n = next(n + SHARERS), keys.next(), values.next()) {
        const u32 k = keys.acquire();
        UNROLL for (int p = 0; p < DP; ++p) tma_load3(k + p * KEYS * 128, &map_k, keys.full(keys.s), p * 64, n * KEYS, BATCH_K);  //@along
        UNROLL for (int p = 0; p < KEYS / 64; ++p) tma_load3(k + p * STEPS * 2048, &map_k, keys.full(keys.s), n * KEYS + p * 64, 0, BATCH_K);  //@across
        const u32 v = values.acquire();
        UNROLL for (int p = 0; p < VP; ++p) tma_load3(v + p * KEYS * 128, &map_v, values.full(values.s), p * 64, n * KEYS, BATCH_V);
      }
    }
    __syncwarp();
    if (SHARERS > 1) __syncthreads();
  } else {
    const int lane = lane_id(), row0 = warp_in_group() * 16 + lane / 4;     // of the tile
    float s[KEYS / 2], o[NV / 2], top[2] = {-EQ_INF, -EQ_INF}, sum[2] = {0.f, 0.f}, rebase[2];
    u32 weights[KEYS / 4];
    UNROLL for (int i = 0; i < NV / 2; ++i) o[i] = 0.f;
    const u64 dq = desc128(smem);
    auto make_scores = [&](u32 k) {
      const u64 dk = desc128(k);                                            //@along
      const u64 dk = keys_descriptor(k);                                    //@across
      wg_fence();
      UNROLL for (int i = 0; i < STEPS; ++i) {
        const u64 step = (i / 4 * KEYS * 128 + i % 4 * 32) / 16;            //@along
        const u64 step = i * 128;                                           //@across
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
    // Scores to weights relative to the maximum so far; how far the sums before are to be scaled.
    auto weigh = [&](int n) {
      const int first = n * KEYS;
      SCORES
      UNROLL for (int half = 0; half < 2; ++half) {
        float most = top[half];
        UNROLL for (int i = 0; i < KEYS / 2; ++i) if (((i >> 1) & 1) == half) most = fmaxf(most, s[i]);
        most = quad_max(most);
        const float safe = most == -EQ_INF ? 0.f : most;  // a row that is masked out so far keeps weights of 0
        rebase[half] = eq_ex2((top[half] - safe) * LOG2_E);
        top[half] = most;
        const float shift = safe * LOG2_E;                                  //@moderate
        float part = 0.f;
        UNROLL for (int i = 0; i < KEYS / 2; ++i)
          if (((i >> 1) & 1) == half) {
            s[i] = eq_ex2(fmaf(s[i], LOG2_E, -shift));                      //@moderate
            s[i] = eq_ex2((s[i] - safe) * LOG2_E);                          //@huge
            part += s[i];
          }
        sum[half] = sum[half] * rebase[half] + part;
      }
    };
    auto pack = [&]() { UNROLL for (int i = 0; i < KEYS / 4; ++i) weights[i] = PACK(s[2 * i], s[2 * i + 1]); };
    int n = next(begin + wg);
    if (n < end) {
      mbar_wait(rows_full, 0);
      make_scores(keys.wait());
      wg_wait<0>(); pin(s); keys.release(keys.s); keys.next();
      weigh(n);
      pack();
      for (n = next(n + SHARERS); n < end; n = next(n + SHARERS)) {
        make_scores(keys.wait());
        add_values(values.wait());
        wg_wait<1>(); pin(s); keys.release(keys.s); keys.next();
        weigh(n);
        wg_wait<0>(); pin(o); values.release(values.s); values.next();
        UNROLL for (int i = 0; i < NV / 2; ++i) o[i] *= rebase[(i >> 1) & 1];
        pack();
      }
      add_values(values.wait());
      wg_wait<0>(); pin(o);
    }
    // The warpgroups bring what they have to the greatest maximum among them and leave it.
    UNROLL for (int half = 0; half < 2; ++half) {
      sum[half] = quad_sum(sum[half]);
      if (SHARERS > 1 && lane % 4 == 0) totals[wg * ROWS + row0 + 8 * half] = top[half];
    }
    if (SHARERS > 1) __syncthreads();
    UNROLL for (int half = 0; half < 2; ++half) {
      const int row = row0 + 8 * half;
      float most = top[half];
      if (SHARERS > 1) UNROLL for (int w = 0; w < SHARERS; ++w) most = fmaxf(most, totals[w * ROWS + row]);
      const float f = rebased(top[half], most);
      UNROLL for (int i = 0; i < NV / 2; ++i) {
        const int col = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        if (((i >> 1) & 1) == half && (N % 8 == 0 || col < N)) sums[(wg * ROWS + row) * PITCH + col] = o[i] * f;
      }
      top[half] = most;
      sum[half] *= f;
    }
    if (SHARERS > 1) named_sync(1, SHARERS * 128);                          // all maxima have been read
    UNROLL for (int half = 0; half < 2; ++half)
      if (lane % 4 == 0) { tops[wg * ROWS + row0 + 8 * half] = top[half]; totals[wg * ROWS + row0 + 8 * half] = sum[half]; }
  }
  __syncthreads();
  JOIN
}
