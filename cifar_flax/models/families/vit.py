"""Vision transformers: attention between patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.models.families.blocks import Mlp, patches


class ViT(nn.Module):
    """Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929.

    On patches x [P, C] plus learned positions: ``x <- x + attention(norm(x))``, then
    ``x <- x + mlp(norm(x))``; each head of the attention computes
    ``softmax(q k^T / sqrt(d)) v``, mlp is ``W2 gelu(W1 x)`` with four times the width,
    and norm is layer norm. Faithful: the blocks and the last norm. Scaled: width 64 in
    four heads and five blocks for 768 and twelve of each; patches of 4x4, so that there
    are 64; the mean of the patches for a class token (Beyer et al. 2022,
    https://arxiv.org/abs/2205.01580); no dropout.

    Attributes:
      num_classes: number of logits.
      width: channels.
      depth: blocks.
      heads: of the attention.
      patch: height and width of a patch, in pixels.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    width: int = 64
    depth: int = 5
    heads: int = 4
    patch: int = 4
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""

        def norm(x: jax.Array) -> jax.Array:
            return nn.LayerNorm(dtype=self.dtype)(x)

        x = patches(x, self.width, self.patch, self.dtype)
        draw = nn.initializers.normal(0.02)
        positions = self.param("positions", draw, (1, *x.shape[1:]))
        x = x + positions.astype(x.dtype)
        for _ in range(self.depth):
            attention = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)
            x = x + attention(norm(x))
            x = x + Mlp(4 * self.width, dtype=self.dtype)(norm(x))
        head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
        return head(norm(x).mean(1)).astype(jnp.float32)
