"""Depthwise and 1x1 convolutions on patches, in turn."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import BatchNorm
from cifar_flax.models.families.blocks import gelu


class ConvMixer(nn.Module):
    """Trockman and Kolter 2022, https://arxiv.org/abs/2201.09792.

    ``x <- x + norm(gelu(D x))``, then ``x <- norm(gelu(W x))``; D is a depthwise
    convolution and W a 1x1 one, with biases. Faithful: all layers; width 128, depth 8
    and a kernel of 5x5 are among the paper's for CIFAR-10. Scaled: patches of 4x4
    pixels for 1 or 2, which are 4 or 16 times the work.

    Attributes:
      num_classes: number of logits.
      width: channels.
      depth: pairs of convolutions.
      kernel: height and width of D.
      patch: height and width of a patch, in pixels.
      depthwise: False: D is a usual convolution.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    width: int = 128
    depth: int = 8
    kernel: int = 5
    patch: int = 4
    depthwise: bool = True
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""

        def layer(x: jax.Array, size: int, stride: int = 1, groups: int = 1):
            kernel = (size, size)
            padding = 0 if stride > 1 else size // 2
            x = nn.Conv(
                self.width,
                kernel,
                stride,
                padding,
                feature_group_count=groups,
                dtype=self.dtype,
            )(x)
            return self.norm(dtype=self.dtype)(gelu(x), train=train)

        x = layer(x, self.patch, self.patch)
        for _ in range(self.depth):
            x = x + layer(x, self.kernel, 1, self.width if self.depthwise else 1)
            x = layer(x, 1)
        head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
        return head(x.mean((1, 2))).astype(jnp.float32)
