"""Residual networks."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import BatchNorm, Conv, Dense, global_max_pool
from cifar_flax.models.convbn import ConvReluNorm


class ResNet(nn.Module):
    """Stages of one strided ConvReluNorm, followed by residual blocks ``x + f(x)``.

    In a residual block, f is one ConvReluNorm; no ReLU follows the sum.

    Attributes:
      num_classes: number of logits.
      features: output channels of the stem and of each stage.
      residuals: residual blocks in a stage, after the strided layer.
      norm_stem: False: the stem is a 5x5 convolution with bias and padding 2 (the
        lesson's Resnet). True: it is a 7x7 ConvReluNorm, whose padding is also 1, so
        that 32 pixels become 28 (its Resnet2).
      dropout_rate: dropout rate of the features before the head.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    features: Sequence[int] = (10, 20, 40, 80, 160)
    residuals: int = 2
    norm_stem: bool = False
    dropout_rate: float = 0.0
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""

        def block(width: int, name: str, **settings) -> ConvReluNorm:
            return ConvReluNorm(
                width, norm=self.norm, dtype=self.dtype, name=name, **settings
            )

        stem, *stages = self.features
        if self.norm_stem:
            x = block(stem, "stem", kernel_size=7)(images, train=train)
        else:
            conv = Conv(stem, kernel_size=5, padding=2, dtype=self.dtype, name="stem")
            x = conv(images)
        for i, width in enumerate(stages):
            x = block(width, f"stage{i}_down", stride=2)(x, train=train)
            for j in range(self.residuals):
                x = x + block(width, f"stage{i}_residual{j}")(x, train=train)
        x = global_max_pool(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        logits = Dense(self.num_classes, dtype=self.dtype, name="head")(x)
        return logits.astype(jnp.float32)
