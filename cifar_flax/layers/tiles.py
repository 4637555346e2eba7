"""Images in tiles of 16, the form in which a CPU's kernels convolve them."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax

from cifar_flax.layers.native import primitives


@jax.tree_util.register_pytree_node_class
class Tiles:
    """A batch of images [N, H, W, C] as [ceil(N / 16), H, W, C, 16].

    Lane l of tile t is image 16*t + l; lanes without an image hold anything finite, and
    count for nothing. XLA would transpose an array between each two convolutions; so
    the layers of a model hand this from one to the next.

    Attributes:
      array: [ceil(N / 16), H, W, C, 16].
      count: N.
    """

    def __init__(self, array: jax.Array, count: int):
        """Wraps an array of this form."""
        self.array, self.count = array, count

    @classmethod
    def of(cls, images: jax.Array) -> "Tiles":
        """Images as tiles."""
        return cls(primitives.tile(images), images.shape[0])

    @property
    def images(self) -> jax.Array:
        """[N, H, W, C]."""
        return primitives.untile(self.array, self.count)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return (self.count, *self.array.shape[1:-1])

    @property
    def dtype(self) -> jax.numpy.dtype:
        """Type of the pixels."""
        return self.array.dtype

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "Tiles":
        """The tiles after a function that treats all pixels alike."""
        return Tiles(function(self.array), self.count)

    def __add__(self, other: "Tiles") -> "Tiles":
        return Tiles(self.array + other.array, self.count)

    def tree_flatten(self):
        """As JAX asks for it."""
        return (self.array,), self.count

    @classmethod
    def tree_unflatten(cls, count, children):
        """As JAX asks for it."""
        return cls(children[0], count)


# jax.Array [N, H, W, C], or Tiles.
Images: TypeAlias = Any


def relu(images: Images) -> Images:
    """``max(0, x)`` of images or tiles."""
    return on_array(nn.relu, images)


def gelu(images: Images) -> Images:
    """``x * Phi(x)`` of images or tiles, with the normal distribution function Phi."""
    return on_array(functools.partial(nn.gelu, approximate=False), images)


def on_array(function: Callable[[jax.Array], jax.Array], images: Images) -> Images:
    """Calls a function that leaves the last axes as they are, with either form."""
    return images.map(function) if isinstance(images, Tiles) else function(images)


def on_images(layer: Callable[..., jax.Array], images: Images, **settings) -> Images:
    """Calls a layer that knows images alone, with tiles too."""
    if isinstance(images, Tiles):
        return Tiles.of(layer(images.images, **settings))
    return layer(images, **settings)
