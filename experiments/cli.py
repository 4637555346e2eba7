"""What all commands share: flags, one-line errors, a quiet console."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from cifar_flax.errors import UserError

flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

USAGE_ERROR = 2

logger = logging.getLogger("cifar_flax")


class Stopped(KeyboardInterrupt):
    """A signal asks the command to end."""

    def __init__(self, signum: int):
        """Of that signal."""
        super().__init__(signum)
        self.signum = signum

    @property
    def status(self) -> int:
        """Exit status, as of a process that the signal ended."""
        return 128 + self.signum


def main(run: Callable[..., int | None], arguments: bool = False) -> None:
    """Parses the flags and runs a command, with a clear end in every case.

    A wrong flag ends with status 2, any other error of the user's with status 1, both
    with one line on stderr.

    Args:
      run: the command; it returns the exit status, None for 0.
      arguments: it takes the words that are no flags, as a list.
    """
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False

    def guarded(argv: list[str]) -> None:
        if arguments:
            sys.exit(_guarded(lambda: run(argv[1:])))
        if len(argv) > 1:
            message = f"{argv[1]!r} is not a flag; flags begin with --"
            sys.exit(fail(message, USAGE_ERROR))
        sys.exit(_guarded(run))

    app.run(guarded, flags_parser=_parse_flags)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Within it, settings are made of flags: what is wrong is the usage."""
    try:
        yield
    except UserError as error:
        raise flags.ValidationError(str(error)) from error


def fail(message: str, status: int) -> int:
    """Prints an error as one line and returns the exit status."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


class _Formatter(logging.Formatter):
    """Plain messages, with a word in front of those that matter."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        if record.levelno < logging.WARNING:
            return message
        return f"{record.levelname.lower()}: {message}"


def _parse_flags(argv: list[str]) -> list[str]:
    for name, flag in list(flags.FLAGS.flags_by_module_dict().items()):
        if name.startswith("experiments."):
            for one in flag:  # or --help would list the flags of this file's caller
                flags.FLAGS.register_key_flag_for_module(argv[0], one)
    if {"--help", "-help", "--helpshort"} & set(argv):
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)  # absl itself would end with status 1
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError) as error:  # the latter from absl's own flags
        sys.exit(fail(str(error), USAGE_ERROR))


def _stop(signum: int, frame: Any) -> None:
    raise Stopped(signum)


def _guarded(run: Callable[[], int | None]) -> int:
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        status = run() or 0
        sys.stdout.flush()
        return status
    except Stopped as stop:
        return fail(f"stopped by {signal.Signals(stop.signum).name}", stop.status)
    except BrokenPipeError:  # the reader, such as head, has had enough
        _drop_output()
        return 128 + signal.SIGPIPE
    except flags.Error as error:
        return fail(str(error), USAGE_ERROR)
    except Exception as error:
        if flags.FLAGS.debug:
            raise
        if isinstance(error, UserError):
            return fail(str(error), 1)
        if isinstance(error, OSError):
            _drop_output()  # which may be what cannot be written
            place = f"{error.filename}: " if error.filename else "cannot write: "
            return fail(f"{place}{error.strerror or error}", 1)
        kind = type(error).__name__
        return fail(f"internal error: {kind}: {error}; --debug shows where", 1)


def _drop_output() -> None:
    """Keeps Python from failing once more over what is still to be printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
