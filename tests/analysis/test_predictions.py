"""Calibration and confusion against their definitions."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from cifar_flax.analysis.predictions import (
    BINS,
    confidently_wrong,
    confusion,
    converged,
    mean_of_seeds,
    recalls_of,
    score,
)


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(scale=3, size=(2, 400, 4)).astype(np.float32)


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 4, 400)


def test_scores_by_their_definitions(logits, labels):
    found = score(logits, labels).calibration
    nll = brier = 0.0
    bins = [[] for _ in range(BINS)]
    for replica in logits.astype(np.float64):
        for row, label in zip(replica, labels, strict=True):
            p = np.exp(row) / np.exp(row).sum()
            nll -= np.log(p[label]) / 800
            brier += sum((p[k] - (k == label)) ** 2 for k in range(4)) / 800
            bins[int(p.max() * BINS)].append((p.max(), p.argmax() == label))
    gaps = [len(b) * abs(np.mean(b, 0)[0] - np.mean(b, 0)[1]) for b in bins if b]
    assert found.nll == pytest.approx(nll)
    assert found.brier == pytest.approx(brier)
    assert found.ece == pytest.approx(sum(gaps) / 800)
    assert found.share.sum() == pytest.approx(1)


def test_probabilities_that_are_true_are_calibrated():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(1, 50_000, 3))
    cumulative = softmax(logits.astype(np.float64), axis=-1)[0].cumsum(-1)
    labels = (rng.random((50_000, 1)) > cumulative).sum(-1)
    assert score(logits, labels).calibration.ece < 0.01
    assert score(3 * logits, labels).calibration.ece > 0.1


def test_sure_and_right_scores_perfectly():
    labels = np.arange(4)
    found = score(1000 * np.eye(4)[None], labels).calibration
    assert (found.ece, found.nll, found.brier) == (0, 0, 0)


def test_confusion_counts_what_is_taken_for_what(logits, labels):
    shares = confusion(logits, labels)
    predicted = logits.argmax(-1)
    for i in range(4):
        for j in range(4):
            assert shares[i, j] == pytest.approx(
                (predicted[:, labels == i] == j).mean()
            )
    assert not confusion(logits[:, :1], labels[:1])[(labels[0] + 1) % 4].any()


def test_the_surest_mistakes_come_first(logits, labels):
    found = confidently_wrong(logits, labels, 10)
    mean = softmax(logits.astype(np.float64), axis=-1).mean(0)
    assert (mean[found].argmax(-1) != labels[found]).all()
    sure = mean[found].max(-1)
    assert (np.diff(sure) <= 0).all()
    wrong = mean.argmax(-1) != labels
    assert sure[-1] >= np.sort(mean[wrong].max(-1))[-10]
    assert len(confidently_wrong(np.eye(3)[None], np.arange(3), 5)) == 0


def test_scores_of_two_runs_add_up_to_those_of_both(logits, labels):
    logits = np.concatenate([logits, np.full((1, 400, 4), np.nan, np.float32)])
    both = score(logits[:1], labels) + score(logits[1:], labels)
    expected, found = score(logits[:2], labels).calibration, both.calibration
    for name in ("confidence", "accuracy", "share", "ece", "nll", "brier"):
        assert getattr(found, name) == pytest.approx(
            getattr(expected, name), nan_ok=True
        )
    assert score(logits[2:], labels).calibration is None


def test_a_mean_is_over_the_seeds_that_have_probabilities(logits):
    every = softmax(logits.astype(np.float64), axis=-1)
    np.testing.assert_allclose(mean_of_seeds(every), every.mean(0))
    every[0, 3] = np.nan
    every[:, 5] = np.nan
    found = mean_of_seeds(every)
    np.testing.assert_allclose(found[3], every[1, 3])
    assert np.flatnonzero(np.isnan(found).any(-1)).tolist() == [5]


@pytest.mark.parametrize(
    ("odd", "counts"), [(np.nan, False), (np.inf, False), (-np.inf, True)]
)
def test_a_probability_of_zero_is_no_divergence(logits, odd, counts):
    logits[1, 7, 2] = odd
    assert converged(logits).tolist() == [True, counts]
    with np.errstate(invalid="ignore"):
        found = softmax(logits, axis=-1)
    assert np.isfinite(found).all((1, 2)).tolist() == [True, counts]


def test_recalls_are_the_accuracies_of_the_classes_over_seeds():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 200, 4)), rng.integers(0, 3, 200)
    found = recalls_of(logits, labels)
    assert [label for label, _, _ in found] == [0, 1, 2]  # the last has no images
    for label, mean, ends in found:
        each = [(one[labels == label].argmax(1) == label).mean() for one in logits]
        half = stats.t.ppf(0.975, 2) * np.std(each, ddof=1) / np.sqrt(3)
        assert mean == pytest.approx(np.mean(each))
        expected = max(0, np.mean(each) - half), np.mean(each) + half
        assert ends == pytest.approx(expected)
