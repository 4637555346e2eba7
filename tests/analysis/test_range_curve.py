"""The suggestions from curves with known answers."""

import dataclasses

import matplotlib
import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.analysis.range_curve import METHODS, RangeResult
from cifar_flax.errors import UserError
from cifar_flax.training.lr_range import smooth

matplotlib.use("agg")
import matplotlib.pyplot as plt


def make_curve(noise=0.0, seed=0, shift=0.0, start=-5.0, stop=0.6):
    """Makes a loss that falls fastest at 0.01, is lowest at 0.3 and diverges at 3.

    In x = log10(rate): a logistic step down about -2, and a steep rise about 0.5;
    ``shift`` moves both.
    """
    x = np.linspace(start, stop, 400)
    u = x - shift
    losses = 2.3 - 1.5 / (1 + np.exp(-(u + 2) / 0.3)) + np.exp((u - 0.4) / 0.1)
    rng = np.random.default_rng(seed)
    return 10**x, losses + noise * rng.normal(size=x.shape)


def make_result(*curves, num_steps=None, beta=0.0):
    rates = curves[0][0]
    losses = np.stack([losses for _, losses in curves])
    seeds = tuple(range(len(curves)))
    return RangeResult(
        seeds, num_steps or len(rates) + 1, rates, losses, smooth(losses, beta)
    )


def test_suggestions_on_a_curve_with_known_answers():
    rates, losses = make_curve()
    result = make_result((rates, losses))
    lowest = rates[losses.argmin()]
    read = {method: result.suggest(method).item() for method in METHODS}
    assert read["steepest"] == pytest.approx(0.01, rel=0.05)
    assert read["minimum/10"] == pytest.approx(lowest / 10)
    # The steep wall on the right moves the lowest mean of 51 steps a little left.
    means = np.convolve(losses, np.ones(51) / 51, "valid")
    assert read["lowest"] == pytest.approx(rates[means.argmin() + 25], rel=1e-9)
    assert lowest / 1.4 < read["lowest"] < lowest
    # The loss falls from the first step to the lowest; this is the middle in log(rate).
    middle = 10 ** ((-5 + np.log10(lowest)) / 2)
    assert read["valley"] == pytest.approx(middle, rel=0.05)
    # The loss is flat between the steepest part and the divergence.
    assert 0.01 < read["slide"] <= lowest * 1.2


@pytest.mark.parametrize("seed", range(5))
def test_suggestions_stand_noise(seed):
    result = make_result(make_curve(0.1, seed), beta=0.9)
    read = {method: result.suggest(method).item() for method in METHODS}
    assert 0.003 < read["steepest"] < 0.06
    assert 0.005 < read["minimum/10"] < 0.12
    assert 1e-4 < read["valley"] < 0.3
    assert 0.03 < read["lowest"] < 0.8  # flat from 0.05 to 0.6, within the noise


def test_the_lowest_does_not_lag_as_smoothing_does():
    """In a V-shaped curve, an average that looks back finds the tip too late."""
    x = np.linspace(-5, 1, 175)
    curve = (10**x, np.abs(x + 1) + 1)
    result = make_result(curve, beta=0.98)
    assert np.log10(result.suggest("lowest").item()) == pytest.approx(-1, abs=0.05)
    assert np.log10(10 * result.suggest("minimum/10").item()) > -0.2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_a_loss_that_does_not_fall_shows_no_rate(method, slope):
    rates = np.geomspace(1e-5, 10, 100)
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=100)
        losses = 2.3 + 0.1 * noise + slope * np.linspace(0, 1, 100)
        result = make_result((rates, losses), beta=0.9)
        assert np.isnan(result.suggest(method)).all()
        consensus = result.consensus(method)
        assert consensus.rate is None
        assert "the model does not learn" in consensus.problem


def test_the_consensus_is_the_geometric_mean():
    shifts = (-0.15, 0.0, 0.15)
    result = make_result(*(make_curve(shift=shift) for shift in shifts))
    each = result.suggest("steepest")
    consensus = result.consensus("steepest")
    assert consensus.problem is None
    assert consensus.rate == pytest.approx(each.prod() ** (1 / 3), rel=0.05)
    assert consensus.spread == pytest.approx(10**0.3, rel=0.05)
    np.testing.assert_array_equal(consensus.rates, each)
    assert make_result(make_curve()).consensus().spread is None


def test_seeds_that_disagree_are_inconclusive():
    result = make_result(make_curve(), make_curve(shift=-1.0))
    consensus = result.consensus("steepest")
    assert consensus.rate is None
    assert "the seeds suggest 0.00098 to 0.01, a factor of 10.2" in consensus.problem


def test_a_seed_that_shows_no_rate_is_named():
    rates, losses = make_curve()
    result = make_result((rates, losses), (rates, np.full_like(losses, 2.3)))
    consensus = result.consensus()
    assert consensus.rate is None
    assert "no rate for 1 of 2 seeds (1)" in consensus.problem


def test_a_loss_that_still_falls_at_the_end_is_inconclusive():
    curve = make_curve(stop=-1.0)
    consensus = make_result(curve, num_steps=400).consensus()
    assert consensus.rate is None
    assert "still falls at the last rate, 0.1; raise end_lr" in consensus.problem
    stopped = make_result(curve, num_steps=500)  # the next loss was NaN
    assert stopped.consensus().rate is not None


def test_a_record_gives_the_curves_back(tmp_path):
    rates, losses = make_curve()
    cut = losses.copy()
    cut[300:] = np.nan
    result = make_result((rates, losses), (rates, cut))
    plain = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in dataclasses.asdict(result).items()
    }
    plain["seeds"] = list(plain["seeds"])
    records.write_range_test(tmp_path, records.RangeTest(**plain))
    again = RangeResult.from_record(records.read_range_test(tmp_path))
    for field in dataclasses.fields(result):
        ours, theirs = getattr(again, field.name), getattr(result, field.name)
        np.testing.assert_array_equal(ours, theirs)


def test_curves_end_where_their_replica_stopped():
    rates, losses = make_curve()
    cut = losses.copy()
    cut[300:] = np.nan
    result = make_result((rates, losses), (rates, cut))
    assert len(result.curve(1).losses) == 300
    assert np.isfinite(result.suggest("lowest")).all()


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match=r"no method 'guess'; .*valley"):
        make_result(make_curve()).suggest("guess")


def test_the_figure_shows_curves_and_suggestions():
    rates, losses = make_curve(0.02)
    cut = losses.copy()
    cut[350:] = np.nan
    result = make_result((rates, losses), (rates, cut), beta=0.9)
    figure, axis = plt.subplots()
    result.plot(axis)
    assert axis.get_xscale() == "log"
    # The ends are left out, ten steps and five, but no suggestion.
    found = [result.consensus(method).rate for method in METHODS]
    first = min(rate for rate in [rates[10], *found] if rate is not None)
    assert axis.get_xlim() == pytest.approx((first, rates[-6]))
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert "smoothed, mean and range of 2 seeds" in labels
    last = labels[-1] if None in found else ""
    for method, rate in zip(METHODS, found, strict=True):
        if rate is None:
            assert method in last.removeprefix("no rate by ").replace(",", "").split()
        else:
            assert f"rate by {method}: {rate:g}" in labels
            drawn = [
                line.get_xdata()[0] for line in axis.lines if len(line.get_xdata())
            ]
            assert any(x == pytest.approx(rate) for x in drawn)
    plt.close(figure)
