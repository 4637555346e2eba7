"""The simulations of docs/comparing.md run, and roughly agree with its tables."""

import numpy as np
import pytest

from tests.reports import simulate_choosing as simulate


def rng():
    return np.random.default_rng(0)


def test_a_lucky_seed_took_the_rank_and_does_not_any_more():
    before, now = simulate.lucky(rng(), 0, 60)
    assert before > 0.6
    assert now == 0


def test_other_seeds_than_those_that_choose_are_not_biased():
    (bias, _), (without, cover) = simulate.curse(rng(), 0.9, 20)
    assert bias == pytest.approx(0.005, abs=0.002)
    assert without == pytest.approx(0, abs=0.002)
    assert cover > 0.75


def test_a_baseline_named_late_errs_more_often():
    before, after = simulate.named_late(rng(), 10, 300)
    assert before < 0.08 < after + 0.02


def test_a_few_shared_seeds_show_no_false_difference():
    assert simulate.overlapping(rng(), (10, 5), 5, 0.3, 300) < 0.09


def test_80_per_cent_is_80_per_cent_at_three_seeds():
    true, estimated = simulate.power(rng(), 3, 60)
    assert true == pytest.approx(0.8, abs=0.16)
    assert estimated == pytest.approx(0.8, abs=0.16)


def test_the_upper_number_of_seeds_is_enough():
    _, high, right = simulate.planned(rng(), 3, 80)
    assert high > 0.75
    assert right == pytest.approx(0.8, abs=0.14)
