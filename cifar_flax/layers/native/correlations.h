/* A correlation of all tiles, divided into tasks. */

#pragma once

#include <string.h>

#include "correlate.h"

/* The taps that lie inside the image, if the first one is at `start`. */
typedef struct {
  i64 first, count;
} Inside;

INLINE Inside inside(const Steps *s, i64 start) {
  /* Most are, and the divisions below would take as long as many products. */
  if (start >= 0 && start + (s->taps - 1) * s->tap_step < s->in) return (Inside){0, s->taps};
  i64 first = max(0, ceil_div_signed(-start, s->tap_step));
  i64 end = min(s->taps, ceil_div_signed(s->in - start, s->tap_step));
  return (Inside){first, max(0, end - first)};
}

/* A band of rows of one tile, for some of the groups. */
static void correlate_band(const Correlation *c, const float *x, float *y, i64 band, i64 g0,
                           i64 g1) {
  const Steps *row = &c->row, *column = &c->column;
  i64 first = band * c->band, last = min(first + c->band, row->count);
  i64 x_pixel = c->groups * c->in_channels * TILE, x_row = column->in * x_pixel;
  i64 y_pixel = c->groups * c->out_channels * TILE;
  i64 y_step = column->out_step * y_pixel, y_row = row->out_step * column->out * y_pixel;
  i64 w_tap = c->in_channels * c->block, w_row = column->taps * w_tap;
  /* The terms of neighbouring taps lie side by side, too. */
  int joined = column->tap_step == 1 && c->groups == 1;
  /* From `inner` on and before `outer` no column of taps lies outside the image. */
  i64 inner = max(0, ceil_div_signed(column->before, column->in_step));
  i64 outer = max(0, column->in + column->before - (column->taps - 1) * column->tap_step - 1 +
                         column->in_step) /
              column->in_step;
  for (i64 g = g0; g < g1; g++)
    for (i64 f = 0; f < c->out_channels; f += c->block) {
      i64 block = g * ceil_div(c->out_channels, c->block) + f / c->block;
      const float *w = c->weights + block * row->taps * w_row;
      for (i64 a = first; a < last; a++) {
        i64 top = a * row->in_step - row->before;
        Inside rows = inside(row, top);
        for (i64 b = 0, count; b < column->count; b += count) {
          i64 left = b * column->in_step - column->before;
          Inside columns = inside(column, left);
          i64 taps = columns.count, length = c->in_channels;
          if (joined) length *= taps, taps = 1;
          count = b >= inner && b + PAIR <= min(outer, column->count) ? PAIR : 1;
          i64 pixel = (top + rows.first * row->tap_step) * column->in + left +
                      columns.first * column->tap_step;
          correlate_kind(c->block, count)(
              x + pixel * x_pixel + g * c->in_channels * TILE, row->tap_step * x_row,
              column->tap_step * x_pixel, column->in_step * x_pixel,
              w + rows.first * w_row + columns.first * w_tap, w_row, rows.count, taps, length,
              y + ((row->first * column->out + column->first) * y_pixel + a * y_row +
                   b * y_step + (g * c->out_channels + f) * TILE),
              y_step, c->out_channels - f, of_feature(c->after, g * c->out_channels + f));
        }
      }
    }
}

/* Correlations of a few features in a group, at P positions. One group after the other is
   copied to a panel of its own, [rows, columns, channels, 16], with the zeros around it. */

typedef struct {
  i64 columns, pixel, row; /* columns of outputs, filled up; floats of a pixel, of a row */
  i64 rows;                /* of inputs of a band */
} Panel;

/* Inputs that neighbouring outputs read, from the first to the last. */
INLINE i64 reach(const Steps *s, i64 outputs) {
  return (outputs - 1) * s->in_step + max(0, s->taps - 1) * s->tap_step + 1;
}

static i64 narrow_positions(i64 block, i64 columns) {
  i64 most = block == 1 ? NARROW_1 : block == 2 ? NARROW_2 : NARROW_4;
  return columns <= most / 2 && block == 1 ? most / 2 : most;
}

static Panel panel_of(const Correlation *c) {
  i64 positions = narrow_positions(c->block, c->column.count);
  i64 columns = ceil_div(c->column.count, positions) * positions, pixel = c->in_channels * TILE;
  return (Panel){columns, pixel, reach(&c->column, columns) * pixel, reach(&c->row, c->band)};
}

/* Copies the inputs from (top, left) on, with zeros outside the image. */
static void fill_panel(const Correlation *c, const Panel *p, const float *x, i64 top, i64 left,
                       i64 rows, float *to) {
  i64 x_pixel = c->groups * p->pixel, columns = p->row / p->pixel;
  i64 j0 = min(columns, max(0, -left)), j1 = max(j0, min(columns, c->column.in - left));
  for (i64 i = 0; i < rows; i++, to += p->row) {
    i64 inside = top + i >= 0 && top + i < c->row.in;
    memset(to, 0, (inside ? j0 * p->pixel : p->row) * sizeof(float));
    if (!inside) continue;
    const float *from = x + ((top + i) * c->column.in + left) * x_pixel;
    for (i64 j = j0; j < j1; j++)
      for (i64 q = 0; q < p->pixel; q += LANES)
        store(to + j * p->pixel + q, load(from + j * x_pixel + q));
    memset(to + j1 * p->pixel, 0, (columns - j1) * p->pixel * sizeof(float));
  }
}

INLINE void correlate_panel(const int F, const int P, const Correlation *c, const Panel *p,
                            const float *x, const float *w, i64 rows, float *y, After after) {
  i64 y_step = c->groups * c->out_channels * c->column.out_step * TILE;
  i64 y_row = c->groups * c->out_channels * c->row.out_step * c->column.out * TILE;
  for (i64 f = 0; f < c->out_channels; f += F)
    for (i64 a = 0; a < rows; a++)
      for (i64 b = 0; b < c->column.count; b += P)
        correlate(F, P, x + a * c->row.in_step * p->row + b * c->column.in_step * p->pixel,
                  c->row.tap_step * p->row, c->column.tap_step * p->pixel,
                  c->column.in_step * p->pixel,
                  w + f * c->row.taps * c->column.taps * c->in_channels,
                  c->column.taps * c->in_channels * F, c->row.taps, c->column.taps,
                  c->in_channels, y + a * y_row + b * y_step + f * TILE, y_step,
                  c->out_channels - f, c->column.count - b, of_feature(after, f));
}

static void narrow_band(const Correlation *c, const float *x, float *y, i64 band, i64 g0,
                        i64 g1, float *workspace) {
  Panel p = panel_of(c);
  i64 first = band * c->band, rows = min(c->band, c->row.count - first);
  i64 top = first * c->row.in_step - c->row.before, pixels = c->groups * c->out_channels * TILE;
  i64 weights = c->row.taps * c->column.taps * c->in_channels * c->block;
  y += ((c->row.first + first * c->row.out_step) * c->column.out + c->column.first) * pixels;
  for (i64 g = g0; g < g1; g++) {
    const float *w = c->weights + g * ceil_div(c->out_channels, c->block) * weights;
    float *to = y + g * c->out_channels * TILE;
    fill_panel(c, &p, x + g * p.pixel, top, -c->column.before, reach(&c->row, rows), workspace);
    After after = of_feature(c->after, g * c->out_channels);
    if (c->block == 1 && p.columns % NARROW_1)
      correlate_panel(1, NARROW_1 / 2, c, &p, workspace, w, rows, to, after);
    else if (c->block == 1)
      correlate_panel(1, NARROW_1, c, &p, workspace, w, rows, to, after);
    else if (c->block == 2)
      correlate_panel(2, NARROW_2, c, &p, workspace, w, rows, to, after);
    else
      correlate_panel(4, NARROW_4, c, &p, workspace, w, rows, to, after);
  }
}

typedef struct {
  const float *x;           /* [tiles, in, in, groups * in_channels, 16] */
  float *y;                 /* [tiles, out, out, groups * out_channels, 16] */
  const Correlation *parts; /* [count] */
  i64 tiles, count, bands;  /* bands: of each part */
  i64 chunks, chunk;        /* chunk: groups of a task */
  float *panels;            /* [workers, panel] */
  i64 panel;
} Correlations;

static void correlate_task(const void *work, i64 task, i64 worker) {
  const Correlations *all = work;
  i64 chunk = task % all->chunks, band = task / all->chunks % all->bands;
  i64 part = task / all->chunks / all->bands % all->count;
  i64 tile = task / all->chunks / all->bands / all->count;
  const Correlation *c = all->parts + part;
  const float *x = all->x + tile * c->row.in * c->column.in * c->groups * c->in_channels * TILE;
  float *y = all->y + tile * c->row.out * c->column.out * c->groups * c->out_channels * TILE;
  i64 g0 = chunk * all->chunk, g1 = min(g0 + all->chunk, c->groups);
  if (band * c->band >= c->row.count) return;
  if (is_narrow(c->groups, c->out_channels))
    narrow_band(c, x, y, band, g0, g1, all->panels + worker * all->panel);
  else
    correlate_band(c, x, y, band, g0, g1);
}

/* Completes the parts, and says how their work is divided. */
static Correlations plan_correlations(i64 tiles, Correlation *parts, i64 count) {
  Correlations all = {.tiles = tiles, .parts = parts, .count = count, .bands = 1};
  i64 groups = parts->groups;
  int narrow = is_narrow(groups, parts->out_channels);
  for (i64 k = 0; k < count; k++) {
    Correlation *c = parts + k;
    i64 row = c->column.in * (narrow ? 1 : groups) * c->in_channels * TILE * sizeof(float);
    c->band = max(1, (L2 / row - reach(&c->row, 1)) / c->row.in_step + 1);
    c->band = min(c->band, max(1, c->row.count));
    all.bands = max(all.bands, ceil_div(c->row.count, c->band));
    if (narrow) {
      Panel p = panel_of(c);
      all.panel = max(all.panel, p.rows * p.row);
    }
  }
  /* Enough tasks for many threads. */
  all.chunk = ceil_div(groups, min(groups, ceil_div(32, tiles * count * all.bands)));
  all.chunks = ceil_div(groups, all.chunk);
  return all;
}

static i64 tasks_of(const Correlations *all) {
  return all->tiles * all->count * all->bands * all->chunks;
}
