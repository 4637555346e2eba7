"""Pad, crop, flip and normalise: pure functions on batches, for use inside ``jit``."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax.errors import UserError

PADDING_MODES = ("symmetric", "constant", "reflect")

# As wide as the images; a crop from further out would show nothing of them.
MAX_PADDING = 32


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Attributes:
      padding: pixels added on each side before a window of the original size is cut
        out at a uniformly drawn offset; 0 cuts nothing.
      padding_mode: what they hold, in NumPy's words: ``symmetric`` mirrors the image
        with its edge pixel (what the lesson's library did), ``reflect`` without it,
        ``constant`` is black.
      flip: mirror an image left to right with probability 1/2.
    """

    padding: int = 4
    padding_mode: str = "symmetric"
    flip: bool = True

    def __post_init__(self):
        whole = type(self.padding) is int
        if not whole or not 0 <= self.padding <= MAX_PADDING:
            raise UserError(
                f"padding is {self.padding}; it must be from 0 to {MAX_PADDING} pixels"
            )
        if not isinstance(self.flip, bool):
            raise UserError(f"flip is {self.flip!r}; it must be True or False")
        if self.padding_mode not in PADDING_MODES:
            raise UserError(
                f"padding_mode is {self.padding_mode!r}; it must be one of "
                + ", ".join(PADDING_MODES)
            )


NO_AUGMENTATION = Augmentation(padding=0, flip=False)


def pad_images(images: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """Adds the border once, for the whole set: [N, H, W, C] -> [N, H+2p, W+2p, C]."""
    p = augmentation.padding
    pads = [(0, 0), (p, p), (p, p), (0, 0)]
    return np.pad(images, pads, mode=augmentation.padding_mode)  # type: ignore[call-overload]


def sample_images(
    key: jax.Array, padded: jax.Array, indices: jax.Array, augmentation: Augmentation
) -> jax.Array:
    """A batch of randomly cropped and flipped images.

    Offsets are uniform (to 2^-15) over 0, ..., 2 * padding in both directions, flips
    are fair coins, all independent. One gather with explicit indices does the
    selection, the crop and the flip, so that nothing is copied twice.

    Args:
      key: a PRNG key, the only source of randomness.
      padded: [N, H + 2p, W + 2p, C], as ``pad_images`` gives.
      indices: [B], which images to take.
      augmentation: as given to ``pad_images``.

    Returns:
      [B, H, W, C] of the type of ``padded``.
    """
    batch, p = indices.shape[0], augmentation.padding
    height, width = padded.shape[1] - 2 * p, padded.shape[2] - 2 * p
    # One draw for all three: the generator costs as much as the smallest model.
    bits = jax.random.bits(key, (batch, 1))
    flips = (bits >> 31 == 1) & augmentation.flip
    top, left = (
        ((bits >> shift & 0x7FFF) * (2 * p + 1) >> 15).astype(jnp.int32)
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
    """The inverse of ``normalise``, rounded and clipped: float [..., C] -> uint8."""
    pixels = (np.asarray(images, np.float32) * np.float32(std) + np.float32(mean)) * 255
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
