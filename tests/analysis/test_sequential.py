"""Tests over several looks, against published values and drawn sequences."""

import functools

import numpy as np
import pytest
from scipy import stats

from cifar_flax.analysis.sequential import (
    Plan,
    any_look_level,
    any_look_p,
    half_width,
    planned_looks,
    same_within,
    spending_levels,
)
from cifar_flax.analysis.statistics import compare

EVERY = tuple(range(5, 31))  # a look at each number of seeds


@functools.cache
def drawn(mean=0.0, tries=20_000):
    """p-values of t-tests of the first n of 30 normal values, [tries, 26] from 5 on."""
    values = np.random.default_rng(0).normal(mean, 1, (tries, 30))
    counts = np.arange(1, 31)
    means = values.cumsum(1) / counts
    squares = (values**2).cumsum(1) - counts * means**2
    with np.errstate(divide="ignore", invalid="ignore"):
        t = means / np.sqrt(squares / (counts - 1) / counts)
    return 2 * stats.t.sf(abs(t[:, 4:]), counts[4:] - 1)


def test_levels_of_looks_at_every_number_of_seeds():
    levels = dict(zip(EVERY, spending_levels(EVERY), strict=True))
    published = {10: 0.00047, 15: 0.0035, 20: 0.0094, 25: 0.0173, 30: 0.0262}
    assert levels[5] < 1e-5
    for count, level in published.items():
        assert levels[count] == pytest.approx(level, rel=0.03), count


@pytest.mark.parametrize(
    ("most", "level"),
    [
        *((10, 0.0176), (20, 0.0099), (30, 0.0077)),
        pytest.param(50, 0.0059, marks=pytest.mark.slow),
    ],
)
def test_the_smallest_p_of_any_look(most, level):
    assert any_look_level(most) == pytest.approx(level, rel=0.015)
    assert any_look_p(any_look_level(most), most) == pytest.approx(0.05, rel=1e-3)


def test_one_look_is_one_test():
    for p in (1e-12, 1e-4, 0.03, 1.0):
        assert any_look_p(p, 8, 8) == pytest.approx(p, rel=0.01)
        assert Plan((8,), 8).p([p]) == pytest.approx(min(p, 0.999), rel=0.01, abs=1e-8)
    assert spending_levels((8,)) == (pytest.approx(0.05, rel=1e-3),)


@pytest.mark.parametrize(
    "looks",
    [
        pytest.param(EVERY, marks=pytest.mark.slow),
        *((5, 10, 15, 20, 25, 30), (10, 30)),
    ],
)
def test_planned_looks_are_wrong_in_five_of_a_hundred(looks):
    ps = drawn()[:, [count - 5 for count in looks]]
    crossed = (ps <= spending_levels(looks)).any(1)
    assert crossed.mean() == pytest.approx(0.05, abs=0.005)
    # The p-value agrees with the bounds, and with the error at other levels.
    plan = Plan(looks, 30)
    found = np.array([plan.p(list(row)) for row in ps[:1500]])
    assert np.mean((found <= 0.05) == crossed[:1500]) > 0.999
    assert (found <= 0.2).mean() == pytest.approx(0.2, abs=0.035)


def test_looking_at_any_time_until_it_is_shown_is_wrong_in_five_of_a_hundred():
    smallest = drawn().min(1)
    assert (smallest <= any_look_level(30)).mean() == pytest.approx(0.05, abs=0.005)
    assert (smallest <= 0.05).mean() > 0.2  # what would be claimed without
    ps = np.array([any_look_p(p, 30) for p in smallest[:2000]])
    for level in (0.01, 0.1, 0.5):
        assert (ps <= level).mean() == pytest.approx(level, abs=0.025)


def test_more_looks_or_a_smaller_p_never_surprise():
    plan = Plan(planned_looks(), 30)
    assert plan.looks == (5, 10, 15, 20, 25, 30)
    assert planned_looks(12) == (5, 10, 12)
    history = [0.3, 0.001, 0.2, 0.04]
    found = [plan.p(history[: n + 1]) for n in range(4)]
    assert found == sorted(found, reverse=True)
    assert Plan().p([0.3, 0.001, 0.2]) == any_look_p(0.001, 30)
    for both in (plan, Plan(), Plan(most=35, first=4)):
        ps = [both.p([p]) for p in np.geomspace(1e-15, 1, 40)]
        assert ps == sorted(ps)
        assert 0 <= ps[0] < 1e-3
        assert ps[-1] == pytest.approx(1, abs=1e-6)


def of(values):
    return dict(enumerate(map(float, values)))


def test_repeated_intervals_hold_together():
    rng, held, plan = np.random.default_rng(1), 0, Plan(planned_looks(), 30)
    for _ in range(500):
        gaps, zero = rng.normal(0, 0.01, 30), np.zeros(30)
        history = []
        for look in plan.looks:
            history.append(compare(of(gaps[:look]), of(zero[:look])))
            judged = plan.judge(history)
            if abs(judged.mean) > judged.half_width:
                assert judged.shown
                break
            assert not judged.shown
        else:
            held += 1
    assert held / 500 == pytest.approx(0.95, abs=0.03)
    assert judged.looks <= 6
    assert judged.most == 30


def test_within_a_margin_means_that_the_interval_is():
    found = compare(
        of([0.70, 0.71, 0.72, 0.73, 0.74]), of([0.70, 0.71, 0.73, 0.72, 0.74])
    )
    for level in (0.05, 0.003):
        edge = abs(found.mean) + half_width(found, level)
        assert same_within(found, edge) == pytest.approx(level)
    assert half_width(found, 0.05) == pytest.approx(found.half_width)
    assert same_within(found, abs(found.mean) / 2 + 1e-9) > 0.5
    equal = compare(of([0.7] * 5), of([0.7] * 5))
    assert same_within(equal, 0.01) == 1  # without a number of images
    assert (
        same_within(compare(of([0.7] * 5), of([0.7] * 5), images=10_000), 0.01) < 1e-4
    )
