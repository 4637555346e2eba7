"""Fresh seeds of the configurations that a sweep chooses.

The seeds that choose the best of several configurations overestimate it. Seeds that are
trained after the choice do not.
"""

import pathlib
from collections.abc import Sequence

from cifar_flax.reports.choosing import choose, compared_by_default
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.studies import read_entries
from cifar_flax.sweeps.cells import Cell, make_cell
from cifar_flax.sweeps.earlier import key_of, with_earlier_seeds
from cifar_flax.training.arguments import fresh_seeds


def fresh_cells(
    cells: Sequence[Cell], seeds: Sequence[int], count: int, folder: pathlib.Path
) -> list[Cell]:
    """Returns cells that train the chosen configurations with fresh seeds.

    The choice is that of a report of the folder: of each model the configuration that
    is best on the validation split, by the seeds of the sweep. It does not depend on
    fresh seeds, so that the same call continues them.

    Args:
      cells: of the sweep, as ``make_cells`` returns them; all of them are done.
      seeds: of the sweep.
      count: number of fresh seeds.
      folder: of the sweep.
    """
    by_key = {key_of(cell.settings.record()): cell for cell in cells}
    made = []
    for entry in _chosen(folder, set(seeds)):
        cell = by_key.get(key_of(entry.first.config.settings))
        if cell is not None:  # the folder may hold runs of other sweeps
            fresh = fresh_seeds(seeds, count)
            alone = cell.settings.seeds_vary is not None
            made += [
                make_cell(cell.given, cell.varied, group, folder)
                for group in ([(seed,) for seed in fresh] if alone else [fresh])
            ]
    return with_earlier_seeds(made, folder)


def _chosen(folder: pathlib.Path, seeds: set[int]) -> list[Entry]:
    groups, _ = read_entries(folder)
    chosen = []
    for group in groups:
        kept = [e.with_seeds(seeds.__contains__) for e in group.entries]
        whole = [e for e in kept if e is not None and seeds <= set(e.seeds)]
        chosen += choose(whole, compared_by_default(group.entries)).ranked
    return chosen
