"""Puts the seeds of one configuration together, from any number of runs."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from cifar_flax.analysis.predictions import Calibration
from cifar_flax.analysis.statistics import interval_of_accuracy
from cifar_flax.identity import (
    bits_of,
    configuration_of,
    differing_parts,
    parts_of,
    recorded_of,
)
from cifar_flax.reports.runs import RunRecord

# Parts of a recipe that a name tells.
MOST_PARTS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """All seeds of one configuration.

    Attributes:
      name: name that is unique in its study.
      runs: the runs of the seeds.
    """

    name: str
    runs: list[RunRecord]

    def with_seeds(self, kept: Callable[[int], bool]) -> "Entry | None":
        """Returns this entry with some of its seeds; None if it has none of them."""
        runs = []
        for run in self.runs:
            rows = tuple(i for i in run.replicas if kept(run.result.seeds[i]))
            if rows:
                runs.append(dataclasses.replace(run, replicas=rows))
        return Entry(self.name, runs) if runs else None

    @property
    def first(self) -> RunRecord:
        """The first run, for properties that all runs share."""
        return self.runs[0]

    @functools.cached_property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy of each finished seed."""
        return {
            seed.number: seed.accuracy
            for run in self.runs
            for seed in run.seeds
            if seed.diverged_at is None and seed.accuracy is not None
        }

    @functools.cached_property
    def diverged(self) -> list[int]:
        """Seeds that diverged."""
        every = [seed for run in self.runs for seed in run.seeds]
        return [seed.number for seed in every if seed.diverged_at is not None]

    @property
    def seeds(self) -> list[int]:
        """All seeds, including diverged ones."""
        return sorted([*self.accuracies, *self.diverged])

    @property
    def mean(self) -> float:
        """Mean test accuracy of the finished seeds; NaN if there is none.

        The mean of equal accuracies is exactly their value.
        """
        values = list(self.accuracies.values())
        return (
            values[0] + float(np.mean(np.subtract(values, values[0])))
            if values
            else np.nan
        )

    @property
    def mean_of_all(self) -> float:
        """Mean test accuracy of all seeds; a diverged seed counts as 0."""
        return (
            self.mean * len(self.accuracies) / len(self.seeds)
            if self.accuracies
            else 0.0
        )

    @property
    def spread(self) -> float | None:
        """Standard deviation of the test accuracies; None for fewer than two seeds."""
        values = list(self.accuracies.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval over seeds, or over the test images for one seed."""
        values = list(self.accuracies.values())
        return interval_of_accuracy(values, self.first.result.test_size)

    @functools.cached_property
    def right(self) -> np.ndarray | None:
        """Whether each finished seed classifies each image correctly, bool [n, N].

        It is None if some predictions are not known.
        """
        runs = [run for run in self.runs if run.finished]
        if not runs or not all(run.has_predictions for run in runs):
            return None
        return np.concatenate([run.right for run in runs])

    @functools.cached_property
    def validation(self) -> float | None:
        """Mean accuracy on the validation split at the end of training."""
        _, values = self.curve("val_accuracy")
        return float(values[:, -1].mean()) if len(values) else None

    @property
    def rates(self) -> tuple[float, float] | None:
        """The lowest and the highest learning rate of its runs; None if not known."""
        rates = [run.used.get("lr") for run in self.runs]
        known = [rate for rate in rates if isinstance(rate, int | float)]
        return (min(known), max(known)) if len(known) == len(rates) else None

    @property
    def seconds_per_seed(self) -> float:
        """Mean training time of a seed; 0 if it is not known."""
        return sum(run.seconds for run in self.runs) / len(self.seeds)

    @property
    def predictions(self) -> list[dict[str, np.ndarray]]:
        """The ``predictions.npz`` of the finished seeds, read at each access."""
        return [run.predictions for run in self.runs if run.has_predictions]

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """Calibration of the predictions of all finished seeds."""
        pairs = [(run, index) for run in self.runs for index in run.finished]
        if not pairs or not all(run.scores for run, _ in pairs):
            return None
        first, *others = (run.scores[index] for run, index in pairs)
        return sum(others, start=first).calibration

    @property
    def commands(self) -> list[str]:
        """The commands that repeat its runs, or a comment for those of a table."""
        return list(dict.fromkeys(run.command for run in self.runs))

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns a metric over the epochs.

        Args:
          name: name in ``metrics.jsonl``.

        Returns:
          Epochs [E], and the values [R, E] of the finished seeds; R is 0 if the metric
          was not recorded.
        """
        whole = [run for run in self.runs if run.result.status == "finished"]
        if not whole:
            return np.empty(0), np.empty((0, 0))
        epochs = np.array([line.epoch for line in whole[0].metrics])
        rows = []
        for run in whole:
            values = [np.atleast_1d(getattr(line, name)) for line in run.metrics]
            columns = np.array(values, dtype=np.float64).T  # None becomes NaN
            was_recorded = len(columns) == len(run.result.seeds)
            rows.append(columns[list(run.replicas)] if was_recorded else columns)
        table = np.concatenate(rows)
        return epochs, table[~np.isnan(table).any(1)]


def make_entries(runs: list[RunRecord], left_out: list[str]) -> list[Entry]:
    """Makes an entry of the runs of each configuration.

    Args:
      runs: of one study.
      left_out: gets a line for each run, or seed of several runs, that is not used.
    """
    configurations: dict[str, list[RunRecord]] = {}
    for run in runs:
        key = configuration_of(run.config, str(run.folder))
        if run.source is not None:  # two tables, or a table and our runs, stay apart
            key = repr([key, run.source, run.told_name])
        configurations.setdefault(key, []).append(run)
    _join_older(configurations)
    parts = [part for group in configurations.values() for part in _parts(group)]
    kept = [_without_repeats(part, left_out) for part in parts]
    groups = [group for group in kept if group]
    names = _names([group[0] for group in groups])
    return [Entry(*pair) for pair in zip(names, groups, strict=True)]


def _join_older(configurations: dict[str, list[RunRecord]]) -> None:
    """Puts older runs of a command to the newer ones of which nothing known differs."""
    newer: dict[str, list[str]] = {}
    for key, runs in configurations.items():
        own = runs[0].config.identity
        if own is not None and own.unknown is None:
            newer.setdefault(recorded_of(runs[0].config), []).append(key)
    for key, runs in list(configurations.items()):
        same = newer.get(recorded_of(runs[0].config), [])
        is_older = runs[0].config.identity is None
        if is_older and len(same) == 1 and all(run.config.command for run in runs):
            configurations[same[0]] += configurations.pop(key)


def _claims(runs: list[RunRecord]) -> dict[int, list[tuple[RunRecord, int]]]:
    """Returns the runs that hold each seed, with its index in the run."""
    found: dict[int, list[tuple[RunRecord, int]]] = {}
    for run in runs:
        for index, seed in enumerate(run.result.seeds):
            found.setdefault(seed, []).append((run, index))
    return found


def _parts(runs: list[RunRecord]) -> list[list[RunRecord]]:
    """Divides a configuration by versions and machine if these change a seed's result.

    Seeds of several machines are otherwise one entry: their results differ only as
    those of other seeds do.
    """
    by_bits: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_bits.setdefault(repr(sorted(bits_of(run.config).items())), []).append(run)
    repeated = [claims for claims in _claims(runs).values() if len(claims) > 1]
    changed = any(len({run.outcome(i) for run, i in claims}) > 1 for claims in repeated)
    return list(by_bits.values()) if changed else [runs]


def _without_repeats(runs: list[RunRecord], left_out: list[str]) -> list[RunRecord]:
    """Keeps each seed once, and no seed for which two runs have different results."""
    kept: dict[int, list[int]] = {id(run): [] for run in runs}
    repeated: dict[int, list[tuple[int, RunRecord]]] = {}
    for seed, claims in _claims(runs).items():
        first, index = claims[0]
        if len({run.outcome(i) for run, i in claims}) > 1:
            folders = " and ".join(str(run.folder) for run, _ in claims)
            left_out.append(
                f"{folders} have different results for seed {seed} of the same "
                "configuration, so none of them is used"
            )
            continue
        kept[id(first)].append(index)
        for run, _ in claims[1:]:
            repeated.setdefault(id(run), []).append((seed, first))
    for run in runs:
        if not kept[id(run)] and (twice := repeated.get(id(run))):
            seeds = ", ".join(str(seed) for seed, _ in twice)
            left_out.append(
                f"{run.folder} repeats seed {seeds} of {twice[0][1].folder}"
            )
    return [
        dataclasses.replace(run, replicas=tuple(kept[id(run)]))
        for run in runs
        if kept[id(run)]
    ]


def _names(runs: list[RunRecord]) -> list[str]:
    """Names runs by the model and the settings that differ between its runs."""
    by_model: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for run in runs:
        of_model = by_model.setdefault((run.result.model, run.source), [])
        of_model.append(run.settings)
    varied = {key: set(differing(those)) for key, those in by_model.items()}

    def name_of(run: RunRecord, values: dict[str, Any]) -> str:
        model = run.result.model
        if run.told_name is not None:
            return run.told_name
        mine = varied[model, run.source]
        words = [f"{n}={value}" for n, value in values.items() if n in mine]
        return " ".join([model, *words])

    names = [name_of(run, run.used) for run in runs]
    if len(set(names)) < len(names):
        # Two settings may have the same effect, such as a rate and the recipe's own.
        names = [name_of(run, run.settings) for run in runs]
    names = [
        f"{name} of {pathlib.Path(run.source).name}"
        if run.source is not None and names.count(name) > 1
        else name
        for name, run in zip(names, runs, strict=True)
    ]
    return _told_apart(names, runs)


def _told_apart(names: list[str], runs: list[RunRecord]) -> list[str]:
    """Adds to equal names what the contents of their runs differ in."""
    told = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        same = [number for number, other in enumerate(names) if other == name]
        first = runs[same[0]].config
        pairs = [differing_parts(runs[number].config, first) for number in same]
        parts = dict.fromkeys(itertools.chain(*pairs))
        for number in same:
            mine = parts_of(runs[number].config)
            words = [f"{part}={mine.get(part)}" for part in parts]
            if len(words) > MOST_PARTS:  # a caution names all of them
                words = [*words[:MOST_PARTS], f"recipe_code={mine['recipe_code']}"]
            told[number] = " ".join([name, *words])
        if len({told[number] for number in same}) < len(same):
            for number in same:
                told[number] += f" of {runs[number].folder.name}"
    return told


def differing(every: list[dict[str, Any]]) -> list[str]:
    """Returns the settings that differ between several groups of settings."""
    return [
        name
        for name in dict.fromkeys(itertools.chain(*every))
        if any(settings.get(name) != every[0].get(name) for settings in every)
    ]
