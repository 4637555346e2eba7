"""What several families are made of."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import BatchNorm


class ConvNorm(nn.Module):
    """A convolution without bias, and a norm.

    Attributes:
      features: output channels.
      size: height and width of the kernel; the padding is half of it.
      stride: of the convolution, in pixels.
      groups: an output channel sees the inputs of its group only.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters are float32.
    """

    features: int
    size: int = 3
    stride: int = 1
    groups: int = 1
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, features]."""
        x = nn.Conv(
            self.features,
            (self.size, self.size),
            self.stride,
            padding=self.size // 2,
            feature_group_count=self.groups,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )(x)
        return self.norm(dtype=self.dtype, name="norm")(x, train=train)


def patches(x: jax.Array, width: int, size: int, dtype: jnp.dtype | None) -> jax.Array:
    """Maps [N, H, W, C] to [N, P, width], a linear map of each of P square patches.

    It is a layer of the module that calls it.

    Args:
      x: the images.
      width: channels of the result.
      size: height and width of a patch, in pixels.
      dtype: computation dtype.
    """
    x = nn.Conv(width, (size, size), (size, size), "VALID", dtype=dtype)(x)
    return x.reshape(len(x), -1, width)


def gelu(x: jax.Array) -> jax.Array:
    """Returns ``x * Phi(x)``; Phi is the distribution function of the normal."""
    return nn.gelu(x, approximate=False)


class Mlp(nn.Module):
    """``W2 gelu(W1 x + b1) + b2`` along the last axis.

    Attributes:
      hidden: length of the hidden layer.
      dtype: computation dtype; parameters are float32.
    """

    hidden: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Keeps the shape [..., C]."""
        y = gelu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y)
