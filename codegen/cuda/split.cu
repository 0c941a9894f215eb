// split.cu: an f32 contraction by f16 products (split.py says why). The exponents of the scales go with each slot from the
// converter to the consumers; what waits in `low` and how `total` is made of `high` depends on them alone.
using In = Ring<STAGES, A::bytes + B::bytes, GROUPS * 4, 1>;
using P = Planes<B, A::k_major>;
constexpr int TILE_ROWS = (M + BM - 1) / BM, TILE_COLUMNS = (N + BN - 1) / BN, TILES = BATCH * TILE_ROWS * TILE_COLUMNS;
// A block makes every GRID-th tile, or one slice of one. RASTER rows of tiles run together, so that they share L2.
DEV int tile_of(int i) { return (int)(this_block() / SLICES) + i * GRID; }
struct Tile {
  int m, n, batch;
  DEV Tile(int t) : batch(t / (TILE_ROWS * TILE_COLUMNS)) {
    const int at = t % (TILE_ROWS * TILE_COLUMNS), first = at / (RASTER * TILE_COLUMNS) * RASTER, height = min(TILE_ROWS - first, RASTER), r = at - first * TILE_COLUMNS;
    m = (first + r % height) * BM;
    n = r / height * BN;
  }
};
constexpr int PANELS = BN / 32, WORDS = (PANELS + 3) / 4, PASSES = BN / COLUMNS;

KERNEL(THREADS, 1, 1) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 1023) & ~1023u;
  In in(smem);
  const u32 converted = in.empty(STAGES), notes = converted + 8 * STAGES;   // a barrier and the panels' exponents (bytes) for each slot
  if (this_thread() == 0) {
    for (int i = 0; i < STAGES; ++i) mbar_init(converted + 8 * i, min(PANELS, 4));
    in.init();
  }
  __syncthreads();
//@begin slices
  __shared__ u32 finished;
  const int first_step = this_block() % SLICES * SHARE, steps = min(STEPS - first_step, SHARE);
//@end
  constexpr int first_step = 0, steps = STEPS;                              //@whole
  const int wg = __shfl_sync(~0u, this_thread() / 128, 0);                  // uniform

  if (wg == GROUPS + 1) {                                                   // producer: one thread
    reg_dec<PRODUCER_REGISTERS>();
    if (this_thread() == (GROUPS + 1) * 128) {
      tma_prefetch(&map_a);
      tma_prefetch(&map_b);
      for (int i = 0; tile_of(i) < TILES; ++i) {
        const Tile tile(tile_of(i));
        for (int k = 0; k < steps; ++k, in.next()) {
          const u32 slot = in.acquire(), full = in.full(in.s);
          A::load(slot, &map_a, full, tile.m, (first_step + k) * 32, tile.batch);
          B::load(slot + A::bytes, &map_b, full, tile.n, (first_step + k) * 32, tile.batch);
        }
      }
    }
  } else if (wg == GROUPS) {                                                // converter: a warp for each panel
    reg_dec<CONVERTER_REGISTERS>();                                         //@fewer
    reg_inc<CONVERTER_REGISTERS>();                                         //@more
    for (int i = 0; warp_in_group() < PANELS && tile_of(i) < TILES; ++i) {
      u32 exponents[WORDS];
      UNROLL for (int w = 0; w < WORDS; ++w) exponents[w] = UNKNOWN;
      for (int k = 0; k < steps; ++k, in.next()) {
        const u32 slot = in.wait();
        UNROLL for (int w = 0; w < WORDS; ++w) {
          const int panel = 4 * w + warp_in_group();
          if (4 * w + 4 <= PANELS || PANELS < 4 || panel < PANELS) {
            const u32 found = P::convert(slot + A::bytes + panel * 4096, exponents[w]);
            if (found) exponents[w] = found;
            if (lane_id() == 0) put_byte(notes + in.s * WORDS * 4 + panel, found);
          }
        }
        fence_async_shared();                                               // the matrix units read what was written here
        __syncwarp();
        if (lane_id() == 0) mbar_arrive(converted + 8 * in.s);
      }
    }
  } else {                                                                  // consumers: 64 rows each
    reg_inc<CONSUMER_REGISTERS>();
    const u32 counts = notes + STAGES * WORDS * 4;                          // of tiles, a word for each thread: the registers are full
    for (put_word(counts + this_thread() * 4, 0); tile_of(word_at(counts + this_thread() * 4)) < TILES;) {
      // Sums of h·h' go to `total` after each step, by rounded additions; those of h·l' + l·h' wait in `low`, under the scales that
      // they were made with, until these change.
      float total[BN / 2];
      UNROLL for (int i = 0; i < BN / 2; ++i) total[i] = 0.f;
      Acc<COLUMNS> low[PASSES];
      UNROLL for (int p = 0; p < PASSES; ++p)
        UNROLL for (int i = 0; i < COLUMNS / 2; ++i) low[p].v[i] = 0.f;
      u32 panels[WORDS];
      UNROLL for (int w = 0; w < WORDS; ++w) panels[w] = 0;
      u32 rows = UNKNOWN | UNKNOWN << 8;                                    // the exponents of this lane's two rows
      Fragments left;                                                       //@plain
      Fragments left, next;                                                 //@ahead
      bool ready = false;  // whether `next` is what the units want         //@ahead
      auto fold = [&]() {
        repeat<PANELS>([&](auto panel) {
          const u32 exponent = panels[panel / 4] >> panel % 4 * 8 & 255;
          if (exponent) {
            const float scale[2] = {product_scale(rows & 255, exponent) * 0x1p-11f, product_scale(rows >> 8, exponent) * 0x1p-11f};
            UNROLL for (int i = 0; i < 16; ++i) {
              float& part = low[panel * 32 / COLUMNS].v[panel * 32 % COLUMNS / 2 + i];
              total[panel * 16 + i] = fmaf(part, scale[i >> 1 & 1], total[panel * 16 + i]);
              part = 0.f;
            }
          }
        });
      };
      for (int k = 0; k < steps; ++k) {
        const u32 slot = in.wait(), right = slot + A::bytes, note = notes + in.s * WORDS * 4;
        const int here = in.s;
        // Whether `left` is what the matrix units want.
        bool served = Left<A>::split(slot, rows, left) && k;                //@plain
        bool served = ready;                                                //@ahead
        ready = false;                                                      //@ahead
        mbar_wait(converted + 8 * here, in.parity);
        u32 now[WORDS];
        bool same = true, whole = true;                                     // whole: the matrix units serve all panels
        UNROLL for (int w = 0; w < WORDS; ++w) {
          now[w] = word_at(note + 4 * w) & (4 * w + 4 <= PANELS ? ~0u : (1u << PANELS % 4 * 8) - 1);
          same = same && now[w] == panels[w];
          UNROLL for (int p = 4 * w; p < min(4 * w + 4, PANELS); ++p) whole = whole && (now[w] >> p % 4 * 8 & 255);
        }
        if (!__all_sync(~0u, same && served)) {
          const u32 found = served ? rows : Left<A>::choose(slot, rows);
          const bool kept = __all_sync(~0u, found == rows) && k;            // there are zeros among the rows, no more
          served = found;
          if (!kept || !same) fold();
          UNROLL for (int w = 0; w < WORDS; ++w) panels[w] = now[w];
          if (served && !kept) {
            rows = found;
            Left<A>::split(slot, rows, left);
          }
          if (!served) left.clear();
        }
        const u64 planes = P::descriptor(right);
        in.next();
        auto look_ahead = [&]() { if (k + 1 < steps) ready = Left<A>::split(in.wait(), rows, next); }; //@ahead
        if (whole) {
          repeat<PASSES>([&](auto pass) {
            const u64 at = planes + pass * (COLUMNS / 32 * P::column);
            Acc<COLUMNS> high;
            wg_fence();
            UNROLL for (int j = 0; j < 2; ++j) wgmma_left(high.v, left.h[j], at + j * P::step, j);
            wg_commit();
            UNROLL for (int j = 0; j < 2; ++j) {
              wgmma_left(low[pass].v, left.h[j], at + P::low + j * P::step, 1);
              wgmma_left(low[pass].v, left.l[j], at + j * P::step, 1);
            }
            wg_commit();
            wg_wait<1>();
            pin(high.v);
            repeat<COLUMNS / 32>([&](auto p) {
              const int panel = pass * (COLUMNS / 32) + p;
              const u32 exponent = panels[panel / 4] >> panel % 4 * 8 & 255;
              const float scale[2] = {product_scale(rows & 255, exponent), product_scale(rows >> 8, exponent)};
              UNROLL for (int i = 0; i < 16; ++i) total[panel * 16 + i] = fmaf(high.v[p * 16 + i], scale[i >> 1 & 1], total[panel * 16 + i]);
            });
          });
          look_ahead();  // while the small products are made               //@ahead
          wg_wait<0>();
          UNROLL for (int p = 0; p < PASSES; ++p) pin(low[p].v);
        }
//@begin ahead
        else {
          look_ahead();
        }
//@end
        if (!whole || !served)
          repeat<PANELS>([&](auto panel) {
            const u32 exponent = panels[panel / 4] >> panel % 4 * 8 & 255;
            by_hand<A, B, P>(*(float(*)[16])(total + panel * 16), slot, right, panel * 32, exponent != 0, unscale_of(exponent));
          });
        __syncwarp();
        if (this_thread() % 32 == 0) mbar_arrive(in.empty(here));
        left = next;                                                        //@ahead
      }
      fold();
//@begin slices
      // The blocks that share a tile leave their sums in memory; the last of them to finish adds all, in the order of the slices.
      constexpr int VECTORS = BN / 8, SLOT = BM * BN;
      const u32 tile_number = this_block() / SLICES, slice = this_block() % SLICES;
      float* const sums = workspace + COUNTERS + (i64)tile_number * SLICES * SLOT + this_thread() * 4;
      UNROLL for (int v = 0; v < VECTORS; ++v)
        st_plain(sums + slice * SLOT + v * (GROUPS * 512), V4{__float_as_uint(total[4 * v]), __float_as_uint(total[4 * v + 1]), __float_as_uint(total[4 * v + 2]), __float_as_uint(total[4 * v + 3])});
      __threadfence();
      named_sync(1, GROUPS * 128);
      if (this_thread() == 0) {
        u32* const counter = (u32*)workspace + tile_number;
        finished = atomicAdd(counter, 1u) + 1;
        if (finished == SLICES) *counter = 0;
      }
      named_sync(1, GROUPS * 128);
      if (finished != SLICES) return;
      __threadfence();
      UNROLL for (int i = 0; i < BN / 2; ++i) total[i] = 0.f;
      for (int s = 0; s < SLICES; ++s)
        UNROLL for (int v = 0; v < VECTORS; ++v) {
          const V4 x = ld_plain(sums + s * SLOT + v * (GROUPS * 512));
          total[4 * v] += __uint_as_float(x.x); total[4 * v + 1] += __uint_as_float(x.y);
          total[4 * v + 2] += __uint_as_float(x.z); total[4 * v + 3] += __uint_as_float(x.w);
        }
//@end
      const u32 t = this_thread(), i = word_at(counts + t * 4);
      put_word(counts + t * 4, i + 1);
      const Tile tile(tile_of(i));
      UNROLL for (int j = 0; j < BN / 8; ++j)
        UNROLL for (int half = 0; half < 2; ++half) {
          const int v = 4 * j + 2 * half, y_row = tile.m + row_of(t) + 8 * half, y_col = tile.n + 8 * j + 2 * (t & 3), batch = tile.batch;
          float y[2];
          EPILOGUE
          STORE
        }
    }
  }
}
