"""Intervals against published values, and against repeated sampling."""

import numpy as np
import pytest

from cifar_flax.reports.statistics import ci95_of_mean, ci95_of_share


def test_interval_of_a_mean_by_hand():
    # Deviation 1, and 4.302653 is the 97.5 % point of t with two degrees of freedom.
    assert ci95_of_mean([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_one_value_shows_no_spread():
    assert ci95_of_mean([0.7]) is None


def test_intervals_hold_the_truth_95_times_in_100():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(4000, 4))
    held = [abs(sample.mean()) < ci95_of_mean(sample) for sample in samples]
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)
    shares = rng.binomial(2000, 0.7, 4000) / 2000
    held = [abs(share - 0.7) < ci95_of_share(share, 2000) for share in shares]
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)
