"""Statistics of a few seeds: intervals, tests, and the number of seeds needed."""

import bisect
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import bdtr, chdtri, nctdtr, stdtr, stdtrit

# A difference that matters, as a share: half a point.
RELEVANT = 0.005

LEVEL = 0.05  # family-wise error rate, and level of 95 % intervals
POWER = 0.8  # probability that a planned number of seeds shows a difference

# Entries that share this many seeds are compared by pairs. With fewer, the small number
# of degrees of freedom costs more than the pairs gain.
PAIRED_FROM = 5

MOST_SEEDS = 10_000  # largest number of seeds that is planned

_Z = 1.959964  # 97.5 % quantile of the normal distribution


def mean_of_finite(figures: Any) -> float:
    """Returns the mean over replicas that have not diverged; NaN if all have.

    Args:
      figures: value of one replica, or a list; NaN or None for a diverged replica.
    """
    values = np.atleast_1d(np.array(figures, np.float64))  # None becomes NaN
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan


def ci95_of_mean(
    values: Sequence[float] | np.ndarray, least: float = 0.0
) -> float | None:
    """Returns half the width of the 95 % interval of a mean over seeds.

    It is ``t * s / sqrt(n)`` with the sample's standard deviation s (with n - 1) and
    the 97.5 % quantile t of Student's distribution with n - 1 degrees of freedom.

    Args:
      values: one value per seed.
      least: lower bound of s.

    Returns:
      Half the width in the unit of the values; None for fewer than two values.
    """
    count = len(values)
    if count < 2:
        return None
    spread = max(float(np.std(np.asarray(values, np.float64), ddof=1)), least)
    return _quantile(count - 1) * spread / math.sqrt(count)


def interval_of_accuracy(
    values: Sequence[float], images: int
) -> tuple[float, float] | None:
    """Returns the 95 % interval of an accuracy, within [0, 1].

    For several seeds it is that of ``ci95_of_mean``, with a deviation of at least one
    test image, ``1 / N``: equal accuracies of a few seeds do not show that the next
    seed has it, too. It covers other seeds, and no other images.

    For one seed it is Wilson's interval over the test images, the uncertainty of the
    accuracy p of one trained network on other images of the same kind, with z = 1.96:
    ``(p + z^2 / 2N +- z * sqrt(p (1 - p) / N + z^2 / 4N^2)) / (1 + z^2 / N)`` (Wilson
    1927). It covers no other seeds.

    Args:
      values: accuracy of each seed, a share.
      images: number N of test images.

    Returns:
      Both ends, as shares; None without a seed.
    """
    if not len(values):
        return None
    mean, half = mean_of_finite(values), ci95_of_mean(values, 1 / images)
    if half is None:
        part = _Z**2 / images
        half = _Z * math.sqrt((mean * (1 - mean) + part / 4) / images) / (1 + part)
        mean = (mean + part / 2) / (1 + part)
    return max(0.0, mean - half), min(1.0, mean + half)


def percent_with_interval(mean: float, interval: tuple[float, float]) -> str:
    """Returns a share with its interval, in per cent.

    It is such as ``93.21 ± 0.15``, or ``99.00 (94.55 to 99.82)`` if the sides differ.
    """
    below, above = (f"{100 * abs(mean - end):.2f}" for end in interval)
    if below == above:
        return f"{100 * mean:.2f} ± {above}"
    low, high = interval
    return f"{100 * mean:.2f} ({100 * low:.2f} to {100 * high:.2f})"


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between two accuracies, with its uncertainty.

    Attributes:
      mean: difference of the mean accuracies, as a share.
      half_width: half the width of its 95 % interval over seeds, for this comparison
        alone.
      p: p-value of the test of this comparison alone.
      adjusted_p: p-value adjusted for all comparisons of the family. The difference is
        shown if it is below 0.05.
      test: ``"paired"`` or ``"Welch"``.
      counts: number of seeds of the first and of the second.
      spread: standard deviation of the difference of one seed of each.
      freedom: degrees of freedom of that deviation.
      over_images: half the width of the 95 % interval over seeds and test images, at
        least ``half_width``; None if the predictions are not known.
      looks: how often the pair was looked at while seeds were added. If more than once,
        p and the intervals hold over all looks; see ``sequential``.
      most: the largest number of seeds for which they do.
    """

    mean: float
    half_width: float
    p: float
    adjusted_p: float
    test: str
    counts: tuple[int, int]
    spread: float
    freedom: float
    over_images: float | None = None
    looks: int = 1
    most: int | None = None

    @property
    def shown(self) -> bool:
        """Whether the difference is shown, taking all comparisons into account."""
        return self.adjusted_p < LEVEL

    def needed(self, size: float, comparisons: int) -> tuple[int, int] | None:
        """Returns the number of seeds that show a difference with 80 % probability.

        Args:
          size: size of the difference as a share, above 0.
          comparisons: number of comparisons of the family. The number of seeds suffices
            even if this is the only difference, ``p < 0.05 / comparisons``.

        Returns:
          The number for the estimated deviation, and the number for the upper bound of
          its one-sided 80 % interval, ``s * sqrt(df / chi2_0.2(df))``. None if the
          deviation is 0, or a number is above 10,000.
        """
        if not self.spread > 0:
            return None
        bound = self.spread * math.sqrt(self.freedom / chdtri(self.freedom, 0.8))
        level = LEVEL / comparisons
        found = [seeds_needed(s, size, level) for s in (self.spread, bound)]
        return (found[0], found[1]) if found[0] and found[1] else None


def compare(
    first: Mapping[int, float],
    second: Mapping[int, float],
    right: tuple[np.ndarray, np.ndarray] | None = None,
    images: int | None = None,
) -> Difference | None:
    """Compares two accuracies over seeds.

    The number of seeds fixes the test in advance. With five or more shared seeds it is
    the paired t-test of the differences of each seed, ``t = mean(d) / (s(d) /
    sqrt(n))``. Otherwise it is Welch's test, ``t = (mean_a - mean_b) / sqrt(s_a^2 / n_a
    + s_b^2 / n_b)`` (Welch 1947). A seed fixes the initial values and the order of the
    images, so the two results of a seed have something in common.

    Accuracies are multiples of ``1 / N`` for N test images, so a few seeds often have
    equal ones. The deviation over seeds of each side therefore counts as at least one
    image, ``s >= 1 / N`` (``sqrt(2) / N`` for a paired difference). If N is not known,
    a deviation of 0 shows nothing.

    The interval over test images adds the variance due to the choice of the images. The
    part of it that is noise between seeds is already included and is subtracted:
    ``max(0, s^2(d_i) / N - mean_i(v_a,i / n_a + v_b,i / n_b) / N)``. Here d_i is the
    difference of the shares of seeds that classify image i correctly, and v_i is the
    variance between seeds. The degrees of freedom follow Satterthwaite.

    Args:
      first: accuracy of each seed.
      second: accuracy of each seed.
      right: whether each image is classified correctly, bool [n, N], with the seeds in
        the order of ``first`` and ``second``.
      images: number N of test images, if ``right`` is not given.

    Returns:
      The difference; None if one of them has fewer than two seeds.
    """
    if min(len(first), len(second)) < 2:
        return None
    shared = [seed for seed in first if seed in second]
    images = images if right is None else right[0].shape[1]
    least = 0.0 if images is None else 1 / images**2
    if len(shared) >= PAIRED_FROM:
        gaps = np.array([first[seed] - second[seed] for seed in shared])
        counts, test = (len(gaps), len(gaps)), "paired"
        mean = float(gaps.mean())
        variance = max(float(gaps.var(ddof=1)), 2 * least) / len(gaps)
        freedom = len(gaps) - 1.0
        kept = [[list(one).index(seed) for seed in shared] for one in (first, second)]
        right = right and (right[0][kept[0]], right[1][kept[1]])
    else:
        values = [np.array(list(one.values())) for one in (first, second)]
        counts, test = (len(values[0]), len(values[1])), "Welch"
        mean = float(values[0].mean() - values[1].mean())
        parts = [max(float(one.var(ddof=1)), least) / len(one) for one in values]
        variance = sum(parts)
        freedom = _freedom(
            [(part, len(one) - 1) for part, one in zip(parts, values, strict=True)]
        )
    p = _two_sided(mean, variance, freedom)
    spread = math.sqrt(variance * 2 / (1 / counts[0] + 1 / counts[1]))
    half = _quantile(freedom) * math.sqrt(variance)
    difference = Difference(mean, half, p, p, test, counts, spread, freedom)
    if right is None or right[0].shape[1] < 2:
        return difference
    others = variance_over_images(*right)
    whole = _quantile(_freedom([(variance, freedom), (others, math.inf)]))
    # More degrees of freedom may make the pooled interval the narrower one.
    over = max(half, whole * math.sqrt(variance + others))
    return dataclasses.replace(difference, over_images=over)


def variance_over_images(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the variance of a difference that is due to the choice of the images.

    See ``compare`` for the formula.

    Args:
      first: whether each image is classified correctly, bool [n_a, N].
      second: the same, bool [n_b, N].
    """
    shares = [one.mean(0) for one in (first, second)]
    gap = shares[0] - shares[1]
    count = len(gap)
    # The variance between seeds of a binary value is p (1 - p) n / (n - 1).
    noise = [
        share * (1 - share) / (len(one) - 1)
        for share, one in zip(shares, (first, second), strict=True)
    ]
    return max(0.0, float(gap.var(ddof=1) - (noise[0] + noise[1]).mean()) / count)


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Adjusts the p-values of a family of differences by the method of Holm.

    Of m p-values, the k-th smallest is multiplied by m - k + 1, and is at least as
    large as the one before. For any dependence between the comparisons, the probability
    of showing a difference that does not exist is then at most 5 % per family (Holm
    1979, Scandinavian Journal of Statistics 6).
    """
    adjusted, least = list(differences), 0.0
    order = np.argsort([difference.p for difference in differences], kind="stable")
    for rank, index in enumerate(order):
        p = differences[index].p * (len(differences) - rank)
        least = min(1.0, max(least, p))
        adjusted[index] = dataclasses.replace(differences[index], adjusted_p=least)
    return adjusted


def seeds_needed(spread: float, size: float, level: float) -> int | None:
    """Returns the fewest seeds that show a difference with 80 % probability.

    With n pairs, the statistic of the t-test has a noncentral t distribution with n - 1
    degrees of freedom and noncentrality ``size * sqrt(n) / spread``.

    Args:
      spread: standard deviation of the difference of one pair, above 0.
      size: size of the difference, above 0.
      level: two-sided level of the test.

    Returns:
      A number of 2 or more; None if it is above 10,000.
    """
    low, high = 1, 2  # low: too few
    while _power(high, spread, size, level) < POWER:
        if high > MOST_SEEDS:
            return None
        low, high = high, 2 * high
    counts = range(low + 1, high)
    power = functools.partial(_power, spread=spread, size=size, level=level)
    return low + 1 + bisect.bisect_left(counts, POWER, key=power)


def detectable(spread: float, count: int, level: float) -> float:
    """Returns the difference that a number of seeds shows with 80 % probability.

    Args:
      spread: standard deviation of the difference of one seed of each.
      count: number of seeds of each, two or more.
      level: two-sided level of the test.
    """
    low, high = 0.0, spread
    while _power(count, spread, high, level) < POWER:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        if _power(count, spread, middle, level) < POWER:
            low = middle
        else:
            high = middle
    return high


def smallest_shown(images: int, count: int, level: float) -> float:
    """Returns the smallest difference that can be shown, even if all seeds agree.

    It is ``t * sqrt(2 / n) / N``, because the deviation of each side counts as at least
    one of the N test images; see ``compare``.

    Args:
      images: number N of test images.
      count: number n of seeds of each, two or more.
      level: two-sided level of the test.
    """
    limit = float(stdtrit(_freedom_of(count), 1 - level / 2))
    return limit * math.sqrt(2 / count) / images


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the p-value of McNemar's exact test of two trained networks.

    If the networks are equally good, each image that only one of them classifies
    correctly is equally likely to belong to either (McNemar 1947). The test is about
    these two trained networks only: two seeds of the same model often differ by it.

    Args:
      first: whether each image is classified correctly, bool [N].
      second: the same for the other network.
    """
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def _power(count: int, spread: float, size: float, level: float) -> float:
    freedom = _freedom_of(count)
    limit = float(stdtrit(freedom, 1 - level / 2))
    shift = size * math.sqrt(count) / spread
    above = 1 - float(nctdtr(freedom, shift, limit))
    return above + float(nctdtr(freedom, shift, -limit))


def _freedom_of(count: int) -> int:
    """Returns the degrees of freedom of a test of n seeds each."""
    return count - 1 if count >= PAIRED_FROM else 2 * (count - 1)


def _quantile(freedom: float) -> float:
    """Returns the 97.5 % quantile of Student's distribution."""
    return float(stdtrit(freedom, 1 - LEVEL / 2)) if freedom < 1e9 else _Z


def _two_sided(mean: float, variance: float, freedom: float) -> float:
    if mean == 0 or variance == 0:
        return 1.0
    return 2 * float(stdtr(freedom, -abs(mean) / math.sqrt(variance)))


def _freedom(parts: list[tuple[float, float]]) -> float:
    """Returns Satterthwaite's degrees of freedom of a sum of variances."""
    total = sum(part for part, _ in parts)
    below = sum(part**2 / freedom for part, freedom in parts)
    return total**2 / below if below else parts[0][1]
