"""With any damage to records, a report is made and names the damage."""

import io
import json
import os
import re
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.reports.page import write_html, write_markdown
from cifar_flax.reports.studies import read_studies
from tests.damage import bounded, changed, damaged
from tests.reports.made import make_run

JSON_FILES = (records.CONFIG, records.RESULT, records.RANGE_TEST, records.METRICS)


def make_range_test(folder, count=2, steps=60):
    """Makes a run's ``lr_find.json`` in which one curve ends early."""
    rates = np.geomspace(1e-4, 1, steps)
    losses = np.tile(2 - np.log10(rates / rates[0]) / 4, (count, 1))
    losses[0, -10:] = np.nan
    curves = losses.tolist()  # NaN is written as null
    records.write_range_test(
        folder,
        records.RangeTest(
            model="convnet",
            seeds=list(range(count)),
            num_steps=steps,
            rates=rates.tolist(),
            losses=curves,
            smoothed=curves,
            seconds=1.0,
            compile_seconds=1.0,
        ),
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run of two seeds with a range test, and another run that stays undamaged."""
    folder = tmp_path_factory.mktemp("sound")
    make_range_test(make_run(folder / "damaged", momentum=None))
    make_run(folder / "whole", momentum=0.9)
    return folder


@pytest.fixture
def runs(sound, tmp_path):
    """Returns a function that replaces a file of a run."""
    folder = shutil.copytree(sound, tmp_path / "changed")

    def change(name, content):
        (folder / "damaged" / name).write_bytes(content)
        return folder

    return change


def assert_reported(folder, figures=False):
    """Asserts that the report contains the run, or leaves it out with one line."""
    studies, left_out = read_studies(folder)
    pages = [write_markdown(studies, left_out)]
    pages += [write_html(studies, left_out)] if figures else []
    entries = [run for s in studies for e in s.entries for run in e.runs]
    assert len(entries) + len(left_out) == 2
    assert folder / "whole" in [run.folder for run in entries]
    for line in left_out:
        assert str(folder / "damaged") in line
        assert len(line) < len(str(folder)) + 300
        assert line in re.sub(r"\\(.)", r"\1", pages[0])  # as it reads
    for page in pages:
        page.encode()


def parse(name, content):
    """Returns the JSON of a file, or a list of the lines of the metrics."""
    if name == records.METRICS:
        return [json.loads(line) for line in content.splitlines()]
    return json.loads(content)


def unparse(name, value):
    if name == records.METRICS and isinstance(value, list):
        return "".join(json.dumps(line) + "\n" for line in value).encode()
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", JSON_FILES)
def test_any_value_in_a_record_is_used_or_named(sound, runs, name):
    value = parse(name, (sound / "damaged" / name).read_text())

    @bounded(40)
    @given(changed(value))
    def check(value):
        assert_reported(runs(name, unparse(name, value)))

    check()


def test_a_record_may_lack_any_setting(sound, runs):
    value = parse(records.CONFIG, (sound / "damaged" / records.CONFIG).read_text())
    for name in value["settings"]:
        fewer = {n: v for n, v in value["settings"].items() if n != name}
        changed = {**value, "settings": fewer}
        assert_reported(runs(records.CONFIG, unparse(records.CONFIG, changed)))


ARRAYS = ("logits", "labels", "seeds", "images", "indices")

types = st.sampled_from(
    [*("f2", "f4", "f8", ">f4", "i1", "i4", "i8", "u1", "u8", "?"), "c8", "U2", "M8[s]"]
)
shapes = st.one_of(
    st.sampled_from([(2, 200, 3), (200,), (2,), (1, 4, 4, 3), (1,), (0,), ()]),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
)
fills = st.sampled_from([0, 1, 2, 3, 199, 200, -1, 2**31 - 1, 1e39, np.nan, -np.inf])


@st.composite
def other_array(draw, array):
    """Returns an array of another dtype and shape, or with one changed number."""
    fill = draw(fills)
    with np.errstate(all="ignore"):
        if draw(st.booleans()):
            array = np.array(array)
            place = draw(st.integers(0, array.size - 1))
            array.flat[place] = np.float64(fill).astype(array.dtype)
            return array
        return np.full(draw(shapes), fill).astype(draw(types))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARRAYS)
def test_any_array_in_the_predictions_is_used_or_named(sound, runs, name):
    arrays = records.read_predictions(sound / "damaged")

    @bounded(30)
    @given(st.one_of(other_array(arrays[name]), st.none()))
    def check(array):
        content = io.BytesIO()
        changed = {**arrays, name: array}
        np.savez(content, **{n: a for n, a in changed.items() if a is not None})
        assert_reported(runs(records.PREDICTIONS, content.getvalue()))

    check()


@pytest.mark.slow
def test_the_oddest_values_that_a_run_can_have_are_drawn(sound, runs):
    config, result, range_test, lines = (
        parse(name, (sound / "damaged" / name).read_text())
        for name in (
            records.CONFIG,
            records.RESULT,
            records.RANGE_TEST,
            records.METRICS,
        )
    )
    config["settings"]["note"] = "$a_$ \x00 <b> | \n \u732b $"
    config["recipe"]["phases"] = [{"kind": "mine", "$_$": None, "epochs": 2}]
    config["schedule"] = {"epochs": [0.0], "rates": [1e38]}
    odd = {
        "flops_per_image": 1e38,
        "train_seconds": 1e-30,
        "device": "",
        "layers": None,
    }
    lines[0]["train_loss"], lines[1]["train_loss"] = [1e38, None], [-1e38, 0]
    curve = [[1e38, None], [0.0, -1e38]]
    two = {
        "num_steps": 1000,
        "rates": [1e-30, 1e30],
        "losses": curve,
        "smoothed": curve,
    }
    runs(records.CONFIG, unparse(records.CONFIG, config))
    runs(records.RESULT, unparse(records.RESULT, {**result, **odd}))
    runs(records.RANGE_TEST, unparse(records.RANGE_TEST, {**range_test, **two}))
    folder = runs(records.METRICS, unparse(records.METRICS, lines))
    assert read_studies(folder)[1] == []
    assert_reported(folder, figures=True)


def test_what_no_run_recorded_is_done_without(sound, runs):
    """Such as the operations of a model, or the schedule."""
    config, result = (
        parse(name, (sound / "damaged" / name).read_text())
        for name in (records.CONFIG, records.RESULT)
    )
    del config["schedule"]
    runs(records.CONFIG, unparse(records.CONFIG, config))
    folder = runs(
        records.RESULT, unparse(records.RESULT, {**result, "flops_per_image": 0})
    )
    assert read_studies(folder)[1] == []
    assert_reported(folder, figures=True)


def test_a_folder_whose_name_is_no_text_can_be_named(sound, tmp_path):
    shutil.copytree(sound / "whole", tmp_path / "whole")
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    (folder / records.CONFIG).touch()
    studies, left_out = read_studies(tmp_path)
    for page in write_markdown(studies, left_out), write_html(studies, left_out):
        assert rb"\udcff" in page.encode()


@pytest.mark.parametrize("name", [*JSON_FILES, records.PREDICTIONS])
def test_any_bytes_in_a_file_are_used_or_named(sound, runs, name):
    @bounded(25)
    @given(damaged((sound / "damaged" / name).read_bytes()))
    def check(content):
        assert_reported(runs(name, content))

    check()


DEEP = b'{"format": 1, "kind": ' + b"[" * 10**5 + b"\n"
CONTENTS = {
    "deep": DEEP,
    "not UTF-8": b'"\xff"\n',
    "BOM": b"\xef\xbb\xbf{}\n",
    "": b"\n",
}


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("case", CONTENTS)
def test_texts_that_are_no_record_are_named(runs, name, case):
    assert_reported(runs(name, CONTENTS[case]))


@pytest.mark.parametrize("name", [*JSON_FILES[1:], records.PREDICTIONS])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_plain_file_is_named_and_not_waited_for(runs, name, make):
    folder = runs(name, b"")
    (folder / "damaged" / name).unlink()
    make(folder / "damaged" / name)
    assert_reported(folder)


def npy_header(shape):
    """Returns the header of a float32 array, without content."""
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def test_arrays_that_would_fill_the_memory_are_refused(runs, monkeypatch):
    monkeypatch.setattr(records, "MAX_ARRAYS", 2**20)
    claims, zeros = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(claims, "w") as archive:
        archive.writestr("logits.npy", npy_header((10, 10**9, 100)))
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", npy_header((1, 2**20, 1)) + bytes(2**22))
    for content in (claims, zeros):
        folder = runs(records.PREDICTIONS, content.getvalue())
        assert_reported(folder)
        with pytest.raises(UserError, match=r"unpacks to|llocate"):
            records.read_predictions(folder / "damaged")
