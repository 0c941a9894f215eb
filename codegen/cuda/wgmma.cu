using In = Ring<STAGES, A::bytes + COUNT * B::bytes, CONSUMER_WARPS, CM * CN>;

KERNEL(THREADS, CM * CN, RESIDENT) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u;
  In in(smem + STAGING);                                                    // the staging of y comes first
  if (threadIdx.x == 0) in.init();
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
          A::load(slot, &map_a, full, tile.m, k, tile.batch, rn, same_rows);
          LOAD_B
        }
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
      float part[TILES][STATISTICS], stat[TILES][STATISTICS][2];            //@statistics
      UNROLL for (int i = 0; i < TILES; ++i) { INIT }                       //@statistics
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
