"""The best of n trials: against all draws, one by one, and by simulation."""

import itertools

import numpy as np
import pytest

from cifar_flax.analysis.best_of import (
    curve_of,
    difference_of,
    expected_best,
    reached_by,
)


@pytest.mark.parametrize(
    "values", [[0.3, 0.1, 0.7, 0.2], [0.5, 0.5, 0.2, 0.9, 0.9], [0.4], [0.0, 1.0]]
)
def test_the_expected_best_is_the_mean_over_all_draws(values):
    """All N^n draws with replacement, each with its maximum."""
    wanted = [
        np.mean([max(draw) for draw in itertools.product(values, repeat=n)])
        for n in range(1, len(values) + 1)
    ]
    np.testing.assert_allclose(expected_best(values), wanted, rtol=1e-12)


def test_the_expected_best_of_uniform_values_is_that_of_the_textbook():
    """n / (n + 1) for independent uniform variables."""
    values = (np.arange(1_000) + 0.5) / 1_000
    found = expected_best(values)[:20]
    n = np.arange(1, 21)
    np.testing.assert_allclose(found, n / (n + 1), atol=1e-3)


def test_a_curve_rises_from_the_mean_within_its_interval():
    values = np.random.default_rng(1).beta(5, 2, 30)
    curve = curve_of(values)
    assert curve.best[0] == pytest.approx(values.mean())
    assert (np.diff(curve.best) > 0).all()
    assert curve.best[-1] < values.max()
    assert (curve.low <= curve.best).all()
    assert (curve.best <= curve.high).all()
    assert (curve.high <= 1).all()
    # The best trial of all may not be the best that there is.
    assert curve.high[-1] > values.max()
    again = curve_of(values)
    assert (again.low == curve.low).all()


def test_equal_values_have_no_width():
    curve = curve_of([0.5] * 7)
    for ends in curve:
        np.testing.assert_allclose(ends, 0.5)


@pytest.mark.slow
def test_the_interval_of_a_small_search_covers():
    """20 trials tell of the best of 10, in a skewed case."""
    rng = np.random.default_rng(2)
    true = np.mean(rng.beta(5, 2, (200_000, 10)).max(1))
    ends = [curve_of(rng.beta(5, 2, 20)) for _ in range(300)]
    covered = np.mean([one.low[9] <= true <= one.high[9] for one in ends])
    assert 0.88 <= covered <= 0.99


def test_a_difference_pairs_the_trials():
    rng = np.random.default_rng(3)
    shared = rng.normal(size=40)
    first, second = 0.1 * shared + 0.02, 0.1 * shared
    curve = difference_of(first, second)
    np.testing.assert_allclose(curve.best, 0.02)
    np.testing.assert_allclose([curve.low, curve.high], 0.02)  # not that of one alone
    turned = difference_of(second, first)
    np.testing.assert_allclose(turned.low, -curve.high)


def test_what_a_search_reached_never_falls():
    assert reached_by([0.3, 0.1, 0.7, 0.2]).best.tolist() == [0.3, 0.3, 0.7, 0.7]
    assert reached_by([0.3]).low is None
