"""Measures time, memory and disk space of planning and reports for many runs.

python -m tests.many --cells=10000 --configurations=50,200,1000

The runs are made up and as large as real ones: three seeds, 30 epochs, ten classes and
10,000 test images, 1.4 MB each, in a temporary folder. Times are medians of three, with
the start of Python.
"""

import argparse
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from cifar_flax import records
from cifar_flax.analysis.predictions import score
from cifar_flax.analysis.statistics import ci95_of_mean
from cifar_flax.models.summary import layer_rows
from cifar_flax.runs.outcome import describe_layers
from cifar_flax.runs.subject import Subject
from cifar_flax.sweeps.cells import Cell, make_cells

SEEDS = (0, 1, 2)
EPOCHS = 30
TEST_SIZE = 10_000
MISTAKES = 24  # images in the record of a run


def lists_of(count: int) -> dict[str, list]:
    """Returns values of settings with a number of combinations."""
    rows = max(n for n in range(1, math.isqrt(count) + 1) if count % n == 0)
    rates = [round(0.001 * n, 6) for n in range(1, count // rows + 1)]
    decays = [round(0.00001 * n, 6) for n in range(1, rows + 1)]
    others = {"model": ["convbn"], "dataset": ["shapes"], "cycles": [EPOCHS]}
    return {**others, "lr": rates, "weight_decay": decays}


def flags_of(lists: dict[str, list]) -> list[str]:
    """Returns the same as flags of ``experiments.sweep``."""
    flags = [f"--{n}={','.join(map(str, values))}" for n, values in lists.items()]
    return [*flags, f"--seeds={','.join(map(str, SEEDS))}"]


def make_runs(cells: list[Cell], with_predictions: bool) -> None:
    """Writes the folder of each cell as that of a finished run."""
    subject = Subject.prepare(cells[0].settings)
    trainer = subject.make_trainer()
    config = subject.config("run", trainer)
    layers = describe_layers(layer_rows(cells[0].settings.make_model(10)))
    config.dataset.test_size = TEST_SIZE
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, TEST_SIZE)
    for cell in cells:
        cell.folder.mkdir(parents=True)
        config.settings = cell.settings.record()
        config.recipe = cell.settings.recipe_of(None)
        config.command = ["python", "-m", "experiments.run", *cell.settings.as_flags()]
        records.write_config(cell.folder, config)
        accuracies = np.clip(rng.normal(0.7, 0.03) + rng.normal(0, 0.005, 3), 0, 1)
        losses = [1.0] * len(SEEDS)
        if with_predictions:
            write_metrics(cell.folder, rng)
            accuracies, losses = write_predictions(cell.folder, labels, accuracies, rng)
        write_result(cell.folder, config, layers, accuracies, losses)


def write_metrics(folder: pathlib.Path, rng: np.random.Generator) -> None:
    """A line for each epoch."""
    records.cut_metrics(folder, 0)
    figures = rng.random((EPOCHS, 4, len(SEEDS))).tolist()
    lines = [
        records.LogPoint(
            step=175 * epoch,
            epoch=epoch,
            learning_rate=0.1,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            images_per_second=9_000.0,
            seconds=5.0 * epoch,
        )
        for epoch, (train_loss, train_accuracy, val_loss, val_accuracy) in enumerate(
            figures, start=1
        )
    ]
    records.append_metrics(folder, lines)


def write_predictions(
    folder: pathlib.Path,
    labels: np.ndarray,
    accuracies: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[float]]:
    """Makes logits with about these accuracies; returns exact accuracies and losses."""
    shape = (len(SEEDS), len(labels), 10)
    logits = rng.standard_normal(shape, np.float32)
    right = rng.random(shape[:2]) < accuracies[:, None]
    wanted = np.where(right, labels, rng.integers(0, 10, shape[:2]))
    np.put_along_axis(logits, wanted[..., None], 4.0, axis=-1)
    images = rng.integers(0, 256, (MISTAKES, 32, 32, 3), np.uint8)
    indices = np.arange(MISTAKES)
    records.write_predictions(folder, logits, labels, list(SEEDS), images, indices)
    losses = [score(one[None], labels).nll / len(labels) for one in logits]
    return (logits.argmax(-1) == labels).mean(-1), losses


def write_result(
    folder: pathlib.Path,
    config: records.Config,
    layers: list[records.Layer],
    accuracies: np.ndarray,
    losses: list[float],
) -> None:
    """What came out."""
    result = records.Result(
        model="convbn",
        dataset=config.dataset.name,
        num_params=config.num_params,
        flops_per_image=config.flops_per_image,
        layers=layers,
        seeds=list(SEEDS),
        test_accuracy=accuracies.tolist(),
        test_loss=losses,
        test_accuracy_mean=float(accuracies.mean()),
        test_accuracy_ci95=ci95_of_mean(accuracies),
        test_size=config.dataset.test_size,
        epochs=EPOCHS,
        steps=175 * EPOCHS,
        train_seconds=100.0,
        compile_seconds=5.0,
        images_per_second=9_000.0,
        device="cpu",
        diverged_at=[None] * len(SEEDS),
        status="finished",
    )
    records.write_result(folder, result)


# A small process starts the command, because Linux counts the memory of the starting
# process as memory of the new one.
WATCH = """
import resource, subprocess, sys, time
start = time.monotonic()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds, megabytes = time.monotonic() - start, used.ru_maxrss * 1.024e-3
print(seconds, used.ru_utime + used.ru_stime, megabytes)
sys.exit(status)
"""


def measure(what: str, module: str, flags: list[str]) -> None:
    """Runs a command three times; prints median times and the largest peak memory."""
    command = [sys.executable, "-c", WATCH, sys.executable, "-m", module, *flags]
    figures = [
        list(map(float, subprocess.check_output(command, text=True).split()))
        for _ in range(3)
    ]
    (seconds, busy, _), (*_, peak) = np.median(figures, 0), np.max(figures, 0)
    print(
        f"{what}: {seconds:.1f} s ({busy:.1f} s of a core), {peak:.0f} MB", flush=True
    )


def measure_sweep(count: int, folder: pathlib.Path) -> None:
    """Measures the plan of new cells, and plan and sweep of finished cells."""
    lists, where = lists_of(count), f"--workdir={folder}"
    flags = [*flags_of(lists), where]
    measure(f"plan of {count} cells", "experiments.sweep", [*flags, "--dry_run"])
    make_runs(make_cells(lists, SEEDS, folder), with_predictions=False)
    measure(
        f"plan of {count} finished cells", "experiments.sweep", [*flags, "--dry_run"]
    )
    measure(f"sweep of {count} finished cells", "experiments.sweep", flags)


def measure_report(count: int, folder: pathlib.Path) -> None:
    """Measures a report over runs, and the sizes of its files."""
    make_runs(make_cells(lists_of(count), SEEDS, folder), with_predictions=True)
    output = folder.with_name(f"{folder.name}-report")
    flags = [f"--runs={folder}", f"--output={output}"]
    measure(f"report on {count} configurations", "experiments.report", flags)
    files = [path for path in output.rglob("*") if path.is_file()]
    page = (output / "report.html").stat().st_size
    total = sum(path.stat().st_size for path in files)
    print(f"  its page {page / 1e6:.2f} MB, {len(files)} files {total / 1e6:.1f} MB")


def main() -> None:
    """Prints a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default="10000", help="numbers, as 1000,10000")
    parser.add_argument("--configurations", default="50,200,1000", help="numbers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for count in map(int, filter(None, given.cells.split(","))):
            measure_sweep(count, pathlib.Path(name, f"cells-{count}"))
        for count in map(int, filter(None, given.configurations.split(","))):
            measure_report(count, pathlib.Path(name, f"runs-{count}"))


if __name__ == "__main__":
    main()
