"""Converts pictures of any kind to the small images that a model takes."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar_flax.errors import UserError

# Others are refused: an EPS is a program, which Pillow would run with Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")

_ORIENTATION = 0x0112  # tag of EXIF

# File name endings of the pictures in a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def read_image(
    path: pathlib.Path, height: int = 32, width: int = 32, channels: int = 3
) -> np.ndarray:
    """Reads a picture of any size and mode.

    The largest centred part with the right proportions is cropped and resized. The
    picture is rotated as its EXIF data say, transparent pixels become white, 16-bit
    values lose their lower 8 bits, and an animation gives its first frame.

    Args:
      path: path of the file.
      height: height of the result, in pixels.
      width: width of the result, in pixels.
      channels: 3 for RGB, 1 for grey.

    Returns:
      uint8 [height, width, channels].

    Raises:
      UserError: the file is not a picture of a known format, is damaged, or would fill
        the memory.
    """
    with _opened(path) as picture:
        picture.load()
        turned = _to_rgb(ImageOps.exif_transpose(picture))
        small = ImageOps.fit(
            turned if channels == 3 else turned.convert("L"), (width, height)
        )
    return np.asarray(small).reshape(height, width, channels)


def shape_of(path: pathlib.Path) -> tuple[int, int, int]:
    """Returns height, width and channels (1 for grey, else 3) of a picture as read.

    Raises:
      UserError: see ``read_image``; the pixels are not checked.
    """
    with _opened(path) as picture:
        width, height = picture.size
        if picture.getexif().get(_ORIENTATION, 1) > 4:  # turned by 90 degrees
            width, height = height, width
        return height, width, 1 if picture.mode in ("1", "L") else 3


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
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a picture that can be read") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is too large a picture: {error}") from error
    except Exception as error:  # Pillow may raise anything for damaged files
        why = getattr(error, "strerror", None) or error or type(error).__name__
        raise UserError(f"cannot read the picture {path}: {why}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):  # 16 bits of grey
        values = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    elif picture.mode == "F":
        picture = picture.convert("L")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return picture.convert("RGB")


def find_images(places: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the given files, and all pictures in the given folders at any depth.

    Raises:
      UserError: a place does not exist, or a folder has no picture.
    """
    found: list[pathlib.Path] = []
    for place in places:
        if not os.path.exists(place):  # False if the name is too long
            raise UserError(f"there is no file or folder {place}")
        if not place.is_dir():
            found.append(place)
            continue
        inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not inside:
            raise UserError(f"{place} has no picture in it ({', '.join(SUFFIXES)})")
        found += inside
    return found
