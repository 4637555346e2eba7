"""What follows a convolution is computed by it, with the same values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cifar_flax.layers.native import library
from cifar_flax.layers.tiling import in_tiles

pytestmark = pytest.mark.skipif(
    not library.available(), reason="the kernels need a C compiler"
)

CHANNELS = 12


def convolution(x, w, stride=1):
    """Cross-correlation with half of the kernel's size as padding."""
    return lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        [(n // 2, n // 2) for n in w.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // w.shape[2],
    )


def draw(*shape, seed=0):
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def count_in(function, *args):
    """How many convolutions there are, and how many of them do more."""
    text = str(jax.make_jaxpr(in_tiles(function))(*args))
    return text.count(" convolve["), text.count(" convolve_after[")


def assert_same(function, *args):
    found, expected = jax.jit(in_tiles(function))(*args), jax.jit(function)(*args)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        scale = np.nanmax(np.abs(np.where(np.isfinite(other), other, 0)), initial=1)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6 * scale)


A, B = draw(CHANNELS, seed=1), draw(CHANNELS, seed=2)
AFTER = {
    "bias": lambda y: y + A,
    "bias and ReLU": lambda y: jax.nn.relu(y + A),
    "ReLU": jax.nn.relu,
    "norm": lambda y: (y - A) * jnp.exp(B) + B,
    "norm and ReLU": lambda y: jax.nn.relu((y - A) * B + 1),
    "ReLU and norm": lambda y: (jax.nn.relu(y) - A) * B + A,
    "from a number": lambda y: 3 - jnp.minimum(A - y, 0.5) * 2,
    "within bounds": lambda y: jnp.minimum(jnp.maximum(y * B, -0.5), 0.25),
    "other order": lambda y: A + B * jnp.maximum(0.0, 1.0 - y),
}


@pytest.mark.parametrize("name", AFTER)
def test_what_follows_is_computed_by_the_convolution(name):
    def net(x, w):
        return AFTER[name](convolution(x, w))

    args = draw(32, 6, 5, 8), draw(3, 3, 8, CHANNELS)
    assert count_in(net, *args) == (0, 1)
    assert_same(net, *args)


@pytest.mark.parametrize(
    ("kernel", "channels", "stride"),
    [
        ((3, 3, 24, CHANNELS), 24, 1),  # minimal filtering
        ((5, 5, 3, CHANNELS), 3, 2),
        ((1, 1, 70, CHANNELS), 70, 1),
        ((3, 3, 1, CHANNELS), CHANNELS, 1),  # depthwise
        ((3, 3, 1, CHANNELS), 6, 2),
        ((3, 3, 2, CHANNELS), 6, 1),  # groups
        ((3, 3, 4, CHANNELS), 8, 1),
    ],
)
def test_every_kind_of_kernel_can(kernel, channels, stride):
    def net(x, w):
        return jax.nn.relu(convolution(x, w, stride) * B + A) * A + B

    args = draw(32, 9, 11, channels), draw(*kernel)
    assert count_in(net, *args) == (0, 1)
    assert_same(net, *args)


def test_nan_and_infinity_are_those_of_the_operations():
    x, w = draw(16, 4, 4, 4), draw(1, 1, 4, CHANNELS)
    x = x.at[0, 0, 0, 0].set(jnp.nan).at[1, 1, 1, :].set(jnp.inf)

    def net(x, w):
        return jnp.minimum(jax.nn.relu(convolution(x, w) + A), 6.0) * B

    assert np.isnan(jax.jit(in_tiles(net))(x, w)[0, 0, 0]).all()
    assert_same(net, x, w)


def test_what_is_needed_elsewhere_is_kept():
    def both(x, w):
        y = convolution(x, w)
        return y, y + A

    def residual(x, w):
        y = convolution(x, w) + A
        return y + jax.nn.relu(y)

    args = draw(16, 4, 4, CHANNELS), draw(3, 3, CHANNELS, CHANNELS)
    assert count_in(both, *args) == (1, 0)
    assert count_in(residual, *args) == (0, 1)  # the bias alone
    for net in both, residual:
        assert_same(net, *args)


def test_a_scale_that_comes_later_is_awaited():
    def net(x, w, scale):
        y = convolution(x, w)
        return y * jnp.sqrt(jnp.square(scale) + 1)

    args = draw(16, 4, 4, 3), draw(3, 3, 3, CHANNELS), A
    assert count_in(net, *args) == (0, 1)
    assert_same(net, *args)


def test_gradients_read_where_a_relu_passed_from_its_result():
    def loss(params, x):
        for w, b in params:
            x = jax.nn.relu(convolution(x, w) + b)
        return jnp.square(x).mean()

    params = [(draw(3, 3, n, CHANNELS), A) for n in (4, CHANNELS)]
    x = draw(16, 6, 6, 4)
    assert count_in(jax.value_and_grad(loss), params, x)[1] == 2
    assert_same(jax.value_and_grad(loss), params, x)


def test_a_relu_of_zeros_has_the_gradient_zero():
    w, x = jnp.zeros((1, 1, 4, CHANNELS)), draw(16, 4, 4, 4)

    def loss(w):
        return jax.nn.relu(convolution(x, w)).sum()

    assert count_in(jax.grad(loss), w)[1] == 1
    assert not np.asarray(jax.jit(in_tiles(jax.grad(loss)))(w)).any()
