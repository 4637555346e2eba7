"""What combines the channels of a pixel is one computation, with the same values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cifar_flax.layers import pixelwise
from cifar_flax.layers.native import library
from cifar_flax.layers.native import pixelwise as native
from cifar_flax.layers.native.pixelwise import OPERATIONS, TOTALS, PixelProgram
from cifar_flax.layers.tiling import in_tiles

pytestmark = pytest.mark.skipif(
    not library.available(), reason="the kernels need a C compiler"
)

CHANNELS = 24


def draw(*shape, seed=0):
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


def dense(x, w):
    """A convolution with one tap, so that its input and output are in tiles."""
    return lax.conv_general_dilated(
        x, w[None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def rms_norm(x):
    return nn.RMSNorm().apply({"params": {"scale": SCALE}}, x)


def layer_norm(x):
    return nn.LayerNorm().apply({"params": {"scale": SCALE, "bias": BIAS}}, x)


SCALE, BIAS = 1 + 0.1 * draw(CHANNELS, seed=1), draw(CHANNELS, seed=2)
LAYERS = {
    "layer norm": layer_norm,
    "RMS norm": rms_norm,
    "norm of two passes": lambda x: (
        (x - x.mean(-1, keepdims=True)) / x.std(-1)[..., None]
    ),
    "softmax": lambda x: jax.nn.softmax(3 * x),
    "residual sum": lambda x: x + layer_norm(x + SCALE),
    "two norms": lambda x: rms_norm(layer_norm(x) + x),
    "where": lambda x: jnp.where(x > x.mean(-1, keepdims=True), x, x * x),
    "unit length": lambda x: x / jnp.sqrt((x * x).sum(-1, keepdims=True)),
    "largest": lambda x: x - x.max(-1, keepdims=True),
}


def net_of(layer):
    """A loss between two dense layers, and its gradients."""

    def loss(x, w):
        y = dense(layer(dense(x, w)), w)
        return (y * jnp.cos(y)).mean()

    return jax.value_and_grad(loss, (0, 1))


def assert_same(function, *args):
    found, expected = jax.jit(in_tiles(function))(*args), jax.jit(function)(*args)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        # Some gradients are 0 but for rounding.
        scale = 2e-5 * np.abs(other).max() + 2e-7 * largest
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=scale)


def count_of(function, *args):
    """How many programs for pixels there are, and how many other sums over channels."""
    text = str(jax.make_jaxpr(in_tiles(function))(*args))
    sums = [line for line in text.splitlines() if "reduce_" in line]
    return text.count(" pixelwise["), len([s for s in sums if f"{CHANNELS},16]" in s])


@pytest.mark.parametrize("count", [48, 41])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_and_its_gradient_are_one_computation_each(name, count):
    args = draw(count, 8, 8, CHANNELS), draw(CHANNELS, CHANNELS, seed=3) / 4
    # The gradient of a condition is none, so that of "where" has no sums.
    assert count_of(net_of(LAYERS[name]), *args) == (1 if name == "where" else 2, 0)
    assert_same(net_of(LAYERS[name]), *args)


def test_attention_is_computed_so():
    model = nn.MultiHeadDotProductAttention(num_heads=2)
    x, w = draw(32, 6, 6, CHANNELS), draw(CHANNELS, CHANNELS, seed=3) / 4
    variables = model.init(jax.random.key(0), x.reshape(32, 36, -1))

    def loss(variables, x):
        y = model.apply(variables, dense(x, w).reshape(32, 36, -1))
        return (y * jnp.cos(y)).mean()

    gradients = jax.grad(loss, (0, 1))
    text = str(jax.make_jaxpr(in_tiles(gradients))(variables, x))
    assert text.count(" pixelwise[") == 2
    assert " exp " not in text
    assert_same(gradients, variables, x)


def test_small_arrays_are_left_to_xla(monkeypatch):
    args = draw(16, 2, 2, CHANNELS), draw(CHANNELS, CHANNELS, seed=3) / 4
    assert count_of(net_of(layer_norm), *args)[0] == 0
    monkeypatch.setattr(pixelwise, "LEAST", 1)
    assert count_of(net_of(layer_norm), *args)[0] == 2
    assert_same(net_of(layer_norm), *args)


@pytest.mark.parametrize("limit", ["MAX_BUFFERS", "MAX_VALUES", "MOST_KEPT"])
def test_what_is_too_large_for_the_kernel_is_left_to_xla(monkeypatch, limit):
    args = draw(48, 8, 8, CHANNELS), draw(CHANNELS, CHANNELS, seed=3) / 4
    monkeypatch.setattr(pixelwise, limit, {"MOST_KEPT": 400}.get(limit, 8))
    assert count_of(net_of(layer_norm), *args)[0] < 2
    assert_same(net_of(layer_norm), *args)


def random_net(seed):
    """Random operations on arrays of two widths, with dense layers between them."""

    def loss(x, w):
        random = np.random.default_rng(seed)
        values = [x, dense(x, w)]
        for _ in range(25):
            kind = random.integers(9)
            a, b = (values[k] for k in random.integers(len(values), size=2))
            rows = a.sum(-1, keepdims=True) / CHANNELS
            values.append(
                [
                    lambda a=a: dense(a, w),
                    lambda a=a, b=b: a + b,
                    lambda a=a, b=b: a * b / (1 + b * b),
                    lambda a=a, rows=rows: a - rows,
                    lambda a=a, b=b, rows=rows: b * lax.rsqrt(1 + rows * rows),
                    lambda a=a: jnp.maximum(a, 0.1),
                    lambda a=a: jax.nn.softmax(a) * SCALE,
                    lambda a=a, b=b: jnp.where(a > b + 0.0123, a, BIAS),
                    lambda a=a, b=b: lax.stop_gradient(a).max(-1, keepdims=True) + b,
                ][kind]()
            )
        return sum((v * v / (1 + v * v)).mean() for v in values[-4:])

    return jax.value_and_grad(loss, (0, 1))


def test_a_cluster_does_not_need_itself(monkeypatch):
    """The first and the third follow each other, since the second stands between."""

    def net(x, w):
        first = rms_norm(dense(x, w))
        second = rms_norm(dense(2 * x, w))
        third = rms_norm(dense(second, w))
        return second + dense(first, w), first + third

    monkeypatch.setattr(pixelwise, "LEAST", 1)
    args = draw(16, 2, 3, CHANNELS), draw(CHANNELS, CHANNELS, seed=3) / 4
    assert count_of(net, *args) == (3, 0)
    assert_same(net, *args)


def test_what_follows_from_one_array_is_computed_again_and_not_kept():
    """A norm reads and writes one array, and its gradient reads two and writes one."""
    args = draw(48, 8, 8, CHANNELS), draw(CHANNELS, CHANNELS, seed=3) / 4
    programs = [
        equation.params["program"]
        for equation in jax.make_jaxpr(in_tiles(net_of(layer_norm)))(*args).eqns
        if equation.primitive.name == "pixelwise"
    ]
    assert [one.inputs.count((True, True)) for one in programs] == [1, 2]
    wide = [sum(shape[1] > 1 for shape in one.shapes()) for one in programs]
    assert wide == [1, 1]


@pytest.mark.parametrize("seed", range(8))
def test_random_programs_have_the_same_values(seed, monkeypatch):
    """However they depend on each other, with dense layers between them."""
    monkeypatch.setattr(pixelwise, "LEAST", 1)
    args = draw(16, 2, 3, CHANNELS), draw(CHANNELS, CHANNELS, seed=3) / 4
    assert_same(random_net(seed), *args)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 100))
def test_many_random_programs_have_the_same_values(seed, monkeypatch):
    monkeypatch.setattr(pixelwise, "LEAST", 1)
    args = draw(16, 2, 3, CHANNELS), draw(CHANNELS, CHANNELS, seed=3) / 4
    assert_same(random_net(seed), *args)


SPECIAL = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-30, 0.3]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 11, 64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_numpy(name, channels):
    """With operands for each channel or for all, from special values and others."""
    random, pixels = np.random.default_rng(channels), 37
    for wide in (True, False), (False, True), (True, True):
        if name in TOTALS and not wide[0]:
            continue
        operands = [
            random.choice(
                [*SPECIAL, *random.normal(size=10)],
                size=(pixels, channels if is_wide else 1, 16),
            ).astype(np.float32)
            for is_wide in (*wide, True)
        ][: 1 if name in (*TOTALS, "neg", "exp", "sqrt", "rsqrt") else 2]
        if name == "select_n":
            operands.append(operands[0][:, ::-1])
        program = PixelProgram(
            pixels,
            channels,
            tuple((True, one.shape[1] > 1) for one in operands),
            ((name, tuple(range(len(operands)))),),
            (len(operands),),
        )
        (found,) = native.pixelwise([jnp.asarray(one) for one in operands], program)
        with np.errstate(all="ignore"):
            expected = reference(name, *(np.float64(one) for one in operands))
            expected = np.broadcast_to(expected, found.shape).astype(np.float32)
        # The smallest numbers count as 0, and a sum's error is that of its terms.
        atol = 1e-5 if name == "reduce_sum" else 1e-37
        np.testing.assert_allclose(found, expected, rtol=3e-6, atol=atol)


def reference(name, *x):
    """The operation in NumPy."""
    functions = {
        **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide},
        **{"max": np.maximum, "min": np.minimum, "eq": np.equal, "ne": np.not_equal},
        **{"lt": np.less, "le": np.less_equal, "gt": np.greater},
        **{"ge": np.greater_equal, "neg": np.negative, "exp": np.exp, "sqrt": np.sqrt},
        "rsqrt": lambda a: 1 / np.sqrt(a),
        "select_n": lambda which, no, yes: np.where(which != 0, yes, no),
        "reduce_sum": lambda a: a.sum(1, keepdims=True),
        "reduce_max": lambda a: a.max(1, keepdims=True),
    }
    return functions[name](*x)


def test_the_exponential_is_exact_to_two_roundings():
    x = np.linspace(-87, 88.5, 1 << 16).astype(np.float32).reshape(-1, 1, 16)
    program = PixelProgram(len(x), 1, ((True, True),), (("exp", (0,)),), (1,))
    (found,) = native.pixelwise([jnp.asarray(x)], program)
    error = np.float64(found) / np.exp(np.float64(x)) - 1
    assert np.abs(error).max() < 2**-23


def test_programs_are_the_same_without_the_kernel():
    x, row, channel = draw(64, 5, 16), draw(64, 1, 16), draw(1, 5, 16)
    steps = (
        *(("mul", (0, 2)), ("reduce_sum", (3,)), ("add", (4, 1))),
        *(("gt", (0, 5)), ("select_n", (6, 0, 3)), ("reduce_max", (7,))),
    )
    kinds = (True, True), (True, False), (False, True)
    program = PixelProgram(64, 5, kinds, steps, (7, 8, 5))
    found = native.pixelwise([x, row, channel], program)
    expected = native._pixelwise_xla(x, row, channel, program=program)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_effects_and_their_order_are_kept(capfd):
    def net(x, w):
        y = dense(x, w)
        jax.debug.print("first {}", 1, ordered=True)
        z = layer_norm(y)
        jax.debug.print("second {}", 2, ordered=True)
        return z

    args = draw(48, 8, 8, CHANNELS), draw(CHANNELS, CHANNELS, seed=3) / 4
    jax.block_until_ready(jax.jit(in_tiles(net))(*args))
    jax.effects_barrier()
    assert capfd.readouterr().out.split() == ["first", "1", "second", "2"]
