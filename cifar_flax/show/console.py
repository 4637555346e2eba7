"""Shows a run on a terminal or in a log, as an observer of the run."""

import contextlib
import logging
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich import progress as bars
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from cifar_flax import records
from cifar_flax.analysis.statistics import mean_of_finite
from cifar_flax.files import printable
from cifar_flax.layers.conv import describe
from cifar_flax.own_code import label_of
from cifar_flax.runs.data_record import data_in_words
from cifar_flax.runs.observers import (
    Observer,
    Plan,
    RangeProgress,
    RangeTestResult,
    RunResult,
)
from cifar_flax.runs.replication import Replication
from cifar_flax.runs.tables import (
    WORDS,
    loss_in_words,
    mean_and_interval,
    result_table,
    suggestions_table,
    trials_table,
)
from cifar_flax.show.figures import RANGE_FIGURE
from cifar_flax.training.state import TrainState
from cifar_flax.training.trainer import Progress

logger = logging.getLogger(__name__)


class _Console(Console):
    """Prints text literally, without markup and without control characters."""

    def __init__(self, on_broken: Callable[[], None] | None, **settings: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **settings)
        self._on_broken = on_broken

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)

    def on_broken_pipe(self) -> None:
        if self._on_broken is None:
            raise BrokenPipeError
        self.quiet = True
        self._on_broken()


class _PatientOutput:
    """Standard output that ignores a full disk, so that the run continues."""

    def __init__(self):
        self._warned = False

    def write(self, text: str) -> int:
        """Writes text; a failure is only logged."""
        return self._try(lambda: sys.stdout.write(text)) or len(text)

    def flush(self) -> None:
        """Flushes standard output."""
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
                logger.warning("cannot print: %s", error.strerror)
            self._warned = True


def make_console(on_broken: Callable[[], None] | None = None) -> Console:
    """Makes a console that breaks lines and narrows tables only on a terminal.

    Args:
      on_broken: for a command that also records what it prints. It is called when the
        reader of the output has gone, as in ``| head -1``. Output that cannot be
        printed for another reason, such as a full disk, is dropped with a warning.
    """
    output: Any = _PatientOutput() if on_broken else None
    settings: dict[str, Any] = {"file": output}
    if Console().is_jupyter:  # plain text; rich would make an HTML block of each call
        settings |= {"force_jupyter": False, "force_terminal": False}
    console = _Console(on_broken, **settings)
    if not console.is_terminal:
        console = _Console(on_broken, **settings, soft_wrap=True, width=120)
    return console


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as aligned lines of text; the first row is the heading.

    It is for thousands of rows, for which rich's tables are slow (half a millisecond
    each). Print the text with ``soft_wrap=True``.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    is_left = [name in WORDS for name in rows[0]]
    lines = []
    for row in rows:
        words = []
        for word, width, left in zip(row, widths, is_left, strict=True):
            space = " " * (width - cell_len(word))
            words.append(word + space if left else space + word)
        lines.append("  ".join(words).rstrip())
    return "\n".join(lines)


def print_pairs(console: Console, pairs: list[tuple[str, str]]) -> None:
    """Prints names and values, one pair per line."""
    width = max(len(name) for name, _ in pairs)
    for name, text in pairs:
        console.print(f"{name:<{width}}  ", style="bold", end="")
        console.print(text, soft_wrap=True)  # a path can be copied as a whole


@contextlib.contextmanager
def steps_bar(
    console: Console, total: int, done: int = 0
) -> Iterator[Callable[[int, str], None]]:
    """Shows a progress bar if the output is a terminal.

    Yields:
      A function that moves the bar to a step and sets the words beside it.
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


class ConsoleDisplay(Observer):
    """Prints a header, a bar on a terminal, a line per epoch, and a final table."""

    def __init__(self, console: Console | None = None):
        """Makes the display for a console, by default standard output."""
        self._console = console or make_console()
        self._bar = contextlib.ExitStack()
        self._plan: Plan
        self._rates: np.ndarray  # of each step, [S]
        self._move: Callable[[int, str], None]

    def started(self, plan: Plan) -> None:
        """Prints the header."""
        if plan.kind == plan.config.kind:  # not the range test of a run
            print_pairs(self._console, header(plan))
        if 0 < plan.step < plan.total_steps:
            step = f"step {plan.step} of {plan.total_steps}"
            self._console.print(f"continuing after {step}")
        self._plan = plan
        # An image that is mixed with another counts by its own label.
        mixes = plan.trainer.recipe.augmentation.mixes
        self._accuracy = "accuracy on mixed images" if mixes else "accuracy"
        if plan.kind == "run":
            self._rates = plan.trainer.rates(plan.total_steps)
        bar = steps_bar(self._console, plan.total_steps, plan.step)
        self._move = self._bar.enter_context(bar)

    def chunk_done(self, progress: Progress | RangeProgress) -> None:
        """Moves the bar; loss and accuracy are means over replicas that train."""
        if isinstance(progress, RangeProgress):
            self._move(progress.step, "range test")
            return
        self._move(
            progress.step,
            f"loss {mean_of_finite(progress.train_loss):.3f}  "
            f"{self._accuracy} {100 * mean_of_finite(progress.train_accuracy):.1f} %  "
            f"{progress.images / progress.seconds:,.0f} images/s",
        )

    def epoch_done(self, line: records.LogPoint, state: TrainState) -> None:
        """Prints the highest rate of the epoch, loss and accuracy."""
        del state
        first = (line.epoch - 1) * self._plan.trainer.steps_per_epoch
        rate = self._rates[first : line.step].max()
        epochs = math.ceil(self._plan.trainer.recipe.epochs)
        text = (
            f"epoch {line.epoch:>{len(str(epochs))}}/{epochs}  "
            f"rate {rate:<9.3g}"
            f"train loss {loss_in_words(mean_of_finite(line.train_loss))}  "
            f"{self._accuracy} {100 * mean_of_finite(line.train_accuracy):5.2f} %"
        )
        if line.val_loss is not None:
            text += (
                f"   val loss {loss_in_words(mean_of_finite(line.val_loss))}  "
                f"accuracy {100 * mean_of_finite(line.val_accuracy):5.2f} %"
            )
        for name, values in (line.val_metrics or {}).items():
            text += f"  {name} {mean_of_finite(values):.4g}"
        self._console.print(f"{text}   {line.images_per_second:,.0f} images/s")

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Prints the result."""
        self._bar.close()
        if isinstance(result, RangeTestResult):
            self._print_range_test(result)
        elif result is not None and result.record is not None:
            print_result(self._console, result.record, result.folder)
        elif result is not None:
            step = int(result.state.step.max())
            total = result.trainer.total_steps
            self._console.print(f"stopped after step {step} of {total}")

    def _print_range_test(self, result: RangeTestResult) -> None:
        curves, consensus = result.curves, result.consensus
        if curves is None or consensus is None:
            return
        self._console.print(suggestions_table(curves.seeds, result.suggestions))
        self._console.print(
            f"{len(curves.rates)} of {curves.num_steps} steps, {curves.seconds:.1f} s, "
            f"and {curves.compile_seconds:.1f} s of compilation"
        )
        if result.folder is not None:
            self._console.print(f"curves: {result.folder / RANGE_FIGURE}")
        if result.check is not None:
            self._console.print(trials_table(result.check))
        if result.rate is not None:
            self._console.print(f"suggested rate: {result.rate:.3g}")


def header(plan: Plan) -> list[tuple[str, str]]:
    """Returns names and values that describe what will run."""
    config, trainer = plan.config, plan.trainer
    recipe, settings = trainer.recipe, config.settings
    size = (
        f"{config.model}, {config.num_params:,} parameters, "
        f"{config.flops_per_image / 1e6:.2f} MFLOP per image"
    )
    steps = f"{trainer.total_steps:,} steps of {recipe.batch_size}"
    training = [("recipe", f"{recipe} ({steps})")] if plan.kind == "run" else []
    also = [
        (f"also {name}", f"{len(one.split):,} images ({one.source})")
        for name, one in plan.also_test.items()
    ]
    metrics: Any = settings.get("metrics") or []
    measured = [("metrics", ", ".join(map(label_of, metrics)))] if metrics else []
    dtype = f", {settings['dtype']}" if settings["dtype"] else ""
    return [
        ("model", size),
        *data_in_words(config.dataset),
        *also,
        *training,
        ("optimizer", recipe.optimizer_in_words),
        ("loss", recipe.loss_in_words),
        ("augmentation", str(recipe.augmentation)),
        *measured,
        ("seeds", ", ".join(map(str, trainer.seeds))),
        ("device", f"{config.device}{dtype}"),
        ("convolutions", describe(trainer.lowering)),
        ("folder", "nothing is written" if plan.folder is None else str(plan.folder)),
    ]


def print_result(
    console: Console, result: records.Result, folder: pathlib.Path | None
) -> None:
    """Prints the table at the end."""
    finished, seeds = len(result.finished), len(result.test_accuracy)
    of = "" if finished == seeds else f" that finished, of {seeds}"
    what = f"mean of {finished} seeds{of}, 95 % interval"
    if finished == 1:
        what = "one seed; 95 % interval over test images, not over seeds"
    what = f" ({what})" if result.finished else ""
    largest = []
    if result.largest_class is not None:
        words = f"{100 * result.largest_class:.2f} % of the test images"
        largest.append(("largest class", words))
    pairs = [
        ("test accuracy", mean_and_interval(result) + what),
        *largest,
        (
            "time",
            f"{result.train_seconds:.1f} s of training, "
            f"{result.compile_seconds:.1f} s of compilation, "
            f"{result.images_per_second:,.0f} images/s",
        ),
    ]
    if folder is not None:
        pairs.append(("files", str(folder)))
    console.print()
    console.print(result_table(result))
    console.print()
    print_pairs(console, pairs)


def print_replication(console: Console, found: Replication) -> None:
    """Prints whether the repetition of a run agrees with it."""
    fresh = f"{len(found.now)} fresh {'seed' if len(found.now) == 1 else 'seeds'}"
    if not found.now:
        words = "all fresh seeds have diverged"
    elif found.interval is None:
        words = (
            f"the run has {_mean(found.before)}, and {fresh} {_mean(found.now)}; with "
            "fewer than two seeds of the run nothing can be said"
        )
    else:
        low, high = (f"{100 * end:.2f}" for end in found.interval)
        words = (
            f"{fresh}: {_mean(found.now)}, {'in' if found.agrees else 'outside of'} "
            f"the 95 % prediction interval of the run, {low} to {high} %"
        )
    others = found.differences or ["nothing but the seeds"]
    pairs = [("replication", words), *(("differs", line) for line in others)]
    console.print()
    print_pairs(console, pairs)


def _mean(accuracies: Sequence[float]) -> str:
    return f"{100 * mean_of_finite(accuracies):.2f} %" if accuracies else "no result"
