// online_simt.cu: a dependent fold without tensor cores. A block takes ROWS rows of one batch and passes over the keys once; each
// warp owns RW of the rows, a lane KW keys and NW value positions of them, and all lanes hold the rows' maxima and sums.
extern "C" __global__ void __launch_bounds__(THREADS) eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  T* const weights = (T*)raw + threadIdx.x / 32 * (RW * KEYS);                //@values
  T* const stage = (T*)raw + STAGE;                                           //@staged
  const int lane = lane_id(), mine = threadIdx.x / 32 * RW;
  const int chunk = blockIdx.x % CHUNKS, tile = blockIdx.x / CHUNKS % TILES, batch = blockIdx.x / (CHUNKS * TILES);
  const int first_row = tile * ROWS, last_row = min(first_row + ROWS, M) - 1;
  T top[RW], rebase[RW], sum[SUMS][RW];
  T acc[COUNT][RW][NW];                                                       //@values
  UNROLL for (int i = 0; i < RW; ++i) {
    top[i] = -EQ_INF;
    UNROLL for (int n = 0; n < SUMS; ++n) sum[n][i] = 0;
    UNROLL for (int n = 0; n < COUNT; ++n) UNROLL for (int j = 0; j < NW; ++j) acc[n][i][j] = 0;  //@values
  }
  ROW_SPANS
  for (int first = 0; first < KEYS_ALL; first += KEYS) {
    const int last = min(first + KEYS, KEYS_ALL) - 1;
    KEY_SPANS
    SKIP

    // scores of this lane: KW keys for each row of the warp
    T score[RW][KW];
    UNROLL for (int i = 0; i < RW; ++i) UNROLL for (int j = 0; j < KW; ++j) score[i][j] = 0;
//@begin contraction
    for (int from = 0; from < D; from += DEPTH) {
      T* const left = stage, * const right = stage + DEPTH * (ROWS + 1);
      __syncthreads();
      for (int i = threadIdx.x; i < ROWS * DEPTH; i += THREADS) {
        const int r = LEFT_ROW, depth = LEFT_DEPTH, row = min(first_row + r, M - 1), d = from + depth;
        T x = 0;
        if (d < D) { LEFT }
        left[depth * (ROWS + 1) + r] = x;
      }
      for (int i = threadIdx.x; i < KEYS * DEPTH; i += THREADS) {
        const int c = RIGHT_KEY, depth = RIGHT_DEPTH, key = min(first + c, KEYS_ALL - 1), d = from + depth;
        T x = 0;
        if (d < D) { RIGHT }
        right[depth * (KEYS + 1) + c] = x;
      }
      __syncthreads();
      UNROLL4 for (int depth = 0; depth < DEPTH; ++depth) {
        T a[RW], b[KW];
        UNROLL for (int i = 0; i < RW; ++i) a[i] = left[depth * (ROWS + 1) + mine + i];
        UNROLL for (int j = 0; j < KW; ++j) b[j] = right[depth * (KEYS + 1) + 32 * j + lane];
        UNROLL for (int i = 0; i < RW; ++i) UNROLL for (int j = 0; j < KW; ++j) score[i][j] += a[i] * b[j];
      }
    }
//@end
    UNROLL for (int i = 0; i < RW; ++i) {
      const int row = min(first_row + mine + i, M - 1);
      T most = -EQ_INF, keep[KW];
      UNROLL for (int j = 0; j < KW; ++j) {
        const int key = first + 32 * j + lane;
        T s = -EQ_INF;
        const T dot = score[i][j];
        if (key < KEYS_ALL) { SCORE }
        keep[j] = dot;
        score[i][j] = s;
        most = eq_maximum(most, s);
      }
      UNROLL for (int mask = 16; mask; mask /= 2) most = eq_maximum(most, shuffle_xor(most, mask));
      const T now = eq_maximum(top[i], most), shift = SHIFT_NOW;
      rebase[i] = eq_exp(SHIFT_BEFORE - shift);
      top[i] = now;
      T part[SUMS];
      UNROLL for (int n = 0; n < SUMS; ++n) part[n] = 0;
      UNROLL for (int j = 0; j < KW; ++j) {
        const int key = first + 32 * j + lane;
        const T s = score[i][j], dot = keep[j], w = eq_exp(s - shift);
        weights[i * KEYS + 32 * j + lane] = w;                                //@values
        if (key < KEYS_ALL) { PARTS }
      }
      UNROLL for (int n = 0; n < SUMS; ++n) {
        UNROLL for (int mask = 16; mask; mask /= 2) part[n] += shuffle_xor(part[n], mask);
        sum[n][i] = sum[n][i] * rebase[i] + part[n];
      }
    }
    ACCUMULATE
  }

  UNROLL for (int i = 0; i < RW; ++i) {
    const int row = first_row + mine + i;
    if (row >= M) break;
    const T shift = SHIFT_EXACT, nan = shift - shift;  // NaN where a whole row is masked out, as (-inf) - (-inf) is; else 0
    STORE
  }
}
