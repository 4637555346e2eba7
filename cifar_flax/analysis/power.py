"""How many seeds show a difference, and which difference a number of seeds shows."""

import bisect
import functools
import math

import numpy as np
from scipy.special import betaincinv, chdtrc, nctdtr, stdtrit

POWER = 0.8  # probability that a planned number of seeds shows a difference

# Entries that share this many seeds are compared by pairs. With fewer, the small number
# of degrees of freedom costs more than the pairs gain.
PAIRED_FROM = 5

MOST_SEEDS = 10_000  # largest number of seeds that is planned


def seeds_needed(spread: float, size: float, level: float) -> int | None:
    """Returns the fewest seeds that show a difference with 80 % probability.

    With n pairs, the statistic of the t-test has a noncentral t distribution with n - 1
    degrees of freedom and noncentrality ``size * sqrt(n) / spread``. With fewer than
    five seeds each, it is that of Welch's test; see ``_power``.

    Args:
      spread: standard deviation of the difference of one seed of each, above 0.
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


def _power(count: int, spread: float, size: float, level: float) -> float:
    """Returns the probability that n normal seeds of each show a difference.

    The limit of Welch's test depends on the share u of one side in the sum of the two
    estimated variances, ``freedom = (n - 1) / (u^2 + (1 - u)^2)``. For equal true
    variances, u has a beta distribution and does not depend on t, so that the power is
    the mean of noncentral t over u.
    """
    freedom, of_limit = _freedom_of(count), np.array([count - 1.0])
    if count < PAIRED_FROM:
        share = betaincinv((count - 1) / 2, (count - 1) / 2, _MIDDLES)
        of_limit = (count - 1) / (share**2 + (1 - share) ** 2)
    limit = stdtrit(of_limit, 1 - level / 2)
    shift = size * math.sqrt(count) / spread
    if shift > _FAR:  # t is almost the shift divided by the estimated deviation
        within = chdtrc(freedom, freedom * (shift / limit) ** 2)
    else:
        # SciPy has NaN for probabilities below about 1e-15.
        below = np.nan_to_num(nctdtr(freedom, shift, -limit))
        within = nctdtr(freedom, shift, limit) - below
    return float(np.mean(1 - within))


_FAR = 50  # a noncentrality above which SciPy's distribution is slow, or NaN

# Quantiles of equal probability, over which a mean is that of a distribution.
_MIDDLES = (np.arange(50) + 0.5) / 100  # of a half, since both are alike


def _freedom_of(count: int) -> int:
    """Returns the degrees of freedom of a test of n seeds each."""
    return count - 1 if count >= PAIRED_FROM else 2 * (count - 1)
