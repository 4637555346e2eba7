"""Runs whose files contradict each other, and folders that are passed over."""

import os
import pathlib

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.identity import run_of
from cifar_flax.reports.studies import read_studies
from tests.reports.made import CLASSES, make_run
from tests.reports.test_damaged_records import make_range_test


def change(read, write):
    """Returns a decorator: the function changes what is read before it is written."""

    def decorate(function):
        def changed(folder):
            value = read(folder)
            value = function(value) or value
            write(folder, value)

        changed.__name__ = function.__name__
        return changed

    return decorate


def write_arrays(folder, arrays):
    records.write_predictions(folder, **arrays)


def write_lines(folder, lines):
    records.cut_metrics(folder, 0)
    records.append_metrics(folder, lines)


config = change(records.read_config, records.write_config)
result = change(records.read_result, records.write_result)
arrays = change(records.read_predictions, write_arrays)
range_test = change(records.read_range_test, records.write_range_test)


@result
def an_accuracy(record):
    record.test_accuracy[0] += 1 / record.test_size


@result
def a_loss(record):
    record.test_loss[1] *= 1.01


@result
def a_seed_that_is_said_to_have_diverged(record):
    record.diverged_at[1] = 5
    record.test_accuracy[1] = record.test_loss[1] = None


@result
def seeds_of_the_result(record):
    record.seeds = [0, 7]


@result
def parameters(record):
    record.num_params += 1


@config
def seeds_of_the_config(record):
    record.settings["seeds"] = [0, 1, 2]


@config
def classes(record):
    record.dataset.class_names.append("bird")


@arrays
def seeds_of_the_predictions(found):
    return {**found, "seeds": found["seeds"][::-1]}


@arrays
def logits_of_another_seed(found):
    return {**found, "logits": found["logits"][::-1]}


@arrays
def labels(found):
    return {**found, "labels": (found["labels"] + 1) % len(CLASSES)}


@arrays
def a_seed_whose_logits_are_nan(found):
    found["logits"][1, 3] = np.nan


@arrays
def predictions_of_another_run(found):
    return {**found, "run": "0" * 64}


@range_test
def a_range_test_of_another_model(record):
    record.model = "resnet"


CONTRADICTIONS = [
    an_accuracy,
    a_loss,
    a_seed_that_is_said_to_have_diverged,
    seeds_of_the_result,
    parameters,
    seeds_of_the_config,
    classes,
    seeds_of_the_predictions,
    logits_of_another_seed,
    labels,
    a_seed_whose_logits_are_nan,
    predictions_of_another_run,
    a_range_test_of_another_model,
]


def make_whole(folder):
    """A run with all that a new run records."""
    make_range_test(make_run(folder))
    record = records.read_config(folder)
    record.num_params = records.read_result(folder).num_params
    record.identity = records.Identity(model="m", recipe="r")
    records.write_config(folder, record)
    found = records.read_predictions(folder)
    records.write_predictions(folder, **{**found, "run": run_of(record)})
    return folder


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
def test_a_run_whose_files_contradict_each_other_is_left_out(tmp_path, contradiction):
    make_run(tmp_path / "other", "convbn")
    folder = make_whole(tmp_path / "a")
    assert read_studies(tmp_path)[1] == []
    contradiction(folder)
    (study,), (line,) = read_studies(tmp_path)
    assert [entry.name for entry in study.entries] == ["convbn"]
    assert str(folder) in line


def test_a_diverged_seed_contradicts_nothing(tmp_path):
    make_run(tmp_path / "a", accuracies=(0.5, 0.6, 0.7), diverged=[1])
    folder = make_run(tmp_path / "b", "convbn", (0.5, 0.6, 0.7), diverged=[1])
    record = records.read_result(folder)
    record.test_accuracy[1] = 0.1  # as in an older record
    records.write_result(folder, record)
    (study,), left_out = read_studies(tmp_path)
    assert left_out == []
    assert [entry.diverged for entry in study.entries] == [[1], [1]]
    assert all(len(e.predictions[0]["logits"]) == 2 for e in study.entries)


def test_a_seed_that_diverged_does_not_count_even_with_numbers_as_logits(tmp_path):
    """Its loss was infinite in a step, and its parameters are not."""
    whole = make_run(tmp_path / "a", accuracies=(0.5, 0.6))
    lost = make_run(tmp_path / "b", "convbn", accuracies=(0.5, 0.6), diverged=[1])
    found = records.read_predictions(whole)
    records.write_predictions(lost, **found)
    (study,), left_out = read_studies(tmp_path)
    assert left_out == []
    one = {entry.name: entry for entry in study.entries}["convbn"]
    assert len(one.right) == len(one.predictions[0]["logits"]) == 1
    alone = make_run(tmp_path / "other" / "c", accuracies=(0.5,))
    (other,), _ = read_studies(alone.parent)
    assert one.calibration.nll == other.entries[0].calibration.nll


def names_of(folder):
    """Returns the folders of all runs in the report, and its lines of the others."""
    studies, left_out = read_studies(folder)
    entries = [entry for study in studies for entry in study.everything]
    return sorted(run.folder for e in entries for run in e.runs), left_out


@pytest.fixture
def tree(tmp_path):
    """A folder with a run, and a run elsewhere."""
    make_run(tmp_path / "runs" / "a", "convnet")
    make_run(tmp_path / "elsewhere" / "b", "convbn")
    return tmp_path / "runs", tmp_path / "elsewhere"


def test_a_linked_run_is_used(tree):
    runs, elsewhere = tree
    (runs / "linked").symlink_to(elsewhere / "b")
    assert names_of(runs) == ([runs / "a", runs / "linked"], [])


def test_a_run_is_used_once_whatever_links_lead_to_it(tree):
    runs, elsewhere = tree
    (runs / "0latest").symlink_to(runs / "a")
    (runs / "up").symlink_to(runs)
    (runs / "a" / "itself").symlink_to(".")
    (elsewhere / "b" / "back").symlink_to(runs / "a")
    for name in ("one", "two"):
        (runs / name).symlink_to(elsewhere / "b")
    (elsewhere / "b" / "data").symlink_to(elsewhere)
    used, (line,) = names_of(runs)
    assert used == [runs / "a", runs / "one"]
    assert str(runs / "one" / "data") in line


def test_a_run_within_a_run_is_used(tree):
    runs, elsewhere = tree
    make_run(runs / "a" / "deep" / "c", "resnet")
    make_run(elsewhere / "b" / "d", "simplenet")
    (runs / "linked").symlink_to(elsewhere / "b")
    used, left_out = names_of(runs)
    names = ["a", "a/deep/c", "linked", "linked/d"]
    assert (used, left_out) == ([runs / name for name in names], [])


@pytest.mark.parametrize("target", ["elsewhere", "gone"])
def test_links_that_lead_to_no_run_are_named(tree, target):
    runs, elsewhere = tree
    (runs / "link").symlink_to(elsewhere.parent / target)
    used, (line,) = names_of(runs)
    assert used == [runs / "a"]
    assert str(runs / "link") in line
    assert str(elsewhere.parent / target) in line


def test_records_without_a_config_are_named(tree):
    runs, _ = tree
    make_run(runs / "c", "resnet")
    (runs / "c" / records.CONFIG).unlink()
    used, (line,) = names_of(runs)
    assert used == [runs / "a"]
    assert f"{runs / 'c'} has" in line
    assert "no config.json" in line


def test_a_folder_that_cannot_be_read_is_named(tree, monkeypatch):
    runs, _ = tree
    make_run(runs / "c" / "d", "resnet")
    scandir = os.scandir

    def forbidden(path):
        if pathlib.Path(path) == runs / "c":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    used, (line,) = names_of(runs)
    assert used == [runs / "a"]
    assert line == f"cannot read the folder {runs / 'c'}: Permission denied"


def test_without_any_run_all_reasons_are_counted(tmp_path):
    for name in "ab":
        (make_run(tmp_path / name) / records.RESULT).unlink()
    with pytest.raises(UserError, match=r"a is not finished \(and 1 more\)"):
        read_studies(tmp_path)
