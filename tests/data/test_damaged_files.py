"""Any file of data is either read or refused with a UserError."""

import gzip
import io
import json
import os
import shutil
import tarfile
import tracemalloc
import warnings

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from PIL import Image

from cifar_flax.data import cache, make_dataset, tfds_source
from cifar_flax.data.archive import open_archive, read_archive
from cifar_flax.data.batches import read_batch, read_class_names
from cifar_flax.data.cifar import CIFARS
from cifar_flax.data.images import read_image
from cifar_flax.data.tfds_source import read_prepared
from cifar_flax.errors import UserError
from tests import archives
from tests.damage import bounded, changed, damaged
from tests.data.test_tfds_source import IMAGE, as_tfrecord, prepare, rows

FEATURE = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


def value_or_line(read, path):
    """Returns what is read, or None if a UserError names the file in one line."""
    try:
        return read()
    except UserError as error:
        message = str(error)
    assert str(path) in message
    assert len(message) < len(str(path)) + 400
    return None


def picture(form, **options):
    """Makes a picture of a format, with EXIF data if the format allows it."""
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

    @bounded(30)
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


def test_damage_that_does_not_matter_is_not_warned_of(tmp_path):
    whole = PICTURES["JPEG"]
    tags = (b"\x12\x01\x03\x00", b"\x01\x12\x00\x03")
    place = max(map(whole.find, tags))  # of the orientation, in either order of bytes
    assert place > 0
    path = tmp_path / "picture.jpg"
    path.write_bytes(whole[: place + 4] + b"\xff\xff" + whole[place + 6 :])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Image.open(path) as picture:
            picture.getexif()
        assert seen
        seen.clear()
        read_image(path)
    assert not seen


@pytest.mark.parametrize("folder", archives.KIND_OF)
@pytest.mark.parametrize("layer", ["gzip", "tar", "file"])
def test_a_damaged_archive_is_read_or_named(tmp_path, folder, layer):
    path = tmp_path / "archive.tar.gz"
    arrays = archives.make_arrays(1, kind=archives.KIND_OF[folder])
    files = archives.files_of(folder, arrays)
    whole = archives.write_tar(path, folder, files).read_bytes()
    name = next(name for name in files if "meta" in name or "fine" in name)
    part = {"gzip": whole, "tar": gzip.decompress(whole)}.get(layer, files[name])

    @bounded(25)
    @given(damaged(part, blocks=layer == "tar"))
    def check(content):
        if layer == "file":
            archives.write_tar(path, folder, {**files, name: content})
        else:
            path.write_bytes(gzip.compress(content, 1) if layer == "tar" else content)
        before = sorted(tmp_path.rglob("*"))
        found = value_or_line(lambda: read_given(path), path)
        assert found is None or len(found.test_images) == len(found.test_labels)
        assert sorted(tmp_path.rglob("*")) == before

    check()


def read_given(path):
    """Reads an archive whose checksum the user gives."""
    return read_archive(open_archive(path, archives.sha256(path)))


def header(kind, content):
    """Returns the header of a tar member without a name."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(content)
    return info.tobuf() + content.ljust(-len(content) % 512 + len(content), b"\0")


TARS = {
    "a name for a name and so on": header(tarfile.GNUTYPE_LONGNAME, b"a") * 3000,
    "attributes of attributes": header(tarfile.XHDTYPE, b"8 a=bcd\n") * 3000,
    "a size that is no number": header(tarfile.XHDTYPE, b"24 GNU.sparse.size=abcd\n"),
    "a negative size": header(tarfile.XHDTYPE, b"12 size=-999\n"),
    "a name of a megabyte": header(tarfile.GNUTYPE_LONGNAME, b"/" + b"a" * 10**6),
}


@pytest.mark.parametrize("case", TARS)
def test_headers_that_make_no_sense_are_a_line(tmp_path, case):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(gzip.compress(TARS[case] + header(tarfile.REGTYPE, b""), 1))
    assert value_or_line(lambda: read_given(path), path) is None


# A tuple that contains the previous one twice, thirty times; its text has gigabytes.
NESTED = b"K\x01\x85" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(30))
PIXELS = archives.pickled_array((1, 3072), b"u1", b"T\0\x0c\0\0" + bytes(3072))
PICKLES = {
    "a memo of 34 GB": b"Nr\xff\xff\xff\x7f.",
    "a buffer of 64 GB": b"\x96" + (2**36).to_bytes(8, "little") + b".",
    "a key that takes an hour to hash": b"}" + NESTED + b"Ns.",
    "a set of such keys": b"\x8f(" + NESTED + b"\x90.",
    "a label that fills the memory": b"}(U\4data"
    + PIXELS
    + b"U\6labels]"
    + NESTED
    + b"au.",
    "a label too long to print": b"}(U\4data"
    + PIXELS
    + b"U\6labels]\x8b\x88\x13\0\0"
    + b"\1" * 5000
    + b"au.",
    "a state for a function": b"c_codecs\nencode\n}U\1aNsb.",
    "a long name": b"c" + b"a" * 10**5 + b"\nb\n.",
}


@archives.both_kinds
@pytest.mark.parametrize("case", PICKLES)
def test_a_hostile_pickle_costs_neither_time_nor_memory(kind, case):
    cifar = CIFARS[kind.name]
    content = b"\x80\x02" + PICKLES[case]
    if kind is archives.CIFAR100:
        content = content.replace(b"U\6labels", b"U\rcoarse_labels")
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        read_batch(cifar, cifar.python, "data_batch_1", content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20
    assert len(str(error.value)) < 400
    assert "data_batch_1" in str(error.value)


def test_class_names_that_fill_the_memory_or_no_file_can_hold_are_refused():
    for name in (NESTED, b"X\x03\0\0\0\xed\xa0\x80"):
        content = b"\x80\x02}(U\x0blabel_names](" + b"U\1a" * 9 + name + b"eu."
        cifar = CIFARS["cifar10"]
        with pytest.raises(UserError, match="not text"):
            read_class_names(cifar.labels[0], cifar.python, "batches.meta", content)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set prepared by tfds, with an image of each class."""
    arrays = archives.make_arrays()
    labels = tfds.features.ClassLabel(names=archives.CLASS_NAMES)
    some = rows(arrays.test_images, arrays.test_labels)
    return prepare(
        tmp_path_factory.mktemp("tfds"),
        "other",
        {"train": some, "test": some},
        {"image": IMAGE, "label": labels},
    )


DESCRIPTIONS = ("dataset_info.json", "features.json")


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_changed_description_is_read_or_named(tmp_path, prepared, name):
    folder = shutil.copytree(prepared, tmp_path / "other" / "1.0.0")
    whole = json.loads((folder / name).read_text())

    @bounded(25)
    @given(changed(whole))
    def check(value):
        (folder / name).write_text(json.dumps(value))
        found = value_or_line(lambda: read_prepared(folder, "other"), folder)
        assert found is None or len(found.train_images) == 10

    check()


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
def test_damaged_records_are_read_or_named(tmp_path, prepared, form):
    folder = shutil.copytree(prepared, tmp_path / "other" / "1.0.0")
    if form == "tfrecord":
        as_tfrecord(folder)
    (path,) = folder.glob("*train*")

    @bounded(25)
    @given(damaged(path.read_bytes()))
    def check(content):
        path.write_bytes(content)
        found = value_or_line(lambda: read_prepared(folder, "other"), folder)
        assert found is None or len(found.train_images) == 10

    check()


@pytest.mark.parametrize("deep", [False, True])
def test_a_description_cannot_have_a_module_imported(
    tmp_path, prepared, deep, monkeypatch
):
    folder = shutil.copytree(prepared, tmp_path / "other" / "1.0.0")
    (tmp_path / "hostile.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    value = {"pythonClassName": "hostile.Feature", "jsonFeature": {"json": "{}"}}
    if deep:
        text = json.dumps({"type": "hostile.Feature", "content": "{}"})
        value = {"pythonClassName": FEATURE, "jsonFeature": {"json": text}}
    (folder / "features.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"names 'hostile\.Feature', .*; refused"):
        read_prepared(folder, "other")


def test_a_label_beyond_all_integers_is_not_taken_for_another(
    tmp_path, prepared, monkeypatch
):
    def examples(builder, split):
        image = np.zeros((32, 32, 3), np.uint8)
        return [{"image": image, "label": np.int64(2**32 + 3)}] * 10

    monkeypatch.setattr(tfds_source, "_examples", examples)
    with pytest.raises(UserError, match="label 4294967299"):
        read_prepared(prepared, "other")


def test_a_pipe_among_the_prepared_files_is_not_waited_for(tmp_path, prepared):
    folder = shutil.copytree(prepared, tmp_path / "other" / "1.0.0")
    (path,) = folder.glob("*train*")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is not a plain file"):
        read_prepared(folder, "other")


@pytest.fixture
def cached(tmp_path):
    """The file of a cached data set, and a function that loads it."""
    arrays = archives.make_arrays(1)
    fields = (arrays.train_images, arrays.train_labels)
    fields += (arrays.test_images, arrays.test_labels)
    names = archives.CLASS_NAMES
    dataset = make_dataset("tiny", *fields, names, source="a test")

    def load():
        return cache.load_or_build(tmp_path, "tiny", "key", lambda: dataset)

    load()
    (path,) = (tmp_path / "cifar_flax").glob("*.npz")
    return path, load


def test_a_cache_with_other_details_is_built_again_or_sound(cached, caplog):
    path, load = cached
    with np.load(path) as stored:
        arrays = dict(stored)
    details = json.loads(arrays["details"].item())

    @bounded(25)
    @given(changed(details))
    def check(value):
        np.savez(path, **{**arrays, "details": np.array(json.dumps(value))})
        caplog.clear()
        found = load()
        texts = [found.name, found.source, found.fingerprint, *found.class_names]
        "".join(texts).encode()
        assert np.shape((found.mean, found.std)) == (2, 3)
        assert np.isfinite([found.mean, found.std]).all()
        for record in caplog.records:
            assert str(path) in record.getMessage()

    check()


def test_a_cache_that_is_compressed_or_a_pipe_is_built_again(cached, caplog):
    path, load = cached
    with np.load(path) as stored:
        np.savez_compressed(path, **stored)
    load()
    assert "compressed" in caplog.text
    path.unlink()
    os.mkfifo(path)
    load()
    assert "not a plain file" in caplog.text
    assert path.is_file()
