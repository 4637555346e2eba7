"""Convolutions of any JAX program by the kernels, against XLA and NumPy."""

import subprocess
import sys
import threading

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies
from jax import export, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import cifar_flax as cf
from cifar_flax.layers import rule
from cifar_flax.layers.forms import NATIVE
from cifar_flax.layers.native import library, primitives
from cifar_flax.layers.native.geometry import Geometry
from tests.layers.definition import convolution, gradients

pytestmark = pytest.mark.skipif(not library.available(), reason="no kernels here")

ORDERS = [
    ("NHWC", "HWIO", "NHWC"),
    ("NCHW", "OIHW", "NCHW"),
    ("CHWN", "IHWO", "HWNC"),  # of the gradient of a kernel
]
LETTERS = {1: "W", 2: "HW", 3: "DHW"}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def kernels_in(function, *operands):
    """The number of calls of kernels of convolutions in a compiled program."""
    text = jax.jit(lambda *given: function(*given)).lower(*operands).as_text()
    return text.count("custom_call @cifar_flax_conv_")


def with_gradients(function, images, kernel, grad):
    outputs, vjp = jax.vjp(function, images, kernel)
    return outputs, *vjp(grad)


def assert_close(found, expected, tolerance=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        size = np.abs(theirs).max(initial=0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * size)


# Strides, padding, dilations, groups; count, height, width, channels and features of a
# group, size of the kernel.
GEOMETRIES = [
    # Depthwise; with a stride; with several features, by blocks of positions and taps.
    (((1, 1), ((2, 2), (2, 2)), (1, 1), 20), (17, 9, 10, 1, 1, 5, 5)),
    (((2, 2), ((1, 1), (1, 1)), (1, 1), 33), (40, 8, 7, 1, 1, 3, 3)),
    (((1, 1), ((3, 3), (3, 3)), (1, 1), 3), (16, 12, 9, 1, 3, 7, 7)),
    # Several bands of rows.
    (((1, 1), ((1, 1), (1, 1)), (1, 1), 2), (1, 90, 70, 2, 1, 3, 3)),
    # Groups; dilated; not square; padded on one side, cropped on the other.
    (((1, 1), ((1, 1), (1, 1)), (1, 1), 4), (17, 7, 9, 8, 12, 3, 3)),
    (((1, 1), ((2, 2), (2, 2)), (2, 2), 1), (17, 9, 9, 5, 13, 3, 3)),
    (((1, 2), ((0, 0), (1, 2)), (1, 1), 1), (17, 6, 9, 7, 9, 1, 4)),
    (((2, 3), ((3, -1), (-2, 2)), (3, 2), 3), (5, 13, 14, 3, 5, 2, 3)),
    # A stride that the dilation divides, and phases of it without any tap.
    (((4, 2), ((1, 0), (2, 3)), (2, 2), 2), (3, 15, 11, 2, 2, 3, 2)),
    (((3, 1), ((0, 0), (0, 0)), (1, 3), 1), (3, 10, 10, 2, 3, 1, 2)),
]


def assert_is_the_definition(geometry, sizes):
    count, height, width, channels, features, *size = sizes
    images = draw(0, count, height, width, geometry.groups * channels)
    kernel = draw(1, *size, channels, geometry.groups * features)
    outputs = convolution(images, kernel, geometry)
    grad = draw(2, *outputs.shape)

    found = (
        NATIVE.convolve(images, kernel, geometry),
        NATIVE.input_gradient(grad, kernel, images.shape[1:3], geometry),
        NATIVE.kernel_gradient(images, grad, kernel.shape[:2], geometry),
    )
    assert_close(found, (outputs, *gradients(images, kernel, geometry, grad)))


@pytest.mark.parametrize(("geometry", "sizes"), GEOMETRIES, ids=str)
def test_every_kind_and_its_gradients_are_those_of_float64(geometry, sizes):
    assert_is_the_definition(Geometry(*geometry), sizes)


few = strategies.integers(1, 9)
pairs = strategies.tuples(strategies.integers(1, 4), strategies.integers(1, 4))
sides = strategies.tuples(strategies.integers(-2, 4), strategies.integers(-2, 4))


@pytest.mark.slow
@hypothesis.settings(max_examples=hypothesis.settings().max_examples * 5)
@hypothesis.given(
    geometry=strategies.builds(
        Geometry,
        pairs,
        strategies.tuples(sides, sides),
        strategies.one_of(strategies.just((1, 1)), pairs),
        strategies.one_of(strategies.just(1), strategies.integers(2, 40)),
    ),
    sizes=strategies.tuples(strategies.integers(1, 40), *[few] * 6),
)
def test_drawn_kinds_are_those_of_float64(geometry, sizes):
    hypothesis.assume(0 not in geometry.outputs(sizes[1:3], sizes[5:]))
    assert_is_the_definition(geometry, sizes)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_channel(value):
    geometry = Geometry(padding=((1, 1), (1, 1)), groups=5)
    images, kernel = draw(0, 16, 6, 6, 5), draw(1, 3, 3, 1, 5)
    images[3, 2, 4, 1] = value
    tiles = primitives.convolve(primitives.tile(images), kernel, geometry)
    found = ~np.isfinite(primitives.untile(tiles, 16))
    expected = np.zeros_like(found)
    expected[3, 1:4, 3:6, 1] = True
    np.testing.assert_array_equal(found, expected)


def check_rule(order, spatial, count, channels, features, vmapped, **settings):
    """Values, gradients and those under vmap: the same as XLA's, by the kernels."""
    letters = LETTERS[len(spatial)]
    order = tuple(name.replace("HW", letters) for name in order)
    axes = lax.conv_dimension_numbers((0,) * len(order[0]), (0,) * len(order[1]), order)
    groups, size = settings["feature_group_count"], settings.pop("size")
    shapes = []
    for spec, pair, lengths in (
        (axes.lhs_spec, (count, groups * channels), spatial),
        (axes.rhs_spec, (groups * features, channels), size),
    ):
        shape = np.zeros(len(spec), int)
        shape[list(spec)] = (*pair, *lengths)
        shapes.append(shape)
    images, kernel = (draw(k, *shape) for k, shape in enumerate(shapes))

    def convolve(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, dimension_numbers=order, **settings
        )

    outputs = jax.eval_shape(convolve, images, kernel).shape
    if 0 in outputs:
        return

    def all_of(images, kernel, grad):
        once = with_gradients(convolve, images, kernel, grad)
        if not vmapped:
            return once
        twice = jax.vmap(lambda x, w, dy: with_gradients(convolve, x, w, dy))(
            jnp.stack([images, -images]),
            jnp.stack([kernel, 2 * kernel]),
            jnp.stack([grad, grad]),
        )
        return *once, *twice

    operands = images, kernel, draw(2, *outputs)
    try:
        expected = jax.jit(all_of)(*operands)
    except (
        TypeError,
        ValueError,
    ):  # JAX cannot derive the gradient of a few drawn ones
        assert not vmapped
        return
    with cf.fast_convolutions():
        assert kernels_in(all_of, *operands) >= (4 if vmapped else 1)
        found = jax.jit(all_of)(*operands)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("order", "spatial", "settings"),
    [
        # A transposed convolution, and one that is dilated on both sides.
        (0, (6, 7), {"lhs_dilation": (2, 3), "padding": [(2, 1), (1, 2)]}),
        (1, (6, 7), {"lhs_dilation": (2, 2), "window_strides": (3, 1)}),
        (0, (6, 7), {"lhs_dilation": (2, 2), "rhs_dilation": (2, 1)}),
        # One axis, three axes.
        (1, (9,), {"size": (4,), "window_strides": (2,), "padding": [(1, 2)]}),
        (0, (5, 6, 4), {"size": (2, 3, 3), "window_strides": (2, 1, 1)}),
        (2, (7, 6), {"feature_group_count": 3, "channels": 2, "rhs_dilation": (2, 2)}),
        (2, (6, 6), {"batch_group_count": 2, "count": 8}),
    ],
)
def test_the_rule_computes_what_xla_computes(order, spatial, settings):
    plain = {
        "window_strides": (1,) * len(spatial),
        "padding": [(1, 1)] * len(spatial),
        "size": (3, 2),
        "feature_group_count": 1,
        "count": 9,
        "channels": 3,
        "features": 4,
    }
    check_rule(ORDERS[order], spatial, vmapped=True, **{**plain, **settings})


@pytest.mark.slow
@hypothesis.given(data=strategies.data())
def test_the_rule_computes_drawn_convolutions(data):
    axes = data.draw(strategies.integers(1, 3))

    def each(low, high):
        return data.draw(strategies.tuples(*[strategies.integers(low, high)] * axes))

    check_rule(
        data.draw(strategies.sampled_from(ORDERS)),
        each(1, 9),
        vmapped=False,
        count=data.draw(strategies.integers(1, 20)),
        channels=data.draw(strategies.integers(1, 5)),
        features=data.draw(strategies.integers(1, 6)),
        feature_group_count=data.draw(strategies.sampled_from([1, 1, 3, 8])),
        size=each(1, 4),
        window_strides=each(1, 3),
        lhs_dilation=data.draw(strategies.sampled_from([(1,) * axes, (2,) * axes])),
        rhs_dilation=data.draw(strategies.sampled_from([(1,) * axes, (2,) * axes])),
        padding=list(zip(each(-1, 3), each(-1, 3), strict=True)),
    )


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = x + nn.gelu(
            nn.Conv(8, (5, 5), feature_group_count=8, padding="CIRCULAR")(x)
        )
        x = nn.ConvTranspose(6, (3, 3), strides=(2, 2))(x)
        return nn.Conv(4, (3, 3), kernel_dilation=2, padding="REFLECT")(x).mean((1, 2))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (5, 5), feature_group_count=8, rngs=rngs)

    def __call__(self, x):
        return self.depthwise(nnx.relu(self.first(x))).mean((1, 2))


def loss_of_linen():
    net, images = LinenNet(), draw(0, 16, 12, 12, 3)
    params = net.init(jax.random.key(0), images)
    return lambda params: jnp.square(net.apply(params, images)).sum(), params


def loss_of_nnx():
    graph, params = nnx.split(NnxNet(nnx.Rngs(0)))
    images = draw(0, 16, 12, 12, 3)

    def loss(params):
        return jnp.square(nnx.merge(graph, params)(images)).sum()

    return loss, params


@pytest.mark.parametrize("make", [loss_of_linen, loss_of_nnx])
def test_networks_of_other_libraries_get_the_kernels(make):
    loss, params = make()
    expected = jax.jit(jax.value_and_grad(loss))(params)
    assert kernels_in(jax.grad(loss), params) == 0
    with cf.fast_convolutions():
        count = kernels_in(jax.grad(loss), params)
        found = jax.jit(jax.value_and_grad(loss))(params)
    # Forward and both gradients, but the first input has no gradient.
    assert count == {loss_of_linen: 3 * 4 - 1, loss_of_nnx: 3 * 2 - 1}[make]
    assert_close(jax.tree.leaves(found), jax.tree.leaves(expected))


def convolve(images, kernel):
    return lax.conv(images, kernel, (1, 1), "SAME")


@pytest.fixture
def operands():
    return draw(0, 32, 3, 6, 6), draw(1, 5, 3, 3, 3)


def test_transformations_of_jax(operands):
    """Inside loops, checkpoints and custom gradients; derivatives of any order."""

    @jax.custom_vjp
    def own(images, kernel):
        return convolve(images, kernel)

    own.defvjp(
        lambda x, w: (convolve(x, w), (x, w)),
        lambda saved, dy: jax.vjp(convolve, *saved)[1](dy),
    )

    def scanned(images, kernel):
        def step(carry, factor):
            return carry, jnp.square(convolve(carry * factor, kernel)).sum()

        return lax.scan(step, images, jnp.arange(1.0, 4.0))[1].sum()

    def second(images, kernel):
        inner = jax.grad(scanned, 1)
        return jax.grad(lambda w: jnp.square(inner(images, w)).sum())(kernel)

    def tangents(images, kernel):
        return jax.jvp(convolve, (images, kernel), (kernel.sum() + images, kernel))

    for function in (
        jax.grad(scanned),
        jax.grad(jax.checkpoint(scanned), 1),
        second,
        tangents,
        jax.grad(lambda x, w: jnp.square(own(x, w)).sum()),
    ):
        expected = jax.jit(function)(*operands)
        with cf.fast_convolutions():
            assert kernels_in(function, *operands) > 0
            found = jax.jit(function)(*operands)
        assert_close(jax.tree.leaves(found), jax.tree.leaves(expected), 1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_types_are_computed_in_float32(operands, dtype):
    operands = [jnp.asarray(x, dtype) for x in operands]
    with cf.fast_convolutions():
        assert kernels_in(convolve, *operands) == 1
        found = jax.jit(convolve)(*operands)
    assert found.dtype == dtype
    with cf.fast_convolutions():
        exact = jax.jit(convolve)(*(x.astype(jnp.float32) for x in operands))
    np.testing.assert_array_equal(found, exact.astype(dtype))


def test_what_is_left_to_xla_is_named(operands, caplog):
    with jax.enable_x64(True), cf.fast_convolutions():
        wide = [jnp.asarray(x, jnp.float64) for x in operands]
        for _ in range(2):
            assert kernels_in(convolve, *wide) == 0
    (record,) = [r for r in caplog.records if r.name == rule.logger.name]
    assert "(32, 3, 6, 6) and (5, 3, 3, 3)" in record.getMessage()
    assert "its type is float64" in record.getMessage()


def test_a_few_images_are_left_to_xla(operands):
    """And with their axes in the order in which XLA is fast inside a loop, too."""
    images, kernel = operands
    grad = jax.grad(lambda x, w: convolve(x, w).sum(), (0, 1))
    with cf.fast_convolutions():
        assert kernels_in(convolve, images[:7], kernel) == 0
        assert kernels_in(convolve, images[:8], kernel) == 1
        assert kernels_in(grad, images[:7], kernel) == 1  # of the kernel
        text = jax.jit(convolve).lower(images[:7], kernel).as_text()
        found = jax.jit(convolve)(images[:7], kernel)
    assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in text
    assert_close([found], [convolve(images[:7], kernel)])


def test_a_block_is_for_its_thread_and_its_time(operands):
    def in_a_thread():
        found.append(kernels_in(convolve, *operands))

    found = []
    with cf.fast_convolutions():
        in_a_thread()
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
        with cf.fast_convolutions(enabled=False):
            in_a_thread()
    in_a_thread()
    assert found == [1, 0, 0, 0]


@pytest.mark.slow
def test_a_statement_is_for_the_process():
    """As a user types it; in a process of its own, because it stays in force."""
    program = """
import threading, jax, jax.numpy as jnp, cifar_flax as cf
from jax import lax
cf.fast_convolutions()
x, w = jnp.ones((32, 3, 6, 6)), jnp.ones((5, 3, 3, 3))
f = jax.jit(lambda x, w: lax.conv(x, w, (1, 1), "SAME"))
count = lambda: print(f.lower(x, w).as_text().count("@cifar_flax_conv_"))
count()
thread = threading.Thread(target=count); thread.start(); thread.join()
cf.fast_convolutions(enabled=False)
count()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1", "0"]


def test_programs_for_elsewhere_hold_no_kernels(operands):
    with cf.fast_convolutions():
        exported = export.export(jax.jit(convolve))(*operands)
        shape = export.symbolic_shape("n, 3, 6, 6")
        symbolic = jax.ShapeDtypeStruct(shape, jnp.float32)
        any_count = export.export(jax.jit(convolve))(symbolic, operands[1])
    for program in (exported, any_count):
        assert "cifar_flax" not in program.mlir_module()
        assert_close([program.call(*operands)], [convolve(*operands)])


def test_programs_for_several_devices(operands):
    """The compiler cannot divide the kernels; a program divided by hand has them."""
    mesh = Mesh(jax.devices()[:4], "d")
    images = jax.device_put(operands[0], NamedSharding(mesh, PartitionSpec("d")))
    kernel = jax.device_put(operands[1], NamedSharding(mesh, PartitionSpec()))
    by_hand = jax.shard_map(
        convolve,
        mesh=mesh,
        in_specs=(PartitionSpec("d"), PartitionSpec()),
        out_specs=PartitionSpec("d"),
    )
    with cf.fast_convolutions():
        assert kernels_in(convolve, images, kernel) == 0
        assert kernels_in(by_hand, images, kernel) == 1
        assert_close(
            [jax.jit(convolve)(images, kernel), jax.jit(by_hand)(images, kernel)],
            [convolve(*operands)] * 2,
        )


@pytest.mark.slow
def test_without_kernels_there_is_one_clear_error():
    program = "import cifar_flax as cf; cf.fast_convolutions()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"CC": "no_such_compiler", "JAX_PLATFORMS": "cpu"},
    )
    last = done.stderr.splitlines()[-1]
    assert "UserError: there are no fast convolutions: CC=no_such_compiler" in last
