"""Both lowerings of the convolution against a direct sum, and against each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.layers import Conv
from cifar_flax.layers.conv import conv2d_native
from cifar_flax.layers.conv_product import conv2d_product

SHAPES = [(8, 8), (15, 15), (7, 10)]
SETTINGS = [
    # size, stride, padding, channels, features
    (3, 1, 1, 20, 20),
    (3, 2, 1, 10, 20),
    (3, 2, 0, 3, 20),
    (5, 1, 2, 3, 10),
    (7, 1, 1, 3, 16),
    (3, 2, 1, 2, 41),
    (1, 1, 0, 5, 1),
    (2, 3, 2, 3, 7),
    (5, 3, 1, 1, 13),
]


def make_case(shape, size, channels, features, dtype=np.float64):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *shape, channels)).astype(dtype)
    kernel = rng.normal(size=(size, size, channels, features)).astype(dtype)
    return images, kernel


def direct_sum(images, kernel, stride, padding):
    """The definition, one output position at a time, in NumPy."""
    size = kernel.shape[0]
    pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    padded = np.pad(images, pads)
    rows, columns = ((n - size) // stride + 1 for n in padded.shape[1:3])
    outputs = np.empty((len(images), rows, columns, kernel.shape[-1]))
    for a, b in itertools.product(range(rows), range(columns)):
        window = padded[
            :, a * stride : a * stride + size, b * stride : b * stride + size
        ]
        outputs[:, a, b] = np.tensordot(window, kernel, axes=3)
    return outputs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_product_is_the_convolution_and_so_are_its_gradients(shape, setting):
    size, stride, padding, channels, features = setting

    def both(conv2d, images, kernel, grad):
        outputs, vjp = jax.vjp(
            lambda x, k: conv2d(x, k, stride, padding), images, kernel
        )
        return outputs, *vjp(grad)

    with jax.enable_x64(True):
        images, kernel = make_case(shape, size, channels, features)
        expected = direct_sum(images, kernel, stride, padding)
        grad = np.random.default_rng(1).normal(size=expected.shape)
        run = jax.jit(both, static_argnums=0)
        product = run(conv2d_product, images, kernel, grad)
        native = run(conv2d_native, images, kernel, grad)
    np.testing.assert_allclose(product[0], expected, atol=1e-10)
    for ours, theirs in zip(product, native, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_product_under_vmap_and_scan():
    images, kernel = make_case((8, 8), 3, 4, 5, np.float32)
    kernels = np.stack([kernel, 2 * kernel])

    @jax.jit
    def losses(kernels):
        def loss(kernel):
            return jnp.square(conv2d_product(images, kernel, 2, 1)).sum()

        grad = jax.grad(loss)
        _, scanned = jax.lax.scan(lambda c, k: (c, grad(k)), None, kernels)
        return jax.vmap(grad)(kernels), scanned

    mapped, scanned = losses(kernels)
    np.testing.assert_allclose(mapped, scanned, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(mapped[1], 2 * mapped[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("lowering", ["native", "product"])
def test_layer_pads_all_sides_alike(lowering):
    """Where "SAME" would pad (0, 1): an even size and stride 2."""
    images, _ = make_case((4, 4), 3, 1, 1, np.float32)
    layer = Conv(1, stride=2, padding=1, use_bias=False, lowering=lowering)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 0] = 1  # looks one pixel up and to the left
    outputs = layer.apply({"params": {"kernel": kernel}}, images)
    assert (outputs[:, 0] == 0).all()
    np.testing.assert_array_equal(outputs[:, 1, 1], images[:, 1, 1])


def test_layer_adds_a_bias_for_each_channel():
    images, kernel = make_case((4, 4), 3, 2, 3, np.float32)
    bias = np.arange(3, dtype=np.float32)
    outputs = Conv(3).apply({"params": {"kernel": kernel, "bias": bias}}, images)
    expected = direct_sum(images, kernel, 1, 0) + bias
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
