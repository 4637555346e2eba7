"""The curves of a learning-rate range test: what rates they suggest, and their figure.

Needs no JAX: a curve read from a record serves as well as one just measured.

References:
  Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017,
  https://arxiv.org/abs/1506.01186
  Howard and others, fastai, https://docs.fast.ai/callback.schedule.html: steepest,
  minimum / 10, valley and slide.
"""

import bisect
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cifar_flax.errors import UserError
from cifar_flax.records import RangeTest

MIN_STEPS = 20

# Part of the test's steps that ``lowest`` averages over. In the grid of
# ``experiments.lr_grid`` the rates that it gives are equally good from a twelfth to a
# seventh.
WINDOW_SHARE = 1 / 8

# Where the largest suggestion is more than this many times the smallest, the seeds
# disagree. Of five seeds that spread is about the 95 % interval of their geometric
# mean; in the grid of ``experiments.lr_grid`` the rates that cost less than three
# points of accuracy span a factor of 2.8 where it is narrowest, and 11 where widest.
MAX_SPREAD = 2.8


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """The curve of one seed over the steps that it took.

    Attributes:
      rates: float64 [S], rising.
      losses: of the batch of each step, before its update, float64 [S].
      smoothed: the debiased moving average of them, float64 [S].
      num_steps: of the test; S is smaller where the curve broke off.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    num_steps: int

    @property
    def window(self) -> int:
        """Steps that ``averages`` is over, an odd number."""
        return max(3, int(self.num_steps * WINDOW_SHARE)) // 2 * 2 + 1

    @property
    def averages(self) -> np.ndarray:
        """Centred means of the losses over the window, [S - window + 1]."""
        return sliding_window_view(self.losses, self.window).mean(-1)

    def falls(self) -> bool:
        """Whether the loss falls by more than its noise.

        From the first steps to the lowest, both averaged over the window, by more than
        four standard errors of such a difference. The noise of a single loss
        is estimated from the median difference of neighbours, which neither the
        trend nor the end, where the loss breaks away, disturbs.
        """
        if len(self.losses) < max(MIN_STEPS, self.window):
            return False
        noise = np.median(np.abs(np.diff(self.losses))) / 0.6745 / np.sqrt(2)
        fall = self.averages[0] - self.averages.min()
        return bool(fall > 4 * noise * np.sqrt(2 / self.window))


def lowest(curve: Curve) -> float:
    """The rate at the lowest loss, averaged over an eighth of the test's steps.

    The average is centred. The customary smoothing looks back instead: at 0.98 it lags
    by 49 steps, over which the rate of a short test rises by orders of magnitude.
    """
    return float(curve.rates[int(curve.averages.argmin()) + curve.window // 2])


def steepest(curve: Curve) -> float:
    """Where the smoothed loss falls fastest: ``argmin d loss / d log(rate)``.

    The first ten steps, whose average is of few losses, and the last five, where the
    loss breaks away, are left out, as is the custom.
    """
    slope = np.gradient(curve.smoothed, np.log(curve.rates))[10:-5]
    at = int(np.argmin(slope))
    return float(curve.rates[10 + at]) if slope[at] < 0 else np.nan


def minimum_tenth(curve: Curve) -> float:
    """A tenth of the rate at the lowest smoothed loss."""
    return float(curve.rates[int(np.argmin(curve.smoothed))]) / 10


def valley(curve: Curve) -> float:
    """The middle of the longest falling part of the smoothed loss.

    Of its longest decreasing subsequence, as long as L steps and ending at step e, the
    rate at step ``e - L / 2``.
    """
    lengths = np.ones(len(curve.smoothed), int)
    tails: list[float] = []
    for i, height in enumerate(-curve.smoothed):
        # tails[k] ends the highest of the subsequences of length k + 1 so far.
        at = bisect.bisect_left(tails, height)
        tails[at : at + 1] = [height]
        lengths[i] = at + 1
    end = int(np.argmax(lengths))
    length = int(lengths[end])
    return float(curve.rates[max(0, end - length // 2)]) if length > 2 else np.nan


def slide(curve: Curve) -> float:
    """The left end of the window at which the slope changes least, from the right.

    A window of 15 steps slides to smaller rates from where the smoothed loss breaks
    away, for as long as the slopes at its two ends differ by more than 0.05.
    """
    width, threshold = 15, 0.05
    slope = np.gradient(curve.smoothed, np.log(curve.rates))
    for right in range(len(slope) - 1, width - 1, -1):
        if abs(slope[right] - slope[right - width]) <= threshold:
            return float(curve.rates[right - width])
    return np.nan


METHODS: dict[str, Callable[[Curve], float]] = {
    "lowest": lowest,
    "steepest": steepest,
    "minimum/10": minimum_tenth,
    "valley": valley,
    "slide": slide,
}

DEFAULT_METHOD = "lowest"


@dataclasses.dataclass(frozen=True, eq=False)
class Consensus:
    """What the seeds together suggest.

    Attributes:
      method: that read the curves.
      rates: what it suggests for each replica, [R]; NaN where it shows none.
      rate: geometric mean over the seeds, to two digits; None where the test is
        inconclusive.
      spread: the largest suggestion over the smallest; None for a single seed.
      problem: why the test is inconclusive, a sentence without its full stop; else
        None.
    """

    method: str
    rates: np.ndarray
    rate: float | None
    spread: float | None
    problem: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class RangeResult:
    """The curves of R replicas over S steps.

    Attributes:
      seeds: one a replica.
      num_steps: that the test was to take; S is smaller where every replica stopped
        early.
      rates: of the steps, float64 [S].
      losses: of the batch of each step, before its update, float64 [R, S]; NaN from
        where the replica stopped.
      smoothed: the debiased moving average of them, float64 [R, S].
      seconds: that the steps of all replicas took.
      compile_seconds: before them.
    """

    seeds: tuple[int, ...]
    num_steps: int
    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    seconds: float = 0.0
    compile_seconds: float = 0.0

    @classmethod
    def from_record(cls, record: RangeTest) -> "RangeResult":
        """From ``lr_find.json``, where null stands for NaN."""
        return cls(
            seeds=tuple(record.seeds),
            num_steps=record.num_steps,
            rates=np.array(record.rates, np.float64),
            losses=np.array(record.losses, np.float64),
            smoothed=np.array(record.smoothed, np.float64),
            seconds=record.seconds,
            compile_seconds=record.compile_seconds,
        )

    def __repr__(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"RangeResult({len(self.rates)} of {self.num_steps} steps, seeds {seeds}, "
            f"suggested rate {self.consensus().rate})"
        )

    def curve(self, replica: int) -> Curve:
        """The curve of one replica, over the steps that it took."""
        count = int(np.isfinite(self.losses[replica]).sum())
        return Curve(
            self.rates[:count],
            self.losses[replica, :count],
            self.smoothed[replica, :count],
            num_steps=self.num_steps,
        )

    def suggest(self, method: str = DEFAULT_METHOD) -> np.ndarray:
        """The rate that a method reads off the curve of each replica.

        Args:
          method: a key of ``METHODS``.

        Returns:
          [R]; NaN where the loss does not fall, or the method finds nothing.

        Raises:
          UserError: no such method.
        """
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise UserError(f"no method {method!r}; the methods are {known}")
        curves = [self.curve(replica) for replica in range(len(self.seeds))]
        rates = [METHODS[method](c) if c.falls() else np.nan for c in curves]
        return np.array(rates)

    def consensus(self, method: str = DEFAULT_METHOD) -> Consensus:
        """One rate for all replicas, or why there is none.

        Args:
          method: a key of ``METHODS``.
        """
        rates = self.suggest(method)
        good = rates[np.isfinite(rates)]
        spread = float(good.max() / good.min()) if len(good) > 1 else None
        problem = self._problem(rates, spread)
        rate = None if problem else float(f"{np.exp(np.log(good).mean()):.2g}")
        return Consensus(method, rates, rate, spread, problem)

    def _problem(self, rates: np.ndarray, spread: float | None) -> str | None:
        first, last = self.rates[0], self.rates[-1]
        missing = [
            str(seed)
            for seed, rate in zip(self.seeds, rates, strict=True)
            if not np.isfinite(rate)
        ]
        if len(missing) == len(self.seeds):
            return (
                f"the loss of no seed falls at rates from {first:.2g} to {last:.2g}; "
                "the model does not learn there"
            )
        if missing:
            return (
                f"it shows no rate for {len(missing)} of {len(self.seeds)} seeds "
                + (f"({', '.join(missing)})")
            )
        ends = [self._lowest_at_end(replica) for replica in range(len(self.seeds))]
        if sum(ends) * 2 > len(ends):
            return f"the loss still falls at the last rate, {last:.2g}; raise end_lr"
        if spread is not None and spread > MAX_SPREAD:
            return (
                f"the seeds suggest {rates.min():.2g} to {rates.max():.2g}, a factor "
                f"of {spread:.1f}, and no rate can stand for more than "
                f"{MAX_SPREAD:g}; take more steps"
            )
        return None

    def _lowest_at_end(self, replica: int) -> bool:
        curve = self.curve(replica)
        averages = curve.averages
        whole = len(curve.losses) == self.num_steps
        return whole and bool(averages.argmin() >= len(averages) - curve.window // 2)

    def plot(self, axis: Any, method: str = DEFAULT_METHOD) -> None:
        """Draws the curves with their suggestions.

        The first ten and the last five steps are left out, as is the custom.

        Args:
          axis: of matplotlib.
          method: whose consensus is drawn boldly.
        """
        shown = slice(10, -5) if len(self.rates) >= 2 * MIN_STEPS else slice(None)
        rates, smoothed = self.rates[shown], self.smoothed[:, shown]
        losses = self.losses[:, shown]
        axis.plot(rates, losses.T, color="0.8", linewidth=0.6, zorder=1)
        axis.plot([], [], color="0.8", label="loss of a batch")
        low, high = np.nanmin(smoothed, 0), np.nanmax(smoothed, 0)
        axis.fill_between(rates, low, high, color="C0", alpha=0.3, linewidth=0)
        count = len(self.seeds)
        label = (
            "smoothed" if count == 1 else f"smoothed, mean and range of {count} seeds"
        )
        axis.plot(rates, smoothed.mean(0), color="C0", label=label)
        curves = [self.curve(replica) for replica in range(count)]
        window = curves[0].window
        if all(len(curve.losses) >= window for curve in curves):
            averages = [curve.averages for curve in curves]
            common = min(len(one) for one in averages)
            mean = np.mean([one[:common] for one in averages], 0)
            middles = self.rates[window // 2 :][:common]
            label = f"mean over {window} steps and the seeds"
            axis.plot(middles, mean, color="black", label=label)
        for number, name in enumerate(METHODS, start=1):
            found = self.consensus(name)
            bold = name == method
            axis.axvline(
                np.nan if found.rate is None else found.rate,
                color=f"C{number}",
                linewidth=2 if bold else 1,
                linestyle="-" if bold else "--",
                label=f"{name}: "
                + ("inconclusive" if found.rate is None else f"{found.rate:.2g}"),
            )
        # What it starts from and falls to is the message, not how far it breaks away.
        bottom, top = np.nanmin(losses), np.nanmax(losses[:, :10])
        room = 0.1 * (top - bottom) or 1.0
        axis.set(
            xscale="log",
            xlim=(rates[0], rates[-1]),
            ylim=(bottom - room, top + 3 * room),
            xlabel="learning rate",
            ylabel="loss",
        )
        # Below the axes: anywhere in them it would hide a part of the curves.
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9
        )
