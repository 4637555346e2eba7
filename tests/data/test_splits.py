"""The splits into training, validation and test images."""

import numpy as np
import pytest

from cifar_flax.data.dataset import make_dataset
from cifar_flax.data.splits import split_dataset
from cifar_flax.errors import UserError


def make_numbered(count=200, classes=4, own=None):
    """Makes images whose first two pixels hold their index."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count) % 256
    images[:, 0, 0, 1] = np.arange(count) // 256
    labels = rng.permutation(np.arange(count) % classes).astype(np.int32)
    return make_dataset(
        "numbered",
        train_images=images,
        train_labels=labels,
        test_images=images[:20],
        test_labels=labels[:20],
        class_names=tuple("abcd"[:classes]),
        source="a test",
        val_images=images[:own] if own else None,
        val_labels=labels[:own] if own else None,
    )


def places(split):
    return split.images[:, 0, 0, 0] + 256 * split.images[:, 0, 0, 1].astype(int)


def test_every_training_image_is_in_one_split_with_its_label():
    dataset = make_numbered()
    splits = split_dataset(dataset, val_size=40)
    together = np.concatenate([places(splits.train), places(splits.val)])
    assert sorted(together) == list(range(200))
    for split in (splits.train, splits.val):
        np.testing.assert_array_equal(split.labels, dataset.train_labels[places(split)])
    np.testing.assert_array_equal(splits.test.images, dataset.test_images)


@pytest.mark.parametrize(("val_size", "train_size"), [(40, None), (10, 60), (41, 33)])
def test_both_are_stratified_to_within_an_image(val_size, train_size):
    splits = split_dataset(make_numbered(), val_size, train_size)
    assert len(splits.val) == val_size
    assert len(splits.train) == (train_size or 200 - val_size)
    for split in (splits.train, splits.val):
        counts = np.bincount(split.labels, minlength=4)
        assert np.abs(counts - len(split) / 4).max() <= 1


def test_the_division_is_fixed_and_validation_ignores_the_training_size():
    dataset = make_numbered()
    first, again = (split_dataset(dataset, 40) for _ in range(2))
    smaller = split_dataset(dataset, 40, train_size=50)
    np.testing.assert_array_equal(places(first.train), places(again.train))
    np.testing.assert_array_equal(places(first.val), places(smaller.val))
    assert set(places(smaller.train)) < set(places(first.train))


def test_a_seed_divides_otherwise_and_as_evenly():
    dataset = make_numbered()
    usual, one, again, other = (
        split_dataset(dataset, 40, seed=seed) for seed in (None, 3, 3, -4)
    )
    for splits in (one, other):
        assert len(splits.val) == 40
        counts = np.bincount(splits.val.labels)
        assert counts.max() - counts.min() <= 1
        assert set(places(splits.val)) != set(places(usual.val))
        assert sorted([*places(splits.train), *places(splits.val)]) == list(range(200))
    np.testing.assert_array_equal(places(one.val), places(again.val))
    assert set(places(one.val)) != set(places(other.val))


def test_validation_images_are_spread_over_the_set():
    val = split_dataset(make_numbered(), 40).val
    assert 60 < places(val).mean() < 140


def test_no_validation_split():
    splits = split_dataset(make_numbered(), 0)
    assert splits.val is None
    assert len(splits.train) == 200


@pytest.mark.parametrize(
    ("val_size", "train_size", "words"),
    [
        (200, None, "val_size is 200.*0 to 199"),
        (-1, None, "val_size is -1"),
        (40, 161, "train_size is 161.*1 to 160"),
        (40, 0, "train_size is 0"),
        (0.1, None, "val_size is 0.1; it must be a whole number"),
        (40, "9", "train_size is '9'; it must be a whole number"),
    ],
)
def test_impossible_sizes_are_named(val_size, train_size, words):
    with pytest.raises(UserError, match=words):
        split_dataset(make_numbered(), val_size, train_size)


def test_validation_images_of_the_data_set_are_used_and_all_others_trained_on():
    dataset = make_numbered(own=30)
    splits = split_dataset(dataset)
    np.testing.assert_array_equal(splits.val.images, dataset.val_images)
    np.testing.assert_array_equal(splits.val.labels, dataset.val_labels)
    np.testing.assert_array_equal(splits.train.images, dataset.train_images)
    np.testing.assert_array_equal(splits.test.images, dataset.test_images)
    part = split_dataset(dataset, train_size=200 - 40)
    assert len(part.train) == 160
    np.testing.assert_array_equal(part.val.images, dataset.val_images)


def test_with_validation_images_of_its_own_zero_is_the_only_size():
    dataset = make_numbered(own=30)
    splits = split_dataset(dataset, 0)
    assert splits.val is None
    assert len(splits.train) == 200
    with pytest.raises(UserError) as error:
        split_dataset(dataset, 40)
    for words in ("val_size is 40", "30 validation images of its own", "leave"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_by_default_5000_are_held_out_or_the_error_says_what_to_pass():
    splits = split_dataset(make_numbered(5_100))
    by_size = split_dataset(make_numbered(5_100), 5_000)
    assert (len(splits.train), len(splits.val)) == (100, 5_000)
    np.testing.assert_array_equal(places(splits.val), places(by_size.val))
    np.testing.assert_array_equal(places(splits.train), places(by_size.train))
    words = r"5000 by default; .* 200 .*pass --val_size=N .*from 0 to 199"
    with pytest.raises(UserError, match=words):
        split_dataset(make_numbered())
