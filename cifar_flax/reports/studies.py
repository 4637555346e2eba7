"""Sorts runs into studies, and compares their entries.

Runs of the same configuration are one entry, whatever their seeds and folders. Entries
with the same training and test images and the same version are one study. Only entries
of the same study are compared. The ranking holds one entry of each model: the best on
the validation split. Choosing it by the test accuracy would overestimate it.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np
from scipy.special import stdtrit

from cifar_flax import records
from cifar_flax.analysis.sequential import Plan, same_within
from cifar_flax.analysis.statistics import (
    Difference,
    compare,
    holm,
)
from cifar_flax.errors import UserError, one_line
from cifar_flax.reports.choosing import Choice, choose, compared_by_default
from cifar_flax.reports.columns import Column, columns_of, find_column
from cifar_flax.reports.entries import Entry, differing, make_entries
from cifar_flax.reports.looks import Looks, read_looks
from cifar_flax.reports.outside import join_table, read_table
from cifar_flax.reports.runs import RunRecord, read_runs
from cifar_flax.reports.searches import (
    Searched,
    read_searches,
    take_trials,
    with_short_names,
)

# A study with more entries than this is large: only its best entries are compared with
# each other and drawn over the epochs. 20 entries have 190 pairs.
WHOLE = 20
BEST = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """Entries that may be compared.

    Attributes:
      dataset: the data set of all entries.
      version: the version of this package that trained them; None if all are from
        tables.
      key: distinguishes the study from others.
      entries: the ranking, the best entry first; entries with a diverged seed are last.
      apart: entries of models for which another entry is ranked, in the same order.
      compared: settings besides the model whose values are compared.
      baseline: the entry with which all others are compared; None: the entries of
        ``best`` are compared with each other.
      by: what ranks and compares the entries; None: the test accuracy.
      chosen_by: the seeds that chose the entries of the ranking, which has their other
        seeds; empty: the same seeds choose and are reported.
      notes: what a reader must know of the choice.
      searched: what searches have found for models; their trials are not ranked.
      looks: when seeds were added after a look at the results.
      margin: largest difference that counts as the same, as a share; None: none does.
    """

    dataset: records.DatasetInfo
    version: str | None
    key: str
    entries: list[Entry]
    apart: list[Entry]
    compared: tuple[str, ...] = ()
    baseline: Entry | None = None
    by: Column | None = None
    chosen_by: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    searched: Sequence[Searched] = ()
    looks: Looks = dataclasses.field(default_factory=Looks)
    margin: float | None = None

    @functools.cached_property
    def columns(self) -> list[Column]:
        """Columns beside the test accuracy."""
        return columns_of(self.everything)

    @property
    def everything(self) -> list[Entry]:
        """The ranked entries, followed by those apart."""
        return [*self.entries, *self.apart]

    @property
    def trials(self) -> list[Entry]:
        """The trials of searches that are not ranked."""
        return [entry for one in self.searched for entry in one.entries]

    @property
    def is_large(self) -> bool:
        """Whether there are too many entries to compare and draw all of them."""
        return len(self.entries) > WHOLE

    @property
    def best(self) -> list[Entry]:
        """The best entries of a large study, or all entries of another study."""
        return self.entries[:BEST] if self.is_large else self.entries

    @property
    def shown(self) -> list[Entry]:
        """The best entries, and the baseline."""
        others = [self.baseline] if self.baseline else []
        return [*self.best, *(entry for entry in others if entry not in self.best)]

    @functools.cached_property
    def comparisons(self) -> list[tuple[Entry, Entry, Difference]]:
        """The comparisons, with p-values adjusted for their number.

        With a baseline, every entry is compared with it; otherwise every pair of the
        best entries, the better one first. Entries with one seed or with a diverged
        seed are not compared, because they have no valid interval.
        """
        able = [e for e in self.entries if not e.diverged and len(self._values(e)) > 1]
        if self.by is not None and not self.by.is_share:
            return []  # what differences matter is not known
        pairs = list(itertools.combinations([e for e in able if e in self.best], 2))
        if self.baseline is not None:
            others = [entry for entry in able if entry is not self.baseline]
            pairs = [(e, self.baseline) for e in others if self.baseline in able]
        found = [self.course(*pair)[-1] for pair in pairs]
        adjusted = holm(found)
        return [(*pair, one) for pair, one in zip(pairs, adjusted, strict=True)]

    def course(self, first: Entry, second: Entry) -> list[Difference]:
        """Returns the difference at each look, judged with all looks before.

        It is one difference if all seeds were there at the first look.

        Args:
          first: entry with two or more seeds, none of which diverged.
          second: the same.
        """
        plan, history = self._history(first, second)
        if plan is None:
            return history
        return [plan.judge(history[: n + 1]) for n in range(len(history))]

    def ahead(self, first: Entry, second: Entry) -> list[tuple[int, float]]:
        """Returns what the planned looks that are left may show of a pair.

        Returns:
          Number of seeds, and half the width of the interval if the deviation stays.
        """
        plan, history = self._history(first, second)
        if plan is None:
            return []
        last, done, left = history[-1], len(history), []
        for number, count in enumerate(plan.looks[done:], start=done + 1):
            quantile = -stdtrit(count - 1, plan.level(number) / 2)
            left.append((count, float(quantile) * last.spread / math.sqrt(count)))
        return left

    @functools.cached_property
    def same(self) -> dict[tuple[int, int], float]:
        """The adjusted p-value that the entries of a pair are the same, by ``id``.

        It is below 0.05 if their difference is shown to be within the margin.
        """
        pairs = [pair[:2] for pair in self.comparisons]
        if self.margin is None:
            return {}
        found = []
        for plan, history in itertools.starmap(self._history, pairs):
            ps = [same_within(one, self.margin) for one in history]
            p = ps[-1] if plan is None else plan.p(ps)
            found.append(dataclasses.replace(history[-1], p=p))
        return {
            (id(first), id(second)): one.adjusted_p
            for (first, second), one in zip(pairs, holm(found), strict=True)
        }

    def _history(
        self, first: Entry, second: Entry
    ) -> tuple[Plan | None, list[Difference]]:
        """Returns the difference at each look as if it was the only one."""
        values = [self._values(entry) for entry in (first, second)]
        plan, looks = self.looks.of_pair((first, second), values)
        images = 0 if self.by is not None else first.first.result.test_size
        paired, history = first.first.source == second.first.source, []
        for seeds in looks:
            sides = zip(values, seeds, strict=True)
            parts = [{seed: one[seed] for seed in chosen} for one, chosen in sides]
            right = None
            if self.by is None and seeds is looks[-1]:  # others need no such interval
                right = _right(first, seeds[0]), _right(second, seeds[1])
            known = right is not None and right[0] is not None and right[1] is not None
            found = compare(
                parts[0],
                parts[1],
                right if known else None,  # type: ignore[arg-type]
                images,
                paired,
            )
            assert found is not None  # each has two seeds or more
            history.append(found)
        return plan, history

    def _values(self, entry: Entry) -> dict[int, float]:
        """Returns what is compared of an entry by its seed; higher is better."""
        return entry.accuracies if self.by is None else self.by.better(entry)

    @functools.cached_property
    def differing(self) -> list[str]:
        """Settings that differ between the shown entries."""
        return differing([entry.first.used for entry in self.shown])


class Group(NamedTuple):
    """The runs of a study: its key, all runs, the entries, and what searches found."""

    key: str
    runs: list[RunRecord]
    entries: list[Entry]
    searched: list[Searched]


def read_entries(
    folder: pathlib.Path | None, tables: Sequence[pathlib.Path] = ()
) -> tuple[list[Group], list[str]]:
    """Reads the entries of all finished runs below a folder, grouped by their study.

    Args:
      folder: folder that holds the runs; None: there are only tables.
      tables: of results that were made elsewhere; see ``outside.read_table``.

    Returns:
      The groups, and a line with the reason for each run that is left out.

    Raises:
      UserError: there is no such folder, it holds no finished run, or a table cannot be
        read.
    """
    runs, left_out = ([], []) if folder is None else read_runs(folder)
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(repr(_study_key(run)), []).append(run)
    for table in tables:
        left_out += join_table(read_table(table), groups)
    searches, made = read_searches(runs, left_out), []
    for key, group in groups.items():
        kept, searched, short = take_trials(group, searches)
        entries = with_short_names(make_entries(kept, left_out), short)
        made.append(Group(key, group, entries, searched))
    return made, left_out


def _right(entry: Entry, seeds: Sequence[int]) -> np.ndarray | None:
    """Returns whether some seeds classify each image correctly, bool [n, N]."""
    if entry.right is None:
        return None
    numbers = {seed: number for number, seed in enumerate(entry.accuracies)}
    return entry.right[[numbers[seed] for seed in seeds]]


def read_studies(
    folder: pathlib.Path | None,
    baseline: str | None = None,
    compared: Sequence[str] = (),
    rank_by: str | None = None,
    choose_seeds: Sequence[int] = (),
    tables: Sequence[pathlib.Path] = (),
    journal: pathlib.Path | None = None,
    margin: float | None = None,
) -> tuple[list[Study], list[str]]:
    """Reads the studies of all finished runs below a folder, the largest first.

    Args:
      folder: folder that holds the runs, at any depth; None: there are only tables.
      baseline: name of the entry with which the others of its study are compared. All
        entries of that study are ranked. The name of a model stands for its only ranked
        entry, and the ranking is the usual one.
      compared: settings whose values are compared besides the models. The default is
        none, or, in a study of one model, all that differ except the rate.
      rank_by: a metric, or the accuracy on further test images, which ranks and
        compares instead of the test accuracy; see ``columns.find_column``.
      choose_seeds: choose the configurations by these seeds, and report the others; see
        ``choosing.choose``.
      tables: of results that were made elsewhere; see ``outside.read_table``.
      journal: a folder of earlier reports, whose looks count besides those that are
        recorded beside the runs.
      margin: largest difference that counts as the same, as a share.

    Returns:
      The studies, and a line with the reason for each run that is left out.

    Raises:
      UserError: there is no such folder, it holds no finished run, or there is no such
        entry or setting.
    """
    made, left_out = read_entries(folder, tables)
    _check_names(made, baseline, compared)
    seeds = tuple(dict.fromkeys(choose_seeds))
    places = [run.folder.parent for group in made for run in group.runs]
    looks = read_looks([one for one in (folder, journal) if one is not None] + places)
    studies = []
    for group in made:
        study = _make_study(group, baseline, compared, rank_by, seeds)
        study = dataclasses.replace(study, looks=looks, margin=margin)
        if study.entries or study.searched:
            studies.append(study)
        else:
            left_out += study.notes
    if not studies:
        raise UserError(f"--choose_seeds={','.join(map(str, seeds))}: {left_out[-1]}")
    if rank_by is not None and all(study.by is None for study in studies):
        names = [one.name for study in studies for one in study.columns]
        raise UserError(
            f"--rank_by={one_line(rank_by, 100)}: no run has measured it; measured: "
            f"{', '.join(dict.fromkeys(names)) or 'only the test accuracy'}"
        )
    if baseline is not None and all(study.baseline is None for study in studies):
        _ask_for_one(baseline, studies)
    return sorted(studies, key=lambda study: -len(study.entries)), left_out


def _check_names(
    made: list[Group],
    baseline: str | None,
    compared: Sequence[str],
) -> None:
    """Raises a UserError if the baseline or a compared setting does not exist."""
    names = [entry.name for group in made for entry in group.entries]
    models = {run.result.model for group in made for run in group.runs}
    if baseline is not None and baseline not in {*names, *models}:
        near = difflib.get_close_matches(baseline, names, n=3, cutoff=0)
        shown = ", ".join(one_line(repr(word), 100) for word in near)
        raise UserError(
            f"--baseline={one_line(baseline, 100)}: none of the {len(names)} "
            f"configurations has this name; the nearest are {shown}"
        )
    known = {
        name
        for group in made
        for name in differing([entry.first.settings for entry in group.entries])
    }
    for name in compared:
        if name not in known:
            those = ", ".join(sorted(known)) or "none"
            raise UserError(
                f"--compare={one_line(name, 100)}: no setting that differs between "
                f"these runs has this name; those that differ: {those}"
            )


def _ask_for_one(model: str, studies: list[Study]) -> NoReturn:
    """Raises a UserError that names the ranked entries, of a model if there are any."""
    ranked = [entry for study in studies for entry in study.entries]
    of_model = [entry for entry in ranked if entry.first.result.model == model]
    those = [one_line(repr(entry.name), 200) for entry in of_model or ranked]
    what = f"{len(those)} ranked configurations are of this model"
    if not of_model:
        what = "it is not ranked with these --choose_seeds"
    more = f", or one of {len(those) - 10} others" if len(those) > 10 else ""
    raise UserError(
        f"--baseline={one_line(model, 100)}: {what}; give one of their names: "
        f"{', '.join(those[:10])}{more}"
    )


def _study_key(run: RunRecord) -> tuple:
    data = run.config.dataset
    sizes = ("train_size", "val_size", "test_size")
    return (
        *(getattr(data, n) for n in ("name", "fingerprint", "class_names", *sizes)),
        run.labels_sha256,
        run.config.versions.get("cifar-flax"),
    )


def _make_study(
    group: Group,
    baseline: str | None,
    compared: Sequence[str],
    rank_by: str | None,
    seeds: tuple[int, ...],
) -> Study:
    run, entries = group.runs[0], group.entries
    by = None if rank_by is None else find_column(rank_by, columns_of(entries))
    by_name = {entry.name: entry for entry in entries}
    base = None if baseline is None else by_name.get(baseline)
    told_apart = tuple(compared) or compared_by_default(entries)
    choice = Choice(entries, [], [])
    if base is None or seeds:
        choice = choose(entries, told_apart, by, seeds)
    of_base = [e for e in choice.ranked if base and e.name == base.name]
    of_base = of_base or [e for e in choice.ranked if e.first.result.model == baseline]
    rank = functools.partial(_rank, by=by)
    return Study(
        dataset=run.config.dataset,
        version=None
        if run.source
        else run.config.versions.get("cifar-flax", "of no known version"),
        key=group.key,
        entries=sorted(choice.ranked, key=rank),
        apart=sorted(choice.apart, key=rank),
        compared=told_apart,
        baseline=of_base[0] if len(of_base) == 1 else None,
        by=by,
        chosen_by=seeds,
        notes=tuple(choice.notes),
        searched=group.searched,
    )


def _rank(entry: Entry, by: Column | None) -> tuple[bool, bool, float]:
    if by is None:
        return bool(entry.diverged), False, -np.nan_to_num(entry.mean)
    values = list(by.better(entry).values())
    return bool(entry.diverged), not values, -float(np.mean(values)) if values else 0.0
