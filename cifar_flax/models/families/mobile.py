"""Inverted bottlenecks of depthwise convolutions, and squeeze-and-excitation."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import BatchNorm
from cifar_flax.models.families.blocks import ConvNorm


class MobileNet(nn.Module):
    """``mobile`` is MobileNetV2; ``efficient`` adds squeeze-and-excitation to it.

    Sandler et al. 2018, https://arxiv.org/abs/1801.04381: ``x <- x + norm(W3 d)`` with
    ``d = relu6(norm(D relu6(norm(W1 x))))``. W1 and W3 are 1x1 convolutions to six
    times the channels and back, D is a depthwise 3x3 one. Faithful: the block, the
    first stage without W1, no sum where the shape changes, the wide last layer. Scaled:
    widths, seven stages to four, strides for 32 pixels.

    Of EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946) ``efficient``
    has what it adds to these blocks, squeeze-and-excitation (Hu et al. 2018,
    https://arxiv.org/abs/1709.01507): ``d <- d * sigmoid(V2 relu6(V1 mean(d)))`` before
    W3, where V1 has a quarter of the block's channels. Left out, so that the two nets
    differ in one thing: swish, 5x5 kernels, the joint scaling of all sizes.

    Attributes:
      num_classes: number of logits.
      widths: channels of each stage; all but the first begin with a stride of 2.
      blocks: in each stage.
      expansion: factor of the channels inside a block.
      squeeze: whether there is squeeze-and-excitation.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    widths: Sequence[int] = (16, 24, 40, 80)
    blocks: Sequence[int] = (1, 2, 3, 2)
    expansion: int = 6
    squeeze: bool = False
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""

        def conv(x, width: int, size: int, stride: int = 1, groups: int = 1):
            layer = ConvNorm(width, size, stride, groups, self.norm, self.dtype)
            return layer(x, train=train)

        def gate(y: jax.Array, hidden: int) -> jax.Array:
            s = nn.relu6(nn.Dense(hidden, dtype=self.dtype)(y.mean((1, 2))))
            s = nn.sigmoid(nn.Dense(y.shape[-1], dtype=self.dtype)(s))
            return y * s[:, None, None]

        x = nn.relu6(conv(x, self.widths[0], 3))
        for i, width in enumerate(self.widths):
            for j in range(self.blocks[i]):
                wide = x.shape[-1] * (self.expansion if i > 0 else 1)
                y = nn.relu6(conv(x, wide, 1)) if i > 0 else x
                y = nn.relu6(conv(y, wide, 3, 2 if i > 0 and j == 0 else 1, wide))
                y = gate(y, x.shape[-1] // 4) if self.squeeze else y
                y = conv(y, width, 1)
                x = x + y if x.shape == y.shape else y
        x = nn.relu6(conv(x, 4 * self.widths[-1], 1))
        head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
        return head(x.mean((1, 2))).astype(jnp.float32)
