/* Products of two matrices of each image, as attention computes them. */

#pragma once

#include "shape.h"

/* Where a matrix is: [tiles, groups, rows, terms, 16] with these distances, in floats. */
typedef struct {
  i64 tile, group, row, term;
} Layout;

/* y[t, g, i, j] = sum_k a[t, g, i, k] b[t, g, j, k], each for 16 images */
typedef struct {
  i64 tiles, groups, rows, columns, terms;
  Layout a, b;
} Product;

typedef struct {
  const Product *shape;
  const float *a, *b;
  float *y; /* [tiles, groups, rows, columns, 16] */
} Products;

/* A block of sums that stays in registers until all its terms are in. */
enum { BLOCK = UNIT * 2, ACROSS = 4 };

INLINE void add_terms(const int R, const int C, const Product *p, const float *a,
                      const float *b, float *y) {
  for (i64 v = 0; v < TILE; v += LANES) {
    vec sum[BLOCK][ACROSS];
    EACH(r, R)
      EACH(c, C) sum[r][c] = (vec){0};
    const float *at = a + v, *bt = b + v;
    for (i64 k = 0; k < p->terms; k++, at += p->a.term, bt += p->b.term) {
      vec in[BLOCK];
      EACH(r, R) in[r] = load_once(at + r * p->a.row);
      EACH(c, C) {
        vec one = load_once(bt + c * p->b.row);
        EACH(r, R) sum[r][c] += in[r] * one;
      }
    }
    EACH(r, R)
      EACH(c, C) store(y + (r * p->columns + c) * TILE + v, sum[r][c]);
  }
}

/* R rows and all columns. */
INLINE void add_rows(const int R, const Product *p, const float *a, const float *b, float *y) {
  i64 j = 0;
  for (; j + ACROSS <= p->columns; j += ACROSS)
    add_terms(R, ACROSS, p, a, b + j * p->b.row, y + j * TILE);
  for (; j < p->columns; j++) add_terms(R, 1, p, a, b + j * p->b.row, y + j * TILE);
}

static void products_task(const void *work, i64 task, i64 worker) {
  (void)worker;
  const Products *all = work;
  const Product *p = all->shape;
  i64 tile = task / p->groups, group = task % p->groups, i = 0;
  const float *a = all->a + tile * p->a.tile + group * p->a.group;
  const float *b = all->b + tile * p->b.tile + group * p->b.group;
  float *y = all->y + task * p->rows * p->columns * TILE;
  for (; i + BLOCK <= p->rows; i += BLOCK)
    add_rows(BLOCK, p, a + i * p->a.row, b, y + i * p->columns * TILE);
  for (; i < p->rows; i++) add_rows(1, p, a + i * p->a.row, b, y + i * p->columns * TILE);
}

/* Two tiled arrays, and the numbers of Product -> y */
XLA_FFI_Error *products(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const Product *p = ((XLA_FFI_Array *)frame->attrs.attrs[0])->data;
  Products all = {p, argument(frame, 0), argument(frame, 1), result(frame, 0)};
  run_tasks(frame, p->tiles * p->groups, products_task, &all);
  return NULL;
}
