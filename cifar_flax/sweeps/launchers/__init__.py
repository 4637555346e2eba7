"""Launchers train the cells of a sweep: on this machine, with Ray, or with Slurm.

A launcher is a context manager that yields a function that trains cells, ``RunCells``.
All launchers skip finished cells and continue unfinished ones, so that the same call
continues a sweep.
"""

import dataclasses
import threading
from collections.abc import Callable

from cifar_flax.errors import UserError
from cifar_flax.sweeps.cells import Cell

# Called in the training thread whenever the state of a cell has changed.
Show = Callable[[Cell], None]

# Trains cells until all have ended or the event is set.
RunCells = Callable[[list[Cell], threading.Event, Show], None]

# Returns the words of the command that trains a cell in a process of its own. The
# command saves its state and ends when its standard input does.
CommandOf = Callable[[Cell], list[str]]

POLL_SECONDS = 0.5

# Longest time until this machine sees the result that another node has written.
SEEN_SECONDS = 90

# JAX allocates GPU memory at its start; this is the share for all cells on one GPU.
GPU_SHARE = 0.9


def needs_training(cell: Cell, show: Show) -> bool:
    """Returns whether a cell still needs training; otherwise shows why not."""
    try:
        if cell.problem is not None:
            raise UserError(cell.problem)
        if not cell.finish("was done"):
            return True
    except (UserError, OSError) as error:
        cell.status = f"failed: {error}"
    show(cell)
    return False


def absolute(cell: Cell) -> Cell:
    """Returns a cell with an absolute path, for a node with another current folder."""
    return dataclasses.replace(cell, folder=cell.folder.absolute())


def last_line(cell: Cell, begin: int) -> str:
    """Returns the last line that a cell's process wrote to its part of the log."""
    said = cell.log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    return said[-1].removeprefix("error: ") if said else "it printed nothing"
