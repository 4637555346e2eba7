"""Room on the disk for checkpoints."""

import pathlib
import shutil

import jax

from cifar_flax.errors import UserError
from cifar_flax.training.state import TrainState


def size_of(state: TrainState) -> int:
    """Returns the largest size of a checkpoint of a state, in bytes."""
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return 2 * arrays + 2**20  # files of a few kB each; arrays are compressed


def check_space(folder: pathlib.Path, needed: int) -> None:
    """Raises a UserError if a folder's disk has fewer free bytes than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} may need {needed / 1e6:.1f} MB, and its disk has only "
            f"{free / 1e6:.1f} MB free; make room"
        )
