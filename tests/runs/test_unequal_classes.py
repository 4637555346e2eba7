"""An accuracy stands beside that of the largest class, and is called what it is."""

import dataclasses
import io

import numpy as np
import pytest
import rich.console

from cifar_flax import records
from cifar_flax.analysis.predictions import largest_class
from cifar_flax.data import make_dataset
from cifar_flax.reports.page import report
from cifar_flax.show.console import ConsoleDisplay
from tests.conftest import make_split
from tests.runs.test_session import SETTINGS, go


def shown(folder, test_labels, **changes):
    """Returns what a run on some test labels prints."""
    train, labels = make_split(0, 120), np.array(test_labels)
    dataset = make_dataset(
        "tiny",
        train.images,
        train.labels,
        make_split(2, len(labels)).images,
        labels,
        tuple("abcd"),
        source="a test",
    )
    console = rich.console.Console(file=io.StringIO(), width=200)
    observers = [ConsoleDisplay(console)]
    settings = dataclasses.replace(SETTINGS, **{"epochs": 1, **changes})
    result = go(folder, settings, dataset=dataset, observers=observers)
    return console.file.getvalue(), result


@pytest.mark.slow
def test_unequal_classes_are_beside_the_accuracy_everywhere(tmp_path):
    text, result = shown(tmp_path / "run", [2] * 18 + [0, 1])
    header, _, end = text.partition("epoch 1/1")
    assert "largest class  90.00 % of the test images are c" in header
    assert "largest class  90.00 % of the test images" in end
    assert records.read_result(tmp_path / "run").largest_class == 0.9
    assert "(largest class 90.00 %)" in result._repr_html_()
    made = report(tmp_path)
    words = "Always answering the largest class, c, would have a test accuracy of 90.00"
    assert words in made.markdown
    assert words in (tmp_path / "report.html").read_text()
    assert words in made._repr_html_()
    assert words in (tmp_path / "ranking.tex").read_text()


@pytest.mark.slow
def test_equal_classes_are_not(tmp_path):
    text, result = shown(tmp_path / "run", [0, 1, 2, 3] * 4 + [1])
    assert "largest" not in text + result._repr_html_()
    assert result.record.largest_class is None
    assert "largest" not in report(tmp_path).markdown


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ([5, 5], None),
        ([5, 6, 5], None),  # as equal as 16 images can be
        ([5, 7, 5], (1, 7 / 17)),
        ([0, 0, 3], (2, 1.0)),
        ([], None),
    ],
)
def test_classes_as_equal_as_whole_numbers_allow_are_equal(sizes, found):
    assert largest_class(sizes) == found


@pytest.mark.slow
def test_the_accuracy_on_mixed_images_is_called_so(tmp_path):
    text, _ = shown(tmp_path / "mixed", [0, 1, 2, 3], epochs=2, mixup=1.0)
    other, _ = shown(tmp_path / "plain", [0, 1, 2, 3], epochs=2)
    assert text.count("  accuracy on mixed images ") == 2
    assert "mixed images" not in other
    report(tmp_path, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("mixed with others and count by their own label") == 1
    assert "(augmented or mixed images)" in page
