"""Trains, evaluates, records and checkpoints a model: the main command.

    python -m experiments.run --model=convbn
    python -m experiments.run --model=resnet --seeds=0,1,2 --workdir=runs/resnet
    python -m experiments.run --workdir=runs/resnet --resume

``--help`` lists the settings; ``experiments.config`` defines them.
"""

import contextlib
import dataclasses
import pathlib
import shlex
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console

from cifar_flax import records
from cifar_flax.checkpoint import (
    Checkpoints,
    check_space,
    open_checkpoints,
    size_of,
)
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.fields import NOT_NEGATIVE, NULL, POSITIVE, check, either
from cifar_flax.loop import Evaluation, Progress, Trainer
from cifar_flax.lr_range import RangeSettings
from cifar_flax.models.summary import layer_rows
from cifar_flax.reports.predictions import confidently_wrong
from cifar_flax.reports.statistics import ci95_of_mean
from cifar_flax.state import TrainState
from experiments import cli, config, console
from experiments.environment import device_name, use_compilation_cache
from experiments.lr_find import SEEDS, find_rate
from experiments.setup import (
    check_same_settings,
    describe_recipe,
    load_data,
    make_record,
    make_trainer,
    open_folder,
)
from experiments.tensorboard import EventWriter

# Test images in the record that the run is most sure and wrong about.
WORST_IMAGES = 24


def main() -> int:
    """Runs the command; returns the exit status."""
    settings = config.config_from_flags()
    screen = console.make_console(patient=True)
    use_compilation_cache()
    if settings.resume:
        folder = pathlib.Path(settings.workdir)
        result = console.read_result(folder)
        if result is not None:
            check_same_settings(settings, records.read_config(folder), folder)
            screen.print(f"{folder} holds a finished run; nothing is left to do")
            console.print_result(screen, result, str(folder))
            check_outcome(result)
            return 0
    dataset = load_data(settings)
    trainer = make_trainer(settings, dataset)
    folder = open_folder(settings, make_record(settings, trainer, dataset))
    try:
        run_in(folder, settings, trainer, dataset, screen)
    except cli.Stopped as stop:
        screen.print(
            f"stopped; to go on:\n"
            f"  python -m experiments.run --workdir={shlex.quote(str(folder))} --resume"
        )
        return stop.status
    return 0


def run_in(
    folder: pathlib.Path,
    settings: config.Config,
    trainer: Trainer,
    dataset: Dataset,
    screen: Console,
) -> None:
    """Does what is left to do in a run's folder."""
    if settings.lr == config.AUTO:
        trainer = trainer_at_found_rate(settings, dataset, folder, screen)
    size = model_size(trainer)
    print_header(screen, settings, trainer, dataset, size, folder)
    with open_checkpoints(folder / records.CHECKPOINTS) as checkpoints:
        state, seconds, unwritten = train(
            trainer, folder, checkpoints, screen, settings.tensorboard
        )
    test = trainer.evaluate(state, trainer.splits.test)  # the only time
    result = {
        "model": settings.model,
        "dataset": dataset.name,
        **size,
        **outcome(trainer, state, test, seconds),
    }
    try:
        records.append_metrics(folder, unwritten)
        write_predictions(folder, trainer, test)
        records.write_result(folder, result)
    finally:
        console.print_result(screen, result, str(folder))
    check_outcome(result)


def trainer_at_found_rate(
    settings: config.Config, dataset: Dataset, folder: pathlib.Path, screen: Console
) -> Trainer:
    """The trainer for ``--lr=auto``: finds the rate, unless the folder holds it."""
    found = records.read_range_test(folder)
    if found is not None:
        where = str(folder / records.RANGE_TEST)
        check(found, {"suggested_lr": either(POSITIVE, NULL)}, where)
    rate = None if found is None else found["suggested_lr"]
    if rate is None:
        finder = make_trainer(dataclasses.replace(settings, seeds=SEEDS), dataset)
        rate = find_rate(finder, RangeSettings(), folder, settings.model, screen)
    trainer = make_trainer(settings, dataset, rate)
    record = {**records.read_config(folder), "recipe": describe_recipe(trainer.recipe)}
    records.write_config(folder, record)
    return trainer


def model_size(trainer: Trainer) -> dict[str, Any]:
    """Parameters and operations of the model, by their names in ``result.json``."""
    rows = layer_rows(trainer.model)
    return {
        "num_params": sum(row.num_params for row in rows),
        "flops_per_image": sum(row.flops for row in rows),
        "layers": [dataclasses.asdict(row) for row in rows],
    }


def print_header(
    screen: Console,
    settings: config.Config,
    trainer: Trainer,
    dataset: Dataset,
    size: dict[str, Any],
    folder: pathlib.Path,
) -> None:
    """Says what will run."""
    recipe, splits = trainer.recipe, trainer.splits
    val = f"{len(splits.val):,}" if splits.val else "no"
    extras = {
        "momentum": recipe.momentum,
        "Nesterov": recipe.nesterov,
        "weight decay": recipe.weight_decay,
        "label smoothing": recipe.label_smoothing,
    }
    pairs = [
        (
            "model",
            f"{settings.model}, {size['num_params']:,} parameters, "
            f"{size['flops_per_image'] / 1e6:.2f} MFLOP an image",
        ),
        (
            "data",
            f"{dataset.name}: {len(splits.train):,} training, {val} validation and "
            f"{len(splits.test):,} test images ({dataset.source})",
        ),
        ("recipe", f"{recipe} ({trainer.total_steps:,} steps of {recipe.batch_size})"),
        (
            "SGD",
            ", ".join(
                name if value is True else f"{name} {value:g}"
                for name, value in extras.items()
                if value
            )
            or "plain",
        ),
        ("seeds", ", ".join(map(str, trainer.seeds))),
        ("device", f"{device_name()}, {settings.dtype}"),
        ("folder", str(folder)),
    ]
    console.print_pairs(screen, pairs)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one ends the process at once."""
    caught: list[int] = []
    previous = {}

    def handler(signum, frame):
        caught.append(signum)
        for number in previous:
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handler)
    try:
        yield caught
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


def train(
    trainer: Trainer,
    folder: pathlib.Path,
    checkpoints: Checkpoints,
    screen: Console,
    tensorboard: bool,
) -> tuple[TrainState, float, list[dict[str, Any]]]:
    """Trains from the newest checkpoint, or from the start, to the end of the recipe.

    What cannot be written does not end it: it warns, and tries again an epoch later.

    Returns:
      The last state, the seconds spent on training, earlier sessions' included, and the
      lines of metrics that could not be written.

    Raises:
      UserError: no sound checkpoint, or no room for one.
      cli.Stopped: by a signal, after the state was saved.
    """
    state, seconds = trainer.init(), 0.0
    check_space(folder, room_for(trainer, state))
    if checkpoints.latest_step is not None:
        state, seconds = checkpoints.restore(state)
    step, lost = int(state.step.max()), state.diverged_at
    lines = records.cut_metrics(folder, step)
    where = str(folder / records.METRICS)
    check(lines[-1:] or [{"seconds": 0}], [{"seconds": NOT_NEGATIVE}], where)
    if step:
        screen.print(f"going on after step {step} of {trainer.total_steps}")
    trainer.compile(state)
    last, unwritten = lines[-1] if lines else None, []
    with (
        contextlib.closing(EventWriter(folder, trainer.seeds, step))
        if tensorboard
        else contextlib.nullcontext() as events,
        caught_signals() as caught,
        console.training_display(screen, step, trainer.total_steps) as display,
    ):
        for progress in trainer.run(state):
            state, seconds = progress.state, seconds + progress.seconds
            display.step(progress)
            lost = warn_of_divergence(trainer, state, lost)
            val = None
            if progress.epoch_done:
                last = log_point(trainer, progress, seconds, last)
                unwritten = try_to_append(folder, unwritten, last)
                if events:
                    events.write(last)
                display.epoch(last, trainer.recipe.epochs)
                if trainer.splits.val is not None:
                    val = console.mean_of_finite(last["val_accuracy"])
            # A checkpoint promises that the lines up to it are there.
            if (progress.epoch_done or caught) and not unwritten and None in lost:
                try_to_save(checkpoints, state, seconds, val)
            if caught:
                screen.print(f"after step {progress.step} of {trainer.total_steps}:")
                raise cli.Stopped(caught[0])
    return state, seconds, unwritten


def room_for(trainer: Trainer, state: TrainState) -> int:
    """Bytes for the checkpoints of a run, one of them being made, and its records."""
    logits = 4 * len(trainer.seeds) * len(trainer.splits.test)
    logits *= trainer.splits.num_classes
    return 5 * size_of(state) + logits + 2**20


def try_to_append(
    folder: pathlib.Path, unwritten: list[dict[str, Any]], line: dict[str, Any]
) -> list[dict[str, Any]]:
    """Writes a line of metrics, after those that could not be written before.

    Returns:
      The lines that are left; the first of them comes with a warning.
    """
    lines = [*unwritten, line]
    try:
        records.append_metrics(folder, lines)
    except UserError as error:
        if not unwritten:
            cli.logger.warning(
                "%s; training goes on, but is not saved until it can be", error
            )
        return lines
    if unwritten:
        cli.logger.info("metrics and checkpoints can be written again")
    return []


def try_to_save(
    checkpoints: Checkpoints, state: TrainState, seconds: float, val: float | None
) -> None:
    """Saves a checkpoint, or warns."""
    try:
        checkpoints.save(state, seconds=seconds, val_accuracy=val)
    except UserError as error:
        cli.logger.warning("%s", error)


def warn_of_divergence(
    trainer: Trainer, state: TrainState, known: tuple[int | None, ...]
) -> tuple[int | None, ...]:
    """Names the replicas that have ended, but for those that are known to have.

    Returns:
      All that have ended: ``state.diverged_at``.
    """
    diverged_at = state.diverged_at
    for seed, step, before in zip(trainer.seeds, diverged_at, known, strict=True):
        if step is not None and before is None:
            cli.logger.warning(
                "seed %d has diverged and ends: its loss is no finite number at step "
                "%d, at a rate of %.3g; lower --lr, or let --lr=auto find it",
                seed,
                step,
                trainer.schedule(step - 1),
            )
    return diverged_at


def log_point(
    trainer: Trainer,
    progress: Progress,
    seconds: float,
    previous: dict[str, Any] | None,
) -> dict[str, Any]:
    """A line of ``metrics.jsonl``, at the end of an epoch.

    Args:
      trainer: which trained.
      progress: at the end of the epoch.
      seconds: of training so far.
      previous: the line before.
    """
    val = None
    if trainer.splits.val is not None:
        val = trainer.evaluate(progress.state, trainer.splits.val)

    def figures(values: np.ndarray) -> Any:
        """One replica's figure is a number, several are a list; of a lost one NaN."""
        values = np.where(np.isnan(progress.train_loss), np.nan, values)
        return values.tolist() if len(values) > 1 else values.item()

    steps = progress.step - (previous["step"] if previous else 0)
    elapsed = seconds - (previous["seconds"] if previous else 0.0)
    images = steps * trainer.recipe.batch_size * len(trainer.seeds)
    return {
        "step": progress.step,
        "epoch": progress.step // trainer.steps_per_epoch,
        "learning_rate": progress.learning_rate,
        "train_loss": figures(progress.train_loss),
        "train_accuracy": figures(progress.train_accuracy),
        "val_loss": None if val is None else figures(val.loss),
        "val_accuracy": None if val is None else figures(val.accuracy),
        "images_per_second": images / elapsed,
        "seconds": seconds,
    }


def write_predictions(folder: pathlib.Path, trainer: Trainer, test: Evaluation) -> None:
    """Writes the test logits, and the images that the run is most sure and wrong of."""
    images, labels = trainer.splits.test.images, trainer.splits.test.labels
    worst = confidently_wrong(test.logits, labels, WORST_IMAGES)
    seeds = list(trainer.seeds)
    records.write_predictions(folder, test.logits, labels, seeds, images[worst], worst)


def outcome(
    trainer: Trainer, state: TrainState, test: Evaluation, seconds: float
) -> dict[str, Any]:
    """What came out, by its names in ``result.json``.

    Args:
      trainer: which trained.
      state: at the end.
      test: of that state.
      seconds: of training.
    """
    # The very last step may leave parameters that are no numbers, unseen by its loss.
    diverged_at = [
        int(step) if at is None and not np.isfinite(loss) else at
        for step, at, loss in zip(state.step, state.diverged_at, test.loss, strict=True)
    ]
    return {
        "seeds": list(trainer.seeds),
        "test_accuracy": test.accuracy.tolist(),
        "test_loss": test.loss.tolist(),
        "test_accuracy_mean": float(test.accuracy.mean()),
        "test_accuracy_ci95": ci95_of_mean(test.accuracy),
        "test_size": len(trainer.splits.test),
        "epochs": trainer.recipe.epochs,
        "steps": int(state.step.max()),
        "train_seconds": seconds,
        "compile_seconds": trainer.compile_seconds,
        "images_per_second": int(state.step.sum())
        * trainer.recipe.batch_size
        / seconds,
        "device": device_name(),
        "diverged_at": diverged_at,
        "status": "finished" if None in diverged_at else "diverged",
    }


def check_outcome(result: dict[str, Any]) -> None:
    """UserError for a run none of whose seeds came to its end."""
    if result["status"] == "diverged":
        raise UserError(
            f"all seeds have diverged, the last at step {result['steps']}; lower --lr, "
            "or let --lr=auto find it"
        )


if __name__ == "__main__":
    config.define_flags()
    cli.main(main)
