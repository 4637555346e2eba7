"""Batch norm and biases of tiles, with gradients of few passes over memory.

Autodiff's own gradients are right, but XLA takes each of their sums over a channel in a
pass of its own, which costs more than the convolution between two norms.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.layers.native.primitives import channel_sums

Array = jax.Array


@jax.custom_vjp
def add_bias(array: Array, bias: Array) -> Array:
    """Adds [C] to tiles [T, H, W, C, 16]."""
    return array + bias[:, None]


def _add_bias_forward(array, bias):
    return add_bias(array, bias), None


def _add_bias_backward(_, grad):
    zeros = jnp.zeros(grad.shape[3], grad.dtype)
    return grad, channel_sums(grad, grad, zeros, zeros)[0]


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_normalise(
    array: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array, Array]:
    """Normalises by the statistics of the batch.

    ``y = scale * (x - mean) / sqrt(var + epsilon) + bias``

    Args:
      array: x, float32 tiles [T, H, W, C, 16].
      scale: [C].
      bias: [C].
      epsilon: see above.

    Returns:
      y, and the batch's mean and biased variance, [C]; see ``batch_statistics``.
    """
    return _forward(array, scale, bias, epsilon)[0]


def _forward(array, scale, bias, epsilon):
    count = array.size // array.shape[3]
    shift = array[0].mean((0, 1, 3))
    first, second = channel_sums(array, array, shift, shift)
    mean = shift + first / count
    var = jnp.maximum(second / count - jnp.square(first / count), 0.0)
    inverse = lax.rsqrt(var + epsilon)
    outputs = (array - mean[:, None]) * (inverse * scale)[:, None] + bias[:, None]
    return (outputs, mean, var), (array, mean, inverse, scale)


def _backward(epsilon, residuals, grads):
    """Gradients of array, scale and bias.

    With ``r = 1 / sqrt(var + epsilon)`` and means over the batch,

    ``dx = r * scale * (dy - mean(dy) - r^2 * (x - mean) * mean(dy * (x - mean)))``

    and, through the statistics, ``(dmean + 2 * (x - mean) * dvar) / n``.
    """
    array, mean, inverse, scale = residuals
    grad, mean_grad, var_grad = grads
    count = array.size // array.shape[3]
    total, product = channel_sums(grad, array, jnp.zeros_like(mean), mean)
    factor = inverse * scale
    constant = (mean_grad - factor * total) / count
    slope = (2 * var_grad - factor * jnp.square(inverse) * product) / count
    array_grad = (
        factor[:, None] * grad
        + slope[:, None] * (array - mean[:, None])
        + constant[:, None]
    )
    return array_grad, inverse * product, total


batch_normalise.defvjp(_forward, _backward)
