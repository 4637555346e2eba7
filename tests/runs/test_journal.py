"""Runs when files cannot be written, and when a signal asks them to stop."""

import logging
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.commands import cli
from cifar_flax.commands.run import StopOnSignal
from cifar_flax.errors import UserError
from cifar_flax.runs.checkpoint import Checkpoints, open_checkpoints
from cifar_flax.runs.range_tests import range_test
from cifar_flax.runs.settings import Settings
from tests import leaks
from tests.runs.test_session import (
    TinyNet,
    Told,
    assert_same,
    go,
    make_tiny,
    saved_steps,
    steps_of,
)


def failing(function, monkeypatch, place, calls, error):
    """Replaces a function by one that raises in some calls."""
    count = 0

    def sometimes(*args, **kwargs):
        nonlocal count
        count += 1
        if count in calls:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(place, function.__name__, sometimes)


def test_lines_that_cannot_be_written_are_written_later(tmp_path, monkeypatch, caplog):
    expected = go(tmp_path / "undisturbed")
    assert saved_steps(tmp_path / "undisturbed") == best_and_last_two(expected)
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
        result = go(tmp_path / "run")
    assert_same(result.state, expected.state)
    assert steps_of(records.read_metrics(tmp_path / "run")) == [3, 6, 9, 12]
    # No checkpoint is later than the recorded lines.
    assert saves == [3, 12]
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


def best_and_last_two(result):
    means = [np.mean(line.val_accuracy) for line in result.metrics]
    best = max((mean, line.step) for mean, line in zip(means, result.metrics))  # noqa: B905
    return sorted({best[1], 9, 12})


@pytest.mark.slow
def test_lines_that_cannot_be_written_to_the_end_leave_the_run_unfinished(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        failing(
            records.append_metrics, patch, records, range(2, 9), UserError("no space")
        )
        told = Told()
        with pytest.raises(UserError, match="no space"):
            go(tmp_path / "run", observers=[told])
    assert told.events[-1] == ("ended", "finished")  # the result is shown all the same
    assert steps_of(records.read_metrics(tmp_path / "run")) == [3]
    assert records.read_result(tmp_path / "run") is None
    assert saved_steps(tmp_path / "run") == [3]
    assert_same(go(tmp_path / "run", resume=True).state, go(None).state)


def test_training_goes_on_without_checkpoints(tmp_path, monkeypatch, caplog):
    failing(Checkpoints.save, monkeypatch, Checkpoints, (2, 3), UserError("no space"))
    go(tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [3, 12]
    assert [r.getMessage() for r in caplog.records] == ["no space", "no space"]


@pytest.mark.slow
@pytest.mark.parametrize("failures", [2, 9])
def test_a_result_is_not_recorded_without_the_network(tmp_path, monkeypatch, failures):
    # The fourth save is of the last state; it is tried once more at the end.
    calls = range(4, 4 + failures)
    with monkeypatch.context() as patch:
        failing(Checkpoints.save, patch, Checkpoints, calls, UserError("no space"))
        with pytest.raises(UserError, match=r"not recorded: no space; --resume"):
            go(tmp_path / "run")
    assert records.read_result(tmp_path / "run") is None
    again = go(tmp_path / "run", resume=True)
    assert_same(again.state, go(None).state)
    assert saved_steps(tmp_path / "run")[-1] == 12
    assert records.read_result(tmp_path / "run").status == "finished"


def test_the_last_state_is_saved_at_the_second_attempt(tmp_path, monkeypatch):
    failing(Checkpoints.save, monkeypatch, Checkpoints, (4,), UserError("no space"))
    go(tmp_path / "run")
    assert saved_steps(tmp_path / "run")[-1] == 12
    with open_checkpoints(tmp_path / "run" / records.CHECKPOINTS) as checkpoints:
        assert checkpoints.is_sound(12)
        assert not checkpoints.is_sound(13)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["all", "last", "cut"])
def test_a_finished_run_without_its_network_is_repaired(tmp_path, damage, caplog):
    expected = go(tmp_path / "run")
    folder = tmp_path / "run" / records.CHECKPOINTS
    if damage == "cut":
        files = filter(pathlib.Path.is_file, folder.glob("12/variables/**/*"))
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1])
    for path in folder.iterdir():
        if damage == "all" or (damage == "last" and path.name == "12"):
            shutil.rmtree(path)
    again = go(tmp_path / "run", resume=True)
    assert "no valid checkpoint of its last step" in caplog.text
    assert_same(again.state, expected.state)
    assert saved_steps(tmp_path / "run")[-1] == 12
    result = records.read_result(tmp_path / "run")
    assert result.test_accuracy == expected.record.test_accuracy


def test_too_little_space_is_said_at_once(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"may need .* MB, .*1\.0 MB free"):
        go(tmp_path / "run")
    assert not (tmp_path / "run" / records.METRICS).exists()


# Signals of the command.


@pytest.fixture
def heard():
    """A shell without job control starts background commands that ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_after_the_chunk_in_progress(
    tmp_path, small_chunks, heard, signum
):
    before = signal.getsignal(signum)
    stopper = StopOnSignal()
    kill = Told(5, lambda: os.kill(os.getpid(), signum))
    request = stopper.request
    result = go(tmp_path / "run", stop=request.event, observers=[stopper, kill])
    assert result.status == "stopped"
    assert request.signum == signum
    assert signal.getsignal(signum) == before
    with open_checkpoints(tmp_path / "run" / records.CHECKPOINTS) as checkpoints:
        assert checkpoints.latest_step == 5
    result = go(tmp_path / "run", resume=True)
    assert_same(result.state, go(None).state)


def test_a_signal_ends_a_command_that_does_not_ask_for_requests():
    """For example lr_find, which has nothing to save before its end."""

    def act():
        raise cli.Stopped(signal.SIGTERM)

    told = Told(1, act)
    settings = Settings(val_size=24, batch_size=32)
    given = {"model": TinyNet(), "dataset": make_tiny()}
    with pytest.raises(cli.Stopped):
        range_test(settings, observers=[told], **given)
    assert told.events[-1] == ("ended", None)


def test_a_second_signal_does_not_wait(heard):
    before = signal.getsignal(signal.SIGTERM)
    request = cli.StopRequest()
    with cli.caught_signals(request):
        os.kill(os.getpid(), signal.SIGINT)
        assert request.event.is_set()
        for signum in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(signum) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_runs_leave_no_files_open(tmp_path):
    leaks.train(0, tmp_path / "run")
    before = leaks.open_files()
    for seed in (1, 2):
        leaks.train(seed, tmp_path / "run")
    assert leaks.open_files() == before
