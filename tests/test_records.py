"""The files of a run's folder."""

import json
import os
import pathlib
import resource

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.errors import UserError


def test_records_come_back_as_they_were_written(tmp_path):
    records.write_config(tmp_path, {"settings": {"model": "convbn"}, "sizes": (1, 2)})
    assert records.read_config(tmp_path) == {
        "format": records.FORMAT,
        "settings": {"model": "convbn"},
        "sizes": [1, 2],
    }
    assert records.read_result(tmp_path) is None
    records.write_result(tmp_path, {"test_accuracy": np.array([0.5, 0.25])})
    assert records.read_result(tmp_path)["test_accuracy"] == [0.5, 0.25]


def test_what_is_not_finite_is_null_and_the_file_stays_json(tmp_path):
    records.write_result(tmp_path, {"test_loss": [np.float32("nan"), float("inf"), 1]})
    text = (tmp_path / records.RESULT).read_text()
    loaded = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert loaded["test_loss"] == [None, None, 1]


def test_metrics_are_appended_and_cut(tmp_path):
    lines = [{"step": step, "train_loss": [0.1, 0.2]} for step in (10, 20, 30)]
    records.cut_metrics(tmp_path, 0)
    records.append_metrics(tmp_path, lines[:1])
    records.append_metrics(tmp_path, lines[1:])
    assert records.read_metrics(tmp_path) == lines
    assert records.cut_metrics(tmp_path, 20) == lines[:2]
    assert records.read_metrics(tmp_path) == lines[:2]


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    records.cut_metrics(tmp_path, 0)
    records.append_metrics(tmp_path, [{"step": 1}])
    with open(tmp_path / records.METRICS, "a") as file:
        file.write('{"step": 2, "tra')
    assert records.read_metrics(tmp_path) == [{"step": 1}]
    assert records.cut_metrics(tmp_path, 5) == [{"step": 1}]
    records.append_metrics(tmp_path, [{"step": 3}])
    assert records.read_metrics(tmp_path) == [{"step": 1}, {"step": 3}]


def test_damage_in_the_middle_is_named(tmp_path):
    (tmp_path / records.METRICS).write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        records.read_metrics(tmp_path)


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


def test_new_folders_take_the_next_free_number(tmp_path):
    parent = tmp_path / "runs"
    names = [records.new_folder(parent, "convbn-shapes").name for _ in range(3)]
    assert names == ["convbn-shapes-1", "convbn-shapes-2", "convbn-shapes-3"]


def test_a_folder_in_use_is_refused(tmp_path):
    records.claim_folder(tmp_path / "new" / "run")
    records.claim_folder(tmp_path / "new" / "run")  # empty: nothing is lost
    records.write_config(tmp_path, {})
    with pytest.raises(UserError, match=r"holds a run; .*--resume"):
        records.claim_folder(tmp_path)
    with pytest.raises(UserError, match="not empty and holds no run"):
        records.claim_folder(tmp_path / "new")
    with pytest.raises(UserError, match="cannot make the folder"):
        records.claim_folder(tmp_path / records.CONFIG / "run")


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    records.write_result(tmp_path, {"value": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        records.write_result(tmp_path, {"value": 2})
    assert records.read_result(tmp_path)["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [records.RESULT]


def test_lines_that_do_not_fit_on_the_disk_leave_those_before_whole(tmp_path):
    records.cut_metrics(tmp_path, 0)
    records.append_metrics(tmp_path, [{"step": 1}])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limit[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
            records.append_metrics(tmp_path, [{"step": step} for step in range(2, 9)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (tmp_path / records.METRICS).read_text() == '{"step": 1}\n'
    records.append_metrics(tmp_path, [{"step": 2}])
    assert records.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_lines_are_not_added_where_those_before_have_vanished(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*No such file"):
        records.append_metrics(tmp_path, [{"step": 2}])
    assert not list(tmp_path.iterdir())
