/* Convolutions over tiles of 16 images for the CPU, as handlers of XLA's FFI.

   A tile holds 16 images of a batch as [H, W, C, 16], so lane l of every vector belongs
   to image l, and no lane is idle for 3, 10 or 20 channels. For stride s, dilation d and
   padding p along each axis,

     forward          y[a, b, f]     = sum_{i, j, c} x[s a + d i - p, s b + d j - p, c] w[i, j, c, f]
     input gradient   dx[., ., c]    = its transpose, a correlation of dy for each of s*s phases
     kernel gradient  dw[i, j, c, f] = sum_{n, a, b} x[n, s a + d i - p, s b + d j - p, c]
                                                     dy[n, a, b, f]

   for each group of channels and features on its own.

   All are written alike: the innermost loop runs over the terms of a block of sums, and
   the block stays in registers until all of its terms are in. A tap of the kernel that
   lies outside the image is left out.

   No array that they are called with is empty; primitives.py sees to that.

   Tasks, and the order of each sum, follow from shapes and vector width alone: the number
   of threads changes no bit. */

#include "channel_sums.h"
#include "correlations.h"
#include "layout.h"
#include "narrow_gradient.h"
#include "pixelwise.h"
#include "products.h"

static i64 packed_size(const Correlation *c) {
  i64 outputs = ceil_div(c->out_channels, c->block) * c->block;
  return c->groups * outputs * c->row.taps * c->column.taps * c->in_channels;
}

/* The weights and panels of some correlations, in floats. */
static i64 correlations_size(const Correlations *all) {
  i64 packed = 0;
  for (i64 k = 0; k < all->count; k++) packed += packed_size(all->parts + k);
  return ceil_div(packed, TILE) * TILE + min(tasks_of(all), MAX_WORKERS) * all->panel;
}

static void run_correlations(XLA_FFI_CallFrame *frame, Correlations *all, i64 packed) {
  all->x = argument(frame, 0), all->y = result(frame, 0);
  all->panels = result(frame, 1) + ceil_div(packed, TILE) * TILE;
  run_tasks(frame, tasks_of(all), correlate_task, all);
}

static Correlation correlation_of(const Convolution *v) {
  const Axis *r = &v->row, *c = &v->column;
  return (Correlation){
      .row = {r->in, r->out, r->out, 0, 1, r->size, r->stride, r->dilation, r->before},
      .column = {c->in, c->out, c->out, 0, 1, c->size, c->stride, c->dilation, c->before},
      .in_channels = v->channels,
      .out_channels = v->features,
      .groups = v->groups,
      .block = feature_block(v->groups, v->features)};
}

static void forward(XLA_FFI_CallFrame *frame, const Convolution *v, Weights weights,
                    After after) {
  if (is_minimal(v)) {
    Minimal m = plan_minimal(v);
    m.after = after;
    run_minimal(frame, v->tiles, &m, weights);
    return;
  }
  Correlation c = correlation_of(v);
  Correlations all = plan_correlations(v->tiles, &c, 1);
  c.weights = result(frame, 1), c.after = after;
  pack_weights(result(frame, 1), weights, &c);
  run_correlations(frame, &all, packed_size(&c));
}

/* x [T, H, W, G C, 16], w [K, K, C, G F] and perhaps after [6, G F]
   -> y [T, H', W', G F, 16], workspace */
XLA_FFI_Error *conv_forward(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const Convolution *v = convolution(frame);
  i64 all = v->groups * v->features, tap = v->channels * all;
  forward(frame, v,
          (Weights){argument(frame, 1), v->column.size * tap, tap, v->features, all, 1},
          (After){frame->args.size > 2 ? argument(frame, 2) : NULL, all});
  return NULL;
}

/* The convolution of stride 1 that is the transpose of another, with its taps reversed. */
static Axis transposed_axis(Axis a) {
  return (Axis){a.out, a.in, a.size, 1, a.dilation, (a.size - 1) * a.dilation - a.before};
}

static Convolution transposed(const Convolution *v) {
  return (Convolution){v->tiles,
                       v->features,
                       v->channels,
                       v->groups,
                       transposed_axis(v->row),
                       transposed_axis(v->column),
                       v->images};
}

static i64 gcd(i64 a, i64 b) { return b ? gcd(b, a % b) : a; }

/* The taps of a kernel that one phase of the input meets, along one axis. Input s*a + r
   meets tap first + period*t through output a + shift - tap_step*t, so that the first of
   its outputs belongs to the last of these taps. */
typedef struct {
  Steps steps;
  i64 last, period;
} Phase;

static Phase phase_of(const Axis *v, i64 r) {
  i64 s = v->stride, common = gcd(s, v->dilation), period = s / common, first = 0;
  i64 limit = min(period, v->size);
  while (first < limit && modulo(r + v->before - v->dilation * first, s)) first++;
  i64 count = first < limit ? ceil_div(v->size - first, period) : 0;
  i64 shift = count ? (r + v->before - v->dilation * first) / s : 0;
  i64 step = v->dilation / common;
  return (Phase){{.in = v->out,
                  .out = v->in,
                  .count = ceil_div(v->in - r, s),
                  .first = r,
                  .out_step = s,
                  .taps = count,
                  .in_step = 1,
                  .tap_step = step,
                  .before = (count - 1) * step - shift},
                 first + period * (count - 1),
                 period};
}

/* The correlations of all phases that have pixels; NULL if the memory does not suffice. */
static Correlation *phases_of(const Convolution *v, i64 *count) {
  i64 down = min(v->row.stride, v->row.in), across = min(v->column.stride, v->column.in);
  Correlation *phases = malloc(down * across * sizeof *phases);
  *count = down * across;
  for (i64 k = 0; phases && k < *count; k++)
    phases[k] = (Correlation){.row = phase_of(&v->row, k / across).steps,
                              .column = phase_of(&v->column, k % across).steps,
                              .in_channels = v->features,
                              .out_channels = v->channels,
                              .groups = v->groups,
                              .block = feature_block(v->groups, v->channels)};
  return phases;
}

/* dy [T, H', W', G F, 16], w [K, K, C, G F] -> dx [T, H, W, G C, 16], workspace */
XLA_FFI_Error *conv_input_gradient(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const Convolution *v = convolution(frame);
  i64 all = v->groups * v->features, column = v->channels * all, row = v->column.size * column;
  if (v->row.stride == 1 && v->column.stride == 1) {
    Convolution t = transposed(v);
    const float *last = argument(frame, 1) + v->row.size * row - column;
    forward(frame, &t, (Weights){last, -row, -column, v->features, 1, all}, (After){0});
    return NULL;
  }
  i64 count;
  Correlation *phases = phases_of(v, &count);
  if (!phases) {
    XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL,
                                      "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED};
    return frame->api->XLA_FFI_Error_Create(&args);
  }
  float *packed = result(frame, 1);
  i64 across = min(v->column.stride, v->column.in);
  for (i64 k = 0; k < count; k++) {
    Phase i = phase_of(&v->row, k / across), j = phase_of(&v->column, k % across);
    phases[k].weights = packed;
    packed = pack_weights(packed,
                          (Weights){argument(frame, 1) + i.last * row + j.last * column,
                                    -i.period * row, -j.period * column, v->features, 1, all},
                          phases + k);
  }
  Correlations work = plan_correlations(v->tiles, phases, count);
  run_correlations(frame, &work, packed - result(frame, 1));
  free(phases);
  return NULL;
}

/* x [T, H, W, G C, 16], dy [T, H', W', G F, 16] -> dw [K, K, C, G F], workspace */
XLA_FFI_Error *conv_kernel_gradient(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const Convolution *v = convolution(frame);
  float *last = result(frame, 1), *workspace = last + last_size(v);
  Tiles x = tiles_of(argument(frame, 0), v, x_floats(v), last);
  Tiles grad = tiles_of(argument(frame, 1), v, grad_floats(v), last + x_floats(v));
  if (is_narrow_gradient(v)) {
    run_narrow_gradient(frame, v, x, grad, workspace);
    return NULL;
  }
  Gradient g = plan_gradient(v);
  g.x = x, g.grad = grad;
  g.dw = result(frame, 0), g.sums = workspace, g.panel = g.sums + g.sums_size;
  run_tasks(frame, v->groups * g.shares * g.parts, gradient_task, &g);
  run_tasks(frame, v->groups * ceil_div(g.channels * g.features, PAIRS), finish_task, &g);
  return NULL;
}

/* Floats of the workspace, the second result of each handler. */
i64 forward_size(const Convolution *v) {
  if (is_minimal(v)) {
    Minimal m = plan_minimal(v);
    return minimal_size(v->tiles, &m);
  }
  Correlation c = correlation_of(v);
  Correlations all = plan_correlations(v->tiles, &c, 1);
  return correlations_size(&all);
}

i64 input_gradient_size(const Convolution *v) {
  if (v->row.stride == 1 && v->column.stride == 1) {
    Convolution t = transposed(v);
    return forward_size(&t);
  }
  i64 count;
  Correlation *phases = phases_of(v, &count);
  if (!phases) return 0; /* the handler will say so */
  Correlations all = plan_correlations(v->tiles, phases, count);
  i64 size = correlations_size(&all);
  free(phases);
  return size;
}

i64 kernel_gradient_size(const Convolution *v) {
  if (is_narrow_gradient(v)) return last_size(v) + narrow_gradient_size(v);
  Gradient g = plan_gradient(v);
  i64 tasks = v->groups * g.shares * g.parts;
  return last_size(v) + g.sums_size + min(tasks, MAX_WORKERS) * (g.x_size + g.grad_size);
}
