"""A network of nnx does what the same network of linen does."""

import dataclasses
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cifar_flax as cf
from cifar_flax.errors import UserError
from cifar_flax.models.calling import evaluate_logits, init_variables, train_logits
from cifar_flax.models.check import check_model
from cifar_flax.models.summary import layer_rows


class Net(nnx.Module):
    def __init__(self, num_classes=4, drop=0.0, *, rngs):
        convs = [nnx.Conv(i, o, (3, 3), 4, rngs=rngs) for i, o in ((3, 6), (6, 8))]
        self.convs = nnx.List(convs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(drop, rngs=rngs)
        self.head = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.head(self.drop(self.norm(x).mean((1, 2))))


class Same(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for number, width in enumerate((6, 8)):
            x = nn.relu(nn.Conv(width, (3, 3), 4, name=f"convs{number}")(x))
        x = nn.BatchNorm(not train, name="norm")(x)
        return nn.Dense(4, name="head")(x.mean((1, 2)))


IMAGES = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))


def variables_of(**arguments):
    model = cf.NnxModel(Net, arguments)
    return model, init_variables(model, jax.random.key(0), IMAGES)


def as_linen(tree):
    convs = tree.get("convs", {})
    rest = {name: value for name, value in tree.items() if name != "convs"}
    return rest | {f"convs{number}": value for number, value in convs.items()}


def test_it_computes_what_the_linen_network_computes():
    model, ours = variables_of()
    theirs = {name: as_linen(tree) for name, tree in ours.items()}
    for key in (jax.random.key(2), jax.random.key(3)):
        logits, collections = train_logits(model, ours, IMAGES, key)
        expected, updated = train_logits(Same(), theirs, IMAGES, key)
        np.testing.assert_allclose(logits, expected, atol=1e-6)
        ours, theirs = {**ours, **collections}, {**theirs, **updated}
    statistics = ours["batch_stats"]["norm"]["mean"]
    assert np.abs(statistics).max() > 0
    np.testing.assert_allclose(statistics, theirs["batch_stats"]["norm"]["mean"])
    found = evaluate_logits(model, ours, IMAGES)
    np.testing.assert_allclose(
        found, evaluate_logits(Same(), theirs, IMAGES), atol=1e-6
    )


def test_dropout_follows_the_key_in_training_and_does_nothing_in_evaluation():
    model, variables = variables_of(drop=0.5)
    first, again, other = (
        train_logits(model, variables, IMAGES, jax.random.key(seed))[0]
        for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()
    plain = evaluate_logits(cf.NnxModel(Net, {}), variables, IMAGES)
    assert (evaluate_logits(model, variables, IMAGES) == plain).all()


def test_parameters_and_operations_are_those_of_the_linen_network():
    rows, expected = layer_rows(cf.NnxModel(Net, {})), layer_rows(Same())
    for name in ("num_params", "flops"):
        ours, theirs = (sum(getattr(r, name) for r in one) for one in (rows, expected))
        assert ours == theirs > 0


def test_a_network_that_is_not_wrapped_is_named_with_the_remedy():
    for wrong in (Net, Net(rngs=nnx.Rngs(0))):
        with pytest.raises(UserError, match=r"give cifar_flax.NnxModel\(Net, "):
            check_model(wrong, (32, 32, 3), 4)


class WithCache(nnx.Module):
    """Has a kind of variable of its own, and takes ``train``."""

    def __init__(self, *, rngs):
        self.head = nnx.Linear(3, 4, rngs=rngs)
        self.calls = nnx.Cache(jnp.zeros((), jnp.int32))

    def __call__(self, x, train):
        self.calls[...] += int(train)
        return self.head(x.mean((1, 2)))


def test_other_variables_and_train_reach_the_network():
    model = cf.NnxModel(WithCache, {})
    variables = init_variables(model, jax.random.key(0), IMAGES)
    _, collections = train_logits(model, variables, IMAGES, jax.random.key(0))
    assert collections["cache"]["calls"] == 1


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits_and_is_loaded(tmp_path):
    settings = cf.Settings(dataset="shapes", lr=0.05, cycles=1, seeds=(0, 1))
    settings = dataclasses.replace(settings, train_size=64, batch_size=32)
    model = cf.NnxModel(Net, {"num_classes": 10, "drop": 0.3})
    whole = cf.run(settings, model=model)
    stop = threading.Event()
    stop.set()  # before the first step, so every step comes after the resumption
    cf.run(settings, tmp_path / "run", model=model, stop=stop)
    found = cf.run(settings, tmp_path / "run", model=model, resume=True)
    jax.tree.map(
        np.testing.assert_array_equal, found.state.variables, whole.state.variables
    )
    loaded = cf.Run.load(tmp_path / "run", model=model)
    prediction = loaded.predict(np.zeros((2, 32, 32, 3), np.uint8))
    assert len(prediction) == 2
