"""The global max pool against NumPy."""

import jax
import numpy as np

from cifar_flax.layers import global_max_pool


def test_the_largest_value_of_each_channel_and_its_gradient():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 4, 5, 2)).astype(np.float32)
    images[0, 1, 1] = images[0, 3, 0] = 9  # twice the largest: the first one counts
    grad = rng.normal(size=(3, 2)).astype(np.float32)
    outputs, vjp = jax.vjp(jax.jit(global_max_pool), images)
    np.testing.assert_array_equal(outputs, images.max(axis=(1, 2)))
    expected = np.zeros_like(images)
    for n in range(3):
        for c in range(2):
            at = np.unravel_index(images[n, ..., c].argmax(), (4, 5))
            expected[n, *at, c] = grad[n, c]
    np.testing.assert_array_equal(vjp(grad)[0], expected)
