/* The vocabulary of CPU kernels: vectors of LANES elements, loads, stores, casts and functions, without any header.

   codegen/cpu/prelude.py copies the blocks (separated by blank lines) that a kernel mentions, directly or through other
   blocks. A block that starts with a line of types between colons is copied for each type that is mentioned: `@` stands
   for the type (f32, f64, i32, i64) and `#` for its bits.
   Registers: f32 (also for f16 and bf16), f64, i32, i64, and masks `vm`: 0 or -1 in lanes of MASK_BITS bits.
   Accuracy: within 4 ulp (tests/codegen/test_cpu_functions.py measures it); NaN and infinities as in IEEE 754. Arithmetic
   underflows gradually; exp, sigmoid and pow give 0 below the normal range. */

#define EQ static inline __attribute__((always_inline))

typedef long long pos;

void *memcpy(void *restrict to, const void *restrict from, __SIZE_TYPE__ bytes);

void *memset(void *to, int value, __SIZE_TYPE__ bytes);

typedef float vf32 __attribute__((vector_size(4 * LANES)));

typedef double vf64 __attribute__((vector_size(8 * LANES)));

typedef int vi32 __attribute__((vector_size(4 * LANES)));

typedef unsigned vu32 __attribute__((vector_size(4 * LANES)));

typedef long long vi64 __attribute__((vector_size(8 * LANES)));

typedef unsigned long long vu64 __attribute__((vector_size(8 * LANES)));

typedef unsigned short vu16 __attribute__((vector_size(2 * LANES)));

typedef unsigned char vu8 __attribute__((vector_size(LANES)));

/* Views of memory: aligned like one element. */
typedef vf32 mem_f32 __attribute__((aligned(4), may_alias));

typedef vf64 mem_f64 __attribute__((aligned(8), may_alias));

typedef vi32 mem_i32 __attribute__((aligned(4), may_alias));

typedef vi64 mem_i64 __attribute__((aligned(8), may_alias));

typedef vu16 mem_u16 __attribute__((aligned(2), may_alias));

typedef vu8 mem_u8 __attribute__((aligned(1), may_alias));

//: f32 f64 i32 i64 u16 u8 :
EQ v@ eq_load_@(const void *from) { return *(const mem_@ *)from; }

//: f32 f64 i32 i64 u16 u8 :
EQ v@ eq_load_part_@(const void *from, int lanes) {
  v@ out = {0};
  memcpy(&out, from, lanes * sizeof out[0]);
  return out;
}

//: f32 f64 i32 i64 u16 u8 :
EQ void eq_store_@(void *to, v@ value) { *(mem_@ *)to = value; }

//: f32 f64 i32 i64 u16 u8 :
EQ void eq_store_part_@(void *to, v@ value, int lanes) { memcpy(to, &value, lanes * sizeof value[0]); }

/* Subtracting +0 keeps -0, which adding it would not. */
#define eq_splat_f32(x) ((float)(x) - (vf32){0})

#define eq_splat_f64(x) ((double)(x) - (vf64){0})

#define eq_splat_i32(x) ((int)(x) - (vi32){0})

#define eq_splat_i64(x) ((long long)(x) - (vi64){0})

#define eq_splat_u16(x) ((unsigned short)(x) - (vu16){0})

#define eq_splat_u8(x) ((unsigned char)(x) - (vu8){0})

#if MASK_BITS == 32
typedef vi32 vm;
#define eq_mask32(bits) (bits)
#define eq_mask64(bits) __builtin_convertvector((bits), vi32)
#define eq_bits32(mask) (mask)
#define eq_bits64(mask) __builtin_convertvector((mask), vi64)
#else
typedef vi64 vm;
#define eq_mask32(bits) __builtin_convertvector((bits), vi64)
#define eq_mask64(bits) (bits)
#define eq_bits32(mask) __builtin_convertvector((mask), vi32)
#define eq_bits64(mask) (mask)
#endif

/* Positions first, first + 1, ... along the lanes. */
EQ vi32 eq_iota_i32(int first) {
  vi32 out;
  for (int l = 0; l < LANES; l++) out[l] = first + l;
  return out;
}

EQ vi64 eq_iota_i64(pos first) {
  vi64 out;
  for (int l = 0; l < LANES; l++) out[l] = first + l;
  return out;
}

/* The first `lanes` lanes. */
EQ vm eq_first(int lanes) { return eq_mask32(eq_iota_i32(0) < eq_splat_i32(lanes)); }

//: f32 f64 i32 i64 :
EQ v@ eq_where_@(vm mask, v@ yes, v@ no) {
  vi# m = eq_bits#(mask);
  return (v@)(((vi#)yes & m) | ((vi#)no & ~m));
}

EQ vm eq_where_m(vm mask, vm yes, vm no) { return (yes & mask) | (no & ~mask); }

//: f32 f64 i32 i64 :
EQ vm eq_lt_@(v@ a, v@ b) { return eq_mask#((vi#)(a < b)); }

//: f32 f64 i32 i64 :
EQ vm eq_le_@(v@ a, v@ b) { return eq_mask#((vi#)(a <= b)); }

//: f32 f64 i32 i64 :
EQ vm eq_eq_@(v@ a, v@ b) { return eq_mask#((vi#)(a == b)); }

//: f32 f64 i32 i64 :
EQ vm eq_true_@(v@ a) { return eq_mask#((vi#)(a != (v@){0})); }

/* Storage: 16-bit floats and bool to registers and back. bf16 and f16 round to nearest even. */
EQ vf32 eq_decode_bf16(vu16 bits) { return (vf32)(__builtin_convertvector(bits, vu32) << 16); }

EQ vu16 eq_encode_bf16(vf32 x) {
  vu32 u = (vu32)x;
  vu32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  vu32 nan = (vu32)(x != x);
  return __builtin_convertvector((rounded & ~nan) | (((u >> 16) | 0x40) & nan), vu16);
}

/* Scaling by 2^112 moves the exponent, subnormals included; infinity and NaN get theirs by hand. */
EQ vf32 eq_decode_f16(vu16 bits) {
  vu32 h = __builtin_convertvector(bits, vu32);
  vu32 magnitude = (h & 0x7fff) << 13;
  vu32 special = (vu32)(magnitude > 0x0f7fffff);
  vu32 scaled = (vu32)((vf32)magnitude * 0x1p112f);
  return (vf32)(scaled | (special & 0x7f800000) | ((h & 0x8000) << 16));
}

/* Subnormal results are rounded by an addition that aligns their last place with that of 0.5. */
EQ vu16 eq_encode_f16(vf32 x) {
  vu32 u = (vu32)x, sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  vu32 normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  vu32 small = (vu32)((vf32)magnitude + 0.5f) - 0x3f000000;
  vu32 tiny = (vu32)(magnitude < 0x38800000), big = (vu32)(magnitude >= 0x47800000), nan = (vu32)(magnitude > 0x7f800000);
  vu32 out = (small & tiny) | (normal & ~tiny);
  out = (out & ~big) | (big & (0x7c00 | (nan & 0x0200)));
  return __builtin_convertvector(out | sign, vu16);
}

EQ vm eq_decode_bool(vu8 bytes) { return eq_mask32((vi32)(__builtin_convertvector(bytes, vi32) != 0)); }

EQ vu8 eq_encode_bool(vm mask) { return __builtin_convertvector(-mask, vu8); }

EQ vf32 eq_round_bf16(vf32 x) { return eq_decode_bf16(eq_encode_bf16(x)); }

EQ vf32 eq_round_f16(vf32 x) { return eq_decode_f16(eq_encode_f16(x)); }

/* A float64 on its way to 16 bits: rounded to odd, so that the second rounding is the only one that counts. */
EQ vf32 eq_odd_f32(vf64 x) {
  vf32 near = __builtin_convertvector(x, vf32);
  vf64 back = __builtin_convertvector(near, vf64);
  vi32 inexact = __builtin_convertvector((vi64)((back != x) & (x == x)), vi32);
  vf64 magnitude = (vf64)((vi64)x & 0x7fffffffffffffffLL), got = (vf64)((vi64)back & 0x7fffffffffffffffLL);
  vi32 above = __builtin_convertvector((vi64)(got > magnitude), vi32);
  vi32 bits = (vi32)near + above;
  return (vf32)(bits | (inexact & 1));
}

/* x, or 0 for NaN and infinities: what becomes an integer. */
//: f32 f64 :
EQ v@ eq_finite_@(v@ x) { return (v@)((vi#)x & (vi#)(x - x == 0)); }

/* Integers wrap. */
//: i32 i64 :
EQ v@ eq_add_@(v@ a, v@ b) { return (v@)((vu#)a + (vu#)b); }

//: i32 i64 :
EQ v@ eq_sub_@(v@ a, v@ b) { return (v@)((vu#)a - (vu#)b); }

//: i32 i64 :
EQ v@ eq_mul_@(v@ a, v@ b) { return (v@)((vu#)a * (vu#)b); }

//: f32 f64 :
EQ v@ eq_add_@(v@ a, v@ b) { return a + b; }

//: f32 f64 :
EQ v@ eq_mul_@(v@ a, v@ b) { return a * b; }

/* NaN in either operand comes through. */
//: f32 f64 i32 i64 :
EQ v@ eq_maximum_@(v@ a, v@ b) {
  vi# m = (vi#)(a > b) | (vi#)(a != a);
  return (v@)(((vi#)a & m) | ((vi#)b & ~m));
}

//: f32 f64 i32 i64 :
EQ v@ eq_minimum_@(v@ a, v@ b) {
  vi# m = (vi#)(a < b) | (vi#)(a != a);
  return (v@)(((vi#)a & m) | ((vi#)b & ~m));
}

EQ vf32 eq_abs_f32(vf32 a) { return (vf32)((vi32)a & 0x7fffffff); }

EQ vf64 eq_abs_f64(vf64 a) { return (vf64)((vi64)a & 0x7fffffffffffffffLL); }

//: i32 i64 :
EQ v@ eq_abs_@(v@ a) {
  v@ sign = a >> (# - 1);
  return (v@)(((vu#)a ^ (vu#)sign) - (vu#)sign);
}

/* |a| with the sign of b. */
EQ vf32 eq_signed_f32(vf32 a, vf32 b) { return (vf32)((vi32)a | ((vi32)b & (int)0x80000000)); }

EQ vf64 eq_signed_f64(vf64 a, vf64 b) { return (vf64)((vi64)a | ((vi64)b & (long long)0x8000000000000000ULL)); }

/* Adding and taking away 2^23 rounds to an integer; above that every float is one. */
EQ vf32 eq_floor_f32(vf32 x) {
  vf32 magnitude = eq_abs_f32(x);
  vf32 near = eq_signed_f32((magnitude + 0x1p23f) - 0x1p23f, x);
  near -= (vf32)((vi32)(near > x) & 0x3f800000);
  return eq_where_f32(eq_mask32((vi32)(magnitude < 0x1p23f)), near, x);
}

EQ vf64 eq_floor_f64(vf64 x) {
  vf64 magnitude = eq_abs_f64(x);
  vf64 near = eq_signed_f64((magnitude + 0x1p52) - 0x1p52, x);
  near -= (vf64)((vi64)(near > x) & 0x3ff0000000000000LL);
  return eq_where_f64(eq_mask64((vi64)(magnitude < 0x1p52)), near, x);
}

//: f32 f64 :
EQ v@ eq_recip_@(v@ x) { return 1 / x; }

/* Loops over arrays, because vectors have no square root; -fno-math-errno lets the compiler use the instruction. */
EQ vf32 eq_sqrt_f32(vf32 x) {
  float t[LANES];
  memcpy(t, &x, sizeof t);
  for (int l = 0; l < LANES; l++) t[l] = __builtin_sqrtf(t[l]);
  memcpy(&x, t, sizeof t);
  return x;
}

EQ vf64 eq_sqrt_f64(vf64 x) {
  double t[LANES];
  memcpy(t, &x, sizeof t);
  for (int l = 0; l < LANES; l++) t[l] = __builtin_sqrt(t[l]);
  memcpy(&x, t, sizeof t);
  return x;
}

//: f32 f64 :
EQ v@ eq_rsqrt_@(v@ x) { return 1 / eq_sqrt_@(x); }

/* exp(x) = 2^n exp(f), |f| <= ln(2)/2. Adding 1.5*2^23 leaves n in the low bits; shifting it to the exponent drops the
   others. Results below the normal range are 0. Polynomials: least squares on Chebyshev nodes. */
EQ vf32 eq_expm1_part_f32(vf32 x, vi32 *n) {
  vf32 shifted = x * 1.44269504f + 12582912.0f;
  vf32 whole = shifted - 12582912.0f;
  vf32 f = x - whole * 0.693145751953125f;
  f = f - whole * 1.4286068203094173e-06f;
  *n = (vi32)shifted;
  vf32 q = 0.00137511501f * f + 0.00836898759f;
  q = q * f + 0.0416695438f;
  q = q * f + 0.166665182f;
  q = q * f + 0.499999881f;
  return q * (f * f) + f;
}

EQ vf32 eq_exp_f32(vf32 x) {
  vi32 n, high = ~(vi32)(x <= 88.722839f), low = (vi32)(x < -87.336548f);
  vf32 p = eq_expm1_part_f32(x, &n) + 1.0f;
  vi32 out = ((vi32)p + (n << 23)) & ~low;
  return (vf32)((out & ~high) | ((vi32)(x + __builtin_inff()) & high));
}

EQ vf64 eq_expm1_part_f64(vf64 x, vi64 *n) {
  vf64 shifted = x * 1.4426950408889634 + 6755399441055744.0;
  vf64 whole = shifted - 6755399441055744.0;
  vf64 f = x - whole * 0.6931471803691238;
  f = f - whole * 1.9082149292705877e-10;
  *n = (vi64)shifted;
  vf64 q = 1.6041380453807113e-10 * f + 2.092438900207203e-09;
  q = q * f + 2.5052242480695687e-08;
  q = q * f + 2.7557241964403717e-07;
  q = q * f + 2.7557319001512956e-06;
  q = q * f + 2.480158736320551e-05;
  q = q * f + 0.0001984126984142738;
  q = q * f + 0.0013888888888864046;
  q = q * f + 0.008333333333333285;
  q = q * f + 0.04166666666666671;
  q = q * f + 0.16666666666666666;
  q = q * f + 0.5;
  return q * (f * f) + f;
}

EQ vf64 eq_exp_f64(vf64 x) {
  vi64 n, high = ~(vi64)(x <= 709.782712893384), low = (vi64)(x < -708.3964185322641);
  vf64 p = eq_expm1_part_f64(x, &n) + 1.0;
  vi64 out = ((vi64)p + (n << 52)) & ~low;
  return (vf64)((out & ~high) | ((vi64)(x + __builtin_inf()) & high));
}

/* tanh(|x|) = E / (E + 2) with E = exp(2|x|) - 1, exact to the last places near 0 as E is. */
EQ vf32 eq_tanh_f32(vf32 x) {
  vf32 a = eq_abs_f32(x) * 2.0f;
  vi32 high = (vi32)(a > 20.0f), n;
  a = (vf32)(((vi32)a & ~high) | ((vi32)eq_splat_f32(20.0f) & high));
  vf32 part = eq_expm1_part_f32(a, &n);
  vf32 scale = (vf32)((n << 23) + 0x3f800000);
  vf32 e = part * scale + (scale - 1.0f);
  return eq_signed_f32(e / (e + 2.0f), x);
}

EQ vf64 eq_tanh_f64(vf64 x) {
  vf64 a = eq_abs_f64(x) * 2.0;
  vi64 high = (vi64)(a > 44.0), n;
  a = (vf64)(((vi64)a & ~high) | ((vi64)eq_splat_f64(44.0) & high));
  vf64 part = eq_expm1_part_f64(a, &n);
  vf64 scale = (vf64)((n << 52) + 0x3ff0000000000000LL);
  vf64 e = part * scale + (scale - 1.0);
  return eq_signed_f64(e / (e + 2.0), x);
}

/* Where the result is below the normal range in truth, it is 0 here. */
//: f32 f64 :
EQ v@ eq_sigmoid_@(v@ x) { return 1 / (1 + eq_exp_@(-x)); }

/* log(x) = e ln 2 + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2)). */
EQ vf32 eq_log_f32(vf32 x) {
  vi32 tiny = (vi32)(x < 0x1p-126f);
  vf32 y = (vf32)(((vi32)x & ~tiny) | ((vi32)(x * 0x1p23f) & tiny));
  vi32 bits = (vi32)y - 0x3f3504f3;
  vf32 e = __builtin_convertvector((bits >> 23) - (tiny & 23), vf32);
  vf32 f = (vf32)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
  vf32 r = 0.0667501688f * f - 0.116502732f;
  r = r * f + 0.119069308f;
  r = r * f - 0.124108568f;
  r = r * f + 0.14217557f;
  r = r * f - 0.166676521f;
  r = r * f + 0.200022191f;
  r = r * f - 0.250000149f;
  r = r * f + 0.333333105f;
  vf32 square = f * f;
  vf32 y1 = r * (square * f) + e * 1.4286068203094173e-06f;
  vf32 out = (y1 - 0.5f * square + f) + e * 0.693145751953125f;
  vi32 zero = (vi32)(x == 0.0f), keep = (vi32)(x == __builtin_inff()) | (vi32)(x != x), bad = (vi32)(x < 0.0f);
  out = (vf32)(((vi32)out & ~zero) | (0xff800000 & zero));
  out = (vf32)(((vi32)out & ~keep) | ((vi32)x & keep));
  return (vf32)((vi32)out | (bad & 0x7fc00000));
}

EQ vf64 eq_log_f64(vf64 x) {
  vi64 tiny = (vi64)(x < 0x1p-1022);
  vf64 y = (vf64)(((vi64)x & ~tiny) | ((vi64)(x * 0x1p52) & tiny));
  vi64 bits = (vi64)y - 0x3fe6a09e667f3bcdLL;
  vf64 e = __builtin_convertvector((bits >> 52) - (tiny & 52), vf64);
  vf64 f = (vf64)((bits & 0x000fffffffffffffLL) + 0x3fe6a09e667f3bcdLL) - 1.0;
  vf64 s = f / (2.0 + f), z = s * s;
  vf64 r = 0.14800555253576078 * z + 0.15313592519740213;
  r = r * z + 0.1818358226929742;
  r = r * z + 0.2222219822317957;
  r = r * z + 0.28571428745911026;
  r = r * z + 0.3999999999939776;
  r = r * z + 0.6666666666666737;
  vf64 half = 0.5 * f * f;
  vf64 low = s * (half + z * r) + e * 1.9082149292705877e-10;
  vf64 out = e * 0.6931471803691238 - ((half - low) - f);
  vi64 zero = (vi64)(x == 0.0), keep = (vi64)(x == __builtin_inf()) | (vi64)(x != x), bad = (vi64)(x < 0.0);
  out = (vf64)(((vi64)out & ~zero) | ((long long)0xfff0000000000000ULL & zero));
  out = (vf64)(((vi64)out & ~keep) | ((vi64)x & keep));
  return (vf64)((vi64)out | (bad & 0x7ff8000000000000LL));
}

/* erf: an odd polynomial below 1, and 1 - erfc above, where an error of erfc counts for little. */
EQ vf32 eq_erf_f32(vf32 x) {
  vf32 a = eq_abs_f32(x), z = x * x;
  vf32 p = 7.88249745e-05f * z - 0.000801885501f;
  p = p * z + 0.00518931216f;
  p = p * z - 0.0268543288f;
  p = p * z + 0.112835974f;
  p = p * z - 0.37612626f;
  p = p * z + 1.12837911f;
  vi32 high = (vi32)(a > 4.0f);
  vf32 u = (vf32)(((vi32)a & ~high) | ((vi32)eq_splat_f32(4.0f) & high)) - 2.5f;
  vf32 q = 2.17903216e-05f * u - 6.12770527e-05f;
  q = q * u + 0.000431978871f;
  q = q * u - 0.00216558645f;
  q = q * u + 0.010853773f;
  q = q * u + 0.943891764f;
  q = q * u + 5.35268068f;
  q = q * u + 7.80681515f;
  vf32 far = eq_signed_f32(1.0f - eq_exp_f32(-q), x);
  return eq_where_f32(eq_mask32((vi32)(a < 1.0f)), p * x, far);
}

EQ vf64 eq_erf_f64(vf64 x) {
  vf64 a = eq_abs_f64(x), z = x * x;
  vf64 p = 5.958930743134941e-11 * z - 1.1373902296430911e-09;
  p = p * z + 1.4660051998394848e-08;
  p = p * z - 1.6350354461959655e-07;
  p = p * z + 1.6461004480962034e-06;
  p = p * z - 1.4925595519506043e-05;
  p = p * z + 0.00012055331122299266;
  p = p * z - 0.0008548326981129666;
  p = p * z + 0.005223977624823223;
  p = p * z - 0.026866170645077334;
  p = p * z + 0.11283791670954882;
  p = p * z - 0.3761263890318375;
  p = p * z + 1.1283791670955126;
  vi64 high = (vi64)(a > 6.0);
  vf64 c = (vf64)(((vi64)a & ~high) | ((vi64)eq_splat_f64(6.0) & high));
  vf64 t = 1.0 / (c + 2.0);
  vf64 q = 128.88632444030378 * t - 670.0727788250697;
  q = q * t + 1497.0622060917758;
  q = q * t - 1899.820026615656;
  q = q * t + 1501.0847631287604;
  q = q * t - 757.2965828863585;
  q = q * t + 249.8600748418714;
  q = q * t - 64.95609280220981;
  q = q * t + 14.682623214221369;
  q = q * t + 1.185185482702654;
  q = q * t + 2.1344553467098977;
  q = q * t + 1.1177587620881517;
  q = q * t + 0.5646205961889174;
  q = q * t - 8.071908471100149e-06;
  vf64 far = eq_signed_f64(1.0 - eq_exp_f64(-c * c) * q, x);
  return eq_where_f64(eq_mask64((vi64)(a < 1.0)), p * x, far);
}

/* x = quadrant * pi/2 + r for |x| >= 2^20: x times 192 bits of 2/pi (Payne and Hanek), as whole numbers. */
static int eq_reduce_far(double x, double *r) {
  static const unsigned long long two_over_pi[21] = {
      0x0000000000000000, 0xa2f9836e4e441529, 0xfc2757d1f534ddc0, 0xdb6295993c439041, 0xfe5163abdebbc561, 0xb7246e3a424dd2e0,
      0x06492eea09d1921c, 0xfe1deb1cb129a73e, 0xe88235f52ebb4484, 0xe99c7026b45f7e41, 0x3991d639835339f4, 0x9c845f8bbdf9283b,
      0x1ff897ffde05980f, 0xef2f118b5a0a6d1f, 0x6d367ecf27cb09b7, 0x4f463f669e5fea2d, 0x7527bac7ebe5f17b, 0x3d0739f78a5292ea,
      0x6bfb5fb11f8d5d08, 0x56033046fc7b6bab, 0xf0cfbc209af4361d};
  long long bits;
  memcpy(&bits, &x, sizeof bits);
  int exponent = (int)((bits >> 52) & 0x7ff) - 1075;
  unsigned long long m = (bits & 0x000fffffffffffffLL) | 0x0010000000000000LL;
  int skip = exponent + 62, word = skip >> 6, shift = skip & 63;
  unsigned long long w[4];
  for (int i = 0; i < 4; i++) w[i] = two_over_pi[word + i];
  if (shift)
    for (int i = 0; i < 3; i++) w[i] = (w[i] << shift) | (w[i + 1] >> (64 - shift));
  unsigned __int128 low = (unsigned __int128)m * w[2], middle = (unsigned __int128)m * w[1] + (unsigned long long)(low >> 64);
  unsigned long long top = m * w[0] + (unsigned long long)(middle >> 64), next = (unsigned long long)middle;
  int quadrant = (int)(top >> 62);
  unsigned long long fraction = (top << 2) | (next >> 62), rest = next << 2;
  int negative = fraction >> 63;
  if (negative) {
    fraction = ~fraction;
    rest = ~rest;
    quadrant++;
  }
  double turn = (double)fraction * 0x1p-64 + (double)rest * 0x1p-128;
  double scaled = turn * 1.5707963267948966 + turn * 6.123233995736766e-17;
  *r = (bits < 0) != negative ? -scaled : scaled;
  return (bits < 0 ? -quadrant : quadrant) & 3;
}

/* x = quadrant * pi/2 + r, |r| <= pi/4: three parts of pi/2, and whole numbers where they would not do. */
EQ vi64 eq_reduce_f64(vf64 x, vf64 *r, vf64 *rest) {
  vf64 shifted = x * 0.6366197723675814 + 6755399441055744.0;
  vf64 n = shifted - 6755399441055744.0;
  vf64 a = x - n * 1.5707963267341256, b = n * 6.077100506303966e-11;
  vf64 y = a - b;
  vf64 tail = ((a - y) - b) - n * 2.0222662487959506e-21;
  vi64 quadrant = (vi64)shifted & 3;
  vf64 magnitude = eq_abs_f64(x);
  for (int l = 0; l < LANES; l++)
    if (!(magnitude[l] < 0x1p20)) {
      double far = magnitude[l] - magnitude[l];
      tail[l] = 0;
      if (far == 0) quadrant[l] = eq_reduce_far(x[l], &far);
      y[l] = far;
    }
  *r = y + tail;
  *rest = (y - *r) + tail;
  return quadrant;
}

/* The sine of r where the quadrant is even and the cosine where it is odd, negated in the upper half. */
EQ vf64 eq_wave_f64(vi64 quadrant, vf64 r, vf64 rest) {
  vf64 z = r * r;
  vf64 s = 1.6058360315348654e-10 - 7.578392681697595e-13 * z;
  s = s * z - 2.5052104860317288e-08;
  s = s * z + 2.7557319213983954e-06;
  s = s * z - 0.0001984126984125464;
  s = s * z + 0.008333333333333323;
  s = s * z - 0.16666666666666666;
  vf64 sine = r + (s * (z * r) + rest);
  vf64 c = 4.737828313250011e-14 * z - 1.1470286778748653e-11;
  c = c * z + 2.0876754306038494e-09;
  c = c * z - 2.755731921509186e-07;
  c = c * z + 2.480158730157078e-05;
  c = c * z - 0.0013888888888888874;
  c = c * z + 0.041666666666666664;
  vf64 half = 0.5 * z, one = 1.0 - half;
  vf64 cosine = one + (((1.0 - one) - half) + (c * (z * z) - r * rest));
  vi64 odd = -(quadrant & 1);
  vi64 out = ((vi64)cosine & odd) | ((vi64)sine & ~odd);
  return (vf64)(out ^ ((quadrant & 2) << 62));
}

EQ vf64 eq_sin_f64(vf64 x) {
  vf64 r, rest;
  vi64 quadrant = eq_reduce_f64(x, &r, &rest);
  return eq_wave_f64(quadrant, r, rest);
}

EQ vf64 eq_cos_f64(vf64 x) {
  vf64 r, rest;
  vi64 quadrant = eq_reduce_f64(x, &r, &rest);
  return eq_wave_f64(quadrant + 1, r, rest);
}

/* Computed in f64: the reduction needs it, and trigonometry is rarely where the time goes. */
EQ vf32 eq_sin_f32(vf32 x) { return __builtin_convertvector(eq_sin_f64(__builtin_convertvector(x, vf64)), vf32); }

EQ vf32 eq_cos_f32(vf32 x) { return __builtin_convertvector(eq_cos_f64(__builtin_convertvector(x, vf64)), vf32); }

/* hi + lo = a * b exactly: halves of 26 bits have exact products, with or without fused multiply-add. */
EQ vf64 eq_product_f64(vf64 a, vf64 b, vf64 *lo) {
  vf64 ah = (vf64)((vi64)a & (long long)0xfffffffff8000000ULL), bh = (vf64)((vi64)b & (long long)0xfffffffff8000000ULL);
  vf64 al = a - ah, bl = b - bh;
  vf64 hh = ah * bh, hl = ah * bl, lh = al * bh;
  vf64 cross = hl + lh, hi = hh + cross;
  *lo = (hh - hi) + cross + (((hl - cross) + lh) + al * bl);
  return hi;
}

/* pow(|a|, b) for a finite and not 0: log(a) as hi + lo to 65 bits, times b, and exp of that. */
EQ vf64 eq_pow_part_f64(vf64 a, vf64 b) {
  vi64 tiny = (vi64)(a < 0x1p-1022);
  vf64 y = (vf64)(((vi64)a & ~tiny) | ((vi64)(a * 0x1p52) & tiny));
  vi64 bits = (vi64)y - 0x3fe6a09e667f3bcdLL;
  vf64 e = __builtin_convertvector((bits >> 52) - (tiny & 52), vf64);
  vf64 f = (vf64)((bits & 0x000fffffffffffffLL) + 0x3fe6a09e667f3bcdLL) - 1.0;
  vf64 d = 2.0 + f, d_low = f - (d - 2.0), low;
  vf64 s = f / d, back = eq_product_f64(s, d, &low);
  vf64 s_low = (((f - back) - low) - s * d_low) / d;
  vf64 z_low, z = eq_product_f64(s, s, &z_low);
  z_low += 2.0 * s * s_low;
  vf64 r = 0.11995869961603041 * z + 0.11673947547361024;
  r = r * z + 0.1333636320594697;
  r = r * z + 0.15384555586898277;
  r = r * z + 0.1818181889091417;
  r = r * z + 0.2222222221734922;
  r = r * z + 0.28571428571445995;
  r = (r * z + 0.39999999999999974) * z;
  vf64 c = 0.6666666666666666 + r, c_low = 3.700743415417188e-17 + (r - (c - 0.6666666666666666));
  vf64 g_low, g = eq_product_f64(z, c, &g_low);
  g_low += z * c_low + z_low * c;
  vf64 h_low, h = eq_product_f64(s, g, &h_low);
  h_low += s * g_low + s_low * g;
  vf64 hi = e * 0.6931471803691238, lo = e * 1.9082149292705877e-10, t;
  vf64 two = 2.0 * s;
  t = hi + two;
  lo += (vf64)(((vi64)((hi - t) + two) & (vi64)(e != 0.0)));
  hi = t;
  t = hi + h;
  vf64 u = t - hi;
  lo += (hi - (t - u)) + (h - u) + (h_low + 2.0 * s_low);
  hi = t + lo;
  lo = (t - hi) + lo;
  vf64 p_low, p = eq_product_f64(hi, b, &p_low);
  vi64 over = (vi64)(eq_abs_f64(p) < 1024.0);
  p_low = (vf64)((vi64)(p_low + lo * b) & over);
  vf64 out = eq_exp_f64(p);
  vi64 finite = (vi64)(out < __builtin_inf());
  return out + (vf64)((vi64)(out * p_low) & finite);
}

/* pow as IEEE 754 has it: 1 for b = 0 or a = 1, signs by odd whole b, NaN for a < 0 and b not whole. */
EQ vf64 eq_pow_f64(vf64 a, vf64 b) {
  vf64 m = eq_abs_f64(a), n = eq_abs_f64(b);
  vf64 out = eq_pow_part_f64(m, eq_where_f64(eq_mask64((vi64)(n < 0x1p1000)), b, eq_signed_f64(eq_splat_f64(0x1p1000), b)));
  vi64 up = (vi64)((vi64)(m > 1.0) == (vi64)(b > 0.0)), edge = (vi64)(m == 0.0) | (vi64)(m == __builtin_inf());
  edge |= (vi64)(n == __builtin_inf());
  out = (vf64)(((vi64)out & ~edge) | (up & edge & 0x7ff0000000000000LL));
  vi64 whole = (vi64)(eq_floor_f64(b) == b), odd = whole & (vi64)(eq_floor_f64(b * 0.5) != b * 0.5) & (vi64)(n < 0x1p53);
  vi64 negative = (vi64)a >> 63;
  out = (vf64)((vi64)out ^ (negative & odd & (long long)0x8000000000000000ULL));
  vi64 bad = (vi64)(a < 0.0) & ~whole & (vi64)(m < __builtin_inf());
  bad |= (vi64)(a != a) | (vi64)(b != b);
  out = (vf64)((vi64)out | (bad & 0x7ff8000000000000LL));
  vi64 one = (vi64)(b == 0.0) | (vi64)(a == 1.0) | ((vi64)(a == -1.0) & (vi64)(n == __builtin_inf()));
  return (vf64)(((vi64)out & ~one) | (0x3ff0000000000000LL & one));
}

/* f32 through f64: log and exp there are far more accurate than needed. */
EQ vf32 eq_pow_f32(vf32 a, vf32 b) {
  return __builtin_convertvector(eq_pow_f64(__builtin_convertvector(a, vf64), __builtin_convertvector(b, vf64)), vf32);
}

/* The lanes moved by 1, 2, 4 or 8 places to later (sooner) ones; what moves in is a lane of the second vector. */
#if LANES == 2
#define eq_later1(x, none) __builtin_shufflevector(x, none, 2, 0)
#define eq_sooner1(x, none) __builtin_shufflevector(x, none, 1, 2)
#elif LANES == 4
#define eq_later1(x, none) __builtin_shufflevector(x, none, 4, 0, 1, 2)
#define eq_sooner1(x, none) __builtin_shufflevector(x, none, 1, 2, 3, 4)
#define eq_later2(x, none) __builtin_shufflevector(x, none, 4, 4, 0, 1)
#define eq_sooner2(x, none) __builtin_shufflevector(x, none, 2, 3, 4, 4)
#elif LANES == 8
#define eq_later1(x, none) __builtin_shufflevector(x, none, 8, 0, 1, 2, 3, 4, 5, 6)
#define eq_sooner1(x, none) __builtin_shufflevector(x, none, 1, 2, 3, 4, 5, 6, 7, 8)
#define eq_later2(x, none) __builtin_shufflevector(x, none, 8, 8, 0, 1, 2, 3, 4, 5)
#define eq_sooner2(x, none) __builtin_shufflevector(x, none, 2, 3, 4, 5, 6, 7, 8, 8)
#define eq_later4(x, none) __builtin_shufflevector(x, none, 8, 8, 8, 8, 0, 1, 2, 3)
#define eq_sooner4(x, none) __builtin_shufflevector(x, none, 4, 5, 6, 7, 8, 8, 8, 8)
#elif LANES == 16
#define eq_later1(x, none) __builtin_shufflevector(x, none, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
#define eq_sooner1(x, none) __builtin_shufflevector(x, none, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
#define eq_later2(x, none) __builtin_shufflevector(x, none, 16, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
#define eq_sooner2(x, none) __builtin_shufflevector(x, none, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16)
#define eq_later4(x, none) __builtin_shufflevector(x, none, 16, 16, 16, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
#define eq_sooner4(x, none) __builtin_shufflevector(x, none, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16, 16, 16)
#define eq_later8(x, none) __builtin_shufflevector(x, none, 16, 16, 16, 16, 16, 16, 16, 16, 0, 1, 2, 3, 4, 5, 6, 7)
#define eq_sooner8(x, none) __builtin_shufflevector(x, none, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16, 16, 16, 16, 16, 16, 16)
#endif

/* Reductions over the lanes, by halves. */
//: f32 f64 :
EQ v@ eq_fold_add_@(v@ x) {
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) x[l] += x[l + half];
  return eq_splat_@(x[0]);
}

//: i32 i64 :
EQ v@ eq_fold_add_@(v@ x) {
  vu# u = (vu#)x;
  for (int l = 1; l < LANES; l++) u[0] += u[l];
  return eq_splat_@(u[0]);
}

//: f32 f64 :
EQ v@ eq_fold_mul_@(v@ x) {
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) x[l] *= x[l + half];
  return eq_splat_@(x[0]);
}

//: i32 i64 :
EQ v@ eq_fold_mul_@(v@ x) {
  vu# u = (vu#)x;
  for (int l = 1; l < LANES; l++) u[0] *= u[l];
  return eq_splat_@(u[0]);
}

//: f32 f64 i32 i64 :
EQ v@ eq_fold_maximum_@(v@ x) {
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) x[l] = x[l] > x[l + half] || x[l] != x[l] ? x[l] : x[l + half];
  return eq_splat_@(x[0]);
}

//: f32 f64 i32 i64 :
EQ v@ eq_fold_minimum_@(v@ x) {
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) x[l] = x[l] < x[l + half] || x[l] != x[l] ? x[l] : x[l + half];
  return eq_splat_@(x[0]);
}

EQ vm eq_fold_or_m(vm x) {
  for (int l = 1; l < LANES; l++) x[0] |= x[l];
  return x[0] - (vm){0};
}

EQ vm eq_fold_and_m(vm x) {
  for (int l = 1; l < LANES; l++) x[0] &= x[l];
  return x[0] - (vm){0};
}

/* Whether x comes before y in a search for the greatest (least): NaN first, then the value, then the place. */
//: f32 f64 i32 i64 :
EQ vm eq_beats_max_@(v@ x, v@ y) {
  return eq_mask#((vi#)(x > y) | ((vi#)(x != x) & (vi#)(y == y)));
}

//: f32 f64 i32 i64 :
EQ vm eq_beats_min_@(v@ x, v@ y) {
  return eq_mask#((vi#)(x < y) | ((vi#)(x != x) & (vi#)(y == y)));
}

/* The place of the winner over all lanes, the first of equals. */
//: f32 f64 i32 i64 :
EQ vi64 eq_fold_argmax_@(v@ x, vi64 at) {
  int best = 0;
  for (int l = 1; l < LANES; l++) {
    int same = x[l] == x[best] || (x[l] != x[l] && x[best] != x[best]);
    if (same ? at[l] < at[best] : x[l] > x[best] || x[l] != x[l]) best = l;
  }
  return eq_splat_i64(at[best]);
}

//: f32 f64 i32 i64 :
EQ vi64 eq_fold_argmin_@(v@ x, vi64 at) {
  int best = 0;
  for (int l = 1; l < LANES; l++) {
    int same = x[l] == x[best] || (x[l] != x[l] && x[best] != x[best]);
    if (same ? at[l] < at[best] : x[l] < x[best] || x[l] != x[l]) best = l;
  }
  return eq_splat_i64(at[best]);
}

EQ pos eq_floordiv(pos a, pos b) { return a / b - (a % b < 0); }

EQ pos eq_floormod(pos a, pos b) { return a % b + (a % b < 0 ? b : 0); }
