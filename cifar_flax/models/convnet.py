"""Strided convolutions with biases and without normalisation."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import Conv, Dense, global_max_pool


class ConvNet(nn.Module):
    """3x3 convolutions of stride 2 with ReLU, a global max pool, a dense head.

    Attributes:
      num_classes: number of logits.
      features: output channels of each convolution.
      padding: 0 shrinks 32 pixels to 15, 7, 3 (the lesson's ConvNet); 1 shrinks them
        to 16, 8, 4 (its ConvNet2).
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    features: Sequence[int] = (20, 40, 80)
    padding: int = 0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""
        del train  # the same in training and in evaluation
        x = images
        for i, width in enumerate(self.features):
            conv = Conv(
                width, stride=2, padding=self.padding, dtype=self.dtype, name=f"conv{i}"
            )
            x = nn.relu(conv(x))
        x = global_max_pool(x)
        logits = Dense(self.num_classes, dtype=self.dtype, name="head")(x)
        return logits.astype(jnp.float32)
