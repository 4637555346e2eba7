"""The metrics of a run as event files for TensorBoard."""

import pathlib
from typing import Any

import numpy as np

from cifar_flax.errors import UserError

FOLDER = "tensorboard"


class EventWriter:
    """Writes log points to ``tensorboard/`` in a run's folder."""

    def __init__(self, folder: pathlib.Path, seeds: tuple[int, ...], step: int):
        """Opens the file; what it held past this step no longer counts.

        Raises:
          UserError: tensorboardX is missing.
        """
        try:
            import tensorboardX
        except ImportError as error:
            raise UserError(
                "--tensorboard needs tensorboardX: pip install -e '.[tensorboard]'"
            ) from error
        self._seeds = seeds
        logdir = str(folder / FOLDER)
        self._writer = tensorboardX.SummaryWriter(logdir, purge_step=step, flush_secs=1)

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line of ``metrics.jsonl``; a curve for each seed where it has more."""
        for name, value in line.items():
            if name in ("step", "epoch", "seconds") or value is None:
                continue
            values = np.atleast_1d(value)
            for seed, one in zip(self._seeds, values, strict=False):
                tag = f"{name}/seed {seed}" if len(values) > 1 else name
                self._writer.add_scalar(tag, one, line["step"])

    def close(self) -> None:
        """Waits until all is written."""
        self._writer.close()
