/* Minimal filtering: the same with fewer products, for 3x3 kernels of stride 1. */

#pragma once

#include "correlate.h"

/* A 3x3 kernel of stride 1 may be computed for 4x4 outputs at once with 36 products in
   place of 144 (Winograd's F(4x4, 3x3); Lavin and Gray 2016):

     y = A' [(G w G') * (B' x B)] A,    x 6x6, w 3x3, y 4x4

   and, transposed, for its kernel gradient dw = G' [(B' x B) * (A dy A')] G. The matrices
   multiply polynomials by their values at 0, +-1/r, +-r and infinity with r = sqrt(2).
   With these points the rounding error is twice that of the plain sum; with the usual 0,
   +-1, +-2 and infinity it would be four times as large. A NaN in a pixel reaches all 4x4
   outputs of the blocks that need the pixel: 16 to 25 outputs in place of 9. */
enum { OUTS = 4, INS = 6, POINTS = INS * INS };
static const float ROOT = 1.41421356f;

/* B' x: the values of six pixels at the six points. */
INLINE void input_points(const vec x[INS], vec t[INS]) {
  vec even = x[4] - 2.f * x[2], odd = .5f * ROOT * (x[3] - 2.f * x[1]);
  t[0] = x[0] - 2.5f * x[2] + x[4];
  t[1] = even + odd, t[2] = even - odd;
  even = x[4] - .5f * x[2], odd = ROOT * (x[3] - .5f * x[1]);
  t[3] = even + odd, t[4] = even - odd;
  t[5] = x[1] - 2.5f * x[3] + x[5];
}

/* A' t: four outputs from their values at the six points. */
INLINE void outputs_of_points(const vec t[INS], vec y[OUTS]) {
  vec even_small = t[1] + t[2], odd_small = .5f * ROOT * (t[1] - t[2]);
  vec even_large = t[3] + t[4], odd_large = ROOT * (t[3] - t[4]);
  y[0] = t[0] + even_small + even_large;
  y[1] = odd_small + odd_large;
  y[2] = .5f * even_small + 2.f * even_large;
  y[3] = .5f * odd_small + 2.f * odd_large + t[5];
}

/* A y: the values of four gradients of outputs at the six points. */
INLINE void grad_points(const vec y[OUTS], vec t[INS]) {
  vec even = y[0] + .5f * y[2], odd = .5f * ROOT * (y[1] + .5f * y[3]);
  t[0] = y[0], t[5] = y[3];
  t[1] = even + odd, t[2] = even - odd;
  even = y[0] + 2.f * y[2], odd = ROOT * (y[1] + 2.f * y[3]);
  t[3] = even + odd, t[4] = even - odd;
}

/* G w: the values of three taps at the six points. */
INLINE void kernel_points(const float w[3], float t[INS]) {
  float even = -2.f / 3 * (w[0] + .5f * w[2]), odd = -ROOT / 3 * w[1];
  t[0] = w[0], t[5] = w[2];
  t[1] = even + odd, t[2] = even - odd;
  even = 1.f / 6 * (w[0] + 2.f * w[2]), odd = ROOT / 6 * w[1];
  t[3] = even + odd, t[4] = even - odd;
}

/* Pixels of a distance, the dilation, are an image of their own for such a kernel. Blocks of
   4 outputs along an axis, of all these images, and where one of them starts. */
INLINE i64 blocks_of_image(const Axis *a) {
  return ceil_div(ceil_div(a->out, a->dilation), OUTS);
}
INLINE i64 blocks_of(const Axis *a) { return min(a->dilation, a->out) * blocks_of_image(a); }
INLINE i64 start_of(const Axis *a, i64 block) {
  i64 blocks = blocks_of_image(a);
  return block / blocks + block % blocks * OUTS * a->dilation;
}

/* Whether that is less work than the taps inside the image: 36 products for each 4x4
   outputs, and transforms of their inputs and outputs and of the kernel. What these cost,
   in products of vectors, was measured. */
static int is_minimal(const Convolution *v) {
  i64 blocks = v->tiles, taps[2];
  const Axis *axes[2] = {&v->row, &v->column};
  if (v->groups > 1) return 0;
  for (int d = 0; d < 2; d++) {
    const Axis *a = axes[d];
    if (a->size != 3 || a->stride != 1) return 0;
    taps[d] = 0;
    for (i64 tap = 0; tap < 3; tap++) {
      i64 before = a->before - tap * a->dilation;
      taps[d] += max(0, min(a->out, a->in + before) - max(0, before));
    }
    blocks *= blocks_of(a);
  }
  i64 pairs = v->channels * v->features;
  i64 work = blocks * (POINTS * pairs + 750 * (v->channels + v->features)) + 150 * pairs;
  return work < v->tiles * taps[0] * taps[1] * pairs;
}

typedef struct {
  Axis row, column;
  i64 channels, features;
  i64 block, padded;       /* features of a block; of all blocks */
  i64 blocks, band, bands; /* blocks of 4x4 outputs of a tile; of a task */
  /* From one point to the next. An even number of cache lines would often put all points
     of a pixel on the same few lines of the cache. */
  i64 x_step, y_step, w_step;
  const float *x; /* [tiles, rows, columns, channels, 16] */
  Weights w;      /* [3, 3, channels, features] */
  After after;
  float *y;         /* [tiles, rows, columns, features, 16] of outputs */
  float *packed;    /* [36, w_step]; a point is [padded / block, channels, block] */
  float *workspace; /* [workers, 36, x_step + y_step] */
} Minimal;

static Minimal plan_minimal(const Convolution *v) {
  i64 channels = v->channels, features = v->features;
  Minimal m = {.row = v->row,
               .column = v->column,
               .channels = channels,
               .features = features,
               .block = feature_block(1, features)};
  m.padded = ceil_div(features, m.block) * m.block;
  i64 point = POINTS * TILE * (channels + m.padded) * sizeof(float);
  m.blocks = blocks_of(&m.row) * blocks_of(&m.column);
  m.bands = ceil_div(m.blocks, max(PAIR, min(m.blocks, L2 / point)));
  m.band = ceil_div(m.blocks, m.bands);
  m.x_step = (m.band * channels + 1) * TILE, m.y_step = (m.band * m.padded + 1) * TILE;
  m.w_step = (ceil_div(channels * m.padded, TILE) + 1) * TILE;
  return m;
}

/* G w G' of each input and a block of outputs, [36, outputs / block, inputs, block], as
   weights of 36 correlations of one tap. */
static void pack_task(const void *work, i64 task, i64 worker) {
  (void)worker;
  const Minimal *m = work;
  i64 f0 = task * m->block, step = m->w_step;
  for (i64 c = 0; c < m->channels; c++)
    for (i64 f = f0; f < f0 + m->block; f++) {
      const float *w = m->w.data + c * m->w.in + min(f, m->features - 1) * m->w.out;
      float t[3][INS], *to = m->packed + f0 * m->channels + c * m->block + f - f0;
      for (int j = 0; j < 3; j++) {
        const float *v = w + j * m->w.column;
        float column[3] = {v[0], v[m->w.row], v[2 * m->w.row]};
        kernel_points(column, t[j]);
      }
      for (int i = 0; i < INS; i++) {
        float row[3] = {t[0][i], t[1][i], t[2][i]}, point[INS];
        kernel_points(row, point);
        for (int j = 0; j < INS; j++) to[(i * INS + j) * step] = point[j];
      }
    }
}

/* B' x B of 6x6 pixels from (top, left) on, with zeros outside; to [36, step]. */
static void transform_inputs(const Minimal *m, const float *x, i64 top, i64 left, float *to,
                             i64 step) {
  static const float zeros[TILE];
  const float *from[INS][INS];
  i64 moves[INS][INS];
  for (i64 i = 0; i < INS; i++)
    for (i64 j = 0; j < INS; j++) {
      i64 u = top + i * m->row.dilation, v = left + j * m->column.dilation;
      i64 inside = u >= 0 && u < m->row.in && v >= 0 && v < m->column.in;
      from[i][j] = inside ? x + (u * m->column.in + v) * m->channels * TILE : zeros;
      moves[i][j] = inside ? TILE : 0;
    }
  for (i64 c = 0; c < m->channels; c++, to += TILE) {
    vec t[PARTS][INS][INS];
    for (int j = 0; j < INS; j++)
      EACH(v, PARTS) {
        vec pixels[INS], column[INS];
        EACH(i, INS) pixels[i] = load(from[i][j] + c * moves[i][j] + v * LANES);
        input_points(pixels, column);
        EACH(i, INS) t[v][i][j] = column[i];
      }
    for (int i = 0; i < INS; i++)
      EACH(v, PARTS) {
        vec row[INS];
        input_points(t[v][i], row);
        EACH(j, INS) store(to + (i * INS + j) * step + v * LANES, row[j]);
      }
  }
}

/* A' m A of the products of one block and feature, [36, step]: 4x4 outputs. */
static void transform_outputs(const float *products, i64 step, float *y, i64 y_row, i64 y_step,
                              i64 rows, i64 columns, After after) {
  vec t[PARTS][OUTS][INS];
  for (int j = 0; j < INS; j++)
    EACH(v, PARTS) {
      vec p[INS], column[OUTS];
      EACH(i, INS) p[i] = load(products + (i * INS + j) * step + v * LANES);
      outputs_of_points(p, column);
      EACH(i, OUTS) t[v][i][j] = column[i];
    }
  for (i64 i = 0; i < rows; i++) {
    vec out[PARTS][OUTS];
    EACH(v, PARTS) outputs_of_points(t[v][i], out[v]);
    for (i64 j = 0; j < columns; j++)
      EACH(v, PARTS) store(y + i * y_row + j * y_step + v * LANES, out[v][j]);
    if (after.first) finish(after, y + i * y_row, y_step, 1, columns);
  }
}

static void minimal_task(const void *work, i64 task, i64 worker) {
  const Minimal *m = work;
  const Axis *down = &m->row, *right = &m->column;
  i64 tile = task / m->bands, first = task % m->bands * m->band;
  i64 count = max(0, min(m->band, m->blocks - first)), across = blocks_of(right);
  const float *x = m->x + tile * down->in * right->in * m->channels * TILE;
  float *y = m->y + tile * down->out * right->out * m->features * TILE;
  float *inputs = m->workspace + worker * POINTS * (m->x_step + m->y_step);
  float *products = inputs + POINTS * m->x_step;
  i64 x_block = m->channels * TILE, y_block = m->padded * TILE;
  for (i64 b = 0; b < count; b++)
    transform_inputs(m, x, start_of(down, (first + b) / across) - down->before,
                     start_of(right, (first + b) % across) - right->before,
                     inputs + b * x_block, m->x_step);
  for (i64 k = 0; k < POINTS; k++)
    for (i64 f = 0; f < m->features; f += m->block) {
      const float *w = m->packed + k * m->w_step + f * m->channels;
      for (i64 b = 0, pairs; b < count; b += pairs) {
        pairs = b + PAIR <= count ? PAIR : 1;
        correlate_kind(m->block, pairs)(
            inputs + k * m->x_step + b * x_block, 0, 0, x_block, w, 0, 1, 1, m->channels,
            products + k * m->y_step + b * y_block + f * TILE, y_block, m->block, (After){0});
      }
    }
  i64 pixel = m->features * TILE;
  for (i64 b = 0; b < count; b++) {
    i64 row = start_of(down, (first + b) / across);
    i64 column = start_of(right, (first + b) % across);
    for (i64 f = 0; f < m->features; f++)
      transform_outputs(products + b * y_block + f * TILE, m->y_step,
                        y + (row * right->out + column) * pixel + f * TILE,
                        down->dilation * right->out * pixel, right->dilation * pixel,
                        min(OUTS, ceil_div(down->out - row, down->dilation)),
                        min(OUTS, ceil_div(right->out - column, right->dilation)),
                        of_feature(m->after, f));
  }
}

/* Floats of the workspace: the weights, and for each worker inputs and products. */
static i64 minimal_size(i64 tiles, const Minimal *m) {
  return POINTS * m->w_step +
         min(tiles * m->bands, MAX_WORKERS) * POINTS * (m->x_step + m->y_step);
}

static void run_minimal(XLA_FFI_CallFrame *frame, i64 tiles, Minimal *m, Weights w) {
  m->x = argument(frame, 0), m->w = w, m->y = result(frame, 0), m->packed = result(frame, 1);
  m->workspace = m->packed + POINTS * m->w_step;
  run_tasks(frame, m->padded / m->block, pack_task, m);
  run_tasks(frame, tiles * m->bands, minimal_task, m);
}
