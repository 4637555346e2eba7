"""Metrics beside their definitions, written as loops over images and classes."""

import numpy as np
import pytest

from cifar_flax.analysis.metrics import METRICS, Metric, check_metric, measure
from cifar_flax.errors import UserError

RNG = np.random.default_rng(0)
# Of seven classes, one has no image, and one is never answered; the others are unequal.
LABELS = RNG.choice(7, 300, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0]).astype(np.int32)
LOGITS = RNG.normal(size=(300, 7)).astype(np.float32)
LOGITS[np.arange(300), LABELS] += 1.0
LOGITS[:, 5] = -9.0


def answers(logits):
    return [max(range(len(row)), key=lambda k: (row[k], -k)) for row in logits.tolist()]


def by_hand(name, logits, labels):
    """Returns a metric by its definition."""
    found, labels = answers(logits), labels.tolist()
    pairs = list(zip(found, labels, strict=True))
    if name == "balanced_accuracy":
        recalls = [
            sum(f == k for f, label in pairs if label == k) / labels.count(k)
            for k in set(labels)
        ]
        return sum(recalls) / len(recalls)
    if name == "macro_f1":
        every = []
        for k in {*labels, *found}:
            hits = sum(f == label == k for f, label in pairs)
            precision = hits / found.count(k) if k in found else 0
            recall = hits / labels.count(k) if k in labels else 0
            both = precision + recall
            every.append(2 * precision * recall / both if both else 0)
        return sum(every) / len(every)
    if name == "top5":
        ranked = [
            sorted(range(len(row)), key=lambda k, row=row: (-row[k], k))[:5]
            for row in logits.tolist()
        ]
        return np.mean(
            [label in row for row, label in zip(ranked, labels, strict=True)]
        )
    shares = np.exp(logits.astype(float))
    sure = (shares / shares.sum(1, keepdims=True)).max(1)
    gaps = 0.0
    for low in range(15):
        inside = [
            n
            for n, p in enumerate(sure)
            if low <= p * 15 and (p * 15 < low + 1 or low == 14)
        ]
        if inside:
            right = np.mean([found[n] == labels[n] for n in inside])
            gaps += len(inside) / len(labels) * abs(right - np.mean(sure[inside]))
    return gaps


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    "logits",
    [LOGITS, np.zeros_like(LOGITS), 20 * LOGITS, LOGITS.round()],
    ids=["some", "equal", "sure", "ties"],
)
def test_a_named_metric_is_its_definition(name, logits):
    found = METRICS[name].function(logits, LABELS)
    assert found == pytest.approx(by_hand(name, logits, LABELS), abs=1e-9)
    assert 0 <= found <= 1


def test_an_answer_that_ignores_the_image_gains_nothing_by_unequal_classes():
    labels = np.array([0] * 90 + [1] * 10)
    always = np.tile(np.float32([1, 0]), (100, 1))
    assert METRICS["balanced_accuracy"].function(always, labels) == 0.5
    assert METRICS["macro_f1"].function(always, labels) == pytest.approx(0.9 / 1.9)


def test_each_replica_is_measured_and_a_diverged_one_has_none():
    lost = np.full_like(LOGITS, np.nan)
    every = np.stack([LOGITS, lost, LOGITS[:, ::-1]])
    found = measure([*METRICS.values()], every, LABELS)
    assert list(found) == list(METRICS)
    for name, values in found.items():
        assert values[0] == METRICS[name].function(LOGITS, LABELS)
        assert np.isnan(values).tolist() == [False, True, False]
        assert values[2] == METRICS[name].function(every[2], LABELS)


def test_a_metric_that_fails_costs_a_warning_and_no_training(caplog):
    found = measure([Metric("odd", lambda x, y: 1 / 0)], LOGITS[None], LABELS)
    assert np.isnan(found["odd"]).all()
    assert "the metric odd failed: division by zero" in caplog.text


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: 0.0, "odd gives no number for logits .*300, 7.*TypeError"),
        (lambda x, y: x.max(1), "it returned an array of shape"),
        (lambda x, y: "high", "ValueError"),
        (lambda x, y: None, "TypeError"),
    ],
)
def test_what_is_no_metric_is_named_before_training(function, words):
    with pytest.raises(UserError, match=words):
        check_metric(Metric("odd", function), LABELS, 7)


def test_the_five_highest_of_five_classes_tell_nothing():
    check_metric(METRICS["top5"], LABELS, 7)
    with pytest.raises(UserError, match="with 5 classes every answer is among"):
        check_metric(METRICS["top5"], LABELS, 5)
