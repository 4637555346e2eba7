"""The commands: flags in, one call of the library, text out."""

import os
import runpy
import signal
import sys
from typing import Any

import cifar_flax

# The commands, and what each does.
COMMANDS = {
    "run": "train, evaluate and record a model",
    "sweep": "train every combination of some settings",
    "report": "compare finished runs",
    "lr_find": "find a learning rate",
    "summary": "show the layers, parameters and FLOPs of models",
    "predict": "classify pictures with a finished run",
    "export": "write a finished run for other programs",
    "prepare_data": "download or read CIFAR-10 or CIFAR-100",
}


def _show_error(kind: type, error: BaseException, trace: Any) -> None:
    """Shows an error of a library that does not start in one line.

    JAX refuses values of its environment variables when it is imported.
    """
    if "--debug" in sys.argv:
        sys.__excepthook__(kind, error, trace)
        return
    if isinstance(error, BrokenPipeError):  # the reader, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    text = " ".join(str(error).split())
    variables = [(n, v) for n, v in os.environ.items() if n.startswith("JAX_")]
    for name, value in variables:
        if f"'{value}'" in text or f'"{value}"' in text:
            text += f"; change or unset {name}={value}"
    line = f"cannot start: {kind.__name__}: {text}; --debug shows the traceback"
    print(f"error: {line}", file=sys.stderr)


# While ``python -m experiments.NAME`` or ``cifar-flax NAME`` loads its libraries, for
# two seconds, neither Ctrl-C nor a library that refuses to start shows a traceback.
# ``cli.command`` takes over from here.
_MAIN = os.path.join(os.path.dirname(__file__), "__main__.py")
_IS_INSTALLED = os.path.basename(sys.argv[0]) in ("cifar-flax", "cifar-flax.exe")
if _IS_INSTALLED or sys.argv[0] in ("-m", _MAIN):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.excepthook = _show_error
    os.environ["MPLBACKEND"] = "agg"  # no command opens a window; others may not exist
    # Standard channels that are closed: a file would be opened in their place, and what
    # a library prints would go into it.
    while (channel := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(channel)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115

# What the user writes before the name of a command, for hints that can be pasted. An
# installed program does not depend on what is in the current folder.
BEFORE_NAME = "cifar-flax " if _IS_INSTALLED else "python -m experiments."


def start(name: str) -> None:
    """Runs a command as the main program; it ends the process with its status."""
    module = f"cifar_flax.commands.{name}"
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> int:
    """Runs the command that the first word names; returns the exit status."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        lines = (f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
        print("usage: cifar-flax COMMAND [FLAGS]\n", *lines, "", sep="\n")
        print("cifar-flax COMMAND --help shows the flags of a command.")
        print("cifar-flax --version shows the version.")
        return 0
    if word in ("--version", "-V"):
        print(f"cifar_flax {cifar_flax.__version__}")
        return 0
    if word not in COMMANDS:
        names = ", ".join(COMMANDS)
        print(f"error: no command {word!r}; give one of {names}", file=sys.stderr)
        return 2
    del sys.argv[1]
    start(word)
    return 0
