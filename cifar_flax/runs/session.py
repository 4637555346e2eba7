"""A run as a function: it takes settings and returns a result.

It reads no flags, prints nothing and installs no signal handlers. It therefore works in
any thread, in a notebook, and many times in one process.
"""

import contextlib
import functools
import logging
import pathlib
import threading
from collections.abc import Iterable, Mapping, Sequence

import flax.linen as nn
import msgspec
import numpy as np

from cifar_flax import records
from cifar_flax.analysis.metrics import Function
from cifar_flax.data import Dataset, Split
from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.runs.folder import opened_folder, whole_path
from cifar_flax.runs.journal import Journal, open_journal
from cifar_flax.runs.observers import (
    Observer,
    Plan,
    RunResult,
    Watchers,
)
from cifar_flax.runs.origin import Start, told_by_first
from cifar_flax.runs.outcome import outcome
from cifar_flax.runs.range_tests import find_rate
from cifar_flax.runs.recorded_settings import differences
from cifar_flax.runs.rehearsal import rehearse
from cifar_flax.runs.settings import Settings
from cifar_flax.runs.subject import Subject, with_recipe
from cifar_flax.training import processes
from cifar_flax.training.evaluation import Evaluation, HeldSplit
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.state import TrainState
from cifar_flax.training.trainer import Progress, Trainer

logger = logging.getLogger(__name__)


@known_settings()
def run(
    settings: Settings,
    folder: str | pathlib.Path | None = None,
    *,
    model: nn.Module | None = None,
    recipe: Recipe | None = None,
    dataset: Dataset | None = None,
    also_test: Mapping[str, Split] | None = None,
    metrics: Sequence[Function] = (),
    observers: Iterable[Observer] = (),
    stop: threading.Event | None = None,
    resume: bool = False,
    devices: int | None = None,
    mesh: Mapping[str, int] | None = None,
) -> RunResult:
    """Trains, evaluates and records.

    Args:
      settings: of the run.
      folder: a new or empty folder for records and checkpoints; None: nothing is
        written.
      model: replaces the model of the settings; see ``models.calling``.
      recipe: replaces the recipe of the settings.
      dataset: replaces the data set of the settings.
      also_test: further labelled images to evaluate on, besides those of the settings,
        by a name of each.
      metrics: functions to compute besides those of the settings; see
        ``analysis.metrics``.
      observers: watch the run; see ``Observer``.
      stop: if this event is set, the run saves its state within about a second and
        returns. A KeyboardInterrupt (Ctrl-C) does the same.
      resume: whether to continue the run in ``folder``. It ends with the same bits as a
        run without a stop. A finished run is only evaluated again.
      devices: number of devices to use; None for all accelerators, or one CPU. They
        divide first the seeds, then the batches of each seed.
      mesh: number of devices along ``seed`` and along ``data``, to divide differently.

    Raises:
      UserError: an argument is not valid, or something cannot be read or written.
    """
    folder = whole_path(folder)
    subject = Subject.prepare(
        *(settings, model, recipe, dataset),
        devices=devices,
        mesh=mesh,
        also_test=also_test,
        metrics=metrics,
    )
    # Making a trainer checks the model.
    finds_rate = subject.finds_rate
    trainer = subject.make_trainer(seeds=settings.range_seeds if finds_rate else None)
    _warn_of_rest(trainer)
    stop = stop or threading.Event()
    with processes.together(), contextlib.ExitStack() as stack:
        watchers = stack.enter_context(Watchers(observers))
        config = subject.config("run", trainer, resume=resume)
        check_together(config)
        if folder is not None and not resume:
            processes.by_first(lambda: rehearse(subject, trainer, config))
        opened = opened_folder(folder, config, resume)
        found = processes.by_first(lambda: stack.enter_context(opened))
        folder, config, lock = found or (None, config, None)
        if finds_rate:
            rate = find_rate(subject, trainer, config, folder, watchers, stop)
            trainer = subject.make_trainer(rate)
            if rate is None:
                return _stopped_early(trainer, subject, folder)
            config = _with_found_recipe(config, trainer, subject, folder)
        journal = None
        if folder is not None and lock is not None:
            journal = stack.enter_context(open_journal(folder, lock, config))
        session = _Session(subject, trainer, config, folder, journal, watchers)
        session.begin()
        stopped = processes.in_any(stop.is_set())
        try:
            if not (stopped or session.is_recorded):
                for progress in trainer.run(session.state, subject.splits.train):
                    session.chunk_done(progress)
                    if stopped := processes.in_any(stop.is_set()):
                        break
        except KeyboardInterrupt:
            stopped = True
        return session.end(stopped)


class _Session:
    """A run from its first step to its last."""

    def __init__(
        self,
        subject: Subject,
        trainer: Trainer,
        config: records.Config,
        folder: pathlib.Path | None,
        journal: Journal | None,
        watchers: Watchers,
    ):
        self._subject, self._trainer, self._config = subject, trainer, config
        self._folder, self._journal, self._watchers = folder, journal, watchers
        self._recorded = _recorded_result(folder)
        self._lines: list[records.LogPoint] = []
        self._losses: list[np.ndarray] = []
        self._lost: tuple[int | None, ...] = ()
        self._seconds = 0.0
        self._val: HeldSplit | None = None
        self._at: Start | Progress

    @property
    def state(self) -> TrainState:
        """The last state of all replicas."""
        return self._at.state

    @property
    def is_recorded(self) -> bool:
        """Whether the run was already finished."""
        return self._recorded is not None

    def begin(self) -> None:
        """Takes the initial state, or the last state that was saved."""
        splits = self._subject.splits
        start = told_by_first(self._trainer, processes.by_first(self._find_start))
        self._at, self._seconds = start, start.seconds
        self._lines, self._losses = start.lines, [start.losses]
        self._lost = self.state.diverged_at
        recorded = self._recorded
        finished = recorded is not None and recorded.status == "finished"
        if finished and not self._has_ended:
            logger.warning(
                "%s has a result, but no valid checkpoint of its last step: the run "
                "continues after step %d, and ends with the same result",
                self._folder,
                self.state.step.max(),
            )
            self._recorded = None
        self._watchers.started(
            Plan(
                kind="run",
                config=self._config,
                trainer=self._trainer,
                dataset=self._subject.dataset,
                splits=splits,
                folder=self._folder,
                step=int(self.state.step.max()),
                total_steps=self._trainer.total_steps,
                also_test=self._subject.also_test,
            )
        )

    def _find_start(self) -> Start:
        first = functools.partial(
            self._subject.first_start, self._trainer, self._config
        )
        if self._journal is None:
            return first()
        also = self._subject.also_test.values()
        count = len(self._subject.splits.test) + sum(len(one.split) for one in also)
        return self._journal.restore(self._trainer, first, count)

    def chunk_done(self, progress: Progress) -> None:
        """Takes the result of a chunk; an interrupt keeps the state before it."""
        seconds = self._seconds + progress.seconds
        self._lost = _warn_of_divergence(
            self._trainer, progress.diverged_at, self._lost
        )
        self._watchers.chunk_done(progress)
        losses = [*self._losses, progress.losses]
        if progress.epoch_done:
            line, state = self._log_point(progress, seconds), progress.state
            if self._journal is not None:
                self._journal.record_epoch(line, self._steps(losses), state)
            self._lines.append(line)
        self._at, self._seconds, self._losses = progress, seconds, losses
        if progress.epoch_done:
            self._watchers.epoch_done(line, progress.state)

    def end(self, stopped: bool) -> RunResult:
        """Evaluates the last state on the test split, or saves it for later."""
        record = test = None
        also: dict[str, Evaluation] = {}
        if stopped and not (self._has_ended or self.is_recorded):
            if self._journal is not None:
                steps = self._steps(self._losses)
                self._journal.save_stopped(self.state, steps, self._seconds)
        else:  # the test split is used only here
            self._val = None  # the device has no further use for the images
            metrics, split = self._subject.metrics, self._subject.splits.test
            test = self._trainer.evaluate(self.state, split, metrics)
            also = {
                name: self._trainer.evaluate(self.state, one.split, metrics)
                for name, one in self._subject.also_test.items()
            }
            record = self._recorded or self._outcome(test, also)
        result = RunResult(
            status="stopped" if record is None else record.status,
            state=self.state,
            record=record,
            test=test,
            metrics=self._lines,
            steps=self._steps(self._losses),
            trainer=self._trainer,
            splits=self._subject.splits,
            folder=self._folder,
            also_test={
                name: (self._subject.also_test[name].split, evaluation)
                for name, evaluation in also.items()
            },
        )
        try:
            if self._journal is not None and not self.is_recorded:
                self._journal.ended(result)
        finally:
            self._watchers.ended(result)
        return result

    @property
    def _has_ended(self) -> bool:
        """Whether every replica has done its last step."""
        done = self.state.step.max() >= self._trainer.total_steps
        return bool(done) or self.state.all_diverged

    def _steps(self, losses: list[np.ndarray]) -> records.Steps:
        """Returns the content of ``steps.npz``."""
        every = np.concatenate(losses, axis=1)
        return records.Steps(every, self._trainer.rates(every.shape[1]))

    def _log_point(self, progress: Progress, seconds: float) -> records.LogPoint:
        """Returns the line of ``metrics.jsonl`` at the end of an epoch."""
        trainer, val, metrics = self._trainer, None, self._subject.metrics
        if self._subject.splits.val is not None:
            self._val = self._val or trainer.hold(self._subject.splits.val)
            val = trainer.evaluate(progress.state, self._val, metrics)

        def of_seeds(values: np.ndarray) -> list[float]:
            """Returns the value of each seed; NaN if the seed has diverged."""
            return np.where(np.isnan(progress.train_loss), np.nan, values).tolist()

        last = self._lines[-1] if self._lines else None
        steps = progress.step - (last.step if last else 0)
        elapsed = seconds - (last.seconds if last else 0.0)
        images = steps * trainer.recipe.batch_size * len(trainer.seeds)
        return records.LogPoint(
            step=progress.step,
            epoch=-(-progress.step // trainer.steps_per_epoch),
            learning_rate=progress.learning_rate,
            train_loss=of_seeds(progress.train_loss),
            train_accuracy=of_seeds(progress.train_accuracy),
            val_loss=None if val is None else of_seeds(val.loss),
            val_accuracy=None if val is None else of_seeds(val.accuracy),
            val_metrics=None
            if val is None or not metrics
            else {name: of_seeds(values) for name, values in val.metrics.items()},
            images_per_second=images / elapsed,
            seconds=seconds,
        )

    def _outcome(
        self, test: Evaluation, also: Mapping[str, Evaluation]
    ) -> records.Result:
        """Returns the content of ``result.json``."""
        return outcome(
            self._subject,
            self._trainer,
            self._config,
            (np.asarray(self.state.step), self.state.diverged_at),
            test,
            also,
            self._seconds,
        )


def check_together(config: records.Config) -> None:
    """Raises a UserError if the processes of a run have different settings."""
    mine = {
        "settings": config.settings,
        "others": {"data set": config.dataset.fingerprint, **config.versions},
    }
    first, *others = processes.of_all(mine)
    for number, other in enumerate(others, start=1):
        different = differences(other["settings"], first["settings"])
        different += [
            f"{name} is {value} and was {first['others'].get(name)}"
            for name, value in other["others"].items()
            if first["others"].get(name) != value
        ]
        if different:
            raise UserError(
                f"process {number} differs from process 0: {'; '.join(different)}; "
                "give all processes the same flags"
            )


def _recorded_result(folder: pathlib.Path | None) -> records.Result | None:
    """Returns the result that the folder of a run already holds."""
    found = processes.by_first(lambda: folder and records.read_result(folder))
    (plain, *_) = processes.of_all(msgspec.to_builtins(found))
    return plain and msgspec.convert(plain, records.Result)


def _warn_of_rest(trainer: Trainer) -> None:
    """Warns of the last steps if they are too few for a step of the optimizer."""
    every, total = trainer.recipe.accumulate, trainer.total_steps
    if total % every and not trainer.recipe.has_own_optimizer:
        logger.warning(
            "accumulate is %d and there are %d steps: the gradients of the last %d are "
            "not used, because they are too few for a step of the optimizer",
            *(every, total, total % every),
        )


def _warn_of_divergence(
    trainer: Trainer,
    diverged_at: tuple[int | None, ...],
    known: tuple[int | None, ...],
) -> tuple[int | None, ...]:
    """Warns of replicas that have newly diverged.

    Returns:
      The step of each diverged replica.
    """
    for seed, step, before in zip(trainer.seeds, diverged_at, known, strict=True):
        if step is not None and before is None:
            logger.warning(
                "seed %d has diverged and ends: its loss is NaN or infinite at step "
                "%d, at a rate of %.3g; lower --lr, or let --lr=auto find a rate",
                seed,
                step,
                trainer.schedule(step - 1),
            )
    return diverged_at


def _with_found_recipe(
    config: records.Config,
    trainer: Trainer,
    subject: Subject,
    folder: pathlib.Path | None,
) -> records.Config:
    """Returns the record of a run with the recipe, after a range test."""
    if config.recipe is None:
        config = with_recipe(config, trainer, subject.unit_recipe)
        if folder is not None:
            records.write_config(folder, config)
    return config


def _stopped_early(
    trainer: Trainer, subject: Subject, folder: pathlib.Path | None
) -> RunResult:
    """Returns the result of a run that was stopped before its first step."""
    state = trainer.init(subject.splits.train)
    steps = records.Steps(Start.new(state).losses, trainer.rates(0))
    return RunResult(
        status="stopped",
        state=state,
        record=None,
        test=None,
        metrics=[],
        steps=steps,
        trainer=trainer,
        splits=subject.splits,
        folder=folder,
    )
