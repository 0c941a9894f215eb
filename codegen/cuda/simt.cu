// simt.cu: the plain matrix kernel: operand tiles in shared memory, a register tile for each thread, no tensor cores.

// Groups tiles so that blocks that run together share operand rows in the level-2 cache: GROUP tile rows at a time.
template <int GROUP> DEV void tile_of(int block, int rows, int columns, int& row, int& column) {
  const int each = GROUP * columns, group = block / each, first = group * GROUP, r = block - group * each;
  const int left = rows - first, height = left < 1 ? 1 : left < GROUP ? left : GROUP;
  row = first + r % height;
  column = r / height;
}
// A thread's columns: groups of WIDTH neighbours, the groups spread over the tile so that a warp reads whole rows of banks.
template <int BN, int TN> struct Columns {
  static constexpr int WIDTH = TN < 4 ? TN : 4, GROUPS = TN / WIDTH;
  DEV static int at(int thread, int j) { return j / WIDTH * (BN / GROUPS) + thread * WIDTH + j % WIDTH; }
};
// acc[i][j] += Σ_k a[k][row + i] · b[k][column of j], in the accumulator's arithmetic.
template <int TM, int TN, int BN, class Acc, class A, class B, int BK, int PA, int PB>
DEV void multiply(Acc (&acc)[TM][TN], const A (&a)[BK][PA], const B (&b)[BK][PB], int row, int thread) {
  UNROLL for (int k = 0; k < BK; ++k) {
    A x[TM];
    B y[TN];
    UNROLL for (int i = 0; i < TM; ++i) x[i] = a[k][row + i];
    UNROLL for (int j = 0; j < TN; ++j) y[j] = b[k][Columns<BN, TN>::at(thread, j)];
    UNROLL for (int i = 0; i < TM; ++i)
      UNROLL for (int j = 0; j < TN; ++j) acc[i][j] += (Acc)x[i] * (Acc)y[j];
  }
}
