"""The contract of every model."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.errors import UserError
from cifar_flax.models import FAMILIES, MODELS, ConvNet, create_model
from cifar_flax.models.families import LARGER
from cifar_flax.models.summary import layer_rows
from cifar_flax.training.named_recipes import LESSON
from tests.models.probe import BATCH, FIRST, init, predict, probe

GOLDEN = pathlib.Path(__file__).parent / "structure.json"

# From the lesson; that of airbench from its paper, which counts 1.97 million.
NUM_PARAMS = {
    "simplenet": 123_330,
    "convnet": 37_490,
    "convnet2": 37_490,
    "convbn": 155_970,
    "convbn2": 462_570,
    "resnet": 769_170,
    "resnet2": 1_966_234,
    "airbench": 1_971_640,
}
WITH_NORM = ("convbn", "convbn2", "resnet", "resnet2", "airbench")
# Sizes of the images after the stem and each strided layer, worked out by hand.
SIZES = {
    "simplenet": [],
    "convnet": [15, 7, 3],
    "convnet2": [16, 8, 4],
    "convbn": [32, 16, 8, 4, 2],
    "convbn2": [32, 16, 8, 4, 2],
    "resnet": [32, 16, 8, 4, 2],
    "resnet2": [28, 14, 7, 4, 2],
    "airbench": [31, 15, 7, 3],
}


def structure(name: str) -> dict[str, str]:
    model = create_model(name)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    return {
        "/".join(str(key.key) for key in path): " x ".join(map(str, leaf.shape))
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


def test_every_model_is_covered_here():
    assert set(NUM_PARAMS) == set(SIZES) == set(FIRST)
    assert set(MODELS) == {*FIRST, *FAMILIES, *LARGER}


@pytest.mark.parametrize("name", FIRST)
def test_parameter_counts_are_the_published_ones(name):
    params = jax.tree.leaves(init(name)["params"])
    assert sum(leaf.size for leaf in params) == NUM_PARAMS[name]
    assert (
        sum(row.num_params for row in layer_rows(create_model(name)))
        == (NUM_PARAMS[name])
    )


@pytest.mark.parametrize("name", FIRST)
def test_structure_is_as_recorded(name):
    """Checkpoints depend on it. To renew: python -m tests.models.test_models."""
    assert structure(name) == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", FIRST)
def test_image_sizes_are_those_worked_out_by_hand(name):
    sizes = [
        row.output_shape[0]
        for row in layer_rows(create_model(name))
        if row.kind == "Conv"
    ]
    changes = [s for i, s in enumerate(sizes) if i == 0 or s != sizes[i - 1]]
    assert changes == SIZES[name]


@pytest.mark.parametrize("name", FIRST)
def test_logits(name):
    result = probe(name)
    assert result.logits.shape == (BATCH, 10)
    assert result.logits.dtype == np.float32
    assert np.isfinite(result.logits).all()
    assert len(np.unique(result.logits.round(6), axis=0)) == BATCH


@pytest.mark.parametrize("name", FIRST)
def test_gradients_reach_every_parameter(name):
    for path, grad in jax.tree_util.tree_leaves_with_path(probe(name).grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


@pytest.mark.parametrize("name", FIRST)
def test_evaluation_of_an_image_does_not_depend_on_its_batch(name):
    result = probe(name)
    other = result.images[::-1].copy()
    other[0] = result.images[0]
    logits = np.asarray(predict(name)(result.variables, other))
    np.testing.assert_allclose(logits[0], result.logits[0], rtol=1e-4, atol=1e-5)
    assert np.abs(logits[1] - result.logits[1]).max() > 1e-2


@pytest.mark.parametrize("name", FIRST)
def test_training_differs_from_evaluation_where_there_are_statistics(name):
    result = probe(name)
    same = np.allclose(result.train_logits, result.logits, rtol=1e-3, atol=1e-3)
    assert same == (name not in WITH_NORM)
    assert bool(jax.tree.leaves(result.updated)) == (name in WITH_NORM)


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    model, variables = create_model("resnet2"), init("resnet2")
    images = probe("resnet2").images

    @jax.jit
    def train_logits(key):
        rngs = {"dropout": key}
        return model.apply(
            variables, images, train=True, rngs=rngs, mutable="batch_stats"
        )[0]

    draws = np.stack([train_logits(key) for key in jax.random.split(jax.random.key(0))])
    assert np.abs(draws[0] - draws[1]).max() > 1e-3
    np.testing.assert_allclose(
        jax.jit(lambda x: model.apply(variables, x, train=False))(images),
        probe("resnet2").logits,
        rtol=1e-4,
        atol=1e-3,
    )


@pytest.mark.parametrize("name", LESSON)
def test_initial_values_are_uniform_within_the_inverse_root_of_the_fan_in(name):
    params = init(name)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = path[-1].key
        layer = params
        for key in path[:-1]:
            layer = layer[key.key]
        if "kernel" not in layer:
            continue  # batch norm: ones and zeros
        limit = math.prod(layer["kernel"].shape[:-1]) ** -0.5
        assert np.abs(leaf).max() <= limit
        if kind == "kernel":
            assert np.abs(leaf).max() > 0.97 * limit
            assert np.std(leaf) == pytest.approx(limit / 3**0.5, rel=0.1)


def test_flops_of_a_convolution_and_a_dense_layer_by_hand():
    rows = layer_rows(create_model("convnet"))
    assert rows[0].flops == 2 * 15 * 15 * 3 * 3 * 3 * 20
    assert rows[-1].flops == 2 * 80 * 10


def test_widths_and_classes_are_fields():
    rows = layer_rows(create_model("convnet", num_classes=3, features=(4, 5)))
    assert [row.output_shape[-1] for row in rows] == [4, 5, 3]
    assert layer_rows(ConvNet(3, features=(4, 5))) == rows


@pytest.mark.parametrize("name", ["simplenet", "convbn"])
def test_bfloat16_computes_low_and_keeps_parameters_high(name):
    model = create_model(name, dtype=jnp.bfloat16)
    result = probe(name)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        result.variables, result.images
    )
    assert logits.dtype == np.float32
    error = np.abs(logits - result.logits).max()
    assert 0 < error < 0.1 * np.abs(result.logits).max()
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_an_unknown_model_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"no model 'lenet'; .*convbn2"):
        create_model("lenet")


if __name__ == "__main__":
    text = json.dumps({name: structure(name) for name in FIRST}, indent=1)
    GOLDEN.write_text(text + "\n")
