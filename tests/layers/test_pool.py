"""Max pools against NumPy."""

import functools

import jax
import numpy as np
import pytest

from cifar_flax.layers import global_max_pool, max_pool
from cifar_flax.layers.conv import convolve
from cifar_flax.layers.tiling import in_tiles


def test_the_largest_value_of_each_channel_and_its_gradient():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 4, 5, 2)).astype(np.float32)
    images[0, 1, 1] = images[0, 3, 0] = 9  # the first maximum gets the gradient
    grad = rng.normal(size=(3, 2)).astype(np.float32)
    outputs, vjp = jax.vjp(jax.jit(global_max_pool), images)
    np.testing.assert_array_equal(outputs, images.max(axis=(1, 2)))
    expected = np.zeros_like(images)
    for n in range(3):
        for c in range(2):
            at = np.unravel_index(images[n, ..., c].argmax(), (4, 5))
            expected[n, *at, c] = grad[n, c]
    np.testing.assert_array_equal(vjp(grad)[0], expected)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        *(((4, 6), 2), ((5, 7), 2), ((3, 4), 2), ((4, 6), 3), ((5, 7), 3), ((3, 4), 3)),
        pytest.param((18, 35), 17, marks=pytest.mark.slow),  # of 289 pixels
    ],
)
def test_the_largest_value_of_each_window_and_its_gradient(shape, size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 4, (9, *shape, 2)).astype(np.float32)  # with many ties
    height, width = (length // size for length in shape)
    grad = rng.normal(size=(9, height, width, 2)).astype(np.float32)
    expected = np.zeros_like(grad), np.zeros_like(images)
    for n, a, b, c in np.ndindex(grad.shape):
        rows, columns = (slice(k * size, (k + 1) * size) for k in (a, b))
        window = images[n, rows, columns, c]
        i, j = np.unravel_index(window.argmax(), window.shape)
        expected[0][n, a, b, c] = window.max()
        expected[1][n, a * size + i, b * size + j, c] += grad[n, a, b, c]

    def results(images, grad):
        pool = functools.partial(max_pool, size=size)
        outputs, vjp = jax.vjp(
            lambda x: pool(convolve(x, np.eye(2)[None, None])), images
        )
        return outputs, *vjp(grad)

    for compute in (results, in_tiles(results)):
        for found, exact in zip(jax.jit(compute)(images, grad), expected, strict=True):
            np.testing.assert_array_equal(found, exact)


def test_a_pool_passes_nan_on():
    images = np.zeros((1, 2, 2, 4), np.float32)
    for k in range(4):
        images[0, k // 2, k % 2, k] = np.nan
    assert np.isnan(max_pool(images, 2)).all()


@pytest.mark.parametrize("images", [np.zeros((0, 4, 4, 2)), np.zeros((3, 4, 4, 0))])
def test_pools_of_nothing(images):
    images = images.astype(np.float32)
    assert max_pool(images, 2).shape == (len(images), 2, 2, images.shape[-1])
    assert global_max_pool(images).shape == (len(images), images.shape[-1])
