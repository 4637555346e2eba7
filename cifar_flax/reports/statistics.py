"""What a few seeds say about all the seeds that could have been."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import bdtr, chdtri, nctdtr, stdtr, stdtrit

# A difference that matters, as a share: half a point.
RELEVANT = 0.005

LEVEL = 0.05  # of the family-wise error, and of 95 % intervals
POWER = 0.8  # the chance with which a planned number of seeds shows a difference

# Entries that share so many seeds are compared by pairs; with fewer, the gain of the
# pairs is less than what their few degrees of freedom cost.
PAIRED_FROM = 5

MOST_SEEDS = 10_000  # beyond it, no number of seeds is planned


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
    return _quantile(count - 1) * spread / math.sqrt(count)


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
      mean: difference of the mean accuracies, as a share.
      half_width: of its 95 % interval over seeds, for this comparison alone.
      p: probability of so large a difference or a larger one where there is none, in
        the test of this comparison alone.
      adjusted_p: p corrected for all comparisons of the family; the difference is shown
        where it is below 0.05.
      test: ``"paired"`` or ``"Welch"``.
      counts: seeds of the first and of the second.
      spread: deviation of the difference of one seed of each.
      freedom: degrees of freedom of that deviation.
      over_images: half the width of the 95 % interval over seeds and test images; None
        where the predictions are not known.
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

    @property
    def shown(self) -> bool:
        """Whether there is a difference, with all comparisons taken into account."""
        return self.adjusted_p < LEVEL

    def needed(self, size: float, comparisons: int) -> tuple[int, int] | None:
        """The seeds that show a difference of a size with 80 % probability.

        Args:
          size: as a share, above 0.
          comparisons: of the family. The number suffices even where this is the only
            difference in it, ``p < 0.05 / comparisons``.

        Returns:
          The number for the deviation as estimated, and for the upper end of what it
          may be: the bound of its one-sided 80 % interval,
          ``s * sqrt(df / chi2_0.2(df))``. None where there is no deviation to go by,
          or the number is above 10,000.
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
) -> Difference | None:
    """Difference of two accuracies over seeds.

    Which test decides is fixed by the number of seeds: of entries that share five seeds
    or more the differences of each seed, ``t = mean(d) / (s(d) / sqrt(n))``, else
    Welch's test, ``t = (mean_a - mean_b) / sqrt(s_a^2 / n_a + s_b^2 / n_b)`` (Welch
    1947). A seed fixes the initial values and the order of the images, so that pairs
    have something in common, if less than one might hope.

    The interval over test images adds to the variance of the mean that of the draw of
    the images, without the part that is the noise of the seeds and is in it already:
    ``max(0, s^2(d_i) / N - mean_i(v_a,i / n_a + v_b,i / n_b) / N)`` with d_i the
    difference of the shares of seeds that classify image i correctly, and v_i the
    variance between seeds. Its degrees of freedom are Satterthwaite's.

    Args:
      first: accuracy of each seed.
      second: accuracy of each seed.
      right: whether each image is classified correctly, bool [n, N], the seeds in the
        order of ``first`` and ``second``.

    Returns:
      None where one of them has fewer than two seeds.
    """
    if min(len(first), len(second)) < 2:
        return None
    shared = [seed for seed in first if seed in second]
    if len(shared) >= PAIRED_FROM:
        gaps = np.array([first[seed] - second[seed] for seed in shared])
        counts, test = (len(gaps), len(gaps)), "paired"
        mean, variance = float(gaps.mean()), float(gaps.var(ddof=1)) / len(gaps)
        freedom = len(gaps) - 1.0
        kept = [[list(one).index(seed) for seed in shared] for one in (first, second)]
        right = right and (right[0][kept[0]], right[1][kept[1]])
    else:
        values = [np.array(list(one.values())) for one in (first, second)]
        counts, test = (len(values[0]), len(values[1])), "Welch"
        mean = float(values[0].mean() - values[1].mean())
        parts = [float(one.var(ddof=1)) / len(one) for one in values]
        variance = sum(parts)
        freedom = _freedom(
            [(part, len(one) - 1) for part, one in zip(parts, values, strict=True)]
        )
    p = _two_sided(mean, variance, freedom)
    spread = math.sqrt(variance * 2 / (1 / counts[0] + 1 / counts[1]))
    half = _quantile(freedom) * math.sqrt(variance)
    difference = Difference(mean, half, p, p, test, counts, spread, freedom)
    if right is None:
        return difference
    images = variance_over_images(*right)
    whole = _quantile(_freedom([(variance, freedom), (images, math.inf)]))
    return dataclasses.replace(
        difference, over_images=whole * math.sqrt(variance + images)
    )


def variance_over_images(first: np.ndarray, second: np.ndarray) -> float:
    """Variance of a difference of accuracies that the draw of the images adds.

    See ``compare``.

    Args:
      first: whether each image is classified correctly, bool [n_a, N].
      second: the same, bool [n_b, N].
    """
    shares = [one.mean(0) for one in (first, second)]
    gap = shares[0] - shares[1]
    count = len(gap)
    # The variance between seeds of a share of yes and no: p (1 - p) n / (n - 1).
    noise = [
        share * (1 - share) / (len(one) - 1)
        for share, one in zip(shares, (first, second), strict=True)
    ]
    return max(0.0, float(gap.var(ddof=1) - (noise[0] + noise[1]).mean()) / count)


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same with p adjusted for their number.

    Of m, the k-th smallest p is multiplied by m - k + 1, and is no smaller than the one
    before; with any dependence between them, no difference is shown where there is none
    but in one family of twenty (Holm 1979, Scandinavian Journal of Statistics 6).
    """
    adjusted, least = list(differences), 0.0
    order = np.argsort([difference.p for difference in differences], kind="stable")
    for rank, index in enumerate(order):
        p = differences[index].p * (len(differences) - rank)
        least = min(1.0, max(least, p))
        adjusted[index] = dataclasses.replace(differences[index], adjusted_p=least)
    return adjusted


def seeds_needed(spread: float, size: float, level: float) -> int | None:
    """The fewest seeds that show a difference with 80 % probability, by the t test.

    With n pairs the statistic is distributed as noncentral t with n - 1 degrees of
    freedom and noncentrality ``size * sqrt(n) / spread``.

    Args:
      spread: deviation of the difference of one pair, above 0.
      size: of the difference, above 0.
      level: two-sided, of the test.

    Returns:
      2 or more; None where it is above 10,000.
    """
    low, high = 1, 2  # low: too few
    while _power(high, spread, size, level) < POWER:
        if high > MOST_SEEDS:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _power(middle, spread, size, level) < POWER:
            low = middle
        else:
            high = middle
    return high


def detectable(spread: float, count: int, level: float) -> float:
    """The difference that so many seeds show with 80 % probability.

    Args:
      spread: deviation of the difference of one seed of each.
      count: seeds of each, two or more.
      level: two-sided, of the test.
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


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Probability of so uneven an outcome for two networks that are equally good.

    Of the images that one of them alone classifies correctly, each is as likely to be
    either's (McNemar 1947); exact. It speaks of these two trained networks only: two
    seeds of one net differ by it in a large part of all pairs.

    Args:
      first: whether each image is classified correctly, bool [N].
      second: the same of the other network.
    """
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def _power(count: int, spread: float, size: float, level: float) -> float:
    freedom = count - 1 if count >= PAIRED_FROM else 2 * (count - 1)
    limit = float(stdtrit(freedom, 1 - level / 2))
    shift = size * math.sqrt(count) / spread
    above = 1 - float(nctdtr(freedom, shift, limit))
    return above + float(nctdtr(freedom, shift, -limit))


def _quantile(freedom: float) -> float:
    """The 97.5 % point of Student's distribution."""
    return float(stdtrit(freedom, 1 - LEVEL / 2)) if freedom < 1e9 else 1.959964


def _two_sided(mean: float, variance: float, freedom: float) -> float:
    if mean == 0:
        return 1.0
    if variance == 0:
        return 0.0
    return 2 * float(stdtr(freedom, -abs(mean) / math.sqrt(variance)))


def _freedom(parts: list[tuple[float, float]]) -> float:
    """Satterthwaite's degrees of freedom of a sum of (variance, its freedom)."""
    total = sum(part for part, _ in parts)
    below = sum(part**2 / freedom for part, freedom in parts)
    return total**2 / below if below else parts[0][1]
