using In = Ring<STAGES, LEFTS * A::bytes + COUNT * B::bytes, CONSUMER_WARPS, CM * CN>;

KERNEL(THREADS, CM * CN, RESIDENT) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u;
  In in(smem + STAGING);                                                    // the staging of y comes first
  if (threadIdx.x == 0) in.init();
  begin_dependent();
  __syncthreads();                                                          //@alone
  cluster_sync();                                                           //@cluster
  Raster<BATCH, M, N, BM, BN, CM, CN, RASTER> tile;
  const int wg = warpgroup();

  if (wg == GROUPS) {                                                       // producer: one thread
    reg_dec<PRODUCER_REGISTERS>();                                          //@budget
    if (threadIdx.x == GROUPS * 128) {
      const int rank = cluster_rank(), rm = rank / CN, rn = rank % CN;      //@cluster
      constexpr int rm = 0, rn = 0;                                         //@alone
      const u16 same_rows = ((1 << CN) - 1) << (rm * CN), same_columns = (1 << rn) * (CM == 2 ? 1 + (1 << CN) : 1);
      PREFETCH
      while (tile.next()) {
        SELECT
        for (int k = 0; k < K; k += 64, in.next()) {
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
    while (tile.next()) {
      const bool mine = turn == wg; turn ^= 1;                              //@pingpong
      if (!mine) { in.skip(STEPS); continue; }                              //@pingpong
      named_sync(8 + wg, 256);                                              //@pingpong
      Acc<BN> acc[COUNT][TILES];
      float part[TILES][STATISTICS];                                        //@ridden
      float stat[TILES][STATISTICS][2];                                     //@statistics
      UNROLL for (int i = 0; i < TILES; ++i) { INIT }                       //@statistics
//@begin loaded
      for (int k = 0; k < STEPS; ++k) {
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
        repeat<4>([&](auto q) {                                             //@vectors
          FETCH
        });                                                                 //@vectors
      };                                                                    //@vectors
      u32 left[2][TILES][4][4];                                             // fragments of this step and of the next one
      auto compute = [&](u32 slot, u32 (&to)[TILES][4][4]) {
        UNROLL for (int i = 0; i < TILES; ++i)
          repeat<4>([&](auto q) {
            FRAGMENTS
            UNROLL for (int r = 0; r < 4; ++r) {
              float y[2];
              UNROLL for (int e = 0; e < 2; ++e) {
                ELEMENT
              }
              to[i][q][r] = Pack<T>::template from<2>(y).w[0];
            }
          });
      };
      fetch(0);                                                             //@vectors
      u32 slot = in.wait();
      compute(slot, left[0]);
      fetch(K > 64 ? 64 : 0);                                               //@vectors
      for (int k = 0; k < STEPS; k += 2)
        repeat<2>([&](auto p) {
          if (k + p < STEPS) {
            wg_fence();
            UNROLL for (int c = 0; c < COUNT; ++c)
              UNROLL for (int i = 0; i < TILES; ++i)
                acc[c][i].template mma_left<B>(left[p][i], slot + LEFTS * A::bytes + c * B::bytes, k + p == 0);
            wg_commit();
            in.advance();
            if (k + p + 1 < STEPS) {
              slot = in.wait();
              compute(slot, left[1 - p]);
              fetch(min((k + p + 2) * 64, K - 64));                         //@vectors
            }
          }
        });
//@end
      named_arrive(8 + (wg ^ 1), 256);                                      //@pingpong
      in.drain();
      UNROLL for (int c = 0; c < COUNT; ++c)
        UNROLL for (int i = 0; i < TILES; ++i) pin(acc[c][i].v);
      UNROLL for (int i = 0; i < TILES; ++i) { TOTAL }                      //@statistics

      FINISH
    }
    if (threadIdx.x % 128 == 0) bulk_wait_read<0>();                        //@staged
  }
  cluster_sync();                                                           //@cluster
}
