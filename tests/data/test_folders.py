"""Which folders are splits and classes, which files are pictures, what is left out."""

import os
import pathlib
import zlib

import numpy as np
import pytest
from PIL import Image

from cifar_flax.data import load_dataset
from cifar_flax.data.folders import SUFFIXES, find_images
from cifar_flax.errors import UserError


def put(folder, count=6, seed=0, ending=".png"):
    """Writes different pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        place = folder / f"{number:02}{ending}"
        Image.fromarray(noise(folder.name, seed, number)).save(place, "PNG")
    return folder


def noise(*about):
    rng = np.random.default_rng(zlib.crc32(str(about).encode()))
    return rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)


def load(folder, data_dir=None):
    data_dir = folder.parent / "cache" if data_dir is None else data_dir
    return load_dataset(f"folder:{folder}", data_dir=data_dir)


def counts(data):
    return {
        split: np.bincount(labels, minlength=data.num_classes).tolist()
        for split, (_, labels) in data.pairs.items()
    }


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("TRAIN", "Test"), ("training", "validation")],
)
def test_splits_have_several_names(tmp_path, train, test):
    for split, count in ((train, 5), (test, 2)):
        for name in ("glioma", "pituitary"):
            put(tmp_path / "d" / split / name, count)
    data = load(tmp_path / "d")
    assert data.class_names == ("glioma", "pituitary")
    assert counts(data) == {"train": [5, 5], "test": [2, 2]}


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "car", "train"):
        put(tmp_path / "d" / name)
    data = load(tmp_path / "d")
    assert data.class_names == ("bus", "car", "train")
    assert counts(data) == {"train": [5, 5, 5], "test": [1, 1, 1]}


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("cat", "dog", "test"), "test seems to be a split"),
        (("test/cat", "test/dog", "val/cat"), "test seems to be a split"),
        (("seg_train/cat", "seg_test/cat"), "seem to be splits; call them train, test"),
        (("training set/cat", "Test Set/cat"), "seem to be splits"),
        (("train/cat", "train/dog", "bus"), "has train but no test.*, and bus beside"),
        (("train", "test"), "train has no folders in it"),
        (("train/cat", "Training/cat", "test/cat"), "has train and Training"),
        (("train/cat", "train/dog", "test"), "test has no pictures in folders"),
        (("train/cat", "train/dog", "test/cat", "Testing/cat"), "test and Testing"),
        (
            ("cat/train", "cat/test", "dog/train", "dog/test"),
            "cat has training and test images inside a class",
        ),
    ],
)
def test_folders_that_may_mean_two_things_are_refused(tmp_path, folders, words):
    for name in folders:
        put(tmp_path / "d" / name)
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path / "d")
    assert "\n" not in str(caught.value)


def test_a_class_without_a_training_picture_is_refused(tmp_path):
    folder = tmp_path / "d"
    for name in ("train/a", "train/b", "test/a", "test/b"):
        put(folder / name)
    (folder / "train" / "c").mkdir()
    with pytest.raises(UserError, match="train/c has no picture"):
        load(folder)
    (folder / "train" / "c" / "scan.heic").touch()
    with pytest.raises(UserError, match="train/c has no picture"):
        load(folder)
    alone = tmp_path / "alone"
    put(alone / "a")
    put(alone / "b", 1)
    with pytest.raises(UserError, match="class 'b'; one of two images is held out"):
        load(alone)


def test_what_is_left_out_is_said(tmp_path):
    folder = tmp_path / "d"
    for split in ("train", "test"):
        for name in ("a", "b"):
            put(folder / split / name, seed=split)
    before = load(folder)
    assert before.reading.notes == ()
    put(folder / "train" / "a" / ".ipynb_checkpoints", seed="test")
    put(folder / "__MACOSX" / "train" / "a")
    (folder / "train" / "a" / "._00.png").write_bytes(b"not a picture")
    (folder / "train" / ".DS_Store").touch()
    (folder / "train" / "b" / "readme.txt").touch()
    (folder / "test" / "b" / "scan.heic").touch()
    put(folder / "train", 2)
    put(folder / "unlabelled", 3)
    after = load(folder)
    assert after.fingerprint == before.fingerprint
    assert after.reading.notes == (
        "left out: files outside the folders of the classes: 2 (00.png, 01.png)",
        "left out: files with other endings: 2 (readme.txt, scan.heic)",
        "left out: folders beside those of the splits: 1 (unlabelled)",
        "left out: hidden files and folders: 4 "
        "(.DS_Store, ._00.png, .ipynb_checkpoints, ...)",
    )


def test_no_ending_of_a_picture_is_left_out(tmp_path):
    put(tmp_path / "d" / "a")
    for ending in SUFFIXES:
        put(tmp_path / "d" / "b", 1, ending=ending.upper())
        path = tmp_path / "d" / "b" / f"00{ending.upper()}"
        path.rename(path.with_stem(f"picture{len(ending)}"))
    data = load(tmp_path / "d")
    assert sum(counts(data)[s][1] for s in ("train", "test")) == len(SUFFIXES)
    assert len(find_images([tmp_path / "d" / "b"])) == len(SUFFIXES)


def test_linked_folders_are_read_once(tmp_path):
    for name in "ab":
        put(tmp_path / "d" / name)
    more = put(tmp_path / "more", 12)
    (tmp_path / "d" / "a" / "more").symlink_to(more)
    (tmp_path / "d" / "a" / "again").symlink_to(tmp_path / "d" / "a")
    put(tmp_path / "elsewhere")
    (tmp_path / "d" / "c").symlink_to(tmp_path / "elsewhere")
    data = load(tmp_path / "d")
    assert counts(data) == {"train": [15, 5, 5], "test": [3, 1, 1]}
    assert "left out: links to a folder that is read anyway: 1 (again)" in (
        data.reading.notes
    )


@pytest.mark.parametrize(
    ("link", "to"),
    [("train/a/x", "train/b"), ("train/a/x", ""), ("test/a/x", "train/a")],
)
def test_a_folder_has_one_class_and_is_not_in_training_and_test(tmp_path, link, to):
    folder = tmp_path / "d"
    for name in ("train/a", "train/b", "test/a", "test/b", "val/a"):
        put(folder / name)
    (folder / "val" / "a" / "x").symlink_to(folder / "test" / "a")
    assert counts(load(folder)) == {"train": [6, 6], "test": [6, 6], "val": [12, 0]}
    (folder / link).symlink_to(folder / to)
    with pytest.raises(UserError, match=r"which is read as .*, too; remove the link"):
        load(folder)


def test_equal_images_of_two_splits_or_classes_are_counted(tmp_path):
    folder = tmp_path / "d"
    for split, name in [(s, n) for s in ("train", "test", "val") for n in "ab"]:
        put(folder / split / name, seed=split)
    for number in range(2):
        image = Image.fromarray(noise("a", "train", number))
        image.save(folder / "test" / "a" / f"copy{number}.png")
    Image.fromarray(noise("a", "train", 0)).save(folder / "train" / "b" / "copy.png")
    assert sorted(load(folder).reading.notes) == [
        "test images that are training images, too: 2",
        "training images equal to one of another class: 1",
    ]


def test_classes_that_a_split_lacks_are_named(tmp_path):
    for name in ("train/a", "train/b", "train/c", "test/b"):
        put(tmp_path / "d" / name, seed=name)
    assert load(tmp_path / "d").reading.notes == (
        "classes without a test image: 2 (a, c)",
    )


def bmp(folder, name, seed):
    """Writes a picture whose size does not depend on its content, of a fixed time."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path)
    os.utime(path, (10**9, 10**9))
    return path


def test_another_folder_with_equal_names_sizes_and_times_is_read(tmp_path):
    loaded = []
    for seed in ("one", "other"):
        folder = tmp_path / seed / "d"
        for number in range(8):
            bmp(folder, f"{'ab'[number % 2]}/{number}.bmp", (seed, number))
        loaded.append(load(folder, tmp_path / "cache"))
    assert loaded[0].fingerprint != loaded[1].fingerprint
    pixels = {noise(("other", number)).tobytes() for number in range(8)}
    assert {image.tobytes() for image in loaded[1].train_images} <= pixels


def test_labels_corrected_by_mv_are_read(tmp_path):
    folder = tmp_path / "d"
    for number in range(6):
        for name in "ab":
            bmp(folder, f"{name}/{number}.bmp", (name, number))
    before = load(folder)
    first, second = (folder / name / "3.bmp" for name in "ab")
    aside = first.rename(tmp_path / "aside")
    second.rename(first)
    pathlib.Path(aside).rename(second)
    after = load(folder)
    assert after.fingerprint != before.fingerprint
    wrong = noise(("a", 3)).tobytes()
    labels = [
        label
        for images, labels in after.pairs.values()
        for image, label in zip(images, labels, strict=True)
        if image.tobytes() == wrong
    ]
    assert labels == [1]
