"""Pad, crop, flip and normalise: pure functions on batches, for use inside ``jit``."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_flax.definitions import (
    MAX_SIDE,
    Definition,
    Hyper,
    between,
    whole,
)
from cifar_flax.errors import UserError
from cifar_flax.own_code import label_of_code, load_code


@dataclasses.dataclass(frozen=True)
class Augmentation(Definition):
    """How training images are varied.

    To add an augmentation, add a field here and the line that applies it, in ``vary``
    or ``mix``; flags, files, records and errors follow from the field.
    """

    padding: Annotated[
        int,
        Hyper(
            "Pixels of border before the random crop; 0: no crop.",
            whole(0, 32, "pixels"),  # CIFAR's width; further out there is no image
            more="A window of the original size is cut out at a uniformly drawn "
            "offset.",
        ),
    ] = 4
    padding_mode: Annotated[
        Literal["symmetric", "constant", "reflect"],
        Hyper(
            "Content of the border.",
            more="In NumPy's terms: ``symmetric`` mirrors the image with its edge "
            "pixel (as the lesson's library did), ``reflect`` mirrors it without the "
            "edge pixel, ``constant`` is black.",
        ),
    ] = "symmetric"
    flip: Annotated[bool, Hyper("Mirror half of the training images.")] = True
    alternate: Annotated[
        bool,
        Hyper(
            "Mirror each image in every second epoch instead of by chance.",
            more="Whether it starts with a flip is random (Jordan 2024, "
            "https://arxiv.org/abs/2404.00498).",
        ),
    ] = False
    cutout: Annotated[
        int,
        Hyper(
            "Cover a square of this side, in pixels, with the mean colour; 0: none.",
            whole(0, MAX_SIDE, "pixels"),
            more="Its centre is random in the image (DeVries and Taylor 2017, "
            "https://arxiv.org/abs/1708.04552).",
        ),
    ] = 0
    brightness: Annotated[
        float,
        Hyper(
            "Make images brighter or darker by up to this share of white.",
            between(0, 1),
        ),
    ] = 0.0
    contrast: Annotated[
        float,
        Hyper(
            "Change the contrast of images by up to this share.",
            between(0, 1),
            more="With c, each image's difference from its mean colour is multiplied "
            "by 1 - c to 1 + c.",
        ),
    ] = 0.0
    mixup: Annotated[
        float,
        Hyper(
            "Alpha of mixup, which mixes two images and their targets; 0: none.",
            between(0, 100),
            more="A batch's share of another image is drawn from Beta(alpha, alpha) "
            "(Zhang et al. 2018, https://arxiv.org/abs/1710.09412).",
        ),
    ] = 0.0
    cutmix: Annotated[
        float,
        Hyper(
            "Alpha of cutmix, which inserts a rectangle of another image; 0: none.",
            between(0, 100),
            more="The area is drawn as for mixup (Yun et al. 2019, "
            "https://arxiv.org/abs/1905.04899). With both, each batch draws one of the "
            "two with equal probability.",
        ),
    ] = 0.0
    augment: Annotated[
        str | Callable[..., jax.Array] | None,
        Hyper(
            "Your own augmentation, as FILE.py:NAME or MODULE:NAME, after the others "
            "and before mixup and cutmix.",
            own=True,
            more="A function ``(key, images, labels) -> images`` of a batch, float32 "
            "[B, H, W, C] with 0 for black and 1 for white.",
        ),
    ] = None
    last_offset: Annotated[
        bool,
        Hyper(
            "Also draw the crop's offset 2 * padding; the lesson's library does not.",
            flag=False,
        ),
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alternate and not self.flip:
            raise UserError("alternate is true and flip is false; set flip to true")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return bool(self.mixup or self.cutmix)

    def __str__(self) -> str:
        border = f"of up to {self.padding} pixels with a {self.padding_mode} border"
        shown = {
            f"shifts {border}": self.padding,
            "flips in every second epoch" if self.alternate else "flips": self.flip,
            f"contrast {self.contrast:g}": self.contrast,
            f"brightness {self.brightness:g}": self.brightness,
            f"cutout of {self.cutout} pixels": self.cutout,
            label_of_code(self.augment or ""): self.augment,
            f"mixup {self.mixup:g}": self.mixup,
            f"cutmix {self.cutmix:g}": self.cutmix,
        }
        return ", ".join(words for words, on in shown.items() if on) or "none"


NO_AUGMENTATION = Augmentation(padding=0, flip=False)


def pad_images(images: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """Adds the border once, for the whole set: [N, H, W, C] -> [N, H+2p, W+2p, C]."""
    p = augmentation.padding
    pads = [(0, 0), (p, p), (p, p), (0, 0)]
    return np.pad(images, pads, mode=augmentation.padding_mode)


def sample_images(
    key: jax.Array,
    padded: jax.Array,
    indices: jax.Array,
    augmentation: Augmentation,
    flips: jax.Array | None = None,
) -> jax.Array:
    """Returns a batch of randomly cropped and flipped images.

    Offsets are uniform (to 2^-15) over 0, ..., 2 * padding in both directions, or 0,
    ..., 2 * padding - 1 without ``last_offset``. Flips have probability 1/2, and all
    draws are independent. One gather with explicit
    indices does the selection, the crop and the flip, so that pixels are copied once.

    Args:
      key: a PRNG key, the only source of randomness.
      padded: [N, H + 2p, W + 2p, C], as ``pad_images`` gives.
      indices: [B], which images to take.
      augmentation: as given to ``pad_images``.
      flips: whether to mirror each image, [B, 1]; None: at random if
        ``augmentation.flip``.

    Returns:
      [B, H, W, C] of the type of ``padded``.
    """
    batch, p = indices.shape[0], augmentation.padding
    height, width = padded.shape[1] - 2 * p, padded.shape[2] - 2 * p
    # One draw for all three: the generator costs as much as the smallest model.
    bits = jax.random.bits(key, (batch, 1))
    if flips is None:
        flips = (bits >> 31 == 1) & augmentation.flip
    offsets = max(1, 2 * p + augmentation.last_offset)
    top, left = (
        ((bits >> shift & 0x7FFF) * offsets >> 15).astype(jnp.int32)
        for shift in (0, 15)
    )
    rows = top + jnp.arange(height)
    columns = jnp.arange(width)
    columns = left + jnp.where(flips, width - 1 - columns, columns)
    return padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalise(images: jax.Array, mean, std) -> jax.Array:
    """``(images / 255 - mean) / std`` per channel: uint8 [..., C] -> float32."""
    mean, std = np.float32(mean), np.float32(std)
    return images.astype(jnp.float32) * (1 / (255 * std)) - mean / std


def denormalise(images, mean, std) -> np.ndarray:
    """Inverts ``normalise``, then rounds and clips: float [..., C] -> uint8."""
    pixels = (np.asarray(images, np.float32) * np.float32(std) + np.float32(mean)) * 255
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def alternating_flips(
    key: jax.Array, indices: jax.Array, epoch: jax.Array, count: int
) -> jax.Array:
    """Returns whether to mirror each image in an epoch, [B, 1]: in every second one.

    Args:
      key: PRNG key, the same in all epochs; it chooses each image's first epoch.
      indices: indices of the images, [B].
      epoch: number of the epoch, from 0.
      count: number of all images.
    """
    coins = jax.random.bits(key, (count,), jnp.uint8) & 1
    return ((coins[indices] + epoch) % 2 == 1)[:, None]


def vary(
    key: jax.Array, images: jax.Array, std: Any, augmentation: Augmentation
) -> jax.Array:
    """Applies contrast, brightness and cutout to normalised images [B, H, W, C]."""
    batch, height, width, _ = images.shape
    # A further augmentation takes the next number, so that the others keep their bits.
    keys = [jax.random.fold_in(key, number) for number in range(3)]
    if augmentation.contrast:
        shape, c = (batch, 1, 1, 1), augmentation.contrast
        factor = jax.random.uniform(keys[0], shape, minval=1 - c, maxval=1 + c)
        mean = images.mean((1, 2), keepdims=True)
        images = mean + factor * (images - mean)
    if augmentation.brightness:
        shape, b = (batch, 1, 1, 1), augmentation.brightness
        shift = jax.random.uniform(keys[1], shape, minval=-b, maxval=b)
        images = images + shift / jnp.asarray(std, jnp.float32)
    if augmentation.cutout:
        centres = jax.random.uniform(keys[2], (2, batch, 1)) * jnp.array(
            [height, width]
        ).reshape(2, 1, 1)
        inside = _rectangle(centres, augmentation.cutout, height, width)
        images = jnp.where(inside[..., None], 0.0, images)
    return images


def vary_further(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    mean: Any,
    std: Any,
    augmentation: Augmentation,
) -> jax.Array:
    """Applies the user's own augmentation, if there is one, to normalised images.

    Args:
      key: PRNG key.
      images: [B, H, W, C].
      labels: [B].
      mean: of the data, see ``normalise``.
      std: of the data.
      augmentation: see ``Augmentation.augment``.
    """
    if augmentation.augment is None:
        return images
    mean, std = np.float32(mean), np.float32(std)
    function = load_code(augmentation.augment, "augment")
    varied = function(key, images * std + mean, labels)
    return (varied.astype(jnp.float32) - mean) / std


def mix(
    key: jax.Array, images: jax.Array, augmentation: Augmentation
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image of a batch with the one before it, by mixup or cutmix.

    Returns:
      The mixed images, and the share that every image keeps of itself, a scalar.
    """
    height, width = images.shape[1:3]
    keys = jax.random.split(key, 3)
    others = jnp.roll(images, 1, axis=0)

    def by_mixup() -> tuple[jax.Array, jax.Array]:
        share = jax.random.beta(keys[0], augmentation.mixup, augmentation.mixup)
        return share * images + (1 - share) * others, share

    def by_cutmix() -> tuple[jax.Array, jax.Array]:
        share = jax.random.beta(keys[0], augmentation.cutmix, augmentation.cutmix)
        sides = jnp.sqrt(1 - share) * jnp.array([height, width])
        centre = jax.random.uniform(keys[1], (2,)) * jnp.array([height, width])
        inside = _rectangle(centre[:, None, None], sides[:, None, None], height, width)
        mixed = jnp.where(inside[..., None], others, images)
        return mixed, 1 - inside.mean()

    if augmentation.mixup and augmentation.cutmix:
        return lax.cond(jax.random.bernoulli(keys[2]), by_mixup, by_cutmix)
    return by_mixup() if augmentation.mixup else by_cutmix()


def _rectangle(centre: jax.Array, sides: Any, height: int, width: int) -> jax.Array:
    """Marks pixels with centre in a rectangle: [2, B, 1] or [2, 1, 1] -> [B, H, W]."""
    sides = jnp.broadcast_to(jnp.asarray(sides, jnp.float32), centre.shape)
    rows, columns = (
        jnp.abs(jnp.arange(length) + 0.5 - centre[axis]) < sides[axis] / 2
        for axis, length in enumerate((height, width))
    )
    return rows[:, :, None] & columns[:, None, :]


# Test-time augmentation; see ``views``.
Tta = Literal["none", "flip", "multicrop"]


def views(images: jax.Array, tta: Tta) -> list[tuple[float, jax.Array]]:
    """Returns the views of test-time augmentation, with weights that sum to 1.

    ``flip``: each image and its mirror image, with equal weights. ``multicrop``: the
    image with weight 1/2, and two copies with weight 1/4 each, moved by a pixel up and
    left, or down and right, with a reflected border; each of the three is flipped as
    above (Jordan 2024, https://arxiv.org/abs/2404.00498). The logits of an image are
    the weighted mean of the logits of its views.

    Args:
      images: [N, H, W, C].
      tta: which views.
    """
    seen = [(1.0, images)]
    if tta == "multicrop":
        height, width = images.shape[1:3]
        padded = jnp.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
        moved = [padded[:, d : d + height, d : d + width] for d in (2, 0)]
        seen = [(0.5, images), *((0.25, one) for one in moved)]
    if tta == "none":
        return seen
    return [(w / 2, x) for w, one in seen for x in (one, one[:, :, ::-1])]
