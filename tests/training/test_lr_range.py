"""The range test: its curve against a simple loop, and what it must not change."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.errors import UserError
from cifar_flax.models import SimpleNet
from cifar_flax.training.losses import cross_entropy
from cifar_flax.training.lr_range import (
    Curves,
    Ramp,
    RangeSettings,
    peak_stage,
    range_curves,
    smooth,
)
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.schedules import ramp
from cifar_flax.training.stages import Stage
from cifar_flax.training.steps import epoch_order
from cifar_flax.training.trainer import Trainer
from tests.training.nets import PooledNet

RECIPE = Recipe((Constant(0.1, 1),), batch_size=8, weight_decay=0.01)
SHORT = RangeSettings(1e-4, 1e-3, 20)


def make_trainer(splits, model, seeds=(0,)):
    return Trainer(model, RECIPE, splits.spec, seeds)


def fingerprint(state):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("linear", [False, True])
def test_ramp_is_its_closed_form_with_both_ends(linear):
    k = np.arange(30)
    expected = 1e-4 * (10 / 1e-4) ** (k / 29)
    if linear:
        expected = 1e-4 + (10 - 1e-4) * k / 29
    rates = jax.vmap(ramp(1e-4, 10, 30, linear))(jnp.arange(30))
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-6)


def test_smoothing_is_a_weighted_mean_of_what_was_seen():
    losses = np.random.default_rng(0).normal(size=(2, 12))
    expected = np.empty_like(losses)
    for k in range(12):
        weights = 0.9 ** np.arange(k, -1, -1)
        expected[:, k] = (losses[:, : k + 1] * weights).sum(1) / weights.sum()
    np.testing.assert_allclose(smooth(losses, 0.9), expected)


@pytest.mark.slow
def test_losses_are_those_of_a_loop_by_hand(splits):
    """The loop takes the steps of two epochs with the formula of the optimizer."""
    trainer = make_trainer(splits, SimpleNet(4))
    settings = RangeSettings(start_lr=1e-5, end_lr=1e-2, num_steps=24)
    result = range_curves(trainer, splits.train, settings)

    state = jax.tree.map(lambda leaf: leaf[0], trainer.init())
    params, losses = state.params, []
    data = trainer.put(splits.train)
    velocity = jax.tree.map(jnp.zeros_like, params)
    for step in range(24):
        epoch, place = divmod(step, trainer.steps_per_epoch)
        order = epoch_order(state.key, epoch, 96)[place * 8 : place * 8 + 8]
        now = state.replace(step=jnp.int32(step))
        images, labels, *_ = trainer.train_step.batch(now, order, data)

        def loss_fn(params, images=images, labels=labels):
            logits = trainer.model.apply({"params": params}, images, train=True)
            return cross_entropy(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        losses.append(float(loss))
        rate = 1e-5 * 1e3 ** (step / 23)
        grads = jax.tree.map(lambda g, p: g + 0.01 * p, grads, params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        params = jax.tree.map(lambda p, v, r=rate: p - r * v, params, velocity)
    np.testing.assert_allclose(result.losses[0], losses, rtol=2e-3)
    np.testing.assert_allclose(
        result.rates, 1e-5 * 1e3 ** (np.arange(24) / 23), rtol=1e-4
    )


@pytest.mark.slow
def test_the_state_comes_back_untouched_bit_for_bit(splits):
    trainer = make_trainer(splits, PooledNet(), (0, 1))
    state = trainer.init()
    before = fingerprint(state)
    range_curves(trainer, splits.train, RangeSettings(num_steps=20), state)
    assert fingerprint(state) == before


def test_progress_is_told_to_the_end(splits):
    told = []
    trainer = make_trainer(splits, PooledNet(), (0, 1))
    range_curves(trainer, splits.train, SHORT, on_progress=told.append)
    assert told == sorted(set(told))
    assert told[-1] == 20


@pytest.mark.slow
def test_each_replica_stops_where_its_own_loss_breaks_away(splits):
    trainer = make_trainer(splits, SimpleNet(4), (0, 1, 2))
    settings = RangeSettings(
        start_lr=1e-4, end_lr=1e4, num_steps=60, smoothing=0.5, stop_factor=4
    )
    result = range_curves(trainer, splits.train, settings)
    assert len(result.rates) < 60
    for i, seed in enumerate(trainer.seeds):
        shown = np.isfinite(result.losses[i])
        count = shown.sum()
        assert shown[:count].all()  # no gaps
        smoothed = result.smoothed[i, :count]
        best = np.minimum.accumulate(smoothed)
        assert (smoothed[:-1] <= 4.001 * best[:-1]).all()
        single = make_trainer(splits, SimpleNet(4), (seed,))
        alone = range_curves(single, splits.train, settings)
        np.testing.assert_array_equal(alone.losses[0], result.losses[i, :count])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start_lr": 1.0, "end_lr": 1.0}, "start_lr is 1 and end_lr 1"),
        ({"start_lr": 0.0}, "start_lr is 0"),
        ({"end_lr": float("nan")}, "end_lr nan"),
        ({"start_lr": 1e-40}, "start_lr is 1e-40"),
        ({"end_lr": 1e39}, r"end_lr 1e\+39"),
        ({"start_lr": 1e-29, "end_lr": 1e9}, "start_lr is 1e-29.*factor"),
        ({"num_steps": 19}, "num_steps is 19.*20 or more"),
        ({"num_steps": 10**9}, "num_steps is 1000000000"),
        ({"smoothing": 1.0}, "smoothing is 1"),
        ({"end_lr": "10"}, "end_lr is '10'; it must be a number"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        RangeSettings(**settings)


def test_a_hopeless_model_is_named(splits):
    trainer = make_trainer(splits, PooledNet(), (0, 1))
    state = trainer.init()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
    state = state.replace(params=broken)
    with pytest.raises(UserError, match="NaN or infinite at the first step"):
        range_curves(trainer, splits.train, SHORT, state)


def test_a_test_takes_an_epoch_and_a_hundred_steps_at_least(splits):
    trainer = make_trainer(splits, SimpleNet(4))
    assert RangeSettings().steps_for(trainer) == 100
    trainer.steps_per_epoch = 175
    assert RangeSettings().steps_for(trainer) == 175
    assert RangeSettings(num_steps=20).steps_for(trainer) == 20


@dataclasses.dataclass(frozen=True)
class Rise:
    """A phase with the rate of a range test."""

    epochs: float
    ramp: Ramp

    def schedule(self, steps_per_epoch):
        return self.ramp


def losses_of(splits, recipe, settings, seeds=(0, 1)):
    trainer = Trainer(PooledNet(), recipe, splits.spec, seeds)
    return range_curves(trainer, splits.train, settings).losses


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param({"ema": 0.9}, marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_a_training_with_the_ramp_as_its_schedule(splits, changes):
    """This holds to the last bit, over several epochs of 12 steps."""
    recipe = dataclasses.replace(RECIPE, **changes)
    found = losses_of(splits, recipe, RangeSettings(1e-4, 1e-1, 30))
    # A group of steps has the rate of its first step.
    ramp, every = Ramp(1e-4, 1e-1, 30), recipe.accumulate
    rise = Rise(30 / 12, lambda group: ramp(group * every))
    recipe = dataclasses.replace(recipe, phases=(rise,))
    model = PooledNet()
    trainer = Trainer(model, recipe, splits.spec, (0, 1))
    state = trainer.init(splits.train)
    losses = [progress.losses for progress in trainer.run(state, splits.train)]
    np.testing.assert_array_equal(found, np.concatenate(losses, 1))


def test_it_starts_at_step_0_without_momentum_from_any_state(splits):
    trainer = make_trainer(splits, PooledNet(), (0, 1))
    *_, last = trainer.run(trainer.init(), splits.train)
    fresh = trainer.start_from(last.state.trained)
    found, expected = (
        range_curves(trainer, splits.train, SHORT, state)
        for state in (last.state, fresh)
    )
    np.testing.assert_array_equal(found.losses, expected.losses)


@pytest.mark.slow
def test_what_a_phase_freezes_is_frozen_in_the_test(splits):
    """As by a group; without it, the losses are others."""
    pattern = "^(?!head)"
    phase = dataclasses.replace(RECIPE, phases=(Constant(0.1, 1, freeze=pattern),))
    group = dataclasses.replace(RECIPE, groups=(Group(pattern, frozen=True),))
    frozen, expected, plain = (
        losses_of(splits, recipe, SHORT) for recipe in (phase, group, RECIPE)
    )
    np.testing.assert_array_equal(frozen, expected)
    assert (frozen[:, 2:] != plain[:, 2:]).all()


@pytest.mark.slow
def test_images_have_the_size_of_the_phase_in_the_test(splits):
    """Smaller images are those of an ordinary training on them."""
    small = dataclasses.replace(RECIPE, phases=(Constant(0.1, 1, image_size=16),))
    found, plain = (losses_of(splits, recipe, SHORT) for recipe in (small, RECIPE))
    assert (found != plain).all()
    trainer = Trainer(PooledNet(), small, splits.spec, (0, 1))
    trained = next(trainer.run(trainer.init(splits.train), splits.train)).losses
    np.testing.assert_array_equal(found[:, 0], trained[:, 0])  # before any update


def test_the_phase_is_that_of_the_highest_rate(splits):
    """If two stages have this rate, it is the first of them."""
    low, high = Constant(0.01, 1, image_size=8), Constant(0.1, 1, image_size=16)
    also_high = Constant(0.1, 1)
    recipe = dataclasses.replace(RECIPE, phases=(low, high, also_high))
    trainer = Trainer(PooledNet(), recipe, splits.spec)
    assert peak_stage(trainer) == Stage(12, 24, None, 16)


def test_a_replica_that_has_stopped_has_no_further_losses():
    """Neither within the chunk in which it stops, nor in the chunks after it."""
    losses = np.float32([[2, 1, 9, 1, 1, 1], [2, 1, 1, np.nan, 1, 1], [2] * 6])
    settings = RangeSettings(num_steps=20, smoothing=0.0, stop_factor=4)
    for size in (1, 2, 6):
        curves = Curves(settings)
        for first in range(0, 6, size):
            assert curves.add(losses[:, first : first + size])
        expected = losses.copy()
        expected[0, 3:], expected[1, 3:] = np.nan, np.nan
        np.testing.assert_array_equal(np.stack(curves.losses, 1), expected)
    assert not curves.add(np.float32([[1], [1], [9]]))


@pytest.mark.slow
def test_a_test_ends_soon_after_its_last_replica_has_stopped(splits, small_chunks):
    told = []
    settings = RangeSettings(1e-4, 1e4, 100, smoothing=0.5)
    trainer = make_trainer(splits, SimpleNet(4), (0, 1))
    losses = range_curves(
        trainer, splits.train, settings, on_progress=told.append
    ).losses
    assert told[-1] == losses.shape[1] < 100
