"""The cells of a sweep: their names, their plan and their table."""

import dataclasses
import hashlib
import io
import json
import pathlib

import pytest
from rich.console import Console

from cifar_flax import records
from cifar_flax.runs.settings import Settings
from cifar_flax.sweeps.cells import make_cells, plan_of, state_of
from tests.runs.test_damaged_runs import RESULT

FOLDER = pathlib.Path("no", "such", "folder")


def make(count, **others):
    lists = {"model": ["simplenet"], "lr": [0.001 * n for n in range(1, count + 1)]}
    return make_cells(lists | others, (0, 1), FOLDER)


def test_a_name_ends_with_a_hash_of_all_settings_that_decide():
    options = {"optimizer": ["adamw"], "optimizer_args": [{"b1": 0.8}]}
    for cell in make(2, data_dir=["/data"], **options):
        settings = dataclasses.asdict(cell.settings) | {
            "val_size": 5_000,
            "tta": "none",
        }
        settings |= {"recipe": "lesson", "bn_momentum": 0.9, "bn_epsilon": 1e-5}
        # Settings of later versions count only if they are given.
        later = ("average", "loss", "loss_args", "class_weights", "augment")
        for name in (*records.PLACES, *later, "also_test", "metrics"):
            del settings[name]
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        assert cell.name == f"simplenet-lr{cell.settings.lr}-{digest}"


def test_seeds_that_vary_in_more_than_their_random_numbers_are_cells():
    cells = make(2, seeds_vary=[("split",)])
    assert [cell.settings.seeds for cell in cells] == [(0,), (1,)] * 2
    assert len({cell.name for cell in cells}) == 4
    assert all(f"-seed{cell.settings.seeds[0]}-" in cell.name for cell in cells)


def test_a_record_is_not_the_settings_themselves():
    settings = Settings(optimizer="adamw", optimizer_args={"b1": 0.8})
    settings.record()["optimizer_args"]["b1"] = 0.1
    assert settings.optimizer_args == {"b1": 0.8}


def test_a_plan_has_a_line_for_each_cell_in_columns():
    cells = make(120)
    header, *lines, total = plan_of(cells).splitlines()
    assert [line.split()[0] for line in lines] == [cell.name for cell in cells]
    ends = {line.index(" epochs") for line in lines}
    assert len(ends) == 1
    assert header.split() == ["cell", "recipe", "seeds", "estimate"]
    assert total.startswith("120 cells")


@pytest.fixture
def many():
    """Returns cells: three run, two have failed and 300 are done."""
    cells = make(1_000)
    for cell in cells[400:403]:
        cell.status = "runs"
    for cell in cells[100:102]:
        cell.status = "failed: no reason"
    result = records.Result(**RESULT)
    for cell in cells[:100] + cells[102:302]:
        cell.status, cell.result = "was done", result
    return cells


def shown(cells, **rows):
    screen = Console(file=io.StringIO(), width=200)
    screen.print(state_of(cells, **rows))
    return screen.file.getvalue()


def test_the_table_of_many_cells_is_a_window(many):
    text = shown(many, rows=20)
    names = [line.split()[0] for line in text.splitlines()]
    present = [cell for cell in many if cell.name in names]
    assert len(text.splitlines()) <= 22
    assert present == [*many[100:102], *many[296:302], *many[400:403]]
    counts = "3 running, 2 failed, 300 done, 695 not done"
    assert f"1,000 cells: {counts}" in " ".join(text.split())


def test_the_table_of_few_cells_is_whole(many):
    text = shown(many[:100])
    assert all(cell.name in text for cell in many[:100])
    assert "cells:" not in text
