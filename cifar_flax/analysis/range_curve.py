"""The curves of a learning-rate range test: the suggested rates, and their figure.

This module needs no JAX, so that a report can draw the curves of a record.

References:
  Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017,
  https://arxiv.org/abs/1506.01186
  Howard and others, fastai, https://docs.fast.ai/callback.schedule.html: steepest,
  minimum / 10, valley and slide.
"""

import bisect
import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cifar_flax.errors import UserError
from cifar_flax.records import RangeTest

MIN_STEPS = 20

# ``lowest`` averages over this share of the test's steps. In the grid of
# ``benchmarks.lr_grid``, shares from a twelfth to a seventh give equally good rates.
WINDOW_SHARE = 1 / 8

# The seeds disagree if the largest suggestion exceeds the smallest by more than this
# factor. With five seeds, this spread is about the 95 % interval of their geometric
# mean. In the grid of ``benchmarks.lr_grid``, the rates that cost less than three
# points of accuracy span a factor of 2.8 to 11.
MAX_SPREAD = 2.8


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """The curve of one seed.

    Attributes:
      rates: rising rates, float64 [S].
      losses: loss of each step's batch before the update, float64 [S].
      smoothed: debiased moving average of the losses, float64 [S].
      num_steps: number of steps of the test; S is smaller if the curve ended early.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    num_steps: int

    @property
    def window(self) -> int:
        """Number of steps of the window of ``averages``; it is odd."""
        return max(3, int(self.num_steps * WINDOW_SHARE)) // 2 * 2 + 1

    @property
    def averages(self) -> np.ndarray:
        """Centred means of the losses over the window, [S - window + 1]."""
        return sliding_window_view(self.losses, self.window).mean(-1)

    def falls(self) -> bool:
        """Returns whether the loss falls by more than its noise.

        The fall from the first window to the lowest one must exceed four standard
        errors of such a difference. The noise of a single loss is estimated from the
        median difference of neighbouring losses, which is robust to the trend and to
        the end of the curve, where the loss diverges.
        """
        if len(self.losses) < max(MIN_STEPS, self.window):
            return False
        noise = np.median(np.abs(np.diff(self.losses))) / 0.6745 / np.sqrt(2)
        fall = self.averages[0] - self.averages.min()
        return bool(fall > 4 * noise * np.sqrt(2 / self.window))


def lowest(curve: Curve) -> float:
    """Returns the rate at the lowest loss, averaged over an eighth of the test's steps.

    The average is centred. The usual exponential smoothing looks back instead: with
    0.98 it lags by 49 steps, in which the rate of a short test rises by orders of
    magnitude.
    """
    return float(curve.rates[int(curve.averages.argmin()) + curve.window // 2])


def steepest(curve: Curve) -> float:
    """Returns where the smoothed loss falls fastest: ``argmin d loss / d log(rate)``.

    As usual, it leaves out the first ten steps, where the average contains few losses,
    and the last five, where the loss diverges.
    """
    slope = np.gradient(curve.smoothed, np.log(curve.rates))[10:-5]
    at = int(np.argmin(slope))
    return float(curve.rates[10 + at]) if slope[at] < 0 else np.nan


def minimum_tenth(curve: Curve) -> float:
    """Returns a tenth of the rate at the lowest smoothed loss."""
    return float(curve.rates[int(np.argmin(curve.smoothed))]) / 10


def valley(curve: Curve) -> float:
    """Returns the middle of the longest falling part of the smoothed loss.

    If its longest decreasing subsequence has L steps and ends at step e, this is the
    rate at step ``e - L / 2``.
    """
    lengths = np.ones(len(curve.smoothed), int)
    tails: list[float] = []
    for i, height in enumerate(-curve.smoothed):
        # tails[k] is the last value of the best subsequence of length k + 1 so far.
        at = bisect.bisect_left(tails, height)
        tails[at : at + 1] = [height]
        lengths[i] = at + 1
    end = int(np.argmax(lengths))
    length = int(lengths[end])
    return float(curve.rates[max(0, end - length // 2)]) if length > 2 else np.nan


def slide(curve: Curve) -> float:
    """Returns the left end of the first window from the right with a steady slope.

    A window of 15 steps slides to smaller rates from the end of the curve, as long as
    the slopes at its two ends differ by more than 0.05.
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
    """The suggestion of all seeds together.

    Attributes:
      method: name of the method.
      rates: suggestion for each replica, [R]; NaN if there is none.
      rate: geometric mean over the seeds, to two digits; None if the test is
        inconclusive.
      spread: ratio of the largest to the smallest suggestion; None for a single seed.
      problem: the reason why the test is inconclusive, without a full stop; None if it
        is conclusive.
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
      seeds: one per replica.
      num_steps: planned number of steps; S is smaller if every replica stopped early.
      rates: rate of each step, float64 [S].
      losses: loss of each step's batch before the update, float64 [R, S]; NaN after the
        replica has stopped.
      smoothed: debiased moving average of the losses, float64 [R, S].
      seconds: duration of the steps of all replicas.
      compile_seconds: duration of the compilation.
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
        """Makes the curves from ``lr_find.json``, in which null stands for NaN."""
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
          [R]; NaN if the loss does not fall, or the method finds no rate.

        Raises:
          UserError: there is no such method.
        """
        if method not in METHODS:
            known = ", ".join(METHODS)
            raise UserError(f"there is no method {method!r}; the methods are {known}")
        curves = [self.curve(replica) for replica in range(len(self.seeds))]
        rates = [METHODS[method](c) if c.falls() else np.nan for c in curves]
        return np.array(rates)

    def consensus(self, method: str = DEFAULT_METHOD) -> Consensus:
        """Returns one rate for all replicas, or the reason why there is none.

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
                f"the loss does not fall for any seed at rates from {first:.2g} to "
                f"{last:.2g}; the model does not learn at these rates"
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
                f"of {spread:.1f}; their suggestions must agree within a factor of "
                f"{MAX_SPREAD:g}; take more steps"
            )
        return None

    def _lowest_at_end(self, replica: int) -> bool:
        curve = self.curve(replica)
        averages = curve.averages
        whole = len(curve.losses) == self.num_steps
        return whole and bool(averages.argmin() >= len(averages) - curve.window // 2)

    def plot(self, axis: Any, method: str = DEFAULT_METHOD) -> None:
        """Draws the curves with the suggestions.

        As usual, the first ten and the last five steps are left out.

        Args:
          axis: axes of Matplotlib.
          method: the method whose consensus is drawn with a bold line.
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
            over = " and the seeds" if count > 1 else ""
            label = f"mean over {window} steps{over}"
            axis.plot(middles, mean, color="black", label=label)
        suggested = self._plot_suggestions(axis, method)
        # The limits show where the loss starts and how far it falls, not its
        # divergence.
        bottom, top = np.nanmin(losses), np.nanmax(losses[:, :10])
        room = 0.1 * (top - bottom) or 1.0
        axis.set(
            xscale="log",
            xlim=(min([rates[0], *suggested]), rates[-1]),
            ylim=(bottom - room, top + 3 * room),
            xlabel="learning rate",
            ylabel="loss",
        )
        # Inside the axes the legend would hide a part of the curves.
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9
        )

    def _plot_suggestions(self, axis: Any, method: str) -> list[float]:
        """Draws a line at each suggested rate; returns the rates."""
        suggested, missing = [], []
        for number, name in enumerate(METHODS, start=1):
            rate = self.consensus(name).rate
            if rate is None:
                missing.append(name)
                continue
            suggested.append(rate)
            bold = name == method
            axis.axvline(
                rate,
                color=f"C{number}",
                linewidth=2 if bold else 1,
                linestyle="-" if bold else "--",
                label=f"rate by {name}: {rate:.2g}",
            )
        if missing:  # a line of the legend without a mark
            label = f"no rate by {', '.join(missing)}"
            axis.plot([], [], " ", label=textwrap.fill(label, 36))
        return suggested
