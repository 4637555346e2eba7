"""Trains cells as arrays of Slurm jobs, with submitit.

The jobs continue when the driver ends. A file in the sweep's folder records the job of
each cell. The next driver reads it, waits for jobs that are queued or running, and
submits the missing cells. If Slurm no longer knows a job, the lock of its cell tells
whether it runs; see ``worker.train_cell``. As long as Slurm answers, a shared file
system needs no locks.
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
from cifar_flax.runs.folder import LOCK
from cifar_flax.sweeps.cells import Cell
from cifar_flax.sweeps.launchers import (
    POLL_SECONDS,
    SEEN_SECONDS,
    RunCells,
    Show,
    absolute,
    last_line,
    needs_training,
)

JOBS = ".cifar_flax.jobs.json"  # in the folder of the sweep

FOLDER = ".submitit"  # in the folder of the sweep; submitit's own files

# Time between two looks at records and queue.
FOLLOW_SECONDS = 2.0

# Jobs in one array; Slurm's default limit is 1,001.
MAX_ARRAY = 1_000

# Time for a run to save its state before its job is queued again.
SAVE_SECONDS = 60

# submitit's defaults are too short: 5 minutes, and at most 3 restarts.
DEFAULTS = {"name": "cifar_flax", "timeout_min": 24 * 60}
MAX_TIMEOUTS = 100

# States of jobs that train a cell now or later.
QUEUED = (
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESIZING"),
)
WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")

logger = logging.getLogger(__name__)


class Jobs(msgspec.Struct):
    """The content of ``JOBS``.

    Attributes:
      jobs: the number of each cell's job, by the cell's name.
    """

    jobs: dict[str, Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(_[0-9]+)?$")]]


class CellJob:
    """Trains a cell in a job. A job that must end saves its state and is queued again.

    A thread trains the cell, so that the main thread can handle the signal that Slurm
    sends before it ends a job, and wait until the state is saved.
    """

    def __call__(self, cell: Cell) -> str:
        """Trains the cell; returns the outcome."""
        from cifar_flax.sweeps.launchers.worker import DONE, train_cell

        outcome: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=lambda: outcome.append(train_cell(cell, self._stop)), daemon=True
        )
        self._thread.start()
        while self._thread.is_alive():
            time.sleep(POLL_SECONDS)
        if outcome != [DONE]:
            raise UserError(outcome[0] if outcome else "failed")  # marks the job failed
        return outcome[0]

    def checkpoint(self, cell: Cell) -> Any:
        """Called by submitit at that signal; returns what to queue again."""
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
      cpus: number of cores of a cell.
      gpus: number of GPUs of a cell.
      arguments: further parameters of ``submitit.AutoExecutor``, with submitit's names.
        If ``cluster`` is "local", all jobs run at once on this machine, for a trial.

    Raises:
      UserError: submitit or Slurm is not installed, or a parameter is wrong.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError(
            "--launcher=slurm needs submitit, which is not installed: "
            "pip install 'cifar-flax[slurm]'"
        )
    if not 0 <= gpus < math.inf or gpus % 1:
        raise UserError(f"--gpus_per_cell={gpus:g}: Slurm assigns only whole GPUs")
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
            "--launcher=slurm: this machine has no srun or sbatch; run it on a machine "
            "that submits jobs, or use --launcher=local or ray"
        ) from error
    except Exception as error:  # submitit names the wrong parameter in several lines
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
        time.sleep(FOLLOW_SECONDS)  # not stop.wait, which would block signal handlers
    if following:
        numbers = sorted({f.job.job_id.partition("_")[0] for f in following if f.job})
        logger.info(
            "%d cells remain in the queue (%s): the same command waits for them, and "
            "scancel %s ends them",
            len(following),
            ", ".join(f"job {number}" for number in numbers) or "jobs of other users",
            " ".join(numbers),
        )


class _Follower:
    """Watches the job of a cell.

    Attributes:
      cell: the cell.
      job: job of submitit; None if an unknown process trains the cell.
    """

    def __init__(self, cell: Cell, job: Any):
        self.cell, self.job = cell, job
        self._begin: float | None = None
        self._ended: float | None = None
        self._said = cell.log.stat().st_size if cell.log.exists() else 0

    def look(self, show: Show) -> bool:
        """Updates the state of the cell; returns whether it has ended."""
        cell = self.cell
        before = cell.status, cell.node
        try:
            state = _state(self.job) if self.job is not None else "UNKNOWN"
            over = state not in WAITS and cell.finish("done")
            if not over and not self._goes_on(state):
                # The cell may have finished since the first look.
                over = cell.finish("done") or self._failed(state)
        except (UserError, OSError) as error:
            cell.status, over = f"failed: {error}", True
        if self._begin is not None:
            cell.seconds = time.monotonic() - self._begin
        if over or cell.is_running or (cell.status, cell.node) != before:
            show(cell)
        return over

    def _goes_on(self, state: str) -> bool:
        """Returns whether a process trains the cell now or later."""
        holder = None if state in WAITS else _holder(self.cell)
        if self.job is None:
            self.cell.status = f"waits for {holder}"
            return holder is not None
        if state in WAITS:
            self.cell.status = f"waits for job {self.job.job_id}"
        elif not self.cell.is_running and holder is not None:
            self.cell.status = "continues" if self.cell.is_begun else "runs"
            self.cell.node = holder.rpartition(" on ")[2]
            self._begin = time.monotonic()
        return holder is not None or not self.job.done()

    def _failed(self, state: str) -> bool:
        """Shows why the cell failed; returns False while a result may still appear."""
        cell = self.cell
        self._ended = self._ended or time.monotonic()
        if state == "COMPLETED" and time.monotonic() - self._ended < SEEN_SECONDS:
            return False
        said = (
            last_line(cell, self._said) if cell.log.exists() else "it printed nothing"
        )
        number = f"job {self.job.job_id}, {state}" if self.job else "its process ended"
        cell.status = f"failed: {said} ({number}; its output: {cell.log})"
        return True


def _submit(
    folder: pathlib.Path, executor: Any, cells: list[Cell], show: Show
) -> list[_Follower]:
    """Submits the cells that have no job; returns a follower for every cell.

    Raises:
      UserError: Slurm refuses the jobs.
    """
    path = folder / JOBS
    with locked(path.with_suffix(".lock"), wait=True):  # keeps out another driver
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
                    f"Slurm does not accept the jobs: {one_line(error, 400)}"
                ) from error
            for cell, job in zip(some, jobs, strict=True):
                known[cell.name] = job.job_id
                following.append(_Follower(cell, job))
            write_json(path, Jobs(known))
    return following


def _job(executor: Any, number: str) -> Any:
    """Returns a job that an earlier driver submitted."""
    import submitit

    kind = submitit.SlurmJob if executor.cluster == "slurm" else submitit.LocalJob
    return kind(executor.folder, number)


def _state(job: Any) -> str:
    """Returns the state of a job in Slurm's words, such as RUNNING or CANCELLED."""
    return job.state.partition(" ")[0].upper()


def _holder(cell: Cell) -> str | None:
    """Returns the process that has locked a cell or its run, or None."""
    return lock_holder(cell.lock) or lock_holder(cell.folder / LOCK)
