"""Several processes that train one run together, each with its own devices.

``jax.distributed`` needs the same calls in the same order in every process. What a
clock, a signal or a file decides is therefore decided by one process, and told to the
others by the functions below. With one process, they cost nothing.
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

# A process is given up where it has not been heard of for so long.
HEARTBEAT_SECONDS = 30

# The others must have started by then.
START_SECONDS = 50

# Words of the libraries for messages on CPUs and GPUs, and of JAX's own service.
_LOST = "Gloo|NCCL|UNAVAILABLE|Connection closed|heartbeat"


def join(
    coordinator: str | None = None, total: int | None = None, number: int | None = None
) -> None:
    """Connects this process with the others; to be called before anything computes.

    Args:
      coordinator: ``HOST:PORT`` of process 0; None where JAX finds all of this out, as
        under Slurm, on TPU pods and under Kubernetes.
      total: of the processes.
      number: of this one, from 0.

    Raises:
      UserError: JAX finds nothing out, or the others cannot be reached.
    """
    given = coordinator is not None
    where = f"--coordinator={coordinator}" if given else "--distributed"

    def give_up() -> None:
        print(
            f"error: {where}: the processes do not find each other within "
            f"{START_SECONDS} s; all {total or ''} must be started in that time, and "
            "reach the first one",
            file=sys.stderr,
        )
        leave(1)

    # JAX would take SIGTERM, which asks the caller to stop; and it would abort.
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
    except Exception as error:  # JAX and gRPC raise anything
        hint = "outside of Slurm, TPU pods and Kubernetes give --coordinator, too"
        raise UserError(
            f"{where}: the processes cannot be connected: {one_line(error)}"
            + ("" if given else f"; {hint}")
        ) from error
    finally:
        timer.cancel()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it, a process that is lost is one line in the others.

    Raises:
      UserError: the device's library for messages finds that a process is gone.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # A lost connection comes as either.
        if count() == 1 or not re.search(_LOST, str(error)):
            raise
        raise UserError(
            "another process of this run has ended, or cannot be reached "
            f"({one_line(error)}); start all of them again, with --resume=auto"
        ) from error


def leave(status: int) -> NoReturn:
    """Ends this process, which has failed, without waiting for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def count() -> int:
    """How many there are; without starting JAX's devices."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process decides, and writes the records."""
    return count() == 1 or jax.process_index() == 0


def of_first(tree: Any) -> Any:
    """Arrays or numbers as the first process has them; of the same shapes in all."""
    if count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


def in_any(flag: bool) -> bool:
    """Whether it is true in one of the processes."""
    if count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.int32(flag)).any())


def of_all(value: Any) -> list[Any]:
    """What each process has, as JSON holds it."""
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
    """Lets the first process do something; its UserError is raised in all.

    Returns:
      What came of it; None in the other processes.
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
    """Lets the first process do something before the others, such as fill a cache."""
    if count() == 1:
        return action()
    try:
        if is_first():
            return action()
    finally:
        multihost_utils.sync_global_devices("in turn")
    return action()
