"""The record of each step, which does not depend on interruptions, and its figures."""

import dataclasses
import threading

import numpy as np
import pytest

import cifar_flax as cf
from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.training.phases import Constant, Sgdr
from cifar_flax.training.recipes import Recipe
from tests.runs.test_session import SETTINGS, Told, go

PHASES = (Constant(0.02, 1), Sgdr(0.05, 2, 1.5))
RECIPE = Recipe(PHASES, batch_size=32)
PLAIN = dataclasses.replace(SETTINGS, lr=None, epochs=None, batch_size=None)


def go_by_recipe(folder, **changes):
    """Four epochs of three steps."""
    return go(folder, PLAIN, recipe=RECIPE, **changes)


def stop_at_five(folder):
    stop = threading.Event()
    return go_by_recipe(folder, observers=[Told(5, stop.set)], stop=stop)


def test_losses_are_those_of_the_log_and_rates_those_of_the_formula(tmp_path):
    result = go_by_recipe(tmp_path / "run")
    losses, rates = result.steps.losses, result.steps.rates
    assert losses.shape == (2, 12)
    by_epoch = losses.reshape(2, 4, 3).mean(-1)
    logged = np.array([line.train_loss for line in result.metrics]).T
    np.testing.assert_allclose(by_epoch, logged, rtol=1e-5)
    assert len(set(losses.ravel())) == losses.size
    cycles = [0.05 * (1 + np.cos(np.pi * t / n)) / 2 for n in (4, 5) for t in range(n)]
    np.testing.assert_allclose(rates, [0.02] * 3 + cycles, rtol=1e-5)
    kept = records.read_steps(tmp_path / "run")
    np.testing.assert_array_equal(kept.losses, losses)
    np.testing.assert_array_equal(kept.rates, rates)


@pytest.mark.slow
def test_a_stop_in_the_midst_of_an_epoch_changes_no_step(tmp_path, small_chunks):
    expected = go_by_recipe(None).steps
    stopped = stop_at_five(tmp_path / "run")
    np.testing.assert_array_equal(stopped.steps.losses, expected.losses[:, :5])
    kept = records.read_steps(tmp_path / "run")
    np.testing.assert_array_equal(kept.losses, expected.losses[:, :5])
    result = go_by_recipe(tmp_path / "run", resume=True)
    np.testing.assert_array_equal(result.steps.losses, expected.losses)
    np.testing.assert_array_equal(result.steps.rates, expected.rates)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut", "of another run"])
def test_lost_steps_are_left_out_and_named(tmp_path, small_chunks, caplog, damage):
    stop_at_five(tmp_path / "run")
    path = tmp_path / "run" / records.STEPS
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        one = records.Steps(np.zeros((1, 5), np.float32), np.zeros(5, np.float32))
        records.write_steps(tmp_path / "run", one)
    result = go_by_recipe(tmp_path / "run", resume=True)
    assert str(path) in caplog.text
    assert np.isnan(result.steps.losses[:, :5]).all()
    np.testing.assert_array_equal(
        result.steps.losses[:, 5:], go_by_recipe(None).steps.losses[:, 5:]
    )


def test_a_seed_that_diverges_has_no_losses_after_that_step(tmp_path):
    settings = dataclasses.replace(PLAIN, lr=1e38, epochs=2, batch_size=32)
    result = go(tmp_path / "run", settings)
    kept = records.read_steps(tmp_path / "run")
    np.testing.assert_array_equal(kept.losses, result.steps.losses)
    assert result.status == "diverged"
    for losses, at in zip(result.steps.losses, result.record.diverged_at, strict=True):
        assert np.isfinite(losses[: at - 1]).all()
        assert not np.isfinite(losses[at - 1 :]).any()


def test_both_figures_show_what_is_recorded(tmp_path):
    result = go_by_recipe(tmp_path / "run")
    for source in (result, tmp_path / "run", str(tmp_path / "run")):
        (axis,) = cf.plot_loss(source).axes
        drawn = [line.get_ydata() for line in axis.lines]
        assert any(np.array_equal(line, result.steps.losses[1]) for line in drawn)
        (axis,) = cf.plot_lr(source).axes
        np.testing.assert_array_equal(axis.lines[0].get_ydata(), result.steps.rates)
    (tmp_path / "run" / records.STEPS).unlink()
    with pytest.raises(UserError, match=r"steps\.npz"):
        cf.plot_loss(tmp_path / "run")
