// A stand-in for libcuda.so.1: device memory is host memory, and every launch is written to $FAKE_CUDA_LOG as the driver would
// read it: through the void** of arguments. It lets the tests drive the real bindings on a machine without a GPU.
// What a kernel does follows from its name: `negate…` negates grid × block floats, `…_beyond`, `…_short`, `…_greedy` do it wrong;
// `…_doubled` also writes x + x to its third argument; `…__N` takes N arguments. Time is virtual: a launch takes 2 µs (20 µs if its name starts with `slow`), an event 0.5 µs.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
#define API(NAME, ...) __attribute__((visibility("default"))) int fake_##NAME(__VA_ARGS__)

static void say(const char *format, ...) {
  FILE *f = fopen(getenv("FAKE_CUDA_LOG"), "a");
  va_list a;
  va_start(a, format);
  vfprintf(f, format, a);
  va_end(a);
  fclose(f);
}

static void *current = 0;  // the current context
static int capturing = 0, next = 0;
static double now_ms = 0;
struct Launch {
  char name[64], text[256];
  int elements;
  u64 args[10];
};
struct Graph {
  int count;
  struct Launch launches[1024];
};
static struct Graph *captured;

static int execute(struct Launch *l, const char *indent) {
  const char *kind = strncmp(l->name, "slow_", 5) ? l->name : l->name + 5;
  float *x = (float *)l->args[0], *y = (float *)l->args[1];
  now_ms += kind == l->name ? 0.002 : 0.02;
  if (!strncmp(l->name, "clock_rate", 10)) {
    ((u64 *)l->args[0])[0] = 99000;
    ((u64 *)l->args[0])[1] = 50000;
  } else if (!strncmp(kind, "negate", 6)) {
    int n = l->elements - (strstr(kind, "_short") ? 1 : 0) + (strstr(kind, "_beyond") ? 1 : 0);
    for (int i = 0; i < n; ++i) y[i] = -x[i];
    if (strstr(kind, "_doubled"))
      for (int i = 0; i < n; ++i) ((float *)l->args[2])[i] = x[i] + x[i];
    if (strstr(kind, "_greedy")) x[0] += 1;
  } else if (strncmp(l->name, "read_", 5) && strncmp(l->name, "scramble", 8)) {
    say("%s%s\n", indent, l->text);
  }
  return 0;
}

API(cuInit, unsigned flags) { return 0; }
API(cuDriverGetVersion, int *v) { *v = 13000; return 0; }
API(cuDeviceGetCount, int *n) { *n = 1; return 0; }
API(cuDeviceGet, int *d, int i) { *d = i; return 0; }
API(cuDeviceGetName, char *name, int n, int d) { strncpy(name, "Fake H200", n); return 0; }
API(cuDeviceTotalMem, size_t *n, int d) { *n = 1ull << 37; return 0; }
API(cuDeviceGetAttribute, int *v, int which, int d) {
  *v = which == 75 ? 9 : which == 76 ? 0 : which == 16 ? 132 : which == 13 ? 1980000 : which == 38 ? 60 << 20 : 0;
  return 0;
}
API(cuDevicePrimaryCtxRetain, void **c, int d) { *c = (void *)0xc0de; return 0; }
API(cuCtxGetCurrent, void **c) { *c = current; return 0; }
API(cuCtxSetCurrent, void *c) { current = c; return 0; }
API(cuCtxSynchronize, void) { return 0; }
API(cuMemGetInfo, size_t *f, size_t *t) { *f = *t = 1ull << 37; return 0; }
API(cuMemAlloc, u64 *p, size_t n) {
  if (n > 1ull << 40) return 2;
  *p = (u64)aligned_alloc(256, (n + 255) / 256 * 256);
  return 0;
}
API(cuMemFree, u64 p) { free((void *)p); return 0; }
API(cuMemsetD8Async, u64 p, unsigned char v, size_t n, void *s) { memset((void *)p, v, n); return 0; }
API(cuMemcpyDtoDAsync, u64 to, u64 from, size_t n, void *s) { memcpy((void *)to, (void *)from, n); return 0; }
API(cuMemcpyDtoH, void *to, u64 from, size_t n) { memcpy(to, (void *)from, n); return 0; }
API(cuPointerGetAttribute, void *out, int which, u64 p) { *(int *)out = 0; return p ? 0 : 1; }
API(cuStreamCreate, void **s, unsigned f) { *s = (void *)(u64)(0x5000 + ++next); return 0; }
API(cuStreamDestroy, void *s) { return 0; }
API(cuStreamSynchronize, void *s) { return 0; }
API(cuStreamIsCapturing, void *s, int *v) { *v = (u64)s == 0x7777; return 0; }
API(cuEventCreate, void **e, unsigned f) { *e = calloc(1, 8); return 0; }
API(cuEventDestroy, void *e) { free(e); return 0; }
API(cuEventRecord, void *e, void *s) { *(double *)e = now_ms += 0.0005; return 0; }
API(cuEventSynchronize, void *e) { return 0; }
API(cuEventElapsedTime, float *ms, void *a, void *b) { *ms = (float)(*(double *)b - *(double *)a); return 0; }
API(cuModuleLoadData, void **m, const char *image) {
  if (!current) return 201;
  if (!strncmp(image, "bad", 3)) return 200;
  *m = (void *)(u64)(0x1000 + ++next);
  say("load %s\n", image);
  return 0;
}
API(cuModuleUnload, void *m) { return 0; }
API(cuModuleGetFunction, void **f, void *m, const char *name) {
  if (!strcmp(name, "absent")) return 500;
  *f = strdup(name);
  return 0;
}
API(cuFuncSetAttribute, void *f, int which, int v) { say("attribute %s %d %d\n", (char *)f, which, v); return 0; }
API(cuLaunchKernel, void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *s,
    void **params, void **extra) {
  struct Launch l = {.elements = gx * gy * gz * bx};
  const char *suffix = strstr(f, "__");
  int count = suffix ? atoi(suffix + 2) : strncmp(f, "negate", 6) && strncmp(f, "slow_negate", 11) ? 1 : 2, n;
  if (!strncmp(f, "faulty", 6)) return 700;
  if (!strncmp(f, "homeless", 8) && !current) return 201;
  strncpy(l.name, f, sizeof l.name - 1);
  n = snprintf(l.text, sizeof l.text, "launch %s grid %u %u %u block %u %u %u shared %u stream %llx args", (char *)f, gx, gy, gz, bx, by, bz,
               shared, capturing ? 0 : (u64)s);
  for (int i = 0; i < count; ++i) {
    l.args[i] = *(u64 *)params[i];
    n += snprintf(l.text + n, sizeof l.text - n, " %llx", l.args[i]);
  }
  if (!capturing) return execute(&l, "");
  captured->launches[captured->count++] = l;
  return 0;
}
struct Config {
  unsigned grid[3], block[3], shared;
  void *stream;
  struct { int id, pad; int value[16]; } *attrs;
  unsigned count;
};
API(cuLaunchKernelEx, const struct Config *c, void *f, void **params, void **extra) {
  for (unsigned i = 0; i < c->count; ++i) say("launch attribute %d = %d\n", c->attrs[i].id, c->attrs[i].value[0]);
  return fake_cuLaunchKernel(f, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->block[1], c->block[2], c->shared, c->stream, params, extra);
}
API(cuStreamBeginCapture, void *s, int mode) { capturing = 1; captured = calloc(1, sizeof *captured); return 0; }
API(cuStreamEndCapture, void *s, void **g) { capturing = 0; *g = captured; return 0; }
API(cuGraphInstantiateWithFlags, void **e, void *g, u64 flags) {
  *e = malloc(sizeof(struct Graph));
  memcpy(*e, g, sizeof(struct Graph));
  say("instantiate\n");
  return 0;
}
API(cuGraphExecUpdate, void *e, void *g, void *info) { memcpy(e, g, sizeof(struct Graph)); say("update\n"); return 0; }
API(cuGraphDestroy, void *g) { free(g); return 0; }
API(cuGraphExecDestroy, void *e) { return 0; }
API(cuGraphLaunch, void *e, void *s) {
  struct Graph *g = e;
  say("graph stream %llx\n", (u64)s);
  for (int i = 0; i < g->count; ++i) execute(&g->launches[i], "  ");
  return 0;
}
API(cuTensorMapEncodeTiled, void *map, int type, unsigned rank, void *p, const u64 *dim, const u64 *strides, const unsigned *box,
    const unsigned *step, int interleave, int swizzle, int l2, int fill) {
  memset(map, 0, 128);
  *(u64 *)map = 0x7e50000 + rank;
  say("map type %d rank %u at %llx dims", type, rank, (u64)p);
  for (unsigned i = 0; i < rank; ++i) say(" %llu", dim[i]);
  say(" strides");
  for (unsigned i = 0; i + 1 < rank; ++i) say(" %llu", strides[i]);
  say(" box");
  for (unsigned i = 0; i < rank; ++i) say(" %u/%u", box[i], step[i]);
  say(" interleave %d swizzle %d l2 %d fill %d\n", interleave, swizzle, l2, fill);
  return 0;
}

__attribute__((visibility("default"))) int cuGetProcAddress_v2(const char *name, void **f, int version, u64 flags, int *status) {
  char own[128];
  snprintf(own, sizeof own, "fake_%s", name);
  *f = dlsym(RTLD_DEFAULT, own);
  if (!*f) {
    Dl_info me;
    dladdr((void *)cuGetProcAddress_v2, &me);
    *f = dlsym(dlopen(me.dli_fname, RTLD_NOW | RTLD_NOLOAD), own);
  }
  if (status) *status = *f ? 0 : 1;
  return *f ? 0 : 500;
}
__attribute__((visibility("default"))) int cuGetProcAddress(const char *name, void **f, int version, u64 flags) {
  return cuGetProcAddress_v2(name, f, version, flags, 0);
}
