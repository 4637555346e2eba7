"""What the values and axes of images mean; one decision holds for a whole data set."""

import dataclasses
import math

import numpy as np

from cifar_flax.errors import UserError

# An array is taken to have its channels where the shape has at most so many.
_MAX_CHANNELS = 4

# A data set is refused if nearly all of its values become one of so few levels of 256.
_DARK = 8
_NEARLY_ALL = 0.999


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a data set was read; it goes into the header and the record of a run.

    Attributes:
      low: lowest value found; of bytes, after any resizing.
      high: highest value found.
      white: value of the source that became 255; None if it has bytes, which stay as
        they are.
      notes: what else was decided, and what was left out and why, in words.
    """

    low: float
    high: float
    white: float | None = None
    notes: tuple[str, ...] = ()


ALL_BYTES = Reading(0, 255)


def white_of(where: str, low: float, high: float, *, whole: bool) -> float:
    """Decides which value is white, for pictures with more than 8 bits a value.

    It is 1 for fractions, and else the highest value of as few bits as hold the values,
    at least 8: 12-bit data in 16-bit files have 4,095.

    Args:
      where: the pictures, for the message.
      low: lowest value of all of them.
      high: highest value of all of them.
      whole: whether the values are integers.

    Raises:
      UserError: the values do not tell.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{where}: a value is not finite; {_CONVERT}")
    if low < 0:
        raise UserError(f"{where}: a value is {low:g}; black must be 0: {_CONVERT}")
    if not whole and high <= 1:
        return 1.0
    white = 2.0 ** max(8, math.ceil(high).bit_length()) - 1
    if not whole and high <= white / 2:
        raise UserError(
            f"{where}: the values are fractions from {low:g} to {high:g}, which does "
            f"not tell whether white is 1 or {white:g}; {_CONVERT}"
        )
    return white


_CONVERT = "convert the pictures to 8 bits with a scale of your own"


def to_bytes(values: np.ndarray, white: float) -> np.ndarray:
    """Returns values from 0 to ``white`` as uint8; integers lose their lower bits."""
    if white == 1:
        return np.round(values * 255.0).astype(np.uint8)
    return (values * (256 / (white + 1))).astype(np.uint8)


def check_levels(where: str, images: np.ndarray, high: float) -> None:
    """Raises a UserError if a few high values make all the others nearly black."""
    if np.count_nonzero(images < _DARK) > _NEARLY_ALL * images.size:
        raise UserError(
            f"{where}: the highest value is {high:g}, and nearly all values are below "
            f"a {256 // _DARK}th of it, so the pictures would be black; {_CONVERT}"
        )


def channels_last(where: str, images: np.ndarray) -> tuple[np.ndarray, bool]:
    """Decides where the channels of images [N, ?, ?, ?] are.

    At most four are few enough to be channels. If that does not tell, height and width
    are taken to be equal.

    Args:
      where: the images, for the message.
      images: of four axes.

    Returns:
      The images as [N, H, W, C], and whether they were [N, C, H, W].

    Raises:
      UserError: the shape does not tell.
    """
    _, first, middle, last = images.shape
    is_last, is_first = last <= _MAX_CHANNELS, first <= _MAX_CHANNELS
    if is_last == is_first:
        is_last, is_first = first == middle, middle == last
    if is_last == is_first:
        raise UserError(
            f"{where}: the shape {list(images.shape)} does not tell which axis has the "
            "channels; make it [N, H, W, C] with equal height and width, or with at "
            f"most {_MAX_CHANNELS} channels"
        )
    return (images.transpose(0, 2, 3, 1), True) if is_first else (images, False)
