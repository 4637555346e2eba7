"""Intervals and tests against SciPy, published values, and repeated sampling."""

import numpy as np
import pytest
from scipy import stats

from cifar_flax.analysis.statistics import (
    ci95_of_mean,
    ci95_of_share,
    compare,
    detectable,
    holm,
    mcnemar,
    seeds_needed,
    variance_over_images,
)


def of_seeds(values, first=0):
    return dict(enumerate(map(float, values), start=first))


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


def test_five_shared_seeds_are_compared_by_pairs():
    expected = stats.ttest_rel(FIRST, SECOND)
    interval = expected.confidence_interval(0.95)
    found = compare(of_seeds(FIRST), of_seeds(SECOND))
    assert (found.test, found.counts) == ("paired", (5, 5))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.mean - found.half_width == pytest.approx(interval.low)
    assert found.mean + found.half_width == pytest.approx(interval.high)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (of_seeds(FIRST[:4]), of_seeds(SECOND[:4])),
        (of_seeds(FIRST[:3]), of_seeds(SECOND)),
        (of_seeds(FIRST), of_seeds(SECOND, first=5)),  # no seed is shared
    ],
)
def test_fewer_shared_seeds_are_compared_by_welchs_test(first, second):
    values = [list(one.values()) for one in (first, second)]
    expected = stats.ttest_ind(*values, equal_var=False)
    interval = expected.confidence_interval(0.95)
    found = compare(first, second)
    assert (found.test, found.counts) == ("Welch", (len(first), len(second)))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.mean + found.half_width == pytest.approx(interval.high)


def test_only_shared_seeds_make_pairs():
    more = {**of_seeds(FIRST), 9: 0.1}
    expected = stats.ttest_rel(FIRST, SECOND)
    assert compare(more, of_seeds(SECOND)).p == pytest.approx(expected.pvalue)


def test_one_seed_is_not_compared():
    assert compare(of_seeds([0.7]), of_seeds(SECOND)) is None


def test_equal_results_show_no_difference():
    found = compare(of_seeds(FIRST), of_seeds(FIRST))
    assert (found.mean, found.half_width, found.p, found.shown) == (0, 0, 1, False)


def test_holm_is_the_procedure_of_the_books():
    """The reference rejects in order until the first failure."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        shifts = rng.choice([0, 0.02], 6)
        found = [
            compare(
                of_seeds(rng.normal(0.7 + s, 0.01, 5)),
                of_seeds(rng.normal(0.7, 0.01, 5)),
            )
            for s in shifts
        ]
        expected, failed = [False] * 6, False
        for rank, index in enumerate(np.argsort([one.p for one in found])):
            failed = failed or found[index].p * (6 - rank) >= 0.05
            expected[index] = not failed
        assert [one.shown for one in holm(found)] == expected


def test_seeds_needed_have_the_power_that_is_promised():
    """In a simulation, the planned number shows the difference 80 times in 100."""
    rng = np.random.default_rng(0)
    for spread, level in ((0.01, 0.05), (0.006, 0.05 / 15)):
        count = seeds_needed(spread, 0.005, level)
        gaps = rng.normal(0.005, spread, (4000, count))
        p = stats.ttest_1samp(gaps, 0, axis=1).pvalue
        assert np.mean(p < level) == pytest.approx(0.8, abs=0.03)
        fewer = rng.normal(0.005, spread, (4000, count - count // 4))
        assert np.mean(stats.ttest_1samp(fewer, 0, axis=1).pvalue < level) < 0.78


def test_a_detectable_difference_needs_the_seeds_that_there_are():
    size = detectable(0.01, 7, 0.05 / 15)
    assert seeds_needed(0.01, size, 0.05 / 15) == 7
    assert seeds_needed(0.01, 0.99 * size, 0.05 / 15) == 8


def test_more_seeds_than_anybody_trains_are_not_planned():
    assert seeds_needed(0.05, 1e-5, 0.05) is None
    found = compare(of_seeds(FIRST), of_seeds(SECOND))
    low, high = found.needed(0.005, comparisons=15)
    assert low < high  # the deviation of five pairs is uncertain


def test_the_upper_number_is_enough_four_times_in_five():
    """Over samples of five, the bound exceeds the deviation 80 times in 100."""
    rng = np.random.default_rng(1)
    right = seeds_needed(0.01, 0.005, 0.05)
    enough = []
    for _ in range(400):
        gaps = rng.normal(0.002, 0.01, 5)
        found = compare(of_seeds(0.7 + gaps), of_seeds(np.full(5, 0.7)))
        enough.append(found.needed(0.005, comparisons=1)[1] >= right)
    assert np.mean(enough) == pytest.approx(0.8, abs=0.06)


def test_the_interval_over_images_holds_the_truth_where_that_over_seeds_does_not():
    """Two networks with four seeds each, on 300 new images each time."""
    rng = np.random.default_rng(0)
    held, without = [], []
    for _ in range(400):
        ease = rng.normal(size=300)  # an image has the same difficulty for all seeds
        apart = 0.8 * rng.normal(size=300)  # easier for one network
        chance = [1 / (1 + np.exp(-2 * (ease + sign * apart))) for sign in (1, -1)]
        right = tuple(rng.random((4, 300)) < one for one in chance)
        found = compare(*(of_seeds(one.mean(1)) for one in right), right)
        held.append(abs(found.mean) < found.over_images)
        without.append(abs(found.mean) < found.half_width)
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)
    assert np.mean(without) < 0.85


def test_networks_that_agree_add_no_variance_over_images():
    same = np.tile(np.arange(20) % 3 == 0, (4, 1))
    assert variance_over_images(same, same) == 0


def test_mcnemar_is_the_exact_binomial_test():
    rng = np.random.default_rng(0)
    for gap in np.linspace(0, 0.1, 11):
        first = rng.random(500) < 0.7 + gap
        second = rng.random(500) < 0.7
        alone, other = (first & ~second).sum(), (second & ~first).sum()
        expected = stats.binomtest(alone, alone + other).pvalue
        assert mcnemar(first, second) == pytest.approx(expected)


def family(runs):
    """Returns whether each pair is shown to differ; runs [entries, seeds]."""
    pairs = [(i, j) for i in range(len(runs)) for j in range(i)]
    return holm([compare(of_seeds(runs[i]), of_seeds(runs[j])) for i, j in pairs])


@pytest.mark.parametrize("seeds", [3, 5])
def test_families_of_equals_err_in_less_than_one_of_twenty(seeds):
    """Five equal architectures have ten pairs."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        runs = rng.normal(0.7, 0.01, size=(5, seeds))
        wrong += any(found.shown for found in family(runs))
    assert wrong / 400 < 0.07  # 0.05, and three standard errors of 0.01


def test_the_best_of_many_that_are_alike_are_not_shown_to_differ():
    """The best ten of 500 equal entries with three seeds are compared."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(100):
        runs = rng.normal(0.7, 0.01, size=(500, 3))
        best = runs[np.argsort(-runs.mean(1))[:10]]
        wrong += any(found.shown for found in family(best))
    assert wrong / 100 < 0.07
