"""Batch normalisation with an explicit ``batch_stats`` collection."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.layers.tiled_norm import batch_normalise
from cifar_flax.layers.tiles import Images, Tiles

Array = jax.Array


def batch_statistics(
    inputs: Array, axis_name: str | None = None
) -> tuple[Array, Array]:
    """Mean and biased variance of each channel, stable even when |mean| >> std.

    ``mean = c + E[x - c]`` and ``var = E[(x - c)^2] - E[x - c]^2``, with the mean of
    the first example as the shift c. Without it the two terms of the variance cancel
    in float32 as soon as ``mean / std`` exceeds about 1e3; with it both come from one
    pass over the inputs.

    Args:
      inputs: [N, ..., C].
      axis_name: mapped axis over which the batch is spread as well, if any.

    Returns:
      Mean and variance, float32 [C].
    """
    inputs = inputs.astype(jnp.float32)
    axes = tuple(range(inputs.ndim - 1))
    shift = inputs[0].mean(axis=axes[:-1])
    if axis_name is not None:
        shift = lax.pmean(shift, axis_name)
    shift = lax.stop_gradient(shift)
    centred = inputs - shift
    mean, mean_square = centred.mean(axes), jnp.square(centred).mean(axes)
    if axis_name is not None:
        mean, mean_square = lax.pmean((mean, mean_square), axis_name)
    return shift + mean, jnp.maximum(mean_square - jnp.square(mean), 0.0)


class BatchNorm(nn.Module):
    """Normalises each channel over the batch and all positions.

    ``y = scale * (x - mean) / sqrt(var + epsilon) + bias``

    In training, mean and var are those of the batch (Ioffe and Szegedy 2015), and the
    running statistics in the collection ``batch_stats`` move towards them:
    ``running = momentum * running + (1 - momentum) * batch``. In evaluation, or always
    where ``frozen``, the running statistics normalise. Variances are biased, in both
    places, so that ``momentum=0`` evaluates with just what the last batch trained with.
    A channel that is constant over the batch comes out as ``bias``, with finite
    gradients.

    In a compiled program over a sharded batch the statistics are those of the whole
    batch; inside ``shard_map`` or ``pmap`` they are where ``axis_name`` is given.

    Attributes:
      momentum: share of the running statistics that a step keeps; 0 keeps those of the
        last batch alone.
      epsilon: added to the variance.
      use_scale: False: there is no parameter scale, and 1 stands for it.
      frozen: also train with the running statistics, and never update them.
      dtype: type of the result; statistics and parameters are float32. None: the
        input's.
      axis_name: mapped axis over which the batch is spread, if any.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    frozen: bool = False
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: Images, *, train: bool) -> Images:
        """Normalises [N, ..., C] or tiles; updates ``batch_stats`` where ``train``."""
        channels = inputs.shape[-1:]
        scale = jnp.ones(channels)
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)

        def normalise(array: Array, mean: Array, var: Array) -> Array:
            centred = array.astype(jnp.float32) - mean
            return centred * (lax.rsqrt(var + self.epsilon) * scale) + bias

        tiles = isinstance(inputs, Tiles)
        if not train or self.frozen:
            mean, var = running_mean.value, running_var.value
            if tiles:
                scale, bias, mean, var = (v[:, None] for v in (scale, bias, mean, var))
                return inputs.map(lambda array: normalise(array, mean, var))
            return normalise(inputs, mean, var).astype(self.dtype or inputs.dtype)

        outputs: Images
        if tiles and self.axis_name is None:
            outputs, mean, var = batch_normalise(inputs, scale, bias, self.epsilon)
        else:
            array = inputs.images if tiles else inputs
            # While the variables are made there is no mapped axis and no update.
            axis_name = None if self.is_initializing() else self.axis_name
            mean, var = batch_statistics(array, axis_name)
            outputs = normalise(array, mean, var).astype(self.dtype or inputs.dtype)
            outputs = Tiles.of(outputs) if tiles else outputs
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var
        return outputs
