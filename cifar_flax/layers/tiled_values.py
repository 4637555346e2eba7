"""Arrays in tiles, and arrays that are spread over axes, which stand for others."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.layers.native import primitives
from cifar_flax.layers.native.primitives import TILE

Array = jax.Array


@dataclasses.dataclass(eq=False)
class Tiled:
    """An array with a batch of N images along one axis, stored in tiles.

    Attributes:
      array: [N / 16, *rest, 16]; the other axes in their order.
      axis: of the batch in the array that it stands for.
      factors: two tiled arrays whose product it is, if that is known.
      scaled: another one, a factor f and a shift s, each for a channel or for all, if
        it is known to be f * (other - s); no shift is None.
      again: the same computed once more; see ``take``.
    """

    array: Array
    axis: int
    factors: tuple["Tiled", "Tiled"] | None = None
    scaled: tuple["Tiled", Any, Any] | None = None
    again: Array | None = None

    def take(self) -> Array:
        """Returns ``again`` the first time, if there is one, and then ``array``.

        The first to use an array is the forward pass.
        """
        array, self.again = self.array if self.again is None else self.again, None
        return array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that it stands for."""
        tiles, *rest, _ = self.array.shape
        return (*rest[: self.axis], tiles * TILE, *rest[self.axis :])

    def place(self, axis: int) -> int:
        """Returns the axis of ``array`` for another axis than the batch."""
        return axis + 1 if axis < self.axis else axis

    def plain(self) -> Array:
        """Returns the array that it stands for."""
        tiles, *rest, _ = self.array.shape
        flat = self.array.reshape(tiles, 1, 1, math.prod(rest), TILE)
        images = primitives.untile(flat, tiles * TILE)
        return jnp.moveaxis(images.reshape(-1, *rest), 0, self.axis)


@dataclasses.dataclass(eq=False)
class Spread:
    """An array that is the same along all axes but those of a smaller array.

    Attributes:
      array: the smaller array.
      shape: of the array that it stands for.
      axes: where the axes of ``array`` are among those.
    """

    array: Array
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def plain(self) -> Array:
        """Returns the array that it stands for."""
        return lax.broadcast_in_dim(self.array, self.shape, self.axes)

    def tiled(self, axis: int) -> Array | None:
        """Returns it in tiles, or None if it differs between images."""
        array, axes = self.array, self.axes
        if axis in axes:
            at = axes.index(axis)
            if array.shape[at] != 1:
                return None
            array = array.reshape([n for k, n in enumerate(array.shape) if k != at])
            axes = tuple(a for a in axes if a != axis)
        rest = [n for k, n in enumerate(self.shape) if k != axis]
        shape = (self.shape[axis] // TILE, *rest, TILE)
        places = tuple(a + 1 if a < axis else a for a in axes)
        return lax.broadcast_in_dim(array, shape, places)


Value = Any  # Array, Tiled or Spread


def plain(value: Value) -> Array:
    """Returns the array that a value stands for."""
    return value.plain() if isinstance(value, Tiled | Spread) else value


class Tiler:
    """Makes tiles of arrays, each only once.

    Attributes:
      of_product: whether what is computed is only a factor of products of arrays.
    """

    def __init__(self):
        """Has none."""
        self.of_product = False
        self._tiles: dict[tuple[int, int], tuple[Array, Tiled]] = {}
        self._sums: dict[tuple[int, ...], tuple[Any, tuple[Array, Array]]] = {}

    def tiled(self, value: Value, axis: int) -> Tiled | None:
        """Returns an array in tiles along an axis; None if it has no such tiles."""
        if isinstance(value, Tiled):
            return value if value.axis == axis else self.tiled(value.plain(), axis)
        if isinstance(value, Spread):
            array = value.tiled(axis)
            return (
                self.tiled(value.plain(), axis) if array is None else Tiled(array, axis)
            )
        if value.shape[axis] % TILE or value.size == 0:
            return None
        key = id(value), axis
        if key not in self._tiles:
            images = jnp.moveaxis(value, axis, 0)
            count, *rest = images.shape
            flat = primitives.tile(images.reshape(count, 1, 1, math.prod(rest)))
            array = flat.reshape(-1, *rest, TILE)
            self._tiles[key] = value, Tiled(array, axis)
        return self._tiles[key][1]

    def channel_sums(self, u: Tiled, v: Tiled) -> tuple[Array, Array]:
        """Returns the sums of u, and of u * v, over all axes but the last.

        What is another array times a factor is not read: so batch norm and its gradient
        read the images, and their gradient, but nothing that follows from them.
        """
        u, u_factor, u_shift = u.scaled or (u, 1.0, None)
        v, v_factor, v_shift = v.scaled or (v, 1.0, None)
        key = id(u.array), id(v.array), id(u_shift), id(v_shift)
        if key not in self._sums:
            tiles, *rest, channels, _ = u.array.shape
            shape = (tiles, math.prod(rest), 1, channels, TILE)
            a, b = (
                jnp.broadcast_to(0.0 if shift is None else shift, (channels,))
                for shift in (u_shift, v_shift)
            )
            sums = primitives.channel_sums(
                u.array.reshape(shape), v.array.reshape(shape), a, b, tiles * TILE
            )
            self._sums[key] = (u, v, u_shift, v_shift), sums
        first, second = self._sums[key][1]
        return first * u_factor, second * (u_factor * v_factor)
