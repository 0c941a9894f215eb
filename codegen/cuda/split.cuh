// split.cuh: f32 matrices as two f16 planes. x·s = h + l/2048, s a power of two for each row (of the left operand) or panel of
// 32 columns (of the right one), which stays from step to step while every h is a normal number or 0 and none overflows: then
// h + l/2048 is x·s to 2^-22. What no scale serves stays as it is.
DEV u32 word_at(u32 at) { u32 v; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory"); return v; }
DEV u32 half_at(u32 at) { u16 v; asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at) : "memory"); return v; }
// The numbers of the thread and of the block, asked for anew: what is made from them is not kept in registers between uses.
DEV u32 this_thread() { u32 t; asm volatile("mov.u32 %0, %%tid.x;" : "=r"(t)); return t; }
DEV u32 this_block() { u32 b; asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(b)); return b; }
DEV u32 row_of(u32 t) { return (t >> 5) * 16 + (t >> 2 & 7); }  // the first of a consumer's two rows in the tile
DEV void put_word(u32 at, u32 v) { asm volatile("st.shared.u32 [%0], %1;" :: "r"(at), "r"(v) : "memory"); }
DEV void put_byte(u32 at, u32 v) { asm volatile("st.shared.u8 [%0], %1;" :: "r"(at), "r"(v) : "memory"); }
DEV void put16(u32 at, u32 a, u32 b, u32 c, u32 d) { asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" :: "r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory"); }
DEV u32 warp_max(u32 v) { u32 r; asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(r) : "r"(v)); return r; }
DEV u32 warp_min(u32 v) { u32 r; asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;" : "=r"(r) : "r"(v)); return r; }
DEV u32 halves_most(u32 most, u32 h) { u32 r; asm("{ .reg .b32 a; abs.f16x2 a, %2; max.NaN.f16x2 %0, %1, a; }" : "=r"(r) : "r"(most), "r"(h)); return r; }
DEV u32 halves_least(u32 least, u32 h) { u32 r; asm("{ .reg .b32 a; abs.f16x2 a, %2; min.f16x2 %0, %1, a; }" : "=r"(r) : "r"(least), "r"(h)); return r; }

// A scale is named by a biased exponent e: 2^(14 - (e - 127)), so that sizes up to 2^e·(2 - 2^-10) do not overflow. It is chosen four
// times smaller than a first step's largest size needs. Products of two scales are normal numbers, 2^-11 of them too.
constexpr u32 LEAST_EXPONENT = 84, MOST_EXPONENT = 204, UNKNOWN = 83;
DEV float scale_of(u32 e) { return __uint_as_float((268 - e) << 23); }
DEV float unscale_of(u32 e) { return __uint_as_float((e - 14) << 23); }
DEV float product_scale(u32 a, u32 b) { return __uint_as_float((a + b - 155) << 23); }  // 1 / (scale_of(a)·scale_of(b))
// Whether all halves, by their largest and least sizes, are finite and normal.
DEV bool are_normal(u32 most, u32 least) { return ((least + 0x7c007c00u) & ~(most + 0x04000400u) & 0x80008000u) == 0x80008000u; }

// The exponent for sizes of which these are the bits of the largest and of the least that is not 0: as it was, if it still serves,
// else a new one, 0 if none serves.
DEV u32 exponent_for(u32 most, u32 least, u32 before) {
  const float scale = scale_of(before), top = __uint_as_float(most), bottom = __uint_as_float(least);
  if (most == 0 || (before != UNKNOWN && top * scale <= 65504.f && bottom * scale >= 0x1p-14f)) return before;
  const u32 e = (most >> 23) + 2;
  return e < LEAST_EXPONENT || e > MOST_EXPONENT || bottom * scale_of(e) < 0x1p-14f ? 0u : e;
}
template <int N> DEV u32 most_bits(const float (&x)[N]) {
  float most = fabsf(x[0]);
  UNROLL for (int i = 1; i < N; ++i) most = eq_max_nan(most, fabsf(x[i]));
  return __float_as_uint(most) & 0x7fffffffu;
}
template <int N> DEV u32 least_bits(const float (&x)[N]) {  // of those that are not 0; if there are none, of a large number
  float least = 0x1p127f;
  UNROLL for (int i = 0; i < N; ++i) least = fminf(least, x[i] == 0.f ? 0x1p127f : fabsf(x[i]));
  return __float_as_uint(least);
}
DEV void halves(float x, float y, float scale, u32& h, u32& l) {
  const float a = x * scale, b = y * scale;
  h = pack_f16(a, b);
  l = pack_f16((a - f16_lo(h)) * 2048.f, (b - f16_hi(h)) * 2048.f);
}

// The place of element k of a step of 32 in the planes. Where the left operand lies k-major a thread takes 8 neighbours of k, which
// are the elements 2q, 2q+1, 2q+8, 2q+9 of two instructions' fragments; any order of k will do if both operands have it.
template <bool MIXED> DEV constexpr u32 place(u32 k) { return MIXED ? (k & 4) << 2 | (k & 2) << 2 | (k >> 3) << 1 | (k & 1) : k; }

// Tiles of 32 elements of k in f32, written by TMA with a 128-byte swizzle, in panels of 32 rows (or columns) of 4 KB.
// KMajor32: in a panel each row is 128 bytes. MnMajor32: each k is.
template <int ROWS> struct KMajor32 {
  static constexpr u32 bytes = ROWS * 128;
  static constexpr bool k_major = true;
  DEV static u32 at(u32 tile, u32 row, u32 k) { return tile + ((row * 128 + k * 4) ^ ((row & 7) << 4)); }
  DEV static void load(u32 tile, const TMap* map, u32 full, int row, int k, int batch) { tma_load3(tile, map, full, k, row, batch); }
};
template <int ROWS> struct MnMajor32 {
  static constexpr u32 bytes = ROWS * 128;
  static constexpr bool k_major = false;
  DEV static u32 at(u32 tile, u32 row, u32 k) { return tile + (row >> 5) * 4096 + ((k * 128 + (row & 31) * 4) ^ ((k & 7) << 4)); }
  DEV static void load(u32 tile, const TMap* map, u32 full, int row, int k, int batch) {
    UNROLL for (int p = 0; p < ROWS / 32; ++p) tma_load3(tile + p * 4096, map, full, row + p * 32, k, batch);
  }
};

// The right operand's panels become planes in place, each by one warp, with the exponent that it used before, if it serves; `convert`
// returns the exponent, 0 if the panel stays f32. k-major: a row is 64 bytes of h and 64 of l, under the swizzle of 128 bytes. Else h
// and l take 2 KB each, 64 bytes for each k, in the canonical MN-major layout of the 64-byte swizzle. MIXED: the order of k, as of
// `place`. `descriptor` + `step` (in units of 16 bytes): 32 columns on, from h to l, 16 elements of k on.
template <class P> DEV u32 exponent_of(const P panel, u32 before) {
  u32 top = 0, bottom = 0x7fffffffu;
  UNROLL for (int part = 0; part < 2; ++part) {
    float x[16];
    if (part) __syncwarp();
    panel.load(part, x);
    top = max(top, most_bits(x));
    bottom = min(bottom, least_bits(x));
  }
  return exponent_for(warp_max(top), warp_min(bottom), before);
}
template <class P> DEV u32 convert_with(const P panel, u32 exponent) {  // returns another exponent, or 0, if this one does not serve
  u32 h[16], l[16], most = 0, least = 0x7bff7bffu;
  const float scale = scale_of(exponent);
  UNROLL for (int part = 0; part < 2; ++part) {
    float x[16];
    if (part) __syncwarp();  // keeps ptxas from loading all at once, which takes more registers than there are
    panel.load(part, x);
    UNROLL for (int i = 0; i < 8; ++i) {
      halves(x[2 * i], x[2 * i + 1], scale, h[8 * part + i], l[8 * part + i]);
      most = halves_most(most, h[8 * part + i]);
      least = halves_least(least, h[8 * part + i]);
    }
  }
  if (!__all_sync(~0u, are_normal(most, least))) {  // or there are zeros; to keep all of x would take registers in every step
    const u32 found = exponent_of(panel, exponent);
    if (found != exponent) return found;
  }
  __syncwarp();  // all have read before one writes
  UNROLL for (int c = 0; c < 4; ++c) panel.put(c, h + 4 * c, l + 4 * c);
  return exponent;
}
template <class P> DEV u32 convert_panel(const P panel, u32 exponent) {
  while (true) {
    const u32 found = exponent == UNKNOWN ? exponent_of(panel, UNKNOWN) : convert_with(panel, exponent);
    if (found == exponent) return found == UNKNOWN ? convert_with(panel, LEAST_EXPONENT) : found;
    if (!found) return 0;
    exponent = found;
  }
}
template <class B, bool MIXED> struct Planes;
template <int N, bool MIXED> struct Planes<KMajor32<N>, MIXED> {
  static constexpr int column = 256, low = 4, step = 2;
  DEV static u64 descriptor(u32 tile) { return desc128(tile); }
  DEV static float value(u32 tile, u32 n, u32 k) {  // h + l/2048
    const u32 at = tile + ((n * 128 + place<MIXED>(k) * 2) ^ ((n & 7) << 4));
    return f16_value((u16)half_at(at)) + f16_value((u16)half_at(at ^ 64)) * 0x1p-11f;
  }
  u32 first;  // chunk 0 of a lane's row
  DEV void put(int c, const u32* h, const u32* l) const {
    put16(first ^ c * 16, h[0], h[1], h[2], h[3]);
    put16(first ^ (c * 16 + 64), l[0], l[1], l[2], l[3]);
  }
  DEV void load(int part, float (&x)[16]) const {  // what becomes elements 16·part and on of the planes
    UNROLL for (int c = 0; c < 4; ++c) {
      const Raw<16> v = shared16(first ^ (MIXED ? 2 * c + part : 4 * part + c) * 16);
      UNROLL for (int i = 0; i < 4; ++i) x[MIXED ? i / 2 * 8 + 2 * c + i % 2 : 4 * c + i] = __uint_as_float(v.w[i]);
    }
  }
  DEV static u32 convert(u32 panel, u32 exponent) { return convert_panel(Planes{panel + lane_id() * 128 + ((lane_id() & 7) << 4)}, exponent); }
};
template <int N, bool MIXED> struct Planes<MnMajor32<N>, MIXED> {
  static constexpr int column = 256, low = 128, step = 64;
  DEV static u64 descriptor(u32 tile) { return (u64)((tile & 0x3ffff) >> 4) | ((u64)(4096 >> 4) << 16) | ((u64)(512 >> 4) << 32) | (2ull << 62); }
  DEV static u32 chunk(u32 panel, u32 p, u32 c) { return panel + ((p * 64 + c * 16) ^ (p >> 1 & 3) << 4); }
  DEV static float value(u32 tile, u32 n, u32 k) {
    const u32 at = chunk(tile + (n >> 5) * 4096, place<MIXED>(k), n >> 3 & 3) + (n & 7) * 2;
    return f16_value((u16)half_at(at)) + f16_value((u16)half_at(at + 2048)) * 0x1p-11f;
  }
  u32 from, to;  // a lane has 8 neighbours of n at each of 4 elements of k: where the first is read, and where it goes
  DEV void put(int c, const u32* h, const u32* l) const {
    const u32 at = MIXED ? (to ^ c << 4) + c * 128 : to + c * 512;
    put16(at, h[0], h[1], h[2], h[3]);
    put16(at + 2048, l[0], l[1], l[2], l[3]);
  }
  DEV void load(int part, float (&x)[16]) const {
    UNROLL for (int i = 0; i < 2; ++i)
      UNROLL for (int c = 0; c < 2; ++c) {
        const Raw<16> v = shared16((from ^ c * 16) + (16 * part + 8 * i) * 128);
        UNROLL for (int e = 0; e < 4; ++e) x[8 * i + 4 * c + e] = __uint_as_float(v.w[e]);
      }
  }
  DEV static u32 convert(u32 panel, u32 exponent) {
    const u32 group = lane_id() & 3, k = (u32)lane_id() >> 2;
    return convert_panel(Planes{panel + ((k * 128 + group * 32) ^ k << 4), chunk(panel, place<MIXED>(k), group)}, exponent);
  }
};

// 64×32 of the left operand as fragments of two instructions, in the registers of a warpgroup; `x` is one of a lane's two rows.
struct Fragments {
  u32 h[2][4], l[2][4];
  DEV void clear() {
    UNROLL for (int i = 0; i < 8; ++i) h[i / 4][i % 4] = l[i / 4][i % 4] = 0;
  }
};
template <class A> struct Left {
  DEV static void load(u32 tile, int half, float (&x)[8]) {
    const u32 t = this_thread(), first = A::at(tile, row_of(t), (A::k_major ? 8 : 2) * (t & 3));
    if constexpr (A::k_major) {
      UNROLL for (int c = 0; c < 2; ++c) {
        const Raw<16> v = shared16((first ^ c * 16) + half * 1024);
        UNROLL for (int i = 0; i < 4; ++i) x[4 * c + i] = __uint_as_float(v.w[i]);
      }
    } else {
      UNROLL for (int e = 0; e < 8; ++e) x[e] = __uint_as_float(word_at((first ^ (half * 32 + e % 2 * 16)) + e % 2 * 128 + e / 2 * 1024));
    }
  }
  DEV static bool split(u32 tile, u32 rows, Fragments& to) {  // by the exponents of both rows; whether they serve
    u32 most = 0, least = 0x7bff7bffu;
    UNROLL for (int half = 0; half < 2; ++half) {
      const float scale = scale_of(rows >> 8 * half & 255);
      float x[8];
      if (half) __syncwarp();  // keeps ptxas from loading all at once
      load(tile, half, x);
      UNROLL for (int i = 0; i < 4; ++i) {
        u32& h = to.h[i / 2][i % 2 * 2 + half];
        halves(x[2 * i], x[2 * i + 1], scale, h, to.l[i / 2][i % 2 * 2 + half]);
        most = halves_most(most, h);
        least = halves_least(least, h);
      }
    }
    return __all_sync(~0u, are_normal(most, least));
  }
  DEV static u32 choose(u32 tile, u32 before) {  // exponents for these rows, 0 if there are none for a row of the warp
    u32 found[2];
    UNROLL for (int half = 0; half < 2; ++half) {
      float x[8];
      load(tile, half, x);
      u32 most = most_bits(x), least = least_bits(x);
      UNROLL for (int away = 1; away < 4; away *= 2) {
        most = max(most, shuffle_xor(most, away));
        least = min(least, shuffle_xor(least, away));
      }
      found[half] = exponent_for(most, least, before >> 8 * half & 255);
    }
    return __all_sync(~0u, found[0] && found[1]) ? found[0] | found[1] << 8 : 0;
  }
};

// What the matrix units do not serve: 32 columns of a step of k by plain multiplications, from what lies in shared memory.
template <class A, class B, class P> DEV void by_hand(float (&sum)[16], u32 a, u32 b, u32 column, bool planes, float unscale) {
  const u32 t = this_thread(), row = row_of(t);
  for (u32 k = 0; k < 32; ++k) {
    float x[2];
    UNROLL for (u32 half = 0; half < 2; ++half) x[half] = __uint_as_float(word_at(A::at(a, row + 8 * half, k)));
    UNROLL for (int j = 0; j < 4; ++j)
      UNROLL for (int e = 0; e < 2; ++e) {
        const u32 n = column + 8 * j + 2 * (t & 3) + e;
        const float w = planes ? P::value(b, n, k) * unscale : __uint_as_float(word_at(B::at(b, n, k)));
        UNROLL for (int half = 0; half < 2; ++half) sum[4 * j + 2 * half + e] = fmaf(x[half], w, sum[4 * j + 2 * half + e]);
      }
  }
}
