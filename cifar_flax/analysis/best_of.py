"""The best of n trials of a search: what to expect of it, and how sure that is.

Trials of a random search are independent draws, so their accuracies tell what a smaller
search would have found. See Dodge and others, "Show Your Work" (2019).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95  # of intervals
RESAMPLES = 2_000  # of the bootstrap; the ends are then sure to a tenth of the width


def expected_best(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns the expected maximum of n draws from values, with replacement.

    With F the share of the N values up to v, it is ``sum of v * (F(v)^n - F(v-)^n)``
    over the different values v: the expected best of n independent draws from F.

    Args:
      values: of the trials, [..., N].

    Returns:
      [..., N], for n from 1 to N.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    count = ordered.shape[-1]
    shares = np.arange(count + 1) / count
    powers = shares[None] ** np.arange(1, count + 1)[:, None]
    # Equal values share the sum of their weights.
    return ordered @ np.diff(powers, axis=1).T


class Curve(NamedTuple):
    """The best of n trials for n = 1, 2, ...

    Attributes:
      best: expected, or reached, [N].
      low: lower end of the 95 % interval, [N]; None if there is none.
      high: upper end, as ``low``.
    """

    best: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def curve_of(values: Sequence[float] | np.ndarray) -> Curve:
    """Returns the expected best of n independent trials, with intervals.

    Args:
      values: of the trials, shares [N].
    """
    array = np.asarray(values, np.float64)
    best = expected_best(array)
    low, high = _ends(best, expected_best(array[_picked(len(array))]))
    return Curve(best, np.maximum(low, 0), np.minimum(high, 1))


def reached_by(values: Sequence[float] | np.ndarray) -> Curve:
    """Returns the best of the first n trials, for a search whose trials depend."""
    return Curve(np.maximum.accumulate(np.asarray(values, np.float64)))


def difference_of(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> Curve:
    """Returns the difference of the expected best of n trials of two models.

    Trial k of both has the same settings, so a resample takes the same trials of both.

    Args:
      first: values of the trials of the first model, [N].
      second: those of the second, [N].
    """
    both = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    picked = _picked(both.shape[1])
    drawn = expected_best(both[0][picked]) - expected_best(both[1][picked])
    best = expected_best(both[0]) - expected_best(both[1])
    return Curve(best, *_ends(best, drawn))


def _ends(best: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both ends of an interval from its bootstrap, as long on both sides.

    No resample has a better trial than the best one, so the upper side of a percentile
    interval is too short. The longer side is therefore taken for both.

    Args:
      best: estimates [N].
      drawn: the same of resamples, [R, N].
    """
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    half = np.maximum(best - low, high - best)
    return best - half, best + half


def _picked(count: int) -> np.ndarray:
    """Returns indices of resamples [R, N], the same at each call."""
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
