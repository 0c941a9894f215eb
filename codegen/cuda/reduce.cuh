// reduce.cuh: reduction operators and how threads combine their partial results: over a warp, a row's warps, a cluster, the
// groups of a column block. Orders are fixed, so results do not change from run to run.

// An operator: the accumulator's type, its identity, lift (an element at a position as an accumulator), combine, and the value.
template <class T> struct Limits {
  DEV static T lowest() { return sizeof(T) == 8 ? (T)(1ull << 63) : (T)0x80000000u; }
  DEV static T highest() { return sizeof(T) == 8 ? (T)~(1ull << 63) : (T)0x7fffffffu; }
};
template <> struct Limits<float> { DEV static float lowest() { return -EQ_INF; } DEV static float highest() { return EQ_INF; } };
template <> struct Limits<double> { DEV static double lowest() { return -(double)EQ_INF; } DEV static double highest() { return (double)EQ_INF; } };
template <> struct Limits<bool> { DEV static bool lowest() { return false; } DEV static bool highest() { return true; } };
template <class T> struct Plain {
  typedef T type;
  static constexpr bool placed = false;
  template <class V> DEV static T lift(V v, i64) { return (T)v; }
  DEV static T value(T a) { return a; }
};
template <class T> struct SumOf : Plain<T> { DEV static T identity() { return (T)0; } DEV static T combine(T a, T b) { return (T)(a + b); } };
template <class T> struct ProdOf : Plain<T> { DEV static T identity() { return (T)1; } DEV static T combine(T a, T b) { return (T)(a * b); } };
template <class T> struct MaxOf : Plain<T> { DEV static T identity() { return Limits<T>::lowest(); } DEV static T combine(T a, T b) { return eq_max_nan(a, b); } };
template <class T> struct MinOf : Plain<T> { DEV static T identity() { return Limits<T>::highest(); } DEV static T combine(T a, T b) { return eq_min_nan(a, b); } };
template <class T> struct AnyOf : Plain<T> {
  template <class V> DEV static T lift(V v, i64) { return v != (V)0; }
  DEV static T identity() { return false; }
  DEV static T combine(T a, T b) { return a || b; }
};
template <class T> struct AllOf : Plain<T> {
  template <class V> DEV static T lift(V v, i64) { return v != (V)0; }
  DEV static T identity() { return true; }
  DEV static T combine(T a, T b) { return a && b; }
};
// The first position of the best value; a NaN is better than any number, as NumPy has it. Position −1 is no element at all.
template <class T> struct Placed { T best; int at; };
template <class T, bool MOST> struct ArgOf {
  typedef Placed<T> type;
  static constexpr bool placed = true;
  template <class V> DEV static type lift(V v, i64 at) { return {(T)v, (int)at}; }
  DEV static type identity() { return {MOST ? Limits<T>::lowest() : Limits<T>::highest(), -1}; }
  // An element behind all that `a` has seen. What is no better than nothing leaves `a` empty: if all are so, the first is the answer.
  DEV static type after(type a, T v, i64 at) {
    const bool better = !(MOST ? v <= a.best : v >= a.best) && a.best == a.best;
    return {better ? v : a.best, better ? (int)at : a.at};
  }
  DEV static bool wins(type a, type b) {  // a before b
    if (a.at < 0 || b.at < 0) return b.at < 0;
    const bool na = a.best != a.best, nb = b.best != b.best;
    if (na != nb) return na;
    if (na || a.best == b.best) return a.at < b.at;
    return MOST ? a.best > b.best : a.best < b.best;
  }
  DEV static type combine(type a, type b) { return wins(a, b) ? a : b; }
  DEV static i64 value(type a) { return a.at < 0 ? 0 : a.at; }
};
template <class T> struct ArgMaxOf : ArgOf<T, true> {};
template <class T> struct ArgMinOf : ArgOf<T, false> {};

// An accumulator with one more element; a thread visits its elements in order.
template <class Op, class V> DEV typename Op::type take(typename Op::type a, V v, i64 at) {
  if constexpr (Op::placed) return Op::after(a, v, at);
  else return Op::combine(a, Op::lift(v, at));
}
// Combines independent accumulators of one thread, neighbours first.
template <class Op, int N> DEV typename Op::type combine_lanes(typename Op::type (&a)[N]) {
  UNROLL for (int step = 1; step < N; step *= 2)
    UNROLL for (int i = 0; i + step < N; i += 2 * step) a[i] = Op::combine(a[i], a[i + step]);
  return a[0];
}
template <class Op> DEV typename Op::type combine_warp(typename Op::type v) {
  UNROLL for (int step = 16; step > 0; step /= 2) v = Op::combine(v, shuffle_xor(v, step));
  return v;
}
// Combines over the WARPS warps of a row and the CLUSTER blocks that share it; every thread of the row gets the result.
// `slot` is the row within the block; SLOT tells apart the shared memory of one kernel's reductions, so each needs one barrier.
template <class Op, int SLOT, int WARPS, int ROWS, int CLUSTER> DEV typename Op::type combine_row(typename Op::type v, int slot) {
  typedef typename Op::type T;
  v = combine_warp<Op>(v);
  if constexpr (WARPS > 1) {
    __shared__ T of_warp[ROWS][WARPS];
    if (lane_id() == 0) of_warp[slot][threadIdx.x / 32 % WARPS] = v;
    if constexpr (ROWS == 1) __syncthreads();
    else named_sync(1 + slot, WARPS * 32);
    if constexpr (WARPS <= 8) {
      v = of_warp[slot][0];
      UNROLL for (int w = 1; w < WARPS; ++w) v = Op::combine(v, of_warp[slot][w]);
    } else {
      v = combine_warp<Op>(lane_id() < WARPS ? of_warp[slot][lane_id() < WARPS ? lane_id() : 0] : Op::identity());
    }
  }
  if constexpr (CLUSTER > 1) {
    __shared__ T of_block;
    if (threadIdx.x == 0) of_block = v;
    cluster_sync();
    v = peer_value(&of_block, 0);
    UNROLL for (int c = 1; c < CLUSTER; ++c) v = Op::combine(v, peer_value(&of_block, c));
  }
  return v;
}
// A block says that it reads no other block's shared memory any more, and before it leaves waits until all have said so. A release,
// since the reads must have ended (a relaxed one let blocks leave under a reader); it comes before the output is stored, as it
// would wait for those stores too.
DEV void cluster_done() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
DEV void cluster_leave() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// The same for teams of blocks that take row after row: the values of one row are read while those of the next are written.
template <class Op, int SLOT, int WARPS, int CLUSTER> DEV typename Op::type combine_team(typename Op::type v, int turn) {
  typedef typename Op::type T;
  v = combine_row<Op, SLOT, WARPS, 1, 1>(v, 0);
  if constexpr (CLUSTER > 1) {
    __shared__ T of_block[2];
    if (threadIdx.x == 0) of_block[turn] = v;
    cluster_sync();
    v = peer_value(&of_block[turn], 0);
    UNROLL for (int c = 1; c < CLUSTER; ++c) v = Op::combine(v, peer_value(&of_block[turn], c));
  } else {
    __syncthreads();  // no warp writes its part of the next row before all have read this one's
  }
  return v;
}
// Combines each of N columns over the GROUPS thread groups of a block that is COLUMNS threads wide; every thread gets the result.
template <class Op, int COLUMNS, int GROUPS, int N> DEV void combine_groups(typename Op::type (&v)[N], int column, int group) {
  typedef typename Op::type T;
  if constexpr (GROUPS > 1) {
    __shared__ T of_group[GROUPS][N][COLUMNS];
    __syncthreads();  // a former use of this memory is over
    UNROLL for (int j = 0; j < N; ++j) of_group[group][j][column] = v[j];
    __syncthreads();
    UNROLL for (int j = 0; j < N; ++j) v[j] = of_group[0][j][column];
    for (int g = 1; g < GROUPS; ++g)
      UNROLL for (int j = 0; j < N; ++j) v[j] = Op::combine(v[j], of_group[g][j][column]);
  }
}
// The same over columns that threads hold: neighbouring lanes of a warp where a block is less than a warp across, then the warps,
// then the CLUSTER blocks that share the columns. SLOT tells apart the shared memory of one kernel's reductions.
template <class Op, int SLOT, int COLUMNS, int GROUPS, int N, int CLUSTER> DEV void combine_columns(typename Op::type (&v)[N]) {
  typedef typename Op::type T;
  constexpr int THREADS = COLUMNS * GROUPS, PARTS = COLUMNS < 32 ? THREADS / 32 : GROUPS;
  UNROLL for (int step = 16; step >= COLUMNS; step /= 2)
    UNROLL for (int j = 0; j < N; ++j) v[j] = Op::combine(v[j], shuffle_xor(v[j], step));
  if constexpr (PARTS > 1 || CLUSTER > 1) {
    __shared__ T of_part[PARTS][N][COLUMNS];
    __shared__ T of_block[N][COLUMNS];
    const int column = threadIdx.x % COLUMNS, part = COLUMNS < 32 ? threadIdx.x / 32 : threadIdx.x / COLUMNS;
    if (COLUMNS >= 32 || lane_id() < COLUMNS) UNROLL for (int j = 0; j < N; ++j) of_part[part][j][column] = v[j];
    __syncthreads();
    for (int t = threadIdx.x; t < N * COLUMNS; t += THREADS) {
      T all = of_part[0][t / COLUMNS][t % COLUMNS];
      UNROLL for (int p = 1; p < PARTS; ++p) all = Op::combine(all, of_part[p][t / COLUMNS][t % COLUMNS]);
      of_block[t / COLUMNS][t % COLUMNS] = all;
    }
    if constexpr (CLUSTER > 1) {
      cluster_sync();
      for (int t = threadIdx.x; t < N * COLUMNS; t += THREADS) {
        const T* const mine = &of_block[t / COLUMNS][t % COLUMNS];
        T all = peer_value(mine, 0);
        UNROLL for (int c = 1; c < CLUSTER; ++c) all = Op::combine(all, peer_value(mine, c));
        of_part[0][t / COLUMNS][t % COLUMNS] = all;
      }
      __syncthreads();
      UNROLL for (int j = 0; j < N; ++j) v[j] = of_part[0][j][column];
    } else {
      __syncthreads();
      UNROLL for (int j = 0; j < N; ++j) v[j] = of_block[j][column];
    }
  }
}
// Blocks of a team wait for each other: all of them are resident. The sign of the counter flips when the last one comes, and the
// rest of it is 0 again, so that it serves the next time and the next launch.
DEV u32 add_release(u32* p, u32 v) { u32 old; asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory"); return old; }
DEV u32 load_acquire(const u32* p) { u32 v; asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory"); return v; }
DEV void meet(u32* counter, u32 blocks, bool first) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const u32 old = add_release(counter, first ? 0x80000000u - (blocks - 1) : 1u);
    const u64 start = globaltimer();
    while (((old ^ load_acquire(counter)) & 0x80000000u) == 0)
      if (globaltimer() - start > SPIN_NS) { fault(); break; }
  }
  __syncthreads();
}
// 16 bytes on their way to shared memory while the thread goes on; it takes them itself, so it alone waits for them.
struct alignas(16) Chunk { u32 w[4]; };
DEV void copy_ahead(Chunk* to, const void* from) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(smem_u32(to)), "l"(from) : "memory"); }
DEV void copy_ahead_first(Chunk* to, const void* from) { asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" :: "r"(smem_u32(to)), "l"(from), "l"(policy_first()) : "memory"); }
DEV void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }
DEV void take_chunk(u32* to, const Chunk* from) {
  const Chunk c = *from;
  UNROLL for (int i = 0; i < 4; ++i) to[i] = c.w[i];
}
// Partial results pass between blocks through a workspace: read past the level-1 cache, which other blocks do not keep current.
template <class T> DEV T load_fresh(const T* p) {
  if constexpr (sizeof(T) < 4) return *(const volatile T*)p;
  else {
    union U { T value; u32 w[sizeof(T) / 4]; DEV U() {} } out;
    UNROLL for (int i = 0; i < (int)(sizeof(T) / 4); ++i) out.w[i] = ((const volatile u32*)p)[i];
    return out.value;
  }
}
// Combines the partial results of all blocks of a team: each warp the same ones in the same order.
template <class Op> DEV typename Op::type combine_parts(const typename Op::type* parts, int count) {
  typename Op::type all = Op::identity();
  for (int i = lane_id(); i < count; i += 32) all = Op::combine(all, load_fresh(parts + i));
  return combine_warp<Op>(all);
}
