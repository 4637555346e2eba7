/* Sums over each channel, for norms and biases. */

#pragma once

#include "threads.h"

typedef struct {
  i64 images, pixels, channels;
  const float *u, *v;             /* [tiles, pixels, channels, 16] */
  const float *u_shift, *v_shift; /* [channels] */
  float *sums;                    /* [tiles, 2, channels] */
  float *lanes;                   /* [workers, 2, channels, 16] */
} Sums;

static void sums_task(const void *work, i64 tile, i64 worker) {
  (void)worker;
  const Sums *s = work;
  i64 count = s->channels * TILE;
  const float *u = s->u + tile * s->pixels * count, *v = s->v + tile * s->pixels * count;
  float *first = s->lanes + worker * 2 * count, *second = first + count;
  for (i64 q = 0; q < count; q++) first[q] = second[q] = 0;
  for (i64 p = 0; p < s->pixels; p++)
    for (i64 c = 0; c < s->channels; c++) {
      float us = s->u_shift[c], vs = s->v_shift[c];
      float *f = first + c * TILE, *g = second + c * TILE;
      for (i64 l = 0; l < TILE; l += LANES, u += LANES, v += LANES) {
        vec a = load(u) - us, b = load(v) - vs;
        store(f + l, load(f + l) + a);
        store(g + l, load(g + l) + a * b);
      }
    }
  i64 lanes = min(TILE, s->images - tile * TILE);
  for (i64 q = 0; q < 2 * s->channels; q++) {
    float total = 0;
    for (i64 l = 0; l < lanes; l++) total += first[q * TILE + l];
    s->sums[tile * 2 * s->channels + q] = total;
  }
}

/* u, v [T, H, W, C, 16] and shifts a, b [C] -> for each channel the sums of u - a and of
   (u - a)(v - b) over as many images as the attribute says, [2, C], and a workspace of
   T * (2 C + 2 C * 16) floats */
XLA_FFI_Error *channel_sums(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const i64 *u = argument_shape(frame, 0);
  i64 tiles = u[0], count = 2 * u[3];
  float *sums = result(frame, 0), *workspace = result(frame, 1);
  Sums s = {.images = attribute(frame, 0),
            .pixels = u[1] * u[2],
            .channels = u[3],
            .u = argument(frame, 0),
            .v = argument(frame, 1),
            .u_shift = argument(frame, 2),
            .v_shift = argument(frame, 3),
            .sums = workspace,
            .lanes = workspace + tiles * count};
  run_tasks(frame, tiles, sums_task, &s);
  for (i64 q = 0; q < count; q++) {
    sums[q] = 0;
    for (i64 tile = 0; tile < tiles; tile++) sums[q] += s.sums[tile * count + q];
  }
  return NULL;
}
