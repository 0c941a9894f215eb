// point.cu: the loops of pointwise kernels. What is loaded and computed comes in as two functions printed from the term.

// Each thread makes and stores COUNT vectors of neighbouring elements of each output. All loads are issued before the first use, so that COUNT
// vectors of every operand are in flight at once; the grid has exactly one thread for each COUNT vectors (a grid that stays and
// strides measured 7 to 9 % slower on an H200).
template <class Fetched, int THREADS, int COUNT, class Index, class Fetch, class Make>
DEV void point_vectors(Index vectors, Fetch fetch, Make make) {
  const Index first = (Index)blockIdx.x * (THREADS * COUNT) + (Index)threadIdx.x;
  Fetched f[COUNT];
  UNROLL for (int u = 0; u < COUNT; ++u)
    if (first + u * THREADS < vectors) fetch(f[u], first + u * THREADS);
  UNROLL for (int u = 0; u < COUNT; ++u) {
    if (first + u * THREADS < vectors) make(f[u], first + u * THREADS);
  }
}

// The same place of COUNT rows for each thread: what the rows share is loaded once for them. The blocks of one place follow each
// other, so that what they share is still in the caches.
template <class Shared, class Fetched, int THREADS, int COUNT, class Index, class Near, class Fetch, class Make>
DEV void point_sweep(Index along, Index rows, Index groups, Near near, Fetch fetch, Make make) {
  const Index block = blockIdx.x, row = block % groups * COUNT, place = block / groups * THREADS + (Index)threadIdx.x;
  if (place >= along) return;
  Shared s;
  near(s, place);
  Fetched f[COUNT];
  UNROLL for (int u = 0; u < COUNT; ++u)
    if (row + u < rows) fetch(f[u], (row + u) * along + place);
  UNROLL for (int u = 0; u < COUNT; ++u) {
    if (row + u < rows) make(s, f[u], (row + u) * along + place);
  }
}

// A TILE x TILE tile in shared memory, one word of padding a row: rows along the axis that is contiguous in the output.
template <class T, int TILE> struct Turned {
  static constexpr int PITCH = TILE + (sizeof(T) < 4 ? 4 / (int)sizeof(T) : 1);
  T at[TILE][PITCH];
};
// Copies a tile that is contiguous along p in memory (element (p, q) at p + q·step) into at[p][q]; LANES elements an access.
template <class T, int TILE, int THREADS, int LANES, int HINT, class Index> DEV void turn(Turned<T, TILE>& tile, const T* from, Index step, Index rows, Index columns) {
  constexpr int ACROSS = TILE / LANES, TURNS = (TILE * ACROSS + THREADS - 1) / THREADS;
  Raw<LANES * (int)sizeof(T)> r[TURNS];
  UNROLL for (int i = 0; i < TURNS; ++i) {
    const int t = threadIdx.x + i * THREADS, p = t % ACROSS * LANES, q = t / ACROSS;
    if (q < TILE && p < rows && q < columns) r[i] = load_raw<LANES * (int)sizeof(T), HINT>(from + q * step + p);
  }
  UNROLL for (int i = 0; i < TURNS; ++i) {
    const int t = threadIdx.x + i * THREADS, p = t % ACROSS * LANES, q = t / ACROSS;
    if (q < TILE && p < rows && q < columns) {
      typename Value<T>::type v[LANES];
      UNROLL for (int j = 0; j < LANES; ++j) v[j] = Element<T>::get(r[i], j);
      UNROLL for (int j = 0; j < LANES; ++j) put_shared(tile.at[p + j][q], v[j]);
    }
  }
}
