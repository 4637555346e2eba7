"""Writes the metrics of a run to event files for TensorBoard."""

import contextlib
import logging
import pathlib
import time
from typing import Any

import msgspec
import numpy as np

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.runs.observers import Observer, Plan, RangeTestResult, RunResult
from cifar_flax.training.state import TrainState

FOLDER = "tensorboard"

logger = logging.getLogger(__name__)


class TensorBoard(Observer):
    """Writes the metrics of a run to ``tensorboard/`` in its folder.

    Raises:
      UserError: tensorboardX is missing.
    """

    def __init__(self) -> None:
        """Checks that tensorboardX is installed, before anything runs."""
        _import_tensorboardx()
        self._writer: EventWriter | None = None

    def started(self, plan: Plan) -> None:
        """Opens the event file."""
        if plan.kind == "run" and plan.folder is not None:
            self._writer = EventWriter(plan.folder, plan.trainer.seeds, plan.step)

    def epoch_done(self, line: records.LogPoint, state: TrainState) -> None:
        """Writes the metrics of the epoch."""
        del state
        if self._writer is not None:
            self._writer.write(line)

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class EventWriter:
    """Writes log points to ``tensorboard/`` in a run's folder.

    It does not use tensorboardX's queue, whose thread ends if the disk is full; the run
    would then wait for it forever.
    """

    def __init__(self, folder: pathlib.Path, seeds: tuple[int, ...], step: int):
        """Opens a file; TensorBoard ignores earlier events after this step.

        Raises:
          UserError: tensorboardX is missing.
        """
        writers, summary, event_pb2 = _import_tensorboardx()
        self._seeds, self._scalar, self._event = seeds, summary.scalar, event_pb2.Event
        self._new_writer = writers.EventsWriter
        self._folder = folder / FOLDER
        self._writer: Any = None
        self._failed = False
        log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        try:
            self._open()
            self._write(step, session_log=log)
        except OSError as error:
            self._give_up(error)

    def write(self, line: records.LogPoint) -> None:
        """Adds a line of ``metrics.jsonl``; a curve for each seed where it has more.

        What cannot be written costs a warning, and the rest of the file.
        """
        try:
            if not self._failed and not self._folder.is_dir():
                logger.warning("%s was removed and is created again", self._folder)
                self.close()
                self._open()
            for name, value in msgspec.structs.asdict(line).items():
                if name in ("step", "epoch", "seconds") or value is None:
                    continue
                values = np.atleast_1d(value)
                for seed, one in zip(self._seeds, values, strict=False):
                    tag = f"{name}/seed_{seed}" if len(values) > 1 else name
                    self._write(line.step, summary=self._scalar(tag, one))
            if not self._failed:
                self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Closes the file."""
        if self._writer:
            with contextlib.suppress(OSError):  # a warning was already given
                self._writer.close()

    def _open(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._writer = self._new_writer(str(self._folder / "events"))

    def _write(self, step: int, **content: Any) -> None:
        if not self._failed:
            event = self._event(step=step, wall_time=time.time(), **content)
            self._writer.write_event(event)

    def _give_up(self, error: OSError) -> None:
        logger.warning(
            "cannot write events for TensorBoard (%s); metrics.jsonl has all metrics",
            error.strerror,
        )
        self._failed = True


def _import_tensorboardx() -> tuple[Any, Any, Any]:
    try:
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2
    except ImportError as error:
        raise UserError(
            "--tensorboard needs tensorboardX: pip install -e '.[tensorboard]'"
        ) from error
    return event_file_writer, summary, event_pb2
