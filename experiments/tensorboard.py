"""The metrics of a run as event files for TensorBoard."""

import contextlib
import pathlib
import time
from typing import Any

import numpy as np

from cifar_flax.errors import UserError
from experiments import cli

FOLDER = "tensorboard"


class EventWriter:
    """Writes log points to ``tensorboard/`` in a run's folder.

    Without tensorboardX's own queue: on a full disk its thread ends, and the run would
    wait for it for ever.
    """

    def __init__(self, folder: pathlib.Path, seeds: tuple[int, ...], step: int):
        """Opens the file; what it held past this step no longer counts.

        Raises:
          UserError: tensorboardX is missing.
        """
        try:
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2
        except ImportError as error:
            raise UserError(
                "--tensorboard needs tensorboardX: pip install -e '.[tensorboard]'"
            ) from error
        self._seeds, self._scalar, self._event = seeds, summary.scalar, event_pb2.Event
        self._writer: Any = None
        self._failed = False
        log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        try:
            (folder / FOLDER).mkdir(exist_ok=True)
            prefix = str(folder / FOLDER / "events")
            self._writer = event_file_writer.EventsWriter(prefix)
            self._write(step, session_log=log)
        except OSError as error:
            self._give_up(error)

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line of ``metrics.jsonl``; a curve for each seed where it has more.

        What cannot be written costs a warning, and the rest of the file.
        """
        try:
            for name, value in line.items():
                if name in ("step", "epoch", "seconds") or value is None:
                    continue
                values = np.atleast_1d(value)
                for seed, one in zip(self._seeds, values, strict=False):
                    tag = f"{name}/seed_{seed}" if len(values) > 1 else name
                    self._write(line["step"], summary=self._scalar(tag, one))
            if not self._failed:
                self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Closes the file."""
        if self._writer:
            with contextlib.suppress(OSError):  # of which a warning has told
                self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        if not self._failed:
            event = self._event(step=step, wall_time=time.time(), **content)
            self._writer.write_event(event)

    def _give_up(self, error: OSError) -> None:
        cli.logger.warning(
            "cannot write events for TensorBoard (%s); metrics.jsonl has the rest",
            error.strerror,
        )
        self._failed = True
