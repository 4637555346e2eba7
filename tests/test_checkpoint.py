"""Checkpoints: what is kept, and that it comes back bit for bit."""

import jax
import numpy as np
import pytest

from cifar_flax.checkpoint import open_checkpoints
from cifar_flax.errors import UserError
from cifar_flax.loop import Trainer
from cifar_flax.models import ConvBnNet, SimpleNet
from cifar_flax.recipes import Constant, Recipe
from tests.test_loop import host

RECIPE = Recipe((Constant(0.02, 5),), batch_size=48)


def make_trainer(splits, model=None):
    return Trainer(model or ConvBnNet(4, features=(4, 8)), splits, RECIPE, (0, 1))


def save_epochs(trainer, folder, accuracies):
    """Saves after each epoch, and trains on; the states as they were."""
    states = {}
    with open_checkpoints(folder) as checkpoints:
        for progress in trainer.run(trainer.init()):
            if progress.epoch_done:
                checkpoints.save(
                    progress.state,
                    seconds=0.5 * progress.step,
                    val_accuracy=accuracies[len(states)],
                )
                states[progress.step] = host(progress.state)
    return states


def test_latest_and_best_are_kept_and_come_back_bit_for_bit(splits, tmp_path):
    trainer = make_trainer(splits)
    states = save_epochs(trainer, tmp_path, [0.1, 0.4, 0.3, 0.2, 0.1])
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 10
        assert checkpoints.best_step == 4
        for step in (4, 10):
            state, seconds = checkpoints.restore(trainer.init(), step)
            jax.tree.map(np.testing.assert_array_equal, host(state), states[step])
            assert seconds == 0.5 * step
    kept = sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit())
    assert kept == ["10", "4"]


def test_without_validation_the_latest_is_kept(splits, tmp_path, caplog):
    trainer = make_trainer(splits)
    states = save_epochs(trainer, tmp_path, [None] * 5)
    with open_checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(trainer.init())
        jax.tree.map(np.testing.assert_array_equal, host(state), states[10])
    assert [p.name for p in tmp_path.iterdir() if p.name.isdigit()] == ["10"]
    assert "metric" not in caplog.text


def test_an_interrupted_epoch_has_no_accuracy_and_the_best_stays(splits, tmp_path):
    trainer = make_trainer(splits)
    save_epochs(trainer, tmp_path, [0.1, 0.4, None, 0.3, None])
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step == 4
        assert checkpoints.latest_step == 10


def test_an_empty_folder_has_none(splits, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        with pytest.raises(UserError, match="no checkpoint in"):
            checkpoints.restore(make_trainer(splits).init())


def test_another_model_is_refused_in_one_line(splits, tmp_path):
    save_epochs(make_trainer(splits), tmp_path, [None] * 5)
    other = make_trainer(splits, SimpleNet(4))
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"step 10 .* does not fit") as error,
    ):
        checkpoints.restore(other.init())
    assert "\n" not in str(error.value)
