"""Coordinates processes that train one run together, each with its own devices.

``jax.distributed`` needs the same calls in the same order in every process. If a
decision depends on a clock, a signal or a file, one process makes it and tells the
others through the functions below. With a single process these functions cost nothing.
"""

import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from cifar_flax.errors import UserError, one_line

# A process that has not been heard of for this long counts as lost.
HEARTBEAT_SECONDS = 30

# All processes must have started within this time.
START_SECONDS = 50

# Words in the error messages of the communication libraries for CPUs and GPUs, and of
# JAX's own service, when another process is lost.
_LOST = "Gloo|NCCL|UNAVAILABLE|Connection closed|heartbeat"


def join(
    coordinator: str | None = None, total: int | None = None, number: int | None = None
) -> None:
    """Connects this process with the others; call it before JAX computes anything.

    Args:
      coordinator: ``HOST:PORT`` of process 0; None if JAX can detect all arguments, as
        it does under Slurm, on TPU pods and under Kubernetes.
      total: number of processes.
      number: index of this process, from 0.

    Raises:
      UserError: JAX cannot detect the arguments or cannot reach the other processes.
    """
    given = coordinator is not None
    where = f"--coordinator={coordinator}" if given else "--distributed"

    def give_up() -> None:
        print(
            f"error: {where}: the processes could not connect within "
            f"{START_SECONDS} s; start all {total or ''} of them within that time, and "
            "check that each can reach the first one",
            file=sys.stderr,
        )
        leave(1)

    # JAX's service would handle SIGTERM itself and abort; here it asks a run to stop.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(START_SECONDS, give_up)
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            total,
            number,
            initialization_timeout=2 * START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # JAX and gRPC raise many different types
        hint = "outside of Slurm, TPU pods and Kubernetes give --coordinator, too"
        raise UserError(
            f"{where}: the processes cannot be connected: {one_line(error)}"
            + ("" if given else f"; {hint}")
        ) from error
    finally:
        timer.cancel()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Turns the loss of another process into an error of one line.

    Raises:
      UserError: the communication library reports that another process is gone.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # A lost connection raises either of the two.
        if count() == 1 or not re.search(_LOST, str(error)):
            raise
        raise UserError(
            "another process of this run has ended, or cannot be reached "
            f"({one_line(error)}); start all of them again, with --resume=auto"
        ) from error


def leave(status: int) -> NoReturn:
    """Ends this process after a failure, without waiting for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def count() -> int:
    """Returns the number of processes, without initialising JAX's devices."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Returns whether this is the process that decides and writes the records."""
    return count() == 1 or jax.process_index() == 0


def of_first(tree: Any) -> Any:
    """Returns the first process's values; the shapes must agree in all processes."""
    if count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def in_any(flag: bool) -> bool:
    """Returns whether a flag is true in at least one process."""
    if count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.int32(flag)).any())


def of_all(value: Any) -> list[Any]:
    """Returns the values of all processes; JSON must be able to hold them."""
    if count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size)).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: content.size] = content
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
    ]


def by_first(action: Callable[[], Any]) -> Any:
    """Runs an action in the first process; all processes raise its UserError.

    Returns:
      The result of the action; None in the other processes.
    """
    result, problem = None, None
    if is_first():
        try:
            result = action()
        except UserError as error:
            problem = error
    (message, *_) = of_all(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    if message is not None:
        raise UserError(message)
    return result


def in_turn(action: Callable[[], Any]) -> Any:
    """Runs an action in the first process, then in the others (to share a cache)."""
    if count() == 1:
        return action()
    try:
        if is_first():
            return action()
    finally:
        multihost_utils.sync_global_devices("in turn")
    return action()
