"""Which configuration of a model is ranked, and by which seeds."""

import pytest

from cifar_flax.errors import UserError
from cifar_flax.reports.cautions import cautions
from cifar_flax.reports.page import report
from cifar_flax.reports.studies import read_studies
from cifar_flax.reports.verdicts import sentences
from tests.reports.made import make_run


def tune(folder, lr, accuracies, validation, seeds=None, model="convnet"):
    """Makes a run for each seed, each with its own validation accuracy."""
    seeds = range(len(accuracies)) if seeds is None else seeds
    for seed, accuracy, val in zip(seeds, accuracies, validation, strict=True):
        where = folder / f"{model} {lr} {seed}"
        make_run(where, model, (accuracy,), [seed], lr=lr, val_accuracy=val)


def test_a_lucky_rate_with_one_seed_does_not_take_the_rank(tmp_path):
    """Eight rates with one seed; then the best of them gets four more."""
    for number in range(8):
        val = 0.7 + 0.01 * number
        tune(tmp_path, 0.1 + number, (0.7,), (val,))
    tune(tmp_path, 7.1, (0.6, 0.61, 0.6, 0.6), (0.6, 0.6, 0.6, 0.6), range(1, 5))
    tune(tmp_path, 0.1, (0.8, 0.81, 0.8), (0.8, 0.8, 0.8), model="convbn")
    (study,), _ = read_studies(tmp_path)
    assert [entry.name for entry in study.entries] == ["convbn", "convnet lr=7.1"]
    assert len(study.comparisons) == 1
    (text,) = [text for text in cautions(study) if "validation" in text]
    assert "among those with the most seeds" in text
    assert "--choose_seeds=0,1" in text


def test_a_setting_that_is_better_on_the_shared_seeds_is_named(tmp_path):
    tune(tmp_path, 0.1, (0.7, 0.7, 0.7), (0.7, 0.7, 0.7))
    tune(tmp_path, 0.2, (0.8, 0.8), (0.8, 0.8))
    tune(tmp_path, 0.3, (0.6, 0.6), (0.6, 0.6))
    (study,), _ = read_studies(tmp_path)
    assert [entry.name for entry in study.entries] == ["convnet lr=0.1"]
    (text,) = study.notes
    assert "better on the seeds that they share: convnet lr=0.2." in text
    assert text in cautions(study)


def test_some_seeds_choose_and_the_others_are_reported(tmp_path):
    # By all seeds the first rate is the best, by the seeds 0 and 1 the second.
    tune(tmp_path, 0.1, (0.5, 0.5, 0.9, 0.9), (0.5, 0.5, 0.9, 0.9))
    tune(tmp_path, 0.2, (0.6, 0.6, 0.52, 0.54), (0.6, 0.6, 0.52, 0.54))
    tune(tmp_path, 0.1, (0.8, 0.8, 0.81, 0.8), (0.8,) * 4, model="convbn")
    (study,), _ = read_studies(tmp_path)
    assert {"convnet lr=0.1"} < {entry.name for entry in study.entries}
    (study,), _ = read_studies(tmp_path, choose_seeds=(0, 1))
    names = {entry.name: entry.accuracies for entry in study.entries}
    assert names["convnet lr=0.2"] == pytest.approx({2: 0.52, 3: 0.54}, abs=0.006)
    assert names["convbn"].keys() == {2, 3}
    assert [entry.name for entry in study.apart] == ["convnet lr=0.1"]
    assert study.comparisons[0][2].counts == (2, 2)
    made = report(tmp_path, tmp_path / "out", choose_seeds=(0, 1))
    assert "The seeds 0, 1 chose" in made.markdown
    assert "The same seeds choose" not in made.markdown


def test_a_chosen_configuration_without_other_seeds_is_not_ranked(tmp_path):
    tune(tmp_path, 0.1, (0.5, 0.5), (0.5, 0.5))
    tune(tmp_path, 0.2, (0.6, 0.6), (0.6, 0.6))
    with pytest.raises(UserError, match=r"lr=0.2 has no other seeds.*fresh_seeds"):
        read_studies(tmp_path, choose_seeds=(0, 1))
    tune(tmp_path, 0.1, (0.8, 0.8, 0.81), (0.8,) * 3, model="convbn")
    (study,), _ = read_studies(tmp_path, choose_seeds=(0, 1))
    assert [entry.name for entry in study.entries] == ["convbn"]
    assert any("fresh_seeds" in text for text in cautions(study))
    with pytest.raises(UserError, match=r"not ranked with these --choose_seeds"):
        read_studies(tmp_path, baseline="convnet", choose_seeds=(0, 1))
    for lr in (0.1, 0.2):
        tune(tmp_path / "x", lr, (0.5, 0.5), (0.5, 0.5))
    with pytest.raises(UserError, match=r"none of its configurations has all"):
        read_studies(tmp_path / "x", choose_seeds=(7,))


def test_without_validation_no_seed_chooses(tmp_path):
    for lr in (0.1, 0.2):
        make_run(tmp_path / str(lr), accuracies=(0.5, 0.6, 0.7), lr=lr)
    (study,), _ = read_studies(tmp_path, choose_seeds=(0,))
    assert [entry.seeds for entry in study.entries] == [[1, 2], [1, 2]]
    assert any("these choose nothing" in text for text in cautions(study))


def test_rank_and_sentence_never_contradict_each_other(tmp_path):
    """A is better by its ten seeds, and B by the five that they share."""
    make_run(tmp_path / "a", "a", (0.7, 0.71, 0.7, 0.71, 0.7, *(0.9, 0.91) * 3))
    make_run(tmp_path / "b", "b", (0.75, 0.755, 0.75, 0.76, 0.75))
    (study,), _ = read_studies(tmp_path)
    assert [entry.name for entry in study.entries] == ["a", "b"]
    (sentence,) = sentences(study)
    assert "b beats a" not in sentence
    assert "11 and 5 seeds, 5 of them shared" in sentence
