"""Intervals and tests against SciPy, published values, and repeated sampling."""

import numpy as np
import pytest
from scipy import stats

from cifar_flax.analysis.power import detectable, seeds_needed, smallest_shown
from cifar_flax.analysis.statistics import (
    ci95_of_mean,
    compare,
    holm,
    interval_of_accuracy,
    mcnemar,
    percent_with_interval,
    variance_over_images,
)
from cifar_flax.errors import UserError


def of_seeds(values, first=0):
    return dict(enumerate(map(float, values), start=first))


def test_interval_of_a_mean_by_hand():
    # Deviation 1, and 4.302653 is the 97.5 % point of t with two degrees of freedom.
    assert ci95_of_mean([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_mcnemar_takes_what_is_right_and_not_predictions():
    right = np.array([True, False])
    for other in (np.array([3, 7]), np.array([True])):
        with pytest.raises(UserError, match=r"give bool \[2\]"):
            mcnemar(right, other)


def test_one_value_shows_no_spread():
    assert ci95_of_mean([0.7]) is None


def test_intervals_hold_the_truth_95_times_in_100():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(4000, 4))
    held = [abs(sample.mean()) < ci95_of_mean(sample) for sample in samples]
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)
    shares = rng.binomial(2000, 0.7, 4000) / 2000
    ends = [interval_of_accuracy([share], 2000) for share in shares]
    held = [low < 0.7 < high for low, high in ends]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("images", [1, 2, 20, 10_000])
def test_the_interval_of_one_seed_is_wilsons(images):
    for right in {0, 1, images // 2, images}:
        expected = stats.binomtest(right, images).proportion_ci(method="wilson")
        found = interval_of_accuracy([right / images], images)
        assert found == pytest.approx(tuple(expected), abs=1e-6)


def test_equal_accuracies_of_seeds_differ_by_the_rest_of_an_image():
    low, high = interval_of_accuracy([0.7, 0.7, 0.7], 1000)
    half = 4.302653 * 0.001 / 3**0.5
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half))
    assert interval_of_accuracy([0.1, 0.2], 100) == (
        0.0,
        pytest.approx(0.785, abs=1e-3),
    )
    assert interval_of_accuracy([], 100) is None


def test_an_interval_is_written_with_both_ends_where_its_sides_differ():
    assert percent_with_interval(0.9321, (0.9306, 0.9336)) == "93.21 ± 0.15"
    text = percent_with_interval(1.0, interval_of_accuracy([1.0], 2))
    assert text == "100.00 (34.24 to 100.00)"


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


def test_a_verdict_is_about_the_means_that_rank():
    """Ten seeds of one model, and the five of them in which another one is better."""
    first = of_seeds([0.70, 0.71, 0.70, 0.72, 0.71, 0.80, 0.81, 0.80, 0.79, 0.80])
    second = of_seeds([0.71, 0.72, 0.71, 0.73, 0.72])
    found = compare(first, second)
    assert found.mean == pytest.approx(0.754 - 0.718)
    assert (found.test, found.counts, found.shared) == ("overlapping", (10, 5), 5)


def test_shared_seeds_make_the_interval_narrower():
    """The formula of partially overlapping samples by hand, and both of its ends."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.01, 12)
    first, second = (0.7 + common + rng.normal(0, 0.003, 12) for _ in range(2))
    counts, shared = (9, 9), 6
    found = compare(of_seeds(first[:9]), of_seeds(second[3:], first=3))
    s = [first[:9].std(ddof=1), second[3:].std(ddof=1)]
    r = np.corrcoef(first[3:9], second[3:9])[0, 1]
    variance = (s[0] ** 2 + s[1] ** 2 - 2 * r * s[0] * s[1] * shared / 9) / 9
    welch = stats.ttest_ind(first[:9], second[3:], equal_var=False)
    freedom = shared - 1 + (welch.df - shared + 1) * 6 / 18
    t = (first[:9].mean() - second[3:].mean()) / variance**0.5
    assert found.counts == counts
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    interval = welch.confidence_interval(0.95)
    assert found.half_width < (interval.high - interval.low) / 2


@pytest.mark.parametrize("correlation", [0, 0.3, 0.9])
def test_pairs_of_which_some_seeds_are_shared_err_in_one_of_twenty(correlation):
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        values = rng.normal(0, correlation**0.5, 15)
        values = values + rng.normal(0, (1 - correlation) ** 0.5, (2, 15))
        found = compare(of_seeds(values[0]), of_seeds(values[1, :6]))
        wrong += found.shown
    assert wrong / 400 < 0.083  # 0.05, and three standard errors


@pytest.mark.slow
def test_ties_of_a_few_seeds_show_no_difference():
    """Six equal configurations on few images; 100 studies, so at most 5 + 6.5 %."""
    rng = np.random.default_rng(1)
    for images in (5, 20, 50, 100):
        for seeds in (2, 3, 5):
            wrong = 0
            for _ in range(100):
                chance = rng.beta(9, 1, images)
                right = rng.random((6, seeds, images)) < chance
                runs = [of_seeds(one.mean(1)) for one in right]
                pairs = [(i, j) for i in range(6) for j in range(i)]
                found = [
                    compare(runs[i], runs[j], (right[i], right[j])) for i, j in pairs
                ]
                wrong += any(one.shown for one in holm(found))
            assert wrong <= 11, (images, seeds)
    # Nothing is known about how finely these accuracies are measured.
    assert compare(of_seeds([0.95, 0.95]), of_seeds([0.9, 0.9])).p == 1


def test_the_smallest_difference_that_can_be_shown_is_the_limit():
    """All seeds of each side agree, on 1,000 images."""
    for seeds in (2, 3, 5):
        least = smallest_shown(1000, seeds, 0.05)
        for gap, shown in ((int(1000 * least), False), (int(1000 * least) + 1, True)):
            right = [np.tile(np.arange(1000) < n, (seeds, 1)) for n in (500 + gap, 500)]
            found = compare(*(of_seeds(one.mean(1)) for one in right), tuple(right))
            assert found.shown is shown


def test_the_interval_over_images_is_never_the_narrower_one():
    rng = np.random.default_rng(0)
    for _ in range(200):
        right = tuple(rng.random((2, 2, 30)) < rng.random(30))
        found = compare(*(of_seeds(one.mean(1)) for one in right), right)
        assert found.over_images >= found.half_width


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


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("comparisons", [1, 15, 190])
def test_a_detectable_difference_is_shown_80_times_in_100(count, comparisons):
    """Of any number of seeds, also where SciPy's noncentral t is NaN or slow."""
    size = detectable(0.01, count, 0.05 / comparisons)
    rng, s = np.random.default_rng(0), 0.01 / 2**0.5
    first, second = rng.normal(size, s, (8000, count)), rng.normal(0, s, (8000, count))
    if count < 5:
        p = stats.ttest_ind(first, second, axis=1, equal_var=False).pvalue
    else:
        p = stats.ttest_rel(first, second, axis=1).pvalue
    assert np.mean(p < 0.05 / comparisons) == pytest.approx(0.8, abs=0.015)


def test_the_likely_spread_is_too_large_as_often_as_too_small():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.01, (2000, 2, 3))
    found = [compare(of_seeds(a), of_seeds(b)) for a, b in values]
    larger = [one.likely_spread > 0.01 * 2**0.5 for one in found]
    assert np.mean(larger) == pytest.approx(0.5, abs=0.05)


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
