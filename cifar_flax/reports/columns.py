"""Columns beside the test accuracy: further test images, and other metrics."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from cifar_flax.analysis.metrics import METRICS
from cifar_flax.analysis.statistics import (
    ci95_of_mean,
    interval_of_accuracy,
    percent_with_interval,
)
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.runs import RunRecord

ACCURACY = "accuracy"


class Figure(NamedTuple):
    """What is measured on what.

    Attributes:
      test: name of further test images; None for those of the data set.
      content: checksum of further test images; None for those of the data set.
      metric: name of the metric.
      code: checksum of the metric's own code; None for a named one.
    """

    test: str | None
    content: str | None
    metric: str
    code: str | None

    def of(self, run: RunRecord) -> list[float | None] | None:
        """Returns the value of each replica of a run; None if it was not measured."""
        if self not in figures_of(run):
            return None
        if self.test is None:
            return run.result.test_metrics[self.metric]
        also = run.result.also_test[self.test]
        return also.accuracy if self.metric == ACCURACY else also.metrics[self.metric]


def figures_of(run: RunRecord) -> list[Figure]:
    """Returns what a run has measured besides its test accuracy."""

    def code(metric: str) -> str | None:
        return run.config.codes.get(f"metrics.{metric}")

    found = [Figure(None, None, m, code(m)) for m in run.result.test_metrics]
    for name, also in run.result.also_test.items():
        found.append(Figure(name, also.fingerprint, ACCURACY, None))
        found += [Figure(name, also.fingerprint, m, code(m)) for m in also.metrics]
    return found


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure of all entries.

    Attributes:
      figure: what it is.
      name: unique name, such as ``test_ece`` or ``corrupt_accuracy``.
      lower_is_better: whether the entry with the lowest value is the best.
    """

    figure: Figure
    name: str
    lower_is_better: bool = False

    @property
    def is_share(self) -> bool:
        """Whether the values are shares, which are shown in per cent."""
        metric = self.figure.metric
        is_named = metric in METRICS and self.figure.code is None
        return metric == ACCURACY or (is_named and METRICS[metric].is_share)

    @property
    def heading(self) -> str:
        """Its name for a table."""
        return f"{self.words}, %" if self.is_share else self.words

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return self.name.replace("_", " ")

    def values(self, entry: Entry) -> dict[int, float]:
        """Returns the value of each finished seed that has one."""
        found = {}
        for run in entry.runs:
            values = self.figure.of(run) or []
            for index in run.finished if values else ():
                if (value := values[index]) is not None:
                    found[run.result.seeds[index]] = value
        return found

    def mean(self, entry: Entry) -> float | None:
        """Returns the mean over the seeds that have a value; None without one."""
        values = list(self.values(entry).values())
        return float(np.mean(values)) if values else None

    def interval(self, entry: Entry) -> tuple[float, float] | None:
        """Returns the 95 % interval of the mean over seeds.

        As for the test accuracy, the deviation of a share is at least one image, and
        the interval of one seed's accuracy is over the images. Other metrics of one
        seed have none, nor has a metric without a known scale whose values are equal.
        """
        values, mean = list(self.values(entry).values()), self.mean(entry)
        if mean is None:
            return None
        size = next((size for size in map(self._size, entry.runs) if size), 0)
        if self.figure.metric == ACCURACY:
            return interval_of_accuracy(values, size)
        half = ci95_of_mean(values, 1 / size if self.is_share and size else 0.0)
        if not half:
            return None
        ends = mean - half, mean + half
        return (max(0.0, ends[0]), min(1.0, ends[1])) if self.is_share else ends

    def _size(self, run: RunRecord) -> int | None:
        """Returns the number of images of a run; None if it has no such figure."""
        if self.figure.of(run) is None:
            return None
        test = self.figure.test
        return run.result.test_size if test is None else run.result.also_test[test].size

    def cell(self, entry: Entry) -> str:
        """Returns mean and interval as text, and of how many seeds if not of all."""
        mean, interval = self.mean(entry), self.interval(entry)
        if mean is None:
            return "-"
        if interval is None:
            text = f"{100 * mean:.2f}" if self.is_share else f"{mean:.4g}"
        elif self.is_share:
            text = percent_with_interval(mean, interval)
        else:
            text = f"{mean:.4g} ± {(interval[1] - interval[0]) / 2:.2g}"
        count, finished = len(self.values(entry)), len(entry.accuracies)
        return text if count == finished else f"{text} ({count} of {finished} seeds)"

    def better(self, entry: Entry) -> dict[int, float]:
        """Returns the values with the sign by which more is better."""
        sign = -1 if self.lower_is_better else 1
        return {seed: sign * value for seed, value in self.values(entry).items()}

    def validation(self, entry: Entry) -> float | None:
        """Returns its mean on the validation images at the end of training.

        It has the sign of ``better``, and is None if a run has not measured it.
        """
        if self.figure.metric == ACCURACY:
            return entry.validation
        values: list[float] = []
        for run in entry.runs:
            if not run.finished:
                continue
            of_seeds = (run.metrics[-1].val_metrics or {}).get(self.figure.metric)
            if of_seeds is None:
                return None
            values += [of_seeds[index] for index in run.finished]
        sign = -1 if self.lower_is_better else 1
        mean = float(np.mean(values)) if values else np.nan
        return sign * mean if np.isfinite(mean) else None


def columns_of(entries: Iterable[Entry]) -> list[Column]:
    """Returns a column for each figure that an entry has.

    Names that are equal although images or code differ are told apart by checksums.
    """
    runs = [run for entry in entries for run in entry.runs]
    figures = list(dict.fromkeys(one for run in runs for one in figures_of(run)))
    names = [f"{one.test or 'test'}_{one.metric}" for one in figures]
    columns = []
    for figure, name in zip(figures, names, strict=True):
        if names.count(name) > 1:
            checksums = (figure.content, figure.code)
            name = "_".join([name, *(one[:8] for one in checksums if one)])
        is_named = figure.metric in METRICS and figure.code is None
        lower = is_named and METRICS[figure.metric].lower_is_better
        columns.append(Column(figure, name, lower))
    return columns


def find_column(name: str, columns: Sequence[Column]) -> Column | None:
    """Returns the column of a name as ``--rank_by`` takes it, or None.

    A metric of the test images may be named without ``test_``. A minus in front says
    that lower values are better, as they are of errors without it.
    """
    plain = name.removeprefix("-")
    for column in columns:
        if column.name in (plain, f"test_{plain}"):
            lower = column.lower_is_better or name.startswith("-")
            return dataclasses.replace(column, lower_is_better=lower)
    return None
