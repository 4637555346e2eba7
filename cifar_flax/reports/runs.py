"""The runs below a folder, read from their records and sorted into what compares.

Runs of one configuration, whatever their seeds and folders, are one entry. Entries that
trained and were tested on the same images with the same version are one study; only
within a study is anything compared.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from cifar_flax import records
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import shell_word
from cifar_flax.reports.checks import check_records
from cifar_flax.reports.predictions import Calibration, Scores, score
from cifar_flax.reports.statistics import (
    Difference,
    ci95_of_mean,
    ci95_of_share,
    difference_over_images,
    difference_over_seeds,
)

# A study of more entries than this is large: only its best are compared with each
# other and drawn over the epochs. Up to it, all are: 190 pairs.
WHOLE = 20
BEST = 10


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
    """One finished run; of its predictions, which are large, what is needed of each.

    Attributes:
      folder: that holds it.
      config: its ``config.json``.
      result: its ``result.json``.
      metrics: the lines of its ``metrics.jsonl``.
      scores: of its predictions.
      right: whether the first replica classifies each test image correctly, bool [N].
      labels_sha256: of the labels of the test images.
    """

    folder: pathlib.Path
    config: records.Config
    result: records.Result
    metrics: list[records.LogPoint]
    scores: Scores
    right: np.ndarray
    labels_sha256: str

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

    @property
    def predictions(self) -> dict[str, np.ndarray]:
        """Its ``predictions.npz``, read anew each time."""
        return records.read_predictions(self.folder)

    @property
    def range_test(self) -> records.RangeTest | None:
        """Its ``lr_find.json``, read anew each time; None where there is none."""
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

    @property
    def predictions(self) -> list[dict[str, np.ndarray]]:
        """The ``predictions.npz`` of each run, read anew each time."""
        return [run.predictions for run in self.runs]

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """Over all its seeds' predictions."""
        first, *others = (run.scores for run in self.runs)
        return sum(others, start=first).calibration

    @property
    def diverged(self) -> list[int]:
        """Seeds that did not come to the end."""
        return [
            seed
            for run in self.runs
            for seed, at in zip(run.result.seeds, run.result.diverged_at, strict=True)
            if at is not None
        ]

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
      key: what tells it from other studies.
      entries: the best first.
      baseline: the entry with which all others are compared; None: those of ``best``
        are compared with each other.
    """

    dataset: records.DatasetInfo
    version: str
    key: str
    entries: list[Entry]
    baseline: Entry | None = None

    @property
    def is_large(self) -> bool:
        """Whether it has too many entries to compare and to draw all of them."""
        return len(self.entries) > WHOLE

    @property
    def best(self) -> list[Entry]:
        """The best entries of a large study, all of another one."""
        return self.entries[:BEST] if self.is_large else self.entries

    @property
    def shown(self) -> list[Entry]:
        """The best entries, and the baseline."""
        others = [self.baseline] if self.baseline else []
        return [*self.best, *(entry for entry in others if entry not in self.best)]

    @functools.cached_property
    def comparisons(self) -> list[tuple[Entry, Entry, Difference]]:
        """What is compared, corrected for the number of these comparisons.

        All entries with the baseline where there is one, else every pair of the best
        entries, the better one first. Both are corrected for what is compared, and not
        for all pairs: choosing the best by the same accuracies makes no difference
        appear among them, since it leaves out those that lie far apart.
        """
        pairs = list(itertools.combinations(self.best, 2))
        if self.baseline is not None:
            others = [entry for entry in self.entries if entry is not self.baseline]
            pairs = [(entry, self.baseline) for entry in others]
        return [
            (first, second, compare(first, second, len(pairs)))
            for first, second in pairs
        ]

    @functools.cached_property
    def differing(self) -> list[str]:
        """Settings that are not the same in all entries."""
        return _differing([entry.first.settings for entry in self.entries])


def compare(first: Entry, second: Entry, comparisons: int) -> Difference:
    """Difference of two entries: by the seeds they share, else by the test images."""
    seeds = sorted(first.accuracies.keys() & second.accuracies.keys())
    if len(seeds) > 1:
        pairs = [[e.accuracies[seed] for seed in seeds] for e in (first, second)]
        return difference_over_seeds(pairs[0], pairs[1], comparisons)
    return difference_over_images(first.first.right, second.first.right, comparisons)


def read_studies(
    folder: pathlib.Path, baseline: str | None = None
) -> tuple[list[Study], list[str]]:
    """The studies of all finished runs below a folder, the largest first.

    Args:
      folder: that holds them, at any depth.
      baseline: name of the entry with which the others of its study are compared.

    Returns:
      The studies, and a line for each run that is left out, with the reason.

    Raises:
      UserError: there is no such folder, no finished run in it, or no such entry.
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
    studies = [_make_study(*group, left_out) for group in groups.items()]
    if baseline is not None:
        studies = _with_baseline(studies, baseline)
    return sorted(studies, key=lambda study: -len(study.entries)), left_out


def _with_baseline(studies: list[Study], name: str) -> list[Study]:
    """The studies; those that have an entry of this name with it as their baseline."""
    names = [entry.name for study in studies for entry in study.entries]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0)
        shown = ", ".join(one_line(repr(word), 100) for word in near)
        raise UserError(
            f"--baseline={one_line(name, 100)}: none of the {len(names)} "
            f"configurations has this name; the nearest are {shown}"
        )
    named = [{entry.name: entry for entry in study.entries} for study in studies]
    return [
        dataclasses.replace(study, baseline=entries.get(name))
        for study, entries in zip(studies, named, strict=True)
    ]


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
    metrics, arrays = records.read_metrics(folder), records.read_predictions(folder)
    check_records(folder, config, result, metrics, arrays)
    records.read_range_test(folder)  # damaged, the run is left out
    logits, labels = arrays["logits"], arrays["labels"]
    return RunRecord(
        folder,
        config,
        result,
        metrics,
        scores=score(logits, labels),
        right=logits[0].argmax(-1) == labels,
        labels_sha256=hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest(),
    )


def _study_key(run: RunRecord) -> tuple:
    data = run.config.dataset
    sizes = ("train_size", "val_size", "test_size")
    return (
        *(getattr(data, n) for n in ("name", "fingerprint", "class_names", *sizes)),
        run.labels_sha256,
        run.config.versions.get("cifar-flax"),
    )


def _make_study(key: str, runs: list[RunRecord], left_out: list[str]) -> Study:
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
        key=key,
        entries=sorted(entries, key=lambda entry: -entry.mean),
    )


def _names(runs: list[RunRecord]) -> list[str]:
    """The model, and what tells a run from the other runs of its model."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_model.setdefault(run.result.model, []).append(run.settings)
    varied = {model: set(_differing(every)) for model, every in by_model.items()}
    names = []
    for run in runs:
        model, own = run.result.model, run.settings
        words = [f"{name}={own[name]}" for name in own if name in varied[model]]
        names.append(" ".join([model, *words]))
    return names


def _differing(every: list[dict[str, Any]]) -> list[str]:
    """Settings that are not the same in all of these."""
    return [
        name
        for name in dict.fromkeys(itertools.chain(*every))
        if any(settings.get(name) != every[0].get(name) for settings in every)
    ]
