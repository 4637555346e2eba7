"""Trains every combination of the given settings, each in its own folder.

python -m experiments.sweep --model=convnet,convbn --lr=0.03,0.1 --seeds=0,1,2
python -m experiments.sweep --model=all --budget_epochs=6 --seeds=0,1,2,3,4
python -m experiments.sweep --model=all --launcher=ray --address=auto --cpus_per_cell=4

Every flag of experiments.run takes a comma list, except paths of data and
--optimizer_args. The seeds of a combination train in one program. The same command
continues a sweep: it skips finished combinations and resumes unfinished ones. Several
sweeps in one folder share the work. --dry_run shows what would be done.

python -m experiments.sweep --model=convnet,convbn --until_shown --most_seeds=30

With --until_shown it adds seeds, 5 at a time, to the combinations that may be the best,
until one is shown to be the best.
"""

import contextlib
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cifar_flax.analysis.sequential import LIMIT, MOST, STEP, share_of_margin
from cifar_flax.commands import BEFORE_NAME, cli
from cifar_flax.commands.launcher_flags import define_launchers, make_launcher
from cifar_flax.commands.setting_flags import define_settings, parse
from cifar_flax.data import Dataset
from cifar_flax.definitions import MAX_STEPS
from cifar_flax.errors import UserError
from cifar_flax.files import shell_word
from cifar_flax.records import PLACES, read_config
from cifar_flax.reports.looks import key_of, remember
from cifar_flax.runs.recipe_choice import AUTO
from cifar_flax.runs.recorded_settings import SETTINGS
from cifar_flax.runs.settings import SINGLE
from cifar_flax.show.console import make_console
from cifar_flax.sweeps.cells import (
    MAX_ROWS,
    Cell,
    make_cells,
    pace_of,
    plan_of,
    state_of,
)
from cifar_flax.sweeps.earlier import Contents, with_earlier_seeds
from cifar_flax.sweeps.until_shown import Study, conclusion, plan_of_study
from cifar_flax.training.named_recipes import LESSON

FLAGS = flags.FLAGS

REFRESH_SECONDS = 0.2  # of the table on a terminal

# Settings that cells may differ in. A run that continues another one has the seeds and
# settings of that run, so there is nothing to vary.
VARIED = [name for name in SETTINGS if name not in ("seeds", "continue_from")]


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        stop = cli.StopRequest()
        screen = make_console(on_broken=stop.output_broke)
        folder = pathlib.Path(FLAGS.workdir)
        with cli.usage_errors():
            check_study_flags()
            lists = lists_from_flags()
            cells = make_cells(lists, FLAGS.seeds, folder)
        if FLAGS.until_shown:
            return run_study(screen, stop, lists, cells)
        cells = with_earlier_seeds(cells, folder)
        cells, launcher = my_share(cells), make_launcher()
        if FLAGS.dry_run:
            check_cells(cells, load=False)
            screen.print(plan_of(cells), soft_wrap=True)
            return 0
        with made_folder(folder), launcher as run_cells:
            check_cells(cells, load=True)
            with cli.caught_signals(stop), live_table(screen, cells) as show:
                run_cells(cells, stop.event, show)
        if FLAGS.shard is None:
            remember_look(folder, cells)
        return finish(screen, cells, stop)


def check_study_flags() -> None:
    """Raises a ValidationError if the flags of a study do not fit to each other."""
    for name in ("most_seeds", "margin"):
        if FLAGS[name].present and not FLAGS.until_shown:
            raise flags.ValidationError(f"--{name} needs --until_shown; add or drop it")
    if not FLAGS.until_shown:
        return
    if FLAGS.shard is not None:
        raise flags.ValidationError("--until_shown decides for all cells; drop --shard")
    if len(FLAGS.seeds) > 1:
        raise flags.ValidationError(
            "--until_shown chooses the number of seeds, which count up from --seeds; "
            "give one seed"
        )


def run_study(
    screen: Console, stop: cli.StopRequest, lists: dict[str, Any], cells: list[Cell]
) -> int:
    """Adds seeds until it is shown which combination is the best.

    Args:
      screen: for what it says.
      stop: ends it.
      lists: the values of each setting.
      cells: a cell of each combination, with the first seed.

    Returns:
      The exit status.
    """
    folder, names = pathlib.Path(FLAGS.workdir), [cell.entry for cell in cells]
    told = [
        f"{name} {cell.name}" if names.count(name) > 1 else name
        for name, cell in zip(names, cells, strict=True)
    ]
    margin = None if FLAGS.margin is None else share_of_margin(FLAGS.margin)
    plan = plan_of_study(told, FLAGS.most_seeds, FLAGS.seeds[0], margin)
    study = Study(folder, plan, lambda seeds: make_cells(lists, seeds, folder))
    launcher = make_launcher()
    if FLAGS.dry_run:
        check_cells(study.plan_cells(), load=False)
        screen.print(plan_of(study.cells), soft_wrap=True)
        screen.print(f"looks at {', '.join(map(str, plan.looks))} seeds of each")
        return 0
    with made_folder(folder), launcher as run_cells, cli.caught_signals(stop):
        while True:
            every = study.plan_cells()
            check_cells(every, load=any(cell.result is None for cell in every))
            study.write_plan()
            left = [cell for cell in every if cell.problem or cell.result is None]
            if left:
                with live_table(screen, left) as show:
                    run_cells(left, stop.event, show)
            if any(cell.problem or cell.result is None for cell in every):
                return finish(screen, every, stop)
            standing = study.look()
            screen.print(study.state(standing), soft_wrap=True)
            if standing.needed is None:
                break
    for text in conclusion(standing, told, margin):
        screen.print(text, soft_wrap=True)
    return finish(screen, study.cells, stop)


def remember_look(folder: pathlib.Path, cells: list[Cell]) -> None:
    """Notes which seeds the user has seen, for later reports, once all are trained."""
    if not cells or any(cell.result is None for cell in cells):
        return
    seeds: dict[str, list[int]] = {}
    for cell in cells:
        key = key_of(read_config(cell.folder), cell.folder)
        seeds.setdefault(key, []).extend(cell.settings.seeds)
    remember(folder, seeds)


@contextlib.contextmanager
def made_folder(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder, and removes it again if it stays empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder is not empty
            folder.rmdir()


def lists_from_flags() -> dict[str, list[Any]]:
    """Returns the values of each setting that the flags give.

    Raises:
      flags.ValidationError: a value is not valid, or flags contradict each other.
    """
    given = [name for name in VARIED if FLAGS[name].present]
    texts: dict[str, Any] = {
        name: FLAGS[name].value for name in given if name not in SINGLE
    }
    single = {name: [FLAGS[name].value] for name in given if name in SINGLE}
    if empty := [name for name, words in texts.items() if not words]:
        raise flags.ValidationError(f"--{empty[0]}=: give one or more values")
    if texts.get("model", ["all"]) == ["all"]:
        texts["model"] = list(LESSON)
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
                f"--{name}={','.join(words)}: a value appears twice in the list"
            )
    lists = {name: [parse(name, word) for word in texts[name]] for name in texts}
    return lists | single


def check_cells(cells: list[Cell], load: bool) -> None:
    """Finds the cells whose folders hold something other than their run.

    Args:
      cells: of the sweep.
      load: whether to load the data of cells that have not begun, too. Missing data are
        then one error instead of one for each cell.

    Raises:
      UserError: the data cannot be loaded.
    """
    datasets: dict[tuple, Dataset] = {}
    contents = Contents()
    for cell in cells:
        settings = cell.settings
        places = tuple(getattr(settings, name) for name in PLACES)
        source = (settings.dataset, *places)
        if (load or cell.is_begun) and source not in datasets:
            datasets[source] = settings.load_data()
        try:
            cell.codes = contents.codes_of(settings)
            if cell.is_begun:
                cell.check(datasets[source])
                contents.check(cell, datasets[source])
        except UserError as error:
            cell.problem = str(error)


def my_share(cells: list[Cell]) -> list[Cell]:
    """Returns the cells of this process if several processes share a sweep by --shard.

    Raises:
      flags.ValidationError: --shard is not of the form I/N.
    """
    if FLAGS.shard is None:
        return cells
    numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", FLAGS.shard)
    number, count = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= number <= count:
        raise flags.ValidationError(
            f"--shard={FLAGS.shard}: give I/N, the part and the number of parts, from "
            "1/N to N/N"
        )
    return cells[number - 1 :: count]


@contextlib.contextmanager
def live_table(screen: Console, cells: list[Cell]) -> Iterator[Callable[[Cell], None]]:
    """Shows the cells: a live table on a terminal, otherwise a line for each change.

    Yields:
      A function to call whenever the state of a cell has changed.
    """
    begin = time.monotonic()

    def state(rows: int = MAX_ROWS) -> Table:
        return state_of(cells, rows, pace_of(cells, time.monotonic() - begin))

    if screen.is_terminal:
        rows, due = max(screen.height - 5, 6), 0.0
        with Live(state(rows), console=screen, auto_refresh=False) as live:

            def follow(cell: Cell) -> None:
                nonlocal due
                if time.monotonic() >= due:  # there may be thousands of finished cells
                    live.update(state(rows), refresh=True)
                    due = time.monotonic() + REFRESH_SECONDS

            yield follow
            live.update(state(), refresh=True)
        return
    numbers = {cell.name: n for n, cell in enumerate(cells, start=1)}
    printed: dict[str, tuple[str, str | None]] = {}

    def show(cell: Cell) -> None:
        if printed.get(cell.name) != (cell.status, cell.node):
            printed[cell.name] = cell.status, cell.node
            screen.print(
                f"{numbers[cell.name]} of {len(cells)}  {cell.line}{rest(cell)}"
            )

    def rest(cell: Cell) -> str:
        if cell.result is None or not cell.seconds:  # another process trained it
            return ""
        return f" ({pace_of(cells, time.monotonic() - begin)})"

    yield show
    screen.print()
    screen.print(state())


def finish(screen: Console, cells: list[Cell], stop: cli.StopRequest) -> int:
    """Says how to continue; returns the exit status."""
    if stop.signum is not None:
        words = "stopped; the same command continues"
        screen.print(words)
        if stop.signum == cli.SIGPIPE:
            cli.logger.info("the output was closed: %s", words)
        return 128 + stop.signum
    failed = [cell for cell in cells if cell.status.startswith("failed")]
    for cell in failed:
        cli.logger.error("%s %s", cell.name, cell.status)
    if any(cell.result for cell in cells):
        runs = shell_word(f"--runs={FLAGS.workdir}", sys.stdout.encoding)
        screen.print(f"compare: {BEFORE_NAME}report {runs}", soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    define_settings(*VARIED, lists=True)
    define_settings("seeds")
    cli.define_path("workdir", "runs/sweep", "Folder of all runs.")
    flags.DEFINE_bool("dry_run", False, "Show the cells without training them.")
    flags.DEFINE_integer(
        "budget_epochs",
        None,
        "Train every model for this many epochs in one cosine cycle, from the rate "
        "that a range test finds for it (or from --lr).",
        lower_bound=1,
        upper_bound=MAX_STEPS,
    )
    flags.DEFINE_bool(
        "until_shown",
        False,
        "Add seeds to the combinations that may be the best until one is shown to be "
        "the best.",
    )
    flags.DEFINE_integer(
        "most_seeds", MOST, "until_shown: largest number of seeds.", STEP, LIMIT
    )
    flags.DEFINE_float(
        "margin",
        None,
        "until_shown: combinations that are shown to be the same within this many "
        "points, such as 0.5, need no more seeds.",
    )
    define_launchers()
    sys.exit(main())
