"""Which runs are read, and what of them is compared."""

import json

import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.reports.runs import read_studies
from tests.reports.made import make_run


def names_of(study):
    return [entry.name for entry in study.entries]


def test_runs_are_found_at_any_depth_and_ranked(tmp_path):
    make_run(tmp_path / "deep" / "down", "convnet", (0.5, 0.52, 0.51))
    make_run(tmp_path / "other", "convbn", (0.8, 0.81, 0.8))
    (study,), left_out = read_studies(tmp_path)
    assert names_of(study) == ["convbn", "convnet"]
    assert left_out == []
    ((first, second, difference),) = study.comparisons
    assert (first.name, second.name) == ("convbn", "convnet")
    assert difference.shown
    assert difference.over == "seeds"


def test_one_seed_is_compared_over_images(tmp_path):
    make_run(tmp_path / "a", "convnet", (0.5,))
    make_run(tmp_path / "b", "convbn", (0.8,))
    (study,), _ = read_studies(tmp_path)
    assert study.comparisons[0][2].over == "images"


def test_seeds_of_one_configuration_in_several_folders_are_one_entry(tmp_path):
    make_run(tmp_path / "a", accuracies=(0.5, 0.6))
    make_run(tmp_path / "b", accuracies=(0.7,), seeds=[7])
    (study,), left_out = read_studies(tmp_path)
    (entry,) = study.entries
    assert entry.accuracies == pytest.approx({0: 0.5, 1: 0.6, 7: 0.7}, abs=0.006)
    assert sum(len(arrays["logits"]) for arrays in entry.predictions) == 3
    assert left_out == []
    make_run(tmp_path / "c", accuracies=(0.9, 0.9), seeds=[7, 8])
    (study,), (line,) = read_studies(tmp_path)
    assert "repeats seed 7" in line
    assert 8 not in study.entries[0].accuracies


def test_configurations_are_named_by_what_tells_them_apart(tmp_path):
    make_run(tmp_path / "a", lr=0.1, momentum=0.9)
    make_run(tmp_path / "b", lr=0.2, momentum=0.9, accuracies=(0.6, 0.6))
    make_run(tmp_path / "c", "convbn", (0.5, 0.5), lr=0.1, momentum=0.9)
    (study,), _ = read_studies(tmp_path)
    assert names_of(study) == ["convnet lr=0.1", "convnet lr=0.2", "convbn"]
    assert set(study.differing) == {"model", "lr"}


@pytest.mark.parametrize("other", [{"dataset": "shapes"}, {"version": "0.2.0"}])
def test_other_data_and_versions_are_never_compared(tmp_path, other):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "convbn", (0.9, 0.9), **other)
    studies, _ = read_studies(tmp_path)
    assert sorted(map(names_of, studies)) == [["convbn"], ["convnet"]]


def break_result(folder):
    (folder / records.RESULT).unlink()
    return "is not finished"


def break_predictions(folder):
    path = folder / records.PREDICTIONS
    path.write_bytes(path.read_bytes()[:1000])
    return "predictions.npz"


def break_config(folder):
    (folder / records.CONFIG).write_text('{"format": 1, "kin')
    return "config.json"


def break_kind(folder):
    config = records.read_config(folder)
    config.kind = "lr_find"
    records.write_config(folder, config)
    return "outcome of lr_find"


def break_fields(folder):
    result = json.loads((folder / records.RESULT).read_text())
    del result["num_params"]
    (folder / records.RESULT).write_text(json.dumps(result))
    return "num_params"


def break_counts(folder):
    result = records.read_result(folder)
    result.seeds = [0, 7]
    records.write_result(folder, result)
    return "do not belong together"


BREAKS = [
    break_result,
    break_predictions,
    break_config,
    break_kind,
    break_fields,
    break_counts,
]


@pytest.mark.parametrize("damage", BREAKS)
def test_what_cannot_be_compared_is_left_out_by_name(tmp_path, damage):
    make_run(tmp_path / "good", "convbn")
    words = damage(make_run(tmp_path / "bad"))
    (study,), (line,) = read_studies(tmp_path)
    assert names_of(study) == ["convbn"]
    assert "bad" in line
    assert words in line


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        read_studies(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read_studies(tmp_path / "missing")


def test_the_command_leaves_out_the_places_of_one_machine(tmp_path):
    make_run(tmp_path / "a")
    (study,), _ = read_studies(tmp_path)
    assert study.entries[0].first.command == (
        "python -m experiments.run --model=convnet"
    )
