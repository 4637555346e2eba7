"""Initialisers of kernels and biases."""

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer


def fan_in_uniform(fan_in: int) -> Initializer:
    """Makes an initialiser, uniform on ``[-1/sqrt(fan_in), +1/sqrt(fan_in)]``.

    This is PyTorch's default for the kernels and biases of its linear and convolution
    layers. For kernels it equals ``variance_scaling(1/3, "fan_in", "uniform")``. The
    shape of a bias does not show the fan-in, so the caller has to give it.

    Args:
      fan_in: number of inputs of one output unit; for a convolution
        height * width * channels. Without inputs, all values are 0, as in PyTorch.

    Returns:
      An initialiser ``(key, shape, dtype) -> array``.
    """
    limit = fan_in**-0.5 if fan_in else 0.0

    def init(key, shape, dtype=jax.numpy.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def partial_identity(key, shape, dtype=jnp.float32, out_sharding=None):
    """Initialises a convolution's kernel [K, K, C, F] to copy its C input channels.

    The first ``min(C, F)`` output channels copy the input channels, through a one in
    the middle of the kernel. The others are drawn from ``fan_in_uniform``.

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
