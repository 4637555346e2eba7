"""Remembers which seeds were there whenever the results were looked at.

A report, and a sweep at its end, append a line to ``looks.jsonl`` beside what they
write. ``sweep --until_shown`` writes its plan to ``until_shown.json`` before it begins.
"""

import dataclasses
import datetime
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cifar_flax import records
from cifar_flax.analysis.sequential import LIMIT, MOST, STEP, Plan
from cifar_flax.errors import UserError
from cifar_flax.identity import configuration_of
from cifar_flax.json_files import MAX_TEXT, decode, encode, read_bytes, replace
from cifar_flax.reports.entries import Entry

JOURNAL = "looks.jsonl"
PLAN = "until_shown.json"


class Look(msgspec.Struct, kw_only=True):
    """A line of ``looks.jsonl``.

    Attributes:
      at: when the results were looked at, in UTC.
      seeds: the seeds of each configuration that were there, by ``key_of``.
    """

    at: datetime.datetime
    seeds: dict[str, list[int]]


class StudyPlan(msgspec.Struct, kw_only=True):
    """``until_shown.json``: what was fixed before the first result.

    Attributes:
      looks: numbers of seeds at which the study looks; the last is the largest.
      first_seed: the seeds count up from it.
      margin: largest difference that counts as the same, as a share; null: none.
      entries: names of what is compared.
      cells: names of the folders of all runs of the study so far.
    """

    looks: list[int]
    first_seed: int
    margin: float | None
    entries: list[str]
    cells: list[str]

    def __post_init__(self):
        rising = sorted({STEP, *self.looks}) == self.looks
        if not rising or self.looks[0] != STEP:
            raise ValueError(f"its looks are {self.looks}, not {STEP} and more seeds")
        if self.looks[-1] > LIMIT:
            raise ValueError(f"its last look is at {self.looks[-1]}, above {LIMIT}")

    @property
    def plan(self) -> Plan:
        """The plan of each pair."""
        return Plan(tuple(self.looks), self.looks[-1])

    def seeds(self, count: int) -> list[int]:
        """Returns the first seeds of each entry."""
        return list(range(self.first_seed, self.first_seed + count))


def key_of(config: records.Config, folder: pathlib.Path) -> str:
    """Returns what names a configuration in a journal."""
    return configuration_of(config, str(folder.absolute()))[:16]


@dataclasses.dataclass(frozen=True)
class Looks:
    """What is known of the looks at some runs.

    Attributes:
      states: after each look, the seeds of each configuration that were seen.
      plans: of studies, by the folder of their runs.
    """

    states: Sequence[Mapping[str, frozenset[int]]] = ()
    plans: Mapping[str, StudyPlan] = dataclasses.field(default_factory=dict)

    def of_pair(
        self, pair: tuple[Entry, Entry], seeds: Sequence[Iterable[int]]
    ) -> tuple[Plan | None, list[tuple[list[int], ...]]]:
        """Returns how often a pair was looked at, and the seeds of both at each look.

        Args:
          pair: entries of a study.
          seeds: those of each that have a value.

        Returns:
          The plan, None if all seeds came before the first look; and for each look the
          seeds of both.
        """
        every = tuple(list(one) for one in seeds)
        if (planned := self._plan_of(pair)) is not None:
            counts = [
                count
                for count in planned.looks
                if all(set(planned.seeds(count)) <= set(one) for one in every)
            ]
            if counts:
                return planned.plan, [(planned.seeds(n),) * 2 for n in counts]
        found: list[tuple[list[int], ...]] = []
        keys = [{key_of(run.config, run.folder) for run in e.runs} for e in pair]
        for state in self.states:
            seen = [frozenset().union(*(state.get(k, ()) for k in one)) for one in keys]
            both = zip(every, seen, strict=True)
            there = tuple([seed for seed in one if seed in old] for one, old in both)
            if min(map(len, there)) > 1 and there not in found:
                found.append(there)
        if every not in found:
            found.append(every)
        if len(found) == 1:
            return None, found
        most = MOST
        while most < max(map(len, every)):
            most *= 2
        return Plan((), most, min(STEP, *map(len, found[0]))), found

    def _plan_of(self, pair: tuple[Entry, Entry]) -> StudyPlan | None:
        """Returns the plan of which both entries are, or None."""
        folders = [
            {_parent(run.folder) for run in entry.runs if self._is_planned(run.folder)}
            for entry in pair
        ]
        both = folders[0] & folders[1]
        return self.plans[min(both)] if both else None

    def _is_planned(self, folder: pathlib.Path) -> bool:
        plan = self.plans.get(_parent(folder))
        return plan is not None and folder.name in plan.cells


def _parent(folder: pathlib.Path) -> str:
    return os.path.realpath(folder.parent)


def read_looks(folders: Iterable[pathlib.Path]) -> Looks:
    """Reads the journals and the plans of some folders.

    Raises:
      UserError: a journal or a plan is damaged.
    """
    places = dict.fromkeys(os.path.realpath(folder) for folder in folders)
    lines = [look for place in places for look in read_journal(pathlib.Path(place))]
    states: list[dict[str, frozenset[int]]] = []
    state: dict[str, frozenset[int]] = {}
    for look in sorted(lines, key=lambda look: look.at):
        for key, seeds in look.seeds.items():
            state[key] = state.get(key, frozenset()) | frozenset(seeds)
        states.append(dict(state))
    plans = {place: read_plan(pathlib.Path(place)) for place in places}
    return Looks(states, {p: plan for p, plan in plans.items() if plan is not None})


def read_plan(folder: pathlib.Path) -> StudyPlan | None:
    """Reads ``until_shown.json``; None without one."""
    path = folder / PLAN
    if not os.path.exists(path):
        return None
    return decode(read_bytes(path, MAX_TEXT), StudyPlan, str(path))


def read_journal(folder: pathlib.Path) -> list[Look]:
    """Reads ``looks.jsonl``; raises a UserError if a line of it is damaged."""
    path = folder / JOURNAL
    if not os.path.exists(path):
        return []
    found = []
    lines = read_bytes(path, MAX_TEXT).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            look = decode(line, Look, f"line {number} of {path} is damaged")
            found.append(look)
            if look.at.tzinfo is None:
                raise UserError(f"line {number} of {path}: {look.at} has no time zone")
        except UserError as error:
            raise UserError(
                f"{error}; it holds the earlier looks at these results, so restore or "
                "rename it"
            ) from error
    return found


def remember(folder: pathlib.Path, seeds: Mapping[str, Iterable[int]]) -> None:
    """Appends a look to the journal of a folder, unless it saw all of it before.

    Args:
      folder: of the journal.
      seeds: those of each configuration, by ``key_of``.

    Raises:
      UserError: the journal is damaged, or cannot be written.
    """
    before = read_journal(folder)
    seen: dict[str, set[int]] = {}
    for look in before:
        for key, old in look.seeds.items():
            seen.setdefault(key, set()).update(old)
    new = {key: sorted(set(one)) for key, one in seeds.items()}
    if all(set(one) <= seen.get(key, set()) for key, one in new.items()):
        return
    now = datetime.datetime.now(datetime.UTC)
    every = [*before, Look(at=now, seeds=new)]
    replace(folder / JOURNAL, b"".join(encode(look) + b"\n" for look in every))


def seeds_of(entries: Iterable[Entry]) -> dict[str, list[int]]:
    """Returns the seeds of entries as ``remember`` takes them."""
    found: dict[str, list[int]] = {}
    for run in (run for entry in entries for run in entry.runs):
        key = key_of(run.config, run.folder)
        found.setdefault(key, []).extend(run.result.seeds)
    return found
