"""Augmentation: which images it makes, and how often."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.data.augment import (
    NO_AUGMENTATION,
    Augmentation,
    alternating_flips,
    denormalise,
    mix,
    normalise,
    pad_images,
    sample_images,
    vary,
)
from cifar_flax.errors import UserError

SIZE, CHANNELS = 6, 3
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def make_images(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, SIZE, SIZE, CHANNELS), dtype=np.uint8)


def sample(padded, augmentation, indices, seed=0):
    run = jax.jit(sample_images, static_argnames="augmentation")
    key = jax.random.key(seed)
    return np.asarray(run(key, jnp.asarray(padded), indices, augmentation=augmentation))


def every_crop(padded, padding):
    """Returns all windows of one padded image, by (row, column, flipped)."""
    windows = {}
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            window = padded[row : row + SIZE, column : column + SIZE]
            windows[window.tobytes()] = (row, column, False)
            windows[window[:, ::-1].tobytes()] = (row, column, True)
    return windows


@pytest.mark.parametrize("mode", ["symmetric", "constant", "reflect"])
def test_every_offset_and_both_flips_occur_as_often(mode):
    augmentation = Augmentation(padding=2, padding_mode=mode)
    padded = pad_images(make_images(), augmentation)
    windows = every_crop(padded[1], 2)
    assert len(windows) == 50
    draws = 10_000
    batch = sample(padded, augmentation, jnp.ones(draws, jnp.int32))
    # This raises a KeyError for an image that is not a window of the padded one.
    drawn = [windows[image.tobytes()] for image in batch]
    counts = np.array([drawn.count(window) for window in windows.values()])
    assert (counts > 0).all()
    # Chi-squared with 49 degrees of freedom: 85.4 is the 99.9 % point.
    assert ((counts - draws / 50) ** 2 / (draws / 50)).sum() < 85.4


def test_padding_modes_hold_what_they_say():
    row = np.arange(1, 5, dtype=np.uint8).reshape(1, 1, 4, 1).repeat(4, axis=1)
    borders = {
        mode: pad_images(row, Augmentation(2, mode))[0, 3, :, 0].tolist()
        for mode in ("symmetric", "reflect", "constant")
    }
    assert borders["symmetric"] == [2, 1, 1, 2, 3, 4, 4, 3]
    assert borders["reflect"] == [3, 2, 1, 2, 3, 4, 3, 2]
    assert borders["constant"] == [0, 0, 1, 2, 3, 4, 0, 0]


def test_without_augmentation_the_images_come_as_they_are():
    images = make_images(5)
    padded = pad_images(images, NO_AUGMENTATION)
    batch = sample(padded, NO_AUGMENTATION, jnp.array([3, 0, 3]))
    np.testing.assert_array_equal(batch, images[[3, 0, 3]])


def test_without_flips_none_is_flipped():
    augmentation = Augmentation(padding=1, flip=False)
    padded = pad_images(make_images(1), augmentation)
    windows = every_crop(padded[0], 1)
    batch = sample(padded, augmentation, jnp.zeros(200, jnp.int32))
    assert not any(windows[image.tobytes()][2] for image in batch)


def test_the_key_decides():
    augmentation = Augmentation()
    padded = pad_images(make_images(8), augmentation)
    first, again, other = (
        sample(padded, augmentation, jnp.arange(8), seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_normalise_is_the_formula_and_denormalise_its_inverse():
    images = make_images(50)
    normal = np.asarray(normalise(jnp.asarray(images), MEAN, STD))
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(normal, expected, atol=1e-6)
    np.testing.assert_array_equal(denormalise(normal, MEAN, STD), images)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"padding": -1}, "padding is -1"),
        ({"padding": 33}, "padding is 33; it must be from 0 to 32"),
        ({"padding_mode": "wrap"}, "'wrap'.*reflect"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        Augmentation(**settings)


KEY = jax.random.key(5)
BATCH = np.random.default_rng(3).normal(size=(64, 12, 10, 3)).astype(np.float32)


def test_alternating_flips_show_both_sides_in_any_two_epochs():
    indices = jnp.asarray([7, 3, 90, 41, 8, 8])
    flips = [
        np.asarray(alternating_flips(KEY, indices, jnp.int32(e), 100)) for e in range(4)
    ]
    assert flips[0].shape == (6, 1)
    for before, after in itertools.pairwise(flips):
        assert (before != after).all()
    every = np.asarray(alternating_flips(KEY, jnp.arange(4000), jnp.int32(0), 4000))
    assert 0.45 < every.mean() < 0.55
    assert flips[0][4] == flips[0][5]


def test_given_flips_are_what_is_mirrored():
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    flips = jnp.array([[True], [False], [True], [False]])
    out = sample_images(KEY, images, jnp.arange(4), NO_AUGMENTATION, flips)
    np.testing.assert_array_equal(out[::2], images[::2, :, ::-1])
    np.testing.assert_array_equal(out[1::2], images[1::2])


def test_cutout_shows_the_mean_colour_in_a_square_anywhere():
    out = np.asarray(vary(KEY, BATCH, (0.2,) * 3, Augmentation(cutout=4)))
    cut = (out != BATCH).any(-1)
    assert (out[cut] == 0).all()
    sizes = cut.sum((1, 2))
    assert sizes.max() == 16
    assert sizes.min() < 16  # some squares are partly outside
    for one in cut:
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        assert one.sum() == len(rows) * len(columns)  # a rectangle
        assert np.ptp(rows) < 4
        assert np.ptp(columns) < 4
    assert cut.any(0).all()


def test_contrast_keeps_the_mean_and_brightness_the_differences():
    out = np.asarray(vary(KEY, BATCH, (0.2,) * 3, Augmentation(contrast=0.3)))
    mean = BATCH.mean((1, 2), keepdims=True)
    factors = (out - mean) / (BATCH - mean)
    np.testing.assert_allclose(out.mean((1, 2)), mean.squeeze(), atol=1e-5)
    each = np.median(factors, axis=(1, 2, 3))
    expected = mean + each[:, None, None, None] * (BATCH - mean)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert 0.7 <= each.min() < 0.8
    assert 1.2 < each.max() <= 1.3

    std = (0.1, 0.2, 0.4)
    shifts = np.asarray(vary(KEY, BATCH, std, Augmentation(brightness=0.2))) - BATCH
    shifts = shifts * np.float32(std)
    np.testing.assert_allclose(shifts, shifts[:, :1, :1, :1] + 0 * shifts, atol=1e-5)
    assert -0.2 <= shifts.min() < -0.15
    assert 0.15 < shifts.max() <= 0.2


def test_mixup_is_a_mean_with_the_image_before():
    shares = []
    for number in range(200):
        key = jax.random.fold_in(KEY, number)
        mixed, share = mix(key, BATCH, Augmentation(mixup=0.4))
        expected = share * BATCH + (1 - share) * np.roll(BATCH, 1, axis=0)
        np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-5)
        shares.append(float(share))
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)
    assert np.var(shares) == pytest.approx(1 / (4 * 1.8), abs=0.03)


def test_cutmix_takes_a_rectangle_of_the_image_before():
    for number in range(20):
        key = jax.random.fold_in(KEY, number)
        mixed, share = mix(key, BATCH, Augmentation(cutmix=1.0))
        others = np.roll(BATCH, 1, axis=0)
        own, other = ((np.asarray(mixed) == x).all((0, 3)) for x in (BATCH, others))
        assert (own ^ other).all()
        assert own.mean() == pytest.approx(float(share), abs=1e-6)


@pytest.mark.slow
def test_with_both_each_takes_its_turns():
    kinds = set()
    for number in range(20):
        key = jax.random.fold_in(KEY, number)
        mixed, _ = mix(key, BATCH, Augmentation(mixup=1.0, cutmix=1.0))
        kinds.add(bool((np.asarray(mixed) == BATCH).any()))
    # A mixed image keeps no pixel; a cut image almost always keeps some.
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cutout": -1}, "cutout is -1"),
        ({"cutout": 2.0}, "cutout is 2.0"),
        ({"brightness": 2}, "brightness is 2; it must be from 0 to 1"),
        ({"contrast": True}, "contrast is True"),
        ({"mixup": float("nan")}, "mixup is nan"),
        ({"cutmix": "1"}, "cutmix is '1'"),
        ({"alternate": 1}, "alternate is 1"),
        ({"alternate": True, "flip": False}, "alternate is true and flip is false"),
    ],
)
def test_wrong_augmentations_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        Augmentation(**settings)


def test_the_last_offset_can_be_left_out():
    augmentation = Augmentation(padding=2, flip=False, last_offset=False)
    padded = pad_images(make_images(), augmentation)
    windows = every_crop(padded[1], 2)
    batch = sample(padded, augmentation, jnp.ones(4_000, jnp.int32))
    drawn = {windows[image.tobytes()] for image in batch}
    assert drawn == {(i, j, False) for i in range(4) for j in range(4)}
