"""A search from its records alone: its trials, its rounds, and what it refuses."""

import dataclasses
import json
import math

import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.search_records import Search, read_search
from cifar_flax.sweeps.search import Searching
from cifar_flax.sweeps.space import make_space
from tests.reports import made

SPACE = {
    "lr": {"log_uniform": [0.003, 0.3]},
    "padding": {"integers": [0, 4]},
}
LISTS = {"model": ["simplenet", "convnet"], "epochs": [2]}


def search(folder, count=4, kind="random", fresh=2, space=SPACE, lists=LISTS, **more):
    wanted = {"seed": 0, "seeds": [0], "prunes": False, **more}
    record = Search(kind=kind, space=space, count=count, subjects=[], **wanted)
    return Searching(record, make_space(space, "space.toml"), lists, folder, fresh)


def accuracy(cell):
    """The validation accuracy of a made-up net: 0.9 at a rate of 0.03."""
    return round(0.9 - 0.2 * abs(math.log10(cell.settings.lr / 0.03)), 3)


def train(cell):
    """Writes the records of a finished run for a cell."""
    settings = dict(cell.settings.record())
    model, seeds = settings.pop("model"), settings.pop("seeds")
    count = len(seeds)
    cell.folder.mkdir()
    made.write_config(cell.folder, model, seeds, "cifar10", "0.1.0", settings)
    made.write_metrics(cell.folder, count, 2, accuracy(cell))
    made.write_result(
        cell.folder, model, seeds, [0.5] * count, [None] * count, [1.0] * count
    )


def train_all(one):
    """Trains what a search asks for; returns the names of the cells by round."""
    rounds = []
    for cells in one.rounds():
        for cell in cells:
            if not cell.finish("was done"):
                train(cell)
        rounds.append([cell.name for cell in cells])
    return rounds


def notes(one):
    return [cell.note for cell in one.cells]


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_each_model_gets_the_same_number_of_trials_and_the_best_fresh_seeds(
    tmp_path, kind
):
    one = search(tmp_path, count=14, kind=kind)
    rounds = train_all(one)
    sizes = {"random": [28, 2], "tpe": [20, 8, 2]}
    assert [len(names) for names in rounds] == sizes[kind]
    trials, fresh = one.cells[:-2], one.cells[-2:]
    for model in LISTS["model"]:
        of_model = [cell for cell in trials if cell.settings.model == model]
        assert len({cell.note for cell in of_model}) == 14
        assert {cell.settings.seeds for cell in of_model} == {(0,)}
        best = max(of_model, key=accuracy)
        (anew,) = [cell for cell in fresh if cell.settings.model == model]
        assert anew.settings == dataclasses.replace(best.settings, seeds=(1, 2))


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_search_that_was_ended_goes_on_with_the_same_trials(tmp_path, kind):
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    train_all(search(whole, count=14, kind=kind))
    first = search(ended, count=14, kind=kind)
    for number, cells in enumerate(first.rounds()):
        train(cells[0])
        if number == 0:
            for cell in cells[1:]:
                train(cell)
        else:
            break  # all others of the second round are still to be trained
    train_all(search(ended, count=14, kind=kind))
    assert read_search(whole) == read_search(ended)
    folders = [{path.name for path in each.iterdir()} for each in (whole, ended)]
    assert folders[0] == folders[1]


def test_models_are_tried_in_turn_with_the_same_values(tmp_path):
    """Whenever it is stopped, each model had as many trials."""
    one = search(tmp_path)
    for cells in (one.cells, next(one.rounds())):
        models = [cell.settings.model for cell in cells]
        assert models == ["simplenet", "convnet"] * 4
    assert notes(one)[::2] == notes(one)[1::2]


def test_more_trials_and_more_models_can_be_asked_for_later(tmp_path):
    train_all(search(tmp_path))
    more = search(tmp_path, count=6)
    assert len(more.cells) == 12
    assert notes(more)[:8] == notes(search(tmp_path))
    lists = {**LISTS, "model": ["convbn"]}
    train_all(search(tmp_path, lists=lists))
    names = [subject.name for subject in read_search(tmp_path).subjects]
    assert names == ["simplenet", "convnet", "convbn"]


def test_a_plan_writes_nothing(tmp_path):
    one = search(tmp_path / "new", kind="tpe", count=12)
    assert len(one.cells) == 20
    assert "2 further trials" in one.outlook
    assert "2 fresh seeds" in one.outlook
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "tpe"}, ["--search was 'random' and is 'tpe'"]),
        ({"seed": 1}, ["--search_seed was 0 and is 1"]),
        ({"seeds": [1]}, ["--seeds was [0] and is [1]"]),
        (
            {"space": {"lr": {"uniform": [0.1, 0.2]}}},
            ["in --space lr was", "0.3", "0.2", "padding was"],
        ),
        ({"count": 3}, ["--trials was 4 and is 3", "only grow"]),
        ({"lists": {**LISTS, "epochs": [3]}}, ["--epochs was 2 and is 3"]),
        ({"lists": {**LISTS, "dtype": ["bfloat16"]}}, ["--dtype was None"]),
    ],
)
def test_another_search_in_the_folder_is_refused(tmp_path, changes, words):
    train_all(search(tmp_path))
    before = read_search(tmp_path)
    with pytest.raises(UserError) as caught:
        search(tmp_path, **changes)
    message = str(caught.value)
    assert "another search" in message
    assert "--workdir" in message
    assert "\n" not in message
    for word in words:
        assert word in message
    assert read_search(tmp_path) == before


@pytest.mark.parametrize(
    ("space", "lists", "words"),
    [
        ({"epochs": {"integers": [1, 2]}}, {}, ["chooses epochs, and --epochs"]),
        ({"momentum": {"uniform": [0.5, 1.5]}}, {}, ["momentum = 1.5", "simplenet"]),
        (
            {
                "momentum": {"uniform": [0.5, 0.9]},
                "optimizer": {"choices": ["sgd", "adamw"]},
            },
            {},
            ["optimizer = adamw is not possible", "momentum=0.7", "option of sgd"],
        ),
        ({"lr": {"choices": [0.1]}}, {}, ["only about 1 different"]),
        (
            SPACE,
            {"momentum": [0.5 + n / 10_000 for n in range(2_000)]},
            ["16000 cells"],
        ),
        (SPACE, {"val_size": [0]}, ["--val_size=0", "validation"]),
        (SPACE, {"seeds_vary": [("split",)]}, ["--seeds_vary"]),
    ],
)
def test_a_search_that_cannot_be_is_one_line_before_any_trial(
    tmp_path, space, lists, words
):
    with pytest.raises(UserError) as caught:
        search(tmp_path, space=space, lists={**LISTS, **lists})
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not list(tmp_path.iterdir())


def test_a_failed_trial_is_without_a_value_and_the_others_are_chosen_from(tmp_path):
    one = search(tmp_path)
    for cells in one.rounds():
        for cell in cells:
            if accuracy(cell) < max(map(accuracy, one.cells)):
                train(cell)
    fresh = one.cells[8:]
    assert {cell.settings.model for cell in fresh} == set(LISTS["model"])
    left = {accuracy(cell) for cell in one.cells[:8]}
    assert {accuracy(cell) for cell in fresh} == {sorted(left)[-2]}


def begin(cell, epochs, value):
    """Writes the records of a run after some epochs."""
    train(cell)
    lines = records.read_metrics(cell.folder)
    records.cut_metrics(cell.folder, 0)
    (cell.folder / records.RESULT).unlink()
    more = [
        records.LogPoint(
            **{name: getattr(lines[0], name) for name in lines[0].__struct_fields__}
            | {"epoch": n, "step": 10 * n, "val_accuracy": [value]}
        )
        for n in range(1, epochs + 1)
    ]
    records.append_metrics(cell.folder, more)
    cell.status = "runs"


@pytest.mark.parametrize(
    ("epochs", "whole", "value", "is_pruned"),
    [
        (2, 8, 0.1, True),
        (1, 4, 0.1, False),  # by no first epoch
        (2, 9, 0.1, False),  # not in the first quarter
        (2, 8, 0.99, False),
    ],
)
def test_a_trial_below_the_median_is_pruned_and_stays_so(
    tmp_path, epochs, whole, value, is_pruned
):
    lists = {"model": ["simplenet"], "epochs": [whole]}
    one = search(tmp_path, count=8, prunes=True, lists=lists)
    cells = next(one.rounds())
    for cell in cells[:6]:
        train(cell)
    begin(cells[6], epochs, value)
    shown = []
    one.watching(shown.append)(cells[6])
    assert shown == [cells[6]]
    assert cells[6].shall_end == is_pruned
    if is_pruned:
        assert cells[6].finish("done")
        assert cells[6].status == "pruned at epoch 2"
        again = search(tmp_path, count=8, prunes=True, lists=lists)
        assert again.cells[6].finish("was done")
        assert "pruned" in again.cells[6].line


def test_a_damaged_record_names_its_file(tmp_path):
    train_all(search(tmp_path))
    path = tmp_path / "search.json"
    content = json.loads(path.read_text())
    trial = content["subjects"][0]["trials"][0]
    right = dict(trial)
    trial["folder"] = "../elsewhere"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"search\.json: subjects"):
        search(tmp_path)
    for values in ({"lr": 9.0, "padding": 1}, {"lr": 0.1}, {"lr": "x", "padding": 1}):
        trial.update(right, values=values)
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="trial 1 of simplenet is not in the space"):
            search(tmp_path)
