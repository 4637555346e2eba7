import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from cifar_flax.data import make_dataset
from cifar_flax.data.dataset import channel_statistics
from cifar_flax.errors import UserError

NAMES = ("a", "b", "c")


def build(arrays, **changes):
    fields = {
        "train_images": arrays.train_images,
        "train_labels": arrays.train_labels % 3,
        "test_images": arrays.test_images,
        "test_labels": arrays.test_labels % 3,
        "class_names": NAMES,
        "source": "a test",
    }
    return make_dataset("tiny", **(fields | changes))


def test_fields(arrays):
    dataset = build(arrays)
    assert (dataset.name, dataset.source) == ("tiny", "a test")
    assert (dataset.class_names, dataset.num_classes) == (NAMES, 3)
    np.testing.assert_array_equal(dataset.train_images, arrays.train_images)
    np.testing.assert_array_equal(dataset.test_labels, arrays.test_labels % 3)
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"


def test_statistics_are_those_of_the_training_images(arrays):
    dataset = build(arrays)
    pixels = arrays.train_images.astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-12)
    assert all(type(value) is float for value in dataset.mean + dataset.std)


def test_statistics_across_blocks_of_images():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2345, 2, 2, 3), dtype=np.uint8)
    images[..., 1] //= 2
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)


def test_a_constant_channel_can_be_divided_by():
    mean, std = channel_statistics(np.full((3, 32, 32, 3), 51, np.uint8))
    assert mean == (0.2, 0.2, 0.2)
    assert std == (1 / 255, 1 / 255, 1 / 255)


def test_given_statistics_and_fingerprint_are_kept(arrays):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    dataset = build(arrays, mean=mean, std=std, fingerprint="f")
    assert (dataset.mean, dataset.std, dataset.fingerprint) == (mean, std, "f")
    assert build(arrays, mean=mean).std == build(arrays).std


def test_fingerprint_is_the_documented_hash(arrays):
    content = (
        arrays.train_images.tobytes()
        + (arrays.train_labels % 3).astype("<i4").tobytes()
        + arrays.test_images.tobytes()
        + (arrays.test_labels % 3).astype("<i4").tobytes()
        + b"a\nb\nc"
    )
    assert build(arrays).fingerprint == hashlib.sha256(content).hexdigest()


def test_validation_images_come_after_the_rest_in_the_fingerprint(arrays):
    images, labels = arrays.test_images[::-1], arrays.test_labels[::-1] % 3
    dataset = build(arrays, val_images=images, val_labels=labels)
    np.testing.assert_array_equal(dataset.val_images, images)
    np.testing.assert_array_equal(dataset.val_labels, labels)
    assert dataset.val_labels.dtype == np.int32
    assert dataset.has_validation
    digest = hashlib.sha256(
        arrays.train_images.tobytes()
        + (arrays.train_labels % 3).astype("<i4").tobytes()
        + arrays.test_images.tobytes()
        + (arrays.test_labels % 3).astype("<i4").tobytes()
        + b"a\nb\nc"
        + images.tobytes()
        + labels.astype("<i4").tobytes()
    )
    assert dataset.fingerprint == digest.hexdigest()
    without = build(arrays)
    assert (without.val_images, without.val_labels) == (None, None)
    assert not without.has_validation
    assert (dataset.mean, dataset.std) == (without.mean, without.std)


@pytest.mark.parametrize(
    "key",
    ["train_images", "train_labels", "test_images", "test_labels", "class_names"],
)
def test_fingerprint_depends_on_everything(arrays, key):
    dataset = build(arrays)
    value = getattr(dataset, key)
    if key == "class_names":
        changed = ("x", *value[1:])
    else:
        changed = value.copy()
        changed.flat[-1] = (changed.flat[-1] + 1) % 3
    assert build(arrays, **{key: changed}).fingerprint != dataset.fingerprint


def test_images_in_another_memory_order_are_the_same(arrays):
    turned = np.asfortranarray(arrays.train_images)
    assert build(arrays, train_images=turned).fingerprint == build(arrays).fingerprint


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("train_images", lambda x: x / 255, r"train split.*float64.*uint8"),
        ("test_images", lambda x: x[:, :28], r"test split.*\[10, 28, 32, 3\]"),
        ("test_images", lambda x: x[..., 0], r"test split.*\[10, 32, 32\]"),
        ("test_images", lambda x: x[:0], "no images"),
        ("train_labels", lambda y: y * 1.0, "float64"),
        ("train_labels", lambda y: y[1:], "one for each of 50 images"),
        ("test_labels", lambda y: y[:, None], "one for each of 10 images"),
        ("test_labels", lambda y: y + 1, "label 3; with 3 classes"),
        ("test_labels", lambda y: y - 1, "label -1"),
    ],
)
def test_other_arrays_are_refused(arrays, key, change, message):
    good = getattr(build(arrays), key)
    with pytest.raises(UserError, match=message):
        build(arrays, **{key: change(good)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"val_images": 1}, "only val_images is given"),
        ({"val_labels": 1}, "only val_labels is given"),
        ({"val_images": slice(4), "val_labels": 1}, "val split: labels"),
        ({"val_images": (..., 0), "val_labels": 1}, r"val split: images .*\[10, 32"),
    ],
)
def test_other_validation_arrays_are_refused(arrays, given, message):
    arrays_of = {"val_images": arrays.test_images, "val_labels": arrays.test_labels % 3}
    given = {
        key: arrays_of[key] if part == 1 else arrays_of[key][part]
        for key, part in given.items()
    }
    with pytest.raises(UserError, match=message):
        build(arrays, **given)


def test_nothing_heavy_is_imported():
    heavy = {"jax", "tensorflow_datasets", "requests", "PIL", "rich", "absl"}
    program = f"import sys, cifar_flax.data; print({heavy!r} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
