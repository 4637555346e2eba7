/* The gradient of the kernel where a group has one or two channels, or features. */

#pragma once

#include "kernel_gradient.h"

/* Blocks of taps, rows by columns: all products of a gradient with the inputs under them
   are added up in registers. */
#if defined(__AVX2__) && !defined(__AVX512F__)
#define TAP_BLOCKS(X) X(0, 3, 3) X(1, 2, 5) X(2, 1, 7) X(3, 1, 3) X(4, 1, 1)
#else
#define TAP_BLOCKS(X) X(0, 3, 3) X(1, 5, 5) X(2, 3, 7) X(3, 1, 7) X(4, 1, 3) X(5, 1, 1)
#endif
enum { MAX_TAPS = 7 };

typedef struct {
  const Convolution *shape;
  i64 kind, block_rows, block_columns; /* the block of taps */
  i64 rows, columns;                   /* of the panel: one channel of a tile, with zeros */
  i64 shares, chunk, chunks;           /* of tiles; groups of a task */
  Tiles x, grad;                       /* as of Gradient */
  float *sums;                         /* [shares, taps, channels, groups * features] */
  float *dw;                           /* [taps, channels, groups * features] */
  float *panels;                       /* [workers, rows, columns, 16] */
} NarrowGradient;

static int is_narrow_gradient(const Convolution *v) {
  return v->groups > 1 && min(v->channels, v->features) < 3;
}

static i64 kernel_floats(const Convolution *v) {
  return v->row.size * v->column.size * v->channels * v->groups * v->features;
}

static NarrowGradient plan_narrow_gradient(const Convolution *v) {
  NarrowGradient g = {.shape = v};
  const Axis *row = &v->row, *column = &v->column;
  i64 least = INT64_MAX;
  /* Fewer than eight sums would wait for each other. */
#define TAP_COST(KIND, R, J)                                                              \
  {                                                                                       \
    i64 cost = ceil_div(row->size, R) * ceil_div(column->size, J) * (max(8, R * J) + 2);  \
    if (cost < least) least = cost, g.kind = KIND, g.block_rows = R, g.block_columns = J; \
  }
  TAP_BLOCKS(TAP_COST)
  i64 taps = ceil_div(row->size, g.block_rows) * g.block_rows;
  g.rows = (row->out - 1) * row->stride + (taps - 1) * row->dilation + 1;
  taps = ceil_div(column->size, g.block_columns) * g.block_columns;
  g.columns = (column->out - 1) * column->stride + (taps - 1) * column->dilation + 1;
  i64 sums = kernel_floats(v);
  g.chunk = ceil_div(v->groups, 32);
  g.chunks = ceil_div(v->groups, g.chunk);
  g.shares = max(1, min(min(v->tiles, ceil_div(32, g.chunks)), (1 << 22) / sums));
  return g;
}

/* Adds the sums of R x J taps over all outputs; where there are fewer taps, the others are
   left out at the end. */
INLINE void add_taps(const int R, const int J, const NarrowGradient *g, const float *x,
                     const float *grad, float *dw, i64 taps_down, i64 taps_across) {
  const Axis *row = &g->shape->row, *column = &g->shape->column;
  i64 pixel = g->shape->groups * g->shape->features * TILE;
  i64 x_row = row->dilation * g->columns * TILE, x_tap = column->dilation * TILE;
  vec sum[MAX_TAPS][MAX_TAPS];
  EACH(i, R)
    EACH(j, J) sum[i][j] = (vec){0};
  for (i64 a = 0; a < row->out; a++) {
    const float *xa = x + a * row->stride * g->columns * TILE;
    const float *ga = grad + a * column->out * pixel;
    for (i64 b = 0; b < column->out; b++, xa += column->stride * TILE, ga += pixel)
      UNROLL for (int v = 0; v < TILE; v += LANES) {
        vec one = load_once(ga + v);
        EACH(i, R)
          EACH(j, J) sum[i][j] += one * load(xa + i * x_row + j * x_tap + v);
      }
  }
  i64 step = g->shape->channels * g->shape->groups * g->shape->features;
  UNROLL for (int q = 0; q < R * J; q += LANES) {
    vec some[LANES];
    EACH(l, LANES) some[l] = q + l < R * J ? sum[(q + l) / J][(q + l) % J] : (vec){0};
    float sums[LANES];
    store(sums, lane_sums(some));
    EACH(l, LANES) {
      int i = (q + l) / J, j = (q + l) % J;
      if (i < min(R, taps_down) && j < taps_across)
        dw[(i * column->size + j) * step] += sums[l];
    }
  }
}

typedef void AddTaps(const NarrowGradient *, const float *, const float *, float *, i64, i64);

#define ADD_TAPS(KIND, R, J)                                                              \
  static void add_taps_##KIND(const NarrowGradient *g, const float *x, const float *grad, \
                              float *dw, i64 taps_down, i64 taps_across) {                \
    add_taps(R, J, g, x, grad, dw, taps_down, taps_across);                               \
  }
TAP_BLOCKS(ADD_TAPS)

#define ADD_TAPS_NAME(KIND, R, J) add_taps_##KIND,
static AddTaps *const add_taps_kinds[] = {TAP_BLOCKS(ADD_TAPS_NAME)};

/* One channel of one tile, from its first tap on. */
static void fill_plane(const NarrowGradient *g, const float *x, float *to) {
  const Axis *row = &g->shape->row, *column = &g->shape->column;
  i64 pixel = g->shape->groups * g->shape->channels * TILE;
  for (i64 i = 0; i < g->rows; i++)
    for (i64 j = 0; j < g->columns; j++, to += TILE) {
      i64 u = i - row->before, v = j - column->before;
      int inside = u >= 0 && u < row->in && v >= 0 && v < column->in;
      const float *from = inside ? x + (u * column->in + v) * pixel : NULL;
      for (i64 q = 0; q < TILE; q += LANES) store(to + q, inside ? load(from + q) : (vec){0});
    }
}

static void narrow_gradient_task(const void *work, i64 task, i64 worker) {
  const NarrowGradient *g = work;
  const Convolution *v = g->shape;
  const Axis *row = &v->row, *column = &v->column;
  i64 share = task / g->chunks, g0 = task % g->chunks * g->chunk;
  i64 features = v->groups * v->features, step = v->channels * features;
  float *sums = g->sums + share * kernel_floats(v);
  float *plane = g->panels + worker * g->rows * g->columns * TILE;
  for (i64 group = g0; group < min(g0 + g->chunk, v->groups); group++)
    for (i64 c = 0; c < v->channels; c++) {
      float *dw = sums + c * features + group * v->features;
      for (i64 tap = 0; tap < row->size * column->size; tap++)
        memset(dw + tap * step, 0, v->features * sizeof(float));
      i64 last = (share + 1) * v->tiles / g->shares;
      for (i64 n = share * v->tiles / g->shares; n < last; n++) {
        fill_plane(g, tile_of(&g->x, n) + (group * v->channels + c) * TILE, plane);
        const float *grad = tile_of(&g->grad, n);
        for (i64 i = 0; i < row->size; i += g->block_rows)
          for (i64 j = 0; j < column->size; j += g->block_columns)
            for (i64 f = 0; f < v->features; f++)
              add_taps_kinds[g->kind](
                  g, plane + (i * row->dilation * g->columns + j * column->dilation) * TILE,
                  grad + (group * v->features + f) * TILE,
                  dw + (i * column->size + j) * step + f, row->size - i, column->size - j);
      }
    }
}

static void run_narrow_gradient(XLA_FFI_CallFrame *frame, const Convolution *v, Tiles x,
                                Tiles grad, float *workspace) {
  NarrowGradient g = plan_narrow_gradient(v);
  i64 count = kernel_floats(v);
  g.x = x, g.grad = grad;
  g.dw = result(frame, 0), g.sums = workspace;
  g.panels = g.sums + ceil_div(g.shares * count, TILE) * TILE;
  run_tasks(frame, g.shares * g.chunks, narrow_gradient_task, &g);
  memcpy(g.dw, g.sums, count * sizeof(float));
  for (i64 share = 1; share < g.shares; share++)
    for (i64 q = 0; q < count; q++) g.dw[q] += g.sums[share * count + q];
}

static i64 narrow_gradient_size(const Convolution *v) {
  NarrowGradient g = plan_narrow_gradient(v);
  i64 workers = min(g.shares * g.chunks, MAX_WORKERS);
  return ceil_div(g.shares * kernel_floats(v), TILE) * TILE +
         workers * g.rows * g.columns * TILE;
}
