"""Writes the metrics of a run to event files for TensorBoard."""

import contextlib
import logging
import time
from collections.abc import Iterator
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

    It does not use tensorboardX's queue, whose thread ends if the disk is full; the run
    would then wait for it forever.

    Raises:
      UserError: tensorboardX is missing.
    """

    def __init__(self) -> None:
        """Checks that tensorboardX is installed, before anything runs."""
        writers, summary, self._events = _import_tensorboardx()
        self._new_writer, self._scalar = writers.EventsWriter, summary.scalar
        self._writer: Any = None
        self._failed = False

    def started(self, plan: Plan) -> None:
        """Opens a file; TensorBoard ignores earlier events after the plan's step."""
        if plan.kind != "run" or plan.folder is None:
            return
        self._seeds, self._folder = plan.trainer.seeds, plan.folder / FOLDER
        log = self._events.SessionLog(status=self._events.SessionLog.START)
        with self._giving_up():
            self._open()
            self._write(plan.step, session_log=log)

    def epoch_done(self, line: records.LogPoint, state: TrainState | None) -> None:
        """Writes the metrics of the epoch; a curve for each seed where it has more.

        What cannot be written costs a warning, and the rest of the file.
        """
        del state
        if self._writer is None or self._failed:
            return
        with self._giving_up():
            if not self._folder.is_dir():
                logger.warning("%s was removed and is created again", self._folder)
                self.ended(None)
                self._open()
            figures = msgspec.structs.asdict(line)
            others = figures.pop("val_metrics") or {}
            figures |= {f"val_{name}": values for name, values in others.items()}
            for name, value in figures.items():
                if name in ("step", "epoch", "seconds") or value is None:
                    continue
                values = np.atleast_1d(value)
                for seed, one in zip(self._seeds, values, strict=False):
                    tag = f"{name}/seed_{seed}" if len(values) > 1 else name
                    self._write(line.step, summary=self._scalar(tag, one))
            self._writer.flush()

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Closes the file."""
        del result
        if self._writer is not None:
            with contextlib.suppress(OSError):  # a warning was already given
                self._writer.close()
            self._writer = None

    def _open(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._writer = self._new_writer(str(self._folder / "events"))

    def _write(self, step: int, **content: Any) -> None:
        event = self._events.Event(step=step, wall_time=time.time(), **content)
        self._writer.write_event(event)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Warns if the file cannot be written; the rest is then left out."""
        try:
            yield
        except OSError as error:
            logger.warning(
                "cannot write events for TensorBoard (%s); metrics.jsonl has all "
                "metrics",
                error.strerror,
            )
            self._failed = True


def _import_tensorboardx() -> tuple[Any, Any, Any]:
    try:
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2
    except ImportError as error:
        raise UserError(
            "--tensorboard needs tensorboardX: pip install 'cifar-flax[tensorboard]'"
        ) from error
    return event_file_writer, summary, event_pb2
