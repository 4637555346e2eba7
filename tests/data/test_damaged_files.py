"""Whatever is in a file of data, it is read, or a UserError says what is amiss."""

import io
import os
import warnings

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from cifar_flax.data.images import read_image
from cifar_flax.errors import UserError
from tests.damage import bounded, damaged

EX = int(os.environ.get("EX", 0))


def value_or_line(read, path):
    """What is read; None where a UserError says in a line what is amiss with a file."""
    try:
        return read()
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert len(message) < len(str(path)) + 400
    return None


def picture(form, **options):
    """A file of that format, with EXIF data where it can have them."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 3
    content = io.BytesIO()
    image.save(content, form, exif=exif, **options)
    return content.getvalue()


PICTURES = {
    "PNG": picture("PNG"),
    "JPEG": picture("JPEG"),
    "WEBP": picture("WEBP"),
    "BMP": picture("BMP"),
    "GIF": picture("GIF"),
    "TIFF": picture("TIFF"),
    "TIFF-LZW": picture("TIFF", compression="tiff_lzw"),
    "PPM": picture("PPM"),
}


@pytest.mark.parametrize("form", PICTURES)
def test_a_damaged_picture_is_read_or_named(tmp_path, form):
    path = tmp_path / "picture"

    @bounded(EX or 60)
    @given(damaged(PICTURES[form]))
    def check(content):
        path.write_bytes(content)
        found = value_or_line(lambda: read_image(path), path)
        assert found is None or found.shape == (32, 32, 3)

    check()


def test_a_picture_that_is_a_program_does_not_run(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(UserError, match="is not a picture"):
        read_image(path)


def test_a_picture_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is not a plain file"):
        read_image(tmp_path / "pipe.png")


def test_warnings_about_damage_that_does_not_matter_are_not_shown(tmp_path):
    content = picture("JPEG")
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as seen:
        read_image(path)
    assert not seen
