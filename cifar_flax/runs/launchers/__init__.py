"""What trains the cells of a sweep: this machine, a Ray cluster, or Slurm.

Each launcher is a context: it yields a function that trains cells, ``RunCells``, and
lets go of what it holds afterwards. All of them leave finished cells as they are and go
on with those that are begun, so that the same call goes on with a sweep.
"""

import threading
from collections.abc import Callable

from cifar_flax.errors import UserError
from cifar_flax.runs.cells import Cell

# Is called whenever something about a cell has changed, in the thread that trains.
Show = Callable[[Cell], None]

# Trains cells until all have ended or the event is set.
RunCells = Callable[[list[Cell], threading.Event, Show], None]

POLL_SECONDS = 0.5

# Until the record of a result that a node has written is seen on this machine.
SEEN_SECONDS = 90

# Of a GPU's memory, which JAX takes at its start: what all cells that share it take.
GPU_SHARE = 0.9


def needs_training(cell: Cell, show: Show) -> bool:
    """Whether a cell is neither done nor impossible; says so where it is."""
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
    """A cell as a node takes it, whose current folder is another one."""
    return Cell(cell.name, cell.settings, cell.folder.absolute())


def last_line(cell: Cell, begin: int) -> str:
    """What the process that trains a cell said last, in its part of the log."""
    said = cell.log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    return said[-1].removeprefix("error: ") if said else "it said nothing"
