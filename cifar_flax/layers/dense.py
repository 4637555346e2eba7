"""The dense layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers.initializers import fan_in_uniform


class Dense(nn.Module):
    """``y = x @ kernel + bias``; both start from ``fan_in_uniform``.

    ``flax.linen.Dense`` but for the bias, whose initialiser there cannot know the
    fan-in.

    Attributes:
      features: outputs.
      dtype: type of the computation; parameters stay float32. None: the input's.
    """

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., features]."""
        init = fan_in_uniform(inputs.shape[-1])
        kernel = self.param("kernel", init, (inputs.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        inputs, kernel, bias = nn.dtypes.promote_dtype(
            inputs, kernel, bias, dtype=self.dtype
        )
        return inputs @ kernel + bias
