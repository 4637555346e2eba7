"""Finds a learning rate by a range test: trains while the rate rises.

    python -m experiments.lr_find --model=convnet --end_lr=100

Prints what each method suggests for each seed, and writes the curves to
``lr_find.json`` and ``lr_find.png``. ``experiments.run --lr=auto`` does the same first,
and then trains with the rate.
"""

import dataclasses
import pathlib

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.loop import Trainer
from cifar_flax.lr_range import RangeSettings, range_test
from cifar_flax.reports.range_curve import METHODS, Consensus, RangeResult
from experiments import cli, config
from experiments.console import make_console, make_table, print_pairs, steps_bar
from experiments.environment import device_name, use_compilation_cache
from experiments.setup import load_data, make_record, make_trainer, open_folder

FLAGS = flags.FLAGS

PICTURE = "lr_find.png"

# Enough to see whether they agree.
SEEDS = (0, 1, 2, 3, 4)

# What the training that follows would be, and the test does not ask for.
NOT_ASKED = ("phases", "lr", "epochs", "cycles", "cycle_len", "cycle_mult", "resume")


def main() -> None:
    """Runs the command."""
    settings = config.config_from_flags()
    use_compilation_cache()
    with cli.usage_errors():
        range_settings = RangeSettings(
            FLAGS.start_lr, FLAGS.end_lr, FLAGS.num_steps, FLAGS.linear
        )
    screen = make_console()
    dataset = load_data(settings)
    trainer = make_trainer(settings, dataset)
    record = make_record(settings, trainer, dataset, "lr_find")
    folder = open_folder(settings, record)
    print_pairs(
        screen,
        [
            ("model", settings.model),
            (
                "data",
                f"{dataset.name}: {len(trainer.splits.train):,} training images "
                f"({dataset.source})",
            ),
            ("device", f"{device_name()}, {settings.dtype}"),
            ("folder", str(folder)),
        ],
    )
    find_rate(trainer, range_settings, folder, settings.model, screen)


def find_rate(
    trainer: Trainer,
    range_settings: RangeSettings,
    folder: pathlib.Path,
    model: str,
    screen: Console,
) -> float:
    """The rate that a test suggests; see ``run_test``.

    Raises:
      UserError: the test is inconclusive; curves and figure are written.
    """
    found = run_test(trainer, range_settings, folder, model, screen).consensus()
    if found.rate is None:
        raise UserError(f"the range test is inconclusive: {found.problem}")
    screen.print(f"suggested rate: {found.rate:g}")
    return found.rate


def run_test(
    trainer: Trainer,
    range_settings: RangeSettings,
    folder: pathlib.Path,
    model: str,
    screen: Console,
) -> RangeResult:
    """Runs the test, prints what it suggests, and writes curves and figure.

    Args:
      trainer: which would train.
      range_settings: of the test.
      folder: to write to.
      model: its name.
      screen: to print to.
    """
    steps = range_settings.steps_for(trainer)
    with steps_bar(screen, steps) as move:
        result = range_test(
            trainer, range_settings, on_progress=lambda step: move(step, "range test")
        )
    found = [result.consensus(method) for method in METHODS]
    records.write_range_test(
        folder,
        {
            "model": model,
            "settings": dataclasses.asdict(range_settings),
            **dataclasses.asdict(result),
            "suggestions": [dataclasses.asdict(one) for one in found],
            "suggested_lr": result.consensus().rate,
        },
    )
    draw(result, f"{model}: learning-rate range test", folder / PICTURE)
    screen.print(suggestions_table(result, found))
    screen.print(
        f"{len(result.rates)} of {steps} steps, {result.seconds:.1f} s, and "
        f"{result.compile_seconds:.1f} s of compilation; curves: {folder / PICTURE}"
    )
    return result


def suggestions_table(result: RangeResult, found: list[Consensus]) -> Table:
    """A row for each method, with its rate for each seed."""
    seeds = [f"seed {seed}" for seed in result.seeds]
    table = make_table("method", *seeds, "consensus", "spread")
    for one in found:
        table.add_row(
            one.method,
            *(f"{rate:.2g}" if np.isfinite(rate) else "-" for rate in one.rates),
            "none" if one.rate is None else f"{one.rate:g}",
            "-" if one.spread is None else f"x {one.spread:.1f}",
        )
    return table


def draw(result: RangeResult, title: str, path: pathlib.Path) -> None:
    """Draws the curves to a file."""
    from experiments import figures  # slow to import, and most runs draw nothing

    figure, axis = figures.plt.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    result.plot(axis)
    axis.set_title(title)
    figures.save_figure(figure, path, str(path))


if __name__ == "__main__":
    config.define_flags(without=NOT_ASKED)
    FLAGS.set_default("seeds", list(map(str, SEEDS)))
    defaults = RangeSettings()
    flags.DEFINE_float("start_lr", defaults.start_lr, "Rate of the first step.")
    flags.DEFINE_float("end_lr", defaults.end_lr, "Rate of the last step.")
    flags.DEFINE_integer("num_steps", None, "Steps (default: an epoch, at least 100).")
    flags.DEFINE_bool("linear", False, "Rise by equal differences, not equal ratios.")
    cli.main(main)
