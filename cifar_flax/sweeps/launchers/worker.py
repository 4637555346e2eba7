"""Trains a cell in a task of Ray or a job of Slurm, in its own process on a node."""

import contextlib
import io
import logging
import pathlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from cifar_flax import records
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import InUseError, locked
from cifar_flax.runs.environment import use_compilation_cache
from cifar_flax.runs.folder import lock_holder
from cifar_flax.runs.observers import Observer
from cifar_flax.runs.session import run
from cifar_flax.show.console import ConsoleDisplay, make_console
from cifar_flax.show.figures import RangeFigure
from cifar_flax.sweeps.cells import Cell
from cifar_flax.sweeps.launchers import POLL_SECONDS
from cifar_flax.training.state import TrainState

DONE, STOPPED = "done", "stopped"

MAX_WORDS = 2_000  # characters of the reason why a cell failed


def train_cell(
    cell: Cell, stop: threading.Event, tell: Callable[[str], None] = lambda _: None
) -> str:
    """Trains a cell in this process, from its last checkpoint if there is one.

    Ray or Slurm gives a cell to one task at a time, and to another one only after the
    first is lost. The locks of the cell and of its run are still taken. They keep out a
    second sweep in the same folder, and a task that still runs on a node that counts as
    lost. If the file system cannot lock, a lease replaces the lock; see ``files.Lock``.

    Args:
      cell: a cell whose folder is on storage that the nodes share.
      stop: if this event is set, the run saves its state and ends.
      tell: called with the status of the cell when it changes.

    Returns:
      ``done``, ``stopped``, or the reason of a failure, which is also in the log.
    """
    try:
        with _words_into(cell.log) as words:
            return _train(cell, stop, tell, words)
    except OSError as error:
        return f"failed: {one_line(error)}"


def _train(
    cell: Cell, stop: threading.Event, tell: Callable[[str], None], words: io.TextIOBase
) -> str:
    try:
        while not stop.is_set():
            try:
                with locked(cell.lock, wait=False):
                    if holder := lock_holder(cell.folder):
                        raise InUseError(holder)
                    return _run(cell, stop, tell)
            except InUseError as error:
                tell(f"waits for {error}")
            time.sleep(POLL_SECONDS)  # not stop.wait, which would block signal handlers
        return STOPPED
    except Exception as error:
        reason = one_line(error, MAX_WORDS)
        if not isinstance(error, UserError | OSError):
            traceback.print_exc(file=words)
            reason = f"internal error: {type(error).__name__}: {reason}"
        print(f"error: {reason}", file=words, flush=True)
        return f"failed: {reason} (its output: {cell.log})"


def _run(cell: Cell, stop: threading.Event, tell: Callable[[str], None]) -> str:
    if records.read_result(cell.folder) is not None or cell.shall_end:
        return DONE
    tell("continues" if cell.is_begun else "runs")
    use_compilation_cache()
    screen = make_console(on_broken=stop.set)
    result = run(
        cell.settings,
        cell.folder,
        observers=[RangeFigure(), ConsoleDisplay(screen), _EndIfPruned(cell, stop)],
        stop=stop,
        resume=cell.is_begun,
    )
    if result.record is None:
        return DONE if cell.shall_end else STOPPED
    cell.check_trained()
    return DONE


class _EndIfPruned(Observer):
    """Ends a run after an epoch if the sweep's process has pruned its cell."""

    def __init__(self, cell: Cell, stop: threading.Event):
        self._cell, self._stop = cell, stop

    def epoch_done(self, line: records.LogPoint, state: TrainState) -> None:
        """Looks for the mark."""
        if self._cell.shall_end:
            self._stop.set()


@contextlib.contextmanager
def _words_into(path: pathlib.Path) -> Iterator[io.TextIOBase]:
    """Redirects what this process prints and logs to a file."""
    logger = logging.getLogger("cifar_flax")
    level, passes_on = logger.level, logger.propagate
    with (
        open(path, "a", errors="backslashreplace", buffering=1) as words,
        contextlib.redirect_stdout(words),
        contextlib.redirect_stderr(words),
    ):
        handler = logging.StreamHandler(words)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield words
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = passes_on
