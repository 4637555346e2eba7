"""Intervals against published values, and against repeated sampling."""

import numpy as np
import pytest
from scipy import stats

from cifar_flax.reports.statistics import (
    ci95_of_mean,
    ci95_of_share,
    difference_over_images,
    difference_over_seeds,
    seeds_needed,
)


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


FIRST = [0.71, 0.70, 0.72, 0.705, 0.70]
SECOND = [0.60, 0.61, 0.605, 0.59, 0.60]


@pytest.mark.parametrize("comparisons", [1, 10])
def test_difference_over_seeds_is_the_paired_t_interval(comparisons):
    level = 1 - 0.05 / comparisons
    expected = stats.ttest_rel(FIRST, SECOND).confidence_interval(level)
    found = difference_over_seeds(FIRST, SECOND, comparisons)
    assert found.mean - found.half_width == pytest.approx(expected.low)
    assert found.mean + found.half_width == pytest.approx(expected.high)
    assert found.shown


def test_seeds_needed_is_the_first_number_that_shows_the_difference():
    def half_width(count, spread):
        return stats.t.ppf(0.975, count - 1) * spread / count**0.5

    for spread in (0.001, 0.01, 0.05):
        count = seeds_needed(spread, 0.005)
        assert half_width(count, spread) <= 0.005
        assert count == 2 or half_width(count - 1, spread) > 0.005


def test_difference_over_images_is_mcnemars_exact_test():
    rng = np.random.default_rng(0)
    for gap in np.linspace(0, 0.1, 11):
        first = rng.random(500) < 0.7 + gap
        second = rng.random(500) < 0.7
        alone, other = (first & ~second).sum(), (second & ~first).sum()
        chance = stats.binomtest(alone, alone + other).pvalue
        found = difference_over_images(first, second)
        assert found.shown == (chance < 0.05)
        assert found.mean == pytest.approx(first.mean() - second.mean())


def test_networks_that_agree_on_every_image_do_not_differ():
    same = np.arange(20) % 3 == 0
    found = difference_over_images(same, same)
    assert (found.mean, found.half_width, found.shown) == (0, 0, False)


def test_corrected_comparisons_err_in_less_than_one_family_in_twenty():
    """Five architectures that are all alike, ten pairs, four seeds."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        runs = rng.normal(0.7, 0.01, size=(5, 4))
        pairs = [(i, j) for i in range(5) for j in range(i)]
        wrong += any(
            difference_over_seeds(runs[i], runs[j], 10).shown for i, j in pairs
        )
    assert wrong / 400 < 0.07  # 0.05, and three standard errors of 0.01


def test_the_best_of_many_that_are_alike_are_not_shown_to_differ():
    """Ten are chosen of 500 by the accuracies that are then compared, three seeds."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        runs = rng.normal(0.7, 0.01, size=(500, 3))
        best = runs[np.argsort(-runs.mean(1))[:10]]
        pairs = [(i, j) for i in range(10) for j in range(i)]
        wrong += any(
            difference_over_seeds(best[i], best[j], 45).shown for i, j in pairs
        )
    assert wrong / 100 < 0.07


def test_verdicts_name_the_better_one_and_what_would_show_more():
    better = difference_over_seeds(FIRST, SECOND)
    backwards = difference_over_seeds(SECOND, FIRST)
    assert better.verdict("convbn", "convnet") == (
        "convbn beats convnet by 10.6 +- 1.3 points (5 seeds)"
    )
    assert backwards.verdict("convnet", "convbn") == better.verdict("convbn", "convnet")
    unclear = difference_over_seeds([0.70, 0.71, 0.69], [0.69, 0.70, 0.705])
    assert unclear.verdict("a", "b").startswith("no difference shown between a and b")
    assert f"{unclear.needed} would be needed to show 0.5" in unclear.verdict("a", "b")


def test_one_seed_is_never_a_ranking():
    right = np.arange(1000) < 700
    found = difference_over_images(right, np.roll(right, 1) & (np.arange(1000) < 600))
    assert found.shown
    assert "beats" not in found.verdict("a", "b")
    assert "ranks these two networks only" in found.verdict("a", "b")
