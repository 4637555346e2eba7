"""How good are the rates that the range test suggests? Trains over a grid to find out.

    python -m experiments.lr_grid --workdir=runs/lr_grid
    python -m experiments.lr_grid --workdir=runs/lr_grid --models=simplenet,convnet

For each model: the range test; then two epochs from each rate of a grid, one cosine
cycle, and the validation accuracy at their end. The table says how far the accuracy at
each suggested rate lies below the best of the grid. A model that is in the folder
already is not trained again.
"""

import dataclasses
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from rich.console import Console
from rich.table import Table

from cifar_flax import records
from cifar_flax.data import Dataset
from cifar_flax.loop import Data, Trainer, map_replicas
from cifar_flax.lr_range import RangeSettings
from cifar_flax.reports.range_curve import METHODS, RangeResult
from cifar_flax.state import TrainState
from experiments import cli, config
from experiments.console import make_console, make_table, steps_bar
from experiments.environment import device_name, use_compilation_cache
from experiments.lr_find import SEEDS, run_test
from experiments.setup import load_data, make_record, make_trainer, open_folder
from experiments.text_flag import define_text

FLAGS = flags.FLAGS

RATES = np.geomspace(1e-4, 1, 12)
EPOCHS = 2
GRID_SEEDS = (0, 1, 2)

# Of the test: an epoch of all training images, as a user has it.
RANGE_STEPS = 175

GRID = "lr_grid.json"


def main() -> None:
    """Runs the command."""
    models = config.check_models(FLAGS.models)
    use_compilation_cache()
    screen = make_console()
    dataset = load_data(settings_of(models[0]))
    grids = {}
    for model in models:
        folder = pathlib.Path(FLAGS.workdir) / model
        if not os.path.exists(folder / GRID):  # False for too long a name
            screen.print(f"\n{model}")
            measure(settings_of(model), dataset, screen)
        result = RangeResult.from_record(records.read_json(folder / records.RANGE_TEST))
        found = {method: result.consensus(method).rate for method in METHODS}
        grids[model] = {**records.read_json(folder / GRID), "suggested": found}
    screen.print(summary(grids))
    size, device = FLAGS.train_size, next(iter(grids.values()))["device"]
    screen.print(
        f"\n{dataset.name}, {size:,} training images, {EPOCHS} epochs, validation "
        f"accuracy in per cent, mean of {len(GRID_SEEDS)} seeds; {device}. In "
        "brackets: points below the best rate. Cost: of a step of the range test, over "
        "one of training."
    )


def settings_of(model: str) -> config.Config:
    """What a model is trained with: its recipe, on part of the images.

    Raises:
      flags.ValidationError: a flag is out of range.
    """
    with cli.usage_errors():
        return config.Config(
            model=model,
            dataset=FLAGS.dataset,
            data_dir=FLAGS.data_dir,
            data_archive=FLAGS.data_archive,
            archive_sha256=FLAGS.archive_sha256,
            train_size=FLAGS.train_size,
            seeds=SEEDS,
            workdir=str(pathlib.Path(FLAGS.workdir) / model),
        )


def measure(settings: config.Config, dataset: Dataset, screen: Console) -> None:
    """Runs the range test and trains over the grid; writes both."""
    trainer = make_trainer(settings, dataset)
    record = make_record(settings, trainer, dataset, "lr_grid")
    folder = open_folder(settings, record)
    test = RangeSettings(num_steps=RANGE_STEPS)
    result = run_test(trainer, test, folder, settings.model, screen)
    steps = int(np.isfinite(result.losses).sum())

    trainer = make_trainer(dataclasses.replace(settings, seeds=GRID_SEEDS), dataset)
    accuracies, seconds = train_grid(trainer, screen)
    grid = {
        "rates": RATES,
        "accuracies": accuracies,
        "cost": result.seconds / steps / seconds,
        "device": device_name(),
    }
    records.write_json(folder / GRID, grid)


def train_grid(trainer: Trainer, screen: Console) -> tuple[np.ndarray, float]:
    """Trains from each rate.

    Returns:
      Validation accuracies [rates, R], and the seconds that a step took.
    """
    steps = EPOCHS * trainer.steps_per_epoch

    def train(state: TrainState, rate: jax.Array, data: Data) -> TrainState:
        batches = trainer.first_batches(state.key, steps)
        tx = trainer.recipe.optimizer(optax.cosine_decay_schedule(rate, steps))

        def body(step: jax.Array, state: TrainState) -> TrainState:
            return trainer.train_step(state, step, batches[step], data, tx)

        return jax.lax.fori_loop(0, steps, body, state)

    start, rates = trainer.init(), jnp.asarray(RATES, jnp.float32)
    run = jax.jit(map_replicas(train)).lower(start, rates[0], trainer.data).compile()
    accuracies, seconds = [], 0.0
    with steps_bar(screen, len(rates)) as move:
        for number, rate in enumerate(rates, start=1):
            called = time.perf_counter()
            state = jax.block_until_ready(run(start, rate, trainer.data))
            seconds += time.perf_counter() - called
            accuracies.append(trainer.evaluate(state, trainer.splits.val).accuracy)
            move(number, "rates of the grid")
    return np.array(accuracies), seconds / (len(rates) * steps * len(trainer.seeds))


def shortfall(grid: dict[str, Any], rate: float) -> float:
    """How far the accuracy at a rate lies below the best of the grid, in points.

    Between two rates of the grid it is interpolated in log(rate), which errs on the
    side of a larger shortfall where the accuracy bends downwards. NaN outside the grid.
    """
    means = 100 * np.mean(grid["accuracies"], 1)
    logs = np.log(grid["rates"])
    at = np.interp(np.log(rate), logs, means, left=np.nan, right=np.nan)
    return float(means.max() - at)


def summary(grids: dict[str, dict[str, Any]]) -> Table:
    """A row for each model: the best rate, and each method's with its shortfall."""
    table = make_table("model", "best", "accuracy", "within 1 point", *METHODS, "cost")
    for model, grid in grids.items():
        means = 100 * np.mean(grid["accuracies"], 1)
        rates = np.geomspace(grid["rates"][0], grid["rates"][-1], 400)
        good = [rate for rate in rates if shortfall(grid, rate) <= 1]
        table.add_row(
            model,
            f"{grid['rates'][int(means.argmax())]:.2g}",
            f"{means.max():.1f}",
            f"{good[0]:.2g} - {good[-1]:.2g}",
            *(_verdict(grid, grid["suggested"][method]) for method in METHODS),
            f"x {grid['cost']:.2f}",
        )
    return table


def _verdict(grid: dict[str, Any], rate: float | None) -> str:
    if rate is None:
        return "none"
    return f"{rate:g} (-{shortfall(grid, rate):.1f})"


if __name__ == "__main__":
    config.define_flags("dataset", "data_dir", "data_archive", "archive_sha256")
    flags.DEFINE_list("models", ["all"], "Architectures, or all of them.")
    flags.DEFINE_integer("train_size", 10_000, "Train on this many images.", 1)
    define_text("workdir", "runs/lr_grid", "Folder for the outcome.")
    cli.main(main)
