"""What a run tells those who watch it, and what it gives back at its end."""

import dataclasses
import html
import pathlib
from collections.abc import Iterable
from typing import Literal

from cifar_flax import records
from cifar_flax.data import Dataset, Splits
from cifar_flax.reports.range_curve import Consensus, RangeResult
from cifar_flax.runs.tables import (
    as_html,
    mean_and_interval,
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
    """What is about to run.

    Attributes:
      kind: ``run``, or ``lr_find`` for a range test.
      config: the record of the run; a range test that ``--lr=auto`` asks for is part
        of a run, and ``config.kind`` is then ``run``.
      trainer: that trains.
      dataset: not yet divided.
      splits: the same, divided.
      folder: of the records; None where nothing is written.
      step: steps that were done before.
      total_steps: at the end.
    """

    kind: Literal["run", "lr_find"]
    config: records.Config
    trainer: Trainer
    dataset: Dataset
    splits: Splits
    folder: pathlib.Path | None
    step: int
    total_steps: int


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """What came out of a run.

    Attributes:
      status: ``finished``; ``diverged`` where all seeds did; ``stopped`` where it was
        asked to stop, after its state was saved.
      state: the last one of all replicas.
      record: as in ``result.json``; None for a run that was stopped.
      test: on the test split; None for a run that was stopped.
      metrics: the line of each epoch.
      steps: loss and learning rate of each step.
      trainer: that trained; evaluates ``state``, and makes predictions with it.
      splits: of the data.
      folder: of the records; None where nothing was written.
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

    def __repr__(self) -> str:
        accuracy = None if self.record is None else self.record.test_accuracy
        return (
            f"RunResult({self.status}, {self.state}, test_accuracy={accuracy}, "
            f"folder={self.folder and str(self.folder)!r})"
        )

    def _repr_html_(self) -> str:
        if self.record is None:
            return f"stopped after step {int(self.state.step.max())}"
        line = f"test accuracy {mean_and_interval(self.record)}"
        return as_html(result_table(self.record)) + html.escape(line)


@dataclasses.dataclass(frozen=True, eq=False)
class RangeTestResult:
    """What came out of a range test.

    Attributes:
      status: ``finished`` or ``stopped``.
      model: its name.
      curves: of all seeds; None where it was stopped.
      suggestions: of each method.
      consensus: of the default method: the rate, or why there is none.
      folder: of the records; None where nothing was written.
      check: of that rate, by the beginning of the training; None where none was made.
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
        """The rate to train with; None where there is none, or the test was stopped."""
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
    """Steps done of a range test."""

    step: int


class Observer:
    """Watches a run; inherit from it and define what is of interest.

    An observer must not change what it is given. What it raises ends the run.
    """

    def started(self, plan: Plan) -> None:
        """Training, or a range test, is about to begin."""

    def chunk_done(self, progress: Progress | RangeProgress) -> None:
        """A compiled chunk of steps is done, about once a second."""

    def epoch_done(self, line: records.LogPoint, state: TrainState) -> None:
        """An epoch is done and recorded."""

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """It has come to its end; None where an error ended it."""


class Watchers(Observer):
    """All observers of a run; those that were told of a start are told of the end."""

    def __init__(self, observers: Iterable[Observer]):
        self._observers, self._running = list(observers), False

    def __enter__(self) -> "Watchers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self.ended(None)

    def started(self, plan: Plan) -> None:
        """Tells all."""
        self._running = True
        for observer in self._observers:
            observer.started(plan)

    def chunk_done(self, progress: Progress | RangeProgress) -> None:
        """Tells all."""
        for observer in self._observers:
            observer.chunk_done(progress)

    def epoch_done(self, line: records.LogPoint, state: TrainState) -> None:
        """Tells all."""
        for observer in self._observers:
            observer.epoch_done(line, state)

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Tells all."""
        self._running = False
        for observer in self._observers:
            observer.ended(result)
