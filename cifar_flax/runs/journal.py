"""Writes the records and checkpoints of a run, as an observer of the run."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from cifar_flax import records
from cifar_flax.analysis.predictions import confidently_wrong
from cifar_flax.data import Split
from cifar_flax.errors import UserError
from cifar_flax.files import Lock
from cifar_flax.identity import run_of
from cifar_flax.runs.checkpoint import Checkpoints, open_checkpoints
from cifar_flax.runs.folder import keep_folder
from cifar_flax.runs.observers import Observer, RangeTestResult, RunResult
from cifar_flax.runs.origin import Start, read_losses
from cifar_flax.runs.space import check_space, size_of
from cifar_flax.training.evaluation import Evaluation
from cifar_flax.training.state import TrainState
from cifar_flax.training.trainer import Trainer

# The most confidently misclassified test images in the record.
WORST_IMAGES, WORST_BYTES = 24, 2**27

logger = logging.getLogger(__name__)


class Journal(Observer):
    """Writes a run's records and checkpoints to its folder; see ``open_journal``.

    If something cannot be written, the run continues with a warning and tries again
    after the next epoch. Until then it saves no checkpoint, because a checkpoint
    promises that the metrics up to its step are recorded.

    Attributes:
      unwritten: lines of metrics that could not be written yet.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        lock: Lock,
        checkpoints: Checkpoints,
        run: str | None,
    ):
        """Makes the journal for a folder that this process has locked."""
        self.unwritten: list[records.LogPoint] = []
        self._folder, self._lock, self._checkpoints = folder, lock, checkpoints
        self._run = run

    def restore(
        self, trainer: Trainer, first_start: Callable[[], Start], test_size: int
    ) -> Start:
        """Returns where to begin: at the newest valid checkpoint, or the first state.

        Args:
          trainer: the trainer of the run.
          first_start: returns the start before the first step.
          test_size: number of images whose predictions will be written.

        Raises:
          UserError: there are checkpoints and none is valid, or the disk is full.
        """
        begun = self._checkpoints.latest_step is not None
        start = Start.new(trainer.blank()) if begun else first_start()
        logits = 4 * len(trainer.seeds) * test_size * trainer.spec.num_classes
        # The kept checkpoints, a new one, and the records.
        check_space(self._folder, 5 * size_of(start.state) + logits + 2**20)
        if not begun:
            records.cut_metrics(self._folder, 0)
            if start.lines:
                records.append_metrics(self._folder, start.lines)
            return start
        state, seconds = self._checkpoints.restore(start.state)
        step = int(state.step.max())
        lines = records.cut_metrics(self._folder, step)
        losses = read_losses(self._folder, step, len(trainer.seeds))
        return Start(state, seconds, lines, losses)

    def record_epoch(
        self, line: records.LogPoint, steps: records.Steps, state: TrainState
    ) -> None:
        """Adds a line of metrics and the steps so far, and saves the state."""
        keep_folder(self._folder, self._lock)
        self._append(line, steps)
        self._save(state, line.seconds, line.val_accuracy)

    def save_stopped(
        self, state: TrainState, steps: records.Steps, seconds: float
    ) -> None:
        """Saves the state of a run that was asked to stop."""
        keep_folder(self._folder, self._lock)
        if self._checkpoints.latest_step == int(state.step.max()):
            return
        try:
            records.write_steps(self._folder, steps)
        except UserError as error:
            logger.warning("%s; the state is not saved either", error)
            return
        self._save(state, seconds, None)

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Writes the result of a run that has finished.

        Raises:
          UserError: the result or the last state cannot be written. The run can be
            resumed.
        """
        if not isinstance(result, RunResult) or result.record is None:
            return
        assert result.test is not None
        keep_folder(self._folder, self._lock)
        # A run that diverged within an epoch has steps after its last line.
        records.write_steps(self._folder, result.steps)
        if self.unwritten:
            records.append_metrics(self._folder, self.unwritten)
            self.unwritten = []
        if not result.state.all_diverged:
            self._save_last(result)
        self._write_predictions(result.record, result.splits.test, result.test)
        for name, (split, evaluation) in result.also_test.items():
            self._write_predictions(result.record, split, evaluation, name)
        records.write_result(self._folder, result.record)

    def _write_predictions(
        self,
        record: records.Result,
        split: Split,
        evaluation: Evaluation,
        name: str | None = None,
    ) -> None:
        counting = evaluation.logits[record.alive()]
        most = min(WORST_IMAGES, WORST_BYTES // split.images[0].nbytes)
        worst = confidently_wrong(counting, split.labels, most)
        records.write_predictions(
            self._folder,
            evaluation.logits,
            split.labels,
            record.seeds,
            split.images[worst],
            worst,
            self._run,
            name,
        )

    def _save_last(self, result: RunResult) -> None:
        """Saves the last state if needed, so that every result has its network."""
        if self._checkpoints.latest_step == int(result.state.step.max()):
            return
        last = result.metrics[-1]
        try:
            self._checkpoints.save(
                result.state, seconds=last.seconds, val_accuracy=last.val_accuracy
            )
        except UserError as error:
            raise UserError(
                f"the run has finished, but its result is not recorded: {error}; "
                "--resume repeats the steps that are not saved, with the same result"
            ) from error

    def _append(self, line: records.LogPoint, steps: records.Steps) -> None:
        """Writes a line, after the lines that could not be written before."""
        lines = [*self.unwritten, line]
        try:
            records.write_steps(self._folder, steps)
            records.append_metrics(self._folder, lines)
        except UserError as error:
            if not self.unwritten:
                logger.warning(
                    "%s; training continues, and nothing is saved until it can be",
                    error,
                )
            self.unwritten = lines
            return
        if self.unwritten:
            logger.info("metrics and checkpoints can be written again")
        self.unwritten = []

    def _save(self, state: TrainState, seconds: float, val: list[float] | None) -> None:
        if self.unwritten or state.all_diverged:
            return
        try:
            self._checkpoints.save(state, seconds=seconds, val_accuracy=val)
        except UserError as error:
            logger.warning("%s", error)


@contextlib.contextmanager
def open_journal(
    folder: pathlib.Path, lock: Lock, config: records.Config
) -> Iterator[Journal]:
    """Opens the journal of a run in its folder, which this process has locked."""
    place, run = folder / records.CHECKPOINTS, run_of(config)
    with open_checkpoints(place, run=run) as checkpoints:
        yield Journal(folder, lock, checkpoints, run)


def write_range_test(
    folder: pathlib.Path, settings: dict[str, Any], result: RangeTestResult
) -> None:
    """Writes ``lr_find.json``.

    Args:
      folder: of the run or of the test.
      settings: of the test.
      result: of a test that was not stopped.
    """
    curves, consensus = result.curves, result.consensus
    assert curves is not None
    assert consensus is not None
    records.write_range_test(
        folder,
        records.RangeTest(
            model=result.model,
            settings=settings,
            seeds=list(curves.seeds),
            num_steps=curves.num_steps,
            rates=curves.rates.tolist(),
            losses=curves.losses.tolist(),
            smoothed=curves.smoothed.tolist(),
            seconds=curves.seconds,
            compile_seconds=curves.compile_seconds,
            suggestions=[
                records.Suggestion(
                    method=one.method,
                    rates=one.rates.tolist(),
                    rate=one.rate,
                    spread=one.spread,
                    problem=one.problem,
                )
                for one in result.suggestions
            ],
            checked=[
                records.RateTrial(
                    rate=trial.rate,
                    losses=trial.last.tolist(),
                    breaks=trial.breaks.tolist(),
                )
                for trial in (result.check.trials if result.check else [])
            ],
            suggested_lr=result.rate,
        ),
    )
