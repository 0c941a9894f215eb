repeat<TILES>([&](auto i) {
  const int top = tile.m + (first + i) * 64, top_row = top + warp_in_group() * 16 + lane_id() / 4;
  auto value = [&](int v, int half, int column, float(&y)[2]) {
    const int y_row = top_row + 8 * half, y_col = COLUMN + column, batch = tile.batch;
    EPILOGUE
  };
  STORE_TILE<Y, BN, BUFFERS, HEAD>(&MAP_Y, smem + wg * BUFFERS * 8192, pass, top, COLUMN, tile.batch, value);  //@staged
  Acc<BN>::each_pair([&](int v, int half, int column) {               //@direct
    const int y_row = top_row + 8 * half, y_col = COLUMN + column, batch = tile.batch;  //@direct
    float y[2];                                                       //@direct
    value(v, half, column, y);                                        //@direct
    STORE
  });                                                                 //@direct
});
