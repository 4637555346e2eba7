"""Converts pictures of any kind to the small images that a model takes."""

import contextlib
import dataclasses
import pathlib
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar_flax.data.values import to_bytes, white_of
from cifar_flax.errors import UserError

# Others are refused: an EPS is a program, which Pillow would run with Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM")

_ORIENTATION = 0x0112  # tag of EXIF

# What more than 8 bits a value are: grey integers or fractions, or colours, of which
# Pillow gives the upper 8 of 16 bits.
Deep = Literal["integer", "fraction", "colour"]

# Modes of pictures with the numbers of channels that need no conversion.
_MODES = {2: "LA", 4: "RGBA"}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the head of a picture tells.

    Attributes:
      height: in pixels, as read.
      width: in pixels, as read.
      is_grey: whether it has neither colours nor an alpha channel.
      has_alpha: whether it has transparent pixels or may have some.
      has_frames: whether it has several frames or pages.
      deep: what its values are if they have more than 8 bits; else None.
    """

    height: int
    width: int
    is_grey: bool
    has_alpha: bool
    has_frames: bool
    deep: Deep | None


def facts_of(path: pathlib.Path) -> Facts:
    """Reads the head of a picture.

    Raises:
      UserError: see ``read_image``; the pixels are not checked.
    """
    with _opened(path) as picture:
        deep = _deep(picture)  # the orientation of a PNG is read with its pixels
        width, height = picture.size
        # Pillow gives the size of a TIFF as it is after turning, that of others before.
        is_turned = picture.getexif().get(_ORIENTATION, 1) > 4
        if is_turned and picture.format != "TIFF":
            width, height = height, width
        return Facts(
            height=height,
            width=width,
            is_grey=picture.mode in ("1", "L") or deep in ("integer", "fraction"),
            has_alpha=picture.has_transparency_data,
            # The frames of an MPO are the same picture in other sizes.
            has_frames=picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1,
            deep=deep,
        )


def extremes(path: pathlib.Path) -> tuple[float, float]:
    """Returns the lowest and highest value of a picture, of 16 bits if it has colours.

    Raises:
      UserError: see ``read_image``.
    """
    with _opened(path) as picture:
        return _extremes(picture, _deep(picture))


def read_image(
    path: pathlib.Path,
    height: int = 32,
    width: int = 32,
    channels: int = 3,
    white: float | None = None,
) -> np.ndarray:
    """Reads a picture of any size and mode.

    The largest centred part with the right proportions is cropped and resized. The
    picture is rotated as its EXIF data say, transparent pixels become white unless
    there is a channel for them, and an animation gives its first frame.

    Args:
      path: path of the file.
      height: height of the result, in pixels.
      width: width of the result, in pixels.
      channels: 3 for RGB, 1 for grey; 4 and 2 with an alpha channel, which the picture
        must then have.
      white: value that stands for white where values have more than 8 bits (see
        ``values.white_of``); None: that of 16 bits or of fractions up to 1, if the
        picture has values above half of it.

    Returns:
      uint8 [height, width, channels].

    Raises:
      UserError: the file is not a picture of a known format, is damaged, would fill
        the memory, has other channels, or does not tell what its values mean.
    """
    with _opened(path) as picture:
        deep = _deep(picture)
        picture.load()
        if deep is not None:
            white = _own_white(path, picture, deep) if white is None else white
            _check_values(path, picture, deep, white)
        elif white not in (None, 1, 255, 65535):
            raise UserError(
                f"{path} has 8 bits a value, and white is {white:g}; give a picture "
                "like those of the training set"
            )
        picture = ImageOps.exif_transpose(picture)
        if deep in ("integer", "fraction"):
            assert white is not None
            picture = Image.fromarray(to_bytes(np.asarray(picture), white))
        return _fit(path, picture, (width, height), channels)


def _fit(
    path: pathlib.Path, picture: Image.Image, size: tuple[int, int], channels: int
) -> np.ndarray:
    """Crops and resizes a picture of 8 bits to [H, W, C]."""
    if channels in (1, 3):
        colours = _on_white(picture)
        small = ImageOps.fit(colours if channels == 3 else colours.convert("L"), size)
        return np.asarray(small).reshape(*size[::-1], channels)
    if channels not in _MODES:
        raise UserError(
            f"{path}: the training images have {channels} channels, which no picture "
            "has; in Python, Run.predict takes arrays"
        )
    if picture.mode != _MODES[channels]:
        raise UserError(
            f"{path} has the channels {picture.mode}, and the training images had "
            f"{channels}; give a picture with the channels {_MODES[channels]}"
        )
    # Each for itself: Pillow would weigh colours by their alpha.
    bands = [np.asarray(ImageOps.fit(band, size)) for band in picture.split()]
    return np.stack(bands, axis=-1)


def _deep(picture: Image.Image) -> Deep | None:
    if picture.mode.startswith("I"):
        return "integer"
    if picture.mode == "F":
        return "fraction"
    tile = str(getattr(picture, "tile", ""))  # how the values are stored
    is_deep = picture.format in ("PNG", "TIFF") and ";16" in tile
    return "colour" if is_deep else None


def _extremes(picture: Image.Image, deep: Deep | None) -> tuple[float, float]:
    values = np.asarray(picture)
    if picture.mode in ("LA", "RGBA"):
        values = values[..., :-1]
    low, high = float(values.min()), float(values.max())
    return (256 * low, 256 * high + 255) if deep == "colour" else (low, high)


def _own_white(path: pathlib.Path, picture: Image.Image, deep: Deep) -> float:
    low, high = _extremes(picture, deep)
    white = white_of(str(path), low, high, whole=deep != "fraction")
    if white not in (1, 65535) or high <= white / 2:
        raise UserError(
            f"{path} has more than 8 bits a value, and its highest value is {high:g}, "
            "which does not tell which value is white; convert it to 8 bits"
        )
    return white


def _check_values(
    path: pathlib.Path, picture: Image.Image, deep: Deep, white: float
) -> None:
    low, high = _extremes(picture, deep)
    in_range = low >= 0 and high <= white  # False for NaN
    if not in_range or (deep == "fraction" and high <= 1 < white):
        raise UserError(
            f"{path} has values from {low:g} to {high:g}, and white is {white:g}; give "
            "a picture like those of the training set"
        )
    if deep == "colour" and white != 65535:
        raise UserError(
            f"{path} has 16 bits a colour, of which the upper 8 are read, and white is "
            f"{white:g}; convert it to 8 bits"
        )


def fit_array(images: np.ndarray, size: int) -> np.ndarray:
    """Crops and resizes [N, H, W, C] to [N, size, size, C], as ``read_image`` does."""
    if images.shape[1:3] == (size, size):
        return images

    def fit(channel: np.ndarray) -> np.ndarray:
        return np.asarray(ImageOps.fit(Image.fromarray(channel), (size, size)))

    fitted = [[fit(image[..., c]) for c in range(images.shape[-1])] for image in images]
    return np.stack(fitted).transpose(0, 2, 3, 1).copy()


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Image.Image]:
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a plain file; give a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage that Pillow tolerates
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as picture:
                yield picture
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a picture that can be read") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is too large a picture: {error}") from error
    except Exception as error:  # Pillow may raise anything for damaged files
        why = getattr(error, "strerror", None) or error or type(error).__name__
        raise UserError(f"cannot read the picture {path}: {why}") from error


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return picture.convert("RGB")
