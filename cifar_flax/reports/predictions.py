"""What the test logits of a run say beyond the accuracy."""

import dataclasses

import numpy as np
from scipy.special import log_softmax

BINS = 15


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """How far the probabilities of the predicted classes can be believed.

    Attributes:
      confidence: mean probability in each of ``BINS`` bins of equal width; NaN where a
        bin is empty.
      accuracy: share of each bin that is right; NaN where it is empty.
      share: of the images in each bin.
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
    """Whether all of a replica's logits are numbers: [R, N, K] -> bool [R]."""
    return np.isfinite(logits).all((1, 2))


def calibrate(logits: np.ndarray, labels: np.ndarray) -> Calibration | None:
    """Calibration over the predictions of all replicas that did not diverge.

    Args:
      logits: [R, N, K].
      labels: [N].

    Returns:
      None where all diverged.
    """
    logits = logits[converged(logits)]
    if not len(logits):
        return None
    logs = _log_probabilities(logits).reshape(-1, logits.shape[-1])
    labels = np.tile(labels, len(logits))
    probabilities = np.exp(logs)
    confidence, right = probabilities.max(-1), logs.argmax(-1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):  # empty bins
        mean_confidence = np.bincount(bins, confidence, BINS) / counts
        mean_accuracy = np.bincount(bins, right, BINS) / counts
    share = counts / len(labels)
    gaps = np.nan_to_num(np.abs(mean_accuracy - mean_confidence))
    onehot = np.eye(logits.shape[-1])[labels]
    return Calibration(
        confidence=mean_confidence,
        accuracy=mean_accuracy,
        share=share,
        ece=float((share * gaps).sum()),
        nll=float(-logs[np.arange(len(labels)), labels].mean()),
        brier=float(np.square(probabilities - onehot).sum(-1).mean()),
    )


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    return log_softmax(logits.astype(np.float64), axis=-1)


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each class's images [row] that is taken for each class [column].

    Args:
      logits: [R, N, K]; the shares are means over the replicas that did not diverge.
      labels: [N].

    Returns:
      [K, K]; a row sums to 1, or is 0 where no image has that label.
    """
    logits = logits[converged(logits)]
    classes = logits.shape[-1]
    counts = np.zeros((classes, classes))
    for predicted in logits.argmax(-1):
        np.add.at(counts, (labels, predicted), 1)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def mean_probability(logits: np.ndarray) -> np.ndarray | None:
    """Mean over the replicas that did not diverge: [R, N, K] -> [N, K]."""
    logits = logits[converged(logits)]
    return np.exp(_log_probabilities(logits)).mean(0) if len(logits) else None


def confidently_wrong(logits: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The images that the replicas' mean probability is most sure and wrong about.

    Replicas that diverged have no say.

    Args:
      logits: [R, N, K].
      labels: [N].
      count: at most so many.

    Returns:
      Their indices, the surest first.
    """
    mean = mean_probability(logits)
    if mean is None:
        return np.empty(0, int)
    sure = np.where(mean.argmax(-1) == labels, -1.0, mean.max(-1))
    order = np.argsort(-sure, kind="stable")[:count]
    return order[sure[order] >= 0]
