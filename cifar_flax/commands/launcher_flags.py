"""The flags of the launchers of a sweep."""

import contextlib
import json
import pathlib
import re
import sys
from typing import Any

from absl import flags

from cifar_flax.commands import cli
from cifar_flax.sweeps.cells import Cell
from cifar_flax.sweeps.launchers import RunCells
from cifar_flax.sweeps.launchers.local import on_this_machine

FLAGS = flags.FLAGS

# Flags that only some launchers have.
OF_LAUNCHERS = {
    "jobs": ["local"],
    "shard": ["local"],
    "address": ["ray"],
    "cpus_per_cell": ["ray", "slurm"],
    "gpus_per_cell": ["ray", "slurm"],
    "slurm_args": ["slurm"],
}


class _Address(flags.ArgumentParser):
    """Accepts the address of a cluster."""

    syntactic_help = "auto, or HOST:PORT of a cluster"

    def parse(self, argument: str) -> str:
        """Returns the text; raises a ValueError if it is not an address."""
        if not re.fullmatch(r"auto|([\w.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}", argument):
            raise ValueError(f"give {self.syntactic_help}")
        return argument


class _Object(flags.ArgumentParser):
    """Accepts names and values as JSON."""

    syntactic_help = "a JSON object"

    def parse(self, argument: Any) -> dict[str, Any]:
        """Returns the object; raises a ValueError if the text is not one."""
        try:
            value = json.loads(argument) if isinstance(argument, str) else argument
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"give {self.syntactic_help}")
        return value


def make_launcher() -> contextlib.AbstractContextManager[RunCells]:
    """Makes the launcher that the flags name.

    Raises:
      flags.ValidationError: a flag belongs to another launcher.
    """
    launcher = FLAGS.launcher
    for name, launchers in OF_LAUNCHERS.items():
        if FLAGS[name].present and launcher not in launchers:
            raise flags.ValidationError(
                f"--{name} needs --launcher={' or '.join(launchers)}; drop it, or "
                f"change --launcher={launcher}"
            )
    cpus, gpus = FLAGS.cpus_per_cell, FLAGS.gpus_per_cell
    if launcher == "local":
        return on_this_machine(command_of, FLAGS.jobs)
    if launcher == "ray":
        from cifar_flax.sweeps.launchers.ray_cluster import on_ray

        return on_ray(FLAGS.address, cpus, gpus)
    from cifar_flax.sweeps.launchers.slurm import on_slurm

    return on_slurm(pathlib.Path(FLAGS.workdir), cpus, gpus, FLAGS.slurm_args or {})


def command_of(cell: Cell) -> list[str]:
    """Returns the words of the command that trains a cell in its own process."""
    program = pathlib.Path(__file__).resolve().with_name("__main__.py")
    return [
        *(sys.executable, "-P", str(program), "run", *cell.settings.as_flags()),
        *(f"--workdir={cell.folder}", *(["--resume"] if cell.is_begun else [])),
        "--stop_with_input",  # which ends when this process ends in any way
    ]


def define_launchers() -> None:
    """Defines the flags of the launchers."""
    flags.DEFINE_enum(
        "launcher",
        "local",
        ["local", "ray", "slurm"],
        "Where to train: on this machine, as tasks of Ray, or as job arrays of Slurm.",
    )
    flags.DEFINE_integer(
        "jobs", 1, "local: number of cells at a time; they share the cores.", 1, 1_000
    )
    cli.define_text(
        "shard",
        None,
        "local: I/N, for jobs of another queue; this process trains the cells I, I+N, "
        "I+2N and so on.",
    )
    flags.DEFINE(
        _Address(),
        "address",
        None,
        "ray: auto or HOST:PORT of a cluster (default: Ray on this machine).",
    )
    flags.DEFINE_integer(
        "cpus_per_cell", 1, "ray, slurm: number of cores of a cell.", 1, 4_096
    )
    flags.DEFINE_float(
        "gpus_per_cell",
        0,
        "ray, slurm: number of GPUs of a cell; with ray, 0.5 lets two cells share one.",
        0,
        64,
    )
    flags.DEFINE(
        _Object(),
        "slurm_args",
        None,
        "slurm: further parameters of submitit.AutoExecutor, as JSON: "
        """'{"slurm_partition": "gpu", "timeout_min": 60}'.""",
    )
