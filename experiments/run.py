"""Trains, evaluates, records and checkpoints a model: the main command.

    python -m experiments.run --model=convbn
    python -m experiments.run --model=resnet --seeds=0,1,2 --workdir=runs/resnet
    python -m experiments.run --workdir=runs/resnet --resume

``--help`` lists the settings; ``experiments.config`` defines them.
"""

import contextlib
import dataclasses
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console

from cifar_flax import records
from cifar_flax.checkpoint import Checkpoints, open_checkpoints
from cifar_flax.data import Dataset
from cifar_flax.loop import Progress, Trainer
from cifar_flax.lr_range import RangeSettings
from cifar_flax.models.summary import layer_rows
from cifar_flax.reports.predictions import confidently_wrong
from cifar_flax.reports.statistics import ci95_of_mean
from cifar_flax.state import TrainState
from experiments import cli, config, console
from experiments.environment import device_name, use_compilation_cache
from experiments.lr_find import SEEDS, find_rate
from experiments.setup import (
    describe_recipe,
    load_data,
    make_record,
    make_trainer,
    open_folder,
)
from experiments.tensorboard import EventWriter

# Test images in the record that the run is most sure and wrong about.
WORST_IMAGES = 24


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, signum: int, step: int):
        """Of that signal, after that step."""
        self.signum, self.step = signum, step


def main() -> int:
    """Runs the command; returns the exit status."""
    settings = config.config_from_flags()
    screen = console.make_console()
    use_compilation_cache()
    if settings.resume:
        folder = pathlib.Path(settings.workdir)
        result = records.read_result(folder)
        if result is not None:
            screen.print(f"{folder} holds a finished run; nothing is left to do")
            console.print_result(screen, result, str(folder))
            return 0
    dataset = load_data(settings)
    trainer = make_trainer(settings, dataset)
    folder = open_folder(settings, make_record(settings, trainer, dataset))
    if settings.lr == config.AUTO:
        trainer = trainer_at_found_rate(settings, dataset, folder, screen)
    size = model_size(trainer)
    print_header(screen, settings, trainer, dataset, size, folder)
    try:
        with open_checkpoints(folder / records.CHECKPOINTS) as checkpoints:
            state, seconds = train(
                trainer, folder, checkpoints, screen, settings.tensorboard
            )
    except Interrupted as stop:
        screen.print(
            f"stopped after step {stop.step} of {trainer.total_steps}; to go on:\n"
            f"  python -m experiments.run --workdir={folder} --resume"
        )
        return 128 + stop.signum
    result = finish(settings, trainer, dataset, size, folder, state, seconds)
    console.print_result(screen, result, str(folder))
    return 0


def trainer_at_found_rate(
    settings: config.Config, dataset: Dataset, folder: pathlib.Path, screen: Console
) -> Trainer:
    """The trainer for ``--lr=auto``: finds the rate, unless the folder holds it."""
    found = records.read_range_test(folder)
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
    """Collects SIGINT and SIGTERM; a second one acts as if this were not here."""
    caught: list[int] = []
    previous = {}

    def handler(signum, frame):
        caught.append(signum)
        for number, action in previous.items():
            signal.signal(number, action)

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
) -> tuple[TrainState, float]:
    """Trains from the latest checkpoint, or from the start, to the end of the recipe.

    Returns:
      The last state and the seconds spent on training, earlier sessions' included.

    Raises:
      Interrupted: by a signal, after the state was saved.
    """
    state, seconds = trainer.init(), 0.0
    if checkpoints.latest_step is not None:
        state, seconds = checkpoints.restore(state)
    step = int(state.step[0])
    lines = records.cut_metrics(folder, step)
    if lines:
        screen.print(f"going on after step {step} of {trainer.total_steps}")
    trainer.compile(state)
    last = lines[-1] if lines else None
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
            val = None
            if progress.epoch_done:
                last = log_point(trainer, progress, seconds, last)
                records.append_metrics(folder, last)
                if events:
                    events.write(last)
                display.epoch(last, trainer.recipe.epochs)
                warn_of_divergence(trainer, progress)
                if trainer.splits.val is not None:
                    val = float(np.mean(last["val_accuracy"]))
            if progress.epoch_done or caught:
                checkpoints.save(state, seconds=seconds, val_accuracy=val)
            if caught:
                raise Interrupted(caught[0], progress.step)
    return state, seconds


def warn_of_divergence(trainer: Trainer, progress: Progress) -> None:
    """Names the replicas whose loss is no number any more."""
    for seed, loss in zip(trainer.seeds, progress.train_loss, strict=True):
        if not np.isfinite(loss):
            cli.logger.warning(
                "the loss of seed %d is %s at step %d, at a rate of %g; lower --lr",
                seed,
                loss,
                progress.step,
                progress.learning_rate,
            )


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
        """One replica's figure is a number, several are a list."""
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


def finish(
    settings: config.Config,
    trainer: Trainer,
    dataset: Dataset,
    size: dict[str, Any],
    folder: pathlib.Path,
    state: TrainState,
    seconds: float,
) -> dict[str, Any]:
    """Evaluates the test set, the only time, and writes what came out."""
    test = trainer.evaluate(state, trainer.splits.test)
    seeds = list(trainer.seeds)
    images, labels = trainer.splits.test.images, trainer.splits.test.labels
    worst = confidently_wrong(test.logits, labels, WORST_IMAGES)
    records.write_predictions(folder, test.logits, labels, seeds, images[worst], worst)
    images = trainer.total_steps * trainer.recipe.batch_size * len(seeds)
    result = {
        "model": settings.model,
        "dataset": dataset.name,
        **size,
        "seeds": seeds,
        "test_accuracy": test.accuracy.tolist(),
        "test_loss": test.loss.tolist(),
        "test_accuracy_mean": float(test.accuracy.mean()),
        "test_accuracy_ci95": ci95_of_mean(test.accuracy),
        "test_size": len(trainer.splits.test),
        "epochs": trainer.recipe.epochs,
        "steps": trainer.total_steps,
        "train_seconds": seconds,
        "compile_seconds": trainer.compile_seconds,
        "images_per_second": images / seconds,
        "device": device_name(),
        "status": "finished",
    }
    records.write_result(folder, result)
    return result


if __name__ == "__main__":
    config.define_flags()
    cli.main(main)
