"""Range tests: as a function, and as the first part of a run with ``--lr=auto``."""

import dataclasses
import pathlib
import threading
from collections.abc import Iterable, Mapping

import flax.linen as nn

from cifar_flax import records
from cifar_flax.analysis.range_curve import METHODS
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.folder import opened_folder, whole_path
from cifar_flax.runs.journal import write_range_test
from cifar_flax.runs.observers import (
    Observer,
    Plan,
    RangeProgress,
    RangeTestResult,
    Watchers,
)
from cifar_flax.runs.recipe_choice import flags_of
from cifar_flax.runs.rehearsal import rehearse_range_test
from cifar_flax.runs.settings import Settings
from cifar_flax.runs.subject import Subject
from cifar_flax.training import processes
from cifar_flax.training.lr_range import RangeSettings, range_curves
from cifar_flax.training.rate_check import CHECK_SEEDS, RateCheck, check_rate
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer

# A training of fewer steps than this is preceded by a shorter range test. With fewer
# steps than that test takes, the seeds disagree (docs/learning-rates.md).
SHORT = 100
SHORT_STEPS = 60
SHORT_SEEDS = 3


@known_settings()
def range_test(
    settings: Settings,
    folder: str | pathlib.Path | None = None,
    *,
    range_settings: RangeSettings = RangeSettings(),  # noqa: B008 (frozen)
    model: nn.Module | None = None,
    recipe: Recipe | None = None,
    dataset: Dataset | None = None,
    observers: Iterable[Observer] = (),
    stop: threading.Event | None = None,
    devices: int | None = None,
    mesh: Mapping[str, int] | None = None,
) -> RangeTestResult:
    """Trains while the rate rises, and suggests a rate from the losses.

    Args:
      settings: of the run that needs a rate; several seeds show how certain it is.
      folder: a new or empty folder for its record; None: nothing is written.
      range_settings: of the test.
      model: see ``run``, as for the arguments below.
      recipe: its rates do not count, except that the test is of the phase in which the
        recipe first reaches its highest rate: of what it freezes, on images of its
        size.
      dataset: see ``run``.
      observers: see ``run``.
      stop: if this event is set, the test ends without a result.
      devices: see ``run``.
      mesh: see ``run``.

    Raises:
      UserError: see ``run``.
    """
    folder = whole_path(folder)
    subject = Subject.prepare(
        *(settings, model, recipe, dataset),
        devices=devices,
        mesh=mesh,
        needs_schedule=False,
    )
    trainer, stop = subject.make_trainer(), stop or threading.Event()
    config = subject.config("lr_find", trainer, *_range_flags(range_settings))
    if folder is not None:
        rehearse_range_test(subject, trainer, config, range_settings)
    with (
        Watchers(observers) as watchers,
        opened_folder(folder, config, resume=False) as (path, config, _),
    ):
        return _test_range(
            subject, trainer, range_settings, config, path, watchers, stop
        )


def find_rate(
    subject: Subject,
    finder: Trainer,
    config: records.Config,
    folder: pathlib.Path | None,
    watchers: Watchers,
    stop: threading.Event,
) -> float | None:
    """Returns the rate for ``--lr=auto``; None if the test was stopped.

    Raises:
      UserError: the test is inconclusive. Its curves are written.
    """
    found = None if folder is None else records.read_range_test(folder)
    known = float(processes.of_first((found and found.suggested_lr) or 0.0))
    if known:
        return known
    checks = subject.settings.lr_check is not False
    settings = RangeSettings()
    if finder.total_steps < SHORT:
        finder = subject.make_trainer(seeds=finder.seeds[:SHORT_SEEDS])
        settings = RangeSettings(num_steps=SHORT_STEPS)
    result = _test_range(
        subject, finder, settings, config, folder, watchers, stop, checks
    )
    if result.consensus is None:
        return None
    if result.consensus.rate is None:
        raise UserError(
            f"the range test is inconclusive: {result.consensus.problem} "
            "(experiments.lr_find has flags for that; --lr takes the rate it finds)"
        )
    return result.rate


class _StopRequested(Exception):
    """Ends a range test."""


def _test_range(
    subject: Subject,
    trainer: Trainer,
    settings: RangeSettings,
    config: records.Config,
    folder: pathlib.Path | None,
    watchers: Watchers,
    stop: threading.Event,
    checks: bool = False,
) -> RangeTestResult:
    def on_progress(step: int) -> None:
        watchers.chunk_done(RangeProgress(step))
        if processes.in_any(stop.is_set()):
            raise _StopRequested

    def checked(rate: float | None) -> RateCheck | None:
        if rate is None or not checks:
            return None
        unit = subject.make_trainer(1.0, trainer.seeds[:CHECK_SEEDS])
        state = subject.first_start(unit, config).state
        split = subject.splits.train
        return check_rate(unit, split, rate, state, lambda: on_progress(total_steps))

    total_steps = settings.steps_for(trainer)
    plan = Plan(
        kind="lr_find",
        config=config,
        trainer=trainer,
        dataset=subject.dataset,
        splits=subject.splits,
        folder=folder,
        step=0,
        total_steps=total_steps,
    )
    watchers.started(plan)
    try:
        curves = range_curves(
            trainer,
            subject.splits.train,
            settings,
            subject.first_start(trainer, config).state,
            on_progress,
        )
        consensus = curves.consensus()
        check = checked(consensus.rate)
    except (KeyboardInterrupt, _StopRequested):
        result = RangeTestResult("stopped", subject.name, None, [], None, folder)
    else:
        suggestions = [curves.consensus(method) for method in METHODS]
        result = RangeTestResult(
            *("finished", subject.name, curves, suggestions, consensus, folder, check)
        )
        if folder is not None:
            write_range_test(folder, dataclasses.asdict(settings), result)
    watchers.ended(result)
    return result


def _range_flags(settings: RangeSettings) -> list[str]:
    """Returns the flags of ``experiments.lr_find`` for these settings."""
    return [
        f"--{name}={as_text(getattr(settings, name))}"
        for name, one in flags_of(RangeSettings).items()
        if getattr(settings, name) != one.default
    ]
