"""The files of a search: its trials, and why one was pruned.

``search.json``   in the folder of the sweep: ``Search``, the trials of each model
``pruned.json``   in the folder of a run: ``Pruned``

What a trial has reached is in the records of its run. So nothing here can contradict
them, and a search goes on from these files alone.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cifar_flax.json_files import read_json, write_json
from cifar_flax.record_types import (
    Int32,
    LogPoint,
    Positive,
    Record,
    Result,
    Seed,
    Setting,
    Share,
    Size,
)

SEARCH = "search.json"
PRUNED = "pruned.json"

# A name within the folder of the sweep.
_Folder = Annotated[str, Meta(pattern=r"^[^/\x00]*[^/\x00.][^/\x00]*$", max_length=255)]


class Trial(msgspec.Struct, kw_only=True):
    """A configuration that a search tries.

    Attributes:
      values: what was chosen, by the names of the settings.
      folder: of its run, in the folder of the sweep.
    """

    values: dict[str, Setting]
    folder: _Folder


class Subject(msgspec.Struct, kw_only=True):
    """What a search looks for the best configuration of: usually a model.

    Attributes:
      name: the model, and the settings by which the command tells subjects apart.
      settings: what the command gives besides the space and the seeds.
      trials: trial 1, 2 and so on.
    """

    name: str
    settings: dict[str, Setting]
    trials: list[Trial] = []


class Search(Record, kw_only=True):
    """``search.json``: the search of a sweep.

    Attributes:
      format: version of the file's format.
      kind: ``random`` or ``tpe``.
      seed: of the draws.
      space: the content of the file that describes the space.
      seeds: of each trial.
      count: number of trials of each subject when it is done.
      prunes: whether trials are pruned.
      budget_flops: operations of each trial's training; null if they are not equal.
      subjects: all with the same number of trials when it is done.
    """

    kind: Literal["random", "tpe"]
    seed: Seed
    space: dict[str, Setting]
    seeds: list[Seed]
    count: Size
    prunes: bool = False
    budget_flops: Positive | None = None
    subjects: list[Subject]


class Pruned(Record, kw_only=True):
    """``pruned.json``: a trial ended before its last epoch.

    Attributes:
      format: version of the file's format.
      epoch: the epoch after which it was judged.
      val_accuracy: its validation accuracy there.
    """

    epoch: Int32
    val_accuracy: Share


def write_search(folder: pathlib.Path, search: Search) -> None:
    """Writes ``search.json``."""
    write_json(folder / SEARCH, search)


def read_search(folder: pathlib.Path) -> Search | None:
    """Reads ``search.json``; None if there is none."""
    is_there = os.path.exists(folder / SEARCH)
    return read_json(folder / SEARCH, Search) if is_there else None


def write_pruned(folder: pathlib.Path, pruned: Pruned) -> None:
    """Writes ``pruned.json``, by which a run ends and is over."""
    write_json(folder / PRUNED, pruned)


def read_pruned(folder: pathlib.Path) -> Pruned | None:
    """Reads ``pruned.json``; None if there is none."""
    is_there = os.path.exists(folder / PRUNED)
    return read_json(folder / PRUNED, Pruned) if is_there else None


def validation_of(lines: Sequence[LogPoint]) -> list[float]:
    """Returns the mean validation accuracy of all seeds after each epoch.

    A diverged seed counts as 0, as a whole epoch without validation does.
    """
    values = [line.val_accuracy or [math.nan] for line in lines]
    return [sum(v for v in one if math.isfinite(v)) / len(one) for one in values]


def value_of(lines: Sequence[LogPoint], result: Result | None) -> float | None:
    """Returns the validation accuracy by which a trial is judged.

    It is that after the last epoch, and 0 if all seeds diverged. None: the trial is
    not finished.
    """
    if result is None:
        return None
    reached = validation_of(lines)
    return 0.0 if result.status == "diverged" or not reached else reached[-1]


def best_of(values: Mapping[int, float | None]) -> int | None:
    """Returns the trial that a search chooses: the best one that is finished."""
    finished = {number: v for number, v in values.items() if v is not None}
    return max(finished, key=lambda n: (finished[n], -n)) if finished else None
