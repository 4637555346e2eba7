"""Workers of a benchmark: processes that answer one request at a time.

It needs only the standard library, so that it also runs under another interpreter.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def json_lines() -> Iterator[Callable[[Any], None]]:
    """Gives a function that writes a value to stdout as a line of JSON.

    Everything else that the process prints goes to stderr.
    """
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)

        def write(value: Any) -> None:
            output.write(json.dumps(value) + "\n")
            output.flush()

        yield write


def serve(answers: dict[str, Callable[[], Any]]) -> None:
    """Answers each line of stdin with a line of JSON, until stdin ends.

    Args:
      answers: the function for each request; ``memory`` is always available.
    """
    with json_lines() as write:
        for line in sys.stdin:
            write({"memory": peak_memory, **answers}[line.strip()]())


def peak_memory() -> int:
    """Returns the peak memory of this process in bytes."""
    import resource  # not available on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class WorkerEnded(Exception):
    """A worker has ended before it answered."""


class Worker:
    """The other end of ``serve``."""

    def __init__(self, process: "subprocess.Popen[str]"):
        """Takes a process that serves."""
        self._process = process

    def call(self, request: str) -> Any:
        """Sends a request and waits for its answer.

        Raises:
          WorkerEnded: the worker has ended without an answer.
        """
        output, request_line = self._process.stdout, self._process.stdin
        assert output is not None
        assert request_line is not None
        with contextlib.suppress(BrokenPipeError):
            request_line.write(request + "\n")
            request_line.flush()
        line = output.readline()
        if not line:
            raise WorkerEnded
        return json.loads(line)


@contextlib.contextmanager
def worker(*command: str) -> Iterator[Worker]:
    """Starts a command that serves, and ends it after the block."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield Worker(process)
    finally:
        process.kill()
        process.wait()
