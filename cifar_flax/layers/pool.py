"""Pooling."""

import jax
import jax.numpy as jnp


def global_max_pool(images: jax.Array) -> jax.Array:
    """The largest value of each channel: [N, H, W, C] -> [N, C].

    The gradient goes to the first position of the maximum, as in PyTorch. It is found
    by its index: ``max`` itself finds it by comparing the input with the result, and
    where XLA computes the input twice, rounded differently, nothing is equal and the
    gradient is 0 / 0.
    """
    pixels = images.reshape(images.shape[0], -1, images.shape[-1])
    index = jax.lax.stop_gradient(pixels).argmax(axis=1)
    chosen = jnp.arange(pixels.shape[1])[:, None] == index[:, None]
    return jnp.where(chosen, pixels, 0).sum(axis=1)
