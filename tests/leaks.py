"""Measures memory and open files after many short runs in one process.

python -m tests.leaks --runs=1000
"""

import argparse
import functools
import os
import pathlib
import shutil
import tempfile

from cifar_flax.data import Dataset, make_dataset
from cifar_flax.models import SimpleNet
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from tests.conftest import make_split


@functools.cache
def make_data() -> Dataset:
    """Makes 120 training and 25 test images of four classes."""
    train, test = make_split(0, 120), make_split(2, 25)
    arrays = (train.images, train.labels, test.images, test.labels)
    return make_dataset("tiny", *arrays, tuple("abcd"), source="a test")


def train(seed: int, folder: pathlib.Path) -> None:
    """Runs two epochs with checkpoints and records."""
    settings = Settings(seeds=(seed,), lr=0.001, epochs=2, batch_size=32, val_size=24)
    run(settings, folder, model=SimpleNet(4, features=(3,)), dataset=make_data())
    shutil.rmtree(folder)


def open_files() -> int:
    """Returns the number of open files of this process (Linux)."""
    return len(os.listdir("/proc/self/fd"))


def memory() -> float:
    """Returns the resident memory of this process in MB (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Prints a line after each tenth of the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        for number in range(1, runs + 1):
            train(number, pathlib.Path(name) / "run")
            if number % max(1, runs // 10) == 0:
                print(
                    f"after {number} runs: {memory():.0f} MB, "
                    f"{open_files()} files open",
                    flush=True,
                )


if __name__ == "__main__":
    main()
