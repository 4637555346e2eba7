"""Results as tables for other programs."""

import csv
import re

import pytest

import cifar_flax
from cifar_flax.reports.page import report
from tests.reports.made import make_run


@pytest.fixture
def folder(tmp_path):
    make_run(tmp_path / "a", "convnet", (0.5, 0.52), seeds=[4, 5], note='a_b & c,"d"')
    make_run(tmp_path / "b", "convnet", (0.6, 0.1), diverged=[1], note="x^2~{}")
    return tmp_path


def test_a_row_for_each_seed(folder):
    rows = cifar_flax.load_results(folder)
    assert {(row["seed"], row["diverged_at"]) for row in rows} == {
        *((4, None), (5, None), (0, None), (1, 15)),
    }
    by_seed = {row["seed"]: row for row in rows}
    assert by_seed[4]["test_accuracy"] == pytest.approx(0.5, abs=0.01)
    assert by_seed[4]["model"] == "convnet"
    assert by_seed[4]["val_accuracy"] is None
    assert by_seed[4]["folder"] == str(folder / "a")


def test_csv_is_read_back_as_the_rows(folder, tmp_path):
    report(folder, tmp_path / "out")
    with open(tmp_path / "out" / "results.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    rows = cifar_flax.load_results(folder)
    assert len(read) == 4
    for text, row in zip(read, rows, strict=True):
        assert text == {k: "" if v is None else str(v) for k, v in row.items()}


def test_latex_has_a_line_an_entry_and_no_markup_of_names(folder, tmp_path):
    report(folder, tmp_path / "out")
    text = (tmp_path / "out" / "ranking.tex").read_text()
    lines = re.findall(r"^.* (?:\$\\pm\$|to) .*\\\\$", text, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        assert len(re.findall(r"(?<!\\)&", line)) == 5
    assert r"note=a\_b \& c,"[:12] in text
    assert r"x\textasciicircum{}2\textasciitilde{}\{\}" in text
