// scan.cuh: prefixes over the threads of a block. Orders are fixed, so results do not change from run to run.

// What the lanes before this one hold, combined; `all` becomes what all 32 hold. A butterfly: each step joins neighbouring halves.
template <class Op> DEV typename Op::type scan_warp(typename Op::type& all) {
  typename Op::type before = Op::identity();
  UNROLL for (int step = 1; step < 32; step *= 2) {
    const typename Op::type other = shuffle_xor(all, step);
    const bool upper = (lane_id() & step) != 0;
    before = upper ? Op::combine(other, before) : before;
    all = upper ? Op::combine(other, all) : Op::combine(all, other);
  }
  return before;
}
// Each thread of the WARPS warps of a row holds the totals t[i] of COUNT vectors, those of a warp side by side for each i, warp
// after warp. They become what comes before each vector, and `carry`, what came before the tile, what came before the next one.
// `turn` alternates from tile to tile, so that one barrier serves each; SLOT tells apart the memory of one kernel's scans.
template <class Op, int SLOT, int WARPS, int ROWS, int COUNT> DEV void scan_row(typename Op::type (&t)[COUNT], typename Op::type& carry, int slot, int turn) {
  typedef typename Op::type T;
  T total = Op::identity();
  UNROLL for (int i = 0; i < COUNT; ++i) {
    T all = t[i];
    const T before = scan_warp<Op>(all);
    t[i] = Op::combine(total, before);
    total = Op::combine(total, all);
  }
  T before = carry;
  if constexpr (WARPS > 1) {
    __shared__ T of_warp[2][ROWS][WARPS];
    const int warp = threadIdx.x / 32 % WARPS;
    if (lane_id() == 0) of_warp[turn][slot][warp] = total;
    if constexpr (ROWS == 1) __syncthreads();
    else named_sync(1 + slot, WARPS * 32);
    UNROLL for (int w = 0; w < WARPS; ++w) {
      carry = Op::combine(carry, of_warp[turn][slot][w]);
      if (w + 1 == warp) before = carry;
    }
  } else {
    carry = Op::combine(carry, total);
  }
  UNROLL for (int i = 0; i < COUNT; ++i) t[i] = Op::combine(before, t[i]);
}
// The same for N columns side by side: the totals t[j] of one of GROUPS thread groups, each COLUMNS threads wide.
template <class Op, int SLOT, int COLUMNS, int GROUPS, int N> DEV void scan_groups(typename Op::type (&t)[N], typename Op::type (&carry)[N], int column, int group, int turn) {
  typedef typename Op::type T;
  __shared__ T of_group[2][GROUPS][N][COLUMNS];
  UNROLL for (int j = 0; j < N; ++j) of_group[turn][group][j][column] = t[j];
  if constexpr (GROUPS > 1) __syncthreads();
  UNROLL for (int j = 0; j < N; ++j) t[j] = carry[j];
  for (int g = 0; g < GROUPS; ++g)
    UNROLL for (int j = 0; j < N; ++j) {
      carry[j] = Op::combine(carry[j], of_group[turn][g][j][column]);
      if (g + 1 == group) t[j] = carry[j];
    }
}
// The number of this block in the order in which blocks begin: those with lower numbers are running or done.
DEV u32 take_ticket(u32* counter) {
  __shared__ u32 ticket;
  if (threadIdx.x == 0) ticket = atomicAdd(counter, 1u);
  __syncthreads();
  return ticket;
}
// Leaves the total of a tile for the blocks of the tiles behind it; `flags` says that this was the last of its totals.
template <class T> DEV void leave_total(T* parts, u32* flags, int tile, T total) {
  if (threadIdx.x == 0) {
    parts[tile] = total;
    __threadfence();
    if (flags) *(volatile u32*)(flags + tile) = 1;
  }
}
// What the tiles before `tile` hold, combined in an order that depends on their number alone; waits until each has left its total.
template <class Op, int SLOT, int WARPS> DEV typename Op::type before_tile(const typename Op::type* parts, const u32* flags, int tile) {
  typedef typename Op::type T;
  T all = Op::identity();
  for (int i = threadIdx.x; i < tile; i += WARPS * 32) {
    while (load_fresh(flags + i) == 0) {}
    __threadfence();
    all = Op::combine(all, load_fresh(parts + i));
  }
  all = combine_warp<Op>(all);
  __shared__ T of_warp[WARPS];
  if (lane_id() == 0) of_warp[threadIdx.x / 32] = all;
  __syncthreads();
  all = of_warp[0];
  UNROLL for (int w = 1; w < WARPS; ++w) all = Op::combine(all, of_warp[w]);
  return all;
}
// Leaves flags and ticket as they were found, for the next launch.
template <int THREADS> DEV void reset_tickets(u32* ticket, u32* done, u32* flags, u32 blocks) {
  if (!last_block(done, blocks)) return;
  for (u32 i = threadIdx.x; i < blocks; i += THREADS) flags[i] = 0;
  if (threadIdx.x == 0) *ticket = 0;
}
