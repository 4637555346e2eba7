"""Augmentation: what images it can give, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.data.augment import (
    NO_AUGMENTATION,
    Augmentation,
    denormalise,
    normalise,
    pad_images,
    sample_images,
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
    """All windows of one padded image, by (row, column, flipped)."""
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
    # An image that is not a window of the padded one is a KeyError here.
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
