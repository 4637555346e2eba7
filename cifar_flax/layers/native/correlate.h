/* Correlation: the forward pass, and the gradient of the input. */

#pragma once

#include "shape.h"

/* Along one axis, output first + a*out_step, for a < count, has its taps at the inputs
   a*in_step + t*tap_step - before. */
typedef struct {
  i64 in, out, count, first, out_step, taps, in_step, tap_step, before;
} Steps;

/* What follows the sums of a feature, if it is there: 6 numbers, each `step` apart, for
   y * [0] + [1], then within [2] and [3], then y * [4] + [5]. NaN stays NaN. */
typedef struct {
  const float *first;
  i64 step;
} After;

INLINE After of_feature(After all, i64 feature) {
  return (After){all.first ? all.first + feature : NULL, all.step};
}

/* The numbers of some features at some positions, which the cache still holds. A function
   of its own, because a block of sums leaves no register for more. */
__attribute__((noinline)) static void finish(After after, float *y, i64 y_step, i64 features,
                                             i64 positions) {
  for (i64 f = 0; f < features; f++) {
    const float *a = after.first + f;
    i64 step = after.step;
    vec low = (vec){0} + a[2 * step], high = (vec){0} + a[3 * step];
    for (i64 p = 0; p < positions; p++)
      EACH(v, PARTS) {
        float *at = y + p * y_step + f * TILE + v * LANES;
        vec sum = load(at) * a[0] + a[step];
        sum = choose(sum < low, low, sum);
        sum = choose(sum > high, high, sum);
        store(at, sum * a[4 * step] + a[5 * step]);
      }
  }
}

typedef struct {
  Steps row, column;
  i64 in_channels, out_channels, groups; /* channels: of a group */
  const float *weights; /* [groups, features / block, taps, taps, in_channels, block] */
  i64 block, band;      /* band: rows of outputs whose inputs stay in cache together */
  After after;
} Correlation;

/* F features at P positions, of which so many count. The terms of a tap lie side by side
   in the input, and those of a row of taps in the weights. */
INLINE void correlate(const int F, const int P, const float *x, i64 x_row, i64 x_tap,
                      i64 x_step, const float *w, i64 w_row, i64 rows, i64 taps, i64 length,
                      float *y, i64 y_step, i64 features, i64 positions, After after) {
  vec sum[6 * UNIT][MAX_P][PARTS];
  EACH(f, F)
    EACH(p, P)
      EACH(v, PARTS) sum[f][p][v] = (vec){0};
  for (i64 i = 0; i < rows; i++) {
    const float *wi = w + i * w_row;
    for (i64 j = 0; j < taps; j++) {
      const float *xi = x + i * x_row + j * x_tap;
      for (i64 q = 0; q < length; q++, xi += TILE, wi += F) {
        vec in[MAX_P][PARTS];
        EACH(p, P)
          EACH(v, PARTS) in[p][v] = load_once(xi + p * x_step + v * LANES);
        EACH(f, F)
          EACH(p, P)
            EACH(v, PARTS) sum[f][p][v] += in[p][v] * wi[f];
      }
    }
  }
  EACH(f, F)
    if (f < features)
      EACH(p, P)
        if (p < positions)
          EACH(v, PARTS) store(y + p * y_step + f * TILE + v * LANES, sum[f][p][v]);
  if (after.first) finish(after, y, y_step, min(F, features), min(P, positions));
}

typedef void Correlate(const float *, i64, i64, i64, const float *, i64, i64, i64, i64, float *,
                       i64, i64, After);

#define CORRELATE(F, P)                                                                      \
  static void correlate_##F##_##P(const float *x, i64 x_row, i64 x_tap, i64 x_step,          \
                                  const float *w, i64 w_row, i64 rows, i64 taps, i64 length, \
                                  float *y, i64 y_step, i64 features, After after) {         \
    correlate(F * UNIT, P, x, x_row, x_tap, x_step, w, w_row, rows, taps, length, y, y_step, \
              features, P, after);                                                           \
  }
CORRELATE(4, 1)
CORRELATE(5, 1)
CORRELATE(6, 1)
CORRELATE(4, PAIR)
CORRELATE(5, PAIR)
CORRELATE(6, PAIR)

/* For a block of so many features, at one position or at PAIR. */
static Correlate *correlate_kind(i64 block, i64 positions) {
  static Correlate *const kinds[2][3] = {
      {correlate_4_1, correlate_5_1, correlate_6_1},
      {correlate_4_PAIR, correlate_5_PAIR, correlate_6_PAIR}};
  return kinds[positions > 1][block / UNIT - 4];
}

/* In a group of a few features, a block of these is computed at many positions. */
static int is_narrow(i64 groups, i64 features) { return groups > 1 && features <= 4; }

/* The block that wastes least on features that are not there, and on loads of inputs. */
static i64 feature_block(i64 groups, i64 features) {
  if (is_narrow(groups, features)) return features == 3 ? 4 : features;
  i64 best = 4 * UNIT, least = INT64_MAX;
  for (i64 block = 4 * UNIT; block <= 6 * UNIT; block += UNIT) {
    i64 cost = ceil_div(features, block) * (block + 1);
    if (cost < least) least = cost, best = block;
  }
  return best;
}

/* A view of weights [rows, columns, groups, inputs, outputs]: tap (i, j) of input c and
   output f of group g is at data + i*row + j*column + g*group + c*in + f*out. */
typedef struct {
  const float *data;
  i64 row, column, group, in, out;
} Weights;

/* Lays weights out as a correlation reads them. Returns the end of what it has written. */
static float *pack_weights(float *packed, Weights w, const Correlation *c) {
  for (i64 g = 0; g < c->groups; g++)
    for (i64 f0 = 0; f0 < c->out_channels; f0 += c->block)
      for (i64 i = 0; i < c->row.taps; i++)
        for (i64 j = 0; j < c->column.taps; j++)
          for (i64 q = 0; q < c->in_channels; q++) {
            const float *tap = w.data + i * w.row + j * w.column + g * w.group + q * w.in;
            for (i64 f = f0; f < f0 + c->block; f++)
              *packed++ = f < c->out_channels ? tap[f * w.out] : 0;
          }
  return packed;
}
