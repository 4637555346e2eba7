"""Trains every combination of the given settings, each in its own folder.

python -m experiments.sweep --model=convnet,convbn --lr=0.03,0.1 --seeds=0,1,2
python -m experiments.sweep --model=all --budget_epochs=6 --seeds=0,1,2,3,4
python -m experiments.sweep --model=all --lr=0.03,0.1 --seeds=0,1 --fresh_seeds=5
python -m experiments.sweep --model=all --launcher=ray --address=auto --cpus_per_cell=4
python -m experiments.sweep --model=all --search=random --trials=20 --space=space.toml

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
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from rich.console import Console

from cifar_flax.analysis.sequential import LIMIT, MOST, STEP, share_of_margin
from cifar_flax.commands import BEFORE_NAME, cli
from cifar_flax.commands.cell_table import live_table
from cifar_flax.commands.launcher_flags import define_launchers, make_launcher
from cifar_flax.commands.search_flags import (
    BUDGETS,
    OF_BUDGET,
    define_search,
    search_from_flags,
)
from cifar_flax.commands.setting_flags import define_settings, parse, with_groups
from cifar_flax.data import Dataset
from cifar_flax.definitions import MAX_STEPS
from cifar_flax.errors import UserError
from cifar_flax.files import shell_word
from cifar_flax.records import PLACES
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.recipe_choice import AUTO
from cifar_flax.runs.recorded_settings import SETTINGS
from cifar_flax.runs.settings import SINGLE
from cifar_flax.show.console import make_console
from cifar_flax.sweeps.budget import FlopsBudget
from cifar_flax.sweeps.cells import Cell, make_cells, plan_of
from cifar_flax.sweeps.earlier import Contents, with_earlier_seeds
from cifar_flax.sweeps.fresh import fresh_cells
from cifar_flax.sweeps.search import Searching
from cifar_flax.sweeps.until_shown import (
    Study,
    conclusion,
    plan_of_study,
    remember_look,
)
from cifar_flax.training.arguments import fresh_seeds

FLAGS = flags.FLAGS

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
            lists, flops = lists_from_flags(), FLAGS.budget_flops
            budget = None if flops is None else FlopsBudget(flops)
            search = search_from_flags(lists, folder, budget)
            if search is not None:
                return run_search(screen, stop, search)
            settle = {} if budget is None else {"settle": budget}

            def make(seeds: tuple[int, ...]) -> list[Cell]:
                return make_cells(lists, seeds, folder, **settle)

            cells = make(FLAGS.seeds)
        if FLAGS.until_shown:
            return run_study(screen, stop, make, cells)
        return run_combinations(screen, stop, cells)


def run_combinations(
    screen: Console, stop: cli.StopRequest, planned: list[Cell]
) -> int:
    """Trains all cells, and then the chosen ones with fresh seeds if there are any."""
    folder, count = pathlib.Path(FLAGS.workdir), FLAGS.fresh_seeds or 0
    every = with_earlier_seeds(planned, folder)
    cells, launcher = my_share(every), make_launcher()
    if FLAGS.dry_run:
        check_cells(cells, load=False)
        screen.print(plan_of(cells), soft_wrap=True)
        if count:
            screen.print(fresh_in_words())
        return 0
    with made_folder(folder), launcher as run_cells, cli.caught_signals(stop):
        check_cells(cells, load=True)
        with live_table(screen, cells) as show:
            run_cells(cells, stop.event, show)
        if count and not stop.event.is_set() and are_done(every):
            screen.print(fresh_in_words())
            fresh = my_share(fresh_cells(planned, FLAGS.seeds, count, folder))
            check_cells(fresh, load=True)
            if fresh:  # other shards may have all of them
                with live_table(screen, fresh) as show:
                    run_cells(fresh, stop.event, show)
            cells = [*cells, *fresh]
    if FLAGS.shard is None:
        remember_look(folder, cells)
    return finish(screen, cells, stop)


def are_done(cells: list[Cell]) -> bool:
    """Returns whether all cells have results; otherwise says what waits for them."""
    left = 0
    for cell in cells:
        try:
            left += not cell.read_result()
        except (UserError, OSError):
            left += 1  # it has failed
    if left:
        cli.logger.warning(
            "%d cells have no result, so that nothing is chosen and no fresh seed is "
            "trained; repeat the command when they are done",
            left,
        )
    return not left


def fresh_in_words() -> str:
    """Returns which seeds are trained after the choice."""
    seeds = fresh_seeds(FLAGS.seeds, FLAGS.fresh_seeds)
    return (
        "then the configuration of each model that is best on the validation split, "
        f"with the fresh seeds {', '.join(map(str, seeds))}"
    )


def run_search(screen: Console, stop: cli.StopRequest, search: Searching) -> int:
    """Trains the trials of a search, and the best ones with fresh seeds."""
    cells, launcher = search.cells, make_launcher()
    if FLAGS.dry_run:
        check_cells(cells, load=False)
        screen.print("\n".join([plan_of(cells), search.outlook]), soft_wrap=True)
        return 0
    with made_folder(pathlib.Path(FLAGS.workdir)), launcher as run_cells:
        check_cells(cells, load=True)
        with cli.caught_signals(stop), live_table(screen, cells) as show:
            for number, some in enumerate(search.rounds()):
                if number:  # the first are checked
                    check_cells(some, load=False)
                run_cells(some, stop.event, search.watching(show))
                if stop.event.is_set():
                    break
    return finish(screen, cells, stop)


def check_study_flags() -> None:
    """Raises a ValidationError if the flags of a study do not fit to each other."""
    for name in ("most_seeds", "margin"):
        if FLAGS[name].present and not FLAGS.until_shown:
            raise flags.ValidationError(f"--{name} needs --until_shown; add or drop it")
    if not FLAGS.until_shown:
        return
    for name in ("search", "fresh_seeds", "shard"):
        if FLAGS[name].value is not None:
            raise flags.ValidationError(
                f"--until_shown decides for all cells; drop --{name}"
            )
    if len(FLAGS.seeds) > 1:
        raise flags.ValidationError(
            "--until_shown chooses the number of seeds, which count up from --seeds; "
            "give one seed"
        )


def run_study(
    screen: Console,
    stop: cli.StopRequest,
    make: Callable[[tuple[int, ...]], list[Cell]],
    cells: list[Cell],
) -> int:
    """Adds seeds until it is shown which combination is the best.

    Args:
      screen: for what it says.
      stop: ends it.
      make: returns the cells of all combinations with some seeds.
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
    study = Study(folder, plan, make)
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
    texts["model"] = with_groups(texts.get("model", ["all"]))
    if budgets := [name for name in BUDGETS if FLAGS[name].value is not None]:
        if clash := OF_BUDGET & set(texts):
            raise flags.ValidationError(
                f"--{budgets[0]} sets the schedule; drop --{min(clash)}"
            )
        if budgets[1:]:
            raise flags.ValidationError(f"give one of --{' and --'.join(budgets)}")
        texts = {"lr": [AUTO], **texts, "cycles": ["1"]}
        if FLAGS.budget_epochs is not None:
            texts["cycle_len"] = [str(FLAGS.budget_epochs)]
    for name, words in texts.items():
        if len(set(words)) < len(words):
            text = ",".join(FLAGS[name].value or [])
            raise flags.ValidationError(
                f"--{name}={text}: a value appears twice in the list"
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
        if FLAGS.fresh_seeds and FLAGS.search is None:
            runs += f" --choose_seeds={as_text(FLAGS.seeds)}"
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
    flags.DEFINE_float(
        "budget_flops",
        None,
        "As --budget_epochs, for as many epochs as take this number of floating-point "
        "operations in the training of one seed: an equal budget for models of "
        "different cost. result.json has it as train_flops.",
        lower_bound=1.0,
        upper_bound=1e30,
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
    define_search()
    define_launchers()
    sys.exit(main())
