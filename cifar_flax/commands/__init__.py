"""The commands: flags in, one call of the library, text out."""

import os
import runpy
import signal
import sys

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

# While ``python -m experiments.NAME`` or ``cifar-flax NAME`` loads its libraries, for
# two seconds, Ctrl-C ends it without a traceback. ``cli.command`` takes over from here.
if os.path.basename(sys.argv[0]) in ("-m", "cifar-flax", "cifar-flax.exe"):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Standard channels that are closed: a file would be opened in their place, and what
    # a library prints would go into it.
    while (channel := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(channel)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


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
        return 0
    if word not in COMMANDS:
        names = ", ".join(COMMANDS)
        print(f"error: no command {word!r}; give one of {names}", file=sys.stderr)
        return 2
    del sys.argv[1]
    start(word)
    return 0
