"""Pictures of every kind, and files that are not pictures."""

import numpy as np
import pytest
from PIL import Image

from cifar_flax.data.folders import find_images
from cifar_flax.data.images import read_image
from cifar_flax.errors import UserError


@pytest.fixture
def picture(tmp_path):
    """A function that saves a picture and reads it back."""

    def save(image, name="picture.png", **options):
        image.save(tmp_path / name, **options)
        return read_image(tmp_path / name)

    return save


def colour(size=(40, 40), value=(200, 100, 50)):
    return Image.new("RGB", size, value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "LA", "L", "1"])
def test_any_mode_becomes_rgb(picture, mode):
    image = colour().convert(mode, dither=Image.Dither.NONE)
    name = "picture.tiff" if mode in ("CMYK", "YCbCr") else "picture.png"
    expected = np.asarray(image.convert("RGB"))[0, 0]
    found = picture(image, name)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, np.broadcast_to(expected, (32, 32, 3)), atol=2)


def test_sixteen_bits_keep_their_upper_half(picture):
    values = np.full((32, 32), 0x8040, np.uint16)
    np.testing.assert_array_equal(picture(Image.fromarray(values)), 0x80)


def test_transparent_is_white(picture):
    assert (picture(Image.new("RGBA", (32, 32), (10, 20, 30, 0))) == 255).all()


def test_the_middle_of_an_oblong_is_kept(picture):
    image = colour((96, 32), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 32))
    found = picture(image)
    assert (found[:, 2:-2] == (0, 0, 255)).all()


def test_the_first_frame_of_an_animation_counts(picture):
    frames = [colour(value=(0, 255, 0)).convert("P"), colour().convert("P")]
    options = {"save_all": True, "append_images": frames[1:]}
    found = picture(frames[0], "picture.gif", **options)
    assert (found == (0, 255, 0)).all()


def test_exif_turns_the_picture(picture):
    image = colour((32, 32), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 32, 16))  # dark above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    found = picture(image, "picture.png", exif=exif)
    assert found[0, 0].max() == 255
    assert found[-1, 0].max() == 0


def test_files_that_are_no_pictures_are_named(tmp_path):
    path = tmp_path / "note.png"
    path.write_text("hello")
    with pytest.raises(UserError, match=r"note\.png is not a picture"):
        read_image(path)
    colour().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"cut\.png"):
        read_image(tmp_path / "cut.png")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    colour((35, 35)).save(tmp_path / "large.png")  # warns: above the limit
    colour((50, 50)).save(tmp_path / "huge.png")  # fails: above twice the limit
    for name in ("large.png", "huge.png"):
        with pytest.raises(UserError, match=f"{name} is too large"):
            read_image(tmp_path / name)


def test_folders_are_searched_and_places_checked(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    colour().save(tmp_path / "a" / "b" / "one.PNG")
    (tmp_path / "a" / "note.txt").touch()
    assert find_images([tmp_path]) == [tmp_path / "a" / "b" / "one.PNG"]
    with pytest.raises(UserError, match="no file or folder"):
        find_images([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no picture"):
        find_images([tmp_path / "empty"])
