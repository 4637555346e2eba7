"""The files of a run's folder."""

import json
import os
import pathlib
import resource

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.errors import UserError


def make_config(**changes):
    info = records.DatasetInfo(
        name="cifar10",
        fingerprint="0123",
        source="a test",
        class_names=["cat", "dog"],
        image_shape=(32, 32, 3),
        mean=[0.5, 0.5, 0.5],
        std=[0.2, 0.2, 0.2],
        train_size=100,
        val_size=0,
        test_size=10,
    )
    fields = {
        "kind": "run",
        "settings": {"model": "convbn", "seeds": [0, 1], "lr": None},
        "recipe": {"phases": [{"kind": "constant", "epochs": 1}], "momentum": 0.9},
        "dataset": info,
        "versions": {"jax": "0.10"},
        "command": ["python"],
    }
    return records.Config(**{**fields, **changes})


def make_result(**changes):
    fields = {
        "model": "convbn",
        "dataset": "cifar10",
        "num_params": 10,
        "flops_per_image": 20,
        "seeds": [0, 1],
        "test_accuracy": [0.5, 0.25],
        "test_loss": [1.0, 2.0],
        "test_accuracy_mean": 0.375,
        "test_accuracy_ci95": 0.5,
        "test_size": 10,
        "epochs": 1,
        "steps": 5,
        "train_seconds": 1.0,
        "compile_seconds": 1.0,
        "images_per_second": 10.0,
        "device": "cpu",
        "diverged_at": [None, None],
        "status": "finished",
    }
    return records.Result(**{**fields, **changes})


def make_point(step, **changes):
    fields = {
        "step": step,
        "epoch": max(1, step // 10),
        "learning_rate": 0.1,
        "train_loss": [0.1, 0.2],
        "train_accuracy": [0.1, 0.2],
        "val_loss": None,
        "val_accuracy": None,
        "images_per_second": 1.0,
        "seconds": 1.0,
    }
    return records.LogPoint(**{**fields, **changes})


def test_records_come_back_as_they_were_written(tmp_path):
    config = make_config()
    records.write_config(tmp_path, config)
    assert records.read_config(tmp_path) == config
    assert json.loads((tmp_path / records.CONFIG).read_text())["format"] == 1
    assert records.read_result(tmp_path) is None
    result = make_result()
    records.write_result(tmp_path, result)
    assert records.read_result(tmp_path) == result


def test_lists_of_numbers_are_a_line(tmp_path):
    records.write_config(tmp_path, make_config())
    text = (tmp_path / records.CONFIG).read_text()
    assert '\n    "mean": [0.5, 0.5, 0.5],\n' in text
    assert '\n    "seeds": [0, 1],\n' in text


def test_what_is_not_finite_is_null_and_the_file_stays_json(tmp_path):
    losses = [float("nan"), float("inf")]
    lost = {"diverged_at": [3, 4], "status": "diverged", "test_loss": losses}
    records.write_result(tmp_path, make_result(**lost))
    text = (tmp_path / records.RESULT).read_text()
    loaded = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert loaded["test_loss"] == [None, None]
    assert records.read_result(tmp_path).test_loss == [None, None]


def test_metrics_are_appended_and_cut(tmp_path):
    lines = [make_point(step) for step in (10, 20, 30)]
    records.cut_metrics(tmp_path, 0)
    records.append_metrics(tmp_path, lines[:1])
    records.append_metrics(tmp_path, lines[1:])
    assert records.read_metrics(tmp_path) == lines
    assert records.cut_metrics(tmp_path, 20) == lines[:2]
    assert records.read_metrics(tmp_path) == lines[:2]


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0.5], 0.5),
        ([0.5, 0.25], [0.5, 0.25]),
        ([float("nan"), 0.25], [None, 0.25]),
        (None, None),
    ],
)
def test_metrics_of_seeds_are_lists_and_those_of_one_are_a_number_in_the_file(
    tmp_path, values, written
):
    losses = [1.0] * len(values or [0.0])
    line = make_point(1, train_loss=losses, train_accuracy=losses, val_loss=values)
    records.cut_metrics(tmp_path, 0)
    records.append_metrics(tmp_path, [line])
    text = (tmp_path / records.METRICS).read_text()
    assert json.loads(text)["val_loss"] == written
    always = [n for n in records.LogPoint.__struct_fields__ if n != "val_metrics"]
    assert list(json.loads(text)) == always
    (read,) = records.read_metrics(tmp_path)
    assert read.train_loss == losses
    assert (read.val_loss is None) == (values is None)
    if values is not None:
        np.testing.assert_array_equal(read.val_loss, values)


@pytest.mark.parametrize(
    ("values", "written"), [([0.5], 0.5), ([float("nan"), 0.25], [None, 0.25])]
)
def test_other_metrics_are_written_by_name_if_there_are_some(tmp_path, values, written):
    losses = [1.0] * len(values)
    given = {"train_loss": losses, "train_accuracy": losses}
    line = make_point(1, **given, val_metrics={"ece": values})
    records.cut_metrics(tmp_path, 0)
    records.append_metrics(tmp_path, [line])
    text = (tmp_path / records.METRICS).read_text()
    assert json.loads(text)["val_metrics"] == {"ece": written}
    (read,) = records.read_metrics(tmp_path)
    np.testing.assert_array_equal(read.val_metrics["ece"], values)


def test_a_single_seed_that_diverged_is_a_list_too(tmp_path):
    line = {"step": 1, "epoch": 1, "learning_rate": 0.1, "train_loss": None}
    line |= {"train_accuracy": None, "val_loss": None, "val_accuracy": None}
    line |= {"images_per_second": 1.0, "seconds": 1.0}
    (tmp_path / records.METRICS).write_text(json.dumps(line) + "\n")
    (read,) = records.read_metrics(tmp_path)
    assert np.isnan(read.train_loss).tolist() == [True]
    assert read.val_accuracy is None


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    records.cut_metrics(tmp_path, 0)
    records.append_metrics(tmp_path, [make_point(1)])
    with open(tmp_path / records.METRICS, "a") as file:
        file.write('{"step": 2, "tra')
    assert records.read_metrics(tmp_path) == [make_point(1)]
    assert records.cut_metrics(tmp_path, 5) == [make_point(1)]
    records.append_metrics(tmp_path, [make_point(3)])
    assert records.read_metrics(tmp_path) == [make_point(1), make_point(3)]


def test_damage_in_the_middle_is_named(tmp_path):
    records.cut_metrics(tmp_path, 0)
    records.append_metrics(tmp_path, [make_point(1), make_point(2), make_point(3)])
    path = tmp_path / records.METRICS
    first, _, third = path.read_text().splitlines()
    path.write_text(f'{first}\n{{"st\n{third}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        records.read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [0, "x"]}, r"seeds\[1\] is 'x': Expected `int`, got `str`"),
        ({"test_accuracy": [0.5, 1.5]}, r"test_accuracy\[1\] is 1.5: .* <= 1"),
        ({"test_accuracy": [0.5]}, "do not have 2 seeds each"),
        ({"test_accuracy_ci95": None}, "test_accuracy_ci95 is null"),
        ({"test_loss": [None, 1.0]}, "a seed that has not diverged has no test_loss"),
        ({"status": "diverged"}, "status does not agree"),
        ({"seeds": [1, 1]}, "a seed appears twice"),
        ({"format": 2}, "its format is 2; it must be 1"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(tmp_path, changes, words):
    path = tmp_path / records.RESULT
    records.write_result(tmp_path, make_result())
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=rf"result\.json: .*{words}"):
        records.read_result(tmp_path)


def test_predictions_are_plain_arrays(tmp_path):
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    images = np.zeros((1, 4, 4, 3), np.uint8)
    records.write_predictions(
        tmp_path, logits, np.arange(5), [7, 8], images, np.array([3])
    )
    with np.load(tmp_path / records.PREDICTIONS, allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["logits"], logits)
        np.testing.assert_array_equal(loaded["labels"], np.arange(5))
        np.testing.assert_array_equal(loaded["seeds"], [7, 8])
    read = records.read_predictions(tmp_path)
    np.testing.assert_array_equal(read["images"], images)


@pytest.mark.parametrize("damage", ["cut", "foreign", "pickle"])
def test_damaged_predictions_are_named_and_never_unpickled(tmp_path, damage):
    path = tmp_path / records.PREDICTIONS
    if damage == "pickle":
        array = np.array([{}], dtype=object)
        np.savez(path, logits=array, labels=array, seeds=array)
    else:
        np.savez(path, logits=np.zeros((1, 2, 3)), labels=np.zeros(9), seeds=[0])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot read .*predictions\.npz"):
        records.read_predictions(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}', '{"model": "x"}'])
def test_a_foreign_or_damaged_record_is_named(tmp_path, content):
    (tmp_path / records.CONFIG).write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        records.read_config(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        records.read_config(tmp_path)


def test_a_folder_of_too_long_a_name_holds_nothing():
    folder = pathlib.Path("a" * 300)
    assert records.read_result(folder) is None
    assert records.read_metrics(folder) == []


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    records.write_result(tmp_path, make_result(steps=1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        records.write_result(tmp_path, make_result(steps=2))
    assert records.read_result(tmp_path).steps == 1
    assert [path.name for path in tmp_path.iterdir()] == [records.RESULT]


def test_lines_that_do_not_fit_on_the_disk_leave_those_before_whole(tmp_path):
    records.cut_metrics(tmp_path, 0)
    records.append_metrics(tmp_path, [make_point(1)])
    before = (tmp_path / records.METRICS).read_text()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limit[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
            records.append_metrics(tmp_path, [make_point(step) for step in (2, 3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / records.METRICS).read_text() == before
    records.append_metrics(tmp_path, [make_point(2)])
    assert records.read_metrics(tmp_path) == [make_point(1), make_point(2)]


def test_lines_are_not_added_where_those_before_have_vanished(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*No such file"):
        records.append_metrics(tmp_path, [make_point(2)])
    assert not list(tmp_path.iterdir())
