"""Writes settings to the record of a run, and reads them back."""

import copy
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, Self

from cifar_flax import records
from cifar_flax.data.splits import VAL_SIZE
from cifar_flax.definitions import Hyperparameter, hyperparameters
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user
from cifar_flax.models import norm_fields
from cifar_flax.own_code import is_own, label_of
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.recipe_choice import OF_CYCLES
from cifar_flax.runs.setting_fields import AllFields
from cifar_flax.training.named_recipes import bn_momentum_for, own_name
from cifar_flax.training.recipe_files import from_plain

# Every setting by its name, in the order of the flags.
SETTINGS: dict[str, Hyperparameter] = hyperparameters(AllFields)


class RecordedSettings(AllFields):
    """What ``Settings`` does with records."""

    def record(self, has_validation: bool = False) -> dict[str, records.Setting]:
        """Returns the settings for ``config.json``.

        A setting that is not given is recorded with its actual value if model, recipe
        or data determine it, since both ways describe the same run.

        Args:
          has_validation: whether the data set has its own validation images.
        """
        values = {name: getattr(self, name) for name in SETTINGS}
        own = {n: copy.deepcopy(v) for n, v in values.items() if isinstance(v, dict)}
        lists = {n: list(v) for n, v in values.items() if isinstance(v, tuple)}
        record = {**values, **own, **lists}
        if self.val_size is None and not has_validation:
            record["val_size"] = VAL_SIZE
        own_values = _own(self.model, self.recipe)
        for name, value in {**own_values, "tta": self._recipe.tta}.items():
            record[name] = value if record[name] is None else record[name]
        return record

    def own_code(self) -> dict[str, str]:
        """Returns the places of the own code that the settings name, by the setting."""
        places = self._recipe.code()
        places |= {"model": self.model} if is_own(self.model) else {}
        for name in filter(is_own, self.metrics or ()):
            places[f"metrics.{label_of(name)}"] = name
        return places

    @classmethod
    def from_record(
        cls, config: records.Config, where: str, names: Sequence[str] = ()
    ) -> Self:
        """Makes settings from a record.

        Args:
          config: the record.
          where: its file, for error messages.
          names: the settings to take, the others have their defaults; empty: all.

        Raises:
          UserError: a setting is missing or not valid.
        """
        recipe = None
        if not names and config.recipe is not None and _is_elsewhere(config.settings):
            recipe = from_plain(config.recipe, where)
        found = {
            n: config.settings.get(n, SETTINGS[n].default) for n in names or SETTINGS
        }
        model, recipe_name = (config.settings.get(n) for n in ("model", "recipe"))
        for name, value in _own(str(model), recipe_name).items():
            if name in found and found[name] == value:
                found[name] = None
        # An older record lacks settings of later versions, which then have no value.
        missing = [
            n for n in found if n not in config.settings and found[n] is not None
        ]
        if missing:
            raise UserError(
                f"{where}: the settings have no {missing[0]!r}; this is not the record "
                "of a run"
            )
        try:
            return cls(**found, recorded_recipe=recipe)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    @classmethod
    def of_run(cls, folder: pathlib.Path, given: Collection[str]) -> Self:
        """Returns the settings of the run in a folder.

        Args:
          folder: of the run.
          given: names of the settings that the user gives, too, which allows the own
            code that they name to run.

        Raises:
          UserError: there is no such run, or the user must name its own code.
        """
        config = records.read_config(folder)
        settings = cls.from_record(config, str(folder / records.CONFIG))
        needed: dict[str, str] = {}
        for code, place in settings.own_code().items():
            name = code.partition(".")[0]  # of several metrics
            if name == "metrics":
                needed[name] = as_text(settings.metrics)
                continue
            path = settings.recipe if getattr(settings, name) is None else None
            needed |= {name: place} if path is None else {"recipe": path}
        if missing := {n: value for n, value in needed.items() if n not in given}:
            flags = " ".join(f"--{name}={value}" for name, value in missing.items())
            raise UserError(
                f"the run in {folder} trains with code of your own, which runs only if "
                f"you name it: add {flags} (in Python {next(iter(missing))}=)"
            )
        return settings

    @classmethod
    def continuing(cls, folder: str | pathlib.Path, **changes: Any) -> Self:
        """Returns the settings of a run that continues another from its last state.

        Args:
          folder: of the finished run.
          **changes: settings that differ from that run, such as ``epochs=10``;
            ``epochs`` and ``cycles`` replace each other.

        Raises:
          UserError: there is no such run, or the settings contradict each other.
        """
        folder = expand_user(folder)
        try:
            before = cls.of_run(folder, changes)
        except UserError as error:
            raise UserError(f"--continue_from={folder}: {error}") from error
        values = {name: getattr(before, name) for name in SETTINGS}
        if changes.get("epochs") is not None:
            values |= dict.fromkeys(OF_CYCLES)
        elif changes.get("cycles") is not None:
            values |= {"epochs": None}
        origin = {"init_from": None, "continue_from": str(folder)}
        return cls(**{**values, **origin, **changes})


def _own(model: str, recipe: Any) -> dict[str, Any]:
    """Returns the settings for which None stands, with a model and a recipe."""
    norm, asked = norm_fields(model), bn_momentum_for(str(recipe))
    return {
        "recipe": own_name(model),
        "bn_momentum": norm["momentum"] if asked is None else asked,
        "bn_epsilon": norm["epsilon"],
    }


def _is_elsewhere(settings: dict[str, records.Setting]) -> bool:
    """Returns whether recorded settings take their recipe from a file or a run."""
    recipe, origin = settings.get("recipe"), settings.get("continue_from")
    is_file = isinstance(recipe, str) and pathlib.Path(recipe).is_absolute()
    return is_file or origin is not None


def differences(now: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Describes the settings that differ from a record, except paths.

    Args:
      now: settings from ``Settings.record``.
      recorded: the ``settings`` of a ``config.json``.
    """
    return [
        f"--{name} was {recorded.get(name)} and is {value}"
        for name, value in now.items()
        if name not in records.PLACES and recorded.get(name) != value
    ]
