"""Residual networks of grouped convolutions."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import BatchNorm
from cifar_flax.models.families.blocks import ConvNorm


class ResNeXt(nn.Module):
    """Xie et al. 2017, https://arxiv.org/abs/1611.05431.

    ``x <- relu(S x + norm(W3 relu(norm(W2 relu(norm(W1 x))))))``: 1x1, 3x3 in groups,
    1x1. S is the identity or, where the shape changes, a 1x1 convolution and a norm.
    Faithful: the block, with inner channels of half the width and the same number of
    groups in each stage. Scaled: 8 groups of 2 to 16 channels for 32 of 4 to 32, and
    two blocks in each of four stages.

    Attributes:
      num_classes: number of logits.
      widths: channels of each stage; all but the first begin with a stride of 2.
      blocks: in a stage.
      groups: of the 3x3 convolutions; 1: the bottleneck of a ResNet.
      inner: channels of a 3x3 convolution, as a share of the width.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 64, 128, 256)
    blocks: int = 2
    groups: int = 8
    inner: float = 0.5
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""

        def conv(x, width: int, size: int, stride: int = 1, groups: int = 1):
            layer = ConvNorm(width, size, stride, groups, self.norm, self.dtype)
            return layer(x, train=train)

        x = nn.relu(conv(x, self.widths[0], 3))
        for i, width in enumerate(self.widths):
            inner = round(self.inner * width)
            for j in range(self.blocks):
                stride = 2 if i > 0 and j == 0 else 1
                y = nn.relu(conv(x, inner, 1))
                y = nn.relu(conv(y, inner, 3, stride, self.groups))
                y = conv(y, width, 1)
                if x.shape != y.shape:
                    x = conv(x, width, 1, stride)
                x = nn.relu(x + y)
        head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
        return head(x.mean((1, 2))).astype(jnp.float32)
