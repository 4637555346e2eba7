"""What training does when files cannot be written, and when it is asked to stop."""

import logging
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from cifar_flax import loop, records
from cifar_flax.checkpoint import Checkpoints, open_checkpoints
from cifar_flax.errors import UserError
from cifar_flax.loop import Trainer
from cifar_flax.models import SimpleNet
from cifar_flax.recipes import Constant, Recipe
from experiments import cli, run
from experiments.console import make_console
from tests import leaks
from tests.test_loop import host

RECIPE = Recipe((Constant(0.001, 4),), batch_size=32)  # of three steps an epoch


@pytest.fixture
def trainer(splits):
    return Trainer(SimpleNet(4, features=(3,)), splits, RECIPE, (0, 1))


def train(trainer, folder):
    """Trains in a folder; the last state, unwritten lines and the steps saved."""
    folder.mkdir(exist_ok=True)
    with open_checkpoints(folder / records.CHECKPOINTS) as checkpoints:
        state, _, unwritten = run.train(
            trainer, folder, checkpoints, make_console(), tensorboard=False
        )
        steps = sorted(checkpoints._manager.all_steps())
    return host(state), unwritten, steps


def steps_of(lines):
    return [line["step"] for line in lines]


def failing(function, monkeypatch, place, calls, error):
    """Replaces a function by one that raises in some of its calls."""
    count = 0

    def sometimes(*args, **kwargs):
        nonlocal count
        count += 1
        if count in calls:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(place, function.__name__, sometimes)


def test_lines_that_cannot_be_written_are_written_later(
    trainer, tmp_path, monkeypatch, caplog
):
    expected, _, steps = train(trainer, tmp_path / "undisturbed")
    assert steps == [9, 12]
    full = UserError("no space")
    failing(records.append_metrics, monkeypatch, records, (2, 3), full)
    saves = []
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, state, **other: (
            saves.append(int(state.step[0])) or save(self, state, **other)
        ),
    )
    with caplog.at_level(logging.INFO):
        state, unwritten, _ = train(trainer, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert unwritten == []
    assert steps_of(records.read_metrics(tmp_path / "run")) == [3, 6, 9, 12]
    # No checkpoint is ahead of the lines.
    assert saves == [3, 12]
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


def test_lines_that_cannot_be_written_to_the_end_are_given_back(
    trainer, tmp_path, monkeypatch
):
    full = UserError("no space")
    failing(records.append_metrics, monkeypatch, records, range(2, 9), full)
    _, unwritten, steps = train(trainer, tmp_path / "run")
    assert steps_of(records.read_metrics(tmp_path / "run")) == [3]
    assert steps_of(unwritten) == [6, 9, 12]
    assert steps == [3]


def test_training_goes_on_without_checkpoints(trainer, tmp_path, monkeypatch, caplog):
    failing(Checkpoints.save, monkeypatch, Checkpoints, (2, 3), UserError("no space"))
    _, unwritten, steps = train(trainer, tmp_path / "run")
    assert unwritten == []
    assert steps == [3, 12]
    assert [r.getMessage() for r in caplog.records] == ["no space", "no space"]


def test_too_little_space_is_said_at_once(trainer, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"MB may be needed in .*1\.0 MB free"):
        train(trainer, tmp_path / "run")
    assert not (tmp_path / "run" / records.METRICS).exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_after_the_chunk_in_progress(
    trainer, tmp_path, monkeypatch, signum
):
    expected, _, _ = train(trainer, tmp_path / "undisturbed")
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0.0)  # a step a chunk
    go = trainer.run

    def stopping(state):
        for progress in go(state):
            if progress.step == 5:
                os.kill(os.getpid(), signum)
            yield progress

    monkeypatch.setattr(trainer, "run", stopping)
    before = signal.getsignal(signum)
    with pytest.raises(cli.Stopped) as stop:
        train(trainer, tmp_path / "run")
    assert stop.value.status == 128 + signum
    assert signal.getsignal(signum) == before
    with open_checkpoints(tmp_path / "run" / records.CHECKPOINTS) as checkpoints:
        assert checkpoints.latest_step == 5
    assert steps_of(records.read_metrics(tmp_path / "run")) == [3]
    monkeypatch.setattr(trainer, "run", go)
    state, _, _ = train(trainer, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_a_second_signal_does_not_wait():
    before = signal.getsignal(signal.SIGTERM)
    with run.caught_signals() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
        for signum in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(signum) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


def test_runs_leave_no_files_open(splits, tmp_path):
    leaks.train(0, splits, tmp_path / "run")
    before = leaks.open_files()
    for seed in (1, 2):
        leaks.train(seed, splits, tmp_path / "run")
    assert leaks.open_files() == before
