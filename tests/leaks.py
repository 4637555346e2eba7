"""Many short runs in one process: what they leave in memory and among open files.

python -m tests.leaks --runs=1000
"""

import argparse
import contextlib
import io
import os
import pathlib
import shutil
import tempfile

from cifar_flax import records
from cifar_flax.checkpoint import open_checkpoints
from cifar_flax.data import Splits
from cifar_flax.loop import Trainer
from cifar_flax.models import SimpleNet
from cifar_flax.recipes import Constant, Recipe
from experiments import run
from experiments.console import make_console
from tests.conftest import make_splits

RECIPE = Recipe((Constant(0.001, 2),), batch_size=32)


def train(seed: int, splits: Splits, folder: pathlib.Path) -> None:
    """A run of two epochs with its checkpoints and metrics, and its evaluation."""
    trainer = Trainer(SimpleNet(4, features=(3,)), splits, RECIPE, (seed,))
    folder.mkdir()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        open_checkpoints(folder / records.CHECKPOINTS) as checkpoints,
    ):
        state, _, _ = run.train(trainer, folder, checkpoints, make_console(), False)
    trainer.evaluate(state, splits.test)
    shutil.rmtree(folder)


def open_files() -> int:
    """Files that this process has open (Linux)."""
    return len(os.listdir("/proc/self/fd"))


def memory() -> float:
    """Resident memory of this process in MB (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Prints a line after each tenth of the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000)
    runs = parser.parse_args().runs
    splits = make_splits()
    with tempfile.TemporaryDirectory() as name:
        for number in range(1, runs + 1):
            train(number, splits, pathlib.Path(name) / "run")
            if number % max(1, runs // 10) == 0:
                print(
                    f"after {number} runs: {memory():.0f} MB, "
                    f"{open_files()} files open",
                    flush=True,
                )


if __name__ == "__main__":
    main()
