/* Ceilings of one core: each function does `times` passes and returns something that depends on all of its work. */
#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
typedef float vf __attribute__((vector_size(WIDTH), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(WIDTH), aligned(8), may_alias));
#define STEP (WIDTH / 4)

float read_bytes(const float *x, long n, long times) {
  vf s[8] = {0};
  for (long t = 0; t < times; t++) {
    for (long i = 0; i + 8 * STEP <= n; i += 8 * STEP)
      for (int u = 0; u < 8; u++) s[u] += *(const vf *)(x + i + u * STEP);
    __asm__ volatile("" : "+r"(x) : : "memory");
  }
  vf all = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
  float out = 0;
  for (int i = 0; i < STEP; i++) out += all[i];
  return out;
}

void copy_bytes(const float *x, float *y, long n, long times) {
  for (long t = 0; t < times; t++) {
    for (long i = 0; i + 4 * STEP <= n; i += 4 * STEP)
      for (int u = 0; u < 4; u++) *(vf *)(y + i + u * STEP) = *(const vf *)(x + i + u * STEP);
    __asm__ volatile("" : "+r"(x), "+r"(y) : : "memory");
  }
}

void library_copy(const float *x, float *y, long n, long times) {
  for (long t = 0; t < times; t++) {
    __builtin_memcpy(y, x, n * sizeof(float));
    __asm__ volatile("" : "+r"(x), "+r"(y) : : "memory");
  }
}

void fill_bytes(float *x, long n, long times) {
  for (long t = 0; t < times; t++) {
    __builtin_memset(x, 0, n * sizeof(float));
    __asm__ volatile("" : "+r"(x) : : "memory");
  }
}

void add_two(const float *x, const float *y, float *z, long n, long times) {
  for (long t = 0; t < times; t++) {
    for (long i = 0; i + 4 * STEP <= n; i += 4 * STEP)
      for (int u = 0; u < 4; u++)
        *(vf *)(z + i + u * STEP) = *(const vf *)(x + i + u * STEP) + *(const vf *)(y + i + u * STEP);
    __asm__ volatile("" : "+r"(x), "+r"(y), "+r"(z) : : "memory");
  }
}

#define CHAINS 12 /* two units, four to five cycles each */
#define MULTIPLY_ADD(name, type, vector, lanes)                            \
  type name(type a, type b, long times) {                                  \
    vector s[CHAINS], va = {0}, vb = {0};                                  \
    va += a, vb += b;                                                      \
    for (int c = 0; c < CHAINS; c++) s[c] = va * (type)c;                  \
    for (long t = 0; t < times; t++)                                       \
      for (int c = 0; c < CHAINS; c++) s[c] = s[c] * va + vb;              \
    type out = 0;                                                          \
    for (int c = 0; c < CHAINS; c++)                                       \
      for (int i = 0; i < lanes; i++) out += s[c][i];                      \
    return out;                                                            \
  }
MULTIPLY_ADD(fma_f32, float, vf, WIDTH / 4)
MULTIPLY_ADD(fma_f64, double, vd, WIDTH / 8)

long vector_bytes(void) { return WIDTH; }
