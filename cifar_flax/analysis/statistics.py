"""Statistics of a few seeds: intervals, tests, and the number of seeds needed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import bdtr, chdtri, stdtr, stdtrit

from cifar_flax.analysis.power import PAIRED_FROM, seeds_needed
from cifar_flax.errors import UserError

# A difference that matters, as a share: half a point.
RELEVANT = 0.005

LEVEL = 0.05  # family-wise error rate, and level of 95 % intervals
_ROUNDING = 1e-24  # a variance of accuracies that are equal but for rounding

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
      images: number N of test images; 0: not known.

    Returns:
      Both ends, as shares; None without a seed, or for one seed if N is not known.
    """
    if not len(values):
        return None
    mean = mean_of_finite(values)
    half = ci95_of_mean(values, 1 / images if images else 0.0)
    if half is None:
        if not images:
            return None
        part = _Z**2 / images
        half = _Z * math.sqrt((mean * (1 - mean) + part / 4) / images) / (1 + part)
        mean = (mean + part / 2) / (1 + part)
    return max(0.0, mean - half), min(1.0, mean + half)


def prediction_interval(
    values: Sequence[float], count: int, images: int
) -> tuple[float, float] | None:
    """Returns where the mean accuracy of further seeds lies with 95 %, within [0, 1].

    It is ``mean +- t * s * sqrt(1 / n + 1 / m)`` with the deviation s of the n seeds,
    at least ``1 / N``, and the 97.5 % quantile t of Student's distribution with n - 1
    degrees of freedom.

    Args:
      values: accuracy of each of n seeds, a share.
      count: number m of further seeds.
      images: number N of test images.

    Returns:
      Both ends, as shares; None for fewer than two values or no further seed.
    """
    half = ci95_of_mean(values, 1 / images)
    if half is None or not count:
        return None
    half *= math.sqrt(1 + len(values) / count)
    mean = float(np.mean(values))
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
      test: ``"paired"``, ``"overlapping"`` or ``"Welch"``.
      counts: number of seeds of the first and of the second.
      shared: number of seeds of both that the test takes as pairs.
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
    shared: int = 0
    looks: int = 1
    most: int | None = None

    @property
    def shown(self) -> bool:
        """Whether the difference is shown, taking all comparisons into account."""
        return self.adjusted_p < LEVEL

    @property
    def likely_spread(self) -> float:
        """The deviation, estimated so that it is too large as often as too small."""
        return self.spread * math.sqrt(self.freedom / chdtri(self.freedom, 0.5))

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
    images: int = 0,
    paired: bool = True,
) -> Difference | None:
    """Compares two accuracies over all their seeds.

    The numbers of seeds fix the test in advance. If both have the same five or more
    seeds, it is the paired t-test of the differences of each seed, ``t = mean(d) /
    (s(d) / sqrt(n))``. If they share fewer than five, it is Welch's test, ``t = (mean_a
    - mean_b) / sqrt(s_a^2 / n_a + s_b^2 / n_b)`` (Welch 1947). Between these it is the
    test of partially overlapping samples, see ``_overlapping``. The difference is
    always that of the two means, which rank the two. A seed fixes the initial values
    and the order of the images, so the two results of a seed have something in common.

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
      images: number N of test images, if ``right`` is not known; 0: it is not known.
      paired: whether equal seeds have something in common.

    Returns:
      The difference; None if one of them has fewer than two seeds.
    """
    if min(len(first), len(second)) < 2:
        return None
    shared = [seed for seed in first if seed in second and paired]
    images = images if right is None else right[0].shape[1]
    least = 1 / images**2 if images else 0.0
    values = [np.array(list(one.values())) for one in (first, second)]
    counts, mean = (len(first), len(second)), float(values[0].mean() - values[1].mean())
    pairs = np.array([[one[seed] for seed in shared] for one in (first, second)])
    if len(shared) < PAIRED_FROM:
        test, shared = "Welch", []
        variance, freedom = _independent(values, least)
    elif counts == (len(shared), len(shared)):
        test, gaps = "paired", pairs[0] - pairs[1]
        mean = float(gaps.mean())
        variance = max(float(gaps.var(ddof=1)), 2 * least) / len(gaps)
        freedom = len(gaps) - 1.0
    else:
        test = "overlapping"
        variance, freedom = _overlapping(values, pairs, least)
    if variance < _ROUNDING:  # equal accuracies, whose mean is rounded
        variance = 0.0
    p = _two_sided(mean, variance, freedom)
    spread = math.sqrt(variance * 2 / (1 / counts[0] + 1 / counts[1]))
    half = _quantile(freedom) * math.sqrt(variance)
    difference = Difference(
        *(mean, half, p, p, test, counts, spread, freedom), shared=len(shared)
    )
    if right is None or images < 2:
        return difference
    chosen = variance_over_images(*right)
    whole = _quantile(_freedom([(variance, freedom), (chosen, math.inf)]))
    # More degrees of freedom may make the pooled interval the narrower one.
    over = max(half, whole * math.sqrt(variance + chosen))
    return dataclasses.replace(difference, over_images=over)


def _independent(values: list[np.ndarray], least: float) -> tuple[float, float]:
    """Returns the variance of a difference of means of independent seeds.

    Args:
      values: the accuracies of the first and of the second.
      least: lower bound of the variance of one seed.

    Returns:
      The variance, and its degrees of freedom.
    """
    parts = [max(float(one.var(ddof=1)), least) / len(one) for one in values]
    pairs = [(part, len(one) - 1) for part, one in zip(parts, values, strict=True)]
    return sum(parts), _freedom(pairs)


def _overlapping(
    values: list[np.ndarray], pairs: np.ndarray, least: float
) -> tuple[float, float]:
    """Returns the variance of a difference of means of which some seeds are shared.

    It is ``s_a^2 / n_a + s_b^2 / n_b - 2 r s_a s_b c / (n_a n_b)`` for c shared seeds
    with the correlation r. Its degrees of freedom lie between those of the pairs, c -
    1, and those w of Welch's test: ``c - 1 + (w - c + 1) u / (u + 2 c)`` for u seeds
    that are not shared (Derrick, Russ, Toher and White 2017, Journal of Modern Applied
    Statistical Methods 16).

    Args:
      values: the accuracies of the first and of the second.
      pairs: those of the shared seeds, [2, c].
      least: lower bound of the variance of one seed.
    """
    variance, freedom = _independent(values, least)
    count, counts = pairs.shape[1], [len(one) for one in values]
    deviations = [math.sqrt(max(float(one.var(ddof=1)), least)) for one in values]
    common, alone = np.cov(pairs)[0, 1], pairs.std(1, ddof=1)
    if alone.all():
        correlation = common / (alone[0] * alone[1])
        product = correlation * deviations[0] * deviations[1]
        variance -= 2 * float(product) * count / (counts[0] * counts[1])
    others = sum(counts) - 2 * count
    freedom = count - 1 + (freedom - count + 1) * others / (others + 2 * count)
    return max(variance, least * (1 / counts[0] + 1 / counts[1])), freedom


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
    """Adjusts the p-values of a family of differences; see ``holm_of``."""
    adjusted = holm_of([difference.p for difference in differences])
    return [
        dataclasses.replace(difference, adjusted_p=p)
        for difference, p in zip(differences, adjusted, strict=True)
    ]


def holm_of(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p-values of a family of tests by the method of Holm.

    Of m p-values, the k-th smallest is multiplied by m - k + 1, and is at least as
    large as the one before. For any dependence between the comparisons, the probability
    of showing a difference that does not exist is then at most 5 % per family (Holm
    1979, Scandinavian Journal of Statistics 6).
    """
    adjusted, least = list(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        least = min(1.0, max(least, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = least
    return adjusted


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the p-value of McNemar's exact test of two trained networks.

    If the networks are equally good, each image that only one of them classifies
    correctly is equally likely to belong to either (McNemar 1947). The test is about
    these two trained networks only: two seeds of the same model often differ by it.

    Args:
      first: whether each image is classified correctly, bool [N].
      second: the same for the other network.

    Raises:
      UserError: they are not two such arrays.
    """
    for one in (first, second):
        found, size = np.asarray(one), np.size(first)
        if found.dtype != bool or found.shape != (size,):
            raise UserError(
                f"what is classified correctly is {found.dtype} {list(found.shape)}; "
                f"give bool [{size}], such as predictions == labels"
            )
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def _quantile(freedom: float) -> float:
    """Returns the 97.5 % quantile of Student's distribution."""
    return float(stdtrit(freedom, 1 - LEVEL / 2)) if freedom < 1e9 else _Z


def _two_sided(mean: float, variance: float, freedom: float) -> float:
    if mean == 0 or variance == 0:
        return 1.0
    return 2 * float(stdtr(freedom, -abs(mean) / math.sqrt(variance)))


def _freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Returns Satterthwaite's degrees of freedom of a sum of variances."""
    total = sum(part for part, _ in parts)
    below = sum(part**2 / freedom for part, freedom in parts)
    return total**2 / below if below else parts[0][1]
