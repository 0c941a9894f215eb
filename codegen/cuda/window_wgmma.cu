// window_wgmma.cu: convolutions on the matrix units. A tile of input positions comes to the chip once and serves every tap: it lies
// as 16-byte vectors of 8 channels, positions beside each other, so that a tap is the same matrix some vectors further on.
// PLANES 16-bit terms of each value; POINTS vectors for each 8 channels of a term.
#define ONE_BY_ONE _Pragma("unroll 1")  // where addresses made anew take less than the registers that keep them
#define UNROLL_BY_TWO _Pragma("unroll 2")
constexpr u32 TERM_BYTES = (KC / 8) * POINTS * 16, X_BYTES = (PLANES * TERM_BYTES + 127) / 128 * 128;
constexpr u32 W_TERM = BM * KC * 2, W_BYTES = PLANES * W_TERM;
using Weights = Ring<STAGES, W_BYTES, 4 * GROUPS, 1>;

// Vectors of 8 values: rounded to 16-bit terms, in shared memory and in the workspace.
DEV void shared_put16(u32 at, const Raw<16>& r) { asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" :: "r"(at), "r"(r.w[0]), "r"(r.w[1]), "r"(r.w[2]), "r"(r.w[3]) : "memory"); }
template <int N> DEV Raw<N> shared_get(u32 at) {
  Raw<N> r;
  if constexpr (N == 16) r = shared16(at);
  else if constexpr (N == 8) asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(r.w[0]), "=r"(r.w[1]) : "r"(at) : "memory");
  else asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r.w[0]) : "r"(at) : "memory");
  return r;
}
template <int N> DEV void shared_floats(u32 at, float (&v)[N]) {
  constexpr int EACH = N < 4 ? N : 4;
  UNROLL for (int i = 0; i < N; i += EACH) {
    const Raw<EACH * 4> r = shared_get<EACH * 4>(at + i * 4);
    UNROLL for (int e = 0; e < EACH; ++e) v[i + e] = __uint_as_float(r.w[e]);
  }
}
template <class S> DEV float shared_one(u32 at) {
  Raw<(int)sizeof(S)> r;
  if constexpr (sizeof(S) == 4) asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r.w[0]) : "r"(at) : "memory");
  else { u16 h; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(h) : "r"(at) : "memory"); r.w[0] = h; }
  return Element<S>::get(r, 0);
}
DEV void shared_put4(u32 at, float a) { asm volatile("st.shared.f32 [%0], %1;" :: "r"(at), "f"(a) : "memory"); }
DEV void shared_put8(u32 at, float a, float b) { asm volatile("st.shared.v2.f32 [%0], {%1,%2};" :: "r"(at), "f"(a), "f"(b) : "memory"); }
// The column of the accumulator that holds a position of the tile: lines of LINE positions are LINE_PITCH columns apart.
DEV constexpr int column_of(int position) { return position / LINE * LINE_PITCH + position % LINE; }
// Copies N bytes to shared memory while other work goes on, or zeros where nothing is there; this thread's copies so far are waited for.
template <int N> DEV void async_copy(u32 to, const void* from, bool there) {
  if constexpr (N == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" :: "r"(to), "l"(from), "n"(N), "r"(there ? N : 0) : "memory");
}
DEV void async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
DEV u32 count_seen(const u32* p) { u32 v; asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }
DEV void fence_async_all() { asm volatile("fence.proxy.async;" ::: "memory"); }
// An operand without swizzle, contiguous along k in vectors of 8: rows 16 bytes apart, the next 8 of k `leading` bytes further on.
DEV u64 desc_vectors(u32 at, u32 leading) { return (u64)((at & 0x3ffff) >> 4) | ((u64)(leading >> 4) << 16) | (8ull << 32); }
// The 16-bit terms of 8 values: themselves, or (PLANES > 1) what the terms before leave. A value that is not finite is its own
// first term and the others are 0; one beyond the largest 16-bit number is cut there, and the next term has the rest.
DEV float term_of(float& rest) {
  if constexpr (PLANES == 1) return rest;
  else {
    u32 bits = pack_bf16(rest, 0.f);
    float term = bf16_lo(bits);
    if (fabsf(term) == EQ_INF && fabsf(rest) != EQ_INF) term = __uint_as_float(__float_as_uint(rest) & 0xffff0000u);
    rest = fabsf(term) < EQ_INF ? rest - term : 0.f;
    return term;
  }
}
template <class PUT> DEV void each_term(float (&v)[8], PUT put) {
  repeat<PLANES>([&](auto p) {
    float y[8];
    UNROLL for (int i = 0; i < 8; ++i) y[i] = term_of(v[i]);
    put((int)p, Pack<T>::template from<8>(y));
  });
}

// The tile of the output a block works on: rows of channels, positions along rows and columns, and the outer positions.
struct Tile {
  int t, m, POSITION_FIELDS;
  DEV Tile() : t((int)blockIdx.x - (int)gridDim.x) {}
  DEV bool next() {
    t += gridDim.x;
    if (t >= TILES) return false;
    int rest = t;
    SPLIT_TILE
    return true;
  }
};

// The input's ring: CONVERTERS threads fill a slot, every consumer warp frees it.
struct Inputs {
  u32 data, bars, parity = 0;
  int s = 0, last = -1;
  DEV Inputs(u32 at, u32 barriers) : data(at), bars(barriers) {}
  DEV u32 full(int i) const { return bars + 8 * i; }
  DEV u32 empty(int i) const { return full(SLOTS + i); }
  DEV void init() { for (int i = 0; i < SLOTS; ++i) { mbar_init(full(i), CONVERTERS); mbar_init(empty(i), 4 * GROUPS); } }
  DEV void next() { if (++s == SLOTS) { s = 0; parity ^= 1; } }
  DEV u32 acquire() { mbar_wait(empty(s), parity ^ 1); return data + s * X_BYTES; }
  DEV void filled() { fence_async_shared(); mbar_arrive(full(s)); next(); }
  DEV u32 wait() { mbar_wait(full(s), parity); return data + s * X_BYTES; }
  DEV void release() { if (last >= 0 && lane_id() == 0) mbar_arrive(empty(last)); last = -1; }  // once its products are made
  DEV void advance() { last = s; next(); }
};

// Every block takes parts of the weights until none is left and writes them to the workspace as the tiles that the ring takes:
// a part is always taken by a block that runs, so that nobody waits for one that does not.
DEV void pack_weights(WEIGHT_PARAMETERS, u8* workspace, u32* mine) {
  u32* const counters = (u32*)workspace;
  for (;;) {
    if (threadIdx.x == 0) *mine = atomicAdd(counters, 1u);
    __syncthreads();
    const u32 part = *mine;
    __syncthreads();
    if (part >= PARTS) return;
    for (int unit = part * UNITS + threadIdx.x; unit < min((int)(part + 1) * UNITS, WEIGHT_UNITS); unit += THREADS) {
      SPLIT_UNIT
      float v[8];
      UNROLL for (int i = 0; i < 8; ++i) {
        const int channel = from + i;
        v[i] = 0.f;
        WEIGHT
      }
      each_term(v, [&](int p, const Raw<16>& r) { store_raw<16, PLAIN>(workspace + HEAD + (i64)tile * W_BYTES + p * W_TERM + (vector * BM + row) * 16, r); });
    }
    __threadfence();
    fence_async_all();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(counters + 1, 1u);
  }
}
// Waits until all parts are packed; the last block to have seen it makes the counters 0 again.
DEV void await_weights(u8* workspace) {
  u32* const counters = (u32*)workspace;
  const u64 start = globaltimer();
  while (count_seen(counters + 1) < PARTS)
    if (globaltimer() - start > SPIN_NS) { fault(); break; }
  fence_async_all();
  if (atomicAdd(counters + 2, 1u) == gridDim.x - 1) counters[0] = counters[1] = counters[2] = 0;
}

KERNEL(THREADS, 1, 1) eqsat_kernel(PARAMETERS, u8* __restrict__ workspace) {
  extern __shared__ u8 raw[];
  const u32 smem = (smem_u32(raw) + 127) & ~127u;
  Inputs x(smem + 128, smem + 128 + SLOTS * X_BYTES + STAGES * (W_BYTES + 16));
  Weights w(smem + 128 + SLOTS * X_BYTES);
  if (threadIdx.x == 0) { x.init(); w.init(); }
  for (u32 at = threadIdx.x * 16; at < SLOTS * X_BYTES; at += THREADS * 16) shared_put16(x.data + at, zero_raw<16>());
  pack_weights(WEIGHT_ARGUMENTS, workspace, (u32*)(raw + (smem - smem_u32(raw))));
  __syncthreads();
  Tile tile;
  const int wg = warpgroup();
  const u32 staging = x.bars + 16 * SLOTS, raw_tile = staging + GROUPS * 64 * PITCH;

  if (wg == GROUPS) {
    reg_dec<PRODUCER_REGISTERS>();
    if (warp_in_group() == 0) {                                              // one thread brings the weights
      if (lane_id() == 0) {
        await_weights(workspace);
        while (tile.next())
          for (int k = 0; k < X_STEPS * TAPS; ++k, w.next()) {
            const u32 slot = w.acquire();
            bulk_load(slot, workspace + HEAD + ((i64)WEIGHT_TILE * (X_STEPS * TAPS) + k) * W_BYTES, W_BYTES, w.full(w.s));
          }
      }
    } else {                                                                 // three warps bring the input
      const int me = threadIdx.x - GROUPS * 128 - 32;
      while (tile.next()) {
        for (int step = 0; step < X_STEPS; ++step) {
          SPLIT_STEP
          //@begin blocks
          u32 slot = 0;
          for (int group = 0; group < LOADS; group += FLIGHT * CONVERTERS) {  // a thread brings 8 channels of some neighbours itself
            ONE_BY_ONE for (int r = 0; r < FLIGHT; ++r) {
              const int u = group + r * CONVERTERS + me;
              if (u >= LOADS) break;
              SPLIT_BLOCK
              const u32 to = raw_tile + (r * 8 * CONVERTERS + me) * PIECE;
              UNROLL for (int i = 0; i < 8; ++i) async_copy<PIECE>(to + i * CONVERTERS * PIECE, WHOLE_CHANNEL within ? source + at + i * (i64)CHANNEL_STEP : origin, WHOLE_CHANNEL within);
            }
            if (group == 0) slot = x.acquire();
            async_wait();
            ONE_BY_ONE for (int r = 0; r < FLIGHT; ++r) {
              const int u = group + r * CONVERTERS + me;
              if (u >= LOADS) break;
              SPLIT_BLOCK
              Raw<PIECE> in[8];
              UNROLL for (int i = 0; i < 8; ++i) in[i] = shared_get<PIECE>(raw_tile + ((r * 8 + i) * CONVERTERS + me) * PIECE);
              UNROLL for (int e = 0; e < WIDTH; ++e) {
                const int column = first_column + e;
                if (!(COLUMN_WANTED)) continue;
                float v[8];
                UNROLL for (int i = 0; i < 8; ++i) v[i] = Element<S>::get(in[i], e);
                COMPUTE
                each_term(v, [&](int p, const Raw<16>& r) {
                  const u32 to = slot + p * TERM_BYTES + vector * POINTS * 16;
                  PUT_VECTOR
                });
              }
            }
          }
          //@end
          //@begin places
          for (int q = me; q < PIECES; q += CONVERTERS) {                    //@async
            SPLIT_PIECE                                                      //@async
            async_copy<PIECE>(raw_tile + q * PIECE, within ? source + at : origin, within);  //@async
          }                                                                  //@async
          const u32 slot = x.acquire();
          async_wait();                                                      //@async
          named_sync(2, CONVERTERS);                                         //@async
          UNROLL_BY_TWO for (int u = me; u < VECTORS; u += CONVERTERS) {
            SPLIT_VECTOR
            float v[8];
            GATHER
            COMPUTE
            each_term(v, [&](int p, const Raw<16>& r) {
              const u32 to = slot + p * TERM_BYTES + vector * POINTS * 16;
              PUT_VECTOR
            });
          }
          named_sync(2, CONVERTERS);                                         //@async
          //@end
          x.filled();
        }
      }
    }
  } else {
    reg_inc<CONSUMER_REGISTERS>();
    const int first_row = wg * GROUP_ROWS, first_point = wg * GROUP_POINTS;
    while (tile.next()) {
      Acc<N> acc;
      float total[N / 2];                                                    //@terms
      UNROLL for (int i = 0; i < N / 2; ++i) total[i] = 0.f;                 //@terms
      for (int step = 0; step < X_STEPS; ++step) {
        const u32 input = x.wait() + first_point * 16;
        TAP_LOOP for (int head = 0; head < TAPS; head += CHAIN) {
          TAP_LOOP for (int tap = head; tap < min(head + CHAIN, TAPS); ++tap) {
            const u32 weights = w.wait() + first_row * 16, shifted = input + shift_of(tap) * 16;
            wg_fence();
            PRODUCTS
            wg_commit();
            w.advance();
            if (tap == 0) x.release();                                       //@values
          }
          // The matrix units cut off what does not fit when they add: long sums are made of short ones, by rounded additions.
          w.drain();                                                         //@terms
          pin(acc.v);                                                        //@terms
          UNROLL for (int i = 0; i < N / 2; ++i) total[i] += acc.v[i];       //@terms
        }
        x.advance();
        x.release();                                                         //@terms
      }
      w.drain();                                                             //@values
      x.release();                                                           //@values
      pin(acc.v);                                                            //@values
      // The sums of a warp's 16 rows go through shared memory, CHUNK positions at a time, so that neighbours leave together.
      const u32 mine = staging + (wg * 4 + warp_in_group()) * 16 * PITCH;
      repeat<PASSES>([&](auto pass) {
        const int begin = CHUNK * pass, end = min(begin + CHUNK, PLACES);
        __syncwarp();
        UNROLL for (int j = column_of(begin) / 8; j <= column_of(end - 1) / 8; ++j)
          UNROLL for (int half = 0; half < 2; ++half) {
            const int i = 4 * j + 2 * half, column = 8 * j + 2 * (lane_id() % 4);
            const u32 to = mine + (lane_id() / 4 + 8 * half) * PITCH;
            TO_STAGING
          }
        __syncwarp();
        for (int u = lane_id(); u < 16 * (CHUNK / STORED); u += 32) {
          SPLIT_STORE
          const int line = index / LINE, y_row = tile.m + first_row + warp_in_group() * 16 + row;
          const int at_row = tile.row + GROUP_LINES * wg + line, at_col = tile.col + index % LINE;
          if (index < end && INSIDE) {
            float sum[STORED], y[STORED];
            shared_floats(mine + row * PITCH + (index - begin) * 4, sum);
            FINISH
          }
        }
      });
    }
  }
}
