"""Initial distributions of kernels and biases."""

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer


def fan_in_uniform(fan_in: int) -> Initializer:
    """Uniform on ``[-1/sqrt(fan_in), +1/sqrt(fan_in)]``.

    PyTorch's default for the kernels and biases of its linear and convolution layers.
    For kernels it equals ``variance_scaling(1/3, "fan_in", "uniform")``; a bias has no
    fan-in of its own, so that it has to be given.

    Args:
      fan_in: inputs of one output unit; for a convolution height * width * channels.

    Returns:
      An initialiser ``(key, shape, dtype) -> array``.
    """
    limit = fan_in**-0.5

    def init(key, shape, dtype=jax.numpy.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def partial_identity(key, shape, dtype=jnp.float32, out_sharding=None):
    """A convolution's kernel [K, K, C, F] that passes its C input channels on.

    The first ``min(C, F)`` output channels are copies of the input channels, by a one
    in the middle of the kernel; the others are drawn from ``fan_in_uniform``.

    References:
      Zagoruyko and Komodakis, DiracNets, 2017, https://arxiv.org/abs/1706.00388; for a
      part of the channels Jordan 2024, https://arxiv.org/abs/2404.00498
    """
    del out_sharding
    height, width, inputs, outputs = shape
    same = min(inputs, outputs)
    drawn = fan_in_uniform(height * width * inputs)(key, shape, dtype)
    copies = jnp.zeros((height, width, inputs, same), dtype)
    ones = jnp.eye(inputs, same, dtype=dtype)
    copies = copies.at[height // 2, width // 2].set(ones)
    return drawn.at[..., :same].set(copies)
