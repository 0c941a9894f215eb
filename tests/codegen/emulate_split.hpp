// emulate_split.hpp: what split kernels need beyond emulate_wgmma.hpp, inside the kernel's namespace.
static u32 this_thread() { return threadIdx.x; }
static u32 this_block() { return blockIdx.x; }
static u32 word_at(u32 at) { u32 v; memcpy(&v, here(at), 4); return v; }
static u32 half_at(u32 at) { u16 v; memcpy(&v, here(at), 2); return v; }
static void put_word(u32 at, u32 v) { memcpy(here(at), &v, 4); }
static void put_byte(u32 at, u32 v) { *here(at) = (u8)v; }
static void put16(u32 at, u32 a, u32 b, u32 c, u32 d) { const u32 v[4] = {a, b, c, d}; memcpy(here(at), v, 16); }
template <class F> static u32 of_warp(u32 v, F f) {
  lane_word[current] = v;
  warp_barrier();
  u32 r = lane_word[current / 32 * 32];
  for (int i = 1; i < 32; ++i) r = f(r, lane_word[current / 32 * 32 + i]);
  warp_barrier();
  return r;
}
static u32 warp_max(u32 v) { return of_warp(v, [](u32 a, u32 b) { return a > b ? a : b; }); }
static u32 warp_min(u32 v) { return of_warp(v, [](u32 a, u32 b) { return a < b ? a : b; }); }
static bool __all_sync(unsigned, bool v) { return warp_min(v); }
static V4 ld_plain(const void* p) { V4 v; memcpy(&v, p, 16); return v; }
static void st_plain(void* p, V4 v) { memcpy(p, &v, 16); }
template <class F> static u32 of_halves(u32 a, u32 b, F f) { return f(a & 0xffff, b & 0x7fff) | f(a >> 16, b >> 16 & 0x7fff) << 16; }
static u32 halves_most(u32 most, u32 h) { return of_halves(most, h, [](u32 a, u32 b) { return a > b ? a : b; }); }
static u32 halves_least(u32 least, u32 h) { return of_halves(least, h, [](u32 a, u32 b) { return b > 0x7c00 || a < b ? a : b; }); }
