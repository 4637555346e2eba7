"""The families of networks are those of PyTorch, and the page says what they are."""

import functools
import json
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.benchmark import chosen_models
from cifar_flax.layers import BatchNorm
from cifar_flax.layers.native import library
from cifar_flax.layers.tiling import in_tiles
from cifar_flax.models import FAMILIES, create_model, has_norm
from cifar_flax.models.calling import evaluate_logits, init_variables, train_logits
from cifar_flax.models.families import LARGER
from cifar_flax.models.own import make_own
from cifar_flax.models.summary import layer_rows, trace_layers
from cifar_flax.runs.settings import Settings
from cifar_flax.training.losses import cross_entropy
from cifar_flax.training.named_recipes import LESSON
from tests.models.torch_twin import check_counts, copy, draw, pairs, peer_of, to_torch

ROOT = pathlib.Path(__file__).parents[2]
NETS = {**FAMILIES, **LARGER}
IMAGES = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 16)


def test_their_group_names_them():
    assert chosen_models(["families"]) == list(FAMILIES)
    assert chosen_models(["families", "wide2"]) == [*FAMILIES, "wide2"]
    assert chosen_models(["all"]) == list(LESSON)
    assert not {*NETS} & {*LESSON}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_parameters_and_operations_are_those_of_pytorch_and_of_the_page(name):
    count = check_counts(name, layer_rows(create_model(name)), "families.md")
    assert 100_000 <= count <= 1_500_000 or name == "resnet18"


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_settings_of_a_run_reach_every_layer(name):
    settings = {"bn_momentum": 0.5, "bn_epsilon": 0.1, "dtype": "bfloat16"}
    model = Settings(name, **settings).make_model(7)
    layers = []

    def look(call, args, kwargs, context):
        layers.append((context.module, call(*args, **kwargs)))
        return layers[-1][1]

    def logits(key, images):
        variables = init_variables(model, key, images)
        with nn.intercept_methods(look):
            return variables, evaluate_logits(model, variables, images)

    variables, found = jax.eval_shape(logits, jax.random.key(0), IMAGES)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert (found.shape, found.dtype) == ((16, 7), jnp.float32)
    assert all(out.dtype == jnp.bfloat16 for one, out in layers if one.path)
    norms = [one for one, _ in layers if isinstance(one, BatchNorm)]
    assert bool(norms) == has_norm(name)
    assert all((one.momentum, one.epsilon) == (0.5, 0.1) for one in norms)


@pytest.mark.slow
def test_nets_that_differ_in_one_thing_are_as_the_page_says():
    page = (ROOT / "docs" / "families.md").read_text()
    rows = re.findall(
        r"^\| (.+) \| `(\w+:\w+)` \| `(\w+)` \| `(\{.*\})` \|$", page, re.M
    )
    assert len(rows) == 6
    for idea, place, name, args in rows:
        model = make_own(f"cifar_flax.models.families.{place}", json.loads(args), 10)
        assert type(model) is type(create_model(name))
        counts = [
            sum(row.flops for row in layer_rows(one))
            for one in (create_model(name), model)
        ]
        same = abs(counts[1] / counts[0] - 1) < 0.05
        assert same == (idea != "groups, at the same widths")


@functools.cache
def twin(name):
    """A network, its layers with parameters, its variables, and the one of PyTorch."""
    fields = {"norm": functools.partial(BatchNorm, momentum=0.0)}  # see ``biased``
    model = create_model(name, **(fields if has_norm(name) else {}))
    network = peer_of(name)
    rows, shapes = trace_layers(model, (32, 32, 3))
    rows = [row for row in rows if row.num_params]
    variables = draw(shapes, bias=0.0)
    copy(variables, rows, network)
    return model, rows, variables, network


def biased(norm, inputs, _):
    """Makes the variance of PyTorch's norm that of the batch, as ours is."""
    count = inputs[0].numel() / inputs[0].shape[1]
    norm.running_var = norm.running_var * ((count - 1) / count)


def error_of(actual, expected):
    """Returns the largest error as a share of the largest value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_the_same_weights_give_the_same_logits(name):
    model, _, variables, network = twin(name)
    torch = pytest.importorskip("torch")
    evaluate = jax.jit(in_tiles(lambda v, x: evaluate_logits(model, v, x)))
    with torch.no_grad():
        theirs = network.eval()(to_torch(IMAGES)).numpy()
    assert error_of(evaluate(variables, IMAGES), theirs) < 1e-5
    assert np.ptp(theirs, axis=0).max() > 1e-2 * np.abs(theirs).max()  # they differ


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_they_train_as_in_pytorch(name):
    model, rows, variables, network = twin(name)
    torch = pytest.importorskip("torch")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            module.register_forward_hook(biased)

    def loss(params):
        given = {**variables, "params": params}
        found = train_logits(model, given, IMAGES, jax.random.key(0))
        return cross_entropy(found[0], LABELS).mean(), found

    step = jax.jit(in_tiles(jax.value_and_grad(loss, has_aux=True)))
    (_, (logits, updated)), grads = step(variables["params"])
    theirs = network.train()(to_torch(IMAGES))
    torch.nn.functional.cross_entropy(theirs, torch.tensor(LABELS)).backward()
    assert error_of(logits, theirs.detach()) < 1e-4
    if updated["batch_stats"]:
        for ours, statistics in pairs(updated, rows, network):
            assert error_of(ours, statistics) < 1e-4
    found = list(pairs({"params": grads}, rows, network))
    largest = max(float(parameter.grad.abs().max()) for _, parameter in found)
    for ours, parameter in found:
        # A ReLU passes no gradient or all of it if its input is a rounding from 0.
        assert np.abs(ours - parameter.grad.numpy()).max() < 1e-2 * largest


@pytest.mark.slow
@pytest.mark.skipif(not library.available(), reason="no kernels here")
@pytest.mark.parametrize("name", sorted(NETS.keys() - {"vit", "efficient"}))
def test_they_stay_in_tiles_from_the_images_to_the_last_layer(name):
    """Attention leaves the tiles, and so do the small layers of ``efficient``."""
    model = create_model(name)
    shapes = trace_layers(model, (32, 32, 3))[1]

    def loss(params, variables):
        given = {**variables, "params": params}
        logits, updated = train_logits(model, given, IMAGES, jax.random.key(0))
        return cross_entropy(logits, LABELS).mean(), updated

    step = jax.jit(in_tiles(jax.value_and_grad(loss, has_aux=True)))
    text = step.lower(shapes["params"], shapes).as_text()
    assert text.count("@cifar_flax_tile(") <= 3
    assert text.count("@cifar_flax_untile(") <= 2
    assert "stablehlo.convolution" not in text
