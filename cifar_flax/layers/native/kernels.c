/* Convolutions over tiles of 16 images for the CPU, as handlers of XLA's FFI.

   A tile holds 16 images of a batch as [H, W, C, 16], so lane l of every vector belongs
   to image l, and no lane is idle for 3, 10 or 20 channels. For stride s and padding p,

     forward          y[a, b, f]     = sum_{i, j, c} x[s a + i - p, s b + j - p, c] w[i, j, c, f]
     input gradient   dx[., ., c]    = its transpose, a correlation of dy for each of s*s phases
     kernel gradient  dw[i, j, c, f] = sum_{n, a, b} x[n, s a + i - p, s b + j - p, c]
                                                     dy[n, a, b, f]

   All are written alike: the innermost loop runs over the terms of a block of sums, and
   the block stays in registers until all of its terms are in. A tap of the kernel that
   lies outside the image is left out.

   No array that they are called with is empty; primitives.py sees to that.

   Tasks, and the order of each sum, follow from shapes and vector width alone: the number
   of threads changes no bit. */

#include "channel_sums.h"
#include "kernel_gradient.h"
#include "layout.h"

/* x [T, H, W, C, 16], w [K, K, C, F] -> y [T, H', W', F, 16], packed weights */
XLA_FFI_Error *conv_forward(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const i64 *x = argument_shape(frame, 0), *w = argument_shape(frame, 1);
  const i64 *y = result_shape(frame, 0);
  i64 size = w[0], channels = w[2], features = w[3], padding = attribute(frame, 0);
  Weights weights = {argument(frame, 1), size * channels * features, channels * features,
                     features, 1};
  if (is_minimal(x[0], size, attribute(frame, 1), x[1], x[2], padding, channels, features)) {
    Minimal m = plan_minimal(x[1], x[2], channels, features, padding);
    run_minimal(frame, x[0], &m, weights);
    return NULL;
  }
  Correlation c = {.in_height = x[1],
                   .in_width = x[2],
                   .in_channels = channels,
                   .out_height = y[1],
                   .out_width = y[2],
                   .out_channels = features,
                   .rows = y[1],
                   .columns = y[2],
                   .out_step = 1,
                   .tap_rows = size,
                   .tap_columns = size,
                   .in_step = attribute(frame, 1),
                   .top = padding,
                   .left = padding,
                   .weights = result(frame, 1),
                   .block = feature_block(features)};
  pack_weights(result(frame, 1), weights, size, size, channels, features);
  run_correlations(frame, argument(frame, 0), result(frame, 0), x[0], &c, 1);
  return NULL;
}

/* The taps of a kernel that one phase of the input meets, in one direction. Input
   s*a + phase meets tap first + s*t through output a + shift - t: the first of its outputs
   is `before` outputs before a, and belongs to the last tap. */
typedef struct {
  i64 last, count, before;
} Taps;

static Taps taps_of_phase(i64 phase, i64 size, i64 stride, i64 padding) {
  i64 first = (phase + padding) % stride;
  i64 count = first < size ? ceil_div(size - first, stride) : 0;
  i64 shift = (phase + padding - first) / stride;
  return (Taps){first + stride * (count - 1), count, count - 1 - shift};
}

/* dy [T, H', W', F, 16], w [K, K, C, F] -> dx [T, H, W, C, 16], packed weights */
XLA_FFI_Error *conv_input_gradient(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const i64 *y = argument_shape(frame, 0), *w = argument_shape(frame, 1);
  const i64 *x = result_shape(frame, 0);
  i64 size = w[0], channels = w[2], features = w[3];
  i64 s = attribute(frame, 1), padding = attribute(frame, 0);
  i64 column = channels * features, row = size * column;
  float *packed = result(frame, 1);
  if (is_minimal(y[0], size, s, y[1], y[2], 2 - padding, features, channels)) {
    Minimal m = plan_minimal(y[1], y[2], features, channels, 2 - padding);
    Weights taps = {argument(frame, 1) + 2 * row + 2 * column, -row, -column, 1, features};
    run_minimal(frame, y[0], &m, taps);
    return NULL;
  }
  i64 down = min(s, x[1]), across = min(s, x[2]); /* phases that have pixels */
  Correlation *phases = malloc(down * across * sizeof *phases);
  if (!phases) {
    XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL,
                                      "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED};
    return frame->api->XLA_FFI_Error_Create(&args);
  }
  for (i64 k = 0; k < down * across; k++) {
    i64 r0 = k / across, c0 = k % across;
    Taps i = taps_of_phase(r0, size, s, padding), j = taps_of_phase(c0, size, s, padding);
    phases[k] = (Correlation){.in_height = y[1],
                              .in_width = y[2],
                              .in_channels = features,
                              .out_height = x[1],
                              .out_width = x[2],
                              .out_channels = channels,
                              .rows = ceil_div(x[1] - r0, s),
                              .columns = ceil_div(x[2] - c0, s),
                              .r0 = r0,
                              .c0 = c0,
                              .out_step = s,
                              .tap_rows = i.count,
                              .tap_columns = j.count,
                              .in_step = 1,
                              .top = i.before,
                              .left = j.before,
                              .weights = packed,
                              .block = feature_block(channels)};
    Weights taps = {argument(frame, 1) + i.last * row + j.last * column, -s * row, -s * column,
                    1, features};
    packed = pack_weights(packed, taps, i.count, j.count, features, channels);
  }
  run_correlations(frame, argument(frame, 0), result(frame, 0), y[0], phases, down * across);
  free(phases);
  return NULL;
}

/* x [T, H, W, C, 16], dy [T, H', W', F, 16] -> dw [K, K, C, F], workspace */
XLA_FFI_Error *conv_kernel_gradient(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const i64 *x = argument_shape(frame, 0), *w = result_shape(frame, 0);
  Gradient g = plan_gradient(x[0], x[1], x[2], x[3], w[3], w[0], attribute(frame, 1),
                             attribute(frame, 0));
  g.x = argument(frame, 0), g.grad = argument(frame, 1);
  g.dw = result(frame, 0), g.sums = result(frame, 1), g.panel = g.sums + g.sums_size;
  run_tasks(frame, g.groups * g.parts, gradient_task, &g);
  run_tasks(frame, ceil_div(g.channels * g.features, PAIRS), finish_task, &g);
  return NULL;
}

/* Floats of the second result of each handler, from the shapes of x, or of dy for the
   input gradient, and of the kernel. */
i64 forward_size(i64 tiles, i64 height, i64 width, i64 channels, i64 features, i64 size,
                 i64 stride, i64 padding) {
  if (!is_minimal(tiles, size, stride, height, width, padding, channels, features))
    return packed_size(size * size, channels, features);
  Minimal m = plan_minimal(height, width, channels, features, padding);
  return minimal_size(tiles, &m);
}

i64 input_gradient_size(i64 tiles, i64 height, i64 width, i64 channels, i64 features, i64 size,
                        i64 stride, i64 padding) {
  return forward_size(tiles, height, width, features, channels, size, stride, 2 - padding);
}

i64 kernel_gradient_size(i64 tiles, i64 height, i64 width, i64 channels, i64 features, i64 size,
                         i64 stride, i64 padding) {
  Gradient g = plan_gradient(tiles, height, width, channels, features, size, stride, padding);
  return g.sums_size + min(g.groups * g.parts, MAX_WORKERS) * (g.x_size + g.grad_size);
}
