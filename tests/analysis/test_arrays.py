"""The public statistics: as those of reports, and bad input is one line."""

import doctest
import pathlib

import numpy as np
import pytest

import cifar_flax as cf
from cifar_flax.analysis import arrays, statistics

A, B = [0.7, 0.71, 0.72, 0.7, 0.71], [0.6, 0.61, 0.6, 0.62, 0.6]


def test_the_examples_give_what_they_say():
    assert doctest.testmod(arrays).failed == 0
    page = pathlib.Path(__file__).parents[2] / "docs" / "comparing.md"
    found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert (found.failed, found.attempted) == (0, 7)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda x: dict(enumerate(x))])
def test_lists_arrays_and_dictionaries_are_the_same(kind):
    found = cf.compare(kind(A), kind(B))
    assert found == statistics.compare(dict(enumerate(A)), dict(enumerate(B)))
    assert found.test == "paired"
    assert cf.compare(kind(A), kind(B), paired=False).test == "Welch"


def test_images_are_known_by_predictions_or_by_their_number():
    right = [np.arange(100) < n for n in (70, 60)]
    pair = tuple(np.tile(one, (3, 1)) for one in right)
    with_right = cf.compare([0.7] * 3, [0.6] * 3, right=pair)
    with_size = cf.compare([0.7] * 3, [0.6] * 3, test_size=100)
    assert with_right.over_images >= with_right.half_width == with_size.half_width > 0
    assert cf.compare([0.7] * 3, [0.6] * 3).p == 1


def test_holm_takes_any_sequence():
    for kind in (list, tuple, np.array):
        assert cf.holm(kind([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert cf.holm([]) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cf.compare([0.7], B), "first has 1 seeds"),
        (lambda: cf.compare(A, [0.7, np.nan]), "second is .* finite numbers"),
        (lambda: cf.compare(A, ["x", "y"]), "second is .* give a list of numbers"),
        (lambda: cf.compare(A, B, right=([[1, 0]] * 5, [[1, 0]] * 5)), "give bool"),
        (lambda: cf.compare(A, B, test_size=0), "test_size is 0"),
        (lambda: cf.holm([0.5, 1.2]), "between 0 and 1"),
        (lambda: cf.holm(0.5), "p_values is 0.5"),
        (lambda: cf.seeds_needed(0, 0.1), "spread is 0"),
        (lambda: cf.seeds_needed(0.1, float("inf")), "size is inf"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(cf.UserError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)
