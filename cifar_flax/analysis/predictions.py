"""Computes calibration, confusions and mistakes from the test logits of a run."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

from cifar_flax.analysis.statistics import interval_of_accuracy

BINS = 15


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Measures of how well predicted probabilities agree with reality.

    Attributes:
      confidence: mean probability in each of ``BINS`` bins of equal width; NaN if the
        bin is empty.
      accuracy: share of correct predictions in each bin; NaN if the bin is empty.
      share: share of the images in each bin.
      ece: expected calibration error, ``sum_b share_b * |accuracy_b - confidence_b|``
        (Guo and others 2017, https://arxiv.org/abs/1706.04599).
      nll: mean negative log-likelihood of the labels, in nats.
      brier: mean of ``sum_k (p_k - onehot_k)^2`` (Brier 1950), between 0 and 2.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray
    ece: float
    nll: float
    brier: float


def converged(logits: np.ndarray) -> np.ndarray:
    """Returns whether a replica gives every image probabilities: [R, N, K] -> bool [R].

    A logit of minus infinity is a probability of 0; no other may be infinite, or NaN.
    """
    return np.isfinite(logits.max(-1)).all(1)


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Sums over predictions; the sums of several runs can be added.

    Attributes:
      counts: number of predictions in each of ``BINS`` bins of confidence.
      confidence: sum of the probabilities of the predicted classes in each bin.
      right: number of correct predictions in each bin.
      nll: sum of the negative log-likelihoods.
      brier: sum of the squared errors.
    """

    counts: np.ndarray
    confidence: np.ndarray
    right: np.ndarray
    nll: float
    brier: float

    def __add__(self, other: "Scores") -> "Scores":
        return Scores(
            self.counts + other.counts,
            self.confidence + other.confidence,
            self.right + other.right,
            self.nll + other.nll,
            self.brier + other.brier,
        )

    @property
    def calibration(self) -> Calibration | None:
        """Calibration from these sums; None if there is no prediction."""
        total = self.counts.sum()
        if not total:
            return None
        with np.errstate(invalid="ignore"):  # empty bins
            confidence = self.confidence / self.counts
            accuracy = self.right / self.counts
        share = self.counts / total
        gaps = np.nan_to_num(np.abs(accuracy - confidence))
        return Calibration(
            confidence=confidence,
            accuracy=accuracy,
            share=share,
            ece=float((share * gaps).sum()),
            nll=float(self.nll / total),
            brier=float(self.brier / total),
        )


def largest_class(sizes: Sequence[int] | np.ndarray) -> tuple[int, float] | None:
    """Returns the largest class and its share of the images, if classes are unequal.

    A network that always answers this class has this accuracy.

    Args:
      sizes: number of images of each class.

    Returns:
      None if the classes are as equal as whole numbers allow.
    """
    counts = np.asarray(sizes)
    total = int(counts.sum())
    if not total or counts.max() <= -(-total // len(counts)):
        return None
    index = int(counts.argmax())
    return index, float(counts[index] / total)


def score(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Computes the scores of all replicas that did not diverge.

    Args:
      logits: [R, N, K].
      labels: [N].
    """
    total = Scores(np.zeros(BINS, int), np.zeros(BINS), np.zeros(BINS), 0.0, 0.0)
    images = np.arange(len(labels))
    for replica in logits[converged(logits)]:  # one at a time, to save memory
        logs = _log_probabilities(replica)
        errors = np.exp(logs)
        confidence, right = errors.max(-1), logs.argmax(-1) == labels
        errors[images, labels] -= 1
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        total += Scores(
            counts=np.bincount(bins, minlength=BINS),
            confidence=np.bincount(bins, confidence, BINS),
            right=np.bincount(bins, right, BINS),
            nll=float(-logs[images, labels].sum()),
            brier=float(np.square(errors).sum()),
        )
    return total


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    return log_softmax(logits.astype(np.float64), axis=-1)


def recalls_of(
    logits: np.ndarray, labels: np.ndarray
) -> list[tuple[int, float, tuple[float, float]]]:
    """Returns the accuracy of each class that has images, with its 95 % interval.

    The interval is that of ``statistics.interval_of_accuracy``: over seeds, or over the
    images of the class for one seed.

    Args:
      logits: [R, N, K]; without a replica there is no accuracy.
      labels: int [N].

    Returns:
      Label, mean over the replicas, and both ends, as shares.
    """
    right, found = logits.argmax(-1) == labels, []
    for label in np.unique(labels).tolist() if len(logits) else ():
        accuracies = right[:, labels == label].mean(1).tolist()
        ends = interval_of_accuracy(accuracies, int((labels == label).sum()))
        assert ends is not None
        found.append((label, float(np.mean(accuracies)), ends))
    return found


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes the share of each class's images [row] that is predicted as a class.

    Args:
      logits: [R, N, K]; the shares are means over the replicas that did not diverge.
      labels: [N].

    Returns:
      [K, K], true class by predicted class. A row sums to 1, or to 0 if no image has
      that label.
    """
    logits = logits[converged(logits)]
    classes = logits.shape[-1]
    counts = np.zeros((classes, classes))
    for predicted in logits.argmax(-1):
        np.add.at(counts, (labels, predicted), 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def mean_probability(logits: np.ndarray) -> np.ndarray | None:
    """Computes mean probabilities over finished replicas: [R, N, K] -> [N, K]."""
    logits = logits[converged(logits)]
    return np.exp(_log_probabilities(logits)).mean(0) if len(logits) else None


def mean_of_seeds(probabilities: np.ndarray) -> np.ndarray:
    """Computes means over the replicas whose probabilities of an image are numbers.

    Args:
      probabilities: [R, N, K].

    Returns:
      [N, K], float64; NaN for an image of which no replica has probabilities.
    """
    known = np.isfinite(probabilities).all(-1, keepdims=True)
    total = np.where(known, probabilities, 0).sum(0, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return total / known.sum(0)


def confidently_wrong(logits: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Finds the misclassified images with the highest mean probability.

    Replicas that diverged do not count.

    Args:
      logits: [R, N, K].
      labels: [N].
      count: largest number of images.

    Returns:
      The indices of the images, the most confident mistake first.
    """
    mean = mean_probability(logits)
    if mean is None:
        return np.empty(0, int)
    sure = np.where(mean.argmax(-1) == labels, -1.0, mean.max(-1))
    order = np.argsort(-sure, kind="stable")[:count]
    return order[sure[order] >= 0]
