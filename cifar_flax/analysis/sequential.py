"""Tests that hold although the results were looked at while seeds were added.

Whoever looks at two entries after 5, 10, 15 seeds and so on, and stops when a
difference is shown, has several chances to be wrong. Two kinds of looks are judged:

- planned ones at fixed numbers of seeds: bounds like those of O'Brien and Fleming, by
  alpha spending (Lan and DeMets 1983, Biometrika 70);
- any others, up to a largest number of seeds: the smallest p-value over the looks is
  judged by its own distribution, as if there was a look at each number of seeds.

The t statistics of the first n of a sequence of normal values with mean 0 are a Markov
chain, whatever the variance. With ``u_n = sum(x) / sqrt(sum(x^2))``, the direction of
the first n values is uniform and independent of their length, so ``u_(n+1) = u_n
cos(h) + sin(h)`` with ``sqrt(n) tan(h)`` of Student's distribution with n degrees of
freedom, independent of the past. The chain is followed exactly but for its cells, as
Armitage, McPherson and Rowe (1969, JRSS A 132) do for normal statistics.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from cifar_flax.analysis.statistics import LEVEL, Difference
from cifar_flax.errors import UserError

# Seeds between planned looks, and at the first; from 5 seeds on the tests are paired,
# as the chain supposes.
STEP = 5
MOST = 30  # largest number of seeds unless another one is recorded
LIMIT = 100  # largest number of seeds of a plan, and for which looks are joint

# The cells of the chain: |z|, where the p-value is 2 Phi(-|z|). They are narrow where
# bounds usually are.
_EDGES = np.unique(
    np.concatenate([np.linspace(*part) for part in ((0, 1.5, 31), (1.5, 4.5, 91))])
)
_EDGES = np.append(_EDGES, np.linspace(4.5, 8.2, 31)[1:])
_TAILS = 2 * ndtr(-_EDGES)
_LEVELS = np.geomspace(1e-9, 0.999, 60)  # for which levels of looks are tabulated
_LOG_LEVELS = np.log(_LEVELS)
_NOMINAL = np.geomspace(1e-9, 1, 60)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How often a pair is looked at.

    Attributes:
      looks: the planned numbers of seeds; without any, looks may be at each number.
      most: largest number of seeds.
      first: number of seeds at the first look, if none is planned.
    """

    looks: tuple[int, ...] = ()
    most: int = MOST
    first: int = STEP

    def p(self, found: Sequence[float]) -> float:
        """Returns the p-value of a pair over its looks so far.

        It is the smallest family level at which one of the looks shows a difference.
        It stays valid however one decides whether to go on.

        Args:
          found: the p-value at each look, as if it was the only one.
        """
        if not self.looks:
            return any_look_p(min(found), self.most, self.first)
        if min(found) >= 1:
            return 1.0
        tables = _planned(self.looks)[: len(found)]
        smallest = [
            np.interp(math.log(max(p, 1e-300)), table, _LOG_LEVELS)
            for p, table in zip(found, tables, strict=True)
        ]
        return math.exp(min(smallest))

    def level(self, count: int) -> float:
        """Returns the two-sided level of a look for a whole of 5 %.

        Args:
          count: how many looks there were, with this one.
        """
        if self.looks:
            return spending_levels(self.looks)[count - 1]
        return any_look_level(self.most, self.first)

    def judge(self, history: Sequence[Difference]) -> Difference:
        """Returns the latest difference, with a p-value and an interval over all looks.

        The interval is a repeated one (Jennison and Turnbull 1989, JRSS B 51): all of
        the intervals of all looks hold together with a probability of 95 %.

        Args:
          history: the difference at each look, each judged as if it was the only one.
        """
        last, p = history[-1], self.p([found.p for found in history])
        wider = half_width(
            dataclasses.replace(last, half_width=1.0), self.level(len(history))
        )
        over = None if last.over_images is None else last.over_images * wider
        return dataclasses.replace(
            last,
            p=p,
            adjusted_p=p,
            half_width=last.half_width * wider,
            over_images=over,
            looks=len(history),
            most=self.most,
        )


def half_width(found: Difference, level: float) -> float:
    """Returns half the width of the interval of a difference at a two-sided level.

    Args:
      found: a difference with its 95 % interval, judged as the only one.
      level: above 0.
    """
    return found.half_width * _ratio(found.freedom, level)


def _ratio(freedom: float, level: float) -> float:
    """Returns by how much an interval at a level is wider than that of 95 %."""
    return float(stdtrit(freedom, level / 2) / stdtrit(freedom, LEVEL / 2))


def same_within(found: Difference, margin: float) -> float:
    """Returns the p-value of two one-sided tests that a difference is within a margin.

    It is twice the larger one of the two, so that it is below a level exactly if the
    two-sided interval at that level lies within the margin (Schuirmann 1987).

    Args:
      found: a difference, judged as the only one.
      margin: largest size that counts as the same, above 0.
    """
    error = found.half_width / float(stdtrit(found.freedom, 1 - LEVEL / 2))
    room = margin - abs(found.mean)
    if error == 0:
        return 1.0  # as elsewhere, a deviation of 0 shows nothing
    return min(1.0, 2 * float(stdtr(found.freedom, -room / error)))


def share_of_margin(points: float) -> float:
    """Returns a margin in points as a share; raises a UserError if it is not one."""
    if not 0 < points <= 100:
        raise UserError(f"--margin={points}: give points above 0, such as 0.5")
    return points / 100


def planned_looks(most: int = MOST) -> tuple[int, ...]:
    """Returns the numbers of seeds at which a study looks, such as 5, 10, ..., 30."""
    return (*range(STEP, most, STEP), most)


@functools.cache
def spending_levels(looks: tuple[int, ...], level: float = LEVEL) -> tuple[float, ...]:
    """Returns the nominal two-sided level of the t-test at each look.

    By the share ``s`` of the last look's seeds, the looks have spent ``2 - 2 Phi(z /
    sqrt(s))`` of the error, with the quantile z of ``1 - level / 2`` (Lan and DeMets
    1983). The probability of an error at any look is the level.

    Args:
      looks: rising numbers of pairs of seeds, each 5 or more.
      level: for all looks together, in (0, 1).
    """
    shares = np.array(looks) / looks[-1]
    spent = 2 * ndtr(ndtri(level / 2) / np.sqrt(shares))
    found: list[float] = []
    masses, gone = _TAILS[:-1] - _TAILS[1:], 0.0
    for look, before, total in zip(looks, (looks[0], *looks), spent, strict=False):
        masses = _go_on(masses, before, look)
        beyond = np.append(np.cumsum(masses[::-1])[::-1], 0.0)
        cell = int(np.clip(np.searchsorted(-beyond, gone - total) - 1, 0, None))
        cell = min(cell, len(masses) - 1)
        part = (total - gone - beyond[cell + 1]) / max(masses[cell], 1e-300)
        wide = _TAILS[cell] - _TAILS[cell + 1]
        found.append(float(_TAILS[cell + 1] + np.clip(part, 0, 1) * wide))
        masses, gone = masses * _kept(found[-1]), total
    return tuple(found)


def any_look_p(p: float, most: int, first: int = STEP) -> float:
    """Returns the p-value of the smallest p-value over the looks.

    It is ``S(p) = P(min over n of p_n <= p)`` for looks at each number n of pairs of
    seeds, from the first to the largest, if there is no difference.

    Args:
      p: the smallest p-value over the looks that were taken.
      most: largest number of seeds, at least ``first``.
      first: number of seeds at the first look, 2 or more.
    """
    table = _any_look(most, first)
    if p < _NOMINAL[0]:
        return (most - first + 1) * p
    return min(1.0, float(np.exp(np.interp(np.log(p), np.log(_NOMINAL), table))))


def any_look_level(most: int, first: int = STEP, level: float = LEVEL) -> float:
    """Returns the p-value whose ``any_look_p`` is a level."""
    table = _any_look(most, first)
    return float(np.exp(np.interp(np.log(level), table, np.log(_NOMINAL))))


@functools.cache
def _any_look(most: int, first: int) -> np.ndarray:
    """Returns the logarithms of S at the tabulated p-values."""
    every = np.stack([_kept(p) for p in _NOMINAL])
    masses = every * (_TAILS[:-1] - _TAILS[1:])
    for count in range(first, min(most, LIMIT)):
        masses = masses @ _kernel(count) * every
    looks = most - first + 1
    left = 1 - masses.sum(1) - _TAILS[-1]
    left += max(0, most - LIMIT) * _NOMINAL  # at most: each look by itself
    # Between the probability of one look, and the sum of those of all.
    return np.log(np.clip(left, _NOMINAL, np.minimum(1, looks * _NOMINAL)))


@functools.cache
def _planned(looks: tuple[int, ...]) -> np.ndarray:
    """Returns logarithms of the levels of K looks for L levels of the whole, [K, L]."""
    table = np.array([spending_levels(looks, float(level)) for level in _LEVELS])
    # They rise with the level of the whole. Where they would not, the bound is kept.
    rising = np.minimum.accumulate(table[::-1])[::-1]
    return np.log(np.maximum(rising, 1e-300)).T.copy()


def _kept(p: float) -> np.ndarray:
    """Returns the share of each cell that lies above a p-value."""
    return np.clip((_TAILS[:-1] - p) / (_TAILS[:-1] - _TAILS[1:]), 0, 1)


def _go_on(masses: np.ndarray, begin: int, end: int) -> np.ndarray:
    for count in range(begin, end):
        masses = masses @ _kernel(count)
    return masses


@functools.cache
def _kernel(count: int) -> np.ndarray:
    """Returns the probabilities to go from each cell to each with one more value."""
    nodes = (_EDGES[1:] + _EDGES[:-1]) / 2
    now, then = _root(count, nodes)[:, None], _root(count + 1, _EDGES)[None]
    ahead = np.arctan(now)
    angle = np.arcsin(np.minimum(then / np.sqrt(1 + now**2), 1))
    beyond = (angle + ahead < np.pi / 2).astype(float)
    beyond += stdtr(count, -math.sqrt(count) * np.tan(angle + ahead))
    beyond -= stdtr(count, math.sqrt(count) * np.tan(angle - ahead))
    beyond[:, 0], beyond[:, -1] = 1, 0
    return beyond[:, :-1] - beyond[:, 1:]


def _root(count: int, z: np.ndarray) -> np.ndarray:
    """Returns u of the t statistic that has the p-value of a normal z."""
    t = -stdtrit(count - 1, ndtr(-z))
    return t * np.sqrt(count / (count - 1 + t**2))
