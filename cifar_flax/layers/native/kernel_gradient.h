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

/* Tiles of which the last may stand elsewhere, with 0 in the lanes that do not count: what
   these hold may be NaN. */
typedef struct {
  const float *all, *last; /* [tiles, size]; [size] or NULL */
  i64 tiles, size;         /* floats of a tile */
} Tiles;

INLINE const float *tile_of(const Tiles *t, i64 n) {
  return t->last && n == t->tiles - 1 ? t->last : t->all + n * t->size;
}

static i64 x_floats(const Convolution *v) {
  return v->row.in * v->column.in * v->groups * v->channels * TILE;
}
static i64 grad_floats(const Convolution *v) {
  return v->row.out * v->column.out * v->groups * v->features * TILE;
}

/* Floats of a workspace for the last tile of both operands. */
static i64 last_size(const Convolution *v) {
  return v->images == v->tiles * TILE ? 0 : x_floats(v) + grad_floats(v);
}

static Tiles tiles_of(const float *all, const Convolution *v, i64 size, float *last) {
  if (!last_size(v)) return (Tiles){all, NULL, v->tiles, size};
  const float *from = all + (v->tiles - 1) * size;
  i64 lanes = v->images - (v->tiles - 1) * TILE;
  for (i64 q = 0; q < size; q++) last[q] = q % TILE < lanes ? from[q] : 0;
  return (Tiles){all, last, v->tiles, size};
}

typedef struct {
  const Convolution *shape;
  i64 tiles, channels, features; /* channels and features: of a group */
  i64 minimal, taps;             /* by minimal filtering; products: of each tap, or 36 */
  i64 kind, c_block, f_block;    /* the block */
  /* A panel is rows of outputs (or of 4x4 of them) of one tile, or all rows of several
     tiles, and the inputs that they need. A task takes a chunk of channels of a group
     through a share of the panels; by minimal filtering all channels, and all rows of
     points or one. */
  i64 rows, columns, panel_tiles, panel_rows, bands, panels, shares;
  i64 chunk, parts;
  i64 x_size, grad_size, sums_size; /* floats of copied panels; of all sums */
  Tiles x;                          /* [tiles, height, width, groups * channels, 16] */
  Tiles grad;                       /* [tiles, height, width, groups * features, 16] */
  float *dw;                        /* [size, size, channels, groups * features] */
  float *sums;                      /* [groups, shares, taps, channels, features] */
  float *panel;                     /* [workers, x_size + grad_size] */
} Gradient;

static Gradient plan_gradient(const Convolution *v) {
  i64 tiles = v->tiles, channels = v->channels, features = v->features;
  Gradient g = {.shape = v, .tiles = tiles, .channels = channels, .features = features};
  g.minimal = is_minimal(v);
  g.taps = g.minimal ? POINTS : v->row.size * v->column.size;
  g.rows = g.minimal ? blocks_of(&v->row) : v->row.out;
  g.columns = g.minimal ? blocks_of(&v->column) : v->column.out;
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
  i64 in_rows = (g.panel_rows - 1) * v->row.stride + (v->row.size - 1) * v->row.dilation + 1;
  in_rows = min(v->row.in, in_rows);
  i64 pixels = g.panel_tiles * (g.minimal ? g.panel_rows * g.columns : in_rows * v->column.in);
  i64 blocks = ceil_div(channels, g.c_block), f_blocks = ceil_div(features, g.f_block);
  /* Enough tasks for many threads, and at most 16 MB of sums. */
  i64 chunk = g.minimal ? blocks : max(1, L2 / (pixels * vector * g.c_block));
  g.parts = ceil_div(blocks, chunk);
  g.chunk = ceil_div(blocks, g.parts) * g.c_block;
  i64 sums = v->groups * g.taps * channels * features;
  g.shares = max(1, min(ceil_div(32, g.parts * v->groups), (1 << 22) / sums));
  g.shares = min(g.shares, g.panels);
  if (g.minimal && g.shares < 4) g.parts = INS;
  g.x_size = g.chunk * pixels * TILE;
  g.grad_size = g.f_block * g.panel_tiles * g.panel_rows * g.columns * TILE;
  if (g.minimal) {
    g.x_size = INS * (g.x_size + TILE);
    g.grad_size = INS * (g.grad_size * f_blocks + TILE);
  }
  g.sums_size = ceil_div(g.shares * sums, TILE) * TILE;
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

/* The outputs of an axis, from `first` to `last`, that have a tap inside the image. */
static void outputs_of_tap(const Axis *v, i64 tap, i64 *first, i64 *last) {
  i64 offset = tap * v->dilation - v->before;
  *first = max(*first, ceil_div_signed(-offset, v->stride));
  *last = min(*last, ceil_div_signed(v->in - offset, v->stride));
}

/* One panel of a chunk of channels: adds its part to dw [size, size, channels, features]. */
static void add_panel(const Gradient *g, i64 group, i64 panel, i64 part, float *x, float *grad,
                      float *dw) {
  AddProducts *add = add_products[g->kind];
  const Axis *row = &g->shape->row, *column = &g->shape->column;
  i64 n0 = panel / g->bands * g->panel_tiles, tiles = min(g->panel_tiles, g->tiles - n0);
  i64 a0 = panel % g->bands * g->panel_rows, a1 = min(a0 + g->panel_rows, row->out);
  i64 c0 = part * g->chunk, c1 = min(c0 + g->chunk, g->channels);
  i64 u0 = max(0, a0 * row->stride - row->before);
  i64 u1 = (a1 - 1) * row->stride - row->before + (row->size - 1) * row->dilation + 1;
  u1 = max(u0, min(row->in, u1));
  i64 x_row = column->in * g->c_block * TILE, x_tile = (u1 - u0) * x_row;
  i64 g_row = column->out * g->f_block * TILE, g_tile = (a1 - a0) * g_row;
  i64 x_pixel = g->shape->groups * g->channels * TILE;
  i64 g_pixel = g->shape->groups * g->features * TILE;
  for (i64 c = c0; c < c1; c += g->c_block)
    for (i64 n = 0; n < tiles; n++)
      copy_channels(x + ((c - c0) / g->c_block * tiles + n) * x_tile,
                    tile_of(&g->x, n0 + n) + u0 * column->in * x_pixel +
                        (group * g->channels + c) * TILE,
                    (u1 - u0) * column->in, x_pixel, c1 - c, g->c_block);
  for (i64 f = 0; f < g->features; f += g->f_block) {
    for (i64 n = 0; n < tiles; n++)
      copy_channels(grad + n * g_tile,
                    tile_of(&g->grad, n0 + n) + a0 * column->out * g_pixel +
                        (group * g->features + f) * TILE,
                    (a1 - a0) * column->out, g_pixel, g->features - f, g->f_block);
    for (i64 i = 0; i < row->size; i++)
      for (i64 j = 0; j < column->size; j++) {
        i64 top = a0, end = a1, left = 0, right = column->out;
        outputs_of_tap(row, i, &top, &end);
        outputs_of_tap(column, j, &left, &right);
        if (top >= end || left >= right) continue;
        i64 u = top * row->stride + i * row->dilation - row->before - u0;
        i64 v = left * column->stride + j * column->dilation - column->before;
        const float *xt = x + u * x_row + v * g->c_block * TILE;
        const float *gt = grad + (top - a0) * g_row + left * g->f_block * TILE;
        for (i64 c = c0; c < c1; c += g->c_block)
          add(xt + (c - c0) / g->c_block * tiles * x_tile, x_tile, row->stride * x_row,
              column->stride * g->c_block * TILE, gt, g_tile, g_row, tiles, end - top,
              right - left, dw + ((i * column->size + j) * g->channels + c) * g->features + f,
              g->features, c1 - c, g->features - f);
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

/* One row of points, [6, point], of the N x N pixels from (top, left) on, `down` and `across`
   apart, with zeros outside: `rows` weighs their rows, and at most four of these weights are not 0. The
   channels go to blocks that are filled up with zeros. */
INLINE void transform_row(const int N, float *to, i64 point, i64 to_block, const float *image,
                          i64 height, i64 width, i64 channels, i64 top, i64 left, i64 down,
                          i64 across, const float *rows, i64 block) {
  static const float zeros[TILE];
  const float *from[4][INS];
  float factors[4] = {0};
  i64 moves[INS], terms = 0;
  for (i64 j = 0; j < N; j++)
    moves[j] = left + j * across >= 0 && left + j * across < width ? TILE : 0;
  for (i64 i = 0; i < N; i++) {
    i64 u = top + i * down;
    if (rows[i] == 0 || u < 0 || u >= height) continue;
    for (i64 j = 0; j < N; j++)
      from[terms][j] =
          moves[j] ? image + (u * width + left + j * across) * channels * TILE : zeros;
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
  const Axis *down = &g->shape->row, *across = &g->shape->column;
  for (i64 i = part; i < INS; i += g->parts) {
    for (i64 b = 0; b < blocks; b++) {
      i64 n = n0 + b / g->columns / (a1 - a0);
      i64 row = start_of(down, a0 + b / g->columns % (a1 - a0));
      i64 column = start_of(across, b % g->columns);
      transform_row(INS, x + b * x_step, x_point, blocks * x_step, tile_of(&g->x, n), down->in,
                    across->in, g->channels, row - down->before, column - across->before,
                    down->dilation, across->dilation, INPUT_ROWS[i], g->c_block);
      transform_row(OUTS, grad + b * g_step, g_point, blocks * g_step, tile_of(&g->grad, n),
                    down->out, across->out, g->features, row, column, down->dilation,
                    across->dilation, GRAD_ROWS[i], g->f_block);
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
  i64 group = task / g->parts / g->shares, share = task / g->parts % g->shares;
  i64 part = task % g->parts, pairs = g->channels * g->features;
  i64 c0 = part * g->chunk, count = min(g->chunk, g->channels - c0) * g->features;
  float *dw = g->sums + (group * g->shares + share) * g->taps * pairs;
  float *x = g->panel + worker * (g->x_size + g->grad_size), *grad = x + g->x_size;
  if (g->minimal)
    for (i64 i = part; i < INS; i += g->parts)
      memset(dw + i * INS * pairs, 0, INS * pairs * sizeof(float));
  else
    for (i64 tap = 0; tap < g->taps; tap++)
      memset(dw + tap * pairs + c0 * g->features, 0, count * sizeof(float));
  i64 last = (share + 1) * g->panels / g->shares;
  for (i64 k = share * g->panels / g->shares; k < last; k++)
    if (g->minimal)
      add_minimal_panel(g, k, part, x, grad, dw);
    else
      add_panel(g, group, k, part, x, grad, dw);
}

/* The sums of all shares, and the gradient from them, of some pairs of a channel and a
   feature. */
enum { PAIRS = 1024 };

static void finish_task(const void *work, i64 task, i64 worker) {
  (void)worker;
  const Gradient *g = work;
  i64 pairs = g->channels * g->features, tasks = ceil_div(pairs, PAIRS);
  i64 group = task / tasks, first = task % tasks * PAIRS, last = min(first + PAIRS, pairs);
  float *sums = g->sums + group * g->shares * g->taps * pairs;
  for (i64 share = 1; share < g->shares; share++)
    for (i64 tap = 0; tap < g->taps; tap++)
      for (i64 q = first; q < last; q++)
        sums[tap * pairs + q] += sums[(share * g->taps + tap) * pairs + q];
  if (g->minimal) {
    for (i64 q = first; q < last; q++) finish_minimal(sums + q, pairs, g->dw + q);
    return;
  }
  i64 row = g->shape->groups * g->features; /* of dw */
  for (i64 tap = 0; tap < g->taps; tap++)
    for (i64 q = first, count; q < last; q += count) {
      i64 c = q / g->features, f = q % g->features;
      count = min(last - q, g->features - f);
      memcpy(g->dw + (tap * g->channels + c) * row + group * g->features + f,
             sums + tap * pairs + q, count * sizeof(float));
    }
}
