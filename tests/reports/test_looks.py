"""Seeds that are added after a look at the results, as a reader of the report sees."""

import json
import re

import numpy as np
import pytest

from cifar_flax.analysis.sequential import any_look_p, spending_levels
from cifar_flax.analysis.statistics import compare
from cifar_flax.errors import UserError
from cifar_flax.reports.looks import JOURNAL, PLAN, read_journal, remember, seeds_of
from cifar_flax.reports.page import report, write_markdown
from cifar_flax.reports.studies import read_studies
from tests.reports.made import make_run

IMAGES = 200  # in the test set of a made run


def draw(seed, mean, count=30):
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(mean, 0.02, count) * IMAGES) / IMAGES


FIRST, SECOND = draw(0, 0.715), draw(1, 0.7)


def add(folder, begin, end):
    """Adds the seeds from one number to another to two configurations."""
    for name, values in (("convnet", FIRST), ("convbn", SECOND)):
        seeds = list(range(begin, end))
        make_run(folder / f"{name}{begin}", name, values[begin:end], seeds)


def look(folder, page=None, **given):
    """Looks at the results as a report does, without its figures."""
    studies, left_out = read_studies(folder, journal=page, **given)
    (page or folder).mkdir(exist_ok=True)
    remember(page or folder, seeds_of(studies[0].everything))
    return " ".join(write_markdown(studies, left_out).split())


def only_pair(folder, **given):
    (study,), _ = read_studies(folder, **given)
    ((_, _, found),) = study.comparisons
    return study, found


def fixed(count):
    """The comparison of the first seeds as if it was the only look."""
    sides = [dict(enumerate(map(float, one[:count]))) for one in (FIRST, SECOND)]
    return compare(*sides, images=IMAGES)


def test_seeds_of_one_look_are_judged_as_ever(tmp_path):
    add(tmp_path, 0, 5)
    add(tmp_path, 5, 10)  # of another run, which nobody looked at in between
    text = look(tmp_path)
    assert look(tmp_path) == text
    _, found = only_pair(tmp_path)
    assert (found.looks, found.most) == (1, None)
    assert found.p == pytest.approx(fixed(10).p)
    assert len(read_journal(tmp_path)) == 1  # the second look saw nothing new
    assert "after a look" not in text


def test_seeds_that_were_added_after_a_report_are_judged_over_all_looks(tmp_path):
    runs, page = tmp_path / "runs", tmp_path / "page"
    for begin, end in ((0, 5), (5, 10), (10, 20)):
        add(runs, begin, end)
        text = look(runs, page)
    _, found = only_pair(runs, journal=page)
    smallest = min(fixed(count).p for count in (5, 10, 20))
    assert found.p == pytest.approx(any_look_p(smallest, 30))
    assert found.p > 2 * smallest
    assert (found.looks, found.most) == (3, 30)
    assert found.half_width > 1.2 * fixed(20).half_width
    assert "3 looks" in text
    assert "Seeds were added after a look at the results to 1 of these pairs" in text
    assert "Up to 10 more seeds" in text or "beats" in text
    assert "Seeds to show" not in text
    # Whoever forgets the looks, forgets what the page remembers.
    (page / JOURNAL).unlink()
    assert only_pair(runs, journal=page)[1].looks == 1


def test_only_what_both_had_is_a_look_at_a_pair(tmp_path):
    make_run(tmp_path / "a", "convnet", FIRST[:5])
    look(tmp_path)
    make_run(tmp_path / "b", "convbn", SECOND[:5])
    look(tmp_path)
    assert only_pair(tmp_path)[1].looks == 1
    make_run(tmp_path / "c", "convbn", SECOND[5:9], [5, 6, 7, 8])
    look(tmp_path)
    assert only_pair(tmp_path)[1].looks == 2


@pytest.mark.slow
def test_more_seeds_than_30_have_a_larger_plan(tmp_path):
    values = draw(2, 0.7, 40), draw(3, 0.7, 40)
    for begin, end in ((0, 3), (3, 40)):
        for name, one in zip(("convnet", "convbn"), values, strict=True):
            numbers = list(range(begin, end))
            make_run(tmp_path / f"{name}{begin}", name, one[begin:end], numbers)
        look(tmp_path)
    assert only_pair(tmp_path)[1].most == 60


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("my own notes\n", ["line 1 of", "not valid JSON"]),
        ('{"at": "2026-01-01T00:00:00Z", "seeds": {"a": ["x"]}}\n', ["seeds"]),
        ('{"at": "2026-01-01T00:00:00", "seeds": {"a": [1]}}\n', ["time zone"]),
        ('{"seeds": {}}\n', ["'at'"]),
    ],
)
def test_a_damaged_journal_is_one_line_and_nothing_is_lost(tmp_path, content, words):
    add(tmp_path, 0, 3)
    (tmp_path / JOURNAL).write_text(content)
    with pytest.raises(UserError) as error:
        report(tmp_path)
    assert "\n" not in str(error.value)
    for word in (*words, JOURNAL, "restore or rename it"):
        assert word in str(error.value)
    assert (tmp_path / JOURNAL).read_text() == content
    assert not (tmp_path / "report.md").exists()


def write_plan(folder, looks, cells, **given):
    record = {"looks": looks, "first_seed": 0, "margin": None, "entries": ["a", "b"]}
    (folder / PLAN).write_text(json.dumps(record | {"cells": cells} | given))


def test_planned_looks_have_the_bounds_of_the_plan(tmp_path):
    looks = [5, 10, 15, 20]
    for begin in (0, 5, 10):
        add(tmp_path, begin, begin + 5)
        look(tmp_path)  # looks of a reader do not change what was planned
    cells = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    write_plan(tmp_path, looks, cells)
    study, found = only_pair(tmp_path)
    crossed = [
        fixed(count).p <= level
        for count, level in zip(looks[:3], spending_levels(tuple(looks)), strict=False)
    ]
    assert found.looks == 3
    assert (found.p < 0.05) == any(crossed)
    course = study.course(*study.comparisons[0][:2])
    assert [one.counts for one in course] == [(5, 5), (10, 10), (15, 15)]
    halves = [one.half_width for one in course]
    assert halves == sorted(halves, reverse=True)
    ((count, half),) = study.ahead(*study.comparisons[0][:2])
    assert count == 20
    assert half < halves[-1]
    # Seeds beyond a plan do not count, and other runs do not belong to it.
    write_plan(tmp_path, [5], cells)
    assert only_pair(tmp_path)[1].p == pytest.approx(fixed(5).p, rel=0.02)
    write_plan(tmp_path, looks, [])
    assert only_pair(tmp_path)[1].p == pytest.approx(
        any_look_p(min(fixed(count).p for count in (5, 10, 15)), 30)
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"looks": [10, 5]}, "looks"),
        ({"looks": [5, 500]}, "500"),
        ({"cells": 1}, "cells"),
    ],
)
def test_a_damaged_plan_is_one_line(tmp_path, given, words):
    add(tmp_path, 0, 3)
    write_plan(tmp_path, **{"looks": [5, 10], "cells": []} | given)
    with pytest.raises(UserError, match=rf"{PLAN}.*{words}"):
        read_studies(tmp_path)


@pytest.mark.slow
def test_the_picture_shows_the_bounds(tmp_path):
    add(tmp_path, 0, 5)
    made = report(tmp_path)
    assert "with its bounds" not in (made.folder / "report.html").read_text()
    add(tmp_path, 5, 12)
    figures = tmp_path / "figures"
    made = report(tmp_path, figures=figures)
    page = (made.folder / "report.html").read_text()
    assert "against the number of seeds, with its bounds" in page
    assert (figures / "looks.png").stat().st_size > 1000


def test_a_margin_says_what_is_the_same(tmp_path):
    add(tmp_path, 0, 30)
    text = look(tmp_path, margin=0.1)
    assert re.search(r"within 10.0 points \(p \\?< 0.001\)", text), text
    assert "within" not in look(tmp_path, margin=0.005)
    for margin in (0, -1, float("nan"), 101):
        with pytest.raises(UserError, match="--margin"):
            report(tmp_path, margin=margin)
