"""The command cifar-flax: ``cifar-flax run`` does what ``-m experiments.run`` does."""

import runpy
import sys

COMMANDS = {
    "run": "train, evaluate and record a model",
    "sweep": "train every combination of some settings",
    "report": "compare finished runs",
    "lr_find": "find a learning rate",
    "lr_grid": "measure the quality of the suggested rates",
    "summary": "show the layers, parameters and FLOPs of models",
    "predict": "classify pictures with a finished run",
    "export": "write a finished run for other programs",
    "prepare_data": "download or read CIFAR-10 or CIFAR-100",
    "benchmark": "measure the speed, and compare it with PyTorch",
    "torch_airbench": "train airbench94 in PyTorch",
}


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
    runpy.run_module(f"experiments.{word}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
