using In = Ring<STAGES, A::bytes + B::bytes, GROUPS * 4, 1>;
using P = Planes<B, A::k_major>;
constexpr int PANELS = BN / 32;

KERNEL(THREADS, 1, 1) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u;
  In in(smem);
  const u32 converted = in.empty(STAGES), notes = converted + 8 * STAGES;   // a barrier and the panels' exponents for each slot
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) mbar_init(converted + 8 * i, 4);
    in.init();
  }
  __syncthreads();
  Raster<BATCH, M, N, BM, BN, 1, 1, RASTER> tile;
//@begin slices
  __shared__ u32 finished;
  tile.t = (int)(blockIdx.x / SLICES) - (int)gridDim.x;                     // one slice of one tile for each block
  const int slice = blockIdx.x % SLICES, first_step = slice * SHARE, steps = min(STEPS - first_step, SHARE);
//@end
  constexpr int first_step = 0, steps = STEPS;                              //@whole
  const int wg = warpgroup();

  if (wg == GROUPS + 1) {                                                   // producer: one thread
    reg_dec<PRODUCER_REGISTERS>();
    if (threadIdx.x == (GROUPS + 1) * 128) {
      tma_prefetch(&map_a);
      tma_prefetch(&map_b);
      while (tile.next())
        for (int k = 0; k < steps; ++k, in.next()) {
          const u32 slot = in.acquire(), full = in.full(in.s);
          A::load(slot, &map_a, full, tile.m, (first_step + k) * 32, tile.batch);
          B::load(slot + A::bytes, &map_b, full, tile.n, (first_step + k) * 32, tile.batch);
        }
    }
  } else if (wg == GROUPS) {                                                // converter: a warp for each panel
    reg_dec<CONVERTER_REGISTERS>();                                         //@fewer
    reg_inc<CONVERTER_REGISTERS>();                                         //@more
    while (tile.next())
      for (int k = 0; k < steps; ++k, in.next()) {
        const u32 slot = in.wait();
#pragma unroll 1
        for (int panel = warp_in_group(); panel < PANELS; panel += 4) P::convert(slot + A::bytes + panel * 4096, notes + (in.s * PANELS + panel) * 4);
        fence_async_shared();                                               // the matrix units read what was written here
        __syncwarp();
        if (lane_id() == 0) mbar_arrive(converted + 8 * in.s);
      }
  } else {                                                                  // consumers: 64 rows each
    reg_inc<CONSUMER_REGISTERS>();
    const int row = wg * 64 + warp_in_group() * 16 + lane_id() / 4;
    while (tile.next()) {
      float total[BN / 2];
      UNROLL for (int i = 0; i < BN / 2; ++i) total[i] = 0.f;
      Left<A> left;
      left.load(in.wait(), row);
      for (int k = 0; k < steps; ++k) {
        const u32 slot = in.data + in.s * (A::bytes + B::bytes), right = slot + A::bytes, note = notes + in.s * PANELS * 4;
        left.split();
        const u32 rows0 = left.rows[0], rows1 = left.rows[1];
        mbar_wait(converted + 8 * in.s, in.parity);
        const int here = in.s;
        repeat<BN / COLUMNS>([&](auto pass) {
          Acc<COLUMNS> low, high;
          wg_fence();
          UNROLL for (int j = 0; j < 2; ++j) {
            wgmma_left(low.v, left.h[j], P::descriptor(right, pass * COLUMNS, j, 1), j);
            wgmma_left(low.v, left.l[j], P::descriptor(right, pass * COLUMNS, j, 0), 1);
          }
          UNROLL for (int j = 0; j < 2; ++j) wgmma_left(high.v, left.h[j], P::descriptor(right, pass * COLUMNS, j, 0), j);
          wg_commit();
          if (pass == BN / COLUMNS - 1) {                                   // meanwhile: the next rows
            in.next();
            if (k + 1 < steps) left.load(in.wait(), row);
          }
          wg_wait<0>();
          pin(low.v);
          pin(high.v);
          repeat<COLUMNS / 32>([&](auto panel) {
            const int column = pass * COLUMNS + panel * 32;
            const u32 exponent = shared_word(note + column / 8);
            float(&sum)[16] = *(float(*)[16])(total + column / 2);
            if (rows0 && exponent) {
              const float scale[2] = {product_scale(rows0, exponent), product_scale(rows1, exponent)};
              UNROLL for (int i = 0; i < 16; ++i) {
                const float s = scale[i >> 1 & 1];
                sum[i] = fmaf(low.v[panel * 16 + i], s * 0x1p-11f, fmaf(high.v[panel * 16 + i], s, sum[i]));
              }
            } else {
              by_hand<A, B, P>(sum, slot, right, row, column, exponent != 0, exponent ? 1.f / scale_of(exponent) : 1.f);
            }
          });
        });
        __syncwarp();
        in.release(here);
      }
//@begin slices
      // The blocks that share a tile leave their sums in memory; the last of them to finish adds all, in the order of the slices.
      constexpr int VECTORS = BN / 8, SLOT = BM * BN;
      const int tile_number = blockIdx.x / SLICES;
      float* const sums = workspace + COUNTERS + (i64)tile_number * SLICES * SLOT + threadIdx.x * 4;
      UNROLL for (int v = 0; v < VECTORS; ++v)
        st_plain(sums + slice * SLOT + v * (GROUPS * 512), V4{__float_as_uint(total[4 * v]), __float_as_uint(total[4 * v + 1]), __float_as_uint(total[4 * v + 2]), __float_as_uint(total[4 * v + 3])});
      __threadfence();
      named_sync(1, GROUPS * 128);
      if (threadIdx.x == 0) {
        u32* const counter = (u32*)workspace + tile_number;
        finished = atomicAdd(counter, 1u) + 1;
        if (finished == SLICES) *counter = 0;
      }
      named_sync(1, GROUPS * 128);
      if (finished != SLICES) continue;
      __threadfence();
      UNROLL for (int i = 0; i < BN / 2; ++i) total[i] = 0.f;
      for (int s = 0; s < SLICES; ++s)
        UNROLL for (int v = 0; v < VECTORS; ++v) {
          const V4 x = ld_plain(sums + s * SLOT + v * (GROUPS * 512));
          total[4 * v] += __uint_as_float(x.x); total[4 * v + 1] += __uint_as_float(x.y);
          total[4 * v + 2] += __uint_as_float(x.z); total[4 * v + 3] += __uint_as_float(x.w);
        }
//@end
      Acc<BN>::each_pair([&](int v, int half, int column) {
        const int y_row = tile.m + row + 8 * half, y_col = tile.n + column, batch = tile.batch;
        float y[2];
        EPILOGUE
        STORE
      });
    }
  }
}
