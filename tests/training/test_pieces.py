"""Pieces of training in loops of one's own."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_flax.analysis.range_curve import lowest
from cifar_flax.data.augment import Augmentation
from cifar_flax.errors import UserError
from cifar_flax.models import create_model
from cifar_flax.training import programs
from cifar_flax.training.lr_range import RangeSettings
from cifar_flax.training.phases import Constant
from cifar_flax.training.pieces import batches, range_curves
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer

VARIED = Augmentation(padding=2, flip=True, cutout=4, brightness=0.1)


@pytest.mark.slow
def test_the_batches_are_those_that_a_run_of_the_seed_trains_on(splits):
    recipe = Recipe((Constant(0.1, 1),), batch_size=32, augmentation=VARIED)
    trainer = Trainer(create_model("simplenet", 4), recipe, splits.spec, seeds=(5,))
    states, data = trainer.init(splits.train), trainer.put(splits.train)
    orders = programs.epoch_orders(states.key, np.int32(0), len(splits.train))
    state = jax.tree.map(lambda leaf: leaf[0], states)
    batch = jax.jit(trainer.train_step.batch)
    found = list(batches(splits.train, splits.spec, 32, VARIED, seed=5))
    assert len(found) == 3
    for number, (images, labels) in enumerate(found):
        at = dataclasses.replace(state, step=jnp.int32(number))
        wanted = batch(at, orders[0], data)
        np.testing.assert_array_equal(images, wanted[0])
        np.testing.assert_array_equal(labels, wanted[1])
        assert isinstance(images, jax.Array)


def test_every_epoch_has_every_image_once_in_another_order(splits):
    found = list(batches(splits.train, splits.spec, 24, epochs=2))
    mean, std = (np.float32(one) for one in (splits.mean, splits.std))
    pixels = np.concatenate([np.asarray(x) for x, _ in found]) * std + mean
    images = np.round(pixels * 255).astype(np.uint8).reshape(2, 96, -1)
    own = splits.train.images.reshape(96, -1)
    rank = [np.lexsort(one.T) for one in (own, *images)]
    for epoch, order in zip(images, rank[1:], strict=True):
        np.testing.assert_array_equal(epoch[order], own[rank[0]])
    labels = np.concatenate([np.asarray(y) for _, y in found]).reshape(2, 96)
    np.testing.assert_array_equal(labels[0][rank[1]], splits.train.labels[rank[0]])
    assert (labels[0] != labels[1]).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 97}, "batch"),
        ({"batch_size": 0}, "batch_size"),
        ({"augmentation": Augmentation(mixup=0.1)}, "mix the targets"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_what_does_not_fit_is_named(splits, changes, words):
    given = {"batch_size": 8, **changes}
    with pytest.raises(UserError, match=words):
        batches(splits.train, splits.spec, **given)


def loss_fn(params, batch):
    """Squared error of a line."""
    return jnp.mean((batch @ params["w"] - 1.0) ** 2)


LINES = [np.random.default_rng(n).normal(size=(16, 8)) + 0.3 for n in range(40)]
PARAMS = {"w": jnp.zeros(8)}


def by_hand(rates):
    """The losses of SGD with momentum, in NumPy."""
    w, speed, losses = np.zeros(8), np.zeros(8), []
    for rate, x in zip(rates, itertools.cycle(LINES)):
        error = x @ w - 1.0
        losses.append(np.mean(error**2))
        speed = 0.9 * speed + 2 * x.T @ error / len(x)
        w = w - rate * speed
    return losses


def test_the_curve_is_that_of_the_steps_by_hand():
    found = range_curves(loss_fn, PARAMS, LINES, RangeSettings(end_lr=1.0))
    assert found.num_steps == 100  # the batches are begun anew
    ratios = found.rates[1:] / found.rates[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
    count = min(80, len(found.rates))
    wanted = by_hand(found.rates[:count])
    np.testing.assert_allclose(found.losses[0, :count], wanted, rtol=2e-3)
    assert found.rates[-1] < 1.0  # it stops when the loss grows
    assert found.suggest()[0] == lowest(found.curve(0))
    assert not PARAMS["w"].any()


@pytest.mark.slow
def test_any_optimizer_takes_the_rising_rate():
    settings = RangeSettings(start_lr=0.01, end_lr=0.02, num_steps=30)
    given = (loss_fn, PARAMS, iter(LINES), settings)
    plain = range_curves(*given, make_optimizer=optax.sgd)
    assert plain.losses.shape == (1, 30)
    other = range_curves(*given[:2], LINES, settings, make_optimizer=optax.adam)
    assert (plain.losses[0, 2:] != other.losses[0, 2:]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": iter(LINES)}, "end after 40 of 100 steps"),
        ({"batches": []}, "end after 0 of 100 steps"),
        ({"loss_fn": lambda p, x: (x @ p["w"]) ** 2}, r"returns \(16,\)"),
        ({"loss_fn": lambda p, x: loss_fn(p, x) / 0}, "NaN or infinite at the first"),
    ],
)
def test_a_test_that_cannot_be_is_named(changes, words):
    given = {"loss_fn": loss_fn, "params": PARAMS, "batches": LINES, **changes}
    with pytest.raises(UserError, match=words):
        range_curves(**given)
