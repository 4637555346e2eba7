"""Trains every combination of the settings given, each in a folder of its own.

python -m experiments.sweep --model=convnet,convbn --lr=0.03,0.1 --seeds=0,1,2
python -m experiments.sweep --model=all --budget_epochs=6 --seeds=0,1,2,3,4

Every flag of experiments.run but for paths of data and --optimizer_args takes a comma
list; the seeds of a combination train in one program. Finished cells are skipped,
unfinished ones go on where they stopped, so the same command goes on with a sweep.
Several sweeps in one folder share its cells. --dry_run shows what would be done.
"""

import contextlib
import pathlib
import signal
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
from cifar_flax.files import InUseError, locked, shell_word
from cifar_flax.models import MODELS
from cifar_flax.records import PLACES
from cifar_flax.runs.cells import Cell, make_cells, plan_of, state_of
from cifar_flax.runs.console import make_console
from cifar_flax.runs.folder import lock_holder
from cifar_flax.runs.recipe_choice import AUTO
from cifar_flax.runs.settings import SINGLE, TYPES
from cifar_flax.training.checks import MAX_STEPS
from experiments import cli
from experiments.setting_flags import define_settings, parse

FLAGS = flags.FLAGS

POLL_SECONDS = 0.5
REFRESH_SECONDS = 0.2  # of the table on a terminal


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        stop = cli.StopRequest()
        screen = make_console(on_broken=stop.output_broke)
        folder = pathlib.Path(FLAGS.workdir)
        with cli.usage_errors():
            cells = make_cells(lists_from_flags(), FLAGS.seeds, folder)
        if FLAGS.dry_run:
            check_cells(cells, load=False)
            screen.print(plan_of(cells), soft_wrap=True)
            return 0
        with made_folder(folder):
            check_cells(cells, load=True)
            with cli.caught_signals(stop), live_table(screen, cells) as show:
                run_cells(cells, stop, show)
        return finish(screen, cells, stop)


@contextlib.contextmanager
def made_folder(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder, and removes it again where nothing was written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def lists_from_flags() -> dict[str, list[Any]]:
    """The values of each setting that the flags name.

    Raises:
      flags.ValidationError: a text stands for none, or flags contradict each other.
    """
    given = [name for name in TYPES if name != "seeds" and FLAGS[name].present]
    texts = {name: FLAGS[name].value for name in given if name not in SINGLE}
    single = {name: [FLAGS[name].value] for name in given if name in SINGLE}
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
    lists = {name: [parse(name, word) for word in texts[name]] for name in texts}
    return lists | single


def check_cells(cells: list[Cell], load: bool) -> None:
    """Finds the cells whose folders hold something else than their run.

    Args:
      cells: of the sweep.
      load: whether to load the data of cells that are not begun, too, so that data
        that are missing are one error, and not one for each cell.

    Raises:
      UserError: data cannot be had.
    """
    datasets: dict[tuple, Dataset] = {}
    for cell in cells:
        settings = cell.settings
        places = tuple(getattr(settings, name) for name in PLACES)
        source = (settings.dataset, *places)
        if (load or cell.is_begun) and source not in datasets:
            datasets[source] = settings.load_data()
        try:
            if cell.is_begun:
                cell.check(datasets[source])
        except UserError as error:
            cell.problem = str(error)


def run_cells(
    cells: list[Cell], stop: cli.StopRequest, show: Callable[[Cell], None]
) -> None:
    """Runs each cell to its end, unless it is done; last those that others have now."""
    left = cells
    while left and not stop.event.is_set():
        held = []
        for cell in left:
            if stop.event.is_set():
                break
            if not run_cell(cell, stop, show):
                held.append(cell)
        if len(held) == len(left):
            time.sleep(POLL_SECONDS)
        left = held


def run_cell(cell: Cell, stop: cli.StopRequest, show: Callable[[Cell], None]) -> bool:
    """Runs a cell to its end, unless it is done; False where another process has it."""
    try:
        if cell.problem is not None:
            raise UserError(cell.problem)
        if not finish_cell(cell, "was done"):
            with locked(cell.lock, wait=False):
                if holder := lock_holder(cell.folder):  # a run that no sweep has begun
                    raise InUseError(holder)
                if not finish_cell(cell, "was done by another process"):
                    cell.status = "goes on" if cell.is_begun else "runs"
                    show(cell)
                    train_cell(cell, stop, show)
                    finish_cell(cell, cell.status)
    except InUseError as error:
        cell.status = f"waits for {error}"
        show(cell)
        return False
    except (UserError, OSError) as error:
        cell.status = f"failed: {error}"
    show(cell)
    return True


def finish_cell(cell: Cell, status: str) -> bool:
    """Whether a cell has its result."""
    if not cell.read_result():
        return False
    cell.status = cell.diverged or status
    return True


def train_cell(cell: Cell, stop: cli.StopRequest, show: Callable[[Cell], None]) -> None:
    """Trains a cell in a process of its own, whose words go to a file beside it."""
    start, told = time.monotonic(), False
    command = [
        *(sys.executable, "-m", "experiments.run", *cell.settings.as_flags()),
        *(f"--workdir={cell.folder}", *(["--resume"] if cell.is_begun else [])),
        "--stop_with_input",  # which ends with this process, however it ends
    ]
    with open(cell.log, "ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        while process.poll() is None:
            if stop.event.is_set() and not told:
                process.terminate()
                told = True
            cell.seconds = time.monotonic() - start
            show(cell)
            time.sleep(POLL_SECONDS)
        assert process.stdin is not None
        process.stdin.close()
    if process.returncode == 0:
        cell.status = "done"
    elif told:
        cell.status = "stopped"
    else:
        reason = ended_by(process.returncode) or last_line(cell.log, begin)
        cell.status = f"failed: {reason} (its words: {cell.log})"


def ended_by(returncode: int) -> str | None:
    """Says so where a signal has ended a process, or has told it to end."""
    number = -returncode if returncode < 0 else returncode - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return None
    hint = ", as where memory is short" if name == "SIGKILL" else ""
    return f"ended from outside by {name}{hint}; the same command goes on"


def last_line(log: pathlib.Path, begin: int) -> str:
    """What a process said last, in its part of a log."""
    said = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    return said[-1].removeprefix("error: ") if said else "it said nothing"


@contextlib.contextmanager
def live_table(screen: Console, cells: list[Cell]) -> Iterator[Callable[[Cell], None]]:
    """A table that follows the cells on a terminal; elsewhere a line for each change.

    Yields:
      A function to call whenever something about a cell has changed.
    """
    if screen.is_terminal:
        rows, due = max(screen.height - 4, 6), 0.0
        with Live(state_of(cells, rows), console=screen, auto_refresh=False) as live:

            def follow(cell: Cell) -> None:
                nonlocal due
                if time.monotonic() >= due:  # cells that are done come by the thousand
                    live.update(state_of(cells, rows), refresh=True)
                    due = time.monotonic() + REFRESH_SECONDS

            yield follow
            live.update(state_of(cells), refresh=True)
        return
    numbers = {cell.name: n for n, cell in enumerate(cells, start=1)}
    printed: dict[str, str] = {}

    def show(cell: Cell) -> None:
        if printed.get(cell.name) != cell.status:
            printed[cell.name] = cell.status
            screen.print(f"{numbers[cell.name]} of {len(cells)}  {cell.line}")

    yield show
    screen.print()
    screen.print(state_of(cells))


def finish(screen: Console, cells: list[Cell], stop: cli.StopRequest) -> int:
    """Says how to go on; returns the exit status."""
    if stop.signum is not None:
        words = "stopped; the same command goes on"
        screen.print(words)
        if stop.signum == cli.SIGPIPE:
            cli.logger.info("nobody reads the output any more: %s", words)
        return 128 + stop.signum
    failed = [cell for cell in cells if cell.status.startswith("failed")]
    for cell in failed:
        cli.logger.error("%s %s", cell.name, cell.status)
    if any(cell.result for cell in cells):
        runs = shell_word(f"--runs={FLAGS.workdir}", sys.stdout.encoding)
        screen.print(f"compare: python -m experiments.report {runs}", soft_wrap=True)
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
