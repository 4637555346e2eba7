"""Results that were made elsewhere: tables, and their files of predictions."""

import csv
import io
import pickle

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.reports import outside_rows
from cifar_flax.reports.cautions import cautions
from cifar_flax.reports.page import report
from cifar_flax.reports.studies import read_studies
from cifar_flax.reports.tables import rows_of, write_csv
from cifar_flax.reports.verdicts import sentences
from tests.reports.made import COUNT, make_logits, make_run
from tests.reports.test_columns import measured

HEAD = "model,width,seed,test_accuracy,val_accuracy,seconds\n"
TABLE = HEAD + "".join(
    f"{model},{width},{seed},{accuracy + 0.001 * seed},{accuracy - 0.01},10\n"
    for model, width, accuracy in (("a", 8, 0.7), ("a", 16, 0.8), ("b", "", 0.6))
    for seed in (0, 2, 1)
)


def write(folder, text, name="table.csv"):
    path = folder / name
    path.write_text(text)
    return path


def read(*tables, folder=None, **given):
    return read_studies(folder, tables=tables, **given)


def test_a_table_alone_is_ranked_and_judged_as_runs_are(tmp_path):
    table = write(tmp_path, TABLE)
    (study,), left_out = read(table)
    assert [entry.name for entry in study.entries] == ["a width=16", "b"]
    assert [entry.name for entry in study.apart] == ["a width=8"]
    assert study.entries[0].accuracies == {0: 0.8, 2: 0.802, 1: 0.801}
    assert study.entries[0].seconds_per_seed == 10
    assert "a width=16 beats b by 20.0" in sentences(study)[0]
    assert left_out == []
    made = report(None, tmp_path / "out", results=[table])
    for text in (made.markdown, (tmp_path / "out" / "report.html").read_text()):
        assert "made elsewhere" in text
        assert "80.10" in text
    again = report(None, tmp_path / "out", results=[table])
    assert again.markdown == made.markdown


def test_a_table_beside_runs_is_compared_with_them_but_not_by_pairs(tmp_path):
    accuracies = (0.7, 0.71, 0.72, 0.7, 0.71)
    make_run(tmp_path / "runs" / "a", "a", accuracies, val_accuracy=0.7)
    lines = [f"a,,{s},{x - 0.2},0.5,\n" for s, x in enumerate(accuracies)]
    table = write(tmp_path, HEAD + "".join(lines))
    (study,), _ = read(table, folder=tmp_path / "runs")
    assert [entry.name for entry in study.entries] == ["a", "a of table.csv"]
    ((_, _, found),) = study.comparisons
    assert (found.test, found.shown) == ("Welch", True)
    assert study.entries[1].first.result.test_size == COUNT
    (text,) = [text for text in cautions(study) if "predictions, so" in text]
    assert "Not known of a of table.csv" in text


def write_predictions(folder, accuracies, classes_only=False):
    """Writes a file of predictions for each seed; returns the rows of a table."""
    labels = np.random.default_rng(0).integers(0, 3, COUNT)  # as made.make_run
    lines = []
    for seed, accuracy in enumerate(accuracies):
        logits = make_logits(np.random.default_rng(seed), labels, accuracy)
        given = (
            {"predictions": logits.argmax(1)} if classes_only else {"logits": logits}
        )
        np.savez(folder / f"{seed}.npz", labels=labels, **given)
        lines.append(f"torch,{seed},,{seed}.npz\n")
    return "model,seed,test_accuracy,predictions\n" + "".join(lines)


@pytest.mark.parametrize("classes_only", [False, True])
def test_predictions_give_what_needs_images(tmp_path, classes_only):
    make_run(tmp_path / "runs" / "a", "a", (0.5, 0.52, 0.51))
    table = write(
        tmp_path, write_predictions(tmp_path, (0.7, 0.72, 0.71), classes_only)
    )
    (study,), _ = read(table, folder=tmp_path / "runs")
    entry = study.entries[0]
    assert list(entry.accuracies.values()) == pytest.approx([0.7, 0.72, 0.71])
    assert (entry.calibration is None) == classes_only
    ((_, _, found),) = study.comparisons
    assert found.over_images is not None
    made = report(tmp_path / "runs", results=[table])
    page = (made.folder / "report.html").read_text()
    assert page.count("Confusion matrix</h4>") == 2
    (study,), _ = read(table)  # alone
    assert study.dataset.test_size == COUNT


def test_settings_are_used_as_the_table_gives_them(tmp_path):
    head = "model,seed,test_accuracy,lr,recipe,seeds_vary,folder\n"
    runs = make_run(tmp_path / "run", "net")
    lines = [f"net,{s},0.5,auto,mine,split,{runs}\n" for s in (0, 1)]
    (study,), _ = read(write(tmp_path, head + "".join(lines)))
    (entry,) = study.entries
    assert entry.first.used["lr"] == "auto"
    assert entry.first.range_test is None
    made = report(results=str(tmp_path / "table.csv"))
    assert "| auto | - | mine |" in made.markdown


def test_predictions_of_other_images_are_a_study_of_their_own(tmp_path):
    make_run(tmp_path / "runs" / "a", "a", (0.5, 0.52, 0.51))
    text = write_predictions(tmp_path, (0.7, 0.72))
    for seed in (0, 1):
        with np.load(tmp_path / f"{seed}.npz") as arrays:
            np.savez(
                tmp_path / f"{seed}.npz",
                labels=arrays["labels"][::-1],
                logits=arrays["logits"][::-1],
            )
    studies, lines = read(write(tmp_path, text), folder=tmp_path / "runs")
    assert len(studies) == 2
    assert "is a study of its own" in lines[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model,seed\na,0\n", r"line 1: the header has no column test_accuracy"),
        ("", r"line 1: the header has no column model"),
        (HEAD, r"has no row below its header"),
        (HEAD + "a,8,0,93.1,,\n", r"line 2: test_accuracy is '93.1'; give a share"),
        (HEAD + "a,8,0,0.9,,\na,8,1.5,0.9,,\n", r"line 3: seed is '1.5'; give a whole"),
        (HEAD + "a,8,0,0.9,nan,\n", r"line 2: val_accuracy is 'nan'; give a share"),
        (HEAD + "a,8,0,0.9,,-1\n", r"line 2: train_seconds is '-1'; give a number"),
        (HEAD + "a,8,0,,,\n", r"line 2: test_accuracy is empty"),
        (HEAD + ",8,0,0.9,,\n", r"line 2: model is empty"),
        (HEAD + "a,8,0,0.9\n", r"line 2: it has 4 cells and the header has 6"),
        (HEAD + "a,8,0,0.9,,\na,8,0,0.8,,\n", r"line 3: seed 0 of a is also in line 2"),
        (HEAD + 'a,8,0,"0.9,,\n', r"line [23]: unexpected end of data"),
        ("model,seed,seed,test_accuracy\n", r"line 1: .* the column seed twice"),
    ],
)
def test_a_cell_that_is_not_valid_is_one_line_with_its_number(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as raised:
        read(write(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_files_of_strangers_are_not_trusted(tmp_path, monkeypatch):
    head = "model,seed,test_accuracy,predictions\n"
    inside = tmp_path / "inside"
    inside.mkdir()
    labels, logits = np.zeros(4, int), np.ones((4, 2), np.float32)
    np.savez(tmp_path / "good.npz", labels=labels, logits=logits)
    with pytest.raises(UserError, match=r"line 2: .*leads out of the folder"):
        read(write(inside, f"{head}a,0,,../good.npz\n"))
    (inside / "link.npz").symlink_to(tmp_path / "good.npz")
    with pytest.raises(UserError, match=r"line 2: .*leads out of the folder"):
        read(write(inside, f"{head}a,0,,link.npz\n"))
    (study,), _ = read(write(inside, f"{head}a,0,,{tmp_path / 'good.npz'}\n"))
    assert study.entries[0].mean == 1
    with pytest.raises(UserError, match=r"line 2: there is no file"):
        read(write(inside, f"{head}a,0,,missing.npz\n"))

    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    np.savez(inside / "evil.npz", labels=labels, logits=np.array([Evil()], object))
    (inside / "evil.npy").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.npz", "evil.npy"):
        with pytest.raises(UserError, match=r"line 2: cannot read"):
            read(write(inside, f"{head}a,0,,{name}\n"))
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(records, "MAX_ARRAYS", 100)
    with pytest.raises(UserError, match="more than the limit"):
        read(write(inside, f"{head}a,1,,{tmp_path / 'good.npz'}\n"))
    monkeypatch.setattr(outside_rows, "MAX_ROWS", 2)
    with pytest.raises(UserError, match="more than 2 rows"):
        read(write(inside, TABLE))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"labels": [0, 1]}, "it needs labels"),
        ({"labels": [0, 1], "logits": [[0.5, 0.5]]}, "there are 2 labels"),
        ({"labels": [0, 1], "logits": [[0.5, np.nan]] * 2}, "not all finite"),
        ({"labels": [0, 2], "logits": [[0.5, 1.0]] * 2}, "not one of its 2 classes"),
        ({"labels": [0, 1], "predictions": [0, -1]}, "not classes"),
        ({"labels": [0, 1], "predictions": [0]}, "not classes"),
        ({"labels": [0.0, 1], "predictions": [0, 1]}, "labels is not a list of whole"),
        ({"labels": [0, 1], "predictions": [0, 0]}, "0.9, and 0.5 by its predictions"),
    ],
)
def test_predictions_that_are_not_valid_are_one_line(tmp_path, arrays, words):
    np.savez(tmp_path / "p.npz", **{n: np.array(one) for n, one in arrays.items()})
    text = "model,seed,test_accuracy,predictions\na,0,0.9,p.npz\n"
    with pytest.raises(UserError, match=words) as raised:
        read(write(tmp_path, text))
    assert "line 2" in str(raised.value)


def test_seeds_and_labels_of_one_table_must_agree(tmp_path):
    for name, labels in (("a", [0, 1]), ("b", [1, 0])):
        np.savez(tmp_path / f"{name}.npz", labels=labels, predictions=[0, 0])
    text = "model,seed,test_accuracy,predictions\na,0,,a.npz\na,1,,b.npz\n"
    with pytest.raises(UserError, match="line 3: its predictions have other labels"):
        read(write(tmp_path, text))


def draw(rng):
    """Draws a table with any known columns and settings, and cells that are empty."""
    settings = rng.choice(["width", "lr", "my setting", "=f", "é"], 2, replace=False)
    names = ["model", "seed", "test_accuracy", *settings]
    more = ["val_accuracy", "train_seconds", "epochs", "parameters", "train_flops"]
    more += ["flops_per_image", "device", "diverged_at", "dataset", "test_loss"]
    names += [name for name in more if rng.random() < 0.5]
    text = ["a", "b c", "=1+1", 'say "x"', "x,y", "-e", "'quoted"]
    rows = []
    for number in range(int(rng.integers(1, 9))):
        share = float(rng.random())
        row = {
            "model": text[rng.integers(len(text))],
            "seed": number,
            "test_accuracy": share,
            **{name: [0.1, 2, "z"][rng.integers(3)] for name in settings},
            "val_accuracy": 0.9 * share,
            "train_seconds": 0.1 + number,
            "epochs": 2.5,
            "parameters": 7,
            "train_flops": 1e20,
            "flops_per_image": 1e6 / 3,
            "device": "+gpu",
            "diverged_at": int(number) if rng.random() < 0.2 else "",
            "dataset": text[rng.integers(2)],
            "test_loss": 1 / 3,
        }
        if "diverged_at" in names and row["diverged_at"] != "":
            row["test_accuracy"] = ""
        rows.append(row)
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def test_what_a_report_exports_reads_back_as_itself(tmp_path):
    for number in range(60):
        rng = np.random.default_rng(number)
        (tmp_path / "table.csv").write_text(draw(rng), newline="")
        studies, _ = read(tmp_path / "table.csv")
        (tmp_path / "export.csv").write_text(write_csv(studies), newline="")
        again, _ = read(tmp_path / "export.csv")
        assert rows_of(again) == rows_of(studies), number


def test_the_results_of_runs_read_back_as_themselves(tmp_path):
    for name, accuracies in (("a", (0.5, 0.6)), ("b", (0.7, 0.7))):
        run = make_run(tmp_path / "runs" / name, name, accuracies, val_accuracy=0.5)
        measured(run, {"ece": [0.1, 0.2], "my_error": [-1.5, 3]}, new=accuracies)
    given = {"flip": True, "dtype": "07", "note": " =x", "weight_decay": 5e-4}
    make_run(tmp_path / "runs" / "c", "c", (0.7, 0.6), diverged=[1], lr=0.2, **given)
    given |= {"also": ["a", 1], "loss_args": {"gamma": 2.0}, "note": None}
    make_run(tmp_path / "runs" / "d", "c", (0.7, 0.6), **given)
    export = tmp_path / "export.csv"
    made = report(tmp_path / "runs", export=export)
    again, _ = read(export)
    assert export.read_text() == (made.folder / "results.csv").read_text()
    assert rows_of(again) == rows_of(made.studies)
    (study,) = again
    assert "Without a validation split" not in " ".join(cautions(study))


def test_settings_are_columns_of_the_rows(tmp_path):
    make_run(tmp_path / "a", "net", (0.5, 0.6), weight_decay=5e-4)
    make_run(tmp_path / "b", "net", (0.7, 0.7), weight_decay=None, nesterov=True)
    rows = {row["folder"]: row for row in rows_of(read_studies(tmp_path)[0])}
    first, second = rows[str(tmp_path / "a")], rows[str(tmp_path / "b")]
    assert first["setting.lr"] == second["setting.lr"] == 0.1  # of the recipe
    assert (first["setting.weight_decay"], first["setting.nesterov"]) == (5e-4, None)
    assert second["setting.nesterov"] == "true"
    assert "setting.model" not in first


def test_seeds_with_settings_of_their_own_stay_a_configuration(tmp_path):
    head = "configuration,model,seed,test_accuracy,setting.lr\n"
    lines = [f"a net,net,{s},0.5,{rate}\n" for s, rate in enumerate((0.1, 0.2))]
    (study,), _ = read(write(tmp_path, head + "".join(lines)))
    (entry,) = study.entries
    assert (entry.name, entry.seeds, entry.rates) == ("a net", [0, 1], (0.1, 0.2))


def test_a_report_never_replaces_a_table_that_it_reads(tmp_path):
    table = write(
        tmp_path, "dataset,configuration,model,seed,test_accuracy\nd,c,m,0,1\n"
    )
    table = table.rename(tmp_path / "results.csv")
    for given in ({}, {"output": tmp_path / "out", "export": table}):
        with pytest.raises(UserError, match="is one of --results and is kept"):
            report(None, results=[table], **given)
    own = write(tmp_path, "my notes", "notes.csv")
    with pytest.raises(UserError, match="give another --export"):
        report(None, tmp_path / "out", results=[table], export=own)
    assert own.read_text() == "my notes"
