"""Defines the settings of a run as flags; see ``cifar_flax.runs.settings``."""

import pathlib
import re
import typing
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from absl import flags

from cifar_flax.commands import cli
from cifar_flax.definitions import Hyperparameter, without_none
from cifar_flax.models import FAMILIES, MODELS
from cifar_flax.own_code import is_own
from cifar_flax.runs.recipe_choice import OF_RECIPE
from cifar_flax.runs.recorded_settings import SETTINGS
from cifar_flax.runs.replication import settings_to_repeat
from cifar_flax.runs.setting_values import choices_of, parse_value, what_to_give
from cifar_flax.runs.settings import OF_DATA, OF_EVALUATION, OF_MODEL, SINGLE, Settings
from cifar_flax.training import processes
from cifar_flax.training.named_recipes import LESSON
from cifar_flax.training.placement import parse_mesh

FLAGS = flags.FLAGS

cli.GROUPS |= {
    "Model": (*OF_MODEL, "lowering"),
    "Data": (*OF_DATA, *OF_EVALUATION),
    "Recipe": (*OF_RECIPE, "lr_check"),
}

# Names that stand for several models.
GROUPS = {"all": list(LESSON), "families": list(FAMILIES)}

# Names of the types in --help.
_KINDS = {
    int: "int",
    float: "float",
    typing.Union[int, float]: "float",  # noqa: UP007 (as in a setting)
    bool: "bool",
}


class _Parser(flags.ArgumentParser):
    """Parses a flag in the same way as its setting elsewhere."""

    def __init__(self, setting: Hyperparameter):
        self._setting = setting
        self.syntactic_help = what_to_give(self._setting)
        self.enum_values = choices_of(self._setting)  # absl lists them in --help

    def parse(self, argument: Any) -> Any:
        """Returns the value; raises a ValueError if the text is not valid."""
        is_text = isinstance(argument, str)
        return parse_value(self._setting, argument) if is_text else argument

    def flag_type(self) -> str:
        """Returns the type of the values for --help."""
        if self.enum_values:
            return "string enum"
        kind = without_none(self._setting.kind)
        if kind == tuple[int, ...]:
            return "comma separated list of numbers"
        return _KINDS.get(kind, "string")


def define_settings(
    *names: str, without: Sequence[str] = (), lists: bool = False
) -> None:
    """Defines a flag for each setting, or for the named ones.

    Args:
      *names: settings; empty for all.
      without: settings that get no flag.
      lists: whether a flag takes a comma list, whose parts ``parse`` reads. Settings
        that have only one value in a sweep do not.
    """
    for name in names or SETTINGS:
        if name in without:
            continue
        if lists and name not in SINGLE:
            flags.DEFINE_list(name, None, SETTINGS[name].about.help)
        else:
            define_flag(name, SETTINGS[name])


def define_flag(name: str, one: Hyperparameter) -> None:
    """Defines a flag for a setting or a hyperparameter."""
    default, help_text, choices = one.default, one.about.help, choices_of(one)
    if choices:
        flags.DEFINE_enum(name, default, choices, help_text)
    elif without_none(one.kind) is bool:
        flags.DEFINE_bool(name, default, help_text)
    else:
        flags.DEFINE(_Parser(one), name, default, help_text)
    FLAGS[name].parser = _Parser(one)


def parse(name: str, text: str) -> Any:
    """Parses a setting; raises a flags.ValidationError if the text is not valid."""
    try:
        return parse_value(SETTINGS[name], text)
    except ValueError as error:
        raise flags.ValidationError(f"--{name}={text}: {error}") from error


def settings_from_flags(
    resumed: pathlib.Path | None = None, repeated: pathlib.Path | None = None
) -> Settings:
    """Returns the settings that the flags give.

    Args:
      resumed: folder of a run to continue; flags that are not given have the values of
        its record.
      repeated: folder of a run to train again with other seeds.

    Raises:
      UserError: there is no run to resume or to repeat.
      flags.ValidationError: flags contradict each other or are out of range.
    """
    values: dict[str, Any] = {
        name: FLAGS[name].value for name in SETTINGS if name in FLAGS
    }
    given = {name: value for name, value in values.items() if FLAGS[name].present}
    if resumed is not None:
        recorded = Settings.of_run(resumed, given)
        with cli.usage_errors():
            return recorded.with_given(given)
    if repeated is not None:
        with cli.usage_errors():
            return settings_to_repeat(repeated, given)
    with cli.usage_errors():
        origin = given.pop("continue_from", None)
        if origin is not None:
            return Settings.continuing(origin, **given)
        return Settings(**values)


def define_devices() -> None:
    """Defines the flags that choose the devices."""
    flags.DEFINE_integer(
        "devices",
        None,
        "Number of devices (default: all accelerators, or one CPU). They divide first "
        "the seeds, then the batches of each seed.",
        lower_bound=1,
    )
    cli.define_text(
        "mesh", None, "Number of devices along each axis, such as seed:2,data:4."
    )


def define_processes() -> None:
    """Defines the flags of a run that several processes train together."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Train together with other processes of the same command; JAX finds them under "
        "Slurm, on TPU pods and under Kubernetes.",
    )
    cli.define_text(
        "coordinator", None, "HOST:PORT of process 0, if JAX cannot find it."
    )
    flags.DEFINE_integer(
        "num_processes", None, "Number of processes, with --coordinator.", lower_bound=1
    )
    flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0.", lower_bound=0
    )


def join_processes() -> None:
    """Connects this process with the others, if the flags say that there are others.

    Raises:
      flags.ValidationError: some of the flags are missing.
      UserError: the other processes cannot be reached.
    """
    names = ("coordinator", "num_processes", "process_id")
    given = [name for name in names if FLAGS[name].value is not None]
    if not given and not FLAGS.distributed:
        return
    if given and len(given) < len(names):
        missing = next(name for name in names if name not in given)
        raise flags.ValidationError(f"--{given[0]} also needs --{missing}")
    if given and not re.fullmatch(r".+:\d{1,5}", FLAGS.coordinator):
        raise flags.ValidationError(
            f"--coordinator={FLAGS.coordinator}: give HOST:PORT, such as node1:8476"
        )
    if given and FLAGS.process_id >= FLAGS.num_processes:
        raise flags.ValidationError(
            f"--process_id={FLAGS.process_id}: it must be below --num_processes="
            f"{FLAGS.num_processes}, because the first process has the number 0"
        )
    if FLAGS.workdir is None:
        raise flags.ValidationError("--distributed needs --workdir, the run's folder")
    processes.join(*(FLAGS[name].value for name in names))
    if not processes.is_first():
        cli.logger.setLevel("ERROR")  # the first process gives the warnings


def devices_from_flags() -> dict[str, Any]:
    """Returns the arguments of ``run`` and ``range_test`` that choose the devices."""
    with cli.usage_errors():
        mesh = None if FLAGS.mesh is None else parse_mesh(FLAGS.mesh)
    return {"devices": FLAGS.devices, "mesh": mesh}


def with_groups(names: Iterable[str]) -> list[str]:
    """Returns names of models, with those of a group in the place of its name."""
    return [one for name in names for one in GROUPS.get(name, (name,))]


def check_models(names: list[str], others: Collection[str] = ()) -> list[str]:
    """Returns the models that ``--models`` names; see ``GROUPS``.

    Args:
      names: names as given.
      others: other valid names.

    Raises:
      flags.ValidationError: there is no name, an unknown one, or one twice.
    """
    given, names = names, with_groups(names)
    if not names or len(set(names)) < len(names):
        raise flags.ValidationError(
            f"--models={','.join(given)}: give one or more different models, or all, "
            "or families"
        )
    known = [*MODELS, *others]
    wrong = [name for name in names if name not in known and not is_own(name)]
    if wrong:
        raise flags.ValidationError(
            f"--models={','.join(wrong)}: give all, families, or some of "
            f"{', '.join(known)}, or your own as FILE.py:NAME or MODULE:NAME"
        )
    return names
