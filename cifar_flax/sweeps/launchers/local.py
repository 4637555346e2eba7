"""Trains cells on this machine, each in its own process."""

import contextlib
import functools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence

from cifar_flax.errors import UserError
from cifar_flax.files import InUseError, locked
from cifar_flax.runs.folder import lock_holder
from cifar_flax.sweeps.cells import Cell
from cifar_flax.sweeps.launchers import (
    GPU_SHARE,
    POLL_SECONDS,
    CommandOf,
    RunCells,
    Show,
    last_line,
    needs_training,
)

# The cores that a cell may use; None for all.
Cores = list[int] | None

# Starts the process of a cell, whose output goes to the file of this number.
Start = Callable[[Cell, int], "subprocess.Popen[bytes]"]


@contextlib.contextmanager
def on_this_machine(command_of: CommandOf, jobs: int = 1) -> Iterator[RunCells]:
    """Trains several cells at a time.

    A lock reserves a cell for one process, so that several sweeps can work on the same
    cells, also on machines that share a folder. Cells of other processes come last.

    Args:
      command_of: returns the command that trains a cell.
      jobs: number of cells at a time. Each takes its share of the cores, if the system
        can assign them (macOS and Windows cannot), and of the memory of a GPU.
    """
    yield functools.partial(_run_cells, command_of, jobs)


def shares(jobs: int) -> list[Cores]:
    """Returns the cores for each of several cells at a time; None means all cores."""
    if jobs == 1 or not hasattr(os, "sched_setaffinity"):
        return [None] * jobs
    cores = sorted(os.sched_getaffinity(0))
    if jobs >= len(cores):
        return [[cores[i % len(cores)]] for i in range(jobs)]
    bounds = [i * len(cores) // jobs for i in range(jobs + 1)]
    return [cores[bounds[i] : bounds[i + 1]] for i in range(jobs)]


def _run_cells(
    command_of: CommandOf,
    jobs: int,
    cells: list[Cell],
    stop: threading.Event,
    show: Show,
) -> None:
    left = cells
    while left and not stop.is_set():
        starts = [functools.partial(_start, command_of, c, jobs) for c in shares(jobs)]
        held = _try_all(left, starts, stop, show)
        if len(held) == len(left):
            time.sleep(POLL_SECONDS)
        left = held


def _try_all(
    cells: list[Cell], starts: Sequence[Start], stop: threading.Event, show: Show
) -> list[Cell]:
    """Trains cells, as many at a time as there are ways to start one.

    Returns:
      The cells that other processes are training.
    """
    waiting = iter(cells)
    held: list[Cell] = []
    turns: dict[int, tuple[Cell, Generator[None, None, bool]]] = {}
    free = list(reversed(range(len(starts))))
    more = True
    while turns or more:
        while free and more:
            cell = None if stop.is_set() else next(waiting, None)
            more = cell is not None
            if cell is not None:
                slot = free.pop()
                turns[slot] = cell, _run_cell(cell, starts[slot], stop, show)
                if _is_over(turns, slot, held):
                    free.append(slot)
        if turns:
            time.sleep(POLL_SECONDS)
        free += [slot for slot in list(turns) if _is_over(turns, slot, held)]
    return held


def _is_over(
    turns: dict[int, tuple[Cell, Generator[None, None, bool]]],
    slot: int,
    held: list[Cell],
) -> bool:
    """Advances the cell of a slot; removes it and returns True when it has ended."""
    cell, turn = turns[slot]
    try:
        next(turn)
    except StopIteration as end:
        del turns[slot]
        if not end.value:
            held.append(cell)
        return True
    return False


def _run_cell(
    cell: Cell, start: Start, stop: threading.Event, show: Show
) -> Generator[None, None, bool]:
    """Trains a cell unless it is done; returns False if another process has it.

    Yields:
      None, repeatedly, while the process of the cell runs.
    """
    try:
        if not needs_training(cell, show):
            return True
        with locked(cell.lock, wait=False):
            if holder := lock_holder(cell.folder):  # a run outside of any sweep
                raise InUseError(holder)
            if not cell.finish("was done by another process"):
                cell.status = "continues" if cell.is_begun else "runs"
                show(cell)
                yield from _train_cell(cell, start, stop, show)
                if cell.finish(cell.status):
                    cell.check_trained()
                elif cell.status == "done":
                    raise UserError(
                        f"its process ended without a result (its output: {cell.log})"
                    )
    except InUseError as error:
        cell.status = f"waits for {error}"
        show(cell)
        return False
    except (UserError, OSError) as error:
        cell.status = f"failed: {error}"
    show(cell)
    return True


def _train_cell(
    cell: Cell, start: Start, stop: threading.Event, show: Show
) -> Iterator[None]:
    """Trains a cell in its own process, and writes its output to a file beside it."""
    began, told = time.monotonic(), False
    with open(cell.log, "ab") as output:
        begin = output.tell()
        process = start(cell, output.fileno())
        while process.poll() is None:
            if not told and (stop.is_set() or cell.shall_end):
                process.terminate()
                told = True
            cell.seconds = time.monotonic() - began
            show(cell)
            yield
        assert process.stdin is not None
        process.stdin.close()
    if process.returncode == 0:
        cell.status = "done"
    elif told:
        cell.status = "stopped"
    else:
        reason = ended_by(process.returncode) or last_line(cell, begin)
        cell.status = f"failed: {reason} (its output: {cell.log})"


def _start(
    command_of: CommandOf, cores: Cores, jobs: int, cell: Cell, output: int
) -> "subprocess.Popen[bytes]":
    """Starts the command that trains a cell, with its share of the machine.

    Its standard input closes when this process ends in any way.
    """
    environment = dict(os.environ)
    if jobs > 1:
        share = f"{GPU_SHARE / jobs:.3f}"
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", share)
    process = subprocess.Popen(
        command_of(cell),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        process_group=0,
        env=environment,
    )
    if cores is not None:  # its threads start seconds later and inherit the cores
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


def ended_by(returncode: int) -> str | None:
    """Returns a message if a signal has ended a process, otherwise None."""
    number = -returncode if returncode < 0 else returncode - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return None
    hint = ", perhaps because memory is short" if name == "SIGKILL" else ""
    return f"ended from outside by {name}{hint}; the same command continues"
