/* Correlation: the forward pass, and the gradient of the input. */

#pragma once

#include "threads.h"

/* Output (r0 + a*out_step, c0 + b*out_step), for a < rows and b < columns, is the
   correlation of the input's pixels from (a*in_step - top, b*in_step - left) on. */
typedef struct {
  i64 in_height, in_width, in_channels, out_height, out_width, out_channels;
  i64 rows, columns, r0, c0, out_step;
  i64 tap_rows, tap_columns, in_step, top, left;
  const float *weights; /* [features / block, tap_rows, tap_columns, in_channels, block] */
  i64 block, band;      /* band: rows of outputs whose inputs stay in cache together */
} Correlation;

/* F features at P positions. The terms of a row of taps lie side by side in the input and
   in the weights, `length` = taps * channels of them. */
INLINE void correlate(const int F, const int P, const float *x, i64 x_row, i64 x_step,
                      const float *w, i64 w_row, i64 rows, i64 length, float *y, i64 y_step,
                      i64 features) {
  vec sum[6 * UNIT][PAIR][PARTS];
  EACH(f, F)
    EACH(p, P)
      EACH(v, PARTS) sum[f][p][v] = (vec){0};
  for (i64 i = 0; i < rows; i++) {
    const float *xi = x + i * x_row, *wi = w + i * w_row;
    for (i64 q = 0; q < length; q++, xi += TILE, wi += F) {
      vec in[PAIR][PARTS];
      EACH(p, P)
        EACH(v, PARTS) in[p][v] = load_once(xi + p * x_step + v * LANES);
      EACH(f, F)
        EACH(p, P)
          EACH(v, PARTS) sum[f][p][v] += in[p][v] * wi[f];
    }
  }
  EACH(f, F)
    if (f < features)
      EACH(p, P)
        EACH(v, PARTS) store(y + p * y_step + f * TILE + v * LANES, sum[f][p][v]);
}

typedef void Correlate(const float *, i64, i64, const float *, i64, i64, i64, float *, i64,
                       i64);

#define CORRELATE(F, P)                                                                    \
  static void correlate_##F##_##P(const float *x, i64 x_row, i64 x_step, const float *w,   \
                                  i64 w_row, i64 rows, i64 length, float *y, i64 y_step,   \
                                  i64 features) {                                          \
    correlate(F * UNIT, P, x, x_row, x_step, w, w_row, rows, length, y, y_step, features); \
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

/* The block that wastes least on features that are not there, and on loads of inputs. */
static i64 feature_block(i64 features) {
  i64 best = 4 * UNIT, least = INT64_MAX;
  for (i64 block = 4 * UNIT; block <= 6 * UNIT; block += UNIT) {
    i64 cost = ceil_div(features, block) * (block + 1);
    if (cost < least) least = cost, best = block;
  }
  return best;
}

/* A band of rows of one tile. */
static void correlate_band(const Correlation *c, const float *x, float *y, i64 first) {
  i64 last = min(first + c->band, c->rows);
  i64 x_pixel = c->in_channels * TILE, x_row = c->in_width * x_pixel;
  i64 w_tap = c->in_channels * c->block, w_row = c->tap_columns * w_tap;
  i64 y_step = c->out_step * c->out_channels * TILE, y_row = c->out_width * y_step;
  y += (c->r0 * c->out_width + c->c0) * c->out_channels * TILE;
  /* From `inner` on and before `outer` no column of taps lies outside the image. */
  i64 inner = ceil_div(max(0, c->left), c->in_step);
  i64 outer = max(0, c->in_width + c->left - c->tap_columns + c->in_step) / c->in_step;
  for (i64 f = 0; f < c->out_channels; f += c->block) {
    const float *w = c->weights + f / c->block * c->tap_rows * w_row;
    for (i64 a = first; a < last; a++) {
      i64 top = a * c->in_step - c->top, i0 = max(0, -top);
      i64 taps = max(0, min(c->tap_rows, c->in_height - top) - i0);
      for (i64 b = 0, count; b < c->columns; b += count) {
        i64 left = b * c->in_step - c->left, j0 = max(0, -left);
        i64 columns = max(0, min(c->tap_columns, c->in_width - left) - j0);
        count = b >= inner && b + PAIR <= min(outer, c->columns) ? PAIR : 1;
        correlate_kind(c->block, count)(
            x + (top + i0) * x_row + (left + j0) * x_pixel, x_row, c->in_step * x_pixel,
            w + i0 * w_row + j0 * w_tap, w_row, taps, columns * c->in_channels,
            y + a * y_row + b * y_step + f * TILE, y_step, c->out_channels - f);
      }
    }
  }
}

typedef struct {
  const float *x;           /* [tiles, in_height, in_width, in_channels, 16] */
  float *y;                 /* [tiles, out_height, out_width, out_channels, 16] */
  const Correlation *parts; /* [count] */
  i64 count, bands;         /* bands: of each part */
} Correlations;

static void correlate_task(const void *work, i64 task, i64 worker) {
  (void)worker;
  const Correlations *all = work;
  i64 tile = task / (all->count * all->bands), part = task / all->bands % all->count;
  const Correlation *c = all->parts + part;
  i64 first = task % all->bands * c->band;
  const float *x = all->x + tile * c->in_height * c->in_width * c->in_channels * TILE;
  float *y = all->y + tile * c->out_height * c->out_width * c->out_channels * TILE;
  if (first < c->rows) correlate_band(c, x, y, first);
}

static void run_correlations(XLA_FFI_CallFrame *frame, const float *x, float *y, i64 tiles,
                             Correlation *parts, i64 count) {
  Correlations all = {x, y, parts, count, 1};
  for (i64 k = 0; k < count; k++) {
    Correlation *c = parts + k;
    i64 row = c->in_width * c->in_channels * TILE * sizeof(float);
    c->band = max(1, (L2 / row - c->tap_rows) / c->in_step + 1);
    all.bands = max(all.bands, ceil_div(c->rows, c->band));
  }
  run_tasks(frame, tiles * count * all.bands, correlate_task, &all);
}

/* A view of weights [rows, columns, inputs, outputs]: tap (i, j) of input c and output f is
   at data + i*row + j*column + c*in + f*out. */
typedef struct {
  const float *data;
  i64 row, column, in, out;
} Weights;

/* Lays weights out as a correlation reads them: [outputs / block, rows, columns, inputs,
   block]. Returns the end of what it has written. */
static float *pack_weights(float *packed, Weights w, i64 rows, i64 columns, i64 inputs,
                           i64 outputs) {
  i64 block = feature_block(outputs);
  for (i64 f0 = 0; f0 < outputs; f0 += block)
    for (i64 i = 0; i < rows; i++)
      for (i64 j = 0; j < columns; j++)
        for (i64 c = 0; c < inputs; c++)
          for (i64 f = f0; f < f0 + block; f++)
            *packed++ =
                f < outputs ? w.data[i * w.row + j * w.column + c * w.in + f * w.out] : 0;
  return packed;
}
