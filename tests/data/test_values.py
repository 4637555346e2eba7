"""Pictures with more than 8 bits, turned pictures, and where channels are."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from cifar_flax.data import load_dataset
from cifar_flax.data.folders import SUFFIXES
from cifar_flax.data.images import FORMATS, read_image
from cifar_flax.data.values import channels_last, white_of
from cifar_flax.errors import UserError
from cifar_flax.runs.inference import Run
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings

RNG = np.random.default_rng(0)


def ramp(top, dtype):
    """Values of one picture from 0 to ``top``, [16, 16]."""
    return np.linspace(0, top, 256).reshape(16, 16).astype(dtype)


def write(folder, values, ending, count=3):
    """Writes two classes, of a picture and of the same turned."""
    for name, one in (("a", values), ("b", values.T)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            rolled = np.roll(one, number, axis=0)
            Image.fromarray(rolled).save(folder / name / f"{number}.{ending}")
    return folder


def load(folder, tmp_path, **settings):
    name = f"folder:{folder}"
    return load_dataset(name, data_dir=tmp_path / "cache", **settings)


@pytest.mark.parametrize(
    ("top", "dtype", "ending", "white"),
    [
        *((2**bits - 1, np.uint16, "png", 2**bits - 1) for bits in (8, 10, 12, 16)),
        (100, np.uint16, "png", 255),
        (3000, np.uint16, "tif", 4095),
        (255, np.int32, "tif", 255),
        (2**20, np.int32, "tif", 2**21 - 1),
        (1, np.float32, "tif", 1),
        (0.5, np.float32, "tif", 1),
        (255, np.float32, "tif", 255),
        (65535, np.float32, "tif", 65535),
    ],
)
def test_deep_pictures_use_the_range_that_the_data_set_has(
    tmp_path, top, dtype, ending, white
):
    values = ramp(top, dtype)
    for _ in range(2):  # from the files, then from the cache
        data = load(write(tmp_path / "d", values, ending), tmp_path)
        reading = data.reading
        assert (reading.low, reading.high, reading.white) == (0, values.max(), white)
        assert data.train_images.shape[1:] == (16, 16, 1)
        expected = 256 * values.astype(float) / (white + (white > 1))
        found = {image.tobytes(): image for image in data.train_images}
        errors = [abs(image[..., 0] - expected).max() for image in found.values()]
        assert min(errors) <= 1.5  # one of them is the picture as it was made
        (tmp_path / "d").rename(tmp_path / "was") if _ == 0 else None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (ramp(1.5, np.float32), "does not tell whether white is 1 or 255"),
        (ramp(2, np.float32) - 1, "a value is -1; black must be 0"),
        (np.full((16, 16), np.nan, np.float32), "not finite"),
        (np.uint16([200] * 2499 + [2**16 - 1]).reshape(50, 50), "nearly all values"),
    ],
)  # fmt: skip
def test_values_that_do_not_tell_their_range_are_refused(tmp_path, values, words):
    folder = write(tmp_path / "d", values, "tif")
    with pytest.raises(UserError, match=words) as caught:
        load(folder, tmp_path)
    assert "convert the pictures" in str(caught.value)


def test_pictures_of_8_and_of_16_bits_do_not_mix(tmp_path):
    folder = write(tmp_path / "d", ramp(65535, np.uint16), "png")
    for path in (folder / "b").iterdir():
        Image.fromarray(ramp(255, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"a/\d.png has more than 8 bits .* has 8; con"):
        load(folder, tmp_path)


@pytest.mark.parametrize("ending", ["tif", "png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_read_whole_and_upright(tmp_path, ending, orientation):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :4], upright[:4, 12:] = 255, 120
    methods = [None, *["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE"]]
    methods += ["ROTATE_90", "TRANSVERSE", "ROTATE_270"]  # inverse to that of a reader
    stored = Image.fromarray(upright)
    if method := methods[orientation - 1]:
        stored = stored.transpose(Image.Transpose[method])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a/1", "b/2", "a/3", "b/4"):
        path = tmp_path / "d" / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        stored.save(path, exif=exif, **({"quality": 95} if ending == "jpg" else {}))
    data = load(tmp_path / "d", tmp_path)
    for image in (*data.train_images, read_image(path, 8, 16)):
        assert image.shape == upright.shape
        assert abs(image.astype(int) - upright)[:, [1, 14]].max() < 60


def deep_colour(path, bits, has_alpha):
    """Writes a PNG with 16 bits a colour, which Pillow cannot."""
    top = 2**bits - 1
    values = RNG.integers(0, top + 1, (8, 8, 4 if has_alpha else 3)).astype(">u2")
    if has_alpha:
        values[..., 3] = 65535
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", 8, 8, 16, 6 if has_alpha else 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        content += struct.pack(">I", len(body)) + kind + body + crc
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return values[..., :3]


@pytest.mark.parametrize("has_alpha", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_colours_of_16_bits_are_read_only_if_they_use_them(tmp_path, bits, has_alpha):
    folder = tmp_path / "d"
    for name in ("a/1", "b/1", "a/2", "b/2"):
        values = deep_colour(folder / f"{name}.png", bits, has_alpha)
    if bits < 16:
        with pytest.raises(UserError, match=r"16 bits a colour.*convert it to 8"):
            load(folder, tmp_path)
        return
    data = load(folder, tmp_path)
    assert data.reading.white == 65535
    np.testing.assert_array_equal(read_image(folder / "b/2.png", 8, 8), values >> 8)
    np.testing.assert_array_equal(data.train_images[1], values >> 8)


def test_one_picture_is_read_as_the_training_images_were(tmp_path):
    path, other = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(ramp(3000, np.uint16)).save(path)
    Image.fromarray(ramp(255, np.uint8)).save(other)
    found = read_image(path, 16, 16, 1, white=4095)
    np.testing.assert_array_equal(found[..., 0], ramp(3000, np.uint16) >> 4)
    with pytest.raises(UserError, match="values from 0 to 3000, and white is 255"):
        read_image(path, 16, 16, 1, white=255)
    with pytest.raises(UserError, match=r"highest value is 3000.* does not tell"):
        read_image(path, 16, 16, 1)
    with pytest.raises(UserError, match="8 bits a value, and white is 4095"):
        read_image(other, 16, 16, 1, white=4095)
    np.testing.assert_array_equal(
        read_image(other, 16, 16, 1, white=65535)[..., 0], ramp(255, np.uint8)
    )


@pytest.mark.parametrize(("channels", "mode"), [(2, "LA"), (4, "RGBA")])
def test_a_picture_with_the_channels_of_the_training_images_is_kept(
    tmp_path, channels, mode
):
    values = RNG.integers(0, 256, (8, 8, channels), dtype=np.uint8)
    Image.fromarray(values, mode).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 8, 8, channels)
    np.testing.assert_array_equal(found, values)
    assert read_image(tmp_path / "a.png", 4, 4, channels).shape == (4, 4, channels)
    Image.fromarray(values[..., :3] if channels == 4 else values[..., 0]).save(
        tmp_path / "b.png"
    )
    with pytest.raises(
        UserError, match=f"training images had {channels}; give .*{mode}"
    ):
        read_image(tmp_path / "b.png", 8, 8, channels)
    with pytest.raises(UserError, match="have 7 channels, which no picture has"):
        read_image(tmp_path / "a.png", 8, 8, 7)


def test_every_format_that_is_read_has_its_endings():
    Image.init()
    known = {
        ending
        for ending, name in Image.registered_extensions().items()
        if name in (*FORMATS, "MPO")
    }
    assert known == set(SUFFIXES)


@pytest.mark.parametrize(
    ("shape", "is_first"),
    [
        ((5, 32, 32, 3), False),
        ((5, 3, 32, 32), True),
        ((5, 1, 28, 28), True),
        ((5, 28, 28, 1), False),
        ((5, 4, 20, 30), True),
        ((5, 20, 30, 4), False),
        ((5, 32, 32, 13), False),
        ((5, 13, 64, 64), True),
        ((5, 4, 4, 3), False),
        ((5, 3, 4, 4), True),
        ((5, 20, 30, 13), None),
        ((5, 3, 3, 3), None),
        ((5, 3, 20, 4), None),
    ],
)
def test_the_shape_tells_where_channels_are(shape, is_first):
    images = RNG.integers(0, 256, shape, dtype=np.uint8)
    if is_first is None:
        with pytest.raises(UserError, match="does not tell which axis"):
            channels_last("these", images)
        return
    found, was_first = channels_last("these", images)
    assert was_first == is_first
    expected = np.moveaxis(images, 1, 3) if is_first else images
    np.testing.assert_array_equal(found, expected)


def test_white_is_the_highest_value_of_the_fewest_bits():
    for high in (1, 255, 256, 1000, 4095, 4096, 65535, 10**6):
        white = white_of("these", 0, high, whole=True)
        assert white >= high
        assert white == 255 or white < 2 * high
        assert np.log2(white + 1) % 1 == 0


@pytest.mark.slow
def test_predict_reads_pictures_as_the_run_read_its_own(tmp_path):
    folder = write(tmp_path / "d", ramp(3000, np.uint16), "png", 8)
    settings = Settings(
        model="simplenet", dataset=f"folder:{folder}", val_size=2, batch_size=4,
        lr=0.01, epochs=1, data_dir=str(tmp_path),
    )  # fmt: skip
    run(settings, tmp_path / "run")
    assert Run.load(tmp_path / "run").white == 4095
    Image.fromarray(ramp(255, np.uint8)).save(tmp_path / "bytes.png")
    words = [f"--run={tmp_path / 'run'}", "--json", str(tmp_path / "bytes.png")]
    words.append(str(folder / "a" / "1.png"))
    done = subprocess.run(
        [sys.executable, "-m", "experiments.predict", *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "bytes.png has 8 bits a value, and white is 4095" in done.stderr
    (line,) = done.stdout.splitlines()
    assert "a/1.png" in line
