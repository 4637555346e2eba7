/* Convolutions over tiles of 16 images for the CPU, as handlers of XLA's FFI.

   A tile holds 16 images of a batch as [H, W, C, 16], so lane l of every vector belongs
   to image l, and no lane is idle for 3, 10 or 20 channels. For stride s and padding p,

     forward          y[a, b, f]     = sum_{i, j, c} x[s a + i - p, s b + j - p, c] w[i, j, c, f]
     input gradient   dx[., ., c]    = its transpose, a correlation of dy for each of s*s phases
     kernel gradient  dw[i, j, c, f] = sum_{n, a, b} x[n, s a + i - p, s b + j - p, c] dy[n, a, b, f]

   All are written alike: the innermost loop runs over the terms of a block of sums, and
   the block stays in registers until all of its terms are in. A tap of the kernel that
   lies outside the image is left out.

   Tasks, and the order of each sum, follow from shapes and vector width alone: the number
   of threads changes no bit. */

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "xla/ffi/api/c_api.h"

typedef int64_t i64;

/* A forward block is 4, 5 or 6 UNITs of features at one position or at PAIR neighbouring
   ones, each of TILE / LANES vectors. That fills, but does not overflow, 32 registers of
   AVX-512 or Neon, and 16 of AVX2. L1 and L2 are what a panel may take of the caches. */
enum { TILE = 16 };
#if defined(__AVX512F__)
enum { LANES = 16, UNIT = 2, PAIR = 2, L1 = 64 << 10, L2 = 512 << 10 };
#elif defined(__AVX2__)
enum { LANES = 8, UNIT = 1, PAIR = 1, L1 = 32 << 10, L2 = 192 << 10 };
#else
enum { LANES = 4, UNIT = 1, PAIR = 1, L1 = 32 << 10, L2 = 192 << 10 };
#endif
enum { PARTS = TILE / LANES, MAX_WORKERS = 64 };

/* XLA aligns its buffers to 64 bytes; `aligned(4)` asks for no more than a float's. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE vec load(const float *p) { return *(const vec *)p; }
/* The same, and the compiler may not load it anew for each use. */
INLINE vec load_once(const float *p) {
  vec v = load(p);
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE i64 min(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 max(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

/* ---------------------------------------------------------------- tasks on threads --- */

typedef void Run(const void *work, i64 task, i64 worker);

typedef struct {
  atomic_long next, done, workers, owners;
  i64 tasks;
  Run *run;
  const void *work;
} Job;

static void leave(Job *job) {
  if (atomic_fetch_sub(&job->owners, 1) == 1) free(job);
}

/* Takes tasks until none is left; a helper that starts late finds none. */
static void take_tasks(void *data) {
  Job *job = data;
  i64 worker = atomic_fetch_add(&job->workers, 1);
  for (i64 task; (task = atomic_fetch_add(&job->next, 1)) < job->tasks;) {
    job->run(job->work, task, worker);
    atomic_fetch_add(&job->done, 1);
  }
  leave(job);
}

/* Whether a call of XLA succeeded; its error is freed. */
static int succeeded(XLA_FFI_CallFrame *frame, XLA_FFI_Error *error) {
  if (!error) return 1;
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  frame->api->XLA_FFI_Error_Destroy(&args);
  return 0;
}

/* Runs all tasks on this thread and on those of XLA's pool. It waits for the end of tasks
   that others have begun, but never for a thread to begin: all may be in calls like this. */
static void run_tasks(XLA_FFI_CallFrame *frame, i64 tasks, Run *run, const void *work) {
  i64 threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  Job *job = malloc(sizeof *job);
  if (!job || !succeeded(frame, frame->api->XLA_FFI_ThreadPool_NumThreads(&count))) threads = 1;
  if (!job || threads == 1) {
    free(job);
    for (i64 task = 0; task < tasks; task++) run(work, task, 0);
    return;
  }
  i64 helpers = min(min(threads, tasks), MAX_WORKERS) - 1;
  *job = (Job){.owners = 2 + helpers, .tasks = tasks, .run = run, .work = work};
  for (i64 i = 0; i < helpers; i++) {
    XLA_FFI_ThreadPool_Schedule_Args schedule = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, take_tasks, job};
    if (!succeeded(frame, frame->api->XLA_FFI_ThreadPool_Schedule(&schedule))) leave(job);
  }
  take_tasks(job);
  while (atomic_load(&job->done) < tasks) sched_yield();
  leave(job);
}

/* -------------------------------------------------------------- what XLA hands over --- */

static const float *argument(XLA_FFI_CallFrame *frame, i64 k) {
  return ((XLA_FFI_Buffer *)frame->args.args[k])->data;
}
static const i64 *argument_shape(XLA_FFI_CallFrame *frame, i64 k) {
  return ((XLA_FFI_Buffer *)frame->args.args[k])->dims;
}
static float *result(XLA_FFI_CallFrame *frame, i64 k) {
  return ((XLA_FFI_Buffer *)frame->rets.rets[k])->data;
}
static const i64 *result_shape(XLA_FFI_CallFrame *frame, i64 k) {
  return ((XLA_FFI_Buffer *)frame->rets.rets[k])->dims;
}

/* Attribute k; XLA sorts them by name, so that padding comes before stride. */
static i64 attribute(XLA_FFI_CallFrame *frame, i64 k) {
  return *(i64 *)((XLA_FFI_Scalar *)frame->attrs.attrs[k])->value;
}

/* ------------------------------------------ forward, and the gradient of the input --- */

/* Output (r0 + a*out_step, c0 + b*out_step), for a < rows and b < columns, is the
   correlation of the input's pixels from (a*in_step - top, b*in_step - left) on. */
typedef struct {
  i64 in_height, in_width, in_channels, out_height, out_width, out_channels;
  i64 rows, columns, r0, c0, out_step;
  i64 tap_rows, tap_columns, in_step, top, left;
  const float *weights; /* [features / block, tap_rows, tap_columns, in_channels, block] */
  i64 block, band;      /* band: rows of outputs whose inputs stay in cache together */
} Correlation;

/* F features at P positions. The terms of a row of taps lie side by side in the input and
   in the weights, `length` = taps * channels of them. */
INLINE void correlate(const int F, const int P, const float *x, i64 x_row, i64 x_step,
                      const float *w, i64 w_row, i64 rows, i64 length, float *y, i64 y_step,
                      i64 features) {
  vec sum[6 * UNIT][PAIR][PARTS];
  UNROLL for (int f = 0; f < F; f++) UNROLL for (int p = 0; p < P; p++)
    UNROLL for (int v = 0; v < PARTS; v++) sum[f][p][v] = (vec){0};
  for (i64 i = 0; i < rows; i++) {
    const float *xi = x + i * x_row, *wi = w + i * w_row;
    for (i64 q = 0; q < length; q++, xi += TILE, wi += F) {
      vec in[PAIR][PARTS];
      UNROLL for (int p = 0; p < P; p++) UNROLL for (int v = 0; v < PARTS; v++)
        in[p][v] = load(xi + p * x_step + v * LANES);
      UNROLL for (int f = 0; f < F; f++) UNROLL for (int p = 0; p < P; p++)
        UNROLL for (int v = 0; v < PARTS; v++) sum[f][p][v] += in[p][v] * wi[f];
    }
  }
  UNROLL for (int f = 0; f < F; f++) if (f < features) UNROLL for (int p = 0; p < P; p++)
    UNROLL for (int v = 0; v < PARTS; v++)
      store(y + p * y_step + f * TILE + v * LANES, sum[f][p][v]);
}

typedef void Correlate(const float *, i64, i64, const float *, i64, i64, i64, float *, i64, i64);

#define CORRELATE(F, P)                                                                     \
  static void correlate_##F##_##P(const float *x, i64 x_row, i64 x_step, const float *w,    \
                                  i64 w_row, i64 rows, i64 length, float *y, i64 y_step,    \
                                  i64 features) {                                           \
    correlate(F *UNIT, P, x, x_row, x_step, w, w_row, rows, length, y, y_step, features);   \
  }
CORRELATE(4, 1) CORRELATE(5, 1) CORRELATE(6, 1)
CORRELATE(4, PAIR) CORRELATE(5, PAIR) CORRELATE(6, PAIR)

/* For a block of so many features, at one position or at PAIR. */
static Correlate *correlate_kind(i64 block, i64 positions) {
  static Correlate *const kinds[2][3] = {{correlate_4_1, correlate_5_1, correlate_6_1},
                                         {correlate_4_PAIR, correlate_5_PAIR, correlate_6_PAIR}};
  return kinds[positions > 1][block / UNIT - 4];
}

/* The block that wastes least on features that are not there, and on loads of inputs. */
static i64 feature_block(i64 features) {
  i64 best = 4 * UNIT, least = INT64_MAX;
  for (i64 block = 4 * UNIT; block <= 6 * UNIT; block += UNIT) {
    i64 cost = ceil_div(features, block) * (block + 1);
    if (cost < least) least = cost, best = block;
  }
  return best;
}

/* A band of rows of one tile. */
static void correlate_band(const Correlation *c, const float *x, float *y, i64 first) {
  i64 last = min(first + c->band, c->rows);
  i64 x_pixel = c->in_channels * TILE, x_row = c->in_width * x_pixel;
  i64 w_tap = c->in_channels * c->block, w_row = c->tap_columns * w_tap;
  i64 y_step = c->out_step * c->out_channels * TILE, y_row = c->out_width * y_step;
  y += (c->r0 * c->out_width + c->c0) * c->out_channels * TILE;
  /* From `inner` on and before `outer` no column of taps lies outside the image. */
  i64 inner = ceil_div(max(0, c->left), c->in_step);
  i64 outer = max(0, c->in_width + c->left - c->tap_columns + c->in_step) / c->in_step;
  for (i64 f = 0; f < c->out_channels; f += c->block) {
    const float *w = c->weights + f / c->block * c->tap_rows * w_row;
    for (i64 a = first; a < last; a++) {
      i64 top = a * c->in_step - c->top, i0 = max(0, -top);
      i64 taps = max(0, min(c->tap_rows, c->in_height - top) - i0);
      for (i64 b = 0, count; b < c->columns; b += count) {
        i64 left = b * c->in_step - c->left, j0 = max(0, -left);
        i64 columns = max(0, min(c->tap_columns, c->in_width - left) - j0);
        count = b >= inner && b + PAIR <= min(outer, c->columns) ? PAIR : 1;
        correlate_kind(c->block, count)(
            x + (top + i0) * x_row + (left + j0) * x_pixel, x_row, c->in_step * x_pixel,
            w + i0 * w_row + j0 * w_tap, w_row, taps, columns * c->in_channels,
            y + a * y_row + b * y_step + f * TILE, y_step, c->out_channels - f);
      }
    }
  }
}

typedef struct {
  const float *x;
  float *y;
  const Correlation *parts;
  i64 count, bands; /* of each part */
} Correlations;

static void correlate_task(const void *work, i64 task, i64 worker) {
  const Correlations *all = work;
  i64 tile = task / (all->count * all->bands), part = task / all->bands % all->count;
  const Correlation *c = all->parts + part;
  i64 first = task % all->bands * c->band;
  const float *x = all->x + tile * c->in_height * c->in_width * c->in_channels * TILE;
  float *y = all->y + tile * c->out_height * c->out_width * c->out_channels * TILE;
  if (first < c->rows) correlate_band(c, x, y, first);
}

static void run_correlations(XLA_FFI_CallFrame *frame, const float *x, float *y, i64 tiles,
                             Correlation *parts, i64 count) {
  Correlations all = {x, y, parts, count, 1};
  for (i64 k = 0; k < count; k++) {
    Correlation *c = parts + k;
    i64 row = c->in_width * c->in_channels * TILE * sizeof(float);
    c->band = max(1, (L2 / row - c->tap_rows) / c->in_step + 1);
    all.bands = max(all.bands, ceil_div(c->rows, c->band));
  }
  run_tasks(frame, tiles * count * all.bands, correlate_task, &all);
}

/* Lays weights out as a correlation reads them: tap (i, j), input c and output f come
   from w + i*row + j*column + c*in + f*out. Returns the end of what it has written. */
static float *pack_weights(float *packed, const float *w, i64 rows, i64 row, i64 columns,
                           i64 column, i64 inputs, i64 in, i64 outputs, i64 out) {
  i64 block = feature_block(outputs);
  for (i64 f0 = 0; f0 < outputs; f0 += block)
    for (i64 i = 0; i < rows; i++)
      for (i64 j = 0; j < columns; j++)
        for (i64 c = 0; c < inputs; c++)
          for (i64 f = f0; f < f0 + block; f++)
            *packed++ = f < outputs ? w[i * row + j * column + c * in + f * out] : 0;
  return packed;
}

/* ------------------------------------------------------------- minimal filtering --- */

/* A 3x3 kernel of stride 1 may be computed for 2x2 outputs at once with 16 products in
   place of 36 (Winograd's F(2x2, 3x3); Lavin and Gray 2016):

     y = A' [(G w G') * (B' x B)] A,    x 4x4, w 3x3, y 2x2

   and, transposed, for its kernel gradient dw = G' [(B' x B) * (A dy A')] G. */
enum { POINTS = 16 };

/* Whether that is less work, with its sums, than the taps inside the image. */
static int is_minimal(i64 size, i64 stride, i64 height, i64 width, i64 padding, i64 channels,
                      i64 features) {
  if (size != 3 || stride != 1) return 0;
  i64 taps[2], lengths[2] = {height, width}, blocks = 1;
  for (int d = 0; d < 2; d++) {
    i64 outputs = lengths[d] + 2 * padding - 2;
    taps[d] = 0;
    for (i64 tap = 0; tap < 3; tap++)
      taps[d] += max(0, min(outputs, lengths[d] + padding - tap) - max(0, padding - tap));
    blocks *= ceil_div(outputs, 2);
  }
  i64 products = channels * features, sums = 40 * (channels + features);
  return 10 * blocks * (POINTS * products + sums) < 9 * taps[0] * taps[1] * products;
}

/* G w G' of each input and output, [outputs / block, 16, inputs, block], as weights of 16
   correlations of one tap. Arguments as of pack_weights. */
static void pack_minimal(float *packed, const float *w, i64 row, i64 column, i64 inputs, i64 in,
                         i64 outputs, i64 out) {
  i64 block = feature_block(outputs), step = inputs * block;
  for (i64 f0 = 0; f0 < outputs; f0 += block, packed += POINTS * step)
    for (i64 c = 0; c < inputs; c++)
      for (i64 f = 0; f < block; f++) {
        float t[4][3], *to = packed + c * block + f;
        for (int j = 0; j < 3; j++) {
          const float *v = w + j * column + c * in + min(f0 + f, outputs - 1) * out;
          t[0][j] = v[0], t[3][j] = v[2 * row];
          t[1][j] = .5f * (v[0] + v[row] + v[2 * row]);
          t[2][j] = .5f * (v[0] - v[row] + v[2 * row]);
        }
        for (int i = 0; i < 4; i++, to += 4 * step) {
          to[0] = t[i][0], to[3 * step] = t[i][2];
          to[step] = .5f * (t[i][0] + t[i][1] + t[i][2]);
          to[2 * step] = .5f * (t[i][0] - t[i][1] + t[i][2]);
        }
      }
}

typedef struct {
  i64 height, width, channels, rows, columns, features, padding;
  i64 block, blocks, band, bands; /* blocks of 2x2 outputs of a tile; of a task */
  i64 transformed, size;          /* floats of the workspace of a worker: of inputs, of all */
  const float *x, *weights;
  float *y, *workspace;
} Minimal;

static Minimal plan_minimal(i64 height, i64 width, i64 channels, i64 features, i64 padding) {
  Minimal m = {.height = height, .width = width, .channels = channels, .features = features,
               .padding = padding, .rows = height + 2 * padding - 2,
               .columns = width + 2 * padding - 2, .block = feature_block(features)};
  i64 point = POINTS * TILE * (channels + m.block) * sizeof(float);
  m.blocks = ceil_div(m.rows, 2) * ceil_div(m.columns, 2);
  m.bands = ceil_div(m.blocks, max(PAIR, min(m.blocks, L2 / point)));
  m.band = ceil_div(m.blocks, m.bands);
  m.transformed = POINTS * m.band * channels * TILE;
  m.size = m.transformed + POINTS * m.band * m.block * TILE;
  return m;
}

/* B' x B of 4x4 pixels from (top, left) on, with zeros outside; to [16, step]. */
static void transform_inputs(const Minimal *m, const float *x, i64 top, i64 left, float *to,
                             i64 step) {
  static const float zeros[TILE];
  const float *from[4][4];
  i64 moves[4][4];
  for (i64 i = 0; i < 4; i++)
    for (i64 j = 0; j < 4; j++) {
      i64 u = top + i, v = left + j, inside = u >= 0 && u < m->height && v >= 0 && v < m->width;
      from[i][j] = inside ? x + (u * m->width + v) * m->channels * TILE : zeros;
      moves[i][j] = inside ? TILE : 0;
    }
  for (i64 c = 0; c < m->channels; c++)
    for (i64 l = 0; l < TILE; l += LANES) {
      vec d[4][4], t[4][4];
      UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < 4; j++)
        d[i][j] = load(from[i][j] + c * moves[i][j] + l);
      UNROLL for (int j = 0; j < 4; j++) {
        t[0][j] = d[0][j] - d[2][j], t[1][j] = d[1][j] + d[2][j];
        t[2][j] = d[2][j] - d[1][j], t[3][j] = d[1][j] - d[3][j];
      }
      UNROLL for (int i = 0; i < 4; i++) {
        float *point = to + 4 * i * step + c * TILE + l;
        store(point, t[i][0] - t[i][2]), store(point + step, t[i][1] + t[i][2]);
        store(point + 2 * step, t[i][2] - t[i][1]), store(point + 3 * step, t[i][1] - t[i][3]);
      }
    }
}

/* A' m A of the products of one block and feature, [16, step]: 2x2 outputs. */
static void transform_outputs(const float *products, i64 step, float *y, i64 y_row, i64 y_step,
                              i64 rows, i64 columns) {
  for (i64 l = 0; l < TILE; l += LANES) {
    vec p[4][4], t[2][4], out[2][2];
    UNROLL for (int k = 0; k < POINTS; k++) p[k / 4][k % 4] = load(products + k * step + l);
    UNROLL for (int j = 0; j < 4; j++) {
      t[0][j] = p[0][j] + p[1][j] + p[2][j];
      t[1][j] = p[1][j] - p[2][j] - p[3][j];
    }
    UNROLL for (int i = 0; i < 2; i++) {
      out[i][0] = t[i][0] + t[i][1] + t[i][2];
      out[i][1] = t[i][1] - t[i][2] - t[i][3];
    }
    for (i64 i = 0; i < rows; i++)
      for (i64 j = 0; j < columns; j++) store(y + i * y_row + j * y_step + l, out[i][j]);
  }
}

static void minimal_task(const void *work, i64 task, i64 worker) {
  const Minimal *m = work;
  i64 tile = task / m->bands, first = task % m->bands * m->band;
  i64 count = max(0, min(m->band, m->blocks - first)), across = ceil_div(m->columns, 2);
  const float *x = m->x + tile * m->height * m->width * m->channels * TILE;
  float *y = m->y + tile * m->rows * m->columns * m->features * TILE;
  float *inputs = m->workspace + worker * m->size, *products = inputs + m->transformed;
  i64 x_block = m->channels * TILE, y_block = m->block * TILE;
  i64 x_step = m->band * x_block, y_step = m->band * y_block;
  for (i64 b = 0; b < count; b++)
    transform_inputs(m, x, (first + b) / across * 2 - m->padding,
                     (first + b) % across * 2 - m->padding, inputs + b * x_block, x_step);
  for (i64 f = 0; f < m->features; f += m->block) {
    for (i64 k = 0; k < POINTS; k++) {
      const float *w = m->weights + (f / m->block * POINTS + k) * m->channels * m->block;
      for (i64 b = 0, pairs; b < count; b += pairs) {
        pairs = b + PAIR <= count ? PAIR : 1;
        correlate_kind(m->block, pairs)(inputs + k * x_step + b * x_block, 0, x_block, w, 0, 1,
                                        m->channels, products + k * y_step + b * y_block, y_block,
                                        m->block);
      }
    }
    for (i64 b = 0; b < count; b++) {
      i64 row = (first + b) / across * 2, column = (first + b) % across * 2;
      for (i64 g = 0; g < min(m->block, m->features - f); g++)
        transform_outputs(products + b * y_block + g * TILE, y_step,
                          y + ((row * m->columns + column) * m->features + f + g) * TILE,
                          m->columns * m->features * TILE, m->features * TILE,
                          min(2, m->rows - row), min(2, m->columns - column));
    }
  }
}

static i64 packed_size(i64 taps, i64 inputs, i64 outputs) {
  i64 block = feature_block(outputs);
  return ceil_div(taps * inputs * ceil_div(outputs, block) * block, TILE) * TILE;
}

/* Floats of the workspace: the weights, and for each worker inputs and products. */
static i64 minimal_size(i64 tiles, const Minimal *m) {
  return packed_size(POINTS, m->channels, m->features) +
         min(tiles * m->bands, MAX_WORKERS) * m->size;
}

/* Weights as of pack_minimal. */
static void run_minimal(XLA_FFI_CallFrame *frame, i64 tiles, Minimal *m, const float *w, i64 row,
                        i64 column, i64 in, i64 out) {
  float *packed = result(frame, 1);
  pack_minimal(packed, w, row, column, m->channels, in, m->features, out);
  m->x = argument(frame, 0), m->y = result(frame, 0), m->weights = packed;
  m->workspace = packed + packed_size(POINTS, m->channels, m->features);
  run_tasks(frame, tiles * m->bands, minimal_task, m);
}

/* ------------------------------------------------------- the gradient of the kernel --- */

/* Blocks of channels by features. */
#if defined(__AVX2__) && !defined(__AVX512F__)
#define GRADIENT_BLOCKS(X) X(0, 3, 4) X(1, 2, 5) X(2, 2, 6)
#else
#define GRADIENT_BLOCKS(X) X(0, 3, 5) X(1, 5, 5) X(2, 4, 6)
#endif
enum { MAX_C = 5, MAX_F = 6 };

typedef struct {
  i64 tiles, height, width, channels, out_height, out_width, features;
  i64 size, stride, padding;
  i64 minimal, taps;          /* by minimal filtering; products: size * size, or 16 */
  i64 kind, c_block, f_block; /* the block */
  /* A panel is rows of outputs (or of 2x2 of them) of one tile, or all rows of several
     tiles, and the inputs that they need. A task takes a chunk of channels through a
     group of panels. */
  i64 rows, columns, panel_tiles, panel_rows, bands, panels, groups;
  i64 chunk, chunks;
  i64 x_size, grad_size, sums_size; /* floats of copied panels; of the sums of all groups */
  const float *x, *grad;
  float *panel, *sums; /* workspace of each worker; sums of each group */
} Gradient;

static Gradient plan_gradient(i64 tiles, i64 height, i64 width, i64 channels, i64 features,
                              i64 size, i64 stride, i64 padding) {
  Gradient g = {.tiles = tiles, .height = height, .width = width, .channels = channels,
                .features = features, .size = size, .stride = stride, .padding = padding,
                .out_height = (height + 2 * padding - size) / stride + 1,
                .out_width = (width + 2 * padding - size) / stride + 1};
  g.minimal = is_minimal(size, stride, height, width, padding, channels, features);
  g.taps = g.minimal ? POINTS : size * size;
  g.rows = g.minimal ? ceil_div(g.out_height, 2) : g.out_height;
  g.columns = g.minimal ? ceil_div(g.out_width, 2) : g.out_width;
  i64 least = INT64_MAX;
#define COST(KIND, C, F)                                                                     \
  {                                                                                          \
    i64 cost = ceil_div(channels, C) * ceil_div(features, F) * (2 * C * F + C + F);          \
    if (cost < least) least = cost, g.kind = KIND, g.c_block = C, g.f_block = F;             \
  }
  GRADIENT_BLOCKS(COST)
  /* Gradients of a block of features stay in the first cache, inputs in the second. */
  i64 vector = TILE * sizeof(float), positions = L1 / (g.f_block * vector);
  g.panel_rows = max(1, min(g.rows, positions / g.columns));
  g.panel_tiles = 1;
  if (g.panel_rows == g.rows)
    g.panel_tiles = max(1, min(tiles, positions / (g.rows * g.columns)));
  g.bands = ceil_div(g.rows, g.panel_rows);
  g.panels = ceil_div(tiles, g.panel_tiles) * g.bands;
  i64 in_rows = min(height, (g.panel_rows - 1) * stride + size);
  i64 pixels = g.panel_tiles * (g.minimal ? g.panel_rows * g.columns : in_rows * width);
  i64 blocks = ceil_div(channels, g.c_block), f_blocks = ceil_div(features, g.f_block);
  i64 chunk = max(1, min(blocks, L2 / (pixels * vector * g.c_block)));
  g.chunks = ceil_div(blocks, chunk);
  g.chunk = ceil_div(blocks, g.chunks) * g.c_block;
  g.x_size = g.chunk * pixels * TILE;
  g.grad_size = g.f_block * g.panel_tiles * g.panel_rows * g.columns * TILE;
  if (g.minimal) g.grad_size *= f_blocks;
  /* Enough tasks for many threads, and at most a few megabytes of sums. */
  i64 most = max(1, (1 << 20) / (g.taps * channels * features));
  g.groups = min(g.panels, min(most, ceil_div(32, g.chunks)));
  g.sums_size = ceil_div(g.groups * g.taps * channels * features, TILE) * TILE;
  return g;
}

/* Adds to dw the sums of C channels by F features of one tap over all positions. */
INLINE void add_block(const int C, const int F, const float *x, i64 x_tile, i64 x_row,
                         i64 x_step, const float *g, i64 g_tile, i64 g_row, i64 tiles,
                         i64 rows, i64 columns, float *dw, i64 dw_step, i64 channels,
                         i64 features) {
  vec sum[MAX_C][MAX_F];
  UNROLL for (int c = 0; c < C; c++) UNROLL for (int f = 0; f < F; f++) sum[c][f] = (vec){0};
  for (i64 n = 0; n < tiles; n++)
    for (i64 a = 0; a < rows; a++) {
      const float *xa = x + n * x_tile + a * x_row, *ga = g + n * g_tile + a * g_row;
      for (i64 b = 0; b < columns; b++, xa += x_step, ga += F * TILE)
        UNROLL for (int v = 0; v < TILE; v += LANES) {
          vec in[MAX_C];
          UNROLL for (int c = 0; c < C; c++) in[c] = load_once(xa + c * TILE + v);
          UNROLL for (int f = 0; f < F; f++) {
            vec grad = load_once(ga + f * TILE + v);
            UNROLL for (int c = 0; c < C; c++) sum[c][f] += in[c] * grad;
          }
        }
    }
  UNROLL for (int c = 0; c < C; c++) UNROLL for (int f = 0; f < F; f++)
    if (c < channels && f < features) {
      float total = 0;
      UNROLL for (int l = 0; l < LANES; l++) total += sum[c][f][l];
      dw[c * dw_step + f] += total;
    }
}

typedef void AddProducts(const float *, i64, i64, i64, const float *, i64, i64, i64, i64, i64,
                         float *, i64, i64, i64);

#define ADD_PRODUCTS(KIND, C, F)                                                            \
  static void add_products_##KIND(const float *x, i64 x_tile, i64 x_row, i64 x_step,        \
                                  const float *g, i64 g_tile, i64 g_row, i64 tiles,         \
                                  i64 rows, i64 columns, float *dw, i64 dw_step,            \
                                  i64 channels, i64 features) {                             \
    add_block(C, F, x, x_tile, x_row, x_step, g, g_tile, g_row, tiles, rows, columns,    \
                 dw, dw_step, channels, features);                                          \
  }
GRADIENT_BLOCKS(ADD_PRODUCTS)

static AddProducts *const add_products[] = {add_products_0, add_products_1, add_products_2};

/* Copies `count` channels of pixels to blocks that are filled up with zeros. */
static void copy_channels(float *to, const float *from, i64 pixels, i64 pixel, i64 count,
                          i64 block) {
  for (i64 p = 0; p < pixels; p++, from += pixel)
    for (i64 c = 0; c < block; c++)
      for (i64 v = 0; v < TILE; v += LANES, to += LANES)
        store(to, c < count ? load(from + c * TILE + v) : (vec){0});
}

/* One panel of a chunk of channels: adds its part to dw [size, size, channels, features]. */
static void add_panel(const Gradient *g, i64 panel, i64 c0, float *x, float *grad, float *dw) {
  AddProducts *add = add_products[g->kind];
  i64 n0 = panel / g->bands * g->panel_tiles, tiles = min(g->panel_tiles, g->tiles - n0);
  i64 a0 = panel % g->bands * g->panel_rows, a1 = min(a0 + g->panel_rows, g->out_height);
  i64 c1 = min(c0 + g->chunk, g->channels), s = g->stride, p = g->padding;
  i64 u0 = max(0, a0 * s - p), u1 = min(g->height, (a1 - 1) * s - p + g->size);
  i64 x_row = g->width * g->c_block * TILE, x_tile = max(0, u1 - u0) * x_row;
  i64 g_row = g->out_width * g->f_block * TILE, g_tile = (a1 - a0) * g_row;
  i64 x_pixel = g->channels * TILE, g_pixel = g->features * TILE;
  for (i64 c = c0; c < c1; c += g->c_block)
    for (i64 n = 0; n < tiles; n++)
      copy_channels(x + ((c - c0) / g->c_block * tiles + n) * x_tile,
                    g->x + ((n0 + n) * g->height + u0) * g->width * x_pixel + c * TILE,
                    max(0, u1 - u0) * g->width, x_pixel, c1 - c, g->c_block);
  for (i64 f = 0; f < g->features; f += g->f_block) {
    for (i64 n = 0; n < tiles; n++)
      copy_channels(grad + n * g_tile,
                    g->grad + ((n0 + n) * g->out_height + a0) * g->out_width * g_pixel + f * TILE,
                    (a1 - a0) * g->out_width, g_pixel, g->features - f, g->f_block);
    for (i64 i = 0; i < g->size; i++)
      for (i64 j = 0; j < g->size; j++) {
        /* The outputs that have this tap inside the image. */
        i64 top = max(a0, ceil_div(max(0, p - i), s));
        i64 end = min(a1, ceil_div(max(0, g->height + p - i), s));
        i64 left = ceil_div(max(0, p - j), s);
        i64 right = min(g->out_width, ceil_div(max(0, g->width + p - j), s));
        if (top >= end || left >= right) continue;
        const float *xt = x + (top * s + i - p - u0) * x_row + (left * s + j - p) * g->c_block * TILE;
        const float *gt = grad + (top - a0) * g_row + left * g->f_block * TILE;
        for (i64 c = c0; c < c1; c += g->c_block)
          add(xt + (c - c0) / g->c_block * tiles * x_tile, x_tile, s * x_row,
              s * g->c_block * TILE, gt, g_tile, g_row, tiles, end - top, right - left,
              dw + ((i * g->size + j) * g->channels + c) * g->features + f, g->features,
              c1 - c, g->features - f);
      }
  }
}

/* The rows and columns of B' x B and A dy A' that belong to each of the 16 products. */
static const float INPUT_POINTS[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
static const float GRAD_POINTS[4][4] = {{1, 0}, {1, 1}, {1, -1}, {0, -1}};

/* Writes sum_{i, j} rows[i] columns[j] image[top + i, left + j] of some channels, with
   zeros outside, to blocks that are filled up with zeros; at most four terms are not 0. */
static void combine(float *to, i64 to_block, const float *image, i64 height, i64 width,
                    i64 channels, i64 top, i64 left, const float *rows, const float *columns,
                    i64 c0, i64 c1, i64 block) {
  const float *from[4];
  float factors[4];
  int terms = 0;
  for (i64 i = 0; i < 4; i++)
    for (i64 j = 0; j < 4; j++) {
      i64 u = top + i, v = left + j;
      if (rows[i] * columns[j] == 0 || u < 0 || u >= height || v < 0 || v >= width) continue;
      factors[terms] = rows[i] * columns[j];
      from[terms++] = image + (u * width + v) * channels * TILE;
    }
  for (i64 c = c0; c < c1; c += block, to += to_block)
    for (i64 k = 0; k < block; k++)
      for (i64 l = 0; l < TILE; l += LANES) {
        vec sum = {0};
        for (int term = 0; term < terms && c + k < c1; term++)
          sum += factors[term] * load(from[term] + (c + k) * TILE + l);
        store(to + k * TILE + l, sum);
      }
}

/* The same as add_panel by minimal filtering: dw is [16, channels, features]. */
static void add_minimal_panel(const Gradient *g, i64 panel, i64 c0, float *x, float *grad,
                              float *dw) {
  AddProducts *add = add_products[g->kind];
  i64 n0 = panel / g->bands * g->panel_tiles, n1 = min(n0 + g->panel_tiles, g->tiles);
  i64 a0 = panel % g->bands * g->panel_rows, a1 = min(a0 + g->panel_rows, g->rows);
  i64 c1 = min(c0 + g->chunk, g->channels), blocks = (n1 - n0) * (a1 - a0) * g->columns;
  i64 x_step = g->c_block * TILE, g_step = g->f_block * TILE;
  for (i64 point = 0; point < POINTS; point++) {
    for (i64 b = 0; b < blocks; b++) {
      i64 n = n0 + b / g->columns / (a1 - a0), row = 2 * (a0 + b / g->columns % (a1 - a0));
      i64 column = 2 * (b % g->columns);
      combine(x + b * x_step, blocks * x_step, g->x + n * g->height * g->width * g->channels * TILE,
              g->height, g->width, g->channels, row - g->padding, column - g->padding,
              INPUT_POINTS[point / 4], INPUT_POINTS[point % 4], c0, c1, g->c_block);
      combine(grad + b * g_step, blocks * g_step,
              g->grad + n * g->out_height * g->out_width * g->features * TILE, g->out_height,
              g->out_width, g->features, row, column, GRAD_POINTS[point / 4],
              GRAD_POINTS[point % 4], 0, g->features, g->f_block);
    }
    for (i64 f = 0; f < g->features; f += g->f_block)
      for (i64 c = c0; c < c1; c += g->c_block)
        add(x + (c - c0) * TILE * blocks, 0, 0, x_step, grad + f * TILE * blocks, 0, 0, 1, 1,
            blocks, dw + (point * g->channels + c) * g->features + f, g->features, c1 - c,
            g->features - f);
  }
}

/* G' u G: the gradient of a kernel [3, 3, ...] from its 16 sums; steps as of those. */
static void finish_minimal(const float *u, i64 step, float *dw) {
  float t[3][4];
  for (int j = 0; j < 4; j++) {
    const float *v = u + j * step;
    t[0][j] = v[0] + .5f * (v[4 * step] + v[8 * step]);
    t[1][j] = .5f * (v[4 * step] - v[8 * step]);
    t[2][j] = .5f * (v[4 * step] + v[8 * step]) + v[12 * step];
  }
  for (int i = 0; i < 3; i++, dw += 3 * step) {
    dw[0] = t[i][0] + .5f * (t[i][1] + t[i][2]);
    dw[step] = .5f * (t[i][1] - t[i][2]);
    dw[2 * step] = .5f * (t[i][1] + t[i][2]) + t[i][3];
  }
}

static void gradient_task(const void *work, i64 task, i64 worker) {
  const Gradient *g = work;
  i64 group = task / g->chunks, c0 = task % g->chunks * g->chunk;
  float *dw = g->sums + group * g->taps * g->channels * g->features;
  float *x = g->panel + worker * (g->x_size + g->grad_size), *grad = x + g->x_size;
  for (i64 tap = 0; tap < g->taps; tap++)
    for (i64 c = c0; c < min(c0 + g->chunk, g->channels); c++)
      for (i64 f = 0; f < g->features; f++) dw[(tap * g->channels + c) * g->features + f] = 0;
  for (i64 k = group * g->panels / g->groups; k < (group + 1) * g->panels / g->groups; k++)
    (g->minimal ? add_minimal_panel : add_panel)(g, k, c0, x, grad, dw);
}

/* ------------------------------------------------------------------ sums of channels --- */

typedef struct {
  i64 images, pixels, channels;
  const float *u, *v, *u_shift, *v_shift;
  float *sums, *lanes; /* of each tile [2, C]; workspace of each worker [2, C, 16] */
} Sums;

static void sums_task(const void *work, i64 tile, i64 worker) {
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

/* ------------------------------------------------------------------------ handlers --- */

/* XLA asks each handler once for the version of the interface that it was built for. */
static int is_query(XLA_FFI_CallFrame *frame) {
  XLA_FFI_Extension_Base *extension = frame->extension_start;
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}

/* x [T, H, W, C, 16], w [K, K, C, F] -> y [T, H', W', F, 16], packed weights */
XLA_FFI_Error *conv_forward(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const i64 *x = argument_shape(frame, 0), *w = argument_shape(frame, 1);
  const i64 *y = result_shape(frame, 0);
  i64 size = w[0], channels = w[2], features = w[3], padding = attribute(frame, 0);
  if (is_minimal(size, attribute(frame, 1), x[1], x[2], padding, channels, features)) {
    Minimal m = plan_minimal(x[1], x[2], channels, features, padding);
    run_minimal(frame, x[0], &m, argument(frame, 1), 3 * channels * features,
                channels * features, features, 1);
    return NULL;
  }
  Correlation c = {
      .in_height = x[1], .in_width = x[2], .in_channels = channels,
      .out_height = y[1], .out_width = y[2], .out_channels = features,
      .rows = y[1], .columns = y[2], .out_step = 1,
      .tap_rows = size, .tap_columns = size, .in_step = attribute(frame, 1),
      .top = padding, .left = padding,
      .weights = result(frame, 1), .block = feature_block(features)};
  pack_weights(result(frame, 1), argument(frame, 1), size, size * channels * features, size,
               channels * features, channels, features, features, 1);
  run_correlations(frame, argument(frame, 0), result(frame, 0), x[0], &c, 1);
  return NULL;
}

/* The taps of a kernel that one phase of the input meets, in one direction. Input
   s*a + phase meets tap i0 + s*t through output a + shift - t. */
typedef struct {
  i64 first, count, before;
} Taps;

static Taps taps_of_phase(i64 phase, i64 size, i64 stride, i64 padding) {
  i64 first = (phase + padding) % stride;
  i64 count = first < size ? ceil_div(size - first, stride) : 0;
  return (Taps){first, count, count - 1 - (phase + padding - first) / stride};
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
  if (is_minimal(size, s, y[1], y[2], 2 - padding, features, channels)) {
    Minimal m = plan_minimal(y[1], y[2], features, channels, 2 - padding);
    run_minimal(frame, y[0], &m, argument(frame, 1) + 2 * (row + column), -row, -column, 1,
                features);
    return NULL;
  }
  Correlation *phases = malloc(s * s * sizeof *phases);
  if (!phases) {
    XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL,
                                      "out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED};
    return frame->api->XLA_FFI_Error_Create(&args);
  }
  for (i64 k = 0; k < s * s; k++) {
    Taps i = taps_of_phase(k / s, size, s, padding), j = taps_of_phase(k % s, size, s, padding);
    phases[k] = (Correlation){
        .in_height = y[1], .in_width = y[2], .in_channels = features,
        .out_height = x[1], .out_width = x[2], .out_channels = channels,
        .rows = max(0, ceil_div(x[1] - k / s, s)), .columns = max(0, ceil_div(x[2] - k % s, s)),
        .r0 = k / s, .c0 = k % s, .out_step = s,
        .tap_rows = i.count, .tap_columns = j.count, .in_step = 1,
        .top = i.before, .left = j.before,
        .weights = packed, .block = feature_block(channels)};
    /* The taps are read backwards. */
    packed = pack_weights(packed,
                          argument(frame, 1) + (i.first + s * (i.count - 1)) * row +
                              (j.first + s * (j.count - 1)) * column,
                          i.count, -s * row, j.count, -s * column, features, 1, channels,
                          features);
  }
  run_correlations(frame, argument(frame, 0), result(frame, 0), y[0], phases, s * s);
  free(phases);
  return NULL;
}

/* x [T, H, W, C, 16], dy [T, H', W', F, 16] -> dw [K, K, C, F], workspace */
XLA_FFI_Error *conv_kernel_gradient(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const i64 *x = argument_shape(frame, 0), *w = result_shape(frame, 0);
  Gradient g = plan_gradient(x[0], x[1], x[2], x[3], w[3], w[0], attribute(frame, 1), attribute(frame, 0));
  i64 pairs = g.channels * g.features, count = g.taps * pairs;
  float *dw = result(frame, 0);
  g.x = argument(frame, 0), g.grad = argument(frame, 1);
  g.sums = result(frame, 1), g.panel = g.sums + g.sums_size;
  run_tasks(frame, g.groups * g.chunks, gradient_task, &g);
  for (i64 group = 1; group < g.groups; group++)
    for (i64 q = 0; q < count; q++) g.sums[q] += g.sums[group * count + q];
  for (i64 q = 0; g.minimal && q < pairs; q++) finish_minimal(g.sums + q, pairs, dw + q);
  for (i64 q = 0; !g.minimal && q < count; q++) dw[q] = g.sums[q];
  return NULL;
}

/* u, v [T, H, W, C, 16] and shifts a, b [C] -> for each channel the sums of u - a and of
   (u - a)(v - b) over as many images as the attribute says, [2, C], and a workspace of
   T * (2 C + 2 C * 16) floats */
XLA_FFI_Error *channel_sums(XLA_FFI_CallFrame *frame) {
  if (is_query(frame)) return NULL;
  const i64 *u = argument_shape(frame, 0);
  i64 tiles = u[0], count = 2 * u[3];
  float *sums = result(frame, 0), *workspace = result(frame, 1);
  Sums s = {attribute(frame, 0), u[1] * u[2], u[3], argument(frame, 0), argument(frame, 1), argument(frame, 2),
            argument(frame, 3), workspace, workspace + tiles * count};
  run_tasks(frame, tiles, sums_task, &s);
  for (i64 q = 0; q < count; q++) {
    sums[q] = 0;
    for (i64 tile = 0; tile < tiles; tile++) sums[q] += s.sums[tile * count + q];
  }
  return NULL;
}

/* Floats of the second result of each handler, from the shapes of x, or of dy for the
   input gradient, and of the kernel. */
i64 forward_size(i64 tiles, i64 height, i64 width, i64 channels, i64 features, i64 size,
                 i64 stride, i64 padding) {
  if (!is_minimal(size, stride, height, width, padding, channels, features))
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
  return g.sums_size + min(g.groups * g.chunks, MAX_WORKERS) * (g.x_size + g.grad_size);
}

/* ---------------------------------------------------------------- images and tiles --- */

typedef struct {
  const float *from;
  float *to;
  i64 images, size; /* size: floats of an image */
} Move;

/* Both move pieces of 16 floats of half a tile's images. More images would not do: their
   distance is often a multiple of 4096 bytes, so that all fall on the same few lines of a
   cache. */
enum { PIECE = 16, HALF = TILE / 2 };

static void tile_task(const void *work, i64 task, i64 worker) {
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
