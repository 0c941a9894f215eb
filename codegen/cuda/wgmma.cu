using In = Ring<STAGES, LEFTS * A::bytes + COUNT * B::bytes, CONSUMER_WARPS, CM * CN>;

KERNEL(THREADS, CM * CN, RESIDENT) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u;
  In in(smem + STAGING);                                                    // the staging of y comes first
  const int wg = warpgroup();
  if (threadIdx.x == GROUPS * 128) {
    PREFETCH
    in.init();
  }
  begin_dependent();
//@begin packed
  PACK
  fence_async();
  __syncthreads();
  if (threadIdx.x == 0) meet((u32*)workspace, gridDim.x, blockIdx.x == 0);
  __syncthreads();
  fence_async();
//@end
  __syncwarp();                                                             //@alone
  if (wg == GROUPS) named_arrive(12, THREADS); else named_sync(12, THREADS);  // who made the ring need not wait  //@alone
  cluster_sync();                                                           //@cluster
  Raster<BATCH, M, N, BM, BN, CM, CN, RASTER> tile;                         //@whole
  constexpr int k_first = 0, k_last = K, steps = STEPS;                     //@whole
  OneTile<BATCH, M, N, BM, BN, CM, CN, RASTER> tile(blockIdx.x / (CM * CN) / SLICES);  //@sliced
  const int slice = blockIdx.x / (CM * CN) % SLICES, k_first = slice * PER_SLICE, k_last = min(K, k_first + PER_SLICE), steps = (k_last - k_first + 63) / 64;  //@sliced

  if (wg == GROUPS) {                                                       // producer: one thread
    reg_dec<PRODUCER_REGISTERS>();                                          //@budget
    if (threadIdx.x == GROUPS * 128) {
      const int rank = cluster_rank(), rm = rank / CN, rn = rank % CN;      //@cluster
      constexpr int rm = 0, rn = 0;                                         //@alone
      const u16 same_rows = ((1 << CN) - 1) << (rm * CN), same_columns = (((1 << CM * CN) - 1) / ((1 << CN) - 1)) << rn;
      while (tile.next()) {
        SELECT
        for (int k = k_first; k < k_last; k += 64, in.next()) {
          const u32 slot = in.acquire(), full = in.full(in.s);
          LOAD_A
          LOAD_B
        }
        MORE
      }
    }
  } else {                                                                  // consumers: TILES x 64 rows each
    reg_inc<CONSUMER_REGISTERS>();                                          //@budget
    const int first = wg * TILES;                                           //@cooperative
    constexpr int first = 0;                                                //@pingpong
    int pass = 0;                                                           //@staged
    int turn = 0;                                                           //@pingpong
    if (wg == 1) named_arrive(8, 256);                                      //@pingpong
    // The matrix units take a warpgroup's products one by one, and it waits meanwhile: the two compute and multiply in turn.
    if (wg == 1) named_arrive(8, 256);                                      //@turns
    while (tile.next()) {
      const bool mine = turn == wg; turn ^= 1;                              //@pingpong
      if (!mine) { in.skip(steps); continue; }                              //@pingpong
      named_sync(8 + wg, 256);                                              //@pingpong
      Acc<BN> acc[COUNT][TILES];
      float part[TILES][STATISTICS];                                        //@ridden
      float stat[TILES][STATISTICS][2];                                     //@statistics
      UNROLL for (int i = 0; i < TILES; ++i) { INIT }                       //@statistics
//@begin loaded
      for (int k = 0; k < steps; ++k) {
        const u32 slot = in.wait();
        wg_fence();
        UNROLL for (int c = 0; c < COUNT; ++c)
          UNROLL for (int i = 0; i < TILES; ++i)
            acc[c][i].template mma<A, B>(A::rows64(slot, first + i), slot + A::bytes + c * B::bytes, k == 0);
        wg_commit();
        UNROLL for (int i = 0; i < TILES; ++i)                              //@statistics
          row_values<T>(A::rows64(slot, first + i), [&](float x) {          //@statistics
            ACCUMULATE
          });                                                               //@statistics
        in.advance();
      }
//@end
//@begin computed
      SCALARS
      auto fetch = [&](int k0) {                                            //@vectors
        FETCH
      };                                                                    //@vectors
      u32 left[2][TILES][4][4];                                             // fragments of this step and of the next one
      auto compute = [&](u32 slot, u32 (&to)[TILES][4][4]) {
        repeat<4>([&](auto q) {
          SPREAD
          UNROLL for (int i = 0; i < TILES; ++i) {
            FRAGMENTS
            UNROLL for (int r = 0; r < 4; ++r) {
              WORD
            }
          }
        });
      };
      fetch(k_first);                                                       //@vectors
      u32 slot = in.wait();
      compute(slot, left[0]);
      fetch(min(k_first + 64, K - 64));                                              //@vectors
      for (int k = 0; k < steps; k += 2)
        repeat<2>([&](auto p) {
          if (k + p < steps) {
            named_sync(8 + wg, 256);                                        //@turns
            wg_fence();
            UNROLL for (int c = 0; c < COUNT; ++c)
              UNROLL for (int i = 0; i < TILES; ++i)
                acc[c][i].template mma_left<B>(left[p][i], slot + LEFTS * A::bytes + c * B::bytes, k + p == 0);
            wg_commit();
            named_arrive(8 + (wg ^ 1), 256);                                //@turns
            UNROLL for (int i = 0; i < TILES; ++i)                          //@riding
              repeat<4>([&](auto q) {                                       //@riding
                UNROLL for (int r = 0; r < 4; ++r)                          //@riding
                  UNROLL for (int e = 0; e < 2; ++e) {                      //@riding
                    RIDE
                  }                                                         //@riding
              });                                                           //@riding
            in.advance();
            if (k + p + 1 < steps) {
              slot = in.wait();
              compute(slot, left[1 - p]);
              fetch(min(k_first + (k + p + 2) * 64, K - 64));                         //@vectors
            }
          }
        });
//@end
      named_arrive(8 + (wg ^ 1), 256);                                      //@pingpong
      in.drain();
      UNROLL for (int c = 0; c < COUNT; ++c)
        UNROLL for (int i = 0; i < TILES; ++i) pin(acc[c][i].v);
      UNROLL for (int i = 0; i < TILES; ++i) { TOTAL }                      //@statistics
      named_sync(11, GROUPS * 128);                                         // the ring is free: y is staged there //@once

      FINISH                                                                //@whole
//@begin sliced
      const int share = tile.t * CM * CN + (CM * CN > 1 ? cluster_rank() : 0);  // the number of the tile
      float* const parts = (float*)((u8*)workspace + COUNTERS) + (i64)share * SLICES * PART + threadIdx.x * 4;
      repeat<COUNT * TILES>([&](auto ci) {
        repeat<BN / 8>([&](auto j) { leave4(parts + slice * PART + (ci * (BN / 8) + j) * GROUPS * 512, acc[ci / TILES][ci % TILES].v + 4 * j); });
      });
      named_sync(10, GROUPS * 128);
      if (threadIdx.x == 0) meet((u32*)workspace + share, SLICES, slice == 0);
      named_sync(10, GROUPS * 128);
      for (int unit = slice; unit < BN / 8; unit += SLICES) {               // 8 columns at a time
        Acc<8> sum[COUNT][TILES];
        repeat<COUNT * TILES>([&](auto ci) {
          add_parts<SLICES, PART>(sum[ci / TILES][ci % TILES].v, parts + (ci * (BN / 8) + unit) * GROUPS * 512);
        });
        FINISH
      }
//@end
    }
    if (lane_id() == 0) bulk_wait_read<0>();                                //@staged
  }
  cluster_sync();                                                           //@cluster
}
