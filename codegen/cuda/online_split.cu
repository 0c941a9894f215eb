// online_split.cu: a dependent fold of few rows whose keys many warps share out. Keys and values stream from memory straight into
// the fragments of mma.m16n8k16, of which scores are keys by d times d by rows, and sums value positions by keys times keys by rows;
// between the two the weights are transposed, 8 by 8. What a product sums, and its own rows, may be permuted at will, so that a lane
// (g, t) = (lane / 4, lane % 4) loads 16 bytes at once: d = 8t .. 8t+7 of a chunk of 32 for a key (or, where keys are contiguous,
// some neighbouring keys for each d), and value positions 8g .. 8g+7 of a band of 64 for a key. Each warp keeps the maxima of its own
// keys; at the end the warps, then the PARTS blocks that share the keys of a tile of rows, join what they have, in the order of ranks.
constexpr int GROUPS = ROWS / 8, BANDS = (N + 63) / 64, THREADS = SHARERS * 32;
constexpr int TILES = KEYS / 16, STEPS = (D + 31) / 32 * 2;                 // of 16 keys, of 16 positions of d: in pairs //@along
constexpr int TILES = KEYS / 16, STEPS = (D + 15) / 16;                     //@across
constexpr int KEY_TILES = (KEYS_ALL + KEYS - 1) / KEYS, PITCH = N + 1, ELEMENTS = ROWS * N;
constexpr bool WHOLE = KEYS_ALL % KEYS == 0;
constexpr float LOG2_E = 1.4426950408889634f;
// Over the lanes that hold the same row: they differ in g.
DEV float column_max(float v) { v = fmaxf(v, shuffle_xor(v, 4)); v = fmaxf(v, shuffle_xor(v, 8)); return fmaxf(v, shuffle_xor(v, 16)); }
DEV float column_sum(float v) { v += shuffle_xor(v, 4); v += shuffle_xor(v, 8); return v + shuffle_xor(v, 16); }
// Two neighbours of row g of an 8 by 8 matrix of 16-bit numbers become two neighbours of column g.
DEV u32 transpose8(u32 v) { u32 r; asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v)); return r; }
template <int BYTES> DEV Raw<BYTES> stream(const T* p) {                      //@across
  if constexpr (BYTES == 16) return stream16<NO_ALLOCATE>(p);                      //@across
  else return ordered<BYTES / 2>(p);                                        //@across
}                                                                           //@across
// Which of its KEYS keys row i (and i + 8, `upper`) of 16 by 16 tile u of scores is.
DEV int key_of(int u, int i, int upper) { return 16 * u + i + 8 * upper; }  //@along
DEV int key_of(int u, int i, int upper) { return 2 * TILES * i + 2 * u + upper; }  //@across
// What sums relative to the maximum `top` are multiplied by to be relative to `most`; 0 where nothing but -inf was seen.
DEV float rebased(float top, float most) { return eq_ex2((top - (most == -EQ_INF ? 0.f : most)) * LOG2_E); }

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)             //@apart
extern "C" __global__ void __cluster_dims__(PARTS, 1, 1) __launch_bounds__(THREADS, RESIDENT)  //@cluster
eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  float* const sums = (float*)raw;                                          // [warp][row][value]
  float* const tops = sums + SHARERS * ROWS * PITCH, * const totals = tops + SHARERS * ROWS;  // [warp][row]
//@begin cluster
  constexpr int OWN = ((ELEMENTS + PARTS - 1) / PARTS + 1) / 2 * 2;         // results that one block of the cluster finishes
  float* const inbox = totals + SHARERS * ROWS, * const top_in = inbox + PARTS * OWN, * const total_in = top_in + PARTS * ROWS;
//@end
  const int lane = lane_id(), g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
  const int rank = blockIdx.x % PARTS, tile = blockIdx.x / PARTS % ROW_TILES, batch = blockIdx.x / (PARTS * ROW_TILES);
  const int first_row = tile * ROWS, last_row = min(first_row + ROWS, M) - 1;
  const int begin = (int)((i64)KEY_TILES * rank / PARTS), end = (int)((i64)KEY_TILES * (rank + 1) / PARTS);
//@begin cluster
  const int own_first = rank * OWN, own_end = min(ELEMENTS, own_first + OWN);
  const u32 all_here = smem_u32(total_in + PARTS * ROWS);
  if (threadIdx.x == 0) {
    mbar_init(all_here, 1);
    mbar_init_fence();
    mbar_expect(all_here, PARTS * (4 * max(own_end - own_first, 0) + 8 * ROWS));
  }
  cluster_arrive();
//@end
  const T* const keys_here = KEYS_AT;
  const T* const values_here = VALUES_AT;
  ROW_SPANS
  auto next = [&](int n) {  // this warp's next tile of keys from n on that is not masked out for all rows
    for (; n < end; n += SHARERS) {
      const int first = n * KEYS, last = min(first + KEYS, KEYS_ALL) - 1;
      KEY_SPANS
      if (!(SKIP)) break;
    }
    return n;
  };
  Raw<16> k[2 * TILES][STEPS / 2], v[TILES][4][BANDS];                      //@along
  Raw<4 * TILES> k[STEPS][4];                                               //@across
  Raw<16> v[TILES][4][BANDS];                                               //@across
  auto bring_keys = [&](int n) {
//@begin along
    UNROLL for (int i = 0; i < 2 * TILES; ++i) {
      const int key = n * KEYS + 8 * i + g;
      const T* const from = keys_here + (i64)(WHOLE ? key : min(key, KEYS_ALL - 1)) * KEY_STRIDE + 8 * t;
      UNROLL for (int c = 0; c < STEPS / 2; ++c) {
        if (D % 32 == 0 || 32 * c + 8 * t < D) k[i][c] = stream16<NO_ALLOCATE>(from + 32 * c);
        else k[i][c] = zero_raw<16>();
      }
    }
//@end
//@begin across
    const int key = n * KEYS + 2 * TILES * g;
    UNROLL for (int c = 0; c < STEPS; ++c)
      UNROLL for (int i = 0; i < 4; ++i) {
        const int d = 16 * c + 2 * t + i % 2 + 8 * (i / 2);
        if ((WHOLE || key < KEYS_ALL) && (D % 16 == 0 || d < D)) k[c][i] = stream<4 * TILES>(keys_here + (i64)d * KEY_STRIDE + key);
        else k[c][i] = zero_raw<4 * TILES>();
      }
//@end
  };
  auto bring_values = [&](int n) {
    UNROLL for (int u = 0; u < TILES; ++u)
      UNROLL for (int i = 0; i < 4; ++i) {
        const int key = n * KEYS + key_of(u, 2 * t + i % 2, i / 2);
        const T* const from = values_here + (i64)key * VALUE_STRIDE + 8 * g;
        UNROLL for (int b = 0; b < BANDS; ++b) {
          if ((WHOLE || key < KEYS_ALL) && (N % 64 == 0 || 64 * b + 8 * g < N)) v[u][i][b] = stream16<NO_ALLOCATE>(from + 64 * b);
          else v[u][i][b] = zero_raw<16>();
        }
      }
  };
  u32 q[GROUPS][STEPS][2];
  UNROLL for (int r = 0; r < GROUPS; ++r) {
    const int row = min(first_row + 8 * r + g, M - 1);
    LEFT
  }
  int n = next(begin + warp);
  if (n < end) { bring_keys(n); bring_values(n); }
  float top[GROUPS][2], sum[GROUPS][2], rebase[GROUPS][2], o[4 * BANDS][GROUPS][4];
  UNROLL for (int r = 0; r < GROUPS; ++r) {
    UNROLL for (int e = 0; e < 2; ++e) { top[r][e] = -EQ_INF; sum[r][e] = 0.f; }
    UNROLL for (int j = 0; j < 4 * BANDS; ++j) UNROLL for (int i = 0; i < 4; ++i) o[j][r][i] = 0.f;
  }

  while (n < end) {
    const int first = n * KEYS, ahead = next(n + SHARERS);
    float s[TILES][GROUPS][4];                                              // row 2t + i % 2 of group r, key key_of(u, g, i / 2)
    UNROLL for (int u = 0; u < TILES; ++u) {
      UNROLL for (int r = 0; r < GROUPS; ++r) UNROLL for (int i = 0; i < 4; ++i) s[u][r][i] = 0.f;
      UNROLL for (int c = 0; c < STEPS; ++c) {
//@begin along
        const u32 a0 = k[2 * u][c / 2].w[c % 2 * 2], a1 = k[2 * u + 1][c / 2].w[c % 2 * 2];
        const u32 a2 = k[2 * u][c / 2].w[c % 2 * 2 + 1], a3 = k[2 * u + 1][c / 2].w[c % 2 * 2 + 1];
//@end
//@begin across
        const u32 a0 = __byte_perm(k[c][0].w[u], k[c][1].w[u], 0x5410), a1 = __byte_perm(k[c][0].w[u], k[c][1].w[u], 0x7632);
        const u32 a2 = __byte_perm(k[c][2].w[u], k[c][3].w[u], 0x5410), a3 = __byte_perm(k[c][2].w[u], k[c][3].w[u], 0x7632);
//@end
        UNROLL for (int r = 0; r < GROUPS; ++r) MMA(s[u][r], a0, a1, a2, a3, q[r][c][0], q[r][c][1]);
      }
    }
    if (ahead < end) bring_keys(ahead);
    SCORES
    bool moved = false;
    UNROLL for (int r = 0; r < GROUPS; ++r)
      UNROLL for (int e = 0; e < 2; ++e) {
        float most = top[r][e];
        UNROLL for (int u = 0; u < TILES; ++u) most = fmaxf(most, fmaxf(s[u][r][e], s[u][r][2 + e]));
        most = column_max(most);
        const float safe = most == -EQ_INF ? 0.f : most;  // a row that is masked out so far keeps weights of 0
        moved |= most != top[r][e];
        rebase[r][e] = eq_ex2((top[r][e] - safe) * LOG2_E);
        top[r][e] = most;
        float part = 0.f;
        UNROLL for (int u = 0; u < TILES; ++u)
          UNROLL for (int h = 0; h < 2; ++h) {
            float& w = s[u][r][2 * h + e];
            w = eq_ex2((w - safe) * LOG2_E);
            part += w;
          }
        sum[r][e] = sum[r][e] * rebase[r][e] + part;
      }
    if (__any_sync(~0u, moved))
      UNROLL for (int r = 0; r < GROUPS; ++r)
        UNROLL for (int j = 0; j < 4 * BANDS; ++j) UNROLL for (int i = 0; i < 4; ++i) o[j][r][i] *= rebase[r][i % 2];
    UNROLL for (int u = 0; u < TILES; ++u) {
      u32 w[GROUPS][2];
      UNROLL for (int r = 0; r < GROUPS; ++r)
        UNROLL for (int h = 0; h < 2; ++h) w[r][h] = transpose8(PACK(s[u][r][2 * h], s[u][r][2 * h + 1]));
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

  // The warps bring what they have to the greatest maximum among them and leave it; the block adds up.
  const int here = warp * ROWS;
  UNROLL for (int r = 0; r < GROUPS; ++r)
    UNROLL for (int e = 0; e < 2; ++e) {
      sum[r][e] = column_sum(sum[r][e]);
      if (SHARERS > 1 && g == 0) tops[here + 8 * r + 2 * t + e] = top[r][e];
    }
  if (SHARERS > 1) __syncthreads();
  UNROLL for (int r = 0; r < GROUPS; ++r)
    UNROLL for (int e = 0; e < 2; ++e) {
      const int row = 8 * r + 2 * t + e;
      float most = top[r][e];
      UNROLL for (int w = 0; w < SHARERS; ++w) if (SHARERS > 1) most = fmaxf(most, tops[w * ROWS + row]);
      const float f = rebased(top[r][e], most);
      UNROLL for (int j = 0; j < 4 * BANDS; ++j)
        UNROLL for (int h = 0; h < 2; ++h) {
          const int col = 64 * (j / 4) + 8 * g + 2 * (j % 4) + h;
          if (N % 64 == 0 || col < N) sums[(here + row) * PITCH + col] = o[j][r][2 * h + e] * f;
        }
      top[r][e] = most;
      sum[r][e] *= f;
    }
  if (SHARERS > 1) __syncthreads();                                         // the maxima of all have been read
  UNROLL for (int r = 0; r < GROUPS; ++r)
    UNROLL for (int e = 0; e < 2; ++e)
      if (g == 0) { tops[here + 8 * r + 2 * t + e] = top[r][e]; totals[here + 8 * r + 2 * t + e] = sum[r][e]; }
  __syncthreads();
  JOIN
}
