/* Images to tiles, and back. */

#pragma once

#include "threads.h"

typedef struct {
  const float *from; /* [images, size], or tiles [images / 16, size, 16] */
  float *to;         /* the other of these */
  i64 images, size;  /* size: floats of an image */
} Move;

/* Both move pieces of 16 floats of half a tile's images. More images would not do: their
   distance is often a multiple of 4096 bytes, so that all fall on the same few lines of a
   cache. */
enum { PIECE = 16, HALF = TILE / 2 };

/* What one task moves: the images of one tile. */
static Move one_tile(const void *work, i64 tile) {
  const Move *m = work;
  i64 first = tile * TILE, start = first * m->size;
  return (Move){m->from + start, m->to + start, min(TILE, m->images - first), m->size};
}

static void tile_task(const void *work, i64 tile, i64 worker) {
  (void)worker;
  Move m = one_tile(work, tile);
  for (i64 first = 0; first < m.size; first += PIECE)
    for (i64 half = 0; half < TILE; half += HALF)
      for (i64 q = first; q < min(first + PIECE, m.size); q++)
        for (i64 l = half; l < half + HALF; l++)
          m.to[q * TILE + l] = l < m.images ? m.from[l * m.size + q] : 0;
}

static void untile_task(const void *work, i64 tile, i64 worker) {
  (void)worker;
  Move m = one_tile(work, tile);
  for (i64 first = 0; first < m.size; first += PIECE)
    for (i64 half = 0; half < m.images; half += HALF)
      for (i64 q = first; q < min(first + PIECE, m.size); q++)
        for (i64 l = half; l < min(half + HALF, m.images); l++)
          m.to[l * m.size + q] = m.from[q * TILE + l];
}

/* images [N, H, W, C] -> tiles [ceil(N / 16), H, W, C, 16]; lanes without image are 0 */
XLA_FFI_Error *tile(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const i64 *x = argument_shape(frame, 0);
  Move move = {argument(frame, 0), result(frame, 0), x[0], x[1] * x[2] * x[3]};
  run_tasks(frame, ceil_div(x[0], TILE), tile_task, &move);
  return NULL;
}

/* tiles [T, H, W, C, 16] -> images [N, H, W, C] with N <= 16 T */
XLA_FFI_Error *untile(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const i64 *y = result_shape(frame, 0);
  Move move = {argument(frame, 0), result(frame, 0), y[0], y[1] * y[2] * y[3]};
  run_tasks(frame, ceil_div(y[0], TILE), untile_task, &move);
  return NULL;
}
