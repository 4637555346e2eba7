"""The runs below a folder, read from their records and sorted into what compares.

Runs of one configuration, whatever their seeds and folders, are one entry. Entries that
trained and were tested on the same images with the same version are one study; only
within a study is anything compared.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.files import shell_word
from cifar_flax.reports.checks import check_records
from cifar_flax.reports.predictions import Calibration, calibrate
from cifar_flax.reports.statistics import (
    Difference,
    ci95_of_mean,
    ci95_of_share,
    difference_over_images,
    difference_over_seeds,
)


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
    """One finished run.

    Attributes:
      folder: that holds it.
      config: its ``config.json``.
      result: its ``result.json``.
      metrics: the lines of its ``metrics.jsonl``.
    """

    folder: pathlib.Path
    config: records.Config
    result: records.Result
    metrics: list[records.LogPoint]

    @property
    def settings(self) -> dict[str, Any]:
        """Those that decide its numbers, but for the seeds."""
        return self.config.deciding_settings

    @property
    def command(self) -> str:
        """That made it, without the places of this machine's files."""
        places = tuple(f"--{name}=" for name in (*records.PLACES, "workdir"))
        words = self.config.command
        kept = [word for word in words if not word.startswith(places)]
        if not kept:
            return "# made by a program"
        return " ".join(map(shell_word, ["python", *kept[1:]]))

    @functools.cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """Its ``predictions.npz``."""
        return records.read_predictions(self.folder)

    @functools.cached_property
    def range_test(self) -> records.RangeTest | None:
        """Its ``lr_find.json``, where there is one."""
        return records.read_range_test(self.folder)


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """All seeds of one configuration.

    Attributes:
      name: unique in its study.
      runs: that hold them.
    """

    name: str
    runs: list[RunRecord]

    @property
    def first(self) -> RunRecord:
        """For what is the same in all runs."""
        return self.runs[0]

    @functools.cached_property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy of each seed."""
        return {
            seed: accuracy
            for run in self.runs
            for seed, accuracy in zip(
                run.result.seeds, run.result.test_accuracy, strict=True
            )
        }

    @property
    def mean(self) -> float:
        """Mean of the test accuracies."""
        return float(np.mean(list(self.accuracies.values())))

    @property
    def spread(self) -> float | None:
        """Standard deviation of the test accuracies; None for one seed."""
        values = list(self.accuracies.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def half_width(self) -> float:
        """Half the 95 % interval: over seeds, or over the test images for one seed."""
        values = list(self.accuracies.values())
        return ci95_of_mean(values) or ci95_of_share(
            values[0], self.first.result.test_size
        )

    @property
    def seconds_per_seed(self) -> float:
        """Seconds of training, mean over the seeds."""
        seconds = sum(run.result.train_seconds for run in self.runs)
        return seconds / len(self.accuracies)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """Logits of the test images, [R, N, K]."""
        return np.concatenate([run.predictions["logits"] for run in self.runs])

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """Over all its seeds' predictions."""
        return calibrate(self.logits, self.labels)

    @property
    def diverged(self) -> list[int]:
        """Seeds that did not come to the end."""
        return [
            seed
            for run in self.runs
            for seed, at in zip(run.result.seeds, run.result.diverged_at, strict=True)
            if at is not None
        ]

    @property
    def labels(self) -> np.ndarray:
        """Labels of the test images, [N]."""
        return self.first.predictions["labels"]

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of the metrics.

        Args:
          name: as in ``metrics.jsonl``.

        Returns:
          Epochs [E], and the values [R, E] of the seeds that came to the end; R is 0
          where it was not recorded.
        """
        whole = [run for run in self.runs if run.result.status == "finished"]
        if not whole:
            return np.empty(0), np.empty((0, 0))
        epochs = np.array([line.epoch for line in whole[0].metrics])
        rows = []
        for run in whole:
            values = [np.atleast_1d(getattr(line, name)) for line in run.metrics]
            rows.append(np.array(values, dtype=np.float64).T)  # None becomes NaN
        table = np.concatenate(rows)
        return epochs, table[~np.isnan(table).any(1)]


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """Entries that may be compared.

    Attributes:
      dataset: what they share.
      version: of this package, that trained them.
      entries: the best first.
    """

    dataset: records.DatasetInfo
    version: str
    entries: list[Entry]

    @functools.cached_property
    def comparisons(self) -> list[tuple[Entry, Entry, Difference]]:
        """Every pair, the better one first, corrected for the number of pairs."""
        pairs = list(itertools.combinations(self.entries, 2))
        return [
            (first, second, compare(first, second, len(pairs)))
            for first, second in pairs
        ]

    @functools.cached_property
    def differing(self) -> list[str]:
        """Settings that are not the same in all entries."""
        every = [entry.first.settings for entry in self.entries]
        return [
            name
            for name in dict.fromkeys(itertools.chain(*every))
            if any(settings.get(name) != every[0].get(name) for settings in every)
        ]


def compare(first: Entry, second: Entry, comparisons: int) -> Difference:
    """Difference of two entries: by the seeds they share, else by the test images."""
    seeds = sorted(first.accuracies.keys() & second.accuracies.keys())
    if len(seeds) > 1:
        pairs = [[e.accuracies[seed] for seed in seeds] for e in (first, second)]
        return difference_over_seeds(pairs[0], pairs[1], comparisons)
    right = [entry.logits[0].argmax(-1) == entry.labels for entry in (first, second)]
    return difference_over_images(right[0], right[1], comparisons)


def read_studies(folder: pathlib.Path) -> tuple[list[Study], list[str]]:
    """The studies of all finished runs below a folder, the largest first.

    Returns:
      The studies, and a line for each run that is left out, with the reason.

    Raises:
      UserError: there is no such folder, or no finished run in it.
    """
    if not os.path.isdir(folder):  # False for too long a name
        raise UserError(f"{folder} is not a folder; --runs names one that holds runs")
    runs, left_out = _read_runs(folder)
    if not runs:
        why = f": {left_out[0]}" if left_out else ""
        raise UserError(f"{folder} holds no finished run{why}")
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(repr(_study_key(run)), []).append(run)
    studies = [_make_study(group, left_out) for group in groups.values()]
    return sorted(studies, key=lambda study: -len(study.entries)), left_out


def _read_runs(folder: pathlib.Path) -> tuple[list[RunRecord], list[str]]:
    runs, left_out = [], []
    for path, folders, files in os.walk(folder):
        folders.sort()
        if records.CONFIG not in files:
            continue
        folders.clear()  # what lies in a run's folder is no run
        try:
            runs.append(_read_run(pathlib.Path(path)))
        except UserError as error:
            left_out.append(str(error))
    return runs, left_out


def _read_run(folder: pathlib.Path) -> RunRecord:
    """A run; UserError with the reason where it is none that can be compared."""
    config = records.read_config(folder)
    if config.kind != "run":
        raise UserError(f"{folder} holds the outcome of {config.kind}, not of a run")
    result = records.read_result(folder)
    if result is None:
        raise UserError(f"{folder} is not finished")
    run = RunRecord(folder, config, result, records.read_metrics(folder))
    check_records(folder, config, result, run.metrics, run.predictions)
    _ = run.range_test  # damaged, the run is left out
    return run


def _study_key(run: RunRecord) -> tuple:
    data, labels = run.config.dataset, run.predictions["labels"].astype("<i8")
    sizes = ("train_size", "val_size", "test_size")
    return (
        *(getattr(data, n) for n in ("name", "fingerprint", "class_names", *sizes)),
        hashlib.sha256(labels.tobytes()).hexdigest(),
        run.config.versions.get("cifar-flax"),
    )


def _make_study(runs: list[RunRecord], left_out: list[str]) -> Study:
    by_settings: dict[str, list[RunRecord]] = {}
    for run in runs:
        same = by_settings.setdefault(repr(sorted(run.settings.items())), [])
        taken = {seed for other in same for seed in other.result.seeds}
        twice = taken & set(run.result.seeds)
        if twice:
            left_out.append(
                f"{run.folder} repeats seed {min(twice)} of {same[0].folder}"
            )
        else:
            same.append(run)
    groups = list(by_settings.values())
    names = _names([group[0] for group in groups])
    entries = [Entry(*pair) for pair in zip(names, groups, strict=True)]
    config = runs[0].config
    return Study(
        dataset=config.dataset,
        version=config.versions.get("cifar-flax", "of no known version"),
        entries=sorted(entries, key=lambda entry: -entry.mean),
    )


def _names(runs: list[RunRecord]) -> list[str]:
    """The model, and what tells a run from the other runs of its model."""
    names = []
    for run in runs:
        others = [r.settings for r in runs if r.config.model == run.result.model]
        own = run.settings
        varied = [n for n in own if any(other.get(n) != own[n] for other in others)]
        words = [f"{name}={own[name]}" for name in varied]
        names.append(" ".join([run.result.model, *words]))
    return names
