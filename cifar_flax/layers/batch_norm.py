"""Batch normalisation with an explicit ``batch_stats`` collection."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.errors import UserError

Array = jax.Array


def batch_statistics(
    inputs: Array, axis_name: str | None = None
) -> tuple[Array, Array]:
    """Returns mean and biased variance per channel, stable even if |mean| >> std.

    ``mean = c + E[x - c]`` and ``var = E[(x - c)^2] - E[x - c]^2``, where the shift c
    is the mean of the middle row of the first example. Without the shift, the two terms
    of the variance cancel in float32 if ``mean / std`` exceeds about 1e3. With it, one
    pass over the inputs computes both results.

    Args:
      inputs: [N, ..., C].
      axis_name: mapped axis over which the batch is also split, if any.

    Returns:
      Mean and variance, float32 [C].
    """
    inputs = inputs.astype(jnp.float32)
    axes = tuple(range(inputs.ndim - 1))
    # Any shift near the mean is good enough. A mean over more would be another pass,
    # whose bits would depend on the number of threads.
    middle = (length // 2 for length in inputs.shape[1:-2])
    shift = inputs[(0, *middle)].reshape(-1, inputs.shape[-1]).mean(0)
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

    In training, mean and var are those of the batch (Ioffe and Szegedy 2015), and they
    update the running statistics in the collection ``batch_stats``:
    ``running = momentum * running + (1 - momentum) * batch``. In evaluation, and always
    if ``frozen``, mean and var are the running statistics. Both variances are biased,
    so that evaluation with ``momentum=0`` uses exactly the statistics of the last
    batch. If a channel is constant over the batch, its output is ``bias`` and its
    gradients are finite.

    In a compiled program over a sharded batch the statistics are those of the whole
    batch; inside ``shard_map`` or ``pmap`` this needs an ``axis_name``.

    Attributes:
      momentum: share of the running statistics that a step keeps; with 0 they are
        those of the last batch.
      epsilon: added to the variance.
      use_scale: whether there is a parameter ``scale``; without it the scale is 1.
      frozen: whether training also uses the running statistics and never updates them.
      dtype: dtype of the result; None: that of the input. Statistics and parameters are
        float32.
      axis_name: mapped axis over which the batch is split, if any.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    frozen: bool = False
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        """Normalises [N, ..., C]; updates ``batch_stats`` if ``train``."""
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

        if not train or self.frozen:
            mean, var = running_mean.value, running_var.value
            return normalise(inputs, mean, var).astype(self.dtype or inputs.dtype)

        if inputs.shape[0] == 0:
            raise UserError(
                f"layer {'.'.join(self.path)}: a batch of 0 images has no mean and no "
                "variance; give images, or evaluate with train=False"
            )
        # During initialisation there is no mapped axis and no update.
        axis_name = None if self.is_initializing() else self.axis_name
        mean, var = batch_statistics(inputs, axis_name)
        outputs = normalise(inputs, mean, var).astype(self.dtype or inputs.dtype)
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var
        return outputs
