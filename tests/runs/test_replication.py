"""A run is trained again with fresh seeds."""

import numpy as np
import pytest
from scipy import stats

from cifar_flax.analysis.statistics import prediction_interval
from cifar_flax.errors import UserError
from cifar_flax.runs.replication import (
    Replication,
    compare_repetition,
    settings_to_repeat,
)
from cifar_flax.runs.session import run
from tests.runs.test_origin import DATA, dataset, go


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "run"
    go(folder, seeds=(3, 5), nesterov=True)
    return folder


def repeat(original, folder, data=DATA, **given):
    run(settings_to_repeat(original, given), folder, dataset=data)
    return compare_repetition(original, folder)


def test_it_is_trained_as_recorded_with_fresh_seeds(original, tmp_path):
    settings = settings_to_repeat(original, {})
    assert settings.seeds == (6, 7)
    assert settings.make_recipe().nesterov
    found = repeat(original, tmp_path / "again")
    assert found.differences == []
    assert len(found.before) == len(found.now) == 2
    whole = go(seeds=(6, 7), nesterov=True).record
    assert found.now == whole.test_accuracy
    low, high = found.interval
    assert found.agrees == (low <= np.mean(found.now) <= high)


@pytest.mark.slow
def test_what_differs_is_named(original, tmp_path):
    changed = dataset(4, seed=7)
    found = repeat(original, tmp_path / "again", changed, seeds=(9,), momentum=0.5)
    words = "\n".join(found.differences)
    assert "--momentum was None and is 0.5" in words
    assert "the data was a test (content " in words


def test_what_cannot_be_repeated_is_refused(original, tmp_path):
    with pytest.raises(UserError, match=r"seed 5 is one of that run .* --seeds=6"):
        settings_to_repeat(original, {"seeds": (8, 5)})
    with pytest.raises(UserError, match="holds no run"):
        settings_to_repeat(tmp_path, {})


def test_the_interval_holds_the_mean_of_further_seeds():
    """It covers 95 % of normal means, and has the formula's width."""
    values, count = [0.70, 0.72, 0.75], 5
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) * np.sqrt(1 / 3 + 1 / count)
    expected = np.mean(values) - half, np.mean(values) + half
    np.testing.assert_allclose(prediction_interval(values, count, 10_000), expected)
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2_000):
        seeds = 0.7 + 0.01 * rng.normal(size=3 + count)
        low, high = prediction_interval(seeds[:3], count, 10_000)
        inside += low <= seeds[3:].mean() <= high
    assert 0.935 < inside / 2_000 < 0.965
    assert prediction_interval([0.7], count, 100) is None
    assert Replication([0.7], [0.7], None, []).agrees is None
    assert prediction_interval([0.9, 1.0], 1, 10)[1] == 1.0
