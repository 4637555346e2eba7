"""Batch norm and biases of tiles, with gradients that need few passes over memory.

The gradients of autodiff are correct, but XLA computes each of their sums over a
channel in a separate pass. These passes take longer than the convolution between two
norms.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.layers.native.primitives import TILE, channel_sums
from cifar_flax.layers.tiles import Tiles

Array = jax.Array


@jax.custom_vjp
def add_bias(tiles: Tiles, bias: Array) -> Tiles:
    """Adds a bias [C] to the channels."""
    return tiles.map(lambda array: array + bias[:, None])


def _add_bias_forward(tiles, bias):
    return add_bias(tiles, bias), None


def _add_bias_backward(_, grad):
    zeros = jnp.zeros(grad.shape[-1], grad.dtype)
    total, _ = channel_sums(grad.array, grad.array, zeros, zeros, grad.count)
    return grad, total


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_normalise(
    tiles: Tiles, scale: Array, bias: Array, epsilon: float
) -> tuple[Tiles, Array, Array]:
    """Normalises tiles with the statistics of the batch.

    ``y = scale * (x - mean) / sqrt(var + epsilon) + bias``

    Args:
      tiles: x, float32.
      scale: [C].
      bias: [C].
      epsilon: see above.

    Returns:
      y, and the batch's mean and biased variance, [C]; see ``batch_statistics``.
    """
    return _forward(tiles, scale, bias, epsilon)[0]


def _forward(tiles, scale, bias, epsilon):
    array, (count, height, width, _) = tiles.array, tiles.shape
    # Any shift near the mean is good enough. A mean over more pixels would depend on
    # the number of threads.
    shift = array[0, height // 2, width // 2, :, : min(count, TILE)].mean(-1)
    sums = jnp.stack(channel_sums(array, array, shift, shift, count))
    first, second = sums / (count * height * width)
    mean, var = shift + first, jnp.maximum(second - jnp.square(first), 0.0)
    inverse = lax.rsqrt(var + epsilon)
    centred = array - mean[:, None]
    outputs = Tiles(centred * (inverse * scale)[:, None] + bias[:, None], count)
    return (outputs, mean, var), (tiles, mean, inverse, scale)


def _backward(epsilon, residuals, grads):
    """Computes the gradients of tiles, scale and bias.

    With ``r = 1 / sqrt(var + epsilon)`` and means over the batch,

    ``dx = r * scale * (dy - mean(dy) - r^2 * (x - mean) * mean(dy * (x - mean)))``

    and the returned statistics add ``(dmean + 2 * (x - mean) * dvar) / n``.
    """
    tiles, mean, inverse, scale = residuals
    grad, mean_grad, var_grad = grads
    array, (count, height, width, _) = tiles.array, tiles.shape
    total, product = channel_sums(grad.array, array, jnp.zeros_like(mean), mean, count)
    factor, size = inverse * scale, count * height * width
    constant = (mean_grad - factor * total) / size
    slope = (2 * var_grad - factor * jnp.square(inverse) * product) / size
    centred = array - mean[:, None]
    array_grad = slope[:, None] * centred + constant[:, None]
    if count % TILE:  # lanes without an image are not in the mean
        lanes = jnp.arange(array.shape[0] * TILE).reshape(-1, 1, 1, 1, TILE)
        array_grad = jnp.where(lanes < count, array_grad, 0)
    array_grad += factor[:, None] * grad.array
    return Tiles(array_grad, count), inverse * product, total


batch_normalise.defvjp(_forward, _backward)
