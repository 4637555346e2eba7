"""Which runs are read, and which are compared and ranked."""

import json
import shlex

import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.reports.cautions import cautions
from cifar_flax.reports.studies import read_studies
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
    assert difference.test == "Welch"


def test_one_seed_ranks_nothing(tmp_path):
    make_run(tmp_path / "a", "convnet", (0.5,))
    make_run(tmp_path / "b", "convbn", (0.8,))
    make_run(tmp_path / "c", "resnet", (0.7, 0.71))
    (study,), _ = read_studies(tmp_path)
    assert study.comparisons == []


def test_an_entry_that_failed_is_ranked_last_and_beats_nothing(tmp_path):
    make_run(tmp_path / "a", "convnet", (0.9, 0.91, 0.92), diverged=[1])
    make_run(tmp_path / "b", "convbn", (0.8, 0.81, 0.8))
    make_run(tmp_path / "c", "resnet", (0.5, 0.51, 0.52))
    (study,), _ = read_studies(tmp_path)
    assert names_of(study) == ["convbn", "resnet", "convnet"]
    assert [pair[:2] for pair in study.comparisons] == [tuple(study.entries[:2])]
    failed = study.entries[2]
    assert failed.accuracies.keys() == {0, 2}
    assert failed.mean == pytest.approx(0.91, abs=0.006)
    assert failed.mean_of_all == pytest.approx(0.91 * 2 / 3, abs=0.006)


def test_validation_chooses_the_setting_of_a_model_and_not_the_test_set(tmp_path):
    for lr, accuracy, val in ((0.1, 0.6, 0.5), (0.2, 0.7, 0.4), (0.4, 0.5, 0.3)):
        runs = (accuracy, accuracy + 0.01)
        make_run(tmp_path / f"a{lr}", "convnet", runs, lr=lr, val_accuracy=val)
    make_run(tmp_path / "b", "convbn", (0.8, 0.81), val_accuracy=0.8)
    (study,), _ = read_studies(tmp_path)
    assert names_of(study) == ["convbn", "convnet lr=0.1"]
    assert [entry.name for entry in study.apart] == ["convnet lr=0.2", "convnet lr=0.4"]
    assert len(study.comparisons) == 1
    (all_of_them,), _ = read_studies(tmp_path, compared=["lr"])
    assert len(all_of_them.entries) == 4
    assert len(all_of_them.comparisons) == 6
    (with_one,), _ = read_studies(tmp_path, baseline="convnet lr=0.2")
    assert len(with_one.comparisons) == 3


def test_a_setting_with_seeds_that_diverge_is_not_chosen(tmp_path):
    make_run(tmp_path / "a", accuracies=(0.5, 0.5, 0.5), lr=0.1, val_accuracy=0.5)
    make_run(
        *(tmp_path / "b", "convnet", (0.7, 0.7, 0.7)),
        diverged=[1],
        lr=0.2,
        val_accuracy=0.7,
    )
    (study,), _ = read_studies(tmp_path)
    assert names_of(study) == ["convnet lr=0.1"]


def test_runs_of_one_model_are_compared_in_all_but_the_rate(tmp_path):
    for lr in (0.1, 0.2):
        for momentum in (0.5, 0.9):
            make_run(
                tmp_path / f"{lr} {momentum}",
                lr=lr,
                momentum=momentum,
                val_accuracy=0.5 + lr,
            )
    (study,), _ = read_studies(tmp_path)
    assert {entry.first.used["momentum"] for entry in study.entries} == {0.5, 0.9}
    assert {entry.first.used["lr"] for entry in study.entries} == {0.2}


def test_without_validation_all_settings_are_ranked(tmp_path):
    make_run(tmp_path / "a", lr=0.1)
    make_run(tmp_path / "b", lr=0.2)
    (study,), _ = read_studies(tmp_path)
    assert len(study.entries) == 2
    assert study.apart == []


def test_a_setting_to_compare_has_to_differ(tmp_path):
    make_run(tmp_path / "a", lr=0.1)
    make_run(tmp_path / "b", lr=0.2)
    with pytest.raises(UserError, match=r"=momentun: no setting.* differ: lr"):
        read_studies(tmp_path, compared=["momentun"])


def test_settings_are_shown_as_they_were_used(tmp_path):
    make_run(tmp_path / "a", lr="auto", batch_size=None)
    make_run(tmp_path / "b", lr=0.2, batch_size=64)
    (study,), _ = read_studies(tmp_path)
    used = {entry.name: entry.first.used for entry in study.entries}
    assert used == {
        "convnet lr=0.1 batch_size=256": {
            "model": "convnet",
            "lr": 0.1,
            "batch_size": 256,
        },
        "convnet lr=0.2 batch_size=64": {
            "model": "convnet",
            "lr": 0.2,
            "batch_size": 64,
        },
    }


def test_seeds_with_rates_of_their_own_are_one_entry(tmp_path):
    for seed, lr in ((0, 0.1), (1, 0.2)):
        folder = make_run(
            *(tmp_path / str(seed), "convnet", (0.5,), [seed]),
            lr="auto",
            seeds_vary=["rate"],
        )
        config = records.read_config(folder)
        config.recipe["phases"][0]["learning_rate"] = lr
        records.write_config(folder, config)
    (study,), _ = read_studies(tmp_path)
    (entry,) = study.entries
    assert entry.rates == (0.1, 0.2)
    assert entry.name == "convnet"


def test_seeds_of_one_configuration_in_several_folders_are_one_entry(tmp_path):
    make_run(tmp_path / "a", accuracies=(0.5, 0.6))
    make_run(tmp_path / "b", accuracies=(0.7,), seeds=[7])
    (study,), left_out = read_studies(tmp_path)
    (entry,) = study.entries
    assert entry.accuracies == pytest.approx({0: 0.5, 1: 0.6, 7: 0.7}, abs=0.006)
    assert sum(len(arrays["logits"]) for arrays in entry.predictions) == 3
    assert left_out == []
    make_run(tmp_path / "c", accuracies=(0.7, 0.9), seeds=[7, 8])
    make_run(tmp_path / "d", accuracies=(0.5,), seeds=[0])
    (study,), (line,) = read_studies(tmp_path)
    (entry,) = study.entries
    assert entry.accuracies == pytest.approx(
        {0: 0.5, 1: 0.6, 7: 0.7, 8: 0.9}, abs=0.006
    )
    assert entry.right.shape[0] == len(entry.seeds) == 4
    assert sum(len(arrays["logits"]) for arrays in entry.predictions) == 4
    assert entry.seconds_per_seed == pytest.approx((3 + 3 + 1.5) / 4)
    assert "repeats seed 0 of" in line


def test_a_seed_with_two_results_is_not_used(tmp_path):
    make_run(tmp_path / "a", accuracies=(0.5, 0.6))
    make_run(tmp_path / "b", accuracies=(0.6, 0.7), seeds=[1, 2])
    (study,), left_out = read_studies(tmp_path)
    assert study.entries[0].accuracies.keys() == {0, 1, 2}
    assert left_out == []
    make_run(tmp_path / "c", accuracies=(0.9,), seeds=[1])
    (study,), (line,) = read_studies(tmp_path)
    assert study.entries[0].accuracies.keys() == {0, 2}
    for words in ("different results for seed 1", "/a and ", "/c have"):
        assert words in line


def identify(folder, model):
    config = records.read_config(folder)
    config.identity = records.Identity(model=model, recipe="the same")
    records.write_config(folder, config)


def test_an_older_run_goes_to_the_only_newer_configuration_it_can_be(tmp_path):
    make_run(tmp_path / "older", accuracies=(0.5, 0.6))
    identify(make_run(tmp_path / "b", accuracies=(0.7,), seeds=[2]), "one network")
    (study,), left_out = read_studies(tmp_path)
    (entry,) = study.entries
    assert (entry.seeds, left_out) == ([0, 1, 2], [])
    identify(make_run(tmp_path / "c", accuracies=(0.7,), seeds=[3]), "another one")
    (study,), _ = read_studies(tmp_path)
    assert sorted(entry.seeds for entry in study.everything) == [[0, 1], [2], [3]]


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
    return "result of lr_find"


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


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], ["--dataset=cifar10"]),
        (["--dataset=auto"], ["--dataset=cifar10"]),
        (["--dataset=npz:/my data/it's.npz"], ["--dataset=npz:/my data/it's.npz"]),
        (
            ["--data_dir=/a b", "--data_archive=/$x/c.tar.gz", "--archive_sha256=12"],
            [
                *("--data_dir=/a b", "--data_archive=/$x/c.tar.gz"),
                *("--archive_sha256=12", "--dataset=cifar10"),
            ],
        ),
    ],
)
def test_a_command_names_the_data_that_were_found(tmp_path, given, kept):
    """A copy of it must not find other data on another machine."""
    folder = make_run(tmp_path / "a")
    config = records.read_config(folder)
    config.command += given
    records.write_config(folder, config)
    (study,), _ = read_studies(tmp_path)
    words = shlex.split(study.entries[0].first.command)
    assert words == ["python", "-m", "experiments.run", "--model=convnet", *kept]


def change(folder, *names, value):
    """Changes a value in the record of a run."""
    path = folder / records.CONFIG
    record = json.loads(path.read_text())
    inner = record
    for name in names[:-1]:
        inner = inner[name]
    inner[names[-1]] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("value", ["0.1", None, [0.1], {"a": [[1]]}, True, 2**80])
@pytest.mark.parametrize(
    "names",
    [
        ("recipe", "phases", 0, "learning_rate"),
        ("recipe", "augmentation"),
        ("settings", "seeds_vary"),
        ("settings", "model_args"),
    ],
)
def test_no_record_takes_the_report_from_the_others(tmp_path, names, value):
    for name in ("good", "better", "odd"):
        make_run(tmp_path / name, name, (0.5, 0.6))
    change(tmp_path / "odd", *names, value=value)
    (study,), left_out = read_studies(tmp_path)
    read = [run.folder.name for entry in study.entries for run in entry.runs]
    assert {"good", "better"} <= set(read)
    assert "odd" in read or any("odd" in line for line in left_out)


def test_a_run_that_cannot_be_read_for_any_reason_is_listed(tmp_path, monkeypatch):
    for name in ("good", "odd"):
        make_run(tmp_path / name, name, (0.5, 0.6))

    def check(folder, *others):
        if folder.name == "odd":
            raise KeyError("nobody thought of this")

    monkeypatch.setattr("cifar_flax.reports.runs.check_records", check)
    (study,), left_out = read_studies(tmp_path)
    assert names_of(study) == ["good"]
    assert left_out == [
        f"{tmp_path / 'odd'} cannot be read: KeyError('nobody thought of this')"
    ]


def test_a_model_names_its_ranked_configuration_as_the_baseline(tmp_path):
    for lr, val in ((0.1, 0.5), (0.2, 0.4)):
        make_run(tmp_path / f"a{lr}", lr=lr, val_accuracy=val)
    make_run(tmp_path / "b", "convbn", (0.8, 0.81), val_accuracy=0.8)
    (study,), _ = read_studies(tmp_path, baseline="convnet")
    assert study.baseline.name == "convnet lr=0.1"
    assert names_of(study) == ["convbn", "convnet lr=0.1"]
    make_run(tmp_path / "c", "resnet", (0.8, 0.81), val_accuracy=0.8)
    (study,), _ = read_studies(tmp_path, baseline="convnet")
    assert any("named before the results" in text for text in cautions(study))


def test_a_baseline_of_several_ranked_configurations_is_asked_for(tmp_path):
    for lr in (0.1, 0.2):  # no validation images, so that both are ranked
        make_run(tmp_path / f"a{lr}", lr=lr)
    with pytest.raises(UserError, match="one of their names") as raised:
        read_studies(tmp_path, baseline="convnet")
    assert "'convnet lr=0.1', 'convnet lr=0.2'" in str(raised.value)
