/* Small programs for each pixel: what layer norms, softmax and their gradients compute. */

#pragma once

#include "shape.h"

/* Operations on vectors of 16 images: of each channel, or a sum or a maximum over the
   channels of a pixel. Comparisons give 1 or 0. pixelwise.py has the same list. */
enum {
  ADD,
  SUB,
  MUL,
  DIV,
  MAX,
  MIN,
  EQ,
  NE,
  LT,
  LE,
  GT,
  GE,
  SELECT,
  NEG,
  EXP,
  SQRT,
  RSQRT,
  SUM,
  LARGEST
};

enum { MAX_BUFFERS = 32, MAX_VALUES = 128 };

/* Where a value of pixel r is: at buffer + offset + r * pixel, and that of channel c
   `channel` * c floats after it; 0 if all channels have one. The workspace is the last
   buffer. */
typedef struct {
  i64 buffer, offset, pixel, channel;
} Place;

typedef struct {
  i64 operation, result, operands[3];
} Step;

typedef struct {
  i64 pixels, channels, workspace; /* workspace: floats of a worker */
  i64 inputs, outputs, values, steps;
} Pixelwise;

typedef struct {
  const Pixelwise *shape;
  const Place *places;
  const Step *steps;
  i64 pixels;                  /* of a task */
  float *buffers[MAX_BUFFERS]; /* inputs, outputs, workspace */
} PixelWork;

/* e^x as 2^n e^r with an integer n and |r| <= log(2) / 2, whose series ends with r^7: its
   next term is below a rounding. The power of 2 is applied in two steps, since one alone
   would overflow. NaN stays NaN. */
INLINE vec exponential(vec x) {
  const float to_nearest = 12582912.f; /* 1.5 * 2^23: the sum has no bits after the point */
  vec low = (vec){0} - 104.f, high = (vec){0} + 89.f; /* 0 below, infinite above */
  x = choose(x < low, low, x);
  x = choose(x > high, high, x);
  vec shifted = x * 1.44269504f + to_nearest, n = shifted - to_nearest;
  vec r = (x - n * .693359375f) + n * 2.12194440e-4f; /* log(2) in two parts */
  vec y = (vec){0} + 1.f / 5040;
  y = y * r + 1.f / 720;
  y = y * r + 1.f / 120;
  y = y * r + 1.f / 24;
  y = y * r + 1.f / 6;
  y = y * r + .5f;
  y = y * r * r + r + 1.f;
  ivec power = (ivec)shifted - (ivec)((vec){0} + to_nearest), half = power >> 1;
  vec first = (vec)((half + 127) << 23), second = (vec)((power - half + 127) << 23);
  return y * first * second;
}

INLINE vec roots(vec x) {
  EACH(l, LANES) x[l] = __builtin_sqrtf(x[l]);
  return x;
}

INLINE vec larger(vec a, vec b) { return choose(a != a, a, choose(a > b, a, b)); }
INLINE vec smaller(vec a, vec b) { return choose(a != a, a, choose(a < b, a, b)); }

/* The result of each channel is an expression of the operands x, y and z. */
#define CHANNELS(NAME, EXPRESSION)                                            \
  case NAME:                                                                  \
    for (i64 c = 0; c < channels; c++, a += as, b += bs, d += ds, to += step) \
      EACH(v, PARTS) {                                                        \
        vec x = load(a + v * LANES), y = load(b + v * LANES);                 \
        vec z = load(d + v * LANES);                                          \
        (void)y, (void)z;                                                     \
        store(to + v * LANES, EXPRESSION);                                    \
      }                                                                       \
    break;

/* Four partial results, so that one need not wait for the one before it. */
#define OVER_CHANNELS(NAME, COMBINE)                                                \
  case NAME:                                                                        \
    EACH(v, PARTS) {                                                                \
      const float *at = a + v * LANES;                                              \
      vec total = load(at);                                                         \
      i64 c = 1;                                                                    \
      if (channels >= 4) {                                                          \
        vec part[4] = {total, load(at + as), load(at + 2 * as), load(at + 3 * as)}; \
        for (c = 4; c + 4 <= channels; c += 4)                                      \
          EACH(k, 4) part[k] = COMBINE(part[k], load(at + (c + k) * as));           \
        total = COMBINE(COMBINE(part[0], part[1]), COMBINE(part[2], part[3]));      \
      }                                                                             \
      for (; c < channels; c++) total = COMBINE(total, load(at + c * as));          \
      store(to + v * LANES, total);                                                 \
    }                                                                               \
    break;
#define SUM_OF(A, B) ((A) + (B))

static void compute_step(i64 operation, i64 channels, const float *a, i64 as, const float *b,
                         i64 bs, const float *d, i64 ds, float *to, i64 step) {
  const vec none = {0}, one = none + 1.f;
  switch (operation) {
    CHANNELS(ADD, x + y)
    CHANNELS(SUB, x - y)
    CHANNELS(MUL, x * y)
    CHANNELS(DIV, x / y)
    CHANNELS(MAX, larger(x, y))
    CHANNELS(MIN, smaller(x, y))
    CHANNELS(EQ, choose(x == y, one, none))
    CHANNELS(NE, choose(x != y, one, none))
    CHANNELS(LT, choose(x < y, one, none))
    CHANNELS(LE, choose(x <= y, one, none))
    CHANNELS(GT, choose(x > y, one, none))
    CHANNELS(GE, choose(x >= y, one, none))
    CHANNELS(SELECT, choose(x != none, z, y))
    CHANNELS(NEG, -x)
    CHANNELS(EXP, exponential(x))
    CHANNELS(SQRT, roots(x))
    CHANNELS(RSQRT, one / roots(x))
    OVER_CHANNELS(SUM, SUM_OF)
    OVER_CHANNELS(LARGEST, larger)
  }
}

static void pixelwise_task(const void *work, i64 task, i64 worker) {
  const PixelWork *all = work;
  const Pixelwise *s = all->shape;
  float *at[MAX_VALUES];
  i64 first = task * all->pixels, last = min(first + all->pixels, s->pixels);
  for (i64 pixel = first; pixel < last; pixel++) {
    for (i64 k = 0; k < s->values; k++) {
      const Place *p = all->places + k;
      i64 own = p->buffer == s->inputs + s->outputs ? worker * s->workspace : 0;
      at[k] = all->buffers[p->buffer] + own + p->offset + pixel * p->pixel;
    }
    for (const Step *i = all->steps; i < all->steps + s->steps; i++) {
      const i64 *o = i->operands;
      const Place *to = all->places + i->result;
      i64 is_total = i->operation >= SUM, channels = to->channel || is_total ? s->channels : 1;
      compute_step(i->operation, channels, at[o[0]], all->places[o[0]].channel, at[o[1]],
                   all->places[o[1]].channel, at[o[2]], all->places[o[2]].channel,
                   at[i->result], to->channel);
    }
  }
}

/* Inputs -> outputs and a workspace; the attribute has the numbers of Pixelwise, of a Place
   for each value, and of a Step for each operation. */
XLA_FFI_Error *pixelwise(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const Pixelwise *s = ((XLA_FFI_Array *)frame->attrs.attrs[0])->data;
  const Place *places = (const Place *)(s + 1);
  PixelWork all = {s, places, (const Step *)(places + s->values), .buffers = {0}};
  for (i64 k = 0; k < s->inputs; k++) all.buffers[k] = (float *)argument(frame, k);
  for (i64 k = 0; k <= s->outputs; k++) all.buffers[s->inputs + k] = result(frame, k);
  all.pixels = ceil_div(s->pixels, min(s->pixels, 2 * MAX_WORKERS));
  run_tasks(frame, ceil_div(s->pixels, all.pixels), pixelwise_task, &all);
  return NULL;
}
