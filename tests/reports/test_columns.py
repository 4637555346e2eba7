"""Further test images and metrics as columns, and what ranks by them."""

import csv
import io
import re

import msgspec
import numpy as np
import pytest
from scipy import stats

import cifar_flax
from cifar_flax import records
from cifar_flax.analysis.predictions import score
from cifar_flax.errors import UserError
from cifar_flax.reports.page import report, write_markdown
from cifar_flax.reports.runs import read_runs
from cifar_flax.reports.studies import read_studies
from cifar_flax.reports.tables import write_csv
from tests.reports.made import CLASSES, COUNT, make_logits, make_run

ACCURACIES = (0.7, 0.71, 0.72)


def measured(folder, metrics, new=None, content="one", val=None):
    """Adds metrics of the test images, and accuracies on further images, to a run."""
    result = records.read_result(folder)
    also = {}
    if new is not None:
        labels = np.arange(50) % len(CLASSES)
        rng = np.random.default_rng(0)
        logits = np.stack([make_logits(rng, labels, accuracy) for accuracy in new])
        images = np.zeros((1, 4, 4, 3), np.uint8), np.array([0])
        given = (logits, labels, result.seeds, *images)
        records.write_predictions(folder, *given, name="new")
        right = (logits.argmax(-1) == labels).mean(-1).tolist()
        losses = [score(one[None], labels).nll / 50 for one in logits]
        about = {"source": "made up", "fingerprint": content, "size": 50}
        also["new"] = records.AlsoTested(**about, accuracy=right, loss=losses)
    changed = msgspec.structs.replace(result, test_metrics=metrics, also_test=also)
    records.write_result(folder, changed)
    if val is not None:
        lines = records.read_metrics(folder)
        for line in lines:
            line.val_accuracy = [0.5] * len(result.seeds)
            line.val_metrics = {n: [one] * len(result.seeds) for n, one in val.items()}
        records.cut_metrics(folder, 0)
        records.append_metrics(folder, lines)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Three runs; the most accurate one has the highest errors."""
    errors = {"a": (0.1, 0.11, 0.12), "b": (0.3, 0.31, 0.32), "c": (0.2, 0.21, 0.22)}
    for number, (name, values) in enumerate(errors.items()):
        accuracies = [one + 0.1 * number for one in ACCURACIES]
        run = make_run(tmp_path / "runs" / name, f"net{name}", accuracies)
        kappa = [100 * one for one in values]
        new = (0.9 - 0.2 * number, 0.8 - 0.2 * number, 0.8 - 0.2 * number)
        measured(run, {"ece": list(values), "kappa": kappa}, new)
    return tmp_path / "runs"


def markdown(folder, **given):
    return write_markdown(*read_studies(folder, **given))


def names(study):
    return [entry.name for entry in study.entries]


def test_the_columns_have_intervals_over_seeds(folder):
    text = markdown(folder)
    (line,) = re.findall(r"^\| 3 \| neta .*$", text, re.MULTILINE)
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert f" {100 * 0.11:.2f} ± {100 * half:.2f} |" in line  # the error
    assert f" 11 ± {100 * half:.2g} |" in line  # kappa is no share
    heads = next(x for x in text.splitlines() if x.startswith("| | config"))
    assert "| test ece, % | test kappa | new accuracy, % |" in heads
    rows = [x for x in text.splitlines() if x.startswith("|")][:5]
    assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1


def test_csv_and_rows_have_them(folder):
    rows = {(r["model"], r["seed"]): r for r in cifar_flax.load_results(folder)}
    row = rows["neta", 1]
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    assert (row["test_ece"], row["test_kappa"]) == (0.11, 11.0)
    assert row["test_ece_low"] == pytest.approx(0.11 - half)
    assert row["test_kappa_high"] == pytest.approx(11 + 100 * half)
    assert row["new_accuracy"] == pytest.approx(0.8, abs=0.02)
    assert row["new_accuracy_low"] < row["new_accuracy"] < row["new_accuracy_high"]
    sizes = np.bincount(records.read_predictions(folder / "a")["labels"])
    assert row["largest_class"] == pytest.approx(sizes.max() / COUNT)
    (study,), _ = read_studies(folder)
    first = next(csv.DictReader(io.StringIO(write_csv([study]))))
    assert float(first["test_ece_low"]) > 0


def test_equal_values_of_a_few_seeds_do_not_show_that_the_next_has_it(tmp_path):
    run = make_run(tmp_path / "a", "neta", (0.7, 0.7))
    measured(run, {"ece": [0.5, 0.5], "kappa": [3.0, 3.0]})
    (study,), _ = read_studies(tmp_path)
    share, own = (column.cell(study.entries[0]) for column in study.columns)
    half = stats.t.ppf(0.975, 1) / COUNT / np.sqrt(2)
    assert share == f"50.00 ± {100 * half:.2f}"
    assert own == "3"


def test_a_run_without_them_has_empty_cells(folder):
    make_run(folder / "d", "netd", ACCURACIES)
    text = markdown(folder)
    (line,) = re.findall(r"^\| \d \| netd .*$", text, re.MULTILINE)
    assert line.count(" - |") >= 3
    assert [r["test_ece"] for r in cifar_flax.load_results(folder)].count(None) == 3


def test_it_says_of_how_many_seeds_a_value_is(folder):
    make_run(folder / "more", "neta", (0.7, 0.7), seeds=[8, 9])
    assert " (3 of 5 seeds) |" in markdown(folder)


@pytest.mark.parametrize(
    ("rank_by", "order"),
    [
        (None, "cba"),
        ("ece", "acb"),  # an error
        ("-test_ece", "acb"),
        ("kappa", "bca"),
        ("-kappa", "acb"),
        ("new_accuracy", "abc"),
    ],
)
def test_any_column_ranks(folder, rank_by, order):
    (study,), _ = read_studies(folder, rank_by=rank_by)
    assert names(study) == [f"net{name}" for name in order]


def test_what_ranks_also_compares_and_is_said(folder):
    text = markdown(folder, rank_by="ece")
    assert "Ranked and compared by test ece (lower is better)" in text
    assert "neta beats netc by 10.0 ±" in text
    assert "column minus row, in points" in text
    assert "test images are too few" not in text
    other = markdown(folder, rank_by="kappa")
    assert "no differences are judged" in other
    assert "beats" not in other
    accuracy = markdown(folder)
    assert "netc beats netb" in accuracy
    assert "Ranked and compared" not in accuracy


@pytest.mark.slow
@pytest.mark.parametrize("rank_by", ["ece", "kappa"])
def test_the_page_shows_them_too(folder, rank_by):
    made = report(folder, rank_by=rank_by)
    page = (folder / "report.html").read_text()
    order = "ascending" if rank_by == "ece" else "descending"
    head = f'aria-sort="{order}"><button type="button">test {rank_by}'
    assert page.count(head) == page.count('aria-sort="') == 1
    assert f"Intervals of test {rank_by}" in page
    assert "new accuracy, %</button>" in page
    assert "<th>new accuracy, %</th>" in made._repr_html_()


def test_what_ranks_chooses_on_the_validation_images(tmp_path):
    for name, accuracy, error in (("a", 0.6, 0.3), ("b", 0.7, 0.1), ("c", 0.8, 0.2)):
        run = make_run(tmp_path / name, "net", (accuracy,) * 2, lr=accuracy)
        measured(run, {"ece": [0.5, 0.5]}, val={"ece": error})
    (study,), _ = read_studies(tmp_path, rank_by="ece")
    assert [entry.first.folder.name for entry in study.entries] == ["b"]
    (other,), _ = read_studies(tmp_path)  # all validation accuracies are equal
    assert len(other.entries) == 1


def test_an_unknown_column_is_named_with_the_known_ones(folder):
    words = "--rank_by=auc: .*measured: test_ece, test_kappa, new_accuracy"
    with pytest.raises(UserError, match=words):
        read_studies(folder, rank_by="auc")
    make_run(folder / "alone" / "x", "net")
    with pytest.raises(UserError, match="only the test accuracy"):
        read_studies(folder / "alone", rank_by="ece")


def test_images_of_one_name_and_another_content_are_other_columns(folder):
    measured(make_run(folder / "d", "netd", ACCURACIES), {}, ACCURACIES, "another")
    (study,), _ = read_studies(folder)
    found = [one.name for one in study.columns if one.name.startswith("new")]
    assert found == ["new_accuracy_one", "new_accuracy_another"]


def test_predictions_must_be_there(folder):
    (folder / "a" / "predictions-new.npz").unlink()
    runs, (line,) = read_runs(folder)
    assert "predictions-new.npz" in line
    assert len(runs) == 2


def test_predictions_must_be_those_of_the_result(folder):
    result = records.read_result(folder / "a")
    result.also_test["new"].accuracy[2] = 0.5
    records.write_result(folder / "a", result)
    _, (line,) = read_runs(folder)
    assert "seed 2 has the accuracy 0.5 and" in line
    assert "predictions-new.npz" in line


def test_what_is_measured_makes_no_other_configuration(tmp_path):
    make_run(tmp_path / "a", "net", (0.7, 0.7))
    settings = {"also_test": {"new": "npz:/new.npz"}, "metrics": ["ece"]}
    run = make_run(tmp_path / "b", "net", (0.7, 0.7), seeds=[5, 6], **settings)
    measured(run, {"ece": [0.1, 0.1]}, (0.5, 0.6))
    (study,), left_out = read_studies(tmp_path)
    assert (names(study), left_out) == (["net"], [])
    assert study.entries[0].seeds == [0, 1, 5, 6]


def test_epochs_with_other_seeds_are_damaged(folder):
    measured(folder / "a", {}, val={"ece": 0.1})
    lines = records.read_metrics(folder / "a")
    lines[1].val_metrics = {"ece": [0.1, 0.1]}
    records.cut_metrics(folder / "a", 0)
    records.append_metrics(folder / "a", lines)
    runs, (line,) = read_runs(folder)
    assert [run.folder.name for run in runs] == ["b", "c"]
    assert "not every val_metrics is of 3 seeds" in line


def test_the_first_epochs_may_have_measured_less(tmp_path):
    """As those of a run that another one continues."""
    for name, accuracy, error in (("a", 0.7, 0.3), ("b", 0.6, 0.1)):
        run = make_run(tmp_path / name, "net", (accuracy,) * 2, lr=accuracy)
        measured(run, {"ece": [0.5, 0.5]}, val={"ece": error})
        lines = records.read_metrics(run)
        lines[0].val_metrics = None
        records.cut_metrics(run, 0)
        records.append_metrics(run, lines)
    (study,), left_out = read_studies(tmp_path, rank_by="ece")
    assert not left_out
    assert [entry.first.folder.name for entry in study.entries] == ["b"]
