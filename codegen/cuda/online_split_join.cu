// online_split_join.cu: the end of a split fold, where SHARERS of a block have left tops, totals and sums of the same rows, relative to
// the block's maxima. The block adds up; the PARTS blocks that share the keys of a tile of rows join what they have, by rank.
  auto own_total = [&](int row) {
    float total = 0.f;
    UNROLL for (int w = 0; w < SHARERS; ++w) total += totals[w * ROWS + row];
    return total;
  };
  auto own_sum = [&](int i) {
    float x = 0.f;
    UNROLL for (int w = 0; w < SHARERS; ++w) x += sums[(w * ROWS + i / N) * PITCH + i % N];
    return x;
  };
//@begin cluster
  // Each block sends every other its maxima and totals, and the sums of the results that the other finishes.
  cluster_wait();                                                           // every block of the cluster has begun
  for (int i = 2 * threadIdx.x; i < ELEMENTS; i += 2 * THREADS) push2(inbox + rank * OWN + i % OWN, own_sum(i), own_sum(i + 1), all_here, i / OWN);
  for (int i = threadIdx.x; i < PARTS * ROWS; i += THREADS) {
    push(top_in + rank * ROWS + i % ROWS, tops[i % ROWS], all_here, i / ROWS);
    push(total_in + rank * ROWS + i % ROWS, own_total(i % ROWS), all_here, i / ROWS);
  }
  mbar_wait(all_here, 0);
  auto top_of = [&](int p, int row) { return top_in[p * ROWS + row]; };
  auto total_of = [&](int p, int row) { return total_in[p * ROWS + row]; };
  auto sum_of = [&](int p, int i) { return inbox[p * OWN + i - own_first]; };
  const int from = own_first + threadIdx.x, to = own_end;
//@end
//@begin memory
  // The blocks that share the keys leave what they have in memory; the last of them to finish joins all.
  constexpr int SLOT = ELEMENTS + 2 * ROWS;
  const int place = blockIdx.x / PARTS;
  float* const slots = workspace + COUNTERS + (i64)place * PARTS * SLOT;
  for (int i = threadIdx.x; i < ELEMENTS; i += THREADS) slots[rank * SLOT + i] = own_sum(i);
  for (int i = threadIdx.x; i < ROWS; i += THREADS) { slots[rank * SLOT + ELEMENTS + i] = tops[i]; slots[rank * SLOT + ELEMENTS + ROWS + i] = own_total(i); }
  if (!last_block((u32*)workspace + place, PARTS)) return;
  auto top_of = [&](int p, int row) { return slots[p * SLOT + ELEMENTS + row]; };
  auto total_of = [&](int p, int row) { return slots[p * SLOT + ELEMENTS + ROWS + row]; };
  auto sum_of = [&](int p, int i) { return slots[p * SLOT + i]; };
  const int from = threadIdx.x, to = ELEMENTS;
//@end
//@begin alone
  auto top_of = [&](int, int row) { return tops[row]; };
  auto total_of = [&](int, int row) { return own_total(row); };
  auto sum_of = [&](int, int i) { return own_sum(i); };
  const int from = threadIdx.x, to = ELEMENTS;
//@end
  auto most_of = [&](int row) {
    float most = -EQ_INF;
    UNROLL for (int p = 0; p < PARTS; ++p) most = fmaxf(most, top_of(p, row));
    return most;
  };
  ROW_OUTPUTS
  for (int i = from; i < to; i += THREADS) {
    const int row_here = i / N, row = first_row + row_here, col = i % N;
    if (row >= M) break;
    const float most = most_of(row_here), nan = NAN_OF;
    float total = 0.f, x = 0.f;
    UNROLL for (int p = 0; p < PARTS; ++p) {
      const float f = rebased(top_of(p, row_here), most);
      total += total_of(p, row_here) * f;
      x += sum_of(p, i) * f;
    }
    STORE
  }
