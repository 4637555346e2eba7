"""The configurations that a sweep chooses, and their fresh seeds."""

import pytest

from cifar_flax import records
from cifar_flax.reports.studies import read_studies
from cifar_flax.sweeps.cells import make_cells
from cifar_flax.sweeps.fresh import fresh_cells
from cifar_flax.training.arguments import fresh_seeds
from tests.reports.made import make_run


def train(cell, accuracy, validation):
    """Writes the run of a cell."""
    seeds = list(cell.settings.seeds)
    accuracies = [accuracy + 0.01 * seed for seed in seeds]
    model = cell.settings.model
    make_run(cell.folder, model, accuracies, seeds, val_accuracy=validation)
    config = records.read_config(cell.folder)
    config.settings = cell.settings.record()
    config.recipe["phases"][0]["learning_rate"] = cell.settings.lr
    records.write_config(cell.folder, config)


@pytest.fixture
def cells(tmp_path):
    """Two rates of two models, of which the second is the better one on validation."""
    lists = {"model": ["convnet", "convbn"], "lr": [0.1, 0.2]}
    made = make_cells(lists, (0, 3), tmp_path)
    for cell, validation in zip(made, (0.5, 0.6, 0.8, 0.7), strict=True):
        train(cell, 0.5, validation)
    return made


def test_only_what_validation_chose_gets_seeds_that_follow(cells, tmp_path):
    fresh = fresh_cells(cells, (0, 3), 2, tmp_path)
    chosen = [(one.settings.model, one.settings.lr) for one in fresh]
    assert sorted(chosen) == [("convbn", 0.1), ("convnet", 0.2)]
    assert {one.settings.seeds for one in fresh} == {(4, 5)} == {fresh_seeds((0, 3), 2)}
    assert not {one.name for one in fresh} & {one.name for one in cells}


def test_fresh_seeds_change_no_choice_and_are_what_is_reported(cells, tmp_path):
    fresh = fresh_cells(cells, (0, 3), 2, tmp_path)
    for cell in fresh:
        train(cell, 0.3, 0.1)  # much worse than what chose them
    again = fresh_cells(cells, (0, 3), 2, tmp_path)
    assert [one.folder for one in again] == [one.folder for one in fresh]
    (study,), _ = read_studies(tmp_path, choose_seeds=(0, 3))
    assert [entry.seeds for entry in study.entries] == [[4, 5], [4, 5]]
    assert {entry.first.used["lr"] for entry in study.entries} == {0.1, 0.2}


def test_seeds_of_other_sweeps_do_not_choose(cells, tmp_path):
    lists = {"model": ["convnet"], "lr": [0.1, 0.2]}
    others = make_cells(lists, (7, 8), tmp_path)
    for cell, validation in zip(others, (0.9, 0.1), strict=True):
        train(cell, 0.5, validation)
    fresh = fresh_cells(cells, (0, 3), 2, tmp_path)
    assert {one.settings.lr for one in fresh if one.settings.model == "convnet"} == {
        0.2
    }
