// emulate.hpp: enough of CUDA to run emitted kernels on a CPU, one block after another. Each thread is a coroutine that yields at
// barriers and shuffles. Meant for tests of small problems: it checks meaning (indices, guards, barriers), not speed.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __device__
#define __forceinline__ inline
#define __global__
#define __shared__ static
#define __constant__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__

struct Dim { int x; };
static Dim threadIdx, blockIdx;
static const int STACK = 1 << 16;
static ucontext_t main_context, context[1024];
static char* stack_of[1024];
static bool finished[1024];
static int threads, alive, current;
static unsigned arrived[16], phase[16];
static unsigned lane_word[1024], warp_arrived[32], warp_phase[32];

static void yield_thread() { const int me = current; swapcontext(&context[me], &main_context); }
static void barrier(int id, int count) {
  const unsigned mine = phase[id];
  if ((int)++arrived[id] == count) { arrived[id] = 0; ++phase[id]; return; }
  while (phase[id] == mine) yield_thread();
}
static void warp_barrier() {
  const int w = current / 32;
  const unsigned mine = warp_phase[w];
  if (++warp_arrived[w] == 32) { warp_arrived[w] = 0; ++warp_phase[w]; return; }
  while (warp_phase[w] == mine) yield_thread();
}
static void __syncthreads() { barrier(0, alive); }
static void __syncwarp() { warp_barrier(); }
static void named_sync(int id, int count) { barrier(id, count); }
static void __threadfence() {}
template <class T> static T __shfl_xor_sync(unsigned, T v, int mask) {
  lane_word[current] = (unsigned)v;
  warp_barrier();
  const unsigned r = lane_word[current ^ mask];
  warp_barrier();
  return (T)r;
}
static unsigned long long __cvta_generic_to_shared(const void* p) { return (unsigned long long)p; }
static unsigned peer_word(unsigned, unsigned) { abort(); }  // clusters are not emulated
static void cluster_sync() { abort(); }
static unsigned cluster_rank() { abort(); }
// A team of one block meets itself; copies to shared memory arrive at once.
#define SPIN_NS 0
static unsigned long long globaltimer() { return 0; }
static void fault() { fprintf(stderr, "a wait never ends\n"); abort(); }
static unsigned add_release(unsigned* p, unsigned v) { const unsigned old = *p; *p += v; return old; }
static unsigned load_acquire(const unsigned* p) { return *p; }
static void copy_ahead(void* to, const void* from) { memcpy(to, from, 16); }
static void copy_ahead_first(void* to, const void* from) { memcpy(to, from, 16); }
static void copies_done() {}
static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static unsigned atomicAdd(unsigned* p, unsigned v) { const unsigned old = *p; *p += v; return old; }
template <class To, class From> static To bits_as(From f) { To t; memcpy(&t, &f, sizeof t); return t; }
static float __uint_as_float(unsigned v) { return bits_as<float>(v); }
static unsigned __float_as_uint(float v) { return bits_as<unsigned>(v); }
static double __longlong_as_double(long long v) { return bits_as<double>(v); }
static long long __double_as_longlong(double v) { return bits_as<long long>(v); }
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }
static float rsqrtf(float a) { return 1.f / sqrtf(a); }
static double rsqrt(double a) { return 1. / sqrt(a); }

// What the vocabulary says in PTX, said in C++.
static unsigned short bf16_bits(float v) {
  const unsigned b = bits_as<unsigned>(v);
  if (v != v) return 0x7fff;
  return (unsigned short)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}
static unsigned short f16_bits(float v) { return bits_as<unsigned short>((_Float16)v); }
static unsigned pack_bf16(float lo, float hi) { return bf16_bits(lo) | ((unsigned)bf16_bits(hi) << 16); }
static unsigned pack_f16(float lo, float hi) { return f16_bits(lo) | ((unsigned)f16_bits(hi) << 16); }
static float f16_value(unsigned short v) { return (float)bits_as<_Float16>(v); }
static float eq_max_nan(float a, float b) { return a > b || a != a ? a : b; }
static float eq_min_nan(float a, float b) { return a < b || a != a ? a : b; }
static float eq_ex2(float a) { const float r = (float)exp2((double)a); return r < 1.17549435e-38f ? 0.f : r; }
static float eq_rcp_above_one(float a) { return 1.f / a; }

static void check_aligned(const void* p, int bytes) {
  if ((unsigned long long)p % (bytes > 16 ? 16 : bytes)) { fprintf(stderr, "misaligned access of %d bytes\n", bytes); abort(); }
}
