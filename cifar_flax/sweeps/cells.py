"""The cells of a sweep: combinations of settings, each with its own folder."""

import dataclasses
import datetime
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from cifar_flax import records
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.own_code import label_of
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.folder import check_same_settings, recipe_differences
from cifar_flax.runs.recipe_choice import AUTO
from cifar_flax.runs.settings import Settings
from cifar_flax.runs.tables import accuracy_in_words, make_table
from cifar_flax.search_records import PRUNED, Pruned, read_pruned
from cifar_flax.show.console import in_columns
from cifar_flax.sweeps.estimates import estimate_seconds

# The settings of the first version. The name of a cell is also made of those that are
# not given. Later settings count only if they are given, so that sweeps keep their
# cells.
_FIRST_SETTINGS = """
    model model_args seeds seeds_vary dataset image_size val_size train_size padding
    padding_mode flip alternate cutout brightness contrast mixup cutmix recipe
    phases lr lr_check epochs cycles cycle_len cycle_mult batch_size optimizer
    optimizer_args momentum nesterov weight_decay decay clip_norm accumulate ema
    lookahead label_smoothing tta init_from continue_from freeze bn_momentum
    bn_epsilon bn_freeze dtype lowering
""".split()  # noqa: SIM905 (a list would have a line for each)

# A list with more combinations is probably a mistake.
MAX_CELLS = 10_000

# A table with more rows is abbreviated.
MAX_ROWS = 100
_SHOWN_GROUPS = ("running", "failed", "done")


@dataclasses.dataclass
class Cell:
    """One combination of settings, which is one run.

    Attributes:
      name: readable name, unique within the sweep; its folder has the same name.
      settings: of its run.
      folder: of its run.
      status: state of its run in a few words.
      seconds: time that this process has spent on it.
      rate: the rate that was given, or that its range test found.
      result: its ``result.json``, once it is done.
      problem: the reason if it cannot be trained.
      node: the machine that trains it, in a cluster.
      given: the settings besides the seeds, as they were given.
      varied: the settings in which the cells of the sweep differ.
      codes: checksums of own code when the sweep began, by the setting that names it.
      label: what stands in its name for the varied settings, if anything does.
      note: what a reader must know of it besides its name.
      pruned: why it was ended early, once it was.
    """

    name: str
    settings: Settings
    folder: pathlib.Path
    status: str = "waits"
    seconds: float = 0.0
    rate: float | None = None
    result: records.Result | None = None
    problem: str | None = None
    node: str | None = None
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    varied: Sequence[str] = ()
    codes: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    label: str | None = None
    note: str = ""
    pruned: Pruned | None = None

    @property
    def is_over(self) -> bool:
        """Whether it is done or pruned."""
        return self.result is not None or self.pruned is not None

    @property
    def shall_end(self) -> bool:
        """Whether it was pruned, also while it is still being trained."""
        return (self.folder / PRUNED).exists()

    @property
    def entry(self) -> str:
        """What it compares: its model and the varied settings."""
        words = [f"{n}={_shown(self.given[n])}" for n in self.varied if n != "model"]
        return " ".join([self.settings.model_label, *words])

    @property
    def is_running(self) -> bool:
        """Whether the cell is being trained."""
        return self.status in ("runs", "continues")

    @property
    def is_begun(self) -> bool:
        """Whether the cell has a record that a run can continue."""
        return (self.folder / records.CONFIG).exists()

    def check(self, dataset: Dataset) -> None:
        """Raises a UserError if its folder holds another run, such as of other data."""
        recorded = records.read_config(self.folder)
        recipe = self.settings.recipe_of(records.read_range_test(self.folder))
        now = self.settings.record(dataset.has_validation)
        check_same_settings(now, recorded, self.folder, dataset, recipe)

    def check_trained(self) -> None:
        """Raises a UserError if its files have changed between plan and training."""
        recorded = records.read_config(self.folder)
        recipe = self.settings.recipe_of(records.read_range_test(self.folder))
        different = recipe_differences(recipe, recorded)
        different += [
            f"the code of {label_of(self.settings.own_code()[name])} is another one"
            for name, code in self.codes.items()
            if code is not None and recorded.codes.get(name, code) != code
        ]
        if different:
            raise UserError(
                f"its files changed after the sweep began: {'; '.join(different)}; "
                f"remove {self.folder}, and repeat the command"
            )

    @property
    def lock(self) -> pathlib.Path:
        """The file that a sweep locks while it trains this cell."""
        return self.folder.with_name(f".{self.name}.cifar_flax.lock")

    @property
    def log(self) -> pathlib.Path:
        """The file with the output of the process that trains it."""
        return self.folder.with_name(f"{self.name}.log")

    def read_result(self) -> bool:
        """Reads its result and its rate; returns whether it is done."""
        self.result = records.read_result(self.folder)
        if self.result is None:
            return False
        found, given = records.read_range_test(self.folder), self.settings.lr
        if found is not None:
            self.rate = found.suggested_lr
        elif not isinstance(given, str):
            self.rate = given
        return True

    def finish(self, status: str) -> bool:
        """Reads its result and sets the status; returns whether it is over."""
        if self.read_result():
            self.status = self.diverged or status
        elif (pruned := read_pruned(self.folder)) is not None:
            self.pruned, self.status = pruned, f"pruned at epoch {pruned.epoch}"
        return self.is_over

    @property
    def line(self) -> str:
        """Its state in one line."""
        name = f"{self.name} ({self.note})" if self.note else self.name
        if self.result is None:
            where = f", node {self.node}" if self.node and self.is_running else ""
            return f"{name}: {self.status}{where}"
        rate = "" if self.rate is None else f"rate {self.rate:.3g}, "
        return (
            f"{name}: {self.status}, {rate}test accuracy "
            f"{accuracy_in_words(self.result)}, {self.result.train_seconds:.0f} s"
        )

    @property
    def diverged(self) -> str | None:
        """A status if all seeds diverged, which is a result and not a failure."""
        if self.result is None or self.result.status != "diverged":
            return None
        return f"diverged at step {self.result.steps}"


def make_cells(
    lists: Mapping[str, Sequence[Any]],
    seeds: tuple[int, ...],
    folder: pathlib.Path,
    settle: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: given,
) -> list[Cell]:
    """Makes a cell for every combination of the values of some settings.

    Args:
      lists: one or more values of each setting.
      seeds: of every cell.
      folder: of the sweep.
      settle: returns the settings of a combination, such as with an equal budget.

    Raises:
      UserError: there are too many combinations, two are equal, or one is not valid.
    """
    count = math.prod(map(len, lists.values()))
    if count > MAX_CELLS:
        raise UserError(
            f"{', '.join(f'--{name}' for name in lists)} have {count} combinations; "
            f"a sweep takes {MAX_CELLS} at most"
        )
    varied = [name for name, values in lists.items() if len(values) > 1]
    # If seeds vary in more than their random numbers, each seed is its own cell.
    alone = lists.get("seeds_vary", [None])[0] is not None
    groups = [(seed,) for seed in seeds] if alone else [seeds]
    cells = [
        make_cell(settle(dict(zip(lists, values, strict=True))), varied, group, folder)
        for values in itertools.product(*lists.values())
        for group in groups
    ]
    repeated = len(cells) - len({cell.name for cell in cells})
    if repeated:
        raise UserError(
            f"{repeated} combinations appear twice in the lists of --"
            + ", --".join(varied)
        )
    return cells


def make_cell(
    given: Mapping[str, Any],
    varied: Sequence[str],
    seeds: tuple[int, ...],
    folder: pathlib.Path,
    label: str | None = None,
) -> Cell:
    """Makes a cell, named by its model, the varied settings and a hash of them all.

    Args:
      given: the settings besides the seeds.
      varied: those in which the cells of the sweep differ.
      seeds: of the cell.
      folder: of the sweep.
      label: stands in the name for the varied settings.

    Raises:
      UserError: the settings are not valid; the message names the cell.
    """
    try:
        settings = Settings(**given, seeds=seeds)
    except UserError as error:
        cell = ", ".join(f"{name}={as_text(value)}" for name, value in given.items())
        raise UserError(f"{error} (in the cell {cell})") from error
    words = [f"{n}{_shown(given[n])}" for n in varied if n != "model"]
    words += [f"seed{seed}" for seed in seeds if settings.seeds_vary is not None]
    words = words if label is None else [label]
    deciding = {
        name: value
        for name, value in settings.record().items()
        if name not in records.PLACES and (value is not None or name in _FIRST_SETTINGS)
    }
    content = json.dumps(deciding, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    words = [settings.model_label, *words, digest]
    name = "-".join(words).replace("/", "_")
    return Cell(name, settings, folder / name, given=given, varied=varied, label=label)


def _shown(value: Any) -> str:
    text = as_text(value)
    return label_of(text) if isinstance(value, str) else text


def pace_of(cells: Sequence[Cell], seconds: float) -> str:
    """Returns how many cells are done, the cells per hour, and the time left.

    Args:
      cells: of the sweep.
      seconds: time since this process began. Cells that were done before do not count
        for the speed.
    """
    done = sum(cell.is_over for cell in cells)
    trained = sum(cell.is_over and cell.seconds > 0 for cell in cells)
    failed = sum(cell.status.startswith("failed") for cell in cells)
    words = f"{done} of {len(cells)} done"
    if not trained:
        return f"{words}, - cells per hour, time left -"
    left = datetime.timedelta(
        seconds=round(seconds / trained * (len(cells) - done - failed))
    )
    return f"{words}, {3600 * trained / seconds:.3g} cells per hour, time left {left}"


def state_of(cells: Sequence[Cell], rows: int = MAX_ROWS, pace: str = "") -> Table:
    """Makes a table of the progress and the result of each cell.

    Args:
      cells: of the sweep.
      rows: if there are more cells, the table has about this many rows, with cells that
        run, that failed and that are done, and a line of counts.
      pace: a line below the table, see ``pace_of``.
    """
    nodes = ["node"] if any(cell.node for cell in cells) else []
    table = make_table("cell", "epoch", "rate", "test accuracy", "time", *nodes, "")
    shown, below = cells, [pace] if pace else []
    if len(cells) > rows:
        groups = _groups(cells)
        latest = itertools.chain(*(groups[n][-(rows // 3) :] for n in _SHOWN_GROUPS))
        shown = list(latest)
        counts = [f"{len(group):,} {name}" for name, group in groups.items() if group]
        below = [f"{len(cells):,} cells: {', '.join(counts)}", *below]
    table.caption, table.caption_justify = "\n".join(below) or None, "left"
    for cell in shown:
        result = cell.result
        going = cell.is_running and result is None
        lines = records.read_metrics(cell.folder) if going else []
        epoch = f"{result.epochs:g}" if result else lines[-1].epoch if lines else "-"
        if cell.pruned is not None:
            epoch = str(cell.pruned.epoch)
        table.add_row(
            cell.name,
            str(epoch),
            "-" if cell.rate is None else f"{cell.rate:.3g}",
            accuracy_in_words(result) if result else "-",
            f"{result.train_seconds if result else cell.seconds:.0f} s",
            *[cell.node or "-" for _ in nodes],
            cell.status.partition(":")[0],  # a reason would not fit
        )
    return table


def _groups(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Returns the cells grouped by their state."""
    groups: dict[str, list[Cell]] = {name: [] for name in (*_SHOWN_GROUPS, "not done")}
    for cell in cells:
        if cell.is_over:
            groups["done"].append(cell)
        elif cell.status.startswith("failed"):
            groups["failed"].append(cell)
        else:
            groups["running" if cell.is_running else "not done"].append(cell)
    return groups


def plan_of(cells: Sequence[Cell]) -> str:
    """Returns the cells and about how long each will take, in columns."""
    rows = [("cell", "recipe", "seeds", "estimate", "")]
    speeds = {
        cell.settings.model: cell.result.images_per_second
        for cell in cells
        if cell.problem is None and cell.finish("") and cell.result is not None
    }
    total = 0.0
    for cell in cells:
        settings = cell.settings
        epochs = settings.make_recipe().epochs
        seconds = 0.0 if cell.is_over else estimate_seconds(settings, epochs, speeds)
        total += seconds
        auto = "rate from a range test, " if settings.lr == AUTO else ""
        rows.append(
            (
                cell.name,
                f"{auto}{epochs:g} epochs",
                str(len(settings.seeds)),
                f"{seconds:.0f} s",
                "is done" if cell.is_over else cell.problem or cell.note,
            )
        )
    rows.append((f"{len(cells)} cells", "", "", f"{total:.0f} s", ""))
    return in_columns(rows)
