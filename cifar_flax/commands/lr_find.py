"""Finds a learning rate with a range test: trains while the rate rises.

    python -m experiments.lr_find --model=convnet --end_lr=100

It prints the suggestion of each method for each seed, and writes the curves to
``lr_find.json`` and ``lr_find.png``. ``experiments.run --lr=auto`` does the same, and
then trains with the rate.
"""

import pathlib
import sys
from typing import Any

from absl import flags

from cifar_flax.commands import cli
from cifar_flax.commands.setting_flags import (
    define_devices,
    define_flag,
    define_settings,
    devices_from_flags,
    settings_from_flags,
)
from cifar_flax.errors import UserError
from cifar_flax.runs.environment import use_compilation_cache
from cifar_flax.runs.folder import folder_for
from cifar_flax.runs.range_tests import range_test
from cifar_flax.runs.recipe_choice import OF_SCHEDULE, flags_of
from cifar_flax.runs.settings import OF_EVALUATION, RANGE_SEEDS
from cifar_flax.show.console import ConsoleDisplay, make_console
from cifar_flax.show.figures import RangeFigure
from cifar_flax.training.lr_range import RangeSettings

FLAGS = flags.FLAGS


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        settings = settings_from_flags()
        with cli.usage_errors():
            names = flags_of(RangeSettings)
            given: dict[str, Any] = {name: FLAGS[name].value for name in names}
            range_settings = RangeSettings(**given)
        use_compilation_cache()
        dataset = settings.load_data()
        folder = None if FLAGS.workdir is None else pathlib.Path(FLAGS.workdir)
        stem = f"lr_find-{settings.model_label}-{dataset.name}"
        with folder_for(folder, stem) as folder:
            result = range_test(
                settings,
                folder,
                range_settings=range_settings,
                dataset=dataset,
                observers=[RangeFigure(), ConsoleDisplay(make_console())],
                **devices_from_flags(),
            )
        if result.consensus is not None and result.consensus.rate is None:
            problem = result.consensus.problem
            raise UserError(f"the range test is inconclusive: {problem}")
    return 0


if __name__ == "__main__":
    # A range test does not use the settings of the schedule, and evaluates nothing.
    unused = (*OF_SCHEDULE, *OF_EVALUATION, "lr_check", "seeds_vary")
    define_settings(without=unused)
    FLAGS.set_default("seeds", RANGE_SEEDS)
    define_devices()
    cli.define_path(
        "workdir", None, "Folder of the test (default: a new one under runs/)."
    )
    for name, one in flags_of(RangeSettings).items():
        define_flag(name, one)
    sys.exit(main())
