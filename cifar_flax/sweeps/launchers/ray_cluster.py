"""Trains cells as tasks of Ray, on this machine or on a cluster.

Each cell is a task. If its node is lost, Ray runs the task again, from the cell's last
checkpoint. The tasks of a driver end with it, and the next driver continues. The cells
therefore need no locks on a shared file system; ``worker.train_cell`` says why there
still are locks.
"""

import contextlib
import functools
import importlib.util
import logging
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from cifar_flax.errors import UserError, one_line
from cifar_flax.files import InUseError, Lock
from cifar_flax.sweeps.cells import Cell
from cifar_flax.sweeps.launchers import (
    GPU_SHARE,
    POLL_SECONDS,
    SEEN_SECONDS,
    RunCells,
    Show,
    absolute,
    needs_training,
)

# How often a cell is restarted after its node or its process is lost.
RETRIES = 20

# Time for a cluster to answer.
CONNECT_SECONDS = 30

# Time for all tasks to save their states.
STOP_SECONDS = 60

# If a cluster runs none of the cells after this time, it is reported to be full.
FULL_SECONDS = 5

# Object store of a local Ray; each task returns only a word.
STORE_BYTES = 100 * 2**20

# These variables affect the last bits of results, so nodes take the driver's values.
OF_NUMBERS = ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")


@contextlib.contextmanager
def on_ray(
    address: str | None = None, cpus: int = 1, gpus: float = 0
) -> Iterator[RunCells]:
    """Trains cells as tasks of a Ray cluster.

    Args:
      address: address of a cluster as HOST:PORT, or ``auto`` for the cluster of this
        machine; None to start Ray on this machine.
      cpus: number of cores of a cell.
      gpus: number of GPUs of a cell; a fraction if several cells share a GPU.

    Raises:
      UserError: Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "--launcher=ray needs Ray, which is not installed: "
            "pip install 'cifar-flax[ray]'"
        )
    if not 0 <= gpus < math.inf or (gpus > 1 and gpus % 1):
        raise UserError(
            f"--gpus_per_cell={gpus:g}: give a fraction of one GPU, or a whole number"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no statistics
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    _connect(address)
    try:
        if address is None and cpus > ray.cluster_resources().get("CPU", 0):
            raise UserError(
                f"--cpus_per_cell={cpus}: this machine has "
                f"{ray.cluster_resources().get('CPU', 0):.0f} cores"
            )
        yield functools.partial(_run_cells, cpus, gpus)
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    import ray

    if address is not None:
        _check_cluster(address)
    settings: dict[str, Any] = {"address": address or "local"}
    if address is None:
        settings |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    answer = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            **settings,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except Exception as error:
        where = "here" if address is None else f"at --address={address}"
        raise UserError(
            f"Ray cannot be used {where}: {one_line(error, 400)}"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answer)  # Ray's handler ends the process


def _check_cluster(address: str) -> None:
    """Raises a UserError if no cluster answers; ``ray.init`` would take minutes."""
    words = [] if address == "auto" else [f"--address={address}"]
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "status", *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CONNECT_SECONDS
        )
        answers = done.returncode == 0
    except subprocess.TimeoutExpired:
        answers = False
    if not answers:
        raise UserError(
            f"--address={address}: no Ray cluster answers; start one with ray start "
            "--head, or leave out --address to use Ray on this machine"
        )


def _run_cells(
    cpus: int, gpus: float, cells: list[Cell], stop: threading.Event, show: Show
) -> None:
    import ray

    try:
        _Driver(cpus, gpus, stop, show).run(cells)
    except ray.exceptions.RayError as error:
        raise UserError(
            f"the cluster is lost ({one_line(error)}); the same command continues"
        ) from error


class _Driver:
    """Submits cells, and follows them."""

    def __init__(self, cpus: int, gpus: float, stop: threading.Event, show: Show):
        self._needs = {"CPU": cpus, "GPU": gpus}
        self._stop, self._show = stop, show
        self._cells: dict[str, Cell] = {}  # cells that have not ended
        self._tasks: dict[Any, Cell] = {}
        self._unseen: dict[str, float] = {}  # deadlines for results not seen here yet
        self._began: dict[str, float] = {}
        self._none_began = True

    def run(self, cells: list[Cell]) -> None:
        """Trains cells until all have ended or the event is set."""
        left = [cell for cell in cells if needs_training(cell, self._show)]
        if not left:
            return
        board, task = _make_board(), _make_task(self._needs)
        for cell in left:
            self._cells[cell.name] = cell
            self._tasks[task.remote(absolute(cell), self._needs["CPU"], board)] = cell
        full_at = time.monotonic() + FULL_SECONDS
        while self._cells and not self._stop.is_set():
            self._follow(board, POLL_SECONDS)
            if self._none_began and time.monotonic() > full_at:
                full_at = math.inf
                self._say_full()
        if self._cells:
            self._end(board)

    def _follow(self, board: Any, seconds: float) -> None:
        """Waits some seconds and takes the changes."""
        import ray

        if self._tasks:
            tasks = list(self._tasks)
            over, _ = ray.wait(
                tasks, num_returns=len(tasks), timeout=seconds, fetch_local=False
            )
        else:
            time.sleep(seconds)
            over = []
        for name, node, status in _read_board(board):
            if (cell := self._cells.get(name)) is not None:
                cell.node, cell.status, self._none_began = node, status, False
                self._began.setdefault(name, time.monotonic())
                self._show(cell)
        for ref in over:
            self._ended(self._tasks.pop(ref), _outcome(ref))
        for name in list(self._unseen):
            self._look(self._cells[name])
        running = None
        for name, begin in self._began.items():
            running = self._cells[name]
            running.seconds = time.monotonic() - begin
        if running is not None:
            self._show(running)  # updates the times of all cells

    def _ended(self, cell: Cell, outcome: str) -> None:
        cell.status = outcome
        if outcome == "done":
            self._unseen[cell.name] = time.monotonic() + SEEN_SECONDS
        else:
            self._over(cell)

    def _look(self, cell: Cell) -> None:
        """Looks whether this machine sees the result that a node has written."""
        try:
            seen = cell.finish("done")
        except (UserError, OSError) as error:
            cell.status = f"failed: {error}"
            seen = True
        if not seen and time.monotonic() > self._unseen[cell.name]:
            cell.status = (
                f"failed: {cell.node} has trained it, but {cell.folder} has no result "
                "here; --workdir must be on storage that all nodes share"
            )
            seen = True
        if seen:
            del self._unseen[cell.name]
            self._over(cell)

    def _over(self, cell: Cell) -> None:
        begin = self._began.pop(cell.name, None)
        if begin is not None:
            cell.seconds = time.monotonic() - begin
        del self._cells[cell.name]
        self._show(cell)

    def _say_full(self) -> None:
        """Shows what the cells wait for, as the status of the first one."""
        import ray

        free, total = ray.available_resources(), ray.cluster_resources()
        kinds = [kind for kind, count in self._needs.items() if count]
        needs = " and ".join(f"{self._needs[kind]:g} {kind}" for kind in kinds)
        has = ", ".join(
            f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind} are free"
            for kind in kinds
        )
        fits = any(
            all(node["Resources"].get(kind, 0) >= self._needs[kind] for kind in kinds)
            for node in ray.nodes()
            if node["Alive"]
        )
        why = "the cluster is full" if fits else "no node has so many"
        cell = next(iter(self._cells.values()))
        cell.status = f"waits for {needs}: {why} ({has})"
        self._show(cell)

    def _end(self, board: Any) -> None:
        """Asks the tasks to save their states, and waits for them."""
        import ray

        for ref in self._tasks:
            ray.cancel(ref)
        deadline = time.monotonic() + STOP_SECONDS
        while self._tasks and time.monotonic() < deadline:
            self._follow(board, POLL_SECONDS)
        for ref in self._tasks:
            ray.cancel(ref, force=True)


def _make_board() -> Any:
    """Makes a queue for the tasks' messages on the driver's node."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _read_board(board: Any) -> list[tuple[str, str, str]]:
    count = board.qsize()
    return board.get_nowait_batch(count) if count else []


def _make_task(needs: dict[str, float]) -> Any:
    """Makes the remote function; each call runs in its own process."""
    import ray

    variables = {name: os.environ[name] for name in OF_NUMBERS if name in os.environ}
    if not needs["GPU"]:
        variables["JAX_PLATFORMS"] = "cpu"
    elif needs["GPU"] < 1:
        share = f"{GPU_SHARE * needs['GPU']:.3f}"
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = share
    return ray.remote(
        num_cpus=needs["CPU"],
        num_gpus=needs["GPU"],
        max_calls=1,
        max_retries=RETRIES,
        runtime_env={"env_vars": variables},
    )(_train)


def _outcome(ref: Any) -> str:
    """Returns the outcome of a task as text."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.TaskCancelledError:
        return "stopped"
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error  # e.g. a node lacks this package
        return f"failed: {one_line(cause, 400)}; the same command continues"


def _train(cell: Cell, cpus: int, board: Any) -> str:
    """Trains a cell on a node, with some of its cores."""
    import ray

    from cifar_flax.sweeps.launchers.worker import train_cell

    stop, node = threading.Event(), ray.util.get_node_ip_address()
    # Ray cancels a task with SIGINT; a KeyboardInterrupt could interrupt a checkpoint.
    signal.signal(signal.SIGINT, lambda *_: stop.set())

    def tell(status: str) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the driver has ended
            board.put((cell.name, node, status))

    with some_cores(cpus):
        return train_cell(cell, stop, tell)


@contextlib.contextmanager
def some_cores(count: int) -> Iterator[None]:
    """Restricts this process to some cores that no other task uses.

    Ray counts cores but does not assign them, and JAX uses all cores that it can. A
    locked file for each core, in the machine's folder for temporary files, marks the
    cores that are taken. If too few are free, the rest is chosen at random.
    """
    with contextlib.ExitStack() as held:
        cores = _take_cores(count, held) if hasattr(os, "sched_setaffinity") else []
        if cores:
            os.sched_setaffinity(0, cores)
        yield


def _take_cores(count: int, held: contextlib.ExitStack) -> list[int]:
    every = sorted(os.sched_getaffinity(0))
    taken: list[int] = []
    folder = pathlib.Path(tempfile.gettempdir(), f"cifar_flax-cores-{os.getuid()}")
    for core in every:
        lock = Lock(folder / f"{core}.lock")
        with contextlib.suppress(InUseError, OSError):
            lock.take(wait=False)
            held.callback(lock.release)
            taken.append(core)
        if len(taken) == count:
            return taken
    others = [core for core in every if core not in taken]
    return taken + random.sample(others, min(count - len(taken), len(others)))
