"""The check of a suggested rate: its losses are those of training; its decisions."""

import dataclasses

import numpy as np
import pytest

from cifar_flax.models import ConvNet, SimpleNet
from cifar_flax.training.phases import Constant, Sgdr
from cifar_flax.training.rate_check import (
    MOST_HALVINGS,
    Trial,
    beginning,
    check_rate,
    is_better,
)
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer
from tests.training.nets import PooledNet

RECIPE = Recipe((Sgdr(1.0, cycles=1, cycle_len=2),), batch_size=8, weight_decay=0.01)


def make_trainer(splits, model, recipe=RECIPE, seeds=(0, 3)):
    return Trainer(model, recipe, splits.spec, seeds)


def first_epoch(trainer, splits):
    """Trains for an epoch; returns the losses of its steps."""
    losses = []
    for progress in trainer.run(trainer.init(splits.train), splits.train):
        losses.append(progress.losses)
        if progress.epoch_done:
            return np.concatenate(losses, axis=1)


def test_losses_are_those_of_the_training_that_would_follow(splits):
    unit = make_trainer(splits, SimpleNet(4))
    losses = beginning(unit, splits.train, unit.init(splits.train))(0.02)
    recipe = dataclasses.replace(RECIPE, phases=(Sgdr(0.02, cycles=1, cycle_len=2),))
    trainer = make_trainer(splits, SimpleNet(4), recipe)
    expected = first_epoch(trainer, splits)
    assert losses.shape == (2, 12)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_it_begins_with_what_the_first_phase_freezes_and_the_size_of_its_images(splits):
    """The losses are those of the training, and not those of a plain phase."""
    found = []
    for changes in ({}, {"freeze": "^(?!head)", "image_size": 16}):
        phases = (Constant(1.0, 1, **changes), Constant(1.0, 1))
        recipe = Recipe(phases, batch_size=8)
        unit = make_trainer(splits, PooledNet(), recipe)
        found.append(beginning(unit, splits.train, unit.init(splits.train))(0.5))
    low = tuple(dataclasses.replace(phase, learning_rate=0.5) for phase in phases)
    recipe = dataclasses.replace(recipe, phases=low)
    trainer = make_trainer(splits, PooledNet(), recipe)
    plain, changed = found
    np.testing.assert_array_equal(changed, first_epoch(trainer, splits))
    assert (changed != plain).all()


@pytest.mark.slow
def test_a_trial_continues_from_the_step_of_its_state(splits):
    """So does a run with --continue_from, whose trial is of its next phase."""
    recipe = Recipe((Constant(1e-3, 1), Sgdr(1.0, cycles=1)), batch_size=8)
    unit = make_trainer(splits, SimpleNet(4), recipe)
    for progress in unit.run(unit.init(splits.train), splits.train):
        if progress.epoch_done:
            break
    expected = [progress.losses for progress in unit.run(progress.state, splits.train)]
    losses = beginning(unit, splits.train, progress.state)(1.0)
    np.testing.assert_array_equal(losses, np.concatenate(expected, axis=1))


def trial(rate, *rows):
    return Trial(rate, np.array(rows, np.float64))


FALLS = np.linspace(2.3, 1.5, 100)
BREAKS = {
    "falls": (FALLS, False),
    "is not finite": (np.where(np.arange(100) < 60, FALLS, np.nan), True),
    "is infinite": (np.where(np.arange(100) < 99, FALLS, np.inf), True),
    "rises": (np.where(np.arange(100) < 50, FALLS, 2.6), True),
    "has one high batch": (np.where(np.arange(100) == 99, 9.0, FALLS), False),
    "stays": (np.full(100, 2.303), False),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_seed_breaks_away_where_its_loss_rises_or_is_lost(name):
    losses, breaks = BREAKS[name]
    assert trial(0.1, losses, FALLS).breaks.tolist() == [breaks, False]


def test_half_is_better_in_the_mean_or_if_a_seed_diverges():
    assert is_better(trial(0.1, FALLS - 0.1, FALLS), trial(0.2, FALLS, FALLS))
    assert not is_better(trial(0.1, FALLS - 0.1, FALLS + 0.1), trial(0.2, FALLS, FALLS))
    assert not is_better(trial(0.1, FALLS - 0.01, FALLS), trial(0.2, FALLS, FALLS))
    lost = np.full(100, np.nan)
    assert is_better(trial(0.1, FALLS, FALLS), trial(0.2, FALLS - 1, lost))
    assert not is_better(trial(0.1, FALLS, lost), trial(0.2, FALLS, FALLS))


def test_a_trial_of_fewer_steps_needs_a_larger_gain():
    """Noise of a mean over n steps falls as the root of n: 0.02 nats of 25 steps."""
    few = FALLS[:36]  # a window of 9 steps
    for gain, better in ((0.032, False), (0.035, True)):
        assert is_better(trial(0.1, few - gain), trial(0.2, few)) == better


@pytest.mark.slow
def test_a_good_rate_stays_and_one_that_is_too_high_is_halved(splits):
    recipe = Recipe((Constant(1.0, 3),), batch_size=4)
    unit = make_trainer(splits, ConvNet(4), recipe, (0, 1))
    state = unit.init(splits.train)
    good = check_rate(unit, splits.train, 0.02, state)
    assert good.rate == 0.02
    assert [one.rate for one in good.trials] == [0.02, 0.01]
    found = check_rate(unit, splits.train, 1.0, state)
    assert found.rate < 1.0
    assert not found.trials[-1].breaks.any()
    assert found.trials[0].breaks.any()


def test_it_ends_after_a_few_halves(splits):
    unit = make_trainer(splits, SimpleNet(4))
    told = []
    found = check_rate(
        *(unit, splits.train, 1e9, unit.init(splits.train)), lambda: told.append(1)
    )
    assert found.rate == 1e9 / 2**MOST_HALVINGS
    assert len(told) == len(found.trials) == MOST_HALVINGS + 1
