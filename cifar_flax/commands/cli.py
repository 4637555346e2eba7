"""Flags, one-line errors and signals of all commands."""

import contextlib
import io
import logging
import os
import pathlib
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging

import cifar_flax
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import PRINTABLE, check_text, expand_user, open_plain, printable
from cifar_flax.runs.flag_text import as_text

flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

USAGE_ERROR = 2

# Signals that ask a command to end; SIGHUP means that the terminal has gone.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
]

# The signal of a broken pipe, as a number, because Windows does not define it.
SIGPIPE = 13

logger = logging.getLogger("cifar_flax")


# Groups of flags for --help; ``setting_flags`` adds to them.
GROUPS: dict[str, Sequence[str]] = {}
_OTHERS = "Run"


class _Text(flags.ArgumentParser):
    """Accepts text that can be a name, without changes."""

    syntactic_help = PRINTABLE

    def parse(self, argument: str) -> str:
        """Returns the text; raises a ValueError if it cannot be a name."""
        return check_text(argument)


def define_text(name: str, default: str | None, help_text: str) -> None:
    """Defines a flag that names something other than a file or a folder."""
    flags.DEFINE(_Text(), name, default, help_text)


class _Path(_Text):
    """Accepts the path of a file or a folder; a leading ~ is the home folder."""

    def parse(self, argument: str) -> str:
        """Returns the path; raises a ValueError if it cannot be one."""
        try:
            return str(expand_user(super().parse(argument)))
        except UserError as error:
            raise ValueError(str(error)) from error


def define_path(name: str, default: str | None, help_text: str) -> None:
    """Defines a flag whose value is a path."""
    flags.DEFINE(_Path(), name, default, help_text)


def check_ending(name: str, endings: Sequence[str]) -> None:
    """Raises a ValidationError if a file name has an unknown suffix."""
    value: Any = flags.FLAGS[name].value
    if pathlib.Path(value).suffix.lower() not in endings:
        raise flags.ValidationError(
            f"--{name}={value}: give a name that ends with one of {', '.join(endings)}"
        )


class Stopped(BaseException):
    """A signal asks the command to end.

    It is not a KeyboardInterrupt, because the library handles that by stopping a run
    and returning.
    """

    def __init__(self, signum: int):
        """Keeps the number of the signal."""
        super().__init__(signum)
        self.signum = signum


@contextlib.contextmanager
def command(takes_words: bool = False) -> Iterator[list[str]]:
    """Parses the flags and handles the errors of a command.

    A wrong flag ends the process with status 2, any other error of the user with status
    1, both with one line on stderr. As a context manager it adds no frame to
    tracebacks.

    Args:
      takes_words: whether the command takes words that are not flags.

    Yields:
      These words.
    """
    sys.excepthook = sys.__excepthook__  # from here on, errors are handled below
    absl_logging.set_verbosity(absl_logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every terminal can show every character.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.raiseExceptions = False  # ignore log messages that cannot be written
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    words = _parse_flags(sys.argv)[1:]
    if words and not takes_words:
        fail(f"{words[0]!r} is not a flag; flags begin with --", USAGE_ERROR)
    set_signals(_stop)
    try:
        yield words
        sys.stdout.flush()
    except Stopped as stop:
        fail(f"stopped by {signal.Signals(stop.signum).name}", 128 + stop.signum)
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        drop_output()
        sys.exit(128 + SIGPIPE)
    except flags.Error as error:
        fail(str(error), USAGE_ERROR)
    except Exception as error:
        if flags.FLAGS.debug:
            raise
        if isinstance(error, UserError):
            fail(str(error), 1)
        if isinstance(error, OSError):
            drop_output()  # stdout itself may be what cannot be written
            place = f"{error.filename}: " if error.filename else "cannot write: "
            fail(f"{place}{error.strerror or error}", 1)
        if "RESOURCE_EXHAUSTED" in str(error):
            fail(
                "the memory of the device is full; lower --batch_size, --train_size or "
                f"the number of --seeds ({one_line(error)})",
                1,
            )
        kind = type(error).__name__
        fail(f"internal error: {kind}: {error}; --debug shows the traceback", 1)
    finally:
        set_signals(signal.SIG_DFL)  # Python's own end needs no handler


def set_signals(action: Any) -> dict[int, Any]:
    """Sets the handlers of the signals, except ignored ones (as with nohup).

    Args:
      action: as for ``signal.signal``.

    Returns:
      The previous handlers.
    """
    numbers = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    return {number: signal.signal(number, action) for number in numbers}


@contextlib.contextmanager
def caught_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Calls a function with each signal, which then does not end the command."""
    previous = set_signals(lambda number, _: handle(number))
    try:
        yield
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


class StopRequest:
    """Turns the first signal into a request to stop; a second one ends at once.

    Attributes:
      event: set by the first signal.
      signum: number of that signal; None before.
    """

    def __init__(self) -> None:
        """Makes a request that is not set."""
        self.event = threading.Event()
        self.signum: int | None = None

    def __call__(self, signum: int) -> None:
        """Handles a signal."""
        self.signum = signum
        self.event.set()
        set_signals(signal.SIG_DFL)
        if hasattr(signal, "SIGHUP"):  # the shell and the terminal may each send one
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def output_broke(self) -> None:
        """Handles a broken output pipe like a signal."""
        drop_output()
        self(SIGPIPE)


def stop_with_input() -> None:
    """Sends this process a SIGTERM when its standard input ends."""

    def wait_for_end() -> None:
        while os.read(0, 1000):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_end, daemon=True).start()


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns errors of settings that come from flags into errors of usage."""
    try:
        yield
    except UserError as error:
        raise flags.ValidationError(str(error)) from error


def fail(message: str, status: int) -> NoReturn:
    """Prints an error as one line and ends the process with a status."""
    with contextlib.suppress(OSError):  # stderr may be closed
        print(f"error: {printable(one_line(message, 200_000))}", file=sys.stderr)
    sys.exit(status)


class _Formatter(logging.Formatter):
    """Formats messages, with the level in front of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        message = printable(super().format(record))
        if record.levelno < logging.WARNING:
            return message
        return f"{record.levelname.lower()}: {message}"


def _parse_flags(argv: list[str]) -> list[str]:
    app.define_help_flags()
    for name, flag in list(flags.FLAGS.flags_by_module_dict().items()):
        if name.startswith("cifar_flax.commands."):
            for one in flag:  # otherwise --help would leave out the flags of this file
                flags.FLAGS.register_key_flag_for_module(argv[0], one)
    if {"--help", "-help", "--helpshort"} & set(argv):
        with contextlib.suppress(BrokenPipeError):  # | head
            print(help_text(flags.FLAGS.get_key_flags_for_module(argv[0])), flush=True)
        drop_output()
        sys.exit(0)
    if "--version" in argv:
        print(f"cifar_flax {cifar_flax.__version__}")
        sys.exit(0)
    try:
        _check_flag_files(argv)
        return flags.FLAGS(argv)
    # Absl's own flags raise a ValueError.
    except (flags.Error, UserError, ValueError) as error:
        fail(str(error), USAGE_ERROR)


def _check_flag_files(words: Sequence[str], seen: tuple[str, ...] = ()) -> None:
    """Raises a UserError if a file of flags is a pipe, for which absl would wait."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        found = re.fullmatch(r"--?flagfile(=(.*))?", word.strip(), re.DOTALL)
        name = "" if found is None else os.path.expanduser(found[2] or following)
        if name and name not in seen:
            # Absl reports a missing file.
            with contextlib.suppress(OSError), open_plain(name) as file:
                lines = file.read().decode(errors="replace").splitlines()
                _check_flag_files(lines, (*seen, name))


def help_text(known: Sequence[flags.Flag]) -> str:
    """Returns the output of ``--help``: the command's text and its flags in groups."""
    groups: dict[str, list[str]] = {name: [] for name in (*GROUPS, _OTHERS)}
    for flag in sorted(known, key=lambda flag: flag.name):
        name = next((n for n, names in GROUPS.items() if flag.name in names), _OTHERS)
        text = re.sub(r"^<[^>]*>: ", "", flag.help)  # absl's list of the choices
        if flag.default is not None and "default:" not in text:
            default = as_text(flag.default)
            text = f"{text.removesuffix('.')} (default: {default})."
        words = textwrap.fill(
            text, 80, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
        groups[name].append(f"  {_usage_of(flag)}\n{words}")
    shown = [f"{name}:\n" + "\n".join(each) for name, each in groups.items() if each]
    return "\n\n".join([(sys.modules["__main__"].__doc__ or "").strip(), *shown])


def _usage_of(flag: flags.Flag) -> str:
    """Returns a flag with the type of its value."""
    if flag.boolean:
        return f"--[no]{flag.name}"
    choices = getattr(flag.parser, "enum_values", None)
    if choices and len(choices) < 10:
        return f"--{flag.name}={'|'.join(choices)}"
    kind = flag.flag_type()
    word = {"int": "INTEGER", "float": "NUMBER"}.get(kind, "TEXT")
    return f"--{flag.name}={'A,B,...' if 'comma' in kind else word}"


def _stop(signum: int, frame: Any) -> None:
    raise Stopped(signum)


def drop_output() -> None:
    """Discards further output, so that Python does not fail again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
