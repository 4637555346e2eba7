"""What a run shows: what will run, how far it is, what came out."""

import contextlib
import pathlib
import sys
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
    check,
    either,
    one_of,
)
from cifar_flax.loop import Progress
from cifar_flax.reports.statistics import ci95_of_share
from experiments import cli

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


_RESULT = {
    **{"model": TEXT, "dataset": TEXT, "epochs": COUNT, "seeds": [INTEGER]},
    **{
        "test_accuracy": [SHARE],
        "test_loss": [either(NUMBER, NULL)],
        "test_size": SIZE,
    },
    **{"test_accuracy_mean": SHARE, "test_accuracy_ci95": either(NUMBER, NULL)},
    **dict.fromkeys(("train_seconds", "compile_seconds"), NOT_NEGATIVE),
    "images_per_second": POSITIVE,
    "steps": COUNT,
    "diverged_at": [either(COUNT, NULL)],
    "status": one_of("finished", "diverged"),
}


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """A run's result, fit to be shown; None where it has none.

    Raises:
      UserError: the record is damaged.
    """
    result = records.read_result(folder)
    if result is None:
        return None
    where = str(folder / records.RESULT)
    check(result, _RESULT, where)
    count = len(result["seeds"])
    lists = ("test_accuracy", "test_loss", "diverged_at")
    if any(len(result[name]) != count for name in lists):
        raise UserError(f"{where}: {', '.join(lists)} are not of {count} seeds each")
    pairs = zip(result["test_loss"], result["diverged_at"], strict=True)
    if any(loss is None and at is None for loss, at in pairs):
        raise UserError(f"{where}: a seed has no test loss, and has not diverged")
    if count > 1 and result["test_accuracy_ci95"] is None:
        raise UserError(f"{where} lacks the interval of its accuracy")
    return result


class _PatientOutput:
    """Standard output, except that a full disk costs the words and not the run."""

    def __init__(self):
        self._warned = False

    def write(self, text: str) -> int:
        """Writes what can be written."""
        return self._try(lambda: sys.stdout.write(text)) or len(text)

    def flush(self) -> None:
        """Likewise."""
        self._try(sys.stdout.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    def _try(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except BrokenPipeError:
            raise
        except OSError as error:
            if not self._warned:
                cli.logger.warning("cannot print: %s", error.strerror)
            self._warned = True


def make_console(patient: bool = False) -> Console:
    """A console that breaks lines, and narrows tables, on a terminal only.

    Args:
      patient: what cannot be printed, such as to a file on a full disk, costs a warning
        and is left out: for what is recorded elsewhere.
    """
    output: Any = _PatientOutput() if patient else None
    console = Console(file=output, highlight=False)
    if not console.is_terminal:
        console = Console(file=output, highlight=False, soft_wrap=True, width=120)
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
        """Moves the bar; loss and accuracy are means over the replicas that go on."""
        self._move(
            progress.step,
            f"loss {mean_of_finite(progress.train_loss):.3f}  "
            f"accuracy {100 * mean_of_finite(progress.train_accuracy):.1f} %  "
            f"{progress.images / progress.seconds:,.0f} images/s",
        )

    def epoch(self, line: dict[str, Any], epochs: int) -> None:
        """Prints a log point as it is recorded, likewise."""
        text = (
            f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}  "
            f"rate {line['learning_rate']:<9.3g}"
            f"train loss {_loss(mean_of_finite(line['train_loss']))}  "
            f"accuracy {100 * mean_of_finite(line['train_accuracy']):5.2f} %"
        )
        if line["val_loss"] is not None:
            text += (
                f"   val loss {_loss(mean_of_finite(line['val_loss']))}  "
                f"accuracy {100 * mean_of_finite(line['val_accuracy']):5.2f} %"
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
    """Prints the table at the end."""
    table = make_table("model", "data", "seed", "test accuracy", "test loss")
    columns = ("seeds", "test_accuracy", "test_loss", "diverged_at")
    for seed, accuracy, loss, diverged_at in zip(
        *(result[name] for name in columns), strict=True
    ):
        table.add_row(
            result["model"],
            result["dataset"],
            str(seed),
            f"{100 * accuracy:.2f} %",
            _loss(loss) if diverged_at is None else f"diverged at step {diverged_at}",
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


def _loss(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"


def mean_of_finite(figures: Any) -> float:
    """Over the replicas that have not diverged; NaN where all have."""
    finite = [figure for figure in np.atleast_1d(figures) if np.isfinite(figure)]
    return float(np.mean(finite)) if finite else np.nan


def _accuracy_in_words(result: dict[str, Any]) -> str:
    count = len(result["test_accuracy"])
    what = (
        f"mean of {count} seeds, 95 % interval"
        if count > 1
        else "one seed; 95 % interval over test images, not over seeds"
    )
    return f"{mean_and_interval(result)} ({what})"
