"""Residual networks whose blocks have two 3x3 convolutions."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers import BatchNorm


class ResidualNet(nn.Module):
    """A stem, stages of residual blocks, a mean over the pixels, a dense layer.

    ``resnet18`` (He et al. 2016, https://arxiv.org/abs/1512.03385) is whole, with the
    3x3 stem usual for 32 pixels: ``x <- relu(S x + norm(W2 relu(norm(W1 x))))``.
    ``preact`` (He et al. 2016, https://arxiv.org/abs/1603.05027) is this network with
    12 to 96 channels and norms first: ``x <- S x + W2 relu(norm(W1 relu(norm(x))))``.
    ``wide`` (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146) is
    ``preact`` with half of its blocks, 1.5 times as wide: as many operations. Scaled:
    four stages for the paper's three. S is the identity or, where the shape changes, a
    1x1 convolution, with a norm behind it or, in ``preact``, the block's first before.

    Attributes:
      num_classes: number of logits.
      widths: channels of each stage; all but the first begin with a stride of 2.
      blocks: in a stage.
      preactivation: whether norm and ReLU come before a convolution.
      residual: False: without S, a plain network of the same 3x3 convolutions.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    widths: Sequence[int] = (64, 128, 256, 512)
    blocks: int = 2
    preactivation: bool = False
    residual: bool = True
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""

        def conv(x: jax.Array, width: int, size: int = 3, stride: int = 1) -> jax.Array:
            kernel, pad = (size, size), size // 2
            layer = nn.Conv(
                width, kernel, stride, pad, use_bias=False, dtype=self.dtype
            )
            return layer(x)

        def norm(x: jax.Array) -> jax.Array:
            return self.norm(dtype=self.dtype)(x, train=train)

        before = self.preactivation
        x = conv(x, self.widths[0])
        x = x if before else nn.relu(norm(x))
        for i, width in enumerate(self.widths):
            for j in range(self.blocks):
                stride = 2 if i > 0 and j == 0 else 1
                normed = nn.relu(norm(x)) if before else x
                y = nn.relu(norm(conv(normed, width, 3, stride)))
                y = conv(y, width) if before else norm(conv(y, width))
                if self.residual:
                    if stride > 1:
                        x = conv(normed, width, 1, stride)
                        x = x if before else norm(x)
                    y = x + y
                x = y if before else nn.relu(y)
        x = nn.relu(norm(x)) if before else x
        head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
        return head(x.mean((1, 2))).astype(jnp.float32)
