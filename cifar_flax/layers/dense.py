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
      use_bias: adds the bias.
      dtype: type of the computation; parameters stay float32. None: the input's.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., features]."""
        init = fan_in_uniform(inputs.shape[-1])
        kernel = self.param("kernel", init, (inputs.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,)) if self.use_bias else None
        inputs, kernel, bias = nn.dtypes.promote_dtype(
            inputs, kernel, bias, dtype=self.dtype
        )
        outputs = inputs @ kernel
        return outputs if bias is None else outputs + bias
