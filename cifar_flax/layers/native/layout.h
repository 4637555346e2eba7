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

static void tile_task(const void *work, i64 task, i64 worker) {
  (void)worker;
  const Move *m = work;
  i64 count = min(TILE, m->images - task * TILE);
  const float *from = m->from + task * TILE * m->size;
  float *to = m->to + task * TILE * m->size;
  for (i64 first = 0; first < m->size; first += PIECE)
    for (i64 half = 0; half < TILE; half += HALF)
      for (i64 q = first; q < min(first + PIECE, m->size); q++)
        for (i64 l = half; l < half + HALF; l++)
          to[q * TILE + l] = l < count ? from[l * m->size + q] : 0;
}

static void untile_task(const void *work, i64 task, i64 worker) {
  (void)worker;
  const Move *m = work;
  i64 count = min(TILE, m->images - task * TILE);
  const float *from = m->from + task * TILE * m->size;
  float *to = m->to + task * TILE * m->size;
  for (i64 first = 0; first < m->size; first += PIECE)
    for (i64 half = 0; half < count; half += HALF)
      for (i64 q = first; q < min(first + PIECE, m->size); q++)
        for (i64 l = half; l < min(half + HALF, count); l++)
          to[l * m->size + q] = from[q * TILE + l];
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
