"""Finds what earlier runs in the folder of a sweep have done of it already."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from cifar_flax import records
from cifar_flax.data import Dataset
from cifar_flax.data.splits import VAL_SIZE
from cifar_flax.errors import UserError
from cifar_flax.own_code import source_of
from cifar_flax.runs.environment import describe_source
from cifar_flax.runs.folder import another_run, content_differs
from cifar_flax.runs.settings import Settings
from cifar_flax.runs.subject import Subject
from cifar_flax.sweeps.cells import Cell, make_cell


def with_earlier_seeds(cells: list[Cell], folder: pathlib.Path) -> list[Cell]:
    """Leaves out the seeds that earlier cells of the folder train or have trained.

    Args:
      cells: of the sweep.
      folder: of the sweep.

    Returns:
      Each cell, or the earlier cells that have some of its seeds, followed by a cell of
      the other seeds.
    """
    planned = {cell.name for cell in cells}
    found = _earlier(folder, planned)
    if not found:
        return cells
    grown: list[Cell] = []
    for cell in cells:
        earlier = [] if cell.is_begun else found.get(key_of(cell.settings.record()), [])
        left = list(cell.settings.seeds)
        for path, seeds in earlier:
            if set(seeds) & set(left):
                left = [seed for seed in left if seed not in seeds]
                settings = dataclasses.replace(cell.settings, seeds=seeds)
                grown.append(Cell(path.name, settings, path, note=cell.note))
        if len(left) == len(cell.settings.seeds):
            grown.append(cell)
        elif left:
            told = cell.given, cell.varied, tuple(left), folder, cell.label
            grown.append(make_cell(*told))
            grown[-1].note = cell.note
    return grown


def _earlier(
    folder: pathlib.Path, planned: set[str]
) -> dict[str, list[tuple[pathlib.Path, tuple[int, ...]]]]:
    """Returns the folders and seeds of the other runs of a sweep by their settings."""
    found: dict[str, list[tuple[pathlib.Path, tuple[int, ...]]]] = {}
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    for name in names:
        path = folder / name
        if name in planned or not (path / records.CONFIG).is_file():
            continue
        try:
            config = records.read_config(path)
        except UserError:
            continue  # the report says what is wrong with it
        seeds: Any = config.settings["seeds"]
        if config.kind == "run":
            key = key_of(config.settings)
            found.setdefault(key, []).append((path, tuple(seeds)))
    return found


def key_of(settings: dict[str, records.Setting]) -> str:
    """Returns a text that is equal for settings that differ only in their seeds."""
    without = (*records.PLACES, "seeds")
    kept = {n: v for n, v in settings.items() if v is not None and n not in without}
    kept.setdefault("val_size", VAL_SIZE)
    return json.dumps(kept, sort_keys=True)


class Contents:
    """What models and starting points hold now; each is looked at only once."""

    def __init__(self) -> None:
        """Has looked at nothing yet."""
        self._seen: dict[str, records.Config] = {}
        self._codes: dict[str, str | None] = {}

    def codes_of(self, settings: Settings) -> dict[str, str | None]:
        """Returns checksums of the own code that settings name, by the setting."""
        places = settings.own_code()
        for name, place in places.items():
            if place not in self._codes:
                source = describe_source(source_of(place, name))
                self._codes[place] = source.all_sha256
        return {name: self._codes[place] for name, place in places.items()}

    def check(self, cell: Cell, dataset: Dataset) -> None:
        """Raises a UserError if model or starting point of a begun cell has changed."""
        settings, recorded = cell.settings, records.read_config(cell.folder)
        starts = settings.init_from is not None or settings.continue_from is not None
        codes = self.codes_of(settings)
        same = all(code and code == recorded.codes.get(n) for n, code in codes.items())
        if same and not starts:
            return
        key = repr([dataset.fingerprint, dataclasses.replace(settings, seeds=(0,))])
        if key not in self._seen:
            subject = Subject.prepare(settings, dataset=dataset)
            self._seen[key] = subject.config("run", subject.make_trainer())
        if different := content_differs(self._seen[key], recorded):
            raise another_run(cell.folder, [different])
