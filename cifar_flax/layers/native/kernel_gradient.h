/* The gradient of the kernel. */

#pragma once

#include <string.h>

#include "minimal.h"

/* Blocks of channels by features. */
#if defined(__AVX2__) && !defined(__AVX512F__)
#define GRADIENT_BLOCKS(X) X(0, 3, 4) X(1, 2, 5) X(2, 2, 6)
#else
#define GRADIENT_BLOCKS(X) X(0, 3, 5) X(1, 5, 5) X(2, 4, 6)
#endif
enum { MAX_C = 5, MAX_F = 6 };

typedef struct {
  i64 tiles, height, width, channels, out_height, out_width, features;
  i64 size, stride, padding;
  i64 minimal, taps;          /* by minimal filtering; products: size * size, or 36 */
  i64 kind, c_block, f_block; /* the block */
  /* A panel is rows of outputs (or of 4x4 of them) of one tile, or all rows of several
     tiles, and the inputs that they need. A task takes a chunk of channels through a
     group of panels; by minimal filtering all channels, and all rows of points or one. */
  i64 rows, columns, panel_tiles, panel_rows, bands, panels, groups;
  i64 chunk, parts;
  i64 x_size, grad_size, sums_size; /* floats of copied panels; of the sums of all groups */
  const float *x;                   /* [tiles, height, width, channels, 16] */
  const float *grad;                /* [tiles, out_height, out_width, features, 16] */
  float *dw;                        /* [size, size, channels, features] */
  float *sums;                      /* [groups, taps, channels, features] */
  float *panel;                     /* [workers, x_size + grad_size] */
} Gradient;

static Gradient plan_gradient(i64 tiles, i64 height, i64 width, i64 channels, i64 features,
                              i64 size, i64 stride, i64 padding) {
  Gradient g = {.tiles = tiles,
                .height = height,
                .width = width,
                .channels = channels,
                .features = features,
                .size = size,
                .stride = stride,
                .padding = padding,
                .out_height = (height + 2 * padding - size) / stride + 1,
                .out_width = (width + 2 * padding - size) / stride + 1};
  g.minimal = is_minimal(tiles, size, stride, height, width, padding, channels, features);
  g.taps = g.minimal ? POINTS : size * size;
  g.rows = g.minimal ? ceil_div(g.out_height, OUTS) : g.out_height;
  g.columns = g.minimal ? ceil_div(g.out_width, OUTS) : g.out_width;
  i64 least = INT64_MAX;
#define COST(KIND, C, F)                                                            \
  {                                                                                 \
    i64 cost = ceil_div(channels, C) * ceil_div(features, F) * (2 * C * F + C + F); \
    if (cost < least) least = cost, g.kind = KIND, g.c_block = C, g.f_block = F;    \
  }
  GRADIENT_BLOCKS(COST)
  /* Gradients of a block of features stay in the first cache, inputs in the second; by
     minimal filtering that is the points of all channels and features. */
  i64 vector = TILE * sizeof(float);
  i64 positions = (g.minimal ? 8 << 10 : L1) / (g.f_block * vector);
  g.panel_rows = max(1, min(g.rows, positions / g.columns));
  g.panel_tiles = 1;
  if (g.panel_rows == g.rows)
    g.panel_tiles = max(1, min(tiles, positions / (g.rows * g.columns)));
  g.panel_tiles = ceil_div(tiles, ceil_div(tiles, g.panel_tiles)); /* all alike */
  g.bands = ceil_div(g.rows, g.panel_rows);
  g.panels = ceil_div(tiles, g.panel_tiles) * g.bands;
  i64 in_rows = min(height, (g.panel_rows - 1) * stride + size);
  i64 pixels = g.panel_tiles * (g.minimal ? g.panel_rows * g.columns : in_rows * width);
  i64 blocks = ceil_div(channels, g.c_block), f_blocks = ceil_div(features, g.f_block);
  /* Enough tasks for many threads, and at most 16 MB of sums. */
  i64 chunk = g.minimal ? blocks : max(1, L2 / (pixels * vector * g.c_block));
  g.parts = ceil_div(blocks, chunk);
  g.chunk = ceil_div(blocks, g.parts) * g.c_block;
  g.groups = max(1, min(ceil_div(32, g.parts), (1 << 22) / (g.taps * channels * features)));
  g.groups = min(g.groups, g.panels);
  if (g.minimal && g.groups < 4) g.parts = INS;
  g.x_size = g.chunk * pixels * TILE;
  g.grad_size = g.f_block * g.panel_tiles * g.panel_rows * g.columns * TILE;
  if (g.minimal) {
    g.x_size = INS * (g.x_size + TILE);
    g.grad_size = INS * (g.grad_size * f_blocks + TILE);
  }
  g.sums_size = ceil_div(g.groups * g.taps * channels * features, TILE) * TILE;
  return g;
}

/* Adds to dw the sums of C channels by F features of one tap over all positions. */
INLINE void add_block(const int C, const int F, const float *x, i64 x_tile, i64 x_row,
                      i64 x_step, const float *g, i64 g_tile, i64 g_row, i64 tiles, i64 rows,
                      i64 columns, float *dw, i64 dw_step, i64 channels, i64 features) {
  vec sum[MAX_C][MAX_F];
  EACH(c, C)
    EACH(f, F) sum[c][f] = (vec){0};
  for (i64 n = 0; n < tiles; n++)
    for (i64 a = 0; a < rows; a++) {
      const float *xa = x + n * x_tile + a * x_row, *ga = g + n * g_tile + a * g_row;
      for (i64 b = 0; b < columns; b++, xa += x_step, ga += F * TILE)
        UNROLL for (int v = 0; v < TILE; v += LANES) {
          vec in[MAX_C];
          EACH(c, C) in[c] = load_once(xa + c * TILE + v);
          EACH(f, F) {
            vec grad = load_once(ga + f * TILE + v);
            EACH(c, C) sum[c][f] += in[c] * grad;
          }
        }
    }
  UNROLL for (int q = 0; q < C * F; q += LANES) {
    vec some[LANES];
    EACH(l, LANES) some[l] = q + l < C * F ? sum[(q + l) / F][(q + l) % F] : (vec){0};
    float sums[LANES];
    store(sums, lane_sums(some));
    EACH(l, LANES) {
      int c = (q + l) / F, f = (q + l) % F;
      if (c < min(C, channels) && f < features) dw[c * dw_step + f] += sums[l];
    }
  }
}

typedef void AddProducts(const float *, i64, i64, i64, const float *, i64, i64, i64, i64, i64,
                         float *, i64, i64, i64);

#define ADD_PRODUCTS(KIND, C, F)                                                              \
  static void add_products_##KIND(const float *x, i64 x_tile, i64 x_row, i64 x_step,          \
                                  const float *g, i64 g_tile, i64 g_row, i64 tiles, i64 rows, \
                                  i64 columns, float *dw, i64 dw_step, i64 channels,          \
                                  i64 features) {                                             \
    add_block(C, F, x, x_tile, x_row, x_step, g, g_tile, g_row, tiles, rows, columns, dw,     \
              dw_step, channels, features);                                                   \
  }
GRADIENT_BLOCKS(ADD_PRODUCTS)

static AddProducts *const add_products[] = {add_products_0, add_products_1, add_products_2};

/* Copies `count` channels of pixels to blocks that are filled up with zeros. */
static void copy_channels(float *to, const float *from, i64 pixels, i64 pixel, i64 count,
                          i64 block) {
  for (i64 p = 0; p < pixels; p++, from += pixel)
    for (i64 c = 0; c < block; c++)
      for (i64 v = 0; v < TILE; v += LANES, to += LANES)
        store(to, c < count ? load(from + c * TILE + v) : (vec){0});
}

/* One panel of a chunk of channels: adds its part to dw [size, size, channels, features]. */
static void add_panel(const Gradient *g, i64 panel, i64 part, float *x, float *grad,
                      float *dw) {
  AddProducts *add = add_products[g->kind];
  i64 n0 = panel / g->bands * g->panel_tiles, tiles = min(g->panel_tiles, g->tiles - n0);
  i64 a0 = panel % g->bands * g->panel_rows, a1 = min(a0 + g->panel_rows, g->out_height);
  i64 c0 = part * g->chunk, c1 = min(c0 + g->chunk, g->channels), s = g->stride, p = g->padding;
  i64 u0 = max(0, a0 * s - p), u1 = min(g->height, (a1 - 1) * s - p + g->size);
  i64 x_row = g->width * g->c_block * TILE, x_tile = max(0, u1 - u0) * x_row;
  i64 g_row = g->out_width * g->f_block * TILE, g_tile = (a1 - a0) * g_row;
  i64 x_pixel = g->channels * TILE, g_pixel = g->features * TILE;
  for (i64 c = c0; c < c1; c += g->c_block)
    for (i64 n = 0; n < tiles; n++)
      copy_channels(x + ((c - c0) / g->c_block * tiles + n) * x_tile,
                    g->x + ((n0 + n) * g->height + u0) * g->width * x_pixel + c * TILE,
                    max(0, u1 - u0) * g->width, x_pixel, c1 - c, g->c_block);
  for (i64 f = 0; f < g->features; f += g->f_block) {
    for (i64 n = 0; n < tiles; n++)
      copy_channels(grad + n * g_tile,
                    g->grad + ((n0 + n) * g->out_height + a0) * g->out_width * g_pixel +
                        f * TILE,
                    (a1 - a0) * g->out_width, g_pixel, g->features - f, g->f_block);
    for (i64 i = 0; i < g->size; i++)
      for (i64 j = 0; j < g->size; j++) {
        /* The outputs that have this tap inside the image. */
        i64 top = max(a0, ceil_div(max(0, p - i), s));
        i64 end = min(a1, ceil_div(max(0, g->height + p - i), s));
        i64 left = ceil_div(max(0, p - j), s);
        i64 right = min(g->out_width, ceil_div(max(0, g->width + p - j), s));
        if (top >= end || left >= right) continue;
        const float *xt =
            x + (top * s + i - p - u0) * x_row + (left * s + j - p) * g->c_block * TILE;
        const float *gt = grad + (top - a0) * g_row + left * g->f_block * TILE;
        for (i64 c = c0; c < c1; c += g->c_block)
          add(xt + (c - c0) / g->c_block * tiles * x_tile, x_tile, s * x_row,
              s * g->c_block * TILE, gt, g_tile, g_row, tiles, end - top, right - left,
              dw + ((i * g->size + j) * g->channels + c) * g->features + f, g->features, c1 - c,
              g->features - f);
      }
  }
}

/* B' and A: which rows of pixels, and of gradients, belong to a row of points. */
static const float INPUT_ROWS[INS][INS] = {{1, 0, -2.5f, 0, 1, 0},
                                           {0, -ROOT, -2, .5f * ROOT, 1, 0},
                                           {0, ROOT, -2, -.5f * ROOT, 1, 0},
                                           {0, -.5f * ROOT, -.5f, ROOT, 1, 0},
                                           {0, .5f * ROOT, -.5f, -ROOT, 1, 0},
                                           {0, 1, 0, -2.5f, 0, 1}};
static const float GRAD_ROWS[INS][OUTS] = {{1, 0, 0, 0},
                                           {1, .5f * ROOT, .5f, .25f * ROOT},
                                           {1, -.5f * ROOT, .5f, -.25f * ROOT},
                                           {1, ROOT, 2, 2 * ROOT},
                                           {1, -ROOT, 2, -2 * ROOT},
                                           {0, 0, 0, 1}};

/* One row of points, [6, point], of the N x N pixels from (top, left) on, with zeros
   outside: `rows` weighs their rows, and at most four of these weights are not 0. The
   channels go to blocks that are filled up with zeros. */
INLINE void transform_row(const int N, float *to, i64 point, i64 to_block, const float *image,
                          i64 height, i64 width, i64 channels, i64 top, i64 left,
                          const float *rows, i64 block) {
  static const float zeros[TILE];
  const float *from[4][INS];
  float factors[4] = {0};
  i64 moves[INS], terms = 0;
  for (i64 j = 0; j < N; j++) moves[j] = left + j >= 0 && left + j < width ? TILE : 0;
  for (i64 i = 0; i < N; i++) {
    if (rows[i] == 0 || top + i < 0 || top + i >= height) continue;
    for (i64 j = 0; j < N; j++)
      from[terms][j] =
          moves[j] ? image + ((top + i) * width + left + j) * channels * TILE : zeros;
    factors[terms++] = rows[i];
  }
  for (i64 c = 0; c < channels; c += block, to += to_block)
    for (i64 k = 0; k < block; k++) {
      vec pixels[PARTS][INS], points[INS];
      EACH(v, PARTS)
        EACH(j, N) pixels[v][j] = (vec){0};
      for (i64 term = 0; term < terms && c + k < channels; term++)
        EACH(j, N)
          EACH(v, PARTS)
            pixels[v][j] +=
                factors[term] * load(from[term][j] + (c + k) * moves[j] + v * LANES);
      EACH(v, PARTS) {
        N == INS ? input_points(pixels[v], points) : grad_points(pixels[v], points);
        EACH(j, INS) store(to + j * point + k * TILE + v * LANES, points[j]);
      }
    }
}

/* The same as add_panel by minimal filtering: dw is [36, channels, features]. */
static void add_minimal_panel(const Gradient *g, i64 panel, i64 part, float *x, float *grad,
                              float *dw) {
  AddProducts *add = add_products[g->kind];
  i64 n0 = panel / g->bands * g->panel_tiles, n1 = min(n0 + g->panel_tiles, g->tiles);
  i64 a0 = panel % g->bands * g->panel_rows, a1 = min(a0 + g->panel_rows, g->rows);
  i64 blocks = (n1 - n0) * (a1 - a0) * g->columns;
  i64 x_step = g->c_block * TILE, g_step = g->f_block * TILE;
  i64 x_point = g->x_size / INS, g_point = g->grad_size / INS;
  for (i64 i = part; i < INS; i += g->parts) {
    for (i64 b = 0; b < blocks; b++) {
      i64 n = n0 + b / g->columns / (a1 - a0), row = OUTS * (a0 + b / g->columns % (a1 - a0));
      i64 column = OUTS * (b % g->columns);
      transform_row(INS, x + b * x_step, x_point, blocks * x_step,
                    g->x + n * g->height * g->width * g->channels * TILE, g->height, g->width,
                    g->channels, row - g->padding, column - g->padding, INPUT_ROWS[i],
                    g->c_block);
      transform_row(OUTS, grad + b * g_step, g_point, blocks * g_step,
                    g->grad + n * g->out_height * g->out_width * g->features * TILE,
                    g->out_height, g->out_width, g->features, row, column, GRAD_ROWS[i],
                    g->f_block);
    }
    for (i64 j = 0; j < INS; j++)
      for (i64 f = 0; f < g->features; f += g->f_block)
        for (i64 c = 0; c < g->channels; c += g->c_block)
          add(x + j * x_point + c * TILE * blocks, 0, 0, x_step,
              grad + j * g_point + f * TILE * blocks, 0, 0, 1, 1, blocks,
              dw + ((i * INS + j) * g->channels + c) * g->features + f, g->features,
              g->channels - c, g->features - f);
  }
}

/* G' t: three taps from their values at the six points, `step` apart. */
INLINE void taps_of_points(const float *t, i64 step, float w[3]) {
  float even_small = t[step] + t[2 * step], odd_small = t[step] - t[2 * step];
  float even_large = t[3 * step] + t[4 * step], odd_large = t[3 * step] - t[4 * step];
  w[0] = t[0] + 1.f / 6 * (even_large - 4.f * even_small);
  w[1] = ROOT / 6 * (odd_large - 2.f * odd_small);
  w[2] = t[5 * step] + 1.f / 3 * (even_large - even_small);
}

/* G' u G: the gradient of a kernel [3, 3, ...] from its 36 sums; steps as of those. */
static void finish_minimal(const float *u, i64 step, float *dw) {
  float rows[3][INS];
  for (int j = 0; j < INS; j++) {
    float column[3];
    taps_of_points(u + j * step, INS * step, column);
    for (int i = 0; i < 3; i++) rows[i][j] = column[i];
  }
  for (int i = 0; i < 3; i++, dw += 3 * step) {
    float taps[3];
    taps_of_points(rows[i], 1, taps);
    for (int j = 0; j < 3; j++) dw[j * step] = taps[j];
  }
}

static void gradient_task(const void *work, i64 task, i64 worker) {
  const Gradient *g = work;
  i64 group = task / g->parts, part = task % g->parts, pairs = g->channels * g->features;
  i64 c0 = part * g->chunk, count = min(g->chunk, g->channels - c0) * g->features;
  float *dw = g->sums + group * g->taps * pairs;
  float *x = g->panel + worker * (g->x_size + g->grad_size), *grad = x + g->x_size;
  if (g->minimal)
    for (i64 i = part; i < INS; i += g->parts)
      memset(dw + i * INS * pairs, 0, INS * pairs * sizeof(float));
  else
    for (i64 tap = 0; tap < g->taps; tap++)
      memset(dw + tap * pairs + c0 * g->features, 0, count * sizeof(float));
  for (i64 k = group * g->panels / g->groups; k < (group + 1) * g->panels / g->groups; k++)
    (g->minimal ? add_minimal_panel : add_panel)(g, k, part, x, grad, dw);
}

/* The sums of all groups, and the gradient from them, of some pairs of a channel and a
   feature. */
enum { PAIRS = 1024 };

static void finish_task(const void *work, i64 task, i64 worker) {
  (void)worker;
  const Gradient *g = work;
  i64 pairs = g->channels * g->features, first = task * PAIRS, last = min(first + PAIRS, pairs);
  for (i64 group = 1; group < g->groups; group++)
    for (i64 tap = 0; tap < g->taps; tap++)
      for (i64 q = first; q < last; q++)
        g->sums[tap * pairs + q] += g->sums[(group * g->taps + tap) * pairs + q];
  if (g->minimal)
    for (i64 q = first; q < last; q++) finish_minimal(g->sums + q, pairs, g->dw + q);
  else
    for (i64 tap = 0; tap < g->taps; tap++)
      memcpy(g->dw + tap * pairs + first, g->sums + tap * pairs + first,
             (last - first) * sizeof(float));
}
