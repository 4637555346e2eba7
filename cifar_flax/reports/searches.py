"""The trials of searches: what each has reached, and which runs are not ranked.

A search chooses a trial of each model by its validation accuracy. If that configuration
was trained with fresh seeds, these alone are ranked; the trials have chosen, and would
report too high an accuracy. Otherwise the chosen trial is ranked, and the page says so.
"""

import dataclasses
import functools
import pathlib

import numpy as np

from cifar_flax import records
from cifar_flax.analysis.best_of import Curve, curve_of, reached_by
from cifar_flax.errors import UserError
from cifar_flax.identity import recorded_of
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.runs import RunRecord
from cifar_flax.search_records import (
    Search,
    Subject,
    best_of,
    read_pruned,
    read_search,
    validation_of,
    value_of,
)


@dataclasses.dataclass(frozen=True, eq=False)
class TrialRow:
    """A trial of a search.

    Attributes:
      number: from 1.
      values: what was chosen, by the names of the settings.
      status: ``done``, ``diverged``, ``pruned at epoch 3`` or ``not finished``.
      value: validation accuracy after the last epoch, 0 if it diverged; None if it is
        not done.
      reached: the same, or where it was pruned; None if it is not finished.
      epochs: number of epochs that it has trained.
      seconds: of training, with all its seeds.
    """

    number: int
    values: dict[str, records.Setting]
    status: str
    value: float | None
    reached: float | None
    epochs: float
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class Searched:
    """What a search has found for a model.

    Attributes:
      name: of the model, and of the settings that tell it from others.
      kind: ``random`` or ``tpe``.
      count: number of trials when the search is done.
      trials: those so far.
      chosen: number of the best one; None if none is done.
      fresh: number of fresh seeds of the chosen configuration.
      entries: the trials that are not ranked.
    """

    name: str
    kind: str
    count: int
    trials: list[TrialRow]
    chosen: int | None
    fresh: int
    entries: list[Entry]

    @property
    def over(self) -> list[TrialRow]:
        """The trials that have ended, in their order."""
        return [trial for trial in self.trials if trial.reached is not None]

    @property
    def best(self) -> TrialRow | None:
        """The chosen trial."""
        return None if self.chosen is None else self.trials[self.chosen - 1]

    @functools.cached_property
    def curve(self) -> Curve:
        """The best of n trials: expected, or reached if each depends on the others."""
        values = [trial.reached or 0.0 for trial in self.over]
        return curve_of(values) if self.kind == "random" else reached_by(values)

    @functools.cached_property
    def hours(self) -> np.ndarray:
        """The hours of n trials [N]: expected, or spent if the trials have an order."""
        seconds = np.array([trial.seconds for trial in self.over])
        if self.kind == "random":
            seconds = np.full(len(seconds), seconds.mean())
        return np.cumsum(seconds) / 3600


def read_searches(
    runs: list[RunRecord], left_out: list[str]
) -> dict[pathlib.Path, Search]:
    """Reads the searches in the folders that hold runs, by the folder.

    Args:
      runs: all runs.
      left_out: gets a line for each search that cannot be read.
    """
    found = {}
    for folder in dict.fromkeys(run.folder.parent for run in runs):
        try:
            search = read_search(folder)
        except UserError as error:
            left_out.append(f"{error}; its trials count as other runs")
            continue
        if search is not None:
            found[folder] = search
    return found


def take_trials(
    runs: list[RunRecord], searches: dict[pathlib.Path, Search]
) -> tuple[list[RunRecord], list[Searched], dict[pathlib.Path, str]]:
    """Takes the trials out of the runs of a study.

    Args:
      runs: of the study.
      searches: by their folder.

    Returns:
      The runs that are ranked; what each search has found for a model of the study; and
      the short name of each ranked run that a search has chosen, by its folder.
    """
    kept, found = list(runs), []
    names: dict[pathlib.Path, str] = {}
    for place, search in searches.items():
        for subject in search.subjects:
            several = len(searches) > 1
            name = f"{subject.name} of {place.name}" if several else subject.name
            mine = [run for run in kept if run.folder.parent == place]
            rows, fresh, apart = _divided(subject, mine)
            if not fresh and not apart:
                continue
            chosen = best_of({row.number: row.value for row in rows})
            ranked = fresh or [run for run, number in apart if number == chosen]
            names |= {run.folder: f"{name} trial {chosen}" for run in ranked}
            left = [pair for pair in apart if pair[0] not in ranked]
            kept = [run for run in kept if run not in [one for one, _ in left]]
            entries = [
                Entry(f"{name} trial {n}", [run for run, number in left if number == n])
                for n in dict.fromkeys(number for _, number in left)
            ]
            seeds = sum(len(run.seeds) for run in fresh)
            kind, count = search.kind, search.count
            one = Searched(name, kind, count, rows, chosen, seeds, entries)
            found.append(one)
    return kept, found, names


def _divided(
    subject: Subject, runs: list[RunRecord]
) -> tuple[list[TrialRow], list[RunRecord], list[tuple[RunRecord, int]]]:
    """Divides the runs of a sweep by what they are in the search for a model.

    Returns:
      The rows of the trials; the runs of the chosen one with fresh seeds; and the other
      runs of trials with their numbers, also with fresh seeds of one that was chosen
      when there were fewer trials.
    """
    numbers = {one.folder: n for n, one in enumerate(subject.trials, start=1)}
    trials = {run.folder.name: run for run in runs if run.folder.name in numbers}
    if not trials:
        return [], [], []
    place = runs[0].folder.parent
    rows = [_row(place, subject, number) for number in numbers.values()]
    chosen = best_of({row.number: row.value for row in rows})
    same = {recorded_of(run.config): numbers[name] for name, run in trials.items()}
    fresh: list[RunRecord] = []
    apart: list[tuple[RunRecord, int]] = []
    for run in runs:
        is_trial = run.folder.name in trials
        number = numbers.get(run.folder.name) or same.get(recorded_of(run.config))
        if number == chosen and not is_trial:
            fresh.append(run)
        elif number is not None:
            apart.append((run, number))
    return rows, fresh, apart


def _row(place: pathlib.Path, subject: Subject, number: int) -> TrialRow:
    """Reads what a trial has reached."""
    trial = subject.trials[number - 1]
    folder, pruned = place / trial.folder, None
    try:
        lines, result = records.read_metrics(folder), records.read_result(folder)
        pruned = read_pruned(folder) if result is None else None
    except UserError:  # the report leaves the run out with the reason
        lines, result = [], None
    value, status = value_of(lines, result), "not finished"
    if result is not None:
        status = "diverged" if result.status == "diverged" else "done"
    elif pruned is not None:
        status = f"pruned at epoch {pruned.epoch}"
    reached = validation_of(lines)[-1] if pruned is not None and lines else value
    seconds = lines[-1].seconds if lines else 0.0
    return TrialRow(
        number=number,
        values=trial.values,
        status=status,
        value=value,
        reached=reached,
        epochs=result.epochs if result else float(len(lines)),
        seconds=result.train_seconds if result else seconds,
    )


def with_short_names(
    entries: list[Entry], names: dict[pathlib.Path, str]
) -> list[Entry]:
    """Names the entries that a search has chosen after their trial."""
    return [
        dataclasses.replace(entry, name=names.get(entry.first.folder, entry.name))
        for entry in entries
    ]
