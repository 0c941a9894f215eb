// split.cuh: f32 matrices as two f16 planes. x·s = h + l/2048, s a power of two for each row (of the left operand) or panel of
// 32×32 (of the right one) that takes the largest of it to [2^14, 2^15). What cannot be said so to 2^-22 stays as it is.
DEV u32 shared_word(u32 at) { u32 v; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory"); return v; }
DEV u32 shared_half(u32 at) { u16 v; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at) : "memory"); return v; }
DEV void put_word(u32 at, u32 v) { asm volatile("st.shared.u32 [%0], %1;" :: "r"(at), "r"(v) : "memory"); }
DEV void put16(u32 at, u32 a, u32 b, u32 c, u32 d) { asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" :: "r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory"); }
DEV u32 warp_max(u32 v) { u32 r; asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(r) : "r"(v)); return r; }
DEV u32 warp_min(u32 v) { u32 r; asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;" : "=r"(r) : "r"(v)); return r; }

// The exponents (biased) of a largest size that the matrix units serve: products of two scales are then normal numbers, 2^-11 of
// them too. Sizes may lie 2^28 apart, so that the least still has normal halves. 0 stands for what they do not serve.
constexpr u32 LEAST_EXPONENT = 84, MOST_EXPONENT = 204, SPREAD = 28u << 23;
DEV u32 size_bits(float v) { return __float_as_uint(v) & 0x7fffffffu; }
DEV u32 exponent_of(u32 most, u32 least) {  // bits of the largest size and of the least that is not 0
  const u32 e = most >> 23;
  return most == 0 ? 127u : e < LEAST_EXPONENT || e > MOST_EXPONENT || least + SPREAD < most ? 0u : e;
}
DEV float scale_of(u32 exponent) { return __uint_as_float((127 + 14 + 127 - exponent) << 23); }
// What the products of two scaled values are to be multiplied with.
DEV float product_scale(u32 a, u32 b) { return __uint_as_float((a + b + 127 - 2 * 141) << 23); }
template <int N> DEV u32 most_bits(const float (&x)[N]) {
  float most = fabsf(x[0]);
  UNROLL for (int i = 1; i < N; ++i) most = eq_max_nan(most, fabsf(x[i]));
  return size_bits(most);
}
template <int N> DEV u32 least_bits(const float (&x)[N]) {
  float least = fabsf(x[0]);
  UNROLL for (int i = 1; i < N; ++i) least = fminf(least, fabsf(x[i]));
  return size_bits(least);
}
template <int N> DEV u32 least_but_zero(const float (&x)[N]) {
  u32 least = 0x7fffffffu;
  UNROLL for (int i = 0; i < N; ++i) least = min(least, (size_bits(x[i]) - 1) & 0x7fffffffu);
  return least == 0x7fffffffu ? least : least + 1;
}
DEV void halves(float x, float y, float scale, u32& h, u32& l) {
  const float a = x * scale, b = y * scale;
  h = pack_f16(a, b);
  l = pack_f16((a - f16_lo(h)) * 2048.f, (b - f16_hi(h)) * 2048.f);
}

// The place of element k of a step of 32 in the planes. Where the left operand lies k-major a thread takes 8 neighbours of k, which
// are the elements 2q, 2q+1, 2q+8, 2q+9 of two instructions' fragments; any order of k will do if both operands have it.
template <bool MIXED> DEV constexpr int place(int k) { return MIXED ? (k >> 2 & 1) * 16 + (k >> 1 & 1) * 8 + (k >> 3) * 2 + (k & 1) : k; }
template <bool MIXED> DEV constexpr int element_at(int p) { return MIXED ? (p >> 1 & 3) * 8 + (p >> 4) * 4 + (p >> 3 & 1) * 2 + (p & 1) : p; }

// Tiles of 32 elements of k in f32, written by TMA with a 128-byte swizzle, in panels of 32 rows (or columns) of 4 KB.
// KMajor32: in a panel each row is 128 bytes. MnMajor32: each k is.
template <int ROWS> struct KMajor32 {
  static constexpr u32 bytes = ROWS * 128;
  static constexpr bool k_major = true;
  DEV static u32 at(u32 tile, int row, int k) { return tile + row * 128 + ((k / 4 ^ (row & 7)) << 4) + k % 4 * 4; }
  DEV static void load(u32 tile, const TMap* map, u32 full, int row, int k, int batch) { tma_load3(tile, map, full, k, row, batch); }
};
template <int ROWS> struct MnMajor32 {
  static constexpr u32 bytes = ROWS * 128;
  static constexpr bool k_major = false;
  DEV static u32 at(u32 tile, int row, int k) { return tile + row / 32 * 4096 + k * 128 + ((row % 32 / 4 ^ (k & 7)) << 4) + row % 4 * 4; }
  DEV static void load(u32 tile, const TMap* map, u32 full, int row, int k, int batch) {
    UNROLL for (int p = 0; p < ROWS / 32; ++p) tma_load3(tile + p * 4096, map, full, row + p * 32, k, batch);
  }
};

// The right operand's panels become planes in place, each by one warp; the exponent of a panel (0: it stays f32) goes to `note`.
// k-major: a row is 64 bytes of h and 64 of l, under the swizzle of 128 bytes. Else h and l take 2 KB each, 64 bytes for each k, in
// the canonical MN-major layout of the 64-byte swizzle. MIXED: the order of k, as of `place`.
template <class B, bool MIXED> struct Planes;
template <int N, bool MIXED> struct Planes<KMajor32<N>, MIXED> {
  static constexpr int transposed = 0;
  DEV static u64 descriptor(u32 tile, int column, int step, int low) { return desc128(tile + column * 128 + low * 64 + step * 32); }
  DEV static float value(u32 tile, int column, int k) {  // h + l/2048
    const int p = place<MIXED>(k);
    const u32 at = tile + column * 128 + p % 8 * 2;
    return f16_value((u16)shared_half(at + ((p / 8 ^ (column & 7)) << 4))) + f16_value((u16)shared_half(at + ((p / 8 + 4 ^ (column & 7)) << 4))) * 0x1p-11f;
  }
  DEV static void convert(u32 panel, u32 note) {
    const int row = lane_id();
    const u32 base = panel + row * 128;
    float x[32];
    UNROLL for (int c = 0; c < 8; ++c) {
      const Raw<16> v = shared16(base + ((c ^ (row & 7)) << 4));
      UNROLL for (int i = 0; i < 4; ++i) x[4 * c + i] = __uint_as_float(v.w[i]);
    }
    const u32 exponent = panel_exponent(x);
    if (exponent) {
      const float scale = scale_of(exponent);
      UNROLL for (int c = 0; c < 4; ++c) {
        u32 h[4], l[4];
        UNROLL for (int i = 0; i < 4; ++i) halves(x[element_at<MIXED>(8 * c + 2 * i)], x[element_at<MIXED>(8 * c + 2 * i + 1)], scale, h[i], l[i]);
        put16(base + ((c ^ (row & 7)) << 4), h[0], h[1], h[2], h[3]);
        put16(base + ((c + 4 ^ (row & 7)) << 4), l[0], l[1], l[2], l[3]);
      }
    }
    if (lane_id() == 0) put_word(note, exponent);
  }
  DEV static u32 panel_exponent(const float (&x)[32]) {
    const u32 most = warp_max(most_bits(x));
    u32 least = warp_min(least_bits(x));
    if (least + SPREAD < most) least = warp_min(least_but_zero(x));
    return exponent_of(most, least);
  }
};
template <int N, bool MIXED> struct Planes<MnMajor32<N>, MIXED> {
  static constexpr int transposed = 1;
  DEV static u64 descriptor(u32 tile, int column, int step, int low) {
    const u32 at = tile + column / 32 * 4096 + low * 2048 + step * 1024;
    return (u64)((at & 0x3ffff) >> 4) | ((u64)(4096 >> 4) << 16) | ((u64)(512 >> 4) << 32) | (2ull << 62);
  }
  DEV static u32 chunk(u32 panel, int p, int c) { return panel + p * 64 + ((c ^ (p / 2 & 3)) << 4); }
  DEV static float value(u32 tile, int column, int k) {
    const u32 at = chunk(tile + column / 32 * 4096, place<MIXED>(k), column % 32 / 8) + column % 8 * 2;
    return f16_value((u16)shared_half(at)) + f16_value((u16)shared_half(at + 2048)) * 0x1p-11f;
  }
  DEV static void convert(u32 panel, u32 note) {
    const int group = lane_id() % 4, first = lane_id() / 4;  // 8 neighbours of n at each of 4 elements of k
    float x[32];
    UNROLL for (int i = 0; i < 4; ++i)
      UNROLL for (int c = 0; c < 2; ++c) {
        const int k = 8 * i + first;
        const Raw<16> v = shared16(panel + k * 128 + ((2 * group + c ^ (k & 7)) << 4));
        UNROLL for (int e = 0; e < 4; ++e) x[8 * i + 4 * c + e] = __uint_as_float(v.w[e]);
      }
    const u32 exponent = Planes<KMajor32<N>, MIXED>::panel_exponent(x);  // also: all have read before one writes
    if (exponent) {
      const float scale = scale_of(exponent);
      UNROLL for (int i = 0; i < 4; ++i) {
        u32 h[4], l[4];
        UNROLL for (int e = 0; e < 4; ++e) halves(x[8 * i + 2 * e], x[8 * i + 2 * e + 1], scale, h[e], l[e]);
        const u32 at = chunk(panel, place<MIXED>(8 * i + first), group);
        put16(at, h[0], h[1], h[2], h[3]);
        put16(at + 2048, l[0], l[1], l[2], l[3]);
      }
    }
    if (lane_id() == 0) put_word(note, exponent);
  }
};

// 64×32 of the left operand in the registers of a warpgroup, and as fragments of two instructions. `rows`: the exponents of a
// lane's two rows (all of a warp, or with 0 none).
template <class A> struct Left {
  float x[2][8];
  u32 h[2][4], l[2][4], rows[2];
  DEV void load(u32 tile, int row) {
    const int q = lane_id() % 4;
    UNROLL for (int half = 0; half < 2; ++half)
      if constexpr (A::k_major) {
        UNROLL for (int c = 0; c < 2; ++c) {
          const Raw<16> v = shared16(A::at(tile, row + 8 * half, 8 * q + 4 * c));
          UNROLL for (int i = 0; i < 4; ++i) x[half][4 * c + i] = __uint_as_float(v.w[i]);
        }
      } else {
        UNROLL for (int e = 0; e < 8; ++e) x[half][e] = __uint_as_float(shared_word(A::at(tile, row + 8 * half, e / 4 * 16 + e / 2 % 2 * 8 + 2 * q + e % 2)));
      }
  }
  DEV void split() {
    bool fits = true;
    UNROLL for (int half = 0; half < 2; ++half) {
      u32 most = most_bits(x[half]);
      most = max(most, shuffle_xor(most, 1));
      most = max(most, shuffle_xor(most, 2));
      u32 least = least_bits(x[half]);
      if (least + SPREAD < most) least = least_but_zero(x[half]);
      rows[half] = exponent_of(most, least);
      fits = fits && rows[half];
    }
    if (!__all_sync(~0u, fits)) rows[0] = rows[1] = 0;
    UNROLL for (int half = 0; half < 2; ++half) {
      const float scale = scale_of(rows[half] ? rows[half] : 127);
      UNROLL for (int i = 0; i < 4; ++i) halves(x[half][2 * i], x[half][2 * i + 1], scale, h[i / 2][i % 2 * 2 + half], l[i / 2][i % 2 * 2 + half]);
    }
  }
};

// What the matrix units do not serve: 32 columns of a step of k by plain multiplications, from what lies in shared memory.
template <class A, class B, class P> DEV void by_hand(float (&sum)[16], u32 a, u32 b, int row, int column, bool planes, float unscale) {
  for (int k = 0; k < 32; ++k) {
    float x[2];
    UNROLL for (int half = 0; half < 2; ++half) x[half] = __uint_as_float(shared_word(A::at(a, row + 8 * half, k)));
    UNROLL for (int j = 0; j < 4; ++j)
      UNROLL for (int e = 0; e < 2; ++e) {
        const int n = column + 8 * j + 2 * (lane_id() % 4) + e;
        const float w = planes ? P::value(b, n, k) * unscale : __uint_as_float(shared_word(B::at(b, n, k)));
        UNROLL for (int half = 0; half < 2; ++half) sum[4 * j + 2 * half + e] = fmaf(x[half], w, sum[4 * j + 2 * half + e]);
      }
  }
}
