"""Convolution: one layer, with a lowering of its own for CPUs.

XLA's CPU convolutions, and above all their gradients inside a loop, are several times
slower than a matrix product of the same size. On a CPU the layer therefore cuts its
input into windows and multiplies, with both gradients written by hand. Accelerators
keep ``lax.conv_general_dilated``.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.layers.initializers import fan_in_uniform

Array = jax.Array
Lowering = Literal["auto", "native", "product"]

# A product of fewer columns than this leaves the vector units idle.
_MIN_COLUMNS = 40


def conv2d_native(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Cross-correlation by XLA; arguments and result as in ``conv2d_product``."""
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d_product(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Cross-correlation as one matrix product.

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
    return _forward(images, kernel, stride, padding)[0]


def _forward(images, kernel, stride, padding):
    pads = [(0, 0, 0), (padding, padding, 0), (padding, padding, 0), (0, 0, 0)]
    outputs, windows = _windows_product(images, pads, kernel, stride)
    return outputs, (windows, images.shape, kernel)


def _backward(stride, padding, residuals, grad):
    windows, images_shape, kernel = residuals
    kernel_grad = _kernel_gradient(windows, grad, kernel)
    images_grad = _images_gradient(grad, kernel, images_shape, stride, padding)
    return images_grad, kernel_grad


conv2d_product.defvjp(_forward, _backward)


def _block_size(features: int) -> int:
    """Neighbouring outputs that one row of the product computes."""
    return max(1, _MIN_COLUMNS // features)


def _windows_product(images, pads, kernel, stride):
    """Pads, cuts into windows and multiplies.

    A row of the product gives B neighbouring outputs at once. Its window is
    ``width = s*(B-1) + K`` columns wide, and its matrix holds the kernel B times, each
    copy s columns further on (block-Toeplitz). That costs ``width / K`` times the
    operations, but a matrix with few columns would waste more than that.

    Args:
      images: [N, H, W, C].
      pads: of ``lax.pad``; negative ones cut.
      kernel: [K, K, C, F].
      stride: s.

    Returns:
      The outputs [N, A, B', F] and the windows [N, A, ceil(B'/B), K * width * C].
    """
    size, _, channels, features = kernel.shape
    block = _block_size(features)
    rows, columns = (
        (images.shape[axis] + sum(pads[axis][:2]) - size) // stride + 1
        for axis in (1, 2)
    )
    blocks = -(-columns // block)
    width = stride * (block - 1) + size
    step = stride * block
    # Whole steps of columns: as many as there are windows, and what the last overlaps.
    steps = blocks - 1 + -(-width // step)
    low = pads[2][0]
    pads = [pads[0], pads[1], (low, steps * step - low - images.shape[2], 0), pads[3]]
    padded = lax.pad(images, jnp.zeros((), images.dtype), pads)
    tiles = padded.reshape(*padded.shape[:2], steps, step * channels)
    # First the columns of all windows, then their rows: XLA fuses a concatenation of
    # few pieces with the slices, and copies each piece of a concatenation of many.
    tiles = jnp.concatenate(
        [
            tiles[:, :, j // step : j // step + blocks, : (width - j) * channels]
            for j in range(0, width, step)
        ],
        axis=-1,
    )
    last = stride * (rows - 1) + 1
    windows = jnp.concatenate(
        [tiles[:, i : i + last : stride] for i in range(size)], axis=-1
    )
    outputs = windows @ _banded(kernel, block, stride)
    outputs = outputs.reshape(*outputs.shape[:2], blocks * block, features)
    return outputs[:, :, :columns], windows


def _banded(kernel, block, stride):
    """[K, K, C, F] -> [K * width * C, block * F], zero where a copy has no tap."""
    size, _, channels, features = kernel.shape
    copies = [
        jnp.pad(
            kernel, [(0, 0), (stride * b, stride * (block - 1 - b)), (0, 0), (0, 0)]
        )
        for b in range(block)
    ]
    width = stride * (block - 1) + size
    return jnp.stack(copies, axis=3).reshape(size * width * channels, block * features)


def _kernel_gradient(windows, grad, kernel):
    """``dw[i, j, c, f] = sum_{n, a, b} x[n, s*a+i-p, s*b+j-p, c] * dy[n, a, b, f]``.

    The same product transposed; the banded matrix's gradient then folds to the
    kernel's.
    """
    size, _, channels, features = kernel.shape
    block = _block_size(features)
    width = windows.shape[-1] // (size * channels)
    stride = (width - size) // (block - 1) if block > 1 else 1
    blocks = windows.shape[2]
    fill = blocks * block - grad.shape[2]
    grad = jnp.pad(grad, [(0, 0), (0, 0), (0, fill), (0, 0)])
    # With the fewer columns first the product is up to twice as fast; the barrier keeps
    # XLA from moving the transposition into it.
    banded_grad = lax.dot_general(
        grad.reshape(-1, block * features),
        windows.reshape(-1, windows.shape[-1]),
        (((0,), (0,)), ((), ())),
    )
    banded_grad = lax.optimization_barrier(banded_grad).T
    fold = jax.linear_transpose(lambda k: _banded(k, block, stride), kernel)
    return fold(banded_grad)[0]


def _images_gradient(grad, kernel, images_shape, stride, padding):
    """The transpose of the convolution, as a sub-pixel convolution of stride one.

    An input position u takes part in output o with tap ``i = u + p - s*o``. Write
    ``u = s*a + r`` and let e zeros before the kernel make ``p + e = s*P``; then
    ``i + e = s*t + r`` with ``o = a + P - t``, so that all s*s phases r come from the
    same T x T window of the output gradient:

    ``dx[s*a + r] = sum_t dy[a + P - t] * w[s*t + r - e]``

    One product gives every phase, and a depth-to-space puts them in place. Summing
    the overlapping windows instead would write K*K arrays of the input's size.
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
    pixels, _ = _windows_product(grad, pads, phases, 1)
    pixels = pixels.reshape(count, rows, columns, stride, stride, channels)
    pixels = pixels.transpose(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(count, rows * stride, columns * stride, channels)
    return pixels[:, :height, :width]


class Conv(nn.Module):
    """A square convolution over [N, H, W, C] images, zero-padded alike on all sides.

    Padding is explicit because ``"SAME"`` pads (0, 1) for an even size and stride 2,
    where these networks pad (1, 1). Kernel and bias start from ``fan_in_uniform``.

    Attributes:
      features: output channels F.
      kernel_size: K, in pixels.
      stride: step between output positions, in pixels.
      padding: zeros on each side, in pixels.
      use_bias: adds a bias for each output channel.
      dtype: type of the computation; parameters stay float32. None: the input's.
      lowering: how it is computed; ``"auto"`` takes products on a CPU and XLA's
        convolution elsewhere.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        size = self.kernel_size
        fan_in = size * size * images.shape[-1]
        init = fan_in_uniform(fan_in)
        shape = (size, size, images.shape[-1], self.features)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", init, (self.features,)) if self.use_bias else None
        images, kernel, bias = nn.dtypes.promote_dtype(
            images, kernel, bias, dtype=self.dtype
        )
        native = self.lowering == "native" or (
            self.lowering == "auto" and jax.default_backend() != "cpu"
        )
        conv2d = conv2d_native if native else conv2d_product
        outputs = conv2d(images, kernel, self.stride, self.padding)
        return outputs if bias is None else outputs + bias
