"""Trains every combination of the settings given, each in a folder of its own.

python -m experiments.sweep --model=convnet,convbn --lr=0.03,0.1 --seeds=0,1,2
python -m experiments.sweep --model=all --budget_epochs=6 --seeds=0,1,2,3,4

Every flag of experiments.run takes a comma list; the seeds of a combination train in
one program. Finished cells are skipped, unfinished ones go on where they stopped, so
the same command goes on with a sweep. --dry_run shows what would be done.
"""

import contextlib
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from rich.console import Console
from rich.live import Live

from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.models import MODELS
from cifar_flax.records import PLACES
from cifar_flax.runs.cells import Cell, make_cells, plan_of, state_of
from cifar_flax.runs.console import make_console
from cifar_flax.runs.folder import lock_holder
from cifar_flax.runs.settings import AUTO, TYPES
from cifar_flax.training.recipes import MAX_STEPS
from experiments import cli
from experiments.setting_flags import define_settings, parse

FLAGS = flags.FLAGS

POLL_SECONDS = 0.5


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        screen, folder = make_console(patient=True), pathlib.Path(FLAGS.workdir)
        with cli.usage_errors():
            cells = make_cells(lists_from_flags(), FLAGS.seeds, folder)
        check_cells(cells)
        if FLAGS.dry_run:
            screen.print(plan_of(cells))
            return 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from error
        stop: list[int] = []
        with cli.caught_signals(stop.append), live_table(screen, cells) as show:
            for cell in cells:
                run_cell(cell, stop, show)
                if stop:
                    break
        return finish(screen, cells, stop)


def lists_from_flags() -> dict[str, list[Any]]:
    """The values of each setting that the flags name.

    Raises:
      flags.ValidationError: a text stands for none, or flags contradict each other.
    """
    texts = {
        name: FLAGS[name].value
        for name in TYPES
        if name != "seeds" and FLAGS[name].present
    }
    if empty := [name for name, words in texts.items() if not words]:
        raise flags.ValidationError(f"--{empty[0]}=: give one value or more")
    if texts.get("model", ["all"]) == ["all"]:
        texts["model"] = list(MODELS)
    if FLAGS.budget_epochs is not None:
        clash = {"epochs", "cycles", "cycle_len", "cycle_mult", "phases"} & set(texts)
        if clash:
            raise flags.ValidationError(
                f"--budget_epochs sets the schedule; drop --{min(clash)}"
            )
        texts = {"lr": [AUTO], **texts, "cycles": ["1"]}
        texts["cycle_len"] = [str(FLAGS.budget_epochs)]
    for name, words in texts.items():
        if len(set(words)) < len(words):
            raise flags.ValidationError(
                f"--{name}={','.join(words)}: values stand twice in the list"
            )
    return {name: [parse(name, word) for word in texts[name]] for name in texts}


def check_cells(cells: list[Cell]) -> None:
    """Finds the cells whose folders hold something else than their run."""
    datasets: dict[tuple, Dataset] = {}
    for cell in cells:
        settings = cell.settings
        places = tuple(getattr(settings, name) for name in PLACES)
        source = (settings.dataset, *places)
        try:
            if cell.is_begun:
                if source not in datasets:
                    datasets[source] = settings.load_data()
                cell.check(datasets[source])
        except UserError as error:
            cell.problem = str(error)


def run_cell(cell: Cell, stop: list[int], show: Callable[[Cell], None]) -> None:
    """Runs a cell to its end, unless it is done or another process has it."""
    try:
        if cell.problem is not None:
            cell.status = f"failed: {cell.problem}"
        elif cell.read_result():
            cell.status = cell.diverged or "was done"
        elif holder := lock_holder(cell.folder):
            cell.status = f"skipped: in use by {holder}"
        else:
            cell.status = "goes on" if cell.is_begun else "runs"
            show(cell)
            train_cell(cell, stop, show)
            if cell.read_result():
                cell.status = cell.diverged or cell.status
    except (UserError, OSError) as error:
        cell.status = f"failed: {error}"
    show(cell)


def train_cell(cell: Cell, stop: list[int], show: Callable[[Cell], None]) -> None:
    """Trains a cell in a process of its own, whose words go to a file beside it."""
    start = time.monotonic()
    log = cell.folder.with_name(cell.name + ".log")
    command = [
        *(sys.executable, "-m", "experiments.run", *cell.settings.as_flags()),
        *(f"--workdir={cell.folder}", *(["--resume"] if cell.is_begun else [])),
    ]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        told = 0
        while process.poll() is None:
            if len(stop) > told:  # the first saves, the second stops at once
                process.send_signal(stop[told])
                told += 1
            cell.seconds = time.monotonic() - start
            show(cell)
            time.sleep(POLL_SECONDS)
    if process.returncode == 0:
        cell.status = "done"
    elif stop:
        cell.status = "stopped"
    else:
        cell.status = f"failed: {last_line(log)} (all of it in {log})"


def last_line(log: pathlib.Path) -> str:
    """What a process said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


@contextlib.contextmanager
def live_table(screen: Console, cells: list[Cell]) -> Iterator[Callable[[Cell], None]]:
    """A table that follows the cells on a terminal; elsewhere a line for each change.

    Yields:
      A function to call whenever something about a cell has changed.
    """
    if screen.is_terminal:
        with Live(state_of(cells), console=screen, auto_refresh=False) as live:
            yield lambda cell: live.update(state_of(cells), refresh=True)
        return
    printed: dict[str, str] = {}

    def show(cell: Cell) -> None:
        if printed.get(cell.name) != cell.status:
            printed[cell.name] = cell.status
            screen.print(f"{cell.name}: {cell.status}", markup=False)

    yield show
    screen.print()
    screen.print(state_of(cells))


def finish(screen: Console, cells: list[Cell], stop: list[int]) -> int:
    """Says how to go on; returns the exit status."""
    if stop:
        screen.print("stopped; the same command goes on")
        return 128 + stop[0]
    failed = [cell for cell in cells if cell.status.startswith("failed")]
    for cell in failed:
        cli.logger.error("%s %s", cell.name, cell.status)
    if any(cell.result for cell in cells):
        screen.print(f"compare: python -m experiments.report --runs={FLAGS.workdir}")
    return 1 if failed else 0


if __name__ == "__main__":
    settings = [name for name in TYPES if name != "seeds"]
    define_settings(*settings, lists=True)
    define_settings("seeds")
    cli.define_text("workdir", "runs/sweep", "Folder of all runs.")
    flags.DEFINE_bool("dry_run", False, "Show the cells, and run none.")
    flags.DEFINE_integer(
        "budget_epochs",
        None,
        "Train every model for this many epochs in one cosine cycle, from the rate "
        "that a range test finds for it (or from --lr).",
        lower_bound=1,
        upper_bound=MAX_STEPS,
    )
    sys.exit(main())
