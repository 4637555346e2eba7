"""Convolutional networks with the details of transformers."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.models.families.blocks import Mlp


class ConvNeXt(nn.Module):
    """Liu et al. 2022, https://arxiv.org/abs/2201.03545.

    ``x <- x + s * (W2 gelu(W1 norm(D x)))``: D is a depthwise 7x7 convolution, norm is
    layer norm, W1 and W2 are dense layers to four times the width and back, and the
    layer scale s begins at 1e-6. Before a stage there are a norm and a 2x2 convolution
    of stride 2. Faithful: these, and the last norm after the mean. Scaled: patches of
    2x2 pixels for 4x4, three stages for four, a quarter of the widths, and no
    stochastic depth.

    Attributes:
      num_classes: number of logits.
      widths: channels of each stage.
      blocks: in each stage.
      depthwise: False: D is a usual convolution.
      layer_scale: first value of s.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    widths: Sequence[int] = (24, 48, 96)
    blocks: Sequence[int] = (2, 4, 2)
    depthwise: bool = True
    layer_scale: float = 1e-6
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""

        def norm(x: jax.Array) -> jax.Array:
            return nn.LayerNorm(dtype=self.dtype)(x)

        first = nn.initializers.constant(self.layer_scale)
        for i, width in enumerate(self.widths):
            x = norm(x) if i > 0 else x
            x = nn.Conv(width, (2, 2), 2, "VALID", dtype=self.dtype)(x)
            x = x if i > 0 else norm(x)
            groups = width if self.depthwise else 1
            for j in range(self.blocks[i]):
                y = nn.Conv(
                    width,
                    (7, 7),
                    padding=3,
                    feature_group_count=groups,
                    dtype=self.dtype,
                )(x)
                y = Mlp(4 * width, dtype=self.dtype)(norm(y))
                scale = self.param(f"stage{i}_scale{j}", first, (width,))
                x = x + scale.astype(y.dtype) * y
        head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
        return head(norm(x.mean((1, 2)))).astype(jnp.float32)
