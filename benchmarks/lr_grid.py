"""How good are the rates that the range test suggests? Trains over a grid to find out.

    python -m benchmarks.lr_grid --workdir=runs/lr_grid
    python -m benchmarks.lr_grid --workdir=runs/lr_grid --models=simplenet,convnet

For each model it runs the range test, then trains for two epochs in one cosine cycle
from each rate of a grid, and measures the validation accuracy. The table shows how far
the accuracy at each suggested rate is below the best of the grid. Models that are
already in the folder are not trained again.
"""

import dataclasses
import os
import pathlib
import sys

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from cifar_flax import records
from cifar_flax.analysis.range_curve import METHODS, RangeResult
from cifar_flax.commands import cli
from cifar_flax.commands.setting_flags import check_models, define_settings
from cifar_flax.data import Dataset, Split, Splits
from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.json_files import read_json, write_json
from cifar_flax.runs.environment import device_name, use_compilation_cache
from cifar_flax.runs.folder import check_same_run
from cifar_flax.runs.range_tests import range_test
from cifar_flax.runs.settings import RANGE_SEEDS, Settings
from cifar_flax.runs.subject import Subject
from cifar_flax.runs.tables import make_table
from cifar_flax.show.console import ConsoleDisplay, make_console, steps_bar
from cifar_flax.show.figures import RangeFigure
from cifar_flax.training.lr_range import RangeSettings
from cifar_flax.training.phases import Sgdr
from cifar_flax.training.trainer import Trainer

FLAGS = flags.FLAGS

RATES = np.geomspace(1e-4, 1, 12)
EPOCHS = 2
GRID_SEEDS = (0, 1, 2)

# Steps of the range test: an epoch of all training images, as in a user's run.
RANGE_STEPS = 175

GRID = "lr_grid.json"


class Grid(records.Record, kw_only=True):
    """``lr_grid.json``: validation accuracies [rates, R] of the grid.

    ``cost`` is the time of a step of the range test divided by that of training.
    """

    rates: list[records.Positive]
    accuracies: list[list[records.Share]]
    cost: float
    device: str

    @property
    def means(self) -> np.ndarray:
        """Mean accuracy over the seeds at each rate, in per cent."""
        return 100 * np.mean(self.accuracies, 1)

    def shortfall(self, rate: float) -> float:
        """Returns how far the accuracy at a rate is below the best, in points.

        Between two rates of the grid it is interpolated in log(rate), which
        overestimates the shortfall if the accuracy is concave. It is NaN outside the
        grid.
        """
        logs = np.log(self.rates)
        at = np.interp(np.log(rate), logs, self.means, left=np.nan, right=np.nan)
        return float(self.means.max() - at)


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        models = check_models(FLAGS.models)
        settings = [settings_of(model, RANGE_SEEDS) for model in models]
        use_compilation_cache()
        screen = make_console()
        dataset = settings[0].load_data()
        grids, suggested = {}, {}
        for one in settings:
            folder = pathlib.Path(FLAGS.workdir) / one.model
            if not os.path.exists(folder / GRID):  # it accepts very long names
                screen.print(f"\n{one.model}")
                measure(one, folder, dataset, screen)
            else:
                check_same(one, folder, dataset)
            record = records.read_range_test(folder)
            if record is None:
                raise UserError(
                    f"{folder} has no {records.RANGE_TEST}; remove the folder"
                )
            result = RangeResult.from_record(record)
            suggested[one.model] = {m: result.consensus(m).rate for m in METHODS}
            grids[one.model] = read_json(folder / GRID, Grid)
        screen.print(summary(grids, suggested))
        size, device = FLAGS.train_size, next(iter(grids.values())).device
        screen.print(
            f"\n{dataset.name}, {size:,} training images, {EPOCHS} epochs, validation "
            f"accuracy in per cent, mean of {len(GRID_SEEDS)} seeds; {device}. In "
            "brackets: points below the best rate. Cost: time of a step of the range "
            "test divided by that of training."
        )
    return 0


def settings_of(model: str, seeds: tuple[int, ...]) -> Settings:
    """Returns the settings of a model: its recipe, on a part of the images.

    Raises:
      flags.ValidationError: a flag is out of range.
    """
    with cli.usage_errors():
        return Settings(
            model=model,
            dataset=FLAGS.dataset,
            data_dir=FLAGS.data_dir,
            data_archive=FLAGS.data_archive,
            archive_sha256=FLAGS.archive_sha256,
            train_size=FLAGS.train_size,
            seeds=seeds,
        )


def check_same(settings: Settings, folder: pathlib.Path, dataset: Dataset) -> None:
    """Raises a UserError if a folder holds the grid of something else."""
    subject = Subject.prepare(settings, dataset=dataset, needs_schedule=False)
    config = subject.config("lr_find", subject.make_trainer())
    check_same_run(config, records.read_config(folder), folder)


def measure(
    settings: Settings, folder: pathlib.Path, dataset: Dataset, screen: Console
) -> None:
    """Runs the range test, trains over the grid, and writes both results."""
    result = range_test(
        settings,
        folder,
        range_settings=RangeSettings(num_steps=RANGE_STEPS),
        dataset=dataset,
        observers=[RangeFigure(), ConsoleDisplay(screen)],
    ).curves
    assert result is not None  # the test cannot have been stopped
    steps = int(np.isfinite(result.losses).sum())
    cycle = Sgdr(1.0, cycles=1, cycle_len=EPOCHS)
    recipe = dataclasses.replace(settings.make_recipe(), phases=(cycle,))
    subject = Subject.prepare(settings, recipe=recipe, dataset=dataset)
    trainer = subject.make_trainer(seeds=GRID_SEEDS)
    accuracies, seconds = train_grid(trainer, subject.splits, screen)
    grid = Grid(
        rates=RATES.tolist(),
        accuracies=accuracies,
        cost=result.seconds / steps / seconds,
        device=device_name(),
    )
    write_json(folder / GRID, grid)


@known_settings()
def train_grid(
    trainer: Trainer, splits: Splits, screen: Console
) -> tuple[list[list[float]], float]:
    """Trains from each rate.

    Args:
      trainer: of a recipe whose highest rate is 1.
      splits: of the data.
      screen: shows the progress.

    Returns:
      Validation accuracies [rates, R], and the time of a step in seconds.
    """
    start, data = trainer.init(splits.train), trainer.put(splits.train)
    accuracies, seconds, images = [], 0.0, 0
    assert isinstance(splits.val, Split)
    val = trainer.hold(splits.val)
    with steps_bar(screen, len(RATES)) as move:
        for number, rate in enumerate(RATES, start=1):
            for progress in trainer.chunks(start, data, rate=rate):
                seconds += progress.seconds
                images += progress.images
            accuracies.append(trainer.evaluate(progress.state, val).accuracy.tolist())
            move(number, "rates of the grid")
    return accuracies, seconds * trainer.recipe.batch_size / images


def summary(
    grids: dict[str, Grid], suggested: dict[str, dict[str, float | None]]
) -> Table:
    """Makes a table of the best rate and of each method's rate and shortfall."""
    table = make_table("model", "best", "accuracy", "within 1 point", *METHODS, "cost")
    for model, grid in grids.items():
        rates = np.geomspace(grid.rates[0], grid.rates[-1], 400)
        good = [rate for rate in rates if grid.shortfall(rate) <= 1]
        table.add_row(
            model,
            f"{grid.rates[int(grid.means.argmax())]:.2g}",
            f"{grid.means.max():.1f}",
            f"{good[0]:.2g} - {good[-1]:.2g}",
            *(_verdict(grid, suggested[model][method]) for method in METHODS),
            f"x {grid.cost:.2f}",
        )
    return table


def _verdict(grid: Grid, rate: float | None) -> str:
    return "none" if rate is None else f"{rate:g} (-{grid.shortfall(rate):.1f})"


if __name__ == "__main__":
    define_settings("dataset", "data_dir", "data_archive", "archive_sha256")
    flags.DEFINE_list("models", ["all"], "Architectures, or all of the lesson.")
    flags.DEFINE_integer("train_size", 10_000, "Number of training images.", 1)
    cli.define_path("workdir", "runs/lr_grid", "Folder for the results.")
    sys.exit(main())
