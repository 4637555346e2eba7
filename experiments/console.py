"""What a run shows: what will run, how far it is, what came out."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich import progress as bars
from rich.console import Console
from rich.table import Table

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.fields import (
    COUNT,
    INTEGER,
    NOT_NEGATIVE,
    NULL,
    NUMBER,
    POSITIVE,
    SHARE,
    SIZE,
    TEXT,
    Kind,
    check,
    either,
)
from cifar_flax.loop import Progress
from cifar_flax.reports.statistics import ci95_of_share

# Columns that hold words and not numbers.
WORDS = (
    "",
    "model",
    "data",
    "method",
    "cell",
    "recipe",
    "image",
    "layer",
    "kind",
    "class",
)


# Of a run that has just diverged it is NaN; in the file that is null.
_LOSS = Kind(
    "a number or null", lambda v: v is None or type(v) is float or NUMBER.holds(v)
)
_RESULT = {
    **{"model": TEXT, "dataset": TEXT, "epochs": COUNT, "seeds": [INTEGER]},
    **{"test_accuracy": [SHARE], "test_loss": [_LOSS], "test_size": SIZE},
    **{"test_accuracy_mean": SHARE, "test_accuracy_ci95": either(NUMBER, NULL)},
    **dict.fromkeys(("train_seconds", "compile_seconds"), NOT_NEGATIVE),
    "images_per_second": POSITIVE,
}


def check_result(result: dict[str, Any], folder: str) -> None:
    """UserError where the record of a finished run cannot be shown."""
    where = str(pathlib.Path(folder) / records.RESULT)
    check(result, _RESULT, where)
    count = len(result["seeds"])
    if not len(result["test_accuracy"]) == len(result["test_loss"]) == count:
        raise UserError(f"{where}: accuracies or losses are not of {count} seeds")
    if count > 1 and result["test_accuracy_ci95"] is None:
        raise UserError(f"{where} lacks the interval of its accuracy")


def make_console() -> Console:
    """A console that breaks lines, and narrows tables, on a terminal only."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=120)
    return console


def make_table(*columns: str, title: str | None = None) -> Table:
    """A table without lines; all columns but those of words are set to the right."""
    table = Table(
        show_edge=False,
        pad_edge=False,
        box=None,
        padding=(0, 2, 0, 0),
        title=title,
        title_justify="left",
    )
    for name in columns:
        table.add_column(name, justify="left" if name in WORDS else "right")
    return table


def print_pairs(console: Console, pairs: list[tuple[str, str]]) -> None:
    """Prints names and what they stand for, one pair a line."""
    width = max(len(name) for name, _ in pairs)
    for name, text in pairs:
        console.print(f"[bold]{name:<{width}}[/bold]  ", end="")
        console.print(text, markup=False)


@contextlib.contextmanager
def steps_bar(
    console: Console, total: int, done: int = 0
) -> Iterator[Callable[[int, str], None]]:
    """Shows a bar, only where the output is a terminal.

    Yields:
      A function that moves it to a step, with a few words beside it.
    """
    bar = bars.Progress(
        bars.BarColumn(bar_width=24),
        bars.TaskProgressColumn(),
        bars.TextColumn("step {task.completed}/{task.total}"),
        bars.TextColumn("{task.fields[words]}"),
        bars.TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("steps", total=total, completed=done, words="")
        yield lambda step, words: bar.update(task, completed=step, words=words)


class TrainingDisplay:
    """A bar with the figures of the moment on a terminal; a line for every epoch."""

    def __init__(self, console: Console, move: Callable[[int, str], None]):
        """Made by ``training_display``."""
        self._console, self._move = console, move

    def step(self, progress: Progress) -> None:
        """Moves the bar; with replicas, loss and accuracy are their mean."""
        self._move(
            progress.step,
            f"loss {progress.train_loss.mean():.3f}  "
            f"accuracy {100 * progress.train_accuracy.mean():.1f} %  "
            f"{progress.images / progress.seconds:,.0f} images/s",
        )

    def epoch(self, line: dict[str, Any], epochs: int) -> None:
        """Prints a log point as it is recorded; with replicas, their mean."""
        text = (
            f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}  "
            f"rate {line['learning_rate']:<9.3g}"
            f"train loss {np.mean(line['train_loss']):.4f}  "
            f"accuracy {100 * np.mean(line['train_accuracy']):5.2f} %"
        )
        if line["val_loss"] is not None:
            text += (
                f"   val loss {np.mean(line['val_loss']):.4f}  "
                f"accuracy {100 * np.mean(line['val_accuracy']):5.2f} %"
            )
        self._console.print(f"{text}   {line['images_per_second']:,.0f} images/s")


@contextlib.contextmanager
def training_display(
    console: Console, done: int, total: int
) -> Iterator[TrainingDisplay]:
    """Shows training from a step on; the bar only where the output is a terminal."""
    with steps_bar(console, total, done) as move:
        yield TrainingDisplay(console, move)


def print_result(console: Console, result: dict[str, Any], folder: str) -> None:
    """Prints the table at the end; UserError where the record is damaged."""
    check_result(result, folder)
    table = make_table("model", "data", "seed", "test accuracy", "test loss")
    for seed, accuracy, loss in zip(
        result["seeds"], result["test_accuracy"], result["test_loss"], strict=True
    ):
        table.add_row(
            result["model"],
            result["dataset"],
            str(seed),
            f"{100 * accuracy:.2f} %",
            "-" if loss is None else f"{loss:.4f}",
        )
    console.print()
    console.print(table)
    console.print()
    print_pairs(
        console,
        [
            ("test accuracy", _accuracy_in_words(result)),
            (
                "time",
                f"{result['train_seconds']:.1f} s of training, "
                f"{result['compile_seconds']:.1f} s of compilation, "
                f"{result['images_per_second']:,.0f} images/s",
            ),
            ("files", folder),
        ],
    )


def mean_and_interval(result: dict[str, Any]) -> str:
    """A run's test accuracy in per cent."""
    accuracies = result["test_accuracy"]
    if len(accuracies) > 1:
        half = result["test_accuracy_ci95"]
    else:
        half = ci95_of_share(accuracies[0], result["test_size"])
    return f"{100 * result['test_accuracy_mean']:.2f} +- {100 * half:.2f} %"


def _accuracy_in_words(result: dict[str, Any]) -> str:
    count = len(result["test_accuracy"])
    what = (
        f"mean of {count} seeds, 95 % interval"
        if count > 1
        else "one seed; 95 % interval over test images, not over seeds"
    )
    return f"{mean_and_interval(result)} ({what})"
