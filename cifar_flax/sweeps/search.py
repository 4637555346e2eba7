"""A search: the same number of trials for each model, then fresh seeds of the best.

Each trial is a cell. Which trials there are is in ``search.json``; what they have
reached is in the records of their runs. The same command therefore continues a search
with the same trials, and several processes may work on one.
"""

import contextlib
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from cifar_flax import records
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import locked
from cifar_flax.json_files import short_repr
from cifar_flax.own_code import label_of
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.recorded_settings import SETTINGS
from cifar_flax.runs.settings import Settings
from cifar_flax.search_records import (
    SEARCH,
    Pruned,
    Search,
    Subject,
    Trial,
    best_of,
    read_search,
    validation_of,
    value_of,
    write_pruned,
    write_search,
)
from cifar_flax.sweeps import tpe
from cifar_flax.sweeps.cells import MAX_CELLS, Cell, make_cell
from cifar_flax.sweeps.earlier import with_earlier_seeds
from cifar_flax.sweeps.space import (
    Space,
    Values,
    in_words,
    key_of,
    with_values,
)
from cifar_flax.training.arguments import SEED_RANGE, fresh_seeds

LOCK = ".search.cifar_flax.lock"

# With TPE, so many trials of each model are proposed at a time and train side by side,
# whatever the launcher is; the same command gives the same trials everywhere.
AT_ONCE = 4

# Time between two looks at the running trials, to prune them.
LOOK_SECONDS = 1.0

Show = Callable[[Cell], None]
Settle = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Searching:
    """A search in a folder.

    Attributes:
      cells: all cells so far: the trials, and then those with fresh seeds.
    """

    def __init__(
        self,
        wanted: Search,
        space: Space,
        lists: Mapping[str, Sequence[Any]],
        folder: pathlib.Path,
        fresh: int,
        settle: Settle = lambda given: given,
    ):
        """Checks the search, and draws the first trials; nothing is written.

        Args:
          wanted: the search, without subjects.
          space: what is searched.
          lists: one or more values of each setting; each combination is a subject.
          folder: of the sweep.
          fresh: number of fresh seeds with which the best trial is trained anew.
          settle: returns the settings of a trial, such as with an equal budget.

        Raises:
          UserError: the search is not valid, or the folder holds another one.
        """
        self.cells: list[Cell] = []
        self._space, self._folder, self._fresh = space, folder, fresh
        self._settle = settle
        self._record, self._givens = wanted, _subjects(lists)
        self._trials: dict[str, list[Cell]] = {name: [] for name in self._givens}
        self._seeds = tuple(wanted.seeds)
        self._done: dict[str, tpe.Tried] = {}
        if (cells := wanted.count * len(self._givens)) > MAX_CELLS:
            raise UserError(
                f"--trials={wanted.count} of {len(self._givens)} combinations are "
                f"{cells} cells; a sweep takes {MAX_CELLS} at most"
            )
        _check(self._givens, space, self._seeds)
        # TPE begins with the trials of a random search.
        seen: set[str] = set()
        for number in range(1, wanted.count + 1):
            space.another(wanted.seed, number, seen)
        self._read()
        self._extend(self._ends[0])

    @property
    def _ends(self) -> list[int]:
        """The numbers of trials after which all of them are waited for."""
        count = self._record.count
        if self._record.kind == "random":
            return [count]
        return [*range(tpe.STARTUP, count, AT_ONCE), count]

    def rounds(self) -> Iterator[list[Cell]]:
        """Yields the cells to train next, once the earlier ones have ended.

        The first trial of each model comes before the second of any.
        """
        for begin, end in itertools.pairwise([0, *self._ends]):
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder / LOCK, wait=True):
                self._read()  # another process may have been faster
                self._extend(end)
                write_search(self._folder, self._record)
            trials = [cells[begin:end] for cells in self._trials.values()]
            yield [*itertools.chain(*zip(*trials, strict=True))]
        if fresh := self._fresh_cells():
            self.cells += fresh
            yield fresh

    @property
    def outlook(self) -> str:
        """What follows after the cells so far, in words."""
        more = self._record.count - self._ends[0]
        words = [f"{more} further trials of each model, by the results"] if more else []
        if self._fresh:
            words.append(f"the best trial of each model with {self._fresh} fresh seeds")
        return f"then {', and '.join(words)}" if words else ""

    def watching(self, show: Show) -> Show:
        """Returns a function that also prunes, for a launcher to call."""
        if not self._record.prunes:
            return show
        due = 0.0

        def look(cell: Cell) -> None:
            nonlocal due
            show(cell)
            if time.monotonic() >= due:
                self._prune()
                due = time.monotonic() + LOOK_SECONDS

        return look

    def _read(self) -> None:
        """Takes the trials of the folder's record, if it is of this search."""
        found = read_search(self._folder)
        if found is not None:
            self._check_same(found)
            for subject in found.subjects:
                for number, trial in enumerate(subject.trials, start=1):
                    if not self._space.holds(trial.values):
                        raise UserError(
                            f"{self._folder / SEARCH}: trial {number} of "
                            f"{subject.name} is not in the space: "
                            f"{_shown(trial.values)}; give another --workdir"
                        )
            known = {subject.name for subject in found.subjects}
            new = [one for one in self._record.subjects if one.name not in known]
            self._record.subjects = [*found.subjects, *new]

    def _check_same(self, found: Search) -> None:
        """Raises a UserError if the folder's record is of another search."""
        different = [
            f"--{flag} was {_shown(was)} and is {_shown(now)}"
            for flag, was, now in (
                ("search", found.kind, self._record.kind),
                ("search_seed", found.seed, self._record.seed),
                ("seeds", found.seeds, self._record.seeds),
                ("prune", found.prunes, self._record.prunes),
                ("budget_flops", found.budget_flops, self._record.budget_flops),
            )
            if was != now
        ]
        different += _differing("in --space ", found.space, self._record.space)
        for subject in found.subjects:
            if (given := self._givens.get(subject.name)) is not None:
                different += _differing("--", subject.settings, _plain(given))
        if found.count > self._record.count:
            different.append(
                f"--trials was {found.count} and is {self._record.count}, which may "
                "only grow"
            )
        if different:
            raise UserError(
                f"{self._folder / SEARCH} is of another search: "
                f"{'; '.join(dict.fromkeys(different))}; give another --workdir"
            )

    def _subject(self, name: str) -> Subject:
        """Returns a subject of the record, which it adds if needed."""
        for subject in self._record.subjects:
            if subject.name == name:
                return subject
        subject = Subject(name=name, settings=_plain(self._givens[name]))
        self._record.subjects.append(subject)
        return subject

    def _extend(self, end: int) -> None:
        """Makes the cells of all trials up to a number, and proposes those missing."""
        new: list[Cell] = []
        for number in range(1, end + 1):
            for name, given in self._givens.items():
                subject, cells = self._subject(name), self._trials[name]
                if number <= len(cells):
                    continue
                known = number <= len(subject.trials)
                if known:
                    values = subject.trials[number - 1].values
                else:
                    values = self._propose(subject, number)
                cell = self._cell(given, values, self._seeds, f"trial{number}")
                if not known:
                    subject.trials.append(Trial(values=values, folder=cell.name))
                elif (recorded := subject.trials[number - 1].folder) != cell.name:
                    raise UserError(
                        f"{self._folder / SEARCH}: trial {number} of {name} is in "
                        f"{recorded}, and its settings are those of {cell.name}; give "
                        "another --workdir"
                    )
                cells.append(cell)
                new.append(cell)
        self.cells += new

    def _cell(
        self, given: Mapping[str, Any], values: Values, seeds: Sequence[int], label: str
    ) -> Cell:
        settings = self._settle(with_values(given, values))
        cell = make_cell(settings, (), tuple(seeds), self._folder, label)
        cell.note = in_words(values)
        return cell

    def _propose(self, subject: Subject, number: int) -> Values:
        """Returns the values of the next trial of a subject, which repeats none."""
        seed, seen = self._record.seed, {key_of(one.values) for one in subject.trials}
        if self._record.kind == "tpe" and number > tpe.STARTUP:
            key = f"{seed} {subject.name} {number}"
            values = tpe.propose(self._space, self._tried(subject), key)
            if key_of(values) not in seen:
                return values
        return self._space.another(seed, number, seen)

    def _tried(self, subject: Subject) -> list[tpe.Tried]:
        """Returns what the trials of a subject have reached, by their records."""
        found = []
        for cell, trial in zip(
            self._trials[subject.name], subject.trials, strict=False
        ):
            if (tried := self._done.get(cell.name)) is None:
                lines, result = _records_of(cell.folder)
                value = value_of(lines, result)
                pruned = value is None and cell.shall_end
                reached = validation_of(lines)
                tried = tpe.Tried(trial.values, reached, value, pruned)
                if value is not None:  # it is read only once
                    self._done[cell.name] = tried
            found.append(tried)
        return found

    def _prune(self) -> None:
        """Marks the running trials that are behind; their launcher ends them."""
        for subject in self._record.subjects:
            cells = self._trials.get(subject.name, [])
            going = [n for n, one in enumerate(cells) if one.is_running]
            going = [n for n in going if not cells[n].shall_end]
            if not going:
                continue
            tried = self._tried(subject)
            for number in going:
                reached = tried[number].reached
                first = tpe.FIRST_SHARE * cells[number].settings.make_recipe().epochs
                over = tried[number].value is not None or len(reached) < first
                if not over and tpe.falls_behind(self._space, tried, number):
                    mark = Pruned(epoch=len(reached), val_accuracy=reached[-1])
                    with contextlib.suppress(UserError):  # the trial goes on
                        write_pruned(cells[number].folder, mark)

    def _fresh_cells(self) -> list[Cell]:
        """Returns cells of the best trial of each subject, with seeds of their own."""
        fresh = fresh_seeds(self._seeds, self._fresh)
        seeds = [seed for seed in fresh if seed in SEED_RANGE]
        made: list[Cell] = []
        for name, given in self._givens.items():
            tried = self._tried(self._subject(name))
            best = best_of({n: one.value for n, one in enumerate(tried)})
            if best is not None and seeds:
                values = tried[best].values
                label = f"trial{best + 1}-fresh"
                made.append(self._cell(given, values, seeds, label))
        return with_earlier_seeds(made, self._folder)


def _records_of(
    folder: pathlib.Path,
) -> tuple[list[records.LogPoint], records.Result | None]:
    """Returns what a trial has recorded; nothing if it is damaged, as its cell says."""
    try:
        return records.read_metrics(folder), records.read_result(folder)
    except (UserError, OSError):
        return [], None


def _subjects(lists: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Returns the settings of each combination of values, by its name."""
    varied = [name for name, values in lists.items() if len(values) > 1]
    found = {}
    for values in itertools.product(*lists.values()):
        given = dict(zip(lists, values, strict=True))
        others = [f"{n}={as_text(given[n])}" for n in varied if n != "model"]
        model = label_of(given.get("model", SETTINGS["model"].default))
        name = " ".join([model, *others])
        if name in found:
            raise UserError(f"--model: two models have the name {name}; rename one")
        found[name] = given
    return found


def _check(
    givens: Mapping[str, dict[str, Any]], space: Space, seeds: tuple[int, ...]
) -> None:
    """Raises a UserError if a setting is given twice, or a point is not valid."""
    for name, given in givens.items():
        for one in space.dimensions:
            if one.name in given:
                raise UserError(
                    f"--space={space.where} chooses {one.name}, and --{one.name} is "
                    "given; drop one of them"
                )
        if given.get("seeds_vary") is not None:
            raise UserError(
                "--seeds_vary is not for a search, whose trials share their split; "
                "drop it"
            )
        if given.get("val_size") == 0:
            raise UserError(
                "--val_size=0: a search chooses by the validation images; drop it"
            )
        for what, values in space.corners():
            try:
                Settings(**with_values(given, values), seeds=seeds)
            except UserError as error:
                raise UserError(
                    f"--space={space.where}: {one_line(what)} is not possible for "
                    f"{name} with {one_line(in_words(values))}: {error}"
                ) from error


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as a record holds them, without the places of data."""
    kept = {n: v for n, v in given.items() if n not in records.PLACES}
    return msgspec.json.decode(msgspec.json.encode(kept))


def _differing(begin: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{begin}{name} was {_shown(was.get(name))} and is {_shown(now.get(name))}"
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]


def _shown(value: Any) -> str:
    return one_line(short_repr.repr(value), 100)
