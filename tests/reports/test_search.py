"""The report on a search: what is ranked, and at which budget the order turns."""

import csv
import itertools
import re

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.reports.page import report, write_html, write_markdown
from cifar_flax.reports.search_page import search_charts, search_of
from cifar_flax.reports.searches import Searched, TrialRow
from cifar_flax.reports.studies import read_studies
from cifar_flax.search_records import (
    Pruned,
    Search,
    Subject,
    Trial,
    write_pruned,
    write_search,
)
from tests.reports.made import make_run, write_metrics

# Validation accuracies: a is better on average, b has the best trial.
A = [0.60, 0.61, 0.59, 0.62, 0.60]
B = [0.40, 0.80, 0.45, 0.41, 0.50]


def make_search(folder, models=None, kind="random", fresh=True):
    """Writes a search whose trials differ in their rate; returns its folder."""
    models = models or {"convnet": A, "convbn": B}
    subjects = []
    for model, values in models.items():
        trials = []
        for number, value in enumerate(values, start=1):
            trial = Trial(values={"lr": 0.01 * number}, folder=f"{model}-trial{number}")
            trials.append(trial)
            more = {"val_accuracy": value, "lr": 0.01 * number}
            make_run(folder / trial.folder, model, (value,), **more)
        subjects.append(Subject(name=model, settings={"model": model}, trials=trials))
        if fresh:
            best = int(np.argmax(values)) + 1
            more = {"val_accuracy": 0.3, "lr": 0.01 * best}
            make_run(folder / f"{model}-x", model, (0.5, 0.52), seeds=[1, 2], **more)
    record = Search(
        kind=kind,
        seed=0,
        space={"lr": {"uniform": [0.01, 0.05]}},
        seeds=[0],
        count=len(A),
        subjects=subjects,
    )
    write_search(folder, record)
    return folder


def test_fresh_seeds_alone_are_ranked(tmp_path):
    """Although each trial, and those of others, has more validation accuracy."""
    (study,), left_out = read_studies(make_search(tmp_path))
    assert left_out == []
    assert {e.name for e in study.everything} == {"convnet trial 4", "convbn trial 2"}
    assert all(sorted(e.accuracies) == [1, 2] for e in study.entries)
    assert len(study.comparisons) == 1
    assert len(study.trials) == 10


@pytest.mark.slow
def test_without_fresh_seeds_the_chosen_trial_is_ranked_and_the_page_says_so(tmp_path):
    studies, _ = read_studies(make_search(tmp_path, fresh=False))
    names = {entry.name for entry in studies[0].everything}
    assert names == {"convnet trial 4", "convbn trial 2"}
    assert len(studies[0].trials) == 8
    for text in (write_markdown(studies, []), write_html(studies, [])):
        assert "is too high on average" in text
        assert "--fresh_seeds=5" in text


def test_runs_that_were_chosen_by_fewer_trials_are_not_ranked(tmp_path):
    make_search(tmp_path)
    make_run(tmp_path / "earlier", "convbn", (0.9, 0.9), seeds=[1, 2], lr=0.01)
    (study,), _ = read_studies(tmp_path)
    assert [entry.name for entry in study.entries if "convbn" in entry.name] == [
        "convbn trial 2"
    ]
    (first,) = [entry for entry in study.trials if entry.name == "convbn trial 1"]
    assert sorted(first.accuracies) == [0, 1, 2]


def test_runs_of_other_folders_are_ranked_as_ever(tmp_path):
    make_search(tmp_path / "search")
    make_run(tmp_path / "own", "resnet", (0.7, 0.71))
    (study,), _ = read_studies(tmp_path)
    names = {entry.name for entry in study.entries}
    assert names == {"convnet trial 4", "convbn trial 2", "resnet"}


def test_the_order_turns_where_the_expected_best_of_n_does(tmp_path):
    studies, _ = read_studies(make_search(tmp_path))
    best = {
        n: [
            np.mean([max(draw) for draw in itertools.product(values, repeat=n)])
            for values in (A, B)
        ]
        for n in range(1, 6)
    }
    turn = next(n for n, (a, b) in best.items() if b > a)
    assert turn > 1
    text = write_markdown(studies, [])
    assert "turns with the budget" in text
    assert f"convbn from {turn} trials on" in text
    assert re.search(r"At equal time of training, the order of", text)
    found = dict(search_of(studies[0])["ladder"])
    assert list(found) == [1, 2, 5]
    for n, cells in found.items():
        shown = {float(cell.split()[0]) for cell in cells}
        assert shown == {round(100 * value, 1) for value in best[n]}
        assert all("(" in cell for cell in cells)


def test_tpe_shows_the_best_so_far_and_no_interval(tmp_path):
    studies, _ = read_studies(make_search(tmp_path, kind="tpe"))
    text = write_markdown(studies, [])
    assert "| 1 | 40.0, 3 s | 60.0, 3 s |" in text
    assert "| 2 | 80.0, 6 s | 61.0, 6 s |" in text
    assert "Expected" not in text
    assert "turns" not in text


def test_a_pruned_trial_is_neither_left_out_nor_chosen(tmp_path):
    make_search(tmp_path, fresh=False)
    folder = tmp_path / "convbn-trial2"
    (folder / records.RESULT).unlink()
    write_pruned(folder, Pruned(epoch=2, val_accuracy=0.8))
    studies, left_out = read_studies(tmp_path)
    assert left_out == []
    assert "convbn trial 5" in {entry.name for entry in studies[0].entries}
    text = write_markdown(studies, left_out)
    assert "convbn: 5 of 5 trials, 1 pruned" in text
    assert "| convbn | 2 | lr=0.02 | 80.0 | 2 | 1.0 | pruned at epoch 2 |" in text


def test_a_diverged_trial_counts_as_0_and_an_unfinished_one_not_at_all(tmp_path):
    make_search(tmp_path)
    folder = tmp_path / "convnet-trial1"
    result = records.read_result(folder)
    result.status, result.diverged_at = "diverged", [5]
    result.test_accuracy, result.test_loss = [None], [None]
    result.test_accuracy_mean = None
    records.write_result(folder, result)
    write_metrics(folder, 1, 0)
    (tmp_path / "convnet-trial2" / records.RESULT).unlink()
    studies, left_out = read_studies(tmp_path)
    (line,) = [line for line in left_out if "convnet-trial2" in line]
    assert "is not finished" in line
    text = write_markdown(studies, left_out)
    assert "convnet: 5 of 5 trials, 1 diverged, 1 not finished" in text
    assert "The trials so far are unequal: convbn 5, convnet 4" in text
    found = dict(search_of(studies[0])["ladder"])
    mean = 100 * np.mean([0.0, *A[2:]])
    assert float(found[1][1].split()[0]) == pytest.approx(mean, abs=0.05)


def test_a_damaged_search_leaves_its_runs(tmp_path):
    make_search(tmp_path)
    (tmp_path / "search.json").write_text("{}")
    (study,), left_out = read_studies(tmp_path)
    (line,) = left_out
    assert "search.json" in line
    assert len(study.everything) == 10


@pytest.mark.slow
def test_results_hold_all_trials_and_figures_are_written(tmp_path):
    made = report(make_search(tmp_path / "runs"), tmp_path / "out", figures=tmp_path)
    assert (tmp_path / "search_trials.png").stat().st_size > 5_000
    assert (tmp_path / "search_hours.pdf").exists()
    with open(made.folder / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["ranked"] for row in rows].count("True") == 4
    names = [row["configuration"] for row in rows if row["ranked"] == "False"]
    assert len(names) == 10
    assert {"convnet trial 1", "convbn trial 5"} <= set(names)


def test_a_study_without_a_search_is_as_ever(tmp_path):
    make_run(tmp_path / "a", "convnet", (0.5, 0.52, 0.51))
    studies, _ = read_studies(tmp_path)
    assert search_charts(studies[0]) == []
    assert "search" not in write_markdown(studies, [])


@pytest.mark.parametrize(
    ("kind", "hours"), [("random", [2.0, 4.0, 6.0]), ("tpe", [1.0, 4.0, 6.0])]
)
def test_the_time_of_n_trials_is_expected_or_spent(kind, hours):
    trials = [
        TrialRow(n, {}, "done", 0.5, 0.5, 1, 3600.0 * time)
        for n, time in enumerate((1, 3, 2), start=1)
    ]
    one = Searched("net", kind, 3, trials, 1, 0, [])
    np.testing.assert_allclose(one.hours, hours)
