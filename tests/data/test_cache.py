import dataclasses
import errno
import logging
import os
import threading

import numpy as np
import pytest

from cifar_flax.data import cache, make_dataset
from tests import archives


@pytest.fixture
def dataset(arrays):
    return make_dataset(
        "tiny",
        arrays.train_images,
        arrays.train_labels,
        arrays.test_images,
        arrays.test_labels,
        archives.CLASS_NAMES,
        source="a test",
    )


@pytest.fixture
def build(dataset):
    """Builds the data set, and counts the calls."""

    def build():
        build.count += 1
        return dataset

    build.count = 0
    return build


def the_file(folder):
    """Returns the only file besides its lock."""
    paths = (folder / "cifar_flax").iterdir()
    (path,) = (path for path in paths if path.suffix != ".lock")
    return path


def test_the_second_load_reads_the_file(tmp_path, dataset, arrays, build):
    for _ in range(2):
        loaded = cache.load_or_build(tmp_path, "tiny", "key", build)
        archives.assert_holds(loaded, arrays)
        for field in ("name", "mean", "std", "fingerprint", "source", "class_names"):
            assert getattr(loaded, field) == getattr(dataset, field), field
    assert loaded is not dataset
    assert build.count == 1


def test_validation_images_are_kept_where_there_are_some(tmp_path, dataset, build):
    fields = {"val_images": dataset.test_images, "val_labels": dataset.test_labels}
    given = dataclasses.replace(dataset, **fields)
    for _ in range(2):
        loaded = cache.load_or_build(tmp_path, "tiny", "val", lambda: given)
        for field, expected in fields.items():
            np.testing.assert_array_equal(getattr(loaded, field), expected)
    cache.load_or_build(tmp_path, "tiny", "key", build)
    assert not cache.load_or_build(tmp_path, "tiny", "key", build).has_validation
    path = tmp_path / "cifar_flax" / "tiny-v1-key.npz"
    with np.load(path) as stored:
        assert not [name for name in stored.files if name.startswith("val")]


def test_the_file_is_named_by_set_and_key(tmp_path, build):
    cache.load_or_build(tmp_path, "tiny", "0123abc", build)
    assert the_file(tmp_path).name == "tiny-v1-0123abc.npz"
    cache.load_or_build(tmp_path, "tiny", "other", build)
    assert build.count == 2


def test_the_fingerprint_is_not_computed_again(monkeypatch, tmp_path, build):
    cache.load_or_build(tmp_path, "tiny", "key", build)

    def refuse(*_):
        raise AssertionError("hashed again")

    monkeypatch.setattr("cifar_flax.data.dataset.hashlib.sha256", refuse)
    cache.load_or_build(tmp_path, "tiny", "key", build)
    assert build.count == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"not a zip file at all",
        lambda content: content[:9000] + bytes([content[9000] ^ 1]) + content[9001:],
    ],
    ids=["truncated", "empty", "garbage", "one bit of a pixel"],
)
def test_a_damaged_file_is_built_again(tmp_path, arrays, build, caplog, damage):
    cache.load_or_build(tmp_path, "tiny", "key", build)
    path = the_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    archives.assert_holds(cache.load_or_build(tmp_path, "tiny", "key", build), arrays)
    assert build.count == 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    cache.load_or_build(tmp_path, "tiny", "key", build)
    assert build.count == 2
    assert len(caplog.records) == 1


def test_any_flipped_bit_is_harmless(tmp_path, arrays, build):
    cache.load_or_build(tmp_path, "tiny", "key", build)
    path = the_file(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    ends = [*range(0, 300, 7), *range(len(whole) - 1200, len(whole), 17)]
    for place in [*ends, *rng.integers(0, len(whole), 50)]:
        content = bytearray(whole)
        content[place] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        loaded = cache.load_or_build(tmp_path, "tiny", "key", build)
        archives.assert_holds(loaded, arrays)


def test_pickled_content_is_not_executed(tmp_path, arrays, build):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    cache.load_or_build(tmp_path, "tiny", "key", build)
    path = the_file(tmp_path)
    with path.open("wb") as file:
        np.savez(file, details=np.array([Hostile()], object))
    archives.assert_holds(cache.load_or_build(tmp_path, "tiny", "key", build), arrays)
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path, arrays, build, caplog
):
    (tmp_path / "cifar_flax").write_text("a file where the folder should be")
    archives.assert_holds(cache.load_or_build(tmp_path, "tiny", "key", build), arrays)
    assert "cannot write the cache" in caplog.text


def test_a_full_disk_costs_a_warning_and_leaves_nothing(
    monkeypatch, tmp_path, arrays, build, caplog
):
    def savez(file, **_):
        file.write(bytes(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", savez)
    archives.assert_holds(cache.load_or_build(tmp_path, "tiny", "key", build), arrays)
    assert "No space left" in caplog.text
    assert [path.suffix for path in (tmp_path / "cifar_flax").iterdir()] == [".lock"]


def test_writers_may_race(tmp_path, arrays, dataset):
    start = threading.Barrier(4)
    results = []

    def load():
        start.wait()
        for _ in range(5):
            results.append(
                cache.load_or_build(tmp_path, "tiny", "key", lambda: dataset)
            )

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        archives.assert_holds(result, arrays)
    assert the_file(tmp_path).suffix == ".npz"


def test_what_a_killed_writer_left_is_removed(tmp_path, build):
    folder = tmp_path / "cifar_flax"
    folder.mkdir()
    (folder / ".tiny-v1-key.npz.cifar_flax-0123456789ab.partial").write_bytes(b"half")
    cache.load_or_build(tmp_path, "tiny", "key", build)
    assert the_file(tmp_path).name == "tiny-v1-key.npz"
