"""What a few runs say about all the runs that could have been."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import bdtr, ndtri, stdtrit

# A difference that matters, as a share: half a point. Where no difference is shown, a
# verdict says how many seeds would show one of this size.
RELEVANT = 0.005


def mean_of_finite(figures: Any) -> float:
    """Mean over the replicas that have not diverged; NaN where all have.

    Args:
      figures: one replica's or a list of all, NaN or None for one that has diverged.
    """
    values = np.atleast_1d(np.array(figures, np.float64))  # None becomes NaN
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan


def ci95_of_mean(values: Sequence[float] | np.ndarray) -> float | None:
    """Half the width of the 95 % interval of a mean over seeds.

    ``t * s / sqrt(n)`` with the sample's standard deviation s (n - 1) and the 97.5 %
    point t of Student's distribution with n - 1 degrees of freedom.

    Args:
      values: one a seed.

    Returns:
      In the unit of the values; None for fewer than two, which show no spread.
    """
    count = len(values)
    if count < 2:
        return None
    spread = float(np.std(np.asarray(values, np.float64), ddof=1))
    return _half_width(spread, count, comparisons=1)


def ci95_of_share(share: float, count: int) -> float:
    """Half the width of the 95 % interval of an accuracy on a sample of images.

    ``1.96 * sqrt(p * (1 - p) / n)``: how far the accuracy of one trained network on
    other images of the same kind may lie. It says nothing about other seeds.

    Args:
      share: correctly classified, in [0, 1].
      count: number of images.
    """
    return 1.959964 * math.sqrt(share * (1 - share) / count)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much better one of two is than the other, and how sure that is.

    Attributes:
      mean: of the paired differences of accuracy, as a share.
      half_width: of its 95 % interval, corrected for the number of comparisons.
      count: of pairs.
      over: what the pairs are, and so what the interval speaks for: ``"seeds"``, or
        ``"images"`` where there is one seed and nothing is known of others.
      shown: whether the difference is shown at that level.
      needed: seeds that would show a difference of ``RELEVANT``; None where these do,
        or where the pairs are images.
    """

    mean: float
    half_width: float
    count: int
    over: str
    shown: bool
    needed: int | None = None

    def verdict(self, first: str, second: str) -> str:
        """In plain words."""
        if self.mean < 0:
            swapped = dataclasses.replace(self, mean=-self.mean)
            return swapped.verdict(second, first)
        gap = f"{100 * self.mean:.1f} +- {100 * self.half_width:.1f} points"
        if self.over == "images":
            where = "with one seed each, which ranks these two networks only"
            if self.shown:
                return f"{first} is ahead of {second} by {gap} on these images {where}"
            return f"no difference shown between {first} and {second} ({gap}) {where}"
        if self.shown:
            return f"{first} beats {second} by {gap} ({self.count} seeds)"
        text = (
            f"no difference shown between {first} and {second} with {self.count} seeds "
            f"({gap})"
        )
        if self.needed is None:
            return text
        return f"{text}; {self.needed} would be needed to show {100 * RELEVANT:g}"


def difference_over_seeds(
    first: Sequence[float], second: Sequence[float], comparisons: int = 1
) -> Difference:
    """Difference of two accuracies, paired by seed.

    ``mean(d) +- t * s(d) / sqrt(n)`` with ``d = first - second``, the sample's standard
    deviation s and the ``1 - 0.025 / comparisons`` point t of Student's distribution
    with n - 1 degrees of freedom (Bonferroni's correction). A seed fixes the order of
    the images and their augmentation, so that both saw the same.

    Args:
      first: accuracies, one a seed, two or more.
      second: of the same seeds in the same order.
      comparisons: differences that are looked at together.
    """
    gaps = np.subtract(first, second, dtype=np.float64)
    spread = float(gaps.std(ddof=1))
    half = _half_width(spread, len(gaps), comparisons)
    mean = float(gaps.mean())
    shown = abs(mean) > half
    enough = shown or half <= RELEVANT
    needed = None if enough else seeds_needed(spread, RELEVANT, comparisons)
    return Difference(mean, half, len(gaps), "seeds", shown, needed)


def _half_width(spread: float, count: int, comparisons: int) -> float:
    quantile = float(stdtrit(count - 1, 1 - 0.025 / comparisons))
    return quantile * spread / math.sqrt(count)


def seeds_needed(spread: float, size: float, comparisons: int = 1) -> int:
    """The fewest seeds whose interval is no wider than a difference on each side.

    Args:
      spread: standard deviation of the paired differences.
      size: of the difference to show, above 0.
      comparisons: as in ``difference_over_seeds``.
    """
    low, high = 1, 2  # low: too few
    while _half_width(spread, high, comparisons) > size:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _half_width(spread, middle, comparisons) > size:
            low = middle
        else:
            high = middle
    return high


def difference_over_images(
    first: np.ndarray, second: np.ndarray, comparisons: int = 1
) -> Difference:
    """Difference of two trained networks' accuracies on the same images.

    The test is McNemar's, exact: of the images that one of them alone gets right, each
    is as likely to be either's. The interval is ``mean(d) +- z * s(d) / sqrt(n)``.

    Args:
      first: whether each image is classified correctly, bool [N].
      second: the same of the other network.
      comparisons: as in ``difference_over_seeds``.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    gaps = first.astype(np.float64) - second
    half = float(ndtri(1 - 0.025 / comparisons) * gaps.std(ddof=1)) / len(gaps) ** 0.5
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    chance = 2 * bdtr(min(wins, losses), wins + losses, 0.5)  # above 1 for a draw
    shown = bool(chance < 0.05 / comparisons)
    return Difference(float(gaps.mean()), half, len(gaps), "images", shown)
