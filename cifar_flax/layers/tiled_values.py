"""Arrays in tiles, and arrays that are spread over axes, which stand for others."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.layers.forms import FEW_IMAGES
from cifar_flax.layers.native import primitives
from cifar_flax.layers.native.primitives import TILE

Array = jax.Array


@dataclasses.dataclass(eq=False)
class Tiled:
    """An array with a batch of N images along one axis, stored in tiles.

    Lane l of tile t is image 16 * t + l. Lanes without an image hold any values, which
    do not count.

    Attributes:
      array: [ceil(N / 16), *rest, 16]; the other axes in their order.
      axis: of the batch in the array that it stands for.
      count: N.
      factors: two tiled arrays whose product it is, if that is known.
      scaled: another one, a factor f and a shift s, each for a channel or for all, if
        it is known to be f * (other - s); no shift is None.
      again: the same computed once more; see ``take``.
    """

    array: Array
    axis: int
    count: int
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
        _, *rest, _ = self.array.shape
        return (*rest[: self.axis], self.count, *rest[self.axis :])

    def place(self, axis: int) -> int:
        """Returns the axis of ``array`` for another axis than the batch."""
        return axis + 1 if axis < self.axis else axis

    def plain(self) -> Array:
        """Returns the array that it stands for."""
        tiles, *rest, _ = self.array.shape
        flat = self.array.reshape(tiles, *_three_axes(rest), TILE)
        images = primitives.untile(flat, self.count)
        return jnp.moveaxis(images.reshape(-1, *rest), 0, self.axis)


def _three_axes(shape: list[int]) -> tuple[int, ...]:
    """Returns the shape that ``primitives.tile`` takes an image in.

    With the shape of images as it is, XLA writes faster loops around that.
    """
    return tuple(shape) if len(shape) == 3 else (1, 1, math.prod(shape))


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
        shape = (-(-self.shape[axis] // TILE), *rest, TILE)
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
      partner: another array, if sums of products with it are needed, too.
    """

    def __init__(self):
        """Has none."""
        self.of_product = False
        self.partner: Value = None
        self._tiles: dict[tuple[int, int], tuple[Array, Tiled]] = {}
        self._sums: list[_Sums] = []

    def tiled(self, value: Value, axis: int) -> Tiled | None:
        """Returns an array in tiles along an axis; None if it has no such tiles."""
        if isinstance(value, Tiled):
            return value if value.axis == axis else self.tiled(value.plain(), axis)
        if isinstance(value, Spread):
            array = value.tiled(axis)
            if array is None:
                return self.tiled(value.plain(), axis)
            return Tiled(array, axis, value.shape[axis])
        if value.shape[axis] < FEW_IMAGES or value.size == 0:
            return None
        key = id(value), axis
        if key not in self._tiles:
            images = jnp.moveaxis(value, axis, 0)
            count, *rest = images.shape
            array = primitives.tile(images.reshape(count, *_three_axes(rest)))
            array = array.reshape(-1, *rest, TILE)
            self._tiles[key] = value, Tiled(array, axis, count)
        return self._tiles[key][1]

    def sum_by_channel(self, value: Tiled) -> Array:
        """Returns the sums over all axes but the last, [C]."""
        u = _Read.of(value)
        for sums in self._sums:
            if u == sums.u:
                return sums.first * u.factor
        partner = self.partner
        if not isinstance(partner, Tiled) or partner.array.shape != value.array.shape:
            partner = value
        return self._sum(u, _Read.of(partner)).first * u.factor

    def product_by_channel(self, one: Tiled, other: Tiled) -> Array:
        """Returns the sums of the products over all axes but the last, [C]."""
        u, v = _Read.of(one), _Read.of(other)
        for sums in self._sums:
            if (u, v) in ((sums.u, sums.v), (sums.v, sums.u)):
                return sums.second * (u.factor * v.factor)
        return self._sum(u, v).second * (u.factor * v.factor)

    def _sum(self, u: "_Read", v: "_Read") -> "_Sums":
        tiles, *rest, channels, _ = u.tiled.array.shape
        shape = (tiles, math.prod(rest), 1, channels, TILE)
        a, b = (
            jnp.broadcast_to(0.0 if one.shift is None else one.shift, (channels,))
            for one in (u, v)
        )
        first, second = primitives.channel_sums(
            u.tiled.array.reshape(shape),
            v.tiled.array.reshape(shape),
            *(a, b, u.tiled.count),
        )
        sums = _Sums(u, v, first, second)
        self._sums.append(sums)
        return sums


@dataclasses.dataclass(eq=False)
class _Read:
    """What is read for the sums of f * (x - s), where x is tiled.

    What is another array times a factor is not read itself: so batch norm and its
    gradient read the images, and their gradient, but nothing that follows from them.
    """

    tiled: Tiled
    factor: Any
    shift: Any

    @classmethod
    def of(cls, value: Tiled) -> "_Read":
        return cls(*(value.scaled or (value, 1.0, None)))

    def __eq__(self, other: Any) -> bool:
        same = self.tiled.array is other.tiled.array
        return same and self.shift is other.shift


class _Sums(NamedTuple):
    """The sums of u, and of u * v, without their factors."""

    u: _Read
    v: _Read
    first: Array
    second: Array
