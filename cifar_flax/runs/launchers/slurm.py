"""Cells as jobs of Slurm, in arrays, by submitit.

The queue owns the jobs: they go on when the driver leaves, and which job has which cell
stands in a file of the sweep's folder. The next driver finds them there, waits for
those that are queued or run, and submits what is missing. Where Slurm no longer knows a
job, the lock of its cell tells whether it runs; see ``worker.train_cell``. So a shared
file system needs no locks as long as Slurm answers.
"""

import contextlib
import functools
import importlib.util
import logging
import math
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from cifar_flax.errors import UserError, one_line
from cifar_flax.files import lock_holder, locked
from cifar_flax.json_files import read_json, write_json
from cifar_flax.runs.cells import Cell
from cifar_flax.runs.folder import LOCK
from cifar_flax.runs.launchers import (
    POLL_SECONDS,
    SEEN_SECONDS,
    RunCells,
    Show,
    absolute,
    last_line,
    needs_training,
)

JOBS = ".cifar_flax.jobs.json"  # in the folder of the sweep

FOLDER = ".submitit"  # likewise; what submitit keeps of its jobs

# Between two looks at records and queue.
FOLLOW_SECONDS = 2.0

# Of one array; Slurm takes 1,001 where its settings do not say otherwise.
MAX_ARRAY = 1_000

# For a run to save its state before its job is queued anew.
SAVE_SECONDS = 60

# submitit's own defaults are for tests: 5 minutes, and 3 times at most.
DEFAULTS = {"name": "cifar_flax", "timeout_min": 24 * 60}
MAX_TIMEOUTS = 100

# States of jobs that have a cell, or will.
QUEUED = (
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESIZING"),
)
WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")

logger = logging.getLogger(__name__)


class Jobs(msgspec.Struct):
    """What ``JOBS`` holds.

    Attributes:
      jobs: the number of the job that has a cell, by the cell's name.
    """

    jobs: dict[str, Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(_[0-9]+)?$")]]


class CellJob:
    """What a job does: trains a cell; a job that has to end saves and is queued anew.

    The cell is trained by a thread, so that the main one can answer the signal that
    Slurm sends before it ends a job, and wait until the state is saved.
    """

    def __call__(self, cell: Cell) -> str:
        """Trains the cell; returns what became of it."""
        from cifar_flax.runs.launchers.worker import DONE, train_cell

        outcome: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=lambda: outcome.append(train_cell(cell, self._stop)), daemon=True
        )
        self._thread.start()
        while self._thread.is_alive():
            time.sleep(POLL_SECONDS)
        if outcome != [DONE]:
            raise UserError(outcome[0] if outcome else "failed")  # so that Slurm knows
        return outcome[0]

    def checkpoint(self, cell: Cell) -> Any:
        """Called by submitit at such a signal; what to queue."""
        from submitit.helpers import DelayedSubmission

        self._stop.set()
        deadline = time.monotonic() + SAVE_SECONDS
        while self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return DelayedSubmission(CellJob(), cell)


@contextlib.contextmanager
def on_slurm(
    folder: pathlib.Path,
    cpus: int = 1,
    gpus: float = 0,
    arguments: dict[str, Any] | None = None,
) -> Iterator[RunCells]:
    """Trains cells as jobs of Slurm.

    Args:
      folder: of the sweep, on storage that the nodes share.
      cpus: cores of a cell.
      gpus: of a cell.
      arguments: more parameters of ``submitit.AutoExecutor``, by submitit's names;
        ``cluster`` "local" tries the jobs out on this machine, all at once.

    Raises:
      UserError: submitit or Slurm is not there, or a parameter is wrong.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError(
            "--launcher=slurm needs submitit, which is not installed: "
            "pip install -e '.[slurm]'"
        )
    if not 0 <= gpus < math.inf or gpus % 1:
        raise UserError(f"--gpus_per_cell={gpus:g}: Slurm gives whole GPUs alone")
    given = dict(arguments or {})
    cluster = given.pop("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise UserError(f"--slurm_args: cluster is {cluster!r}; give slurm or local")
    parameters = {**DEFAULTS, "cpus_per_task": cpus, **given}
    if gpus:
        parameters["gpus_per_node"] = int(gpus)
    executor = _make_executor(folder.absolute() / FOLDER, cluster, parameters)
    yield functools.partial(_run_cells, folder, executor)


def _make_executor(
    folder: pathlib.Path, cluster: str, parameters: dict[str, Any]
) -> Any:
    import submitit

    try:
        executor = submitit.AutoExecutor(
            folder,
            cluster=cluster,
            slurm_max_num_timeout=MAX_TIMEOUTS,
            local_max_num_timeout=MAX_TIMEOUTS,
        )
        executor.update_parameters(**parameters)
    except RuntimeError as error:
        raise UserError(
            "--launcher=slurm: this machine has no srun and no sbatch; run it where "
            "jobs are submitted, or use --launcher=local or ray"
        ) from error
    except Exception as error:  # which parameter is wrong, in several lines
        raise UserError(f"--slurm_args: {one_line(error, 400)}") from error
    return executor


def _run_cells(
    folder: pathlib.Path,
    executor: Any,
    cells: list[Cell],
    stop: threading.Event,
    show: Show,
) -> None:
    left = [cell for cell in cells if needs_training(cell, show)]
    if not left:
        return
    following = _submit(folder, executor, left, show)
    while following and not stop.is_set():
        for follower in list(following):
            if follower.look(show):
                following.remove(follower)
        time.sleep(FOLLOW_SECONDS)  # stop.wait could not be set by a signal's answer
    if following:
        numbers = sorted({f.job.job_id.partition("_")[0] for f in following if f.job})
        logger.info(
            "%d cells are left to the queue (%s): the same command follows them, and "
            "scancel %s ends them",
            len(following),
            ", ".join(f"job {number}" for number in numbers) or "jobs of others",
            " ".join(numbers),
        )


class _Follower:
    """Watches a cell that a job has, or had.

    Attributes:
      cell: that the job has.
      job: of submitit; None where a process has the cell whose job is not known.
    """

    def __init__(self, cell: Cell, job: Any):
        self.cell, self.job = cell, job
        self._begin: float | None = None
        self._ended: float | None = None
        self._said = cell.log.stat().st_size if cell.log.exists() else 0

    def look(self, show: Show) -> bool:
        """Takes note of what has changed; whether the cell is over."""
        cell = self.cell
        before = cell.status, cell.node
        try:
            state = _state(self.job) if self.job is not None else "UNKNOWN"
            over = state not in WAITS and cell.finish("done")
            if not over and not self._goes_on(state):
                # It may have come to its end between the two looks.
                over = cell.finish("done") or self._failed(state)
        except (UserError, OSError) as error:
            cell.status, over = f"failed: {error}", True
        if self._begin is not None:
            cell.seconds = time.monotonic() - self._begin
        if over or cell.is_running or (cell.status, cell.node) != before:
            show(cell)
        return over

    def _goes_on(self, state: str) -> bool:
        """Whether somebody trains it, or will."""
        holder = None if state in WAITS else _holder(self.cell)
        if self.job is None:
            self.cell.status = f"waits for {holder}"
            return holder is not None
        if state in WAITS:
            self.cell.status = f"waits for job {self.job.job_id}"
        elif not self.cell.is_running and holder is not None:
            self.cell.status = "goes on" if self.cell.is_begun else "runs"
            self.cell.node = holder.rpartition(" on ")[2]
            self._begin = time.monotonic()
        return holder is not None or not self.job.done()

    def _failed(self, state: str) -> bool:
        """Says why; not yet where a result may not have come to be seen."""
        cell = self.cell
        self._ended = self._ended or time.monotonic()
        if state == "COMPLETED" and time.monotonic() - self._ended < SEEN_SECONDS:
            return False
        said = last_line(cell, self._said) if cell.log.exists() else "it said nothing"
        number = f"job {self.job.job_id}, {state}" if self.job else "its process ended"
        cell.status = f"failed: {said} ({number}; its words: {cell.log})"
        return True


def _submit(
    folder: pathlib.Path, executor: Any, cells: list[Cell], show: Show
) -> list[_Follower]:
    """Submits the cells that no job has; returns who watches them all.

    Raises:
      UserError: Slurm refuses the jobs.
    """
    path = folder / JOBS
    with locked(path.with_suffix(".lock"), wait=True):  # another driver may do the same
        known = read_json(path, Jobs).jobs if path.exists() else {}
        following, missing = [], []
        for cell in cells:
            job = _job(executor, known[cell.name]) if cell.name in known else None
            if job is not None and _state(job) in QUEUED:
                following.append(_Follower(cell, job))
            elif holder := _holder(cell):
                cell.status = f"waits for {holder}"
                following.append(_Follower(cell, None))
            else:
                missing.append(cell)
        for begin in range(0, len(missing), MAX_ARRAY):
            some = missing[begin : begin + MAX_ARRAY]
            try:
                jobs = executor.map_array(CellJob(), map(absolute, some))
            except Exception as error:
                raise UserError(
                    f"Slurm takes no jobs: {one_line(error, 400)}"
                ) from error
            for cell, job in zip(some, jobs, strict=True):
                known[cell.name] = job.job_id
                following.append(_Follower(cell, job))
            write_json(path, Jobs(known))
    return following


def _job(executor: Any, number: str) -> Any:
    """A job of an earlier driver."""
    import submitit

    kind = submitit.SlurmJob if executor.cluster == "slurm" else submitit.LocalJob
    return kind(executor.folder, number)


def _state(job: Any) -> str:
    """The state of a job, as Slurm names it: RUNNING, CANCELLED and so on."""
    return job.state.partition(" ")[0].upper()


def _holder(cell: Cell) -> str | None:
    """Which process has a cell, or its run."""
    return lock_holder(cell.lock) or lock_holder(cell.folder / LOCK)
