"""Metrics of logits and labels. Your own metric is a function like these.

``metric(logits, labels)`` takes float32 [N, K] of one replica and int32 [N]. It returns
a number.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np

from cifar_flax.analysis.predictions import converged, score
from cifar_flax.errors import UserError, one_line

Function = Callable[[np.ndarray, np.ndarray], float]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric with its name.

    Attributes:
      name: of its column.
      function: see the module.
      is_share: whether its values are shares, which are shown in per cent.
      lower_is_better: whether it is a kind of error.
    """

    name: str
    function: Function
    is_share: bool = False
    lower_is_better: bool = False


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over the classes of the share that is classified correctly.

    Classes without an image do not count (Brodersen et al. 2010,
    https://doi.org/10.1109/ICPR.2010.764).
    """
    counts = _confusion(logits, labels)
    sizes = counts.sum(1)
    return float((np.diag(counts)[sizes > 0] / sizes[sizes > 0]).mean())


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over the classes of ``2 TP / (2 TP + FP + FN)``.

    Classes that are neither a label nor an answer do not count.
    """
    counts = _confusion(logits, labels)
    either = counts.sum(0) + counts.sum(1)
    return float((2 * np.diag(counts)[either > 0] / either[either > 0]).mean())


def top5(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of images whose label has one of the five highest logits.

    Of equal logits that of the first class is the higher one, as for the accuracy.
    """
    own = logits[np.arange(len(labels)), labels, None]
    before = np.arange(logits.shape[1]) < labels[:, None]
    higher = (logits > own) | ((logits == own) & before)
    return float((higher.sum(1) < 5).mean())


def ece(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the expected calibration error; see ``predictions.Calibration``."""
    found = score(logits[None], labels).calibration
    return np.nan if found is None else found.ece


def _confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts the images of each class [row] that are classified as each [column]."""
    classes = logits.shape[1]
    pairs = labels.astype(np.int64) * classes + logits.argmax(1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("balanced_accuracy", balanced_accuracy, is_share=True),
        Metric("macro_f1", macro_f1, is_share=True),
        Metric("top5", top5, is_share=True),
        Metric("ece", ece, is_share=True, lower_is_better=True),
    )
}


def measure(
    metrics: Sequence[Metric], logits: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes metrics of each replica.

    A metric that fails is NaN, with a warning, so that no training is lost.

    Args:
      metrics: to compute.
      logits: [R, N, K].
      labels: [N].

    Returns:
      float64 [R] by the name of the metric; NaN for a replica that has diverged.
    """
    found = {metric.name: np.full(len(logits), np.nan) for metric in metrics}
    for index in np.flatnonzero(converged(logits)) if metrics else ():
        for metric in metrics:
            try:
                found[metric.name][index] = metric.function(logits[index], labels)
            except Exception as error:  # a user's function may raise anything
                logger.warning("the metric %s failed: %s", metric.name, one_line(error))
    return found


def check_metric(metric: Metric, labels: np.ndarray, num_classes: int) -> None:
    """Tries a metric on random logits, before anything is trained.

    Args:
      metric: to try.
      labels: [N], of the images that it will be computed on.
      num_classes: K.

    Raises:
      UserError: it fails, returns something else than a number, or tells nothing.
    """
    if metric.function is top5 and num_classes <= 5:
        raise UserError(
            f"--metrics=top5: with {num_classes} classes every answer is among the "
            "five highest; leave it out"
        )
    shape = len(labels), num_classes
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    try:
        found = metric.function(logits, labels)
        if np.ndim(found):
            raise TypeError(f"it returned an array of shape {list(np.shape(found))}")
        float(found)
    except Exception as error:  # a user's function may raise anything
        raise UserError(
            f"the metric {metric.name} gives no number for logits float32 "
            f"{list(shape)} and labels int32 [{len(labels)}]: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
