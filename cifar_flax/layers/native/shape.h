/* The shape of a convolution, as primitives.py hands it over. */

#pragma once

#include "threads.h"

/* Along one axis, with zeros outside the image:

     y[a] = sum_i x[stride a + dilation i - before] w[i],   a < out, i < size */
typedef struct {
  i64 in, out, size, stride, dilation, before;
} Axis;

/* Features of a group see the channels of this group only. */
typedef struct {
  i64 tiles, channels, features, groups; /* channels and features: of a group */
  Axis row, column;
  i64 images; /* that count in the gradient of the kernel */
} Convolution;

/* Attribute 0 of each handler of a convolution. */
static const Convolution *convolution(XLA_FFI_CallFrame *frame) {
  return ((XLA_FFI_Array *)frame->attrs.attrs[0])->data;
}

/* Floors where C would round towards zero. */
INLINE i64 modulo(i64 a, i64 b) { return (a % b + b) % b; }
INLINE i64 ceil_div_signed(i64 a, i64 b) { return (a + modulo(-a, b)) / b; }
