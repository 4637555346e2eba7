"""The transformation that keeps arrays in tiles: same values, and few changes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cifar_flax as cf
from cifar_flax.layers.conv import convolve
from cifar_flax.layers.native import library
from cifar_flax.layers.tiling import in_tiles

pytestmark = pytest.mark.skipif(not library.available(), reason="no kernels here")

IMAGES = (32, 6, 8, 3)
ONE_TAP = np.random.default_rng(1).normal(size=(1, 1, 3, 5)).astype(np.float32)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def changes(function, *operands):
    """The numbers of changes to tiles, and back, in a program."""
    with cf.fast_convolutions():
        text = jax.jit(lambda *given: function(*given)).lower(*operands).as_text()
    return [text.count(f"@cifar_flax_{name}(") for name in ("tile", "untile")]


def convolved(images):
    """Images in tiles, once the transformation has seen this."""
    return lax.conv_general_dilated(
        images, ONE_TAP, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


OPERATIONS = {
    "elementwise": lambda y: jnp.where(y > 0, jnp.exp(y) / 3, y**2 - jax.nn.gelu(y)),
    "with plain": lambda y: y * jnp.linspace(0, 1, y.size).reshape(y.shape),
    "with one row": lambda y: y + jnp.arange(8.0)[None, None, :, None],
    "each image": lambda y: y * jnp.arange(32.0)[:, None, None, None],
    "each image and channel": lambda y: y + y.mean((1, 2), keepdims=True),
    "sums over images": lambda y: (y - y.mean((0, 1, 2))) / (y * y).mean((0, 1, 2)),
    "sums over all": lambda y: y.sum() + jnp.square(y).sum(0) + y.max((0, 3)).sum(),
    "sums of scaled": lambda y: (
        jnp.stack(
            [
                (-(y - jnp.arange(5.0)) * jnp.arange(5.0)).sum((0, 1, 2)),
                jnp.square(jnp.arange(5.0) * (2 - y) - 1).sum((0, 1, 2)),
                ((y - jnp.arange(5.0)) * (y * jnp.full((1, 1, 1, 1), 2.0))).sum(
                    (0, 1, 2)
                ),
                (y.sum((1, 2), keepdims=True) * jnp.ones((32, 6, 8, 1))).sum((0, 1, 2)),
                (y.sum((1, 2), keepdims=True) * jnp.arange(5.0)).sum((0, 1, 2)),
                (3 - y).sum((0, 1, 2)),
                (jnp.full(y.shape, 3.0) - y).sum((0, 1, 2)),
            ]
        )
        / 3000
    ),
    "layer norm": lambda y: (y - y.mean(-1, keepdims=True)) * y.var(-1, keepdims=True),
    "order of axes": lambda y: jnp.transpose(y, (3, 1, 0, 2)) * 2,
    "flat": lambda y: jnp.sin(y.reshape(32, -1)),
    "patches": lambda y: y.reshape(32, 3, 2, 4, 2, 5).transpose(0, 1, 3, 2, 4, 5) + 1,
    "images side by side": lambda y: y.reshape(8, 4 * 6, 8, 5) + 1,
    "squeezed": lambda y: jnp.squeeze(y[:, 2:3], 1) + 1,
    "padded": lambda y: jnp.pad(y, ((0, 0), (1, 2), (3, 0), (0, 1)), mode="reflect"),
    "padded images": lambda y: jnp.pad(y, ((1, 0), (0, 0), (0, 0), (0, 0))),
    "sliced": lambda y: y[:, 1::2, ::-1] * y[3:4, ::2],
    "one image": lambda y: y - y[17].mean((0, 1)) + lax.slice_in_dim(y, 16, 17),
    "split": lambda y: jnp.split(y, [2], -1)[0] * 2 + jnp.split(y, 5, -1)[4],
    "split images": lambda y: jnp.split(y, 2)[1] * 2,
    "joined": lambda y: jnp.concatenate([y, jnp.ones_like(y), 2 * y], axis=-1),
    "joined images": lambda y: jnp.concatenate([y, y]),
    "pooled": lambda y: nn.max_pool(y, (2, 2), (2, 2)) + nn.avg_pool(y, (2, 2), (2, 2)),
    "dense": lambda y: jnp.tanh(y @ draw(2, 5, 7)),
    "dense of all": lambda y: y.reshape(32, -1) @ draw(2, 240, 7),
    "products of images": lambda y: jnp.einsum("nhwc,nhwd->ncd", y, y),
    "error functions": lambda y: sum(
        (lax.erf(z) * lax.erfc(z) + lax.erfc(z) * z).astype(jnp.float32)
        for z in (y, y.astype(jnp.bfloat16).astype(jnp.float16))
    ),
    "small values of erfc": lambda y: jnp.log(lax.erfc(jnp.minimum(jnp.abs(y), 4) + 4)),
    "bits": lambda y: (
        lax.bitcast_convert_type(jnp.where(y > 0, 3.0, -5.0), jnp.uint32) // 2**20
        + lax.bitcast_convert_type(jnp.sign(y), jnp.uint8).sum(-1, dtype=jnp.uint32)
    ).astype(jnp.float32),
    "types": lambda y: y.astype(jnp.bfloat16).astype(jnp.float32) * (y > 0),
    "sorted": lambda y: jnp.sort(y, -1) + y,
    "loop": lambda y: lax.fori_loop(0, 3, lambda _, x: x * 2 + y, y),
    "condition": lambda y: lax.cond(y.sum() > 0, jnp.sin, jnp.cos, y),
    "own gradient": lambda y: nn.relu(y) * jax.nn.silu(y) + nn.standardize(y),
    "attention": lambda y: jnp.einsum(
        "nhqk,nkhd->nqhd", jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", y, y)), y
    ),
    "one head": lambda y: jnp.einsum("nqd,nkd->nqk", y[:, 0], y[:, 1]),
    "of other images": lambda y: jnp.einsum("nqhd,mqhd->nm", y, y[::-1]),
    "dense heads": lambda y: jnp.einsum("nqhd,dge->nqhge", y, draw(2, 5, 2, 3)),
    "heads to one": lambda y: jnp.einsum("nqhd,hde->nqe", y, draw(2, 8, 5, 3)),
    "checkpoint": jax.checkpoint(lambda y: jnp.sin(convolved(y[..., :3]))),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_tiles_have_the_same_values(name):
    images, operation = draw(0, *IMAGES), OPERATIONS[name]

    def function(images):
        y = convolved(images)
        return operation(y), y

    def gradient(images):
        return jax.grad(lambda x: jnp.cos(operation(convolved(x))).sum())(images)

    for one in (function, gradient):
        expected = jax.jit(one)(images)
        found = jax.jit(in_tiles(one))(images)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), strides=(2, 2), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train)(x))
            y = nn.Conv(features, (5, 5), feature_group_count=features)(x)
            y = nn.Dense(features)(nn.gelu(nn.Dense(2 * features)(nn.LayerNorm()(y))))
            x = nn.Dropout(0.5, deterministic=not train)(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def net():
    images = draw(0, 32, 16, 16, 3)
    return Net(), images, Net().init(jax.random.key(0), images, False)


def step(model, variables, images):
    def loss(params):
        logits, updates = model.apply(
            {**variables, "params": params},
            images,
            True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return jax.nn.log_softmax(logits)[:, 0].mean(), updates

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


@pytest.mark.parametrize("count", [32, 20])
def test_a_network_stays_in_tiles_from_the_images_to_the_last_layer(net, count):
    model, images, variables = net
    images = images[:count]

    def train(variables, images):
        return step(model, variables, images)

    def evaluate(variables, images):
        return model.apply(variables, images, False)

    # The images; in training the masks of dropout, too. Back: the mean, [N, C].
    assert changes(in_tiles(evaluate), variables, images) == [1, 1]
    assert sum(changes(evaluate, variables, images)) == 8
    tiles, back = changes(in_tiles(train), variables, images)
    assert tiles <= 4
    assert back <= 2
    for one in (train, evaluate):
        expected = jax.jit(one)(variables, images)
        found = jax.jit(in_tiles(one))(variables, images)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_few_images_are_computed_as_they_were(net):
    model, images, variables = net

    def evaluate(variables, images):
        return model.apply(variables, images, False)

    images = images[:7]
    plain = changes(evaluate, variables, images)
    assert changes(in_tiles(evaluate), variables, images) == plain


def test_what_lanes_without_an_image_hold_does_not_count():
    """An image of zeros divided by its length is NaN."""
    images, kernels = draw(0, 20, 9, 9, 3), (draw(1, 3, 3, 3, 8), draw(2, 3, 3, 8, 4))

    def loss(images, kernels):
        y = convolve(images, kernels[0], 1, 1)
        y = y / jnp.sqrt(jnp.square(y).sum((1, 2, 3), keepdims=True))
        return jnp.square(convolve(y, kernels[1], 1, 1)).mean()

    gradient = jax.grad(loss, 1)
    assert changes(in_tiles(gradient), images, kernels) == [1, 0]
    expected, found = (
        jax.jit(one)(images, kernels) for one in (gradient, in_tiles(gradient))
    )
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
