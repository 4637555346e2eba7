"""Trains every combination of the settings given, each in a folder of its own.

python -m experiments.sweep --model=convnet,convbn --lr=0.03,0.1 --seeds=0,1,2
python -m experiments.sweep --model=all --budget_epochs=6 --seeds=0,1,2,3,4

Every flag of experiments.run takes a comma list; the seeds of a combination train in
one program. Finished cells are skipped, unfinished ones go on where they stopped, so
the same command goes on with a sweep. --dry_run shows what would be done.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
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
from rich.markup import escape
from rich.table import Table

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.fields import COUNT, check
from cifar_flax.models import MODELS, create_model
from cifar_flax.models.summary import layer_rows
from cifar_flax.recipes import MAX_STEPS
from experiments import cli, config
from experiments.console import (
    make_console,
    make_table,
    mean_and_interval,
    read_result,
)
from experiments.environment import peak_gflops
from experiments.lr_find import SEEDS as RANGE_SEEDS
from experiments.text_flag import define_text

FLAGS = flags.FLAGS

# Settings that are of the whole sweep, not of a cell.
WHOLE = ("seeds", "workdir", "resume")

# More would not be a comparison but a mistake in a list.
MAX_CELLS = 10_000

POLL_SECONDS = 0.5

# Of the speed of a large matrix product; a rough guess for a model never run here.
USUAL_SHARE = 0.35
START_SECONDS = 10.0


@dataclasses.dataclass
class Cell:
    """One combination.

    Attributes:
      name: readable, and unique within the sweep; also of its folder.
      settings: of its run.
      given: those that the flags name, as ``experiments.run`` takes them.
      status: what became of it.
      seconds: spent on it by this command.
      result: its ``result.json``, once it is done.
    """

    name: str
    settings: config.Config
    given: dict[str, Any]
    status: str = "waits"
    seconds: float = 0.0
    result: dict[str, Any] | None = None

    @property
    def running(self) -> bool:
        """Whether it is this cell's turn."""
        return self.status in ("runs", "goes on")

    @property
    def folder(self) -> pathlib.Path:
        """Of its run."""
        assert self.settings.workdir is not None
        return pathlib.Path(self.settings.workdir)

    @property
    def begun(self) -> bool:
        """Whether there is something to go on with."""
        return (self.folder / records.CONFIG).exists()

    def command(self) -> list[str]:
        """That runs it, or goes on with it."""
        resume = ["--resume"] if self.begun else []
        given = [f"--{name}={_as_flag(value)}" for name, value in self.given.items()]
        seeds = f"--seeds={','.join(map(str, self.settings.seeds))}"
        parts = [*given, seeds, f"--workdir={self.folder}", *resume]
        return [sys.executable, "-m", "experiments.run", *parts]


def main() -> int:
    """Runs the command; returns the exit status."""
    screen = make_console(patient=True)
    cells = make_cells()
    if FLAGS.dry_run:
        screen.print(plan(cells))
        return 0
    folder = pathlib.Path(FLAGS.workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from error
    with caught_stop() as stop, live_table(screen, cells) as show:
        for cell in cells:
            run_cell(cell, stop, show)
            if stop:
                break
    return finish(screen, cells, stop)


def make_cells() -> list[Cell]:
    """The combinations that the flags name.

    Raises:
      flags.ValidationError: one of them is no run; it is named.
    """
    seeds = config.parse_seeds(FLAGS.seeds)
    lists = {
        field.name: FLAGS[field.name].value
        for field in dataclasses.fields(config.Config)
        if field.name not in WHOLE and FLAGS[field.name].present
    }
    if empty := [name for name, texts in lists.items() if not texts]:
        raise flags.ValidationError(f"--{empty[0]}=: give one value or more")
    if lists.get("model", ["all"]) == ["all"]:
        lists["model"] = list(MODELS)
    if FLAGS.budget_epochs is not None:
        clash = {"epochs", "cycles", "cycle_len", "cycle_mult", "phases"} & set(lists)
        if clash:
            raise flags.ValidationError(
                f"--budget_epochs sets the schedule; drop --{min(clash)}"
            )
        lists = {"lr": [config.AUTO], **lists, "cycles": ["1"]}
        lists["cycle_len"] = [str(FLAGS.budget_epochs)]
    for name, texts in lists.items():
        if len(set(texts)) < len(texts):
            raise flags.ValidationError(
                f"--{name}={','.join(texts)}: values stand twice in the list"
            )
    count = math.prod(map(len, lists.values()))
    if count > MAX_CELLS:
        raise flags.ValidationError(
            f"{', '.join(f'--{name}' for name in lists)} have {count} combinations; "
            f"a sweep takes {MAX_CELLS} at most"
        )
    several = [name for name, texts in lists.items() if len(texts) > 1]
    cells = []
    for texts in itertools.product(*lists.values()):
        given = {
            name: config.parse_setting(name, text)
            for name, text in zip(lists, texts, strict=True)
        }
        cells.append(make_cell(given, several, seeds))
    repeated = len(cells) - len({cell.name for cell in cells})
    if repeated:
        raise flags.ValidationError(
            f"{repeated} combinations stand twice in the lists of --"
            + ", --".join(several)
        )
    return cells


def make_cell(
    given: dict[str, Any], several: list[str], seeds: tuple[int, ...]
) -> Cell:
    """A cell, named by its model, what varies, and a hash of all that decides it."""
    try:
        settings = config.Config(**given, seeds=seeds)
    except UserError as error:
        words = ", ".join(f"{name}={_as_flag(value)}" for name, value in given.items())
        raise flags.ValidationError(f"{error} (in the cell {words})") from error
    varied = [f"{n}{_as_flag(given[n])}" for n in several if n != "model"]
    content = json.dumps(settings.deciding(), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    name = "-".join([settings.model, *varied, digest]).replace("/", "_")
    folder = pathlib.Path(FLAGS.workdir) / name
    settings = dataclasses.replace(settings, workdir=str(folder))
    return Cell(name, settings, given)


def _as_flag(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_outcome(cell: Cell) -> bool:
    """Whether a cell is done; notes its result."""
    cell.result = read_result(cell.folder)
    return cell.result is not None


def diverged(cell: Cell) -> str | None:
    """Says so where all seeds of a cell did: an outcome, and no failure."""
    result = cell.result or {}
    return (
        f"diverged at step {result['steps']}"
        if result.get("status") == "diverged"
        else None
    )


def run_cell(cell: Cell, stop: list[int], show: Callable[[Cell], None]) -> None:
    """Runs a cell to its end, unless it is done or another process has it."""
    try:
        if read_outcome(cell):
            cell.status = diverged(cell) or "was done"
        elif holder := records.lock_holder(cell.folder):
            cell.status = f"skipped: in use by {holder}"
        else:
            cell.status = "goes on" if cell.begun else "runs"
            show(cell)
            train_cell(cell, stop, show)
            if read_outcome(cell):
                cell.status = diverged(cell) or cell.status
    except (UserError, OSError) as error:
        cell.status = f"failed: {error}"
    show(cell)


def train_cell(cell: Cell, stop: list[int], show: Callable[[Cell], None]) -> None:
    """Trains a cell in a process of its own, whose words go to a file beside it."""
    start = time.monotonic()
    log = cell.folder.with_name(cell.name + ".log")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            cell.command(), stdout=output, stderr=subprocess.STDOUT, process_group=0
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
def caught_stop() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, for the cell that runs."""
    stop: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {n: signal.signal(n, lambda got, _: stop.append(got)) for n in numbers}
    try:
        yield stop
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


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


def state_of(cells: list[Cell]) -> Table:
    """How far each cell is and what came out."""
    table = make_table("cell", "epoch", "test accuracy", "time", "")
    for cell in cells:
        result = cell.result
        lines = [] if result or not cell.running else records.read_metrics(cell.folder)
        check(lines[-1:] or [{"epoch": 0}], [{"epoch": COUNT}], str(cell.folder))
        epoch = result["epochs"] if result else lines[-1]["epoch"] if lines else "-"
        table.add_row(
            cell.name,
            str(epoch),
            mean_and_interval(result) if result else "-",
            f"{result['train_seconds'] if result else cell.seconds:.0f} s",
            escape(cell.status),
        )
    return table


def plan(cells: list[Cell]) -> Table:
    """What would be done, and about how long it would take."""
    table = make_table("cell", "recipe", "seeds", "estimate", "")
    speeds = {
        cell.settings.model: cell.result["images_per_second"]
        for cell in cells
        if read_outcome(cell)
    }
    total = 0.0
    for cell in cells:
        seconds = 0.0 if cell.result else estimate(cell, speeds)
        total += seconds
        auto = "rate from a range test, " if cell.settings.lr == config.AUTO else ""
        table.add_row(
            cell.name,
            f"{auto}{_epochs(cell)} epochs",
            str(len(cell.settings.seeds)),
            f"{seconds:.0f} s",
            "is done" if cell.result else "",
        )
    table.add_section()
    table.add_row(f"{len(cells)} cells", "", "", f"{total:.0f} s", "")
    return table


def estimate(cell: Cell, speeds: dict[str, float]) -> float:
    """Seconds for a cell, roughly.

    Args:
      cell: not yet done.
      speeds: images/s of models that are known; others are added, from their
        operations and the machine's speed.
    """
    settings = cell.settings
    if settings.model not in speeds:
        flops = sum(row.flops for row in layer_rows(create_model(settings.model)))
        speeds[settings.model] = USUAL_SHARE * peak_gflops() * 1e9 / (3 * flops)
    images = settings.train_size or 50_000 - settings.val_size
    epochs = _epochs(cell) * len(settings.seeds)
    if settings.lr == config.AUTO:
        epochs += len(RANGE_SEEDS)
    return START_SECONDS + epochs * images / speeds[settings.model]


def _epochs(cell: Cell) -> int:
    return cell.settings.make_recipe().epochs


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
    config.define_flags(without=WHOLE, lists=True)
    config.define_flags("seeds")
    define_text("workdir", "runs/sweep", "Folder of all runs.")
    flags.DEFINE_bool("dry_run", False, "Show the cells, and run none.")
    flags.DEFINE_integer(
        "budget_epochs",
        None,
        "Train every model for this many epochs in one cosine cycle, from the rate "
        "that a range test finds for it (or from --lr).",
        lower_bound=1,
        upper_bound=MAX_STEPS,
    )
    cli.main(main)
