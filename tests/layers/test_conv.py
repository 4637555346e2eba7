"""The implementations of the convolution against its definition and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.layers import Conv, Dense, conv_product, rule
from cifar_flax.layers.conv_product import conv2d_product
from cifar_flax.layers.native import library, primitives
from cifar_flax.layers.native.geometry import Geometry
from tests.layers.definition import convolution, gradients

# (height, width), (size, stride, padding, channels, features)
CASES = [
    ((7, 10), (3, 1, 1, 20, 20)),
    ((7, 10), (3, 2, 1, 10, 20)),
    ((7, 10), (5, 1, 2, 3, 10)),
    ((7, 10), (7, 1, 1, 3, 16)),
    ((7, 10), (1, 1, 0, 5, 1)),
    ((7, 10), (2, 3, 2, 3, 7)),
    ((7, 10), (5, 3, 1, 1, 13)),
    ((7, 10), (2, 1, 0, 2, 3)),
    ((7, 10), (3, 3, 0, 4, 11)),
    # Images that are about as small as the kernel, or have few rows or one column.
    ((2, 2), (3, 1, 1, 3, 4)),
    ((3, 3), (3, 2, 1, 2, 5)),
    ((2, 7), (3, 1, 1, 2, 3)),
    ((9, 1), (3, 1, 1, 2, 3)),
]
MORE_CASES = [
    ((7, 10), (3, 2, 0, 3, 20)),
    ((7, 10), (3, 2, 1, 2, 41)),
    *(((15, 15), setting) for shape, setting in CASES if shape == (7, 10)),
    ((15, 15), (3, 2, 0, 3, 20)),
    ((15, 15), (3, 2, 1, 2, 41)),
    ((1, 4), (3, 1, 1, 2, 3)),
    ((3, 5), (3, 1, 1, 2, 3)),
    ((5, 3), (2, 1, 1, 2, 3)),
    ((2, 5), (5, 2, 2, 2, 3)),
]


def convolve_xla(images, kernel, stride, padding):
    return primitives.convolve_xla(images, kernel, Geometry.square(stride, padding))


def make_case(shape, size, channels, features, dtype=np.float64, count=2):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, *shape, channels)).astype(dtype)
    kernel = rng.normal(size=(size, size, channels, features)).astype(dtype)
    return images, kernel


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def with_gradients(conv2d, stride, padding, images, kernel, grad):
    outputs, vjp = jax.vjp(lambda x, k: conv2d(x, k, stride, padding), images, kernel)
    return outputs, *vjp(grad)


@pytest.mark.parametrize(
    ("conv2d", "shape", "setting"),
    [
        *((conv2d_product, *case) for case in CASES),
        *((convolve_xla, *case) for case in CASES[1:3]),
        *(
            pytest.param(conv2d, *case, marks=pytest.mark.slow)
            for conv2d, cases in [
                (conv2d_product, MORE_CASES),
                (convolve_xla, CASES + MORE_CASES),
            ]
            for case in cases
        ),
    ],
)
def test_outputs_and_gradients_are_those_of_the_definition(conv2d, shape, setting):
    size, stride, padding, channels, features = setting
    images, kernel = make_case(shape, size, channels, features)
    outputs = convolution(images, kernel, Geometry.square(stride, padding))
    grad = np.random.default_rng(1).normal(size=outputs.shape)
    expected = (
        outputs,
        *gradients(images, kernel, Geometry.square(stride, padding), grad),
    )
    with jax.enable_x64(True):
        found = with_gradients(conv2d, stride, padding, images, kernel, grad)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 6, 7, 8])
def test_windows_that_leave_the_cache_are_made_in_pieces(monkeypatch, count):
    images, kernel = make_case((8, 8), 3, 4, 5, count=count)
    grad = np.random.default_rng(1).normal(size=(count, 4, 4, 5))
    window_bytes = 4 * 4 * 3 * 3 * 4 * 8  # of an image; more where blocks overlap

    whole = (
        convolution(images, kernel, Geometry.square(2, 1)),
        *gradients(images, kernel, Geometry.square(2, 1), grad),
    )
    monkeypatch.setattr(conv_product, "_CACHE_BYTES", 2 * window_bytes)

    def conv2d(*case):  # another function than JAX has compiled before
        return conv2d_product(*case)

    with jax.enable_x64(True):
        pieces = with_gradients(conv2d, 2, 1, images, kernel, grad)
        program = jax.make_jaxpr(conv2d, static_argnums=(2, 3))
        looped = "scan" in str(program(images, kernel, 2, 1))
    assert looped == (count in (6, 8))
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape", [(6, 6), pytest.param((2, 2), marks=pytest.mark.slow)]
)
def test_product_has_second_derivatives(shape, stride):
    """A gradient penalty, for example, needs second derivatives."""

    def penalty(conv2d, images, kernel):
        def loss(images, kernel):
            return jnp.tanh(conv2d(images, kernel, stride, 1)).sum()

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

    def derivative(images):
        return jax.jvp(lambda x: conv2d_product(x, kernel, 1, 1), (images,), (images,))

    with pytest.raises(TypeError, match=r"forward-mode autodiff.*custom_vjp"):
        jax.jit(derivative)(images)


@pytest.mark.parametrize("stride", [1, 2])
def test_product_in_bfloat16_rounds_like_the_native_one(stride):
    """Rounding intermediate results may not cost more than rounding inputs."""
    images, kernel = make_case((8, 8), 3, 16, 16)
    exact = convolution(images, kernel, Geometry.square(stride, 1))
    images, kernel = (jnp.asarray(x, jnp.bfloat16) for x in (images, kernel))
    errors = {}
    for conv2d in (conv2d_product, convolve_xla):
        outputs = jax.jit(conv2d, static_argnums=(2, 3))(images, kernel, stride, 1)
        errors[conv2d] = np.abs(np.float64(outputs) - exact).max()
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
    layer = Conv(1, stride=2, padding=1, use_bias=False)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 0] = 1  # shifts by one pixel
    with rule.lowering(lowering):
        outputs = jax.jit(layer.apply)({"params": {"kernel": kernel}}, images)
    assert (outputs[:, 0] == 0).all()
    np.testing.assert_array_equal(outputs[:, 1, 1], images[:, 1, 1])


def test_layer_adds_a_bias_for_each_channel():
    images, kernel = make_case((4, 4), 3, 2, 3, np.float32)
    bias = np.arange(3, dtype=np.float32)
    outputs = Conv(3).apply({"params": {"kernel": kernel, "bias": bias}}, images)
    expected = convolution(images, kernel, Geometry.square(1, 0)) + bias
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [Conv(4), Dense(4)])
def test_a_layer_without_inputs_returns_its_bias_of_0(layer):
    images = jnp.zeros((2, 5, 5, 0))
    outputs, _ = layer.init_with_output(jax.random.key(0), images)
    assert outputs.shape[-1] == 4
    assert not outputs.any()
