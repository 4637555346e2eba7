"""Observers of runs, and the results that runs return."""

import dataclasses
import html
import pathlib
from collections.abc import Iterable, Mapping
from typing import Literal

from cifar_flax import records
from cifar_flax.analysis.range_curve import Consensus, RangeResult
from cifar_flax.data import Dataset, Split, Splits
from cifar_flax.data.labelled import Labelled
from cifar_flax.runs.tables import (
    accuracy_in_words,
    as_html,
    result_table,
    suggestions_table,
)
from cifar_flax.training.evaluation import Evaluation
from cifar_flax.training.rate_check import RateCheck
from cifar_flax.training.state import TrainState
from cifar_flax.training.trainer import Progress, Trainer

Status = Literal["finished", "diverged", "stopped"]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A run or a range test that is about to begin.

    Attributes:
      kind: ``run``, or ``lr_find`` for a range test.
      config: the record of the run. The range test of ``--lr=auto`` is part of a run,
        and its ``config.kind`` is ``run``.
      trainer: the trainer.
      dataset: the data set.
      splits: the splits of the data set.
      folder: of the records; None if nothing is written.
      step: number of steps that are already done.
      total_steps: number of steps at the end.
      also_test: further test images, by their name.
    """

    kind: Literal["run", "lr_find"]
    config: records.Config
    trainer: Trainer
    dataset: Dataset
    splits: Splits
    folder: pathlib.Path | None
    step: int
    total_steps: int
    also_test: Mapping[str, Labelled] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """The result of a run.

    Attributes:
      status: ``finished``, ``diverged`` if all seeds diverged, or ``stopped`` if the
        run was asked to stop; its state is then saved.
      state: the last state of all replicas.
      record: the content of ``result.json``; None if the run was stopped.
      test: evaluation on the test split; None if the run was stopped.
      metrics: the line of each epoch.
      steps: loss and learning rate of each step.
      trainer: the trainer, which can evaluate ``state`` and predict with it.
      splits: of the data.
      folder: of the records; None if nothing was written.
      also_test: further test images, and the evaluation on them, by their name.
    """

    status: Status
    state: TrainState
    record: records.Result | None
    test: Evaluation | None
    metrics: list[records.LogPoint]
    steps: records.Steps
    trainer: Trainer
    splits: Splits
    folder: pathlib.Path | None
    also_test: Mapping[str, tuple[Split, Evaluation]] = dataclasses.field(
        default_factory=dict
    )

    def __repr__(self) -> str:
        accuracy = None if self.record is None else self.record.test_accuracy
        return (
            f"RunResult({self.status}, {self.state}, test_accuracy={accuracy}, "
            f"folder={self.folder and str(self.folder)!r})"
        )

    def _repr_html_(self) -> str:
        if self.record is None:
            return f"stopped after step {int(self.state.step.max())}"
        line = f"test accuracy {accuracy_in_words(self.record)}"
        return as_html(result_table(self.record)) + html.escape(line)


@dataclasses.dataclass(frozen=True, eq=False)
class RangeTestResult:
    """The result of a range test.

    Attributes:
      status: ``finished`` or ``stopped``.
      model: name of the model.
      curves: of all seeds; None if the test was stopped.
      suggestions: the suggestion of each method.
      consensus: the rate of the default method, or the reason why there is none.
      folder: of the records; None if nothing was written.
      check: the check of that rate by training; None if there was no check.
    """

    status: Literal["finished", "stopped"]
    model: str
    curves: RangeResult | None
    suggestions: list[Consensus]
    consensus: Consensus | None
    folder: pathlib.Path | None
    check: RateCheck | None = None

    @property
    def rate(self) -> float | None:
        """The rate to train with; None if there is none or the test was stopped."""
        if self.check is not None:
            return self.check.rate
        return None if self.consensus is None else self.consensus.rate

    def __repr__(self) -> str:
        return f"RangeTestResult({self.status}, rate={self.rate})"

    def _repr_html_(self) -> str:
        if self.curves is None:
            return self.status
        return as_html(suggestions_table(self.curves.seeds, self.suggestions))


@dataclasses.dataclass(frozen=True)
class RangeProgress:
    """How far a range test is.

    Attributes:
      step: number of steps that are done.
    """

    step: int


class Observer:
    """Watches a run. Inherit from it and override the methods that you need.

    An observer must not change its arguments. An exception that it raises ends the run.
    """

    def started(self, plan: Plan) -> None:
        """Called before training or a range test begins."""

    def chunk_done(self, progress: Progress | RangeProgress) -> None:
        """Called after each compiled chunk of steps, about once a second."""

    def epoch_done(self, line: records.LogPoint, state: TrainState) -> None:
        """Called after an epoch is recorded."""

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Called at the end, with None if an error ended the run."""


class Watchers(Observer):
    """All observers of a run. After ``started``, ``ended`` is always called."""

    def __init__(self, observers: Iterable[Observer]):
        self._observers, self._running = list(observers), False

    def __enter__(self) -> "Watchers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self.ended(None)

    def started(self, plan: Plan) -> None:
        """Calls all observers."""
        self._running = True
        for observer in self._observers:
            observer.started(plan)

    def chunk_done(self, progress: Progress | RangeProgress) -> None:
        """Calls all observers."""
        for observer in self._observers:
            observer.chunk_done(progress)

    def epoch_done(self, line: records.LogPoint, state: TrainState) -> None:
        """Calls all observers."""
        for observer in self._observers:
            observer.epoch_done(line, state)

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Calls all observers."""
        self._running = False
        for observer in self._observers:
            observer.ended(result)
