"""Reports on more configurations than fit on a page."""

import csv
import dataclasses
import html.parser
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from cifar_flax.errors import UserError
from cifar_flax.reports.page import DETAILS, report, write_html, write_markdown
from cifar_flax.reports.studies import read_studies
from tests.reports import made
from tests.reports.made import make_run

COUNT = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs with different rates; every tenth run has a diverged seed."""
    folder = tmp_path_factory.mktemp("large")
    for n in range(COUNT):
        least = 0.3 + 0.6 * n / COUNT
        accuracies = (least, least + 0.01 + n % 3 / 100, least)
        diverged = [2] if n % 10 == 0 else []
        make_run(folder / str(n), "a/b", accuracies, diverged=diverged, lr=0.01 * n)
    return folder


@pytest.fixture(scope="module")
def reported(folder, tmp_path_factory):
    return report(folder, tmp_path_factory.mktemp("report"))


class Links(html.parser.HTMLParser):
    """The targets of a page's links."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("href", "src")]


def local(links):
    return [link for link in links if not link.startswith("data:")]


@pytest.mark.slow
def test_the_page_is_small_and_its_links_lead_to_a_file_for_each_entry(reported):
    page = (reported.folder / "report.html").read_text()
    assert len(page) < 1e6
    links = local(Links(page).found)
    assert len(links) == len(set(links)) == COUNT
    files = {reported.folder / link for link in links}
    assert files == set((reported.folder / DETAILS).iterdir())
    for path in files:
        text = path.read_text()
        assert "Confusion matrix" in text
        assert "How it learned" in text
        (back,) = local(Links(text).found)
        assert (path.parent / back).resolve() == reported.folder / "report.html"


def test_an_entry_is_linked_to_its_own_file(reported):
    page = (reported.folder / "report.html").read_text()
    rows = re.findall(r'<tr><td>\d*</td><td><a href="([^"]*)">([^<]*)</a>', page)
    assert [name for _, name in rows] == [e.name for e in reported.studies[0].entries]
    for link, name in rows[::50]:
        text = (reported.folder / link).read_text()
        assert f"<title>{name}</title>" in text
        assert f"<td>{name.partition('=')[2]}</td>" in text  # its lr, in the settings


def test_ranking_and_tables_are_complete(reported):
    with open(reported.folder / "results.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3 * COUNT
    table = (reported.folder / "ranking.tex").read_text()
    assert len(re.findall(r" \$\\pm\$ | to ", table)) == COUNT
    rows = re.findall(r"^\| \d+ \| a/b lr=\S+ \| (\S+ \S*)", reported.markdown, re.M)
    assert len(rows) == COUNT
    assert sum(row == "2 of" for row in rows) == COUNT / 10


def test_only_the_best_are_compared_and_that_is_what_p_is_adjusted_for(reported):
    (study,) = reported.studies
    best = {entry.name for entry in study.entries[:10]}
    for text in (reported.markdown, (reported.folder / "report.html").read_text()):
        assert "45 pairs of the best 10" in text
        assert f"best 10 of {COUNT} are chosen by the test accuracies" in text
        sentences = re.findall(r"(?:beats|between) [^<\n]* points \(p", text)
        assert len(set(sentences)) >= 9  # the page has each twice
    assert {e.name for pair in study.comparisons for e in pair[:2]} == best
    assert_adjusted(study, 45)


def assert_adjusted(study, count):
    """Asserts that p is that of SciPy's Welch test, adjusted by Holm's method."""
    assert len(study.comparisons) == count
    p = [
        stats.ttest_ind(
            *(list(entry.accuracies.values()) for entry in pair[:2]), equal_var=False
        ).pvalue
        for pair in study.comparisons
    ]
    order = np.argsort(p)
    steps = np.sort(p) * (count - np.arange(count))
    expected = np.minimum(np.maximum.accumulate(steps), 1)
    found = [study.comparisons[index][2].adjusted_p for index in order]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_baseline_is_compared_with_every_other_entry(folder):
    name = "a/b lr=1.5"
    made = make_run(folder / "base", "a/b", (0.6, 0.61, 0.62), lr=1.501)
    (study,), left_out = read_studies(folder, "a/b lr=1.501")
    shutil.rmtree(made)
    able = [e for e in study.entries if not e.diverged and e is not study.baseline]
    assert {second.name for _, second, _ in study.comparisons} == {"a/b lr=1.501"}
    assert [first.name for first, _, _ in study.comparisons] == [e.name for e in able]
    assert name not in {e.name for e in able}  # a seed of it diverged
    assert_adjusted(study, COUNT * 9 // 10)
    text = write_markdown([study], left_out)
    assert f"{COUNT * 9 // 10} comparisons with a/b lr=1.501" in text
    shown = [gap.mean for _, _, gap in study.comparisons if gap.shown]
    better, worse = sum(m > 0 for m in shown), sum(m < 0 for m in shown)
    assert f"{better} are shown to be better, {worse} are shown to be worse" in text
    assert text.count("python -m experiments.run") == 11  # best and baseline


def test_a_baseline_that_failed_is_compared_with_nothing(folder):
    (study,), left_out = read_studies(folder, "a/b lr=1.5")
    assert study.comparisons == []
    assert "Nothing is compared with a/b lr=1.5" in write_markdown([study], left_out)


def test_an_unknown_baseline_is_named_with_its_nearest(folder):
    with pytest.raises(
        UserError, match=f"none of the {COUNT} configurations"
    ) as caught:
        read_studies(folder, "a/b lr=1.51x")
    message = str(caught.value)
    assert "'a/b lr=1.51'" in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.slow
def test_twenty_are_shown_whole_and_twenty_one_are_not(folder):
    (study,), _ = read_studies(folder)
    twenty = dataclasses.replace(study, entries=study.entries[:20])
    assert len(twenty.comparisons) == 190
    page = write_html([twenty], [])
    assert all(link.startswith("#") for link in local(Links(page).found))
    assert page.count("<details") == 20
    more = dataclasses.replace(study, entries=study.entries[:21])
    assert len(more.comparisons) == 45
    assert DETAILS in write_html([more], [])
    assert DETAILS in write_html([twenty, twenty], [])


@pytest.mark.slow
def test_the_files_of_an_earlier_report_go_and_others_stay(folder, tmp_path):
    runs, output = tmp_path / "runs", tmp_path / "out"
    for n in range(22):
        shutil.copytree(folder / str(n), runs / str(n))
    report(runs, output)
    (output / DETAILS / "notes.html").write_text("mine")
    shutil.rmtree(runs / "0")
    report(runs, output)
    assert len(list((output / DETAILS).iterdir())) == 21 + 1
    (output / DETAILS / "notes.html").unlink()
    shutil.rmtree(runs / "1")
    report(runs, output)
    assert not (output / DETAILS).exists()


def test_predictions_are_dropped_once_they_are_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(made, "COUNT", 20_000)
    for n in range(12):
        make_run(tmp_path / str(n), lr=0.1 * n)
    size = 12 * (tmp_path / "0" / "predictions.npz").stat().st_size
    read_studies(tmp_path)
    tracemalloc.start()
    studies = read_studies(tmp_path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert studies
    assert kept < size / 10
    assert peak < size
