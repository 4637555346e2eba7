"""What a report writes, and the files of others that it leaves alone."""

import csv
import errno
import io
import os

import pytest

from cifar_flax.errors import UserError
from cifar_flax.reports import output, page
from cifar_flax.reports.looks import JOURNAL
from cifar_flax.reports.page import report
from cifar_flax.reports.tables import write_csv
from tests.reports.made import make_run

NAMES = ("report.md", "report.html", "results.csv", "ranking.tex")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "one")
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", ["mine", "# Report\n\nof mine", "% mine", "seed,lr\n"])
def test_a_file_of_the_users_is_kept(runs, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is not of a report and is kept"):
        report(runs, tmp_path)
    assert content(tmp_path) == {name: text.encode()}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_plain_file_is_refused(runs, tmp_path, name):
    place, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.write_text(before := "dataset,configuration,")
    for make in (lambda p: p.symlink_to(elsewhere), os.mkfifo, os.mkdir):
        make(place / name)
        with pytest.raises(UserError, match=f"{name} is not a plain file"):
            report(runs, place)
        if (place / name).is_dir():
            (place / name).rmdir()
        else:
            (place / name).unlink()
    assert elsewhere.read_text() == before


def test_a_report_replaces_an_earlier_one(runs, tmp_path):
    report(runs, tmp_path)
    before = content(tmp_path)
    (tmp_path / "report.md").write_bytes(b"")  # as a full disk left it
    report(runs, tmp_path)
    assert content(tmp_path)["report.md"] == before["report.md"]
    assert set(before) == {*NAMES, JOURNAL}


@pytest.mark.slow
@pytest.mark.parametrize("full", NAMES)
def test_a_full_disk_changes_nothing(runs, tmp_path, monkeypatch, full):
    report(runs, tmp_path)
    before = content(tmp_path)
    replacing = output.replacing

    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Replacing:
        def __init__(self, path):
            self.path, self.real = path, replacing(path)

        def __enter__(self):
            file = self.real.__enter__()
            return Full() if self.path.name == full else file

        def __exit__(self, *error):
            return self.real.__exit__(*error)

    monkeypatch.setattr(output, "replacing", Replacing)
    make_other = page.write_markdown
    monkeypatch.setattr(page, "write_markdown", lambda *a: make_other(*a) + "more")
    with pytest.raises(UserError, match="No space left on device; give --output"):
        report(runs, tmp_path)
    assert content(tmp_path) == before


def test_no_cell_is_a_formula(tmp_path):
    for sign in "=+-@":
        make_run(tmp_path / sign, dataset=f"{sign}1+1")
    studies, _ = page.read_studies(tmp_path)
    rows = csv.DictReader(io.StringIO(write_csv(studies)))
    assert {row["dataset"] for row in rows} == {f"'{sign}1+1" for sign in "=+-@"}
