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
/* Positions of a narrow block of 1, 2 or 4 features; see correlations.h. */
#if defined(__AVX512F__)
enum { NARROW_1 = 8, NARROW_2 = 4, NARROW_4 = 4 };
#else
enum { NARROW_1 = 4, NARROW_2 = 2, NARROW_4 = 1 };
#endif
enum { PARTS = TILE / LANES, MAX_P = NARROW_1, MAX_WORKERS = 64 };

/* XLA aligns its buffers to 64 bytes; `aligned(4)` asks for no more than a float's. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
/* A loop over a count that is known when it is compiled. */
#define EACH(I, COUNT) UNROLL for (int I = 0; I < COUNT; I++)

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

/* a where a lane of the condition is -1, and b where it is 0. */
INLINE vec choose(ivec condition, vec a, vec b) {
  return (vec)((condition & (ivec)a) | (~condition & (ivec)b));
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
#define SHUFFLE(A, B, ...) __builtin_shuffle(A, B, (ivec){__VA_ARGS__})
#endif

/* From two vectors one: the sums of neighbouring parts of n lanes, a's and b's by turns. */
#if defined(__AVX512F__)
INLINE vec fold_8(vec a, vec b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
INLINE vec fold_4(vec a, vec b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
         SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
}
INLINE vec fold_2(vec a, vec b) {
  return SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
INLINE vec fold_1(vec a, vec b) {
  return SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}
#elif defined(__AVX2__)
INLINE vec fold_4(vec a, vec b) {
  return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
INLINE vec fold_2(vec a, vec b) {
  return SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
INLINE vec fold_1(vec a, vec b) {
  return SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
}
#else
INLINE vec fold_2(vec a, vec b) {
  return SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7);
}
INLINE vec fold_1(vec a, vec b) {
  return SHUFFLE(a, b, 0, 4, 2, 6) + SHUFFLE(a, b, 1, 5, 3, 7);
}
#endif

/* The sum over the lanes of each of LANES vectors, which it overwrites. */
INLINE vec lane_sums(vec v[LANES]) {
#if defined(__AVX512F__)
  EACH(l, 8) v[l] = fold_8(v[l], v[l + 8]);
#endif
#if defined(__AVX2__)
  EACH(l, 4) v[l] = fold_4(v[l], v[l + 4]);
#endif
  EACH(l, 2) v[l] = fold_2(v[l], v[l + 2]);
  return fold_1(v[0], v[1]);
}

INLINE i64 min(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 max(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
