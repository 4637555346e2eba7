"""Trains airbench94 in PyTorch, to compare our own training with it.

    python -m benchmarks.torch_airbench --data_archive=ARCHIVE --seeds=0,1

It trains on all 50,000 images, in float32, or with ``--half`` in half precision.
``benchmarks.torch_training`` says how, and for ``--muon`` ``benchmarks.torch_muon``.
"""

import sys
from importlib import util
from importlib.metadata import version

import numpy as np
from absl import flags
from rich.table import Table

from cifar_flax.commands import cli
from cifar_flax.commands.setting_flags import define_settings, settings_from_flags
from cifar_flax.data import split_dataset
from cifar_flax.errors import UserError
from cifar_flax.runs.tables import make_table
from cifar_flax.show.console import make_console

FLAGS = flags.FLAGS


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        if util.find_spec("torch") is None:
            raise UserError("this command needs PyTorch: pip install -e '.[bench]'")
        from benchmarks.torch_muon import MuonTraining
        from benchmarks.torch_training import Training

        settings = settings_from_flags()
        splits = split_dataset(settings.load_data(), 0)
        test = splits.test
        kind = MuonTraining if FLAGS.muon else Training
        training = kind(splits.train, not FLAGS.eager, FLAGS.half)
        compiled = training.warm_up(test)
        screen, found = make_console(), []
        table: Table = make_table("seed", "test accuracy", "training")
        for seed in settings.seeds:
            seconds = training.train(seed)
            accuracy = training.accuracy(test)
            found.append(accuracy)
            table.add_row(str(seed), f"{100 * accuracy:.2f} %", f"{seconds:.0f} s")
            screen.print(f"seed {seed}: {100 * accuracy:.2f} % after {seconds:.0f} s")
        screen.print(table)
        screen.print(
            f"mean {100 * np.mean(found):.2f} %; PyTorch {version('torch')}, "
            f"{'eager' if FLAGS.eager else 'torch.compile'}, compiled and tried in "
            f"{compiled:.0f} s"
        )
    return 0


if __name__ == "__main__":
    define_settings("seeds", "dataset", "data_dir", "data_archive", "archive_sha256")
    flags.DEFINE_bool("eager", False, "Train without torch.compile.")
    flags.DEFINE_bool("muon", False, "Train as airbench94_muon does.")
    flags.DEFINE_bool("half", False, "Compute in half precision, as published.")
    sys.exit(main())
