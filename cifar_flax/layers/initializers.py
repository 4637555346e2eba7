"""Initial distributions of kernels and biases."""

import jax
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
