"""Convolution and its gradients as matrix products, a lowering for CPUs.

XLA's CPU convolutions, and above all their gradients inside a loop, are several times
slower than a matrix product of the same size. This module uses three ideas:

- an image that is no larger than the kernel is one row of a dense matrix product;
- larger images are cut into windows; with few features, a window is wide enough for
  several neighbouring outputs of a row (block-Toeplitz);
- a small kernel of stride 1 shares work between neighbouring rows (Winograd's minimal
  filtering), which halves the operations and the memory for the windows.

``docs/cpu-speed.md`` shows what each idea gained, and which attempts failed.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

# A block of outputs grows up to two limits: the columns of the product (this many keep
# the vector units busy), and the width of a window in kernel widths (the number of
# operations grows by this factor).
_MAX_COLUMNS = 40
_MAX_WIDENING = 1.7

# Windows of more than twice this size are computed and used piece by piece, so that a
# piece fits in a core's share of the cache.
_CACHE_BYTES = 6e6


def conv2d_product(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Computes a cross-correlation by matrix products.

    ``y[n, a, b, f] = sum_{i, j, c} x[n, s*a + i - p, s*b + j - p, c] * w[i, j, c, f]``
    with stride s, padding p and zeros outside the image.

    Args:
      images: [N, H, W, C].
      kernel: [K, K, C, F].
      stride: step between output positions, in pixels, the same for both axes.
      padding: zeros added on each side, in pixels.

    Returns:
      [N, (H + 2p - K) // s + 1, (W + 2p - K) // s + 1, F].
    """
    size, _, _, features = kernel.shape
    outputs = [
        max(0, (length + 2 * padding - size) // stride + 1)
        for length in images.shape[1:3]
    ]
    if 0 in (*images.shape, *kernel.shape, *outputs):  # nothing to add up
        return jnp.zeros((len(images), *outputs, features), images.dtype)
    if images.shape[1] * images.shape[2] <= size**2:
        return _dense(images, kernel, stride, padding)
    pieces = _pieces(images, kernel, stride, padding)
    if pieces == 1:
        return _windowed(images, kernel, stride, padding)

    @jax.checkpoint  # the backward pass computes the windows again
    def convolve(piece):
        return _windowed(piece, kernel, stride, padding)

    parts = lax.map(convolve, images.reshape(pieces, -1, *images.shape[1:]))
    return parts.reshape(-1, *parts.shape[2:])


def _pieces(images, kernel, stride, padding):
    """Returns the number of batch pieces; the windows of a piece stay in the cache."""
    windows = jax.eval_shape(
        lambda x, k: _forward(x, k, stride, padding)[1][0], images, kernel
    )
    size = sum(w.size * w.dtype.itemsize for w in windows)
    pieces = 1
    if size > 2 * _CACHE_BYTES:
        while size > pieces * _CACHE_BYTES and len(images) % (2 * pieces) == 0:
            pieces *= 2
    return pieces


def _dense(images, kernel, stride, padding):
    """Computes one product [N, H*W*C] x [H*W*C, H'*W'*F]; its matrix has few zeros."""
    size, features = kernel.shape[0], kernel.shape[-1]

    def taps(length):
        """Returns whether tap i connects input u to output o, [U, O, I]."""
        outputs = (length + 2 * padding - size) // stride + 1
        u, o, i = np.ogrid[:length, :outputs, :size]
        return u + padding == stride * o + i

    rows, columns = taps(images.shape[1]), taps(images.shape[2])
    both = np.einsum("uai,vbj->uvabij", rows, columns).astype(kernel.dtype)
    matrix = jnp.einsum("uvabij,ijcf->uvcabf", both, kernel)
    outputs = (rows.shape[1], columns.shape[1], features)
    matrix = matrix.reshape(-1, np.prod(outputs))
    return (images.reshape(len(images), -1) @ matrix).reshape(-1, *outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _windowed(images, kernel, stride, padding):
    return _forward(images, kernel, stride, padding)[0]


def _forward(images, kernel, stride, padding):
    pads = [(0, 0, 0), (padding, padding, 0), (padding, padding, 0), (0, 0, 0)]
    outputs, windows = _correlate(images, pads, kernel, stride)
    return outputs, (windows, images.shape, kernel)


def _backward(stride, padding, residuals, grad):
    windows, images_shape, kernel = residuals
    kernel_grad = _kernel_gradient(windows, grad, kernel, stride)
    images_grad = _images_gradient(grad, kernel, images_shape, stride, padding)
    return images_grad, kernel_grad


_windowed.defvjp(_forward, _backward)


def _block_shape(rows, kernel, stride):
    """Returns how many output rows and columns a row of the products computes."""
    size, _, _, features = kernel.shape
    columns = 1
    while (
        2 * columns * features <= _MAX_COLUMNS
        and stride * (2 * columns - 1) + size <= _MAX_WIDENING * size
    ):
        columns *= 2
    # The sums and differences of minimal filtering lose too many digits in low
    # precision, and with larger kernels in any. A single row shares no work.
    if stride > 1 or size not in (2, 3) or jnp.finfo(kernel.dtype).bits < 32:
        return 1, columns
    return (4 if rows > 2 else rows), columns


@functools.cache
def _minimal_filter(outputs: int, taps: int):
    """Returns Winograd's F(m, r): m outputs of an r-tap filter by m + r - 1 products.

    ``y = A [(G w) * (B d)]`` with filter w [r], inputs d [m + r - 1] and outputs
    ``y[k] = sum_i d[k + i] * w[i]`` (Winograd 1980). It is the transpose of the
    Toom-Cook product of two polynomials, which uses their values at m + r - 2 points
    and at infinity.

    Returns:
      A [m, m + r - 1], G [m + r - 1, r] and B [m + r - 1, m + r - 1], as lists.
    """
    points = np.array([0, 1, -1, 2, -2])[: outputs + taps - 2]

    def values(degree):
        at_infinity = np.eye(degree)[-1:]
        return np.concatenate([np.vander(points, degree, increasing=True), at_infinity])

    inverse = np.linalg.inv(values(outputs + taps - 1)).T
    # B, for the many images, has whole numbers; G, for the one kernel, has fractions.
    scale = np.abs(inverse).min(
        1, keepdims=True, where=np.abs(inverse) > 1e-9, initial=9
    )
    b = np.round(inverse / scale)
    return values(outputs).T.tolist(), (values(taps) * scale).tolist(), b.tolist()


def _combine(coefficients, arrays):
    """Returns one linear combination of the arrays for each row of coefficients."""
    return [
        functools.reduce(
            operator.add, (c * x for c, x in zip(row, arrays, strict=True) if c)
        )
        for row in coefficients
    ]


def _correlate(images, pads, kernel, stride):
    """Pads images, cuts them into windows and multiplies these by the kernel.

    A row of a product gives B neighbouring outputs of an image row. Its window is
    ``width = s*(B-1) + K`` columns wide, and the matrix holds B copies of the kernel,
    each shifted by s more columns. This costs ``width / K`` times the operations, but a
    matrix with few columns would waste more.

    With one image row at a time there is one product, over windows of K rows. With m
    rows at a time there are m + K - 1 products, each over one of the rows into which
    ``_minimal_filter`` transforms the image rows.

    Args:
      images: [N, H, W, C].
      pads: as for ``lax.pad``; negative values crop.
      kernel: [K, K, C, F].
      stride: s.

    Returns:
      The outputs [N, A, B', F], and the windows
      [N, ceil(A / m), ceil(B' / B), ...] of each product.
    """
    size, _, _, features = kernel.shape
    rows, columns = (
        (images.shape[axis] + sum(pads[axis][:2]) - size) // stride + 1
        for axis in (1, 2)
    )
    m, block = _block_shape(rows, kernel, stride)
    bands = -(-rows // m)
    tiles = _column_tiles(
        images, pads, bands * m - rows, columns, block, kernel, stride
    )
    if m == 1:
        last = stride * (rows - 1) + 1
        windows = [
            jnp.concatenate(
                [tiles[:, i : i + last : stride] for i in range(size)], axis=-1
            )
        ]
        mix = [[1.0]]
    else:
        mix, _, transform = _minimal_filter(m, size)
        last = m * (bands - 1) + 1
        windows = _combine(
            transform, [tiles[:, i : i + last : m] for i in range(m + size - 1)]
        )
    matrices = _matrices(kernel, m, block, stride)
    products = [w @ matrix for w, matrix in zip(windows, matrices, strict=True)]
    outputs = jnp.stack(_combine(mix, products), axis=2)
    outputs = outputs.reshape(len(images), bands * m, -1, features)
    return outputs[:, :rows, :columns], windows


def _column_tiles(images, pads, more_rows, columns, block, kernel, stride):
    """Pads images and puts the columns of each window side by side.

    Returns:
      [N, H + padding, ceil(columns / block), width * C].
    """
    size, _, channels, _ = kernel.shape
    blocks = -(-columns // block)
    width = stride * (block - 1) + size
    step = stride * block
    # Steps of columns: one for each window, and more for the rest of the last window.
    steps = blocks - 1 + -(-width // step)
    (top, bottom, _), (left, _, _) = pads[1:3]
    pads = [
        (0, 0, 0),
        (top, bottom + more_rows, 0),
        (left, steps * step - left - images.shape[2], 0),
        (0, 0, 0),
    ]
    padded = lax.pad(images, jnp.zeros((), images.dtype), pads)
    tiles = padded.reshape(*padded.shape[:2], steps, step * channels)
    # XLA fuses a concatenation with the slices of few pieces, but copies each of many.
    # So this joins the columns of a window, and ``_correlate`` joins its rows.
    return jnp.concatenate(
        [
            tiles[:, :, j // step : j // step + blocks, : (width - j) * channels]
            for j in range(0, width, step)
        ],
        axis=-1,
    )


def _matrices(kernel, m, block, stride):
    """Converts the kernel [K, K, C, F] to the right-hand side of each product.

    Returns:
      For m = 1 one matrix [K * width * C, block * F], zero where a copy of the kernel
      has no tap; else m + K - 1 matrices [width * C, block * F].
    """
    size, _, _, features = kernel.shape
    copies = [
        jnp.pad(
            kernel, [(0, 0), (stride * b, stride * (block - 1 - b)), (0, 0), (0, 0)]
        )
        for b in range(block)
    ]
    banded = jnp.stack(copies, axis=3).reshape(size, -1, block * features)
    if m == 1:
        return [banded.reshape(-1, block * features)]
    return _combine(_minimal_filter(m, size)[1], list(banded))


def _kernel_gradient(windows, grad, kernel, stride):
    """``dw[i, j, c, f] = sum_{n, a, b} x[n, s*a+i-p, s*b+j-p, c] * dy[n, a, b, f]``.

    This transposes the products of ``_correlate`` and then folds the gradients of their
    matrices to the gradient of the kernel.
    """
    size, _, _, features = kernel.shape
    m, block = _block_shape(grad.shape[1], kernel, stride)
    bands, blocks = windows[0].shape[1:3]
    fill = [(0, bands * m - grad.shape[1]), (0, blocks * block - grad.shape[2])]
    grad = jnp.pad(grad, [(0, 0), *fill, (0, 0)])
    grad = grad.reshape(len(grad), bands, m, blocks, block * features)
    grads = [grad[:, :, k] for k in range(m)]
    if m > 1:
        mix = np.transpose(_minimal_filter(m, size)[0]).tolist()
        grads = _combine(mix, grads)

    def product(windows, grads):
        # The product is up to twice as fast with the smaller operand first. The barrier
        # keeps XLA from moving the transposition into the product.
        transposed = lax.dot_general(
            grads.reshape(-1, block * features),
            windows.reshape(-1, windows.shape[-1]),
            (((0,), (0,)), ((), ())),
        )
        return lax.optimization_barrier(transposed).T

    fold = jax.linear_transpose(lambda k: _matrices(k, m, block, stride), kernel)
    return fold([product(*pair) for pair in zip(windows, grads, strict=True)])[0]


def _images_gradient(grad, kernel, images_shape, stride, padding):
    """Computes the transposed convolution as a sub-pixel convolution of stride one.

    An input position u contributes to output o through tap ``i = u + p - s*o``. Write
    ``u = s*a + r``, and put e zeros before the kernel, so that ``p + e = s*P``. Then
    ``i + e = s*t + r`` with ``o = a + P - t``, so that all s*s phases r come from the
    same T x T window of the output gradient:

    ``dx[s*a + r] = sum_t dy[a + P - t] * w[s*t + r - e]``

    One convolution gives every phase, and a depth-to-space step puts them in place. A
    sum over the overlapping windows would write K*K arrays of the input's size.
    """
    size, _, channels, features = kernel.shape
    count, height, width, _ = images_shape
    lead = -padding % stride
    shift = (padding + lead) // stride
    taps = -(-(size + lead) // stride)
    trail = taps * stride - size - lead

    phases = jnp.pad(kernel, [(lead, trail), (lead, trail), (0, 0), (0, 0)])
    phases = phases.reshape(taps, stride, taps, stride, channels, features)
    phases = phases[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    phases = phases.reshape(taps, taps, features, stride * stride * channels)

    rows, columns = -(-height // stride), -(-width // stride)
    low = taps - 1 - shift
    pads = [
        (0, 0, 0),
        (low, rows + shift - grad.shape[1], 0),
        (low, columns + shift - grad.shape[2], 0),
        (0, 0, 0),
    ]
    pixels, _ = _correlate(grad, pads, phases, 1)
    pixels = pixels.reshape(count, rows, columns, stride, stride, channels)
    pixels = pixels.transpose(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(count, rows * stride, columns * stride, channels)
    return pixels[:, :height, :width]
