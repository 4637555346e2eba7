"""Images in tiles of 16, the layout that the native CPU kernels use."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax

from cifar_flax.layers.native import primitives


@jax.tree_util.register_pytree_node_class
class Tiles:
    """A batch of images [N, H, W, C], stored as [ceil(N / 16), H, W, C, 16].

    Lane l of tile t is image 16*t + l. Lanes without an image hold any finite values,
    which do not count. The layers of a model pass tiles on, because otherwise XLA would
    transpose the array between any two convolutions.

    Attributes:
      array: [ceil(N / 16), H, W, C, 16].
      count: N.
    """

    def __init__(self, array: jax.Array, count: int):
        """Wraps an array of this layout."""
        self.array, self.count = array, count

    @classmethod
    def of(cls, images: jax.Array) -> "Tiles":
        """Converts images to tiles."""
        return cls(primitives.tile(images), images.shape[0])

    @property
    def images(self) -> jax.Array:
        """The images as an array [N, H, W, C]."""
        return primitives.untile(self.array, self.count)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, H, W, C) of the images."""
        return (self.count, *self.array.shape[1:-1])

    @property
    def dtype(self) -> jax.numpy.dtype:
        """Dtype of the pixels."""
        return self.array.dtype

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "Tiles":
        """Applies a function that treats all pixels in the same way."""
        return Tiles(function(self.array), self.count)

    def __add__(self, other: "Tiles") -> "Tiles":
        return Tiles(self.array + other.array, self.count)

    def tree_flatten(self):
        """Implements JAX's pytree protocol."""
        return (self.array,), self.count

    @classmethod
    def tree_unflatten(cls, count, children):
        """Implements JAX's pytree protocol."""
        return cls(children[0], count)


# jax.Array [N, H, W, C], or Tiles.
Images: TypeAlias = Any


def relu(images: Images) -> Images:
    """Returns ``max(0, x)`` for images or tiles."""
    return on_array(nn.relu, images)


def gelu(images: Images) -> Images:
    """Returns ``x * Phi(x)`` for images or tiles; Phi is the normal CDF."""
    return on_array(functools.partial(nn.gelu, approximate=False), images)


def on_array(function: Callable[[jax.Array], jax.Array], images: Images) -> Images:
    """Applies to images or tiles a function that does not change the last axes."""
    return images.map(function) if isinstance(images, Tiles) else function(images)


def on_images(layer: Callable[..., jax.Array], images: Images, **settings) -> Images:
    """Calls a layer that supports only images; converts tiles for it."""
    if isinstance(images, Tiles):
        return Tiles.of(layer(images.images, **settings))
    return layer(images, **settings)
