/* Calls every kernel over many shapes, as XLA does, in buffers of the exact size.

   It is compiled with sanitizers, which stop it where a kernel reads or writes outside a
   buffer, has undefined behaviour, or where threads race. Results and workspaces hold NaN
   at first, so that reading what was never written shows as NaN, too. Some outputs are
   compared with their sums in double precision, and the gradients by
   <y, dy> = <x, dx> = <w, dw>, so that this is a test without JAX, for processors that
   are emulated. */

#include <math.h>
#include <pthread.h>
#include <stdio.h>

#include "kernels.c"

enum { MAX_THREADS = 256 };

/* How the pool of threads behaves in the next call. */
static struct {
  i64 threads;
  int refuses_count, refuses_tasks;
  i64 started, errors;
  pthread_t all[MAX_THREADS];
  XLA_FFI_Task *tasks[MAX_THREADS];
  void *data[MAX_THREADS];
} pool;

static void check(int holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "%s\n", what);
  exit(1);
}

static XLA_FFI_Error *make_error(void) {
  pool.errors++;
  return malloc(1);
}

static void destroy_error(XLA_FFI_Error_Destroy_Args *args) {
  pool.errors--;
  free(args->error);
}

static XLA_FFI_Error *count_threads(XLA_FFI_ThreadPool_NumThreads_Args *args) {
  if (pool.refuses_count) return make_error();
  *args->num_threads = pool.threads;
  return NULL;
}

static void *start(void *k) {
  pool.tasks[(intptr_t)k](pool.data[(intptr_t)k]);
  return NULL;
}

static XLA_FFI_Error *schedule(XLA_FFI_ThreadPool_Schedule_Args *args) {
  if (pool.refuses_tasks) return make_error();
  i64 k = pool.started++;
  check(k < MAX_THREADS, "more tasks than threads");
  pool.tasks[k] = args->task, pool.data[k] = args->data;
  check(!pthread_create(&pool.all[k], NULL, start, (void *)(intptr_t)k), "no thread");
  return NULL;
}

/* An array of floats that ends where its allocation ends. */
typedef struct {
  float *data; /* [size] */
  i64 shape[5], size;
} Tensor;

static unsigned seed = 1;
static i64 draw(i64 low, i64 high) {
  seed = seed * 1664525u + 1013904223u;
  return low + (seed >> 8) % (high - low + 1);
}

static Tensor make(i64 a, i64 b, i64 c, i64 d, i64 e) {
  Tensor t = {.shape = {a, b, c, d, e}, .size = a * b * c * d * e};
  check(!posix_memalign((void **)&t.data, 64, t.size * sizeof(float)), "out of memory");
  for (i64 q = 0; q < t.size; q++) t.data[q] = NAN;
  return t;
}

static Tensor random_numbers(i64 a, i64 b, i64 c, i64 d, i64 e) {
  Tensor t = make(a, b, c, d, e);
  for (i64 q = 0; q < t.size; q++) t.data[q] = draw(-100, 100) / 100.f;
  return t;
}

static double product(Tensor a, Tensor b) {
  double sum = 0;
  for (i64 q = 0; q < a.size; q++) sum += (double)a.data[q] * b.data[q];
  return sum;
}

typedef XLA_FFI_Error *Handler(XLA_FFI_CallFrame *);

/* Its attribute is a number, or the shape of a convolution. */
static void call(Handler *handler, int inputs, Tensor *in, int outputs, Tensor *out,
                 void *attribute, int is_shape) {
  XLA_FFI_Api api = {.XLA_FFI_Error_Destroy = destroy_error,
                     .XLA_FFI_ThreadPool_NumThreads = count_threads,
                     .XLA_FFI_ThreadPool_Schedule = schedule};
  XLA_FFI_Buffer buffers[6];
  XLA_FFI_Scalar scalar = {.value = attribute};
  XLA_FFI_Array array = {.data = attribute};
  void *args[4], *rets[2], *attrs[1] = {is_shape ? (void *)&array : &scalar};
  for (int k = 0; k < inputs + outputs; k++) {
    Tensor *t = k < inputs ? &in[k] : &out[k - inputs];
    buffers[k] = (XLA_FFI_Buffer){.data = t->data, .dims = t->shape};
    *(k < inputs ? &args[k] : &rets[k - inputs]) = &buffers[k];
  }
  XLA_FFI_CallFrame frame = {.api = &api,
                             .args = {.size = inputs, .args = args},
                             .rets = {.rets = rets},
                             .attrs = {.attrs = attrs}};
  pool.started = 0;
  check(!handler(&frame), "a kernel fails");
  for (i64 k = 0; k < pool.started; k++) pthread_join(pool.all[k], NULL);
  check(pool.errors == 0, "an error is not freed");
  for (i64 q = 0; q < out->size; q++) check(isfinite(out->data[q]), "not all is written");
}

static i64 outputs_of(Axis a, i64 after) {
  i64 room = a.in + a.before + after - (a.size - 1) * a.dilation - 1;
  return room < 0 ? 0 : room / a.stride + 1;
}

/* Where an input of an output is, or -1 outside the image. */
static i64 input_of(Axis a, i64 output, i64 tap) {
  i64 position = output * a.stride + tap * a.dilation - a.before;
  return position >= 0 && position < a.in ? position : -1;
}

/* One drawn output, compared with the sum that defines it. */
static void check_output(Convolution v, Tensor x, Tensor w, Tensor y) {
  i64 n = draw(0, v.tiles - 1), a = draw(0, v.row.out - 1), b = draw(0, v.column.out - 1);
  i64 group = draw(0, v.groups - 1), f = group * v.features + draw(0, v.features - 1);
  i64 lane = draw(0, TILE - 1), all = v.groups * v.features;
  double sum = 0, size = 0;
  for (i64 i = 0; i < v.row.size; i++)
    for (i64 j = 0; j < v.column.size; j++) {
      i64 p = input_of(v.row, a, i), q = input_of(v.column, b, j);
      i64 pixel = (n * v.row.in + p) * v.column.in + q;
      for (i64 c = 0; c < v.channels && p >= 0 && q >= 0; c++) {
        i64 channel = pixel * v.groups * v.channels + group * v.channels + c;
        i64 weight = ((i * v.column.size + j) * v.channels + c) * all + f;
        double term = (double)x.data[channel * TILE + lane] * w.data[weight];
        sum += term, size += fabs(term);
      }
    }
  i64 pixel = (n * v.row.out + a) * v.column.out + b;
  double error = y.data[(pixel * all + f) * TILE + lane] - sum;
  check(fabs(error) <= 5e-6 * (1 + size), "y is wrong");
}

/* What follows the sums of each feature, compared with what they are without it. */
static void check_after(Convolution v, Tensor x, Tensor w, Tensor y) {
  i64 all = v.groups * v.features;
  Tensor after = random_numbers(6, all, 1, 1, 1);
  Tensor z[2] = {make(v.tiles, v.row.out, v.column.out, all, TILE),
                 make(forward_size(&v), 1, 1, 1, 1)};
  call(conv_forward, 3, (Tensor[]){x, w, after}, 2, z, &v, 1);
  for (i64 q = 0; q < y.size; q++) {
    const float *a = after.data + q / TILE % all;
    double value = (double)y.data[q] * a[0] + a[all];
    value = fmin(fmax(value, a[2 * all]), a[3 * all]) * a[4 * all] + a[5 * all];
    check(fabs(z[0].data[q] - value) <= 1e-6 * (1 + fabs(y.data[q])), "z is wrong");
  }
  free(after.data), free(z[0].data), free(z[1].data);
}

/* Sets the lanes without an image. */
static void fill_up(Tensor tiles, i64 images, float value) {
  i64 size = tiles.size / ceil_div(images, TILE);
  for (i64 q = 0; q < tiles.size; q++)
    if (q / size * TILE + q % TILE >= images) tiles.data[q] = value;
}

static void convolve(Convolution v) {
  if (v.row.out < 1 || v.column.out < 1) return;
  v.images = v.tiles * TILE - max(0, draw(-TILE, TILE - 1));
  printf("%ld images in %ld tiles, %ld groups of %ld channels and %ld features\n",
         (long)v.images, (long)v.tiles, (long)v.groups, (long)v.channels, (long)v.features);
  for (int k = 0; k < 2; k++) {
    Axis a = k ? v.column : v.row;
    printf("  in %ld, out %ld, size %ld, stride %ld, dilation %ld, before %ld\n", (long)a.in,
           (long)a.out, (long)a.size, (long)a.stride, (long)a.dilation, (long)a.before);
  }
  i64 features = v.groups * v.features, channels = v.groups * v.channels;
  Tensor x = random_numbers(v.tiles, v.row.in, v.column.in, channels, TILE);
  Tensor w = random_numbers(v.row.size, v.column.size, v.channels, features, 1);
  Tensor dy = random_numbers(v.tiles, v.row.out, v.column.out, features, TILE);
  fill_up(dy, v.images, 0);
  Tensor y[2] = {make(v.tiles, v.row.out, v.column.out, features, TILE),
                 make(forward_size(&v), 1, 1, 1, 1)};
  Tensor dx[2] = {make(v.tiles, v.row.in, v.column.in, channels, TILE),
                  make(input_gradient_size(&v), 1, 1, 1, 1)};
  Tensor dw[2] = {make(v.row.size, v.column.size, v.channels, features, 1),
                  make(kernel_gradient_size(&v), 1, 1, 1, 1)};
  call(conv_forward, 2, (Tensor[]){x, w}, 2, y, &v, 1);
  for (int k = 0; k < 100; k++) check_output(v, x, w, y[0]);
  check_after(v, x, w, y[0]);
  call(conv_input_gradient, 2, (Tensor[]){dy, w}, 2, dx, &v, 1);
  double all = product(y[0], dy), scale = sqrt(product(y[0], y[0]) * product(dy, dy));
  check(fabs(product(x, dx[0]) - all) <= 1e-5 * scale, "dx is wrong");
  fill_up(x, v.images, NAN), fill_up(dy, v.images, NAN);
  call(conv_kernel_gradient, 2, (Tensor[]){x, dy}, 2, dw, &v, 1);
  check(fabs(product(w, dw[0]) - all) <= 1e-5 * scale, "dw is wrong");
  Tensor everything[] = {x, w, dy, y[0], y[1], dx[0], dx[1], dw[0], dw[1]};
  for (int k = 0; k < 9; k++) free(everything[k].data);
}

/* A convolution that is the same on all sides. */
static void convolve_square(i64 tiles, i64 height, i64 width, i64 channels, i64 features,
                            i64 groups, i64 size, i64 stride, i64 padding) {
  Axis row = {height, 0, size, stride, 1, padding},
       column = {width, 0, size, stride, 1, padding};
  row.out = outputs_of(row, padding), column.out = outputs_of(column, padding);
  convolve((Convolution){tiles, channels, features, groups, row, column, 0});
}

static Axis drawn_axis(void) {
  Axis a = {draw(1, 12), 0, draw(1, 7), draw(1, 4), draw(1, 3), draw(-2, 4)};
  a.out = outputs_of(a, draw(-2, 4));
  return a;
}

/* Images to tiles, their sums over channels, and back. */
static void pass_over(i64 images, i64 height, i64 width, i64 channels) {
  printf("%ld images %ldx%ldx%ld\n", (long)images, (long)height, (long)width, (long)channels);
  i64 tiles = ceil_div(images, TILE);
  Tensor from = random_numbers(images, height, width, channels, 1);
  Tensor to = make(tiles, height, width, channels, TILE);
  Tensor back = make(images, height, width, channels, 1);
  Tensor shift = random_numbers(channels, 1, 1, 1, 1);
  Tensor sums[2] = {make(2, channels, 1, 1, 1),
                    make(tiles * 2 * channels * (1 + TILE), 1, 1, 1, 1)};
  call(tile, 1, &from, 1, &to, NULL, 0);
  call(channel_sums, 4, (Tensor[]){to, to, shift, shift}, 2, sums, &images, 0);
  call(untile, 1, &to, 1, &back, NULL, 0);
  for (i64 q = 0; q < from.size; q++) check(from.data[q] == back.data[q], "untile is wrong");
  Tensor everything[] = {from, to, back, shift, sums[0], sums[1]};
  for (int k = 0; k < 6; k++) free(everything[k].data);
}

/* Products of two matrices of each image, which lie in any order of axes. */
static void multiply(void) {
  Product p = {.tiles = draw(1, 3), .groups = draw(1, 4)};
  p.rows = draw(1, 10), p.columns = draw(1, 10), p.terms = draw(1, 10);
  printf("%ld tiles, %ld groups, %ldx%ld products of %ld terms\n", (long)p.tiles,
         (long)p.groups, (long)p.rows, (long)p.columns, (long)p.terms);
  i64 first = p.groups * p.rows * p.terms * TILE,
      second = p.groups * p.columns * p.terms * TILE;
  p.a = (Layout){first, p.rows * p.terms * TILE, p.terms * TILE, TILE};
  p.b = (Layout){second, p.terms * TILE, p.groups * p.terms * TILE, TILE};
  if (draw(0, 1)) p.b = (Layout){second, TILE, p.groups * TILE, p.columns * p.groups * TILE};
  Tensor a = random_numbers(p.tiles, first, 1, 1, 1),
         b = random_numbers(p.tiles, second, 1, 1, 1);
  Tensor y = make(p.tiles, p.groups, p.rows, p.columns, TILE);
  call(products, 2, (Tensor[]){a, b}, 1, &y, &p, 1);
  for (i64 q = 0; q < y.size; q++) {
    i64 l = q % TILE, j = q / TILE % p.columns, i = q / TILE / p.columns % p.rows;
    i64 g = q / TILE / p.columns / p.rows % p.groups,
        t = q / TILE / p.columns / p.rows / p.groups;
    double sum = 0;
    for (i64 k = 0; k < p.terms; k++)
      sum += (double)a.data[t * p.a.tile + g * p.a.group + i * p.a.row + k * p.a.term + l] *
             b.data[t * p.b.tile + g * p.b.group + j * p.b.row + k * p.b.term + l];
    check(fabs(y.data[q] - sum) <= 1e-5, "a product is wrong");
  }
  free(a.data), free(b.data), free(y.data);
}

/* A program for each pixel: y = x * a + b with the sum a of x, and the largest y. */
static void combine(void) {
  i64 pixels = draw(1, 300), channels = draw(1, 20), all = channels * TILE;
  printf("%ld pixels of %ld channels\n", (long)pixels, (long)channels);
  struct {
    Pixelwise shape;
    Place places[6];
    Step steps[4];
  } p = {.shape = {pixels, channels, TILE + all, 2, 1, 6, 4},
         .places = {{0, 0, all, TILE},
                    {1, 0, 0, TILE},
                    {3, 0, 0, 0},
                    {3, TILE, 0, TILE},
                    {3, TILE, 0, TILE},
                    {2, 0, TILE, 0}},
         .steps = {{SUM, 2, {0}}, {MUL, 3, {0, 2}}, {ADD, 4, {3, 1}}, {LARGEST, 5, {4}}}};
  Tensor in[2] = {random_numbers(pixels, channels, TILE, 1, 1),
                  random_numbers(1, channels, TILE, 1, 1)};
  Tensor out[2] = {make(pixels, 1, TILE, 1, 1),
                   make(2 * MAX_WORKERS * p.shape.workspace, 1, 1, 1, 1)};
  call(pixelwise, 2, in, 2, out, &p, 1);
  for (i64 q = 0; q < pixels * TILE; q++) {
    const float *x = in[0].data + q / TILE * all + q % TILE, *b = in[1].data + q % TILE;
    double sum = 0, largest = -INFINITY;
    for (i64 c = 0; c < channels; c++) sum += x[c * TILE];
    for (i64 c = 0; c < channels; c++) largest = fmax(largest, x[c * TILE] * sum + b[c * TILE]);
    check(fabs(out[0].data[q] - largest) <= 1e-5 * (1 + fabs(sum)), "a pixel is wrong");
  }
  free(in[0].data), free(in[1].data), free(out[0].data), free(out[1].data);
}

/* Arguments: the number of threads, and of shapes that are drawn; with a third one the
   large shapes after them are left out. */
int main(int count, char **arguments) {
  check(count == 3 || count == 4, "give the number of threads and of shapes");
  pool.threads = atoi(arguments[1]);
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (i64 k = atoi(arguments[2]); k > 0; k--) {
    i64 channels = draw(1, k % 4 ? 20 : 66), features = draw(1, k % 4 ? 20 : 66);
    pool.refuses_count = k % 7 == 1, pool.refuses_tasks = k % 7 == 2;
    if (k % 4 == 0)
      convolve_square(draw(1, 4), draw(1, 12), draw(1, 12), channels, features, 1, 3, 1,
                      draw(0, 4));
    else if (k % 4 == 1)
      convolve((Convolution){draw(1, 4), channels, features, 1, drawn_axis(), drawn_axis(), 0});
    else
      convolve((Convolution){draw(1, 4), draw(1, 6), draw(1, 10), draw(2, k % 3 ? 5 : 40),
                             drawn_axis(), drawn_axis(), 0});
    multiply();
    combine();
    pass_over(draw(1, 70), draw(1, 9), draw(1, 9), channels);
  }
  /* Minimal filtering of pixels at a distance. */
  Axis row = {13, 0, 3, 1, 2, 2}, column = {10, 0, 3, 1, 3, 3};
  row.out = outputs_of(row, 1), column.out = outputs_of(column, 3);
  check(is_minimal(&(Convolution){2, 66, 66, 1, row, column, 0}), "it is not filtered");
  convolve((Convolution){2, 66, 66, 1, row, column, 0});
  convolve((Convolution){1, 66, 70, 1, column, row, 0});
  if (count == 4) return 0;
  /* Several bands of rows, panels and parts; many small tiles; phases of a stride without
     pixels; more threads than tasks. */
  convolve_square(1, 40, 37, 70, 9, 1, 5, 1, 2);
  convolve_square(2, 33, 40, 40, 50, 1, 3, 1, 1);
  convolve_square(1, 35, 35, 65, 65, 1, 3, 2, 1);
  convolve_square(21, 4, 4, 33, 33, 1, 3, 1, 1);
  convolve_square(40, 1, 1, 130, 35, 1, 1, 1, 0);
  convolve_square(2, 6, 5, 3, 4, 1, 3, 1000000, 1);
  /* Depthwise, with several bands of rows and several features for a channel. */
  convolve_square(1, 80, 90, 1, 1, 9, 7, 1, 3);
  convolve_square(2, 11, 12, 1, 5, 6, 3, 2, 1);
  convolve_square(1, 40, 37, 33, 20, 3, 3, 1, 1);
  pool.threads = 100;
  convolve_square(30, 9, 9, 36, 40, 1, 3, 1, 1);
  convolve_square(5, 9, 9, 1, 1, 70, 3, 1, 1);
  return 0;
}
