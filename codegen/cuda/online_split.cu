// online_split.cu: a dependent fold of few rows whose keys many warps share out. Keys and values stream from memory straight into
// the fragments of mma.m16n8k16, of which the scores take rows by d times d by keys, and the sums value positions by keys times keys
// by rows: the weights then lie in a lane as the second product wants them. Both sides of a product may permute what is summed
// alike, so lane (g, t) = (lane / 4, lane % 4) holds d = 8t .. 8t+7 of a chunk of 32 for key g, and value positions 8g .. 8g+7 of
// a band of 64 for keys 2t, 2t+1, 2t+8, 2t+9. Each warp keeps the maxima of its own keys; at the end the warps, then the PARTS blocks
// that share the keys of a tile of rows, join what they have, in the order of their ranks.
constexpr int GROUPS = ROWS / 8, SIDES = (GROUPS + 1) / 2, CHUNKS = (D + 31) / 32, BANDS = (N + 63) / 64, THREADS = WARPS * 32;
constexpr int KEY_TILES = (KEYS_ALL + KEYS - 1) / KEYS, PITCH = N + 1, ELEMENTS = ROWS * N;
constexpr bool WHOLE = KEYS_ALL % KEYS == 0;
constexpr float LOG2_E = 1.4426950408889634f;
DEV float quad_max(float v) { v = fmaxf(v, shuffle_xor(v, 1)); return fmaxf(v, shuffle_xor(v, 2)); }
DEV float quad_sum(float v) { v += shuffle_xor(v, 1); return v + shuffle_xor(v, 2); }
// What sums relative to the maximum `top` are multiplied by to be relative to `most`; 0 where nothing but -inf was seen.
DEV float rebased(float top, float most) { return eq_ex2((top - (most == -EQ_INF ? 0.f : most)) * LOG2_E); }

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)             //@apart
extern "C" __global__ void __cluster_dims__(PARTS, 1, 1) __launch_bounds__(THREADS, RESIDENT)  //@cluster
eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  float* const sums = (float*)raw;                                          // [warp][row][value], then of the block [row][value]
  float* const tops = sums + WARPS * ROWS * PITCH, * const totals = tops + WARPS * ROWS;
  float* const top_here = totals + WARPS * ROWS, * const total_here = top_here + ROWS;  // of the block
  float* const top_all = total_here + ROWS, * const total_all = top_all + ROWS, * const factors = total_all + ROWS;
  const int lane = lane_id(), g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
  const int rank = blockIdx.x % PARTS, tile = blockIdx.x / PARTS % ROW_TILES, batch = blockIdx.x / (PARTS * ROW_TILES);
  const int first_row = tile * ROWS, last_row = min(first_row + ROWS, M) - 1;
  const int begin = (int)((i64)KEY_TILES * rank / PARTS), end = (int)((i64)KEY_TILES * (rank + 1) / PARTS);
  const T* const keys_here = KEYS_AT;
  const T* const values_here = VALUES_AT;
  ROW_SPANS
  auto next = [&](int n) {  // this warp's next tile of keys from n on that is not masked out for all rows of the block
    for (; n < end; n += WARPS) {
      const int first = n * KEYS, last = min(first + KEYS, KEYS_ALL) - 1;
      KEY_SPANS
      if (!(SKIP)) break;
    }
    return n;
  };
  Raw<16> k[KEYS / 8][CHUNKS], v[KEYS / 16][4][BANDS];
  auto bring_keys = [&](int n) {
    UNROLL for (int i = 0; i < KEYS / 8; ++i) {
      const int key = n * KEYS + 8 * i + g;
      const T* const from = keys_here + (i64)(WHOLE ? key : min(key, KEYS_ALL - 1)) * KEY_STRIDE + 8 * t;
      UNROLL for (int c = 0; c < CHUNKS; ++c) {
        if (D % 32 == 0 || 32 * c + 8 * t < D) k[i][c] = stream16<NO_ALLOCATE>(from + 32 * c);
        else k[i][c] = zero_raw<16>();
      }
    }
  };
  auto bring_values = [&](int n) {
    UNROLL for (int u = 0; u < KEYS / 16; ++u)
      UNROLL for (int i = 0; i < 4; ++i) {
        const int key = n * KEYS + 16 * u + 2 * t + i % 2 + 8 * (i / 2);
        const T* const from = values_here + (i64)key * VALUE_STRIDE + 8 * g;
        UNROLL for (int b = 0; b < BANDS; ++b) {
          if ((WHOLE || key < KEYS_ALL) && (N % 64 == 0 || 64 * b + 8 * g < N)) v[u][i][b] = stream16<NO_ALLOCATE>(from + 64 * b);
          else v[u][i][b] = zero_raw<16>();
        }
      }
  };
  int n = next(begin + warp);
  if (n < end) { bring_keys(n); bring_values(n); }                          // on their way before all else

  Raw<16> q[GROUPS][CHUNKS];
  UNROLL for (int r = 0; r < GROUPS; ++r)
    UNROLL for (int c = 0; c < CHUNKS; ++c) {
      const int row = min(first_row + 8 * r + g, M - 1);
      float x[8] = {};
      if (D % 32 == 0 || 32 * c + 8 * t < D)
        UNROLL for (int e = 0; e < 8; ++e) { const int d = 32 * c + 8 * t + e; LEFT }
      q[r][c] = Pack<T>::from<8>(x);
    }
  float top[GROUPS], sum[GROUPS], rebase[GROUPS], o[4 * BANDS][GROUPS][4];
  UNROLL for (int r = 0; r < GROUPS; ++r) {
    top[r] = -EQ_INF; sum[r] = 0.f;
    UNROLL for (int j = 0; j < 4 * BANDS; ++j) UNROLL for (int i = 0; i < 4; ++i) o[j][r][i] = 0.f;
  }

  while (n < end) {
    const int first = n * KEYS, ahead = next(n + WARPS);
    float s[KEYS / 8][SIDES][4];
    UNROLL for (int i = 0; i < KEYS / 8; ++i)
      UNROLL for (int a = 0; a < SIDES; ++a) {
        UNROLL for (int e = 0; e < 4; ++e) s[i][a][e] = 0.f;
        UNROLL for (int c = 0; c < CHUNKS; ++c)
          UNROLL for (int j = 0; j < 2; ++j) {
            const u32 low = 2 * a + 1 < GROUPS ? q[2 * a + 1 < GROUPS ? 2 * a + 1 : 0][c].w[2 * j] : 0u;
            const u32 high = 2 * a + 1 < GROUPS ? q[2 * a + 1 < GROUPS ? 2 * a + 1 : 0][c].w[2 * j + 1] : 0u;
            MMA(s[i][a], q[2 * a][c].w[2 * j], low, q[2 * a][c].w[2 * j + 1], high, k[i][c].w[2 * j], k[i][c].w[2 * j + 1]);
          }
      }
    if (ahead < end) bring_keys(ahead);
    SCORES
    bool moved = false;
    UNROLL for (int r = 0; r < GROUPS; ++r) {
      float most = top[r];
      UNROLL for (int i = 0; i < KEYS / 8; ++i) UNROLL for (int e = 0; e < 2; ++e) most = fmaxf(most, s[i][r / 2][2 * (r % 2) + e]);
      most = quad_max(most);
      const float safe = most == -EQ_INF ? 0.f : most;  // a row that is masked out so far keeps weights of 0
      moved |= most != top[r];
      rebase[r] = eq_ex2((top[r] - safe) * LOG2_E);
      top[r] = most;
      float part = 0.f;
      UNROLL for (int i = 0; i < KEYS / 8; ++i)
        UNROLL for (int e = 0; e < 2; ++e) {
          float& w = s[i][r / 2][2 * (r % 2) + e];
          w = eq_ex2((w - safe) * LOG2_E);
          part += w;
        }
      sum[r] = sum[r] * rebase[r] + part;
    }
    if (__any_sync(~0u, moved))
      UNROLL for (int r = 0; r < GROUPS; ++r) {
        const float even = __shfl_sync(~0u, rebase[r], 8 * t), odd = __shfl_sync(~0u, rebase[r], 8 * t + 4);
        UNROLL for (int j = 0; j < 4 * BANDS; ++j) { o[j][r][0] *= even; o[j][r][1] *= odd; o[j][r][2] *= even; o[j][r][3] *= odd; }
      }
    UNROLL for (int u = 0; u < KEYS / 16; ++u) {
      u32 w[GROUPS][2];
      UNROLL for (int r = 0; r < GROUPS; ++r)
        UNROLL for (int h = 0; h < 2; ++h) w[r][h] = PACK(s[2 * u + h][r / 2][2 * (r % 2)], s[2 * u + h][r / 2][2 * (r % 2) + 1]);
      UNROLL for (int b = 0; b < BANDS; ++b)
        UNROLL for (int j = 0; j < 4; ++j) {  // value positions 64b + 8g + 2j and + 1 are rows g and g + 8 of the fragment
          const u32 a0 = __byte_perm(v[u][0][b].w[j], v[u][1][b].w[j], 0x5410), a1 = __byte_perm(v[u][0][b].w[j], v[u][1][b].w[j], 0x7632);
          const u32 a2 = __byte_perm(v[u][2][b].w[j], v[u][3][b].w[j], 0x5410), a3 = __byte_perm(v[u][2][b].w[j], v[u][3][b].w[j], 0x7632);
          UNROLL for (int r = 0; r < GROUPS; ++r) MMA(o[4 * b + j][r], a0, a1, a2, a3, w[r][0], w[r][1]);
        }
    }
    if (ahead < end) bring_values(ahead);
    n = ahead;
  }

  // The warps leave what they have; the block joins it.
  UNROLL for (int r = 0; r < GROUPS; ++r) {
    const float total = quad_sum(sum[r]);
    if (t == 0) { tops[warp * ROWS + 8 * r + g] = top[r]; totals[warp * ROWS + 8 * r + g] = total; }
    UNROLL for (int j = 0; j < 4 * BANDS; ++j)
      UNROLL for (int i = 0; i < 4; ++i) {
        const int row = 8 * r + 2 * t + i % 2, col = 64 * (j / 4) + 8 * g + 2 * (j % 4) + i / 2;
        if (N % 64 == 0 || col < N) sums[(warp * ROWS + row) * PITCH + col] = o[j][r][i];
      }
  }
  __syncthreads();
  // Joins `count` tops and totals of each row, and says by what sums are multiplied.
  auto join_rows = [&](int count, auto top_of, auto total_of, float* most_out, float* total_out) {
    for (int row = threadIdx.x; row < ROWS; row += THREADS) {
      float most = -EQ_INF, total = 0.f;
      for (int i = 0; i < count; ++i) most = fmaxf(most, top_of(i, row));
      for (int i = 0; i < count; ++i) {
        const float f = rebased(top_of(i, row), most);
        factors[i * ROWS + row] = f;
        total += total_of(i, row) * f;
      }
      most_out[row] = most; total_out[row] = total;
    }
    __syncthreads();
  };
  join_rows(WARPS, [&](int i, int row) { return tops[i * ROWS + row]; }, [&](int i, int row) { return totals[i * ROWS + row]; }, top_here, total_here);
  for (int i = threadIdx.x; i < ELEMENTS; i += THREADS) {
    const int row = i / N, col = i % N;
    float x = 0.f;
    UNROLL for (int w = 0; w < WARPS; ++w) x += sums[(w * ROWS + row) * PITCH + col] * factors[w * ROWS + row];
    sums[row * PITCH + col] = x;
  }
//@begin cluster
  cluster_sync();
  join_rows(PARTS, [&](int i, int row) { return peer_value(top_here + row, i); }, [&](int i, int row) { return peer_value(total_here + row, i); }, top_all, total_all);
  auto joined = [&](int row, int col) {
    float x = 0.f;
    UNROLL for (int p = 0; p < PARTS; ++p) x += peer_value(sums + row * PITCH + col, p) * factors[p * ROWS + row];
    return x;
  };
  const int from = rank * THREADS + threadIdx.x;
  constexpr int STEP = PARTS * THREADS;
//@end
//@begin memory
  // The blocks that share the keys leave their sums in memory; the last of them to finish joins all.
  constexpr int SLOT = ELEMENTS + 2 * ROWS;
  const int place = blockIdx.x / PARTS;
  float* const slots = workspace + COUNTERS + (i64)place * PARTS * SLOT;
  __syncthreads();
  for (int i = threadIdx.x; i < ELEMENTS; i += THREADS) slots[rank * SLOT + i] = sums[i / N * PITCH + i % N];
  for (int i = threadIdx.x; i < ROWS; i += THREADS) { slots[rank * SLOT + ELEMENTS + i] = top_here[i]; slots[rank * SLOT + ELEMENTS + ROWS + i] = total_here[i]; }
  if (!last_block((u32*)workspace + place, PARTS)) return;
  join_rows(PARTS, [&](int i, int row) { return slots[i * SLOT + ELEMENTS + row]; }, [&](int i, int row) { return slots[i * SLOT + ELEMENTS + ROWS + row]; }, top_all, total_all);
  auto joined = [&](int row, int col) {
    float x = 0.f;
    UNROLL for (int p = 0; p < PARTS; ++p) x += slots[p * SLOT + row * N + col] * factors[p * ROWS + row];
    return x;
  };
//@end
//@begin alone
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS; i += THREADS) { top_all[i] = top_here[i]; total_all[i] = total_here[i]; }
  __syncthreads();
  auto joined = [&](int row, int col) { return sums[row * PITCH + col]; };
//@end
//@begin apart
  const int from = threadIdx.x;
  constexpr int STEP = THREADS;
//@end
  ROW_OUTPUTS
  for (int i = from; i < ELEMENTS; i += STEP) {
    const int row_here = i / N, row = first_row + row_here, col = i % N;
    if (row >= M) break;
    const float most = top_all[row_here], nan = NAN_OF, total = total_all[row_here], x = joined(row_here, col);
    STORE
  }
  cluster_sync();                                                           //@cluster
}
