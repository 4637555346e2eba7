"""Plain deep networks: convolutions one after the other."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import BatchNorm
from cifar_flax.models.families.blocks import ConvNorm


class Vgg(nn.Module):
    """Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556.

    ``x <- relu(norm(W * x))`` with 3x3 kernels only, and a 2x2 max pool after each
    stage. Faithful: the ten convolutions of the paper's 13 layers, two in each of five
    stages, and the ratio of their widths. Scaled: a quarter of the widths, batch norm
    as in the later versions, and one dense layer on the last pixel for the paper's
    three of 4,096.

    Attributes:
      num_classes: number of logits.
      widths: channels of each stage.
      blocks: convolutions in a stage.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    widths: Sequence[int] = (16, 32, 64, 128, 128)
    blocks: int = 2
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""
        for width in self.widths:
            for _ in range(self.blocks):
                conv = ConvNorm(width, norm=self.norm, dtype=self.dtype)
                x = nn.relu(conv(x, train=train))
            x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
        return logits(x.mean((1, 2))).astype(jnp.float32)
