"""Whatever the folder of a run holds, it is gone on with, shown or used, or named."""

import dataclasses
import io
import json

import pytest
from hypothesis import given
from rich.console import Console

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.inference import Run
from experiments import sweep
from experiments.config import Config, read_settings
from experiments.console import print_result, read_result
from experiments.setup import check_same_run
from tests.damage import bounded, changed

SETTINGS = Config(model="simplenet", seeds=(3, 5), lr=0.1, cycles=2)
CONFIG = {
    "format": records.FORMAT,
    "kind": "run",
    "settings": json.loads(json.dumps(dataclasses.asdict(SETTINGS))),
    "dataset": {
        "name": "cifar10",
        "fingerprint": "0123",
        "source": "a test",
        "class_names": ["cat", "dog"],
        "image_shape": [32, 32, 3],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
    },
    "versions": {"jax": "0.10"},
}
RESULT = {
    "format": records.FORMAT,
    "model": "simplenet",
    "dataset": "cifar10",
    "seeds": [3, 5],
    "test_accuracy": [0.5, 0.6],
    "test_loss": [1.0, None],
    "test_accuracy_mean": 0.55,
    "test_accuracy_ci95": 0.6,
    "test_size": 100,
    "epochs": 2,
    "train_seconds": 1.0,
    "compile_seconds": 1.0,
    "images_per_second": 100.0,
    "steps": 40,
    "diverged_at": [None, 30],
    "status": "finished",
}


def outcome(use, folder):
    """What comes of it; the message, in a line, where that is a UserError."""
    try:
        return use()
    except UserError as error:
        message = str(error)
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < len(str(folder)) + 600
    return message


def test_settings_of_a_damaged_record_are_gone_on_with_or_named(tmp_path):
    path = tmp_path / records.CONFIG

    def resume():
        settings = read_settings(tmp_path)
        Config(**{**settings, "workdir": str(tmp_path), "resume": True}).make_recipe()
        check_same_run(SETTINGS, CONFIG, records.read_config(tmp_path), tmp_path)

    path.write_text(json.dumps(CONFIG))
    assert resume() is None

    @bounded(60)
    @given(changed(CONFIG))
    def check(value):
        path.write_text(json.dumps(value))
        outcome(resume, tmp_path)

    check()


@pytest.mark.parametrize(
    ("name", "value"),
    [("cycles", 10**12), ("cycle_mult", 10**4), ("padding", 10**6), ("lr", "fast")],
)
def test_settings_that_would_take_for_ever_or_fill_the_memory(tmp_path, name, value):
    settings = {**CONFIG["settings"], "cycles": 4, name: value}
    records.write_config(tmp_path, {**CONFIG, "settings": settings})
    assert name.split("_")[0] in outcome(lambda: read_settings(tmp_path), tmp_path)


def test_a_damaged_record_is_loaded_or_named(tmp_path):
    (tmp_path / records.CHECKPOINTS).mkdir()
    path = tmp_path / records.CONFIG
    path.write_text(json.dumps(CONFIG))
    assert "no checkpoint in" in outcome(lambda: Run.load(tmp_path), tmp_path)

    @bounded(15)
    @given(changed(CONFIG))
    def check(value):
        path.write_text(json.dumps(value))
        assert outcome(lambda: Run.load(tmp_path), tmp_path)

    check()


def test_a_damaged_result_is_shown_or_named(tmp_path):
    settings = dataclasses.replace(SETTINGS, workdir=str(tmp_path))
    path = tmp_path / records.RESULT

    def show():
        screen = Console(file=io.StringIO())
        result = read_result(tmp_path)
        print_result(screen, result, str(tmp_path))
        cell = sweep.Cell("cell", settings, {})
        assert sweep.read_outcome(cell)
        screen.print(sweep.state_of([cell]))
        screen.print(sweep.plan([cell]))

    path.write_text(json.dumps(RESULT))
    assert show() is None

    @bounded(60)
    @given(changed(RESULT))
    def check(value):
        path.write_text(json.dumps(value))
        outcome(show, tmp_path)

    check()


def test_damaged_metrics_of_a_running_cell_are_named(tmp_path):
    settings = dataclasses.replace(SETTINGS, workdir=str(tmp_path))
    cell = sweep.Cell("cell", settings, {}, status="goes on")
    for line, word in (
        ({"step": 1}, "epoch"),
        ({"step": 1, "epoch": "two"}, "epoch"),
        ({"epoch": 1}, "step"),
        ([], "step"),
        (None, "step"),
    ):
        (tmp_path / records.METRICS).write_text(json.dumps(line) + "\n")
        assert word in outcome(lambda: sweep.state_of([cell]), tmp_path)
