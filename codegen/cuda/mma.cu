// mma.cu: tiles of 16-bit operands in shared memory, multiplied by mma.m16n8k16 (sm_80 and later), sums in f32 registers.

// Groups tiles so that blocks that run together share operand rows in the level-2 cache: GROUP tile rows at a time.
template <int GROUP> DEV void tile_of(int block, int rows, int columns, int& row, int& column) {
  const int each = GROUP * columns, group = block / each, first = group * GROUP, r = block - group * each;
  const int left = rows - first, height = left < 1 ? 1 : left < GROUP ? left : GROUP;
  row = first + r % height;
  column = r / height;
}
// Four 8 by 8 matrices of 16-bit elements, of each of which eight lanes name the rows; transposed, a lane gets them by columns.
DEV void tile_fragment(u32 (&r)[4], const void* p) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_u32(p)) : "memory"); }
DEV void tile_fragment_transposed(u32 (&r)[4], const void* p) { asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_u32(p)) : "memory"); }
DEV void multiply_add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) { asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); }
DEV void multiply_add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) { asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); }

// A vector of 16-bit elements into shared memory.
template <int BYTES> struct alignas(BYTES) Words { u32 w[(BYTES + 3) / 4]; };
template <int BYTES> DEV void put_packed(void* p, const Raw<BYTES>& v) {
  if constexpr (BYTES == 2) *(u16*)p = (u16)v.w[0];
  else {
    Words<BYTES> words;
    UNROLL for (int i = 0; i < BYTES / 4; ++i) words.w[i] = v.w[i];
    *(Words<BYTES>*)p = words;
  }
}

// The tile of an operand: its rows one behind the other with k contiguous, or (ALONG_K false) k by k with the rows contiguous.
// Eight elements of padding keep rows 16-byte aligned and the eight of a matrix in different banks.
template <class T, int ROWS, int BK, bool ALONG_K> struct Operand {
  static constexpr int PITCH = (ALONG_K ? BK : ROWS) + 8;
  T at[ALONG_K ? ROWS : BK][PITCH];
  // a of 16 rows by 16 of k, for the left side of mma
  DEV void left(u32 (&r)[4], int row, int k) const {
    const int lane = threadIdx.x % 32;
    if constexpr (ALONG_K) tile_fragment(r, &at[row + lane % 16][k + lane / 16 * 8]);
    else tile_fragment_transposed(r, &at[k + lane % 8 + lane / 16 * 8][row + lane / 8 % 2 * 8]);
  }
  // b of 16 columns by 16 of k: two right sides of mma, each of two registers
  DEV void right(u32 (&r)[4], int column, int k) const {
    const int lane = threadIdx.x % 32;
    if constexpr (ALONG_K) tile_fragment(r, &at[column + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
    else tile_fragment_transposed(r, &at[k + lane % 16][column + lane / 16 * 8]);
  }
};
// acc += a · bᵀ for a warp's part of the tile: MI times 16 rows by NI times 8 columns.
template <class T, int MI, int NI, int BK, class A, class B> DEV void multiply_tile(float (&acc)[MI][NI][4], const A& a, const B& b, int row, int column) {
  UNROLL for (int k = 0; k < BK; k += 16) {
    u32 x[MI][4];
    UNROLL for (int i = 0; i < MI; ++i) a.left(x[i], row + 16 * i, k);
    UNROLL for (int j = 0; j < NI; j += 2) {
      u32 y[4];
      b.right(y, column + 8 * j, k);
      UNROLL for (int i = 0; i < MI; ++i) {
        multiply_add(acc[i][j], x[i], y[0], y[1], T());
        multiply_add(acc[i][j + 1], x[i], y[2], y[3], T());
      }
    }
  }
}
