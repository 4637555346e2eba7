"""The built-in data set is reproducible, balanced, and of medium difficulty."""

import numpy as np
import pytest

from cifar_flax.data import load_dataset, shapes
from cifar_flax.data.shapes import FIGURES, make_shapes


@pytest.fixture(scope="module")
def dataset():
    return make_shapes(num_train=3000, num_test=1000)


def test_the_seed_decides(dataset):
    again = make_shapes(num_train=3000, num_test=1000)
    assert again.fingerprint == dataset.fingerprint
    other = make_shapes(num_train=3000, num_test=1000, seed=1)
    assert (other.train_images != dataset.train_images).mean() > 0.9


def test_classes_are_even_and_shuffled(dataset):
    assert np.bincount(dataset.train_labels).tolist() == [300] * 10
    assert np.bincount(dataset.test_labels).tolist() == [100] * 10
    assert np.bincount(dataset.train_labels[:500], minlength=10).min() > 25


def test_images_use_the_range_and_none_occurs_twice(dataset):
    images = np.concatenate([dataset.train_images, dataset.test_images])
    assert images.dtype == np.uint8
    assert images.min() == 0
    assert images.max() == 255
    assert len({image.tobytes() for image in images}) == len(images)


def test_nearest_mean_image_does_badly(dataset):
    """A linear model reaches little more than chance (0.134 here)."""
    train, test = (
        images.reshape(len(images), -1).astype(np.float32)
        for images in (dataset.train_images, dataset.test_images)
    )
    means = np.stack([train[dataset.train_labels == c].mean(0) for c in range(10)])
    distances = ((test[:, None] - means) ** 2).sum(-1)
    assert 0.105 < (distances.argmin(1) == dataset.test_labels).mean() < 0.3


def test_mean_colours_do_not_tell_classes_apart(dataset):
    """Tints vary in both directions of their axis and cancel in the mean."""
    colors = dataset.train_images.mean((1, 2)) / 255
    chroma = colors - colors.mean(1, keepdims=True)
    means = np.stack([chroma[dataset.train_labels == c].mean(0) for c in range(10)])
    assert np.abs(means - means.mean(0)).max() < 0.25 * chroma.std()


def test_outlines_differ_from_each_other_and_their_mirror_images():
    """Otherwise horizontal flips would turn one class into another."""
    line = np.linspace(-1.2, 1.2, 49, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    inside = [outline(x, y) < 0 for outline, _ in FIGURES.values()]
    for i, one in enumerate(inside):
        assert 0.05 < one.mean() < 0.7
        for other in inside[:i]:
            assert (one != other).mean() > 0.05
            assert (one[:, ::-1] != other).mean() > 0.05


def test_it_is_drawn_once_for_each_numpy_and_each_code(tmp_path, monkeypatch):
    calls = []

    def make():
        calls.append(1)
        return make_shapes(num_train=50, num_test=20, seed=len(calls))

    monkeypatch.setattr(shapes, "make_shapes", make)
    first, again = (load_dataset("shapes", data_dir=tmp_path) for _ in range(2))
    assert len(calls) == 1
    assert again.fingerprint == first.fingerprint
    assert again.source == "built in"
    monkeypatch.setattr(np, "__version__", "99.0")
    assert load_dataset("shapes", data_dir=tmp_path).fingerprint != first.fingerprint
    monkeypatch.setattr(shapes.inspect, "getsource", lambda _: "edited")
    load_dataset("shapes", data_dir=tmp_path)
    assert len(calls) == 3


def test_it_needs_no_folder_for_its_file(monkeypatch):
    monkeypatch.setattr(shapes, "make_shapes", lambda: make_shapes(50, 20))
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", "")
    assert len(load_dataset("shapes").train_labels) == 50
