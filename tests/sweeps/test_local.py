"""Cells in processes of this machine: what they run, and what counts as done."""

import dataclasses
import pathlib
import subprocess
import sys
import threading
import time

import pytest

import cifar_flax.commands
from cifar_flax import records
from cifar_flax.runs.folder import lock_holder
from cifar_flax.search_records import Pruned, write_pruned
from cifar_flax.sweeps.cells import make_cells
from cifar_flax.sweeps.launchers.local import on_this_machine
from cifar_flax.sweeps.launchers.worker import DONE, train_cell
from tests import archives

MODEL = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))
"""


def command_of(cell):
    program = pathlib.Path(cifar_flax.commands.__path__[0], "__main__.py")
    words = [*cell.settings.as_flags(), f"--workdir={cell.folder}"]
    return [sys.executable, "-P", str(program), "run", *words, "--stop_with_input"]


def test_a_cell_without_a_result_is_not_done(tmp_path):
    """Whatever the status of its process is."""
    (cell,) = make_cells({"model": ["simplenet"]}, (0,), tmp_path)
    program = [sys.executable, "-S", "-c", "print('all is well')"]
    with on_this_machine(lambda _: program) as run_cells:
        run_cells([cell], threading.Event(), lambda _: None)
    assert cell.status.startswith("failed: its process ended without a result")
    assert str(cell.log) in cell.status


@pytest.mark.slow
def test_a_cell_trains_with_the_installation(tmp_path, monkeypatch):
    """A user's folder may hold modules of any name, and his model as a module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in ("experiments", "benchmarks", "cifar_flax", "numpy"):
        (tmp_path / name).mkdir()
        for file in ("__init__.py", "run.py", "__main__.py"):
            (tmp_path / name / file).write_text("raise SystemExit(0)")
    (tmp_path / "net.py").write_text(MODEL)
    command = [sys.executable, "-P", cifar_flax.commands.__path__[0] + "/__main__.py"]
    data = archives.tiny_data(tmp_path)
    words = ["--model=net:Net", "--lr=0.01", "--epochs=1", "--workdir=runs"]
    done = subprocess.run(
        [*command, "sweep", *data, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 1


@pytest.fixture
def endless(tmp_path):
    """A cell that would train for an hour."""
    data = dict(word[2:].split("=") for word in archives.tiny_data(tmp_path))
    lists = {name: [value] for name, value in data.items()}
    lists |= {"val_size": [50], "batch_size": [30], "lr": [0.01], "epochs": [40_000]}
    (cell,) = make_cells({"model": ["simplenet"], **lists}, (0,), tmp_path / "runs")
    cell.folder.parent.mkdir()
    return cell


def prune_when_it_trains(cell):
    if records.read_metrics(cell.folder) and not cell.shall_end:
        write_pruned(cell.folder, Pruned(epoch=1, val_accuracy=0.1))


@pytest.mark.slow
def test_a_pruned_cell_ends_and_is_not_trained_again(endless):
    started = []

    def command(cell):
        started.append(cell.name)
        return command_of(cell)

    with on_this_machine(command) as run_cells:
        run_cells([endless], threading.Event(), prune_when_it_trains)
        assert endless.status == "pruned at epoch 1"
        assert lock_holder(endless.folder) is None
        again = dataclasses.replace(endless, status="waits", pruned=None)
        run_cells([again], threading.Event(), lambda _: None)
    assert again.status == "pruned at epoch 1"
    assert len(started) == 1


@pytest.mark.slow
def test_a_pruned_cell_ends_in_a_task_of_a_cluster(endless):
    watched = threading.Event()

    def watch():
        while not watched.is_set() and not endless.shall_end:
            prune_when_it_trains(endless)
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert train_cell(endless, threading.Event()) == DONE
    finally:
        watched.set()
        watching.join()
    assert endless.finish("done")
    assert endless.status == "pruned at epoch 1"
    assert train_cell(endless, threading.Event()) == DONE


@pytest.mark.parametrize(
    ("program", "begin"),
    [("/usr/bin/cifar-flax", "cifar-flax "), ("-m", "python -m experiments.")],
)
def test_a_hint_starts_a_command_as_the_user_did(program, begin):
    """What is installed does not depend on what is in the current folder."""
    code = "import sys; sys.argv[0] = sys.argv[1]; from cifar_flax import commands"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(commands.BEFORE_NAME, end='')", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == begin
