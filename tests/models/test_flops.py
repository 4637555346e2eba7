"""Operations against formulas, XLA's own count and PyTorch's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from cifar_flax.models import create_model
from cifar_flax.models.flops import products_by_scope
from cifar_flax.models.summary import layer_rows
from tests.models.probe import FIRST


def count(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return sum(products_by_scope(jax.make_jaxpr(function)(*arrays).jaxpr).values())


def xlas(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function).lower(*arrays).compile()
    return compiled.cost_analysis()["flops"]


def conv(padding="VALID", **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    options = {"window_strides": (1, 1), **options}
    return lambda x, k: lax.conv_general_dilated(
        x, k, padding=padding, dimension_numbers=numbers, **options
    )


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (jnp.dot, [(3, 5), (5, 7)]),
        (lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b), [(2, 5, 3, 4)] * 2),
        (conv(), [(2, 9, 8, 6), (3, 3, 6, 4)]),
        (conv(window_strides=(2, 1)), [(1, 9, 9, 6), (3, 2, 6, 4)]),
        (conv(rhs_dilation=(2, 2)), [(1, 9, 9, 6), (3, 3, 6, 4)]),
        (conv(feature_group_count=3), [(1, 9, 9, 6), (3, 3, 2, 12)]),
        (conv(feature_group_count=6), [(1, 9, 9, 6), (3, 3, 1, 6)]),
    ],
)
def test_products_are_counted_as_xla_counts_them(function, shapes):
    assert count(function, *shapes) == xlas(function, *shapes) > 0


def test_a_transposed_convolution_counts_no_zeros():
    """Each input meets each tap once: PyTorch's count of it."""
    function = conv([(1, 2), (1, 2)], lhs_dilation=(2, 2))
    assert count(function, (1, 8, 8, 6), (3, 3, 6, 4)) == 2 * 8 * 8 * 9 * 6 * 4


def test_control_flow_counts_what_is_computed():
    def steps(x, k):
        return lax.scan(lambda c, _: (c @ k, None), x, length=7)[0]

    def one_of(x, k):
        return lax.cond(x[0, 0] > 0, lambda: x @ k, lambda: x @ k @ k)

    shapes = [(3, 5), (5, 5)]
    assert count(steps, *shapes) == 7 * 2 * 3 * 5 * 5
    assert count(one_of, *shapes) == 2 * 2 * 3 * 5 * 5
    assert count(jax.checkpoint(jnp.dot), *shapes) == 2 * 3 * 5 * 5


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.Dense(8, use_bias=False)(x), None


class Transformer(nn.Module):
    """Patches, attention, a layer in a scan, a shared layer, and a bare parameter."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(8, (4, 4), strides=4)(images).reshape(images.shape[0], -1, 8)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(x, x)
        scanned = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = scanned(name="scanned")(x, None)
        twice = nn.Dense(8, name="twice")
        x = twice(twice(x)).mean(1)
        return x @ self.param("head", nn.initializers.lecun_normal(), (8, 10))


def test_layers_of_any_kind_have_their_operations_and_parameters():
    rows = {row.path: row for row in layer_rows(Transformer())}
    found = {path: (row.num_params, row.flops) for path, row in rows.items()}
    product = 2 * 64 * 8 * 8  # of 64 positions
    assert found == {
        "Conv_0": (4 * 4 * 3 * 8 + 8, 2 * 64 * 4 * 4 * 3 * 8),
        **{f"attention.{n}": (72, product) for n in ("query", "key", "value", "out")},
        "attention": (0, 2 * 2 * 64 * 64 * 8),
        "scanned.Dense_0": (3 * 64, 3 * product),
        "twice": (72, 2 * product),
        "": (80, 2 * 8 * 10),
    }
    assert rows["attention"].kind == "MultiHeadDotProductAttention"
    assert rows["attention"].output_shape == (64, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
def test_networks_have_the_operations_that_pytorch_counts(name):
    torch = pytest.importorskip("torch")
    counter = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode
    peer = pytest.importorskip("benchmarks.torch_peer")

    with counter(display=False) as counted, torch.no_grad():
        peer.make_network(name)(torch.zeros(1, 3, 32, 32))
    ours = sum(row.flops for row in layer_rows(create_model(name)))
    assert counted.get_total_flops() == ours
