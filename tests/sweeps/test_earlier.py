"""A sweep goes on from what it has done, and notices what has changed since."""

import pathlib
import re

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.runs.settings import Settings
from cifar_flax.sweeps.cells import Cell, make_cells
from cifar_flax.sweeps.earlier import with_earlier_seeds
from tests.forked import command
from tests.reports.made import make_run

NET = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(1.0 * x.reshape(len(x), -1))
"""


def plan(folder, *seeds, lr=(0.1,)):
    cells = make_cells({"model": ["simplenet"], "lr": list(lr)}, seeds, folder)
    return with_earlier_seeds(cells, folder)


def train(folder, cells):
    """Writes the records of finished cells."""
    for cell in cells:
        seeds = list(cell.settings.seeds)
        path = make_run(folder / cell.name, "simplenet", [0.5] * len(seeds), seeds)
        config = records.read_config(path)
        config.settings = cell.settings.record()
        records.write_config(path, config)


def seeds_of(cells):
    return [cell.settings.seeds for cell in cells]


def test_more_seeds_train_only_the_new_ones(tmp_path):
    first = plan(tmp_path, 0, 1, lr=(0.1, 0.2))
    assert seeds_of(first) == [(0, 1), (0, 1)]
    train(tmp_path, first)
    second = plan(tmp_path, 0, 1, 2, lr=(0.1, 0.2))
    assert seeds_of(second) == [(0, 1), (2,), (0, 1), (2,)]
    assert [cell.is_begun for cell in second] == [True, False] * 2
    assert [second[0].name, second[2].name] == [cell.name for cell in first]
    train(tmp_path, second[1::2])
    assert seeds_of(plan(tmp_path, 2, 0)) == [(0, 1), (2,)]
    assert all(cell.is_begun for cell in plan(tmp_path, 0, 1, 2))
    # A shorter list gives cells other names, and they are found all the same.
    assert plan(pathlib.Path("none"), 0, 1)[0].name != first[0].name


def test_other_settings_are_not_taken_for_the_same(tmp_path):
    train(tmp_path, plan(tmp_path, 0, lr=(0.1,)))
    assert seeds_of(plan(tmp_path, 0, 1, lr=(0.2,))) == [(0, 1)]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / records.CONFIG).write_text("{")
    assert seeds_of(plan(tmp_path, 0, 1, lr=(0.1,))) == [(0,), (1,)]


def test_a_recipe_file_that_is_edited_while_a_sweep_runs_is_noticed(tmp_path):
    path = tmp_path / "mine.toml"
    text = 'momentum = 0.5\n[[phases]]\nkind = "constant"\nlearning_rate = 0.1\n'
    path.write_text(f"{text}epochs = 1\n")
    settings = Settings(recipe=str(path))
    cell = Cell("cell", settings, tmp_path / "cell")
    make_run(cell.folder, "convbn")
    config = records.read_config(cell.folder)
    config.recipe = settings.recipe_of(None)
    records.write_config(cell.folder, config)
    cell.check_trained()
    config.recipe["momentum"] = 0.6  # as the process of the cell has read it
    records.write_config(cell.folder, config)
    with pytest.raises(UserError, match=r"after the sweep began: .*momentum was 0.6"):
        cell.check_trained()
    # The plan keeps the recipe that it has read.
    path.write_text(f"{text}epochs = 2\n")
    assert settings.make_recipe(0.2, of_ours=False).epochs == 1


@pytest.fixture
def sweep(tmp_path):
    """A function that sweeps over seeds of a network in a file."""
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "tiny.npz", images=arrays, labels=np.arange(60) % 3)
    (tmp_path / "nets.py").write_text(NET)

    def run(*flags):
        return command(
            *("sweep", f"--model={tmp_path}/nets.py:Net", "--lr=0.02", "--epochs=1"),
            *(f"--dataset=npz:{tmp_path}/tiny.npz", "--val_size=12", "--batch_size=8"),
            *(f"--workdir={tmp_path}/runs", *flags),
        )

    return run


def lines_of(done):
    return re.findall(r"^\d+ of \d+  (\S+): (done|was done|failed)", done.stdout, re.M)


@pytest.mark.slow
def test_a_finished_cell_of_changed_code_is_not_done(sweep, tmp_path):
    assert [state for _, state in lines_of(sweep("--seeds=0"))] == ["done"]
    more = sweep("--seeds=0,1")
    assert [state for _, state in lines_of(more)] == ["was done", "done"]
    (tmp_path / "nets.py").write_text(f"# The same network.\n{NET}")
    same = sweep("--seeds=0,1")
    assert [state for _, state in lines_of(same)] == ["was done", "was done"]
    (tmp_path / "nets.py").write_text(NET.replace("1.0 *", "0.5 *"))
    changed = sweep("--seeds=0,1")
    assert changed.returncode == 1
    assert changed.stderr.count("the model Net has changed: it computes") == 2
    assert "was done" not in changed.stdout
