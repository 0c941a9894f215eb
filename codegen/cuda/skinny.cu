// Few rows: the matrix w streams once from memory straight into the fragments of mma.m16n8k16, of which w is the 16-row side and
// x the 8-column side. Both sides may permute k alike, so lane (g, q) = (lane / 4, lane % 4) owns k = 8q .. 8q+7 of a chunk of 32.
constexpr int CHUNKS = (K + 31) / 32, SHARE = (CHUNKS + CK - 1) / CK;       // chunks of k in all, and of one block of the cluster
constexpr int WARPS = WN * WK, THREADS = WARPS * 32, STEP = WK * DEPTH;
constexpr int MT = (M + 7) / 8, PAIRS = NT / 2, SLAB = WN * NT * 8;         // SLAB: columns of one cluster
constexpr int X_PITCH = (SHARE | 1) * 64;                                   // bytes; odd multiples of 64 keep banks apart
constexpr int PITCH = SLAB + 4, PART = COUNT * MT * 8 * PITCH;              // partial sums of one warp row, in floats
constexpr int POSITIONS = M * SLAB / 2;                                     // pairs of neighbouring columns
//@begin cluster
constexpr int OWN = (POSITIONS + CK - 1) / CK;                              // of them those that one block of the cluster finishes
constexpr int INBOX = CK * COUNT * OWN * 2;                                 // floats that it gets for them
//@end
constexpr int SEGMENTS = WK;                                                // warps that see one row of x //@straight
//@begin staged
constexpr int SEGMENTS = M < WARPS ? WARPS / M : 1;                         // warps that stage one row of x together
constexpr int TASKS = (M * SEGMENTS + WARPS - 1) / WARPS, LENGTH = (SHARE * 32 / VECTOR + SEGMENTS - 1) / SEGMENTS;
constexpr int TOGETHER = TASKS * ((LENGTH + 31) / 32) <= 16 ? 16 : 1;       // rows and steps of staging whose loads go out together
constexpr bool EXACT = CHUNKS % CK == 0 && SHARE * 32 / VECTOR % (SEGMENTS * 32) == 0;
//@end
constexpr bool EVEN = CHUNKS % (CK * STEP) == 0;

//@begin n_major
// One chunk of w, 32 of k by NT*8 contiguous columns: lane (g, q) holds 8 columns, 64t + 8g .., of each of its 8 rows of k.
struct Chunk {
  Raw<16> v[NT / 8][8];
  DEV void load(const T* w, int k, int n, int g, int q) {                   //@one
    constexpr int columns = N;                                              //@one
    constexpr i64 stride = W_STRIDE;                                        //@one
  DEV void load(const T* w, int k, int n, int g, int q, int columns, i64 stride) {  //@several
    w += (i64)(k + 8 * q) * stride;
    UNROLL for (int t = 0; t < NT / 8; ++t)
      UNROLL for (int r = 0; r < 8; ++r) {
        if (K % 32 == 0 || k + 8 * q + r < K) v[t][r] = stream16<HINT>(w + min(n + 64 * t + 8 * g, columns - 8) + (i64)r * stride);
        else v[t][r] = zero_raw<16>();
      }
  }
  // Columns 64t + 8g + 2i and + 1 become rows g and g + 8 of the fragment.
  DEV void fragment(u32 (&a)[4], int pair, int j) const {
    const int t = pair / 4, i = pair % 4;
    a[0] = __byte_perm(v[t][4 * j].w[i], v[t][4 * j + 1].w[i], 0x5410);
    a[1] = __byte_perm(v[t][4 * j].w[i], v[t][4 * j + 1].w[i], 0x7632);
    a[2] = __byte_perm(v[t][4 * j + 2].w[i], v[t][4 * j + 3].w[i], 0x5410);
    a[3] = __byte_perm(v[t][4 * j + 2].w[i], v[t][4 * j + 3].w[i], 0x7632);
  }
  // Where the sum of a column lies among 64: turned, so that the lanes of a warp write to banks of their own.
  DEV static int place(int column) { return column / 64 * 64 + column % 8 * 8 + column % 64 / 8; }
  DEV static int place(int pair, int g, int upper) { return 64 * (pair / 4) + 8 * (2 * (pair % 4) + upper) + g; }
};
//@end
//@begin k_major
// One chunk of w, NT*8 columns by 32 contiguous k: lane (g, q) holds its 8 of k of the columns 8t + g.
struct Chunk {
  Raw<16> v[NT];
  DEV void load(const T* w, int k, int n, int g, int q) {                   //@one
    constexpr int columns = N;                                              //@one
    constexpr i64 stride = W_STRIDE;                                        //@one
  DEV void load(const T* w, int k, int n, int g, int q, int columns, i64 stride) {  //@several
    w += k + 8 * q;
    const T* const first = w + (i64)(n + g) * stride;
    UNROLL for (int t = 0; t < NT; ++t) {
      const T* const from = WHOLE_SLABS ? first + (i64)(8 * t) * stride : w + (i64)min(n + 8 * t + g, columns - 1) * stride;
      if (K % 32 == 0 || k + 8 * q < K) v[t] = stream16<HINT>(from);
      else v[t] = zero_raw<16>();
    }
  }
  DEV void fragment(u32 (&a)[4], int pair, int j) const {
    a[0] = v[2 * pair].w[2 * j]; a[1] = v[2 * pair + 1].w[2 * j]; a[2] = v[2 * pair].w[2 * j + 1]; a[3] = v[2 * pair + 1].w[2 * j + 1];
  }
  DEV static int place(int column) { return column; }
  DEV static int place(int pair, int g, int upper) { return 16 * pair + g + 8 * upper; }
};
//@end
//@begin straight
// What the left operand takes from memory for a chunk: lane (g, q) loads its 8 of k of the rows 8t + g of x.
struct Left { LEFT_MEMBERS };
template <int BYTES> DEV Raw<BYTES> kept(const void* p) {                   // a load that stays where it is written
  Raw<BYTES> r;
  UNROLL for (int c = 0; c < BYTES / 16; ++c) {
    const Raw<16> v = stream16<PLAIN>((const u8*)p + 16 * c);
    UNROLL for (int i = 0; i < 4; ++i) r.w[4 * c + i] = v.w[i];
  }
  return r;
}
//@end

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)               //@no_cluster
extern "C" __global__ void __cluster_dims__(CK, 1, 1) __launch_bounds__(THREADS, BLOCKS)  //@cluster
eqsat_kernel(PARAMETERS) {
  extern __shared__ u8 raw[];
  u8* const xs = raw;                                                       // x of this block's share of k, then the partial sums //@staged
  float* const part = (float*)raw;
  float* const stats = (float*)(raw + STATS_AT);                            //@statistics
  const int warp = threadIdx.x / 32, lane = lane_id(), g = lane / 4, q = lane % 4, wk = warp / WN, wn = warp % WN;
  const int rank = cluster_rank();                                          //@cluster
  const int rank = blockIdx.x % CK;                                         //@memory
  constexpr int rank = 0;                                                   //@alone
  const int batch = blockIdx.y, k0 = rank * SHARE * 32;
  SELECT
  const int n0 = SLAB_HERE * SLAB;
  const int mine = EVEN ? SHARE : min(SHARE, CHUNKS - rank * SHARE), n = n0 + wn * NT * 8;

  Chunk w[DEPTH][COUNT];                                                        // the first chunks are on their way before all else
  Left left[DEPTH];                                                         //@straight
  UNROLL for (int d = 0; d < DEPTH; ++d)
    if (EVEN || wk + d * WK < mine) { LOAD_FIRST }

//@begin cluster
  float* const inbox = (float*)(raw + INBOX_AT);                            // sums that the blocks of the cluster send for this one to finish
  const int first = rank * OWN, end = min(POSITIONS, first + OWN);
  const u32 all_here = smem_u32(inbox + (INBOX + CK * STATISTICS * M + 1) / 2 * 2);  // a barrier lies at a multiple of 8 bytes
  if (threadIdx.x == 0) {
    mbar_init(all_here, 1);
    mbar_init_fence();
    mbar_expect(all_here, CK * (8 * COUNT * max(end - first, 0) + 4 * STATISTICS * M));
  }
  cluster_arrive();
//@end
//@begin staged
#pragma unroll TOGETHER
  for (int i = 0; i < TASKS; ++i) {                                         // x: a warp takes rows, or a segment of one
    const int task = warp + i * WARPS, m = task / SEGMENTS, begin = task % SEGMENTS * LENGTH;
    if (M * SEGMENTS % WARPS == 0 || task < M * SEGMENTS) {
      INIT
#pragma unroll 16
      for (int j = 0; j < LENGTH; j += 32) {
        const int v = begin + j + lane, k = k0 + v * VECTOR;
        if (EXACT || v < min(begin + LENGTH, mine * (32 / VECTOR))) {
          float value[VECTOR] = {};
          if (K % 32 == 0 || k < K) {
            STAGE
          }
          *(Raw<VECTOR * 2>*)(xs + m * X_PITCH + v * VECTOR * 2) = Pack<T>::from<VECTOR>(value);  //@vector
          *(u16*)(xs + m * X_PITCH + v * 2) = (u16)Pack<T>::from<1>(value).w[0];                   //@scalar
        }
      }
      REDUCE_ROW
    }
  }
  __syncthreads();
//@end
  INIT_ROWS                                                                 //@straight

  float acc[COUNT][PAIRS][MT][4] = {};
  for (int c = wk; c < mine; c += STEP)
    UNROLL for (int d = 0; d < DEPTH; ++d) {
      const int here = c + d * WK;
      if (EVEN || here < mine) {
        Raw<16> x[MT];
        UNROLL for (int t = 0; t < MT; ++t) x[t] = *(const Raw<16>*)(xs + (t * 8 + g) * X_PITCH + here * 64 + q * 16);  //@staged
//@begin straight
        UNROLL for (int t = 0; t < MT; ++t) {
          const int m = min(8 * t + g, M - 1), k = k0 + here * 32 + 8 * q;
          LEFT_VALUE
        }
//@end
        UNROLL for (int s = 0; s < COUNT; ++s)
          UNROLL for (int p = 0; p < PAIRS; ++p)
            UNROLL for (int j = 0; j < 2; ++j) {
              u32 a[4];
              w[d][s].fragment(a, p, j);
              UNROLL for (int t = 0; t < MT; ++t) MMA(acc[s][p][t], a[0], a[1], a[2], a[3], x[t].w[2 * j], x[t].w[2 * j + 1]);
            }
      }
      if (here + STEP < mine) { LOAD_NEXT }
    }
  __syncthreads();                                                          //@staged

  UNROLL for (int s = 0; s < COUNT; ++s)                                    // every warp row leaves its sums
    UNROLL for (int p = 0; p < PAIRS; ++p)
      UNROLL for (int t = 0; t < MT; ++t)
        UNROLL for (int i = 0; i < 4; ++i)
          part[wk * PART + (s * MT * 8 + t * 8 + 2 * q + (i & 1)) * PITCH + wn * NT * 8 + Chunk::place(p, g, i >> 1)] = acc[s][p][t][i];
  LEAVE_ROWS                                                                //@straight
  __syncthreads();
  // The sums that this block's warps made at a pair of neighbouring columns.
  auto own_sum = [&](int s, int i, float(&sum)[2]) {
    UNROLL for (int r = 0; r < WK; ++r)
      UNROLL for (int e = 0; e < 2; ++e)
        sum[e] += part[r * PART + (s * MT * 8 + i / (SLAB / 2)) * PITCH + Chunk::place(i % (SLAB / 2) * 2 + e)];
  };
//@begin cluster
  cluster_wait();                                                           // every block of the cluster has begun
  for (int i = threadIdx.x; i < POSITIONS; i += THREADS)
    UNROLL for (int s = 0; s < COUNT; ++s) {
      float sum[2] = {};
      own_sum(s, i, sum);
      push2(inbox + ((rank * COUNT + s) * OWN + i % OWN) * 2, sum[0], sum[1], all_here, i / OWN);
    }
  PUSH_STATISTICS
  mbar_wait(all_here, 0);
//@end
//@begin memory
  // The blocks that split k leave their sums in memory; the last of them to finish adds all, in the order of their ranks.
  constexpr int SLOT = COUNT * M * SLAB + STATISTICS * M;
  const int slab = batch * SLABS + blockIdx.x / CK;
  float* const slots = workspace + COUNTERS + (i64)slab * CK * SLOT;
  for (int i = threadIdx.x; i < POSITIONS; i += THREADS)
    UNROLL for (int s = 0; s < COUNT; ++s) {
      float sum[2] = {};
      own_sum(s, i, sum);
      UNROLL for (int e = 0; e < 2; ++e) slots[rank * SLOT + s * M * SLAB + 2 * i + e] = sum[e];
    }
  LEAVE_STATISTICS
  if (!last_block((u32*)workspace + slab, CK)) return;
//@end
  for (int i = first + threadIdx.x; i < end; i += THREADS) {                //@cluster
  for (int i = threadIdx.x; i < POSITIONS; i += THREADS) {                  //@no_cluster
    const int y_row = i / (SLAB / 2), column = i % (SLAB / 2) * 2, y_col = n0 + column;
    float sum[COUNT][2] = {};
    UNROLL for (int s = 0; s < COUNT; ++s) own_sum(s, i, sum[s]);           //@alone
//@begin split
    UNROLL for (int s = 0; s < COUNT; ++s)
      UNROLL for (int r = 0; r < CK; ++r)
        UNROLL for (int e = 0; e < 2; ++e) {
          sum[s][e] += inbox[((r * COUNT + s) * OWN + i - first) * 2 + e];  //@cluster
          sum[s][e] += slots[r * SLOT + s * M * SLAB + 2 * i + e];          //@memory
        }
//@end
    TOTAL
    EPILOGUE
  }
}
