"""Networks of dense layers only."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.models.families.blocks import Mlp, patches


class MlpMixer(nn.Module):
    """Tolstikhin et al. 2021, https://arxiv.org/abs/2105.01601.

    On patches x [P, C]: ``x <- x + mlp(norm(x)^T)^T`` along the patches, then
    ``x <- x + mlp(norm(x))`` along the channels; mlp is ``W2 gelu(W1 x)`` with biases,
    norm is layer norm. Faithful: the blocks, their hidden layers of half and of four
    times the width, the last norm, the mean over the patches. Scaled: width 80 and five
    blocks for 512 and eight; patches of 4x4, so that there are 64.

    Attributes:
      num_classes: number of logits.
      width: channels.
      depth: blocks.
      patch: height and width of a patch, in pixels.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    width: int = 80
    depth: int = 5
    patch: int = 4
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""

        def norm(x: jax.Array) -> jax.Array:
            return nn.LayerNorm(dtype=self.dtype)(x)

        x = patches(x, self.width, self.patch, self.dtype)
        for _ in range(self.depth):
            y = Mlp(self.width // 2, dtype=self.dtype)(norm(x).swapaxes(1, 2))
            x = x + y.swapaxes(1, 2)
            x = x + Mlp(4 * self.width, dtype=self.dtype)(norm(x))
        head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
        return head(norm(x).mean(1)).astype(jnp.float32)
