/* Minimal filtering: the same with fewer products, for 3x3 kernels of stride 1. */

#pragma once

#include "correlate.h"

/* A 3x3 kernel of stride 1 may be computed for 2x2 outputs at once with 16 products in
   place of 36 (Winograd's F(2x2, 3x3); Lavin and Gray 2016):

     y = A' [(G w G') * (B' x B)] A,    x 4x4, w 3x3, y 2x2

   and, transposed, for its kernel gradient dw = G' [(B' x B) * (A dy A')] G. */
enum { POINTS = 16 };

/* Whether that is less work, with its sums, than the taps inside the image. */
static int is_minimal(i64 size, i64 stride, i64 height, i64 width, i64 padding, i64 channels,
                      i64 features) {
  if (size != 3 || stride != 1) return 0;
  i64 taps[2], lengths[2] = {height, width}, blocks = 1;
  for (int d = 0; d < 2; d++) {
    i64 outputs = lengths[d] + 2 * padding - 2;
    taps[d] = 0;
    for (i64 tap = 0; tap < 3; tap++)
      taps[d] += max(0, min(outputs, lengths[d] + padding - tap) - max(0, padding - tap));
    blocks *= ceil_div(outputs, 2);
  }
  i64 products = channels * features, sums = 40 * (channels + features);
  return 10 * blocks * (POINTS * products + sums) < 9 * taps[0] * taps[1] * products;
}

/* G w G' of each input and output, [outputs / block, 16, inputs, block], as weights of 16
   correlations of one tap. Arguments as of pack_weights. */
static void pack_minimal(float *packed, const float *w, i64 row, i64 column, i64 inputs, i64 in,
                         i64 outputs, i64 out) {
  i64 block = feature_block(outputs), step = inputs * block;
  for (i64 f0 = 0; f0 < outputs; f0 += block, packed += POINTS * step)
    for (i64 c = 0; c < inputs; c++)
      for (i64 f = 0; f < block; f++) {
        float t[4][3], *to = packed + c * block + f;
        for (int j = 0; j < 3; j++) {
          const float *v = w + j * column + c * in + min(f0 + f, outputs - 1) * out;
          t[0][j] = v[0], t[3][j] = v[2 * row];
          t[1][j] = .5f * (v[0] + v[row] + v[2 * row]);
          t[2][j] = .5f * (v[0] - v[row] + v[2 * row]);
        }
        for (int i = 0; i < 4; i++, to += 4 * step) {
          to[0] = t[i][0], to[3 * step] = t[i][2];
          to[step] = .5f * (t[i][0] + t[i][1] + t[i][2]);
          to[2 * step] = .5f * (t[i][0] - t[i][1] + t[i][2]);
        }
      }
}

typedef struct {
  i64 height, width, channels, rows, columns, features, padding;
  i64 block, blocks, band, bands; /* blocks of 2x2 outputs of a tile; of a task */
  i64 transformed, size;          /* floats of the workspace of a worker: of inputs, of all */
  const float *x, *weights;
  float *y, *workspace;
} Minimal;

static Minimal plan_minimal(i64 height, i64 width, i64 channels, i64 features, i64 padding) {
  Minimal m = {.height = height, .width = width, .channels = channels, .features = features,
               .padding = padding, .rows = height + 2 * padding - 2,
               .columns = width + 2 * padding - 2, .block = feature_block(features)};
  i64 point = POINTS * TILE * (channels + m.block) * sizeof(float);
  m.blocks = ceil_div(m.rows, 2) * ceil_div(m.columns, 2);
  m.bands = ceil_div(m.blocks, max(PAIR, min(m.blocks, L2 / point)));
  m.band = ceil_div(m.blocks, m.bands);
  m.transformed = POINTS * m.band * channels * TILE;
  m.size = m.transformed + POINTS * m.band * m.block * TILE;
  return m;
}

/* B' x B of 4x4 pixels from (top, left) on, with zeros outside; to [16, step]. */
static void transform_inputs(const Minimal *m, const float *x, i64 top, i64 left, float *to,
                             i64 step) {
  static const float zeros[TILE];
  const float *from[4][4];
  i64 moves[4][4];
  for (i64 i = 0; i < 4; i++)
    for (i64 j = 0; j < 4; j++) {
      i64 u = top + i, v = left + j, inside = u >= 0 && u < m->height && v >= 0 && v < m->width;
      from[i][j] = inside ? x + (u * m->width + v) * m->channels * TILE : zeros;
      moves[i][j] = inside ? TILE : 0;
    }
  for (i64 c = 0; c < m->channels; c++)
    for (i64 l = 0; l < TILE; l += LANES) {
      vec d[4][4], t[4][4];
      UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++)
        d[i][j] = load(from[i][j] + c * moves[i][j] + l);
      UNROLL for (int j = 0; j < 4; j++) {
        t[0][j] = d[0][j] - d[2][j], t[1][j] = d[1][j] + d[2][j];
        t[2][j] = d[2][j] - d[1][j], t[3][j] = d[1][j] - d[3][j];
      }
      UNROLL for (int i = 0; i < 4; i++) {
        float *point = to + 4 * i * step + c * TILE + l;
        store(point, t[i][0] - t[i][2]), store(point + step, t[i][1] + t[i][2]);
        store(point + 2 * step, t[i][2] - t[i][1]), store(point + 3 * step, t[i][1] - t[i][3]);
      }
    }
}

/* A' m A of the products of one block and feature, [16, step]: 2x2 outputs. */
static void transform_outputs(const float *products, i64 step, float *y, i64 y_row, i64 y_step,
                              i64 rows, i64 columns) {
  for (i64 l = 0; l < TILE; l += LANES) {
    vec p[4][4], t[2][4], out[2][2];
    UNROLL for (int k = 0; k < POINTS; k++) p[k / 4][k % 4] = load(products + k * step + l);
    UNROLL for (int j = 0; j < 4; j++) {
      t[0][j] = p[0][j] + p[1][j] + p[2][j];
      t[1][j] = p[1][j] - p[2][j] - p[3][j];
    }
    UNROLL for (int i = 0; i < 2; i++) {
      out[i][0] = t[i][0] + t[i][1] + t[i][2];
      out[i][1] = t[i][1] - t[i][2] - t[i][3];
    }
    for (i64 i = 0; i < rows; i++)
      for (i64 j = 0; j < columns; j++) store(y + i * y_row + j * y_step + l, out[i][j]);
  }
}

static void minimal_task(const void *work, i64 task, i64 worker) {
  const Minimal *m = work;
  i64 tile = task / m->bands, first = task % m->bands * m->band;
  i64 count = max(0, min(m->band, m->blocks - first)), across = ceil_div(m->columns, 2);
  const float *x = m->x + tile * m->height * m->width * m->channels * TILE;
  float *y = m->y + tile * m->rows * m->columns * m->features * TILE;
  float *inputs = m->workspace + worker * m->size, *products = inputs + m->transformed;
  i64 x_block = m->channels * TILE, y_block = m->block * TILE;
  i64 x_step = m->band * x_block, y_step = m->band * y_block;
  for (i64 b = 0; b < count; b++)
    transform_inputs(m, x, (first + b) / across * 2 - m->padding,
                     (first + b) % across * 2 - m->padding, inputs + b * x_block, x_step);
  for (i64 f = 0; f < m->features; f += m->block) {
    for (i64 k = 0; k < POINTS; k++) {
      const float *w = m->weights + (f / m->block * POINTS + k) * m->channels * m->block;
      for (i64 b = 0, pairs; b < count; b += pairs) {
        pairs = b + PAIR <= count ? PAIR : 1;
        correlate_kind(m->block, pairs)(inputs + k * x_step + b * x_block, 0, x_block, w, 0, 1,
                                        m->channels, products + k * y_step + b * y_block, y_block,
                                        m->block);
      }
    }
    for (i64 b = 0; b < count; b++) {
      i64 row = (first + b) / across * 2, column = (first + b) % across * 2;
      for (i64 g = 0; g < min(m->block, m->features - f); g++)
        transform_outputs(products + b * y_block + g * TILE, y_step,
                          y + ((row * m->columns + column) * m->features + f + g) * TILE,
                          m->columns * m->features * TILE, m->features * TILE,
                          min(2, m->rows - row), min(2, m->columns - column));
    }
  }
}

static i64 packed_size(i64 taps, i64 inputs, i64 outputs) {
  i64 block = feature_block(outputs);
  return ceil_div(taps * inputs * ceil_div(outputs, block) * block, TILE) * TILE;
}

/* Floats of the workspace: the weights, and for each worker inputs and products. */
static i64 minimal_size(i64 tiles, const Minimal *m) {
  return packed_size(POINTS, m->channels, m->features) +
         min(tiles * m->bands, MAX_WORKERS) * m->size;
}

/* Weights as of pack_minimal. */
static void run_minimal(XLA_FFI_CallFrame *frame, i64 tiles, Minimal *m, const float *w, i64 row,
                        i64 column, i64 in, i64 out) {
  float *packed = result(frame, 1);
  pack_minimal(packed, w, row, column, m->channels, in, m->features, out);
  m->x = argument(frame, 0), m->y = result(frame, 0), m->weights = packed;
  m->workspace = packed + packed_size(POINTS, m->channels, m->features);
  run_tasks(frame, tiles * m->bands, minimal_task, m);
}
