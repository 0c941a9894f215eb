// math.cuh: one device function eq_<op> for every op of the op table, over float, double, integers and bool.
// NumPy's meaning: maximum and minimum hand on NaN, integer operands of a float op become float. Strict accuracy: at most
// a few units in the last place over the whole range, denormals kept; no fast-math approximation stands alone.

#define EQ_INF __uint_as_float(0x7f800000u)
#define EQ_NAN __uint_as_float(0x7fc00000u)

// The type in which an op computes on its operands, and the same made a float.
template <class T> struct Floating { typedef float type; };
template <> struct Floating<double> { typedef double type; };
template <class A, class B> struct Common { typedef decltype(A() + B()) type; };
template <> struct Common<bool, bool> { typedef bool type; };
// i64 with float is float here (NumPy would take double): the op table's promotion.
template <class A, class B> using common_t = typename Common<A, B>::type;
template <class T> using floating_t = typename Floating<T>::type;

DEV float eq_max_nan(float a, float b) { float r; asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
DEV float eq_min_nan(float a, float b) { float r; asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
template <class T> DEV T eq_max_nan(T a, T b) { return a > b || a != a ? a : b; }
template <class T> DEV T eq_min_nan(T a, T b) { return a < b || a != a ? a : b; }
template <class A, class B> DEV common_t<A, B> eq_maximum(A a, B b) { return eq_max_nan((common_t<A, B>)a, (common_t<A, B>)b); }
template <class A, class B> DEV common_t<A, B> eq_minimum(A a, B b) { return eq_min_nan((common_t<A, B>)a, (common_t<A, B>)b); }

template <class A, class B> DEV common_t<A, B> eq_add(A a, B b) { return a + b; }
template <class A, class B> DEV common_t<A, B> eq_sub(A a, B b) { return a - b; }
template <class A, class B> DEV common_t<A, B> eq_mul(A a, B b) { return a * b; }
template <class A, class B> DEV floating_t<common_t<A, B>> eq_div(A a, B b) {
  typedef floating_t<common_t<A, B>> F;
  return (F)a / (F)b;
}
DEV float eq_fma(float a, float b, float c) { return fmaf(a, b, c); }
DEV double eq_fma(double a, double b, double c) { return fma(a, b, c); }
// a / b where r = 1 / b is at hand (b the same for a whole row): one Newton step, then off by at most one unit in the last
// place; where the step leaves the finite numbers the plain product has the right infinity, zero or NaN.
template <class F> DEV F eq_div_by(F a, F b, F r) {
  const F q = a * r, p = eq_fma(eq_fma(-q, b, a), r, q);
  return p - p == (F)0 ? p : q;
}

template <class T> DEV T eq_neg(T a) { return -a; }
template <class T> DEV T eq_abs(T a) { return a < 0 ? -a : a; }
DEV float eq_abs(float a) { return fabsf(a); }
DEV double eq_abs(double a) { return fabs(a); }
DEV bool eq_abs(bool a) { return a; }

#define EQ_UNARY(name, single, dbl)                               \
  DEV float eq_##name(float a) { return single; }                 \
  DEV double eq_##name(double a) { return dbl; }                  \
  template <class T> DEV float eq_##name(T a) { return eq_##name((float)a); }
EQ_UNARY(recip, 1.f / a, 1. / a)
EQ_UNARY(exp, expf(a), exp(a))
EQ_UNARY(log, logf(a), log(a))
EQ_UNARY(sqrt, sqrtf(a), sqrt(a))
EQ_UNARY(rsqrt, rsqrtf(a), rsqrt(a))
EQ_UNARY(tanh, tanhf(a), tanh(a))
DEV float eq_ex2(float a) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a)); return r; }
DEV float eq_erf_of(float a) {  // 1.2 units in the last place
  const float t = fabsf(a), s = a * a;
  float r = fmaf(fmaf(-1.72853470e-5f, t, 3.83197126e-4f), s, fmaf(-3.88396438e-3f, t, 2.42546219e-2f));
  r = fmaf(fmaf(fmaf(r, t, -1.06777877e-1f), t, -6.34846687e-1f), t, -1.28717512e-1f);
  const float large = copysignf(1.f - eq_ex2(fmaf(r, t, -t) * 1.442695041f), a);
  r = fmaf(fmaf(fmaf(fmaf(fmaf(-5.96761703e-4f, s, 4.99119423e-3f), s, -2.67681349e-2f), s, 1.12819925e-1f), s, -3.76125336e-1f), s, 1.28379166e-1f);
  return t > 0.927734375f ? large : fmaf(r, a, a);
}
EQ_UNARY(erf, eq_erf_of(a), erf(a))
// The denominator is at least 1, so the approximate reciprocal (1 unit in the last place) needs no care for denormals.
DEV float eq_rcp_above_one(float a) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a)); return r; }
EQ_UNARY(sigmoid, eq_rcp_above_one(1.f + expf(-a)), 1. / (1. + exp(-a)))
// Short forms, for results that are stored in 16 bits (see shorten.py). exp and sigmoid: (|a| + 4) units, what rounding the
// argument itself brings; results under 2^-126 are flushed. erf and tanh: 4 units absolute.
DEV float eq_exp_short(float a) { return eq_ex2(a * 1.442695041f); }
DEV float eq_sigmoid_short(float a) { return eq_rcp_above_one(1.f + eq_ex2(a * -1.442695041f)); }
DEV float eq_tanh_short(float a) { return fmaf(-2.f, eq_rcp_above_one(1.f + eq_ex2(a * 2.885390082f)), 1.f); }
DEV float eq_erf_short(float a) {  // 1 - 2^p(|a|), p fitted to log2(erfc) with the weight erfc (linear programming)
  const float t = fabsf(a);
  float p = fmaf(fmaf(fmaf(-6.594046135e-5f, t, 6.005598116e-4f), t, -1.944649732e-3f), t, -1.133407131e-4f);
  p = fmaf(fmaf(fmaf(fmaf(p, t, 2.775488235e-2f), t, -1.482941508e-1f), t, -9.184468985e-1f), t, -1.627907038f);
  return copysignf(1.f - eq_ex2(p * t), a);
}
template <class T> DEV T eq_floor(T a) { return a; }
DEV float eq_floor(float a) { return floorf(a); }
DEV double eq_floor(double a) { return floor(a); }
DEV float eq_pow_of(float a, float b) { return powf(a, b); }
DEV double eq_pow_of(double a, double b) { return pow(a, b); }
template <class A, class B> DEV floating_t<common_t<A, B>> eq_pow(A a, B b) {
  typedef floating_t<common_t<A, B>> F;
  return eq_pow_of((F)a, (F)b);
}

template <class A, class B> DEV bool eq_lt(A a, B b) { return (common_t<A, B>)a < (common_t<A, B>)b; }
template <class A, class B> DEV bool eq_le(A a, B b) { return (common_t<A, B>)a <= (common_t<A, B>)b; }
template <class A, class B> DEV bool eq_eq(A a, B b) { return (common_t<A, B>)a == (common_t<A, B>)b; }
DEV bool eq_and(bool a, bool b) { return a && b; }
DEV bool eq_or(bool a, bool b) { return a || b; }
DEV bool eq_not(bool a) { return !a; }
template <class A, class B> DEV common_t<A, B> eq_and(A a, B b) { return a & b; }
template <class A, class B> DEV common_t<A, B> eq_or(A a, B b) { return a | b; }
template <class T> DEV T eq_not(T a) { return ~a; }
template <class A, class B> DEV common_t<A, B> eq_where(bool c, A a, B b) { return c ? (common_t<A, B>)a : (common_t<A, B>)b; }

// Casts round to the named type; 16-bit floats stay in a float register.
template <class T> DEV double eq_cast_f64(T a) { return (double)a; }
template <class T> DEV float eq_cast_f32(T a) { return (float)a; }
template <class T> DEV float eq_cast_bf16(T a) { return bf16_lo(pack_bf16((float)a, 0.f)); }
template <class T> DEV float eq_cast_f16(T a) { return f16_lo(pack_f16((float)a, 0.f)); }
// What is not finite becomes 0, as the oracle has it.
template <class T> DEV i64 eq_cast_i64(T a) { return (i64)a; }
template <class T> DEV int eq_cast_i32(T a) { return (int)a; }
DEV i64 eq_cast_i64(float a) { return a - a == 0.f ? (i64)a : 0; }
DEV int eq_cast_i32(float a) { return a - a == 0.f ? (int)a : 0; }
DEV i64 eq_cast_i64(double a) { return a - a == 0. ? (i64)a : 0; }
DEV int eq_cast_i32(double a) { return a - a == 0. ? (int)a : 0; }
template <class T> DEV bool eq_cast_bool(T a) { return a != (T)0; }

// Division and remainder that floor, by a positive constant.
template <class T> DEV T eq_floordiv(T a, int b) { return a / b - (a % b < 0); }
template <class T> DEV T eq_floormod(T a, int b) { const T r = a % b; return r < 0 ? r + b : r; }

// sin and cos. The library's own large-argument path keeps an array in local memory (a stack frame); this one reads 2/π out of
// constant memory instead (Payne and Hanek). x = quadrant·π/2 + r, |r| ≤ π/4.
__constant__ const u64 EQ_TWO_OVER_PI[20] = {  // the bits of 1/(2π) behind the binary point
  0x28be60db9391054aull, 0x7f09d5f47d4d3770ull, 0x36d8a5664f10e410ull, 0x7f9458eaf7aef158ull, 0x6dc91b8e909374b8ull,
  0x01924bba82746487ull, 0x3f877ac72c4a69cfull, 0xba208d7d4baed121ull, 0x3a671c09ad17df90ull, 0x4e64758e60d4ce7dull,
  0x272117e2ef7e4a0eull, 0xc7fe25fff7816603ull, 0xfbcbc462d6829b47ull, 0xdb4d9fb3c9f2c26dull, 0xd3d18fd9a797fa8bull,
  0x5d49eeb1faf97c5eull, 0xcf41ce7de294a4baull, 0x9afed7ec47e35742ull, 0x1580cc11bf1edaeaull, 0xfc33ef0826bd0d87ull};
DEV u64 eq_turn_bits(int i, int shift) {  // 64 bits of 1/(2π) from bit 64·i + shift on
  const u64 a = i < 0 ? 0 : EQ_TWO_OVER_PI[i], b = EQ_TWO_OVER_PI[i + 1];
  return shift ? (a << shift) | (b >> (64 - shift)) : a;
}
DEV double eq_reduce_large(double x, int& quadrant) {
  const u64 bits = (u64)__double_as_longlong(x), m = (bits << 11) | (1ull << 63);  // |x| = m · 2^(e − 64)
  const int e = (int)((bits >> 52) & 0x7ff) - 1022, i = e >> 6, shift = e & 63;
  const u64 whole = eq_turn_bits(i - 1, shift), high = eq_turn_bits(i, shift), low = eq_turn_bits(i + 1, shift);
  u64 lo = m * high + __umul64hi(m, low), hi = __umul64hi(m, high) + m * whole;  // |x| / 2π modulo 1, in units of 2^−128
  hi += lo < m * high ? 1 : 0;
  quadrant = (int)(hi >> 62);
  hi &= (1ull << 62) - 1;
  bool negative = false;
  if (hi >> 61) {  // nearer to the next quadrant
    ++quadrant;
    hi = (1ull << 62) - hi - (lo ? 1 : 0);
    lo = ~lo + 1;
    negative = true;
  }
  const double turns = (double)hi * 5.421010862427522e-20 + (double)lo * 2.938735877055719e-39;
  const double r = turns * 6.283185307179586;
  if (x < 0) quadrant = -quadrant;
  return negative != (x < 0) ? -r : r;
}
DEV double eq_reduce(double x, int& quadrant) {
  if (!(eq_abs(x) < 1048576.)) return eq_abs(x) < (double)EQ_INF ? eq_reduce_large(x, quadrant) : x - x;
  const double j = rint(x * 0.6366197723675814);
  quadrant = (int)j;
  return fma(j, 1.4973849048591833e-33, fma(j, -6.123233995736766e-17, fma(j, -1.5707963267948966, x)));
}
DEV float eq_reduce(float x, int& quadrant) {
  if (!(fabsf(x) < 48039.f)) return fabsf(x) < EQ_INF ? (float)eq_reduce_large((double)x, quadrant) : x - x;
  const float j = rintf(x * 0.636619747f);
  quadrant = (int)j;
  return fmaf(j, -5.39030253e-15f, fmaf(j, -3.13916473e-07f, fmaf(j, -1.57079601e+00f, x)));
}
// Near-minimax polynomials on |r| ≤ π/4: fdlibm's for double, Cephes' for float.
DEV double eq_sin_poly(double r) {
  const double z = r * r;
  return fma(r * z, fma(z, fma(z, fma(z, fma(z, fma(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08), 2.75573137070700676789e-06),
         -1.98412698298579493134e-04), 8.33333333332248946124e-03), -1.66666666666666324348e-01), r);
}
DEV double eq_cos_poly(double r) {
  const double z = r * r, h = 0.5 * z, w = 1. - h;
  const double p = z * fma(z, fma(z, fma(z, fma(z, fma(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09), -2.75573143513906633035e-07),
                   2.48015872894767294178e-05), -1.38888888888741095749e-03), 4.16666666666666019037e-02);
  return w + ((1. - w) - h + z * p);
}
DEV float eq_sin_poly(float r) {
  const float z = r * r;
  return fmaf(r * z, fmaf(z, fmaf(z, -1.9515295891e-4f, 8.3321608736e-3f), -1.6666654611e-1f), r);
}
DEV float eq_cos_poly(float r) {
  const float z = r * r;
  return fmaf(z * z, fmaf(z, fmaf(z, 2.443315711809948e-5f, -1.388731625493765e-3f), 4.166664568298827e-2f), fmaf(z, -0.5f, 1.f));
}
template <class F> DEV F eq_sin_quadrant(F x, int turn) {
  int q = 0;
  const F r = eq_reduce(x, q);
  q += turn;
  const F v = q & 1 ? eq_cos_poly(r) : eq_sin_poly(r);
  return q & 2 ? -v : v;
}
EQ_UNARY(sin, eq_sin_quadrant(a, 0), eq_sin_quadrant(a, 0))
EQ_UNARY(cos, eq_sin_quadrant(a, 1), eq_sin_quadrant(a, 1))
