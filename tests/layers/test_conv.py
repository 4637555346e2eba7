"""The implementations of the convolution against a direct sum and each other."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.layers import Conv, conv_product
from cifar_flax.layers.conv_product import conv2d_product
from cifar_flax.layers.native import library
from cifar_flax.layers.native.primitives import convolve_xla

# (height, width); size, stride, padding, channels, features
SHAPES = [(15, 15), (7, 10)]
SETTINGS = [
    (3, 1, 1, 20, 20),
    (3, 2, 1, 10, 20),
    (3, 2, 0, 3, 20),
    (5, 1, 2, 3, 10),
    (7, 1, 1, 3, 16),
    (3, 2, 1, 2, 41),
    (1, 1, 0, 5, 1),
    (2, 3, 2, 3, 7),
    (5, 3, 1, 1, 13),
    (2, 1, 0, 2, 3),
    (3, 3, 0, 4, 11),
]
# Images that are about as small as the kernel, or have few rows or one column.
SMALL = [
    ((2, 2), (3, 1, 1, 3, 4)),
    ((3, 3), (3, 2, 1, 2, 5)),
    ((1, 4), (3, 1, 1, 2, 3)),
    ((2, 7), (3, 1, 1, 2, 3)),
    ((3, 5), (3, 1, 1, 2, 3)),
    ((5, 3), (2, 1, 1, 2, 3)),
    ((9, 1), (3, 1, 1, 2, 3)),
    ((2, 5), (5, 2, 2, 2, 3)),
]
CASES = [*itertools.product(SHAPES, SETTINGS), *SMALL]


def make_case(shape, size, channels, features, dtype=np.float64, count=2):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, *shape, channels)).astype(dtype)
    kernel = rng.normal(size=(size, size, channels, features)).astype(dtype)
    return images, kernel


def direct_sum(images, kernel, stride, padding):
    """Computes the definition in NumPy, one output position at a time."""
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


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def with_gradients(conv2d, stride, padding, images, kernel, grad):
    outputs, vjp = jax.vjp(lambda x, k: conv2d(x, k, stride, padding), images, kernel)
    return outputs, *vjp(grad)


@pytest.mark.parametrize(("shape", "setting"), CASES)
def test_product_is_the_convolution_and_so_are_its_gradients(shape, setting):
    size, stride, padding, channels, features = setting
    with jax.enable_x64(True):
        images, kernel = make_case(shape, size, channels, features)
        expected = direct_sum(images, kernel, stride, padding)
        grad = np.random.default_rng(1).normal(size=expected.shape)
        product, native = (
            with_gradients(conv2d, stride, padding, images, kernel, grad)
            for conv2d in (conv2d_product, convolve_xla)
        )
    np.testing.assert_allclose(product[0], expected, atol=1e-10)
    for ours, theirs in zip(product, native, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("count", [1, 6, 7, 8])
def test_windows_that_leave_the_cache_are_made_in_pieces(monkeypatch, count):
    images, kernel = make_case((8, 8), 3, 4, 5, count=count)
    grad = np.random.default_rng(1).normal(size=(count, 4, 4, 5))
    window_bytes = 4 * 4 * 3 * 3 * 4 * 8  # of an image; more where blocks overlap

    with jax.enable_x64(True):
        whole = with_gradients(conv2d_product, 2, 1, images, kernel, grad)
        monkeypatch.setattr(conv_product, "_CACHE_BYTES", 2 * window_bytes)
        jax.clear_caches()
        pieces = with_gradients(conv2d_product, 2, 1, images, kernel, grad)
        program = jax.make_jaxpr(conv2d_product, static_argnums=(2, 3))
        looped = "scan" in str(program(images, kernel, 2, 1))
    jax.clear_caches()
    assert looped == (count in (6, 8))
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1)])
@pytest.mark.parametrize("shape", [(6, 6), (2, 2)])
def test_product_has_second_derivatives(shape, stride, padding):
    """A gradient penalty, for example, needs second derivatives."""

    def penalty(conv2d, images, kernel):
        def loss(images, kernel):
            return jnp.tanh(conv2d(images, kernel, stride, padding)).sum()

        grads = jax.grad(loss, argnums=(0, 1))(images, kernel)
        return sum(jnp.square(grad).sum() for grad in grads)

    with jax.enable_x64(True):
        case = make_case(shape, 3, 2, 3)
        ours, theirs = (
            jax.jit(jax.grad(penalty, (1, 2)), static_argnums=0)(conv2d, *case)
            for conv2d in (conv2d_product, convolve_xla)
        )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_forward_mode_is_refused_by_name():
    images, kernel = make_case((8, 8), 3, 2, 3, np.float32)
    with pytest.raises(TypeError, match=r"forward-mode autodiff.*custom_vjp"):
        jax.jvp(lambda x: conv2d_product(x, kernel, 1, 1), (images,), (images,))


@pytest.mark.parametrize("stride", [1, 2])
def test_product_in_bfloat16_rounds_like_the_native_one(stride):
    """Rounding intermediate results may not cost more than rounding inputs."""
    images, kernel = make_case((8, 8), 3, 16, 16)
    exact = direct_sum(images, kernel, stride, 1)
    images, kernel = (jnp.asarray(x, jnp.bfloat16) for x in (images, kernel))
    errors = {
        conv2d: np.abs(np.float64(conv2d(images, kernel, stride, 1)) - exact).max()
        for conv2d in (conv2d_product, convolve_xla)
    }
    assert errors[conv2d_product] < 1.5 * errors[convolve_xla]
    assert errors[conv2d_product] < 0.02 * np.abs(exact).max()


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


@pytest.mark.parametrize("lowering", ["native", "product", "xla"])
def test_layer_pads_all_sides_alike(lowering):
    """With an even size and stride 2, "SAME" would pad (0, 1)."""
    if lowering == "native" and not library.available():
        pytest.skip("no kernels here")
    images, _ = make_case((4, 4), 3, 1, 1, np.float32)
    layer = Conv(1, stride=2, padding=1, use_bias=False, lowering=lowering)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 0] = 1  # shifts by one pixel
    outputs = layer.apply({"params": {"kernel": kernel}}, images)
    assert (outputs[:, 0] == 0).all()
    np.testing.assert_array_equal(outputs[:, 1, 1], images[:, 1, 1])


def test_layer_adds_a_bias_for_each_channel():
    images, kernel = make_case((4, 4), 3, 2, 3, np.float32)
    bias = np.arange(3, dtype=np.float32)
    outputs = Conv(3).apply({"params": {"kernel": kernel, "bias": bias}}, images)
    expected = direct_sum(images, kernel, 1, 0) + bias
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
