"""A damaged run is continued, shown or used, or refused with one line."""

import io
import json

import pytest
from hypothesis import given
from rich.console import Console

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.runs.folder import check_same_run
from cifar_flax.runs.inference import Run
from cifar_flax.runs.settings import Settings
from cifar_flax.show.console import print_result
from cifar_flax.sweeps.cells import Cell, plan_of, state_of
from tests.damage import bounded, changed

SETTINGS = Settings(model="simplenet", seeds=(3, 5), lr=0.1, cycles=2)
CONFIG = {
    "format": records.FORMAT,
    "kind": "run",
    "settings": SETTINGS.record(),
    "recipe": None,
    "schedule": {"epochs": [0.0, 0.5, 1.0], "rates": [0.1, 0.1, 0.0]},
    "dataset": {
        "name": "cifar10",
        "fingerprint": "0123",
        "source": "a test",
        "class_names": ["cat", "dog"],
        "image_shape": [32, 32, 3],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "train_size": 100,
        "val_size": 10,
        "test_size": 10,
    },
    "num_params": 10,
    "flops_per_image": 20,
    "versions": {"jax": "0.10"},
    "python": "3.11",
    "device": "cpu",
    "git_revision": None,
    "command": [],
}
RESULT = {
    "format": records.FORMAT,
    "model": "simplenet",
    "dataset": "cifar10",
    "num_params": 10,
    "flops_per_image": 20.0,
    "layers": [
        {
            "path": "head",
            "kind": "Dense",
            "output_shape": [2],
            "num_params": 10,
            "flops": 20,
        }
    ],
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
    "device": "cpu",
    "diverged_at": [None, 30],
    "status": "finished",
}


def outcome(use, folder):
    """Returns the result of a call, or the one-line message of its UserError."""
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
        recorded = records.read_config(tmp_path)
        Settings.from_record(recorded, str(path)).make_recipe()
        check_same_run(now, recorded, tmp_path)

    path.write_text(json.dumps(CONFIG))
    now = records.read_config(tmp_path)
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
    path = tmp_path / records.CONFIG
    path.write_text(json.dumps({**CONFIG, "settings": settings}))

    def read():
        Settings.from_record(records.read_config(tmp_path), str(path))

    assert name.split("_")[0] in outcome(read, tmp_path)


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
    path = tmp_path / records.RESULT

    def show():
        screen = Console(file=io.StringIO())
        cell = Cell("cell", SETTINGS, tmp_path)
        assert cell.read_result()
        print_result(screen, cell.result, tmp_path)
        screen.print(state_of([cell]))
        screen.print(plan_of([cell]))

    path.write_text(json.dumps(RESULT))
    assert show() is None

    @bounded(60)
    @given(changed(RESULT))
    def check(value):
        path.write_text(json.dumps(value))
        outcome(show, tmp_path)

    check()


def test_damaged_metrics_of_a_running_cell_are_named(tmp_path):
    cell = Cell("cell", SETTINGS, tmp_path, status="continues")
    for line, word in (
        ({"step": 1}, "epoch"),
        ({"step": 1, "epoch": "two"}, "epoch"),
        ({"epoch": 1}, "step"),
        ([], "object"),
        (None, "object"),
    ):
        (tmp_path / records.METRICS).write_text(json.dumps(line) + "\n")
        assert word in outcome(lambda: state_of([cell]), tmp_path)
