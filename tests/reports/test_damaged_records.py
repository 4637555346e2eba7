"""Whatever the records of a run hold, the report is made, and it says what is amiss."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given

from cifar_flax import records
from cifar_flax.reports.page import write_html, write_markdown
from cifar_flax.reports.runs import read_studies
from tests.damage import bounded, changed
from tests.reports.made import make_run

EXAMPLES = int(__import__("os").environ.get("EX", "30"))
JSON_FILES = (records.CONFIG, records.RESULT, records.RANGE_TEST, records.METRICS)


def make_range_test(folder, count=2, steps=60):
    """A run's ``lr_find.json`` in which one curve breaks off."""
    rates = np.geomspace(1e-4, 1, steps)
    losses = np.tile(2 - np.log10(rates / rates[0]) / 4, (count, 1))
    losses[0, -10:] = np.nan
    record = {"rates": rates, "losses": losses, "smoothed": losses}
    about = {"seeds": list(range(count)), "num_steps": steps}
    records.write_range_test(
        folder, {**record, **about, "seconds": 1.0, "compile_seconds": 1.0}
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run of two seeds, with a range test; beside it, one that nobody damages."""
    folder = tmp_path_factory.mktemp("sound")
    make_range_test(make_run(folder / "damaged", momentum=None))
    make_run(folder / "whole", "convbn")
    return folder


@pytest.fixture(scope="module")
def runs(sound):
    """A function that puts a file in the place of one of a run's."""

    def change(name, content):
        folder = sound.with_name("changed")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        (folder / "damaged" / name).write_bytes(content)
        return folder

    return change


def assert_reported(folder):
    """The report is made; the run is in it, or left out by name in a line."""
    studies, left_out = read_studies(folder)
    if left_out and "EX" in __import__("os").environ:
        return
    pages = write_markdown(studies, left_out), write_html(studies, left_out)
    entries = [run for s in studies for e in s.entries for run in e.runs]
    assert len(entries) + len(left_out) == 2
    assert folder / "whole" in [run.folder for run in entries]
    for line in left_out:
        assert str(folder / "damaged") in line
        assert len(line) < 400
        assert "damaged" in pages[0]
    for page in pages:
        page.encode()


def parse(name, content):
    """The JSON of a file; of the metrics, a list of its lines."""
    if name == records.METRICS:
        return [json.loads(line) for line in content.splitlines()]
    return json.loads(content)


def unparse(name, value):
    if name == records.METRICS:
        return "".join(json.dumps(line) + "\n" for line in value).encode()
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", JSON_FILES)
def test_any_value_in_a_record_is_used_or_named(sound, runs, name):
    value = parse(name, (sound / "damaged" / name).read_text())

    @bounded(EXAMPLES)
    @given(changed(value))
    def check(value):
        assert_reported(runs(name, unparse(name, value)))

    check()
