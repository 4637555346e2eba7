"""Convolutions with batch normalisation."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import BatchNorm, Conv, Dense, global_max_pool


class ConvReluNorm(nn.Module):
    """Convolution without bias, ReLU, batch norm: the lesson's BnLayer.

    The norm comes after the ReLU, on purpose.

    Attributes:
      features: output channels.
      kernel_size: of the convolution, in pixels.
      stride: of the convolution, in pixels.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters are float32.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to [N, H', W', features]; the padding is always 1."""
        conv = Conv(
            self.features,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=1,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )
        norm = self.norm(dtype=self.dtype, name="norm")
        return norm(nn.relu(conv(x)), train=train)


class ConvBnNet(nn.Module):
    """A 5x5 stem without ReLU or norm, and then stages of ConvReluNorm layers.

    Attributes:
      num_classes: number of logits.
      features: output channels of the stem and of each stage.
      blocks: ConvReluNorm layers in a stage; the first has stride 2, the others 1.
        ``blocks=1`` is the lesson's ConvBnNet, ``blocks=2`` its ConvBnNet2.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    features: Sequence[int] = (10, 20, 40, 80, 160)
    blocks: int = 1
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""
        stem, *stages = self.features
        conv = Conv(stem, kernel_size=5, padding=2, dtype=self.dtype, name="stem")
        x = conv(images)
        for i, width in enumerate(stages):
            for j in range(self.blocks):
                block = ConvReluNorm(
                    width,
                    stride=1 if j else 2,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"stage{i}_block{j}",
                )
                x = block(x, train=train)
        x = global_max_pool(x)
        logits = Dense(self.num_classes, dtype=self.dtype, name="head")(x)
        return logits.astype(jnp.float32)
