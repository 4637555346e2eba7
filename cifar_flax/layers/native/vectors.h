/* Vectors of this processor, and the sizes that follow from them. */

#pragma once

#include <stdint.h>

typedef int64_t i64;

/* A forward block is 4, 5 or 6 UNITs of features at one position or at PAIR neighbouring
   ones, each of TILE / LANES vectors. That fills, but does not overflow, 32 registers of
   AVX-512 or Neon, and 16 of AVX2. L1 and L2 are what a panel may take of the caches. */
enum { TILE = 16 };
#if defined(__AVX512F__)
enum { LANES = 16, UNIT = 2, PAIR = 2, L1 = 32 << 10, L2 = 512 << 10 };
#elif defined(__AVX2__)
enum { LANES = 8, UNIT = 1, PAIR = 1, L1 = 16 << 10, L2 = 192 << 10 };
#else
enum { LANES = 4, UNIT = 1, PAIR = 1, L1 = 16 << 10, L2 = 192 << 10 };
#endif
enum { PARTS = TILE / LANES, MAX_WORKERS = 64 };

/* XLA aligns its buffers to 64 bytes; `aligned(4)` asks for no more than a float's. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE vec load(const float *p) { return *(const vec *)p; }
/* The same, and the compiler may not load it anew for each use. */
INLINE vec load_once(const float *p) {
  vec v = load(p);
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE i64 min(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 max(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
