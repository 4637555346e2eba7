"""The fully connected network."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import Dense


class SimpleNet(nn.Module):
    """Dense layers on the flattened images, with ReLU between them.

    Attributes:
      num_classes: number of logits.
      features: width of each hidden layer.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    features: Sequence[int] = (40,)
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""
        del train  # the same in training and in evaluation
        x = images.reshape(images.shape[0], math.prod(images.shape[1:]))
        for i, width in enumerate(self.features):
            x = nn.relu(Dense(width, dtype=self.dtype, name=f"hidden{i}")(x))
        logits = Dense(self.num_classes, dtype=self.dtype, name="head")(x)
        return logits.astype(jnp.float32)
