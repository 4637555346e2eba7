"""Pooling."""

import jax
import jax.numpy as jnp

from cifar_flax.layers.tiles import Images, Tiles


def global_max_pool(images: Images) -> jax.Array:
    """The largest value of each channel: [N, H, W, C] -> [N, C].

    The gradient goes to the first position of the maximum, as in PyTorch. It is found
    by its index: ``max`` itself finds it by comparing the input with the result, and
    where XLA computes the input twice, rounded differently, nothing is equal and the
    gradient is 0 / 0.
    """
    array = images.array if isinstance(images, Tiles) else images
    pixels = array.reshape(array.shape[0], -1, *array.shape[3:])
    index = jax.lax.stop_gradient(pixels).argmax(axis=1, keepdims=True)
    positions = jnp.arange(pixels.shape[1]).reshape(-1, *[1] * (pixels.ndim - 2))
    largest = jnp.where(positions == index, pixels, 0).sum(axis=1)
    if isinstance(images, Tiles):  # [T, C, 16]
        return largest.swapaxes(1, 2).reshape(-1, largest.shape[1])[: images.count]
    return largest
