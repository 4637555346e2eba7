"""Pooling."""

import functools

import jax
import jax.numpy as jnp


def global_max_pool(images: jax.Array) -> jax.Array:
    """Returns the maximum of each channel: [N, H, W, C] -> [N, C].

    The gradient goes to the first position of the maximum, as in PyTorch. This position
    is stored as an index. The gradient of ``max`` would compare the input with the
    result; if XLA computes the input twice with different rounding, no value is equal
    and the gradient is 0 / 0.
    """
    count, height, width, channels = images.shape
    pixels = images.reshape(count, height * width, channels)
    index = jax.lax.stop_gradient(pixels).argmax(axis=1, keepdims=True)
    index = index.astype(jnp.int32)  # of an empty array JAX makes int64
    positions = jnp.arange(height * width)[:, None]
    return jnp.where(positions == index, pixels, 0).sum(axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(images: jax.Array, size: int) -> jax.Array:
    """Returns the maximum of each window: [N, H, W, C] -> [N, H // size, W // size, C].

    Windows do not overlap; rows and columns that do not fill a window are dropped. The
    gradient goes to the first position of the maximum, as in PyTorch.
    """
    return _largest(images, size)[0]


def _index_type(size):
    return jnp.uint8 if size <= 16 else jnp.int32


def _largest(array, size):
    """Returns the maximum of each window of [N, H, W, C] and its index there."""
    count, rows, columns, channels = array.shape
    height, width = rows // size, columns // size
    shape = (count, height, size, width, size, channels)
    windows = array[:, : height * size, : width * size].reshape(shape)
    largest = windows[:, :, 0, :, 0]
    kind = _index_type(size)
    index = jnp.zeros(largest.shape, kind)
    for k in range(1, size * size):
        pixel = windows[:, :, k // size, :, k % size]
        better = (pixel > largest) | jnp.isnan(pixel)
        largest = jnp.where(better, pixel, largest)
        index = jnp.where(better, kind(k), index)
    return largest, index


def _max_pool_forward(array, size):
    largest, index = _largest(array, size)
    return largest, (index, array.shape)


def _max_pool_backward(size, residuals, grad):
    index, shape = residuals
    pixels = jnp.arange(size * size, dtype=_index_type(size))
    pixels = pixels.reshape(size, 1, size, 1)
    chosen = index[:, :, None, :, None] == pixels
    windows = jnp.where(chosen, grad[:, :, None, :, None], 0)
    height, width = (length * size for length in grad.shape[1:3])
    array = windows.reshape(shape[0], height, width, shape[3])
    fill = [(0, 0), (0, shape[1] - height), (0, shape[2] - width), (0, 0)]
    return (jnp.pad(array, fill),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
