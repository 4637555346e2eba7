"""Dense networks: each layer sees the outputs of all before it."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import BatchNorm


class DenseNet(nn.Module):
    """Huang et al. 2017, https://arxiv.org/abs/1608.06993, the form DenseNet-BC.

    ``x <- [x, W2 relu(norm(W1 relu(norm(x))))]``: a 1x1 convolution to four times the
    growth, and a 3x3 one to the growth, whose channels are appended. Between stages a
    1x1 convolution halves the channels and a 2x2 mean the pixels. Faithful: this, and
    the stem of twice the growth. Scaled: growth 10 for 12 to 40, and the layers of
    DenseNet-121 (6, 12, 24, 16) divided by three.

    Attributes:
      num_classes: number of logits.
      layers: in each stage.
      growth: channels that a layer appends.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    layers: Sequence[int] = (2, 4, 8, 6)
    growth: int = 10
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""

        def conv(x: jax.Array, width: int, size: int) -> jax.Array:
            kernel, pad = (size, size), size // 2
            layer = nn.Conv(width, kernel, 1, pad, use_bias=False, dtype=self.dtype)
            return layer(x)

        def activate(x: jax.Array) -> jax.Array:
            return nn.relu(self.norm(dtype=self.dtype)(x, train=train))

        x = conv(x, 2 * self.growth, 3)
        for stage, count in enumerate(self.layers):
            if stage > 0:
                x = conv(activate(x), x.shape[-1] // 2, 1)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range(count):
                y = conv(activate(x), 4 * self.growth, 1)
                y = conv(activate(y), self.growth, 3)
                x = jnp.concatenate([x, y], axis=-1)
        head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
        return head(activate(x).mean((1, 2))).astype(jnp.float32)
