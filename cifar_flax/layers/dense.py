"""The dense layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.layers.initializers import fan_in_uniform


class Dense(nn.Module):
    """``y = x @ kernel + bias``; ``fan_in_uniform`` initialises both parameters.

    The difference from ``flax.linen.Dense`` is the bias: the initialiser there does not
    know the fan-in.

    Attributes:
      features: number of outputs.
      use_bias: whether to add the bias.
      dtype: computation dtype; None: that of the input. Parameters are float32.
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
