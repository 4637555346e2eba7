"""The kernels, their memory layout, and the implementation without them."""

import functools
import os
import subprocess
import sys

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies
from jax import lax

from cifar_flax.layers import BatchNorm, rule
from cifar_flax.layers.conv import convolve, describe
from cifar_flax.layers.native import library, primitives
from cifar_flax.layers.native.geometry import Geometry
from cifar_flax.layers.tiling import in_tiles
from cifar_flax.models import create_model
from cifar_flax.models.calling import evaluate_logits, init_variables, train_logits
from tests.layers.definition import convolution, gradients
from tests.models.probe import FIRST

needs_kernels = pytest.mark.skipif(not library.available(), reason="no kernels here")


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by(lowering, function):
    """Returns a function whose convolutions a lowering computes."""
    if lowering == "native" and not library.available():
        pytest.skip("no kernels here")

    def lowered(*args):
        with rule.lowering(lowering):
            return function(*args)

    return lowered


@functools.partial(jax.jit, static_argnums=(0, 1))
def with_gradients(stride, padding, images, kernel, grad):
    outputs, vjp = jax.vjp(lambda x, w: convolve(x, w, stride, padding), images, kernel)
    return outputs, *vjp(grad)


def same(images):
    """Returns the images from a convolution, so that they are in tiles."""
    return convolve(images, jnp.eye(images.shape[-1])[None, None])


def assert_close(ours, exact, tolerance=1e-5):
    """To a share of the largest value, as rounding is."""
    assert ours.shape == exact.shape
    np.testing.assert_allclose(
        ours, exact, rtol=0, atol=tolerance * np.abs(exact).max()
    )


def assert_native_is_the_definition(
    count, height, width, channels, features, size, stride, padding
):
    images = draw(0, count, height, width, channels)
    kernel = draw(1, size, size, channels, features)
    geometry = Geometry.square(stride, padding)
    outputs = convolution(images, kernel, geometry)
    grad = draw(2, *outputs.shape)
    expected = outputs, *gradients(images, kernel, geometry, grad)
    found = by("native", with_gradients)(stride, padding, images, kernel, grad)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == jnp.float32
        assert_close(ours, theirs)


# With each of the vector widths they reach every line of the kernels.
@needs_kernels
@pytest.mark.parametrize(
    "case",
    [
        # count, height, width, channels, features, size, stride, padding
        (1, 1, 1, 1, 1, 1, 1, 0),
        (17, 7, 10, 3, 20, 3, 2, 1),
        (40, 8, 7, 26, 33, 3, 1, 1),  # minimal filtering; a part for each row of points
        (17, 30, 29, 18, 20, 3, 1, 0),  # minimal filtering; groups of panels
        (15, 20, 20, 40, 5, 5, 1, 2),  # several bands of rows, and parts of channels
        (16, 5, 10, 13, 12, 2, 3, 0),
        (1, 3, 2, 6, 7, 3, 4, 4),  # outputs without any tap inside the image
        (40, 1, 12, 9, 40, 1, 2, 0),
        (3, 6, 5, 3, 4, 3, 10**6, 1),  # most phases of the stride have no pixel
    ],
    ids=str,
)
def test_kernels_and_gradients_are_those_of_float64(case):
    assert_native_is_the_definition(*case)


@needs_kernels
@pytest.mark.parametrize(
    ("dilations", "padding"),
    [
        ((2, 2), ((2, 2), (2, 2))),
        ((1, 3), ((1, 1), (3, 3))),
        ((3, 2), ((0, 0), (1, 4))),
        ((12, 2), ((13, 14), (-1, 3))),  # fewer outputs than the dilation
    ],
    ids=str,
)
def test_dilated_kernels_by_minimal_filtering_are_those_of_float64(dilations, padding):
    """With so many channels, pixels of one distance are filtered as an image."""
    geometry = Geometry((1, 1), padding, dilations)
    images, kernel = draw(0, 40, 9, 14, 36), draw(1, 3, 3, 36, 40)
    tiles = primitives.tile(images)
    outputs = primitives.untile(primitives.convolve(tiles, kernel, geometry), 40)
    grad = draw(2, *outputs.shape)
    tiled = primitives.tile(grad)
    dx = primitives.input_gradient(tiled, kernel, (9, 14), geometry)
    dw = primitives.kernel_gradient(tiles, tiled, (3, 3), geometry, 40)
    assert_close(outputs, convolution(images, kernel, geometry))
    for ours, exact in zip(
        (primitives.untile(dx, 40), dw),
        gradients(images, kernel, geometry, grad),
        strict=True,
    ):
        assert_close(ours, exact)


@pytest.mark.slow
@needs_kernels
@hypothesis.given(
    count=strategies.sampled_from([1, 15, 16, 17, 40]),
    height=strategies.integers(1, 20),
    width=strategies.integers(1, 20),
    channels=strategies.integers(1, 40),
    features=strategies.integers(1, 40),
    size=strategies.integers(1, 7),
    stride=strategies.integers(1, 4),
    padding=strategies.integers(0, 4),
)
def test_drawn_shapes_are_those_of_float64(**shape):
    hypothesis.assume(
        min(shape["height"], shape["width"]) + 2 * shape["padding"] >= shape["size"]
    )
    assert_native_is_the_definition(**shape)


@needs_kernels
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["images", "kernel", "grad"])
def test_nan_and_infinity_come_through(value, where):
    arrays = {
        "images": draw(0, 16, 6, 6, 3),
        "kernel": draw(1, 3, 3, 3, 5),
        "grad": draw(2, 16, 3, 3, 5),
    }
    arrays[where].flat[0] = value
    found = by("native", with_gradients)(2, 1, *arrays.values())
    reached = {"images": (0, 2), "kernel": (0, 1), "grad": (1, 2)}[where]
    for k, array in enumerate(found):
        assert (not np.isfinite(array).all()) == (k in reached)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("lowering", ["native", "product"])
def test_minimal_filtering_spreads_nan_to_the_blocks_that_use_it(lowering, value):
    """It reaches the 9 outputs of the definition, and at most 25; see docs/speed.md."""
    kernel = draw(1, 3, 3, 24, 24)
    found_by, exact_by = (by(one, convolve) for one in (lowering, "xla"))
    for at in ((0, 0), (3, 4), (5, 5), (9, 11)):
        images = draw(0, 64, 12, 12, 24)
        images[3, *at, 2] = value
        found = ~np.isfinite(found_by(images, kernel, 1, 1))
        exact = ~np.isfinite(exact_by(images, kernel, 1, 1))
        assert found[exact].all()
        assert found.any(-1).sum() <= 25
        assert not found[np.arange(64) != 3].any()


@pytest.mark.parametrize("lowering", ["native", "product", "xla"])
@pytest.mark.parametrize("empty", ["count", "height", "width", "channels", "features"])
def test_an_empty_array_is_a_sum_of_nothing(lowering, empty):
    sizes = {"count": 17, "height": 6, "width": 5, "channels": 3, "features": 4}
    count, height, width, channels, features = (sizes | {empty: 0}).values()
    images = jnp.ones((count, height, width, channels))
    kernel = jnp.ones((3, 3, channels, features))

    def results(images, kernel):
        found, vjp = jax.vjp(lambda x, w: convolve(x, w, 2, 2), images, kernel)
        return found, vjp(jnp.ones_like(found))

    found, grads = by(lowering, results)(images, kernel)
    rows, columns = (height + 1) // 2 + 1, (width + 1) // 2 + 1
    assert found.shape == (count, rows, columns, features)
    assert [grad.shape for grad in grads] == [images.shape, kernel.shape]
    assert not any(np.any(array) for array in (found, *grads))


@pytest.mark.parametrize("lowering", ["native", "product", "xla"])
def test_a_kernel_larger_than_the_image_has_no_outputs(lowering):
    images, kernel = jnp.ones((3, 2, 2, 3)), jnp.ones((5, 5, 3, 4))

    def results(images):
        found, vjp = jax.vjp(lambda x: convolve(x, kernel), images)
        return found, vjp(found)[0]

    found, grad = by(lowering, results)(images)
    assert found.shape == (3, 0, 0, 4)
    assert not np.any(grad)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (20, 0, 4, 5), (20, 3, 4, 0)])
def test_tiles_of_nothing(shape):
    images = jnp.ones(shape)
    tiles = primitives.tile(images)
    np.testing.assert_array_equal(primitives.untile(tiles, len(images)), images)
    zeros = jnp.zeros(shape[-1])
    for total in primitives.channel_sums(tiles, tiles, zeros, zeros, len(images)):
        np.testing.assert_array_equal(total, zeros)


@needs_kernels
def test_derivatives_of_all_orders_and_both_modes():
    """Computes a Hessian-vector product, forward over reverse, and its gradient."""
    images, kernel = draw(0, 16, 5, 5, 2), draw(1, 3, 3, 2, 3)

    def penalty(images, kernel):
        def loss(images, kernel):
            return jnp.tanh(convolve(images, kernel, 2, 1)).sum()

        grad = jax.grad(loss, argnums=(0, 1))
        primals, tangents = jax.jvp(grad, (images, kernel), (images, kernel))
        return sum(jnp.vdot(a, b) for a, b in zip(primals, tangents, strict=True))

    gradient = jax.jit(jax.grad(penalty, (0, 1)))
    ours, theirs = (by(one, gradient)(images, kernel) for one in ("native", "xla"))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, 1e-4)


@pytest.mark.slow
@needs_kernels
def test_under_vmap_scan_and_without_jit():
    images, kernels = draw(0, 3, 20, 5, 5, 2), draw(1, 3, 3, 3, 2, 4)

    def loss(images, kernel):
        return jnp.square(convolve(images, kernel, 1, 1)).sum()

    def step(carry, kernel):
        return carry, jax.grad(loss, 1)(carry, kernel)

    for axes in ((0, 0), (None, 0), (0, None)):
        one = images if axes[0] == 0 else images[0]
        other = kernels if axes[1] == 0 else kernels[0]
        mapped = jax.vmap(jax.grad(loss, (0, 1)), axes)
        ours, theirs = (by(how, mapped)(one, other) for how in ("native", "xla"))
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b)
    ours, theirs = (
        by(how, lax.scan)(step, images[0], kernels)[1] for how in ("native", "xla")
    )
    assert_close(ours, theirs)


@needs_kernels
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_other_types_take_another_form(dtype):
    with jax.enable_x64(True):
        images = jnp.asarray(draw(0, 16, 5, 5, 2), dtype)
        kernel = jnp.asarray(draw(1, 3, 3, 2, 3), dtype)
        expected = convolution(images, kernel, Geometry.square(1, 1))
        one = functools.partial(convolve, kernel=kernel, padding=1)
        found = by("native", jax.jit(one))(images)
        tiles = by("native", jax.jit(in_tiles(one)))(images)
    assert found.dtype == tiles.dtype == dtype
    tolerance = 16 * float(jnp.finfo(dtype).eps)
    for array in (found, tiles):
        assert_close(np.float64(array), expected, tolerance)


@needs_kernels
def test_sums_over_channels_are_those_of_xla():
    """Lanes without an image must not count."""
    u, v = (draw(seed, 21, 3, 4, 5) for seed in (0, 1))
    a, b = (draw(seed, 5) for seed in (2, 3))
    tiles = [primitives.tile(x) for x in (u, v)]
    expected = np.stack([(u - a).sum((0, 1, 2)), ((u - a) * (v - b)).sum((0, 1, 2))])
    for compute in (primitives.channel_sums, primitives._channel_sums_xla):
        sums = np.stack(
            jax.jit(compute, static_argnames="count")(*tiles, a, b, count=21)
        )
        np.testing.assert_allclose(sums, expected, rtol=1e-4, atol=1e-3)


@needs_kernels
def test_a_program_for_another_platform_holds_xlas_convolutions():
    images, kernel = draw(0, 16, 5, 5, 2), draw(1, 3, 3, 2, 3)

    @jax.jit
    @in_tiles
    def gradient(images, kernel):
        return jax.grad(lambda w: convolve(images, w, 1, 1).sum())(kernel)

    for platform, is_there in (("cpu", True), ("cuda", False)):
        exported = jax.export.export(
            gradient,
            platforms=[platform],
            disabled_checks=[
                jax.export.DisabledSafetyCheck.custom_call(library.target(name))
                for name in library.HANDLERS
            ],
        )
        program = exported(images, kernel).mlir_module()
        assert ("@cifar_flax_" in program) == is_there
        assert ("stablehlo.convolution" in program) != is_there


@needs_kernels
@pytest.mark.parametrize(
    "sizes", [(17, 2, 5, 6, 7), (1, 1, 1, 1, 1), (16, 3, 4, 8, 8), (40, 1, 9, 3, 2)]
)
@pytest.mark.parametrize("order", [(1, 2, 3), (2, 1, 3), (3, 1, 2), (1, 3, 2)])
def test_products_of_images_are_those_of_float64(sizes, order):
    """For any order of axes; the order says where groups, rows and terms are."""
    count, groups, rows, columns, terms = sizes

    def placed(seed, *lengths):
        where = np.argsort(order)
        return draw(seed, count, *(lengths[k] for k in where))

    a, b = placed(0, groups, rows, terms), placed(1, groups, columns, terms)
    axes = (0, *order)
    expected = np.einsum(
        "ngik,ngjk->ngij", *(np.float64(one).transpose(axes) for one in (a, b))
    )
    tiles = [primitives.tile(one) for one in (a, b)]
    for compute in (primitives.products, primitives._products_xla):
        found = primitives.untile(compute(*tiles, order, order), count)
        assert_close(found, expected)


def gradients_of(function, *arrays):
    def loss(*arrays):
        outputs = jax.tree.leaves(function(*arrays))
        return sum(jnp.vdot(jnp.sin(3 * x), x) for x in outputs)

    return jax.grad(loss, tuple(range(len(arrays))))(*arrays)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("count", [32, 20, 9])
@pytest.mark.parametrize("offset", [0, 300])
def test_norm_of_tiles_and_its_gradients(offset, count):
    """The reference is autodiff of the definition in float64."""
    images, scale, bias = draw(0, count, 3, 4, 5), draw(1, 5), draw(2, 5)
    images += offset

    def definition(images, scale, bias):
        mean, var = images.mean((0, 1, 2)), images.var((0, 1, 2))
        return scale * (images - mean) / jnp.sqrt(var + 1e-5) + bias, mean, var

    def ours(images, scale, bias):
        zeros, params = jnp.zeros(5), {"scale": scale, "bias": bias}
        variables = {"params": params, "batch_stats": {"mean": zeros, "var": zeros}}
        outputs, updated = BatchNorm(momentum=0).apply(
            variables, same(images), train=True, mutable=["batch_stats"]
        )
        stats = updated["batch_stats"]
        return outputs, stats["mean"], stats["var"]

    def results(*arrays):
        return ours(*arrays), gradients_of(ours, *arrays)

    with jax.enable_x64(True):
        exact = [np.float64(x) for x in (images, scale, bias)]
        expected = definition(*exact), gradients_of(definition, *exact)
    program = jax.make_jaxpr(in_tiles(results))(images, scale, bias)
    assert "channel_sums" in str(program)
    found = jax.jit(in_tiles(results))(images, scale, bias)
    tolerance = 1e-4 if offset else 1e-5
    for a, b in zip(found[0], expected[0], strict=True):
        assert_close(a, b, tolerance)
    if not offset:  # rounding changes sin(3 * mean)
        for a, b in zip(found[1], expected[1], strict=True):
            assert_close(a, b, 1e-4)


@needs_kernels
def test_bias_of_tiles_and_its_gradient():
    images, bias = draw(0, 20, 3, 4, 5), draw(1, 5)

    def ours(images, bias):
        return same(images) + bias

    expected = gradients_of(jnp.add, images, bias)
    np.testing.assert_array_equal(in_tiles(ours)(images, bias), images + bias)
    found = jax.jit(in_tiles(functools.partial(gradients_of, ours)))(images, bias)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


def test_tiles_and_images_are_the_same_numbers():
    images = draw(0, 20, 3, 4, 5)
    tiles = primitives.tile(images)
    assert tiles.shape == (2, 3, 4, 5, 16)
    np.testing.assert_array_equal(tiles[1, 2, 3, :, 3], images[19, 2, 3])
    assert (tiles[1, ..., 4:] == 0).all()
    np.testing.assert_array_equal(primitives.untile(tiles, 20), images)


class OwnNorm(nn.Module):
    """A norm with the signature that models use."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images, *, train):
        assert images.ndim == 4
        return nn.GroupNorm(num_groups=2)(images)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("name", [*FIRST, "own norm", "frozen"])
def test_models_compute_the_same_in_tiles(name):
    """Compares logits, gradients and statistics, for whole and partial tiles."""
    fields = {"features": (4, 6)}
    if name == "own norm":
        name, fields = "convbn", fields | {"norm": OwnNorm}
    elif name == "frozen":
        name = "resnet"
        fields["norm"] = functools.partial(BatchNorm, frozen=True)
    if name == "resnet2":
        fields["dropout_rate"] = 0.0
    model = create_model(name, 4, **fields)
    images, key = draw(0, 32, 12, 12, 3), jax.random.key(1)
    variables = init_variables(model, key, images)

    def results(images):
        def loss(params):
            logits, collections = train_logits(
                model, variables | {"params": params}, images, key
            )
            return jnp.square(logits).mean(), collections

        evaluated = evaluate_logits(model, variables, images)
        return jax.value_and_grad(loss, has_aux=True)(variables["params"]), evaluated

    both = jax.jit(in_tiles(results)), jax.jit(results)
    for count in (32, 20):
        tiles, plain = (compute(images[:count]) for compute in both)
        for a, b in zip(*(jax.tree.leaves(x) for x in (tiles, plain)), strict=True):
            assert_close(a, np.asarray(b), 1e-4)


class Stranger(nn.Module):
    """A model that is written without this library."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(6, (3, 3), padding=[(1, 0), (0, 2)])(x))
        x = nn.Conv(6, (3, 3), padding="CIRCULAR")(x)
        x = nn.Conv(6, (3, 3), feature_group_count=2)(x)
        x = nn.Conv(6, (3, 3), kernel_dilation=2)(x)
        x = nn.Conv(6, (1, 3))(x)
        x = nn.Conv(6, (2, 2), strides=(1, 2), padding="VALID")(x)
        return nn.Dense(4)(x.mean((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(("lowering", "left"), [("native", 0), ("product", 4)])
def test_layers_of_flax_are_lowered_alike(lowering, left):
    """Matrix products leave those with groups, dilation or unequal sides to XLA."""
    if lowering == "native" and not library.available():
        pytest.skip("no kernels here")
    model, images = Stranger(), draw(0, 16, 12, 12, 3)
    key = jax.random.key(0)
    variables = init_variables(model, key, images)

    @jax.jit
    def results(params):
        def loss(params):
            logits, _ = train_logits(model, variables | {"params": params}, images, key)
            return jnp.square(logits).mean()

        return jax.value_and_grad(loss)(params)

    @jax.jit
    def evaluated(params):
        return evaluate_logits(model, variables | {"params": params}, images)

    params = variables["params"]
    expected = results(params)
    with rule.lowering(lowering):
        text = evaluated.lower(params).as_text()
        found = results(params)
    assert text.count("stablehlo.convolution") == left
    for a, b in zip(*(jax.tree.leaves(x) for x in (found, expected)), strict=True):
        assert_close(a, b, 1e-4)


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("Linux", "apt install gcc"),
        ("Darwin", "xcode-select --install"),
        ("Windows", "need Linux or macOS"),
        ("", "install gcc or clang"),
    ],
)
def test_without_a_compiler_a_line_says_what_to_install(
    system, words, load_anew, monkeypatch, caplog
):
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    monkeypatch.setattr(library.platform, "system", lambda: system)
    assert words in load_anew("")
    assert "twice as long" in caplog.text


# A program that builds the kernels if needed, and prints its result.
SCRIPT = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: int(sys.argv[1])])
import hashlib, jax, numpy as np
from cifar_flax.layers import rule
from cifar_flax.layers.tiling import in_tiles
from cifar_flax.models import create_model
from cifar_flax.models.calling import init_variables, train_logits
model, key = create_model("convbn", 4, features=(5, 8, 12)), jax.random.key(0)
images = np.random.default_rng(0).normal(size=(250, 32, 32, 3)).astype(np.float32)
variables = init_variables(model, key, images[:2])
def loss(params):
    given = variables | {"params": params}
    logits, _ = train_logits(model, given, images, key)
    return (logits ** 2).mean()
with rule.lowering("native"):
    found = jax.jit(in_tiles(jax.value_and_grad(loss)))(variables["params"])
arrays = [np.asarray(x).tobytes() for x in jax.tree.leaves(found)]
print(hashlib.sha256(b"".join(arrays)).hexdigest())
"""


@pytest.mark.slow
@needs_kernels
def test_the_bits_do_not_depend_on_the_number_of_threads(tmp_path):
    """They also do not depend on which of two processes builds the kernels."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, cores],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for cores in ("1", "2")
    ]
    one, two = (process.communicate(timeout=300)[0] for process in processes)
    assert len(one.strip()) == 64
    assert one == two
    assert len(list((tmp_path / "cifar_flax" / "kernels").iterdir())) == 1


@pytest.fixture
def load_anew(tmp_path, monkeypatch):
    """Loads the kernels as a new process does; returns why there are none."""

    # A process can register a handler only once.
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)

    def load(compiler, cache="cache"):
        monkeypatch.setenv("CC", compiler)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        found = library._load.__wrapped__()
        return str(found) if isinstance(found, library.BuildError) else None

    return load


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "is not found"),
        ("exit 0", "neither AVX2 nor Neon"),
        ("exit 3", "fails: it printed no message"),
        ("echo from here >&2; echo an error >&2; exit 3", "fails: an error"),
        ("exec sleep 100", "did not finish within 1 s"),
        ("echo '#define __AVX2__ 1'; echo '#define __FMA__ 1'", "No such file"),
    ],
)
def test_a_compiler_that_is_of_no_use_costs_a_line(
    tmp_path, monkeypatch, caplog, load_anew, script, words
):
    monkeypatch.setattr(library, "_TIMEOUT", 1)
    compiler = tmp_path / "compiler"
    if script is not None:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    assert words in load_anew(str(compiler))
    (line,) = [record.getMessage() for record in caplog.records]
    assert words in line
    assert "matrix products" in line
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.slow
@needs_kernels
def test_a_kept_library_is_loaded_only_if_it_is_whole(tmp_path, load_anew, monkeypatch):
    compiler = " ".join(library._find_compiler())
    assert load_anew(compiler) is None
    (kept,) = (tmp_path / "cache" / "cifar_flax" / "kernels").iterdir()
    content = kept.read_bytes()
    kept.unlink()  # this process has it in memory
    kept.write_bytes(content[: len(content) // 2])
    assert load_anew(compiler) is None
    assert kept.read_bytes() == content
    with monkeypatch.context() as context:
        context.setattr(library, "_build", None)  # nothing is built again
        assert load_anew(compiler) is None
    (tmp_path / "file").write_text("no folder")
    assert load_anew(compiler, "file") is None


def compiler_of(folder, script):
    """Returns a compiler that is a shell script."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
@needs_kernels
def test_garbage_of_a_compiler_is_not_kept(tmp_path, load_anew):
    """The same command works again once the compiler does."""
    real = " ".join(library._find_compiler())
    broken = (
        f'case "$*" in *-dM*) exec {real} "$@";; esac\n'
        'while [ "$1" != -o ]; do shift; done; echo garbage > "$2"'
    )
    assert "compiler" not in load_anew(compiler_of(tmp_path, broken))
    kept = tmp_path / "cache" / "cifar_flax" / "kernels"
    assert list(kept.iterdir()) == []
    assert load_anew(compiler_of(tmp_path, f'exec {real} "$@"')) is None
    assert len(list(kept.iterdir())) == 1


@pytest.mark.slow
@needs_kernels
def test_nothing_of_another_user_is_loaded(tmp_path, load_anew, monkeypatch):
    """Not from his folder, and not from a folder into which he may write."""
    compiler = " ".join(library._find_compiler())
    assert load_anew(compiler) is None
    folder = tmp_path / "cache" / "cifar_flax" / "kernels"
    (kept,) = folder.iterdir()
    loaded = []
    monkeypatch.setattr(library, "_loaded", lambda path: loaded.append(path))
    monkeypatch.setattr(library, "_build", lambda _, path: path.write_text("") or path)
    for owner in (os.getuid() + 1, os.getuid()):
        with monkeypatch.context() as context:
            context.setattr(os, "getuid", lambda owner=owner: owner)
            load_anew(compiler)
    ours, theirs = loaded[-1], loaded[-2]
    assert ours == kept
    assert folder not in theirs.parents
    folder.chmod(0o777)
    kept.chmod(0o666)
    load_anew(compiler)
    assert kept not in loaded[2:]
    assert folder.stat().st_mode & 0o022 == 0


@pytest.mark.slow
@needs_kernels
def test_the_options_of_the_user_count_and_are_told(load_anew, monkeypatch):
    ran = []
    run = library._run
    monkeypatch.setattr(library, "_run", lambda words: ran.append(words) or run(words))
    found = " ".join(library._find_compiler())
    monkeypatch.setenv("CC", f"{found} -O1 -ffast-math")
    description = library._load.__wrapped__().description
    assert "-O1 -ffast-math" in description
    for words in ran:
        levels = [word for word in words if word.startswith("-O")]
        assert levels[-1] == "-O1"


def test_a_compiler_without_vectors_is_named(load_anew, monkeypatch):
    monkeypatch.setattr(library, "_processor", lambda: {"avx2", "fma"})
    monkeypatch.setattr(library, "_run", lambda words: "#define __TINYC__ 1")
    assert "the C compiler true uses neither AVX2 nor Neon" in load_anew("true")
    monkeypatch.setattr(library, "_processor", lambda: {"sse2"})
    assert load_anew("true") == "the processor has neither AVX2 nor Neon"
    monkeypatch.setattr(library, "_run", lambda words: "#define __AVX512F__ 1")
    assert "uses AVX-512, which the processor lacks" in load_anew("true")


def test_what_is_used_is_told():
    assert describe("xla") == "XLA"
    assert describe("product") == "matrix products"
