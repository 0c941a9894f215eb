repeat<TILES>([&](auto i) {
  const int top = tile.m + (first + i) * 64, top_row = top + warp_in_group() * 16 + lane_id() / 4;
  auto value = [&](int v, int half, int column, float(&y)[2]) {
    const int y_row = top_row + 8 * half, y_col = COLUMN + column, batch = tile.batch;
    EPILOGUE
  };
  STORE_TILE<Y, BN, BUFFERS, HEAD>(&MAP_Y, smem + wg * BUFFERS * 8192, pass, top, COLUMN, tile.batch, value);  //@staged
  store_rows<Y, BN, BUFFERS, VEC>(smem + wg * BUFFERS * 8192, M - top, COLUMNS - (COLUMN), value, [&](int r, int c) {  //@rows
    const int y_row = top + r, y_col = COLUMN + c, batch = tile.batch;  //@rows
    return OUT + (OFFSET);                                            //@rows
  });                                                                 //@rows
  Acc<WIDTH>::each_pair([&](int v, int half, int column) {               //@direct
    const int y_row = top_row + 8 * half, y_col = COLUMN + column, batch = tile.batch;  //@direct
    float y[2];                                                       //@direct
    value(v, half, column, y);                                        //@direct
    STORE
  });                                                                 //@direct
});
